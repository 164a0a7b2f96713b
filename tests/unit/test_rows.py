"""Rows behind an archive's table of contents: those that are wanted, whole, whatever the pieces they come in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.errors import IntegrityError
from backupd.postgres import archive, rows
from backupd.postgres.archive import Entry
from tests.unit.test_archive import cut, encoding, entry, made

END = b"\\.\n\n\n"


def integer(value: int) -> bytes:
    return bytes([value < 0]) + abs(value).to_bytes(4, "little")


def block(number: int, lines: list[bytes], kind: int = 1, end: bytes = END) -> bytes:
    chunks = [*lines, end] if end else lines
    return bytes([kind]) + integer(number) + b"".join(integer(len(c)) + c for c in chunks) + integer(0)


def large_objects(number: int) -> bytes:
    one = integer(700001) + integer(3) + b"abc" + integer(0)
    return bytes([3]) + integer(number) + one + one + integer(0)


def stored(blocks: list[bytes], numbers: list[int]) -> bytes:
    entries = [encoding("UTF8")]
    entries += [entry(dump_id=number, desc="TABLE DATA", tag=f"t{number}", section="data") for number in numbers]
    return made(entries).encode() + b"".join(blocks)


def loaded(data: bytes, wanted: set[int], places: list[int]) -> dict[int, bytes]:
    found, whole = archive.read(cut(data, places), "it")
    taken: dict[int, bytes] = {}

    def take(each: Entry, pieces: Iterator[bytes]) -> None:
        taken[each.dump_id] = b"".join(pieces)

    chosen = found.with_entries(e for e in found.entries if e.desc != "TABLE DATA" or e.dump_id in wanted)
    rows.load(chosen, whole, take, "it")
    return taken


lines = st.lists(st.binary(min_size=1, max_size=30).map(lambda text: text.replace(b"\n", b" ") + b"\n"), max_size=6)


@given(st.lists(lines, min_size=1, max_size=5), st.data(), st.lists(st.integers(0, 3000), max_size=6))
def test_what_is_wanted_comes_and_nothing_else(
    tables: list[list[bytes]], data: st.DataObject, places: list[int]
) -> None:
    numbers = list(range(10, 10 + len(tables)))
    blocks = [block(number, table) for number, table in zip(numbers, tables, strict=True)]
    blocks.insert(data.draw(st.integers(0, len(blocks))), large_objects(99))
    wanted = data.draw(st.sets(st.sampled_from(numbers)))
    expected = {number: b"".join(tables[number - 10]) for number in wanted}
    assert loaded(stored(blocks, numbers), wanted, places) == expected


def test_large_rows_and_many() -> None:
    table = [b"x" * 700_000 + b"\n", *(b"%d\n" % number for number in range(100_000))]
    assert loaded(stored([block(10, table)], [10]), {10}, [5, 1000, 300_000]) == {10: b"".join(table)}


def test_no_more_is_read_than_needed() -> None:
    data = stored([block(10, [b"1\n"]), b"\xff nothing that could be read"], [10, 11])
    assert loaded(data, {10}, []) == {10: b"1\n"}
    assert loaded(data, set(), []) == {}


@pytest.mark.parametrize(
    "damage",
    [
        block(10, [b"1\n"])[:-3],
        block(10, [b"1\n"], kind=7),
        block(10, [b"1\n"], end=b""),
        block(10, [b"1\n"], end=b"\\.\n"),
        bytes([1]) + integer(10) + integer(-5),
        b"",
    ],
    ids=["cut short", "another kind", "no end", "half an end", "a length below zero", "nothing"],
)
def test_damage(damage: bytes) -> None:
    with pytest.raises(IntegrityError):
        loaded(stored([damage], [10]), {10}, [])


@pytest.mark.parametrize(
    "copy, names",
    [
        ('COPY "s"."t" ("a", "b c", "d""e", "f) (g") FROM stdin;\n', ("a", "b c", 'd"e', "f) (g")),
        ('COPY "s (""x"")"."t" ("a") FROM stdin;\n', ("a",)),
        ('COPY "s"."t"  FROM stdin;\n', ()),
        ('COPY "s"."a\nb" ("new\nline") FROM stdin;\n', ("new\nline",)),
    ],
)
def test_columns(copy: str, names: tuple[str, ...]) -> None:
    assert rows.columns(copy) == names


def test_values_of_sequences() -> None:
    entries = [
        entry(desc="SEQUENCE SET", schema="s", tag=name, definition=f"SELECT pg_catalog.setval('{text}', {value});\n")
        for name, text, value in (("a", '"s"."a"', "41, true"), ("b, 7", '"s"."b, 7"', "-99, false"))
    ]
    assert rows.sequence_values(entries) == {("s", "a"): (41, True), ("s", "b, 7"): (-99, False)}
