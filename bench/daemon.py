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
from bench import report
from tests.site import Site, local_site

_HERE = Path(__file__).parent
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


class Span:
    """A time, and what became of the machine's processors in it (proc_stat(5))."""

    def __init__(self) -> None:
        self.begins = self.ends = datetime.now(UTC)
        self._before = self._after = _ticks()

    def close(self) -> None:
        self.ends, self._after = datetime.now(UTC), _ticks()

    def _share(self, *which: int) -> float:
        gone = [after - before for before, after in zip(self._before, self._after, strict=True)]
        return sum(gone[i] for i in which) / max(1, sum(gone))

    @property
    def busy(self) -> float:
        return self._share(0, 1, 2, 5, 6)  # user, nice, system, interrupts

    @property
    def stolen(self) -> float:
        return self._share(7)


def _ticks() -> list[int]:
    return [int(number) for number in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]


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
    parser.add_argument("--no-write", action="store_true", help="leave README.md as it is")
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
    began, span = time.monotonic(), Span()
    with (folder / "log").open("w") as log:
        daemon = subprocess.Popen(
            site.command("run"), env=site.environ, cwd=site.folder, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            while time.monotonic() - began < given.minutes * 60 and daemon.poll() is None:
                time.sleep(1)
                watched.look(daemon.pid, began)
            span.close()
        finally:
            daemon.send_signal(signal.SIGTERM)
            code = daemon.wait(120)
    text = told(given, server, site, watched, span, code, (folder / "log").read_text())
    print(text)
    if not given.no_write:
        report.insert(_HERE / "README.md", "bench-daemon", text)
    return code


def told(
    given: argparse.Namespace, server: ThrowawayServer, site: Site, watched: Watched, span: Span, code: int, log: str
) -> str:
    """What was seen, as Markdown."""
    # The first minute is for what was never backed up: all databases at once.
    late, missed, doubled = lateness(site, span.begins + timedelta(minutes=1), span.ends)
    hundredths = statistics.quantiles(late, n=100)
    troubles = [
        line for line in log.splitlines() if '"level": "info"' not in line and "a new one was begun" not in line
    ]
    rows = [
        ("exit code", str(code)),
        ("backups in whole minutes", str(len(late))),
        ("slots without a backup", str(missed)),
        ("slots with more than one", str(doubled)),
        ("from the slot to its snapshot, median", f"{statistics.median(late):.0f} s"),
        ("99 of 100 within", f"{hundredths[98]:.0f} s"),
        ("the latest", f"{max(late):.0f} s"),
        ("most jobs at once", str(watched.most_jobs)),
        ("warnings and errors in the log", str(len(troubles))),
        ("CPU of the machine, used by all", f"{span.busy:.0%}"),
        ("CPU that its host kept from it", f"{span.stolen:.0%}"),
    ]
    every = max(1, len(watched.memory) // 10)
    memory = [
        (f"{seconds / 60:.0f}", f"{size / (1 << 20):.0f}") for seconds, size in watched.memory[every // 2 :: every]
    ]
    for line in troubles[:5]:
        print(line[:300])
    how = f"{given.databases} databases, `@every 1m` with {_JITTER} s of jitter, {given.jobs} jobs at a time"
    return "\n\n".join(
        [
            f"{span.begins:%Y-%m-%d}: {how}, {given.minutes:g} minutes.",
            report.table(("what", "seen"), rows),
            report.table(("minute", "memory of the daemon, MiB"), memory),
            f"Made with: {os.cpu_count()} cores; PostgreSQL {server.version[0]}; a folder as the storage.",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
