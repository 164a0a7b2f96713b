"""The server that a restore goes to: what it has, and the database made there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

import psycopg
from psycopg import sql

from backupd.errors import BackupdError, PostgresError
from backupd.manifest import DatabaseProperties, Setting
from backupd.postgres import workers
from backupd.postgres.process import Running
from backupd.postgres.session import Dsn, Interruptible, connect, describe, explained

_MAINTENANCE = ("postgres", "template1")
_NAME_BYTES = 63
_COUNTS_PER_QUERY = 100  # each locks a table until the query ends


@dataclass(frozen=True, slots=True)
class Server:
    """A target server as a preflight sees it."""

    dsn: Dsn  # to a maintenance database
    version_num: int
    version: str
    standby: bool
    user: str
    superuser: bool
    may_create: bool  # databases
    databases: frozenset[str]
    roles: frozenset[str]
    tablespaces: frozenset[str]
    extensions: dict[str, frozenset[str]]  # that can be created: name -> versions

    @property
    def major(self) -> int:
        return self.version_num // 10000


def inspect(dsn: Dsn) -> Server:
    """Look at a server through one of its maintenance databases. Raises PostgresError if none can be reached."""
    with closing(_maintenance(dsn)) as connection, explained(f"cannot inspect the target server {dsn.server}"):
        row = connection.execute(
            """
            select current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(),
                   current_user, r.rolsuper, r.rolsuper or r.rolcreatedb from pg_roles r where rolname = current_user
            """
        ).fetchone()
        assert row is not None
        extensions: dict[str, set[str]] = {}
        for name, version in connection.execute("select name, version from pg_available_extension_versions").fetchall():
            extensions.setdefault(name, set()).add(version)
        return Server(
            dsn=dsn.pinned(connection),
            version_num=row[0],
            version=str(row[1]).split()[0],
            standby=row[2],
            user=row[3],
            superuser=row[4],
            may_create=row[5],
            databases=_names(connection, "select datname from pg_database"),
            roles=_names(connection, "select rolname from pg_roles"),
            tablespaces=_names(connection, "select spcname from pg_tablespace"),
            extensions={name: frozenset(versions) for name, versions in extensions.items()},
        )


def _names(connection: psycopg.Connection, query: str) -> frozenset[str]:
    return frozenset(str(row[0]) for row in connection.execute(query.encode()).fetchall())


def _maintenance(dsn: Dsn) -> psycopg.Connection:
    """A session on a database that is there even when the one we restore is not."""
    first: BackupdError | None = None
    for name in _MAINTENANCE:
        try:
            return connect(dsn.replace(dbname=name))
        except PostgresError as error:
            first = first or error
    if dsn.database and dsn.database not in _MAINTENANCE:
        try:
            return connect(dsn)
        except PostgresError:
            pass  # the first error is about a database that every server has: more telling
    assert first is not None
    raise first


def free_name(base: str, suffix: str) -> str:
    """`base` + `suffix`, with the base shortened so that PostgreSQL does not cut the suffix off."""
    room = _NAME_BYTES - len(suffix.encode())
    return base.encode()[:room].decode("utf-8", "ignore") + suffix


def encoding(dsn: Dsn) -> str:
    """A database's encoding: UTF8."""
    with closing(connect(dsn)) as connection:
        return connection.info.parameter_status("server_encoding") or ""


def contents(dsn: Dsn) -> list[str]:
    """What a database holds already, a line each, ten at most; empty for a database fit to restore into."""
    with closing(connect(dsn)) as connection, explained("cannot look into the target database"):
        rows = connection.execute(
            """
            with mine as (
              select oid from pg_namespace where nspname <> 'information_schema' and nspname !~ '^pg_'
            ), own as (
              select d.classid, d.objid from pg_depend d where d.deptype = 'e'
            )
            select format('%s %s', case relkind when 'S' then 'sequence' when 'v' then 'view' when 'm' then
                          'materialized view' when 'f' then 'foreign table' else 'table' end, c.oid::regclass)
              from pg_class c where relnamespace in (select oid from mine) and relkind in ('r','p','v','m','f','S','c')
              and (1259, c.oid) not in (select classid::int, objid from own)
            union all select 'function ' || p.oid::regprocedure from pg_proc p
              where pronamespace in (select oid from mine)
              and (1255, p.oid) not in (select classid::int, objid from own)
            union all select 'type ' || t.oid::regtype from pg_type t
              where typnamespace in (select oid from mine) and typtype in ('d', 'e', 'r')
              and (1247, t.oid) not in (select classid::int, objid from own)
            union all select 'schema ' || quote_ident(nspname) from pg_namespace
              where oid in (select oid from mine) and nspname <> 'public'
              and (2615, oid) not in (select classid::int, objid from own)
            union all select 'extension ' || quote_ident(extname) from pg_extension where extname <> 'plpgsql'
            union all select 'large object ' || oid from pg_largeobject_metadata
            union all select pg_describe_object(o.classid, o.oid, 0) from (
                select tableoid, oid from pg_operator union all select tableoid, oid from pg_opfamily
                union all select tableoid, oid from pg_collation union all select tableoid, oid from pg_conversion
                union all select tableoid, oid from pg_ts_config union all select tableoid, oid from pg_ts_dict
                union all select tableoid, oid from pg_ts_parser union all select tableoid, oid from pg_ts_template
                union all select tableoid, oid from pg_foreign_data_wrapper union all select tableoid, oid from pg_cast
                union all select tableoid, oid from pg_event_trigger union all select tableoid, oid from pg_publication
                union all select tableoid, oid from pg_language union all select tableoid, oid from pg_am
              ) o (classid, oid)
              where o.oid >= 16384 and (o.classid::int, o.oid) not in (select classid::int, objid from own)
            limit 10
            """
        ).fetchall()
    return [str(row[0]) for row in rows]


