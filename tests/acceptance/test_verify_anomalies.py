"""A copy can equal a source that has lost its data: what vanished or shrank since the last proven backups fails the
proof, until somebody says that it was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from backupd.postgres.server import ThrowawayServer
from tests.postgres import NewDatabase
from tests.proving import Proofs, check, failures

TABLES = (
    "create table orders (id int primary key, note text)",
    "create table queue_mail (id int)",
    "create schema archive",
    "create table archive.old (id int)",
    "create table measured (day int, value int) partition by range (day)",
    "create table measured_1 partition of measured for values from (1) to (2)",
    "create table measured_2 partition of measured for values from (2) to (3)",
)
ROWS = (
    "insert into orders select g, 'an order of quite a few words' from generate_series(1, 1000) g",
    "insert into queue_mail select generate_series(1, 100)",
    "insert into archive.old select generate_series(1, 100)",
    "insert into measured select 1 + g % 2, g from generate_series(1, 200) g",
)


@pytest.fixture
def shop(pg15: ThrowawayServer, tmp_path: Path, new_database: NewDatabase) -> Proofs:
    """A database with one proven backup."""
    made = Proofs.make(tmp_path / "site", new_database(pg15), scratch=pg15)
    made.sql(*TABLES, *ROWS)
    made.backup()
    proof = made.verify("passed")
    assert check(proof, "anomalies")["status"] == "skipped"  # there is nothing to measure against yet
    return made


def test_every_kind_is_told_and_accepted(shop: Proofs) -> None:
    """All that a careless DELETE can do at once: told from and to; meant, it stays meant, also for what comes next."""
    (first,) = (row["id"] for row in shop.site.backups("shop"))
    shop.sql(
        "drop table archive.old", "delete from queue_mail", "delete from orders where id > 400", "truncate measured_1"
    )
    second = shop.backup()
    proof = shop.verify("failed")
    told = failures(proof)
    assert set(told) == {f"anomaly: {kind} table{'s'}" for kind in ("vanished", "emptied", "shrunk")} | {
        "anomaly: shrunk database"
    }
    assert f"table archive.old is gone; it had 100 rows in {first}" in told["anomaly: vanished tables"]
    assert f"table public.queue_mail is empty; it had 100 rows in {first}" in told["anomaly: emptied tables"]
    assert f"table public.orders: 1000 rows in {first}, 400 now (60% less)" in told["anomaly: shrunk tables"]
    assert f"1400 rows in {first}, 500 now (64% less)" in told["anomaly: shrunk database"]
    assert "measured" not in str(told)  # half of its rows is not more than half
    assert shop.listed() == "failed"
    text = shop.site.run("verify", "shop", code=4).out
    assert f"backupd verify shop --at {second} --accept" in text
    assert "400 now" in text

    accepted = shop.verify("passed", "--at", second, "--accept")
    assert check(accepted, "anomaly: shrunk tables")["accepted"] is True
    assert shop.listed() == "passed"
    again = shop.verify("passed", "--at", second)  # said once, of this backup
    assert check(again, "anomaly: vanished tables")["accepted"] is True
    shop.backup()
    after = shop.verify("passed")
    assert [each["accepted"] for each in after["checks"] if each["name"].startswith("anomaly")] == [False] * 4


def test_what_failed_is_no_measure(shop: Proofs) -> None:
    """A loss does not become normal by being backed up twice: only proven backups are measured against."""
    shop.sql("delete from orders")
    for _ in range(2):
        shop.backup()
        assert "anomaly: emptied tables" in failures(shop.verify("failed"))


@pytest.mark.large
def test_a_queue_is_none(shop: Proofs) -> None:
    """A table that empties and fills in turn: it is an anomaly only against every one of the last proven backups."""
    shop.sql("delete from queue_mail")
    shop.backup()
    shop.verify("passed", "--accept")
    for statement in (ROWS[1], "delete from queue_mail"):
        shop.sql(statement)
        shop.backup()
        shop.verify("passed")


def test_the_configuration_is_heard(shop: Proofs) -> None:
    shop.sql("drop table archive.old", "delete from queue_mail", "delete from orders where id > 800")
    shop.backup()
    # Of all rows that are asked about a sixth is gone, of the orders a fifth.
    ignore = 'ignore = ["public.queue_*", "archive.*"]'
    for text, expected in (
        (f"{{ {ignore}, max_shrink = 20 }}", set[str]()),
        (f"{{ {ignore}, max_shrink = 19 }}", {"anomaly: shrunk tables"}),
        ('{ ignore = ["archive.*"] }', {"anomaly: emptied tables"}),
    ):
        shop.configure("anomalies", text)
        assert set(failures(shop.verify("failed" if expected else "passed"))) == expected


def test_a_rehearsal_is_not_asked(shop: Proofs) -> None:
    shop.sql("delete from orders")
    shop.backup()
    shop.configure("scratch", None)
    proof = shop.verify("passed", "--server-major", "17")
    assert not [each for each in proof["checks"] if each["name"].startswith("anomal")]
    assert shop.listed() == "none"
    assert shop.shown()[0]["rehearsal"] is True


def test_an_anomaly_and_no_place_to_restore_into(shop: Proofs) -> None:
    """It does not claim that a copy equals its source where there was none."""
    shop.sql("delete from orders")
    shop.backup()
    shop.on_server("host=127.0.0.1 port=1 dbname=postgres connect_timeout=2")
    outcome = shop.site.run("verify", "shop", code=None)
    assert outcome.code in (4, 6)
    assert "equals its source" not in outcome.out
    assert "cannot connect" in outcome.out
    assert "--accept" in outcome.out
