"""Proving that a backup restores: into scratch, by the code of `restore`; held against the source; recorded."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Literal, TypeVar

from backupd import __version__, anomalies, compare, pipeline, proofs, reference, restore, restore_plan, times
from backupd.anomalies import Policy
from backupd.catalog import BackupRef, Catalog, manifest_key
from backupd.compare import Question
from backupd.crypto import age, minisign
from backupd.errors import (
    BackupdError,
    BusyError,
    IntegrityError,
    NoBackupError,
    ObjectMissingError,
    PostgresError,
    ProofError,
    RefusedError,
    WrongKeyError,
)
from backupd.manifest import Manifest
from backupd.postgres import assertions, roles, scratch, trouble
from backupd.postgres.assertions import Assertion
from backupd.postgres.process import Running
from backupd.postgres.scratch import Scratch
from backupd.postgres.session import Dsn
from backupd.postgres.tools import choose_server, find_installations
from backupd.progress import Progress
from backupd.proof import Check, Proof
from backupd.proof import Scratch as ScratchRecord
from backupd.reference import Reference
from backupd.restore_plan import RestorePlan
from backupd.retention import CLOCKS_DIFFER

T = TypeVar("T")
Level = Literal["off", "rows", "content"]


@dataclass(frozen=True, slots=True)
class Job:
    """Everything one test restore needs to know."""

    database: str  # its name in the configuration and the repository
    at: datetime | None  # None: the newest backup
    signing_key: minisign.SecretKey
    backup_id: str | None = None  # this very backup, instead of a time
    server: Dsn | None = None  # where to make a scratch database; None: a throw-away server of this machine
    folder: Path = Path("/tmp")  # noqa: S108  (where the throw-away server keeps its data: what the caller says)
    settings: Mapping[str, str] = field(default_factory=dict)  # of the throw-away server, beside ours
    major: int | None = None  # of the throw-away server; None: the backup's own
    level: Level = "rows"
    assertions: Sequence[Assertion] = ()
    assertion_timeout: timedelta = timedelta(seconds=60)
    anomalies: Policy = field(default_factory=Policy)
    accept: bool = False  # anomalies are meant
    jobs: int = 2
    bin_dirs: Sequence[Path] = ()


class _Inconclusive(Exception):  # noqa: N818  (it is no error of the backup)
    """The scratch failed, not the backup."""


class _Findings:
    """What is known so far, whatever comes of the rest."""

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self.phases: dict[str, float] = {}
        self.scratch: ScratchRecord | None = None
        self.tables = self.rows = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = monotonic()
        try:
            yield
        finally:
            self.phases[name] = round(self.phases.get(name, 0) + monotonic() - began, 3)

    def fail(self, name: str, error: BackupdError) -> None:
        """What PostgreSQL says of rows and statements is for whoever looks on, not for the proof, which is plain."""
        full = "\n".join([str(error), *getattr(error, "__notes__", [])])
        self.checks.append(Check(name=name, status="failed", detail=_plain(error), shown=tuple(full.splitlines()[1:])))


def _plain(error: BackupdError) -> str:
    """An error without what PostgreSQL says in it, which may quote rows and statements."""
    detail = error.detail.splitlines()
    if isinstance(error, PostgresError):
        named = [line for line in detail if line.startswith(("pg_restore: error:", "pg_restore: from TOC entry"))]
        detail = [line.partition("ERROR:")[0].rstrip(": ") for line in named]
    return "\n".join([error.message, *detail, *filter(None, [error.hint]), *getattr(error, "__notes__", [])])


def run(job: Job, catalog: Catalog, identities: Sequence[age.Identity], progress: Progress) -> Proof:
    """Restore one backup into scratch, compare, record the signed proof and return it, whatever its verdict.

    Raises NoBackupError, IntegrityError for a backup whose manifest can't be believed or that no identity opens, and
    StorageError: then there is nothing to prove, and nothing is recorded.
    """
    ref = _backup(job, catalog)
    manifest, signed = catalog.signed_manifest(ref)
    started_at, findings, reason = times.now(), _Findings(), ""
    try:
        _examine(job, catalog, manifest, identities, progress, findings)
    except _Inconclusive as stop:
        reason = str(stop)
    failed = any(check.status == "failed" for check in findings.checks)
    if failed:
        _still_there(catalog, ref)
    made = Proof(
        repository=manifest.repository,
        database=job.database,
        id=manifest.id,
        manifest_sha256=hashlib.sha256(signed).hexdigest(),
        taken_at=manifest.taken_at,
        started_at=started_at,
        finished_at=times.now(),
        host=platform.node(),
        backupd_version=__version__,
        source_version=manifest.server_version,
        scratch=findings.scratch,
        rehearsal=job.major not in (None, manifest.server_major),
        level=job.level,
        status="failed" if failed else "inconclusive" if reason else "passed",
        reason=reason,
        phases=findings.phases,
        tables_compared=findings.tables,
        rows_compared=findings.rows,
        checks=tuple(findings.checks),
    )
    progress.phase("recording the proof")
    proofs.record(catalog, made, job.signing_key)
    return made


def _backup(job: Job, catalog: Catalog) -> BackupRef:
    if job.backup_id is not None:
        return catalog.by_id(job.database, job.backup_id)
    if job.at is not None:
        return catalog.find(job.database, job.at)
    try:
        return catalog.find(job.database, times.now() + CLOCKS_DIFFER)
    except NoBackupError:  # all are dated in the future, or there is none
        return catalog.find(job.database, None)


def _still_there(catalog: Catalog, ref: BackupRef) -> None:
    """What another host prunes while it is tested is no backup that failed."""
    try:
        catalog.storage.stat(manifest_key(ref.database, ref.id))
    except ObjectMissingError as error:
        raise NoBackupError(
            f"the backup {ref.id} of {ref.database} was deleted while it was tested",
            hint="It was pruned, most likely. Verify the newest.",
        ) from error


def _examine(
    job: Job,
    catalog: Catalog,
    manifest: Manifest,
    identities: Sequence[age.Identity],
    progress: Progress,
    findings: _Findings,
) -> None:
    """Everything that is asked, from the stored objects to the operator's own checks. What fails stops only what
    can't be asked without it."""
    known: Reference | None = None
    try:
        progress.phase("checking the stored objects")
        catalog.check_objects(manifest)
        if manifest.reference is not None:
            data = pipeline.read(catalog.storage, manifest.reference, identities)
            known = reference.decode(data, manifest.reference.key)
    except WrongKeyError:
        raise
    except IntegrityError as error:
        findings.fail("stored objects", error)
        return
    if job.major in (None, manifest.server_major):
        findings.checks += _anomalies(job, catalog, manifest)
    progress.phase("making a place to restore into")
    with _place(job, manifest, known, findings) as place:
        copy = _restored(job, catalog, manifest, identities, progress, findings, place)
        if copy is None:
            return
        if job.level != "off":
            progress.phase("comparing the copy with the source")
            question = Question(manifest, known, copy.dsn, copy.server.major, job.level == "content")
            with findings.phase("compare"):
                found = _guarded(place, findings, lambda: compare.compare(question, Running()))
            if found is not None:
                findings.checks += found.checks
                findings.tables, findings.rows = found.tables, found.rows
        if job.assertions:
            progress.phase("asking your own checks")
            with findings.phase("checks"):
                findings.checks += _guarded(place, findings, lambda: _asked(job, copy.dsn)) or ()


