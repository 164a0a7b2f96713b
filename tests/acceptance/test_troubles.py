"""Restores that meet trouble: each kind with a real server. What holds for all of them: the exit code tells the kind,
the message holds the remedy, and the target's databases, roles and contents are what they were before."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from backupd.errors import PostgresError
from backupd.init import init
from backupd.manifest import DatabaseProperties
from backupd.postgres import database, target
from backupd.postgres.account import server_account
from backupd.postgres.lifetime import happens
from backupd.postgres.server import FAST, ThrowawayServer
from backupd.postgres.session import Dsn
from backupd.postgres.tools import choose_server, find_installations
from tests.acceptance.test_restore_plan import FORGETFUL, FULL, advisory_lock
from tests.faulty_proxy import Fault, FaultyProxy, Seen
from tests.postgres import client_for, drop_database
from tests.seaweed import SeaweedServer
from tests.site import local_site, s3_site
from tests.troubles import PASSWORD, STANDS, WAITS, Place, as_role, background, roles, sql_at, state

N = os.getpid()
SECONDS = 60  # a bound for what takes a moment, never a pause

OWNED = f"""
create schema app authorization own_{N};
create extension hstore;
set role own_{N};
create table app.orders (id int primary key, note text, tags public.hstore);
insert into app.orders select i, 'x' from generate_series(1, 100) i;
grant select on app.orders to reader_{N};
create table app.secrets (who text);
create policy p on app.secrets to police_{N} using (true);
reset role;
"""
PRIVILEGED = {
    "function public.c_language()": "create function c_language() returns language_handler language c"
    " as '$libdir/plpgsql', 'plpgsql_call_handler'",
    "function public.internal_language(integer)": "create function internal_language(int) returns int language internal"
    " strict as 'int4abs'",
    "function public.leaks_not(integer)": "create function leaks_not(int) returns int language sql immutable leakproof"
    " as 'select $1'",
    "function public.supported(integer)": "create function supported(int) returns int language sql"
    " support generate_series_int4_support as 'select $1'",
    "function public.sets_what_it_may_not()": "create function sets_what_it_may_not() returns int language sql"
    " set log_min_messages = error as 'select 1'",
    "aggregate public.in_memory(bigint)": "create aggregate in_memory(bigint) (sfunc = int8_avg_accum,"
    " stype = internal, finalfunc = numeric_poly_avg)",
    "type public.shell": "create type shell",
    "type public.base": "create type base; create function base_in(cstring) returns base language internal strict"
    " immutable as 'int4in'; create function base_out(base) returns cstring language internal strict immutable"
    " as 'int4out'; create type base (input = base_in, output = base_out, internallength = 4, passedbyvalue)",
    'cast CAST ("text" AS "cidr")': "create cast (text as cidr) with inout",
    "operator family public.family": "create operator family family using btree",
    "operator class public.class": "create operator class class for type int using hash as operator 1 =",
    "text search parser public.parser": "create text search parser parser (start = prsd_start,"
    " gettoken = prsd_nexttoken, end = prsd_end, lextypes = prsd_lextype)",
    "text search template public.template": "create text search template template (lexize = dsimple_lexize)",
    "access method method": "create access method method type index handler bthandler",
    "foreign data wrapper wrapper": "create foreign data wrapper wrapper; create server elsewhere"
    " foreign data wrapper wrapper",
    "publication everything": "create publication everything for all tables",
    "publication tables in schema public.one_schema public": "create publication one_schema"
    " for tables in schema public",
    "subscription subscribed": "create subscription subscribed connection 'dbname=nowhere' publication p"
    " with (connect = false, slot_name = none)",
    "event trigger watches": "create function watch() returns event_trigger language plpgsql as 'begin end';"
    " create event trigger watches on sql_drop execute function watch()",
    'acl pg_catalog.FUNCTION "pg_ls_dir"("text")': "grant execute on function pg_ls_dir(text) to pg_monitor",
}
# Beside them, so that what looks like them, and anybody may restore, is there too.
ORDINARY = """
create table kept (id int primary key, at timestamptz default now());
insert into kept select i from generate_series(1, 10) i;
create type colours as enum ('INPUT = ', ' OUTPUT = ', 'LANGUAGE "c"');
create function plain() returns text language sql set work_mem = '5MB'
  as $$ select E'\\n    LANGUAGE "c"\\n LEAKPROOF SUPPORT ' $$;
