"""How what is neither relation nor code is read: extensions, foreign data, replication, large objects, grants …"""
# ruff: noqa: S608  (all of it is put together from constants of this package)

from __future__ import annotations

from backupd.postgres.objects_sql import (
    Query,
    comment,
    facts,
    flag,
    grants,
    hashed,
    items,
    own,
    privileges,
    procedure,
    quoted,
    role,
    since,
)


def queries(server: int) -> dict[str, Query]:
    """By kind, for a server of this major."""
    return {
        "extension": Query(_EXTENSIONS),
        "extension dependency": Query(_EXTENSION_DEPENDENCIES),
        "event trigger": Query(_EVENT_TRIGGERS, catalog="pg_event_trigger"),
        "foreign-data wrapper": Query(_WRAPPERS, catalog="pg_foreign_data_wrapper"),
        "server": Query(_SERVERS, catalog="pg_foreign_server"),
        "user mapping": Query(_USER_MAPPINGS, catalog="pg_foreign_server"),
        "publication": Query(_publications(server), catalog="pg_publication"),
        "subscription": Query(_subscriptions(server)),
        "large objects": Query(_LARGE_OBJECTS),
        "default privileges": Query(_DEFAULT_PRIVILEGES, catalog="pg_default_acl"),
        "built-in": Query(_BUILT_IN),
        "security label": Query(_SECURITY_LABELS),
    }


# A dump says nothing of an extension's owner, nor what plpgsql is commented with: initdb made that one.
_EXTENSIONS = f"""
select quote_ident(e.extname), {
    facts(
        version="e.extversion",
        default_version="a.default_version",
        schema="quote_ident(n.nspname)",
        comment=f"case when e.extname <> 'plpgsql' then {comment('pg_extension', 'e.oid')} end",
    )
}
from pg_extension e join pg_namespace n on n.oid = e.extnamespace
left join pg_available_extensions() a on a.name = e.extname
"""

_EXTENSION_DEPENDENCIES = """
select o.type || ' ' || o.identity || ' on extension ' || quote_ident(e.extname), '{}'::jsonb
from pg_depend d join pg_extension e on e.oid = d.refobjid and d.refclassid = 'pg_extension'::regclass,
  pg_identify_object(d.classid, d.objid, d.objsubid) o
where d.deptype = 'x' and o.identity is not null
"""

_EVENT_TRIGGERS = f"""
select quote_ident(t.evtname), {
    facts(
        event="t.evtevent",
        function=procedure("t.evtfoid"),
        enabled="t.evtenabled",
        tags=items("t.evttags"),
        owner=role("t.evtowner"),
        comment=comment("pg_event_trigger", "t.oid"),
    )
}
from pg_event_trigger t where {own("pg_event_trigger", "t.oid")}
"""

_WRAPPERS = f"""
select quote_ident(w.fdwname), {
    facts(
        handler=procedure("w.fdwhandler"),
        validator=procedure("w.fdwvalidator"),
        options=hashed("w.fdwoptions"),
        owner=role("w.fdwowner"),
        grants=grants("F", "w.fdwacl", "w.fdwowner"),
        comment=comment("pg_foreign_data_wrapper", "w.oid"),
    )
}
from pg_foreign_data_wrapper w where {own("pg_foreign_data_wrapper", "w.oid")}
"""

_SERVERS = f"""
select quote_ident(s.srvname), {
    facts(
        wrapper="(select quote_ident(w.fdwname) from pg_foreign_data_wrapper w where w.oid = s.srvfdw)",
        type="s.srvtype",
        version="s.srvversion",
        options=hashed("s.srvoptions"),
        owner=role("s.srvowner"),
        grants=grants("S", "s.srvacl", "s.srvowner"),
        comment=comment("pg_foreign_server", "s.oid"),
    )
}
from pg_foreign_server s where {own("pg_foreign_server", "s.oid")}
"""

# Of passwords not even a hash. A view shows null to whoever may not see the options: then the dump lacks them too.
_USER_MAPPINGS = f"""
select case when u.umuser = 0 then 'PUBLIC' else {role("u.umuser")} end || ' on server ' || quote_ident(u.srvname), {
    facts(
        options=items("array(select split_part(item, '=', 1) from unnest(u.umoptions) item)"),
        hidden=flag("u.umoptions is null and current_setting('is_superuser') = 'off'"),
    )
}
from pg_user_mappings u where {own("pg_user_mapping", "u.umid")}
"""


