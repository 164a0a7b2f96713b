"""How each database stands, in words for people: what the status page and `/api/status` show. Pure.

A state is the worst of what there is to say, so that a glance is enough; the reasons say all of it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime, timedelta
from typing import Literal

from backupd import schedules, times
from backupd.agenda import KINDS, Kind
from backupd.catalog import BackupRef
from backupd.config_models import Database
from backupd.config_values import Schedule
from backupd.holdings import Holdings, Tested
from backupd.progress import Step
from backupd.retention import CLOCKS_DIFFER
from backupd.standing import Reading, Standing, overdue, preview, view_limit

State = Literal["failing", "late", "none", "unknown", "unproven", "proven"]
# The worst first; and what each is called.
STATES: Mapping[State, str] = {
    "failing": "failing",
    "late": "late",
    "none": "no backup",
    "unknown": "not known",
    "unproven": "backed up, not proven",
    "proven": "proven",
}
_WORDS: Mapping[Kind, str] = {"backup": "backup", "verify": "test restore", "prune": "pruning"}


@dataclass(frozen=True, slots=True)
class Running:
    """A job that runs now."""

    job: Kind
    since: datetime
    seconds: float
    step: Step


@dataclass(frozen=True, slots=True)
class Row:
    """One database at a glance. None: there is no such thing, or nobody knows."""

    database: str
    state: State
    label: str  # the state in words
    reasons: tuple[str, ...]
    backups: int | None
    newest_backup: datetime | None  # its snapshot: a restore loses what came later,
    loss_seconds: float | None  # of this time
    proof_at: datetime | None  # when a test restore passed last
    proof_age_seconds: float | None
    proven_backup: datetime | None  # the snapshot of the newest that passed
    restore_seconds: float | None  # what its restore took
    stored_bytes: int | None  # of the newest
    repository_bytes: int | None  # of all
    next_runs: Mapping[Kind, datetime]
    running: tuple[Running, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """All databases, the worst first."""

    at: datetime
    seen_at: datetime | None  # since when what is said of the repository is known
    troubles: Mapping[str, str]  # what is not well beside them: config, storage, clock, a cluster
    counts: Mapping[State, int]  # of those that there are, the worst first
    databases: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Backup:
    """One backup. Sizes are told of the newest ones only."""

    id: str
    taken_at: datetime
    keep: bool
    reasons: tuple[str, ...]  # why retention keeps it, or lets it go
    proof: str | None  # passed, failed, inconclusive: of the newest test restore of it, by its name
    tested_at: datetime | None
    seconds: float | None
    raw_bytes: int | None
    stored_bytes: int | None
    tables: int | None
    rows: int | None
    command: str  # that restores it


@dataclass(frozen=True, slots=True)
class Details:
    """All of one database."""

    at: datetime
    seen_at: datetime | None  # since when what is said of the repository is known
    summary: Row
    schedule: str | None
    verify_schedule: str | None
    timezone: str
    retention: str
    pause: str | None  # why nothing is pruned
    backups: tuple[Backup, ...]  # newest first
    tests: tuple[Tested, ...]  # newest first


def overview(reading: Reading) -> Overview:
    rows = sorted(_rows(reading), key=lambda row: (list(STATES).index(row.state), row.database))
    counts = {state: sum(row.state == state for row in rows) for state in STATES}
    return Overview(
        reading.now, reading.seen_at, reading.troubles, {state: n for state, n in counts.items() if n}, tuple(rows)
    )


def details(reading: Reading, name: str) -> Details | None:
    """None: there is no such database."""
    database = reading.databases.get(name)
    if database is None:
        return None
    standing = next((each for each in reading.standings if each.database == name), None)
    holdings = Holdings(name) if standing is None else standing.holdings
    return Details(
        at=reading.now,
        seen_at=holdings.seen_at,
        summary=_row(reading, database, standing),
        schedule=_text(database.schedule),
        verify_schedule=_text(database.verify.schedule),
        timezone=database.timezone.key,
        retention=_retention(database),
        pause=None if standing is None else standing.pause,
        backups=tuple(_backups(reading, database, holdings)),
        tests=tuple(holdings.tests),
    )


def document(value: object) -> object:
    """Plain values for JSON: times as ISO 8601."""
    if isinstance(value, datetime):
        return times.iso(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: document(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): document(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [document(each) for each in value]
    return value


# ---- a row


def _rows(reading: Reading) -> Iterator[Row]:
    known = {each.database: each for each in reading.standings}
    for name, database in reading.databases.items():
        yield _row(reading, database, known.get(name))


def _row(reading: Reading, database: Database, standing: Standing | None) -> Row:
    now, name = reading.now, database.name
    said = list(_said(reading, database, standing))
    state: State = min((state for state, _ in said), key=list(STATES).index, default="proven")
    holdings = None if standing is None else standing.holdings
    newest = None if holdings is None else holdings.newest
    passed = None if holdings is None else holdings.last_passed
    proven = None if holdings is None else holdings.newest_proven
    return Row(
        database=name,
        state=state,
        label=STATES[state],
        reasons=tuple(text for _, text in said),
        backups=None if holdings is None else len(holdings.backups),
        newest_backup=None if newest is None else newest.taken_at,
        loss_seconds=None if newest is None else _since(newest.taken_at, now),
        proof_at=None if passed is None else passed.finished_at,
        proof_age_seconds=None if passed is None else _since(passed.finished_at, now),
        proven_backup=None if proven is None else proven.taken_at,
        restore_seconds=None if proven is None else proven.restore_seconds,
        stored_bytes=None if newest is None else newest.stored_bytes,
        repository_bytes=None if holdings is None else holdings.repository_bytes,
        next_runs={kind: reading.next_runs[name, kind] for kind in KINDS if (name, kind) in reading.next_runs},
        running=tuple(
            Running(job.kind, since, _since(since, now), reading.steps.get(job, Step()))
            for job, since in reading.running.items()
            if job.database == name
        ),
    )


def _since(moment: datetime, now: datetime) -> float:
    return max(0.0, (now - moment).total_seconds())


def _said(reading: Reading, database: Database, standing: Standing | None) -> Iterator[tuple[State, str]]:
    """Everything that is not as it should be, each with the state that it makes."""
    yield from _failures(reading, database, standing)
    if standing is None:
        yield "unknown", "the storage has not told yet what there is"
        return
    holdings, now = standing.holdings, reading.now
    for expected, what in ((standing.backup_expected, "backup"), (standing.verify_expected, "test restore")):
        late = overdue(expected, now)
        if late:
            yield "late", f"the next {what} is overdue by {times.brief_duration(late)}"
    if holdings.unreadable:
        yield "failing", f"{_count(len(holdings.unreadable), 'backup')} cannot be read: {_first(holdings.unreadable)}"
    if holdings.hollow:
        yield "failing", f"the data of {_count(len(holdings.hollow), 'backup')} is gone from the storage"
    if holdings.doubtful:
        yield "failing", "the newest proof is not believed: it is not signed by one who is trusted, or was changed"
    ahead = [ref for ref in holdings.backups if ref.second > now + CLOCKS_DIFFER]
    if ahead:
        yield "late", f"{_count(len(ahead), 'backup')} dated in the future: a clock is or was wrong"
    if any(ref.at > now + CLOCKS_DIFFER for ref in holdings.proofs):
        yield "late", "a proof is dated in the future: a clock is or was wrong"
    if holdings.blind:
        yield "unknown", f"not all of it can be read from the storage: {holdings.blind}"
    elif _is_old(reading, holdings):
        yield "unknown", "the storage has told nothing new for long"
    if not holdings.backups:
        yield "none", "there is no backup"
    elif holdings.newest_proven is None:
        yield "unproven", "no backup was proven to restore"
    elif database.verify.schedule is None and holdings.newest_proven.backup != holdings.backups[-1].id:
        yield "unproven", "the newest backup is not proven, and no test restore is scheduled"


def _is_old(reading: Reading, holdings: Holdings) -> bool:
    if reading.refresh is None:
        return False
    return holdings.seen_at is None or reading.now - holdings.seen_at > view_limit(reading.refresh)


def _failures(reading: Reading, database: Database, standing: Standing | None) -> Iterator[tuple[State, str]]:
    holdings = Holdings(database.name) if standing is None else standing.holdings
    newest, test = holdings.newest, holdings.last_test
    last: Mapping[Kind, datetime | None] = {
        "backup": None if newest is None else newest.taken_at,
        "verify": None if test is None else test.finished_at,
        "prune": None,
    }
    for kind, done in last.items():
        what = _WORDS[kind]
        attempt = reading.attempts.get((database.name, kind))
        if attempt is not None and attempt.outcome == "failure" and (done is None or done < attempt.at):
            yield "failing", f"the last {what} failed at {times.iso(attempt.at.replace(microsecond=0))}: {attempt.text}"
    for failed in holdings.failed:
        checks = ", ".join(name for name, status, _ in failed.checks if status == "failed")
        yield "failing", f"the test restore of {failed.backup} failed{f': {checks}' if checks else ''}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _first(texts: Mapping[str, str]) -> str:
    return next(iter(texts.values()))


# ---- details


def _text(schedule: Schedule | None) -> str | None:
    return None if schedule is None else schedule.text


def _retention(database: Database) -> str:
    given = database.retention.model_dump(exclude_defaults=True) if database.retention else {}
    rules = (
        f"{rule} {times.human_duration(each) if isinstance(each, timedelta) else each}" for rule, each in given.items()
    )
    return ", ".join(rules) or "keeps all"


def schedule_text(database: Database) -> str:
    """What the daemon would do, and when."""

    def when(wanted: Schedule | None) -> str:
        if wanted is None:
            return "never"
        slot = schedules.after(wanted, database.timezone, times.now())
        return f"{wanted.text}, next {times.iso(slot) if slot else 'never'}"

    return (
        f"backup {when(database.schedule)}; verify {when(database.verify.schedule)};"
        f" retention {_retention(database)}; time zone {database.timezone.key}"
    )


def _backups(reading: Reading, database: Database, holdings: Holdings) -> Iterator[Backup]:
    verdicts = _verdicts(holdings)
    for decision in preview(database, holdings, reading.now):
        ref, headline = decision.ref, holdings.headlines.get(decision.ref.id)
        verdict = verdicts.get(ref.id)
        yield Backup(
            id=ref.id,
            taken_at=ref.second if headline is None else headline.taken_at,
            keep=decision.keep,
            reasons=decision.reasons,
            proof=None if verdict is None else verdict[0],
            tested_at=None if verdict is None else verdict[1],
            seconds=None if headline is None else headline.duration.total_seconds(),
            raw_bytes=None if headline is None else headline.raw_bytes,
            stored_bytes=holdings.stored_bytes.get(ref.id) if headline is None else headline.stored_bytes,
            tables=None if headline is None else headline.tables,
            rows=None if headline is None else headline.rows,
            command=_command(reading, ref),
        )


def _verdicts(holdings: Holdings) -> Mapping[str, tuple[str, datetime]]:
    """By backup: the newest test restore that came to a verdict, else the newest without. Old ones go by their names;
    what was read and is not believed is left out, and failures that stand do."""
    believed = [ref for ref in holdings.proofs if ref.key not in holdings.forged]
    in_order = sorted(believed, key=lambda ref: (ref.status != "inconclusive", ref.at))
    standing = {each.backup: (each.status, each.finished_at) for each in holdings.failed}
    return {ref.backup: (ref.status, ref.at) for ref in in_order} | standing


def _command(reading: Reading, ref: BackupRef) -> str:
    words = ["backupd"]
    if reading.path is not None:
        words += ["--config", str(reading.path)]
    return shlex.join([*words, "restore", ref.database, "--at", ref.id])