create type pair as (a int, b int);
create function to_pair(int) returns pair language sql immutable as 'select ($1, $1)::pair';
create cast (int as pair) with function to_pair(int);
create publication a_few for table kept;
create aggregate total(int) (sfunc = int4pl, stype = int);
"""


@dataclass
class World:
    place: Place
    old: ThrowawayServer  # 15, where most databases are
    new: ThrowawayServer  # 17

    def refused(self, code: int, *arguments: str, on: ThrowawayServer) -> str:
        return self.place.refused(code, *arguments, servers=(on,))


@pytest.fixture(scope="module")
def world(pg15: ThrowawayServer, pg17: ThrowawayServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    names = {
        "shop": (pg15, ""),
        "bare": (pg15, ""),
        "special": (pg15, ""),
        "extended": (pg15, ""),
        "german": (pg15, "locale_provider icu icu_locale 'de'"),
        "slow": (pg15, ""),
        "broken": (pg15, ""),
        "bulky": (pg15, ""),
        "fresh": (pg17, ""),
        "builtin": (pg17, "locale_provider builtin builtin_locale 'C.UTF-8'"),
    }
    mine = {f"{role}_{N}": "" for role in ("own", "reader", "police")}
    with ExitStack() as stack:
        stack.enter_context(roles(pg15, mine))
        for name, (server, options) in names.items():
            sql_at(server, f"create database {name}_{N} template template0 {options}")
            stack.callback(drop_database, server, f"{name}_{N}")
        fill = {
            "shop": [OWNED, f"select lo_create(4711); alter large object 4711 owner to police_{N}"],
            "bare": ["create table entries (i int primary key)", "insert into entries values (1)"],
            "special": [*PRIVILEGED.values(), ORDINARY],
            "extended": ["create extension old_snapshot", "create extension pg_stat_statements"],
            "slow": [WAITS, "create index on slow (waits(i))", "create table other (i int)"],
            "broken": [FORGETFUL, "alter table measured add check (in_limits(value))"],
            "bulky": [
                "create table bulky as select i, repeat(md5(i::text), 30) as t from generate_series(1, 20000) i",
            ],
            "fresh": ["create table entries (i int primary key)"],
        }
        for name, statements in fill.items():
            sql_at(names[name][0], *statements, database=f"{name}_{N}")
        folder = tmp_path_factory.mktemp("troubles")
        site = local_site(folder, {name: server.dsn(f"{name}_{N}") for name, (server, _) in names.items()})
        site.set("large_table_size", '"1MiB"', table="defaults")
        site.run("backup", "--jobs", "1")
        yield World(Place.make(site), pg15, pg17)


# ---- refused before anything is written

Prepared = Callable[[World], AbstractContextManager[list[str]]]


@dataclass(frozen=True)
class Refusal:
    database: str
    code: int
    said: tuple[str, ...]  # message and remedy
    prepare: Prepared  # the trouble; yields the arguments
    unsaid: tuple[str, ...] = ()


def plainly(*arguments: str, new: bool = False) -> Prepared:
    """Onto a new database on one of the servers, with these arguments."""
    return lambda w: nullcontext(["--target", (w.new if new else w.old).dsn(f"copy_{N}"), *arguments])


def by_tenant(*arguments: str, attributes: str = "createdb", new: bool = False, then: tuple[str, ...] = ()) -> Prepared:
    """By a user who is no superuser."""

    @contextmanager
    def prepare(world: World) -> Iterator[list[str]]:
        server = world.new if new else world.old
        with roles(server, {f"tenant_{N}": f"login password '{PASSWORD}' {attributes}"}, *then):
            yield ["--target", as_role(server, f"tenant_{N}", f"copy_{N}"), *arguments]

    return prepare


@contextmanager
def only_old_clients(world: World) -> Iterator[list[str]]:
    """A place whose only programs are those of 15, found by PATH; the usual folders and wheels are hidden."""
    yield from _with_tools(world, 15, world.new)


@contextmanager
def no_pg_restore(world: World) -> Iterator[list[str]]:
    yield from _with_tools(world, 15, world.old, without="pg_restore")


def _with_tools(world: World, major: int, server: ThrowawayServer, without: str = "") -> Iterator[list[str]]:
    """Programs of one version alone. Where they are looked for besides is no setting, so a start-up file changes it."""
    folder = world.place.site.folder / f"tools-{major}-{without}"
    (folder / "bin").mkdir(parents=True)
    installation = next(i for i in find_installations() if i.major == major)
    for program in installation.bin_dir.iterdir():
        if program.name != without:
            (folder / "bin" / program.name).symlink_to(program)
    # pg_dump must be a copy: a link leads to the folder where everything is.
    (folder / "bin" / "pg_dump").unlink()
    shutil.copy(installation.bin_dir / "pg_dump", folder / "bin" / "pg_dump")
    (folder / "sitecustomize.py").write_text(
        "import backupd.postgres.tools as t\nt.USUAL_FOLDERS = ()\nt.WHEELS = ()\n"
    )
    environ = world.place.site.environ
    before = dict(environ)
    python_path = os.pathsep.join(filter(None, [os.fspath(folder), environ.get("PYTHONPATH")]))
    environ |= {"PATH": f"{folder / 'bin'}", "PYTHONPATH": python_path}
    try:
        yield ["--target", server.dsn(f"copy_{N}")]
    finally:
        environ.clear()
        environ |= before


def existing(options: str = "", *statements: str, extra: tuple[str, ...] = ()) -> Prepared:
    """Into a database that exists."""

    @contextmanager
    def prepare(world: World) -> Iterator[list[str]]:
        sql_at(world.old, f"create database taken_{N} template template0 {options}")
        try:
            sql_at(world.old, *statements, database=f"taken_{N}")
            yield ["--target", world.old.dsn(f"taken_{N}"), *extra]
        finally:
            drop_database(world.old, f"taken_{N}")

    return prepare


@contextmanager
def tenants_database(world: World) -> Iterator[list[str]]:
    """An empty database, given to somebody who may not create anything in it."""
    sql_at(world.old, f"create database taken_{N} template template0")
    try:
        with roles(world.old, {f"tenant_{N}": f"login password '{PASSWORD}'"}):
            yield ["--target", as_role(world.old, f"tenant_{N}", f"taken_{N}")]
    finally:
        drop_database(world.old, f"taken_{N}")


def _member(role: str, options: str = "") -> str:
    return f"grant {role}_{N} to tenant_{N}{options}"


HERE = {f"{role}_{N}": "" for role in ("own", "reader", "police")}


@contextmanager
def managed(world: World) -> Iterator[list[str]]:
    """A member of a role that stands in for a superuser."""
    with (
        roles(world.old, {"rds_superuser": ""}),
        roles(
            world.old, {f"tenant_{N}": f"login password '{PASSWORD}' createdb"}, f"grant rds_superuser to tenant_{N}"
        ),
    ):
        yield ["--target", as_role(world.old, f"tenant_{N}", f"copy_{N}"), "--no-owner"]


@contextmanager
def not_the_owner(world: World) -> Iterator[list[str]]:
    with roles(world.old, {f"tenant_{N}": f"login password '{PASSWORD}' createdb"}):
        yield ["--target", as_role(world.old, f"tenant_{N}", f"bare_{N}"), "--replace", "--no-owner"]


REFUSALS = {
    "a target older than the dump": Refusal(
        "fresh", 6, ("the target runs PostgreSQL 15", "17 or newer: an older server can't read it"), plainly()
    ),
    "the built-in locale provider, on an older server": Refusal(
        "builtin", 6, ("2 things stand in the way", "17 or newer", "built-in locale provider came with"), plainly()
    ),
    "no client new enough": Refusal(
        "bare",
        6,
        ("runs PostgreSQL 17, and no client here is as new", "install postgresql-client-17"),
        only_old_clients,
    ),
    "no pg_restore": Refusal(
        "bare", 6, ("has no pg_restore", "install the package postgresql-client-15"), no_pg_restore
    ),
    "an extension that is not on the target": Refusal(
        "extended",
        6,
        ("can't create the extension old_snapshot 1.0", "Install the package", "--exclude-extension old_snapshot"),
        plainly(new=True),
        unsaid=("extension pg_stat_statements",),
    ),
    "an extension that only a superuser may create": Refusal(
        "extended",
        6,
        (f"tenant_{N} may not create the extension", "--exclude-extension pg_stat_statements", "as a superuser"),
        by_tenant("--no-owner"),
    ),
    "an extension that others need": Refusal(
        "shop",
        8,
        ("1 objects of the backup need the extension hstore", "table app.orders", "--table"),
        plainly("--exclude-extension", "hstore"),
    ),
    "an extension that is not in the backup": Refusal(
        "shop", 8, ("has no extension postgis", "It has hstore"), plainly("--exclude-extension", "postgis")
    ),
    "roles missing": Refusal(
        "shop",
        6,
        (f"own_{N}", f"police_{N}", f"reader_{N}", "--create-roles", f'CREATE ROLE "own_{N}"', "--role-map OLD=NEW"),
        plainly(new=True),
        unsaid=("--no-owner",),  # a policy is for one of them
    ),
    "roles missing, of which no owner": Refusal(
        "shop", 6, (f"no role police_{N}", "--create-roles"), plainly("--no-owner", new=True), unsaid=(f"reader_{N}",)
    ),
    "a role map to a role that does not exist": Refusal(
        "shop", 6, (f"no role nobody_{N}", "--create-roles"), plainly("--role-map", f"own_{N}=nobody_{N}")
    ),
    "owners that the user is no member of": Refusal(
        "shop",
        6,
        (
            f"the user tenant_{N} may not make own_{N}, police_{N}, postgres the owner of anything",
            f'GRANT "own_{N}" TO "tenant_{N}";',
            "--role-map OLD=NEW",
            "--no-owner",
        ),
        by_tenant(),
        unsaid=(f"reader_{N},",),  # to whom something was granted, and that is all
    ),
    "owners that the user is a member of without inheriting": Refusal(
        "shop",
        6,
        (f"may not make own_{N}, police_{N} the owner", "who inherits what it may do"),
        by_tenant(
            *("--role-map", f"postgres=tenant_{N}"),
            attributes="createdb noinherit",
            then=(_member("own"), _member("police")),
        ),
    ),
    "a user without CREATEDB": Refusal(
        "bare",
        6,
        (f"tenant_{N} may not create databases", f"ALTER ROLE tenant_{N} CREATEDB", "--target"),
        by_tenant("--no-owner", attributes=""),
    ),
    "a database in which the user may not create": Refusal(
        "bare",
        6,
        (f"GRANT CREATE ON DATABASE taken_{N} TO", f'GRANT CREATE ON SCHEMA public TO "tenant_{N}"'),
        tenants_database,
    ),
    "a locale of ICU, on a server without": Refusal(
        "german",
        6,
        ("can't create a database with the original's locale", "(icu)", "ICU is not supported", "--target"),
        plainly(new=True),
    ),
    "a name that is taken": Refusal(
        "bare", 8, (f"the database bare_{N} exists", "--into"), lambda _: nullcontext(["--into", f"bare_{N}"])
    ),
    "a target of another encoding": Refusal(
        "bare",
        8,
        ("has the encoding LATIN1, and the backup UTF8", "does not exist yet"),
        existing("encoding 'LATIN1' locale 'C'"),
    ),
    "a backup that is too old": Refusal(
        "bare", 8, ("older than the time asked for", "larger --max-gap"), plainly("--max-gap", "1s", "--at", "0s")
    ),
    "the privileged": Refusal(
        "special",
        6,
        ("only a superuser can restore", "--skip-privileged", "function public.c_language()"),
        by_tenant("--no-owner"),
    ),
    "the privileged, to a stand-in for a superuser": Refusal(
        "special", 6, ("only a superuser can restore", "--skip-privileged", "function public.c_language()"), managed
    ),
    "an owner who would have to be a superuser": Refusal(
        "special",
        6,
        (f"would belong to own_{N}, and only a superuser may own such", "--role-map OLD=NEW", "--no-owner"),
        plainly("--role-map", f"postgres=own_{N}"),
    ),
    "--replace by somebody else than the owner": Refusal(
        "bare", 6, (f"tenant_{N} does not own the database bare_{N}", "OWNER TO", "without --replace"), not_the_owner
    ),
    "many at once": Refusal(
        "shop",
        8,
        (
            *("things stand in the way; nothing was written", "older than the time asked for", "is not empty"),
            *(
                "table public.in_the_way",
                f"no role nobody_{N}",
                "larger --max-gap",
                "--create-roles",
                "Give an empty database",
            ),
        ),
        existing("", "create table in_the_way ()", extra=("--max-gap", "1s", "--role-map", f"own_{N}=nobody_{N}")),
    ),
}


@pytest.mark.parametrize("kind", REFUSALS, ids=list(REFUSALS))
def test_refused(world: World, kind: str) -> None:
    trouble = REFUSALS[kind]
    with trouble.prepare(world) as arguments:
        at = [] if "--at" in arguments else ["--at", "latest"]
        if "1s" in arguments:  # the backup must be older than that
            at = ["--at", "2030-01-01T00:00Z"]
            arguments = [a for a in arguments if a not in ("--at", "0s")]
        there = world.new if f"port={world.new.port}" in " ".join(arguments) else world.old
        said = world.refused(trouble.code, trouble.database, *at, *arguments, on=there)
    for text in trouble.said:
        assert text in said, said
    for text in (*trouble.unsaid, "was removed"):  # there was nothing yet to remove
        assert text not in said, said


@pytest.mark.parametrize("what", FULL, ids=list(FULL))
def test_a_target_that_is_not_empty(world: World, what: str) -> None:
    """Seen by the same look that a restore takes; the whole command is tried above and in test_restore_plan."""
    with existing("", FULL[what])(world):
        assert target.contents(Dsn(world.old.dsn(f"taken_{N}"))) != []


def test_every_privileged_thing_is_left_out_if_asked(world: World) -> None:
    """And nothing else, but for what needs it."""
    with by_tenant("--skip-privileged", "--dry-run", "--json")(world) as arguments:
        own = ("--role-map", f"postgres=tenant_{N}")
        plan = world.place.site.run("restore", "special", "--at", "latest", *arguments, *own).json
    left = set(plan["left_out"])
    assert set(PRIVILEGED) - left == set()
    beside = {"server elsewhere", "shell type public.base", "operator family public.class"}
    functions = {'function public.base_in("cstring")', 'function public.base_out("public"."base")'}
    assert left - set(PRIVILEGED) == beside | functions


# ---- the server


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayServer]:
    """A server of our own: it is killed, replicated, and has few connections."""
    settings = {
        **FAST,
        "wal_level": "replica",
        "max_wal_senders": "4",
        "max_prepared_transactions": "4",
        "max_connections": "12",
        "superuser_reserved_connections": "3",
    }
    installation = choose_server(find_installations(), 15)
    with ThrowawayServer(
        installation, tmp_path_factory.mktemp("stage") / "server", port=0, settings=settings
    ) as server:
        yield server


@pytest.fixture(scope="module")
def standby(stage: ThrowawayServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayServer]:
    """A streaming standby of it."""
    folder = tmp_path_factory.mktemp("standby") / "server"
    made = ThrowawayServer(stage.installation, folder, port=0, settings={**FAST, "max_connections": "12"} | MORE)
    with made as server:
        server.stop()
        account = server_account()
        shutil.rmtree(server.data_dir)
        server.data_dir.mkdir(mode=0o700)
        account.own(server.data_dir)
        subprocess.run(
            [
                client_for(stage).program("pg_basebackup"),
                *(f"--pgdata={server.data_dir}", "--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf"),
                f"--dbname={stage.dsn()}",
            ],
            check=True,
            user=account.uid,
            group=account.gid,
            extra_groups=None if account.uid is None else [],
            cwd="/",
        )
        server.password = stage.password
        server.start()
        yield server


MORE = {"max_wal_senders": "4", "wal_level": "replica", "max_prepared_transactions": "4", "hot_standby": "on"}


def test_a_standby(world: World, stage: ThrowawayServer, standby: ThrowawayServer) -> None:
    """With all else that stands in the way there, in one list."""
    said = world.refused(6, "shop", "--at", "latest", "--target", standby.dsn(f"copy_{N}"), "--jobs", "1", on=standby)
    for text in (
        "2 things stand in the way",
        "is a standby: nothing can be written there",
        "Name the primary.",
        "no role",
    ):
        assert text in said


def test_no_connection_to_spare(world: World, stage: ThrowawayServer) -> None:
    with roles(stage, {f"tenant_{N}": f"login password '{PASSWORD}' createdb"}), ExitStack() as held:
        before = state(stage)
        with pytest.raises(psycopg.OperationalError):
            while True:
                held.enter_context(psycopg.connect(as_role(stage, f"tenant_{N}")))
        where = as_role(stage, f"tenant_{N}", f"copy_{N}")
        outcome = world.place.site.run("restore", "bare", "--at", "latest", "--target", where, code=6)
        assert "max_connections" in world.place.said(outcome)
        held.close()
        world.place.left_nothing([before], (stage,))


def test_read_only_by_default_is_no_trouble(world: World) -> None:
    """For the role, and for the database that is restored."""
    setting = f"alter role tenant_{N} set default_transaction_read_only = on"
    with by_tenant("--no-owner", then=(setting,))(world) as arguments:
        before = state(world.old)
        world.place.site.run("restore", "bare", "--at", "latest", *arguments)
        drop_database(world.old, f"copy_{N}")
        world.place.left_nothing([before], (world.old,))


def test_another_version_of_an_extension_is_a_note(world: World) -> None:
    arguments = ("--target", world.new.dsn(f"copy_{N}"), "--exclude-extension", "old_snapshot", "--role-map", "x=y")
    before = state(world.new)
    outcome = world.place.site.run("restore", "extended", "--at", "latest", *arguments)
    said = world.place.said(outcome)
    assert "The extension pg_stat_statements was 1.10, and will be the target's 1.11." in said
    assert "The backup names no role x: that --role-map changes nothing." in said
    drop_database(world.new, f"copy_{N}")
    world.place.left_nothing([before], (world.new,))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (("UTF8", "xx_XX.utf8", "libc"), "xx_XX.utf8"),
        (("LATIN1", "C.utf8", "libc"), "is for the encoding UTF8, not LATIN1"),
        (("UTF8", "xx_XX.utf8", "icu"), "xx_XX.utf8"),  # which has a locale of the C library beside its own
        (("UTF8", "C.utf8", "libc"), None),
        (("SQL_ASCII", "C", "libc"), None),
        (("LATIN1", "C", "libc"), None),
        (("UTF8", "C.utf8", "icu"), None),
    ],
    ids=str,
)
def test_locales(pg15: ThrowawayServer, wanted: tuple[str, str, str], said: str | None) -> None:
    """What is foretold is what CREATE DATABASE says."""
    encoding, locale, provider = wanted
    given = {"encoding": encoding, "collate": locale, "ctype": locale, "locale_provider": provider}
    of_icu = {"locale": "de"} if provider == "icu" else {}
    properties = DatabaseProperties.model_validate({"name": "x", "owner": "postgres"} | given | of_icu)
    server = target.inspect(Dsn(pg15.dsn()))
    reason = target.lacks_locale(server, properties)
    assert reason is None if said is None else reason and said in reason
    try:
        database.create_database(server, f"copy_{N}", properties)
    except PostgresError:
        assert said is not None
    else:
        assert said is None
    finally:
        drop_database(pg15, f"copy_{N}")


# ---- a full disk


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayServer]:
    """A server whose data lie on a small disk of their own, and its log of changes elsewhere."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    disk = tmp_path_factory.mktemp("tight")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=72m", "tmpfs", disk], check=False).returncode != 0:
        pytest.skip("no disk can be mounted here")
    try:
        installation = choose_server(find_installations(), 15)
        # A checkpoint of its own that finds no room stops the server.
        settings = {**FAST, "max_wal_size": "1GB", "checkpoint_timeout": "1h", "autovacuum": "off"}
        for folder in disk.parents:
            if folder != Path("/tmp") and folder.is_relative_to("/tmp"):
                folder.chmod(0o711)
        disk.chmod(0o711)
        with ThrowawayServer(installation, disk / "server", port=0, settings=settings) as server:
            assert server.data_dir.resolve().is_relative_to(disk)
            server.stop()
            log = tmp_path_factory.mktemp("wal")
            log.chmod(0o711)
            shutil.move(server.data_dir / "pg_wal", log / "pg_wal")
            for path in (log / "pg_wal", *(log / "pg_wal").rglob("*")):
                server_account().own(path)
            (server.data_dir / "pg_wal").symlink_to(log / "pg_wal")
            server.start()
            yield server
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_too_small(world: World, tight: ThrowawayServer) -> None:
    with _filled(tight, leave=6 << 20):
        said = world.refused(8, "bulky", "--at", "latest", "--target", tight.dsn(f"copy_{N}"), on=tight)
    assert "the target's disk has" in said
    assert "Make room there" in said


