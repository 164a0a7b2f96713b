"""What the configuration says of each kind of job, and doing one: the same from the command line, in the daemon, and
for any other runner that has the configuration and a job's three words."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from backupd import backup, hooks, proofs, prune, retention, times
from backupd.agenda import Job, is_done
from backupd.catalog import Catalog
from backupd.config import Config
from backupd.config_models import Database
from backupd.errors import BackupdError, BusyError, ConfigError, PostgresError
from backupd.manifest import Manifest
from backupd.pace import Pace
from backupd.postgres import claim
from backupd.postgres.session import Dsn
from backupd.progress import Progress
from backupd.repository import opened
from backupd.retention import CLOCKS_DIFFER

if TYPE_CHECKING:
    from backupd import verify
    from backupd.crypto.minisign import SecretKey
    from backupd.proof import Proof


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job: plain values, for whoever counts, tells or plans."""

    job: Job
    status: Literal["done", "elsewhere", "unproven", "failed", "busy", "interrupted"]
    summary: str  # a line for people
    seconds: float = 0.0
    last: datetime | None = None  # the newest backup or test restore that the storage holds, as far as is known
    backup: str | None = None  # its ID
    error: dict[str, Any] | None = None  # message, detail, hint, exit
    facts: dict[str, Any] = field(default_factory=dict)  # numbers of this kind of job


class _DoneElsewhereError(BackupdError):
    """Another host has done it since."""

    exit_code = 0

    def __init__(self, last: datetime) -> None:
        super().__init__(f"done elsewhere at {times.iso(last)}")
        self.last = last


def perform(config: Config, job: Job, progress: Progress) -> Outcome:
    """Do a job, unless the storage says that it was done. Whatever fails comes as an outcome, but for an interrupt."""
    began = monotonic()
    try:
        database = config.database(job.database)
        with opened(config) as catalog:
            if job.kind != "prune":
                _unless_done(catalog, job)
            made = _DO[job.kind](config, catalog, database, job, progress)
    except _DoneElsewhereError as error:
        return Outcome(job, "elsewhere", error.message, monotonic() - began, last=error.last)
    except BackupdError as error:
        status: Literal["busy", "failed"] = "busy" if isinstance(error, BusyError) else "failed"
        return Outcome(job, status, error.message, monotonic() - began, error=error.document())
    return replace(made, seconds=monotonic() - began)


def dsn(database: Database) -> Dsn:
    password = database.password.get_secret_value() if database.password else None
    return Dsn(database.dsn.get_secret_value()).with_password(password)


def newest(catalog: Catalog, database: str, kind: str) -> datetime | None:
    """When the storage says that it was done last, by names alone. What is dated in the future, by a clock that was
    wrong, does not count: else nothing would be done until then."""
    if kind == "backup":
        found = [ref.second for ref in catalog.backups(database)]
    else:
        found = [ref.at for ref in proofs.refs(catalog, database) if ref.status != "inconclusive"]
    latest = times.now() + CLOCKS_DIFFER
    return max((moment for moment in found if moment <= latest), default=None)


def _unless_done(catalog: Catalog, job: Job) -> None:
    last = newest(catalog, job.database, job.kind)
    if last is not None and is_done(job.slot, last):
        raise _DoneElsewhereError(last)


# ---- backup


def backup_job(config: Config, database: Database, jobs: int | None = None) -> backup.Job:
    return backup.Job(
        database=database.name,
        dsn=dsn(database),
        recipients=config.recipients(),
        signing_key=config.load_signing_key(),
        jobs=jobs or database.jobs,
        level=database.compression.level,
        lock_timeout=database.lock_wait_timeout,
        large_table=database.large_table_size,
        content=database.verify.fingerprint == "content",
        bin_dirs=config.postgres.bin_dirs,
        give_way_after=database.give_way_after,
        pace=Pace(database.bandwidth_limit),
    )


def back_up(database: Database, work: backup.Job, catalog: Catalog, progress: Progress, slot: str = "") -> Manifest:
    """One backup between its hooks, which run when no other host is at it."""
    facts = {"DATABASE": database.name, "JOB": "backup", "SLOT": slot, "REPOSITORY": catalog.storage.url}

    def claimed() -> None:
        work.claimed()
        around.begin()

    with hooks.Around(database.hooks, facts, progress) as around:
        made = backup.run(replace(work, claimed=claimed), catalog, progress)
        around.facts["ID"] = made.id
    return made


def _backup(config: Config, catalog: Catalog, database: Database, job: Job, progress: Progress) -> Outcome:
    work = replace(backup_job(config, database), claimed=partial(_unless_done, catalog, job))
    made = back_up(database, work, catalog, progress, times.iso(job.slot))
    facts = {"raw_bytes": made.raw_bytes, "stored_bytes": made.stored_bytes, "tables": len(made.tables)}
    size = f"{times.human_bytes(made.raw_bytes)} stored in {times.human_bytes(made.stored_bytes)}"
    text = f"{made.id}: {len(made.tables)} tables, {made.rows} rows, {size}"
    return Outcome(job, "done", text, last=made.taken_at, backup=made.id, facts=facts)


