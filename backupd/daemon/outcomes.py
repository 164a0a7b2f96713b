"""What came of a job: what the agenda is to know of it, the log, and the people who are told."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from pydantic import SecretStr

from backupd import times
from backupd.agenda import Job, Kind
from backupd.daemon.state import State
from backupd.daemon.telling import Teller
from backupd.jobs import Outcome
from backupd.metrics import WORDS, Metrics
from backupd.standing import Attempt

BUSY_AGAIN = timedelta(seconds=5)  # until a database that another host works on is asked for again; each time more,
_BUSY_LONGEST = timedelta(minutes=1)  # up to this


class Say(Protocol):
    """A line for the log."""

    def __call__(
        self, text: str, level: str = "info", job: Job | None = None, outcome: Outcome | None = None
    ) -> None: ...


@dataclass(slots=True)
class _Busy:
    """A job that another host has been found at, since this slot."""

    slot: datetime
    asked: int = 0
    told: bool = False


class Outcomes:
    """Takes each as it comes."""

    def __init__(self, state: State, teller: Teller, metrics: Metrics, say: Say) -> None:
        self._state = state
        self._teller = teller
        self._metrics = metrics
        self._say = say
        self._busy: dict[tuple[str, Kind], _Busy] = {}  # what another host is at
        self._long: set[tuple[str, Kind]] = set()  # that ran over their next slot, and somebody was told
        self._failing: set[tuple[str, Kind]] = set()  # of which somebody was told

    def was_busy(self, job: Job) -> bool:
        """Whether another host was found at it."""
        return (job.database, job.kind) in self._busy

    def take(self, outcome: Outcome, now: datetime) -> None:
        """A job has ended, like this."""
        job = outcome.job
        if not (outcome.status == "interrupted" and self._state.stopping):
            self._note(outcome, now)
        if outcome.status == "busy":
            self._wait_for(outcome, now)
            return
        self._busy.pop((job.database, job.kind), None)
        if outcome.status == "interrupted" and self._state.stopping:
            self._state.agenda.put_off(job, now)
            self._say(f"not finished: {outcome.summary}", "warning", job, outcome)
        elif outcome.status in ("failed", "interrupted"):
            self._failed(outcome, now)
        else:
            self._succeeded(outcome, now)

    def _note(self, outcome: Outcome, now: datetime) -> None:
        """For the page and for Prometheus, of databases that are still ours."""
        job, word = outcome.job, WORDS.get(outcome.status)
        if job.database not in self._state.databases:
            return
        self._metrics.count(outcome)
        if word is not None:
            self._state.note((job.database, job.kind), Attempt(now, word, _told(outcome)))
        elif outcome.status == "elsewhere":
            self._state.settle((job.database, job.kind))

    def _wait_for(self, outcome: Outcome, now: datetime) -> None:
        """Another host is at it. One that does not get done with it until the next slot hangs, and somebody is told."""
        job = outcome.job
        busy = self._busy.setdefault((job.database, job.kind), _Busy(job.slot))
        busy.asked += 1
        self._state.agenda.put_off(job, now + min(BUSY_AGAIN * busy.asked, _BUSY_LONGEST))
        if busy.asked == 1:
            self._say(f"{outcome.summary}: it is waited for", "info", job, outcome)
        if job.slot > busy.slot and not busy.told:
            busy.told = True
            self._state.note((job.database, job.kind), Attempt(now, "failure", _told(outcome)))
            self._report(outcome, f"not done, as another run has been at it since {times.iso(busy.slot)}")

    def look_at_the_long(self, now: datetime) -> None:
        """What still runs when its next slot comes may hang: somebody is told, until one ends in time once."""
        for job in self._state.agenda.overrunning(now):
            if (job.database, job.kind) not in self._long:
                self._long.add((job.database, job.kind))
                text = f"it has run since {times.iso(self._state.agenda.since[job])}, and the next one is due"
                self._say(text, "warning", job)
                self._tell(job, f"backupd: {job} runs for long", text)

    def _succeeded(self, outcome: Outcome, now: datetime) -> None:
        job = outcome.job
        missed = self._state.agenda.succeed(job, now, outcome.last)
        if missed is not None:
            text = f"it ran for {outcome.seconds:.0f} s, over the slot of {times.iso(missed)}, which is left out"
            self._say(text, "warning", job, outcome)
        else:
            self._long.discard((job.database, job.kind))
        if outcome.status == "elsewhere":
            self._say(outcome.summary, "info", job, outcome)
            if job.kind == "backup":  # what was started is done, whoever did it
                self._teller.ping(self._ping_url(job), "success", outcome.summary)
            self._works_again(job, outcome.summary)
            return
        text = f"{outcome.summary} ({outcome.seconds:.1f} s)"
        if outcome.status == "unproven":
            self._say(text, "error", job, outcome)
            self._tell(job, f"backupd: the backup of {job.database} did not prove to restore", text)
            self._failing.add((job.database, job.kind))
            return
        self._say(text, "info", job, outcome)
        self._works_again(job, text)
        if job.kind == "backup":
            self._teller.ping(self._ping_url(job), "success", text)
        if job.kind != "prune" and (job.database, "prune") in self._state.agenda.plans:
            self._state.agenda.want(job.database, "prune", now)

    def _works_again(self, job: Job, text: str) -> None:
        if (job.database, job.kind) in self._failing:
            self._failing.remove((job.database, job.kind))
            self._tell(job, f"backupd: {job} works again", text, well=True)

    def _failed(self, outcome: Outcome, now: datetime) -> None:
        job = outcome.job
        again = self._state.agenda.fail(job, now)
        if again is not None:
            self._say(f"failed, tried again at {times.iso(again)}: {_told(outcome)}", "warning", job, outcome)
            return
        self._report(outcome, "failed, and not tried again before its next slot")

    def _report(self, outcome: Outcome, how: str) -> None:
        """Somebody is to see to it."""
        job, lines = outcome.job, _lines(outcome)
        self._say(f"{how}: {': '.join(lines)}", "error", job, outcome)
        if job.kind == "backup":
            self._teller.ping(self._ping_url(job), "fail", "\n".join(lines))
        self._failing.add((job.database, job.kind))
        self._tell(job, f"backupd: {job} failed", "\n".join([*lines, how]))

    def _ping_url(self, job: Job) -> SecretStr | None:
        return self._state.databases[job.database].ping_url if job.database in self._state.databases else None

    def _tell(self, job: Job, title: str, body: str, *, well: bool = False) -> None:
        about = f"Due: {times.iso(job.slot)}\nHost: {socket.gethostname()}"
        self._teller.message(self._state.config.notify, title, f"{body}\n{about}", well=well)


def _lines(outcome: Outcome) -> list[str]:
    error = outcome.error or {}
    return [outcome.summary, *filter(None, [error.get("detail"), error.get("hint")])]


def _told(outcome: Outcome) -> str:
    return ": ".join(_lines(outcome))
