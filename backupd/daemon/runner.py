"""Jobs as processes of this machine: the embedded way to run them. Nothing here knows what a job does or when it is
due."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from multiprocessing.util import get_temp_dir
from time import monotonic
from typing import Any

from backupd.agenda import Job
from backupd.config import Config
from backupd.console import Style
from backupd.daemon import worker
from backupd.jobs import Outcome
from backupd.postgres.tools import Survey
from backupd.progress import Step

_SHORT = ("/tmp", "/var/tmp")  # noqa: S108  (multiprocessing makes a private folder in it)
_PATIENCE = 60.0  # seconds in which a job that was told to end may clean up


@dataclass(slots=True)
class _Running:
    process: ForkServerProcess
    answer: Connection
    began: float  # monotonic
    deadline: float
    outcome: Outcome | None = None
    step: Step | None = None  # how far it is
    told: float | None = None  # when it was asked to end
    why: str = ""


@contextmanager
def _short_folder() -> Iterator[None]:
    """A temporary folder that leaves room for the name of a socket, which may have 107 bytes."""
    usual = tempfile.gettempdir()
    short = (path for path in (usual, *_SHORT) if len(path) < 60 and os.access(path, os.W_OK))
    tempfile.tempdir = next(short, usual)
    try:
        yield
    finally:
        tempfile.tempdir = usual


class Runner:
    """At most `limit` jobs at a time."""

    def __init__(self, style: Style, limit: int) -> None:
        self.limit = limit
        self._style = style
        self._running: dict[Job, _Running] = {}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([worker.__name__])
        with _short_folder():
            get_temp_dir()  # where its socket will be

    @property
    def has_room(self) -> bool:
        return len(self._running) < self.limit

    @property
    def is_idle(self) -> bool:
        return not self._running

    @property
    def steps(self) -> Mapping[Job, Step]:
        """How far those are that told."""
        return {job: running.step for job, running in self._running.items() if running.step is not None}

    def start(self, job: Job, config: Config, longest: timedelta, programs: Survey | None) -> None:
        """`longest`: after which it is ended. The job's process has what `config` has, and nothing more."""
        ours, theirs = self._context.Pipe(duplex=False)
        given = (config, job, self._style, programs, theirs)
        process = self._context.Process(target=worker.work, args=given, name=str(job))
        process.start()
        theirs.close()  # its end is the job's
        deadline = monotonic() + longest.total_seconds()
        self._running[job] = _Running(process, ours, monotonic(), deadline=deadline)

    def wait(self, seconds: float, others: Sequence[Any] = ()) -> list[Outcome]:
        """Wait until a job ends, or one of the other files can be read, or the time is over. What ended is returned."""
        self._end_the_late()
        pipes = {running.answer: running for running in self._running.values() if not running.answer.closed}
        ends = {running.process.sentinel: job for job, running in self._running.items()}
        ready = connection.wait([*pipes, *ends, *others], seconds)
        for each in ready:
            if isinstance(each, Connection):
                self._hear(pipes[each])
        return [self._finish(ends[each]) for each in ready if isinstance(each, int) and each in ends]

    def end(self, why: str) -> None:
        """Ask all to end; who cleans up too long is killed."""
        for running in self._running.values():
            self._ask(running, why)

    # ---- inside

    def _hear(self, running: _Running) -> None:
        try:
            said = running.answer.recv()
            if isinstance(said, Step):
                running.step = said
            else:
                running.outcome = said
        except (EOFError, OSError):  # it ended without a word, or in the middle of one
            running.answer.close()

    def _finish(self, job: Job) -> Outcome:
        running = self._running.pop(job)
        while running.outcome is None and not running.answer.closed and running.answer.poll():
            self._hear(running)
        running.answer.close()
        running.process.join()
        code = running.process.exitcode
        running.process.close()
        seconds = monotonic() - running.began
        outcome = running.outcome
        if outcome is None:
            text = f"its process ended with {code} and said nothing"
            error = {"message": text, "detail": "", "hint": "Was it killed, or the machine out of memory?", "exit": 1}
            return Outcome(job, "failed", text, seconds, error=error)
        if outcome.status == "interrupted" and running.why:
            return replace(outcome, summary=running.why, seconds=seconds)
        return replace(outcome, seconds=seconds)

    def _end_the_late(self) -> None:
        now = monotonic()
        for running in self._running.values():
            if running.told is not None and now - running.told > _PATIENCE:
                running.process.kill()
            elif now > running.deadline:
                self._ask(running, "it ran longer than max_duration")

    def _ask(self, running: _Running, why: str) -> None:
        if running.told is None:
            running.told, running.why = monotonic(), why
            running.process.terminate()
