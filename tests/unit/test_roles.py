"""What pg_dumpall writes of roles is read as it was meant; what to create is decided without harm to what exists."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from backupd.errors import PostgresError
from backupd.postgres.role_plan import Plan, Present, PresentRole, decide
from backupd.postgres.role_scanner import scan
from backupd.postgres.role_script import ATTRIBUTES, Globals, Membership, ParameterGrant, Role, RoleSetting
from backupd.postgres.roles import decode, parse

HASH = "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy"

# ---- pg_dumpall's own quoting (fmtId with --quote-all-identifiers, appendStringLiteralConn)


def name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def string(text: str) -> str:
    doubled = text.replace("'", "''")
    return f"E'{doubled}'".replace("\\", "\\\\") if "\\" in text else f"'{doubled}'"


def written(roles: Globals) -> str:
    """These roles as pg_dumpall 18 writes them."""
    lines = ["--\n-- PostgreSQL database cluster dump\n--\n", "\\restrict 4o7iNI6y", "", "--\n-- Roles\n--\n"]
    lines[2:2] = ["SET default_transaction_read_only = off;", "SET client_encoding = 'UTF8';"]
    for role in roles.roles:
        given_ = [f" {'' if word in role.attributes else 'NO'}{word}" for word in ATTRIBUTES]
        limit = f" CONNECTION LIMIT {role.connection_limit}" if role.connection_limit != -1 else ""
        secret = f" PASSWORD {string(role.password.get_secret_value())}" if role.password is not None else ""
        until = f" VALID UNTIL '{role.valid_until}'" if role.valid_until is not None else ""
        lines += [f"CREATE ROLE {name(role.name)};"]
        lines += [f"ALTER ROLE {name(role.name)} WITH{''.join(given_)}{limit}{secret}{until};"]
        lines += [f"COMMENT ON ROLE {name(role.name)} IS {string(role.comment)};"] if role.comment is not None else []
        lines += [f"SECURITY LABEL FOR {name(p)} ON ROLE {name(role.name)} IS {string(x)};" for p, x in role.labels]
    for role in roles.roles:
        sanitized = re.sub("[\r\n]", " ", role.name)
        lines += [f'--\n-- User Config "{sanitized}"\n--\n']
        for setting in role.settings:
            values = ", ".join(map(string, setting.values))
            lines += [f"ALTER ROLE {name(role.name)} SET {name(setting.name)} TO {values};"]
    for grant in roles.memberships:
        options = ["ADMIN OPTION"] if grant.admin else []
        options += [f"INHERIT {str(grant.inherit).upper()}"] if grant.inherit is not None else []
        options += [] if grant.set_role else ["SET FALSE"]
        with_ = f" WITH {', '.join(options)}" if options else ""
        by = f" GRANTED BY {name(grant.grantor)}" if grant.grantor is not None else ""
        lines += [f"GRANT {name(grant.role)} TO {name(grant.member)}{with_}{by};"]
    for privilege in roles.parameters:
        whom = "PUBLIC" if privilege.role is None else name(privilege.role)
        option = " WITH GRANT OPTION" if privilege.grantable else ""
        lines += [f"GRANT {privilege.privilege} ON PARAMETER {name(privilege.parameter)} TO {whom}{option};"]
    return "\n".join([*lines, "\n\\unrestrict 4o7iNI6y\n", "--\n-- PostgreSQL database cluster dump complete\n--\n"])


# ---- the law: what is written comes back

difficult = st.sampled_from(
    ['"', "'", ";", "\n", "\r\n", "--", "\\", "\\'", "E'", "''", '""', "/*", "$$", "\\connect x"]
)
texts = st.lists(difficult | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))).map("".join)
names = texts.filter(bool)
settings = st.builds(RoleSetting, names, st.lists(texts, max_size=3).map(tuple))
single = st.builds(
    Role,
    names,
    st.frozensets(st.sampled_from(ATTRIBUTES)),
    st.integers(-1, 2**31 - 1),
    st.none() | texts.map(SecretStr),
    st.none() | st.sampled_from(["infinity", "2031-02-03 04:05:06+00"]),
    st.none() | texts,
    st.lists(st.tuples(names, texts), max_size=2).map(tuple),
    st.lists(settings, max_size=3).map(tuple),
)
memberships = st.builds(
    Membership, names, names, st.booleans(), st.none() | st.booleans(), st.booleans(), st.none() | names
)
privileges = st.builds(
    ParameterGrant, names, st.none() | names, st.sampled_from(["SET", "ALTER SYSTEM", "ALL"]), st.booleans()
)
everything = st.builds(
    Globals,
    st.lists(single, unique_by=lambda role: role.name, max_size=4).map(tuple),
    st.lists(memberships, max_size=4).map(tuple),
    st.lists(privileges, max_size=3).map(tuple),
)


@given(everything)
def test_what_pg_dumpall_writes_comes_back(source: Globals) -> None:
    assert parse(written(source)) == source


@given(texts)
def test_a_text_in_one_statement_ends_none(text: str) -> None:
    statements = list(scan(f"a {string(text)};\nb {name(text or 'x')};\n"))
    assert [[token.value for token in statement.tokens] for statement in statements] == [
        ["a", text],
        ["b", text or "x"],
    ]
    assert [statement.line for statement in statements] == [1, 2 + text.count("\n")]


# ---- the scanner and the parser

SCRIPT = """--
-- PostgreSQL database cluster dump
--

