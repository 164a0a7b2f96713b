"""How types and what works on them are read: operators, their classes and families, casts, transforms."""
# ruff: noqa: S608  (all of it is put together from constants of this package)

from __future__ import annotations

from backupd.postgres.objects_sql import (
    FIRST_USER_OID,
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
    procedure,
    quoted,
    role,
    since,
)


def queries(server: int) -> dict[str, Query]:
    """By kind, for a server of this major."""
    return {
        "type": Query(_types(server)),
        "attribute": Query(_ATTRIBUTES),
        "operator": Query(_OPERATORS, catalog="pg_operator"),
        "operator class": Query(_CLASSES, catalog="pg_opclass"),
        "operator family": Query(_FAMILIES, catalog="pg_opfamily"),
        "cast": Query(_CASTS, catalog="pg_cast"),
        "transform": Query(_TRANSFORMS, catalog="pg_transform"),
    }


def _types(server: int) -> str:
    """Not those of tables' rows and of arrays, which come with others."""
    functions = ("input", "output", "receive", "send", "modin", "modout", "analyze")
    base = {
        "functions": "jsonb_build_array(" + ", ".join(f"t.typ{f}::oid::regprocedure::text" for f in functions) + ")",
        "subscript": since(14, server, procedure("t.typsubscript::oid")),
        "layout": "jsonb_build_array(t.typlen, t.typbyval, t.typalign, t.typstorage)",
        "category": "jsonb_build_array(t.typcategory, t.typispreferred, t.typdelim)",
        "element": "case when t.typelem <> 0 then format_type(t.typelem, null) end",
    }
    only_base = {name: f"case when t.typtype = 'b' then {value} end" for name, value in base.items()}
    return f"""
    select {quoted("n.nspname", "t.typname")}, {
        facts(
            kind="case when not t.typisdefined then 'shell' else t.typtype::text end",
            labels="(select jsonb_agg(e.enumlabel order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid)",
            base="case when t.typbasetype <> 0 then format_type(t.typbasetype, t.typtypmod) end",
            not_null=flag("t.typnotnull"),
            default="coalesce(pg_get_expr(t.typdefaultbin, 'pg_type'::regclass), t.typdefault)",
            collation="case t.typtype when 'd' then "
            + collation("t.typcollation", "(select b.typcollation from pg_type b where b.oid = t.typbasetype)")
            + " end",
            subtype="format_type(r.rngsubtype, null)",
            subtype_class="(select " + quoted("cn.nspname", "c.opcname") + " from pg_opclass c join pg_namespace cn"
            " on cn.oid = c.opcnamespace where c.oid = r.rngsubopc)",
            subtype_collation=collation(
                "r.rngcollation", "(select s.typcollation from pg_type s where s.oid = r.rngsubtype)"
            ),
            canonical=procedure("r.rngcanonical::oid"),
            difference=procedure("r.rngsubdiff::oid"),
            multirange=since(14, server, "format_type(r.rngmultitypid, null)"),
            **only_base,
            owner=role("t.typowner"),
            grants=grants("T", "t.typacl", "t.typowner"),
            comment=comment("pg_type", "t.oid"),
        )
    }
    from pg_type t join pg_namespace n on n.oid = t.typnamespace left join pg_class rel on rel.oid = t.typrelid
    left join pg_range r on r.rngtypid = t.oid
    where {USER_SCHEMA} and {own("pg_type", "t.oid")} and (rel.oid is null or rel.relkind = 'c') and t.typtype <> 'm'
      and not exists (select from pg_type e where e.oid = t.typelem and e.typarray = t.oid)
    """


_ATTRIBUTES = f"""
select {RELATION} || '.' || quote_ident(a.attname), {
    facts(
        of_type=RELATION,
        position="row_number() over (partition by a.attrelid order by a.attnum)",
        type="format_type(a.atttypid, a.atttypmod)",
        collation=collation("a.attcollation", "t.typcollation"),
        comment=comment("pg_class", "c.oid", "a.attnum"),
    )
}
from pg_attribute a join pg_class c on c.oid = a.attrelid {IN_SCHEMA} join pg_type t on t.oid = a.atttypid
where a.attnum > 0 and not a.attisdropped and c.relkind = 'c' and {OWN_RELATION} and {own("pg_type", "c.reltype")}
"""

