"""What a measured database holds, so that a copy can be held against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import psycopg
from psycopg import sql

_STATEMENT_SECONDS = 3600
_AT_A_TIME = 100  # tables that one query counts


def counts(dsn: str) -> Mapping[str, int]:
    """The rows of every table, counted."""
    with connect(dsn) as connection:
        found: dict[str, int] = {}
        for batch in _batches(_tables(connection)):
            query = sql.SQL(" union all ").join(
                sql.SQL("select {}, count(*) from {}").format(sql.Literal(name), sql.Identifier(name)) for name in batch
            )
            found |= {str(name): int(rows) for name, rows in connection.execute(query)}
        return found


def fingerprint(dsn: str) -> Mapping[str, int]:
    """A sum over a hash of every row, per table: equal for equal rows, whatever their order."""
    with connect(dsn) as connection:
        found: dict[str, int] = {}
        for batch in _batches(_tables(connection)):
            query = sql.SQL(" union all ").join(
                sql.SQL("select {}, coalesce(sum(hashtextextended(t::text, 0)), 0) from {} t").format(
                    sql.Literal(name), sql.Identifier(name)
                )
                for name in batch
            )
            found |= {str(name): int(value) for name, value in connection.execute(query)}
        return found


def size(dsn: str) -> int:
    """Bytes on the server's disk."""
    with connect(dsn) as connection:
        row = connection.execute("select pg_database_size(current_database())").fetchone()
        assert row is not None
        return int(row[0])


def _tables(connection: psycopg.Connection) -> list[str]:
    query = "select relname from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace order by 1"
    return [str(row[0]) for row in connection.execute(query)]


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    yield from (names[start : start + _AT_A_TIME] for start in range(0, len(names), _AT_A_TIME))


def connect(dsn: str) -> psycopg.Connection:
    """A session that commits each statement."""
    return psycopg.connect(dsn, autocommit=True, options=f"-c statement_timeout={_STATEMENT_SECONDS}s -c timezone=UTC")
