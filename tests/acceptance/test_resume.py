"""`restore --resume`: an unfinished restore goes on where it was, and ends as one that was never interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from backupd.postgres.server import FAST, ThrowawayServer
from backupd.postgres.tools import choose_server, find_installations
from tests.acceptance.torture import torture
from tests.postgres import NewDatabase, client_for, drop_database, dump_sql
from tests.site import Site, local_site
from tests.watch import eventually, programs_on

SECONDS = 40
COPY = f"resumed_{os.getpid()}"
# On the copy, whoever comes here first waits for the advisory lock; the table is the smallest, and so loaded last.
WAITS = """
create function waits(i int) returns int language plpgsql immutable
  as $$ begin perform pg_catalog.pg_advisory_xact_lock_shared(4712); return i; end $$;
create table last (i int);
insert into last values (1), (2);
"""
STANDSTILLS = {
    "loading": "alter table last add check (waits(i) > 0)",
    "building": "create index on last (waits(i)); create index on last (waits(i + 1))",
}


class Unfinished:
    """A database, a backup of it in several streams, and a restore of that backup that was stopped half-way."""

    def __init__(self, server: ThrowawayServer, site: Site, source: str) -> None:
        self.server, self.site, self.source = server, site, source
        self.copy = COPY
        self.backup = site.run("show", "shop", "--json").json

    def stop(
        self,
        number: signal.Signals,
        *options: str,
        meanwhile: Callable[[], object] | None = None,
        command: list[str] | None = None,
        begun: Callable[[], bool] | None = None,
    ) -> str:
        """Stop a restore with this signal where the copy waits for us; what it said."""
        restore = self.site.start(*(command or self.arguments(*options)))
        begun = begun or self.exists
        try:
            assert eventually(lambda: begun() or restore.poll() is not None, SECONDS)
            with psycopg.connect(self.server.dsn(self.copy)) as connection:
                connection.execute("select pg_advisory_xact_lock(4712)")
                stands = "select from pg_locks where locktype = 'advisory' and objid = 4712 and not granted"
                with psycopg.connect(self.server.dsn(), autocommit=True) as looking:
                    assert eventually(
                        lambda: looking.execute(stands).rowcount > 0 or restore.poll() is not None, SECONDS
                    )
                assert restore.poll() is None, restore.communicate()
                if meanwhile is not None:
                    meanwhile()
                restore.send_signal(number)
                _, log = restore.communicate(timeout=SECONDS)
                connection.close()
        finally:
            restore.kill()
            restore.communicate()
        assert eventually(lambda: not programs_on(self.copy) and not self.others(), SECONDS)
        return log

    def arguments(self, *options: str) -> list[str]:
        return ["restore", "shop", "--at", "latest", "--into", self.copy, "--jobs", "1", "--yes", *options]

    def others(self) -> int:
        with psycopg.connect(self.server.dsn(), autocommit=True) as looking:
            return looking.execute("select from pg_stat_activity where datname = %s", [self.copy]).rowcount

    def exists(self) -> bool:
        with psycopg.connect(self.server.dsn(), autocommit=True) as looking:
            query = "select from pg_database where datname = %s and datconnlimit <> -2"
            found = looking.execute(query, [self.copy]).rowcount
        return bool(found)

    def resume(self, *options: str, code: int = 0) -> Any:
        return self.site.run(*self.arguments("--resume", "--json", *options), code=code).json

    def is_identical(self) -> None:
        client = client_for(self.server)
        assert dump_sql(client, self.server.dsn(self.copy)) == dump_sql(client, self.source)
        name = conninfo_to_dict(self.source)["dbname"]
        assert comment(self.server, self.copy) == comment(self.server, str(name)), "a mark stayed, or a comment is lost"


def comment(server: ThrowawayServer, database: str) -> str | None:
    with psycopg.connect(server.dsn()) as connection:
        row = connection.execute(
            "select shobj_description(oid, 'pg_database') from pg_database where datname = %s", [database]
        ).fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


def unfinished(server: ThrowawayServer, folder: Path, source: str, wait: str, large: str = "16kB") -> Unfinished:
    with psycopg.connect(source) as connection:
        connection.execute(WAITS.encode())
        connection.execute(STANDSTILLS[wait].encode())
    site = local_site(folder, {"shop": source})
    site.set("large_table_size", f'"{large}"', table="databases.shop")
    site.run("backup")
    return Unfinished(server, site, source)


@pytest.fixture
def shop(pg15: ThrowawayServer, tmp_path: Path, new_database: NewDatabase) -> Iterator[Unfinished]:
    source = new_database(pg15)
    with psycopg.connect(source) as connection:
        connection.execute("create table large (id int primary key, noise text)")
        connection.execute("insert into large select g, repeat(md5(g::text), 4) from generate_series(1, 20000) g")
        connection.execute("create table other (id serial primary key, large int references large)")
        connection.execute("insert into other (large) select g from generate_series(1, 5000) g")
        connection.execute("create materialized view sums as select count(*) from large")
        connection.execute("select lo_from_bytea(0, 'large object')")
    yield unfinished(pg15, tmp_path, source, "loading")
    drop_database(pg15, COPY)


def damage(shop: Unfinished, table: str) -> None:
    """Change the object that holds a table's rows: whoever reads it again fails."""
    (stream,) = [s for s in shop.backup["streams"] if s["tables"] == [table]]
    path = shop.site.folder / "repository" / stream["key"]
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_streams_that_are_done_are_not_read_again(shop: Unfinished, number: signal.Signals) -> None:
    log = shop.stop(number, "--resume")
    if number == signal.SIGTERM:
        assert f"The database {COPY} stays, with 2 of 3 streams loaded" in log
        assert "--resume" in log
    damage(shop, "public.large")
    damage(shop, "public.other")
    plan = shop.resume("--dry-run")
    assert plan["resumes"] is True
    assert [s["kind"] for s in plan["streams"]] == ["schema", "data"]
    done = shop.resume()
    assert (done["target"], done["resumes"], done["rows"]) == (COPY, True, 25002)
    shop.is_identical()


