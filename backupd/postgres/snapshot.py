"""One consistent view of a database, shared by every dump and count of a backup.

The order matters. All tables are locked *before* the snapshot is taken: TRUNCATE and table rewrites are not
seen by snapshots as other changes are, so a table truncated between snapshot and lock would be dumped empty,
without an error. LOCK TABLE takes no snapshot of its own, so one transaction can do both in this order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Event, Thread

import psycopg

from backupd.errors import PostgresError
from backupd.postgres import claim, fingerprint, inventory
from backupd.postgres.inventory import SourceTable
from backupd.postgres.process import Running
from backupd.postgres.session import Dsn, Interruptible, connect, describe, explained

_LOCKS_PER_STATEMENT = 500
_ATTEMPTS = 5
_PATIENCE = 10.0  # seconds in which the watch is waited for at the end
# A table, or its schema, was dropped or renamed, or something else has its name now.
_VANISHED = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psycopg.errors.WrongObjectType)


@dataclass(frozen=True, slots=True)
class Source:
    """What the dump is made of, as of the snapshot."""

    dsn: Dsn  # pinned to the very server that the snapshot is on
    snapshot: str  # for pg_dump --snapshot
    taken_at: datetime  # by the server's clock, just after the snapshot: nothing later is in it
    tables: tuple[SourceTable, ...]
    version_num: int  # 150018
    version: str  # "15.18"
    standby: bool
    encoding: str  # of the database: UTF8
    connection: psycopg.Connection

    @property
    def major(self) -> int:
        return self.version_num // 10000

    def release(self) -> None:
        """Give up the locks and the snapshot at once."""
        with suppress(psycopg.Error):
            self.connection.close()

    def check_alive(self) -> None:
        """Raise if the transaction that holds locks and snapshot is gone."""
        with explained("the session that holds the snapshot was lost"):
            self.connection.execute("select 1")


@contextmanager
def take(
    dsn: Dsn,
    *,
    lock_timeout: timedelta,
    holder: str,
    parallel: bool = False,
    claimed: Callable[[], None] = lambda: None,
) -> Iterator[Source]:
    """Lock every table in ACCESS SHARE mode and export a snapshot; both end with the block.

    Queries of the session use several processes only if `parallel`.
    `holder` names what may run only once at a time on this database (the repository's id). Raises BusyError if
    another backup holds it, PostgresError when a lock is not had within `lock_timeout`. `claimed` is called when the
    database is ours, and nothing in it is locked yet; what it raises comes through.
    """
    # Counting in one process: the dumps have the machine's other cores to use, and the source has other work.
    alone = {} if parallel else {"max_parallel_workers_per_gather": "0"}
    with closing(connect(dsn, settings={**fingerprint.SETTINGS, **alone})) as connection:
        with explained("the server could not be asked for what a backup needs to know"):
            claim.take(connection, holder, "backup")
        claimed()
        with explained("the server could not be asked for what a backup needs to know"):
            version, version_num, standby = _identify(connection)
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        snapshot, taken_at, tables = _lock_and_export(connection, standby, lock_timeout)
        yield Source(
            dsn=dsn.pinned(connection),
            snapshot=snapshot,
            taken_at=taken_at,
            tables=tuple(tables),
            version_num=version_num,
            version=version,
            standby=standby,
            encoding=connection.info.parameter_status("server_encoding") or "",
            connection=connection,
        )


def _lock_and_export(
    connection: psycopg.Connection, standby: bool, timeout: timedelta
) -> tuple[str, datetime, list[SourceTable]]:
    """Lock what is there, take the snapshot, and see in it whether that was all; if not, once more."""
    for _ in range(_ATTEMPTS):
        with explained("the tables could not be listed"):
            expected = inventory.tables(connection, standby=standby, sizes=False)
        connection.autocommit = False
        if _lock(connection, expected, timeout):
            with explained("the snapshot could not be taken"):
                snapshot, taken_at = _export(connection)
                seen = inventory.tables(connection, standby=standby)
            if [(t.oid, t.sql) for t in seen] == [(t.oid, t.sql) for t in expected]:
                return snapshot, taken_at, seen
        connection.rollback()
        connection.autocommit = True
    raise PostgresError(
        "tables are created, renamed or dropped faster than they can be locked",
        detail=f"The list of tables changed {_ATTEMPTS} times between locking them and the snapshot.",
        hint="Run the backup when no migration is running.",
    )


def _identify(connection: psycopg.Connection) -> tuple[str, int, bool]:
    row = connection.execute(
        "select current_setting('server_version'), current_setting('server_version_num')::int, pg_is_in_recovery()"
    ).fetchone()
    assert row is not None
    return str(row[0]).split()[0], int(row[1]), bool(row[2])


def _lock(connection: psycopg.Connection, tables: Sequence[SourceTable], timeout: timedelta) -> bool:
    """Take ACCESS SHARE on all of them; False if one was dropped or renamed meanwhile."""
    connection.execute(f"set lock_timeout = {int(timeout.total_seconds() * 1000)}".encode())
    try:
        for start in range(0, len(tables), _LOCKS_PER_STATEMENT):
            names = ", ".join(f"only {t.sql}" for t in tables[start : start + _LOCKS_PER_STATEMENT])
            connection.execute(f"lock table {names} in access share mode".encode())
        connection.execute("set lock_timeout = 0")
    except psycopg.errors.LockNotAvailable as error:
        connection.rollback()
        raise PostgresError(
            f"a table could not be locked within {timeout.total_seconds():g} s",
            detail=_blockers(connection) or describe(error),
            hint="Another session (a migration?) holds it exclusively. Try again when it is done,"
            " or raise lock_wait_timeout.",
        ) from error
    except psycopg.errors.OutOfMemory as error:
        raise PostgresError(
            f"the server has too few lock slots for {len(tables)} tables",
            detail=describe(error),
            hint="Raise max_locks_per_transaction on the server (it needs a restart).",
        ) from error
    except _VANISHED:
        return False
    except psycopg.Error as error:
        raise PostgresError(
            "the tables could not be locked",
            detail=describe(error),
            hint="The user must be able to read every table: GRANT pg_read_all_data TO … (PostgreSQL 14 and later).",
        ) from error
    return True


def _blockers(connection: psycopg.Connection) -> str:
    """Who holds tables exclusively just now, or waits to."""
    rows = connection.execute(
        """
        select format('%s is %s by session %s (%s, %s)', c.oid::regclass,
                      case when l.granted then 'held' else 'waited for' end, a.pid, a.usename,
                      coalesce(nullif(a.application_name, ''), 'no application name'))
        from pg_locks l join pg_stat_activity a on a.pid = l.pid join pg_class c on c.oid = l.relation
        where l.mode = 'AccessExclusiveLock' and l.locktype = 'relation' and a.pid <> pg_backend_pid()
          and l.database = (select oid from pg_database where datname = current_database())
          and c.relkind in ('r', 'p') and c.relpersistence <> 't' order by not l.granted, c.oid limit 5
        """
    ).fetchall()
    return "\n".join(str(row[0]) for row in rows)


def _export(connection: psycopg.Connection) -> tuple[str, datetime]:
    row = connection.execute("select pg_export_snapshot(), clock_timestamp()").fetchone()
    assert row is not None
    return str(row[0]), row[1].astimezone(UTC)


class Watch:
    """Looks out for a deadlock that nobody else can see, until closed.

    A program of ours can wait for a lock that a migration holds (on a sequence, say, which pg_dump's own time-out
    does not cover), while the migration waits for a table that our session holds: PostgreSQL knows nothing of the
    way we wait for the program. So nothing of ours may wait for a lock longer than the time-out.

    And it gives way: who queues behind our locks holds up everybody who comes after. `give_way_after` says for how
    long that may last; 0: until the dump is done.
    """

    def __init__(
        self,
        source: Source,
        application: str,
        timeout: timedelta,
        running: Running,
        give_way_after: timedelta = timedelta(),
    ) -> None:
        self.error: PostgresError | None = None
        self._source = source
        self._application = application
        self._timeout = timeout
        self._running = running
        self._give_way_after = give_way_after
        self._done = Event()
        self._thread = Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(_PATIENCE)  # a server that answers nothing must not keep us: the thread ends with us

    def _run(self) -> None:
        patience = min(filter(None, (self._timeout, self._give_way_after)))
        interval = min(2.0, patience.total_seconds() / 2)
        while True:
            # If the server is gone, every other part of the backup notices; else it has room again soon.
            with suppress(PostgresError, psycopg.Error):
                self._look_on(interval)
            if self._done.wait(interval) or self.error is not None:
                return

    def _look_on(self, interval: float) -> None:
        with closing(connect(self._source.dsn)) as connection:
            query = Interruptible(connection)
            self._running.add(query)
            try:
                while not self._done.wait(interval) and self.error is None:
                    self._look(connection)
                    if self._give_way_after:
                        self._look_behind(connection)
            finally:
                self._running.remove(query)

    def _look(self, connection: psycopg.Connection) -> None:
        row = connection.execute(
            """
            select a.query, string_agg(format('session %%s (%%s, %%s)', b.pid, b.usename, b.application_name), ', ')
            from pg_stat_activity a, pg_stat_activity b
            where a.application_name = %s and a.wait_event_type = 'Lock' and b.pid = any(pg_blocking_pids(a.pid))
              and clock_timestamp() - a.query_start > %s
            group by a.pid, a.query
            """,
            [self._application, self._timeout],
        ).fetchone()
        if row is not None:
            self._stop(
                f"a dump waited longer than {self._timeout.total_seconds():g} s for a lock",
                detail=f"{row[0][:200]}\nwaits for {row[1]}",
                hint="That session may itself be waiting for the backup. Try again later, or raise lock_wait_timeout.",
            )

    def _look_behind(self, connection: psycopg.Connection) -> None:
        """Who waits for a table that we hold, and for how long."""
        since = "l.waitstart" if self._source.major >= 14 else "w.query_start"
        row = connection.execute(
            f"""
            select w.pid, w.usename, w.application_name, w.query, extract(epoch from clock_timestamp() - {since})
            from pg_locks l join pg_stat_activity w on w.pid = l.pid
            where not l.granted and l.locktype = 'relation' and clock_timestamp() - {since} > %s
              and w.application_name not like 'backupd%%'
              and exists (select from pg_stat_activity b where b.pid = any(pg_blocking_pids(l.pid))
                          and (b.pid = %s or b.application_name = %s))
            order by {since} limit 1
            """.encode(),  # noqa: S608
            [self._give_way_after, self._source.connection.info.backend_pid, self._application],
        ).fetchone()
        if row is not None:
            self._stop(
                f"the backup gave way to session {row[0]}, which had waited {float(row[4]):.0f} s for its locks",
                detail=f"{row[1]} ({row[2] or 'no application name'}): {str(row[3])[:200]}",
                hint="It is tried again later. How long others may wait is give_way_after.",
            )

    def _stop(self, message: str, *, detail: str, hint: str) -> None:
        self.error = PostgresError(message, detail=detail, hint=hint)
        self._running.stop()
