"""A few threads that work through tasks in order; the first failure stops everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from backupd.postgres.process import Running

T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")


class Cancelled(Exception):  # noqa: N818  (it is no error: the error is another task's)
    """Raised in tasks that had not begun when another one failed."""


def run(
    tasks: Sequence[Callable[[], T]], jobs: int, running: Running, *, beside: Callable[[], U] | None = None
) -> tuple[list[T], U | None]:
    """The results of all tasks, in order, and of the one that runs `beside` them on a thread of its own.

    If one raises, or we are interrupted, everything in `running` is ended, every thread is waited for, and the
    first error is raised: nothing goes on behind the caller's back.
    """
    first: list[BaseException] = []

    def guarded(task: Callable[[], V]) -> V:
        if running.stopped:
            raise Cancelled
        try:
            return task()
        except BaseException as error:
            if not running.stopped:
                first.append(error)  # the others' failures follow from this one
            running.stop()
            raise

    with (
        ThreadPoolExecutor(max(1, min(jobs, len(tasks))), thread_name_prefix="stream") as pool,
        ThreadPoolExecutor(1, thread_name_prefix="beside") as other,
    ):
        try:
            side = [other.submit(guarded, beside)] if beside else []
            futures = [pool.submit(guarded, task) for task in tasks]
            every: list[Future[Any]] = [*futures, *side]
            wait(every, return_when=FIRST_EXCEPTION)
        except BaseException:  # an interrupt in the waiting thread
            running.stop()
            raise
    if first:
        raise first[0]
    return [future.result() for future in futures], side[0].result() if side else None
