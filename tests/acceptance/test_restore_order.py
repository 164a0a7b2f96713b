"""What a restore does to be quick, large tables first: rows that come frozen, indexes that do not wait for others'
rows. And where it must not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from backupd.postgres import archive, indexes
from backupd.postgres.server import ThrowawayServer
from tests.postgres import NewDatabase, client_for, drop_database, run
from tests.site import local_site

ROLE = f"app_{os.getpid()}"


@pytest.fixture
def copy(pg15: ThrowawayServer) -> Iterator[str]:
    name = f"quick_copy_{os.getpid()}"
    yield name
    drop_database(pg15, name)


def there_and_back(tmp_path: Path, dsn: str, copy: str, *options: str) -> str:
    """Back a database up, every table in a stream of its own, and restore it. Returns what that said."""
    site = local_site(tmp_path / "site", {"shop": dsn})
    site.set("large_table_size", '"0"', table="defaults")
    site.run("backup")
    return site.run("restore", "shop", "--at", "latest", "--into", copy, "--yes", *options).err


def fetch(dsn: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(query.encode()).fetchall()


def execute(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def test_rows_come_frozen(pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path, copy: str) -> None:
    """Nobody who reads them has to write their pages again."""
    dsn = new_database(pg15)
    execute(
        dsn,
        'create table plain as select i, md5(i::text) "we""ird" from generate_series(1, 2000) i',
        "create table parent (i int, t text) partition by range (i)",
        "create table child partition of parent for values from (0) to (5000)",
        "insert into parent select i, md5(i::text) from generate_series(1, 2000) i",
        "create index on plain (i)",
    )
    there_and_back(tmp_path, dsn, copy)
    visible = "select relname, relallvisible > 0 and relallvisible = relpages from pg_class where relname = any"
    found = fetch(pg15.dsn(copy), f"{visible} ('{{plain,child}}') order by 1")
    assert found == [("child", True), ("plain", True)]


def test_rows_that_may_come_into_any_partition_stay(
    pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path, copy: str
) -> None:
    """Partitions by the hash of an enum are loaded through their root, each as it comes."""
    dsn = new_database(pg15)
    execute(
        dsn,
        "create type mood as enum ('a', 'b', 'c', 'd', 'e')",
        "create table moods (m mood, i int) partition by hash (m)",
        *(f"create table moods{n} partition of moods for values with (modulus 3, remainder {n})" for n in range(3)),
        "insert into moods select (enum_range(null::mood))[1 + i % 5], i from generate_series(1, 3000) i",
    )
    there_and_back(tmp_path, dsn, copy)
    rows = "select m::text, count(*), sum(i) from moods group by 1 order by 1"
    assert fetch(pg15.dsn(copy), rows) == fetch(dsn, rows)


def test_an_index_that_reads_another_table_waits_for_it(
    pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path, copy: str
) -> None:
    dsn = new_database(pg15)
    execute(
        dsn,
        "create table rates (k int primary key, v int not null)",
        "insert into rates select i, i * i from generate_series(0, 9) i",
        """
        create function rate(wanted int) returns int immutable language plpgsql as $$
          declare found int; begin select v into strict found from public.rates where k = wanted; return found; end $$
        """,
        "create table large as select i, i % 10 as k, repeat('x', 90) t from generate_series(1, 3000) i",
        "create index by_rate on large (rate(k))",
        "create index by_number on large (i)",
    )
    there_and_back(tmp_path, dsn, copy, "--jobs", "1")
    query = "select indexname from pg_indexes where tablename in ('large', 'rates') order by 1"
    assert fetch(pg15.dsn(copy), query) == fetch(dsn, query)


def test_indexes_of_a_large_table_are_shared_out(
    pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path, copy: str
) -> None:
    """Those that lock it, one after the other and before all others: two with an ALTER TABLE each would wait for each
    other for ever."""
    dsn = new_database(pg15)
    execute(
        dsn,
        "create table large as select i, i j, i % 10 k, repeat('x', 1000) t from generate_series(1, 70000) i",
        "alter table large add primary key (i); alter table large alter j set not null",
        "create unique index by_j on large (j); alter table large replica identity using index by_j",
        "create index by_k on large (k); alter table large cluster on by_k",
        *(f"create index more{number} on large (k, i, j)" for number in range(4)),
    )
    said = there_and_back(tmp_path, dsn, copy, "--jobs", "3")
    assert said.count("building indexes and constraints") == 1
    assert said.index("data-0001") < said.index("building indexes")
    of_table = "from pg_index join pg_class c on c.oid = indexrelid where indrelid = 'large'::regclass"
    query = f"select relname, indisprimary, indisclustered, indisreplident, indisvalid {of_table} order by 1"
    found = fetch(pg15.dsn(copy), query)
    assert found == fetch(dsn, query)
    assert len(found) == 7


def test_comments_on_what_was_built_early(
    pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path, copy: str
) -> None:
    """pg_restore takes a comment to be in the section of what stands before it, which is no longer there."""
    dsn = new_database(pg15)
    execute(
        dsn,
        "create table a (i int primary key, j int); insert into a select i, i from generate_series(1, 100) i",
        "comment on constraint a_pkey on a is 'of a'; create index by_j on a (j); comment on index by_j is 'by j'",
        "create table b (i int references a, k int); comment on constraint b_i_fkey on b is 'of b'",
        "comment on table a is 'before the rows'",
    )
    comments = "select description from pg_description where objoid >= 16384 order by 1"
    there_and_back(tmp_path, dsn, copy)
    assert fetch(pg15.dsn(copy), comments) == fetch(dsn, comments)
    drop_database(pg15, copy)
    there_and_back(tmp_path / "part", dsn, copy, "--table", "a")
    assert fetch(pg15.dsn(copy), comments) == [("before the rows",), ("by j",), ("of a",)]


def test_a_constraint_that_goes_down_to_other_tables_waits_for_them(
    pg18: ThrowawayServer, new_database: NewDatabase, tmp_path: Path
) -> None:
    """What is not valid yet holds for new rows, and a restore's are new."""
    dsn, name = new_database(pg18), f"inherited_copy_{os.getpid()}"
    execute(
        dsn,
        "create table parent (i int, x int); insert into parent select i, i from generate_series(1, 5000) i",
        "create table child () inherits (parent); insert into child values (0, null)",
        "alter table parent add constraint filled not null x not valid",
    )
    try:
        there_and_back(tmp_path, dsn, name, "--jobs", "1")
        constraint = (
            "select conrelid::regclass::text, convalidated from pg_constraint where conname = 'filled' order by 1"
        )
        assert fetch(pg18.dsn(name), constraint) == fetch(dsn, constraint) == [("child", False), ("parent", False)]
    finally:
        drop_database(pg18, name)


