"""How far a backup or restore is, told to whoever listens. Called from several threads at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock
from time import monotonic
from typing import Protocol


class Progress(Protocol):
    def phase(self, text: str) -> None:
        """A new step of the work begins."""

    def expect(self, tables: int, size: int, *, estimated: bool = False) -> None:
        """All that the streams to come will hold: tables, and raw bytes, as far as can be `estimated`."""

    def begin(self, stream: str, label: str, total: int | None, *, tables: int = 0) -> None:
        """A stream starts; `total` is the raw bytes expected, if that is known; it has all rows of `tables` tables."""

    def advance(self, stream: str, size: int) -> None:
        """`size` more raw bytes went through."""

    def end(self, stream: str) -> None:
        """The stream is complete."""

    def warn(self, text: str) -> None:
        """Something that does not stop the work but that a person should read."""


class Silent:
    """Nobody listens."""

    def phase(self, text: str) -> None:
        """Said to nobody."""

    def expect(self, tables: int, size: int, *, estimated: bool = False) -> None:
        """Said to nobody."""

    def begin(self, stream: str, label: str, total: int | None, *, tables: int = 0) -> None:
        """Said to nobody."""

    def advance(self, stream: str, size: int) -> None:
        """Said to nobody."""

    def end(self, stream: str) -> None:
        """Said to nobody."""

    def warn(self, text: str) -> None:
        """Said to nobody."""


@dataclass(frozen=True, slots=True)
class Step:
    """How far it is, in numbers."""

    phase: str = ""
    tables: int = 0  # expected in all; 0: not known
    tables_done: int = 0
    size: int = 0  # raw bytes expected in all; 0: not known
    size_done: int = 0


@dataclass(slots=True)
class _Stream:
    tables: int
    total: int | None  # raw bytes expected
    size: int = 0


class Steps:
    """Passes everything on to `listener`, and tells `tell` now and then how far it is: never more often than every
    `seconds`, but at once when a phase begins."""

    def __init__(self, listener: Progress, tell: Callable[[Step], None], seconds: float = 2.0) -> None:
        self._listener = listener
        self._tell = tell
        self._pause = seconds
        self._lock = Lock()
        self._told = 0.0
        self._step = Step()
        self._open: dict[str, _Stream] = {}

    def _now(self, *, at_once: bool = False, **changes: object) -> None:
        """Called with the lock held."""
        self._step = replace(self._step, **changes)  # type: ignore[arg-type]
        if at_once or monotonic() - self._told >= self._pause:
            self._told = monotonic()
            self._tell(self._step)

    def phase(self, text: str) -> None:
        with self._lock:
            self._now(at_once=True, phase=text)
        self._listener.phase(text)

    def expect(self, tables: int, size: int, *, estimated: bool = False) -> None:
        with self._lock:
            self._now(tables=tables, size=size, tables_done=0, size_done=0)
        self._listener.expect(tables, size, estimated=estimated)

    def begin(self, stream: str, label: str, total: int | None, *, tables: int = 0) -> None:
        with self._lock:
            self._open[stream] = _Stream(tables, total)
        self._listener.begin(stream, label, total, tables=tables)

    def advance(self, stream: str, size: int) -> None:
        with self._lock:
            self._open[stream].size += size
            self._now(size_done=self._step.size_done + size)
        self._listener.advance(stream, size)

    def end(self, stream: str) -> None:
        with self._lock:
            done = self._open.pop(stream)
            wrong = 0 if done.total is None or not self._step.size else done.size - done.total  # of an estimate
            self._now(tables_done=self._step.tables_done + done.tables, size=self._step.size + wrong)
        self._listener.end(stream)

    def warn(self, text: str) -> None:
        self._listener.warn(text)
