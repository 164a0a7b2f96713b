"""A real Prometheus with our rules, in front of a real daemon that backs up, fails, recovers, and fails a proof: each
alert fires and clears as it is meant to. Only the waiting is shortened: `for: 15m` takes no time here."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from backupd import times
from backupd.postgres.server import FAST, ThrowawayServer
from backupd.postgres.tools import choose_server, find_installations
from tests.acceptance.test_alerts import RULES
from tests.acceptance.test_daemon import NOWHERE, filled_database
from tests.daemon import daemon, until
from tests.filled import filling
from tests.programs import program
from tests.seaweed import SeaweedServer
from tests.site import Site, s3_site


@dataclass
class Prometheus:
    """One server, scraping every second."""

    port: int
    log: Path

    def ask(self, query: str) -> list[dict[str, str]]:
        url = f"http://127.0.0.1:{self.port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return [each["metric"] for each in json.load(answer)["data"]["result"]]
        except urllib.error.URLError:  # it starts
            return []

    def firing(self) -> set[tuple[str, str]]:
        """Alerts, and the database or else the host that they name."""
        found = self.ask('ALERTS{alertstate="firing"}')
        return {(each["alertname"].removeprefix("Backupd"), each.get("database", "")) for each in found}

    def wait(self, *wanted: tuple[str, str], without: tuple[tuple[str, str], ...] = (), seconds: float = 90) -> None:
        """Until these fire, and those do not."""
        wanted_, none = set(wanted), set(without)
        assert until(lambda: wanted_ <= (now := self.firing()) and not now & none, seconds), (
            f"wanted {wanted_}, without {none}, and there are {self.firing()}"
        )

    def is_quiet_of(self, database: str) -> None:
        """Nothing fires for it, nor for the daemon. On a busy machine a scrape may fail, which is told at once here."""
        assert until(lambda: not {alert for alert, of in self.firing() if of in (database, "")}, 60), self.firing()


def hurried(rules: str) -> str:
    """The same rules without their patience."""
    text = re.sub(r"(?m)^( +for: ).*$", r"\g<1>0s", rules)
    return text.replace("600 + 3 *", "2 + 3 *")


@contextmanager
def prometheus(folder: Path, port: int) -> Iterator[Prometheus]:
    folder.mkdir()
    (folder / "backupd.rules.yml").write_text(hurried(RULES.read_text()))
    scrape = {"job_name": "backupd", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["backupd.rules.yml"],
        "scrape_configs": [scrape],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # which is YAML too
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listens = int(free.getsockname()[1])
    log = folder / "log"
    with log.open("wb") as writing:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{listens}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            cwd=folder,
        )
    try:
        found = Prometheus(listens, log)
        assert until(lambda: bool(found.ask("up == 1")), 60), log.read_text()[-3000:]
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ThrowawayServer]:
    installation = choose_server(find_installations(), 15)
    with ThrowawayServer(installation, tmp_path / "server", port=0, settings=FAST) as found:
        yield found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SeaweedServer]:
    with SeaweedServer(tmp_path / "seaweed") as found:
        yield found


def made(folder: Path, dsn: str, store: SeaweedServer) -> Site:
    """shop is well; old has a backup of yesterday and can't be reached; never has none, and can't either."""
    site = s3_site(folder, store, store.new_bucket(), {"shop": dsn, "old": NOWHERE, "never": NOWHERE})
    site.set("schedule", '"@every 1m"', table="defaults")
    site.set("schedule", '"@every 1m"', table="databases.shop.verify")
    site.set("schedule", '"@every 1m"', table="databases.old.verify")
    site.edit(
        lambda text: (
            text + '\n[[databases.shop.verify.checks]]\nname = "orders"\nsql = "select count(*) >= 100 from orders"\n'
        )
    )
    for key, value in (("jitter", "0s"), ("refresh", "2s"), ("retry_delay", "1s")):
        site.set(key, f'"{value}"', table="daemon")
    site.set("retries", "100", table="daemon")
    site.set("listen", '"127.0.0.1:0"', table="server")
    with filling(site) as filled:
        filled.backup(times.now() - timedelta(days=1), "old")
    return site


def test_each_fires_and_clears(tmp_path: Path, server: ThrowawayServer, store: SeaweedServer) -> None:
    site = made(tmp_path / "site", filled_database(server.dsn()), store)
    shop, old, never = "shop", "old", "never"
    with daemon(site) as running:
        (told,) = running.wait(message="answers at")
        port = int(re.findall(r"http://[^ :]+:(\d+)", told["message"])[0])
        running.wait(database="shop", job="verify", status="done", seconds=90)
        with prometheus(tmp_path / "prometheus", port) as watching:
            # What can't be reached is told of, shop is not.
            watching.wait(
                *(("BackupStale", old), ("BackupFailing", old), ("ProofNeverMade", old)),
                *(("BackupFailing", never), ("BackupNeverMade", never)),
            )
            watching.is_quiet_of(shop)

            store.kill()
            watching.wait(("BackupFailing", shop), ("RepositoryViewStale", ""), seconds=120)
            assert ("BackupStale", shop) not in watching.firing()
            store.restart()
            running.signal(signal.SIGHUP)  # what waits to be tried again is tried at once
            watching.wait(without=(("BackupFailing", shop), ("RepositoryViewStale", "")), seconds=150)

            server.stop()
            watching.wait(("BackupFailing", shop), without=(("RepositoryViewStale", ""),), seconds=120)
            server.start()
            watching.wait(without=(("BackupFailing", shop),), seconds=150)

            site.edit(lambda text: text.replace(">= 100 from orders", "< 0 from orders"))
            running.signal(signal.SIGHUP)
            watching.wait(("ProofFailed", shop), ("PrunePaused", shop), seconds=120)
            site.edit(lambda text: text.replace("< 0 from orders", ">= 100 from orders"))
            running.signal(signal.SIGHUP)
            watching.wait(without=(("ProofFailed", shop), ("PrunePaused", shop)), seconds=120)
            watching.is_quiet_of(shop)

            assert running.stop() == 0
            watching.wait(("Absent", ""), seconds=60)
            assert {database for _, database in watching.firing()} <= {""}  # what nobody tells of any more is gone
