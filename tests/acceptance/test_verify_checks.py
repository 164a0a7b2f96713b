"""The operator's own checks of a restored copy: one query that returns one true, read-only, seeing names as the
source's users do; anything else fails the proof and says why."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psycopg
import pytest

from backupd.postgres.server import ThrowawayServer
from tests.postgres import drop_database
from tests.proving import Proofs, check, failures

NAME = f"asked_{os.getpid()}"


@pytest.fixture(scope="module")
def shop(pg15: ThrowawayServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proofs]:
    with psycopg.connect(pg15.dsn(), autocommit=True) as connection:
        connection.execute(f"create database {NAME} template template0")
    try:
        made = Proofs.make(tmp_path_factory.mktemp("asked"), pg15.dsn(NAME), scratch=pg15)
        made.sql(
            "create schema sales",
            "create table sales.orders (id int primary key, placed_at timestamptz)",
            "insert into sales.orders values (1, '2026-03-01 00:30+00'), (2, null)",
            "create table hidden (i int)",
            "create function sales.put() returns bool language sql"
            " as 'insert into sales.orders values (9); select true'",
            f"alter database {NAME} set search_path = sales",
            f"alter database {NAME} set timezone = 'Asia/Tokyo'",
            f"alter database {NAME} set datestyle = 'German, DMY'",
        )
        made.backup()
        yield made
        assert made.scratch_databases(pg15) == []
    finally:
        drop_database(pg15, NAME)


HOLD = {
    "true": "select true",
    "names as the source's users see them": "select count(*) = 2 from orders",
    "qualified names": "select count(*) = 0 from public.hidden",
    "times in the database's zone": "select placed_at::date = '2026-03-01' from orders where id = 1",
    "texts in the database's style": "select placed_at::text = '01.03.2026 09:30:00 JST' from orders where id = 1",
    "a semicolon and a comment": "select true; -- that's it",
    "a percent sign": "select 'a%sb%' like 'a%'",
    "other letters": "select length('Grüße ☃') = 7",
    "with": "with o as (select * from orders) select exists (select from o)",
    "values": "values (true)",
    "show is text, no boolean, but this is one": "select current_setting('transaction_read_only')::bool",
}
# name: (SQL, what the proof says; of an error its SQLSTATE alone, whose text is for who asked)
FAIL: dict[str, tuple[str, str | tuple[str, str]]] = {
    "false": ("select false", "it returned false"),
    "null": ("select null::bool", "it returned null"),
    "max of nothing": ("select max(placed_at) > now() from orders where id = 77", "it returned null"),
    "one": ("select 1", "something else than true"),
    "t": ("select 't'::text", "something else than true"),
    "no rows": ("select true where false", "it returned no row"),
    "several rows": ("select true from orders", "it returned several rows"),
    "two columns": ("select true, true", "it returned 2 columns"),
    "no column": ("select", "it returned 0 columns"),
    "an error": ("select 1/0 = 1", ("22012", "division by zero")),
    "a table that is not there": ("select count(*) > 0 from invoices", ("42P01", '"invoices" does not exist')),
    "not on the path": ("select count(*) = 0 from hidden", ("42P01", '"hidden" does not exist')),
    "a syntax error": ("is all well?", ("42601", "syntax error")),
    "no query": ("-- later", "it returned no rows"),
    "no query that returns rows": ("set work_mem = '1MB'", "it returned no rows"),
    "several queries": ("select true; select false", ("42601", "multiple commands")),
    "the end of its transaction": ("commit; select true", ("42601", "multiple commands")),
    "insert": ("insert into orders values (5) returning true", ("25006", "read-only transaction")),
    "a function that writes": ("select put()", ("25006", "read-only transaction")),
    "leave to write": ("rollback; create table sales.made (); select true", ("42601", "multiple commands")),
    "truncate": ("truncate orders", ("25006", "read-only transaction")),
    "too long": ("select pg_sleep(60) is not null", ("57014", "statement timeout")),
}


def test_every_answer(shop: Proofs) -> None:
    """All in one proof: none keeps another from being asked."""
    shop.configure("check_timeout", '"1s"')
    queries = HOLD | {name: query for name, (query, _) in FAIL.items()}
    shop.ask(
        **queries, **{"what others wrote": "select count(*) = 2 and to_regclass('sales.made') is null from orders"}
    )
    text = shop.site.run("verify", "shop", code=4).out
    proof = shop.shown()[-1]
    statuses = {each["name"]: each["status"] for each in proof["checks"] if each["name"].startswith("check: ")}
    expected = {f"check: {name}": "passed" for name in (*HOLD, "what others wrote")}
    expected |= {f"check: {name}": "failed" for name in FAIL}
    assert statuses == expected
    for name, (_, said) in FAIL.items():
        stored, told = (said, said) if isinstance(said, str) else said
        assert stored in check(proof, f"check: {name}")["detail"], name
        assert told in text
    assert set(failures(proof)) == {name for name, status in expected.items() if status == "failed"}
    assert shop.listed() == "failed"


def test_what_is_stored_shows_no_value(shop: Proofs) -> None:
    """Proofs are signed, not encrypted: what a copy holds is for who asked, not for who reads the repository."""
    shop.ask(value="select id from orders where id = 1", text="select 'secret-' || id from orders where id = 1")
    outcome = shop.site.run("verify", "shop", code=4)
    assert "it returned secret-1" in outcome.out
    assert b"secret-1" not in shop.stored()[-1].read_bytes().replace(b"secret-' ||", b"")


def test_people_are_told(shop: Proofs) -> None:
    shop.ask(**{"orders of today": "select false", "orders at all": "select true"})
    text = shop.site.run("verify", "shop", code=4).out
    assert "failed   check: orders of today: it returned false" in text
    assert "check: orders at all (true)" in text
    shop.ask(**{"orders at all": "select true"})
    shop.verify("passed")
    assert shop.listed() == "passed"


@pytest.mark.parametrize(
    "checks, said",
    [
        ({"": "select true"}, "name"),
        ({"empty": ""}, "sql"),
    ],
)
def test_what_can_be_no_check(shop: Proofs, checks: dict[str, str], said: str) -> None:
    shop.ask(**checks)
    try:
        assert said in shop.site.run("verify", "shop", "--json", code=2).json["error"]["message"]
    finally:
        shop.ask()
