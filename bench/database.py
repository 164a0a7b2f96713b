"""The database that is measured: five tables, each of another kind of data, the same bytes in every run.

Every value is a hash of its row's number: no random(), so that neither plans nor parallel builds change anything.
At scale 1 it has 1.6 GB, 1.43 GB as an uncompressed archive, and zstd -1 makes 0.43 of that.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bench.contents import connect, counts, size

_WORKERS = 2  # tables that are filled at a time


@dataclass(frozen=True, slots=True)
class Table:
    """One table: how to create it, to fill it from `generate_series` (as `i`), and to index it when it is full."""

    name: str
    rows: int  # at scale 1
    columns: str
    values: str
    indexes: tuple[str, ...]


# bench_hash: the n-th hash of a row, 0 to 2^63-1. bench_words: a word and a number.
_WORDS = (
    "account,address,amount,answer,article,balance,before,begin,branch,broken,button,change,charge,choice,"
    "client,closed,coffee,colour,common,copper,corner,credit,danger,decide,demand,detail,device,dinner,"
    "doctor,double,driver,during,effect,effort,either,empire,energy,engine,enough,entire,escape,estate,"
    "expect,expert,export,extend,fabric,factor"
)
_HELPERS = f"""
create function bench_hash(i bigint, n bigint) returns bigint language sql immutable parallel safe
  as 'select hashint8extended(i, n) & 9223372036854775807';
create function bench_words(h bigint) returns text language sql immutable parallel safe
  as $$select ('{{{_WORDS}}}'::text[])[1 + h % 48] || ' ' || to_hex(h)$$;
"""
_DROP_HELPERS = "drop function bench_hash, bench_words"

TABLES = (
    Table(
        "events",
        1_080_000,
        "id bigint not null, at timestamptz not null, payload jsonb not null",
        """
        i, timestamptz '2024-01-01 00:00:00+00' + make_interval(secs => i * 7 + (bench_hash(i, 9) % 1000000) / 1e6),
        jsonb_build_object(
          'user', bench_hash(i, 1) % 500000,
          'kind', (array['login', 'logout', 'view', 'order', 'payment', 'refund', 'search'])[1 + bench_hash(i, 2) % 7],
          'path', '/shop/' || (bench_hash(i, 3) % 9000) || '/item/' || (bench_hash(i, 4) % 90000),
          'amount', round((bench_hash(i, 5) % 1000000) / 100.0, 2),
          'tags', jsonb_build_array(bench_words(bench_hash(i, 6)), bench_hash(i, 7) % 97),
          'trace', md5(i::text) || md5((-i)::text))
        """,
        ("alter table events add primary key (id)", "create index on events (at)"),
    ),
    Table(
        "sessions",
        2_700_000,
        "id uuid not null, account uuid not null, seen timestamptz not null, active boolean not null",
        """
        md5(i::text)::uuid, md5((bench_hash(i, 1) % 200000)::text || 'account')::uuid,
        timestamptz '2025-01-01 00:00:00+00' + make_interval(secs => bench_hash(i, 2) % 31536000),
        bench_hash(i, 3) % 4 = 0
        """,
        ("alter table sessions add primary key (id)", "create index on sessions (account)"),
    ),
    Table(
        "articles",
        255_000,
        "id bigint not null, title text not null, body text not null",
        """
        i, bench_words(bench_hash(i, 0)),
        (select string_agg(bench_words(bench_hash(i, n)), ', ') from generate_series(1, 48) n)
        """,
        ("alter table articles add primary key (id)",),
    ),
    Table(
        "readings",
        2_800_000,
        "sensor integer not null, at timestamp not null, value numeric(20, 10) not null, error numeric not null",
        """
        bench_hash(i, 1) % 2000,
        timestamp '2025-01-01 00:00:00' + make_interval(secs => (bench_hash(i, 4) % 31536000000000) / 1e6),
        bench_hash(i, 2) / 1e14, round((bench_hash(i, 3) % 100000000) / 1e10, 10)
        """,
        ("create index on readings (sensor, at)",),
    ),
    Table(
        "files",
        47_000,
        "id bigint not null, name text not null, content bytea not null",
        """
        i, bench_words(bench_hash(i, 1)) || '.bin',
        (select string_agg(sha512(int8send(i * 4096 + n)), '' ) from generate_series(1, 64) n)
        """,
        ("alter table files add primary key (id)",),
    ),
)


def build(dsn: str, scale: float) -> dict[str, int]:
    """Fill an empty database, and leave its server with nothing to tidy up. Returns the rows of each table."""
    with connect(dsn) as connection:
        connection.execute(_HELPERS.encode())
    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(lambda table: _fill(dsn, table, scale), TABLES))
    with connect(dsn) as connection:
        connection.execute(_DROP_HELPERS)
        connection.execute("vacuum (analyze)")
        connection.execute("checkpoint")
    return dict(counts(dsn))


def _fill(dsn: str, table: Table, scale: float) -> None:
    with connect(dsn) as connection:
        connection.execute(f"create table {table.name} ({table.columns})".encode())
        rows = max(1, round(table.rows * scale))
        connection.execute(
            f"insert into {table.name} select {table.values} from generate_series(1::bigint, {rows}) i".encode()
        )
        for statement in table.indexes:
            connection.execute(statement.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="Fill an empty database with what the benchmark measures.")
    parser.add_argument("dsn", help="libpq connection string of an empty database")
    parser.add_argument("--scale", type=float, default=1.0, help="1 is 1.6 GB (default)")
    arguments = parser.parse_args()
    for name, rows in build(arguments.dsn, arguments.scale).items():
        print(f"{name}: {rows} rows")
    print(f"{size(arguments.dsn) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
