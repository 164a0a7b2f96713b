"""The table of contents of a pg_dump archive: read and written back to the byte, and refused when it is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.errors import IntegrityError, PostgresError
from backupd.postgres import archive
from backupd.postgres.archive import SECTIONS, Archive, Entry

VERSIONS = ((1, 14), (1, 15), (1, 16))
REST = b"\x01\x02rows, which nobody reads"


def head(version: tuple[int, int], *, format_: int = 1, int_size: int = 4) -> bytes:
    """What stands before the entries: magic, version and sizes, the format, compression, when and of what."""

    def integer(value: int) -> bytes:
        return bytes([value < 0]) + abs(value).to_bytes(int_size, "little")

    compression = b"\x00" if version >= (1, 15) else integer(0)
    strings = b"".join(integer(len(text)) + text for text in (b"shop", b"17.2", b"17.2"))
    moment = b"".join(integer(value) for value in (14, 3, 6, 22, 10, 126, -1))
    return b"PGDMP" + bytes([*version, 0, int_size, 8, format_]) + compression + moment + strings


def entry(**changes: object) -> Entry:
    values: dict[str, object] = {
        "dump_id": 7,
        "has_data": False,
        "table_oid": 1259,
        "oid": 16384,
        "tag": "orders",
        "desc": "TABLE",
        "section": "pre-data",
        "definition": 'CREATE TABLE "public"."orders" ();\n',
        "drop": "",
        "copy": None,
        "schema": "public",
        "tablespace": "",
        "access_method": "heap",
        "relkind": None,
        "owner": "postgres",
        "oids": "false",
        "dependencies": (3, 5),
        "place": bytes(9),
    }
    return Entry(**(values | changes))  # type: ignore[arg-type]


def encoding(name: str) -> Entry:
    definition = f"SET client_encoding = '{name}';\n"
    return entry(dump_id=1, desc="ENCODING", tag="ENCODING", definition=definition, schema=None, dependencies=())


def made(entries: list[Entry], version: tuple[int, int] = (1, 14), codec: str = "utf-8", int_size: int = 4) -> Archive:
    start = head(version, int_size=int_size)
    unsized = Archive(start, version, int_size, tuple(entries), 0, codec)
    return Archive(start, version, int_size, tuple(entries), len(unsized.encode()), codec)


def cut(data: bytes, places: list[int]) -> Iterator[memoryview]:
    """In pieces of one buffer that is reused, as a stream is read."""
    for start, end in pairwise([0, *sorted(place % (len(data) + 1) for place in places), len(data)]):
        buffer = bytearray(data[start:end])
        yield memoryview(buffer)
        buffer[:] = bytes(len(buffer))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
optional = st.none() | texts


@st.composite
def archives(draw: st.DrawFn) -> Archive:
    version, int_size = draw(st.sampled_from(VERSIONS)), draw(st.sampled_from((4, 8)))
    numbers = st.integers(0, (1 << 31) - 1)
    entries = st.builds(
        Entry,
        dump_id=numbers,
        has_data=st.booleans(),
        table_oid=numbers,
        oid=numbers,
        tag=texts,
        desc=st.sampled_from(("TABLE", "TABLE DATA", "ACL", "COMMENT")),
        section=st.sampled_from(sorted(SECTIONS.values())),
        definition=optional,
        drop=optional,
        copy=optional,
        schema=optional,
        tablespace=optional,
        access_method=optional,
        relkind=st.integers(0, 127) if version >= (1, 16) else st.none(),
        owner=optional,
        oids=optional,
        dependencies=st.lists(numbers, max_size=4).map(tuple),
        place=st.binary(min_size=9, max_size=9),
    )
    return made(draw(st.lists(entries, max_size=5)), version, int_size=int_size)


@given(archives(), st.lists(st.integers(0, 4000), max_size=5))
def test_what_is_written_is_read(given_: Archive, places: list[int]) -> None:
    data = given_.encode() + REST
    found, whole = archive.read(cut(data, places), "it")
    assert found == given_
    assert found.encode() == data[: found.size]
    assert b"".join(bytes(piece) for piece in whole) == data


@pytest.mark.parametrize("version", VERSIONS)
def test_cut_short(version: tuple[int, int]) -> None:
    relkind = 114 if version >= (1, 16) else None
    data = made([encoding("UTF8"), entry(relkind=relkind), entry(tag="x", relkind=relkind)], version).encode()
    for size in range(len(data)):
        with pytest.raises(IntegrityError):
            archive.read([data[:size]], "it")
    assert len(archive.read([data], "it")[0].entries) == 3


@given(archives(), st.integers(0, 4000), st.integers(1, 255))
def test_garbled(given_: Archive, place: int, change: int) -> None:
    """Whatever comes of it, it is our error, or an archive that goes on as it came."""
    data = bytearray(given_.encode() + REST)
    data[place % len(data)] ^= change
    with suppress(IntegrityError, PostgresError):
        _, whole = archive.read([bytes(data)], "it")
        assert b"".join(bytes(piece) for piece in whole) == data


@pytest.mark.parametrize("version", [(1, 13), (1, 17), (2, 0), (0, 16)])
def test_other_versions(version: tuple[int, int]) -> None:
    data = bytearray(made([entry()]).encode())
    data[5:7] = version
    with pytest.raises(PostgresError, match=f"version {version[0]}.{version[1]}, which this backupd does not know"):
        archive.read([bytes(data)], "it")


@pytest.mark.parametrize("data", [b"", b"PGDM", b"-- PostgreSQL database dump\n", head((1, 14), format_=3) + bytes(99)])
def test_no_archive_at_all(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="not the pg_dump archive it should be"):
        archive.read([data], "it")


def test_fewer_entries_than_none() -> None:
    data = head((1, 14)) + b"\x01\x02\x00\x00\x00"
    with pytest.raises(IntegrityError, match="not the pg_dump archive it should be"):
        archive.read([data], "it")


def test_a_number_that_is_none() -> None:
    data = made([entry(oid=54321)]).encode().replace(b"54321", b"54x21")
    with pytest.raises(IntegrityError):
        archive.read([data], "it")


# ---- encodings


@pytest.mark.parametrize(
    "name, codec, word",
    [
        ("LATIN1", "latin-1", "Größe"),
        ("WIN1252", "cp1252", "Größe €"),
        ("EUC_JP", "euc_jp", "表"),
        ("KOI8R", "koi8-r", "ы"),
    ],
)
def test_names_are_text_in_any_encoding(name: str, codec: str, word: str) -> None:
    data = made([encoding(name), entry(tag=word)], codec=codec).encode()
    found, _ = archive.read([data], "it")
    assert found.entries[1].tag == word
    assert found.encode() == data


@pytest.mark.parametrize("name", ["SQL_ASCII", "MULE_INTERNAL", "EUC_JP", "EUC_KR"])
@pytest.mark.parametrize(
    "word", [b"\xff\x8e\xe9", b"\xa4\xd4\xa4\xa1\xa4\xbf\xa4\xd4"], ids=["no text", "longer than need be"]
)
def test_bytes_that_are_no_proper_text_go_back_as_they_came(name: str, word: bytes) -> None:
    """The second is a Korean letter as eight bytes, which Python would write back as two."""
    data = made([encoding(name), entry(tag=word.decode("latin-1") + " x")], codec="latin-1").encode()
    found, _ = archive.read([data], "it")
    assert found.encode() == data
    assert found.entries[1].tag.endswith(" x")
