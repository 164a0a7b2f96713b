"""The torture database through the command line: what comes back is what was there, in every shape of streams."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from backupd.postgres.server import ThrowawayServer
from backupd.postgres.tools import find_installations
from tests.acceptance.test_torture_yardstick import difference
from tests.acceptance.torture import torture
from tests.postgres import TESTED_MAJORS, NewDatabase, client_for, drop_database, dump_sql
from tests.site import Site, local_site

SHAPES = {
    "one job": ("1", '"64MiB"'),
    "four jobs": ("4", '"64MiB"'),
    "a stream for each table": ("4", '"0"'),  # each costs a pg_dump and a pg_restore: more than a minute in all
}
SLOW = ((15, "four jobs"), (17, "one job"), (18, "one job"))  # left to `make test-large`
CASES = [
    pytest.param(
        major,
        shape,
        id=f"pg{major}, {shape}",
        marks=[pytest.mark.large] if shape == "a stream for each table" or (major, shape) in SLOW else [],
    )
    for major in TESTED_MAJORS
    for shape in SHAPES
]


@pytest.fixture
def copy_name() -> str:
    return f"copy_{os.getpid()}"


@pytest.fixture
def dropped_after(copy_name: str) -> Iterator[list[ThrowawayServer]]:
    """Servers on which the copy is dropped when the test is over."""
    servers: list[ThrowawayServer] = []
    yield servers
    for server in servers:
        drop_database(server, copy_name)


def around(server: ThrowawayServer, name: str) -> list[str]:
    """What surrounds a database's content: all that `pg_dump --create` says of the database, without its name."""
    lines = dump_sql(client_for(server), server.dsn(name), "--create", "--schema-only")
    return sorted(line.replace(name, "NAME") for line in lines if name in line)


def row_counts(dsn: str, tables: list[tuple[str, str]]) -> dict[tuple[str, str], int]:
    with psycopg.connect(dsn) as connection:
        found = {}
        for schema, name in tables:
            query = sql.SQL("select count(*) from only {}.{}").format(sql.Identifier(schema), sql.Identifier(name))
            row = connection.execute(query).fetchone()
            assert row is not None
            found[schema, name] = row[0]
        return found


def as_restored(rows: dict[tuple[str, str], int]) -> Counter[tuple[str, str]]:
    """Hashes of an enum depend on OIDs: only what all partitions by such a hash hold together stays as it was."""
    found: Counter[tuple[str, str]] = Counter()
    for (schema, name), count in rows.items():
        found[schema, "parted_enum" if name.startswith("parted_enum_") else name] += count
    return found


def manifest_rows(site: Site, database: str) -> dict[tuple[str, str], int]:
    return {(t["schema"], t["name"]): t["rows"] for t in site.run("show", database, "--json").json["tables"]}


@pytest.mark.parametrize("major, shape", CASES)
def test_identical(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    new_database: NewDatabase,
    dropped_after: list[ThrowawayServer],
    copy_name: str,
    major: int,
    shape: str,
) -> None:
    server: ThrowawayServer = request.getfixturevalue(f"pg{major}")
    name = f"torture_{os.getpid()}"
    source, client, (jobs, large) = new_database(server, name), client_for(server), SHAPES[shape]
    torture(server, source)
    site = local_site(tmp_path, {"torture": source})
    site.set("large_table_size", large, table="databases.torture")

    (made,) = site.run("backup", "--jobs", jobs, "--json").json
    dropped_after.append(server)
    restored = site.run("restore", "torture", "--at", "latest", "--into", copy_name, "--jobs", jobs, "--json").json

    before = dump_sql(client, source)
    assert difference(before, dump_sql(client, server.dsn(copy_name))) == ([], [])
    assert before == dump_sql(client, server.dsn(copy_name))
    said = around(server, name)
    assert said == around(server, copy_name)
    for sign in ("ENCODING", "COMMENT", "OWNER", "GRANT", "SET", "IN DATABASE", "CONNECTION LIMIT"):
        assert any(sign in line for line in said), f"the yardstick says nothing of {sign}: the comparison proves little"

    rows = manifest_rows(site, "torture")
    assert rows == row_counts(source, list(rows))
    assert as_restored(rows) == as_restored(row_counts(server.dsn(copy_name), list(rows)))
    assert sum(rows.values()) == made["rows"] > 14_000
    streams = [stream for stream in restored["streams"] if stream["kind"] == "data"]
    assert len(streams) == (len(rows) + 1 if large == '"0"' else 1)


