"""How things stand: pure, from what the repository holds, what the schedules ask for, and what was tried here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from statistics import median_low
from zoneinfo import ZoneInfo

from backupd import retention, schedules, times
from backupd.agenda import SLACK, Job, Kind
from backupd.catalog import BackupRef
from backupd.config_models import Database
from backupd.config_values import Schedule
from backupd.holdings import Holdings
from backupd.progress import Step
from backupd.retention import Decision
from backupd.summaries import Headline

_LEAST = timedelta(minutes=15)  # of grace, for any job
_MOST = timedelta(hours=3)  # that schedules of few slots add to it
_MADE = 2026  # when this was written
_USUAL = 5  # backups, of which it is asked how long after their slots they were made


@dataclass(frozen=True, slots=True)
class Standing:
    """Of one database. None: it has no such schedule, or there is nothing yet."""

    database: str
    holdings: Holdings
    backup_expected: datetime | None  # the next backup, at the latest
    verify_expected: datetime | None
    excess: int  # backups that the rules no longer keep, and that are still there
    pause: str | None  # why pruning may delete nothing
    ahead: int  # backups that are dated in the future


@dataclass(frozen=True, slots=True)
class Attempt:
    """How the last try of a job ended, in this daemon."""

    at: datetime
    outcome: str  # success, failure or failed_proof
    text: str  # for people


Key = tuple[str, Kind]  # a database, and what is done with it


@dataclass(frozen=True, slots=True)
class Reading:
    """All that there is to tell at `now`: of the repository, and of the daemon, if one runs."""

    now: datetime
    standings: tuple[Standing, ...] = ()
    seen_at: datetime | None = None  # since when what is told of the repository is known, or longer
    next_runs: Mapping[Key, datetime] = field(default_factory=dict)
    running: Mapping[Job, datetime] = field(default_factory=dict)  # and since when
    steps: Mapping[Job, Step] = field(default_factory=dict)  # how far those are that told
    attempts: Mapping[Key, Attempt] = field(default_factory=dict)
    pruned: Mapping[str, datetime] = field(default_factory=dict)  # when it was done last, by database
    databases: Mapping[str, Database] = field(default_factory=dict)
    refresh: timedelta | None = None  # how often the repository is looked at
    troubles: Mapping[str, str] = field(default_factory=dict)  # what is not well of the daemon, storage, clusters
    clusters: Mapping[str, bool] = field(default_factory=dict)  # whether they answer
    path: Path | None = None  # of the configuration, where it has to be named


def standing(database: Database, holdings: Holdings, jitter: timedelta, now: datetime) -> Standing:
    newest, test = holdings.newest, holdings.last_test
    last = None if newest is None else newest.taken_at
    if newest is None and holdings.backups and holdings.seen_at is not None:
        last = holdings.backups[0].second  # none of them can be believed: since the first one nothing was done
    return Standing(
        database=database.name,
        holdings=holdings,
        backup_expected=_expected(
            database,
            database.schedule,
            last,
            timedelta() if newest is None else newest.duration * 2 + _usual_wait(database, holdings),
            jitter,
        ),
        verify_expected=_expected(
            database,
            database.verify.schedule,
            None if test is None else test.finished_at,
            timedelta() if test is None else timedelta(seconds=test.seconds) * 2,
            jitter,
        ),
        excess=sum(not decision.keep for decision in preview(database, holdings, now)),
        pause=pause(holdings),
        ahead=sum(_is_ahead(ref, now) for ref in holdings.backups),
    )


def all_of(
    databases: Mapping[str, Database], holdings: Mapping[str, Holdings], jitter: timedelta
) -> tuple[Standing, ...]:
    """Of those whose holdings are known."""
    now = times.now()
    return tuple(standing(databases[name], each, jitter, now) for name, each in holdings.items() if name in databases)


def clock_trouble(standings: Iterable[Standing], now: datetime) -> str | None:
    """Why our clock is not to be believed: a newest backup is from the future, or we are from before this was made."""
    if now.year < _MADE:
        return f"it is set to {times.iso(now)}"
    ahead = [each.database for each in standings if each.holdings.backups and _is_ahead(each.holdings.backups[-1], now)]
    if not ahead:
        return None
    return f"the newest backup of {ahead[0]} is dated in the future: this clock is behind, or another was ahead"


def _is_ahead(ref: BackupRef, now: datetime) -> bool:
    return ref.second > now + retention.CLOCKS_DIFFER


def view_limit(refresh: timedelta) -> timedelta:
    """How old what is known of the repository may be."""
    return timedelta(minutes=10) + 3 * refresh


def overdue(expected: datetime | None, now: datetime) -> timedelta | None:
    """For how long it has been expected in vain."""
    return None if expected is None else max(timedelta(), now - expected)


def _expected(
    database: Database, schedule: Schedule | None, last: datetime | None, patience: timedelta, jitter: timedelta
) -> datetime | None:
    """When the first slot that nothing was done for is over, with grace: the most of 15 minutes, a sixth of the time to
    the next slot (up to 3 hours) and `patience`; the jitter; and a day for the window that a backup may have to wait
    for."""
    if schedule is None or last is None:
        return None
    slot, next_slot = _remembered(database.name).slots_after(schedule, database.timezone, last + SLACK)
    if slot is None:
        return None
    share = timedelta() if next_slot is None else min((next_slot - slot) / 6, _MOST)
    window = database.window is not None and schedule is database.schedule
    return slot + max(_LEAST, share, patience) + jitter + (timedelta(days=1) if window else timedelta())


def _usual_wait(database: Database, holdings: Holdings) -> timedelta:
    """How long after their slots backups are made: where many share a slot, the last one's turn comes hours later. At
    most a quarter of the time between two slots: what was made by hand, or by another schedule, is no custom."""
    schedule = database.schedule
    if schedule is None:
        return timedelta()
    newest: list[Headline] = sorted(holdings.headlines.values(), key=lambda each: each.taken_at)[-_USUAL:]
    if not newest:
        return timedelta()
    asked = _remembered(database.name)
    slot, following = asked.slots_after(schedule, database.timezone, newest[-1].taken_at)
    most = timedelta() if slot is None or following is None else (following - slot) / 4
    return min(most, median_low(asked.wait(schedule, database.timezone, each.taken_at) for each in newest))


def _wait(schedule: Schedule, zone: ZoneInfo, moment: datetime) -> timedelta:
    """Since the latest slot."""
    slot = schedules.latest(schedule, zone, moment + SLACK)
    return timedelta() if slot is None else max(timedelta(), moment - slot)


def _slots_after(
    schedule: Schedule, zone: ZoneInfo, moment: datetime
) -> tuple[datetime, datetime | None] | tuple[None, None]:
    """The next one, and the one after it."""
    slot = schedules.after(schedule, zone, moment)
    return (None, None) if slot is None else (slot, schedules.after(schedule, zone, slot))


class _Remembered:
    """Answers about the slots of one database: every look asks for nearly the same ones, and cronsim takes milliseconds
    for them. As many as two looks need, however long the daemon runs."""

    def __init__(self) -> None:
        self.wait = lru_cache(2 * _USUAL)(_wait)
        self.slots_after = lru_cache(8)(_slots_after)


@lru_cache(10_000)
def _remembered(_: str) -> _Remembered:
    """By the database's name."""
    return _Remembered()


def pause(holdings: Holdings) -> str | None:
    """Why nothing may be pruned, as far as is known here."""
    if holdings.failed:
        return f"the proof of {holdings.failed[-1].backup} failed"
    if holdings.doubtful:
        return "its newest proof is not believed"
    return None


def preview(database: Database, holdings: Holdings, now: datetime) -> list[Decision]:
    """What retention makes of what is known here, newest first: `prune` itself looks closer."""
    proven = {holdings.newest_proven.backup} if holdings.newest_proven is not None else set()
    return retention.decide(
        holdings.backups,
        retention.policy(database.retention),
        now,
        database.timezone,
        proven=proven,
        unreadable=holdings.unreadable,
        paused=pause(holdings),
    )
