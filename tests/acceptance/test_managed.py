"""Restores by users who are no superusers, as managed services give them: with their own names for owners, without
owners, without what only a superuser can restore."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import psycopg
import pytest

from backupd.postgres.account import reachable_folder, server_account
from backupd.postgres.names import identifier
from backupd.postgres.server import ThrowawayServer
from tests.postgres import client_for, drop_database, dump_sql
from tests.site import local_site
from tests.troubles import PASSWORD, Place, as_role, roles, sql_at, state

N = os.getpid()
ROLES = ("own", "etl", "reader")
OLD = {role: f"old_{role}_{N}" for role in ROLES}
NEW = {role: f"new_{role}_{N}" for role in ROLES}
TENANT, SHOP, COPY = f"tenant_{N}", f"shop_{N}", f"copy_{N}"

# Owners who have CREATE on no schema but their own (a superuser made them), or only by a grant, are among it.
FILL = """
create extension hstore;
create extension citext;
create schema app authorization {own};
create schema etl authorization {etl};
grant usage, create on schema app to {etl};
create table public.customers (id int generated always as identity primary key, name public.citext not null);
alter table public.customers owner to {own};
insert into public.customers (name) select 'n' || i from generate_series(1, 500) i;
set role {own};
create type app.state as enum ('new', 'paid');
create domain app.amount as numeric check (value >= 0);
create table app.orders (id serial primary key, customer int not null references public.customers, state app.state,
  total app.amount, tags public.hstore);
insert into app.orders (customer, state, total, tags) select 1 + i % 500, 'paid', i, 'a=>1'
  from generate_series(1, 2000) i;
create function app.total() returns numeric language sql stable as 'select sum(total) from app.orders';
create view app.paid as select * from app.orders where state = 'paid';
create materialized view app.sums as select customer, sum(total) from app.orders group by 1;
create statistics app.together on customer, state from app.orders;
alter table app.orders enable row level security;
create policy own_rows on app.orders for select to {reader} using (customer > 10);
grant select on app.orders to {etl} with grant option;
grant all on app.sums to {reader};
alter default privileges for role {own} in schema app grant select on tables to {reader};
set role {etl};
grant select on app.orders to {reader};
create table app.loads (at timestamptz primary key);
create table etl.batches (id bigint, at timestamptz) partition by range (at);
create table etl.batches_1 partition of etl.batches default;
insert into etl.batches select i, now() from generate_series(1, 300) i;
create index on etl.batches (id);
select lo_create(4711);
grant select on large object 4711 to {reader};
reset role;
create publication orders for table app.orders;
alter publication orders owner to {etl};
select lo_put(4711, 0, 'of etl');
comment on schema app is 'sells';
grant create on schema public to {reader};
"""
BY_A_SUPERUSER = """
create extension postgres_fdw;
grant usage on foreign data wrapper postgres_fdw to {own};
set role {own};
create server elsewhere foreign data wrapper postgres_fdw options (host 'nowhere');
create user mapping for {reader} server elsewhere options (user 'guest');
create foreign table app.remote (id int) server elsewhere;
reset role;
"""
OF_THE_DATABASE = """
comment on database {name} is 'the shop';
alter database {name} set work_mem = '7MB';
alter database {name} connection limit 50;
revoke connect on database {name} from public;
grant connect on database {name} to {reader};
grant create on database {name} to {own};
alter database {name} owner to {etl};
alter role {reader} in database {name} set statement_timeout = '5s';
"""


@dataclass
class World:
    place: Place
    server: ThrowawayServer

    def restore(self, *arguments: str, code: int = 0, database: str = "shop", user: str = TENANT) -> str:
        where = ("--target", as_role(self.server, user, COPY) if user else self.server.dsn(COPY))
        return self.place.said(
            self.place.site.run("restore", database, "--at", "latest", *where, *arguments, code=code)
        )

    def dump(self, name: str, *options: str, names: Mapping[str, str]) -> list[str]:
        """What is in a database, and the database's own properties, under other names."""
        lines = dump_sql(client_for(self.server), self.server.dsn(name), *options)
        text = "\n".join(lines)
        for old, new in names.items():
            text = text.replace(old, new)
        return sorted(line for line in text.split("\n") if "SESSION AUTHORIZATION" not in line)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """What the restore made is dropped, and nothing else is there."""
        before = state(self.server)
        try:
            yield
        finally:
            drop_database(self.server, COPY)
        self.place.left_nothing([before], (self.server,))


