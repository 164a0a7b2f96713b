"""`verify` as people use it: a backup of a real database is restored into scratch, held against its source, and the
proof is there for `list`, `show` and scripts."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from backupd.catalog import manifest_key, signature_key
from backupd.config import load
from backupd.crypto import minisign
from backupd.postgres.server import ThrowawayServer
from tests.postgres import NewDatabase, drop_database
from tests.proving import Proofs, check, databases, execute, failures
from tests.seaweed import SeaweedServer
from tests.site import s3_site

NAME = f"verified_{os.getpid()}"


@pytest.fixture(scope="module")
def shop(pg15: ThrowawayServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proofs]:
    """Two backups: the older one without hashes, the newer one, which has a row more, with them."""
    execute(pg15.dsn(), f"create database {NAME} template template0")
    try:
        made = Proofs.make(tmp_path_factory.mktemp("verified"), pg15.dsn(NAME), scratch=pg15)
        made.sql(
            "create table orders (id serial primary key, note text)",
            "insert into orders (note) select 'order ' || g from generate_series(1, 100) g",
            "create table empty ()",
            "create view totals as select count(*) from orders",
            "select lo_from_bytea(0, 'a large object')",
        )
        made.backup()
        made.sql("insert into orders (note) values ('one more')")
        made.configure("fingerprint", '"content"')
        made.backup()
        made.configure("fingerprint", None)
        yield made
        assert made.scratch_databases(pg15) == []
    finally:
        drop_database(pg15, NAME)


def ids(shop: Proofs) -> tuple[str, str]:
    """The older backup, and the newer."""
    newer, older = (row["id"] for row in shop.site.backups("shop"))
    return older, newer


# ---- the contract


def test_a_proof(shop: Proofs, pg15: ThrowawayServer) -> None:
    """On a throw-away server, from the plain command: what is printed, what JSON has, what list and show say."""
    shop.configure("scratch", None)
    before = databases(pg15)
    outcome = shop.site.run("verify", "shop")
    assert re.search(r"(?m)^shop \S+: proof PASSED, restored into PostgreSQL 15\.\d+, \d+\.\d s$", outcome.out)
    assert "2 tables and 101 rows compared" in outcome.out
    assert outcome.err.splitlines()[-1] == "recording the proof"
    shop.on_server(pg15.dsn())
    proof = shop.verify("passed")
    assert check(proof, "content")["status"] == "skipped"
    assert databases(pg15) == before
    older, newer = ids(shop)
    assert (proof["database"], proof["id"], proof["tables_compared"], proof["rows_compared"]) == ("shop", newer, 2, 101)
    assert 0 < proof["seconds"] < 60
    for each in proof["checks"]:
        assert set(each) >= {"name", "status", "detail"}
        assert each["status"] in ("passed", "skipped")
        assert each["detail"]
    names = [each["name"] for each in proof["checks"]]
    assert len(set(names)) == len(names)
    assert {"stored objects", "restore", "rows", "sequence values", "indexes", "owners", "views"} <= set(names)
    rows = {row["id"]: row["proof"] for row in shop.site.backups("shop")}
    assert rows[newer] == {"status": "passed", "at": proof["finished_at"]}
    assert rows[older] == {"status": "none", "at": None}
    shown = shop.shown(newer)
    assert [each["scratch"]["kind"] for each in shown] == ["ephemeral", "server"]
    assert shown[-1] == proof
    assert json.loads(shop.stored()[-1].read_bytes()) == proof


def test_which_backup(shop: Proofs) -> None:
    older, newer = ids(shop)
    taken = {row["id"]: row["taken_at"] for row in shop.site.backups("shop")}
    just_before = datetime.fromisoformat(taken[newer]) - timedelta(microseconds=1)
    for at, expected in (
        (older, older),
        (just_before.isoformat(), older),
    ):
        assert shop.verify("passed", "--at", at, "--fingerprint", "off")["id"] == expected
    for at, code in (("2001-01-01", 3), ("1w", 3), ("20010101T000000Z-aaaaaa", 3), ("soon", 2)):
        assert shop.site.run("verify", "shop", "--at", at, "--json", code=code).json["error"]["exit"] == code
    assert "shop" in shop.site.run("verify", "shpo", "--json", code=2).json["error"]["hint"]
    shop.site.run("verify", code=2)


def test_levels(shop: Proofs) -> None:
    """What was not asked is not claimed."""
    older, _ = ids(shop)
    off = shop.verify("passed", "--fingerprint", "off")
    assert (off["tables_compared"], off["rows_compared"]) == (0, 0)
    assert {each["name"] for each in off["checks"]} & {"rows", "content", "indexes"} == set()
    content = shop.verify("passed", "--fingerprint", "content")
    assert check(content, "content")["status"] == "passed"
    assert "every byte of 1 large objects" in check(content, "large object content")["detail"]
    without = shop.verify("passed", "--at", older, "--fingerprint", "content")
    for name in ("content", "large object content"):
        assert check(without, name)["status"] == "skipped"
        assert "made without hashes" in check(without, name)["detail"]


def test_a_rehearsal(shop: Proofs) -> None:
    """The next version's server takes it, by content too; that says nothing of the backup's own version."""
    newest = shop.backup()
    shop.configure("scratch", None)
    proof = shop.verify("passed", "--server-major", "18", "--fingerprint", "content")
    assert proof["rehearsal"] is True
    assert proof["scratch"]["server_major"] == 18
    assert shop.listed(newest) == "none"
    assert [(each["rehearsal"], each["status"]) for each in shop.shown(newest)] == [(True, "passed")]


# ---- what differs


@contextmanager
def rewritten(shop: Proofs, backup: str, change: Any) -> Iterator[None]:
    """The backup's manifest, changed and signed as it should be: as if the source had been another one."""
    place, signature = shop.root / manifest_key("shop", backup), shop.root / signature_key("shop", backup)
    genuine = place.read_bytes(), signature.read_bytes()
    document = json.loads(genuine[0])
    change(document)
    data = json.dumps(document).encode()
    key = load(shop.site.config, shop.site.environ).load_signing_key()
    place.write_bytes(data)
    signature.write_text(minisign.sign(key, data, trusted_comment="changed by a test"))
    try:
        yield
    finally:
        place.write_bytes(genuine[0])
        signature.write_bytes(genuine[1])


