"""The server that a restore goes to, as a preflight sees it: what it has, what it allows, what is in the way."""

from __future__ import annotations

import os
import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from backupd.errors import BackupdError, PostgresError
from backupd.manifest import DatabaseProperties
from backupd.postgres.mark import Mark, unfinished
from backupd.postgres.names import free_name
from backupd.postgres.privileged import Powers
from backupd.postgres.session import Dsn, connect, describe, explained

_MAINTENANCE = ("postgres", "template1")
# What managed services give their users instead of a superuser.
_STAND_INS = frozenset({"rds_superuser", "cloudsqlsuperuser", "azure_pg_admin", "alloydbsuperuser"})
_MEMBER_OF = "select rolname from pg_roles where pg_has_role(oid, 'MEMBER')"
# To make somebody an owner one must be able to become them; to go on with what is theirs, to do what they may do at
# once. From 16 on these are options of each membership; before, the second is NOINHERIT of the member.
_MAY_ACT_AS = "select rolname from pg_roles where pg_has_role(oid, 'USAGE')"
_MAY_BECOME = " and pg_has_role(oid, 'SET')"
_MAY_SIGNAL = "select 1 where pg_has_role('pg_signal_backend', 'USAGE')"
_MAY_SUBSCRIBE = "select 1 from pg_roles where rolname = 'pg_create_subscription' and pg_has_role(oid, 'USAGE')"
_RESERVED = "select name from pg_settings where context in ('superuser', 'superuser-backend')"
_NOT_GRANTED = " and not has_parameter_privilege(name, 'SET')"


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
    superusers: frozenset[str]
    tablespaces: frozenset[str]  # that this user may put something into
    extensions: dict[str, str]  # that can be created there: name -> the version that is then
    forbidden: frozenset[str]  # extensions that this user may not create: only a superuser may
    acts_as: frozenset[str]  # roles that this user may make owners, and do as they may
    may_signal: bool  # end other users' sessions
    may_own: frozenset[str]  # databases that this user owns, as a member of the owner or a superuser
    managed: str | None  # the role that stands in for a superuser on a managed service: rds_superuser
    may_subscribe: bool
    reserved: frozenset[str]  # parameters that this user may not set
    free_bytes: int | None  # on the data directory's disk, where that is ours to look at

    @property
    def major(self) -> int:
        return self.version_num // 10000

    @property
    def powers(self) -> Powers:
        return Powers(self.superuser, self.managed is not None, self.may_subscribe, self.reserved)


def inspect(dsn: Dsn, *, avoid: str | None = None) -> Server:
    """Look at a server through one of its maintenance databases, but not the one to `avoid`. Raises PostgresError if
    none can be reached."""
    with closing(_maintenance(dsn, avoid)) as connection, explained(f"cannot inspect the target server {dsn.server}"):
        row = connection.execute(
            """
            select current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(),
                   current_user, r.rolsuper, r.rolsuper or r.rolcreatedb from pg_roles r where rolname = current_user
            """
        ).fetchone()
        assert row is not None
        available = connection.execute(
            "select name, version, trusted or not superuser from pg_available_extension_versions"
            " join pg_available_extensions using (name) where version = default_version"
        ).fetchall()
        managed = _names(connection, _MEMBER_OF) & _STAND_INS if not row[4] else frozenset()
        reserved = _RESERVED if row[0] < 150000 else _RESERVED + _NOT_GRANTED
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
            superusers=_names(connection, "select rolname from pg_roles where rolsuper"),
            tablespaces=_names(
                connection, "select spcname from pg_tablespace where has_tablespace_privilege(oid, 'CREATE')"
            ),
            extensions={str(name): str(version) for name, version, _ in available},
            forbidden=frozenset(str(name) for name, _, open_to_all in available if not (open_to_all or row[4])),
            acts_as=_names(connection, _MAY_ACT_AS if row[0] < 160000 else _MAY_ACT_AS + _MAY_BECOME),
            may_signal=row[4] or bool(_names(connection, _MAY_SIGNAL)),
            may_own=_names(connection, "select datname from pg_database where pg_has_role(datdba, 'USAGE')"),
            managed=min(managed, default=None),
            may_subscribe=row[4] or bool(_names(connection, _MAY_SUBSCRIBE)),
            reserved=_names(connection, reserved) if not row[4] else frozenset(),
            free_bytes=_free_bytes(connection) if row[4] else None,
        )


def _names(connection: psycopg.Connection, query: str) -> frozenset[str]:
    return frozenset(str(row[0]) for row in connection.execute(query.encode()).fetchall())


def _free_bytes(connection: psycopg.Connection) -> int | None:
    """Free space where the server keeps its data, if that is a directory of this machine; None if it can't be known.

    A path alone proves nothing: a container's server tells one too. So the server and we must see the same file.
    """
    row = connection.execute(
        "select current_setting('data_directory'), f.modification, f.size from pg_stat_file('postmaster.pid', true) f"
    ).fetchone()
    if row is None or row[1] is None:
        return None
    folder, modified, size = row
    try:
        seen = (Path(folder) / "postmaster.pid").stat()
        if (int(seen.st_mtime), seen.st_size) != (int(modified.timestamp()), size):
            return None
        disk = os.statvfs(folder)
    except OSError:  # another machine's path, or one that only the server may enter
        return None
    return disk.f_bavail * disk.f_frsize