\\restrict a'b"c

SET default_transaction_read_only = off;

SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;

CREATE ROLE "app";
ALTER ROLE "app" WITH NOSUPERUSER INHERIT NOCREATEROLE CREATEDB LOGIN NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 5 \
PASSWORD 'md5c0ffee' VALID UNTIL '2031-01-01 00:00:00+00';
COMMENT ON ROLE "app" IS 'it''s
; -- "the" app';
SECURITY LABEL FOR "dummy" ON ROLE "app" IS 'secret';
CREATE ROLE "s;t";
ALTER ROLE "s;t" WITH NOSUPERUSER NOINHERIT NOCREATEROLE NOCREATEDB NOLOGIN NOREPLICATION NOBYPASSRLS;

--
-- User Config "app"
--

ALTER ROLE "app" SET "search_path" TO '$user', 'a"b', '';
ALTER ROLE "app" SET "my.path" TO E'C:\\\\it''s';
ALTER ROLE "app" SET "temp_tablespaces" TO ;
ALTER ROLE "app" IN DATABASE "shop" SET "work_mem" TO '4MB';

GRANT "s;t" TO "app" WITH ADMIN OPTION, INHERIT FALSE, SET FALSE GRANTED BY "postgres";
GRANT "pg_monitor" TO "app";

GRANT SET, ALTER SYSTEM ON PARAMETER "work_mem" TO "app" WITH GRANT OPTION;
GRANT ALL ON PARAMETER "my.path" TO PUBLIC;
REVOKE ALL ON PARAMETER "work_mem" FROM "postgres";
SET SESSION AUTHORIZATION "app";
RESET SESSION AUTHORIZATION;

\\unrestrict a'b"c

