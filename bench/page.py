"""`make bench-page`: how fast the status page and /metrics answer where there is much to tell.

A repository of 500 databases with 200 backups each, made by a generator: manifests and proofs are real and signed, what
they stand for is not. A real daemon in front of it, with a folder as the storage. What a refresh asks the storage for
is counted in this process, on the same folder.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import ClassVar
from unittest import mock

from backupd import times
from backupd.catalog import Catalog
from backupd.config import load
from backupd.holdings import Keeper
from backupd.storage.base import ObjectInfo
from backupd.storage.local import LocalStorage
from bench import report
from tests.daemon import daemon, until
from tests.filled import filling
from tests.site import Site, local_site

_HERE = Path(__file__).parent
_ROUNDS = 15


def fill(site: Site, count: int, databases: list[str]) -> None:
    """A backup every three hours; one in ten was tested."""
    now = times.now()
    with filling(site) as filled:
        for database in databases:
            for number in range(count, 0, -1):
                at = now - timedelta(hours=3 * number - 2)
                made = filled.backup(at, database)
                if number % 10 == 1:
                    checks = tuple(
                        {"name": f"check {n}", "status": "passed", "detail": "as on the source"} for n in range(30)
                    )
                    filled.proof(made, at + timedelta(minutes=9), database, checks=tuple(checks))


class Counted(LocalStorage):
    """Counts what it is asked for."""

    asked: ClassVar[Counter[str]] = Counter()

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        self.asked["from the start" if start_after in ("", f"{prefix}manifests/") else "newer only"] += 1
        return super().list(prefix, start_after=start_after)


def asked(url: str) -> float:
    """Seconds until the whole answer is there."""
    began = time.monotonic()
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310
        answer.read()
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.page")
    parser.add_argument("--databases", type=int, default=500)
    parser.add_argument("--backups", type=int, default=200, help="of each")
    parser.add_argument("--no-write", action="store_true", help="leave README.md as it is")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-page-", dir=given.folder) as name:
        return measure(given, Path(name))


def measure(given: argparse.Namespace, folder: Path) -> int:
    names = [f"database-{number:03}" for number in range(given.databases)]
    site = local_site(folder / "site", dict.fromkeys(names, "postgresql://nobody@127.0.0.1:1/nothing"))
    site.set("schedule", '"0 0 1 1 *"', table="defaults")  # nothing is to be done but to look
    site.set("retention", "{ keep_last = 1000 }", table="defaults")
    site.set("listen", '"127.0.0.1:0"', table="server")
    site.set("refresh", '"10s"', table="daemon")
    print(f"making {given.databases * given.backups} backups")
    with ProcessPoolExecutor(2) as makers:
        fill(site, 1, names[:1])  # the marker
        list(makers.map(partial(fill, site, given.backups), [names[0::4], names[1::4], names[2::4], names[3::4]]))
    lists = refreshes(site, names)
    with daemon(site) as running:
        (told,) = running.wait(message="answers at", seconds=60)
        url = next(word for word in told["message"].split() if word.startswith("http")).rstrip(":")
        began = time.monotonic()

        def text() -> str:
            with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:  # noqa: S310
                return str(answer.read().decode())

        total = given.databases * given.backups
        assert until(lambda: retained(text()) >= total, 600), retained(text())
        whole = time.monotonic() - began
        time.sleep(240)  # refreshes in which the newest manifests are read, some of each
        rows = []
        for label, path in (
            ("the page", "/"),
            ("`/metrics`", "/metrics"),
            ("`/api/status`", "/api/status"),
            ("the page of one database", f"/databases/{names[7]}"),
        ):
            seconds = [asked(url + path) for _ in range(_ROUNDS)]
            with urllib.request.urlopen(url + path, timeout=60) as answer:  # noqa: S310
                size = len(answer.read())
            low, high = min(seconds) * 1000, max(seconds) * 1000
            rows.append(
                (
                    label,
                    f"{statistics.median(seconds) * 1000:.0f} ms",
                    f"{low:.0f} to {high:.0f} ms",
                    f"{size >> 10} KiB",
                )
            )
        memory = resident(running.process.pid)
        assert running.stop() == 0
    text_ = "\n\n".join(
        [
            f"{times.now():%Y-%m-%d}: {given.databases} databases, {total} backups, a proof for one in ten.",
            report.table(("what", "median", f"of {_ROUNDS}", "size"), rows),
            report.table(
                ("what", "seen"),
                [
                    ("memory of the daemon (Pss)", f"{memory >> 20} MiB"),
                    ("from the start until all backups are known", f"{whole:.0f} s"),
                    *lists,
                ],
            ),
        ]
    )
    print(text_)
    if not given.no_write:
        report.insert(_HERE / "README.md", "bench-page", text_)
    return 0


def retained(text: str) -> int:
    lines = (line for line in text.splitlines() if line.startswith("backupd_retained_backups{"))
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))


def resident(pid: int) -> int:
    """Proportional set size, in bytes."""
    with suppress(StopIteration):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:"))
    return 0


def refreshes(site: Site, names: list[str]) -> list[tuple[str, str]]:
    """What a refresh asks for: the first, the next, and one after an hour."""
    config = load(site.config, site.environ)
    catalog = Catalog(Counted(site.folder / "repository"), config.trusted_signers())
    keeper, rows, start = Keeper(), [], times.now()
    for label, after in (("the first", 0), ("the next", 5), ("one after an hour", 66)):
        Counted.asked.clear()
        began = time.monotonic()
        with mock.patch("backupd.times.now", lambda after=after: start + timedelta(minutes=after)):
            keeper.refresh(catalog, names)
        told = ", ".join(f"{number} {what}" for what, number in sorted(Counted.asked.items()))
        rows.append((f"LISTs of a refresh, {label}", f"{told}; {time.monotonic() - began:.1f} s"))
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
