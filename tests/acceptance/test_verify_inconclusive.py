"""Whose fault it is: a backup that does not restore is a failed proof; a place that can't take it says nothing about
the backup, and `list` goes on saying what it said before."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from backupd.postgres.server import FAST, ThrowawayServer
from backupd.postgres.tools import choose_server, find_installations
from tests.postgres import NewDatabase
from tests.proving import Proofs, databases, execute, failures, processes_of
from tests.troubles import background
from tests.watch import eventually

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")


@pytest.fixture
def shop(pg15: ThrowawayServer, tmp_path: Path, new_database: NewDatabase) -> Proofs:
    """A database with one row in each of two tables."""
    made = Proofs.make(tmp_path / "site", new_database(pg15))
    made.sql("create table orders (id int primary key)", "insert into orders values (1)")
    return made


@pytest.fixture(scope="module")
def steady(pg15: ThrowawayServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proofs]:
    """One backup, proven once: what happens to the place afterwards must not change what `list` says."""
    name = f"steady_{os.getpid()}"
    execute(pg15.dsn(), f"create database {name} template template0")
    try:
        made = Proofs.make(tmp_path_factory.mktemp("steady"), pg15.dsn(name), scratch=pg15)
        made.sql("create table orders (id int primary key)", "insert into orders values (1)")
        made.backup()
        made.verify("passed")
        made.configure("scratch", None)
        yield made
    finally:
        execute(pg15.dsn(), f"drop database {name} with (force)")


def inconclusive(proofs: Proofs, *options: str, **settings: str) -> dict[str, Any]:
    """The proof of a verify with these settings; it is recorded, and speaks neither for nor against the backup."""
    before = proofs.listed()
    known = len(proofs.stored("rehearsals" if "--server-major" in options else "proofs"))
    for key, value in settings.items():
        proofs.configure(key, value)
    try:
        made = proofs.verify("inconclusive", *options)
    finally:
        for key in settings:
            proofs.configure(key, None)
    assert made["reason"]
    assert failures(made) == {}
    assert proofs.listed() == before
    assert len(proofs.stored("rehearsals" if made["rehearsal"] else "proofs")) == known + 1
    return made


@contextmanager
def small_file_system(megabytes: int, *options: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="small-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        given = ",".join([f"size={megabytes}m", "mode=755", *options])
        subprocess.run(["mount", "-t", "tmpfs", "-o", given, "tmpfs", name], check=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True)


# ---- before anything is restored


def test_no_server_of_that_version(steady: Proofs) -> None:
    made = inconclusive(steady, "--server-major", "13")
    assert "there is no PostgreSQL 13 server" in made["reason"]
    assert made["rehearsal"]
    assert made["scratch"] is None


@pytest.mark.parametrize("kind", ["missing", "a file", "unwritable"])
def test_a_folder_that_is_none(steady: Proofs, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "folder"
    if kind == "a file":
        folder.touch()
    elif kind == "unwritable":
        folder = Path("/proc") if os.geteuid() == 0 else Path("/")
    assert str(folder) in inconclusive(steady, scratch_folder=f'"{folder}"')["reason"]


@as_root
def test_no_room(steady: Proofs) -> None:
    with small_file_system(32) as folder:
        made = inconclusive(steady, scratch_folder=f'"{folder}"')
        assert list(folder.iterdir()) == []
    assert "there is not room enough" in made["reason"]
    assert made["scratch"] is None


@pytest.mark.parametrize(
    "dsn, said",
    [
        ("host=127.0.0.1 port=1 dbname=postgres connect_timeout=2", "cannot connect"),
        ("host=/nonexistent dbname=postgres", "cannot connect"),
    ],
)
def test_a_scratch_server_that_does_not_answer(steady: Proofs, dsn: str, said: str) -> None:
    assert said in inconclusive(steady, scratch=f'"{dsn}"')["reason"]


def test_a_scratch_server_that_lets_nobody_make_databases(steady: Proofs, pg15: ThrowawayServer) -> None:
    role = f"powerless_{os.getpid()}"
    execute(pg15.dsn(), f"create role {role} login password 'weak'")
    try:
        inconclusive(steady, scratch=f'"{psycopg.conninfo.make_conninfo(pg15.dsn(), user=role, password="weak")}"')
    finally:
        execute(pg15.dsn(), f"drop role {role}")


def test_a_server_setting_that_it_does_not_start_with(steady: Proofs) -> None:
    made = inconclusive(steady, scratch_settings='{ shared_buffers = "nonsense" }')
    assert "shared_buffers" in made["reason"]


@pytest.mark.large
def test_an_older_scratch_server(
    pg15: ThrowawayServer, pg17: ThrowawayServer, new_database: NewDatabase, tmp_path: Path
) -> None:
    made = Proofs.make(tmp_path, new_database(pg17), scratch=pg15)
    made.sql("create table t ()")
    made.backup()
    inconclusive(made)


def test_an_extension_that_the_server_lacks(
    pg17: ThrowawayServer, pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path
) -> None:
    """An extension of the source alone: it is registered, and nothing but a name."""
    made = Proofs.make(tmp_path, new_database(pg15), scratch=pg17)
    made.sql("create extension hstore", "update pg_extension set extname = 'not_there' where extname = 'hstore'")
    made.backup()
    assert "not_there" in inconclusive(made)["reason"]


# ---- while it is restored

# Waits until a file is there: an immutable function in an index, so that a restore stands while it builds it.
GATE = """
create function gate(i int) returns int language plpgsql immutable as $$
begin
  while pg_catalog.pg_stat_file('{file}', true) is null loop perform pg_catalog.pg_sleep(0.02); end loop;
  return i;