def create_database(server: Server, name: str, wanted: DatabaseProperties) -> None:
    """An empty database with the original's encoding and locale. Raises PostgresError."""
    options = [
        sql.SQL("template template0 encoding {}").format(sql.Literal(wanted.encoding)),
        sql.SQL("lc_collate {} lc_ctype {}").format(sql.Literal(wanted.collate), sql.Literal(wanted.ctype)),
    ]
    if server.major >= 15:
        options.append(sql.SQL("locale_provider {}").format(sql.SQL(wanted.locale_provider)))
        if wanted.locale_provider == "icu":
            options.append(sql.SQL("icu_locale {}").format(sql.Literal(wanted.locale)))
        elif wanted.locale_provider == "builtin":
            options.append(sql.SQL("builtin_locale {}").format(sql.Literal(wanted.locale)))
        if wanted.icu_rules and server.major >= 16:
            options.append(sql.SQL("icu_rules {}").format(sql.Literal(wanted.icu_rules)))
    with (
        closing(connect(server.dsn)) as connection,
        explained(
            f"cannot create the database {name}",
            hint="The target must have the original's encoding and locale:"
            f" {wanted.encoding}, {wanted.collate} ({wanted.locale_provider}).",
        ),
    ):
        query = sql.SQL("create database {} {}").format(sql.Identifier(name), sql.SQL(" ").join(options))
        connection.execute(query)


def drop_public_schema(dsn: Dsn) -> None:
    """As in the original, which had none: pg_dump says nothing of a schema that is not there."""
    with closing(connect(dsn)) as connection, explained("cannot drop the schema public in the new database"):
        connection.execute("drop schema if exists public")


def drop_database(server: Server, name: str) -> None:
    """Drop a database of ours, ending the sessions on it."""
    with closing(connect(server.dsn)) as connection, explained(f"cannot drop the database {name}"):
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


def apply_properties(server: Server, name: str, wanted: DatabaseProperties, *, owners: bool) -> list[str]:
    """What pg_dump leaves out: owner, grants, comment, settings, connection limit.

    Returns a line for each that could not be set (a managed server may refuse some); they don't fail a restore.
    """
    database = sql.Identifier(name)
    refused: list[str] = []
    with closing(connect(server.dsn)) as connection:

        def attempt(what: str, query: sql.Composed) -> None:
            try:
                connection.execute(query)
            except psycopg.Error as error:
                if connection.broken:
                    raise
                refused.append(f"{what}: {describe(error)}")

        with explained(f"cannot set the properties of {name}"):
            for what, query in _property_statements(database, wanted, owners=owners):
                attempt(what, query)
    return refused


def _property_statements(
    database: sql.Identifier, wanted: DatabaseProperties, *, owners: bool
) -> Iterable[tuple[str, sql.Composed]]:
    if wanted.comment is not None:
        yield "comment", sql.SQL("comment on database {} is {}").format(database, sql.Literal(wanted.comment))
    for setting in wanted.settings:
        if setting.role is not None and not owners:
            continue
        whose = (
            sql.SQL("database {}").format(database)
            if setting.role is None
            else sql.SQL("role {} in database {}").format(sql.Identifier(setting.role), database)
        )
        yield (
            f"setting {setting.name}",
            sql.SQL("alter {} set {} to {}").format(whose, _setting_name(setting.name), _setting_value(setting)),
        )
    if wanted.connection_limit != -1:
        limit = sql.Literal(wanted.connection_limit)
        yield "connection limit", sql.SQL("alter database {} connection limit {}").format(database, limit)
    if owners:
        yield "owner", sql.SQL("alter database {} owner to {}").format(database, sql.Identifier(wanted.owner))
        yield from _grant_statements(database, wanted)