def _anomalies(job: Job, catalog: Catalog, manifest: Manifest) -> list[Check]:
    """Measured against the last proven backups, as far as their manifests can be believed."""
    ref = catalog.by_id(job.database, manifest.id)
    accepted = {
        check.name
        for earlier in proofs.of_backup(catalog, ref)
        if isinstance(earlier, Proof)
        for check in earlier.checks
        if check.accepted
    }
    before = []
    for earlier in proofs.proven(catalog, job.database, before=ref, most=anomalies.PROVEN):
        try:
            before.append(catalog.manifest(earlier))
        except IntegrityError:  # it is told by `list`; a proof of another backup can't fail of it
            continue
    return anomalies.checks(manifest, before, job.anomalies, accept=job.accept, accepted=accepted)


@contextmanager
def _place(job: Job, manifest: Manifest, known: Reference | None, findings: _Findings) -> Iterator[Scratch]:
    """A scratch server or database, and its removal. What goes wrong with either says nothing about the backup."""
    stack, done = ExitStack(), False
    try:
        with findings.phase("scratch"):
            place = stack.enter_context(_scratch(job, manifest, known))
    except (PostgresError, RefusedError, BusyError) as error:
        raise _Inconclusive(str(error)) from error
    stopped: _Inconclusive | None = None
    try:
        with stack:
            try:
                yield place
            except _Inconclusive as stop:  # what goes wrong with the removal follows from it
                stopped = stop
            done = True
    except PostgresError as error:
        if not done:
            raise
        findings.checks.append(Check(name="clean-up", status="skipped", detail=str(error)))
    if stopped is not None:
        raise stopped


