"""What the rows of a table are, in one number: a hash of each row, added up, so that their order does not matter.

    sum over all rows of hashtextextended(row::text, 0)

The row is its columns in the order of their names, as text under settings that are the same everywhere (SETTINGS).
Left out are generated columns: a dump does not hold their values, and their expressions are compared as definitions.
A sum, and not an exclusive or, tells a row that is there twice from one that is not there at all. The hash is
PostgreSQL's own, of 64 bits, the one that hash partitions rest on: the same in all supported versions, but not on
machines of another byte order. Whether two servers agree is asked of themselves (`probe`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import psycopg

from backupd.postgres.objects import settle

# What decides how a value looks as text, beside those of every session of ours (DateStyle, TimeZone, search_path).
SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "IntervalStyle": "postgres",
        "extra_float_digits": "1",  # the shortest text that reads back as the same number
        "bytea_output": "hex",
        "xmlbinary": "base64",
        "lc_monetary": "C",
        "quote_all_identifiers": "off",  # regclass and its like
    }
)
_LO_PIECE = 1 << 20  # bytes of a large object that are hashed at a time
_LO_BATCH = 200  # objects
_INV_READ = 0x40000  # the mode of lo_open
_PROBE = "Is this text, which is longer than one round of the hash, worth the same everywhere?"


def probe(connection: psycopg.Connection) -> str:
    """What this server makes of a known text. Two servers whose probes differ hash differently."""
    row = connection.execute(
        'select getdatabaseencoding(), hashtextextended(%s collate pg_catalog."C", 0)', [_PROBE]
    ).fetchone()
    assert row is not None
    return f"{row[0]} {row[1]}"


def contents(connection: psycopg.Connection, oids: Sequence[int]) -> dict[int, tuple[int, str]]:
    """Rows and hash of each table by its oid, of it alone (no children), in one query. The session has SETTINGS."""
    if not oids:
        return {}
    with connection.cursor() as cursor:
        settle(cursor)
        cursor.execute(_NAMES, [list(oids)])
        queries = [_QUERY.format(oid=int(o), table=t, columns=c) for o, t, c in cursor.fetchall()]  # quoted names
        whole = " union all ".join(queries).encode("utf-8", "surrogateescape")
        return {int(oid): (int(rows), str(content)) for oid, rows, content in cursor.execute(whole).fetchall()}


_QUERY = (
    'select {oid}::bigint, count(*), coalesce(sum(hashtextextended(row({columns})::text collate pg_catalog."C", 0)), 0)'
    "::text from only {table}"
)
# Each table, and its columns whose values a dump holds, in the order of their names' bytes; quoted.
_NAMES = """
select c.oid::bigint, quote_ident(n.nspname) || '.' || quote_ident(c.relname),
       coalesce((select string_agg(quote_ident(attname), ', ' order by attname collate pg_catalog."C")
                 from pg_attribute
                 where attrelid = c.oid and attnum > 0 and not attisdropped and attgenerated = ''), '')
from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = any(%s::oid[])
"""


def large_objects(connection: psycopg.Connection) -> tuple[int, str]:
    """How many large objects there are, and a hash of all their bytes. Needs a transaction, and the right to read
    each of them: pg_dump needs it too."""
    oids = [int(row[0]) for row in connection.execute("select oid::bigint from pg_largeobject_metadata").fetchall()]
    total = 0
    for start in range(0, len(oids), _LO_BATCH):
        row = connection.execute(
            """
            with sizes as (
              select oid, lo_lseek64(fd, 0, 2) as size, lo_close(fd)
              from (select oid, lo_open(oid, %s) as fd from unnest(%s::oid[]) as wanted (oid) offset 0) as opened
              offset 0)
            select sum(hashtextextended(oid::text || ' ' || size::text || ' ' || piece::text || ' '
                         || encode(sha256(lo_get(oid, piece * %s, %s)), 'hex') collate pg_catalog."C", 0))
            from sizes, generate_series(0, greatest(size - 1, 0) / %s) as piece
            """,
            [_INV_READ, oids[start : start + _LO_BATCH], _LO_PIECE, _LO_PIECE, _LO_PIECE],
        ).fetchone()
        assert row is not None
        total += int(row[0])
    return len(oids), str(total)