def test_a_copy_that_differs(shop: Proofs, pg15: ThrowawayServer) -> None:
    """Each difference by its table; nothing is left of the copy either."""
    shop.on_server(pg15.dsn())
    before = databases(pg15)
    newer = next(
        row["id"]
        for row in shop.site.backups("shop")
        if shop.site.run("show", "shop", row["id"], "--json").json["tables"][0]["content"]
    )

    def orders(document: Any) -> Any:
        return next(table for table in document["tables"] if table["name"] == "orders")

    def other_content(document: Any) -> None:
        orders(document)["content"] = str(int(orders(document)["content"]) + 1)

    def other_rows(document: Any) -> None:
        orders(document)["rows"] += 1

    for change, name, told in (
        (other_content, "content", "table public.orders: its rows are others"),
        (other_rows, "rows", "101 rows, and the source had 102"),
    ):
        with rewritten(shop, newer, change):
            proof = shop.verify("failed", "--at", newer, "--fingerprint", "content")
            assert set(failures(proof)) == {name}
            assert told.replace('"', "") in failures(proof)[name].replace('"', "")
            assert shop.listed(newer) == "failed"
    assert databases(pg15) == before


# ---- unusual databases


@pytest.mark.parametrize("encoding", ["LATIN1", pytest.param("SQL_ASCII", marks=pytest.mark.large)])
def test_unusual_databases(pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path, encoding: str) -> None:
    """Another encoding, large objects, unlogged tables, hash partitions by enum, whose rows come back elsewhere."""
    dsn = new_database(pg15, options=f"ENCODING '{encoding}' LOCALE 'C'")
    made = Proofs.make(tmp_path / "site", dsn)
    made.configure("fingerprint", '"content"')
    made.sql(
        f"set client_encoding = '{'LATIN1' if encoding == 'LATIN1' else 'SQL_ASCII'}';"
        " create table texts (t text); insert into texts values (E'gr\\xfc\\xdf'), ('')",
        "create unlogged table quick (id bigint generated always as identity, one int generated always as (1) stored)",
        "insert into quick (id) overriding system value select generate_series(1, 50)",
        "create type mood as enum ('sad', 'ok', 'happy')",
        "create table moods (m mood, i int) partition by hash (m)",
        *(f"create table moods_{n} partition of moods for values with (modulus 3, remainder {n})" for n in range(3)),
        "insert into moods select (enum_range(null::mood))[1 + g % 3], g from generate_series(1, 90) g",
        "select lo_from_bytea(0, decode(repeat('00ff', 700000), 'hex')), lo_create(0)",
    )
    made.backup()
    proof = made.verify("passed")
    assert check(proof, "content")["status"] == "passed"
    assert check(proof, "large object content")["status"] == "passed"
    assert encoding in check(proof, "encoding and locale")["detail"]
    assert proof["rows_compared"] == 142


