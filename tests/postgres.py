"""Real PostgreSQL servers for tests: one per version and test process, started when first asked for."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, cast

import psycopg
import pytest
from psycopg import sql

from backupd.errors import PostgresError
from backupd.postgres.server import FAST, ThrowawayServer
from backupd.postgres.tools import Installation, choose_client, choose_server, find_installations

TESTED_MAJORS = (15, 17, 18)
# Differ between two dumps of the same data: random tokens, versions.
_NOISE = ("\\restrict ", "\\unrestrict ", "-- Dumped from database version", "-- Dumped by pg_dump version")
_numbers = itertools.count(1)


class NewDatabase(Protocol):
    """Makes an empty database and returns its DSN; it is dropped after the test."""

    def __call__(self, server: ThrowawayServer, name: str | None = None, *, options: str = "") -> str: ...


def available_majors() -> list[int]:
    """Which of the tested versions this machine can run a server of, oldest first."""
    found = {installation.major for installation in find_installations() if installation.has("postgres", "initdb")}
    return [major for major in TESTED_MAJORS if major in found]


def _server(major: int, factory: pytest.TempPathFactory) -> Iterator[ThrowawayServer]:
    if major not in available_majors():
        pytest.skip(f"no PostgreSQL {major} server on this machine")
    installation = choose_server(find_installations(), major)
    with ThrowawayServer(installation, factory.mktemp(f"pg{major}") / "server", port=0, settings=FAST) as server:
        yield server


@pytest.fixture(scope="session")
def pg15(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayServer]:
    yield from _server(15, tmp_path_factory)


@pytest.fixture(scope="session")
def pg17(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayServer]:
    yield from _server(17, tmp_path_factory)


@pytest.fixture(scope="session")
def pg18(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayServer]:
    yield from _server(18, tmp_path_factory)


@pytest.fixture(params=TESTED_MAJORS, ids=lambda major: f"pg{major}")
def any_pg(request: pytest.FixtureRequest) -> ThrowawayServer:
    """Runs the test once per version."""
    return cast(ThrowawayServer, request.getfixturevalue(f"pg{request.param}"))


@pytest.fixture
def new_database() -> Iterator[NewDatabase]:
    made: list[tuple[ThrowawayServer, str]] = []

    def make(server: ThrowawayServer, name: str | None = None, *, options: str = "") -> str:
        database = name or f"test_{os.getpid()}_{next(_numbers)}"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0 {}").format(
            sql.Identifier(database), sql.SQL(options)
        )
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(statement)
        made.append((server, database))
        return server.dsn(database)

    yield make
    for server, database in made:
        drop_database(server, database)


def drop_database(server: ThrowawayServer, name: str) -> None:
    """Drop it whatever holds it: sessions, or subscriptions, which DROP DATABASE refuses to take along."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).rowcount:
            return
        query = "SELECT subname FROM pg_subscription s JOIN pg_database d ON d.oid = subdbid WHERE datname = %s"
        subscriptions = [row[0] for row in connection.execute(query, [name])]
        if subscriptions:
            with psycopg.connect(server.dsn(name), autocommit=True) as inside:
                for subscription in map(sql.Identifier, subscriptions):
                    inside.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(subscription))
                    inside.execute(sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)").format(subscription))
                    inside.execute(sql.SQL("DROP SUBSCRIPTION {}").format(subscription))
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def client_for(server: ThrowawayServer) -> Installation:
    """The programs that fit this server."""
    return choose_client(find_installations(), server.version[0])


def run(installation: Installation, program: str, *arguments: str, feed: bytes | None = None) -> bytes:
    """Run one of PostgreSQL's programs to its end and return its stdout; PostgresError quotes its stderr."""
    command: list[str | Path] = [installation.program(program), *arguments]
    done = subprocess.run(
        command, input=feed, capture_output=True, check=False, env={**os.environ, "PGTZ": "UTC", "LC_ALL": "C"}
    )
    if done.returncode != 0:
        raise PostgresError(
            f"{program} exited with {done.returncode}", detail=done.stderr.decode(errors="replace")[-4000:]
        )
    return done.stdout


def dump_sql(installation: Installation, dsn: str, *options: str) -> list[str]:
    """A database as the sorted lines of a plain dump: equal for equal databases, whatever the order of rows.

    The time zone is fixed, because ALTER DATABASE SET may have given the two different ones.
    """
    text = run(installation, "pg_dump", f"--dbname={dsn}", *options).decode("utf-8", "surrogateescape")
    return sorted(line for line in text.split("\n") if not line.startswith(_NOISE))


def bulk(dsn: str, table: str, *, rows: int, width: int = 100) -> None:
    """A new table `(id bigint primary key, payload text)` of this many rows; payloads of `width` characters."""
    name = sql.Identifier(table)
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(sql.SQL("CREATE TABLE {} (id bigint PRIMARY KEY, payload text NOT NULL)").format(name))
        with cursor.copy(sql.SQL("COPY {} FROM STDIN").format(name)) as copy:
            for number in range(rows):
                copy.write_row((number, f"{number:x}".rjust(width, "-")))
