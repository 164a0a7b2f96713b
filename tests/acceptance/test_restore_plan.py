"""What a restore decides before it writes anything, that it then does just that, and what it leaves when it fails."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from backupd.postgres.lifetime import happens
from backupd.postgres.server import ThrowawayServer
from tests.postgres import NewDatabase, drop_database
from tests.site import Site, local_site

SECONDS = 30  # for what takes a moment: a bound, never a pause
BACKUPS = 3


def databases(server: ThrowawayServer) -> set[str]:
    with psycopg.connect(server.dsn()) as connection:
        return {str(row[0]) for row in connection.execute("select datname from pg_database")}


@pytest.fixture
def nothing_left() -> Iterator[Callable[[ThrowawayServer], None]]:
    """Drops, when the test is over, whatever databases have come to these servers since they were named."""
    before: list[tuple[ThrowawayServer, set[str]]] = []
    yield lambda server: before.append((server, databases(server)))
    for server, known in before:
        for name in databases(server) - known:
            drop_database(server, name)


class Story:
    """A database `ledger` with three backups: the first holds one row, the second two, the third three."""

    def __init__(self, site: Site, dsn: str, name: str) -> None:
        self.site, self.dsn, self.name = site, dsn, name
        self.taken_at: list[datetime] = []
        self.ids: list[str] = []

    def tell(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("create table entries (i int primary key)")
            for number in range(1, BACKUPS + 1):
                connection.execute("insert into entries values (%s)", [number])
                (made,) = self.site.run("backup", "--json").json
                self.ids.append(made["id"])
                self.taken_at.append(datetime.fromisoformat(made["taken_at"]))
                while datetime.now(UTC).replace(microsecond=0) <= self.taken_at[-1]:
                    time.sleep(0.01)  # names tell seconds: no two backups of the story share one

    def plan(self, at: str, *options: str, code: int = 0) -> Any:
        return self.site.run("restore", "ledger", "--at", at, "--dry-run", "--json", *options, code=code).json

    def refusal(self, *arguments: str, code: int) -> str:
        """The error of a restore that must not begin, as text."""
        error = self.site.run("restore", "ledger", *arguments, "--json", code=code).json["error"]
        assert error["exit"] == code
        return "\n".join((error["message"], error["detail"], error["hint"]))


def make_story(folder: Path, dsn: str) -> Story:
    with psycopg.connect(dsn) as connection:
        name = connection.info.dbname
    return Story(local_site(folder, {"ledger": dsn}), dsn, name)


@pytest.fixture(scope="module")
def story(pg15: ThrowawayServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Made once: the tests that use it add no backup to it, and leave its database alone."""
    name = f"ledger_{os.getpid()}"
    with psycopg.connect(pg15.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("create database {} template template0").format(sql.Identifier(name)))
    try:
        told = make_story(tmp_path_factory.mktemp("story"), pg15.dsn(name))
        told.tell()
        yield told
    finally:
        drop_database(pg15, name)


def iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()


# ---- which backup


MICROSECOND = timedelta(microseconds=1)


def test_the_newest_at_or_before(story: Story) -> None:
    first, second, third = story.taken_at
    expected = {
        iso(first): 0,
        iso(second): 1,
        iso(second - MICROSECOND): 0,
        iso(second + MICROSECOND): 1,
        iso(third - MICROSECOND): 1,
        iso(third): 2,
        iso(third + timedelta(days=400)): 2,
        "latest": 2,
        "0s": 2,
        story.ids[1]: 1,
        f"{(second).astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}": 1,
        f"{second.astimezone(UTC) + timedelta(hours=5, minutes=45):%Y-%m-%d %H:%M:%S.%f}+05:45": 1,
    }
    found = {at: story.ids.index(story.plan(at)["id"]) for at in expected}
    assert found == expected


def test_the_gap_is_exact(story: Story) -> None:
    second = story.taken_at[1]
    plan = story.plan(iso(second + timedelta(microseconds=250)))
    assert plan["gap_seconds"] == 0.00025
    assert datetime.fromisoformat(plan["taken_at"]) == second
    assert datetime.fromisoformat(plan["requested_at"]) == second + timedelta(microseconds=250)
    assert plan["rows"] == 2


