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
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from backupd.manifest import id_second
from backupd.postgres.server import FAST, ThrowawayServer
from backupd.postgres.tools import choose_server, find_installations
from bench import report
from tests.site import local_site

_HERE = Path(__file__).parent
_JITTER = 30  # seconds over which the jobs of one slot are spread
_MINUTE = timedelta(minutes=1)
_TOLD = 3  # minutes to a row
_KEPT = 10  # minutes; from then on as many backups go as come, and memory has no reason to grow


@dataclass(frozen=True, slots=True)
class Minute:
    """How things were when a minute of the clock began."""

    at: datetime
    memory: int  # bytes of the daemon's lasting processes
    ticks: Sequence[int]  # of the machine's processors (proc_stat(5))


@dataclass
class Watched:
    """What was seen of the daemon while it ran."""

    minutes: list[Minute] = field(default_factory=list)
    most_jobs: int = 0
    stored: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # IDs of all that were listed, ever

    def list(self, repository: Path) -> None:
        """Note the backups that are there, before a prune takes them."""
        for folder in repository.glob("*/manifests"):
            self.stored[folder.parent.name] |= {entry.name.partition(".")[0] for entry in os.scandir(folder)}

    def look(self, root: int, repository: Path) -> None:
        children: dict[int, list[int]] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                parent = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(path.parent.name))
        lasting = [root, *children.get(root, [])]  # the daemon, and what forks its jobs
        jobs = [child for one in children.get(root, []) for child in children.get(one, [])]
        self.most_jobs = max(self.most_jobs, len(jobs))
        minute = datetime.now(UTC).replace(second=0, microsecond=0)
        if not self.minutes or self.minutes[-1].at != minute:
            ticks = Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
            self.minutes.append(Minute(minute, sum(map(_memory, lasting)), [int(number) for number in ticks]))
            self.list(repository)


def _memory(pid: int) -> int:
    """Bytes that a process has of its own, shared with its jobs or not: what was not read from files."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Anonymous:"))
    return 0


@dataclass(frozen=True, slots=True)
class Span:
    """From the beginning of one minute to that of another."""

    first: Minute
    last: Minute

    def _share(self, *which: int) -> float:
        gone = [after - before for before, after in zip(self.first.ticks, self.last.ticks, strict=True)]
        return sum(gone[i] for i in which) / max(1, sum(gone))

    @property
    def slots(self) -> Sequence[datetime]:
        return [self.first.at + timedelta(minutes=n) for n in range((self.last.at - self.first.at) // _MINUTE)]

    @property
    def busy(self) -> float:
        return self._share(0, 1, 2, 5, 6)  # user, nice, system, interrupts

    @property
    def stolen(self) -> float:
        return self._share(7)


@dataclass(frozen=True, slots=True)
class Lateness:
    """What became of the slots of a time."""

    late: Sequence[float]  # seconds from each slot to its backup's snapshot
    missed: Counter[datetime]  # by slot, how many databases have no backup of it
    doubled: int

    @staticmethod
    def of(stored: Mapping[str, set[str]], span: Span) -> Lateness:
        late: list[float] = []
        missed, doubled, slots = Counter[datetime](), 0, set(span.slots)
        for backups in stored.values():
            taken = [moment for backup in backups if (moment := id_second(backup)) is not None]
            per = Counter(slot for moment in taken if (slot := moment.replace(second=0)) in slots)
            late += [moment.second for moment in taken if moment.replace(second=0) in slots]
            missed.update(slot for slot in slots if not per[slot])
            doubled += sum(number > 1 for number in per.values())
        return Lateness(late, missed, doubled)


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
    site.set("retention", f'{{ keep_within = "{_KEPT}m" }}', table="defaults")
    site.set("jobs", str(given.jobs), table="daemon")
    site.set("jitter", f'"{_JITTER}s"', table="daemon")
    print(f"{given.databases} databases of PostgreSQL {server.version[0]}, {given.jobs} jobs, {os.cpu_count()} cores")
    watched = Watched()
    began, repository = time.monotonic(), site.folder / "repository"
    with (folder / "log").open("w") as log:
        daemon = subprocess.Popen(
            site.command("run"), env=site.environ, cwd=site.folder, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            while time.monotonic() - began < given.minutes * 60 and daemon.poll() is None:
                time.sleep(1)
                watched.look(daemon.pid, repository)
        finally:
            daemon.send_signal(signal.SIGTERM)
            code = daemon.wait(120)
            watched.list(repository)
    text = told(given, server, watched, code, (folder / "log").read_text())
    print(text)
    if not given.no_write:
        report.insert(_HERE / "README.md", "bench-daemon", text)
    return code


def told(given: argparse.Namespace, server: ThrowawayServer, watched: Watched, code: int, log: str) -> str:
    """What was seen, as Markdown."""
    # The first two minutes are for what was never backed up: all databases at once.
    span = Span(watched.minutes[2], watched.minutes[-1])
    found = Lateness.of(watched.stored, span)
    hundredths = statistics.quantiles(found.late, n=100)
    troubles = [
        line for line in log.splitlines() if '"level": "info"' not in line and "a new one was begun" not in line
    ]
    rows = [
        ("exit code", str(code)),
        ("backups in whole minutes", str(len(found.late))),
        ("slots without a backup", f"{found.missed.total()} of {len(span.slots) * given.databases}"),
        ("slots with more than one", str(found.doubled)),
        ("from the slot to its snapshot, median", f"{statistics.median(found.late):.0f} s"),
        ("99 of 100 within", f"{hundredths[98]:.0f} s"),
        ("the latest", f"{max(found.late):.0f} s"),
        ("most jobs at once", str(watched.most_jobs)),
        ("warnings and errors in the log", str(len(troubles))),
        ("CPU of the machine, used by all", f"{span.busy:.0%}"),
        ("CPU that its host kept from it", f"{span.stolen:.0%}"),
    ]
    spans = [Span(first, last) for first, last in zip(watched.minutes[2:], watched.minutes[2 + _TOLD :], strict=False)]
    minutes = [
        (
            f"{_number(watched, each.first)} to {_number(watched, each.last)}",
            f"{each.last.memory / (1 << 20):.0f}",
            f"{each.busy:.0%}",
            f"{each.stolen:.0%}",
            str(sum(found.missed[slot] for slot in each.slots)),
        )
        for each in spans[::_TOLD]
    ]
    for line in troubles[:5]:
        print(line[:300])
    how = (
        f"{given.databases} databases, `@every 1m` with {_JITTER} s of jitter, each backup kept for {_KEPT} minutes,"
        f" {given.jobs} jobs at a time"
    )
    return "\n\n".join(
        [
            f"{span.first.at:%Y-%m-%d}: {how}, {given.minutes:g} minutes.",
            report.table(("what", "seen"), rows),
            report.table(
                ("minutes", "memory of the daemon then, MiB", "CPU used", "kept by the host", "slots without"), minutes
            ),
            f"Made with: {os.cpu_count()} cores; PostgreSQL {server.version[0]}; a folder as the storage.",
        ]
    )


def _number(watched: Watched, minute: Minute) -> int:
    """Of the minutes since the daemon's start."""
    return (minute.at - watched.minutes[0].at) // _MINUTE


if __name__ == "__main__":
    raise SystemExit(main())
