"""What is due: every database's schedules against what its repository holds and what was tried since. Pure: no I/O, no
clock, no threads. Every method is given the time.

What was done is known from the storage (`learn`): a slot is done if a backup, or a test restore, is as late as it is.
So a restart forgets nothing but failed attempts, and several hosts agree on what is due.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from backupd import schedules
from backupd.config_values import Schedule, Window

Kind = Literal["backup", "verify", "prune"]
SLACK = timedelta(seconds=2)  # by which the clock of a source may be behind ours
KINDS: tuple[Kind, ...] = ("backup", "verify", "prune")  # in the order in which they are done, if all are due


@dataclass(frozen=True, slots=True)
class Job:
    """Something to be done: it knows nothing of threads or hosts, so that any runner can do it."""

    kind: Kind
    database: str
    slot: datetime  # when it was due, in UTC; what is as late as this was done already

    def __str__(self) -> str:
        return f"{self.kind} of {self.database}"


def is_done(slot: datetime, last: datetime | None) -> bool:
    """Whether the newest that the storage holds is as late as the slot."""
    return last is not None and last + SLACK >= slot


@dataclass(frozen=True, slots=True)
class Retry:
    """What follows a failure: `times` more attempts, the first after `delay`, each later one after twice as long."""

    times: int = 3
    delay: timedelta = timedelta(minutes=1)
    longest: timedelta = timedelta(hours=1)

    def after(self, failures: int) -> timedelta | None:
        """How long to wait after so many failures in a row; None: not again before the next slot."""
        if failures > self.times:
            return None
        return min(self.delay * (1 << min(failures - 1, 20)), self.longest)


@dataclass(frozen=True, slots=True)
class Plan:
    """When one kind of job of one database is due. Without a schedule: when `wanted`, after another job."""

    schedule: Schedule | None
    zone: ZoneInfo
    window: Window | None = None
    jitter: timedelta = timedelta()
    retry: Retry = Retry()


@dataclass(slots=True)
class _State:
    known: bool = False
    last: datetime | None = None  # of the newest that the storage holds
    settled: datetime | None = None  # slots up to here are not tried again, done or not
    failures: int = 0  # in a row, since the last success or report
    not_before: datetime | None = None
    wanted: datetime | None = None  # since when, of what has no schedule
    slot: datetime | None = None  # the latest, and
    until: datetime | None = None  # when the next one comes: neither is worked out at every look


@dataclass(slots=True)
class Agenda:
    """The plans of all databases, and where each stands."""

    plans: Mapping[tuple[str, Kind], Plan]
    _states: dict[tuple[str, Kind], _State] = field(default_factory=dict)
    _running: dict[str, tuple[Job, datetime]] = field(default_factory=dict)  # by database: and since when

    def replace(self, plans: Mapping[tuple[str, Kind], Plan]) -> None:
        """Another configuration: what is known of a job stays, but when it is due is asked again."""
        self.plans = plans
        for state in self._states.values():
            state.slot = state.until = None

    def learn(self, database: str, kind: Kind, last: datetime | None) -> None:
        """The newest that the storage holds. Before this was told, nothing of it is due."""
        state = self._state(database, kind)
        state.last, state.known = last, True

    def ask(self, database: str, kind: Kind) -> None:
        """The storage does not say when it was done last: the job itself is to find out, or to fail."""
        self._state(database, kind).known = True

    def want(self, database: str, kind: Kind, now: datetime) -> None:
        """A job without a schedule, as soon as can be."""
        state = self._state(database, kind)
        state.wanted, state.failures, state.not_before = now, 0, None

    def due(self, now: datetime) -> list[Job]:
        """What may begin now, the longest overdue first; at most one job for each database."""
        found: dict[str, Job] = {}
        for database, kind in sorted(self.plans, key=lambda key: (key[0], KINDS.index(key[1]))):
            if database in found or database in self._running:
                continue
            job = self._job(database, kind, now)
            if job is not None:
                found[database] = job
        return sorted(found.values(), key=lambda job: (job.slot, job.database))

    def begin(self, job: Job, now: datetime) -> None:
        self._running[job.database] = (job, now)

    def succeed(self, job: Job, now: datetime, last: datetime | None) -> datetime | None:
        """The job is done; `last` is the time of the newest that the storage holds now. Returns the slot that it ran
        over, if it did: that one is left out."""
        state, began = self._end(job)
        state.failures, state.not_before = 0, None
        state.last = last if last is not None else state.last
        missed = self._overrun(job, began or now, now)
        state.settled = max(job.slot, missed or job.slot)
        return missed

    def fail(self, job: Job, now: datetime) -> datetime | None:
        """The job failed. Returns when it is tried again; None: not for this slot, and it is time to tell somebody."""
        state, began = self._end(job)
        state.failures += 1
        wait = self.plans[job.database, job.kind].retry.after(state.failures) if self._knows(job) else None
        if wait is None:
            state.failures, state.not_before = 0, None
            state.settled = max(job.slot, self._overrun(job, began or now, now) or job.slot)
            return None
        state.not_before = now + wait
        if self.plans[job.database, job.kind].schedule is None:
            state.wanted = job.slot
        return state.not_before

    def put_off(self, job: Job, until: datetime) -> None:
        """The job could not begin, through no fault: it is asked for again at `until`."""
        state, _ = self._end(job)
        state.not_before = until
        if self._knows(job) and self.plans[job.database, job.kind].schedule is None:
            state.wanted = job.slot

    def next_run(self, database: str, kind: Kind, now: datetime) -> datetime | None:
        """When it is due next, as far as the schedule tells: `now` if it is overdue."""
        plan, state = self.plans[database, kind], self._state(database, kind)
        if plan.schedule is None:
            return state.wanted and now
        if self._waiting(database, kind, now) is not None:
            return _opened(plan, max(now, state.not_before or now))
        return state.until and state.until + self._jitter(database, kind)

    @property
    def running(self) -> Sequence[Job]:
        return [job for job, _ in self._running.values()]

    @property
    def since(self) -> Mapping[Job, datetime]:
        """When each of them began."""
        return dict(self._running.values())

    def overrunning(self, now: datetime) -> list[Job]:
        """What runs although its next slot has come, and ran for most of the time between."""
        return [job for job, began in self._running.values() if self._overrun(job, began, now) is not None]

    # ---- inside

    def _state(self, database: str, kind: Kind) -> _State:
        found = self._states.get((database, kind))
        if found is None:
            found = self._states[database, kind] = _State()
        return found

    def _knows(self, job: Job) -> bool:
        return (job.database, job.kind) in self.plans  # a reload may have taken it away

    def _jitter(self, database: str, kind: Kind) -> timedelta:
        """At most half of the time to the next slot: else this one would be over before it began."""
        width, state = self.plans[database, kind].jitter, self._state(database, kind)
        if state.slot is not None and state.until is not None:
            width = min(width, (state.until - state.slot) / 2)
        return schedules.jitter(f"{database} {kind}", width)

    def _end(self, job: Job) -> tuple[_State, datetime | None]:
        """Where it stands, and when the job began."""
        running, began = self._running.pop(job.database, (None, None))
        assert running in (job, None)
        state = self._state(job.database, job.kind)
        state.wanted = None
        return state, began

    def _job(self, database: str, kind: Kind, now: datetime) -> Job | None:
        plan, state = self.plans[database, kind], self._state(database, kind)
        slot = self._waiting(database, kind, now)
        if slot is None or _is_put_off(plan, state, now):
            return None
        if plan.window is not None and not plan.window.has(now.astimezone(plan.zone).time()):
            return None
        if plan.schedule is not None and now < slot + self._jitter(database, kind):
            return None
        return Job(kind, database, slot)

    def _waiting(self, database: str, kind: Kind, now: datetime) -> datetime | None:
        """The slot that is not done yet, if there is one."""
        plan, state = self.plans[database, kind], self._state(database, kind)
        if plan.schedule is None:
            return state.wanted
        if not state.known or (kind == "verify" and self._state(database, "backup").last is None):
            return None  # in the second case there is nothing to be tested
        _look_up(plan, state, now)
        if state.slot is None or is_done(state.slot, state.last):
            return None
        # Later than now is what a clock left that was ahead then.
        return None if state.settled is not None and state.slot <= state.settled <= now else state.slot

    def _overrun(self, job: Job, began: datetime, now: datetime) -> datetime | None:
        """The slot that came while the job ran, if it ran for most of the time between: not one that it met by chance,
        because it had to wait before it could begin."""
        plan, state = self.plans.get((job.database, job.kind)), self._state(job.database, job.kind)
        if plan is None or plan.schedule is None:
            return None
        _look_up(plan, state, now)
        newest = state.slot
        if newest is None or newest <= job.slot or newest - began < (newest - job.slot) / 2:
            return None
        return newest


def _opened(plan: Plan, moment: datetime) -> datetime:
    """That moment, or when the window opens next."""
    local = moment.astimezone(plan.zone)
    if plan.window is None or plan.window.has(local.time()):
        return moment
    opens = datetime.combine(local.date(), plan.window.begins, plan.zone)
    if opens <= local:
        opens = datetime.combine(local.date() + timedelta(days=1), plan.window.begins, plan.zone)
    return opens.astimezone(UTC)


def _is_put_off(plan: Plan, state: _State, now: datetime) -> bool:
    """Longer than anything is ever put off, it is by a clock that was ahead then."""
    return state.not_before is not None and now < state.not_before <= now + max(plan.retry.longest, plan.retry.delay)


def _look_up(plan: Plan, state: _State, now: datetime) -> None:
    """The latest slot and the next one, if those that are known are no longer."""
    assert plan.schedule is not None
    if state.slot is not None and state.until is not None and state.slot <= now < state.until:
        return
    slot = state.until
    until = None if slot is None else schedules.after(plan.schedule, plan.zone, slot)
    if slot is None or until is None or not slot <= now < until:  # not just the next one: the clock made a jump
        slot = schedules.latest(plan.schedule, plan.zone, now)
        until = schedules.after(plan.schedule, plan.zone, now)
    if slot != state.slot:  # it is tried at once; failures go on being counted, or nobody would ever be told of them
        state.not_before = None
    state.slot, state.until = slot, until
