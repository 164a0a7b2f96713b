"""A deadlock that PostgreSQL cannot see: a dump waits for a migration, which waits for the backup's own session."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import psycopg

from backupd.postgres.server import ThrowawayServer
from tests.postgres import NewDatabase, bulk
from tests.site import local_site


def dump_of(table: str, database: str, seconds: float) -> int:
    """The process that dumps this table alone, stopped as soon as it is seen."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if words[0].endswith(b"pg_dump") and f'--table="public"."{table}"'.encode() in words:
                    if not any(f"dbname={database}".encode() in word for word in words):
                        continue
                    pid = int(path.parent.name)
                    os.kill(pid, signal.SIGSTOP)
                    return pid
    raise AssertionError(f"no dump of {table} was seen")


def waits_for_lock(server: ThrowawayServer, query: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        while time.monotonic() < deadline:
            found = connection.execute(
                "select 1 from pg_stat_activity where wait_event_type = 'Lock' and query like %s", [query]
            ).fetchone()
            if found:
                return True
            time.sleep(0.02)
    return False


def test_a_dump_that_waits_for_who_waits_for_us(
    pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path
) -> None:
    dsn = new_database(pg15)
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    bulk(dsn, "first", rows=150_000, width=200)  # the larger one is dumped before the other
    with psycopg.connect(dsn) as connection:
        connection.execute("create table second (id bigserial primary key, t text)")
        connection.execute("create table third ()")
        connection.execute("insert into second (t) select 'x' from generate_series(1, 1000)")
    site = local_site(tmp_path, {"shop": dsn})
    site.set("large_table_size", '"0"', table="defaults")
    site.set("lock_wait_timeout", '"3s"', table="defaults")
    backup = site.start("backup", "--jobs", "1")
    try:
        stopped = dump_of("first", str(name), 60)
        migration = psycopg.connect(dsn)
        migration.execute("alter sequence second_id_seq rename to second_number")
        altering = threading.Thread(target=migration.execute, args=("alter table third add column u int",))
        altering.start()
        assert waits_for_lock(pg15, "alter table third%", 30)
        os.kill(stopped, signal.SIGCONT)
        _, errors = backup.communicate(timeout=60)
        altering.join(30)  # the migration got through
        assert not altering.is_alive()
        migration.commit()
        migration.close()
    finally:
        backup.kill()
        backup.communicate()
    assert backup.returncode == 6, errors
    assert "for a lock" in errors
    assert site.backups() == []
    site.run("backup")


def test_a_backup_gives_way(pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path) -> None:
    """A migration that queues behind the dump gets through, and nothing of the backup is left."""
    dsn = new_database(pg15)
    bulk(dsn, "large", rows=4000, width=1000)
    with psycopg.connect(dsn) as connection:
        connection.execute("create table noise as select gen_random_uuid() u from generate_series(1, 100000)")
    site = local_site(tmp_path, {"shop": dsn})
    site.set("bandwidth_limit", '"50kB"', table="defaults")
    site.set("give_way_after", '"2s"', table="defaults")
    backup = site.start("backup")
    try:
        assert backup.stderr is not None
        while "dumping" not in backup.stderr.readline():
            assert backup.poll() is None
        began = time.monotonic()
        with psycopg.connect(dsn) as migration:
            migration.execute("set lock_timeout = '40s'")
            migration.execute("alter table noise add column more int")
        took = time.monotonic() - began
        _, errors = backup.communicate(timeout=60)
    finally:
        backup.kill()
        backup.communicate()
    assert 1.5 < took < 35, errors
    assert backup.returncode == 6, errors
    assert "gave way to session" in errors
    assert "alter table noise" in errors
    assert site.backups() == []
    assert not [path for path in (tmp_path / "repository").rglob("*.age") if path.is_file()]
