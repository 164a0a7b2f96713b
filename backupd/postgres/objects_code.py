"""How functions and what is made of them are read: collations, conversions, text search, languages."""
# ruff: noqa: S608  (all of it is put together from constants of this package)

from __future__ import annotations

from backupd.postgres.objects_sql import (
    FIRST_USER_OID,
    USER_SCHEMA,
    Query,
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
        "function": Query(_functions(server), batches=_FUNCTION_OIDS, catalog="pg_proc"),
        "aggregate": Query(_AGGREGATES, catalog="pg_proc"),
        "conversion": Query(_CONVERSIONS, catalog="pg_conversion"),
        "collation": Query(_collations(server), catalog="pg_collation"),
        "text search configuration": Query(_CONFIGURATIONS, catalog="pg_ts_config"),
        "text search dictionary": Query(_DICTIONARIES, catalog="pg_ts_dict"),
        "text search parser": Query(_PARSERS, catalog="pg_ts_parser"),
        "text search template": Query(_TEMPLATES, catalog="pg_ts_template"),
        "language": Query(_LANGUAGES, catalog="pg_language"),
        "access method": Query(_METHODS, catalog="pg_am"),
    }


_SIGNATURE = (
    f"{quoted('n.nspname', 'p.proname')} || '(' || coalesce((select string_agg(format_type(t, null), ', ' order by i)"
    " from unnest(p.proargtypes) with ordinality as arguments (t, i)), '') || ')'"
)
# Constructors of ranges come with their types; a dump knows nothing of what was granted on them.
_OWN_FUNCTION = (
    f"{USER_SCHEMA} and not exists (select from pg_depend member"
    " where member.classid = 'pg_proc'::regclass and member.objid = p.oid and member.deptype in ('e', 'i'))"
)
_FUNCTION_OIDS = f"""
select p.oid::bigint from pg_proc p join pg_namespace n on n.oid = p.pronamespace
where p.prokind <> 'a' and {_OWN_FUNCTION} order by 1
"""


def _functions(server: int) -> str:
    return f"""
    select {_SIGNATURE}, {
        facts(
            kind="case p.prokind when 'p' then 'procedure' when 'w' then 'window' end",
            arguments="pg_get_function_arguments(p.oid)",
            result="pg_get_function_result(p.oid)",
            language="l.lanname",
            body="coalesce(pg_get_function_sqlbody(p.oid), p.prosrc)" if server >= 14 else "p.prosrc",
            library="p.probin",
            volatility="case p.provolatile when 'i' then 'immutable' when 's' then 'stable' end",
            strict=flag("p.proisstrict"),
            security_definer=flag("p.prosecdef"),
            leakproof=flag("p.proleakproof"),
            parallel="case p.proparallel when 's' then 'safe' when 'r' then 'restricted' end",
            cost="p.procost",
            rows="nullif(p.prorows, 0)",
            support=procedure("p.prosupport::oid"),
            settings=items("p.proconfig"),
            transforms="(select jsonb_agg(format_type(t, null)) from unnest(p.protrftypes) t)",
            owner=role("p.proowner"),
            grants=grants("f", "p.proacl", "p.proowner"),
            comment=comment("pg_proc", "p.oid"),
        )
    }
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_language l on l.oid = p.prolang
    where p.oid = any(%s::oid[])
    """


_AGGREGATES = f"""
select {_SIGNATURE}, {
    facts(
        arguments="pg_get_function_arguments(p.oid)",
        kind="a.aggkind",
        direct_arguments="a.aggnumdirectargs",
        functions="jsonb_build_array("
        + ", ".join(
            f"a.agg{name}::oid::regprocedure::text"
            for name in [
                "transfn",
                "finalfn",
                "combinefn",
                "serialfn",
                "deserialfn",
                "mtransfn",
                "minvtransfn",
                "mfinalfn",
            ]
        )
        + ")",
        state="format_type(a.aggtranstype, null)",
        moving_state="case when a.aggmtranstype <> 0 then format_type(a.aggmtranstype, null) end",
        sizes="jsonb_build_array(a.aggtransspace, a.aggmtransspace)",
        initial="a.agginitval",
        moving_initial="a.aggminitval",
        extra_arguments="jsonb_build_array(a.aggfinalextra, a.aggmfinalextra)",
        modify="jsonb_build_array(a.aggfinalmodify, a.aggmfinalmodify)",
        sort_operator="case when a.aggsortop <> 0 then a.aggsortop::regoperator::text end",
        parallel="case p.proparallel when 's' then 'safe' when 'r' then 'restricted' end",
        owner=role("p.proowner"),
        grants=grants("f", "p.proacl", "p.proowner"),
        comment=comment("pg_proc", "p.oid"),
    )
}
from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_aggregate a on a.aggfnoid = p.oid
where {_OWN_FUNCTION}
"""


