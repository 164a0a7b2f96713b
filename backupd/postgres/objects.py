"""Everything that a database defines, read from its catalogs, to tell a restored copy from its source.

Rows, the values of sequences and the bytes of large objects are no part of it. Nor is what a dump leaves behind
anyway: tablespaces, dropped columns, versions of collations, whether a foreign key's inner triggers are disabled, and
what was changed of an extension's own objects other than grants and policies.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Loader

from backupd.postgres import objects_code, objects_others, objects_relations, objects_types
from backupd.postgres.objects_sql import FIRST_USER_OID, Query

_BATCH = 500  # views whose definitions are asked for at once: each locks what it reads until its savepoint ends
# What else the server's texts of defaults and definitions depend on, and ALTER DATABASE … SET may have changed.
_SETTINGS = {
    "search_path": "pg_catalog, pg_temp",  # temporary tables never before the catalogs
    "DateStyle": "ISO",
    "TimeZone": "UTC",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_monetary": "C",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "jit": "off",
}

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Inventory:
    """The objects of one database, or of one backup."""

    objects: Mapping[str, Mapping[str, Facts]]  # kind -> identity -> fact -> value; in order; what is usual is left out
    unread: Mapping[str, str]  # kind -> why the dump of this user lacks it


def read(connection: psycopg.Connection) -> Inventory:
    """All objects that the session's transaction sees, or a transaction of its own if it is in none.

    Whoever may connect may read this. It locks no tables, but the server's functions that write down views, rules and
    SQL functions lock what these read, for as long as a savepoint of ours lasts; so they wait for whoever holds
    a view exclusively (`lock_timeout` ends that). What they say is the newest state, not the snapshot's, as it is
    for pg_dump: what was dropped since comes without its definition. Raises psycopg.Error.
    """
    server = connection.info.server_version // 10000
    parts = (objects_relations, objects_types, objects_code, objects_others)
    queries = {kind: query for part in parts for kind, query in part.queries(server).items()}
    superuser = connection.info.parameter_status("is_superuser") == "on"
    if not superuser:
        queries["subscription"] = objects_others.SUBSCRIPTION_NAMES
    found = _found(connection, queries)
    objects: dict[str, Mapping[str, Facts]] = {
        kind: {identity: found[kind][identity] for identity in sorted(found[kind])} for kind in queries
    }
    unread = {}
    if objects["subscription"] and not superuser:
        objects["subscription"] = {}
        unread["subscription"] = "only a superuser's dump holds subscriptions"
    return Inventory(objects, unread)


class _Text(Loader):
    """Text as it is: that of a SQL_ASCII database need not be UTF-8."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode("utf-8", "surrogateescape")


class _Json(_Text):
    def load(self, data: Buffer) -> Any:
        return json.loads(super().load(data))


def settle(cursor: psycopg.Cursor[Any]) -> None:
    """For this savepoint: the same object must read the same in every database."""
    settings = dict(_SETTINGS)
    if cursor.connection.info.parameter_status("server_encoding") == "SQL_ASCII":
        settings["client_encoding"] = "SQL_ASCII"  # or the server refuses to send what is no UTF-8
    cursor.adapters.register_loader("text", _Text)
    cursor.adapters.register_loader("jsonb", _Json)
    cursor.execute(
        "select set_config(name, value, true) from unnest(%s::text[], %s::text[]) as wanted (name, value)",
        [list(settings), list(settings.values())],
    )


def _found(connection: psycopg.Connection, queries: Mapping[str, Query]) -> dict[str, dict[str, Facts]]:
    """What each query finds, by identity. Most of the time for a small database goes into planning them, so none is
    asked in vain."""
    found: dict[str, dict[str, Facts]] = {kind: {} for kind in queries}
    with connection.transaction(force_rollback=True), connection.cursor() as cursor:
        settle(cursor)
        added_to = _added_to(cursor, sorted({query.catalog for query in queries.values() if query.catalog}))
        asked = {kind: query for kind, query in queries.items() if not query.catalog or query.catalog in added_to}
        for kind, query in asked.items():
            if not query.batches:
                found[kind] = dict(cursor.execute(query.sql.encode()))
    for kind, query in asked.items():
        if query.batches:
            found[kind] = dict(_in_batches(connection, query))
    return found


def _added_to(cursor: psycopg.Cursor[Any], catalogs: Sequence[str]) -> set[str]:
    """Those that hold more than initdb put there, which got all numbers below FIRST_USER_OID (transam.h, varsup.c)."""
    added = ", ".join(f"exists (select from {name} where oid >= {FIRST_USER_OID})" for name in catalogs)
    answer = cursor.execute(f"select {added}".encode()).fetchone()
    assert answer is not None
    return {name for name, is_added_to in zip(catalogs, answer, strict=True) if is_added_to}


def _in_batches(connection: psycopg.Connection, query: Query) -> Iterator[tuple[str, Facts]]:
    """What a query finds, each batch in a savepoint that is given up and with it what it has locked."""
    with connection.transaction(force_rollback=True):
        oids = [row[0] for row in connection.execute(query.batches.encode())]
    for start in range(0, len(oids), _BATCH):
        with connection.transaction(force_rollback=True), connection.cursor() as cursor:
            settle(cursor)
            yield from cursor.execute(query.sql.encode(), [oids[start : start + _BATCH]])
