"""A few threads that work through tasks in order; the first failure stops everything."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

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
    ended = os.eventfd(0)  # counts the tasks that are

    def guarded(task: Callable[[], V]) -> V:
        try:
            if running.stopped:
                raise Cancelled  # noqa: TRY301
            return task()
        except BaseException as error:
            if not running.stopped:
                first.append(error)  # the others' failures follow from this one
            running.stop()
            raise
        finally:
            os.eventfd_write(ended, 1)

    try:
        with (
            ThreadPoolExecutor(max(1, min(jobs, len(tasks))), thread_name_prefix="stream") as pool,
            ThreadPoolExecutor(1, thread_name_prefix="beside") as other,
        ):
            try:
                side = [other.submit(guarded, beside)] if beside else []
                futures = [pool.submit(guarded, task) for task in tasks]
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
    if first:
        raise first[0]
    return [future.result() for future in futures], side[0].result() if side else None
