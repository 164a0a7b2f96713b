"""What a retention policy says, read word by word, without a thought for speed: the real one is held against it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from backupd.retention import Policy


def kept(times: Sequence[datetime], policy: Policy, now: datetime, zone: ZoneInfo) -> set[datetime]:
    """Which backups any rule keeps; the times are distinct. What a wrong clock dated in the future stays, and is not
    counted."""
    found = {t for t in times if is_future(t, now)}
    times = [t for t in times if t not in found]
    if times:
        found.add(max(times))
    found |= {t for t in times if sum(other > t for other in times) < policy.keep_last}
    if policy.keep_within is not None:
        found |= {t for t in times if now - t <= policy.keep_within}
    for name in ("hourly", "daily", "weekly", "monthly", "yearly"):
        for t in times:
            mates = [other for other in times if _period(name, other, zone) == _period(name, t, zone)]
            later = {_period(name, other, zone) for other in times if other > max(mates)}
            if t == max(mates) and len(later) < getattr(policy, name):
                found.add(t)
    return found


def is_future(t: datetime, now: datetime) -> bool:
    return t - now > timedelta(minutes=10)


def _period(name: str, moment: datetime, zone: ZoneInfo) -> Hashable:
    local = moment.astimezone(zone)
    week = local.isocalendar()
    whole: dict[str, Hashable] = {
        "hourly": (local.date(), local.hour, local.utcoffset()),
        "daily": local.date(),
        "weekly": (week.year, week.week),
        "monthly": (local.year, local.month),
        "yearly": local.year,
    }
    return whole[name]


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]
