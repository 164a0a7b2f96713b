"""Anomalies are pure: laws that hold whatever the manifests, and the edges of each kind."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd import anomalies
from backupd.anomalies import PROVEN, Policy, checks
from backupd.manifest import DatabaseProperties, Manifest, Stream, Table
from backupd.proof import Check

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
Rows = Mapping[str, int]


def manifest(
    rows: Rows, *, number: int = 0, raw: int | None = None, roots: Mapping[str, str] | None = None
) -> Manifest:
    """A backup of tables with so many rows each, `schema.name`."""
    tables = [
        Table(
            schema_=name.partition(".")[0],
            name=name.partition(".")[2],
            rows=count,
            bytes=count * 100,
            stream="data-0000",
            root=(roots or {}).get(name),
        )
        for name, count in rows.items()
    ]
    size = sum(rows.values()) * 100 if raw is None else raw
    streams = [
        Stream(key=f"db/{kind}", kind=kind, raw_bytes=size, stored_bytes=1, sha256="0" * 64, header_sha256="0" * 64)
        for kind in ("schema", "data")
    ]
    taken = EPOCH + timedelta(hours=number)
    return Manifest(
        format=1, kind="logical", repository="r", database="db", id=f"{taken:%Y%m%dT%H%M%SZ}-aaaaaa", taken_at=taken,
        started_at=taken, finished_at=taken, backupd_version="0", server_version="17.0", server_major=17, tools={},
        properties=DatabaseProperties(name="db", owner="o", encoding="UTF8", collate="C", ctype="C"),
        streams=tuple(streams), tables=tuple(tables),
    )  # fmt: skip


def found(now: Rows, *before: Rows, policy: Policy | None = None) -> dict[str, tuple[str, ...]]:
    """What is told of each kind that failed; `before` newest first."""
    old = [manifest(rows, number=len(before) - at) for at, rows in enumerate(before)]
    return failed(checks(manifest(now, number=len(before) + 1), old, policy or Policy()))


def failed(made: list[Check]) -> dict[str, tuple[str, ...]]:
    return {check.name.removeprefix("anomaly: "): check.items for check in made if check.status == "failed"}


names = st.sampled_from(["public.a", "public.b", "public.c", "s.a", 's."A b"'])
rows = st.dictionaries(names, st.integers(0, 40) | st.integers(0, 10**6), max_size=5)
histories = st.lists(rows, min_size=1, max_size=6)
shares = st.integers(1, 100).map(lambda percent: percent / 100)
policies = st.builds(
    Policy, shares, st.integers(0, 50), st.lists(st.sampled_from(["public.*", "s.*", "*.a", "public.b"]), max_size=2)
)


# ---- laws


@given(rows, histories, policies, st.integers(0, 2))
def test_never_one_against_an_equal_backup(now: Rows, before: list[Rows], policy: Policy, place: int) -> None:
    before = [*before[:place], now, *before[place:]][: max(place + 1, len(before))]
    if now in before[:PROVEN]:
        assert found(now, *before, policy=policy) == {}


@given(rows, histories, policies, shares)
def test_who_allows_more_is_told_less(now: Rows, before: list[Rows], policy: Policy, other: float) -> None:
    strict, lax = sorted((policy.max_shrink, other))
    told = found(now, *before, policy=Policy(strict, policy.min_rows, policy.ignore))
    less = found(now, *before, policy=Policy(lax, policy.min_rows, policy.ignore))
    assert all(set(items) <= set(told.get(kind, ())) for kind, items in less.items())


@given(rows, histories, policies)
def test_only_what_is_one_against_each(now: Rows, before: list[Rows], policy: Policy) -> None:
    """Told are just the kinds and tables that would be told against each of the last proven backups alone."""
    together = {kind: len(items) for kind, items in found(now, *before, policy=policy).items()}
    alone = [found(now, old, policy=policy) for old in before[:PROVEN]]
    for kind in {kind for each in alone for kind in each}:
        subjects = [{subject(item) for item in each.get(kind, ())} for each in alone]
        assert together.get(kind, 0) == len(set.intersection(*subjects))
    assert set(together) <= {kind for each in alone for kind in each}


def subject(item: str) -> str:
    """The table that it tells of; for a whole database rows, or bytes."""
    if item.startswith("table "):
        return item.removeprefix("table ").partition(" is ")[0].partition(":")[0]
    return "bytes" if " of rows in " in item else "rows"


@given(rows, histories, policies)
def test_only_the_last_proven_ones_count(now: Rows, before: list[Rows], policy: Policy) -> None:
    assert len(found(now, *before, policy=policy)) == len(found(now, *before[:PROVEN], policy=policy))


@given(rows, histories, policies)
def test_more_proven_backups_never_tell_more(now: Rows, before: list[Rows], policy: Policy) -> None:
    for count in range(1, len(before)):
        more, fewer = (found(now, *before[:most], policy=policy) for most in (count + 1, count))
        assert all(len(items) <= len(fewer.get(kind, ())) for kind, items in more.items())


@given(rows, histories, policies)
def test_what_was_meant_passes(now: Rows, before: list[Rows], policy: Policy) -> None:
    """And is told all the same; what was said of one kind counts for that kind alone."""
    old = [manifest(each) for each in before]
    plain = checks(manifest(now), old, policy)
    meant = checks(manifest(now), old, policy, accept=True)
    assert failed(meant) == {}
    assert [check.items for check in meant] == [check.items for check in plain]
    assert [check.accepted for check in meant] == [check.status == "failed" for check in plain]
    for one in failed(plain):
        again = checks(manifest(now), old, policy, accepted={f"anomaly: {one}"})
        assert failed(again) == {kind: items for kind, items in failed(plain).items() if kind != one}


@given(rows, histories)
def test_who_ignores_everything_is_told_nothing(now: Rows, before: list[Rows]) -> None:
    assert found(now, *before, policy=Policy(ignore=["*"], min_rows=1)) == {}


def test_a_large_table_that_is_ignored_is_not_the_database() -> None:
    full, drained = {"public.q": 10**6, "public.a": 100}, {"public.q": 0, "public.a": 100}
    policy = Policy(ignore=["public.q"])
    assert found(drained, full, policy=policy) == {}
    assert set(found({"public.q": 10**6, "public.a": 40}, full, policy=policy)) == {"shrunk tables", "shrunk database"}


# ---- each kind

FULL = {"public.a": 1000, "public.b": 100}


@pytest.mark.parametrize(
    "now, kinds",
    [
        (FULL, set()),
        ({"public.a": 10**6, "public.b": 100, "public.c": 0}, set()),  # growth is none
        ({"public.a": 1000}, {"vanished tables"}),
        ({"public.a": 1000, "public.b": 0}, {"emptied tables"}),
        ({"public.a": 1000, "public.b": 50}, set()),  # just half
        ({"public.a": 1000, "public.b": 49}, {"shrunk tables"}),
        ({"public.a": 499, "public.b": 100}, {"shrunk tables"}),
        ({"public.a": 440, "public.b": 100}, {"shrunk tables", "shrunk database"}),
        ({}, {"vanished tables", "shrunk database"}),
    ],
)
def test_kinds(now: Rows, kinds: set[str]) -> None:
    assert set(found(now, FULL)) == kinds


def test_small_tables_may_shrink_but_not_empty() -> None:
    assert found({"public.a": 1}, {"public.a": 9}) == {}
    assert set(found({"public.a": 1}, {"public.a": 10})) == {"shrunk tables", "shrunk database"}
    assert set(found({"public.a": 0}, {"public.a": 9})) == {"emptied tables"}
    assert found({"public.a": 0}, {"public.a": 0}) == {}
    assert set(found({}, {"public.a": 0})) == {"vanished tables"}


def test_bytes_alone() -> None:
    """The same rows, and what was in them is gone."""
    old, now = manifest(FULL, raw=10_000), manifest(FULL, raw=4_999)
    assert set(failed(checks(now, [old], Policy()))) == {"shrunk database"}
    assert failed(checks(manifest(FULL, raw=5_000), [old], Policy())) == {}


def test_nothing_to_measure_against() -> None:
    (only,) = checks(manifest({}), [], Policy())
    assert (only.name, only.status) == ("anomalies", "skipped")


def test_a_table_that_fills_and_empties() -> None:
    full, empty = {"public.q": 100, "public.a": 1000}, {"public.q": 0, "public.a": 1000}
    assert found(empty, full, empty, full) == {}
    assert found(full, empty, full, empty) == {}
    assert set(found(empty, full, full, full, empty)) == {"emptied tables"}  # it was long ago


def test_partitions_are_one_table() -> None:
    """Old ones are dropped, new ones come; the tree vanishes only as a whole."""
    roots = {f"public.m{number}": "public.measured" for number in range(9)}
    old = manifest({"public.m1": 100, "public.m2": 100}, roots=roots)
    assert failed(checks(manifest({"public.m2": 100, "public.m3": 100}, roots=roots), [old], Policy())) == {}
    told = failed(checks(manifest({"public.m2": 50, "public.m3": 40}, roots=roots), [old], Policy()))
    assert told["shrunk tables"][0].startswith("table public.measured: 200 rows in ")
    told = failed(checks(manifest({"public.a": 500}, roots=roots), [old], Policy()))
    assert [item.partition(" is gone")[0] for item in told["vanished tables"]] == ["table public.measured"]


def test_patterns_are_of_names_as_they_are_told() -> None:
    """As they are told: quoted where SQL would need it, and no case that is folded."""
    now, old = manifest({}), manifest({'s.A "b"': 100, "s.a": 100})
    for pattern, left in (("s.*", 0), ("s.A*", 2), ('s."A*', 1), ("S.*", 2), ("?.a", 1), ("a", 2)):
        told = failed(checks(now, [old], Policy(ignore=[pattern]))).get("vanished tables", ())
        assert len(told) == left, pattern


def test_the_share_is_told() -> None:
    told = found({"public.a": 1}, {"public.a": 1000})
    assert told["shrunk tables"][0].endswith("1 now (100% less)")
    assert anomalies.PROVEN == 3
