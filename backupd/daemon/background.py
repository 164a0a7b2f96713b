"""Work beside the daemon's loop, on a thread that is never waited for: a service that does not answer must not keep the
daemon from ending. (Threads of concurrent.futures are joined when Python ends.)"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Background:
    """One thing at a time, in order."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[Callable[[], None]] = SimpleQueue()
        Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001  (it is the future's, as with any executor)
                future.set_exception(error)

        self._queue.put(run)
        return future

    def _run(self) -> None:
        while True:
            self._queue.get()()
