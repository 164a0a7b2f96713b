"""The database that a restore fills: claimed, created, loaded again, counted, and dropped if it comes to nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial

import psycopg
from psycopg import sql

from backupd.errors import BusyError, PostgresError
from backupd.manifest import DatabaseProperties
from backupd.postgres import properties, workers
from backupd.postgres.process import Running
from backupd.postgres.session import Dsn, Interruptible, connect, describe, explained
from backupd.postgres.target import Server

_COUNTS_PER_QUERY = 100  # each locks a table until the query ends


class Claim:
    """The right to fill a database, held by a session of our own: no two restores do at a time, from whatever hosts."""

    def __init__(self, connection: psycopg.Connection, name: str) -> None:
        self._connection = connection
        self._name = name
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raises PostgresError if the session was lost, and another restore may have begun."""
        with self._lock, explained(f"the claim on the database {self._name} was lost"):
            self._connection.execute("select 1")


@contextmanager
def claimed(server: Server, name: str) -> Iterator[Claim]:
    """Raises BusyError if another restore is filling this database."""
    with closing(connect(server.dsn)) as connection:
        with explained(f"the database {name} could not be claimed"):
            row = connection.execute(
                "select pg_try_advisory_lock(hashtextextended(%s, 0))", [f"backupd restores {name}"]
            ).fetchone()
        if not row or not row[0]:
            raise BusyError(
                f"another restore is filling the database {name} on {server.dsn.server}",
                hint="Wait for it to end, or restore into another database: --into NAME",
            )
        yield Claim(connection, name)


def end_sessions(server: Server, name: str) -> None:
    """End every session on a database of ours: those that a killed restore left would go on writing to it."""
    with closing(connect(server.dsn)) as connection, explained(f"the sessions on {name} could not be ended"):
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = %s and backend_type = 'client backend' and usename = current_user",
            [name],
        )


def create_database(server: Server, name: str, wanted: DatabaseProperties) -> None:
    """An empty database with the original's encoding and locale. Raises PostgresError."""
    try:
        with (
            closing(connect(server.dsn)) as connection,
            explained(
                f"cannot create the database {name}",
                hint="The target must have the original's encoding and locale:"
                f" {wanted.encoding}, {wanted.collate} ({wanted.locale_provider}).",
            ),
        ):
            connection.execute(properties.creation(sql.Identifier(name), wanted, server.major))
    except PostgresError as error:
        if isinstance(error.__cause__, psycopg.Error) and error.__cause__.sqlstate is None:
            error.add_note(f"If the server answered too late, there is an empty database {name} now: see, and drop it.")
        raise


def join(server: Server, roles: Iterable[str]) -> None:
    """Make the restoring user a member of roles that it created, so that it can give things to them and fill them."""
    options = sql.SQL(" with inherit true, set true" if server.major >= 16 else "")
    with closing(connect(server.dsn)) as connection:
        for role in roles:
            with explained(f"{server.user} could not become a member of the new role {role}"):
                connection.execute(
                    sql.SQL("grant {} to {}{}").format(sql.Identifier(role), sql.Identifier(server.user), options)
                )


def drop_public_schema(dsn: Dsn) -> None:
    """As in the original, which had none: pg_dump says nothing of a schema that is not there."""
    with closing(connect(dsn)) as connection, explained("cannot drop the schema public in the new database"):
        connection.execute("drop schema if exists public")


def empty(dsn: Dsn, tables: Sequence[tuple[str, str]], *, large_objects: bool) -> None:
    """Take all rows out of these tables, and all large objects away, before they are loaded again."""
    with closing(connect(dsn, autocommit=False)) as connection, explained("what was loaded could not be taken back"):
        for number, (schema, name) in enumerate(tables, 1):
            connection.execute(sql.SQL("truncate only {}").format(sql.Identifier(schema, name)))
            if number % _COUNTS_PER_QUERY == 0:
                connection.commit()  # each locks its table until then
        connection.commit()
        query = "select lo_unlink(oid) from (select oid from pg_largeobject_metadata limit 1000) as batch"
        while large_objects and connection.execute(query).rowcount:
            connection.commit()  # each is a lock until then