def test_a_disk_that_fills_up(world: World, tight: ThrowawayServer) -> None:
    with _filled(tight, leave=14 << 20):
        said = world.refused(6, "bulky", "--at", "latest", "--target", tight.dsn(f"copy_{N}"), on=tight)
    assert "No space left on device" in said
    assert "The server's disk is full. Make room there and run it again." in said
    assert f"The database copy_{N}, begun by this restore, was removed" in said


@contextmanager
def _filled(server: ThrowawayServer, *, leave: int) -> Iterator[None]:
    ballast = server.data_dir.parent / "ballast"
    disk = os.statvfs(server.data_dir)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - leave)
    try:
        yield
    finally:
        ballast.unlink()


# ---- interrupted, or cut off, in the middle


class Restore:
    """A restore into `copy_N` that runs in the background."""

    def __init__(self, world: World, process: subprocess.Popen[str], server: ThrowawayServer) -> None:
        self.world, self.process, self.server = world, process, server

    def waits_for(self, query: str, database: str = "postgres") -> tuple[object, ...]:
        """The row of the query, as soon as it has one."""
        found: list[tuple[object, ...]] = []
        with closing(psycopg.connect(self.server.dsn(database), autocommit=True)) as looking:
            happens(
                lambda: bool(found := looking.execute(query.encode()).fetchall()) or self.process.poll() is not None,
                SECONDS,
            )
            found = looking.execute(query.encode()).fetchall()
        assert self.process.poll() is None, self.process.communicate()
        assert found
        return found[0]

    def ends(self, code: int) -> str:
        _, errors = self.process.communicate(timeout=SECONDS)
        assert self.process.returncode == code, errors
        assert "Traceback" not in errors
        assert PASSWORD not in errors
        return " ".join(errors.split())


