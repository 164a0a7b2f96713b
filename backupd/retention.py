"""Which backups stay, and why: pure, no I/O.

A rule that counts periods (`daily = 7`) keeps the newest backup of each of the last 7 days that have one, in the
database's time zone: a day without a backup uses nothing up. What any rule keeps stays. So does, whatever the rules
say, the newest backup, the newest proven one, each whose manifest can't be read, and each that is dated in the future:
by a clock that was wrong, so it is not what any rule means by the newest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from backupd import times
from backupd.catalog import BackupRef
from backupd.config_models import Retention

CLOCKS_DIFFER = timedelta(minutes=10)  # at most, where nothing is wrong


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules; 0 and None: off. Without any rule everything stays."""

    keep_last: int = 0
    keep_within: timedelta | None = None
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    @property
    def is_empty(self) -> bool:
        return not (self.keep_last or self.keep_within or any(getattr(self, name) for name in _PERIODS))


def policy(given: Retention | None) -> Policy:
    """What `retention` of the configuration says, as rules."""
    return Policy() if given is None else Policy(**given.model_dump())


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one backup."""

    ref: BackupRef
    keep: bool
    reasons: tuple[str, ...]  # why it stays, each rule by itself; or the one why it goes


Period = Hashable  # what backups of the same hour, day … share


def _week(local: datetime) -> Period:
    return tuple(local.isocalendar())[:2]  # of ISO 8601: from Monday on


# The period of a moment, and how it reads. The hour that comes twice when clocks are set back is two: offsets differ.
_PERIODS: Mapping[str, tuple[Callable[[datetime], Period], Callable[[datetime], str]]] = {
    "hourly": (lambda local: (local.date(), local.hour, local.utcoffset()), lambda t: t.strftime("%Y-%m-%d %H:00%z")),
    "daily": (lambda local: local.toordinal(), lambda local: local.isoformat()[:10]),
    "weekly": (_week, lambda local: local.strftime("%G-W%V")),
    "monthly": (lambda local: (local.year, local.month), lambda local: local.isoformat()[:7]),
    "yearly": (lambda local: local.year, lambda local: local.isoformat()[:4]),
}


def decide(
    backups: Sequence[BackupRef],
    policy: Policy,
    now: datetime,
    zone: ZoneInfo,
    *,
    proven: Collection[str] = (),
    unreadable: Mapping[str, str] | None = None,
    paused: str | None = None,
) -> list[Decision]:
    """One decision for each backup, newest first.

    `proven`: the IDs of backups that a test restore passed. `unreadable`: why a manifest can't be believed, by ID;
    such a backup stays, and uses up no rule's count. `paused`: why nothing may go now.
    """
    unreadable = unreadable or {}
    newest_first = sorted(backups, reverse=True)
    readable = [ref for ref in newest_first if ref.id not in unreadable and ref.second <= now + CLOCKS_DIFFER]
    reasons: dict[str, list[str]] = {ref.id: [] for ref in newest_first}
    for ref in newest_first:
        if ref.id in unreadable:
            reasons[ref.id].append(f"cannot be read: {unreadable[ref.id]}")
        elif ref.second > now + CLOCKS_DIFFER:
            reasons[ref.id].append("dated in the future")
    for ref in readable[:1]:
        reasons[ref.id].append("the newest")
    for ref in [ref for ref in readable if ref.id in proven][:1]:
        reasons[ref.id].append("the newest proven")
    if policy.is_empty:
        for ref in readable:
            reasons[ref.id].append("no retention is set")
    for number, ref in enumerate(readable[: policy.keep_last], 1):
        reasons[ref.id].append(f"last {number} of {policy.keep_last}")
    if policy.keep_within is not None:
        for ref in readable:
            if ref.second >= now - policy.keep_within:
                reasons[ref.id].append(f"within {times.human_duration(policy.keep_within)}")
    if not policy.is_empty:
        local = [(ref, ref.second.astimezone(zone)) for ref in readable]
        for rule, (period, name) in _PERIODS.items():
            for ref, moment in _newest_of_each(local, period, getattr(policy, rule)):
                reasons[ref.id].append(f"{rule} {name(moment)}")
    return [_decision(ref, reasons[ref.id], paused) for ref in newest_first]


def _newest_of_each(
    newest_first: Sequence[tuple[BackupRef, datetime]], period: Callable[[datetime], Period], count: int
) -> Iterator[tuple[BackupRef, datetime]]:
    """The newest backup of each of the last `count` periods that have one."""
    seen: set[Period] = set()
    for ref, moment in newest_first:
        if len(seen) == count:
            return
        if (of := period(moment)) not in seen:
            seen.add(of)
            yield ref, moment


def _decision(ref: BackupRef, reasons: Sequence[str], paused: str | None) -> Decision:
    if reasons:
        return Decision(ref, True, tuple(reasons))
    if paused is not None:
        return Decision(ref, True, (f"pruning is paused: {paused}",))
    return Decision(ref, False, ("no rule keeps it",))
