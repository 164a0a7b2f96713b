"""What a comparison of catalogs finds: nothing where nothing was lost, and whatever was changed in a copy by hand."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from backupd import reference
from backupd.differences import CHECKS, Check, differences
from backupd.postgres import objects
from backupd.postgres.objects import Inventory
from backupd.postgres.server import ThrowawayServer
from backupd.postgres.session import Dsn, connect
from tests.acceptance.torture import torture
from tests.postgres import NewDatabase, client_for, drop_database, run
from tests.site import local_site

pytestmark = pytest.mark.large  # test_mutations.py asks every day, of a smaller database

SOURCE = f"objects_{os.getpid()}"
COPY = f"objects_copy_{os.getpid()}"
UPGRADED = f"objects_upgraded_{os.getpid()}"
READER = f"objects_reader_{os.getpid()}"


@dataclass(frozen=True)
class Mutation:
    statements: str
    found: frozenset[str]  # "check | item"


def _mutations() -> dict[str, Mutation]:
    """The groups of mutations.sql by the names that they begin with."""
    groups = Path(__file__).with_name("mutations.sql").read_text().strip().split("\n\n")[1:]
    found = {}
    for group in groups:
        name, *lines = group.split("\n")
        statements = "\n".join(line for line in lines if not line.startswith("--> "))
        found[name.removeprefix("-- ")] = Mutation(
            statements, frozenset(line.removeprefix("--> ") for line in lines if line.startswith("--> "))
        )
    assert len(found) == len(groups)
    return found


MUTATIONS = _mutations()


def read(dsn: str) -> Inventory:
    """As a backup does: in a transaction that only reads, of the oldest snapshot. It must pass through its JSON."""
    with closing(connect(Dsn(dsn))) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        connection.autocommit = False
        found = objects.read(connection)
    made = reference.Reference(found, None, "postgres", "", None)
    return reference.decode(made.encode(), "here").inventory


def not_passed(checks: list[Check]) -> list[Check]:
    assert tuple(check.name for check in checks) == CHECKS
    return [check for check in checks if check.status != "passed"]


def lines(checks: list[Check]) -> frozenset[str]:
    return frozenset(f"{check.name} | {item}" for check in checks for item in check.items)


def restore(folder: Path, source: str, target: str) -> None:
    """Copy a database by our own command line."""
    site = local_site(folder, {"torture": source})
    site.run("backup")
    site.run("restore", "torture", "--at", "latest", "--target", target, "--create-roles", "--jobs", "2", "--json")


@pytest.fixture(scope="module")
def pair(pg18: ThrowawayServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The torture database and a copy of it that one may change for a moment."""
    with psycopg.connect(pg18.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("create database {} template template0").format(sql.Identifier(SOURCE)))
    torture(pg18, pg18.dsn(SOURCE))
    restore(tmp_path_factory.mktemp("objects"), pg18.dsn(SOURCE), pg18.dsn(COPY))
    yield pg18.dsn(SOURCE), pg18.dsn(COPY)
    for name in (COPY, SOURCE):
        drop_database(pg18, name)


@pytest.fixture(scope="module")
def source(pair: tuple[str, str]) -> Inventory:
    return read(pair[0])


@pytest.fixture(scope="module")
def mutable(pair: tuple[str, str]) -> Iterator[psycopg.Connection]:
    with closing(connect(Dsn(pair[1]))) as connection:
        yield connection


@pytest.fixture
def copy_on(new_database: NewDatabase, tmp_path: Path) -> Iterator[Callable[[ThrowawayServer, ThrowawayServer], str]]:
    """Makes a torture database on one server and a copy of it on another."""
    used: list[ThrowawayServer] = []

    def make(before: ThrowawayServer, after: ThrowawayServer) -> str:
        database = new_database(before, f"{UPGRADED}_source")
        torture(before, database)
        if before is not after:
            with psycopg.connect(database) as connection:  # the newer servers here are built without ICU and libxml
                connection.execute("drop table if exists torture.with_icu")
                connection.execute("drop collation if exists torture.german_phone, torture.ignore_case")
                connection.execute("update torture.values set x = null")
        used.append(after)
        restore(tmp_path, database, after.dsn(UPGRADED))
        return database

    yield make
    for server in used:
        drop_database(server, UPGRADED)


def test_nothing_differs(pair: tuple[str, str], source: Inventory) -> None:
    checks = differences(source, read(pair[1]), source_major=18, copy_major=18)
    assert not_passed(checks) == []
    # Everything that the comparison knows is in the database, or it would prove little.
    empty = {kind for kind, found in source.objects.items() if not found}
    assert empty == {"extension dependency", "security label"}
    assert {check.name: check.detail for check in checks}["tables"] == f"{len(source.objects['table'])} compared"


@pytest.mark.parametrize(
    "old, new",
    [
        (15, 18),
        *(pytest.param(old, new, marks=pytest.mark.large) for old, new in [(15, 15), (15, 17), (17, 17), (17, 18)]),
    ],
)
def test_nothing_differs_between_majors(
    request: pytest.FixtureRequest,
    copy_on: Callable[[ThrowawayServer, ThrowawayServer], str],
    old: int,
    new: int,
) -> None:
    before, after = request.getfixturevalue(f"pg{old}"), request.getfixturevalue(f"pg{new}")
    source, copy = read(copy_on(before, after)), read(after.dsn(UPGRADED))
    assert not_passed(differences(source, copy, source_major=old, copy_major=new)) == []
    if old != new:
        assert not_passed(differences(source, copy, source_major=new, copy_major=new)), "so the majors explain nothing"