def test_ages(story: Story) -> None:
    now = datetime.now(UTC)
    too_old = now - story.taken_at[0] + timedelta(seconds=5)
    story.plan(f"{too_old.total_seconds():.6f}s", code=3)
    between = (now - story.taken_at[1] - (story.taken_at[2] - story.taken_at[1]) / 2).total_seconds()
    # The command counts back from its own now, which is later: that moves the time asked for towards the third.
    plan = story.plan(f"{between:.6f}s")
    asked = datetime.fromisoformat(plan["requested_at"])
    assert now - timedelta(seconds=between) <= asked <= datetime.now(UTC) - timedelta(seconds=between)
    assert story.ids.index(plan["id"]) == (2 if asked >= story.taken_at[2] else 1)
    assert story.plan("1h", code=3)["error"]["exit"] == 3


def test_before_the_first(story: Story) -> None:
    said = story.refusal("--at", iso(story.taken_at[0] - MICROSECOND), code=3)
    assert story.ids[0] in said
    assert story.ids[1] not in said
    story.plan("2001-01-01", code=3)


@pytest.fixture
def in_berlin(story: Story) -> Iterator[Story]:
    story.site.environ["TZ"] = "Europe/Berlin"
    yield story
    del story.site.environ["TZ"]


def test_local_times_are_read_in_the_machines_zone(in_berlin: Story) -> None:
    from zoneinfo import ZoneInfo

    local = in_berlin.taken_at[1].astimezone(ZoneInfo("Europe/Berlin")).replace(tzinfo=None)
    for text in (local.isoformat(), str(local)):
        plan = in_berlin.plan(text)
        assert plan["id"] == in_berlin.ids[1]
        assert plan["gap_seconds"] == 0
    assert in_berlin.plan(str(local - MICROSECOND))["id"] == in_berlin.ids[0]
    in_berlin.site.environ["TZ"] = "America/St_Johns"  # hours later there: the same digits mean a later time
    assert in_berlin.plan(str(local))["id"] == in_berlin.ids[2]


@pytest.mark.parametrize(
    "text, said",
    [
        ("2026-10-25T02:30", "occurs twice"),
        ("2026-10-25 02:00", "occurs twice"),
        ("2026-03-29T02:30", "does not exist"),
        ("2026-03-29T02:00", "does not exist"),
    ],
)
def test_local_times_that_are_no_one_moment(in_berlin: Story, text: str, said: str) -> None:
    assert said in in_berlin.plan(text, code=2)["error"]["message"]
    in_berlin.site.environ["TZ"] = "UTC"
    assert in_berlin.plan(text, code=0 if in_berlin.taken_at[0] <= _utc(text) else 3)


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize("text", ["2026-10-25T03:00", "2026-10-25T01:59:59", "2026-03-29T01:59", "2026-03-29T03:00"])
def test_local_times_beside_the_change_are_clear(in_berlin: Story, text: str) -> None:
    assert in_berlin.site.run("restore", "ledger", "--at", text, "--dry-run", code=None).code in (0, 3)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "2h ago", "-2h", "20261122T000000Z-abc", "3x"])
def test_what_is_no_time(story: Story, text: str) -> None:
    assert story.plan(text, code=2)["error"]["hint"]


def test_max_gap(story: Story) -> None:
    second = story.taken_at[1]
    at = iso(story.taken_at[2] - MICROSECOND)
    gap = story.taken_at[2] - MICROSECOND - second
    allowed = gap.total_seconds()
    assert story.plan(at, "--max-gap", f"{allowed:.6f}s")["id"] == story.ids[1]
    said = story.refusal("--at", at, "--max-gap", f"{allowed - 0.000001:.6f}s", code=8)
    assert story.ids[1] in said
    story.plan(at, "--max-gap", "soon", code=2)


# ---- where to


def test_dry_run_says_what_the_run_does(
    story: Story, pg15: ThrowawayServer, nothing_left: Callable[[ThrowawayServer], None]
) -> None:
    nothing_left(pg15)
    options = ["--at", iso(story.taken_at[1]), "--into", f"ledger_copy_{os.getpid()}", "--json"]
    before = databases(pg15)
    planned = story.site.run("restore", "ledger", *options, "--dry-run").json
    assert databases(pg15) == before
    assert planned.pop("dry_run") is True
    done = story.site.run("restore", "ledger", *options).json
    assert done.pop("dry_run") is False
    assert done.pop("seconds") > 0
    assert planned == done
    assert entries(pg15, done["target"]) == [1, 2]


def entries(server: ThrowawayServer, name: str) -> list[int]:
    with psycopg.connect(server.dsn(name)) as connection:
        return [row[0] for row in connection.execute("select i from entries order by i")]


