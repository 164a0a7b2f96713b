"""The kinds of databases that are measured; database.py builds the first, with the same bytes in every run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from backupd.postgres.tools import Installation
from bench import database
from bench.contents import connect

_PGBENCH_SECONDS = 3600
_TABLES = 5_000
_ROWS_EACH = 20  # of the many tables
_AT_A_TIME = 100  # tables that one transaction creates
_SINGLE_ROWS = 9_400_000  # of one kilobyte each
_PGBENCH_SCALE = 100


@dataclass(frozen=True, slots=True)
class Kind:
    """One database: how it is filled, and what it is good for."""

    name: str
    title: str
    build: Callable[[Installation, str, float], object]  # with the programs, into an empty database, at a scale
    gigabytes: float  # about, on the server's disk, at scale 1


def _mixed(_: Installation, dsn: str, scale: float) -> None:
    database.build(dsn, scale)


def _pgbench(programs: Installation, dsn: str, scale: float) -> None:
    """PostgreSQL's own, its rows made by the server."""
    size = str(max(1, round(_PGBENCH_SCALE * scale)))
    command: list[str | Path] = [
        programs.program("pgbench"),
        "--initialize",
        "--init-steps=dtGp",
        f"--scale={size}",
        dsn,
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=_PGBENCH_SECONDS)
    _settled(dsn)


def _many(_: Installation, dsn: str, scale: float) -> None:
    """Thousands of small tables, each with a key, an index and a sequence."""
    numbers = iter(range(max(1, round(_TABLES * scale))))
    with connect(dsn) as connection:
        while batch := list(islice(numbers, _AT_A_TIME)):
            with connection.transaction():
                for number in batch:
                    connection.execute(
                        f"""
                        create table t{number:05} (id serial primary key, name text not null, at timestamptz not null);
                        insert into t{number:05} (name, at) select md5((i * {number + 1})::text),
                          timestamptz '2026-01-01' + make_interval(secs => i * 3600)
                          from generate_series(1, {_ROWS_EACH}) i;
                        create index on t{number:05} (at);
                        """.encode()
                    )
    _settled(dsn)


def _single(_: Installation, dsn: str, scale: float) -> None:
    """One large table of rows that compress as documents do."""
    rows = max(1, round(_SINGLE_ROWS * scale))
    with connect(dsn) as connection:
        connection.execute("create table documents (id bigint not null, body text not null)")
    step = -(-rows // 16)

    def fill(start: int) -> None:
        with connect(dsn) as connection:
            connection.execute(
                f"""
                insert into documents select i,
                  (select string_agg(md5((i * 31 + n)::text) || repeat(' ' || to_hex(i % 4096), 4), ',')
                   from generate_series(1, 18) n)
                from generate_series({start}::bigint, {min(start + step, rows + 1) - 1}) i
                """.encode()
            )

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fill, range(1, rows + 1, step)))
    with connect(dsn) as connection:
        connection.execute("alter table documents add primary key (id)")
    _settled(dsn)


KINDS = {
    kind.name: kind
    for kind in (
        Kind("mixed", "JSON, UUIDs, text, numbers and random bytes", _mixed, 1.6),
        Kind("pgbench", f"`pgbench` at scale {_PGBENCH_SCALE}", _pgbench, 1.5),
        Kind("many", f"{_TABLES:,} small tables", _many, 0.4),
        Kind("single", "one table of documents", _single, 10.0),
    )
}


def _settled(dsn: str) -> None:
    """The server has nothing left to tidy up."""
    with connect(dsn) as connection:
        connection.execute("vacuum (analyze)")
        connection.execute("checkpoint")