_OPERATORS = f"""
select quote_ident(n.nspname) || '.' || o.oprname || ' ('
  || coalesce(format_type(nullif(o.oprleft, 0), null), 'none') || ', ' || format_type(o.oprright, null) || ')', {
    facts(
        function=procedure("o.oprcode::oid"),
        commutator="case when o.oprcom <> 0 then o.oprcom::regoperator::text end",
        negator="case when o.oprnegate <> 0 then o.oprnegate::regoperator::text end",
        restrict=procedure("o.oprrest::oid"),
        join=procedure("o.oprjoin::oid"),
        merges=flag("o.oprcanmerge"),
        hashes=flag("o.oprcanhash"),
        owner=role("o.oprowner"),
        comment=comment("pg_operator", "o.oid"),
    )
}
from pg_operator o join pg_namespace n on n.oid = o.oprnamespace
where {USER_SCHEMA} and {own("pg_operator", "o.oid")} and o.oprcode <> 0
"""

_CLASSES = f"""
select {quoted("n.nspname", "c.opcname")} || ' using ' || quote_ident(m.amname), {
    facts(
        type="format_type(c.opcintype, null)",
        stored="case when c.opckeytype <> 0 then format_type(c.opckeytype, null) end",
        default=flag("c.opcdefault"),
        family=quoted("fn.nspname", "f.opfname"),
        owner=role("c.opcowner"),
        comment=comment("pg_opclass", "c.oid"),
    )
}
from pg_opclass c join pg_namespace n on n.oid = c.opcnamespace join pg_am m on m.oid = c.opcmethod
join pg_opfamily f on f.oid = c.opcfamily join pg_namespace fn on fn.oid = f.opfnamespace
where {USER_SCHEMA} and {own("pg_opclass", "c.oid")}
"""

_FAMILIES = f"""
select {quoted("n.nspname", "f.opfname")} || ' using ' || quote_ident(m.amname), {
    facts(
        operators=items(
            "array(select o.amopstrategy::text || ' ' || o.amopopr::regoperator::text || coalesce(' for order by '"
            f" || (select {quoted('sn.nspname', 's.opfname')} from pg_opfamily s join pg_namespace sn"
            " on sn.oid = s.opfnamespace where s.oid = o.amopsortfamily), '')"
            " from pg_amop o where o.amopfamily = f.oid)"
        ),
        functions=items(
            "array(select p.amprocnum::text || ' (' || format_type(p.amproclefttype, null) || ', '"
            " || format_type(p.amprocrighttype, null) || ') ' || p.amproc::oid::regprocedure::text"
            " from pg_amproc p where p.amprocfamily = f.oid)"
        ),
        owner=role("f.opfowner"),
        comment=comment("pg_opfamily", "f.oid"),
    )
}
from pg_opfamily f join pg_namespace n on n.oid = f.opfnamespace join pg_am m on m.oid = f.opfmethod
where {USER_SCHEMA} and {own("pg_opfamily", "f.oid")}
"""

_CASTS = f"""
select '(' || format_type(c.castsource, null) || ' as ' || format_type(c.casttarget, null) || ')', {
    facts(
        function=procedure("c.castfunc"),
        context="c.castcontext",
        method="c.castmethod",
        comment=comment("pg_cast", "c.oid"),
    )
}
from pg_cast c where c.oid >= {FIRST_USER_OID} and {own("pg_cast", "c.oid")}
"""

_TRANSFORMS = f"""
select 'for ' || format_type(t.trftype, null) || ' language ' || quote_ident(l.lanname), {
    facts(
        from_sql=procedure("t.trffromsql::oid"),
        to_sql=procedure("t.trftosql::oid"),
        comment=comment("pg_transform", "t.oid"),
    )
}
from pg_transform t join pg_language l on l.oid = t.trflang
where t.oid >= {FIRST_USER_OID} and {own("pg_transform", "t.oid")}
"""
