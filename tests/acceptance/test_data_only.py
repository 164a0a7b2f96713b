"""`restore --data-only`: rows into empty tables that exist, all of them or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from backupd.postgres.server import ThrowawayServer
from tests.acceptance.torture import torture
from tests.postgres import TESTED_MAJORS, NewDatabase, client_for, dump_sql, run
from tests.site import Site, local_site

SHOP = """
create schema s;
create type s.mood as enum ('so so', 'good');
create table s.customers (id int generated always as identity primary key, name text not null, mood s.mood);
create table s.orders (id serial primary key, customer int not null references s.customers, note text,
    twice int generated always as (customer * 2) stored);
create table s.parts (at date, "odd ""col"" (x)" int) partition by range (at);
create table s.parts_1 partition of s.parts for values from ('2025-01-01') to ('2026-01-01');
create table s.parts_2 partition of s.parts for values from ('2026-01-01') to ('2027-01-01');
create table s.hashed (m s.mood, i int) partition by hash (m);
create table s.hashed_0 partition of s.hashed for values with (modulus 2, remainder 0);
create table s.hashed_1 partition of s.hashed for values with (modulus 2, remainder 1);
create table s.nothing ();
create table s.down (i int);
create sequence s.downwards increment -1 owned by s.down.i;
create function s.refuse() returns trigger language plpgsql as $$ begin raise exception 'triggered'; end $$;
create trigger t before insert on s.orders for each row execute function s.refuse();
"""
ROWS = r"""
alter table s.orders disable trigger t;
insert into s.customers (name, mood) select 'customer ' || i, 'good' from generate_series(1, 50) i;
insert into s.orders (customer, note) select 1 + i % 50, E'a\tb\\N\n\\.' || i from generate_series(1, 5000) i;
insert into s.parts select date '2025-07-01' + i, i from generate_series(1, 300) i;
insert into s.hashed select (enum_range(null::s.mood))[1 + i % 2], i from generate_series(1, 100) i;
insert into s.nothing default values;
insert into s.down values (1);
select setval('s.downwards', -70);
alter table s.orders enable trigger t;
"""


class Shop:
    def __init__(self, server: ThrowawayServer, site: Site, source: str, target: str) -> None:
        self.server, self.site, self.source, self.target = server, site, source, target

    def load(self, *options: str, code: int = 0, target: str = "") -> Any:
        arguments = ("--at", "latest", "--data-only", "--target", target or self.target, *options, "--json")
        return self.site.run("restore", "shop", *arguments, code=code).json

    def ask(self, query: str) -> Any:
        with psycopg.connect(self.target) as connection:
            row = connection.execute(query.encode()).fetchone()
            assert row is not None
            return row[0]

    def do(self, statement: str) -> None:
        with psycopg.connect(self.target) as connection:
            connection.execute(statement.encode())

    def rows(self) -> int:
        return int(self.ask("select (select count(*) from s.orders) + (select count(*) from s.customers)"))


@pytest.fixture
def shop(pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path) -> Shop:
    """The backup of a full database, and beside it one with the same tables, empty."""
    source, target = new_database(pg15), new_database(pg15)
    for dsn, statements in ((source, SHOP + ROWS), (target, SHOP)):
        with psycopg.connect(dsn) as connection:
            connection.execute(statements.encode())
    site = local_site(tmp_path / "site", {"shop": source})
    site.set("large_table_size", '"100kB"', table="databases.shop")  # orders has a stream of its own
    site.run("backup")
    return Shop(pg15, site, source, target)


def test_everything(shop: Shop) -> None:
    """As pg_dump has it, and no trigger saw it."""
    loaded = shop.load()
    assert loaded["data_only"] is True
    assert (loaded["tables"], loaded["rows"]) == (8, 5452)
    assert loaded["sequences"] == ["s.customers_id_seq", "s.downwards", "s.orders_id_seq"]
    client = client_for(shop.server)
    assert dump_sql(client, shop.target, "--load-via-partition-root") == dump_sql(
        client, shop.source, "--load-via-partition-root"
    )
    assert shop.ask("select nextval('s.orders_id_seq')") == 5001
    assert shop.ask("select nextval('s.downwards')") == -71


def test_the_plan_changes_nothing(shop: Shop) -> None:
    plan = shop.load("--table", "s.orders", "--dry-run")
    assert (plan["tables"], plan["rows"], plan["checks_foreign_keys"], plan["dry_run"]) == (1, 5000, True, True)
    assert [stream["tables"] for stream in plan["streams"]] == [[], ["s.orders"]]
    shown = shop.site.run(
        "restore", "shop", "--at", "latest", "--data-only", "--target", shop.target, "--table", "orders", "--dry-run"
    ).out
    assert "5000 in s.orders" in shown
    assert shop.rows() == 0


def test_into_names_a_database_beside_the_source(shop: Shop) -> None:
    name = psycopg.conninfo.conninfo_to_dict(shop.target)["dbname"]
    shop.site.run(
        "restore", "shop", "--at", "latest", "--data-only", "--into", str(name), "--table", "customers", "--yes"
    )
    assert shop.rows() == 50


def test_orphans_are_found_and_nothing_stays(shop: Shop) -> None:
    error = shop.load("--table", "orders", code=4)["error"]
    assert "orders_customer_fkey of s.orders: 5000 rows refer to none in s.customers" in error["detail"]
    assert "--with-references" in error["hint"]
    assert shop.rows() == 0
    assert shop.ask("select is_called from s.orders_id_seq") is False
    assert shop.load("--table", "orders", "--with-references")["rows"] == 5050


def test_parents_that_are_there_are_enough(shop: Shop) -> None:
    shop.do("insert into s.customers (name) select 'other ' || i from generate_series(1, 50) i")
    assert shop.load("--table", "orders")["rows"] == 5000


def test_sequences_are_never_set_back(shop: Shop) -> None:
    shop.do(
        "select setval('s.orders_id_seq', 9000), setval('s.downwards', -100), setval('s.customers_id_seq', 50, false)"
    )
    shop.load()
    assert shop.ask("select nextval('s.orders_id_seq')") == 9001
    assert shop.ask("select nextval('s.downwards')") == -101
    assert shop.ask("select nextval('s.customers_id_seq')") == 51


def test_all_obstacles_at_once(shop: Shop) -> None:
    shop.do(
        "insert into s.customers (name) values ('x'); drop table s.down; alter table s.parts_1 rename to old;"
        " create view s.parts_1 as select 1; alter table s.nothing add x int; drop trigger t on s.orders;"
        " alter table s.orders rename note to remark;"
        " create trigger a after insert on s.hashed_0 execute function s.refuse();"
        " alter table s.hashed_0 enable always trigger a"
    )
    error = shop.load(code=8)["error"]
    for sign in (
        "the table s.customers is not empty",
        "there is no table s.down to load rows into",
        "s.parts_1 is no table",
        "the table s.orders lacks the column note",
        "triggers of s.hashed_0 would run for each row that is loaded: a",
    ):
        assert sign in error["detail"]
    assert "s.nothing" not in error["detail"]
    assert shop.rows() == 1


@pytest.fixture
def plain_user(shop: Shop) -> Iterator[str]:
    """A user who is no superuser, and may do nothing yet."""
    name = f"plain_{os.getpid()}"
    shop.do(f"create role {name} login password 'x'; grant usage on schema s to {name}")
    yield name
    shop.do(f"drop owned by {name}; drop role {name}")


def test_without_a_superuser(shop: Shop, plain_user: str) -> None:
    target = psycopg.conninfo.make_conninfo(shop.target, user=plain_user, password="x")
    error = shop.load("--table", "customers", "--table", "orders", target=target, code=6)["error"]
    assert "the user may not fill the table s.customers" in error["detail"]
    assert "the table s.orders has triggers or foreign keys" in error["detail"]
    assert "the user may not advance the sequence s.customers_id_seq, s.orders_id_seq" in error["detail"]
    assert "GRANT SET ON PARAMETER session_replication_role" in error["hint"]
    shop.do(f"grant select, insert, update on s.customers to {plain_user}")
    shop.do(f"grant all on all sequences in schema s to {plain_user}")
    assert shop.load("--table", "customers", target=target)["checks_foreign_keys"] is False
    assert shop.rows() == 50
    assert shop.ask("select nextval('s.customers_id_seq')") == 51


def test_a_failure_half_way_leaves_nothing(shop: Shop) -> None:
    """The last table does not take what comes."""
    shop.do("alter table s.orders add check (id < 4000)")
    arguments = ("restore", "shop", "--at", "latest", "--data-only", "--target", shop.target, "--yes")
    failed = shop.site.run(*arguments, code=6)
    assert "the rows of s.orders could not be loaded" in failed.err
    assert "Nothing was changed: all of it was one transaction" in failed.err
    assert shop.rows() == 0
    shop.do("alter table s.orders drop constraint orders_id_check")
    (stream,) = (s for s in shop.load("--dry-run")["streams"] if s["tables"] == ["s.orders"])
    path = shop.site.folder / "repository" / stream["key"]
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    shop.site.run(*arguments, code=7)
    assert shop.rows() == 0


@pytest.mark.parametrize(
    "options, said",
    [
        (["--replace"], "--replace"),
        (["--resume"], "--resume"),
        (["--no-owner"], "--no-owner"),
        ([], "which one?"),
        (["--target", "host=127.0.0.1"], "which one?"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: list[str], said: str) -> None:
    site = local_site(tmp_path, {"shop": "host=127.0.0.1 dbname=x"})
    error = site.run("restore", "shop", "--at", "latest", "--data-only", *options, "--json", code=2).json["error"]
    assert said in error["message"]


def test_a_database_that_is_not_there(shop: Shop) -> None:
    error = shop.load("--into", "no_such_database", code=6)["error"]
    assert "there is no database no_such_database" in error["message"]


@pytest.mark.large
@pytest.mark.parametrize("major", TESTED_MAJORS)
def test_the_torture_database(
    request: pytest.FixtureRequest, new_database: NewDatabase, tmp_path: Path, major: int
) -> None:
    """Values of every type, names of every kind, rows without columns, large objects between them."""
    server: ThrowawayServer = request.getfixturevalue(f"pg{major}")
    source, target, client = new_database(server), new_database(server), client_for(server)
    torture(server, source)
    site = local_site(tmp_path, {"torture": source})
    site.set("large_table_size", '"256KiB"', table="databases.torture")
    site.run("backup")
    definitions = run(client, "pg_dump", "--format=custom", "--schema-only", f"--dbname={source}")
    run(client, "pg_restore", f"--dbname={target}", feed=definitions)
    with psycopg.connect(target) as connection:  # rows that break a check, and triggers that would run all the same
        connection.execute("alter table torture.constrained drop constraint broken")
        connection.execute("alter table torture.triggered disable trigger always, disable trigger replica")
    site.run("restore", "torture", "--at", "latest", "--data-only", "--target", target, "--schema", "torture", "--json")
    lone = ("seq_*", "serials_b_seq", '"Seq"*')  # sequences that no table owns are left alone
    options = ("--data-only", "--load-via-partition-root", "--schema=torture", *(f"-Ttorture.{name}" for name in lone))
    assert dump_sql(client, target, *options) == dump_sql(client, source, *options)
