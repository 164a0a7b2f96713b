"""`make bench-scale`: what backupd costs as the database grows, as backups accumulate, and when it starts.

The many backups are made by a generator: manifests are real and signed, the streams behind them are not, but for the
newest. Requests are counted by a proxy in front of the S3 server; times are measured without it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median

from backupd import times
from bench import contents, report
from bench.contenders import JOBS
from bench.kinds import KINDS
from bench.measure import FailedError
from bench.world import SOURCE, Sample, World, machine, world
from tests.daemon import daemon
from tests.faulty_proxy import FaultyProxy
from tests.filled import filling
from tests.site import Site, s3_site

_HERE = Path(__file__).parent
_LIMIT = 256 << 20  # bytes of memory
_MOST_LISTS, _MOST_GETS = 12, 3
_STARTS = 11


# ---- cost against size


@dataclass(frozen=True, slots=True)
class Size:
    """One command on one size."""

    command: str
    raw: int  # bytes
    sample: Sample


def sizes(given: argparse.Namespace) -> list[Size]:
    found = []
    for gigabytes in given.sizes:
        with world(folder=given.folder, major=given.major, timeout=given.timeout) as place:
            kind = KINDS["single"]
            kind.build(place.programs, place.create(SOURCE), gigabytes / kind.gigabytes)
            rows = contents.counts(place.source)
            place.warm_up()
            with place.bucket("scale") as bucket:
                site = place.s3_site(bucket)
                site.set("scratch_folder", f'"{place.folder}"', table="defaults.verify")
                backup = place.backupd(site, "backup", SOURCE, "--jobs", JOBS, "--json")
                raw = json.loads(backup.run.out)[0]["raw_bytes"]
                restore = place.backupd(site, "restore", SOURCE, "--at", "latest", "--into", "restored", "--yes")
                if contents.counts(place.server.dsn("restored")) != rows:
                    raise FailedError("the restored database has other rows than the source")
                place.drop("restored")
                verify = place.backupd(site, "verify", SOURCE)
            for name, sample in (("backup", backup), ("restore", restore), ("verify", verify)):
                found.append(Size(name, raw, sample))
                print(f"{name} {gigabytes} GB: {sample.run.seconds:.1f} s", file=sys.stderr, flush=True)
    return found


def sizes_told(found: Sequence[Size]) -> str:
    rows = []
    for each in sorted(found, key=lambda each: (each.command, each.raw)):
        run, gigabytes = each.sample.run, each.raw / 1e9
        cells = [
            f"{gigabytes:.2f}",
            f"{run.seconds:.1f}",
            f"{run.seconds / gigabytes:.1f}",
            f"{run.cpu / gigabytes:.1f}",
        ]
        rows.append([f"`{each.command}`", *cells, f"{run.peak / 2**20:.0f} MiB"])
    text = report.table(("command", "raw GB", "s", "s a GB", "CPU s a GB", "peak memory"), rows)
    verdicts = []
    for command in ("backup", "restore", "verify"):
        peaks = {each.raw: each.sample.run.peak for each in found if each.command == command}
        middle, largest = sorted(peaks)[-2:] if len(peaks) > 1 else (0, 0)
        if middle:
            ratio = peaks[largest] / peaks[middle]
            met = report.verdict(abs(ratio - 1) <= 0.1 and peaks[largest] < _LIMIT)
            verdicts.append(f"`{command}` {ratio:.2f} × ({met})")
    return text + "\n\nPeak memory of the largest against the one before it: " + ", ".join(verdicts) + "."


# ---- many backups


def fill(site: Site, count: int) -> None:
    """An hourly backup; one a week was tested."""
    now = times.now()
    with filling(site) as filled:
        for number in range(count, 0, -1):
            made = filled.backup(now - timedelta(hours=number), SOURCE)
            if number % 168 == 0:
                filled.proof(made, now - timedelta(hours=number - 1), SOURCE)


def counted(place: World, site: Site, *arguments: str) -> Counter[str]:
    """What one command asks the storage for."""
    with FaultyProxy(("127.0.0.1", place.s3.port)) as proxy:
        text = site.config.read_text()
        site.edit(lambda text: text.replace(place.s3.endpoint, proxy.endpoint))
        try:
            site.run(*arguments)
        finally:
            site.config.write_text(text)
        return Counter(proxy.operations())


def many(given: argparse.Namespace) -> str:
    rows = []
    with world(folder=given.folder, major=given.major, timeout=given.timeout) as place:
        place.create(SOURCE)
        place.warm_up()
        for count in given.backups:
            with place.bucket(f"many-{count}") as bucket:
                site = s3_site(place.folder / f"many-{count}", place.s3, bucket, {SOURCE: place.source})
                fill(site, count - 1)
                site.run("backup", SOURCE)
                site.run("prune", SOURCE)  # it sums up what there is
                rows += many_told(place, site, count)
    return report.table(("backups", "command", "s", "LIST", "GET", "at most", "verdict"), rows)


def many_told(place: World, site: Site, count: int) -> list[list[str]]:
    rows = []
    for arguments in (
        ("list", SOURCE, "--json"),
        ("restore", SOURCE, "--at", "latest", "--dry-run"),
        ("prune", SOURCE, "--dry-run", "--json"),
    ):
        name = " ".join(each for each in arguments if each not in (SOURCE, "--json"))
        asked = counted(place, site, *arguments)
        seconds = median(place.backupd(site, *arguments).run.seconds for _ in range(3))
        print(f"{count} backups: {name}: {seconds:.2f} s, {dict(asked)}", file=sys.stderr, flush=True)
        limits = [f"{_MOST_LISTS} and {_MOST_GETS}", report.verdict(_within(asked, arguments[0]))]
        verdict = limits if arguments[0] != "prune" else ["", ""]
        rows.append([f"{count:,}", f"`{name}`", f"{seconds:.2f}", str(asked["List"]), str(asked["Get"]), *verdict])
    rows.append([f"{count:,}", "`run`, until it is ready", f"{_ready(site):.2f}", "", "", "", ""])
    return rows


def _within(asked: Counter[str], command: str) -> bool:
    """A restore has found its backup by then, and reads that one's schema and roles as well."""
    spared = 2 if command == "restore" else 0
    return asked["List"] <= _MOST_LISTS and asked["Get"] - spared <= _MOST_GETS


