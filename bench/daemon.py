"""`make bench-daemon`: 200 databases of one server, each backed up every minute by `backupd run`, for half an hour.

What is told: how late after its slot each backup was, by the snapshot's own time; how many jobs ran at once; and what
memory the daemon's lasting processes take, minute by minute.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from backupd.manifest import id_second
from backupd.postgres.server import FAST, ThrowawayServer
from backupd.postgres.tools import choose_server, find_installations
from tests.site import Site, local_site

_JITTER = 30  # seconds over which the jobs of one slot are spread


@dataclass
class Watched:
    """What was seen of the daemon while it ran."""

    memory: list[tuple[int, int]] = field(default_factory=list)  # seconds since the start; bytes of lasting processes
    most_jobs: int = 0

    def look(self, root: int, began: float) -> None:
        children: dict[int, list[int]] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                parent = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(path.parent.name))
        lasting = [root, *children.get(root, [])]  # the daemon, and what forks its jobs
        jobs = [child for one in children.get(root, []) for child in children.get(one, [])]
        self.most_jobs = max(self.most_jobs, len(jobs))
        total = 0
        for pid in lasting:
            with suppress(OSError):
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:"))
        self.memory.append((round(time.monotonic() - began), total))


def lateness(site: Site, begins: datetime, ends: datetime) -> tuple[list[float], int, int]:
    """Seconds from each slot to its backup's snapshot; how many slots have none, and how many have more than one."""
    late: list[float] = []
    missed = doubled = 0
    first = begins.replace(second=0, microsecond=0) + timedelta(minutes=1)
    slots = [first + timedelta(minutes=n) for n in range(int((ends - first) / timedelta(minutes=1)))]
    for folder in (site.folder / "repository").iterdir():
        if not (folder / "manifests").is_dir():
            continue
        taken = [id_second(path.stem) for path in (folder / "manifests").iterdir()]
        per = Counter(moment.replace(second=0) for moment in taken if moment is not None)
        late += [(m - m.replace(second=0)).total_seconds() for m in taken if m is not None and first <= m < ends]
        missed += sum(per[slot] == 0 for slot in slots)
        doubled += sum(per[slot] > 1 for slot in slots)
    return late, missed, doubled


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.daemon")
    parser.add_argument("--databases", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-daemon-", dir=given.folder) as name:
        folder = Path(name)
        folder.chmod(0o711)
        settings = {**FAST, "max_connections": "60"}
        with ThrowawayServer(choose_server(find_installations(), None), folder / "server", settings=settings) as server:
            return measure(given, folder, server)


def measure(given: argparse.Namespace, folder: Path, server: ThrowawayServer) -> int:
    dsns = {f"db{n:03}": server.dsn(f"db{n:03}") for n in range(given.databases)}
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        for database in dsns:
            connection.execute(f"create database {database}".encode())
    for dsn in dsns.values():
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("create table t (id int primary key, t text)")
            connection.execute("insert into t select g, md5(g::text) from generate_series(1, 1000) g")
    site = local_site(folder / "site", dsns)
    site.set("schedule", '"@every 1m"', table="defaults")
    site.set("retention", '{ keep_within = "2h" }', table="defaults")
    site.set("jobs", str(given.jobs), table="daemon")
    site.set("jitter", f'"{_JITTER}s"', table="daemon")
    print(f"{given.databases} databases of PostgreSQL {server.version[0]}, {given.jobs} jobs, {os.cpu_count()} cores")
    watched = Watched()
    begins, began = datetime.now(UTC), time.monotonic()
    with (folder / "log").open("w") as log:
        daemon = subprocess.Popen(
            site.command("run"), env=site.environ, cwd=site.folder, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            while time.monotonic() - began < given.minutes * 60 and daemon.poll() is None:
                time.sleep(1)
                watched.look(daemon.pid, began)
            ends = datetime.now(UTC)
        finally:
            daemon.send_signal(signal.SIGTERM)
            code = daemon.wait(120)
    told(site, watched, begins, ends, code, (folder / "log").read_text())
    return code


def told(site: Site, watched: Watched, begins: datetime, ends: datetime, code: int, log: str) -> None:
    # The first minute is for what was never backed up: all databases at once.
    late, missed, doubled = lateness(site, begins + timedelta(minutes=1), ends)
    print(f"the daemon exited with {code}; {len(late)} backups in whole minutes")
    print(f"| slots without a backup | {missed} |\n| slots with more than one | {doubled} |")
    if late:
        tenths = statistics.quantiles(late, n=100)
        print(f"| after the slot, median | {statistics.median(late):.0f} s |")
        print(f"| 99 of 100 within | {tenths[98]:.0f} s |\n| the latest | {max(late):.0f} s |")
    print(f"| most jobs at once | {watched.most_jobs} |")
    other = [line for line in log.splitlines() if '"level": "info"' not in line]
    print(f"| warnings and errors | {len(other)} |")
    for line in other[:5]:
        print("   ", line[:300])
    print("| minute | memory, MiB |\n| ---: | ---: |")
    for seconds, size in watched.memory[:: max(1, len(watched.memory) // 10)]:
        print(f"| {seconds / 60:.0f} | {size / (1 << 20):.0f} |")


if __name__ == "__main__":
    raise SystemExit(main())