def test_without_the_option_a_failure_leaves_nothing(shop: Unfinished) -> None:
    log = shop.stop(signal.SIGTERM)
    assert f"The database {COPY}, begun by this restore, was removed" in log
    assert not shop.exists()


def test_what_a_killed_restore_left_is_named_and_found_without_its_name(shop: Unfinished) -> None:
    """SIGKILL, and whoever comes next knows neither the name nor the options."""
    shop.stop(signal.SIGKILL)
    told = "\n".join(f"{f['detail']} {f['hint']}" for f in shop.site.run("check", "--json").json)
    assert f"{COPY} (" in told
    (options,) = re.findall(r"backupd restore shop (--at .* --resume),", told)
    plan = shop.site.run("restore", "shop", "--at", "latest", "--dry-run", "--json").json
    assert any(options in warning for warning in plan["warnings"])
    assert shop.site.run("restore", "shop", *options.split(), "--json").json["target"] == COPY
    shop.is_identical()


def test_another_backup_or_other_options_are_refused(shop: Unfinished) -> None:
    shop.stop(signal.SIGKILL)
    for options in (["--no-owner"], ["--table", "large"]):
        error = shop.resume(*options, code=8)["error"]
        assert "other options" in error["message"]
        assert f"--at {shop.backup['id']} --into {COPY} --resume" in error["hint"]
    shop.site.run("backup")
    assert "another backup" in shop.resume(code=8)["error"]["message"]
    assert shop.exists()


def test_two_do_not_fill_one_database(shop: Unfinished) -> None:
    def second() -> None:
        assert "another restore is filling" in shop.resume(code=75)["error"]["message"]

    shop.stop(signal.SIGKILL, meanwhile=second)
    assert shop.resume()["resumes"] is True
    shop.is_identical()


def test_nothing_to_resume_is_no_error(shop: Unfinished) -> None:
    done = shop.resume()
    assert done["resumes"] is False
    shop.is_identical()