@contextmanager
def restoring(world: World, database: str, *arguments: str, server: ThrowawayServer | None = None) -> Iterator[Restore]:
    where = server or world.old
    to = arguments or ("--target", where.dsn(f"copy_{N}"))
    with background(world.place.site, "restore", database, "--at", "latest", "--jobs", "1", *to) as process:
        yield Restore(world, process, where)


SIGNALS = pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)


@SIGNALS
def test_interrupted_while_planning(world: World, number: signal.Signals, code: int) -> None:
    """The target accepts a connection, and says nothing."""
    before = [state(server) for server in (world.old, world.new)]
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        silent.settimeout(SECONDS)
        where = f"postgresql://postgres@127.0.0.1:{silent.getsockname()[1]}/copy_{N}"
        with restoring(world, "bare", "--target", where) as restore:
            peer, _ = silent.accept()
            with peer:
                restore.process.send_signal(number)
                restore.ends(code)
    world.place.left_nothing(before, (world.old, world.new))


CREATING = (
    "select 1 from pg_locks l join pg_stat_activity a using (pid)"
    " where not granted and l.relation = 'pg_database'::regclass and query like 'create database%'"
)


@SIGNALS
def test_interrupted_while_creating(world: World, number: signal.Signals, code: int) -> None:
    before = state(world.old)
    with closing(psycopg.connect(world.old.dsn())) as holding, restoring(world, "bare") as restore:
        holding.execute("lock table pg_database in share mode")
        restore.waits_for(CREATING)
        restore.process.send_signal(number)
        said = restore.ends(code)
        assert f"The database copy_{N} may have been created, empty, at that moment: see, and drop it." in said
    world.place.left_nothing([before], (world.old,))


