"""The databases of a server."""

from __future__ import annotations

from contextlib import closing

from backupd.postgres.mark import is_mark
from backupd.postgres.scratch import PREFIX
from backupd.postgres.session import Dsn, connect, explained


def databases(dsn: Dsn) -> list[str]:
    """Those that one can connect to, in order; no templates, no scratch databases, no unfinished restores of ours.

    Raises PostgresError."""
    with closing(connect(dsn)) as connection, explained("the server's databases could not be listed"):
        rows = connection.execute(
            "select datname, shobj_description(oid, 'pg_database') from pg_database"
            " where datallowconn and not datistemplate order by datname"
        ).fetchall()
    return [str(name) for name, comment in rows if not is_mark(comment) and not str(name).startswith(PREFIX)]
