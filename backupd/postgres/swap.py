"""Putting a restored database in the original's place: two renames in one transaction.

ALTER DATABASE … RENAME locks the database as an object before it looks for other sessions, and every new session takes
that lock before it is let in. So from the first rename to the commit nobody gets in, who was in is ended meanwhile, and
whatever happens to us before the commit, the server undoes both renames.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from time import monotonic

import psycopg

from backupd.errors import PostgresError, RefusedError
from backupd.postgres.names import renames
from backupd.postgres.session import Dsn, connect, describe, explained

_TRIES = 5  # a rename waits for other sessions up to five seconds, and we end them all the while
_PAUSE = 0.02  # seconds between two looks for sessions that came or stayed
_LOCK_TIMEOUT = "10s"


@dataclass(frozen=True, slots=True)
class Swapped:
    seconds: float  # for which new sessions had to wait
    ended: int  # sessions


def swap(dsn: Dsn, name: str, restored: str, kept: str | None) -> Swapped:
    """`restored` becomes `name`, and what had this name becomes `kept`: both or neither. `dsn` names another database.

    Raises PostgresError if the server refuses, RefusedError if somebody's session can't be ended. Whatever it raises
    has a note on what the databases are called now.
    """
    with closing(connect(dsn)) as looking:
        oid = _oid(looking, restored)
    ended = 0
    for last in (False,) * (_TRIES - 1) + (True,):
        began = monotonic()
        try:
            ended += _attempt(dsn, name, restored, kept)
        except psycopg.errors.ObjectInUse as error:
            if last:
                refused = _in_use(error, dsn, [restored, *([name] if kept is not None else [])])
                refused.add_note(_told(name, restored, kept, taken=False))
                raise refused from error
        except BaseException as error:
            taken = _taken(dsn, name, oid)
            if taken and not isinstance(error, KeyboardInterrupt):
                return Swapped(monotonic() - began, ended)  # the answer to COMMIT was lost, or came too late for us
            note = _told(name, restored, kept, taken)
            if isinstance(error, psycopg.Error):
                refused_by_server = PostgresError(
                    f"{restored} could not take the name {name}",
                    detail=describe(error),
                    hint="The user must own both databases and have CREATEDB, or be a superuser.",
                )
                refused_by_server.add_note(note)
                raise refused_by_server from error
            error.add_note(note)
            raise
        else:
            return Swapped(monotonic() - began, ended)
    raise AssertionError("the last attempt returned or raised")


def _attempt(dsn: Dsn, name: str, restored: str, kept: str | None) -> int:
    """One try, and how many sessions it ended. When it returns or raises, nothing of it goes on."""
    doomed = [restored, *([name] if kept is not None else [])]
    with (
        closing(connect(dsn, settings={"lock_timeout": _LOCK_TIMEOUT}, autocommit=False)) as renaming,
        closing(connect(dsn)) as ending,
        ThreadPoolExecutor(1, thread_name_prefix="swap") as pool,
    ):
        attempt = pool.submit(_rename, renaming, renames(name, restored, kept))
        try:
            ended = _end_sessions(ending, doomed, attempt)
        finally:
            wait([attempt])
        attempt.result()
    return ended


def _oid(connection: psycopg.Connection, name: str) -> int | None:
    with explained("the databases could not be looked up"):
        row = connection.execute("select oid from pg_database where datname = %s", [name]).fetchone()
    return int(row[0]) if row else None


def _taken(dsn: Dsn, name: str, oid: int | None) -> bool | None:
    """Whether the restored database has the name; None if the server does not say."""
    try:
        with closing(connect(dsn)) as connection:
            return oid is not None and _oid(connection, name) == oid
    except PostgresError:
        return None


def _told(name: str, restored: str, kept: str | None, taken: bool | None) -> str:
    by_hand = " ".join(renames(name, restored, kept))
    if taken:
        return f"The names were swapped by then: {name} is the restored database, complete."
    if taken is None:
        return (
            f"Whether the names were swapped can't be known now. If there is still a database {restored}, which is"
            f" complete, they were not. To swap them then, in one transaction: BEGIN; {by_hand} COMMIT;"
        )
    return (
        f"The restored database is complete, as {restored}; {name} was not touched."
        f" To swap them later, in one transaction: BEGIN; {by_hand} COMMIT;"
    )


def _rename(connection: psycopg.Connection, statements: Sequence[str]) -> None:
    try:
        for statement in statements:
            connection.execute(statement.encode())
        connection.commit()
    except BaseException:
        if not connection.broken:
            connection.rollback()
        raise


def _end_sessions(connection: psycopg.Connection, databases: Sequence[str], attempt: Future[None]) -> int:
    """End every session on these databases until the attempt is over. Those that we may not end stay.

    Autovacuum is not ours to end: the rename does that itself.
    """
    ended: set[int] = set()
    query = """
        select pid, pg_terminate_backend(pid) from pg_stat_activity a join pg_roles r on r.oid = a.usesysid
        where datname = any(%s) and pid <> pg_backend_pid()
          and ((select rolsuper from pg_roles where rolname = current_user)
               or (not rolsuper and (pg_has_role(r.oid, 'USAGE') or pg_has_role('pg_signal_backend', 'USAGE'))))
    """
    while not attempt.done():
        with explained("the sessions on the database could not be ended"):
            ended |= {pid for pid, done in connection.execute(query, [list(databases)]).fetchall() if done}
        wait([attempt], _PAUSE)
    return len(ended)


def _in_use(error: psycopg.Error, dsn: Dsn, databases: Sequence[str]) -> RefusedError:
    with closing(connect(dsn)) as connection, explained("the sessions that stayed could not be looked up"):
        rows = connection.execute(
            "select format('%%s: pid %%s of %%s, %%s', datname, pid, usename, coalesce(nullif(application_name, ''),"
            " backend_type)) from pg_stat_activity where datname = any(%s) union all"
            " select format('%%s: prepared transaction %%s of %%s', database, gid, owner) from pg_prepared_xacts"
            " where database = any(%s) limit 10",
            [list(databases), list(databases)],
        ).fetchall()
    return RefusedError(
        "somebody stays connected to the database, and this user may not end the session",
        detail="\n".join([describe(error), *(row[0] for row in rows)]),
        hint="As a superuser, end those sessions (select pg_terminate_backend(PID)) and finish prepared transactions.",
    )