@SIGNALS
def test_interrupted_while_indexing(world: World, number: signal.Signals, code: int) -> None:
    """While loading, too: test_restore_plan has both, with parallel programs."""
    before = state(world.old)
    with restoring(world, "slow") as restore:
        with advisory_lock(world.old, f"copy_{N}", restore.process):
            restore.waits_for(STANDS)
            restore.process.send_signal(number)
            said = restore.ends(code)
        assert f"The database copy_{N}, begun by this restore, was removed. Nothing else was touched." in said
    world.place.left_nothing([before], (world.old,))


PREPARED = "begin; create table if not exists held (); prepare transaction 'holds'"


@pytest.fixture
def original(world: World, stage: ThrowawayServer) -> Iterator[str]:
    """A database on the stage, under the name of the one that `slow` is a backup of, to be replaced."""
    sql_at(stage, f"create database slow_{N}", f"create database other_{N}")
    yield stage.dsn(f"slow_{N}")
    with closing(psycopg.connect(stage.dsn(f"slow_{N}"), autocommit=True)) as connection:
        for (gid,) in connection.execute("select gid from pg_prepared_xacts").fetchall():
            connection.execute(f"rollback prepared '{gid}'".encode())
    with closing(psycopg.connect(stage.dsn(), autocommit=True)) as connection:
        names = [row[0] for row in connection.execute("select datname from pg_database where oid >= 16384").fetchall()]
    for name in names:
        if name.startswith(("slow_", "other_")):
            drop_database(stage, name)


