"""`restore --replace`: whatever happens, one whole database answers under the name, and the other one is kept."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from backupd import times
from backupd.postgres.server import FAST, ThrowawayServer
from backupd.postgres.tools import choose_server, find_installations
from tests.postgres import client_for, drop_database, run
from tests.site import local_site
from tests.watch import eventually

SECONDS = 60
OURS = r"_(restored|replaced)_\d{8}T\d{6}Z"
CLIENTS = 100


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayServer]:
    """A server of our own: nobody else's sessions are ended, and there is room for many clients."""
    installation = choose_server(find_installations(), None)
    settings = dict(FAST) | {"max_connections": "150", "max_prepared_transactions": "5"}
    folder = tmp_path_factory.mktemp("replace") / "server"
    with ThrowawayServer(installation, folder, port=0, settings=settings) as running:
        yield running


def databases(server: ThrowawayServer) -> set[str]:
    with psycopg.connect(server.dsn()) as connection:
        return {str(row[0]) for row in connection.execute("select datname from pg_database")}


class Shop:
    """A database with a backup of it, and changes since then: a row more, and other properties."""

    def __init__(self, server: ThrowawayServer, folder: Path, name: str) -> None:
        self.server, self.name, self.dsn = server, name, server.dsn(name)
        self.execute(f'create database "{name}"', on="postgres")
        self.execute("create table orders (id int primary key, state text)")
        self.execute("insert into orders values (1, 'in the backup')")
        self.execute(f'alter database "{name}" connection limit 40', on="postgres")
        self.execute(f"alter database \"{name}\" set work_mem = '5MB'", on="postgres")
        self.site = local_site(folder, {"shop": self.dsn})
        self.site.run("backup")
        self.execute("insert into orders values (2, 'since then')")
        self.execute(f'alter database "{name}" connection limit 33', on="postgres")
        self.execute(f"alter database \"{name}\" set work_mem = '7MB'", on="postgres")

    def execute(self, statement: str, *, on: str | None = None) -> None:
        with psycopg.connect(self.server.dsn(on or self.name), autocommit=True) as connection:
            connection.execute(statement.encode())

    def rows(self, database: str | None = None) -> int:
        with psycopg.connect(self.server.dsn(database or self.name)) as connection:
            row = connection.execute("select count(*) from orders").fetchone()
        assert row is not None
        return int(row[0])

    def kept(self) -> list[str]:
        return sorted(name for name in databases(self.server) if re.fullmatch(re.escape(self.name) + OURS, name))

    def properties(self, database: str) -> tuple[int, list[str]]:
        with psycopg.connect(self.server.dsn()) as connection:
            row = connection.execute(
                "select datconnlimit, setconfig from pg_database d left join pg_db_role_setting s"
                " on s.setdatabase = d.oid and s.setrole = 0 where datname = %s",
                [database],
            ).fetchone()
        assert row is not None
        return int(row[0]), list(row[1])

    def restore(self, *options: str, code: int = 0) -> Any:
        return self.site.run("restore", "shop", "--at", "latest", "--replace", "--json", *options, code=code).json

    def leftovers(self) -> str:
        """What `check` says of what restores left on the server."""
        found = self.site.run("check", "--json").json
        return "\n".join(f"{f['detail']} {f['hint']}" for f in found if "leftovers" in f["name"])


@pytest.fixture
def shop(server: ThrowawayServer, tmp_path: Path) -> Iterator[Shop]:
    before = databases(server)
    yield Shop(server, tmp_path, "shop")
    for name in databases(server) - before:
        drop_database(server, name)


def test_names_of_this_second_may_be_taken(shop: Shop) -> None:
    """By a restore that was killed just now; the operator types it again at once."""
    now = times.now()
    for second in (times.compact(now + timedelta(seconds=n)) for n in range(15)):
        shop.execute(f'create database "shop_restored_{second}"', on="postgres")
        shop.execute(f'create database "shop_replaced_{second}"', on="postgres")
    taken = shop.kept()
    done = shop.restore()
    assert (shop.rows(), shop.rows(done["kept_as"])) == (1, 2)
    assert set(shop.kept()) == {*taken, done["kept_as"]}


def test_the_copy_takes_the_name_and_the_original_is_kept(shop: Shop) -> None:
    with psycopg.connect(shop.dsn) as idle:
        done = shop.restore()
        with pytest.raises(psycopg.OperationalError):
            idle.execute("select 1")
    assert (done["replaces"], done["kept_as"]) == ("shop", shop.kept()[0])
    assert re.fullmatch(r"shop_replaced_\d{8}T\d{6}Z", done["kept_as"])
    assert (shop.rows(), shop.rows(done["kept_as"])) == (1, 2)
    assert shop.properties("shop") == (40, ["work_mem=5MB"])
    assert shop.properties(done["kept_as"]) == (33, ["work_mem=7MB"])
    assert done["kept_as"] in shop.leftovers()
    assert "DROP DATABASE" in shop.leftovers()


