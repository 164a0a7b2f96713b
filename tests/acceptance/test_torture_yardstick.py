"""The yardstick measured: plain pg_dump and pg_restore bring the torture database back, so backupd has to as well."""

from __future__ import annotations

from collections import Counter

import pytest

from backupd.postgres.server import ThrowawayServer
from tests.acceptance.torture import torture
from tests.postgres import NewDatabase, client_for, dump_sql, run


def difference(left: list[str], right: list[str]) -> tuple[list[str], list[str]]:
    """Lines that only one side has, few enough to read."""
    return sorted(Counter(left) - Counter(right))[:20], sorted(Counter(right) - Counter(left))[:20]


@pytest.mark.parametrize("any_pg", [15, *(pytest.param(m, marks=pytest.mark.large) for m in (17, 18))], indirect=True)
def test_plain_dump_and_restore_bring_it_back(any_pg: ThrowawayServer, new_database: NewDatabase) -> None:
    source, copy = new_database(any_pg), new_database(any_pg)
    client = client_for(any_pg)
    torture(any_pg, source)
    archive = run(client, "pg_dump", "--format=custom", f"--dbname={source}")
    run(client, "pg_restore", "--exit-on-error", f"--dbname={copy}", feed=archive)
    before = dump_sql(client, source)
    assert difference(before, dump_sql(client, copy)) == ([], [])
    assert len(before) > 25_000
    # What the dump must tell apart, or the comparison above proves little.
    for line in ("\\\\.", "1\t-2\t1\t1\t2020-01-01 00:00:00+00\tpostgres\ta\\nb\t{1,2}\tök\t7" + "\t\\N" * 5 + "\t0"):
        assert line in before, line


def test_a_changed_row_shows(pg17: ThrowawayServer, new_database: NewDatabase) -> None:
    source, copy = new_database(pg17), new_database(pg17)
    client = client_for(pg17)
    for dsn in (source, copy):
        torture(pg17, dsn)
    assert difference(dump_sql(client, source), dump_sql(client, copy)) == ([], [])
    run(client, "psql", f"--dbname={copy}", "--command=UPDATE torture.wide SET kind = kind + 1 WHERE id = 777")
    missing, surplus = difference(dump_sql(client, source), dump_sql(client, copy))
    assert [line.split("\t")[:2] for line in missing] == [["777", "12"]]
    assert [line.split("\t")[:2] for line in surplus] == [["777", "13"]]
