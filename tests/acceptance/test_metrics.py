"""What Prometheus is told: every number of the contract, right in the first scrape and after a restart."""

from __future__ import annotations

import re
import socket
import urllib.request
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backupd import times
from backupd.postgres.server import ThrowawayServer
from tests.acceptance.test_daemon import NOWHERE, filled_database, made
from tests.daemon import daemon, until
from tests.filled import filling
from tests.postgres import NewDatabase
from tests.site import Site

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
CONTRACT = (
    *("backup_last_success_timestamp_seconds", "backup_last_attempt_timestamp_seconds", "backup_last_status"),
    *("backups_total", "backup_duration_seconds", "backup_raw_bytes", "backup_stored_bytes"),
    *("verify_last_success_timestamp_seconds", "verify_last_status", "verifies_total"),
    *("proven_backup_timestamp_seconds", "proven_restore_seconds", "verify_check_status", "retained_backups"),
    *("repository_bytes", "prune_last_success_timestamp_seconds", "next_run_timestamp_seconds", "job_running"),
    "build_info",
)

Sample = tuple[str, tuple[tuple[str, str], ...]]


def samples(text: str) -> dict[Sample, float]:
    found: dict[Sample, float] = {}
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            found[each.name, tuple(sorted(each.labels.items()))] = each.value
    return found


def scraped(port: int) -> dict[Sample, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return samples(answer.read().decode())


def value(found: dict[Sample, float], name: str, **labels: str) -> float | None:
    return found.get((f"backupd_{name}", tuple(sorted(labels.items()))))


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def site(tmp_path: Path, pg15: ThrowawayServer, new_database: NewDatabase, port: int) -> Site:
    site = made(tmp_path / "site", {"shop": filled_database(new_database(pg15)), "broken": NOWHERE})
    site.set("schedule", '"@every 1h"', table="defaults.verify")
    site.set("retries", "0", table="daemon")
    site.edit(lambda text: text.replace('listen = "127.0.0.1:0"', f'listen = "127.0.0.1:{port}"'))
    return site


def test_all_of_the_contract_and_all_of_it_documented(site: Site, port: int) -> None:
    with daemon(site) as running:
        running.wait(database="shop", job="prune", status="done")
        running.wait(database="shop", job="verify", status="done")
        running.wait(database="broken", job="backup", level="error")
        assert until(lambda: value(scraped(port), "proven_backup_timestamp_seconds", database="shop") is not None, 30)
        found = scraped(port)
        names = {name for name, _ in found}
        assert {f"backupd_{name}" for name in CONTRACT} <= names
        (backup,) = site.backups("shop")
        taken = datetime.fromisoformat(backup["taken_at"]).timestamp()
        shop, broken = {"database": "shop"}, {"database": "broken"}
        for name, wanted in {
            "backup_last_success_timestamp_seconds": taken,
            "proven_backup_timestamp_seconds": taken,
            "backup_stored_bytes": backup["stored_bytes"],
            "backup_raw_bytes": backup["raw_bytes"],
            "repository_bytes": backup["stored_bytes"],
            "retained_backups": 1,
            "backup_last_status": 1,
            "verify_last_status": 1,
            "backup_overdue_seconds": 0,
            "prune_paused": 0,
            "retention_excess_backups": 0,
        }.items():
            assert value(found, name, **shop) == pytest.approx(wanted), name
        assert value(found, "backups_total", outcome="success", **shop) == 1
        assert value(found, "backups_total", outcome="failure", **shop) == 0
        assert value(found, "backups_total", outcome="failure", **broken) == 1
        assert value(found, "backup_last_status", **broken) == 0
        assert value(found, "backup_last_success_timestamp_seconds", **broken) is None
        assert value(found, "retained_backups", **broken) == 0
        assert value(found, "verify_check_status", check="rows", **shop) == 1
        assert value(found, "job_running", job="backup", **shop) == 0
        ahead = value(found, "next_run_timestamp_seconds", job="backup", **shop)
        assert ahead is not None
        assert 0 < ahead - times.now().timestamp() <= 3600
        assert running.stop() == 0
    text = DOCS.read_text()
    for name in {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in names}:
        assert f"`{name}" in text, f"{name} is not in docs/metrics.md"
    with daemon(site, name="again") as running:
        assert until(lambda: value(again(port), "proven_backup_timestamp_seconds", database="shop") == taken, 30)
        assert value(scraped(port), "backup_last_success_timestamp_seconds", database="shop") == pytest.approx(taken)
        assert running.stop() == 0


def again(port: int) -> dict[Sample, float]:
    try:
        return scraped(port)
    except OSError:
        return {}


def test_the_command_says_what_the_repository_says(site: Site) -> None:
    with filling(site) as filled:
        old = [filled.backup(times.now() - timedelta(hours=n)) for n in (30, 5)]
        filled.proof(old[1], times.now() - timedelta(hours=4), status="failed")
    site.set("retention", "{ keep_last = 1 }", table="defaults")
    found = samples(site.run("metrics").out)
    assert value(found, "retained_backups", database="shop") == 2
    assert value(found, "verify_last_status", database="shop") == 0
    assert value(found, "prune_paused", database="shop") == 1
    overdue = value(found, "backup_overdue_seconds", database="shop")
    assert overdue is not None
    assert 2.5 * 3600 < overdue < 5 * 3600
    assert value(found, "backup_overdue_seconds", database="broken") is None
