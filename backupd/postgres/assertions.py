"""The operator's own checks on a restored copy: SQL that must return one true."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta

import psycopg

from backupd.errors import PostgresError
from backupd.postgres.session import Dsn, connect, describe


@dataclass(frozen=True, slots=True)
class Assertion:
    name: str
    sql: str


@dataclass(frozen=True, slots=True)
class Answer:
    name: str
    holds: bool
    detail: str  # without anything of the database's content
    shown: str = ""  # the same with it


def ask(copy: Dsn, assertions: Sequence[Assertion], timeout: timedelta) -> Iterator[Answer]:
    """Each in a read-only transaction of its own, on a session that sees names as the source's users do. Raises
    PostgresError only if the copy can't be reached."""
    for assertion in assertions:
        with closing(connect(copy, autocommit=False)) as session:
            try:
                yield Answer(assertion.name, *_ask(session, assertion.sql, timeout))
            except psycopg.Error as error:
                if session.broken:
                    raise PostgresError("the scratch server was lost", detail=describe(error)) from error
                yield Answer(assertion.name, False, f"it failed, SQLSTATE {error.sqlstate}", describe(error))


def _ask(session: psycopg.Connection, query: str, timeout: timedelta) -> tuple[bool, str, str]:
    session.execute("set transaction read only")
    session.execute("reset search_path")  # what ALTER DATABASE … SET says, else the usual
    session.execute("reset timezone")
    session.execute("reset datestyle")
    session.execute(f"set statement_timeout = {int(timeout.total_seconds() * 1000)}".encode())
    cursor = session.execute(query.encode(), prepare=True)  # so the server refuses several, of which one may write
    if cursor.description is None:
        return False, "it returned no rows; a check is one query that returns one true", ""
    rows = cursor.fetchmany(2)
    if len(rows) != 1 or len(rows[0]) != 1:
        shape = "no row" if not rows else "several rows" if len(rows) > 1 else f"{len(rows[0])} columns"
        return False, f"it returned {shape}; a check is one query that returns one true", ""
    value = rows[0][0]
    if value is True:
        return True, "true", ""
    plain = "null" if value is None else "false" if value is False else "something else than true"
    return False, f"it returned {plain}", f"it returned {str(value)[:200]}"
