"""`scratch = DSN`: databases on a server that others use too. Ours come and go; nobody else's is ever touched."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from backupd import times
from backupd.postgres.scratch import PREFIX, is_ours, scratch_name
from backupd.postgres.server import FAST, ThrowawayServer
from backupd.postgres.tools import choose_server, find_installations
from tests.postgres import NewDatabase, drop_database
from tests.proving import Proofs, databases, execute
from tests.troubles import as_role, background, roles
from tests.watch import eventually, sessions

NAME = f"scratched_{os.getpid()}"
REPOSITORY = "5f3a9c1b2c3d4e5f"


@pytest.fixture
def gate() -> Iterator[Path]:
    """A folder whose file `open` lets a copy's check go on: a server may look into it, whoever it runs as."""
    with tempfile.TemporaryDirectory(prefix="gate-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name) / "open"


@pytest.fixture
def shop(pg15: ThrowawayServer, tmp_path: Path, new_database: NewDatabase) -> Proofs:
    made = Proofs.make(tmp_path / "site", new_database(pg15), scratch=pg15)
    made.sql("create table orders (id int primary key)", "insert into orders values (1)")
    return made


def waits_for(gate: Path) -> str:
    """A function that returns when the file is there."""
    return (
        "create function public.wait() returns bool language plpgsql as $$ begin"
        f" while pg_catalog.pg_stat_file('{gate}', true) is null loop perform pg_catalog.pg_sleep(0.02); end loop;"
        " return true; end $$"
    )


def test_names(pg15: ThrowawayServer) -> None:
    """Ours are told from all others by a keyed hash, and fit into a name of PostgreSQL's."""
    name = scratch_name(REPOSITORY, datetime(2026, 11, 22, tzinfo=UTC))
    assert len(name.encode()) < 64
    assert is_ours(name, REPOSITORY)
    assert not is_ours(name, REPOSITORY[:-1])
    for at in range(len(name)):
        assert not is_ours(name[:at] + ("0" if name[at] != "0" else "1") + name[at + 1 :], REPOSITORY), at
    for other in (f"{name}0", name[:-1], name.upper(), f" {name}", f"{PREFIX}mine", PREFIX, ""):
        assert not is_ours(other, REPOSITORY)


def test_whose_databases_go(shop: Proofs, pg15: ThrowawayServer) -> None:
    """A leftover of a dead run of this repository goes; what only looks like one stays, with what is in it."""
    shop.backup()
    repository = str(shop.site.run("show", "shop", "--json").json["repository"])
    now = times.now()
    ours = scratch_name(repository, now)
    wrong = f"{ours[:-10]}{'0' * 10}"
    another = scratch_name(secrets.token_hex(16), now)
    mine = f"{PREFIX}mine_{os.getpid()}"
    try:
        for name in (ours, wrong, another, mine):
            execute(pg15.dsn(), f'create database "{name}" template template0')
            execute(pg15.dsn(name), "create table precious ()")
        before = databases(pg15)
        shop.verify("passed")
        assert databases(pg15) == before - {ours}
        for name in (wrong, another, mine):
            execute(pg15.dsn(name), "select from precious")
    finally:
        for name in (ours, wrong, another, mine):
            drop_database(pg15, name)


@pytest.mark.large
def test_leftovers_go_whatever_holds_them(shop: Proofs, pg15: ThrowawayServer) -> None:
    """Somebody looks at one, or made it a template."""
    shop.backup()
    repository = str(shop.site.run("show", "shop", "--json").json["repository"])
    ours = scratch_name(repository, times.now())
    execute(pg15.dsn(), f'create database "{ours}" template template0')
    try:
        with closing(psycopg.connect(pg15.dsn(ours), autocommit=True)):
            shop.verify("passed")
        assert ours not in databases(pg15)
    finally:
        drop_database(pg15, ours)


def test_a_living_runs_database_stays(shop: Proofs, pg15: ThrowawayServer, gate: Path) -> None:
    """Two at once do not meet: the second waits, leaves the first one's alone, and each drops its own."""
    shop.sql(waits_for(gate))
    shop.backup()
    shop.ask(waits="select wait()")
    with background(shop.site, "verify", "shop", "--json") as first:
        assert eventually(lambda: bool(shop_asks(pg15)))
        (living,) = shop.scratch_databases(pg15)
        shop.ask()
        with background(shop.site, "verify", "shop", "--json") as second:
            assert eventually(lambda: bool(rows(pg15, WAITING)))
            assert shop.scratch_databases(pg15) == [living]
            gate.touch()
            for run in (first, second):
                out, err = run.communicate(timeout=60)
                assert run.returncode == 0, (out, err)
    assert shop.scratch_databases(pg15) == []
    assert len(shop.stored()) == 2


WAITING = "select from pg_locks where locktype = 'advisory' and not granted"


def shop_asks(server: ThrowawayServer) -> list[str]:
    with closing(psycopg.connect(server.dsn(), autocommit=True)) as connection:
        query = "select datname from pg_stat_activity where query = 'select wait()' and state = 'active'"
        return [str(row[0]) for row in connection.execute(query)]


def test_a_killed_runs_database_goes(shop: Proofs, pg15: ThrowawayServer, gate: Path) -> None:
    shop.sql(waits_for(gate))
    shop.backup()
    shop.ask(waits="select wait()")
    with background(shop.site, "verify", "shop", "--json") as run:
        assert eventually(lambda: bool(shop_asks(pg15)))
        (left,) = shop.scratch_databases(pg15)
        run.kill()
        run.wait()
        gate.touch()
        # What it held is free once the server has noticed.
        held = f"select from pg_locks where locktype = 'advisory' and classid || ' ' || objid = {advisory(left)}"
        assert eventually(lambda: not rows(pg15, held))
    assert shop.scratch_databases(pg15) == [left]
    shop.ask()
    shop.verify("passed")
    assert shop.scratch_databases(pg15) == []
    assert sessions(pg15.dsn(), left) == []


def advisory(name: str) -> str:
    """The two halves of a scratch database's lock, as pg_locks has them."""
    key = f"hashtextextended('backupd verifies in {name}', 0)"
    return f"(({key} >> 32) & 4294967295) || ' ' || ({key} & 4294967295)"


def rows(server: ThrowawayServer, query: str) -> int:
    with closing(psycopg.connect(server.dsn(), autocommit=True)) as connection:
        return connection.execute(query.encode()).rowcount


def test_a_role_that_may_only_make_databases(shop: Proofs, pg15: ThrowawayServer) -> None:
    """It is no superuser, so what others own it can't restore: that is no fault of the backup. What is its own it can,
    and drops its database again."""
    maker = f"maker_{os.getpid()}"
    name = psycopg.conninfo.conninfo_to_dict(shop.dsn)["dbname"]
    with roles(pg15, {maker: "login createdb password 'let me in'"}):
        shop.on_server(as_role(pg15, maker))
        shop.backup()
        before = databases(pg15)
        assert "postgres" in shop.verify("inconclusive")["reason"]
        shop.sql(f"alter table orders owner to {maker}", f"alter database {name} owner to {maker}")
        shop.backup()
        shop.verify("passed")
        assert databases(pg15) == before
        shop.sql(f"alter database {name} owner to postgres", f"drop owned by {maker}")


def test_roles_owners_and_grants(pg15: ThrowawayServer, tmp_path: Path, new_database: NewDatabase) -> None:
    """On a throw-away server of its own all roles come back, and with them who owns and may do what."""
    owner, reader = f"owner_{os.getpid()}", f"reader_{os.getpid()}"
    dsn = new_database(pg15)
    made = Proofs.make(tmp_path / "site", dsn)
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    with roles(pg15, {owner: "login", reader: "nologin"}):
        made.sql(
            f"grant {reader} to {owner}",
            "create table orders (id int primary key)",
            f"alter table orders owner to {owner}",
            f"grant select (id) on orders to {reader}",
            f"alter database {name} owner to {owner}",
            f"grant temporary on database {name} to {reader} with grant option",
            f"alter role {reader} in database {name} set work_mem = '7MB'",
            f"alter default privileges for role {owner} grant select on tables to {reader}",
        )
        made.backup()
        made.ask(
            owner=f"select tableowner = '{owner}' from pg_tables where tablename = 'orders'",
            grant=f"select has_column_privilege('{reader}', 'orders', 'id', 'select')"
            f" and not has_table_privilege('{reader}', 'orders', 'insert')",
            member=f"select pg_has_role('{owner}', '{reader}', 'member')",
            database=f"select datdba::regrole::text = '{owner}' from pg_database where datname = current_database()",
        )
        proof = made.verify("passed")
        assert not [each for each in proof["checks"] if each["status"] == "failed"]
        made.sql(f"alter database {name} owner to postgres", f"drop owned by {reader}", f"drop owned by {owner}")


@pytest.mark.large
def test_a_server_elsewhere(pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path) -> None:
    """One that has none of the source's roles, and keeps none of them."""
    role = f"stranger_{os.getpid()}"
    dsn = new_database(pg15)
    with ThrowawayServer(choose_server(find_installations(), 15), tmp_path / "s", port=0, settings=FAST) as server:
        made = Proofs.make(tmp_path / "site", dsn, scratch=server)
        with roles(pg15, {role: "login"}):
            made.sql("create table orders (id int)", f"alter table orders owner to {role}")
            made.backup()
            before = databases(server)
            made.verify("passed")
            assert databases(server) == before
            assert rows(server, f"select from pg_roles where rolname = '{role}'") == 0
            made.sql(f"drop owned by {role}")