# ---- verify


def verify_job(config: Config, database: Database) -> verify.Job:
    """The newest backup, as the configuration wants it to be proven."""
    from backupd.anomalies import Policy as Anomalies
    from backupd.postgres.assertions import Assertion
    from backupd.verify import Job as VerifyJob

    wanted = database.verify
    server = wanted.scratch_dsn
    return VerifyJob(
        database=database.name,
        at=None,
        backup_id=None,
        signing_key=_proving_key(config),
        server=None if server is None else Dsn(server.get_secret_value()),
        folder=wanted.scratch_folder or Path(tempfile.gettempdir()),
        settings=wanted.scratch_settings,
        major=None,
        level=wanted.fingerprint,
        assertions=[Assertion(check.name, check.sql) for check in wanted.checks],
        assertion_timeout=wanted.check_timeout,
        anomalies=Anomalies(wanted.anomalies.max_shrink / 100, wanted.anomalies.min_rows, wanted.anomalies.ignore),
        accept=False,
        jobs=database.jobs,
        bin_dirs=config.postgres.bin_dirs,
    )


def _proving_key(config: Config) -> SecretKey:
    """One whose proofs are believed."""
    key = config.load_signing_key()
    if key.public not in config.trusted_signers():
        raise ConfigError(
            "the key that would sign the proof is not among trusted_signers, so nobody would believe it",
            detail=f"{config.encryption.signing_key_file}: {key.public}",
            hint="Add it to trusted_signers in [encryption], here and wherever proofs are looked at.",
        )
    return key


def _verify(config: Config, catalog: Catalog, database: Database, job: Job, progress: Progress) -> Outcome:
    from backupd import verify

    work = verify_job(config, database)
    with _alone(catalog, database, progress):
        _unless_done(catalog, job)
        made = verify.run(work, catalog, config.load_identities(), progress)
    failed = [check.name for check in made.checks if check.status == "failed"]
    text = f"{made.id}: {made.status}, {made.tables_compared} tables and {made.rows_compared} rows compared"
    facts = {"checks": {check.name: check.status for check in made.checks}, "phases": dict(made.phases)}
    outcome = Outcome(job, "done", text, last=made.finished_at, backup=made.id, facts=facts)
    if made.status == "inconclusive":
        error = PostgresError("the test restore came to no verdict", detail=made.reason)
        return replace(outcome, status="failed", summary=f"{text}: {made.reason}", last=None, error=error.document())
    if made.status == "failed":
        return replace(outcome, status="unproven", summary=_failed(text, made, failed))
    return outcome


def _failed(text: str, made: Proof, failed: list[str]) -> str:
    return f"{text}; failed: {', '.join(failed)}" if failed else f"{text}: {made.reason}"


@contextmanager
def _alone(catalog: Catalog, database: Database, progress: Progress) -> Iterator[None]:
    """One test restore of a database at a time. A source that does not answer is no reason not to test: two hosts may
    then record a proof each."""
    with ExitStack() as held:
        try:
            held.enter_context(claim.held(dsn(database), f"verify {catalog.repository_id()}", "test restore"))
        except PostgresError as error:
            progress.warn(f"the source can't be asked whether another host verifies it: {error.message}")
        yield


# ---- prune


def prune_plan(catalog: Catalog, database: Database) -> prune.PrunePlan:
    now, grace = times.now(), database.leftover_grace
    return prune.plan(catalog, database.name, retention.policy(database.retention), now, database.timezone, grace=grace)


def summing_key(config: Config) -> SecretKey | None:
    """The one that signs summaries; None where there is none that is believed: pruning needs no key."""
    if config.encryption.signing_key_file is None:
        return None
    try:
        key = config.load_signing_key()
    except ConfigError:  # not on this host: pruning goes on without
        return None
    return key if key.public in config.trusted_signers() else None


def _prune(config: Config, catalog: Catalog, database: Database, job: Job, progress: Progress) -> Outcome:
    plan = prune_plan(catalog, database)
    if plan.paused is not None:
        progress.warn(f"nothing is pruned, since {plan.paused}")
    trouble = prune.run(plan, catalog, summing_key(config))
    if trouble is not None:
        progress.warn(f"the summary that lists are quick by could not be stored: {trouble}")
    kept = sum(decision.keep for decision in plan.decisions)
    facts = {"kept": kept, "dropped": len(plan.dropped), "leftovers": len(plan.leftovers) + len(plan.uploads)}
    text = f"{kept} backups stay, {facts['dropped']} are gone, {facts['leftovers']} leftovers removed"
    return Outcome(job, "done", text, facts=facts)


_DO = {"backup": _backup, "verify": _verify, "prune": _prune}
