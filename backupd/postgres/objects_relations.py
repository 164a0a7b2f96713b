"""How relations and what hangs on them are read: schemas, tables, columns, indexes, constraints, triggers, views …"""
# ruff: noqa: S608  (all of it is put together from constants of this package)

from __future__ import annotations

from backupd.postgres.objects_sql import (
    IN_SCHEMA,
    OWN_RELATION,
    RELATION,
    USER_SCHEMA,
    Query,
    collation,
    comment,
    facts,
    flag,
    grants,
    items,
    own,
    quoted,
    role,
    since,
)

# What child tables inherit is merged with what they have, in the parents' order: a dump keeps no column order there.
_INHERITS = "(not c.relispartition and exists (select from pg_inherits i where i.inhrelid = c.oid))"
_TOAST = "left join pg_class t on t.oid = c.reltoastrelid"
_METHOD = "(select amname from pg_am where oid = c.relam)"


def queries(server: int) -> dict[str, Query]:
    """By kind, for a server of this major."""
    return {
        "schema": Query(_SCHEMAS),
        "table": Query(_TABLES),
        "column": Query(_columns(server)),
        "index": Query(_INDEXES),
        "constraint": Query(_CONSTRAINTS, catalog="pg_constraint"),
        "trigger": Query(_TRIGGERS, catalog="pg_trigger"),
        "rule": Query(_RULES, batches=_RULE_OIDS, catalog="pg_rewrite"),
        "policy": Query(_POLICIES, catalog="pg_policy"),
        "view": Query(_VIEWS, batches=_oids("v"), catalog="pg_rewrite"),
        "materialized view": Query(_MATERIALIZED_VIEWS, batches=_oids("m"), catalog="pg_rewrite"),
        "sequence": Query(_SEQUENCES),
        "statistics": Query(_STATISTICS, catalog="pg_statistic_ext"),
    }


def _oids(kind: str) -> str:
    return f"select c.oid::bigint from pg_class c {IN_SCHEMA} where c.relkind = '{kind}' and {OWN_RELATION} order by 1"


_SCHEMAS = f"""
select quote_ident(n.nspname), {
    facts(
        owner=role("n.nspowner"),
        grants=grants("n", "n.nspacl", "n.nspowner"),
        comment=comment("pg_namespace", "n.oid"),
    )
}
from pg_namespace n where {USER_SCHEMA} and {own("pg_namespace", "n.oid")}
"""

_TABLES = f"""
select {RELATION}, {
    facts(
        kind="case c.relkind when 'p' then 'partitioned' when 'f' then 'foreign' end",
        persistence="case c.relpersistence when 'u' then 'unlogged' end",
        partition_key="case c.relkind when 'p' then pg_get_partkeydef(c.oid) end",
        bound="case when c.relispartition then pg_get_expr(c.relpartbound, c.oid) end",
        parents=f'''(select jsonb_agg({quoted("pn.nspname", "p.relname")} order by i.inhseqno)
            from pg_inherits i join pg_class p on p.oid = i.inhparent join pg_namespace pn on pn.oid = p.relnamespace
            where i.inhrelid = c.oid)''',
        options=items("c.reloptions"),
        toast_options=items("t.reloptions"),
        access_method=f"case c.relkind when 'r' then {_METHOD} end",
        replica_identity=f'''case c.relreplident when 'n' then 'nothing' when 'f' then 'full' when 'i' then (
            select 'index ' || {quoted("n.nspname", "x.relname")}
            from pg_index i join pg_class x on x.oid = i.indexrelid
            where i.indrelid = c.oid and i.indisreplident) end''',
        row_security=flag("c.relrowsecurity"),
        forced_row_security=flag("c.relforcerowsecurity"),
        of_type="case when c.reloftype <> 0 then format_type(c.reloftype, null) end",
        server="(select srvname from pg_foreign_server s where s.oid = f.ftserver)",
        foreign_options=items("f.ftoptions"),
        owner=role("c.relowner"),
        grants=grants("r", "c.relacl", "c.relowner"),
        comment=comment("pg_class", "c.oid"),
    )
}
from pg_class c {IN_SCHEMA} {_TOAST} left join pg_foreign_table f on f.ftrelid = c.oid
where c.relkind in ('r', 'p', 'f') and {OWN_RELATION}
"""


