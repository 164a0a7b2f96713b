"""A backup's roles come back on other servers as they were, and nothing that is there changes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, cast

import psycopg
import pytest
from psycopg import sql

from backupd.errors import PostgresError
from backupd.postgres import roles, session
from backupd.postgres.role_script import Globals
from backupd.postgres.server import FAST, ThrowawayServer
from backupd.postgres.session import Dsn
from backupd.postgres.tools import choose_client, choose_server, find_installations
from tests.postgres import NewDatabase, run

MARK = f" {os.getpid()} of test_roles"  # ends every name here
PASSWORD = "s3cret 'word'"


def named(name: str) -> str:
    return name + MARK


APP, READER, STAFF, BOSS, OWNER = map(named, ("App", "läser", 'st"aff', "bo;ss", "the\nowner' --"))
BACKSLASH, PLAIN, ADMIN = map(named, ("\\back\\'slash", "plain", "admin"))
ALL = (APP, READER, STAFF, BOSS, OWNER, BACKSLASH, PLAIN)


@pytest.fixture(scope="module")
def another15(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayServer]:
    """A second server of 15, with another superuser."""
    installation = choose_server(find_installations(), 15)
    folder = tmp_path_factory.mktemp("another15") / "server"
    with ThrowawayServer(installation, folder, port=0, settings=FAST, superuser="root") as server:
        yield server


@pytest.fixture
def cleaned(pg15: ThrowawayServer, pg17: ThrowawayServer, pg18: ThrowawayServer) -> Iterator[None]:
    """Drops what the test made on the shared servers."""
    yield
    for server in (pg15, pg17, pg18):
        clean(server)


def clean(server: ThrowawayServer) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        found = [
            row[0] for row in connection.execute("select rolname from pg_roles where rolname like %s", [f"%{MARK}"])
        ]
        if server.version[0] >= 15 and found:
            for parameter, role in connection.execute(
                "select parname, grantee::regrole::text from pg_parameter_acl, aclexplode(paracl)"
                " join pg_roles on oid = grantee where rolname like %s",
                [f"%{MARK}"],
            ).fetchall():
                connection.execute(f'revoke all on parameter "{parameter}" from {role}'.encode())
        if found:
            connection.execute(sql.SQL("drop role {}").format(sql.SQL(", ").join(map(sql.Identifier, found))))


def execute(server: ThrowawayServer, *statements: str, user: dict[str, str] | None = None) -> None:
    """Run SQL with {APP} and the like for the quoted names of roles."""
    known = {key: sql.Identifier(value) for key, value in list(globals().items()) if value in (*ALL, ADMIN)}
    with psycopg.connect(server.dsn(), autocommit=True, **cast(Any, user or {})) as connection:
        for statement in statements:
            connection.execute(sql.SQL(cast(Any, statement)).format(**known))


def make_roles(server: ThrowawayServer) -> None:
    execute(
        server,
        "set password_encryption = 'scram-sha-256'",
        "create role {APP} login createdb connection limit 7 password '" + PASSWORD.replace("'", "''") + "'",
        "create role {READER} login noinherit valid until '2031-02-03 04:05:06.789+02'",
        "create role {STAFF} createrole valid until 'infinity'",
        "create role {BOSS} superuser replication bypassrls login",
        "create role {OWNER}",
        "create role {BACKSLASH} login",
        "create role {PLAIN}",
        "comment on role {OWNER} is 'the owner''s\n;-- \"words\" E''\\x'''",
        "comment on role {PLAIN} is ''",
        "alter role {APP} set search_path to \"$user\", 'sch''e\"ma', public",
        "alter role {APP} set work_mem to '7MB'",
        "alter role {APP} set \"my.thing\" to 'C:\\it''s\n;a, \"b\"'",
        "alter role {APP} set datestyle to 'ISO, DMY'",
        "alter role {READER} set search_path to ''",
        "alter role {READER} set role to {STAFF}",
        "alter role {READER} set default_transaction_read_only to on",
        "grant {STAFF} to {APP}",
        "grant {STAFF} to {BOSS} with admin option",
        "grant {OWNER} to {STAFF}",
        "grant {STAFF} to {READER}",
        "grant pg_read_all_data, pg_monitor to {READER}",
        "grant set on parameter log_statement to {APP}",
        "grant set, alter system on parameter work_mem to {STAFF} with grant option",
    )
    if server.version[0] >= 16:
        execute(
            server,
            "grant {OWNER} to {APP} with inherit false, set true",
            "grant {OWNER} to {BACKSLASH} with inherit true, set false",
            "grant {STAFF} to {PLAIN} with inherit false granted by {BOSS}",
            "grant {STAFF} to {READER} with admin option, inherit true granted by {BOSS}",
        )
    if server.version[0] < 18:
        execute(server, "set password_encryption = 'md5'", "alter role {BACKSLASH} password 'another'")


def dumped(server: ThrowawayServer, major: int | None = None, *options: str) -> Globals:
    client = choose_client(find_installations(), major or server.version[0])
    arguments = ["--roles-only", "--quote-all-identifiers", f"--dbname={server.dsn()}", *options]
    return roles.parse(roles.decode(run(client, "pg_dumpall", *arguments)))


def plan(source: Globals, server: ThrowawayServer, only: Sequence[str] = ALL, **user: str) -> roles.Plan:
    with closing(session.connect(Dsn(server.dsn()).replace(**user))) as connection:
        return roles.plan(source, connection, only=only)


def snapshot(server: ThrowawayServer, *, options: bool = True) -> dict[str, list[Any]]:
    """All that a server knows of this test's roles; `options`: with what memberships have since 16."""
    ours = f"%{MARK}"
    since16 = "inherit_option, set_option, " if options and server.version[0] >= 16 else ""
    queries = {
        "roles": "select rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication,"
        " rolbypassrls, rolconnlimit, rolpassword, rolvaliduntil::text from pg_authid r where rolname like %s",
        "members": f"select r.rolname, u.rolname, admin_option, {since16}"
        " case when g.oid = 10 then '' else g.rolname end from pg_auth_members m join pg_roles r on r.oid = roleid"
        " join pg_roles u on u.oid = member join pg_roles g on g.oid = grantor where u.rolname like %s",
        "settings": "select rolname, setconfig from pg_db_role_setting join pg_roles r on r.oid = setrole"
        " where setdatabase = 0 and rolname like %s",
        "comments": "select rolname, shobj_description(oid, 'pg_authid') from pg_roles where rolname like %s",
        "parameters": "select parname, rolname, privilege_type, is_grantable from pg_parameter_acl,"
        " aclexplode(paracl) join pg_roles on oid = grantee where rolname like %s",
    }
    with psycopg.connect(server.dsn()) as connection:
        return {what: sorted(connection.execute(query.encode(), [ours]), key=repr) for what, query in queries.items()}


