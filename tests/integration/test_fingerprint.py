"""The hash of a table's rows: the same on every server that holds the same rows, however they lie there and whatever
a session or database is set to; another one as soon as one value, row or byte is another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import psycopg
import pytest
from psycopg import sql

from backupd.postgres import fingerprint
from backupd.postgres.server import ThrowawayServer
from backupd.postgres.session import Dsn, connect
from tests.postgres import TESTED_MAJORS, NewDatabase

# One column of each kind of type, with values at its edges; every server makes the same of these texts.
TYPES: dict[str, tuple[str, ...]] = {
    "bool": ("true", "false"),
    "int2": ("-32768", "32767"),
    "int8": ("-9223372036854775808", "0"),
    "numeric": ("NaN", "Infinity", "-0.00", "1.00", "1e-30", "123456789012345678901234567890.5"),
    "numeric(10,3)": ("1.000",),
    "float4": ("0.1", "-0", "Infinity", "NaN", "1e-45", "3.4028235e+38"),
    "float8": ("0.1", "0.30000000000000004", "5e-324", "1.7976931348623157e+308", "-0"),
    "money": ("-1234567.89",),
    "text": ("", " ", "a\tb\nc\\d", '"quoted", (brackets)', "Grüße ☃ 𝄞", "x" * 10000),
    "char(5)": ("a", ""),
    "varchar": ("null", "NULL"),
    '"char"': ("a", "\\001"),
    "name": ("a_name",),
    "bytea": ("\\x", "\\x00ff5c27", "\\x" + "ab" * 5000),
    "date": ("infinity", "-infinity", "4713-01-01 BC", "2026-12-31"),
    "time": ("24:00", "00:00:00.000001"),
    "timetz": ("12:00+05:45",),
    "timestamp": ("infinity", "0044-03-15 BC", "2026-03-29 02:30:00.123456"),
    "timestamptz": ("2026-03-29 02:30:00+02", "-infinity", "0001-01-01 00:00 UTC"),
    "interval": ("1 year 2 mons -3 days 04:05:06.789", "-00:00:01", "0"),
    "uuid": ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",),
    "json": ('{"b": 1, "a": [null, 1.0] }', "1"),
    "jsonb": ('{"b": 1, "a": [null, 1.0] }', '""'),
    "jsonpath": ("$.a[*] ? (@.b > 1)",),
    "inet": ("10.0.0.1/8", "::1"),
    "cidr": ("10.0.0.0/8",),
    "macaddr8": ("08:00:2b:01:02:03:04:05",),
    "bit(3)": ("101",),
    "varbit": ("", "1"),
    "point": ("(0.1,-0)",),
    "line": ("{1,2,0.1}",),
    "lseg": ("[(0,0),(1,0.1)]",),
    "box": ("(1,1),(0,0.1)",),
    "path": ("((0,0),(1,1))", "[(0,0),(1,1)]"),
    "polygon": ("((0,0),(1,0.1),(2,2))",),
    "circle": ("<(0,0),0.1>",),
    "tsvector": ("'a':1A,3 'b c':2", ""),
    "tsquery": ("'a' & !'b c':*",),
    "int4[]": ("{}", "{1,null,3}", "[0:1]={1,2}", "{{1,2},{3,4}}"),
    "text[]": ('{"a,b","",null,"null"}',),
    "float8[]": ("{0.1,NaN}",),
    "int4range": ("[1,5)", "empty", "(,)"),
    "numrange": ("(0.10,1.0]",),
    "tstzrange": ('["2026-01-01 00:00+00",infinity)',),
    "datemultirange": ("{[2026-01-01,2026-02-01),[2026-03-01,2026-04-01)}",),
    "oid": ("4294967295",),
    "pg_lsn": ("16/B374D848",),
    "xid8": ("18446744073709551615",),
    "mood": ("happy",),
    "posint": ("5",),
    "pair": ('(1,"a,b")', "(,)"),
    "regtype": ("integer",),
    "regclass": ("pg_class",),
}
OWN = (
    "create type mood as enum ('sad', 'happy')",
    "create domain posint as int check (value > 0)",
    "create type pair as (i int, t text)",
)
# What a server, a database or a session may be set to; each would change how some value looks as text.
STRANGE = {
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "iso_8601",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "TimeZone": "Asia/Kathmandu",
    "xmlbinary": "hex",
    "search_path": "strange, public",
    "array_nulls": "off",
    "quote_all_identifiers": "on",
    "client_encoding": "LATIN1",
    "row_security": "on",
}


@contextmanager
def reading(dsn: str) -> Iterator[psycopg.Connection]:
    """A session as `verify` and `backup` read rows in."""
    with closing(connect(Dsn(dsn), settings=fingerprint.SETTINGS, autocommit=False)) as session:
        yield session


def contents(dsn: str, *tables: str) -> dict[str, tuple[int, str]]:
    """Rows and hash of these tables of the schema public."""
    with reading(dsn) as session:
        oids = {
            str(name): int(oid)
            for name, oid in session.execute(
                "select relname, oid::bigint from pg_class"
                " where relnamespace = 'public'::regnamespace and relname = any(%s)",
                [list(tables)],
            )
        }
        found = fingerprint.contents(session, list(oids.values()))
        return {table: found[oids[table]] for table in tables}


def content(dsn: str, table: str = "t") -> tuple[int, str]:
    return contents(dsn, table)[table]


def every_type(dsn: str) -> list[str]:
    """A table for each type, of the same name everywhere."""
    with closing(psycopg.connect(dsn, autocommit=True)) as connection:
        connection.execute("set lc_monetary = 'C'; set datestyle = 'ISO'; set timezone = 'UTC'")
        for statement in OWN:
            connection.execute(statement.encode())
        for name, values in TYPES.items():
            table = sql.Identifier("public", f"of {name}")
            connection.execute(sql.SQL("create table {} (i int, v {})").format(table, sql.SQL(name)))
            for number, value in enumerate((*values, None)):
                literal = sql.SQL("null") if value is None else sql.Literal(value)
                connection.execute(sql.SQL("insert into {} values ({}, {})").format(table, number, literal))
    return [f"of {name}" for name in TYPES]


def test_every_type_on_every_version(request: pytest.FixtureRequest, new_database: NewDatabase) -> None:
    """And in a database that is set to be as different as can be."""
    found = {}
    for major in TESTED_MAJORS:
        server: ThrowawayServer = request.getfixturevalue(f"pg{major}")
        with reading(server.dsn()) as session:
            probe = fingerprint.probe(session)
        for strange in (False, True):
            dsn = new_database(server)
            tables = every_type(dsn)
            if strange:
                set_strangely(dsn)
            found[major, strange] = {**contents(dsn, *tables), "the probe": (0, probe)}
    (first, *others) = found.items()
    for where, other in others:
        differing = {name: (first[1][name], other[name]) for name in other if first[1][name] != other[name]}
        assert differing == {}, (first[0], where)
    assert len({digest for _, digest in first[1].values()}) == len(first[1])


def set_strangely(dsn: str) -> None:
    with closing(psycopg.connect(dsn, autocommit=True)) as connection:
        name = sql.Identifier(str(connection.info.dbname))
        connection.execute("create schema strange")
        connection.execute(
            "create function strange.hashtextextended(text, bigint) returns bigint language sql as 'select 1'"
        )
        for key, value in STRANGE.items():
            listed = sql.SQL(", ").join(sql.Literal(part.strip()) for part in value.split(","))
            connection.execute(
                sql.SQL("alter database {} set {} to {}").format(name, sql.Identifier(key.lower()), listed)
            )


@pytest.fixture
def table(pg17: ThrowawayServer, new_database: NewDatabase) -> Callable[..., tuple[int, str]]:
    """The hash of a table `t` after these statements, anew each time."""
    dsn = new_database(pg17)

    def make(*statements: str) -> tuple[int, str]:
        with closing(psycopg.connect(dsn, autocommit=True)) as connection:
            for statement in ("drop table if exists t cascade", *statements):
                connection.execute(statement.encode())
        return content(dsn)

    return make


BASE = (
    "create table t (a int, b text, c float8, d numeric)",
    "insert into t values (1, 'one', 0.1, 1.0), (2, 'two', 0.2, 2.0), (3, null, null, 3.0)",
)


def test_what_does_not_matter(table: Callable[..., tuple[int, str]]) -> None:
    """How the rows lie, in which order and with what between them; how columns are ordered; what is generated."""
    rows, digest = table(*BASE)
    assert rows == 3
    values = "(3, null, null, 3.0), (1, 'one', 0.1, 1.0), (2, 'two', 0.2, 2.0)"
    for statements in (
        (BASE[0], f"insert into t values {values}"),
        (*BASE, "update t set b = b || '!'", "update t set b = left(b, -1)", "vacuum full t"),
        ("create table t (d numeric, b text, a int, c float8)", f"insert into t (a, b, c, d) values {values}"),
        (*BASE, "alter table t add z int default 7", "alter table t drop z"),
        (*BASE, "alter table t add z int generated always as (a * 2) stored"),
        (*BASE, "create table child () inherits (t)", "insert into child values (9)"),
        (*BASE, "create index on t (a)", "cluster t using t_a_idx", "alter table t set unlogged"),
        (*BASE, "alter table t alter b set storage external", "alter table t enable row level security"),
    ):
        assert table(*statements) == (rows, digest), statements
    assert table(BASE[0]) == (0, "0")
    assert table("create table t ()") == (0, "0")


def test_what_matters(table: Callable[..., tuple[int, str]]) -> None:
    """Each change alone makes another hash, and no two the same."""
    changes = {
        "nothing": (),
        "a bit": ("update t set a = 0 where a = 1",),
        "a letter": ("update t set b = 'onE' where a = 1",),
        "a space": ("update t set b = 'one ' where a = 1",),
        "null to nothing": ("update t set b = '' where a = 3",),
        "null to null": ("update t set b = 'null' where a = 3",),
        "the last digit": ("update t set c = 0.10000000000000002 where a = 1",),
        "the scale": ("update t set d = 1.00 where a = 1",),
        "a column's name": ("alter table t rename d to z", "alter table t rename a to d"),
        "a row gone": ("delete from t where a = 1",),
        "a row doubled": ("insert into t select * from t where a = 1",),
        "a row trebled": ("insert into t select t.* from t, generate_series(1, 2) where a = 1",),
        "two rows with each other's": ("update t set b = case a when 1 then 'two' else 'one' end where a < 3",),
        "a value in the next column": ("alter table t add e text", "update t set e = b, b = null where a = 1"),
        "a comma": ("update t set b = 'one,' where a = 1",),
    }
    found = {name: table(*BASE, *statements) for name, statements in changes.items()}
    assert len(set(found.values())) == len(found), found
    assert found["a row doubled"][0] == 4


def test_swapped_columns(table: Callable[..., tuple[int, str]]) -> None:
    made = "create table t (a text, b text)"
    kinds = ["('x', 'y')", "('y', 'x')", "('x,y', null)", "(null, 'x,y')", "('', '')", "(null, null)", "('', null)"]
    found = [table(made, f"insert into t values {values}") for values in kinds]
    assert len(set(found)) == len(kinds)


def test_pairs_do_not_cancel_out(table: Callable[..., tuple[int, str]]) -> None:
    """As they would if hashes were combined by exclusive or."""
    made = "create table t (a int)"
    sums = [table(made, f"insert into t values {values}") for values in ("(1), (1)", "(2), (2)", "(1), (1), (2), (2)")]
    assert len(set(sums)) == 3
    assert "0" not in {digest for _, digest in sums}


# ---- large objects


def large(dsn: str) -> tuple[int, str]:
    with reading(dsn) as session:
        return fingerprint.large_objects(session)


PATTERN = "(select decode(string_agg(md5(g::text), ''), 'hex') from generate_series(1, 200000) g)"  # 3.2 MB
OBJECTS = (
    f"select lo_from_bytea(1000, {PATTERN})",
    "select lo_from_bytea(1001, 'small'), lo_create(1002)",
    # Nothing is stored of what lies between: it reads as zeros.
    """do $$ declare fd int; begin perform lo_create(1003); fd := lo_open(1003, 131072);
       perform lo_lseek64(fd, 5000000, 0); perform lowrite(fd, 'far away'); perform lo_close(fd); end $$""",
)
LO_CHANGES = {
    "a byte of the first piece": "select lo_put(1000, 5, '\\xee')",
    "a byte of the last piece": "select lo_put(1000, 3199999, '\\xee')",
    "a byte just at a piece's end": "select lo_put(1000, 1048575, '\\xee')",
    "a byte just at a piece's begin": "select lo_put(1000, 1048576, '\\xee')",
    "a byte more": "select lo_put(1000, 3200000, '\\x00')",
    "a hole that is written to": "select lo_put(1003, 2500000, '\\x01')",
    "a hole that is longer": "select lo_put(1003, 5000008, '\\x00')",
    "one gone": "select lo_unlink(1002)",
    "one more": "select lo_create(1004)",
    "an empty one with a zero": "select lo_put(1002, 0, '\\x00')",
    "another number": "select lo_unlink(1001), lo_from_bytea(1005, 'small')",
}


def test_large_objects(request: pytest.FixtureRequest, new_database: NewDatabase) -> None:
    """The same on every version, sparse and dense; another for each change of a byte, a size or a number."""
    found = set()
    for major in TESTED_MAJORS:
        dsn = new_database(request.getfixturevalue(f"pg{major}"))
        assert large(dsn) == (0, "0")
        with closing(psycopg.connect(dsn, autocommit=True)) as connection:
            for statement in OBJECTS:
                connection.execute(statement.encode())
        found.add(large(dsn))
    (whole,) = found
    assert whole[0] == 4
    told = {"as they are": whole}
    with closing(psycopg.connect(dsn)) as connection:
        for name, statement in LO_CHANGES.items():
            with connection.transaction(force_rollback=True):
                connection.execute(statement.encode())
                told[name] = fingerprint.large_objects(connection)
        with connection.transaction(force_rollback=True):
            connection.execute("select lo_put(1003, 100, '\\x00')")  # zeros that are stored, where there was a hole
            assert fingerprint.large_objects(connection) == whole
    assert len(set(told.values())) == len(told), told