@pytest.fixture(scope="module", params=[15, 17], ids=lambda major: f"pg{major}")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    server = cast(ThrowawayServer, request.getfixturevalue(f"pg{request.param}"))
    databases = {"shop": SHOP, "foreign": f"foreign_{N}", "tracked": f"tracked_{N}", "special": f"special_{N}"}
    with ExitStack() as stack:
        stack.enter_context(roles(server, dict.fromkeys(OLD.values(), "")))
        for name in databases.values():
            sql_at(server, f"create database {name} template template0")
            stack.callback(drop_database, server, name)
        sql_at(server, FILL.format(**OLD), database=SHOP)
        sql_at(server, OF_THE_DATABASE.format(name=SHOP, **OLD))
        sql_at(server, FILL.format(**OLD), BY_A_SUPERUSER.format(**OLD), database=databases["foreign"])
        sql_at(
            server, "create extension pg_stat_statements", "create table kept (i int)", database=databases["tracked"]
        )
        sql_at(
            server,
            "create table kept as select i from generate_series(1, 5) i",
            "create function c() returns language_handler language c as '$libdir/plpgsql', 'plpgsql_call_handler'",
            "create function watch() returns event_trigger language plpgsql as 'begin end'",
            "create event trigger watches on sql_drop execute function watch()",
            "create publication everything for all tables",
            database=databases["special"],
        )
        site = local_site(
            tmp_path_factory.mktemp("managed"), {key: server.dsn(name) for key, name in databases.items()}
        )
        site.run("backup", "--jobs", "1")
        yield World(Place.make(site), server)


@pytest.fixture
def tenant(world: World) -> Iterator[psycopg.Connection]:
    """The administrator of a managed server, with a session of theirs."""
    with ExitStack() as stack:
        stack.enter_context(roles(world.server, {TENANT: f"login password '{PASSWORD}' createdb createrole"}))
        yield stack.enter_context(closing(psycopg.connect(as_role(world.server, TENANT), autocommit=True)))


@pytest.fixture
def new_roles(world: World, tenant: psycopg.Connection) -> Iterator[list[str]]:
    """Roles that the tenant made, and what maps the old ones to them."""
    options = " with inherit true, set true" if world.server.version[0] >= 16 else ""
    for role in NEW.values():
        tenant.execute(f"create role {role}".encode())
    for role in (NEW["own"], NEW["etl"]):
        tenant.execute(f"grant {role} to {TENANT}{options}".encode())
    yield [argument for role in ROLES for argument in ("--role-map", f"{OLD[role]}={NEW[role]}")] + [
        *("--role-map", f"postgres={TENANT}")
    ]
    for role in NEW.values():
        tenant.execute(f"drop role {role}".encode())


def test_without_owners(world: World, tenant: psycopg.Connection) -> None:
    """A policy is for a role: that one must be there, by this name or another."""
    with world.unchanged():
        said = world.restore("--no-owner")
        assert "Owners and grants are left out" in said
        bare = ("--no-owner", "--no-acl")
        assert world.dump(COPY, *bare, names={}) == world.dump(SHOP, *bare, names={})
        with closing(psycopg.connect(world.server.dsn(COPY))) as connection:
            owners = connection.execute(
                "select distinct pg_get_userbyid(relowner) from pg_class where relnamespace in"
                " ('app'::regnamespace, 'etl'::regnamespace)"
            ).fetchall()
        assert owners == [(TENANT,)]


