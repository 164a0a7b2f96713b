"""The roles that a restored database needs: read from the backup's globals, planned, created, and dropped again.

All statements are composed anew from what was understood; nothing of the backup's text is executed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress

import psycopg
from psycopg import sql
from pydantic import SecretStr

from backupd.errors import PostgresError
from backupd.postgres.role_plan import Plan, Present, PresentRole, decide
from backupd.postgres.role_script import ATTRIBUTES, Globals, Membership, ParameterGrant, Role, decode, parse
from backupd.postgres.session import Dsn, connect, describe, explained

__all__ = ["Globals", "Plan", "create", "decode", "drop", "parse", "plan"]

_PRIVILEGES = {word: sql.SQL(word) for word in ("SET", "ALTER SYSTEM", "ALL")}


# ---- before


def plan(source: Globals, connection: psycopg.Connection, *, only: Collection[str] | None = None) -> Plan:
    """What to create on that server: all of the backup's roles that it lacks; or with `only` those of them that are
    named, and all that they are members of. Raises PostgresError if the user may not create them."""
    with explained("cannot read the target's roles"):
        here = _present(source, connection)
    decided = decide(source, here, only)
    if decided.create and not {"SUPERUSER", "CREATEROLE"} & here.roles[here.user].attributes:
        raise PostgresError(
            f"the user {here.user} may not create roles, and {', '.join(decided.create)} must be created",
            hint="Restore as a superuser or as one with CREATEROLE, or let one create them first.",
        )
    return decided


def _present(source: Globals, connection: psycopg.Connection) -> Present:
    major = connection.info.server_version // 10000
    who = connection.execute(
        "select current_user, (select rolname from pg_roles where oid = 10),"
        " has_table_privilege('pg_catalog.pg_authid', 'select')"
    ).fetchone()
    assert who is not None
    options = "m.inherit_option, m.set_option" if major >= 16 else "null::bool, true"
    members = connection.execute(
        f"""
        select r.rolname, u.rolname, m.admin_option, {options}, g.rolname
        from pg_auth_members m join pg_roles r on r.oid = roleid join pg_roles u on u.oid = member
          left join pg_roles g on g.oid = grantor
        """.encode()  # noqa: S608 - one of two texts above
    ).fetchall()
    return Present(
        major=major,
        user=who[0],
        bootstrap=who[1],
        roles=_present_roles(connection, passwords=who[2]),
        memberships=tuple(Membership(*row) for row in members),
        times=_times(source, connection),
        passwords=who[2],
        unknown=_unknown(source, connection),
    )


def _present_roles(connection: psycopg.Connection, *, passwords: bool) -> dict[str, PresentRole]:
    # ADMIN OPTION matters from 16; before, CREATEROLE is enough but for superusers.
    rows = connection.execute(
        """
        select rolname, array[rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication,
                              rolbypassrls], rolconnlimit, rolvaliduntil::text, shobj_description(oid, 'pg_authid'),
               coalesce(rolconfig, '{}'),
               pg_has_role(oid, 'MEMBER WITH ADMIN OPTION') or (select me.rolcreaterole and not r.rolsuper and
                 current_setting('server_version_num')::int < 160000 from pg_roles me where rolname = current_user)
        from pg_roles r
        """
    ).fetchall()
    hashes: dict[str, str | None] = {}
    if passwords:
        hashes = dict(connection.execute("select rolname, rolpassword from pg_authid").fetchall())
    found = {}
    for name, has, limit, until, comment, settings, mine in rows:
        secret = hashes.get(name)
        found[name] = PresentRole(
            attributes=frozenset(word for word, given in zip(ATTRIBUTES, has, strict=True) if given),
            connection_limit=limit,
            valid_until=until,
            comment=comment,
            settings=dict(setting.split("=", 1) for setting in settings),
            password=None if secret is None else SecretStr(secret),
            mine_to_grant=mine,
        )
    return found


def _times(source: Globals, connection: psycopg.Connection) -> dict[str, str]:
    """The source's expiries as this session writes times; those that it can't read are left out."""
    found = {}
    for text in {role.valid_until for role in source.roles if role.valid_until is not None}:
        with suppress(psycopg.DataError), connection.transaction():
            row = connection.execute("select %s::timestamptz::text", [text]).fetchone()
            assert row is not None
            found[text] = row[0]
    return found


def _unknown(source: Globals, connection: psycopg.Connection) -> frozenset[str]:
    """Those parameters in the roles' settings that this server does not have. Names with a dot are anybody's."""
    names = {setting.name for role in source.roles for setting in role.settings if "." not in setting.name}
    unknown = set()
    for name in names:
        with suppress(psycopg.errors.InsufficientPrivilege), connection.transaction():  # refused: it is there
            if connection.execute("select current_setting(%s, true)", [name]).fetchone() == (None,):
                unknown.add(name)
    return frozenset(unknown)


# ---- during


def create(plan: Plan, dsn: Dsn) -> list[str]:
    """Create what the plan says, all or nothing, on any database of the server. Raises PostgresError.

    Returns a line for each setting, security label or privilege on a parameter that the server refused: the roles are
    there without it.
    """
    refused: list[str] = []
    if not plan.create:
        return refused
    with closing(connect(dsn)) as connection, _told(plan, "create the roles"), connection.transaction():
        for what, statement in _statements(plan):
            with _told(plan, what):
                connection.execute(statement)
        for what, statement in _attempts(plan):
            try:
                with connection.transaction():
                    connection.execute(statement)
            except psycopg.Error as error:
                if connection.broken:
                    raise
                refused.append(f"could not {what}: {_described(plan, error)}")
    return refused


@contextmanager
def _told(plan: Plan, what: str) -> Iterator[None]:
    """What the server refuses becomes a PostgresError; without its cause, which may quote a password's statement."""
    try:
        yield
    except psycopg.Error as error:
        raise PostgresError(
            f"cannot {what}",
            detail=_described(plan, error),
            hint="No role was created. Create the roles by hand, or restore as a user who may.",
        ) from None


