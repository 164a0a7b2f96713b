"""What tells two inventories apart, without servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd import reference
from backupd.differences import CHECKS, FACTS, KINDS, Check, differences
from backupd.postgres.objects import Inventory

CHECK_OF_KIND = {kind: check for check, kinds in KINDS.items() for kind in kinds}
names = st.text(min_size=1, max_size=6)
values = st.one_of(
    names,
    st.just(True),
    st.integers(),
    st.lists(names, min_size=1, max_size=3),
    st.dictionaries(names, names, min_size=1, max_size=3),
)
# Of facts with rules of their own there are examples below.
plain = st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(
    lambda fact: fact not in {"position", "hidden", "invalid", "not_null", "table", "owned_by", "of_type", *FACTS}
)
grants = st.lists(
    st.tuples(names, names, st.sampled_from(["SELECT", "INSERT SELECT*"])).map(list),
    unique_by=lambda grant: (grant[0], grant[1]),
    min_size=1,
    max_size=3,
)
facts = st.fixed_dictionaries({}, optional={"owner": names, "comment": names, "grants": grants}).flatmap(
    lambda known: st.dictionaries(plain, values, max_size=2).map(lambda others: {**others, **known})
)
kinds = st.sampled_from(sorted(set(CHECK_OF_KIND) - {"large objects", "column", "attribute"}))


@st.composite
def inventories(draw: st.DrawFn) -> Inventory:
    """Of any objects, and all kinds."""
    of_kinds = draw(st.dictionaries(kinds, st.dictionaries(names, facts, min_size=1, max_size=2), max_size=3))
    return inventory(of_kinds)


def inventory(objects: Mapping[str, Mapping[str, Mapping[str, Any]]], **unread: str) -> Inventory:
    every = {kind: objects.get(kind, {}) for kind in [*CHECK_OF_KIND, "built-in"]}
    return Inventory({**every, **objects}, unread)


def changed(source: Inventory, kind: str, identity: str, **facts: Any) -> Inventory:
    """With these facts; None takes one away, and no facts at all the object."""
    of_kind = dict(source.objects[kind])
    found = {**of_kind.pop(identity, {}), **facts}
    if facts:
        of_kind[identity] = {fact: value for fact, value in found.items() if value is not None}
    return Inventory({**source.objects, kind: of_kind}, source.unread)


def failed(source: Inventory, copy: Inventory, majors: tuple[int, int] = (17, 17)) -> dict[str, tuple[str, ...]]:
    checks = differences(source, copy, source_major=majors[0], copy_major=majors[1])
    assert tuple(check.name for check in checks) == CHECKS
    assert all((check.status == "failed") == bool(check.items) for check in checks)
    return {check.name: check.items for check in checks if check.status != "passed"}


def one(source: Inventory, copy: Inventory, name: str, majors: tuple[int, int] = (17, 17)) -> Check:
    checks = differences(source, copy, source_major=majors[0], copy_major=majors[1])
    return next(check for check in checks if check.name == name)


def kept(found: Inventory) -> Inventory:
    """As it comes back from a backup."""
    made = reference.Reference(found, None, "postgres", "", None)
    return reference.decode(made.encode(), "here").inventory


# ---- laws


@given(inventories())
def test_what_is_equal_does_not_differ(found: Inventory) -> None:
    assert failed(found, found) == {}
    assert failed(found, kept(found)) == {}


@given(inventories(), kinds, names, facts, plain, st.data())
def test_a_changed_fact_is_found_once(
    found: Inventory, kind: str, identity: str, held: dict[str, Any], fact: str, data: st.DataObject
) -> None:
    fact = data.draw(st.sampled_from([fact, "owner", "comment", "grants", *held]))
    source = changed(found, kind, identity, **{"owner": "somebody", **held})
    was = source.objects[kind][identity].get(fact)
    new = data.draw((grants if fact == "grants" else names if fact in FACTS else values).filter(lambda v: v != was))
    if (kind, fact) == ("extension", "default_version") or (fact == "definition" and was is None):
        return
    check = FACTS.get(fact, CHECK_OF_KIND[kind])
    ((failing, items),) = failed(source, changed(source, kind, identity, **{fact: new})).items()
    assert failing == check
    (item,) = items
    assert item.startswith(kind)
    assert item.isprintable()
    assert len(item) < 2000


@given(inventories(), kinds, names, facts)
def test_what_is_missing_or_new_is_found_once(found: Inventory, kind: str, identity: str, held: dict[str, Any]) -> None:
    less, more = changed(found, kind, identity), changed(found, kind, identity, **{"owner": "somebody", **held})
    ((check, (missing,)),) = failed(more, less).items()
    ((same_check, (new,)),) = failed(less, more).items()
    assert (check, same_check) == (CHECK_OF_KIND[kind], CHECK_OF_KIND[kind])
    assert missing.endswith(": missing")
    assert new == missing.removesuffix("missing") + "is not in the source"


# ---- objects that belong to others

TABLE = inventory(
    {
        "table": {"s.t": {"owner": "o"}, "s.u": {"owner": "o"}},
        "column": {
            "s.t.a": {"table": "s.t", "position": 1, "not_null": True},
            "s.t.b": {"table": "s.t", "position": 2},
            "s.t.c": {"table": "s.t", "position": 3},
        },
        "sequence": {"s.t_a_seq": {"owned_by": "s.t.a", "owner": "o"}},
        "constraint": {
            "t_pkey on s.t": {"table": "s.t", "type": "p"},
            "t_a_not_null on s.t": {"table": "s.t", "type": "n", "column": "s.t.a"},
        },
        "index": {"s.t_pkey": {"table": "s.t", "constraint": "t_pkey on s.t"}, "s.i": {"table": "s.t"}},
        "trigger": {"g on s.t": {"table": "s.t"}},
        "rule": {"r on s.t": {"table": "s.t"}},
        "policy": {"p on s.t": {"table": "s.t"}},
        "statistics": {"s.x": {"table": "s.t"}},
        "attribute": {"s.pair.x": {"of_type": "s.pair", "position": 1}},
        "type": {"s.pair": {}},
    }
)


def without(source: Inventory, *gone: tuple[str, str]) -> Inventory:
    for kind, identity in gone:
        source = changed(source, kind, identity)
    return source


def test_what_goes_with_a_table_is_not_named_again() -> None:
    parts = [(kind, name) for kind, found in TABLE.objects.items() for name, f in found.items() if "table" in f]
    copy = without(TABLE, ("table", "s.t"), ("sequence", "s.t_a_seq"), *parts)
    assert failed(TABLE, copy) == {"tables": ("table s.t: missing",)}
    assert failed(copy, TABLE) == {"tables": ("table s.t: is not in the source",)}
    assert one(TABLE, copy, "columns").detail == "3 compared"


@pytest.mark.parametrize(
    "gone, item",
    [
        ([("constraint", "t_pkey on s.t"), ("index", "s.t_pkey")], "constraint t_pkey on s.t: missing"),
        ([("index", "s.t_pkey")], "index s.t_pkey: missing"),
        ([("column", "s.t.a"), ("sequence", "s.t_a_seq")], "column s.t.a: missing"),
        ([("type", "s.pair"), ("attribute", "s.pair.x")], "type s.pair: missing"),
        ([("constraint", "t_a_not_null on s.t")], "constraint t_a_not_null on s.t: missing"),
    ],
)
def test_what_goes_with_something_else(gone: list[tuple[str, str]], item: str) -> None:
    assert list(failed(TABLE, without(TABLE, *gone)).values()) == [(item,)]


def test_not_null_is_told_of_the_column_alone() -> None:
    copy = without(changed(TABLE, "column", "s.t.a", not_null=None), ("constraint", "t_a_not_null on s.t"))
    assert failed(TABLE, copy) == {"columns": ("column s.t.a: not null is no, and was yes",)}


def test_the_order_of_columns() -> None:
    swapped = changed(changed(TABLE, "column", "s.t.b", position=3), "column", "s.t.c", position=2)
    assert failed(TABLE, swapped) == {
        "columns": ("column s.t.b: position is 3, and was 2", "column s.t.c: position is 2, and was 3")
    }
    moved_up = changed(changed(without(TABLE, ("column", "s.t.b")), "column", "s.t.c", position=2), "table", "s.u", x=1)
    assert failed(TABLE, moved_up)["columns"] == ("column s.t.b: missing",)


# ---- what differs and is no loss


def test_grants_go_to_the_new_owner() -> None:
    source = inventory({"table": {"t": {"owner": "a", "grants": [["a", "a", "SELECT"], ["a", "r", "SELECT*"]]}}})
    same = {"owner": "b", "grants": [["b", "b", "SELECT"], ["b", "r", "SELECT*"]]}
    assert failed(source, inventory({"table": {"t": same}})) == {"owners": ("table t: owner is 'b', and was 'a'",)}
    less = inventory({"table": {"t": {"owner": "b", "grants": [["b", "b", "SELECT"]]}}})
    assert failed(source, less).keys() == {"owners", "grants"}


def test_extensions() -> None:
    source = inventory({"extension": {"cube": {"version": "1.4", "schema": "s"}}})
    newer = changed(source, "extension", "cube", version="1.5", default_version="1.5")
    (check,) = [c for c in differences(source, newer, source_major=17, copy_major=17) if c.name == "extensions"]
    assert check == Check("extensions", "passed", "1 compared; cube is 1.5, this server's default, and was 1.4")
    other = changed(source, "extension", "cube", version="1.3", default_version="1.5")
    assert failed(source, other) == {"extensions": ("extension cube: version is '1.3', and was '1.4'",)}
    builtin = changed(source, "extension", "plpgsql", version="1.0")
    assert failed(source, builtin) == {}
    assert failed(builtin, source) == {"extensions": ("extension plpgsql: missing",)}


def test_an_invalid_index_is_in_no_dump() -> None:
    source = inventory({"index": {"i": {"table": "t", "invalid": True}}})
    assert failed(source, inventory({})) == {}
    partitioned = changed(source, "index", "i", partitioned=True)
    assert failed(partitioned, inventory({})) == {"indexes": ("index i: missing",)}
    valid = changed(source, "index", "i", invalid=None)
    assert failed(valid, source) == {"indexes": ("index i: invalid is yes, and was no",)}


def test_what_could_not_be_read() -> None:
    copy = inventory({"user mapping": {"m": {"options": ["user"]}}})
    source = inventory({"user mapping": {"m": {"hidden": True}}}, subscription="not for this user")
    assert failed(source, copy) == {"subscriptions": ()}
    assert one(source, copy, "subscriptions") == Check("subscriptions", "skipped", "not for this user")
    assert one(Inventory({}, {}), copy, "tables").status == "skipped"
    gone = inventory({"view": {"v": {"owner": "o"}}})  # dropped while it was read
    assert failed(gone, changed(gone, "view", "v", definition="SELECT 1")) == {}


def test_large_objects() -> None:
    held = {"count": 2, "identifiers": "11", "owner": "22", "grants": "33", "comment": "44"}
    source = inventory({"large objects": {"all of them": held}})
    for found, expected in (
        ({"count": 1, "identifiers": "1", "owner": "2", "grants": "3", "comment": "4"}, "count is 1, and was 2"),
        ({"identifiers": "12", "owner": "23", "grants": "34", "comment": "45"}, "their identifiers differ"),
    ):
        copy = changed(source, "large objects", "all of them", **found)
        assert failed(source, copy) == {"large objects": (f"large objects: {expected}",)}
    copy = changed(source, "large objects", "all of them", owner="23")
    assert failed(source, copy) == {"owners": ("large objects: a owner differs",)}


# ---- majors

ALL = "DELETE INSERT REFERENCES SELECT TRIGGER TRUNCATE UPDATE"
MORE = "DELETE INSERT MAINTAIN REFERENCES SELECT TRIGGER TRUNCATE UPDATE"


@pytest.mark.parametrize(
    "old, new, same",
    [
        ([["o", "o", ALL]], [["o", "o", MORE]], True),
        ([["o", "r", ALL]], [["o", "r", MORE]], True),
        ([["o", "r", ALL]], [["o", "r", ALL]], True),
        ([["o", "r", "SELECT"]], [["o", "r", "MAINTAIN SELECT"]], False),
        ([["o", "o", "SELECT"]], [["o", "o", "MAINTAIN SELECT"]], True),  # a newer pg_dump takes away what it knows of
        (None, [["o", "o", "MAINTAIN"]], True),
        (None, [["o", "r", "MAINTAIN"]], False),
        ([["o", "o", ALL], ["o", "r", "SELECT"]], [["o", "o", MORE]], False),
        ([["o", "o", ALL]], [["o", "o", MORE], ["o", "r", "SELECT"]], False),
        ([["o", "r", "SELECT"]], [["o", "r", "SELECT*"]], False),
        ([["o", "o", "DELETE SELECT"]], [["o", "o", "MAINTAIN SELECT"]], False),
    ],
)
def test_maintain(old: Any, new: Any, same: bool) -> None:
    source, copy = (
        inventory({"table": {"t": {"owner": "o", "grants": g} if g else {"owner": "o"}}}) for g in (old, new)
    )
    assert (failed(source, copy, (16, 17)) == {}) == same
    assert (failed(source, copy, (15, 18)) == {}) == same
    assert (failed(source, copy, (17, 18)) == {}) == (old == new)
    assert (failed(source, copy, (15, 16)) == {}) == (old == new)


VIEW = " SELECT t.a,\n    t.b AS \"T.x\"\n   FROM s.t\n  WHERE (t.a > s.f(t.b)) AND t.c <> 't.a'::s.kind;"
SHORT = VIEW.replace("t.a,", "a,").replace("(t.a", "(a").replace("t.b", "b").replace("t.c", "c")


@pytest.mark.parametrize(
    "new, same",
    [
        (SHORT, True),
        (VIEW, True),
        (SHORT.replace("a,", "b,"), False),
        (SHORT.replace("'t.a'", "'a'"), False),
        (SHORT.replace("s.t", "t"), False),
        (SHORT.replace("s.f", "f"), False),
        (SHORT.replace("s.kind", "kind"), False),
        (SHORT.replace('"T.x"', "x"), False),
        (VIEW.replace("s.t", "t"), False),
        (VIEW.replace("s.f", "f"), False),
        (VIEW.replace("s.kind", "kind"), False),
        (VIEW.replace("'t.a'", "'a'"), False),
        (SHORT.replace(" > ", " < "), False),
        (SHORT.replace("(a", "(u.a"), False),
        (SHORT + " ", False),
    ],
)
def test_views_of_one_relation(new: str, same: bool) -> None:
    source, copy = (inventory({"view": {"v": {"definition": text}}}) for text in (VIEW, new))
    assert (failed(source, copy, (15, 17)) == {}) == same
    assert (failed(source, copy, (16, 17)) == {}) == (new == VIEW)
    assert (failed(copy, source, (17, 15)) == {}) == same


def test_not_null_became_a_constraint() -> None:
    source = without(TABLE, ("constraint", "t_a_not_null on s.t"))
    assert failed(source, TABLE, (17, 18)) == {}
    assert failed(source, TABLE, (18, 18)) == {"constraints": ("constraint t_a_not_null on s.t: is not in the source",)}
    of_domain = changed(source, "constraint", "n on domain d", domain="d", type="n")
    assert failed(source, of_domain, (16, 17)) == {}
    assert failed(source, of_domain, (17, 18)) == {"constraints": ("constraint n on domain d: is not in the source",)}


def test_subscriptions_of_older_servers() -> None:
    source = inventory({"subscription": {"s": {"streaming": "f"}}})
    copy = changed(source, "subscription", "s", streaming="p", origin="any", run_as_owner=True)
    assert failed(source, copy, (15, 18)) == {}
    assert failed(source, copy, (15, 17)) == {"subscriptions": ("subscription s: streaming is 'p', and was 'f'",)}
    assert failed(source, changed(copy, "subscription", "s", origin="none"), (15, 18)).keys() == {"subscriptions"}


@pytest.mark.parametrize(
    "kind, fact, old, new, major",
    [
        ("type", "multirange", None, "s.multi", 14),
        ("type", "subscript", None, "raw_array_subscript_handler(internal)", 14),
        ("collation", "locale", "de@collation=phonebook", "de-u-co-phonebk", 16),
    ],
)
def test_older_majors(kind: str, fact: str, old: Any, new: Any, major: int) -> None:
    source = inventory({kind: {"x": {"owner": "o"} | ({fact: old} if old else {})}})
    copy = changed(source, kind, "x", **{fact: new})
    assert failed(source, copy, (major - 1, 18)) == {}
    assert failed(source, copy, (major, 18)).keys() == {CHECK_OF_KIND[kind]}
    assert failed(copy, source, (major - 1, 18)).keys() == {CHECK_OF_KIND[kind]}


# ---- texts and records


def test_long_texts_show_where_they_part() -> None:
    source = inventory({"function": {"f()": {"body": "x" * 5000 + "was" + "y" * 500}}})
    copy = changed(source, "function", "f()", body="x" * 5000 + "is" + "y" * 500)
    ((item,),) = failed(source, copy).values()
    assert item.startswith("function f(): body has 'xxx")
    assert "at character 5001" in item
    assert "xisy" in item
    assert "xwasy" in item
    assert len(item) < 350


def test_secrets_are_not_shown() -> None:
    source = inventory({"server": {"s": {"options": {"host": "1" * 64, "port": "2" * 64}}}})
    copy = changed(source, "server", "s", options={"host": "3" * 64, "user": "4" * 64})
    assert failed(source, copy) == {
        "foreign data": ("server s: options host has another value, lacks options port, has also options user",)
    }