def that_can_be_emptied(dsn: Dsn, tables: Sequence[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    """Those of the tables, as (schema, name), which TRUNCATE takes from this user, and COPY then with FREEZE."""
    with closing(connect(dsn)) as connection, explained("the new tables could not be listed"):
        rows = connection.execute(
            "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            " where c.relkind = 'r' and has_table_privilege(c.oid, 'truncate')"
        ).fetchall()
    return frozenset((str(schema), str(name)) for schema, name in rows).intersection(tables)


def drop_largest(dsn: Dsn) -> None:
    """Make room on a full disk: dropping a database begins with a checkpoint, and a server without room for that one
    stops. Dropping tables needs none."""
    with closing(connect(dsn)) as connection, explained("the largest tables could not be dropped"):
        rows = connection.execute(
            "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = relnamespace"
            " where relkind = 'r' and c.oid >= 16384 order by pg_table_size(c.oid) desc limit 20"
        ).fetchall()
        for name in rows:
            connection.execute(sql.SQL("drop table if exists {} cascade").format(sql.Identifier(*name)))


def drop_database(server: Server, name: str) -> None:
    """Drop a database of ours, ending the sessions on it."""
    query = sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
    with closing(connect(server.dsn)) as connection, explained(f"cannot drop the database {name}"):
        try:
            connection.execute(query)
        except psycopg.errors.ObjectInUse:  # it holds subscriptions, which only a session on it can drop
            drop_subscriptions(server.dsn.replace(dbname=name))
            connection.execute(query)


def drop_loose_indexes(dsn: Dsn) -> None:
    """Drop the indexes of partitions that are not (yet) part of their parents' indexes, and the keys that rest on them.

    pg_restore --clean leaves them: it counts on their going with the parents' indexes, to which an interrupted restore
    may not have attached them.
    """
    with closing(connect(dsn)) as connection, explained("half-made indexes could not be dropped"):
        rows = connection.execute(
            """
            select tn.nspname, t.relname, xn.nspname, x.relname, c.conname
            from pg_index i join pg_class t on t.oid = i.indrelid join pg_namespace tn on tn.oid = t.relnamespace
              join pg_class x on x.oid = i.indexrelid join pg_namespace xn on xn.oid = x.relnamespace
              left join pg_constraint c on c.conindid = x.oid and c.conrelid = t.oid and c.contype in ('p', 'u', 'x')
            where t.relispartition and not exists (select from pg_inherits where inhrelid = x.oid)
            """
        ).fetchall()
        for table_schema, table, index_schema, index, constraint in rows:
            if constraint is None:
                query = sql.SQL("drop index if exists {}").format(sql.Identifier(index_schema, index))
            else:
                query = sql.SQL("alter table {} drop constraint if exists {}").format(
                    sql.Identifier(table_schema, table), sql.Identifier(constraint)
                )
            connection.execute(query)


def drop_subscriptions(dsn: Dsn) -> None:
    """Drop those of a database that we restore into. Their slots on the publisher are the original's: they are let go
    of first, as DROP SUBSCRIPTION would drop them there."""
    with closing(connect(dsn)) as connection, explained("the copy's subscriptions could not be dropped"):
        rows = connection.execute(
            "select subname from pg_subscription"
            " where subdbid = (select oid from pg_database where datname = current_database())"
        ).fetchall()
        for name in (sql.Identifier(row[0]) for row in rows):
            connection.execute(sql.SQL("alter subscription {} disable").format(name))
            connection.execute(sql.SQL("alter subscription {} set (slot_name = none)").format(name))
            connection.execute(sql.SQL("drop subscription {}").format(name))


@contextmanager
def _interruptible(dsn: Dsn, running: Running) -> Iterator[psycopg.Connection]:
    """A session whose query ends when everything in `running` is ended."""
    with closing(connect(dsn)) as connection:
        query = Interruptible(connection)
        running.add(query)
        try:
            yield connection
        finally:
            running.remove(query)


def count_rows(dsn: Dsn, tables: Sequence[tuple[str, str]], running: Running) -> list[int]:
    """count(*) of each (schema, table), in their order."""
    counted: list[int] = []
    with _interruptible(dsn, running) as connection, explained("the restored rows could not be counted"):
        for start in range(0, len(tables), _COUNTS_PER_QUERY):
            counted += count(connection, tables[start : start + _COUNTS_PER_QUERY])
    return counted


def count(connection: psycopg.Connection, tables: Sequence[tuple[str, str]]) -> list[int]:
    """count(*) of each (schema, table), in their order, in one query."""
    query = sql.SQL(" union all ").join(
        sql.SQL("select {}, count(*) from only {}").format(sql.Literal(i), sql.Identifier(*table))
        for i, table in enumerate(tables)
    )
    return [int(rows) for _, rows in sorted(connection.execute(query).fetchall())] if tables else []


def analyze(dsn: Dsn, jobs: int, running: Running) -> list[str]:
    """Gather statistics, largest tables first, on `jobs` sessions. Returns what could not be analyzed."""
    with closing(connect(dsn)) as connection, explained("cannot list the tables to analyze"):
        rows = connection.execute(
            """
            select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = relnamespace
            where relkind in ('r', 'p', 'm') and relpersistence <> 't'
              and nspname <> 'information_schema' and nspname !~ '^pg_'
              and (relkind <> 'm' or relispopulated)
            order by pg_table_size(c.oid) desc
            """
        ).fetchall()
    tables = [str(row[0]) for row in rows]
    shares = [tables[start::jobs] for start in range(jobs) if tables[start::jobs]]
    tasks: list[Callable[[], list[str]]] = [partial(_analyze, dsn, share, running) for share in shares]
    refused, _ = workers.run(tasks, jobs, running) if tasks else ([], None)
    return [line for share in refused for line in share]


def _analyze(dsn: Dsn, tables: Sequence[str], running: Running) -> list[str]:
    refused = []
    with _interruptible(dsn, running) as connection, explained("the connection was lost during ANALYZE"):
        for table in tables:
            if running.stopped:
                break
            try:
                connection.execute(f"analyze {table}".encode())
            except psycopg.Error as error:
                if connection.broken:
                    raise
                refused.append(f"{table} was not analyzed: {describe(error)}")
    return refused