def test_a_database_called_postgres(pg15: ThrowawayServer, tmp_path: Path) -> None:
    """Every new server has one already."""
    made = Proofs.make(tmp_path / "site", pg15.dsn("postgres"))
    table = f"verified_{os.getpid()}"
    made.sql(f"create table {table} as select 1 as one")
    try:
        made.backup()
        made.verify("passed")
    finally:
        made.sql(f"drop table {table}")


# ---- a source that goes on


def test_a_source_under_load(pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path) -> None:
    """Rows come, change and go, sequences run and wrap, while the backup is made: it passes, by content."""
    dsn = new_database(pg15)
    made = Proofs.make(tmp_path / "site", dsn, scratch=pg15)
    made.configure("fingerprint", '"content"')
    made.sql(
        "create table accounts (id int primary key, balance int)",
        "insert into accounts select g, 0 from generate_series(1, 20000) g",
        "create table history (id bigserial primary key, account int, at timestamptz default clock_timestamp())",
        "create sequence down increment -1 maxvalue -1 minvalue -9000000 cache 10",
        "create sequence round maxvalue 7 cycle",
        "create sequence resting start 5",
    )
    stop = threading.Event()
    done: list[int] = []

    def write() -> None:
        with closing(psycopg.connect(dsn, autocommit=True)) as connection:
            while not stop.is_set():
                number = len(done) % 20000 + 1
                connection.execute("update accounts set balance = balance + 1 where id = %s", [number])
                connection.execute("insert into history (account) values (%s)", [number])
                connection.execute("select nextval('down'), nextval('round')")
                connection.execute("delete from history where mod(id, 3) = 0 and account = %s", [number])
                done.append(number)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        early = len(done)
        backup = made.backup()
        late = len(done)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert late - early > 20
    proof = made.verify("passed", "--at", backup)
    assert check(proof, "content")["status"] == "passed"
    assert check(proof, "sequence values")["detail"].startswith("4 sequences")
    assert proof["rows_compared"] > 20000


@pytest.mark.large
def test_on_s3(shop: Proofs, s3_server: SeaweedServer, s3_bucket: str, pg15: ThrowawayServer, tmp_path: Path) -> None:
    """Proofs are objects like all others there."""
    made = Proofs(s3_site(tmp_path / "site", s3_server, s3_bucket, {"shop": shop.dsn}), shop.dsn)
    made.on_server(pg15.dsn())
    made.backup()
    made.verify("passed")
    assert made.listed() == "passed"
    made.ask(never="select false")
    made.verify("failed")
    assert made.listed() == "failed"
    document = made.site.run("evidence", "shop", "--json").json
    assert document["verdicts"] == {"passed": 1, "failed": 1}
    assert [each["status"] for each in made.shown()] == ["passed", "failed"]
    assert datetime.fromisoformat(made.shown()[0]["finished_at"]).tzinfo == UTC
