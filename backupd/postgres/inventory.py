"""What a database holds, read from its catalogs inside the dump's snapshot, as far as restoring needs to know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from backupd.manifest import DatabaseProperties, Extension, Grant, Setting
from backupd.postgres import mark

_SYSTEM = "n.nspname <> 'information_schema' and n.nspname !~ '^pg_'"


@dataclass(frozen=True, slots=True)
class SourceTable:
    """A table whose definition or rows a dump will hold."""

    oid: int
    schema: str
    name: str
    sql: str  # quoted: public.orders
    bytes: int  # heap and TOAST; 0 where there is nothing to dump
    has_rows: bool  # an ordinary table that the dump copies; False for a partitioned parent or an extension's own
    root: str | None  # of a partition: the table at the top of its tree, quoted


def tables(connection: psycopg.Connection, *, standby: bool, sizes: bool = True) -> list[SourceTable]:
    """Every ordinary and partitioned table outside the system schemas, in the order of oids.

    An extension's tables belong to the extension: pg_dump copies only the rows that it marks as configuration,
    so they are locked but neither counted nor given a stream. A standby can't read unlogged tables.
    Asking for `sizes` waits for whoever holds a table exclusively, however long that takes.
    """
    size = "coalesce(pg_catalog.pg_table_size(c.oid), 0)" if sizes else "0"
    rows = connection.execute(
        f"""
        select c.oid::bigint, n.nspname, c.relname, quote_ident(n.nspname) || '.' || quote_ident(c.relname),
               case when c.relkind = 'r' then {size} else 0 end,
               c.relkind = 'r'
                 and not (c.relpersistence = 'u' and %s)
                 and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass
                                 and d.objid = c.oid and d.deptype = 'e'),
               case when c.relispartition then pg_partition_root(c.oid)::regclass::text end
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'p') and c.relpersistence <> 't' and {_SYSTEM}
        order by c.oid
        """,  # noqa: S608  (constants of this file)
        [standby],
    ).fetchall()
    return [SourceTable(*row) for row in rows]


def properties(connection: psycopg.Connection) -> DatabaseProperties:
    """What CREATE DATABASE and ALTER DATABASE set, for the database connected to."""
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(
            """
            select to_jsonb(d) - 'datacl' as d, pg_get_userbyid(d.datdba) as owner,
                   pg_encoding_to_char(d.encoding) as encoding, shobj_description(d.oid, 'pg_database') as comment,
                   d.datacl is null as default_grants,
                   exists (select from pg_namespace where nspname = 'public') as has_public
            from pg_database d where d.datname = current_database()
            """
        ).fetchone()
    assert row is not None
    d: dict[str, Any] = row["d"]  # columns differ between majors: locale providers came in 15, names changed in 17
    provider = {"c": "libc", "i": "icu", "b": "builtin"}[d.get("datlocprovider", "c")]
    return DatabaseProperties.model_validate(
        {
            "name": d["datname"],
            "owner": row["owner"],
            "encoding": row["encoding"],
            "collate": d["datcollate"],
            "ctype": d["datctype"],
            "locale_provider": provider,
            "locale": d.get("datlocale") or d.get("daticulocale"),
            "icu_rules": d.get("daticurules"),
            "connection_limit": d["datconnlimit"],
            # A copy that is itself not finished would make every restore of it look unfinished too.
            "comment": row["comment"] if mark.parse(row["comment"]) is None else None,
            "grants": None if row["default_grants"] else _grants(connection),
            "settings": _settings(connection),
            "has_public_schema": row["has_public"],
        }
    )


def _grants(connection: psycopg.Connection) -> tuple[Grant, ...]:
    rows = connection.execute(
        """
        select pg_get_userbyid(a.grantor), case when a.grantee <> 0 then pg_get_userbyid(a.grantee) end,
               a.privilege_type, a.is_grantable
        from pg_database d, aclexplode(d.datacl) a where d.datname = current_database()
        """
    ).fetchall()
    return tuple(Grant(grantor=r[0], grantee=r[1], privilege=r[2], grantable=r[3]) for r in rows)


def _settings(connection: psycopg.Connection) -> tuple[Setting, ...]:
    rows = connection.execute(
        """
        select r.rolname, split_part(c, '=', 1), substr(c, position('=' in c) + 1)
        from pg_db_role_setting s left join pg_roles r on r.oid = s.setrole, unnest(s.setconfig) c
        where s.setdatabase = (select oid from pg_database where datname = current_database())
        order by r.rolname nulls first, c
        """
    ).fetchall()
    return tuple(Setting(role=r[0], name=r[1], value=r[2]) for r in rows)


def extensions(connection: psycopg.Connection) -> tuple[Extension, ...]:
    rows = connection.execute(
        """
        select e.extname, e.extversion, n.nspname
        from pg_extension e join pg_namespace n on n.oid = e.extnamespace order by e.extname
        """
    ).fetchall()
    return tuple(Extension(name=r[0], version=r[1], schema_=r[2]) for r in rows)


# The bootstrap superuser is pinned: pg_shdepend never names it, so its objects and grants are looked up one by one.
_OWNERS = (
    ("pg_class", "relowner"),
    ("pg_namespace", "nspowner"),
    ("pg_proc", "proowner"),
    ("pg_type", "typowner"),
    ("pg_operator", "oprowner"),
    ("pg_opclass", "opcowner"),
    ("pg_opfamily", "opfowner"),
    ("pg_collation", "collowner"),
    ("pg_conversion", "conowner"),
    ("pg_ts_config", "cfgowner"),
    ("pg_ts_dict", "dictowner"),
    ("pg_statistic_ext", "stxowner"),
    ("pg_foreign_data_wrapper", "fdwowner"),
    ("pg_foreign_server", "srvowner"),
    ("pg_event_trigger", "evtowner"),
    ("pg_publication", "pubowner"),
    ("pg_largeobject_metadata", "lomowner"),
    ("pg_extension", "extowner"),
)
_FIRST_USER_OID = 16384
_GRANTS = (
    ("pg_class", "relacl", f"t.oid >= {_FIRST_USER_OID}"),
    ("pg_attribute", "attacl", f"t.attrelid >= {_FIRST_USER_OID}"),
    ("pg_namespace", "nspacl", f"t.oid >= {_FIRST_USER_OID}"),
    ("pg_proc", "proacl", f"t.oid >= {_FIRST_USER_OID}"),
    ("pg_type", "typacl", f"t.oid >= {_FIRST_USER_OID}"),
    ("pg_foreign_server", "srvacl", "true"),
    ("pg_foreign_data_wrapper", "fdwacl", "true"),
    ("pg_largeobject_metadata", "lomacl", "true"),
    ("pg_default_acl", "defaclacl", "true"),
)


def roles(connection: psycopg.Connection) -> tuple[str, ...]:
    """Every role that owners, grants, policies and user mappings of this database name."""
    named = connection.execute(
        """
        select distinct r.rolname from pg_shdepend s join pg_roles r on r.oid = s.refobjid
        where s.refclassid = 'pg_authid'::regclass
          and (s.dbid = (select oid from pg_database where datname = current_database())
               or (s.classid = 'pg_database'::regclass
                   and s.objid = (select oid from pg_database where datname = current_database())))
        union
        select r.rolname from pg_db_role_setting s join pg_roles r on r.oid = s.setrole
        where s.setdatabase = (select oid from pg_database where datname = current_database())
        """
    ).fetchall()
    found = {str(row[0]) for row in named}
    owns = [f"select 1 from {table} where {owner} = 10 and oid >= {_FIRST_USER_OID}" for table, owner in _OWNERS]  # noqa: S608
    granted = [
        f"select 1 from {table} t, aclexplode(t.{acl}) a where a.grantee = 10 and {own}"  # noqa: S608
        for table, acl, own in _GRANTS
    ]
    policies = [
        "select 1 from pg_policy where polroles @> array[10::oid]",
        "select 1 from pg_user_mappings where umuser = 10",
    ]
    found_in = " union all ".join([*owns, *granted, *policies])
    bootstrap = connection.execute(
        f"select rolname from pg_roles where oid = 10 and exists ({found_in})"  # noqa: S608
    ).fetchone()
    if bootstrap:
        found.add(str(bootstrap[0]))
    return tuple(sorted(found))


def bootstrap(connection: psycopg.Connection) -> str:
    """The role that initdb made: a dump does not say who owns what belongs to it from the start."""
    row = connection.execute("select pg_get_userbyid(10)").fetchone()
    assert row is not None
    return str(row[0])


def policy_roles(connection: psycopg.Connection) -> tuple[str, ...]:
    """Roles that policies apply to and user mappings are for: no restore can leave these out as it can owners."""
    rows = connection.execute(
        """
        select pg_get_userbyid(role) from pg_policy, unnest(polroles) role where role <> 0
        union select usename from pg_user_mappings where umuser <> 0 order by 1
        """
    ).fetchall()
    return tuple(str(row[0]) for row in rows)


def large_object_owners(connection: psycopg.Connection) -> tuple[str, ...]:
    rows = connection.execute(
        "select rolname from pg_roles where oid in (select lomowner from pg_largeobject_metadata) order by 1"
    ).fetchall()
    return tuple(str(row[0]) for row in rows)


def tablespaces(connection: psycopg.Connection) -> tuple[str, ...]:
    """Tablespaces other than the default one that relations of this database lie in."""
    rows = connection.execute(
        "select distinct spcname from pg_class c join pg_tablespace t on t.oid = c.reltablespace"
        " where c.reltablespace <> 0 and spcname <> 'pg_global' order by 1"
    ).fetchall()
    return tuple(str(row[0]) for row in rows)


def count_rows(connection: psycopg.Connection, batch: Sequence[SourceTable]) -> dict[int, int]:
    """count(*) of each table by oid, in one query: an ordinary query, so PostgreSQL may use all its ways to count."""
    if not batch:
        return {}
    query = " union all ".join(f"select {int(t.oid)}::bigint, count(*) from only {t.sql}" for t in batch)  # noqa: S608
    return {int(oid): int(rows) for oid, rows in connection.execute(query.encode()).fetchall()}