def test_the_default_name(story: Story, pg15: ThrowawayServer, nothing_left: Callable[[ThrowawayServer], None]) -> None:
    nothing_left(pg15)
    began = datetime.now(UTC).replace(microsecond=0)
    target = story.site.run("restore", "ledger", "--at", "latest", "--json").json["target"]
    match = re.fullmatch(rf"{story.name}_restored_(\d{{8}}T\d{{6}})Z", target)
    assert match, target
    assert began <= datetime.strptime(match[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC) <= datetime.now(UTC)
    assert entries(pg15, target) == [1, 2, 3]


def test_into_a_database_that_exists(story: Story, pg15: ThrowawayServer, new_database: NewDatabase) -> None:
    new_database(pg15, f"taken_{os.getpid()}")
    said = story.refusal("--at", "latest", "--into", f"taken_{os.getpid()}", code=8)
    assert f"taken_{os.getpid()} exists" in said
    said = story.refusal("--at", "latest", "--into", story.name, code=8)
    assert entries(pg15, story.name) == [1, 2, 3]


FULL = {
    "a table": "create table t ()",
    "a view": "create view v as select 1",
    "a materialized view": "create materialized view v as select 1 as a",
    "a sequence": "create sequence s",
    "a type": "create type t as enum ('a')",
    "a composite type": "create type t as (a int)",
    "a domain": "create domain d as int",
    "a function": "create function f() returns int language sql as 'select 1'",
    "an aggregate": "create aggregate a (int) (sfunc = int4pl, stype = int)",
    "a schema": "create schema s",
    "a large object": "select lo_create(0)",
    "an extension": "create extension hstore",
    "an operator": "create operator !@# (rightarg = numeric, function = numeric_uminus)",
    "a collation": 'create collation c from "C"',
    "a text search configuration": "create text search configuration c (copy = simple)",
    "a cast": "create cast (text as cidr) with inout",
    "a conversion": "create conversion c for 'LATIN1' to 'UTF8' from iso8859_1_to_utf8",
    "a publication": "create publication p",
    "a server": "create foreign data wrapper w",
}


def test_a_target_that_is_not_empty(story: Story, pg15: ThrowawayServer, new_database: NewDatabase) -> None:
    name = f"full_{os.getpid()}"
    dsn = new_database(pg15, name)
    accepted = []
    for what, statement in FULL.items():
        with psycopg.connect(pg15.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
            connection.execute(sql.SQL("create database {} template template0").format(sql.Identifier(name)))
        with psycopg.connect(dsn) as connection:
            connection.execute(statement.encode())
        outcome = story.site.run("restore", "ledger", "--at", "latest", "--target", dsn, "--dry-run", code=None)
        if outcome.code != 8 or "is not empty" not in outcome.err:
            accepted.append((what, outcome.code, outcome.err))
    assert accepted == []


def test_an_empty_target(story: Story, pg15: ThrowawayServer, pg17: ThrowawayServer, new_database: NewDatabase) -> None:
    """On the same server and on a newer one; what belongs to the database itself stays as its owner made it."""
    for server in (pg15, pg17):
        dsn = new_database(server, f"empty_{os.getpid()}")
        with psycopg.connect(dsn) as connection:
            connection.execute(f"comment on database empty_{os.getpid()} is 'mine'".encode())
        done = story.site.run("restore", "ledger", "--at", "latest", "--target", dsn, "--json").json
        assert (done["target"], done["creates_database"]) == (f"empty_{os.getpid()}", False)
        assert entries(server, f"empty_{os.getpid()}") == [1, 2, 3]
        again = story.refusal("--at", "latest", "--target", dsn, code=8)
        assert "table" in again
        assert "entries" in again


def test_a_target_that_does_not_exist(
    story: Story, pg17: ThrowawayServer, nothing_left: Callable[[ThrowawayServer], None]
) -> None:
    nothing_left(pg17)
    name = f"fresh_{os.getpid()}"
    done = story.site.run("restore", "ledger", "--at", "latest", "--target", pg17.dsn(name), "--json").json
    assert (done["target"], done["creates_database"]) == (name, True)
    assert entries(pg17, name) == [1, 2, 3]
    assert pg17.password not in str(done)


# ---- what is missing there


@pytest.fixture
def strangers(pg15: ThrowawayServer, tmp_path: Path, new_database: NewDatabase) -> Iterator[Story]:
    """A database whose owners and grants name roles that other servers lack."""
    dsn = new_database(pg15)
    told, roles = (
        make_story(tmp_path, dsn),
        [f"{role}_{os.getpid()}" for role in ("owner", "reader", "setter", "policed")],
    )
    owner, reader, setter, policed = roles
    with psycopg.connect(dsn, autocommit=True) as connection:
        for role in roles:
            connection.execute(f"create role {role}".encode())
        connection.execute("create table entries (i int primary key)")
        connection.execute(f"alter table entries owner to {owner}".encode())
        connection.execute(f"grant select on entries to {reader}".encode())
        connection.execute(f"alter role {setter} in database {told.name} set work_mem = '7MB'".encode())
        connection.execute(f"create policy p on entries to {policed} using (true)".encode())
        connection.execute("insert into entries values (1)")
    told.site.run("backup")
    yield told
    with psycopg.connect(pg15.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(told.name)))
        for role in roles:
            connection.execute(f"drop role {role}".encode())


def test_missing_roles(
    strangers: Story, pg17: ThrowawayServer, nothing_left: Callable[[ThrowawayServer], None]
) -> None:
    nothing_left(pg17)
    before, name = databases(pg17), f"strangers_copy_{os.getpid()}"
    said = strangers.refusal("--at", "latest", "--target", pg17.dsn(name), code=6)
    for role in ("owner", "reader", "setter", "policed"):
        assert f"{role}_{os.getpid()}" in said
    assert "--no-owner" not in said  # it would not help: a policy is for one of them
    said = strangers.refusal("--at", "latest", "--target", pg17.dsn(name), "--no-owner", code=6)
    assert f"policed_{os.getpid()}" in said
    assert f"owner_{os.getpid()}" not in said
    assert databases(pg17) == before


def test_without_owners_and_grants(
    strangers: Story, pg17: ThrowawayServer, nothing_left: Callable[[ThrowawayServer], None]
) -> None:
    nothing_left(pg17)
    name = f"strangers_copy_{os.getpid()}"
    with psycopg.connect(strangers.dsn) as connection:
        connection.execute("drop policy p on entries")  # whom a policy is for is more than a grant
    strangers.site.run("backup")
    strangers.site.run("restore", "ledger", "--at", "latest", "--target", pg17.dsn(name), "--no-owner")
    assert entries(pg17, name) == [1]


def test_missing_extensions_and_more_told_at_once(
    strangers: Story, pg15: ThrowawayServer, pg17: ThrowawayServer, new_database: NewDatabase
) -> None:
    dsn = new_database(pg17, f"occupied_{os.getpid()}")
    with psycopg.connect(dsn) as connection:
        connection.execute("create table in_the_way ()")
        offered = {str(row[0]) for row in connection.execute("select name from pg_available_extensions")}
    with psycopg.connect(strangers.dsn) as connection:
        here = [str(row[0]) for row in connection.execute("select name from pg_available_extensions order by 1")]
        lacking = [name for name in here if name not in offered][:2]
        assert lacking or set(here) <= offered
        for name in lacking:
            connection.execute(sql.SQL("create extension {}").format(sql.Identifier(name)))
    strangers.site.run("backup")
    # The safety of what is there outranks what is missing, and nothing is left untold.
    said = strangers.refusal("--at", "latest", "--target", dsn, "--max-gap", "0s", code=8)
    for expected in ("in_the_way", "--max-gap", f"owner_{os.getpid()}", *lacking):
        assert expected in said


def test_an_older_server(
    pg15: ThrowawayServer, pg17: ThrowawayServer, tmp_path: Path, new_database: NewDatabase
) -> None:
    told, before = make_story(tmp_path, new_database(pg17)), databases(pg15)
    told.site.run("backup")
    said = told.refusal("--at", "latest", "--target", pg15.dsn(f"older_{os.getpid()}"), code=6)
    assert "17 or newer" in said
    assert databases(pg15) == before


def test_a_user_who_may_not_create_databases(story: Story, pg15: ThrowawayServer) -> None:
    name = f"nobody_{os.getpid()}"
    before = databases(pg15)
    with psycopg.connect(pg15.dsn(), autocommit=True) as connection:
        connection.execute(f"create role {name} login password 'open'".encode())
        try:
            target = psycopg.conninfo.make_conninfo(pg15.dsn(f"{name}_db"), user=name, password="open")
            said = story.refusal("--at", "latest", "--target", target, code=6)
            assert "may not create databases" in said
            assert "open" not in said
            assert databases(pg15) == before
        finally:
            connection.execute(f"drop role {name}".encode())


# ---- restores that fail, or are interrupted

# Works for its owner now, and not in a restore: there, no search_path helps it to find the table it reads.
FORGETFUL = """
create table limits (most int);
insert into limits values (10000);
create function in_limits(value int) returns bool language plpgsql immutable
  as $$ begin return value < (select max(most) from limits); end $$;
create table measured (value int);
insert into measured select generate_series(1, 10);
"""
FAILURES = {
    "while loading": "alter table measured add check (in_limits(value))",
    "while indexing": "create index on measured (in_limits(value))",
}


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("when", FAILURES)
def test_a_failed_restore_leaves_nothing(
    pg15: ThrowawayServer, tmp_path: Path, new_database: NewDatabase, when: str, jobs: str
) -> None:
    told, copy = make_story(tmp_path, new_database(pg15)), f"failed_{os.getpid()}"
    with psycopg.connect(told.dsn) as connection:
        connection.execute(FORGETFUL.encode())
        connection.execute(FAILURES[when].encode())
    told.site.run("backup")
    before = databases(pg15)
    failed = told.site.run("restore", "ledger", "--at", "latest", "--into", copy, "--jobs", jobs, code=6)
    assert 'relation "limits" does not exist' in failed.err
    assert f"The database {copy}, begun by this restore, was removed" in failed.err
    assert databases(pg15) == before
    assert pg15.password not in failed.err


def test_a_failed_restore_into_a_given_database_says_so(
    pg15: ThrowawayServer, tmp_path: Path, new_database: NewDatabase
) -> None:
    """It is not ours to drop."""
    told, target = make_story(tmp_path, new_database(pg15)), new_database(pg15, f"given_{os.getpid()}")
    with psycopg.connect(told.dsn) as connection:
        connection.execute(FORGETFUL.encode())
        connection.execute(FAILURES["while loading"].encode())
    told.site.run("backup")
    failed = told.site.run("restore", "ledger", "--at", "latest", "--target", target, code=6)
    assert f"The database given_{os.getpid()}, which was empty, now holds parts" in failed.err
    assert f"given_{os.getpid()}" in databases(pg15)


# A restore stands still where this test wants it: on the copy, whoever comes first waits for the advisory lock.
WAITS = """
create function waits(i int) returns int language plpgsql immutable
  as $$ begin perform pg_catalog.pg_advisory_xact_lock_shared(4711); return i; end $$;
create table slow (i int);
insert into slow values (1), (2);
"""
STANDSTILLS = {
    "while loading": "alter table slow add check (waits(i) > 0)",
    "while indexing": "create index on slow (waits(i)); create index on slow (waits(i + 1))",
}


@contextmanager
def advisory_lock(server: ThrowawayServer, database: str, run: subprocess.Popen[str]) -> Iterator[None]:
    """The lock that `waits` wants, held in this database from the moment it exists."""
    found: list[psycopg.Connection] = []

    def connected() -> bool:
        with suppress(psycopg.OperationalError):  # it is not there yet
            found.append(psycopg.connect(server.dsn(database)))
        return bool(found)

    assert happens(lambda: connected() or run.poll() is not None, SECONDS)
    assert found, run.communicate()
    with found[0] as connection:
        connection.execute("select pg_advisory_xact_lock(4711)")
        yield
        connection.close()  # the restore's clean-up ended it already, or its end ends the lock


def pg_restores(database: str) -> list[str]:
    """The processes that restore into this database."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it just ended
            continue
        if "pg_restore" in command and f"dbname={database}" in command:
            found.append(command)
    return found


@pytest.mark.parametrize("when", STANDSTILLS)
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_restore_leaves_nothing(
    pg15: ThrowawayServer, tmp_path: Path, new_database: NewDatabase, number: signal.Signals, code: int, when: str
) -> None:
    told, copy = make_story(tmp_path, new_database(pg15)), f"interrupted_{os.getpid()}"
    with psycopg.connect(told.dsn) as connection:
        connection.execute(WAITS.encode())
        connection.execute(STANDSTILLS[when].encode())
    told.site.run("backup")
    before = databases(pg15)
    restore = told.site.start("restore", "ledger", "--at", "latest", "--into", copy, "--jobs", "2")
    try:
        with advisory_lock(pg15, copy, restore):
            stands = "select from pg_locks where locktype = 'advisory' and objid = 4711 and not granted"
            with psycopg.connect(pg15.dsn(), autocommit=True) as looking:
                assert happens(lambda: looking.execute(stands).rowcount > 0 or restore.poll() is not None, SECONDS)
            assert restore.poll() is None, restore.communicate()
            assert pg_restores(copy)
            began = time.monotonic()
            restore.send_signal(number)
            _, log = restore.communicate(timeout=SECONDS)
        assert restore.returncode == code, log
        assert time.monotonic() - began < 15
        assert f"The database {copy}, begun by this restore, was removed" in log
        assert "Traceback" not in log
        assert databases(pg15) == before
        assert pg_restores(copy) == []
    finally:
        if restore.poll() is None:
            restore.kill()
        restore.communicate()
        drop_database(pg15, copy)
