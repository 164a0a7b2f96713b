"""A few threads that work through tasks in order, and through what these leave behind; the first failure stops all."""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition
from typing import Any, Generic, TypeVar

from backupd.postgres.process import Running

T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")


class Cancelled(Exception):  # noqa: N818  (it is no error: the error is another task's)
    """Raised in tasks that had not begun when another one failed."""


class Behind:
    """Work that the tasks of one `run` leave behind while they run, first come, first served.

    It is done before tasks that have not begun, but never by all threads at once while there are any: what the tasks
    read, over a line perhaps, goes on being read.
    """

    def __init__(self) -> None:
        self._tasks: deque[Callable[[], None]] = deque()

    def add(self, task: Callable[[], None]) -> None:
        """As the last act of a task, or of work that one has left behind: threads that wait look again when it ends."""
        self._tasks.append(task)

    def __len__(self) -> int:
        return len(self._tasks)

    def take(self) -> Callable[[], None]:
        return self._tasks.popleft()


def run(
    tasks: Sequence[Callable[[], T]],
    jobs: int,
    running: Running,
    *,
    beside: Callable[[], U] | None = None,
    behind: Behind | None = None,
) -> tuple[list[T], U | None]:
    """The results of all tasks, in order, and of the one that runs `beside` them on a thread of its own.

    If one raises, or we are interrupted, everything in `running` is ended, every thread is waited for, and the
    first error is raised: nothing goes on behind the caller's back.
    """
    first: list[BaseException] = []
    ended = os.eventfd(0)  # counts the threads that are
    jobs = max(1, jobs if behind is not None else min(jobs, len(tasks)))
    queue = _Queue(tasks, jobs, running, Behind() if behind is None else behind)

    def guarded(work: Callable[[], V]) -> V:
        try:
            if running.stopped:
                raise Cancelled  # noqa: TRY301
            return work()
        except BaseException as error:
            if not running.stopped:
                first.append(error)  # the others' failures follow from this one
            running.stop()
            raise
        finally:
            os.eventfd_write(ended, 1)

    try:
        with (
            ThreadPoolExecutor(jobs, thread_name_prefix="stream") as pool,
            ThreadPoolExecutor(1, thread_name_prefix="beside") as other,
        ):
            try:
                side = [other.submit(guarded, beside)] if beside else []
                futures = [pool.submit(guarded, queue.work) for _ in range(jobs)]
                # Not by futures.wait: while Python holds locks of its own, signals are put off (see signals.py).
                left = len(futures) + len(side)
                while left and not first:
                    select.select([ended], [], [])
                    left -= os.eventfd_read(ended)
            except BaseException:  # an interrupt in the waiting thread
                running.stop()
                raise
    finally:
        os.close(ended)  # the threads have ended by now
    # Others' errors come of somebody else's `running.stop()`, and whoever had not begun has none to tell.
    threads: list[Future[Any]] = [*futures, *side]
    failed = first + sorted(filter(None, (each.exception() for each in threads)), key=_is_cancelled)
    if failed:
        raise failed[0]
    return [queue.results[number] for number in range(len(tasks))], side[0].result() if side else None


def _is_cancelled(error: BaseException) -> bool:
    return isinstance(error, Cancelled)


class _Queue(Generic[T]):
    """What is to be done, for all threads."""

    def __init__(self, tasks: Sequence[Callable[[], T]], jobs: int, running: Running, behind: Behind) -> None:
        self.results: dict[int, T] = {}
        self._tasks = deque(enumerate(tasks))
        self._behind = behind
        self._running = running
        self._kept = min(1, jobs - 1)  # threads that stay with the tasks while there are any
        self._at_tasks = self._at_work = 0  # threads
        self._changed = Condition()

    def work(self) -> None:
        """Until nothing is left, and nobody works who could leave more. Raises what a task does, and Cancelled."""
        while (task := self._next()) is not None:
            try:
                task()
            finally:
                with self._changed:
                    self._at_work -= 1
                    self._changed.notify_all()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while self._tasks or self._behind or self._at_work:
                if self._running.stopped and (self._tasks or self._behind):
                    raise Cancelled
                if self._behind and (self._at_tasks >= self._kept or not self._tasks):
                    self._at_work += 1
                    return self._behind.take()
                if self._tasks:
                    self._at_work += 1
                    self._at_tasks += 1
                    return self._first(*self._tasks.popleft())
                self._changed.wait()  # whoever works wakes us, at its end: it is ended when all are stopped
        return None

    def _first(self, number: int, task: Callable[[], T]) -> Callable[[], None]:
        def once() -> None:
            try:
                self.results[number] = task()
            finally:
                with self._changed:
                    self._at_tasks -= 1

        return once