def _columns(server: int) -> str:
    compression = "case a.attcompression when 'p' then 'pglz' when 'l' then 'lz4' end"
    return f"""
    select {RELATION} || '.' || quote_ident(a.attname), {
        facts(
            table=RELATION,
            position=f"case when not {_INHERITS} then"
            " row_number() over (partition by a.attrelid order by a.attnum) end",
            type="format_type(a.atttypid, a.atttypmod)",
            not_null=flag("a.attnotnull"),
            default="pg_get_expr(ad.adbin, ad.adrelid)",
            generated="case a.attgenerated when 's' then 'stored' when 'v' then 'virtual' end",
            identity="case a.attidentity when 'a' then 'always' when 'd' then 'by default' end",
            collation=collation("a.attcollation", "t.typcollation"),
            storage="case when a.attstorage <> t.typstorage then a.attstorage end",
            compression=since(14, server, compression),
            statistics="nullif(coalesce(a.attstattarget, -1), -1)",
            options=items("a.attoptions"),
            foreign_options=items("a.attfdwoptions"),
            inherited=flag("not a.attislocal and not c.relispartition"),
            grants="case when a.attacl is not null then " + grants("c", "a.attacl", "c.relowner") + " end",
            comment=comment("pg_class", "c.oid", "a.attnum"),
        )
    }
    from pg_attribute a join pg_class c on c.oid = a.attrelid {IN_SCHEMA} join pg_type t on t.oid = a.atttypid
    left join pg_attrdef ad on ad.adrelid = a.attrelid and ad.adnum = a.attnum
    where a.attnum > 0 and not a.attisdropped and c.relkind in ('r', 'p', 'f', 'v', 'm') and {OWN_RELATION}
    """


_INDEXES = f"""
select {quoted("n.nspname", "x.relname")}, {
    facts(
        table=RELATION,
        definition="pg_get_indexdef(i.indexrelid)",
        constraint=f"(select quote_ident(k.conname) || ' on ' || {RELATION} from pg_constraint k"
        " where k.conindid = i.indexrelid and k.conrelid = i.indrelid and k.contype in ('p', 'u', 'x'))",
        invalid=flag("not i.indisvalid"),
        partitioned=flag("x.relkind = 'I'"),
        clustered=flag("i.indisclustered"),
        parent=f'''(select {quoted("pn.nspname", "p.relname")} from pg_inherits h join pg_class p on p.oid = h.inhparent
            join pg_namespace pn on pn.oid = p.relnamespace where h.inhrelid = i.indexrelid)''',
        statistics='''(select jsonb_object_agg(a.attnum, a.attstattarget) from pg_attribute a
            where a.attrelid = i.indexrelid and a.attstattarget >= 0)''',
        comment=comment("pg_class", "i.indexrelid"),
    )
}
from pg_index i join pg_class x on x.oid = i.indexrelid join pg_class c on c.oid = i.indrelid {IN_SCHEMA}
where c.relkind in ('r', 'p', 'm') and {OWN_RELATION} and {own("pg_class", "x.oid")}
"""

# Copies of a foreign key on partitions follow from the one of the parent, and the server names them as it likes. What
# a constraint trigger keeps here is read as a trigger.
_CONSTRAINTS = f"""
select quote_ident(k.conname) || ' on ' || {RELATION}, {
    facts(
        table=RELATION,
        type="k.contype",
        column=f"case k.contype when 'n' then (select {RELATION} || '.' || quote_ident(a.attname)"
        " from pg_attribute a where a.attrelid = k.conrelid and a.attnum = k.conkey[1]) end",
        definition="pg_get_constraintdef(k.oid)",
        inherited=flag("not k.conislocal and not c.relispartition"),
        comment=comment("pg_constraint", "k.oid"),
    )
}
from pg_constraint k join pg_class c on c.oid = k.conrelid {IN_SCHEMA}
where k.contype <> 't' and not (k.contype = 'f' and k.conparentid <> 0) and {OWN_RELATION}
union all
select quote_ident(k.conname) || ' on domain ' || {quoted("n.nspname", "t.typname")}, {
    facts(
        domain=quoted("n.nspname", "t.typname"),
        type="k.contype",
        definition="pg_get_constraintdef(k.oid)",
        comment=comment("pg_constraint", "k.oid"),
    )
}
from pg_constraint k join pg_type t on t.oid = k.contypid join pg_namespace n on n.oid = t.typnamespace
where {USER_SCHEMA} and {own("pg_type", "t.oid")}
"""