def test_which_wait(pg15: ThrowawayServer, new_database: NewDatabase) -> None:
    dsn = new_database(pg15)
    execute(
        dsn,
        "create function f(int) returns int immutable language sql as 'select $1'",
        "create table other (i int primary key)",
        "create table t (i int primary key, j int unique, k int references other, d daterange, check (i > 0))",
        "create index plain on t (k); create index partial on t (j) where k > 7; create index functional on t (f(j))",
        "create index expression on t ((j + k)); alter table t add constraint apart exclude using gist (d with &&)",
        "alter table t cluster on plain",
        "create materialized view seen as select * from t; create index on seen (i)",
        "create table parts (i int) partition by list (i); create table part1 partition of parts for values in (1)",
        "create index on parts (i)",
    )
    whole = archive.parse(run(client_for(pg15), "pg_dump", "-Fc", "-Z0", "--schema-only", "--dbname", dsn), "it")
    assert whole is not None
    found = indexes.early(whole.entries, [("public", name) for name in ("t", "part1", "seen")])
    names = {entry.tag for entries in found.values() for entry in entries}
    assert {"t t_pkey", "t t_j_key", "t apart", "plain", "partial", "expression"} <= names
    exclusive = {entry.tag for entries in found.values() for entry in entries if indexes.is_exclusive(entry)}
    assert exclusive == {"t t_pkey", "t t_j_key", "t apart", "plain"}
    # A partition's index needs its parent's, which all partitions share.
    assert not {"functional", "t t_k_fkey", "seen_i_idx", "other other_pkey", "parts_i_idx", "part1_i_idx"} & names


def test_an_owner_who_may_not_truncate(
    pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path, copy: str
) -> None:
    """And restores his own tables, without being a superuser: slower then, and whole."""
    dsn = new_database(pg15)
    execute(pg15.dsn(), f"create role {ROLE} login createdb password 'secret'")
    try:
        execute(
            dsn,
            f"alter database {dsn.split('dbname=')[1].split()[0]} owner to {ROLE}",
            f"create table t as select generate_series(1, 2000) i; alter table t owner to {ROLE}",
            f"revoke truncate on t from {ROLE}",
        )
        target = make_conninfo(pg15.dsn(), user=ROLE, password="secret")
        there_and_back(tmp_path, dsn, copy, "--target", target, "--skip-privileged")
        assert fetch(pg15.dsn(copy), "select count(*) from t") == [(2000,)]
    finally:
        drop_database(pg15, copy)
        execute(dsn, f"reassign owned by {ROLE} to postgres; drop owned by {ROLE} cascade")
        execute(pg15.dsn(), f"drop role {ROLE}")