# ---- what pg_dump leaves to whoever restores


SETTINGS = """
alter database {} set search_path = '';
alter database {} set "torture.empty" = '';
alter database {} set "Torture.Quoted" = 'a ''b'' "c", \\ d';
alter database {} set datestyle = 'SQL, DMY';
alter database {} set default_transaction_read_only = on;
alter database {} set default_transaction_isolation = 'repeatable read';
alter role torture_writer in database {} set search_path = "a ""b", "$user", public, "Ünï, c";
alter role torture_writer in database {} set temp_tablespaces = '';
revoke all on database {} from public;
grant connect on database {} to torture_writer with grant option;
comment on database {} is E'a \\'comment\\'\\nof two lines \\\\';
alter database {} connection limit 5;
alter database {} owner to torture_owner
"""


def test_settings_grants_owner_and_comment(
    pg15: ThrowawayServer,
    tmp_path: Path,
    new_database: NewDatabase,
    dropped_after: list[ThrowawayServer],
    copy_name: str,
) -> None:
    """The settings that are hard to write down, and that would get in the way of dumps and restores if obeyed."""
    name = f"settings_{os.getpid()}"
    source = new_database(pg15, name)
    with psycopg.connect(source) as connection:
        for role in ("torture_owner", "torture_reader", "torture_writer"):
            if not connection.execute("select from pg_roles where rolname = %s", [role]).rowcount:
                connection.execute(sql.SQL("create role {}").format(sql.Identifier(role)))
        connection.execute("create table t (d date primary key)")
        connection.execute("insert into t values ('2026-02-01'), ('2026-01-02')")
        connection.commit()
        connection.autocommit = True
        for statement in SETTINGS.split(";\n"):
            connection.execute(statement.strip().replace("{}", name).encode())
    site = local_site(tmp_path, {"settings": source})
    site.run("backup")
    dropped_after.append(pg15)
    restored = site.run("restore", "settings", "--at", "latest", "--into", copy_name, "--json").json
    assert restored["warnings"] == []
    assert around(pg15, name) == around(pg15, copy_name)
    client = client_for(pg15)
    assert dump_sql(client, source) == dump_sql(client, pg15.dsn(copy_name))


@pytest.mark.parametrize(
    "large",
    ['"64MiB"', pytest.param('"0"', marks=pytest.mark.large)],
    ids=["one stream", "a stream for each table"],
)
@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_JP", "SQL_ASCII"])
def test_other_encodings(
    pg15: ThrowawayServer,
    tmp_path: Path,
    new_database: NewDatabase,
    dropped_after: list[ThrowawayServer],
    copy_name: str,
    encoding: str,
    large: str,
) -> None:
    """Names of tables reach pg_dump in the database's own encoding, and so does what they hold."""
    name = f"encoding_{os.getpid()}"
    source = new_database(pg15, name, options=f"encoding '{encoding}' lc_collate 'C' lc_ctype 'C'")
    word = {"LATIN1": "Größe", "EUC_JP": "表", "SQL_ASCII": "plain"}[encoding]
    with psycopg.connect(source, client_encoding="utf8") as connection:
        for table in (word, f"{word}*"):
            identifier = sql.Identifier(table)
            connection.execute(sql.SQL("create table {} (t text)").format(identifier))
            connection.execute(
                sql.SQL("insert into {} select %s from generate_series(1, 100)").format(identifier), [word]
            )
        if encoding == "SQL_ASCII":  # bytes that are no text in any encoding
            connection.execute(r"insert into plain values (E'\xff\xfe')")
    site = local_site(tmp_path, {"encoded": source})
    site.set("large_table_size", large, table="databases.encoded")
    site.run("backup")
    dropped_after.append(pg15)
    site.run("restore", "encoded", "--at", "latest", "--into", copy_name)
    client = client_for(pg15)
    assert dump_sql(client, source) == dump_sql(client, pg15.dsn(copy_name))
    assert around(pg15, name) == around(pg15, copy_name)