def _publications(server: int) -> str:
    actions = " || ".join(
        f"case when p.pub{action} then '{action} ' else '' end" for action in ("insert", "update", "delete", "truncate")
    )
    columns = (
        "(select jsonb_agg(a.attname order by a.attname) from pg_attribute a"
        " where a.attrelid = r.prrelid and a.attnum = any(r.prattrs))"
    )
    table = facts(
        name=quoted("n.nspname", "c.relname"),
        columns=since(15, server, columns),
        where=since(15, server, "pg_get_expr(r.prqual, r.prrelid)"),
    )
    schemas = items(
        "array(select n.nspname::text from pg_publication_namespace m"
        " join pg_namespace n on n.oid = m.pnnspid where m.pnpubid = p.oid)"
    )
    return f"""
    select quote_ident(p.pubname), {
        facts(
            all_tables=flag("p.puballtables"),
            actions=f"rtrim({actions})",
            via_root=flag("p.pubviaroot"),
            generated_columns=since(18, server, "nullif(p.pubgencols::text, 'n')"),
            tables=f'''(select jsonb_agg({table} order by {quoted("n.nspname", "c.relname")} collate "C")
                from pg_publication_rel r join pg_class c on c.oid = r.prrelid
                join pg_namespace n on n.oid = c.relnamespace
                where r.prpubid = p.oid and {own("pg_class", "c.oid")})''',
            schemas=since(15, server, schemas),
            owner=role("p.pubowner"),
            comment=comment("pg_publication", "p.oid"),
        )
    }
    from pg_publication p where {own("pg_publication", "p.oid")}
    """


def _subscriptions(server: int) -> str:
    """Without the connection, which may hold a password, and the state: what is restored is disabled."""
    return f"""
    select quote_ident(s.subname), {
        facts(
            publications=items("s.subpublications"),
            slot="s.subslotname",
            synchronous_commit="s.subsynccommit",
            binary=since(14, server, flag("s.subbinary")),
            streaming="s.substream"
            if server >= 16
            else since(14, server, "case when s.substream then 't' else 'f' end"),
            two_phase=since(15, server, flag("s.subtwophasestate::text <> 'd'")),
            disable_on_error=since(15, server, flag("s.subdisableonerr")),
            password_not_required=since(16, server, flag("not s.subpasswordrequired")),
            run_as_owner=since(16, server, flag("s.subrunasowner")),
            origin=since(16, server, "s.suborigin"),
            failover=since(17, server, flag("s.subfailover")),
            owner=role("s.subowner"),
            comment=comment("pg_subscription", "s.oid"),
        )
    }
    from pg_subscription s where s.subdbid = (select oid from pg_database where datname = current_database())
    """


# All that version 13 lets others than superusers see. What else they could read is in no dump of theirs.
SUBSCRIPTION_NAMES = Query(
    "select quote_ident(s.subname), '{}'::jsonb from pg_subscription s"
    " where s.subdbid = (select oid from pg_database where datname = current_database())"
)


def _sum(text: str) -> str:
    """A hash of a set of texts: the sum of 60 bits of each one's, as a million of them would not fit into one text."""
    of_bytes = f"sha256(convert_to({text}, getdatabaseencoding()))"
    return f"coalesce(sum(('x' || substr(encode({of_bytes}, 'hex'), 1, 15))::bit(60)::bigint), 0)::text"


# Of the owner without the name, so that a change of it does not show as a change of grants too.
_LARGE_OBJECT_PRIVILEGES = f"""(select string_agg(granted, ',' order by granted collate "C") from (
    select case when a.grantor <> l.lomowner then {role("a.grantor")} else '' end || ' '
      || case a.grantee when 0 then 'PUBLIC' when l.lomowner then '' else {role("a.grantee")} end || ' '
      || a.privilege_type || ' ' || a.is_grantable::text as granted
    from aclexplode(l.lomacl) a) granted)"""
