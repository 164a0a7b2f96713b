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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from backupd import times
from bench import contents, report, targets
from bench.contenders import JOBS
from bench.kinds import KINDS
from bench.measure import FailedError
from bench.world import SOURCE, Sample, World, machine, world
from tests.daemon import daemon
from tests.faulty_proxy import FaultyProxy
from tests.filled import filling
from tests.site import Site, s3_site

_HERE = Path(__file__).parent
_STARTS = 11
_ROUNDS = 3  # of what takes seconds


# ---- cost against size


@dataclass(frozen=True, slots=True)
class Size:
    """One command on one size."""

    command: str
    raw: int  # bytes
    seconds: float
    cpu: float  # seconds of backupd and its children; of a verification, the scratch server is one
    peak: int  # bytes of memory
    written: int  # bytes to local disks, by backupd and its children

    @staticmethod
    def of(command: str, raw: int, sample: Sample) -> Size:
        run = sample.run
        return Size(command, raw, run.seconds, run.cpu, run.peak, run.written)


def sizes(given: argparse.Namespace) -> Iterator[Size]:
    for gigabytes in given.sizes:
        with world(folder=given.folder, major=given.major, timeout=given.timeout) as place:
            print(f"building {gigabytes:g} GB", file=sys.stderr, flush=True)
            kind = KINDS["single"]
            kind.build(place.programs, place.create(SOURCE), gigabytes / kind.gigabytes)
            rows = contents.counts(place.source)
            place.warm_up()
            with place.bucket("scale") as bucket:
                for size in _of_one_size(place, bucket, rows):
                    print(f"{size.command} {gigabytes:g} GB: {size.seconds:.1f} s", file=sys.stderr, flush=True)
                    yield size


def _of_one_size(place: World, bucket: str, rows: Mapping[str, int]) -> Iterator[Size]:
    site = place.s3_site(bucket)
    site.set("scratch_folder", f'"{place.folder}"', table="defaults.verify")
    backup = place.backupd(site, "backup", SOURCE, "--jobs", JOBS, "--json")
    raw = json.loads(backup.run.out)[0]["raw_bytes"]
    yield Size.of("backup", raw, backup)
    restored = ("restore", SOURCE, "--at", "latest", "--into", "restored", "--jobs", JOBS, "--yes")
    yield Size.of("restore", raw, place.backupd(site, *restored))
    if contents.counts(place.server.dsn("restored")) != rows:
        raise FailedError("the restored database has other rows than the source")
    place.drop("restored")
    yield Size.of("verify", raw, place.backupd(site, "verify", SOURCE))


def small(given: argparse.Namespace) -> dict[str, Any]:
    """A test restore of a small database, the scratch server's start among it."""
    with world(folder=given.folder, major=given.major, timeout=given.timeout) as place:
        KINDS["single"].build(place.programs, place.create(SOURCE), 0.001)
        place.warm_up()
        with place.bucket("small") as bucket:
            site = place.s3_site(bucket)
            site.run("backup", SOURCE)
            site.run("verify", SOURCE)  # nobody's first
            seconds = [place.backupd(site, "verify", SOURCE).run.seconds for _ in range(_ROUNDS)]
        return {"bytes": contents.size(place.source), "seconds": seconds}


def sizes_told(found: list[dict[str, Any]]) -> str:
    rows = []
    for each in sorted(found, key=lambda each: (each["command"], each["raw"])):
        gigabytes = each["raw"] / 1e9
        cells = [
            f"{gigabytes:.2f}",
            f"{each['seconds']:.1f}",
            f"{each['seconds'] / gigabytes:.1f}",
            f"{each['cpu'] / gigabytes:.1f}",
            f"{each['peak'] / 2**20:.0f} MiB",
            f"{each['written']:,} B" if each["command"] != "verify" else "",
        ]
        rows.append([f"`{each['command']}`", *cells])
    return report.table(("command", "raw GB", "s", "s a GB", "CPU s a GB", "peak memory", "written locally"), rows)


# ---- many backups


@dataclass(frozen=True, slots=True)
class Many:
    """One command among many backups."""

    backups: int
    command: str
    seconds: float
    lists: int | None = None  # requests; not counted of a daemon
    gets: int | None = None


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