end $$
"""


@contextmanager
def standing(shop: Proofs, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A verify that builds an index until `folder/open` is there; the backup is made before."""
    opened = folder / "open"
    opened.touch()
    shop.sql(GATE.format(file=opened), "create index on orders (gate(id))")
    shop.backup()
    opened.unlink()
    with background(shop.site, "verify", "shop", "--json") as run:
        assert run.stderr is not None
        assert any("building indexes" in line for line in run.stderr)
        yield run


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that servers can look into, whoever they run as."""
    with tempfile.TemporaryDirectory(prefix="gate-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_throw_away_server_that_is_killed(shop: Proofs, open_folder: Path) -> None:
    temporary = open_folder / "tmp"
    temporary.mkdir(mode=0o755)
    shop.site.environ["TMPDIR"] = str(temporary)
    with standing(shop, open_folder) as run:
        (pid_file,) = temporary.glob("**/data/postmaster.pid")
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
        out, err = run.communicate(timeout=60)
    assert run.returncode == 6, (out, err)
    assert '"status": "inconclusive"' in out
    assert "Traceback" not in err
    assert eventually(lambda: not list(processes_of(temporary))), list(processes_of(temporary))
    assert list(temporary.iterdir()) == []
    assert shop.listed() == "none"


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGQUIT, marks=pytest.mark.large)])
def test_a_named_server_that_goes_away(shop: Proofs, open_folder: Path, tmp_path: Path, how: signal.Signals) -> None:
    """It cannot be cleaned up either, until it is back: then the next verify drops what was left."""
    installation = choose_server(find_installations(), 15)
    with ThrowawayServer(installation, tmp_path / "server", port=0, settings=FAST) as server:
        shop.on_server(server.dsn())
        with standing(shop, open_folder) as run:
            if how == signal.SIGKILL:
                server.kill()
            else:
                assert server.pid is not None
                os.kill(server.pid, how)
            out, err = run.communicate(timeout=60)
        assert run.returncode == 6, (out, err)
        assert '"status": "inconclusive"' in out, (out, err)
        assert "Traceback" not in err
        assert shop.listed() == "none"
        server.kill()
        server.start()
        assert len(shop.scratch_databases(server)) == 1
        (open_folder / "open").touch()
        shop.verify("passed")
        assert shop.scratch_databases(server) == []


@as_root
@pytest.mark.large
def test_a_disk_that_fills_up(shop: Proofs) -> None:
    """There was room for what the source had; this copy makes more of it."""
    shop.sql(
        "create materialized view numbers as select g, repeat(md5(g::text), 20) as digits"
        " from generate_series(1, coalesce(current_setting('bulk.rows', true), '1')::int) g"
    )
    shop.backup()
    with small_file_system(240) as folder:
        made = inconclusive(shop, scratch_folder=f'"{folder}"', scratch_settings='{ "bulk.rows" = "1000000" }')
        assert list(folder.iterdir()) == []
    assert "disk is full" in made["reason"]


# ---- the backup's own fault

UNQUALIFIED = (
    "create table limits (most int)",
    "insert into limits values (10)",
    "create function within(i int) returns bool language sql as 'select i <= most from limits'",
    "create table amounts (i int check (within(i)), note text)",
    "insert into amounts values (1, {note})",
)


@pytest.mark.parametrize("note", ["'Connection refused'", "'No space left on device'"])
def test_a_constraint_that_looks_elsewhere(shop: Proofs, pg15: ThrowawayServer, note: str) -> None:
    """The classic: a dump sets no search_path, so the function finds nothing. Whatever the row says about itself."""
    shop.on_server(pg15.dsn())
    shop.sql(*(statement.replace("{note}", note) for statement in UNQUALIFIED))
    shop.backup()
    before = databases(pg15)
    said = shop.site.run("verify", "shop", code=4)
    assert 'relation "limits" does not exist' in said.out
    assert set(failures(shop.shown()[-1])) == {"restore"}
    # What the row says is for who asked; proofs are not encrypted.
    assert note.strip("'").encode() not in shop.stored()[-1].read_bytes()
    assert shop.listed() == "failed"
    assert databases(pg15) == before


def test_an_index_that_looks_elsewhere(shop: Proofs) -> None:
    """The same after the rows, on a server of its own; as people read it."""
    shop.sql(
        "create table rates (r int)",
        "insert into rates values (2)",
        "create function rated(i int) returns int immutable language plpgsql"
        " as 'begin return i * (select r from rates); end'",
        "create index on orders (rated(id))",
    )
    shop.backup()
    said = shop.site.run("verify", "shop", code=4)
    assert 'relation "rates" does not exist' in said.out
    made = shop.shown()[-1]
    assert (made["status"], made["reason"]) == ("failed", "")
    assert set(failures(made)) == {"restore"}
