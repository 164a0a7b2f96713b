"""How a database stands: pure, from what the repository holds and what its schedule asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from backupd import retention, schedules, times
from backupd.config_models import Database
from backupd.config_values import Schedule
from backupd.holdings import Holdings
from backupd.retention import Decision, Policy

_LEAST = timedelta(minutes=15)  # of grace, for any job
_CLOCKS = timedelta(seconds=2)  # by which a source's may be behind ours


@dataclass(frozen=True, slots=True)
class Standing:
    """None: it has no such schedule, or there is nothing yet."""

    database: str
    holdings: Holdings
    backup_expected: datetime | None  # the next backup, at the latest
    verify_expected: datetime | None
    excess: int  # backups that the rules no longer keep, and that are still there
    pause: str | None  # why pruning may delete nothing


def standing(database: Database, holdings: Holdings, jitter: timedelta, now: datetime) -> Standing:
    newest, test = holdings.newest, holdings.last_test
    policy = Policy() if database.retention is None else Policy(**database.retention.model_dump())
    return Standing(
        database=database.name,
        holdings=holdings,
        backup_expected=_expected(
            database,
            database.schedule,
            None if newest is None else newest.taken_at,
            timedelta() if newest is None else newest.duration,
            jitter,
        ),
        verify_expected=_expected(
            database,
            database.verify.schedule,
            None if test is None else test.finished_at,
            timedelta() if test is None else timedelta(seconds=test.seconds),
            jitter,
        ),
        excess=sum(not decision.keep for decision in decisions(holdings, policy, database.timezone, now)),
        pause=pause(holdings),
    )


def all_of(
    databases: Mapping[str, Database], holdings: Mapping[str, Holdings], jitter: timedelta
) -> tuple[Standing, ...]:
    """Of those whose holdings are known."""
    now = times.now()
    return tuple(standing(databases[name], each, jitter, now) for name, each in holdings.items())


def overdue(expected: datetime | None, now: datetime) -> timedelta | None:
    """For how long it has been expected in vain."""
    return None if expected is None else max(timedelta(), now - expected)


def _expected(
    database: Database, schedule: Schedule | None, last: datetime | None, took: timedelta, jitter: timedelta
) -> datetime | None:
    """When the first slot that nothing was done for is over, with grace: twice what the job took last, and the window
    that it may have to wait for."""
    if schedule is None or last is None:
        return None
    slot = schedules.after(schedule, database.timezone, last + _CLOCKS)
    if slot is None:
        return None
    grace = max(_LEAST, took * 2) + jitter
    return slot + grace + (timedelta(days=1) if database.window is not None else timedelta())


def pause(holdings: Holdings) -> str | None:
    """Why nothing may be pruned, as far as is known here."""
    test = holdings.last_test
    if test is not None and test.status == "failed":
        return f"the newest proof, of {test.backup}, failed"
    return None


def decisions(holdings: Holdings, policy: Policy, zone: ZoneInfo, now: datetime) -> list[Decision]:
    """What retention makes of what is known here, newest first: a preview, as `prune` itself looks closer."""
    proven = {holdings.newest_proven.backup} if holdings.newest_proven is not None else set()
    return retention.decide(
        holdings.backups, policy, now, zone, proven=proven, unreadable=holdings.unreadable, paused=pause(holdings)
    )