--
-- PostgreSQL database cluster dump complete
--
"""


def test_a_dump_as_it_comes() -> None:
    app = Role(
        "app",
        frozenset({"INHERIT", "CREATEDB", "LOGIN"}),
        5,
        SecretStr("md5c0ffee"),
        "2031-01-01 00:00:00+00",
        'it\'s\n; -- "the" app',
        (("dummy", "secret"),),
        (
            RoleSetting("search_path", ("$user", 'a"b', "")),
            RoleSetting("my.path", ("C:\\it's",)),
            RoleSetting("temp_tablespaces", ()),
        ),
    )
    assert parse(SCRIPT) == Globals(
        (app, Role("s;t", frozenset())),
        (Membership("s;t", "app", True, False, False, "postgres"), Membership("pg_monitor", "app")),
        (
            ParameterGrant("work_mem", "app", "SET", True),
            ParameterGrant("work_mem", "app", "ALTER SYSTEM", True),
            ParameterGrant("my.path", None, "ALL"),
        ),
    )


NOT_UNDERSTOOD = {
    "another statement": "DROP ROLE \"app\" 's3cret';",
    "a string without end": 'COMMENT ON ROLE "app" IS \'s3cret;',
    "a name without end": 'COMMENT ON ROLE "app s3cret;',
    "an escape": "COMMENT ON ROLE \"app\" IS E's3cret\\n';",
    "a lone backslash": "COMMENT ON ROLE \"app\" IS 's3cret' \\;",
    "dollar quotes": 'COMMENT ON ROLE "app" IS $$s3cret$$;',
    "a block comment": "/* s3cret */",
    "a string with a prefix": "COMMENT ON ROLE \"app\" IS U&'s3cret';",
    "two strings": "COMMENT ON ROLE \"app\" IS 's3cret' 's3cret';",
    "an unknown role": "ALTER ROLE \"other\" WITH LOGIN PASSWORD 's3cret';",
    "an unknown attribute": "ALTER ROLE \"app\" WITH S3CRET PASSWORD 's3cret';",
    "an unknown option": 'GRANT "app" TO "app" WITH S3CRET TRUE;',
    "an expression": "ALTER ROLE \"app\" SET \"work_mem\" TO 's3cret' || 's3cret';",
    "a role made twice": 'CREATE ROLE "app";',
    "no end": 'CREATE ROLE "s3cret"',
    "two grants in one": 'GRANT "app" TO "s3cret", "app";',
    "bytes of another encoding": "COMMENT ON ROLE \"app\" IS 's3cret\udce4';",
}


@pytest.mark.parametrize("statement", NOT_UNDERSTOOD.values(), ids=NOT_UNDERSTOOD)
def test_what_is_not_understood_is_named_by_its_line_and_never_quoted(statement: str) -> None:
    with pytest.raises(PostgresError) as caught:
        parse('\n-- roles\nCREATE ROLE "app";\n' + statement)
    assert caught.value.message == "line 4 of the backup's roles is not understood"
    assert "s3cret" not in str(caught.value).lower()
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("end", ["\nmore", '"\nCREATE ROLE "injected";\nALTER ROLE "app" WITH SUPERUSER;\n--'])
def test_a_name_in_a_comment_is_no_statement(end: str) -> None:
    """Before August 2025 pg_dumpall wrote the names of roles into its comments as they are."""
    evil = Role("evil" + end, settings=(RoleSetting("work_mem", ("4MB",)),))
    source = Globals((Role("app"), evil, Role("x", settings=evil.settings)))
    text = written(source).replace(re.sub("[\r\n]", " ", evil.name), evil.name)
    assert f'-- User Config "{evil.name}"' in text
    assert parse(text) == source


def test_the_text_says_its_encoding() -> None:
    text = "SET client_encoding = '{}';\nCREATE ROLE \"größe\";\n"
    for name_, codec in {"UTF8": "utf8", "LATIN1": "latin1", "WIN1252": "cp1252", "SQL_ASCII": "utf8"}.items():
        assert parse(decode(text.format(name_).encode(codec))).roles == (Role("größe"),)
    with pytest.raises(PostgresError, match="MULE_INTERNAL"):
        decode(text.format("MULE_INTERNAL").encode())
    with pytest.raises(PostgresError) as caught:
        decode(text.format("UTF8").encode("latin1"))
    assert "gr" not in str(caught.value)


# ---- what to create

ME = "me"


def present(*, major: int = 17, attributes: set[str] | None = None, **changes: object) -> Present:
    """A server with two superusers (postgres made it), where `me` asks."""
    mine = frozenset(attributes if attributes is not None else {"SUPERUSER"})
    here = Present(
        major=major,
        user=ME,
        bootstrap="postgres",
        roles={
            ME: there(mine),
            "postgres": there({"SUPERUSER"}, grantable="SUPERUSER" in mine),
            "pg_monitor": there({"INHERIT"}),
        },
        memberships=(),
        times={},
        passwords=True,
        unknown=frozenset(),
    )
    return replace(here, **changes)  # type: ignore[arg-type]


def there(attributes: set[str] | frozenset[str], *, grantable: bool = True, **changes: object) -> PresentRole:
    role = PresentRole(frozenset(attributes), -1, None, None, {}, None, grantable)
    return replace(role, **changes)  # type: ignore[arg-type]


def with_roles(here: Present, *memberships: Membership, **more: PresentRole) -> Present:
    return replace(here, roles={**here.roles, **more}, memberships=(*here.memberships, *memberships))


def roles(*found: str, **attributes: str) -> tuple[Role, ...]:
    return tuple(Role(each) for each in found) + tuple(
        Role(each, frozenset(words.split())) for each, words in attributes.items()
    )


def test_only_what_is_asked_for_and_what_it_is_a_member_of() -> None:
    chain = (Membership("c", "b"), Membership("b", "a"), Membership("a", "x"), Membership("d", "x"))
    source = Globals(roles("a", "b", "c", "d", "x"), chain)
    plan = decide(source, present(), ["a", "unknown"])
    assert plan.create == ("a", "b", "c")
    assert plan.memberships == ("b is a member of c", "a is a member of b")
    assert decide(source, present()).create == ("a", "b", "c", "d", "x")
    assert decide(source, present(), []) == Plan((), (), (), ())


def test_existing_roles_are_compared_and_never_touched() -> None:
    source = Globals(
        (
            Role(
                "app",
                frozenset({"CREATEDB"}),
                3,
                SecretStr(HASH),
                "2031-01-01 00:00:00+00",
                "new",
                settings=(
                    RoleSetting("work_mem", ("1MB",)),
                    RoleSetting("search_path", ("$user", "a b")),
                    RoleSetting("my.secret", ("s3cret",)),
                ),
            ),
            Role("staff"),
            Role("boss"),
        ),
        (Membership("staff", "app"), Membership("boss", "app", admin=True, inherit=True)),
    )
    here = with_roles(
        present(),
        Membership("boss", "app", inherit=False),
        app=there(
            {"INHERIT", "LOGIN"},
            settings={"search_path": '"$user", "a b"', "my.secret": "0th3r", "lock_timeout": "1"},
            password=SecretStr(HASH.replace("c2FsdA", "cGVwcGVy")),
        ),
        staff=there({"INHERIT"}),
        boss=there({"INHERIT"}),
    )
    plan = decide(source, here)
    assert (plan.create, plan.memberships, plan.roles, plan.grants) == ((), (), (), ())
    assert plan.differences == (
        "role app: inherits what its groups may do here, did not on the source",
        "role app: cannot create databases here, could on the source",
        "role app: can log in here, could not on the source",
        "role app: has the connection limit -1 here, 3 on the source",
        "role app: is valid until infinity here, 2031-01-01 00:00:00+00 on the source",
        "role app: its password was set otherwise here",
        "role app: its comment differs",
        "role app: its setting work_mem is missing here",
        "role app: its setting my.secret is another here",
        "role app: has a setting lock_timeout here, had none on the source",
        "role app: is not a member of staff here, was on the source",
        "role app: a member of boss, may not grant it here, could on the source",
        "role app: its membership in boss has other INHERIT or SET options",
    )
    assert "s3cret" not in repr((source, here, plan))
    assert HASH not in repr((source, here, plan))


def test_new_roles_join_old_ones_and_are_joined_by_them() -> None:
    source = Globals(
        roles("new", "group", "app"),
        (
            Membership("app", "new"),
            Membership("group", "app"),
            Membership("pg_monitor", "new"),
            Membership("pg_maintain", "new"),
        ),
    )
    plan = decide(source, with_roles(present(major=16), app=there({"LOGIN"})))
    assert plan.memberships == (
        "new is a member of app",
        "app is a member of group",
        "new is a member of pg_monitor",
    )
    assert plan.warnings == ("new will not be a member of pg_maintain, which is not there",)


@pytest.mark.parametrize(
    "here, more",
    [
        ({"staff": there({"LOGIN", "SUPERUSER"})}, "SUPERUSER"),
        ({"staff": there({"LOGIN"}), "dba": there({"BYPASSRLS"})}, "BYPASSRLS"),
        ({"staff": there({"LOGIN"}), "dba": there({"LOGIN"})}, "pg_monitor"),
    ],
)
def test_a_new_role_joins_no_old_one_that_has_more_power_here(here: dict[str, PresentRole], more: str) -> None:
    """Two servers can have a role of one name that means something else on each."""
    source = Globals(roles("intern", "staff"), (Membership("staff", "intern"),))
    memberships = [Membership("dba", "staff")] if "dba" in here else []
    memberships += [Membership("pg_monitor", "dba")] if more == "pg_monitor" else []
    plan = decide(source, with_roles(present(), *memberships, **here))
    assert plan.create == ("intern",)
    assert plan.memberships == ()
    expected = f"role intern: is not made a member of staff, which here brings {more} and did not on the source"
    assert expected in plan.differences
    harmless = with_roles(present(), Membership("pg_stat", "pg_monitor"), pg_stat=there({"INHERIT"}))
    asked = Globals(roles("intern"), (Membership("pg_monitor", "intern"),))
    assert decide(asked, harmless).memberships == ("intern is a member of pg_monitor",)


@pytest.mark.parametrize(
    "gain, source",
    [
        ("SUPERUSER", Globals(roles("app", dba="SUPERUSER"), (Membership("dba", "app"),))),
        ("owner", Globals(roles("app", "dba", "owner"), (Membership("owner", "dba"), Membership("dba", "app")))),
        (
            "pg_monitor",
            Globals(
                roles("app", "dba", "between"),
                (Membership("pg_monitor", "between"), Membership("between", "dba"), Membership("dba", "app")),
            ),
        ),
        (
            "work_mem",
            Globals(roles("app", "dba"), (Membership("dba", "app"),), (ParameterGrant("work_mem", "dba", "SET"),)),
        ),
    ],
)
def test_no_new_role_brings_an_old_one_power(gain: str, source: Globals) -> None:
    here = with_roles(present(), app=there({"LOGIN"}), owner=there({"INHERIT"}))
    plan = decide(source, here)
    assert "app is a member of dba" not in plan.memberships
    (line,) = plan.differences[-1:]
    assert line == (
        f"role app: is not a member of dba here, was on the source; left so, since that would bring it {gain}"
    )
    # Whoever has it anyway may join.
    joined = with_roles(here, Membership("owner", "app"), Membership("pg_monitor", "app"), app=there({"SUPERUSER"}))
    assert "app is a member of dba" in decide(source, joined).memberships


@pytest.mark.parametrize(
    "major, attributes, refused",
    [
        (15, "CREATEROLE", "SUPERUSER, REPLICATION, BYPASSRLS"),
        (15, "CREATEROLE REPLICATION BYPASSRLS", "SUPERUSER, REPLICATION, BYPASSRLS"),
        (17, "CREATEROLE", "SUPERUSER, CREATEDB, REPLICATION, BYPASSRLS"),
        (17, "CREATEROLE REPLICATION CREATEDB", "SUPERUSER, BYPASSRLS"),
    ],
)
def test_attributes_that_the_user_may_not_give(major: int, attributes: str, refused: str) -> None:
    source = Globals((Role("all", frozenset(ATTRIBUTES), password=SecretStr(HASH)),))
    plan = decide(source, present(major=major, attributes=set(attributes.split())))
    assert plan.warnings == (f"role all is created without {refused}, which me may not give",)
    assert plan.roles[0].attributes == frozenset(ATTRIBUTES).difference(refused.split(", "))


def test_grants_that_the_user_may_not_make() -> None:
    source = Globals(
        roles("a", "b", "postgres", "mine", "other"),
        (
            Membership("postgres", "a"),
            Membership("mine", "a", admin=True, inherit=True, grantor="boss"),
            Membership("other", "a"),
            Membership("other", "b"),
            Membership("b", ME, admin=True, inherit=True, grantor="boss"),
            Membership("b", "boss", admin=True),
        ),
        (ParameterGrant("work_mem", "a", "SET"),),
    )
    here = with_roles(
        present(attributes={"CREATEROLE"}), mine=there({"INHERIT"}), other=there({"INHERIT"}, grantable=False)
    )
    plan = decide(source, here)
    assert plan.grants == (Membership("mine", "a", True, True), Membership("b", ME, False, True))
    assert plan.warnings == (
        "a will not be a member of postgres, which me may not grant",
        "a will not be a member of other, which me may not grant",
        "b will not be a member of other, which me may not grant",
        "memberships will be granted by me, whoever did so on the source",
        "role a is created without SET on the parameter work_mem: only a superuser may give it",
    )


def test_options_of_memberships_on_servers_that_have_none() -> None:
    source = Globals(
        (Role("group"), *roles("plain", "odd", "bound"), Role("alone", frozenset())),
        (
            Membership("group", "plain", inherit=True, grantor="postgres"),
            Membership("group", "odd", inherit=False),
            Membership("group", "bound", inherit=True, set_role=False),
            Membership("group", "alone", inherit=False),
        ),
    )
    plan = decide(source, present(major=15))
    assert {(grant.inherit, grant.set_role, grant.grantor) for grant in plan.grants} == {(None, True, None)}
    assert plan.warnings == tuple(
        f"the membership of {member} in group loses its INHERIT and SET options, which PostgreSQL 15 does not have"
        for member in ("odd", "bound")
    )


def test_grantors_are_kept_where_they_may_grant() -> None:
    source = Globals(
        roles("group", "boss", "a", "b"),
        (
            Membership("group", "boss", admin=True, inherit=True, grantor="root"),
            Membership("group", "a", inherit=False, grantor="boss"),
            Membership("group", "b", inherit=True, set_role=False, grantor="root"),
            Membership("group", "b", inherit=False, grantor="elsewhere"),
            Membership("group", "elsewhere", admin=True, grantor="root"),
        ),
    )
    plan = decide(source, present())
    assert [(grant.member, grant.inherit, grant.set_role, grant.grantor) for grant in plan.grants] == [
        ("boss", True, True, None),  # root made the source's cluster, as postgres made this one
        ("a", False, True, "boss"),
        ("b", True, True, None),  # two become one, that may what both may
    ]
    assert plan.warnings == ("the membership of b in group will not be granted by elsewhere, who may not do so here",)


def test_other_warnings() -> None:
    source = Globals(
        (
            Role("a", frozenset({"LOGIN"}), settings=(RoleSetting("gone", ("1",)), RoleSetting("kept", ("1",)))),
            Role("b", frozenset({"LOGIN"}), password=SecretStr(HASH), valid_until="01/02/2031 00:00:00 UTC"),
        )
    )
    plan = decide(source, present(unknown=frozenset({"gone"})))
    assert plan.warnings == (
        "role a is created without its setting gone, which the target does not know",
        "role b: its expiry was written in the source's own style of dates; see that it is right",
        "the backup has no password of a, who may log in",
    )
    assert plan.roles[0].settings == (RoleSetting("kept", ("1",)),)