def test_prepared_transactions_of_what_is_replaced(world: World, stage: ThrowawayServer, original: str) -> None:
    with closing(psycopg.connect(original, autocommit=True)) as connection:
        connection.execute(PREPARED.encode())
    said = world.refused(8, "slow", "--at", "latest", "--target", original, "--replace", on=stage)
    assert "has 1 prepared transactions" in said
    assert "COMMIT PREPARED or ROLLBACK PREPARED" in said


def _copy(server: ThrowawayServer) -> str:
    """The database that is being restored beside the original."""
    found: list[str] = []

    def there() -> bool:
        with closing(psycopg.connect(server.dsn(), autocommit=True)) as connection:
            rows = connection.execute("select datname from pg_database where datname like '%restored%'").fetchall()
        found.extend(row[0] for row in rows)
        return bool(found)

    assert happens(there, SECONDS)
    return found[0]


def test_interrupted_while_swapping(world: World, stage: ThrowawayServer, original: str) -> None:
    """The swap waits for a transaction that was prepared meanwhile."""
    before = state(stage)
    renaming = "select 1 from pg_stat_activity where query ilike 'alter database%rename%' and state = 'active'"
    with restoring(world, "slow", "--target", original, "--replace", server=stage) as restore:
        copy = _copy(stage)
        with advisory_lock(stage, copy, restore.process):
            restore.waits_for(STANDS)
            with closing(psycopg.connect(original, autocommit=True)) as connection:
                connection.execute(PREPARED.encode())
        restore.waits_for(renaming)
        restore.process.send_signal(signal.SIGINT)
        said = restore.ends(130)
    assert f"The restored database is complete, as {copy}; slow_{N} was not touched." in said
    assert f'ALTER DATABASE "{copy}" RENAME TO "slow_{N}";' in said
    sql_at(stage, f'drop database "{copy}"')
    sql_at(stage, "rollback prepared 'holds'", database=f"slow_{N}")
    world.place.left_nothing([before], (stage,))


