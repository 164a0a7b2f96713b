"""The daemon over many cycles and rounds: too long for every day (`make test-large`)."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from backupd import prune, times
from backupd.catalog import Catalog
from backupd.config import load
from backupd.manifest import id_second
from backupd.postgres.server import ThrowawayServer
from backupd.retention import Policy
from backupd.storage.connect import connect
from tests.daemon import daemon, until
from tests.postgres import NewDatabase
from tests.seaweed import SeaweedServer
from tests.site import Site, local_site, s3_site

CYCLES, ROUNDS, SEED = 50, 20, 7

pytestmark = pytest.mark.large


def filled(new_database: NewDatabase, server: ThrowawayServer) -> str:
    dsn = new_database(server)
    with psycopg.connect(dsn) as connection:
        connection.execute("create table orders as select g as id, md5(g::text) from generate_series(1, 20000) g")
    return dsn


def hasty(site: Site) -> Site:
    site.set("schedule", '"@every 1m"', table="defaults")
    site.set("shutdown_timeout", '"1s"', table="daemon")
    site.set("retry_delay", '"1s"', table="daemon")
    site.set("listen", '"127.0.0.1:0"', table="server")
    return site


@pytest.mark.timeout(1800)
def test_ended_at_random(
    pg15: ThrowawayServer, new_database: NewDatabase, s3_server: SeaweedServer, s3_bucket: str, tmp_path: Path
) -> None:
    """By every signal, with S3: no half backup, no process, no lock, and after the grace time no object too many."""
    dsns = {f"db{n:02}": filled(new_database, pg15) for n in range(12)}
    site = hasty(s3_site(tmp_path / "site", s3_server, s3_bucket, dsns))
    rng, ends = random.Random(SEED), Counter[str]()
    for cycle in range(CYCLES):
        number = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
        with daemon(site, "--verbose", name=f"cycle{cycle}") as running:
            time.sleep(rng.uniform(0.2, 8))
            running.signal(number)
            if number is signal.SIGHUP:
                time.sleep(rng.uniform(0, 2))
                assert running.process.poll() in (None, -signal.SIGHUP, 128 + signal.SIGHUP), running.told()
                if running.process.poll() is not None:
                    assert not running.find(message="backupd runs")
                    continue
                running.signal(signal.SIGTERM)
            code = running.process.wait(60)
            # A signal that comes while Python itself starts ends it as it ends any program.
            early = code in (-signal.SIGTERM, 128 + signal.SIGTERM) and not running.find(message="backupd runs")
            assert code == (-9 if number is signal.SIGKILL else 0) or early, (code, running.told())
            assert running.gone()
        ends[number.name] += 1
    assert len(ends) == 3
    with psycopg.connect(pg15.dsn()) as connection:
        held = (
            "select count(*) from pg_stat_activity where application_name like 'backupd%' and pid <> pg_backend_pid()"
        )
        assert until(lambda: connection.execute(held).fetchone() == (0,), 10)
        connection.rollback()
    with daemon(site, name="last") as running:
        for name in dsns:
            running.wait(database=name, job="backup", status="done", seconds=120)
        assert running.stop() == 0
    unexpected = [json.dumps(line) for line in running.lines() if line["level"] == "error"]
    assert unexpected == []
    config = load(site.config, site.environ)
    with closing(connect(config.repository.url, config.s3_settings())) as storage:
        catalog, wanted, later = Catalog(storage, config.trusted_signers()), {"backupd.json"}, times.now()
        for name, database in config.databases.items():
            plan = prune.plan(
                catalog, name, Policy(), later + timedelta(days=3), database.timezone, grace=timedelta(days=2)
            )
            prune.run(plan, catalog)
            for ref in catalog.backups(name):
                found = catalog.manifest(ref)
                catalog.check_objects(found)
                wanted |= {each.key for each in found.objects}
                wanted |= {f"{name}/manifests/{ref.id}.json", f"{name}/signatures/{ref.id}.json.minisig"}
        assert {info.key for info in storage.list("")} == wanted
        assert list(storage.unfinished("")) == []


@pytest.mark.timeout(1800)
def test_two_for_many_rounds(pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path) -> None:
    """Two daemons, one repository, the same databases: every slot is done once."""
    dsns = {f"db{n}": filled(new_database, pg15) for n in range(3)}
    site = hasty(local_site(tmp_path / "site", dsns))
    site.set("jitter", '"5s"', table="daemon")
    with daemon(site, name="one") as one, daemon(site, name="two") as two:
        begins = times.now()
        time.sleep(60 * (ROUNDS + 1))
        ends = times.now()
        assert [one.stop(), two.stop()] == [0, 0]
    first = begins.replace(second=0, microsecond=0) + timedelta(minutes=1)
    slots = [first + timedelta(minutes=n) for n in range(ROUNDS) if first + timedelta(minutes=n + 1) <= ends]
    assert len(slots) >= ROUNDS - 1
    for name in dsns:
        taken = [id_second(row["id"]) for row in site.backups(name)]
        per = Counter(moment.replace(second=0) for moment in taken if moment is not None)
        assert {slot: per[slot] for slot in slots} == dict.fromkeys(slots, 1), name
