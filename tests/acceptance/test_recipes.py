"""docs/recipes.md, followed to the letter, on a database that went on living after the backup."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from backupd.postgres.server import ThrowawayServer
from tests.postgres import NewDatabase, client_for, drop_database, dump_sql
from tests.site import Site, local_site

PAGE = Path(__file__).parents[2] / "docs/recipes.md"
SECTION = re.compile(r"^## (.*)\n((?:(?!## ).*\n)*)", re.MULTILINE)
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COPY = f"before_{os.getpid()}"
SHOP = """
create table customers (id int primary key, name text);
insert into customers select i, 'customer ' || i from generate_series(1, 20) i;
create table orders (id int generated always as identity primary key, customer int not null references customers,
    note text, twice int generated always as (customer * 2) stored);
create index on orders (customer);
create table log (id int);
create function logs() returns trigger language plpgsql as
    $$ begin insert into public.log values (new.id); return new; end $$;
create trigger logs after insert on orders for each row execute function logs();
insert into orders (customer, note) select 1 + i % 20, E'order\\t' || i from generate_series(1, 300) i;
"""
# What went on after the backup: new rows, changed ones, and rows rightly gone.
LATER = """
insert into orders (customer, note) select 1, 'later ' || i from generate_series(1, 10) i;
update orders set note = 'changed' where id <= 5;
"""


class Living:
    """A database that was backed up and went on, and the page's commands on it."""

    def __init__(self, server: ThrowawayServer, site: Site, dsn: str) -> None:
        self.server, self.site, self.dsn = server, site, dsn
        self.name = str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])

    def do(self, statements: str) -> None:
        with psycopg.connect(self.dsn) as connection:
            connection.execute(statements.encode())

    def ask(self, query: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.dsn) as connection:
            return connection.execute(query.encode()).fetchall()

    def dump(self) -> list[str]:
        return dump_sql(client_for(self.server), self.dsn)

    def follow(
        self, section: str, folder: Path, code: int = 0, table: str = "public.orders", more: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a section's blocks after the first of the page, its values replaced."""
        text = PAGE.read_text()
        first = BLOCK.search(text)
        assert first is not None
        values = {
            "DATABASE": "shop",
            "AT": "0s",
            "TARGET": f"postgresql://postgres@127.0.0.1:{self.server.port}",
            "ORIGINAL": self.name,
            "COPY": COPY,
            "TABLE": table,
            "COLUMNS": "id, customer, note",
        }
        assert re.findall(r"(?m)^export ([A-Z]+)=", first[1]) == list(values)
        blocks = BLOCK.findall(dict(SECTION.findall(text))[section])
        assert blocks
        programs = folder / "bin"
        programs.mkdir(exist_ok=True)
        for name in ("psql", "pg_dump"):
            (programs / name).symlink_to(client_for(self.server).program(name))
        backupd = programs / "backupd"
        backupd.write_text(f'#!/bin/sh\nexec {sys.executable} -m backupd --config {self.site.config} "$@"\n')
        backupd.chmod(0o755)
        sh = shutil.which("sh")
        assert sh
        environ = {
            **self.site.environ,
            **values,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PGPASSWORD": self.server.password,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        done = subprocess.run(
            [sh, "-eu", "-c", "".join(blocks).replace('--table "$TABLE"', f'--table "$TABLE"{more}')],
            env=environ,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done


@pytest.fixture
def living(pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path) -> Iterator[Living]:
    dsn = new_database(pg15)
    with psycopg.connect(dsn) as connection:
        connection.execute(SHOP.encode())
    site = local_site(tmp_path / "site", {"shop": dsn})
    site.run("backup")
    yield Living(pg15, site, dsn)
    drop_database(pg15, COPY)


def databases(server: ThrowawayServer) -> set[str]:
    with psycopg.connect(server.dsn()) as connection:
        return {str(row[0]) for row in connection.execute("select datname from pg_database")}


def test_rows_were_deleted(living: Living, tmp_path: Path) -> None:
    living.do(LATER)
    expected = living.dump()
    living.do("delete from orders where customer = 7 and id <= 300")
    assert living.ask("select count(*) from orders") == [(295,)]
    done = living.follow("These rows were deleted an hour ago", tmp_path)
    assert re.search(r"missing\s*\n-+\n\s*15\n", done.stdout)
    assert "INSERT 0 15" in done.stdout
    living.do("delete from log where ctid in (select max(ctid) from log group by id having count(*) > 1)")
    assert living.dump() == expected
    assert not (tmp_path / "rows.copy").exists()
    assert COPY not in databases(living.server)


def test_a_table_was_emptied(living: Living, tmp_path: Path) -> None:
    before = living.dump()
    living.do("truncate orders restart identity")
    living.follow("The table was emptied", tmp_path)
    assert living.dump() == before
    assert living.ask("select count(*) from log") == [(300,)]  # no trigger ran


def test_a_table_that_is_not_empty_any_more(living: Living, tmp_path: Path) -> None:
    living.do("truncate orders; insert into orders (customer, note) values (1, 'new')")
    before = living.dump()
    refused = living.follow("The table was emptied", tmp_path, code=8)
    assert "docs/recipes.md" in refused.stderr
    assert living.dump() == before


def test_a_table_was_dropped(living: Living, tmp_path: Path) -> None:
    before = living.dump()
    living.do("drop table orders; update customers set name = 'renamed' where id = 3")
    living.follow("The table was dropped", tmp_path)
    assert [line for line in living.dump() if not line.startswith("3\t")] == [
        line for line in before if not line.startswith("3\t")
    ]
    assert living.ask("select name from customers where id = 3") == [("renamed",)]
    assert COPY not in databases(living.server)
    living.do("insert into orders (customer) values (3)")
    assert living.ask("select max(id) from orders") == [(301,)]


def test_a_table_that_others_refer_to_was_dropped(living: Living, tmp_path: Path) -> None:
    """The plan names their foreign keys, and these come back too."""
    before = living.dump()
    living.do("create view names as select name from customers")
    living.site.run("backup")
    living.do("drop table customers cascade")
    options = ["--at", "latest", "--table", "customers", "--into", COPY, "--dry-run", "--json"]
    plan = living.site.run("restore", "shop", *options).json
    assert plan["referring"] == ["view public.names", "fk constraint public.orders orders_customer_fkey"]
    living.follow("The table was dropped", tmp_path, table="public.customers", more=" --table public.orders")
    assert living.dump() == before
