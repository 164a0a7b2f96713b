"""What the tests of restores that meet trouble share: a place with backups of several databases, and a look at
everything that a restore must leave as it was."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from backupd.postgres.server import ThrowawayServer
from tests.site import Outcome, Site
from tests.watch import command_lines, eventually

PASSWORD = "let me in"
# Waits on the copy for an advisory lock that a test holds, and so keeps a restore where the test wants it.
WAITS = """
create function waits(i int) returns int language plpgsql immutable
  as $$ begin perform pg_catalog.pg_advisory_xact_lock_shared(4711); return i; end $$;
create table slow (i int);
insert into slow values (1), (2);
"""
STANDS = "select from pg_locks where locktype = 'advisory' and objid = 4711 and not granted"


def sql_at(server: ThrowawayServer, *statements: str, database: str = "postgres") -> None:
    with closing(psycopg.connect(server.dsn(database), autocommit=True)) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def as_role(server: ThrowawayServer, role: str, database: str = "postgres") -> str:
    """A connection string for a role made with PASSWORD."""
    return make_conninfo(server.dsn(database), user=role, password=PASSWORD)


def state(server: ThrowawayServer) -> dict[str, object]:
    """Everything that a restore could leave behind: databases with owner, comment and settings, what is in them,
    roles and memberships, sessions and locks."""
    with closing(psycopg.connect(server.dsn(), autocommit=True)) as connection:
        roles = connection.execute("select * from pg_roles order by rolname").fetchall()
        members = connection.execute("select roleid, member from pg_auth_members order by 1, 2").fetchall()
        databases = connection.execute(
            "select datname, datdba::regrole::text, shobj_description(oid, 'pg_database'), datacl::text, datconnlimit,"
            " datallowconn and not datistemplate,"
            " (select string_agg(setconfig::text, ' ') from pg_db_role_setting where setdatabase = d.oid)"
            " from pg_database d order by datname"
        ).fetchall()
        inside = {name: _inside(server, name) for name, *_, may_look, _ in databases if may_look}
        assert eventually(lambda: not _ours(connection)), _ours(connection)
    return {"roles": roles, "members": members, "databases": databases, "inside": inside}


def _inside(server: ThrowawayServer, name: str) -> list[tuple[object, ...]]:
    with closing(psycopg.connect(server.dsn(name), autocommit=True)) as connection:
        return connection.execute(
            "select relnamespace::regnamespace::text, relname, relowner, relacl::text, pg_relation_size(oid)"
            " from pg_class where oid >= 16384 and relkind <> 't' union all"
            " select 'large object', oid::text, lomowner, lomacl::text, 0 from pg_largeobject_metadata union all"
            " select 'extension', extname, extowner, extversion, 0 from pg_extension union all"
            " select 'schema', nspname, nspowner, nspacl::text, 0 from pg_namespace where nspname !~ '^pg_'"
            " order by 1, 2"
        ).fetchall()


def _ours(connection: psycopg.Connection) -> list[tuple[object, ...]]:
    """Sessions of backupd and its programs; with them go their locks."""
    return connection.execute(
        "select pid, application_name, query from pg_stat_activity where application_name in ('backupd', 'pg_restore')"
    ).fetchall()


@dataclass
class Place:
    """A site whose temporary folder is its own, so that what a run leaves there is seen."""

    site: Site
    temporary: Path

    @classmethod
    def make(cls, site: Site) -> Place:
        temporary = site.folder / "tmp"
        temporary.mkdir()
        site.environ["TMPDIR"] = os.fspath(temporary)
        return cls(site, temporary)

    def refused(self, code: int, *arguments: str, servers: tuple[ThrowawayServer, ...]) -> str:
        """A restore that ends with `code` and leaves nothing anywhere; what it said, hints and notes too."""
        before = [state(server) for server in servers]
        outcome = self.site.run("restore", *arguments, code=code)
        self.left_nothing(before, servers)
        return self.said(outcome)

    def left_nothing(self, before: list[dict[str, object]], servers: tuple[ThrowawayServer, ...]) -> None:
        for server, was in zip(servers, before, strict=True):
            assert state(server) == was
        assert not self.ours()
        assert list(self.temporary.iterdir()) == []

    def ours(self) -> list[bytes]:
        """pg_restores of this test process: its databases' names hold its number."""
        mark = f"_{os.getpid()}".encode()
        return [line for _, line in command_lines() if line.split(b"\0")[0].endswith(b"/pg_restore") and mark in line]

    def said(self, outcome: Outcome) -> str:
        assert PASSWORD not in outcome.err
        return " ".join(outcome.err.split())


@contextmanager
def roles(server: ThrowawayServer, given: Mapping[str, str], *then: str) -> Iterator[None]:
    """These roles with these attributes; gone afterwards, with what they own in the maintenance database."""
    with closing(psycopg.connect(server.dsn(), autocommit=True)) as connection:
        for name, attributes in given.items():
            connection.execute(f"create role {name} {attributes}".encode())
        try:
            for statement in then:
                connection.execute(statement.encode())
            yield
        finally:
            for name in given:
                connection.execute(sql.SQL("drop owned by {} cascade").format(sql.Identifier(name)))
            for name in given:
                connection.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


@contextmanager
def background(site: Site, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    run = site.start(*arguments)
    try:
        yield run
    finally:
        if run.poll() is None:
            run.kill()
        run.communicate()
