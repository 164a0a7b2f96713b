"""Pieces of SQL that the queries of objects.py are made of. Every name that they see is ours: no user's text."""
# ruff: noqa: S608  (all of it is put together from constants of this package)

from __future__ import annotations

from dataclasses import dataclass

USER_SCHEMA = "n.nspname <> 'information_schema' and n.nspname !~ '^pg_'"
FIRST_USER_OID = 16384  # below it is what initdb made


@dataclass(frozen=True, slots=True)
class Query:
    """How one kind of object is read: rows of an identity and a jsonb object of facts."""

    sql: str
    batches: str = ""  # lists oids that `sql` takes as %s, some at a time: what it calls holds locks on other relations
    catalog: str = ""  # where nobody added to this one since initdb, `sql` finds nothing and is not asked


def quoted(schema: str, name: str) -> str:
    """`public.orders`, `"Odd"."name"`: as the snapshot names it, not as it may be called by now."""
    return f"(quote_ident({schema}) || '.' || quote_ident({name}))"


def role(oid: str) -> str:
    return f"quote_ident(pg_get_userbyid({oid}))"


def facts(**values: str) -> str:
    """A jsonb object of these expressions without those that are null; false is as good as absent."""
    pairs = ", ".join(f"'{key}', {value}" for key, value in values.items())
    return f"jsonb_strip_nulls(jsonb_build_object({pairs}))"


def flag(condition: str) -> str:
    """True, or nothing."""
    return f"nullif({condition}, false)"


def items(array: str) -> str:
    """An array of texts in an order that no server's collation changes; null if there is none."""
    return f'(select jsonb_agg(item order by item collate "C") from unnest({array}) item)'


def hashed(options: str) -> str:
    """`key=value` options that may hold secrets: each key with the SHA-256 of its value."""
    return (
        "(select jsonb_object_agg(split_part(item, '=', 1),"
        " encode(sha256(convert_to(substr(item, position('=' in item) + 1), getdatabaseencoding())), 'hex'))"
        f" from unnest({options}) item)"
    )


def grants(kind: str, acl: str, owner: str) -> str:
    """[[grantor, grantee or PUBLIC, 'INSERT SELECT*'], …]; no list at all is the default; * is WITH GRANT OPTION."""
    return privileges(f"coalesce({acl}, acldefault('{kind}', {owner}))")


def privileges(acl: str) -> str:
    return f"""(select jsonb_agg(jsonb_build_array(grantor, grantee, granted)
                                 order by grantor collate "C", grantee collate "C")
      from (select {role("a.grantor")} as grantor,
                   case when a.grantee = 0 then 'PUBLIC' else {role("a.grantee")} end as grantee,
                   string_agg(a.privilege_type || case when a.is_grantable then '*' else '' end, ' '
                              order by a.privilege_type collate "C") as granted
            from aclexplode({acl}) a group by 1, 2) granted)"""


def comment(catalog: str, oid: str, column: str = "0") -> str:
    """Read from the catalog, as obj_description() would run a query of its own for each object."""
    return (
        "(select note.description from pg_description note"
        f" where note.classoid = '{catalog}'::regclass and note.objoid = {oid} and note.objsubid = {column})"
    )


def own(catalog: str, oid: str) -> str:
    """It is no extension's: those make their members, and a dump leaves them out."""
    return (
        "not exists (select from pg_depend member"
        f" where member.classid = '{catalog}'::regclass and member.objid = {oid} and member.deptype = 'e')"
    )


def procedure(oid: str) -> str:
    """`torture.add(integer,integer)`, or nothing for 0."""
    return f"case when {oid} <> 0 then {oid}::regprocedure::text end"


def collation(oid: str, usual: str = "0::oid") -> str:
    """A collation's name, unless it is the usual one."""
    return (
        f"case when {oid} <> 0 and {oid} <> {usual} then (select {quoted('cn.nspname', 'co.collname')}"
        f" from pg_collation co join pg_namespace cn on cn.oid = co.collnamespace where co.oid = {oid}) end"
    )


def since(major: int, server: int, expression: str) -> str:
    """What servers have from this major on; null on older ones."""
    return expression if server >= major else "null"


RELATION = quoted("n.nspname", "c.relname")
IN_SCHEMA = "join pg_namespace n on n.oid = c.relnamespace"
OWN_RELATION = f"{USER_SCHEMA} and c.relpersistence <> 't' and {own('pg_class', 'c.oid')}"