def many(given: argparse.Namespace) -> Iterator[Many]:
    with world(folder=given.folder, major=given.major, timeout=given.timeout) as place:
        place.create(SOURCE)
        place.warm_up()
        for count in given.backups:
            with place.bucket(f"many-{count}") as bucket:
                site = s3_site(place.folder / f"many-{count}", place.s3, bucket, {SOURCE: place.source})
                print(f"making {count} backups", file=sys.stderr, flush=True)
                fill(site, count - 1)
                site.run("backup", SOURCE)
                site.run("prune", SOURCE)  # it sums up what there is
                for each in _among(place, site, count):
                    print(f"{count} backups: {each}", file=sys.stderr, flush=True)
                    yield each


def _among(place: World, site: Site, count: int) -> Iterator[Many]:
    for arguments in (
        ("list", SOURCE, "--json"),
        ("restore", SOURCE, "--at", "latest", "--dry-run"),
        ("prune", SOURCE, "--dry-run", "--json"),
    ):
        name = " ".join(each for each in arguments if each not in (SOURCE, "--json"))
        asked = counted(place, site, *arguments)
        seconds = median(place.backupd(site, *arguments).run.seconds for _ in range(_ROUNDS))
        yield Many(count, name, seconds, asked["List"], asked["Get"])
    yield Many(count, "run", _ready(site))


def _ready(site: Site) -> float:
    began = time.perf_counter()
    with daemon(site) as running:
        running.wait(message="backupd runs", seconds=120)
        return time.perf_counter() - began


def many_told(found: list[dict[str, Any]]) -> str:
    rows = [
        [
            f"{each['backups']:,}",
            f"`{each['command']}`" + ", until it is ready" * (each["command"] == "run"),
            f"{each['seconds']:.2f}",
            *("" if each[name] is None else str(each[name]) for name in ("lists", "gets")),
        ]
        for each in found
    ]
    return report.table(("backups", "command", "s", "LIST", "GET"), rows, left=2)


# ---- the command line's start


def starts(_: argparse.Namespace) -> dict[str, float]:
    """Seconds, by what is started; medians."""

    def took(*arguments: str) -> float:
        def once() -> float:
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True, timeout=60)
            return time.perf_counter() - began

        once()  # compiles the modules
        return median(once() for _ in range(_STARTS))

    return {
        "python -c pass": took("-c", "pass"),
        "backupd --help": took("-m", "backupd", "--help"),
        "backupd --version": took("-m", "backupd", "--version"),
    }


def starts_told(found: dict[str, float]) -> str:
    return report.table(("command", "s"), [[f"`{name}`", f"{seconds:.2f}"] for name, seconds in found.items()])


# ----

PARTS: dict[str, tuple[Callable[[argparse.Namespace], Any], Callable[[Any], str] | None]] = {
    "start": (starts, starts_told),
    "small": (small, None),
    "many": (lambda given: [asdict(each) for each in many(given)], many_told),
    "size": (lambda given: [asdict(each) for each in sizes(given)], sizes_told),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="measure only these")
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=[0.1, 1, 5, 20], help="gigabytes on the server's disk"
    )
    parser.add_argument("--backups", type=int, nargs="+", default=[100, 1000, 10_000], help="how many there are")
    parser.add_argument("--major", type=int, help="PostgreSQL's major version (default: the newest of this machine)")
    parser.add_argument("--folder", type=Path, help="where to put up to 60 GB for a while (default: /var/tmp)")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds that one program may take (default: 3600)")
    parser.add_argument("--no-write", action="store_true", help="leave README.md and scale.json as they are")
    given = parser.parse_args()
    with world(folder=given.folder, major=given.major, timeout=given.timeout) as place:
        found = machine(place)
    for name in given.only:
        measure, tell = PARTS[name]
        made = measure(given)
        text = f"{found['date']}.\n\n{tell(made)}\n\n{report.machine(found)}" if tell else f"{made}"
        print(text)
        if not given.no_write:
            targets.keep(name, {"machine": found, "found": made})
            if tell:
                report.insert(_HERE / "README.md", f"bench-{name}", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