def _ready(site: Site) -> float:
    began = time.perf_counter()
    with daemon(site) as running:
        running.wait(message="ready", seconds=120)
        return time.perf_counter() - began


# ---- the command line's start


def starts() -> str:
    def took(*arguments: str) -> float:
        command = [sys.executable, "-m", "backupd", *arguments]

        def once() -> float:
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            return time.perf_counter() - began

        once()  # compiles the modules
        return median(once() for _ in range(_STARTS))

    bare = _python()
    rows = [["`python -c pass`", f"{bare:.2f}", "", ""]]
    for name, limit in (("--help", 0.3), ("--version", 0.3)):
        seconds = took(name)
        rows.append([f"`backupd {name}`", f"{seconds:.2f}", f"≤ {limit:g}", report.verdict(seconds <= limit)])
    return report.table(("command", "s", "at most", "verdict"), rows)


def _python() -> float:
    def once() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True, timeout=60)
        return time.perf_counter() - began

    return median(once() for _ in range(_STARTS))


# ----


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sizes", type=float, nargs="*", default=[0.1, 1, 5, 20], help="gigabytes on the server's disk"
    )
    parser.add_argument("--backups", type=int, nargs="*", default=[100, 1000, 10_000], help="how many there are")
    parser.add_argument("--major", type=int, help="PostgreSQL's major version (default: the newest of this machine)")
    parser.add_argument("--folder", type=Path, help="where to put up to 60 GB for a while (default: /var/tmp)")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds that one program may take (default: 3600)")
    parser.add_argument("--no-write", action="store_true", help="leave README.md as it is")
    given = parser.parse_args()
    parts: dict[str, Callable[[], str]] = {
        "bench-start": starts,
        "bench-many": lambda: many(given) if given.backups else "",
        "bench-size": lambda: sizes_told(sizes(given)) if given.sizes else "",
    }
    with world(folder=given.folder, major=given.major, timeout=given.timeout) as place:
        made = report.machine(found := machine(place))
    for name, part in parts.items():
        if text := part():
            text = f"{found['date']}.\n\n{text}\n\n{made}"
            print(text)
            if not given.no_write:
                report.insert(_HERE / "README.md", name, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
