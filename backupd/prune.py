"""Thinning out: decide what goes, as a value, then delete exactly that.

The manifest goes first: a backup that is being deleted is one that nobody finds, never one that is not whole. Before
that a mark is stored beside it, so that the next run finishes one that was interrupted. What has neither manifest nor
mark is of a backup that failed, or that is being made: it goes when it is older than any that could still run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

from backupd import retention, times
from backupd.catalog import BackupRef, Catalog, data_prefix, manifest_key, signature_key
from backupd.crypto import minisign
from backupd.errors import BackupdError, IntegrityError, StorageError
from backupd.manifest import id_second
from backupd.retention import CLOCKS_DIFFER, Decision, Policy
from backupd.storage.base import Upload
from backupd.summaries import ProofHead, View

_BATCH = 100  # backups deleted at a time

Verdicts = Mapping[str, ProofHead | IntegrityError]  # on each backup that has one, by its ID


@dataclass(frozen=True, slots=True)
class Leftover:
    """What is no backup: of one that failed or was interrupted, or whose deletion was."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What stays and what goes. Nothing has been deleted."""

    database: str
    decisions: tuple[Decision, ...]  # newest first
    leftovers: tuple[Leftover, ...]
    uploads: tuple[Upload, ...]  # unfinished, and older than any that could still run
    paused: str | None  # why no backup may go now
    view: View = field(compare=False, repr=False)  # all that was looked at
    unmarked: tuple[str, ...] = ()  # that stay, although an interrupted run had meant to delete them

    @property
    def dropped(self) -> list[BackupRef]:
        return [decision.ref for decision in self.decisions if not decision.keep]


def plan(
    catalog: Catalog, database: str, policy: Policy, now: datetime, zone: ZoneInfo, *, grace: timedelta
) -> PrunePlan:
    """Look at everything of one database. `grace`: how old the leftovers of a failed backup must be to go; longer than
    any backup may run. Raises StorageError."""
    stored = _stored_ids(catalog, database)  # before the manifests: one that is committed meanwhile is in both
    marked = _marked(catalog, database)
    view = View(catalog, database, whole=True)
    backups = sorted(view.backups)
    unreadable = {ref.id: found.message for ref, found in view.backups.items() if isinstance(found, BackupdError)}
    paused = _pause(view, now)
    # One that is dated in the future was proven by nobody who knew the time.
    readable = {ref.id for ref in backups if ref.id not in unreadable and ref.second <= now + CLOCKS_DIFFER}
    proven = _proven(view.verdicts, readable)
    decisions = retention.decide(backups, policy, now, zone, proven=proven, unreadable=unreadable, paused=paused)
    known = {ref.id for ref in view.listed}
    return PrunePlan(
        database=database,
        decisions=tuple(decisions),
        leftovers=tuple(_leftovers(catalog, database, stored - known, marked - known, now - grace)),
        uploads=tuple(upload for upload in catalog.storage.unfinished(f"{database}/") if upload.started < now - grace),
        paused=paused,
        view=view,
        unmarked=tuple(each.ref.id for each in decisions if each.keep and each.ref.id in marked),
    )


def run(plan: PrunePlan, catalog: Catalog, key: minisign.SecretKey | None = None) -> str | None:
    """Delete what the plan says goes. Interrupted at whatever point, the next plan has the rest. With a `key`, what was
    read for the plan is kept in the repository: returns why it could not be, which matters to nobody but who lists."""
    catalog.storage.delete([_mark(plan.database, backup) for backup in plan.unmarked])
    dropped = iter(plan.dropped)
    while batch := [ref.id for ref in islice(dropped, _BATCH)]:
        for backup in batch:
            catalog.storage.put(_mark(plan.database, backup), [b"{}\n"])
        catalog.storage.delete([manifest_key(plan.database, backup) for backup in batch])
        _delete_rest(catalog, plan.database, batch)
    _delete_rest(catalog, plan.database, [leftover.id for leftover in plan.leftovers])
    for upload in plan.uploads:
        catalog.storage.abort(upload)
    if key is not None:
        try:
            plan.view.keep(key, without={ref.id for ref in plan.dropped})
        except StorageError as error:
            return error.message
    return None