def names(server: ThrowawayServer) -> set[str]:
    return {row[0] for row in snapshot(server)["roles"]}


# ---- from server to server


@pytest.mark.parametrize(
    "origin, client, destination",
    [("pg15", 15, "another15"), ("pg15", 15, "pg17"), ("pg15", 18, "pg17"), ("pg17", 17, "pg18"), ("pg17", 18, "pg18")],
)
def test_roles_come_back(origin: str, client: int, destination: str, request: pytest.FixtureRequest) -> None:
    source, target = request.getfixturevalue(origin), request.getfixturevalue(destination)
    try:
        make_roles(source)
        planned = plan(dumped(source, client), target)
        assert set(planned.create) == set(ALL)
        assert planned.warnings == (
            f"the backup has no password of {', '.join(sorted((BOSS, READER)))}, who may log in",
        )
        assert planned.differences == ()
        assert roles.create(planned, Dsn(target.dsn())) == []
        options = source.version[0] >= 16
        expected = snapshot(source, options=options)
        assert {what: len(rows) for what, rows in expected.items()} == {
            "roles": 7,
            "members": 10 if options else 6,
            "settings": 2,
            "comments": 7,
            "parameters": 3,
        }
        assert snapshot(target, options=options) == expected
        if not options:  # what was meant before there were options
            inherits = {row[0]: row[2] for row in snapshot(target)["roles"]}
            if target.version[0] >= 16:
                found = snapshot(target)["members"]
                assert {row[3:5] for row in found if not inherits[row[1]]} == {(False, True)}
                assert {row[3:5] for row in found if inherits[row[1]]} == {(True, True)}
        with psycopg.connect(target.dsn(), user=APP, password=PASSWORD) as login:
            assert login.execute("show work_mem").fetchone() == ("7MB",)
        again = plan(dumped(source, client), target)
        assert (again.create, again.differences, again.warnings) == ((), (), ())
        assert roles.drop(planned, Dsn(target.dsn())) == []
        assert names(target) == set()
    finally:
        clean(source)
        clean(target)


