"""The table of contents of a pg_dump custom archive: read to know what is in it, written to change who owns it.

The format is that of PostgreSQL's src/bin/pg_dump/pg_backup_archiver.c (WriteHead, WriteToc) and pg_backup_custom.c,
archive versions 1.14 (pg_dump 13 to 15), 1.15 (16) and 1.16 (17, 18). An integer is a sign byte and `int_size` bytes,
a string an integer length (negative: none) and its bytes, little-endian all.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from backupd.errors import IntegrityError, PostgresError
from backupd.storage.base import Buffer

_MAGIC = b"PGDMP"
_CUSTOM = 1
_OLDEST, _NEWEST = (1, 14), (1, 16)
_LONGEST = 1 << 30  # of a string: PostgreSQL's own limit of a value
_PLAIN = "utf-8"  # with surrogateescape: for bytes of any kind, which go back as they came

SECTIONS = {1: "none", 2: "pre-data", 3: "data", 4: "post-data"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One object, or one table's rows, in the order in which pg_restore takes them."""

    dump_id: int
    has_data: bool
    table_oid: int  # of the catalog that the object stands in on the source: 1259 for pg_class
    oid: int
    tag: str  # orders; for what belongs to a table: `orders orders_pkey`
    desc: str  # TABLE, INDEX, FK CONSTRAINT, TABLE DATA …
    section: str  # pre-data, data, post-data; none for what goes where its object goes
    definition: str | None
    drop: str | None
    copy: str | None
    schema: str | None
    tablespace: str | None
    access_method: str | None
    relkind: int | None  # from archive version 1.16
    owner: str | None
    oids: str | None
    dependencies: tuple[int, ...]
    place: bytes = field(repr=False)  # where its data lies, for a reader that can seek


