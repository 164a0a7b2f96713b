"""The part of the preflight that looks at a database and its server: what a backup needs, what restores have left."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from backupd import times
from backupd.config import Config
from backupd.config_models import Database
from backupd.errors import BackupdError, PostgresError
from backupd.finding import Finding, failed
from backupd.postgres import inventory, scratch, target
from backupd.postgres.names import identifier
from backupd.postgres.session import Dsn, connect, explained
from backupd.postgres.tools import choose_client, choose_server, find_installations

_SKEW = 5.0  # seconds between our clock and a server's that deserve a word


def examine(config: Config, database: Database, dsn: Dsn) -> Iterator[Finding]:
    """Whether this database can be backed up here, and what restores have left on its server."""
    name = f"database {database.name}"
    try:
        with closing(connect(dsn)) as connection, explained("the server could not be looked at"):
            version_num, version, standby, clock = _facts(connection)
            client = choose_client(find_installations(config.postgres.bin_dirs), version_num // 10000)
            where = f"{connection.info.dbname} on {dsn.server}, PostgreSQL {version}" + (
                " (standby)" if standby else ""
            )
            yield Finding(name, "ok", f"{where}, dumped by {client}")
            yield _privileges(name, connection, standby)
            yield from _locks(name, connection)
            yield from _scratch(name, config, database, connection, version_num // 10000)
            skew = abs((times.now() - clock).total_seconds())
            if skew > _SKEW:
                hint = "Backups carry the server's time. Set the clocks right (NTP)."
                yield Finding(name, "warning", f"the server's clock is {skew:.0f} s from this machine's", hint)
    except BackupdError as error:
        yield failed(name, error)
    with suppress(BackupdError):  # a server that can't be reached was named above
        yield from _leftovers(name, database, dsn)


def _line(name: str) -> str:
    """A name that stays on its line: what is said of a database must not look like another finding."""
    return name.replace("\n", "\\n")


def _leftovers(name: str, database: Database, dsn: Dsn) -> Iterator[Finding]:
    """Databases of ours that take room: restores that were begun and not finished, copies, replaced originals."""
    for left in target.leftovers(dsn, database.name):
        if left.mark is not None:
            yield Finding(
                f"{name} leftovers",
                "warning",
                f"{_line(left.name)} ({times.human_bytes(left.size)}) is an unfinished restore of {left.mark.backup}",
                f"Go on with it: backupd restore {database.name} {_line(left.mark.way_on(left.name))},"
                f" and the options it was begun with; or remove it: DROP DATABASE {_line(identifier(left.name))};",
            )
        else:
            what = "the original that a restore replaced" if left.replaced else "a restored copy"
            yield Finding(
                f"{name} leftovers",
                "warning",
                f"{_line(left.name)} ({times.human_bytes(left.size)}) is {what}",
                f"When it is not needed any more: DROP DATABASE {_line(identifier(left.name))};",
            )


def _scratch(
    name: str, config: Config, database: Database, connection: psycopg.Connection, major: int
) -> Iterator[Finding]:
    """Whether backups can be verified here on a throw-away server, if this host opens them at all."""
    if config.encryption.identity_file is None or database.verify.scratch_dsn is not None:
        return
    try:
        server = choose_server(find_installations(config.postgres.bin_dirs), major)
    except PostgresError as error:
        yield Finding(f"{name} verify", "warning", f"cannot run here: {error.message}", error.hint)
        return
    folder = database.verify.scratch_folder or Path(tempfile.gettempdir())
    row = connection.execute("select pg_database_size(current_database())").fetchone()
    short = scratch.room(folder, row[0] if row else 0)
    if short is not None:
        hint = "Make room, or name another folder: scratch_folder in [defaults.verify]."
        yield Finding(f"{name} verify", "warning", f"cannot run here: {short}", hint)
        return
    yield Finding(f"{name} verify", "ok", f"on a throw-away server, {server}, in {folder}")


def _facts(connection: psycopg.Connection) -> tuple[int, str, bool, datetime]:
    row = connection.execute(
        "select current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(),"
        " clock_timestamp()"
    ).fetchone()
    assert row is not None
    return row[0], str(row[1]).split()[0], row[2], row[3].astimezone(UTC)


_HIDDEN_LARGE_OBJECTS = """
    select count(*) from pg_largeobject_metadata m
    where not pg_has_role(m.lomowner, 'usage') and not exists (
      select from aclexplode(m.lomacl) a where a.privilege_type = 'SELECT'
      and (a.grantee = 0 or pg_has_role(a.grantee, 'usage')))
"""


def _privileges(name: str, connection: psycopg.Connection, standby: bool) -> Finding:
    tables = inventory.tables(connection, standby=standby, sizes=False)  # an extension's too: they are locked
    unreadable = [
        str(row[0])
        for row in connection.execute(
            "select quote_ident(nspname) || '.' || quote_ident(relname) from pg_class c"
            " join pg_namespace n on n.oid = relnamespace where c.oid = any(%s)"
            " and not (has_table_privilege(c.oid, 'select') and has_schema_privilege(n.oid, 'usage'))",
            [[table.oid for table in tables]],
        ).fetchall()
    ]
    row = connection.execute(
        "select current_user, rolsuper, rolsuper or rolbypassrls from pg_roles where rolname = current_user"
    )
    user, superuser, sees_all = row.fetchone() or ("?", False, False)
    if unreadable:
        return Finding(
            f"{name} privileges",
            "failed",
            f"{user} can't read {len(unreadable)} of {len(tables)} tables: {', '.join(unreadable[:3])}",
            f'GRANT pg_read_all_data TO "{user}"; (PostgreSQL 14 and later)',
            6,
        )
    hidden = connection.execute(
        "select count(*) from pg_class where oid = any(%s) and relrowsecurity"
        " and (relforcerowsecurity or not pg_has_role(relowner, 'usage'))",
        [[table.oid for table in tables]],
    ).fetchone()
    if hidden and hidden[0] and not sees_all:
        return Finding(
            f"{name} privileges",
            "failed",
            f"row-level security hides rows of {hidden[0]} tables from {user}, so they can't be dumped",
            f'ALTER ROLE "{user}" BYPASSRLS;',
            6,
        )
    objects = connection.execute(_HIDDEN_LARGE_OBJECTS).fetchone()
    if objects and objects[0] and not superuser:
        return Finding(
            f"{name} privileges",
            "failed",
            f"{user} can't read {objects[0]} large objects, which pg_read_all_data does not cover",
            f'GRANT SELECT ON LARGE OBJECT … TO "{user}"; for each, or back up as their owner or a superuser.',
            6,
        )
    return Finding(f"{name} privileges", "ok", f"{user} can read all {len(tables)} tables")


def _locks(name: str, connection: psycopg.Connection) -> Iterator[Finding]:
    """A backup locks each table twice (once itself, once through pg_dump), beside what else goes on."""
    row = connection.execute(
        """
        select current_setting('max_locks_per_transaction')::int
               * (current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int),
               (select count(*) from pg_class where relkind in ('r', 'p', 'S') and relpersistence <> 't')
        """
    ).fetchone()
    assert row is not None
    room, relations = row
    if relations > room * 1.5:
        yield Finding(
            f"{name} locks",
            "warning",
            f"{relations} tables and sequences, and the server has {room} lock slots",
            "Raise max_locks_per_transaction if a backup fails with 'out of shared memory'.",
        )