def test_a_resumed_restore_takes_the_originals_name(shop: Unfinished) -> None:
    """Begun without a name of its own, as on the worst day."""
    options = ["restore", "shop", "--at", shop.backup["id"], "--jobs", "1", "--resume", "--replace"]
    names = databases(shop.server)

    def begun() -> bool:
        shop.copy = next(iter(databases(shop.server) - names), COPY)
        return shop.exists()

    shop.stop(signal.SIGKILL, command=options, begun=begun)
    try:
        (mark,) = databases(shop.server) - names
        done = shop.site.run(*options, "--json").json
        assert (done["resumes"], done["target"]) == (True, dict(conninfo_to_dict(shop.source))["dbname"])
        assert databases(shop.server) - names == {done["kept_as"]}
        assert mark not in databases(shop.server)
        with psycopg.connect(shop.source) as connection:
            assert connection.execute("select count(*) from large").fetchone() == (20000,)
    finally:
        for name in databases(shop.server) - names:
            drop_database(shop.server, name)


def databases(server: ThrowawayServer) -> set[str]:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        return {str(row[0]) for row in connection.execute("select datname from pg_database")}


def test_a_mark_that_another_wrote_is_not_believed(shop: Unfinished, pg15: ThrowawayServer) -> None:
    """Anybody can write such a comment on a database of his own, with triggers that wait for a superuser."""
    shop.stop(signal.SIGKILL)
    role = f"mallory_{os.getpid()}"
    text = str(comment(pg15, COPY))
    drop_database(pg15, COPY)
    with psycopg.connect(pg15.dsn(), autocommit=True) as connection:
        connection.execute(f"create role {role}".encode())
        connection.execute(f"create database {COPY} owner {role}".encode())
        connection.execute(sql.SQL("comment on database {} is {}").format(sql.Identifier(COPY), sql.Literal(text)))
    try:
        assert "exists" in shop.resume(code=8)["error"]["message"]
        assert COPY not in json.dumps(shop.site.run("check", "--json").json)
    finally:
        drop_database(pg15, COPY)
        with psycopg.connect(pg15.dsn(), autocommit=True) as connection:
            connection.execute(f"drop role {role}".encode())


def test_unlogged_tables_that_a_crash_emptied_are_loaded_again(tmp_path: Path) -> None:
    """The server died with the restore: recovery empties them, and what the mark says is not so any more."""
    installation = choose_server(find_installations(), None)
    with ThrowawayServer(installation, tmp_path / "server", port=0, settings=FAST) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("create database shop")
        with psycopg.connect(server.dsn("shop")) as connection:
            connection.execute("create unlogged table cache (id int primary key, noise text)")
            connection.execute("insert into cache select g, repeat(md5(g::text), 4) from generate_series(1, 20000) g")
            connection.execute("create table kept as select generate_series(1, 3000) i")
        begun = unfinished(server, tmp_path / "site", server.dsn("shop"), "building")
        begun.stop(signal.SIGKILL, "--resume")
        server.kill()
        server.start()
        assert begun.resume()["resumes"] is True
        with psycopg.connect(server.dsn(COPY)) as connection:
            assert connection.execute("select count(*) from cache").fetchone() == (20000,)
            assert connection.execute("select count(*) from kept").fetchone() == (3000,)


@pytest.mark.parametrize(
    "major, wait",
    [
        (18, "building"),
        *(
            pytest.param(*case, marks=pytest.mark.large)
            for case in ((15, "building"), (15, "loading"), (17, "loading"), (18, "loading"))
        ),
    ],
)
def test_everything_that_pg_dump_knows(
    request: pytest.FixtureRequest, tmp_path: Path, new_database: NewDatabase, major: int, wait: str
) -> None:
    """Partitions that change places, large objects, event triggers, subscriptions, half-built indexes."""
    server: ThrowawayServer = request.getfixturevalue(f"pg{major}")
    source = new_database(server)
    torture(server, source)
    begun = unfinished(server, tmp_path, source, wait, large="100kB")
    try:
        begun.stop(signal.SIGKILL, "--resume")
        state = json.loads(str(comment(server, COPY)).split(". ", 1)[1])
        assert state["tables"] is True
        assert state["loaded"] is (wait == "building")
        assert begun.resume()["resumes"] is True
        begun.is_identical()
    finally:
        drop_database(server, COPY)
