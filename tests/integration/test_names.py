"""A pattern for pg_dump means one table, whatever its name holds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import sql

from backupd.errors import PostgresError
from backupd.postgres.names import identifier, pattern
from backupd.postgres.server import ThrowawayServer
from backupd.postgres.tools import Installation
from tests.postgres import NewDatabase, client_for, run

SCHEMAS = ("public", "s.*", 'We"ird "schéma"\n$\\ ?')
NAMES = (
    *("a", "A", "aa", "ab", "a*", "a?", "a.", ".a", "a.b", "*", "?", ".", "..", ".*", "a.*", "a|b", "(a)", "[a]", "[]"),
    *(
        "[^a]",
        "a{1}",
        "a+",
        "^a",
        "a$",
        "^a$",
        "$",
        "$$",
        "$1",
        "\\",
        "\\\\",
        "\\a",
        "\\.",
        "\\d",
        '"',
        '""',
        '"a"',
        'a"b',
    ),
    *("'", "''", "a\nb", "\n", "a\r\nb", "\t", " ", " a", "a ", "a b", "ä", "Ä", "表", "🐘", "é", "e\u0301", "\u200b"),
    *(
        "x" * 63,
        "x" * 62,
        "ä" * 31,
        "select",
        "--",
        "/*",
        "%s",
        ":x",
        ";",
        ",",
        "=",
        "-t",
        "~",
        "***:a",
        "***=a",
        "(?i)A",
    ),
)


def name_tables(dsn: str, names: tuple[str, ...], schemas: tuple[str, ...]) -> dict[tuple[str, str], str]:
    """A table per name and schema, and the text that is in this one only."""
    marks: dict[tuple[str, str], str] = {}
    with psycopg.connect(dsn) as connection:
        for schema in schemas:
            connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
            for name in names:
                marks[schema, name] = f"mark-{len(marks)}"
                statement = sql.SQL("CREATE TABLE {} AS SELECT {}::text AS mark")
                table = sql.Identifier(schema, name)
                connection.execute(statement.format(table, sql.Literal(marks[schema, name])))
    return marks


def dumped(client: Installation, dsn: str, *options: str) -> set[str]:
    """The marks of the tables whose rows a dump holds."""
    text = run(client, "pg_dump", "--section=data", "--strict-names", *options, f"--dbname={dsn}").decode()
    return {line for line in text.split("\n") if line.startswith("mark-")}


@pytest.mark.parametrize("any_pg", [15, *(pytest.param(m, marks=pytest.mark.large) for m in (17, 18))], indirect=True)
def test_each_name_means_its_own_table(any_pg: ThrowawayServer, new_database: NewDatabase) -> None:
    dsn, client = new_database(any_pg), client_for(any_pg)
    marks = name_tables(dsn, NAMES, SCHEMAS[2:])
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda table: dumped(client, dsn, "-t", pattern(*table)), marks)
        assert dict(zip(marks, found, strict=True)) == {table: {mark} for table, mark in marks.items()}


def test_excluding_leaves_exactly_the_others(any_pg: ThrowawayServer, new_database: NewDatabase) -> None:
    dsn, client = new_database(any_pg), client_for(any_pg)
    marks = name_tables(dsn, NAMES, SCHEMAS)
    assert dumped(client, dsn) == set(marks.values())
    excluded = list(marks)[::2]
    options = [f"--exclude-table-data={pattern(*table)}" for table in excluded]
    assert dumped(client, dsn, *options) == set(marks.values()) - {marks[table] for table in excluded}
    options = [f"--table={pattern(*table)}" for table in excluded]
    assert dumped(client, dsn, *options) == {marks[table] for table in excluded}


def test_a_table_that_is_gone_is_an_error(pg17: ThrowawayServer, new_database: NewDatabase) -> None:
    with pytest.raises(PostgresError, match="no matching tables were found"):
        dumped(client_for(pg17), new_database(pg17), "-t", pattern("public", "gone"))


def test_another_encoding_needs_the_option(any_pg: ThrowawayServer, new_database: NewDatabase) -> None:
    dsn = new_database(any_pg, options="ENCODING 'LATIN1' LOCALE 'C'")
    marks = name_tables(dsn, ("ä", "Ä", "Ã¤"), ("public", "é"))
    for table, mark in marks.items():
        assert dumped(client_for(any_pg), dsn, "--encoding=UTF8", "-t", pattern(*table)) == {mark}


def test_identifier_is_one_name_for_the_server(pg17: ThrowawayServer) -> None:
    with psycopg.connect(pg17.dsn()) as connection:
        for name in NAMES:
            row = connection.execute(f"SELECT 1 AS {identifier(name)}".encode())
            assert row.description is not None
            assert row.description[0].name == name