def _setting_name(name: str) -> sql.Composable:
    return sql.SQL(".").join(sql.Identifier(part) for part in name.split("."))


# These hold lists of names, each quoted by itself; one literal would make one name of them.
_LISTS = {
    "search_path",
    "temp_tablespaces",
    "session_preload_libraries",
    "local_preload_libraries",
    "shared_preload_libraries",
    "unix_socket_directories",
}
_LISTED_NAME = re.compile(r'"((?:[^"]|"")*)"|([^\s,"]+)')


def _setting_value(setting: Setting) -> sql.Composable:
    if setting.name.lower() not in _LISTS:
        return sql.Literal(setting.value)
    # As literals, since an empty name (search_path = '') can be written in no other way.
    names = [plain or quoted.replace('""', '"') for quoted, plain in _LISTED_NAME.findall(setting.value)]
    return sql.SQL(", ").join(map(sql.Literal, names or [""]))


def _grant_statements(database: sql.Identifier, wanted: DatabaseProperties) -> Iterable[tuple[str, sql.Composed]]:
    if wanted.grants is None:
        return
    yield "grants", sql.SQL("revoke all on database {} from public").format(database)
    owner = sql.Identifier(wanted.owner)
    yield "grants", sql.SQL("revoke all on database {} from {}").format(database, owner)
    for grant in wanted.grants:
        grantee: sql.Composable = sql.SQL("public") if grant.grantee is None else sql.Identifier(grant.grantee)
        option = sql.SQL(" with grant option") if grant.grantable and grant.grantee != wanted.owner else sql.SQL("")
        yield (
            f"grant to {grant.grantee or 'public'}",
            sql.SQL("grant {} on database {} to {}{}").format(sql.SQL(grant.privilege), database, grantee, option),
        )


@contextmanager
def _interruptible(dsn: Dsn, running: Running) -> Iterator[psycopg.Connection]:
    """A session whose query ends when everything in `running` is ended."""
    with closing(connect(dsn)) as connection:
        query = Interruptible(connection)
        running.add(query)
        try:
            yield connection
        finally:
            running.remove(query)


def count_rows(dsn: Dsn, tables: Sequence[tuple[str, str]], running: Running) -> list[int]:
    """count(*) of each (schema, table), in their order."""
    counted: list[int] = []
    with _interruptible(dsn, running) as connection, explained("the restored rows could not be counted"):
        for start in range(0, len(tables), _COUNTS_PER_QUERY):
            query = sql.SQL(" union all ").join(
                sql.SQL("select {}, count(*) from only {}").format(sql.Literal(i), sql.Identifier(*table))
                for i, table in enumerate(tables[start : start + _COUNTS_PER_QUERY])
            )
            counted += [int(rows) for _, rows in sorted(connection.execute(query).fetchall())]
    return counted


def analyze(dsn: Dsn, jobs: int, running: Running) -> list[str]:
    """Gather statistics, largest tables first, on `jobs` sessions. Returns what could not be analyzed."""
    with closing(connect(dsn)) as connection, explained("cannot list the tables to analyze"):
        rows = connection.execute(
            """
            select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = relnamespace
            where relkind in ('r', 'p', 'm') and relpersistence <> 't'
              and nspname <> 'information_schema' and nspname !~ '^pg_'
              and (relkind <> 'm' or relispopulated)
            order by pg_table_size(c.oid) desc
            """
        ).fetchall()
    tables = [str(row[0]) for row in rows]
    shares = [tables[start::jobs] for start in range(jobs) if tables[start::jobs]]
    tasks: list[Callable[[], list[str]]] = [partial(_analyze, dsn, share, running) for share in shares]
    refused, _ = workers.run(tasks, jobs, running) if tasks else ([], None)
    return [line for share in refused for line in share]


def _analyze(dsn: Dsn, tables: Sequence[str], running: Running) -> list[str]:
    refused = []
    with _interruptible(dsn, running) as connection, explained("the connection was lost during ANALYZE"):
        for table in tables:
            if running.stopped:
                break
            try:
                connection.execute(f"analyze {table}".encode())
            except psycopg.Error as error:
                if connection.broken:
                    raise
                refused.append(f"{table} was not analyzed: {describe(error)}")
    return refused