def placed(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The same, each with the section that pg_restore takes it to be in (ProcessArchiveRestoreOptions): that of the
    last one before it which has any. To be asked of a whole archive, before any entries are taken out of it."""
    section = "pre-data"
    for entry in entries:
        section = entry.section if entry.section != "none" else section
        yield entry if entry.section == section else replace(entry, section=section)


@dataclass(frozen=True, slots=True)
class Archive:
    """The beginning of an archive, up to its data."""

    head: bytes = field(repr=False)  # everything before the number of entries
    version: tuple[int, int]
    int_size: int
    entries: tuple[Entry, ...]
    size: int  # bytes from the archive's start to the end of the table of contents
    codec: str  # Python's name for the encoding of its strings

    def encode(self) -> bytes:
        """The same table of contents again; after changes the entries' places are no longer right for data."""
        writer = _Writer(self.int_size, self.codec)
        writer.integer(len(self.entries))
        for entry in self.entries:
            writer.entry(entry, self.version)
        return self.head + bytes(writer.data)

    def with_entries(self, entries: Iterable[Entry]) -> Archive:
        return replace(self, entries=tuple(entries))


def read(pieces: Iterable[Buffer], what: str) -> tuple[Archive, Iterator[Buffer]]:
    """The table of contents at the start of an archive, and the whole archive again: what was read of `pieces` to
    know it, then the rest, as it comes.

    Raises IntegrityError if it is none, and PostgresError if it is of a version that this backupd does not know.
    """
    reader = _Reader(iter(pieces), what)
    archive = reader.archive()
    if not reader.is_same(archive):  # bytes that are no text in the encoding it names
        reader.codec = _PLAIN
        archive = reader.archive()
    return archive, reader.again()


def is_known(beginning: Buffer) -> bool:
    """Whether an archive that begins so is of a version that `read` knows."""
    head = bytes(memoryview(beginning)[: len(_MAGIC) + 2])
    return head.startswith(_MAGIC) and _OLDEST <= tuple(head[len(_MAGIC) :]) <= _NEWEST


def parse(data: bytes, what: str) -> Archive | None:
    """The table of contents of a whole archive; None if it is of a version that is not known."""
    return read([data], what)[0] if is_known(data) else None


def _codec(definition: str) -> str:
    """Python's name for the encoding in `SET client_encoding = 'LATIN1';`."""
    named = re.search(r"'(\w+)'", definition)
    name = re.sub(r"^WIN(?=\d)", "cp", named[1] if named else "").replace("KOI8", "KOI8-")
    try:
        return codecs.lookup(name).name
    except LookupError:  # SQL_ASCII, which is none, or one that Python has not: ASCII is itself in all of them
        return _PLAIN


class _Reader:
    def __init__(self, pieces: Iterator[Buffer], what: str) -> None:
        self._pieces = pieces
        self._what = what
        self._data = bytearray()
        self._at = 0
        self._int_size = 4
        self.codec: str | None = None  # None: the one that the archive names

    def is_same(self, archive: Archive) -> bool:
        try:
            return self._data.startswith(archive.encode())
        except UnicodeEncodeError:
            return False

    def again(self) -> Iterator[Buffer]:
        held, self._data = bytes(self._data), bytearray()
        yield held
        yield from self._pieces

    def take(self, size: int) -> bytes:
        while len(self._data) < self._at + size:
            piece = next(self._pieces, None)
            if piece is None:
                raise self._broken("it ends within its table of contents")
            self._data += piece
        taken = bytes(self._data[self._at : self._at + size])
        self._at += size
        return taken

    def byte(self) -> int:
        return self.take(1)[0]

    def integer(self) -> int:
        sign, value = self.byte(), int.from_bytes(self.take(self._int_size), "little")
        return -value if sign else value

    def string(self) -> str | None:
        size = self.integer()
        if size > _LONGEST:
            raise self._broken(f"a string of {size} bytes")
        if size < 0:
            return None
        data = self.take(size)
        try:
            return data.decode(self._codec, "surrogateescape")
        except UnicodeDecodeError:
            return data.decode(_PLAIN, "surrogateescape")

    def text(self) -> str:
        return self.string() or ""

    def number(self) -> int:
        """One that is written as text."""
        return self.as_number(self.text())

    def as_number(self, text: str) -> int:
        if not (text.isascii() and text.isdigit()):
            raise self._broken(f"{text[:20]!r} where a number should be")
        return int(text)

    def archive(self) -> Archive:
        self._at, self._codec = 0, self.codec or _PLAIN
        if self.take(len(_MAGIC)) != _MAGIC:
            raise self._broken("it does not begin as one")
        major, minor, _, self._int_size, offset_size = self.take(5)
        version = (major, minor)
        if not _OLDEST <= version <= _NEWEST:
            raise PostgresError(
                f"{self._what} is a pg_dump archive of version {major}.{minor}, which this backupd does not know",
                hint="Restore all of it, or use a newer backupd for parts of it.",
            )
        if self.byte() != _CUSTOM:
            raise self._broken("it is in another format than custom")
        if version >= (1, 15):
            self.byte()  # the compression's method
        else:
            self.integer()  # its level
        for _ in range(7):
            self.integer()  # when it was made
        for _ in range(3):
            self.string()  # the database's name, the versions of the server and of pg_dump
        head = bytes(self._data[: self._at])
        count = self.integer()
        if count < 0:
            raise self._broken(f"it has {count} entries")
        entries = tuple(self._entries(version, offset_size, count))
        return Archive(head, version, self._int_size, entries, self._at, self._codec)

    def _entries(self, version: tuple[int, int], offset_size: int, count: int) -> Iterator[Entry]:
        for _ in range(count):
            entry = self._entry(version, offset_size)
            if entry.desc == "ENCODING" and self.codec is None:  # the first of all, and of ASCII
                self._codec = _codec(entry.definition or "")
            yield entry

    def _entry(self, version: tuple[int, int], offset_size: int) -> Entry:
        return Entry(
            dump_id=self.integer(),
            has_data=bool(self.integer()),
            table_oid=self.number(),
            oid=self.number(),
            tag=self.text(),
            desc=self.text(),
            section=SECTIONS.get(self.integer(), "none"),
            definition=self.string(),
            drop=self.string(),
            copy=self.string(),
            schema=self.string(),
            tablespace=self.string(),
            access_method=self.string(),
            relkind=self.integer() if version >= (1, 16) else None,
            owner=self.string(),
            oids=self.string(),
            dependencies=tuple(self._dependencies()),
            place=self.take(1 + offset_size),
        )

    def _dependencies(self) -> Iterator[int]:
        while (text := self.string()) is not None:
            yield self.as_number(text)

    def _broken(self, why: str) -> IntegrityError:
        return IntegrityError(f"{self._what} is not the pg_dump archive it should be", detail=f"The reason: {why}.")


class _Writer:
    def __init__(self, int_size: int, codec: str) -> None:
        self.data = bytearray()
        self._int_size = int_size
        self._codec = codec

    def integer(self, value: int) -> None:
        self.data.append(value < 0)
        self.data += abs(value).to_bytes(self._int_size, "little")

    def string(self, text: str | None) -> None:
        if text is None:
            self.integer(-1)
        else:
            data = text.encode(self._codec, "surrogateescape")
            self.integer(len(data))
            self.data += data

    def entry(self, entry: Entry, version: tuple[int, int]) -> None:
        numbers = {name: number for number, name in SECTIONS.items()}
        self.integer(entry.dump_id)
        self.integer(int(entry.has_data))
        for text in (str(entry.table_oid), str(entry.oid), entry.tag, entry.desc):
            self.string(text)
        self.integer(numbers[entry.section])
        optional = (entry.copy, entry.schema, entry.tablespace, entry.access_method)
        for value in (entry.definition, entry.drop, *optional):
            self.string(value)
        if version >= (1, 16):
            self.integer(entry.relkind or 0)
        self.string(entry.owner)
        self.string(entry.oids)
        for dependency in entry.dependencies:
            self.string(str(dependency))
        self.string(None)
        self.data += entry.place
