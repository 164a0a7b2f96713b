"""A limit on bytes a second, shared by all streams of a backup."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

from backupd.storage.base import Buffer

_SLICE = 0.2  # seconds between two questions whether to go on
_BURST = 0.25  # seconds' worth that may go at once


class Pace:
    """Lets through `limit` bytes a second on average; 0: all there is."""

    def __init__(
        self, limit: int, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free = clock()  # when the next byte may go

    def spread(self, chunks: Iterable[Buffer], go_on: Callable[[], None] = lambda: None) -> Iterator[Buffer]:
        """The same chunks, none before its time. `go_on` is asked while we wait; what it raises ends that."""
        for chunk in chunks:
            if self._limit:
                self._wait(len(chunk) if isinstance(chunk, bytes | bytearray) else chunk.nbytes, go_on)
            yield chunk

    def _wait(self, size: int, go_on: Callable[[], None]) -> None:
        with self._lock:
            now = self._clock()
            begins = max(self._free, now - _BURST)
            self._free = begins + size / self._limit
        while (left := begins - self._clock()) > 0:
            go_on()
            self._sleep(min(left, _SLICE))