def test_without_a_public_schema(
    pg15: ThrowawayServer,
    tmp_path: Path,
    new_database: NewDatabase,
    dropped_after: list[ThrowawayServer],
    copy_name: str,
) -> None:
    source = new_database(pg15)
    with psycopg.connect(source) as connection:
        connection.execute("drop schema public")
        connection.execute("create schema only_one")
        connection.execute("create table only_one.t as select generate_series(1, 10) i")
    site = local_site(tmp_path, {"private": source})
    site.run("backup")
    dropped_after.append(pg15)
    site.run("restore", "private", "--at", "latest", "--into", copy_name)
    client = client_for(pg15)
    assert dump_sql(client, source) == dump_sql(client, pg15.dsn(copy_name))


# ---- a client newer than the server


class NewerClientSite(Site):
    """backupd on a machine whose only PostgreSQL is newer than the server: that in `bin_dir`."""

    def __init__(self, folder: Path, dsn: str, bin_dir: Path) -> None:
        super().__init__(folder, f"file://{folder / 'repository'}", {"shop": dsn})
        self.dsn = dsn
        self.set("bin_dirs", f'["{bin_dir}"]', table="postgres")
        self.environ["PATH"] = "/nowhere"

    def command(self, *arguments: str) -> list[str]:
        alone = "from backupd.postgres import tools; tools.USUAL_FOLDERS = ();from backupd.__main__ import main; main()"
        return [sys.executable, "-c", alone, "--config", str(self.config), *arguments]


@pytest.fixture
def newer_client(tmp_path: Path, pg15: ThrowawayServer, new_database: NewDatabase) -> NewerClientSite:
    found = [each for each in find_installations() if each.major == 17]
    if not found:
        pytest.skip("no PostgreSQL 17 client on this machine")
    return NewerClientSite(tmp_path, new_database(pg15), found[0].bin_dir)


SHOP = """
create table products (id int primary key, name text not null, price numeric check (price >= 0));
insert into products select i, 'product ' || i, i / 3.0 from generate_series(1, 500) i;
create table sales (id bigint generated always as identity primary key, product int references products,
  at timestamptz);
insert into sales (product, at) select 1 + i % 500, '2026-01-01'::timestamptz + i * interval '1 min'
  from generate_series(1, 3000) i;
create index on sales (product);
create index on sales (at);
create materialized view totals as select product, count(*) from sales group by 1;
"""
# Works for its owner now, and not in a restore: there, no search_path helps it to find the table it reads.
FORGETFUL = """
create table limits (most int);
insert into limits values (10000);
create function in_limits(value int) returns int language plpgsql immutable
  as $$ begin return (select value / count(*) from limits); end $$;
create table measured (value int);
insert into measured select generate_series(1, 10);
"""
ERRORS = {
    "while loading": "alter table measured add check (in_limits(value) >= 0)",
    "while indexing": "create index on measured (in_limits(value))",
}


def fill(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.mark.parametrize(
    "jobs", [pytest.param("1", marks=pytest.mark.large), "2", pytest.param("4", marks=pytest.mark.large)]
)
def test_newer_client(
    newer_client: NewerClientSite,
    pg15: ThrowawayServer,
    dropped_after: list[ThrowawayServer],
    copy_name: str,
    jobs: str,
) -> None:
    """A newer pg_restore sets what an older server does not know. That one error is none."""
    fill(newer_client.dsn, SHOP)
    newer_client.run("backup", "--jobs", jobs)
    tools = newer_client.run("show", "shop", "--json").json["tools"]
    assert tools["pg_dump"].startswith("17."), "the client under test was not used"
    dropped_after.append(pg15)
    newer_client.run("restore", "shop", "--at", "latest", "--into", copy_name, "--jobs", jobs)
    client = client_for(pg15)
    assert dump_sql(client, newer_client.dsn) == dump_sql(client, pg15.dsn(copy_name))


@pytest.mark.parametrize("jobs", [pytest.param("1", marks=pytest.mark.large), "2"])
@pytest.mark.parametrize("when", ERRORS)
def test_newer_client_does_not_hide_errors(
    newer_client: NewerClientSite, pg15: ThrowawayServer, copy_name: str, when: str, jobs: str
) -> None:
    fill(newer_client.dsn, SHOP, FORGETFUL, ERRORS[when])
    newer_client.run("backup")
    failed = newer_client.run("restore", "shop", "--at", "latest", "--into", copy_name, "--jobs", jobs, code=6)
    assert 'relation "limits" does not exist' in failed.err
    assert f"The database {copy_name}, begun by this restore, was removed" in failed.err
    with psycopg.connect(pg15.dsn()) as connection:
        assert not connection.execute("select from pg_database where datname = %s", [copy_name]).rowcount