def test_the_way_back_is_printed_and_works(shop: Shop) -> None:
    out = shop.site.run("restore", "shop", "--at", "latest", "--replace", "--yes").out
    back = re.findall(r"^  (ALTER DATABASE .* RENAME TO .*;)$", out, re.MULTILINE)
    assert len(back) == 2
    for statement in back:
        shop.execute(statement, on="postgres")
    assert shop.rows() == 2
    assert shop.rows(shop.kept()[0]) == 1
    assert shop.properties("shop") == (33, ["work_mem=7MB"])


def test_the_plan_says_what_becomes_of_the_original(shop: Shop) -> None:
    plan = shop.restore("--dry-run")
    assert plan["replaces"] == "shop"
    assert plan["kept_as"].startswith("shop_replaced_")
    assert plan["target"].startswith("shop_restored_")
    text = shop.site.run("restore", "shop", "--at", "latest", "--replace", "--dry-run").out
    assert "takes the name shop" in text
    assert "kept as shop_replaced_" in text
    assert shop.kept() == []
    assert shop.rows() == 2


def test_a_database_that_is_gone_comes_back_under_its_name(shop: Shop) -> None:
    drop_database(shop.server, "shop")
    done = shop.restore()
    assert (done["replaces"], done["kept_as"]) == ("shop", None)
    assert shop.rows() == 1
    assert shop.kept() == []