def test_under_other_names(world: World, new_roles: list[str]) -> None:
    """Owners, grants, default privileges, policies, large objects, and the database's owner, grants and settings."""
    renamed = {OLD[role]: NEW[role] for role in ROLES} | {SHOP: COPY, " postgres;": f" {TENANT};"}
    with world.unchanged():
        said = world.restore(*new_roles)
        assert "Grants that others than the owner made come from the owner: on 1 thing" in said
        expected = world.dump(SHOP, "--create", names=renamed | {"Owner: postgres": f"Owner: {TENANT}"})
        assert world.dump(COPY, "--create", names={}) == expected
        with closing(psycopg.connect(world.server.dsn(COPY))) as connection:
            assert connection.execute("select lo_get(4711)").fetchone() == (b"of etl",)


def test_as_a_member_of_the_owners(world: World, tenant: psycopg.Connection) -> None:
    """The roles are there under their names, and the user is a member of those that own something."""
    sql_at(world.server, *(f"grant {OLD[role]} to {TENANT}" for role in ("own", "etl")))
    with world.unchanged():
        world.restore("--role-map", f"postgres={TENANT}")
        names = {SHOP: COPY, " postgres;": f" {TENANT};", "Owner: postgres": f"Owner: {TENANT}"}
        expected = world.dump(SHOP, "--create", names=names)
        found = world.dump(COPY, "--create", names={})
        # The reader is not the tenant's to change from 16 on: the plan can't, and the end of the restore says so.
        assert [line for line in expected if line not in found] in (
            [],
            [f"ALTER ROLE {OLD['reader']} IN DATABASE {COPY} SET statement_timeout TO '5s';"],
        )
        assert [line for line in found if line not in expected] == []


def test_under_other_names_by_a_superuser(world: World) -> None:
    """User mappings too, and grants in the name of who made them."""
    given = dict.fromkeys(NEW.values(), "")
    renamed = {OLD[role]: NEW[role] for role in ROLES} | {f"foreign_{N}": COPY}
    arguments = [argument for role in ROLES for argument in ("--role-map", f"{OLD[role]}={NEW[role]}")]
    with roles(world.server, given), world.unchanged():
        world.restore(*arguments, database="foreign", user="")
        client = client_for(world.server)
        text = "\n".join(dump_sql(client, world.server.dsn(f"foreign_{N}"), "--create"))
        assert f"SET SESSION AUTHORIZATION {OLD['etl']};" in text
        for old, new in renamed.items():
            text = text.replace(old, new)
        assert dump_sql(client, world.server.dsn(COPY), "--create") == sorted(text.split("\n"))


def test_without_an_extension(world: World, tenant: psycopg.Connection) -> None:
    with world.unchanged():
        world.restore("--no-owner", database="tracked", code=6)
        said = world.restore("--no-owner", "--exclude-extension", "pg_stat_statements", database="tracked")
        assert "Left out: extension .pg_stat_statements".replace(".", "") in said
        with closing(psycopg.connect(world.server.dsn(COPY))) as connection:
            assert connection.execute("select extname from pg_extension").fetchall() == [("plpgsql",)]
            assert connection.execute("select count(*) from kept").fetchone() == (0,)


def test_without_the_privileged(world: World, tenant: psycopg.Connection) -> None:
    with world.unchanged():
        said = world.restore("--no-owner", "--skip-privileged", database="special")
        for text in ("Left out:", "function public.c()", "event trigger watches", "publication everything"):
            assert text in said
        with closing(psycopg.connect(world.server.dsn(COPY))) as connection:
            assert connection.execute("select count(*) from kept").fetchone() == (5,)
            assert connection.execute("select proname from pg_proc where oid >= 16384").fetchall() == [("watch",)]


def test_a_stand_in_for_a_superuser(world: World, tenant: psycopg.Connection) -> None:
    """What a service may allow its administrators is tried; this one does not, and then nothing stays."""
    with roles(world.server, {"rds_superuser": ""}, f"grant rds_superuser to {TENANT}"), world.unchanged():
        said = world.restore("--no-owner", "--dry-run", database="tracked")
        assert "may create the extension pg_stat_statements, as a member of rds_superuser" in said or not said
        said = world.restore("--no-owner", database="tracked", code=6)
        assert "as a member of rds_superuser, the service decides" in said
        assert "permission denied to create extension" in said
        assert "was removed" in said
        world.restore("--no-owner", "--exclude-extension", "pg_stat_statements", database="tracked")


