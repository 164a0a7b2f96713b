"""Every kind of object is found where it is the only one of its kind that a database has: a kind is not even asked for
where the catalog that it is known by holds nothing new."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from backupd.postgres import objects, objects_code, objects_others, objects_relations, objects_types
from backupd.postgres.server import ThrowawayServer

WRAPPER = "create foreign data wrapper w;"
SERVER = f"{WRAPPER} create server s foreign data wrapper w;"
TABLE = "create table t (i int, j int);"
MADE_BY = {
    "function": "create function f() returns int language sql as 'select 1'",
    "aggregate": "create aggregate a (int) (sfunc = int4pl, stype = int)",
    "conversion": "create conversion c for 'LATIN1' to 'UTF8' from iso8859_1_to_utf8",
    "collation": "create collation c (locale = 'C')",
    "text search configuration": 'create text search configuration c (parser = pg_catalog."default")',
    "text search dictionary": "create text search dictionary d (template = simple)",
    "text search parser": "create text search parser p (start = prsd_start, gettoken = prsd_nexttoken, end = prsd_end,"
    " lextypes = prsd_lextype)",
    "text search template": "create text search template t (lexize = dsimple_lexize)",
    "language": "create language l handler plpgsql_call_handler",
    "access method": "create access method m type index handler bthandler",
    "event trigger": "create function f() returns event_trigger language plpgsql as 'begin end';"
    " create event trigger e on ddl_command_end execute function f()",
    "foreign-data wrapper": WRAPPER,
    "server": SERVER,
    "user mapping": f"{SERVER} create user mapping for public server s",
    "publication": "create publication p",
    "default privileges": "alter default privileges grant select on tables to public",
    "constraint": "create domain d as int check (value > 0)",
    "trigger": f"{TABLE} create trigger g before update on t"
    " for each row execute function suppress_redundant_updates_trigger()",
    "rule": f"{TABLE} create rule r as on insert to t do also nothing",
    "policy": f"{TABLE} create policy p on t",
    "view": "create view v as select 1 as one",
    "materialized view": "create materialized view v as select 1 as one",
    "statistics": f"{TABLE} create statistics s on i, j from t",
    "operator": "create operator public.=== (function = int4eq, leftarg = int4, rightarg = int4)",
    "operator class": "create operator class k for type int4 using hash as operator 1 =, function 1 hashint4(int4)",
    "operator family": "create operator family f using btree",
    "cast": "create cast (int4 as inet) with inout",
    "transform": "create transform for int4 language sql"
    " (from sql with function prsd_lextype(internal), to sql with function int4recv(internal))",
}


@pytest.fixture(scope="module")
def connection(pg15: ThrowawayServer) -> Iterator[psycopg.Connection]:
    """To a database in which nobody made anything."""
    with closing(psycopg.connect(pg15.dsn(), autocommit=True)) as above:
        above.execute("create database alone template template0")
        try:
            with closing(psycopg.connect(pg15.dsn("alone"))) as found:
                yield found
        finally:
            above.execute("drop database alone")


def test_all_that_are_not_always_asked_for_are_tried() -> None:
    parts = (objects_relations, objects_types, objects_code, objects_others)
    asked = {kind for part in parts for kind, query in part.queries(18).items() if query.catalog}
    assert asked == set(MADE_BY)


@pytest.mark.parametrize("kind", MADE_BY)
def test_found_where_it_is_alone(connection: psycopg.Connection, kind: str) -> None:
    with connection.transaction(force_rollback=True):
        assert not objects.read(connection).objects[kind]
        connection.execute(MADE_BY[kind].encode())
        assert objects.read(connection).objects[kind]
