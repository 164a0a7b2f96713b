"""What fault tests look at from outside: processes, sessions, locks, what a store holds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import psycopg

from backupd.storage.base import Storage

SOON = 10.0  # seconds in which what was killed must be gone, on a slow machine


def eventually(condition: Callable[[], bool], seconds: float = SOON) -> bool:
    """Whether the condition comes true within this time; asked often, so it should be cheap."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def command_lines() -> Iterator[tuple[int, bytes]]:
    """Every process that lives, with its arguments; the dead that nobody collected have none."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                line = (folder / "cmdline").read_bytes()
                if line:
                    yield int(folder.name), line


def programs_on(database: str, *names: str) -> list[int]:
    """PostgreSQL's programs that work on this database, all or those with these names."""
    wanted = names or ("pg_dump", "pg_dumpall", "pg_restore")
    return sorted(
        pid
        for pid, line in command_lines()
        if Path(os.fsdecode(line.split(b"\0")[0])).name in wanted and f"dbname={database}".encode() in line
    )


def sessions(server_dsn: str, database: str) -> list[str]:
    """backupd's sessions on this database, and the locks of whoever but we holds any there."""
    with closing(psycopg.connect(server_dsn, autocommit=True)) as connection:
        rows = connection.execute(
            """
            select format('session %%s %%s: %%s', pid, application_name, query) from pg_stat_activity
              where datname = %s and backend_type = 'client backend' and pid <> pg_backend_pid()
            union all
            select format('%%s %%s held by %%s', mode, locktype, pid) from pg_locks
              where database = (select oid from pg_database where datname = %s) and pid <> pg_backend_pid()
              and pid not in (select pid from pg_stat_activity where backend_type = 'autovacuum worker')
            """,
            [database, database],
        ).fetchall()
    return [str(row[0]) for row in rows]


def left_behind(storage: Storage, database: str) -> list[str]:
    """Objects and unfinished uploads under DATABASE/data and DATABASE/signatures."""
    found = []
    for kind in ("data", "signatures"):
        prefix = f"{database}/{kind}/"
        found += [info.key for info in storage.list(prefix)]
        found += [f"unfinished: {upload.key}" for upload in storage.unfinished(prefix)]
    return found


def committed(storage: Storage, database: str) -> set[str]:
    """The backups that exist, by what makes them exist."""
    prefix = f"{database}/manifests/"
    return {info.key.removeprefix(prefix).removesuffix(".json") for info in storage.list(prefix)}