# There may be millions: one entry for all, whose facts say which of their properties differ.
_LARGE_OBJECTS = f"""
select 'all of them', {
    facts(
        count="count(*)",
        identifiers=_sum("l.oid::text"),
        owner=_sum(f"l.oid::text || ' ' || {role('l.lomowner')}"),
        grants=_sum(
            "l.oid::text || ' ' || case when l.lomacl is null or l.lomacl = acldefault('L', l.lomowner) then ''"
            f" else coalesce({_LARGE_OBJECT_PRIVILEGES}, 'none') end"
        ),
        comment=_sum("l.oid::text || ' ' || coalesce(d.description, '')"),
    )
}
from pg_largeobject_metadata l
left join pg_description d on d.classoid = 'pg_largeobject'::regclass and d.objoid = l.oid and d.objsubid = 0
"""

_DEFAULT_PRIVILEGES = f"""
select 'for role ' || {role("p.defaclrole")} || coalesce(' in schema ' || quote_ident(n.nspname), '') || ' on '
  || case p.defaclobjtype when 'r' then 'tables' when 'S' then 'sequences' when 'f' then 'functions'
     when 'T' then 'types' when 'n' then 'schemas' when 'L' then 'large objects' else p.defaclobjtype::text end, {
    facts(privileges=privileges("p.defaclacl"))
}
from pg_default_acl p left join pg_namespace n on n.oid = p.defaclnamespace
"""

_ACLS = " union all ".join(
    f"select '{catalog}'::regclass as class, t.oid, 0 as part, {acl} as acl, acldefault({kind}, {owner}) as usual,"
    f" {owner} as owner, {schema} as schema from {catalog} t"
    for catalog, acl, kind, owner, schema in (
        ("pg_class", "relacl", "(case relkind when 'S' then 's' else 'r' end)::\"char\"", "relowner", "relnamespace"),
        ("pg_proc", "proacl", "'f'", "proowner", "pronamespace"),
        ("pg_type", "typacl", "'T'", "typowner", "typnamespace"),
        ("pg_namespace", "nspacl", "'n'", "nspowner", "0::oid"),
        ("pg_language", "lanacl", "'l'", "lanowner", "0::oid"),
        ("pg_foreign_data_wrapper", "fdwacl", "'F'", "fdwowner", "0::oid"),
        ("pg_foreign_server", "srvacl", "'S'", "srvowner", "0::oid"),
    )
)


def _more(one: str, other: str) -> str:
    """What one list of privileges has and the other has not, but for the owner's: of an extension, who restores is."""
    return f"""(select jsonb_agg(jsonb_build_array(grantee, granted) order by grantee collate "C") from (
        select case when a.grantee = 0 then 'PUBLIC' else {role("a.grantee")} end as grantee,
               string_agg(a.privilege_type || case when a.is_grantable then '*' else '' end, ' '
                          order by a.privilege_type collate "C") as granted
        from (select grantee, privilege_type, is_grantable from aclexplode({one})
              except select grantee, privilege_type, is_grantable from aclexplode({other})) a
        where a.grantee <> o.owner group by 1) more)"""


# What initdb or an extension made, and somebody granted to others than it was made for.
_BUILT_IN = f"""
with objects as (
  {_ACLS}
  union all
  select 'pg_class'::regclass, a.attrelid, a.attnum, a.attacl, acldefault('c', c.relowner), c.relowner, c.relnamespace
  from pg_attribute a join pg_class c on c.oid = a.attrelid where not a.attisdropped
), changed as (
  select o.class, o.oid, o.part, o.owner, coalesce(o.acl, o.usual) as acl, coalesce(i.initprivs, o.usual) as initial
  from objects o left join pg_init_privs i on i.classoid = o.class and i.objoid = o.oid and i.objsubid = o.part
  left join pg_namespace n on n.oid = o.schema
  where (o.acl is not null or i.initprivs is not null) and o.acl is distinct from i.initprivs
    and (n.nspname = 'pg_catalog' or exists (select from pg_depend m where m.deptype = 'e' and m.classid = o.class
                                        and m.objid = o.oid))
), named as (
  select {_more("o.acl", "o.initial")} as added, {_more("o.initial", "o.acl")} as removed,
         pg_identify_object(o.class, o.oid, o.part) as named
  from changed o
)
select (named).type || ' ' || (named).identity, {facts(grants="added", revoked="removed")}
from named where added is not null or removed is not null
"""

_SECURITY_LABELS = """
select l.provider || ' on ' || o.type || ' ' || o.identity, jsonb_build_object('label', l.label)
from pg_seclabel l, pg_identify_object(l.classoid, l.objoid, l.objsubid) o where o.identity is not null
"""
