"""The rows in a pg_dump custom archive, behind its table of contents: taken out as they arrive.

Behind the contents stand blocks: a byte for the kind, the entry's number, and pieces, each with its length before it;
a length of 0 ends them (src/bin/pg_dump/pg_backup_custom.c). backupd's archives are not compressed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from backupd.errors import IntegrityError
from backupd.postgres.archive import Archive, Entry
from backupd.postgres.names import unquoted
from backupd.storage.base import Buffer

_DATA, _LARGE_OBJECTS = 1, 3
_END = b"\\.\n\n\n"  # pg_dump ends a table's rows as psql would want it
_BATCH = 256 << 10
_NAME = re.compile(r'"(?:[^"]|"")*"')
_COLUMNS = re.compile(rf"COPY {_NAME.pattern}\.{_NAME.pattern} \((.*)\) FROM stdin", re.DOTALL)


def load(found: Archive, whole: Iterator[Buffer], take: Callable[[Entry, Iterator[bytes]], None], what: str) -> None:
    """Hand the rows of each entry in `found` to `take`, in the order in which they come; those of others are passed
    over. Reads no further than it must. Raises IntegrityError if the archive is not what it should be."""
    wanted: dict[int, Entry] = {e.dump_id: e for e in found.entries if e.desc == "TABLE DATA"}
    reader = _Reader(whole, found, what)
    while wanted:
        kind, number = reader.byte(), reader.integer()
        if kind == _LARGE_OBJECTS:
            while reader.integer():
                reader.skip()
        elif kind != _DATA:
            raise reader.broken(f"a block of the kind {kind}")
        elif number in wanted:
            take(wanted.pop(number), reader.rows())
        else:
            reader.skip()


def columns(copy: str) -> tuple[str, ...]:
    """The columns that a COPY statement of pg_dump names, all of them quoted."""
    named = _COLUMNS.match(copy)
    return tuple(unquoted(name) for name in _NAME.findall(named[1])) if named else ()


def sequence_values(entries: Iterable[Entry]) -> Mapping[tuple[str, str], tuple[int, bool]]:
    """The values of the sequences in an archive, and whether each was handed out already."""
    found = {}
    for entry in entries:
        if entry.desc == "SEQUENCE SET" and entry.definition:
            *_, value, called = entry.definition.rstrip().rstrip(");").rsplit(", ", 2)
            found[entry.schema or "", entry.tag] = (int(value), called == "true")
    return found


class _Reader:
    def __init__(self, pieces: Iterator[Buffer], found: Archive, what: str) -> None:
        self._pieces = pieces
        self._data = bytearray()
        self._at = 0
        self._int_size = found.int_size
        self._what = what
        self._need(found.size)
        self._at = found.size

    def broken(self, why: str) -> IntegrityError:
        return IntegrityError(f"{self._what} is not the pg_dump archive it should be", detail=f"The reason: {why}.")

    def byte(self) -> int:
        self._need(1)
        self._at += 1
        return self._data[self._at - 1]

    def integer(self) -> int:
        size = 1 + self._int_size
        self._need(size)
        start = self._at
        self._at += size
        value = int.from_bytes(self._data[start + 1 : self._at], "little")
        return -value if self._data[start] else value

    def skip(self) -> None:
        for _ in self._chunks():
            pass

    def rows(self) -> Iterator[bytes]:
        """The rows of a block in large pieces, without what ends them."""
        held = bytearray()
        for chunk in self._chunks():
            held += chunk
            if len(held) > _BATCH:
                yield bytes(held[: -len(_END)])
                del held[: -len(_END)]
        if not held.endswith(_END):
            raise self.broken("the rows of a table do not end as pg_dump ends them")
        yield bytes(held[: -len(_END)])

    def _chunks(self) -> Iterator[bytes]:
        while size := self.integer():
            if size < 0:
                raise self.broken(f"a piece of {size} bytes")
            self._need(size)
            self._at += size
            yield bytes(self._data[self._at - size : self._at])

    def _need(self, size: int) -> None:
        if len(self._data) - self._at < size and self._at:
            del self._data[: self._at]
            self._at = 0
        while len(self._data) - self._at < size:
            piece = next(self._pieces, None)
            if piece is None:
                raise self.broken("it ends too early")
            self._data += piece