def _described(plan: Plan, error: psycopg.Error) -> str:
    text = describe(error)
    for role in plan.roles:
        if role.password is not None and role.password.get_secret_value():
            text = text.replace(role.password.get_secret_value(), "…")
    return text


def _statements(plan: Plan) -> Iterator[tuple[str, sql.Composed]]:
    """What must succeed."""
    for role in plan.roles:
        name = sql.Identifier(role.name)
        yield f"create the role {role.name}", sql.SQL("create role {}{}").format(name, _options(role))
        if role.password is not None:
            # By itself: if a role can't be made, no server's log shows its password along with the failed statement.
            secret = sql.Literal(role.password.get_secret_value())
            yield (
                f"set the password of the role {role.name}",
                sql.SQL("alter role {} password {}").format(name, secret),
            )
        if role.comment is not None:
            yield (
                f"comment on the role {role.name}",
                sql.SQL("comment on role {} is {}").format(name, sql.Literal(role.comment)),
            )
    for grant in plan.grants:
        yield f"make {grant.member} a member of {grant.role}", _grant(grant)


def _options(role: Role) -> sql.Composed:
    given = [word for word in ATTRIBUTES if word in role.attributes and word != "INHERIT"]
    if "INHERIT" not in role.attributes:
        given.append("NOINHERIT")
    options: list[sql.Composable] = [sql.SQL(" ") + sql.SQL(word) for word in given]
    if role.connection_limit != -1:
        options.append(sql.SQL(" connection limit {}").format(sql.Literal(role.connection_limit)))
    if role.valid_until is not None:
        options.append(sql.SQL(" valid until {}").format(sql.Literal(role.valid_until)))
    return sql.Composed(options)


def _grant(grant: Membership) -> sql.Composed:
    options = [sql.SQL("admin option")] if grant.admin else []
    if grant.inherit is not None:
        options.append(sql.SQL("inherit true") if grant.inherit else sql.SQL("inherit false"))
    if not grant.set_role:
        options.append(sql.SQL("set false"))
    query = sql.SQL("grant {} to {}").format(sql.Identifier(grant.role), sql.Identifier(grant.member))
    if options:
        query += sql.SQL(" with ") + sql.SQL(", ").join(options)
    if grant.grantor is not None:
        query += sql.SQL(" granted by {}").format(sql.Identifier(grant.grantor))
    return query


def _attempts(plan: Plan) -> Iterator[tuple[str, sql.Composed]]:
    """What a server may refuse, and the role is of use without it."""
    for role in plan.roles:
        name = sql.Identifier(role.name)
        for setting in role.settings:
            values = sql.SQL(", ").join(map(sql.Literal, setting.values or ("",)))
            yield (
                f"give the role {role.name} its setting {setting.name}",
                sql.SQL("alter role {} set {} to {}").format(name, sql.Identifier(setting.name), values),
            )
        for provider, label in role.labels:
            yield (
                f"give the role {role.name} its security label of {provider}",
                sql.SQL("security label for {} on role {} is {}").format(
                    sql.Identifier(provider), name, sql.Literal(label)
                ),
            )
    for grant in plan.parameters:
        yield (
            f"give the role {grant.role} {grant.privilege} on the parameter {grant.parameter}",
            sql.SQL("grant {} on parameter {} to {}{}").format(
                _PRIVILEGES[grant.privilege],
                sql.Identifier(grant.parameter),
                sql.Identifier(str(grant.role)),
                sql.SQL(" with grant option" if grant.grantable else ""),
            ),
        )


# ---- undone


def drop(plan: Plan, dsn: Dsn) -> list[str]:
    """Drop the roles that `create` made, after it returned. Returns a line for each that could not be dropped; raises
    PostgresError if the server can't be reached."""
    if not plan.create:
        return []
    with closing(connect(dsn)) as connection:
        for grant in plan.parameters:
            with suppress(psycopg.Error):  # what matters of it, DROP ROLE will say
                connection.execute(_revoked(grant))
        # Who granted a membership goes after it: as many rounds as bring something.
        left = list(reversed(plan.create))
        while True:
            refused = {name: reason for name in left if (reason := _dropped(connection, name))}
            if len(refused) in (0, len(left)):
                return [f"the role {name} was created and could not be dropped: {refused[name]}" for name in refused]
            left = list(refused)


def _revoked(grant: ParameterGrant) -> sql.Composed:
    return sql.SQL("revoke all on parameter {} from {}").format(
        sql.Identifier(grant.parameter), sql.Identifier(str(grant.role))
    )


def _dropped(connection: psycopg.Connection, name: str) -> str:
    """Drop the role, or say why that was refused."""
    try:
        connection.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(name)))
    except psycopg.Error as error:
        return describe(error)
    return ""
