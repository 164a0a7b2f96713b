"""One job of a kind for a database and a repository at a time, from whatever host: an advisory lock on the source. It
ends with the session that holds it, however that ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg

from backupd.errors import BusyError
from backupd.postgres.session import Dsn, connect, explained

_LOCK_CLASS = 0x62616B64  # "bakd": keeps our advisory locks apart from other programs'


def take(connection: psycopg.Connection, holder: str, what: str) -> None:
    """Raises BusyError if another session holds what `holder` names. `what` is for people: "backup"."""
    number = int.from_bytes(hashlib.sha256(holder.encode()).digest()[:4], "big", signed=True)
    row = connection.execute("select pg_try_advisory_lock(%s, %s)", [_LOCK_CLASS, number]).fetchone()
    if not (row and row[0]):
        raise BusyError(
            f"another {what} of {connection.info.dbname} is running",
            detail=f"A session on {connection.info.host or 'the local socket'} holds backupd's advisory lock.",
            hint="Wait for it, or find it: select * from pg_stat_activity where application_name like 'backupd%'",
        )


@contextmanager
def held(dsn: Dsn, holder: str, what: str) -> Iterator[None]:
    """Hold it on a connection of its own. Raises BusyError, and PostgresError where the server can't be asked."""
    with closing(connect(dsn)) as connection:
        with explained(f"the lock for a {what} could not be asked for"):
            take(connection, holder, what)
        yield