@pytest.mark.large  # the swap tries for half a minute
def test_a_session_that_may_not_be_ended(world: World, stage: ThrowawayServer, original: str) -> None:
    """A superuser's, while the original's owner replaces it."""
    with roles(stage, {f"tenant_{N}": f"login password '{PASSWORD}' createdb"}):
        sql_at(stage, f"alter database slow_{N} owner to tenant_{N}")
        before = state(stage)
        who = ("--target", as_role(stage, f"tenant_{N}", f"slow_{N}"), "--no-owner")
        with closing(psycopg.connect(original, autocommit=True)) as superuser:
            process = world.place.site.run("restore", "slow", "--at", "latest", *who, "--replace", "--json", code=8)
            error = process.json["error"]
            superuser.execute("select 1")
        assert "somebody stays connected" in error["message"]
        assert "pg_terminate_backend" in error["hint"]
        copy = _copy(stage)
        assert copy in process.out
        sql_at(stage, f'drop database "{copy}"')
        world.place.left_nothing([before], (stage,))
        sql_at(stage, f"alter database slow_{N} owner to postgres")


# ---- cut off


SESSIONS = {
    "pg_restore's": STANDS.replace("select from", "select pid from"),
    "our own": "select pid from pg_stat_activity where query like 'analyze%' and wait_event_type = 'Lock'",
}