@pytest.mark.usefixtures("cleaned")
def test_an_older_server_gets_what_it_knows(pg15: ThrowawayServer, pg18: ThrowawayServer) -> None:
    make_roles(pg18)
    execute(
        pg18,
        "grant pg_maintain to {APP}",
        "alter role {APP} set transaction_timeout to '1min'",
        "grant {PLAIN} to {APP} with inherit true granted by current_user",
    )
    planned = plan(dumped(pg18), pg15)
    lost = [(APP, OWNER), (BACKSLASH, OWNER), (READER, STAFF), (PLAIN, STAFF)]
    assert sorted(planned.warnings) == sorted(
        [
            f"{APP} will not be a member of pg_maintain, which is not there",
            f"role {APP} is created without its setting transaction_timeout, which the target does not know",
            f"the backup has no password of {BACKSLASH}, {BOSS}, {READER}, who may log in",
            *(
                f"the membership of {member} in {group} loses its INHERIT and SET options, which PostgreSQL 15 does not"
                " have"
                for member, group in lost
            ),
        ]
    )
    assert roles.create(planned, Dsn(pg15.dsn())) == []
    there, here = snapshot(pg18), snapshot(pg15)
    assert here["roles"] == there["roles"]
    assert {row[:2] for row in here["members"]} == {row[:2] for row in there["members"]} - {("pg_maintain", APP)}
    assert here["comments"] == there["comments"]


# ---- what exists


@pytest.mark.usefixtures("cleaned")
def test_what_exists_stays_as_it_is(pg15: ThrowawayServer, pg17: ThrowawayServer) -> None:
    make_roles(pg15)
    execute(
        pg17,
        "create role {APP} password 'here'",
        "alter role {APP} set work_mem to '1MB'",
        "create role {STAFF} createrole valid until 'infinity'",
        "create role {BOSS} login",
    )
    before = snapshot(pg17)
    planned = plan(dumped(pg15), pg17)
    assert set(planned.create) == {READER, OWNER, BACKSLASH, PLAIN}
    assert set(planned.differences) == {
        f"role {APP}: cannot create databases here, could on the source",
        f"role {APP}: cannot log in here, could on the source",
        f"role {APP}: has the connection limit -1 here, 7 on the source",
        f"role {APP}: its password was set otherwise here",
        f"role {APP}: its setting work_mem is another here",
        f"role {APP}: its setting search_path is missing here",
        f"role {APP}: its setting my.thing is missing here",
        f"role {APP}: its setting DateStyle is missing here",
        f"role {APP}: is not a member of {STAFF} here, was on the source",
        f"role {BOSS}: is no superuser here, was on the source",
        f"role {BOSS}: cannot replicate here, could on the source",
        f"role {BOSS}: does not bypass row-level security here, did on the source",
        f"role {BOSS}: is not a member of {STAFF} here, was on the source",
    }
    assert set(planned.memberships) == {
        f"{STAFF} is a member of {OWNER}",
        f"{READER} is a member of {STAFF}",
        f"{READER} is a member of pg_monitor",
        f"{READER} is a member of pg_read_all_data",
    }
    assert roles.create(planned, Dsn(pg17.dsn())) == []
    after = snapshot(pg17)
    existing = {APP, STAFF, BOSS}
    assert [row for row in after["roles"] if row[0] in existing] == before["roles"]
    assert [row for row in after["settings"] if row[0] in existing] == before["settings"]
    assert [row[:2] for row in after["members"] if row[1] in existing] == [(OWNER, STAFF)]
    assert len(after["roles"]) == 7


# ---- users who are no superusers