def test_roles_made_by_the_tenant(pg15: ThrowawayServer, pg17: ThrowawayServer, tmp_path: Path) -> None:
    """On a server that lacks them, where making a role brings no membership by itself."""
    own = f"only_here_{N}"
    with ExitStack() as stack:
        stack.enter_context(roles(pg15, {own: ""}))
        sql_at(pg15, f"create database {SHOP}_2 template template0")
        stack.callback(drop_database, pg15, f"{SHOP}_2")
        sql_at(pg15, "create table t as select 1 as i", f"alter table t owner to {own}", database=f"{SHOP}_2")
        place = Place.make(local_site(tmp_path / "site", {"shop": pg15.dsn(f"{SHOP}_2")}))
        place.site.run("backup")
        stack.enter_context(roles(pg17, {TENANT: f"login password '{PASSWORD}' createdb createrole"}))
        target = ("--target", as_role(pg17, TENANT, COPY), "--create-roles", "--role-map", f"postgres={TENANT}")
        before, known = state(pg17), _roles(pg17)
        said = place.said(place.site.run("restore", "shop", "--at", "latest", *target))
        assert f"{TENANT} becomes a member of the new roles that own something: {own}" in said
        with closing(psycopg.connect(pg17.dsn(COPY))) as connection:
            query = "select tableowner from pg_tables where tablename = 't'"
            assert connection.execute(query).fetchone() == (own,)
        drop_database(pg17, COPY)
        with closing(psycopg.connect(as_role(pg17, TENANT), autocommit=True)) as connection:
            for name in sorted(_roles(pg17) - known):
                connection.execute(f"drop role {identifier(name)}".encode())
        assert state(pg17) == before


def _roles(server: ThrowawayServer) -> set[str]:
    with closing(psycopg.connect(server.dsn())) as connection:
        return {row[0] for row in connection.execute("select rolname from pg_roles").fetchall()}


def test_tablespaces(pg15: ThrowawayServer, pg17: ThrowawayServer, tmp_path: Path) -> None:
    """They come back where they exist and may be used; elsewhere everything goes to the default, and it is said."""
    account = server_account()
    folder = reachable_folder(account) / "fast"
    folder.mkdir(mode=0o700)
    account.own(folder)
    query = "select coalesce(spcname, 'default') from pg_class c left join pg_tablespace t on t.oid = reltablespace"
    query += " where relname in ('t', 't_pkey') order by relname"
    with ExitStack() as stack:
        with closing(psycopg.connect(pg15.dsn(), autocommit=True)) as connection:
            connection.execute(f"create tablespace fast_{N} location '{folder}'".encode())
            stack.callback(sql_at, pg15, f"drop tablespace fast_{N}")
        sql_at(pg15, f"create database {SHOP}_3 template template0")
        stack.callback(drop_database, pg15, f"{SHOP}_3")
        make = f"create table t (i int primary key using index tablespace fast_{N}) tablespace fast_{N}"
        sql_at(pg15, make, "insert into t values (1)", database=f"{SHOP}_3")
        place = Place.make(local_site(tmp_path / "site", {"shop": pg15.dsn(f"{SHOP}_3")}))
        place.site.run("backup")
        for server in (pg15, pg17):
            stack.enter_context(roles(server, {TENANT: f"login password '{PASSWORD}' createdb"}))
        lacking = f"The target has no tablespace fast_{N}"
        for dsn, server, expected, note in (
            (pg15.dsn(COPY), pg15, f"fast_{N}", ""),
            (pg17.dsn(COPY), pg17, "default", f"{lacking}: everything goes to the default one."),
            (as_role(pg15, TENANT, COPY), pg15, "default", f"{lacking} that {TENANT} may use: everything goes"),
        ):
            said = place.said(place.site.run("restore", "shop", "--at", "latest", "--target", dsn, "--no-owner"))
            assert note in said
            assert note or lacking not in said
            with closing(psycopg.connect(server.dsn(COPY))) as connection:
                assert connection.execute(query.encode()).fetchall() == [(expected,), (expected,)]
            drop_database(server, COPY)
