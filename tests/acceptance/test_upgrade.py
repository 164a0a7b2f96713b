"""Restoring to a newer major: everything that the newer server still knows comes back."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from backupd.postgres.server import ThrowawayServer
from tests.acceptance.torture import torture
from tests.postgres import NewDatabase, client_for, drop_database, dump_sql
from tests.site import local_site

COPY = f"upgraded_{os.getpid()}"

# Where one pg_dump tells the original and the copy apart although nothing was lost: the major that brought it, what
# its release notes say, and what to make alike.
EXPLAINED = (
    (16, "a view of one table names its columns without the table", r"(?m)(^ .*)", lambda m: _unqualified(m[0])),
    (16, "subscriptions have run_as_owner: true for those of older servers", r", run_as_owner = true", ""),
    (
        17,
        "MAINTAIN is one more table privilege",
        r"REVOKE SELECT,INSERT,REFERENCES,DELETE,TRIGGER,TRUNCATE,UPDATE ON",
        "REVOKE ALL ON",
    ),
    (18, "streaming is parallel unless something else is said", r", streaming = (off|parallel)", ""),
    (18, "NOT NULL constraints have names", r" CONSTRAINT \w+_not_null\d* NOT NULL", " NOT NULL"),
)
# Of no meaning in any version: the order of a policy's roles is that of their OIDs.
ALWAYS = (r'(?<= TO )torture_reader, ("torture_Odd ""Röle"" \\ 1")', r"\1, torture_reader")


def _unqualified(line: str) -> str:
    return re.sub(r'\b[a-z_]+\.(?=[a-z"])', "", line)


def _sorted(text: str) -> str:
    return "\n".join(sorted(text.split("\n")))


@pytest.fixture
def clean() -> Iterator[list[ThrowawayServer]]:
    """Servers from which the copy goes afterwards, and with it every role that came along."""
    servers: list[ThrowawayServer] = []
    yield servers
    for server in servers:
        drop_database(server, COPY)
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            for (name,) in connection.execute("select rolname from pg_roles where rolname like 'torture%'").fetchall():
                connection.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


@pytest.mark.parametrize(
    "old, new", [pytest.param(15, 17, marks=pytest.mark.large), (15, 18), pytest.param(17, 18, marks=pytest.mark.large)]
)
def test_newer_major(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    new_database: NewDatabase,
    clean: list[ThrowawayServer],
    old: int,
    new: int,
) -> None:
    before: ThrowawayServer = request.getfixturevalue(f"pg{old}")
    after: ThrowawayServer = request.getfixturevalue(f"pg{new}")
    source = new_database(before, f"torture_{os.getpid()}")
    torture(before, source)
    with psycopg.connect(source) as connection:  # the newer servers here are built without ICU and libxml
        connection.execute("drop table if exists torture.with_icu")
        connection.execute("drop collation if exists torture.german_phone, torture.ignore_case")
        connection.execute("update torture.values set x = null")
    site = local_site(tmp_path, {"torture": source})
    site.run("backup")
    clean.append(after)
    target = ["--target", after.dsn(COPY), "--create-roles"]
    site.run("restore", "torture", "--at", "latest", *target, "--jobs", "2", "--json")

    client = client_for(after)
    was, is_ = dump_sql(client, source), dump_sql(client, after.dsn(COPY))
    told = {_sorted(re.sub(*ALWAYS, "\n".join(lines))) for lines in (was, is_)}
    for major, what, pattern, same in EXPLAINED:
        if old < major <= new:
            alike = {_sorted(re.sub(pattern, same, text)) for text in told}
            assert alike != told, f"nothing shows this difference any more: {what}"
            told = alike
    if len(told) > 1:
        one, other = (Counter(text.split("\n")) for text in told)
        pytest.fail("\n".join(["not explained:", *(one - other).elements(), "and", *(other - one).elements()]))