@pytest.mark.usefixtures("cleaned")
@pytest.mark.parametrize("self_grant", ["", "set, inherit"])
@pytest.mark.parametrize("destination, refused", [("pg15", "SUPERUSER, REPLICATION, BYPASSRLS"), ("pg17", "")])
def test_with_createrole(
    another15: ThrowawayServer, destination: str, refused: str, self_grant: str, request: pytest.FixtureRequest
) -> None:
    target = request.getfixturevalue(destination)
    try:
        make_roles(another15)
        source = dumped(another15)
    finally:
        clean(another15)
    execute(target, "create role {ADMIN} login createrole bypassrls password 'admin'")
    if target.version[0] >= 16:
        execute(target, "grant pg_monitor to {ADMIN} with admin option")
        if self_grant:
            execute(target, f"alter role {{ADMIN}} set createrole_self_grant to '{self_grant}'")
    user = {"user": ADMIN, "password": "admin"}
    planned = plan(source, target, **user)
    kept = "pg_read_all_data" if target.version[0] >= 16 else ""
    refused = refused or "SUPERUSER, REPLICATION"
    expected = [
        f"role {BOSS} is created without {refused}, which {ADMIN} may not give",
        *([f"{READER} will not be a member of {kept}, which {ADMIN} may not grant"] if kept else []),
        *([f"role {APP} is created without CREATEDB, which {ADMIN} may not give"] if kept else []),
        *(
            f"role {role} is created without {what}: only a superuser may give it"
            for role, what in (
                (APP, "SET on the parameter log_statement"),
                (STAFF, "ALL on the parameter work_mem"),
            )
        ),
        f"the backup has no password of {', '.join(sorted((BOSS, READER)))}, who may log in",
    ]
    assert sorted(planned.warnings) == sorted(expected)
    (line,) = roles.create(planned, Dsn(target.dsn()).replace(**user))  # no extension there has declared it
    assert line.startswith(f"could not give the role {APP} its setting my.thing: ERROR: permission denied")
    assert names(target) == {*ALL, ADMIN}
    members = {row[:3] for row in snapshot(target)["members"] if ADMIN not in row[1]}
    assert members == {
        (STAFF, APP, False),
        (STAFF, BOSS, True),
        (OWNER, STAFF, False),
        (STAFF, READER, False),
        ("pg_monitor", READER, False),
    } | (set() if kept else {("pg_read_all_data", READER, False)})
    assert len(snapshot(target)["comments"]) == 8
    with psycopg.connect(target.dsn(), user=APP, password=PASSWORD) as login:
        assert login.execute("show work_mem").fetchone() == ("7MB",)
    assert roles.drop(planned, Dsn(target.dsn()).replace(**user)) == []
    assert names(target) == {ADMIN}


@pytest.mark.usefixtures("cleaned")
@pytest.mark.parametrize("destination", ["pg15", "pg17"])
def test_a_creator_is_made_a_member_too(destination: str, request: pytest.FixtureRequest) -> None:
    """From 16 it has ADMIN OPTION from the first superuser, and neither can be given it again."""
    target = request.getfixturevalue(destination)
    execute(target, "create role {ADMIN} login createrole password 'admin'")
    user = {"user": ADMIN, "password": "admin"}
    source = roles.parse(
        f'CREATE ROLE "{PLAIN}"; CREATE ROLE "{ADMIN}"; ALTER ROLE "{ADMIN}" WITH CREATEROLE LOGIN;'
        f'ALTER ROLE "{PLAIN}" SET "session_preload_libraries" TO \'x\';'  # that users can't even see
        + "".join(f'GRANT "{PLAIN}" TO "{member}" WITH ADMIN OPTION;' for member in (ADMIN, "postgres"))
    )
    planned = plan(source, target, [PLAIN, ADMIN], **user)
    assert planned.warnings == ()
    (line,) = roles.create(planned, Dsn(target.dsn()).replace(**user))
    assert "its setting session_preload_libraries: ERROR: permission denied" in line
    with psycopg.connect(target.dsn()) as connection:
        query = (
            "select u.rolname, bool_or(admin_option) from pg_auth_members join pg_roles r on r.oid = roleid"
            " join pg_roles u on u.oid = member where r.rolname = %s group by 1"
        )
        found = connection.execute(query, [PLAIN]).fetchall()
    assert dict(found) == {ADMIN: True, "postgres": target.version[0] < 16}


@pytest.mark.usefixtures("cleaned")
def test_without_createrole(pg17: ThrowawayServer) -> None:
    execute(pg17, "create role {ADMIN} login password 'admin'")
    source = roles.parse(f'CREATE ROLE "{PLAIN}"; CREATE ROLE "{ADMIN}";')
    with pytest.raises(PostgresError, match="may not create roles"):
        plan(source, pg17, user=ADMIN, password="admin")
    assert plan(source, pg17, [ADMIN], user=ADMIN, password="admin").create == ()


# ---- what goes wrong


HASH = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2E=$" + 2 * (43 * "A" + "=:")
HASH = HASH.removesuffix(":")
OTHER = HASH.replace("AAA", "BBB")  # may stand in a server's log: it is also the value of a setting


def written(*statements: str, secret: str = HASH) -> Globals:
    """Roles PLAIN, with a password, and APP; then these statements."""
    plain, app = f'"{PLAIN}"', f'"{APP}"'
    made = f"CREATE ROLE {plain}; ALTER ROLE {plain} WITH LOGIN PASSWORD '{secret}'; CREATE ROLE {app};"
    return roles.parse(made + "".join(statement.format(PLAIN=plain, APP=app) for statement in statements))