def _delete_rest(catalog: Catalog, database: str, backups: Sequence[str]) -> None:
    """All but the manifests, and the proofs: those are the record of what was proven. The marks go last."""
    for backup in backups:
        catalog.storage.delete([info.key for info in catalog.storage.list(data_prefix(database, backup))])
    catalog.storage.delete([signature_key(database, backup) for backup in backups])
    catalog.storage.delete([_mark(database, backup) for backup in backups])


def _pause(view: View, now: datetime) -> str | None:
    """Why nothing may go: what was tested last did not restore, or a backup no older than the newest that did. Nobody
    knows then which backups do."""
    verdicts = view.verdicts
    decided = [ref for ref in view.proof_refs if ref.status != "inconclusive"]
    if not decided:
        return None
    newest = [ref for ref in decided if ref.at <= now + CLOCKS_DIFFER][-1:] or decided[-1:]  # one had a wrong clock
    passed = [backup for backup, found in verdicts.items() if isinstance(found, ProofHead) and found.status == "passed"]
    latest = max(passed, default="")
    for backup in {newest[0].backup, *(backup for backup in verdicts if backup >= latest)}:
        found = verdicts.get(backup)
        if isinstance(found, IntegrityError):
            return f"the proof of {backup} is not believed ({found.message})"
        if found is not None and found.status == "failed":
            which = "newest proof, of" if backup == newest[0].backup else "proof of"
            return f"its {which} {backup} at {times.iso(found.finished_at)}, failed"
    last = view.proof(newest[0])
    if isinstance(last, IntegrityError):
        return f"its newest proof is not believed ({last.message})"
    return f"its newest proof, of {newest[0].backup}, failed" if last.status == "failed" else None


def _proven(verdicts: Verdicts, readable: Collection[str]) -> set[str]:
    """The backups that passed a test restore: those that were compared in it, if there are any."""
    passed = {
        backup: found.level != "off"
        for backup, found in verdicts.items()
        if backup in readable and isinstance(found, ProofHead) and found.status == "passed"
    }
    return {backup for backup, compared in passed.items() if compared} or set(passed)


# ---- leftovers


def _mark(database: str, backup: str) -> str:
    return f"{database}/deleting/{backup}.json"


def _marked(catalog: Catalog, database: str) -> set[str]:
    prefix = f"{database}/deleting/"
    names = (info.key.removeprefix(prefix).removesuffix(".json") for info in catalog.storage.list(prefix))
    return {name for name in names if id_second(name) is not None}


def _stored_ids(catalog: Catalog, database: str) -> set[str]:
    """Every ID that has data or a signature."""
    prefix = f"{database}/signatures/"
    signed = {info.key.removeprefix(prefix).removesuffix(".json.minisig") for info in catalog.storage.list(prefix)}
    folders = set(catalog.storage.list_folders(f"{database}/data/"))
    return {name for name in signed | folders if id_second(name) is not None}


def _leftovers(
    catalog: Catalog, database: str, stored: set[str], marked: set[str], before: datetime
) -> Iterator[Leftover]:
    for backup in sorted(stored | marked, reverse=True):
        if backup in marked:
            yield Leftover(backup, "its deletion was interrupted")
        elif _is_older(catalog, database, backup, before):
            yield Leftover(backup, "left by a backup that failed")


def _is_older(catalog: Catalog, database: str, backup: str, before: datetime) -> bool:
    """Whether it was begun, and all of it stored, before that."""
    second = id_second(backup)
    if second is None or second >= before:
        return False
    objects = [*catalog.storage.list(data_prefix(database, backup))]
    objects += catalog.storage.list(signature_key(database, backup))
    return all(info.modified < before for info in objects)


def rows(plan: PrunePlan) -> list[Mapping[str, object]]:
    """The table that is printed and acted upon: newest first, then what is no backup."""
    made: list[Mapping[str, object]] = [
        {"database": plan.database, "id": each.ref.id, "keep": each.keep, "reasons": list(each.reasons)}
        for each in plan.decisions
    ]
    made += [
        {"database": plan.database, "id": each.id, "keep": False, "reasons": [f"leftover: {each.reason}"]}
        for each in plan.leftovers
    ]
    made += [
        {"database": plan.database, "id": each.key, "keep": False, "reasons": ["leftover: an unfinished upload"]}
        for each in plan.uploads
    ]
    return made
