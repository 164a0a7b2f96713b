"""Three years of 50 databases in six time zones, with outages, by a clock that only jumps: nothing that is due is
missed or done twice, and after each step what is kept is what the policy says. A naive reading of both says so."""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest

from backupd.agenda import Agenda, Plan
from backupd.catalog import BackupRef
from backupd.config_values import parse_schedule
from backupd.retention import Policy, decide
from tests.naive import utc

BEGIN, END = utc(2025, 1, 10), utc(2028, 1, 10)
ZONES = [
    ZoneInfo(name)
    for name in ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Cairo")
]
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


# ---- the naive reading of schedules


def at(day: date, hour: int, minute: int, zone: ZoneInfo) -> datetime:
    """When a wall clock first shows it on that day; where it never does, when the clock jumps over it."""
    local = datetime.combine(day, time(hour, minute), zone)
    moment = local.astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None) == local.replace(tzinfo=None):
        return moment
    offset = moment.astimezone(zone).utcoffset()
    while (moment - MINUTE).astimezone(zone).utcoffset() == offset:
        moment -= MINUTE
    return moment


@dataclass
class Wanted:
    """A schedule, told twice: as cron has it, and as the moments that it means."""

    cron: str
    hours: tuple[int, ...]
    minute: int
    weekday: int | None = None  # 0: Monday

    def slots(self, zone: ZoneInfo) -> list[datetime]:
        found = set()
        day = BEGIN.date() - 10 * DAY
        while day <= END.date():
            if self.weekday is None or day.weekday() == self.weekday:
                found |= {at(day, hour, self.minute, zone) for hour in self.hours}
            day += DAY
        return sorted(found)


def nightly(random_: random.Random) -> Wanted:
    hour, minute = random_.choice([0, 1, 2, 2, 3, 23]), random_.choice([0, 15, 30, 59])
    return Wanted(f"{minute} {hour} * * *", (hour,), minute)


def weekly(random_: random.Random) -> Wanted:
    return Wanted("30 2 * * 0", (2,), 30, weekday=6)


def often(random_: random.Random) -> Wanted:
    return Wanted("10 1,7,13,19 * * *", (1, 7, 13, 19), 10)


# ---- the naive reading of retention, fast enough to be asked at every step


def kept(times: list[datetime], policy: Policy, now: datetime, local: dict[datetime, datetime]) -> set[datetime]:
    ordered = sorted(times)
    found = set(ordered[-1:])
    found.update(ordered[max(0, len(ordered) - policy.keep_last) :])
    if policy.keep_within is not None:
        found.update(t for t in ordered if t >= now - policy.keep_within)
    for count, parts in ((policy.daily, 3), (policy.monthly, 2), (policy.yearly, 1)):
        last = {local[t].timetuple()[:parts]: t for t in ordered}  # the later one replaces the earlier
        found.update(last[name] for name in sorted(last)[len(last) - min(count, len(last)) :])
    weeks = {local[t].date() - timedelta(days=local[t].weekday()): t for t in ordered}
    found.update(weeks[monday] for monday in sorted(weeks)[len(weeks) - min(policy.weekly, len(weeks)) :])
    return found


# ---- the world


@dataclass
class Database:
    name: str
    zone: ZoneInfo
    wanted: Wanted
    policy: Policy
    stored: list[datetime] = field(default_factory=list)  # what the repository holds
    runs: list[tuple[datetime, datetime]] = field(default_factory=list)  # slot, and when it was done
    local: dict[datetime, datetime] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        return Plan(parse_schedule(self.wanted.cron), self.zone)

    def back_up(self, slot: datetime, now: datetime) -> None:
        taken = now + timedelta(seconds=1)
        self.runs.append((slot, now))
        self.stored.append(taken)
        self.local[taken] = taken.astimezone(self.zone)
        decisions = decide([BackupRef(t, t.isoformat(), self.name) for t in self.stored], self.policy, now, self.zone)
        left = [each.ref.second for each in decisions if each.keep]
        assert set(left) == kept(self.stored, self.policy, now, self.local), (self.name, now)
        self.stored = left


def world(random_: random.Random) -> list[Database]:
    made = []
    for number in range(50):
        wanted = (often if number < 1 else weekly if number % 4 == 0 else nightly)(random_)
        policy = Policy(
            keep_last=random_.randint(0, 3),
            keep_within=random_.choice([None, 2 * DAY, 36 * HOUR]),
            daily=random_.randint(0, 5),
            weekly=random_.randint(0, 4),
            monthly=random_.randint(0, 5),
            yearly=random_.randint(1, 3),
        )
        made.append(Database(f"db{number:02}", ZONES[number % len(ZONES)], wanted, policy))
    return made


def outages(random_: random.Random) -> Iterator[tuple[datetime, datetime]]:
    """From and until when the daemon is down: for minutes or for weeks, and over changes of the clocks too."""
    now = BEGIN + 3 * DAY
    while now < END:
        yield (
            now,
            (now := now + random_.choice([5 * MINUTE, HOUR, 3 * HOUR, DAY, 20 * DAY]) * random_.uniform(0.5, 1.5)),
        )
        now += random_.uniform(1, 60) * DAY


def live(databases: list[Database], begin: datetime, end: datetime) -> None:
    """One run of the daemon: it knows what the storage holds, and jumps from one due job to the next."""
    agenda = Agenda({(each.name, "backup"): each.plan for each in databases})
    by_name = {each.name: each for each in databases}
    for each in databases:
        agenda.learn(each.name, "backup", each.stored[0] if each.stored else None)
        assert not each.stored or each.stored[0] == max(each.stored)
    now = begin
    while now < end:
        for job in agenda.due(now):
            agenda.begin(job, now)
            by_name[job.database].back_up(job.slot, now)
            assert agenda.succeed(job, now + timedelta(seconds=2), max(by_name[job.database].stored)) is None
        ahead = [agenda.next_run(each.name, "backup", now) for each in databases]
        now = min(moment for moment in ahead if moment is not None)


def expected(slots: list[datetime], ups: list[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """Each slot at its time while the daemon is up; of those missed, the last, at the next start."""
    found: list[tuple[datetime, datetime]] = []
    for begin, end in ups:
        missed = slots[bisect_right(slots, begin) - 1]
        if not found or found[-1][1] + timedelta(seconds=1) < missed:
            found.append((missed, begin))
        found += [(slot, slot) for slot in slots[bisect_right(slots, begin) : bisect_left(slots, end)]]
    return found


@pytest.mark.parametrize("seed", [1])
def test_three_years(seed: int) -> None:
    random_ = random.Random(seed)
    databases, down = world(random_), list(outages(random_))
    ups = list(zip([BEGIN, *(until for _, until in down)], [*(since for since, _ in down), END], strict=True))
    ups = [(begin, end) for begin, end in ups if begin < end]
    for group in range(10):  # as many daemons: each looks at all of its databases, whenever one is due
        for begin, end in ups:
            live(databases[group::10], begin, end)
    runs = 0
    for each in databases:
        assert each.runs == expected(each.wanted.slots(each.zone), ups), (each.name, each.wanted, each.zone)
        runs += len(each.runs)
    assert len(down) > 20
    assert runs > 35_000