_CONVERSIONS = f"""
select {quoted("n.nspname", "c.conname")}, {
    facts(
        source="pg_encoding_to_char(c.conforencoding)",
        target="pg_encoding_to_char(c.contoencoding)",
        function=procedure("c.conproc::oid"),
        default=flag("c.condefault"),
        owner=role("c.conowner"),
        comment=comment("pg_conversion", "c.oid"),
    )
}
from pg_conversion c join pg_namespace n on n.oid = c.connamespace
where {USER_SCHEMA} and {own("pg_conversion", "c.oid")}
"""


def _collations(server: int) -> str:
    """Without the version of the library: the copy's indexes were built with the library that is there."""
    if server >= 15:
        collate, ctype, locale = "c.collcollate", "c.collctype", "c.colllocale" if server >= 17 else "c.colliculocale"
    else:  # ICU's locale stood where the C library's stands
        collate, ctype = (f"case when c.collprovider <> 'i' then c.coll{part} end" for part in ("collate", "ctype"))
        locale = "case when c.collprovider = 'i' then c.collcollate end"
    return f"""
    select {quoted("n.nspname", "c.collname")}, {
        facts(
            provider="c.collprovider",
            collate=collate,
            ctype=ctype,
            locale=locale,
            rules=since(16, server, "c.collicurules"),
            nondeterministic=flag("not c.collisdeterministic"),
            owner=role("c.collowner"),
            comment=comment("pg_collation", "c.oid"),
        )
    }
    from pg_collation c join pg_namespace n on n.oid = c.collnamespace
    where {USER_SCHEMA} and {own("pg_collation", "c.oid")}
    """


# Token types by number: to ask for their names would be to call the parser, and that may be anybody's function.
_CONFIGURATIONS = f"""
select {quoted("n.nspname", "c.cfgname")}, {
    facts(
        parser=quoted("pn.nspname", "p.prsname"),
        mappings=f'''(select jsonb_object_agg(token, dictionaries) from (
            select m.maptokentype as token, jsonb_agg({quoted("dn.nspname", "d.dictname")} order by m.mapseqno)
                as dictionaries
            from pg_ts_config_map m join pg_ts_dict d on d.oid = m.mapdict
            join pg_namespace dn on dn.oid = d.dictnamespace where m.mapcfg = c.oid group by 1) mapped)''',
        owner=role("c.cfgowner"),
        comment=comment("pg_ts_config", "c.oid"),
    )
}
from pg_ts_config c join pg_namespace n on n.oid = c.cfgnamespace
join pg_ts_parser p on p.oid = c.cfgparser join pg_namespace pn on pn.oid = p.prsnamespace
where {USER_SCHEMA} and {own("pg_ts_config", "c.oid")}
"""

_DICTIONARIES = f"""
select {quoted("n.nspname", "d.dictname")}, {
    facts(
        template=quoted("tn.nspname", "t.tmplname"),
        options="d.dictinitoption",
        owner=role("d.dictowner"),
        comment=comment("pg_ts_dict", "d.oid"),
    )
}
from pg_ts_dict d join pg_namespace n on n.oid = d.dictnamespace
join pg_ts_template t on t.oid = d.dicttemplate join pg_namespace tn on tn.oid = t.tmplnamespace
where {USER_SCHEMA} and {own("pg_ts_dict", "d.oid")}
"""

_PARSERS = f"""
select {quoted("n.nspname", "p.prsname")}, {
    facts(
        functions="jsonb_build_array("
        + ", ".join(
            f"p.prs{name}::oid::regprocedure::text" for name in ["start", "token", "end", "headline", "lextype"]
        )
        + ")",
        comment=comment("pg_ts_parser", "p.oid"),
    )
}
from pg_ts_parser p join pg_namespace n on n.oid = p.prsnamespace
where {USER_SCHEMA} and {own("pg_ts_parser", "p.oid")}
"""

_TEMPLATES = f"""
select {quoted("n.nspname", "t.tmplname")}, {
    facts(
        init=procedure("t.tmplinit::oid"),
        lexize=procedure("t.tmpllexize::oid"),
        comment=comment("pg_ts_template", "t.oid"),
    )
}
from pg_ts_template t join pg_namespace n on n.oid = t.tmplnamespace
where {USER_SCHEMA} and {own("pg_ts_template", "t.oid")}
"""

_LANGUAGES = f"""
select quote_ident(l.lanname), {
    facts(
        trusted=flag("l.lanpltrusted"),
        handler=procedure("l.lanplcallfoid"),
        inline=procedure("l.laninline"),
        validator=procedure("l.lanvalidator"),
        owner=role("l.lanowner"),
        grants=grants("l", "l.lanacl", "l.lanowner"),
        comment=comment("pg_language", "l.oid"),
    )
}
from pg_language l where l.oid >= {FIRST_USER_OID} and {own("pg_language", "l.oid")}
"""

_METHODS = f"""
select quote_ident(m.amname), {
    facts(type="m.amtype", handler=procedure("m.amhandler::oid"), comment=comment("pg_am", "m.oid"))
}
from pg_am m where m.oid >= {FIRST_USER_OID} and {own("pg_am", "m.oid")}
"""
