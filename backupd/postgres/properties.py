"""What a dump leaves to whoever restores: how a database is created, and what is set on it as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import closing

import psycopg
from psycopg import sql

from backupd.manifest import DatabaseProperties, Setting
from backupd.postgres.session import connect, describe, explained
from backupd.postgres.target import Server


def creation(database: sql.Composable, wanted: DatabaseProperties, major: int) -> sql.Composed:
    """The statement that creates it, for a server of this major version."""
    options = [
        sql.SQL("template template0 encoding {}").format(sql.Literal(wanted.encoding)),
        sql.SQL("lc_collate {} lc_ctype {}").format(sql.Literal(wanted.collate), sql.Literal(wanted.ctype)),
    ]
    if major >= 15:
        options.append(sql.SQL("locale_provider {}").format(sql.SQL(wanted.locale_provider)))
        if wanted.locale_provider == "icu":
            options.append(sql.SQL("icu_locale {}").format(sql.Literal(wanted.locale)))
        elif wanted.locale_provider == "builtin":
            options.append(sql.SQL("builtin_locale {}").format(sql.Literal(wanted.locale)))
        if wanted.icu_rules and major >= 16:
            options.append(sql.SQL("icu_rules {}").format(sql.Literal(wanted.icu_rules)))
    return sql.SQL("create database {} {}").format(database, sql.SQL(" ").join(options))


def apply_properties(server: Server, name: str, wanted: DatabaseProperties, *, owners: bool) -> list[str]:
    """What pg_dump leaves out: owner, grants, comment, settings, connection limit.

    Returns a line for each that could not be set (a managed server may refuse some); they don't fail a restore.
    """
    database = sql.Identifier(name)
    refused: list[str] = []
    with closing(connect(server.dsn, autocommit=False)) as connection:

        def attempt(what: str, query: sql.Composed) -> None:
            try:
                with connection.transaction():
                    connection.execute(query)
            except psycopg.Error as error:
                if connection.broken:
                    raise
                refused.append(f"{what}: {describe(error)}")

        # All or nothing: the comment that they replace is the mark of an unfinished restore.
        with explained(f"cannot set the properties of {name}"), connection.transaction():
            if wanted.comment is None:
                attempt("comment", sql.SQL("comment on database {} is null").format(database))
            for what, query in property_statements(database, wanted, owners=owners):
                attempt(what, query)
    return refused


def property_statements(
    database: sql.Composable, wanted: DatabaseProperties, *, owners: bool
) -> Iterable[tuple[str, sql.Composed]]:
    """What each sets, and the statement that does."""
    if wanted.comment is not None:
        yield "comment", sql.SQL("comment on database {} is {}").format(database, sql.Literal(wanted.comment))
    for setting in wanted.settings:
        if setting.role is not None and not owners:
            continue
        whose = (
            sql.SQL("database {}").format(database)
            if setting.role is None
            else sql.SQL("role {} in database {}").format(sql.Identifier(setting.role), database)
        )
        yield (
            f"setting {setting.name}",
            sql.SQL("alter {} set {} to {}").format(whose, _setting_name(setting.name), _setting_value(setting)),
        )
    if wanted.connection_limit != -1:
        limit = sql.Literal(wanted.connection_limit)
        yield "connection limit", sql.SQL("alter database {} connection limit {}").format(database, limit)
    if owners:
        yield "owner", sql.SQL("alter database {} owner to {}").format(database, sql.Identifier(wanted.owner))
        yield from _grant_statements(database, wanted)


def _setting_name(name: str) -> sql.Composable:
    return sql.SQL(".").join(sql.Identifier(part) for part in name.split("."))


# These hold lists of names, each quoted by itself; one literal would make one name of them.
_LISTS = {
    "search_path",
    "temp_tablespaces",
    "session_preload_libraries",
    "local_preload_libraries",
    "shared_preload_libraries",
    "unix_socket_directories",
}
_LISTED_NAME = re.compile(r'"((?:[^"]|"")*)"|([^\s,"]+)')


def _setting_value(setting: Setting) -> sql.Composable:
    if setting.name.lower() not in _LISTS:
        return sql.Literal(setting.value)
    # As literals, since an empty name (search_path = '') can be written in no other way.
    names = [plain or quoted.replace('""', '"') for quoted, plain in _LISTED_NAME.findall(setting.value)]
    return sql.SQL(", ").join(map(sql.Literal, names or [""]))


def _grant_statements(database: sql.Composable, wanted: DatabaseProperties) -> Iterable[tuple[str, sql.Composed]]:
    if wanted.grants is None:
        return
    yield "grants", sql.SQL("revoke all on database {} from public").format(database)
    owner = sql.Identifier(wanted.owner)
    yield "grants", sql.SQL("revoke all on database {} from {}").format(database, owner)
    for grant in wanted.grants:
        grantee: sql.Composable = sql.SQL("public") if grant.grantee is None else sql.Identifier(grant.grantee)
        option = sql.SQL(" with grant option") if grant.grantable and grant.grantee != wanted.owner else sql.SQL("")
        yield (
            f"grant to {grant.grantee or 'public'}",
            sql.SQL("grant {} on database {} to {}{}").format(sql.SQL(grant.privilege), database, grantee, option),
        )