def test_the_database_postgres_can_be_replaced_too(server: ThrowawayServer, tmp_path: Path) -> None:
    """Nobody can rename the database that they are connected to."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("create table orders (id int)")
    site = local_site(tmp_path, {"shop": server.dsn()})
    site.run("backup")
    try:
        done = site.run("restore", "shop", "--at", "latest", "--replace", "--json").json
        drop_database(server, done["kept_as"])
    finally:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("drop table orders")


def test_prepared_transactions_are_refused_before_anything_is_written(shop: Shop) -> None:
    with psycopg.connect(shop.dsn) as connection:
        connection.execute("insert into orders values (3, 'prepared')")
        connection.execute("prepare transaction 'two-phase'")
    try:
        error = shop.restore(code=8)["error"]
        assert "two-phase" in error["detail"]
        assert "ROLLBACK PREPARED" in error["hint"]
        assert shop.kept() == []
    finally:
        shop.execute("rollback prepared 'two-phase'")


def test_no_other_name_and_no_parts(shop: Shop) -> None:
    assert "--into" in shop.restore("--into", "other", code=2)["error"]["message"]
    assert "whole database" in shop.restore("--table", "orders", code=2)["error"]["message"]


@pytest.mark.large  # it waits until it is clear that a session does not go
def test_the_owner_who_is_no_superuser_replaces_it_too(shop: Shop) -> None:
    """With sessions of others on it, and autovacuum, which nobody but a superuser may end."""
    for statement in (
        "create role keeper login createdb password 'keeper'",
        "grant pg_signal_backend to keeper",
        "create role visitor login password 'visitor'",
        "alter database shop owner to keeper",
    ):
        shop.execute(statement, on="postgres")
    shop.execute("create table busy as select generate_series(1, 100000) i")
    shop.site.run("backup")
    dsn = psycopg.conninfo.make_conninfo(shop.server.dsn("shop"), user="keeper", password="keeper")
    visitor = psycopg.conninfo.make_conninfo(shop.server.dsn("shop"), user="visitor", password="visitor")
    try:
        with psycopg.connect(visitor):
            done = shop.restore("--target", dsn, "--no-owner")
        assert done["swapped"]["sessions_ended"] >= 1
        assert (done["target"], done["kept_as"] in shop.kept()) == ("shop", True)
        with psycopg.connect(shop.dsn):  # a superuser's session, which keeper may not end
            error = shop.restore("--target", dsn, "--no-owner", code=8)["error"]
        assert "may not end the session" in error["message"]
        assert "pg_terminate_backend" in error["hint"]
        assert "was not touched" in error["detail"]
        assert "To swap them later" in error["detail"]
    finally:
        for name in databases(shop.server) - {"postgres", "template0", "template1"}:
            drop_database(shop.server, name)
        for role in ("keeper", "visitor"):
            shop.execute(f"drop role {role}", on="postgres")


# ---- killed


PHASES = ("creating the database", "creating the tables", "loading", "building", "gathering", "putting")


@contextmanager
def killed_at(shop: Shop, phase: str, number: signal.Signals, late: float) -> Iterator[subprocess.Popen[str]]:
    """A restore that got this signal so long after it told of a phase, and has ended."""
    restore = shop.site.start("--log-format", "json", "restore", "shop", "--at", "latest", "--replace", "--yes")
    assert restore.stderr is not None
    try:
        for line in restore.stderr:
            if line.startswith("{") and json.loads(line)["message"].startswith(phase):
                time.sleep(late)  # a moment within the phase: any will do
                restore.send_signal(number)
                break
        restore.communicate(timeout=SECONDS)
        yield restore
    finally:
        restore.kill()
        restore.communicate()


def settled(shop: Shop, before: set[str]) -> bool:
    """Whether the server has done with what the dead had begun: a swap takes the name from everybody for a moment."""
    try:
        with psycopg.connect(shop.server.dsn()) as connection:
            others = connection.execute(
                "select from pg_stat_activity where application_name = 'backupd' and pid <> pg_backend_pid()"
            ).rowcount
        return others == 0 and shop.rows() in (1, 2) and before <= databases(shop.server)
    except psycopg.OperationalError:
        return False


@pytest.mark.parametrize("late", [pytest.param(0.0, marks=pytest.mark.large), 0.02])
@pytest.mark.parametrize(
    "phase", [pytest.param(p, marks=pytest.mark.large) if i % 2 else p for i, p in enumerate(PHASES[::-1])]
)
def test_killed_at_any_moment(shop: Shop, phase: str, late: float) -> None:
    """SIGKILL: nobody cleans up. Either the original answers under the name, or the restored database."""
    before = databases(shop.server)
    with killed_at(shop, phase, signal.SIGKILL, late):
        pass
    assert eventually(lambda: settled(shop, before), SECONDS)
    told = shop.leftovers()
    for name in shop.kept():
        assert name in told, f"check says nothing of {name}: {told}"
    swapped = [name for name in shop.kept() if "_replaced_" in name]
    assert shop.rows() == (1 if swapped else 2)
    for name in swapped:
        assert shop.rows(name) == 2
    if not shop.kept():  # it was killed before there was anything
        assert phase == PHASES[0]
    shop.restore()
    assert shop.rows() == 1


@pytest.mark.parametrize(
    "number, code", [pytest.param(signal.SIGINT, 130, marks=pytest.mark.large), (signal.SIGTERM, 143)]
)
@pytest.mark.parametrize(
    "phase", [PHASES[2], *(pytest.param(p, marks=pytest.mark.large) for p in (*PHASES[1:2], *PHASES[3:5]))]
)
def test_interrupted_at_any_moment(shop: Shop, phase: str, number: signal.Signals, code: int) -> None:
    with killed_at(shop, phase, number, 0.0) as restore:
        assert restore.returncode in (code, 0)
    swapped = [name for name in shop.kept() if "_replaced_" in name]
    assert shop.rows() == (1 if swapped else 2)
    assert swapped or not shop.kept() or "restored" in shop.kept()[0]


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.large)])
def test_killed_while_it_waits_for_the_name(shop: Shop, number: signal.Signals) -> None:
    """Somebody holds the original as an object: the swap waits, and has done nothing."""
    with psycopg.connect(shop.server.dsn()) as holder:
        holder.execute("comment on database shop is 'held'")
        restore = shop.site.start("restore", "shop", "--at", "latest", "--replace", "--yes")
        try:
            with psycopg.connect(shop.server.dsn(), autocommit=True) as looking:
                waits = "select from pg_locks where not granted and locktype = 'object'"
                assert eventually(lambda: looking.execute(waits).rowcount > 0 or restore.poll() is not None, SECONDS)
            assert restore.poll() is None, restore.communicate()
            restore.send_signal(number)
            _, log = restore.communicate(timeout=SECONDS)
        finally:
            restore.kill()
            restore.communicate()
        holder.rollback()
    assert eventually(lambda: settled(shop, set()), SECONDS)
    assert shop.rows() == 2
    (left,) = shop.kept()
    assert "_restored_" in left
    assert shop.rows(left) == 1
    assert left in shop.leftovers()
    if number == signal.SIGTERM:
        assert restore.returncode == 143
        assert "is complete" in log


@pytest.mark.large
def test_a_name_that_stays_locked_is_told_with_the_way_on(shop: Shop) -> None:
    with psycopg.connect(shop.server.dsn()) as holder:
        holder.execute("comment on database shop is 'held'")
        error = shop.restore(code=6)["error"]
    assert "could not take the name" in error["message"]
    (left,) = shop.kept()
    (statements,) = re.findall(r"BEGIN; (.*) COMMIT;", error["detail"])
    with psycopg.connect(shop.server.dsn()) as connection:
        connection.execute(statements.encode())
    assert shop.rows() == 1
    assert left not in databases(shop.server)


@pytest.mark.large
def test_roles_made_for_a_copy_that_stays_stay_too(shop: Shop) -> None:
    """The swap fails, the copy is complete: whoever swaps by hand later needs its logins."""
    shop.execute("create role cashier login", on="postgres")
    try:
        shop.site.run("backup")
        shop.execute("drop role cashier", on="postgres")
        with psycopg.connect(shop.server.dsn()) as holder:
            holder.execute("comment on database shop is 'held'")
            error = shop.restore("--create-roles", code=6)["error"]
        assert "is complete" in error["detail"]
        with psycopg.connect(shop.server.dsn()) as connection:
            assert connection.execute("select from pg_roles where rolname = 'cashier'").rowcount == 1
    finally:
        shop.execute("drop role if exists cashier", on="postgres")


# ---- under load


def test_a_swap_under_a_hundred_clients(server: ThrowawayServer, tmp_path: Path) -> None:
    """Nothing committed to either database is lost, and nobody waits two seconds."""
    before, client = databases(server), client_for(server)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("create database bench")
    try:
        run(client, "pgbench", "--initialize", "--scale=1", "--quiet", server.dsn("bench"))
        site = local_site(tmp_path, {"bench": server.dsn("bench")})
        with pgbench(server):
            site.run("backup")
            with Prober(server.dsn("bench")) as prober:
                done = site.run("restore", "bench", "--at", "latest", "--replace", "--json").json
            assert prober.longest < 2, f"clients were kept out for {prober.longest:.2f} s"
            assert prober.answered > 50
        manifest = site.run("show", "bench", "--json").json
        rows = {table["name"]: table["rows"] for table in manifest["tables"]}
        assert history(server, "bench") == rows["pgbench_history"] + prober.written["bench"]
        sums = balances(server, done["kept_as"])
        assert len(set(sums)) == 1, f"the original is not whole: {sums}"
        assert history(server, done["kept_as"]) >= rows["pgbench_history"]
        assert len(set(balances(server, "bench"))) == 1
    finally:
        for name in databases(server) - before:
            drop_database(server, name)


@contextmanager
def pgbench(server: ThrowawayServer) -> Iterator[None]:
    """A hundred clients that go on until their session is ended."""
    program = str(client_for(server).program("pgbench"))
    command = [program, "--no-vacuum", f"--client={CLIENTS}", "--jobs=2", "--time=600", "--rate=200"]
    load = subprocess.Popen([*command, server.dsn("bench")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with psycopg.connect(server.dsn(), autocommit=True) as looking:
            there = "select from pg_stat_activity where datname = 'bench'"
            assert eventually(lambda: looking.execute(there).rowcount >= CLIENTS or load.poll() is not None, SECONDS)
        assert load.poll() is None
        yield
    finally:
        load.kill()
        load.communicate()


def history(server: ThrowawayServer, database: str) -> int:
    with psycopg.connect(server.dsn(database)) as connection:
        row = connection.execute("select count(*) from pgbench_history").fetchone()
    assert row is not None
    return int(row[0])


def balances(server: ThrowawayServer, database: str) -> tuple[int, ...]:
    query = (
        "select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches),"
        " (select sum(tbalance) from pgbench_tellers), (select coalesce(sum(delta), 0) from pgbench_history)"
    )
    with psycopg.connect(server.dsn(database)) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return tuple(map(int, row))


class Prober:
    """A client that connects, writes a transaction worth nothing and commits, again and again."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._probe)
        self.longest = 0.0
        self.answered = 0
        self.written = {"bench": 0}
        self._restored: int | None = None

    def __enter__(self) -> Prober:
        self._first = self._oid()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _oid(self) -> int:
        with psycopg.connect(self._dsn) as connection:
            row = connection.execute("select oid from pg_database where datname = current_database()").fetchone()
        assert row is not None
        return int(row[0])

    def _probe(self) -> None:
        last = time.monotonic()
        while not self._over.is_set():
            try:
                with psycopg.connect(self._dsn) as connection:
                    row = connection.execute(
                        "with done as (insert into pgbench_history (tid, bid, aid, delta, mtime)"
                        " values (1, 1, 1, 0, now()) returning 1)"
                        " select oid from pg_database, done where datname = current_database()"
                    ).fetchone()
            except psycopg.OperationalError:
                continue
            assert row is not None
            if int(row[0]) != self._first:
                self.written["bench"] += 1  # committed to the restored database
            self.answered += 1
            now = time.monotonic()
            self.longest, last = max(self.longest, now - last), now