# On partitions, clones of the parent's triggers have a state of their own. Before 15 they were marked as internal, as
# are those that foreign keys are made of: a dump knows nothing of these.
_TRIGGERS = f"""
select quote_ident(g.tgname) || ' on ' || {RELATION}, {
    facts(
        table=RELATION,
        definition="pg_get_triggerdef(g.oid)",
        enabled="g.tgenabled",
        clone=flag("g.tgparentid <> 0"),
        comment=comment("pg_trigger", "g.oid"),
    )
}
from pg_trigger g join pg_class c on c.oid = g.tgrelid {IN_SCHEMA} left join pg_constraint k on k.oid = g.tgconstraint
where (not g.tgisinternal or (g.tgparentid <> 0 and (g.tgconstraint = 0 or k.contype = 't'))) and {OWN_RELATION}
"""

_RULE_OIDS = f"""
select r.oid::bigint from pg_rewrite r join pg_class c on c.oid = r.ev_class {IN_SCHEMA}
where r.rulename <> '_RETURN' and {OWN_RELATION} order by 1
"""
_RULES = f"""
select quote_ident(r.rulename) || ' on ' || {RELATION}, {
    facts(
        table=RELATION,
        definition="pg_get_ruledef(r.oid)",
        enabled="r.ev_enabled",
        comment=comment("pg_rewrite", "r.oid"),
    )
}
from pg_rewrite r join pg_class c on c.oid = r.ev_class {IN_SCHEMA} where r.oid = any(%s::oid[])
"""

_POLICIES = f"""
select quote_ident(p.polname) || ' on ' || {RELATION}, {
    facts(
        table=RELATION,
        command="case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update'"
        " when 'd' then 'delete' end",
        restrictive=flag("not p.polpermissive"),
        roles=items(f"array(select case r when 0 then 'PUBLIC' else {role('r')} end from unnest(p.polroles) r)"),
        using="pg_get_expr(p.polqual, p.polrelid)",
        check="pg_get_expr(p.polwithcheck, p.polrelid)",
        comment=comment("pg_policy", "p.oid"),
    )
}
from pg_policy p join pg_class c on c.oid = p.polrelid {IN_SCHEMA} where {USER_SCHEMA}
"""

_VIEWS = f"""
select {RELATION}, {
    facts(
        definition="pg_get_viewdef(c.oid)",
        options=items("c.reloptions"),
        owner=role("c.relowner"),
        grants=grants("r", "c.relacl", "c.relowner"),
        comment=comment("pg_class", "c.oid"),
    )
}
from pg_class c {IN_SCHEMA} where c.oid = any(%s::oid[])
"""

_MATERIALIZED_VIEWS = f"""
select {RELATION}, {
    facts(
        definition="pg_get_viewdef(c.oid)",
        unpopulated=flag("not c.relispopulated"),
        access_method=_METHOD,
        options=items("c.reloptions"),
        toast_options=items("t.reloptions"),
        owner=role("c.relowner"),
        grants=grants("r", "c.relacl", "c.relowner"),
        comment=comment("pg_class", "c.oid"),
    )
}
from pg_class c {IN_SCHEMA} {_TOAST} where c.oid = any(%s::oid[])
"""

_SEQUENCES = f"""
select {RELATION}, {
    facts(
        type="format_type(s.seqtypid, null)",
        start="s.seqstart",
        increment="s.seqincrement",
        minimum="s.seqmin",
        maximum="s.seqmax",
        cache="s.seqcache",
        cycle=flag("s.seqcycle"),
        persistence="case c.relpersistence when 'u' then 'unlogged' end",
        owned_by=f"{quoted('tn.nspname', 't.relname')} || '.' || quote_ident(a.attname)",
        identity=flag("d.deptype = 'i'"),
        owner=role("c.relowner"),
        grants=grants("s", "c.relacl", "c.relowner"),
        comment=comment("pg_class", "c.oid"),
    )
}
from pg_sequence s join pg_class c on c.oid = s.seqrelid {IN_SCHEMA}
left join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = c.oid and d.objsubid = 0
  and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i')
left join pg_class t on t.oid = d.refobjid left join pg_namespace tn on tn.oid = t.relnamespace
left join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
where {OWN_RELATION}
"""

_STATISTICS = f"""
select {quoted("sn.nspname", "s.stxname")}, {
    facts(
        table=RELATION,
        definition="pg_get_statisticsobjdef(s.oid)",
        target="nullif(coalesce(s.stxstattarget, -1), -1)",
        owner=role("s.stxowner"),
        comment=comment("pg_statistic_ext", "s.oid"),
    )
}
from pg_statistic_ext s join pg_namespace sn on sn.oid = s.stxnamespace join pg_class c on c.oid = s.stxrelid {
    IN_SCHEMA
}
where {OWN_RELATION} and {own("pg_statistic_ext", "s.oid")}
"""