@pytest.mark.parametrize("old, new", [(15, 17), pytest.param(15, 18, marks=pytest.mark.large)])
def test_a_newer_pg_dump_says_more(
    request: pytest.FixtureRequest, new_database: NewDatabase, old: int, new: int
) -> None:
    before, after = request.getfixturevalue(f"pg{old}"), request.getfixturevalue(f"pg{new}")
    original, copy, client = new_database(before), new_database(after), client_for(after)
    with psycopg.connect(original, autocommit=True) as connection:
        for role in (READER, f"{READER}_2"):
            for dsn in (before.dsn(), after.dsn()):
                with psycopg.connect(dsn, autocommit=True) as there:
                    there.execute(sql.SQL("drop role if exists {0}").format(sql.Identifier(role)))
                    there.execute(sql.SQL("create role {0}").format(sql.Identifier(role)))
        connection.execute(
            f"""
            create table revoked (id int, a int default 1);
            create table held (id int);
            alter table revoked owner to {READER};
            revoke all on revoked from {READER};
            revoke delete on held from current_user;
            grant all on held to {READER};
            grant all on held to {READER}_2 with grant option;
            create view reads as select id, a from revoked where id > 1;
            create subscription nowhere connection 'host=x' publication p with (connect = false);
            """
        )
    archive = run(client, "pg_dump", "--format=custom", f"--dbname={original}")
    run(client, "pg_restore", "--exit-on-error", f"--dbname={copy}", feed=archive)
    source, is_ = read(original), read(copy)
    assert not_passed(differences(source, is_, source_major=old, copy_major=new)) == []
    assert source.objects["subscription"] != is_.objects["subscription"]
    assert source.objects["view"]["public.reads"]["definition"] != is_.objects["view"]["public.reads"]["definition"]
    assert source.objects["table"]["public.revoked"].get("grants") is None


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_was_changed_is_found(source: Inventory, mutable: psycopg.Connection, name: str) -> None:
    mutation = MUTATIONS[name]
    with mutable.transaction(force_rollback=True):
        mutable.execute(mutation.statements.encode())
        copy = objects.read(mutable)
    checks = not_passed(differences(source, copy, source_major=18, copy_major=18))
    assert lines(checks) == mutation.found
    assert mutation.found


def test_the_mutations_cover_every_check() -> None:
    failing = {line.split(" | ")[0] for mutation in MUTATIONS.values() for line in mutation.found}
    assert set(CHECKS) - failing == {"security labels"}  # no provider without an extra library
    assert len(MUTATIONS) > 100


def test_a_reader_without_rights_reads_as_much(pair: tuple[str, str], source: Inventory) -> None:
    role = sql.Identifier(READER)
    with closing(connect(Dsn(pair[0]))) as connection:
        connection.execute(sql.SQL("drop role if exists {}").format(role))  # another test's, whose databases are gone
        connection.execute(sql.SQL("create role {}").format(role))
        try:
            connection.execute(sql.SQL("set session authorization {}").format(role))
            found = objects.read(connection)
        finally:
            connection.execute("reset session authorization")
            connection.execute(sql.SQL("drop role {}").format(role))
    assert found.unread == {"subscription": "only a superuser's dump holds subscriptions"}
    mapping = "torture_owner on server torture_server"
    assert found.objects["user mapping"][mapping] == {"hidden": True}
    same = {kind for kind in found.objects if found.objects[kind] == source.objects[kind]}
    assert found.objects.keys() - same == {"user mapping", "subscription"}
    (check,) = not_passed(differences(found, read(pair[1]), source_major=18, copy_major=18))
    assert (check.name, check.status, check.detail) == ("subscriptions", "skipped", found.unread["subscription"])


def test_no_lock_is_kept_and_no_secret(pair: tuple[str, str]) -> None:
    with closing(connect(Dsn(pair[0]), autocommit=False)) as connection:
        connection.execute("select 1")
        text = str(objects.read(connection))
        held = "select relation::regclass::text from pg_locks where pid = pg_backend_pid() and locktype = 'relation'"
        kept = {row[0] for row in connection.execute(held)}
        assert {name for name in kept if not re.fullmatch("pg_locks", name)} == set()
        connection.rollback()
    assert "password=secret" not in text
    assert "127.0.0.1" not in text  # of the servers' options there are hashes


def test_names_and_texts_of_no_encoding(pg17: ThrowawayServer, new_database: NewDatabase) -> None:
    """SQL_ASCII holds any bytes."""
    dsn = new_database(pg17, options="encoding 'SQL_ASCII' locale 'C'")
    with psycopg.connect(dsn, client_encoding="latin1") as connection:
        connection.execute("create table grün (größe int); comment on table grün is 'weiß'")
    found = read(dsn)
    assert found.objects["table"]['public."gr\udcfcn"']["comment"] == "wei\udcdf"
    checks = differences(found, Inventory({**found.objects, "table": {}}, {}), source_major=17, copy_major=17)
    assert lines(checks) == {r'tables | table public."gr\udcfcn": missing'}