def _maintenance(dsn: Dsn, avoid: str | None = None) -> psycopg.Connection:
    """A session on a database that is there even when the one we restore is not."""
    first: BackupdError | None = None
    for name in [name for name in _MAINTENANCE if name != avoid]:
        try:
            return connect(dsn.replace(dbname=name))
        except PostgresError as error:
            first = first or error
    if dsn.database and dsn.database not in (*_MAINTENANCE, avoid):
        try:
            return connect(dsn)
        except PostgresError:
            pass  # the first error is about a database that every server has: more telling
    assert first is not None
    raise first


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
            union all select 'subscription ' || quote_ident(subname) from pg_subscription
              where subdbid = (select oid from pg_database where datname = current_database())
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


def refused_to(dsn: Dsn) -> list[str]:
    """What this user may not do in a database that exists, and must, to fill it; a line each."""
    with closing(connect(dsn)) as connection, explained("cannot look into the target database"):
        rows = connection.execute(
            "select 'GRANT CREATE ON DATABASE ' || quote_ident(current_database())"
            " where not has_database_privilege(current_database(), 'CREATE')"
            " union all select 'GRANT CREATE ON SCHEMA public' from pg_namespace"
            " where nspname = 'public' and not has_schema_privilege(oid, 'CREATE')"
        ).fetchall()
    return [str(row[0]) for row in rows]


@dataclass(frozen=True, slots=True)
class Leftover:
    """A database on a server that a restore made or renamed."""

    name: str
    size: int  # bytes
    mark: Mark | None  # of an unfinished restore
    replaced: bool  # it was the original


_OURS = re.compile(r".*(_(restored|replaced)_\d{8}T\d{6}Z)", re.DOTALL)


def leftovers(dsn: Dsn, database: str) -> list[Leftover]:
    """What restores of a database have left on its server: known by their marks, or by the names that we give."""
    with closing(_maintenance(dsn)) as connection, explained("the server's databases could not be listed"):
        rows = connection.execute(
            "select datname, case when has_database_privilege(oid, 'connect') then pg_database_size(oid) else 0 end"
            " from pg_database order by datname"
        ).fetchall()
        marks = unfinished(dsn.pinned(connection))
    original, found = dsn.database or database, []
    for name, size in rows:
        mark, match = marks.get(name), _OURS.fullmatch(name)
        of_it = match is not None and name == free_name(original, match[1])
        if (mark is not None and mark.database == database) or (mark is None and of_it):
            found.append(Leftover(name, int(size), mark, match is not None and match[2] == "replaced"))
    return found


def prepared_transactions(dsn: Dsn, database: str) -> list[str]:
    """Prepared transactions of a database, by their identifiers: they keep it from being renamed."""
    with closing(connect(dsn)) as connection, explained("prepared transactions could not be listed"):
        rows = connection.execute("select gid from pg_prepared_xacts where database = %s", [database]).fetchall()
    return [str(row[0]) for row in rows]


def logical_slots(dsn: Dsn, database: str) -> list[str]:
    """Logical replication slots of a database, by name."""
    with closing(connect(dsn)) as connection, explained("replication slots could not be listed"):
        rows = connection.execute(
            "select slot_name from pg_replication_slots where database = %s and not temporary", [database]
        ).fetchall()
    return [str(row[0]) for row in rows]


def lacks_locale(server: Server, wanted: DatabaseProperties) -> str | None:
    """Why the server can't create a database with this locale; None if it can, or if that can't be told beforehand.

    Tried with collations, which are undone at once: it is the same check that CREATE DATABASE makes.
    """
    if wanted.locale_provider == "builtin" and server.major < 17:
        return "The built-in locale provider came with PostgreSQL 17."
    if wanted.locale_provider == "icu" and server.major < 15:
        return "Databases with locales of ICU came with PostgreSQL 15."
    probes = []
    if wanted.collate not in _EVERYWHERE or wanted.ctype not in _EVERYWHERE:
        probes.append([("lc_collate", wanted.collate), ("lc_ctype", wanted.ctype)])
    if wanted.locale_provider == "icu":
        probes.append([("provider", "icu"), ("locale", wanted.locale or "")])
    with closing(connect(server.dsn, autocommit=False)) as connection:
        if connection.info.parameter_status("server_encoding") != wanted.encoding:
            return _other_encoding(connection, wanted)
        for options in probes:
            pairs = [sql.SQL("{} = {}").format(sql.SQL(key), sql.Literal(value)) for key, value in options]
            try:
                connection.execute(
                    sql.SQL("create collation pg_temp.backupd_probe ({})").format(sql.SQL(", ").join(pairs))
                )
            except psycopg.errors.InsufficientPrivilege:  # to make anything temporary: nothing is known then
                return None
            except psycopg.Error as error:
                return describe(error)
            finally:
                if not connection.broken:
                    connection.rollback()
    return None


_EVERYWHERE = ("C", "POSIX")


def _other_encoding(connection: psycopg.Connection, wanted: DatabaseProperties) -> str | None:
    """What is known of locales for another encoding than that of the database connected to."""
    if wanted.encoding == "SQL_ASCII":  # goes with every locale
        return None
    rows = connection.execute(
        "select distinct collcollate, pg_encoding_to_char(collencoding) from pg_collation"
        " where collprovider = 'c' and collencoding <> -1 and collcollate = any(%s)",
        [[wanted.collate, wanted.ctype]],
    ).fetchall()
    for locale in {wanted.collate, wanted.ctype}.difference(_EVERYWHERE):
        encodings = sorted(encoding for name, encoding in rows if name == locale)
        if encodings and wanted.encoding not in encodings:
            return f"The server's locale {locale} is for the encoding {', '.join(encodings)}, not {wanted.encoding}."
    return None
