"""psql's patterns, without psql: tests/integration/test_parts_of_archives.py compares them with the real one."""

from __future__ import annotations

import pytest

from backupd.errors import ConfigError
from backupd.postgres import patterns


@pytest.mark.parametrize(
    "text, matching, other",
    [
        ("orders", ["public.orders", "s.orders"], ["public.Orders", "public.orders2", "orders.x"]),
        ("ORDERS", ["public.orders"], ["public.ORDERS"]),
        ('"Orders"', ["public.Orders"], ["public.orders"]),
        ("s.orders", ["s.orders"], ["public.orders"]),
        ("s.*", ["s.orders", "s.a"], ["public.orders", "ss.a"]),
        ("*.orders", ["s.orders"], ["s.orders2"]),
        ("order?", ["s.orders", "s.order_"], ["s.order", "s.orders2"]),
        ('"a*"', ["s.a*"], ["s.ab"]),
        ('"s.t"."a.b"', ["s.t|a.b"], ["s.t.a|b"]),
        ('"a""b"', ['s.a"b'], ["s.ab"]),
        ('s."A"b', ["s.Ab"], ["s.AB", "s.ab"]),
        ("(a|b)", ["s.a", "s.b"], ["s.(a|b)"]),
        ("a{2}", ["s.aa"], ["s.a{2}"]),
        ("a[0-9]+", ["s.a17"], ["s.a"]),
        ("a$", ["s.a$"], ["s.a"]),
        ("a[]", ["s.a[]"], ["s.a"]),
        ("Ä", ["s.Ä"], ["s.ä"]),
        ('"a\nb"', ["s.a\nb"], ["s.a b"]),
        ("a*", ["s.a\nb"], []),
    ],
)
def test_matches(text: str, matching: list[str], other: list[str]) -> None:
    pattern = patterns.parse(text)

    def matches(name: str) -> bool:
        schema, _, table = name.partition("|" if "|" in name and "(" not in name else ".")
        return pattern.matches(schema, table)

    assert [name for name in matching if not matches(name)] == []
    assert [name for name in other if matches(name)] == []


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a.b.c", '"a', 'a"b', "a(", "*a**(", "[a", "+"])
def test_no_pattern(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a pattern for names") as raised:
        patterns.parse(text)
    assert raised.value.hint


KNOWN = [("public", "orders"), ("public", "order_items"), ("shop", "Customers"), ("shop", "x")]


@pytest.mark.parametrize(
    "text, near",
    [
        ("ordrs", ["public.orders"]),
        ("public.order", ["public.orders"]),
        ('"orders "', ["public.orders"]),
        ("customers", ["shop.Customers"]),
        ("shop.costumers", ["shop.Customers"]),
    ],
)
def test_near_names_are_told(text: str, near: list[str]) -> None:
    error = patterns.nothing("table", text, KNOWN)
    assert error.message == f"no table in the backup matches {text}"
    assert [name for name in near if name not in error.detail] == []
    assert "shop.x" not in error.detail


def test_names_that_are_like_none() -> None:
    assert patterns.nothing("table", "zzz", KNOWN).detail.startswith("There are 4: public.order_items, public.orders")
    assert patterns.nothing("table", "zzz", []).detail == "There is none at all."
