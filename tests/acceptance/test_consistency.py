"""Every backup is one moment of the database, whatever others do to it meanwhile: write, truncate, migrate, lock."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from backupd.postgres.lifetime import happens
from backupd.postgres.server import ThrowawayServer
from tests.postgres import NewDatabase, client_for, drop_database, dump_sql, run
from tests.site import Site, local_site

SECONDS = 30  # for what takes a moment: a bound, never a pause


def fetch(dsn: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(query.encode()).fetchall()


def sessions(dsn: str) -> list[tuple[object, ...]]:
    """What backupd and its programs do in this database: wait event's type, query."""
    return fetch(
        dsn,
        "select wait_event_type, query from pg_stat_activity"
        " where application_name like 'backupd%' and datname = current_database()",
    )


def waiting(dsn: str, query: str) -> bool:
    """Whether one of backupd's sessions waits for a lock with a query like this."""
    return any(kind == "Lock" and re.search(query, str(text), re.IGNORECASE) for kind, text in sessions(dsn))


def wait_until_waiting(dsn: str, query: str, run: subprocess.Popen[str]) -> None:
    assert happens(lambda: waiting(dsn, query) or run.poll() is not None, SECONDS), sessions(dsn)
    assert run.poll() is None, run.communicate()


def finish(run: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a backup that was started, and return its log."""
    _, log = run.communicate(timeout=2 * SECONDS)
    assert run.returncode == code, log
    return log


@contextmanager
def started(site: Site, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command that runs beside the block, and not longer."""
    running = site.start(*arguments)
    try:
        yield running
    finally:
        if running.poll() is None:
            running.kill()
        running.communicate()


# ---- pgbench writes all the time


@contextmanager
def pgbench(server: ThrowawayServer, dsn: str) -> Iterator[None]:
    """The tpcb-like load: every transaction adds one amount to an account, a teller and a branch, and notes it."""
    program = client_for(server).program("pgbench")
    command = [str(program), "--no-vacuum", "--client=4", "--jobs=2", "--time=600", "--rate=400", dsn]
    load = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        yield
        assert load.poll() is None, f"pgbench ended early: {load.stderr.read() if load.stderr else ''}"
    finally:
        load.kill()
        load.communicate()


SUMS = """
select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches),
       (select sum(tbalance) from pgbench_tellers), (select coalesce(sum(delta), 0) from pgbench_history)
"""
BENCH_TABLES = ("pgbench_accounts", "pgbench_branches", "pgbench_history", "pgbench_tellers")


def bench_rows(dsn: str) -> dict[str, int]:
    query = ", ".join(f"(select count(*) from {table})" for table in BENCH_TABLES)
    return dict(zip(BENCH_TABLES, map(int, map(str, fetch(dsn, f"select {query}")[0])), strict=True))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("backups", [2, pytest.param(20, marks=pytest.mark.large)])
def test_each_backup_is_one_moment(
    pg15: ThrowawayServer, tmp_path: Path, new_database: NewDatabase, backups: int
) -> None:
    dsn, copy = new_database(pg15), f"moment_{os.getpid()}"
    run(client_for(pg15), "pgbench", "--initialize", "--scale=2", "--quiet", dsn)
    site = local_site(tmp_path, {"bench": dsn})
    site.set("large_table_size", '"16kB"', table="databases.bench")
    written = []
    with pgbench(pg15, dsn):
        for _ in range(backups):
            (made,) = site.run("backup", "--jobs", "2", "--json").json
            try:
                plan = site.run("restore", "bench", "--at", "latest", "--into", copy, "--jobs", "2", "--json").json
                assert plan["id"] == made["id"]
                sums, rows = fetch(pg15.dsn(copy), SUMS)[0], bench_rows(pg15.dsn(copy))
            finally:
                drop_database(pg15, copy)
            assert len(set(sums)) == 1, f"not of one moment: {sums}"
            manifest = json.loads((site.folder / f"repository/bench/manifests/{made['id']}.json").read_bytes())
            assert {table["name"]: table["rows"] for table in manifest["tables"]} == rows
            written.append(rows["pgbench_history"])
    own = {table["stream"] for table in manifest["tables"] if table["name"] in ("pgbench_accounts", "pgbench_history")}
    assert len(own) == 2
    assert "data-0000" not in own
    assert len(set(written)) == backups, f"nothing was written between some of the backups: {written}"


# ---- locks come before the snapshot, and hold until the end


@pytest.fixture
def shop_dsn(pg15: ThrowawayServer, new_database: NewDatabase) -> str:
    dsn = new_database(pg15)
    with psycopg.connect(dsn) as connection:
        # In this order backupd locks them: by age.
        for table in ("first", "second", "third"):
            connection.execute(f"create table {table} (i int)".encode())
            connection.execute(f"insert into {table} select generate_series(1, 10)".encode())
        connection.execute("create schema other")
        connection.execute("create table other.fourth as select generate_series(1, 10) i")
        connection.execute("select lo_from_bytea(0, 'large')")
    return dsn


@pytest.fixture
def shop(tmp_path: Path, shop_dsn: str) -> Site:
    site = local_site(tmp_path, {"shop": shop_dsn})
    site.set("large_table_size", '"0"', table="databases.shop")
    return site


@pytest.fixture
def other(shop_dsn: str) -> Iterator[psycopg.Connection]:
    """Another session. What it has begun is undone when the test is over."""
    connection = psycopg.connect(shop_dsn, application_name="migration")
    try:
        yield connection
    finally:
        connection.close()


def restored_like_source(site: Site, server: ThrowawayServer, dsn: str) -> None:
    """The newest backup holds what the database holds now."""
    copy = f"like_{os.getpid()}"
    try:
        site.run("restore", "shop", "--at", "latest", "--into", copy)
        assert dump_sql(client_for(server), server.dsn(copy)) == dump_sql(client_for(server), dsn)
    finally:
        drop_database(server, copy)


def rows_of(site: Site) -> dict[str, int]:
    return {table["name"]: table["rows"] for table in site.run("show", "shop", "--json").json["tables"]}


def test_a_truncate_before_the_lock_is_in_the_backup(
    shop: Site, pg15: ThrowawayServer, shop_dsn: str, other: psycopg.Connection
) -> None:
    """A snapshot from before such a commit would see an empty table: neither the old rows nor the new ones."""
    other.execute("truncate second")
    other.execute("insert into second select generate_series(1, 77)")
    with started(shop, "backup") as backup:
        wait_until_waiting(shop_dsn, "^lock table", backup)
        other.commit()
        finish(backup)
    assert rows_of(shop) == {"first": 10, "second": 77, "third": 10, "fourth": 10}
    restored_like_source(shop, pg15, shop_dsn)


@contextmanager
def held_up(site: Site, dsn: str) -> Iterator[tuple[subprocess.Popen[str], psycopg.Connection]]:
    """A backup whose last program waits for large objects, and who holds these: all tables are locked, and dumped.

    One program at a time, the smallest stream last: that of the large objects, as every table has its own.
    """
    with (
        psycopg.connect(dsn, application_name="holds it up") as holder,
        started(site, "backup", "--jobs", "1") as backup,
    ):
        holder.execute("lock table pg_largeobject in access exclusive mode")
        wait_until_waiting(dsn, "lo_open|loread", backup)
        assert len(sessions(dsn)) == 3, sessions(
            dsn
        )  # that program, ours with the locks and the snapshot, and the watch
        yield backup, holder


def test_a_truncate_waits_for_the_end_of_the_backup(shop: Site, pg15: ThrowawayServer, shop_dsn: str) -> None:
    def truncate() -> None:
        with psycopg.connect(shop_dsn, autocommit=True, application_name="truncates") as connection:
            connection.execute("truncate second")

    truncates = threading.Thread(target=truncate)
    with held_up(shop, shop_dsn) as (backup, holder):
        truncates.start()
        query = "select from pg_stat_activity where application_name = 'truncates' and wait_event_type = 'Lock'"
        assert happens(lambda: bool(fetch(shop_dsn, query)), SECONDS), "nothing kept TRUNCATE from doing its work"
        holder.rollback()
        finish(backup)
    truncates.join(SECONDS)
    assert not truncates.is_alive()
    assert fetch(shop_dsn, "select count(*) from second") == [(0,)]
    assert rows_of(shop)["second"] == 10


def test_a_truncate_in_the_way_of_a_dump_ends_in_time(shop: Site, shop_dsn: str) -> None:
    """It queues between our lock and a dump's: the dump waits for it, it waits for us, and only a time-out can tell."""
    shop.set("lock_wait_timeout", '"2s"', table="databases.shop")
    locked = "select from pg_locks where relation = 'third'::regclass and granted and mode = 'AccessShareLock'"
    with (
        psycopg.connect(shop_dsn, application_name="first in line") as holder,
        psycopg.connect(shop_dsn, autocommit=True, application_name="truncates") as connection,
        started(shop, "backup") as backup,
    ):
        # While one of the later tables is held, the backup has its lock on an earlier one, and waits.
        holder.execute("lock table third in access exclusive mode")
        wait_until_waiting(shop_dsn, "^lock table", backup)
        truncates = threading.Thread(target=connection.execute, args=["truncate first"])
        truncates.start()
        query = "select from pg_stat_activity where application_name = 'truncates' and wait_event_type = 'Lock'"
        assert happens(lambda: bool(fetch(shop_dsn, query)), SECONDS)
        began = time.monotonic()
        holder.rollback()
        assert happens(lambda: bool(fetch(shop_dsn, locked)) or backup.poll() is not None, SECONDS)
        log = finish(backup, 6)
        assert time.monotonic() - began < 20
        truncates.join(SECONDS)
    assert "lock_wait_timeout" in log
    assert shop.backups() == []
    assert sessions(shop_dsn) == []


# ---- the list of tables changes between reading it and locking them

CHANGES = {
    "dropped": ["drop table second"],
    "created": ["create table fifth as select generate_series(1, 5) i"],
    "renamed": ["alter table second rename to fifth"],
    "renamed, and its name taken": ["alter table second rename to fifth", "create table second (j text)"],
    "replaced": ["drop table second", "create table second as select 'new' t"],
    "replaced by a view": ["drop table second", "create view second as select * from third"],
    "replaced by a materialized view": ["drop table second", "create materialized view second as select 1 a"],
    "schema dropped": ["drop schema other cascade"],
    "schema renamed": ["alter schema other rename to another"],
    "moved": ["alter table second set schema other"],
}


SLOW = ("renamed", "replaced", "schema dropped", "moved")  # each is another's near twin


@pytest.mark.parametrize("change", [pytest.param(c, marks=pytest.mark.large if c in SLOW else ()) for c in CHANGES])
def test_tables_that_change_before_they_are_locked(
    shop: Site, pg15: ThrowawayServer, shop_dsn: str, other: psycopg.Connection, change: str
) -> None:
    shop.set("large_table_size", '"1GB"', table="defaults")
    other.execute("lock table first in access exclusive mode")
    with started(shop, "backup") as backup:
        wait_until_waiting(shop_dsn, "^lock table", backup)
        with psycopg.connect(shop_dsn) as migration:
            for statement in CHANGES[change]:
                migration.execute(statement.encode())
        other.commit()
        finish(backup)
    restored_like_source(shop, pg15, shop_dsn)


def test_a_table_created_meanwhile_is_locked_too(shop: Site, shop_dsn: str, other: psycopg.Connection) -> None:
    """The snapshot sees it, so from then on nobody may truncate it either."""
    locked = (
        "select c.relname from pg_locks l join pg_class c on c.oid = l.relation join pg_stat_activity a using (pid)"
        " where a.application_name like 'backupd%' and a.state = 'idle in transaction'"
        " and a.datname = current_database()"
        " and l.mode = 'AccessShareLock' and c.relkind = 'r' and c.relnamespace <> 'pg_catalog'::regnamespace"
    )
    other.execute("lock table first in access exclusive mode")
    with (
        psycopg.connect(shop_dsn, application_name="holds it up") as holder,
        started(shop, "backup", "--jobs", "1") as backup,
    ):
        wait_until_waiting(shop_dsn, "^lock table", backup)
        with psycopg.connect(shop_dsn) as migration:
            migration.execute("create table fifth as select generate_series(1, 5) i")
        holder.execute("lock table pg_largeobject in access exclusive mode")
        other.commit()
        wait_until_waiting(shop_dsn, "lo_open|loread", backup)
        assert {row[0] for row in fetch(shop_dsn, locked)} == {"first", "second", "third", "fourth", "fifth"}
        holder.rollback()
        finish(backup)
    assert rows_of(shop)["fifth"] == 5


# ---- time-outs, and one at a time


def test_a_lock_held_too_long(shop: Site, shop_dsn: str, other: psycopg.Connection) -> None:
    shop.set("lock_wait_timeout", '"2s"', table="databases.shop")
    other.execute("lock table second in access exclusive mode")
    began = time.monotonic()
    failed = shop.run("backup", code=6)
    assert 2 <= time.monotonic() - began < 15
    assert f"second is held by session {other.info.backend_pid} (postgres, migration)" in failed.err
    assert "lock_wait_timeout" in failed.err
    assert shop.backups() == []
    assert sessions(shop_dsn) == []
    # It came to nothing, and stands in nobody's way.
    other.rollback()
    shop.run("backup")


def test_a_table_waited_for_too_long(shop: Site, shop_dsn: str, other: psycopg.Connection) -> None:
    """Nobody holds the table exclusively, but somebody waits to, and we queue behind."""
    shop.set("lock_wait_timeout", '"2s"', table="databases.shop")
    other.execute("select count(*) from second")  # a reader that does not end
    with psycopg.connect(shop_dsn, autocommit=True, application_name="migration") as migration:
        alter = threading.Thread(target=migration.execute, args=["alter table second add column j int"])
        alter.start()
        waits = "select from pg_stat_activity where wait_event_type = 'Lock' and query like 'alter table%'"
        assert happens(lambda: bool(fetch(shop_dsn, waits)), SECONDS)
        failed = shop.run("backup", code=6)
        other.rollback()
        alter.join(SECONDS)
        assert f"second is waited for by session {migration.info.backend_pid}" in failed.err


def test_one_backup_at_a_time(shop: Site, shop_dsn: str, other: psycopg.Connection) -> None:
    other.execute("lock table second in access exclusive mode")
    with started(shop, "backup") as backup:
        wait_until_waiting(shop_dsn, "^lock table", backup)
        refused = shop.run("backup", code=75)
        assert "another backup" in refused.err
        other.rollback()
        finish(backup)
    assert len(shop.backups()) == 1
    shop.run("backup")


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_while_waiting(
    shop: Site, shop_dsn: str, other: psycopg.Connection, number: signal.Signals, code: int
) -> None:
    other.execute("lock table second in access exclusive mode")
    with started(shop, "backup") as backup:
        wait_until_waiting(shop_dsn, "^lock table", backup)
        backup.send_signal(number)
        finish(backup, code)
    assert happens(lambda: sessions(shop_dsn) == [], SECONDS), sessions(shop_dsn)
    assert shop.backups() == []


def test_the_session_with_the_snapshot_is_lost(shop: Site, shop_dsn: str, other: psycopg.Connection) -> None:
    """Its locks and its snapshot are gone with it: whatever was dumped may not be of one moment."""
    end = (
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'backupd%'"
        " and datname = current_database() and state = 'idle in transaction' and backend_xmin is not null"
    )
    with held_up(shop, shop_dsn) as (backup, holder):
        assert len(fetch(shop_dsn, end)) == 1
        assert happens(lambda: len(sessions(shop_dsn)) == 2, SECONDS), sessions(shop_dsn)  # the program and the watch
        holder.rollback()
        log = finish(backup, 6)
    assert "The connection to the server was lost" in log
    assert shop.backups() == []
    objects = [path for path in (shop.folder / "repository").rglob("*") if path.is_file()]
    assert [path.name for path in objects] == ["backupd.json"]