@pytest.mark.usefixtures("cleaned")
def test_a_failure_creates_nothing_and_shows_no_password(pg17: ThrowawayServer) -> None:
    planned = plan(written("GRANT {PLAIN} TO {APP};"), pg17)
    assert planned.create == (PLAIN, APP)
    execute(pg17, "create role {APP} connection limit 3")  # just now, by somebody else
    before = snapshot(pg17)
    with pytest.raises(PostgresError) as caught:
        roles.create(planned, Dsn(pg17.dsn()))
    assert caught.value.message == f"cannot create the role {APP}"
    assert "already exists" in caught.value.detail
    assert caught.value.__cause__ is None
    assert snapshot(pg17) == before
    assert HASH not in f"{caught.value} {planned!r} {caught.value.__dict__}"
    # Also where the server itself speaks of it.
    assert f'role "{APP}" already exists' in pg17.log_file.read_text()
    assert HASH not in pg17.log_file.read_text()


@pytest.mark.usefixtures("cleaned")
def test_what_a_server_refuses_is_told_and_the_roles_are_made(pg17: ThrowawayServer) -> None:
    source = written(
        f"ALTER ROLE {{PLAIN}} SET work_mem TO '{OTHER}';",
        "ALTER ROLE {PLAIN} SET lock_timeout TO '7s';",
        "SECURITY LABEL FOR nobody ON ROLE {PLAIN} IS 'x';",
        "GRANT SET ON PARAMETER nothing TO {APP};",
        "ALTER ROLE {PLAIN} SET nothing TO '1';",
        "ALTER ROLE {PLAIN} SET role TO 'x';",
        "ALTER ROLE {PLAIN} WITH VALID UNTIL 'Mon Feb 03 04:05:06 2031 UTC';",
        secret=OTHER,
    )
    planned = plan(source, pg17)
    assert planned.warnings == (
        f"role {PLAIN} is created without its setting nothing, which the target does not know",
        f"role {PLAIN}: its expiry was written in the source's own style of dates; see that it is right",
    )
    refused = roles.create(planned, Dsn(pg17.dsn()))
    assert [line.split(": ", 1)[0] for line in refused] == [
        f"could not give the role {PLAIN} its setting work_mem",
        f"could not give the role {PLAIN} its security label of nobody",
        f"could not give the role {APP} SET on the parameter nothing",
    ]
    assert 'invalid value for parameter "work_mem": "…"' in refused[0]
    assert OTHER not in "\n".join(refused)
    made = snapshot(pg17)
    assert made["settings"] == [(PLAIN, ["lock_timeout=7s", "role=x"])]
    assert [row[-2:] for row in made["roles"] if row[0] == PLAIN] == [(OTHER, "2031-02-03 04:05:06+00")]


@pytest.mark.usefixtures("cleaned")
def test_a_backup_without_passwords(pg15: ThrowawayServer, pg17: ThrowawayServer) -> None:
    make_roles(pg15)
    planned = plan(dumped(pg15, None, "--no-role-passwords"), pg17)
    everybody = ", ".join(sorted((APP, BACKSLASH, BOSS, READER)))
    assert planned.warnings == (f"the backup has no password of {everybody}, who may log in",)
    assert roles.create(planned, Dsn(pg17.dsn())) == []
    assert {row[9] for row in snapshot(pg17)["roles"]} == {None}


@pytest.mark.usefixtures("cleaned")
def test_what_cannot_be_dropped_is_told(pg17: ThrowawayServer, new_database: NewDatabase) -> None:
    boss = f'"{BOSS}"'
    source = written(  # boss comes last, and can only go when what it granted is gone
        f"CREATE ROLE {boss}; GRANT {{PLAIN}} TO {boss} WITH ADMIN OPTION;",
        f"GRANT {{PLAIN}} TO {{APP}} GRANTED BY {boss};",
    )
    planned = plan(source, pg17)
    assert roles.create(planned, Dsn(pg17.dsn())) == []
    assert (PLAIN, APP, False, True, True, BOSS) in snapshot(pg17)["members"]
    database = new_database(pg17)
    with psycopg.connect(database) as connection:
        name = connection.info.dbname
    execute(pg17, f'alter database "{name}" owner to {{PLAIN}}')
    (line,) = roles.drop(planned, Dsn(pg17.dsn()))
    assert line.startswith(f"the role {PLAIN} was created and could not be dropped: ")
    assert f"owner of database {name}" in line
    assert names(pg17) == {PLAIN}
    execute(pg17, f'alter database "{name}" owner to current_user')
