"""Which tables a backup dumps together: who restores one reads its stream, and each stream costs a pg_dump."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backupd.backup import grouped
from backupd.postgres.inventory import SourceTable

MIB = 1 << 20


def tables(*sizes: int) -> list[SourceTable]:
    return [SourceTable(i, "s", f"t{i}", f"s.t{i}", size, True, None) for i, size in enumerate(sizes)]


def sizes(*given_: int, large: int = 64 * MIB) -> list[list[int]]:
    """The groups of tables with so many MiB, as MiB."""
    chosen = tables(*(size * MIB for size in given_))
    return [[t.bytes // MIB for t in group] for group in grouped(chosen, sum(t.bytes for t in chosen), large)]


def test_large_tables_are_alone_and_middling_ones_share() -> None:
    assert sizes(100, 3, 64, 50, 30, 9, 9, 9, 7) == [[100], [64], [50], [30], [9, 9, 9]]


def test_a_small_database_is_one_stream() -> None:
    assert sizes(30, 20, 10, 1) == []
    assert sizes(30, 20, 10, 5) == [[30], [20, 10]]
    assert sizes(1, 2, 8, large=0) == [[8], [2], [1]]
    assert sizes(1, 2, 8, large=4 * MIB) == [[8]]


def test_there_are_never_too_many() -> None:
    assert len(sizes(*[50] * 400)) == 256
    assert len(sizes(*[100] * 300, *[9] * 300)) == 256


@given(st.lists(st.integers(0, 200 * MIB), max_size=60), st.sampled_from([16 * MIB, 64 * MIB, 1 << 30]))
def test_no_table_twice_and_no_stream_too_large(given_: list[int], large: int) -> None:
    chosen = tables(*given_)
    groups = grouped(chosen, sum(given_), large)
    placed = [t.oid for group in groups for t in group]
    assert len(placed) == len(set(placed))
    assert all(t.oid in placed for t in chosen if t.bytes >= large)
    for group in groups:
        assert len(group) == 1 or sum(t.bytes for t in group) <= large // 2
        assert all(t.bytes >= 8 * MIB for t in group)
