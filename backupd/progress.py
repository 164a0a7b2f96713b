"""How far a backup or restore is, told to whoever listens. Called from several threads at once."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    def phase(self, text: str) -> None:
        """A new step of the work begins."""

    def expect(self, tables: int, size: int) -> None:
        """All that the streams to come will hold: tables, and raw bytes."""

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

    def expect(self, tables: int, size: int) -> None:
        """Said to nobody."""

    def begin(self, stream: str, label: str, total: int | None, *, tables: int = 0) -> None:
        """Said to nobody."""

    def advance(self, stream: str, size: int) -> None:
        """Said to nobody."""

    def end(self, stream: str) -> None:
        """Said to nobody."""

    def warn(self, text: str) -> None:
        """Said to nobody."""