def _drop_roles(plan: RestorePlan, findings: _Findings) -> None:
    """Those that were made for the copy, when that is gone."""
    left = roles.drop(plan.new_roles, plan.server.dsn) if plan.new_roles is not None else []
    if left:
        findings.checks.append(Check(name="clean-up", status="skipped", detail="\n".join(left)))


def _scratch(job: Job, manifest: Manifest, known: Reference | None) -> AbstractContextManager[Scratch]:
    if job.server is not None:
        if job.major is not None:
            raise PostgresError("--server-major chooses an ephemeral server, and scratch names a server of its own")
        return scratch.on_server(job.server, repository=manifest.repository, now=times.now())
    short = scratch.room(job.folder, manifest.database_bytes)
    if short is not None:
        raise PostgresError(
            "there is not room enough for a copy",
            detail=short,
            hint="Make room, or name another folder: scratch_folder in [defaults.verify].",
        )
    installation = choose_server(find_installations(job.bin_dirs), job.major or manifest.server_major)
    return scratch.ephemeral(
        installation,
        job.folder,
        superuser=known.bootstrap if known is not None else "postgres",
        name=manifest.properties.name,
        settings=job.settings,
    )


def _restored(
    job: Job,
    catalog: Catalog,
    manifest: Manifest,
    identities: Sequence[age.Identity],
    progress: Progress,
    findings: _Findings,
    place: Scratch,
) -> RestorePlan | None:
    """What made the copy; None if the backup does not restore."""
    request = restore_plan.Request(
        database=job.database,
        at=None,
        now=times.now(),
        source=place.dsn,
        backup_id=manifest.id,
        into=place.name,
        create_roles=True,
        jobs=job.jobs,
        bin_dirs=job.bin_dirs,
    )
    with findings.phase("restore"):
        try:
            plan = restore_plan.plan(request, catalog, identities)
        except (PostgresError, RefusedError, BusyError) as error:
            raise _Inconclusive(str(error)) from error
        except IntegrityError as error:
            if isinstance(error, WrongKeyError):
                raise
            findings.fail("stored objects", error)
            return None
        kind: Literal["ephemeral", "server"] = "ephemeral" if place.ephemeral else "server"
        findings.scratch = ScratchRecord(kind=kind, server_version=plan.server.version, server_major=plan.server.major)
        try:
            done = restore.run(plan, catalog, identities, progress)
            place.afterwards.callback(_drop_roles, plan, findings)
        except IntegrityError as error:
            findings.fail("stored objects", error)
            return None
        except ProofError as error:
            findings.fail("rows", error)
            return None
        except PostgresError as error:
            if trouble.is_of_the_server(error, place.dsn, place.log):
                raise _Inconclusive(_plain(error)) from error
            findings.fail("restore", error)
            return None
    told = "; ".join(done.warnings)
    detail = f"{len(manifest.tables)} tables in {done.seconds:.1f} s{f'; could not be set: {told}' if told else ''}"
    findings.checks[:0] = [
        Check(name="stored objects", status="passed", detail=f"{len(manifest.objects)} objects, by size and hash"),
        Check(name="restore", status="passed", detail=detail),
    ]
    return plan


def _guarded(place: Scratch, findings: _Findings, ask: Callable[[], T]) -> T | None:
    """What can't be asked because of the server says nothing about the backup; what can't because of the copy fails."""
    try:
        return ask()
    except PostgresError as error:
        if trouble.is_of_the_server(error, place.dsn, place.log):
            raise _Inconclusive(_plain(error)) from error
        findings.fail("reading the copy", error)
        return None


def _asked(job: Job, copy: Dsn) -> list[Check]:
    return [
        Check(
            name=f"check: {answer.name}",
            status="passed" if answer.holds else "failed",
            detail=answer.detail,
            shown=(answer.shown,) if answer.shown and answer.shown != answer.detail else (),
        )
        for answer in assertions.ask(copy, job.assertions, job.assertion_timeout)
    ]
