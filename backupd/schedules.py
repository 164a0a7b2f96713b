"""When a job is due: cron expressions in a time zone, and `@every`. Pure, no I/O and no clock.

Daylight saving is cronsim's business, which does as Debian's cron: a job at a fixed hour runs once on every day, also
where that hour is skipped (just after the gap) or comes twice (the first time).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from cronsim import CronSim

from backupd.config_values import Schedule

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# How far to look back for the latest slot: the first is enough for most schedules, the last for any leap day.
_BACK = tuple(timedelta(days=days) for days in (1 / 12, 2, 32, 367, 366 * 9))


def after(schedule: Schedule, zone: ZoneInfo, moment: datetime) -> datetime | None:
    """The first slot later than `moment`, in UTC; None if there is none in the next 50 years."""
    return next(_slots(schedule, zone, moment), None)


def latest(schedule: Schedule, zone: ZoneInfo, moment: datetime) -> datetime | None:
    """The last slot at or before `moment`, in UTC: the same whoever asks, and whenever."""
    if schedule.every is not None:
        return _EPOCH + (moment - _EPOCH) // schedule.every * schedule.every
    for back in _BACK:
        found = None
        for slot in _slots(schedule, zone, moment - back):
            if slot > moment:
                break
            found = slot
        if found is not None:
            return found
    return None


def _slots(schedule: Schedule, zone: ZoneInfo, moment: datetime) -> Iterator[datetime]:
    """Those later than `moment`, each once, in order."""
    if schedule.every is not None:
        slot = latest(schedule, zone, moment) or _EPOCH
        while True:
            slot += schedule.every
            yield slot
    before = moment
    for local in CronSim(schedule.text, moment.astimezone(zone)):
        slot = local.astimezone(UTC)
        if slot > before:  # from within an hour that comes twice, cronsim goes back to its first time
            before = slot
            yield slot


@lru_cache(4096)
def jitter(name: str, width: timedelta) -> timedelta:
    """By how much the start of a job is put off: from 0 to `width`, the same for the same name on every host."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / (1 << 48)
    return timedelta(seconds=round(share * width.total_seconds(), 3))