@pytest.mark.parametrize("whose", SESSIONS, ids=list(SESSIONS))
def test_a_session_is_ended(world: World, whose: str) -> None:
    before = state(world.old)
    with restoring(world, "slow") as restore, ExitStack() as held:
        with advisory_lock(world.old, f"copy_{N}", restore.process):
            restore.waits_for(STANDS)
            if whose == "our own":  # goes on to where it waits for another lock
                blocker = held.enter_context(psycopg.connect(world.old.dsn(f"copy_{N}")))
                blocker.execute("lock table other in share update exclusive mode")
            else:
                (pid,) = restore.waits_for(SESSIONS[whose])
                sql_at(world.old, f"select pg_terminate_backend({pid})")
                said = restore.ends(6)
        if whose == "our own":
            (pid,) = restore.waits_for(SESSIONS[whose])
            sql_at(world.old, f"select pg_terminate_backend({pid})")
            said = restore.ends(6)
            with pytest.raises(psycopg.Error):  # was on the copy, which is gone
                blocker.execute("select 1")
    assert "terminating connection due to administrator command" in said
    assert "again" in said.partition("hint:")[2]
    assert f"The database copy_{N}, begun by this restore, was removed" in said
    world.place.left_nothing([before], (world.old,))


def test_the_server_stops(world: World, stage: ThrowawayServer) -> None:
    """At once, as in a crash. What is left is named, and goes as the message says."""
    before = state(stage)
    with restoring(world, "slow", server=stage) as restore:
        with suppress(psycopg.Error), advisory_lock(stage, f"copy_{N}", restore.process):
            restore.waits_for(STANDS)
            stage.kill()
        said = restore.ends(6)
    stage.start()
    assert f"The database copy_{N} was begun and could not be removed" in said
    assert "Run it again when" in said
    drop = re.search(rf'DROP DATABASE "copy_{N}";', said)
    assert drop
    sql_at(stage, drop[0])
    world.place.left_nothing([before], (stage,))


# ---- what is stored


def _stored(world: World, database: str, name: str) -> Path:
    (path,) = (world.place.site.folder / "repository").glob(f"{database}/data/*/{name}.dump.zst.age")
    return path


@contextmanager
def changed(path: Path, data: bytes | None) -> Iterator[None]:
    """Another content, or none."""
    was = path.read_bytes()
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        path.write_bytes(was)


def test_a_stream_is_damaged(world: World) -> None:
    path = _stored(world, "bulky", "data-0001")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with changed(path, bytes(data)):
        said = world.refused(7, "bulky", "--at", "latest", "--target", world.old.dsn(f"copy_{N}"), on=world.old)
    assert "data-0001" in said
    assert f"The database copy_{N}, begun by this restore, was removed" in said


def test_an_object_is_missing(world: World) -> None:
    with changed(_stored(world, "bulky", "data-0001"), None):
        said = world.refused(7, "bulky", "--at", "latest", "--target", world.old.dsn(f"copy_{N}"), on=world.old)
    assert "data-0001" in said
    assert "hint:" in said


def test_the_identity_is_another(world: World, tmp_path: Path) -> None:
    other = init(tmp_path / "backupd.toml", f"file://{tmp_path}", {}).config.with_name("identity.age")
    with changed(world.place.site.folder / "identity.age", other.read_bytes()):
        (world.place.site.folder / "identity.age").chmod(0o600)
        said = world.refused(7, "bare", "--at", "latest", "--target", world.old.dsn(f"copy_{N}"), on=world.old)
    (world.place.site.folder / "identity.age").chmod(0o600)
    assert "Put back the identity of the recipients it was made for" in said


def test_the_storage_goes_away(world: World, s3_server: SeaweedServer, s3_bucket: str, tmp_path: Path) -> None:
    """In the middle of a stream, and does not come back."""
    site = s3_site(tmp_path / "s3", s3_server, s3_bucket, {"bulky": world.old.dsn(f"bulky_{N}")})
    site.set("large_table_size", '"1MiB"', table="defaults")
    site.run("backup")
    place, began = Place.make(site), []

    def gone(seen: Seen) -> Fault | None:
        if "data-0001" not in seen.path or seen.method != "GET":
            return None
        began.append(seen)
        return Fault(cut=100_000) if len(began) == 1 else Fault(drop=True)

    with FaultyProxy(("127.0.0.1", s3_server.port), rule=gone) as proxy:
        site.edit(lambda text: text.replace(s3_server.endpoint, proxy.endpoint))
        where = ("--target", world.old.dsn(f"copy_{N}"))
        said = place.refused(5, "bulky", "--at", "latest", *where, servers=(world.old,))
    assert len(began) > 1
    assert "data-0001" in said
    assert "hint:" in said
    assert f"The database copy_{N}, begun by this restore, was removed" in said


# ---- errors of SQL


def test_what_the_server_refuses_is_quoted(world: World) -> None:
    said = world.refused(6, "broken", "--at", "latest", "--target", world.old.dsn(f"copy_{N}"), on=world.old)
    assert 'relation "limits" does not exist' in said
    assert "pg_restore failed with exit status 1" in said
    assert "Mend what the first error names" in said
    assert f"The database copy_{N}, begun by this restore, was removed" in said
