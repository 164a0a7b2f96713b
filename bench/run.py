"""`make bench`: backupd against the shell pipeline, pg_dump and pg_restore, in turns on one machine."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from bench import database, report
from bench.measure import FailedError
from bench.world import SOURCE, Sample, World, machine, missing, unexpected, world
from tests.site import Site

_HERE = Path(__file__).parent
JOBS = "2"
_NEEDED = ("zstd", "age", "rclone")  # for the shell pipeline
_TOLERANCE = 0.2  # by how much the pipeline's object may differ from backupd's before it cannot be the same data


@dataclass
class Entry:
    """One measurement of one round, as results.json holds it."""

    name: str
    round: int
    seconds: float
    cpu: float  # of the programs; the servers' apart
    database_cpu: float
    storage_cpu: float
    peak: int  # bytes; see measure.Measured
    peak_bound: int
    stored: int | None = None  # bytes of what was made
    phases: dict[str, float] = field(default_factory=dict)  # seconds; of backupd

    @staticmethod
    def of(name: str, number: int, sample: Sample, stored: int | None = None) -> Entry:
        run = sample.run
        return Entry(
            name=name,
            round=number,
            seconds=run.seconds,
            cpu=run.cpu,
            database_cpu=sample.database_cpu,
            storage_cpu=sample.storage_cpu,
            peak=run.peak,
            peak_bound=run.peak_bound,
            stored=stored,
        )


class Round:
    """Every contender once, one after the other; each leaves what the next one needs."""

    def __init__(self, place: World, number: int, bucket: str, rows: dict[str, int], archive: Path) -> None:
        self._place = place
        self._number = number
        self._bucket = bucket
        self._rows = rows
        self._archive = archive  # made by pg_dump -Fc -Z0
        self._directory = place.folder / f"directory-{number}"  # by pg_dump -Fd -Z0
        self._site: Site | None = None
        self._stored = 0

    def backup_s3(self) -> Entry:
        self._site = self._place.s3_site(self._bucket)
        entry = self._backup("backup-s3", self._site)
        self._stored = entry.stored or 0
        return entry

    def shell_s3(self) -> Entry:
        """What a careful person types. The age key is backupd's, the database and the bucket are the same."""
        assert self._site is not None
        key = "shell/bench.dump.zst.age"
        sample = self._place.run(
            [self._place.client.program("pg_dump"), "-Fc", "-Z0", "-d", self._place.source],
            ["zstd", "-q", "-1", "-T2"],
            ["age", "-r", self._place.recipient(self._site)],
            ["rclone", "rcat", f"bench:{self._bucket}/{key}"],
        )
        stored = self._place.size(self._bucket, key)
        if abs(stored / self._stored - 1) > _TOLERANCE:
            raise FailedError(f"the shell pipeline stored {stored} bytes, and backupd {self._stored}")
        return Entry.of("shell-s3", self._number, sample, stored)

    def backup_local(self) -> Entry:
        site = self._place.local_site(f"local-{self._number}")
        try:
            return self._backup("backup-local", site)
        finally:
            shutil.rmtree(site.folder)

    def dump_directory(self) -> Entry:
        program = self._place.client.program("pg_dump")
        sample = self._place.run([program, "-Fd", "-Z0", "-j", JOBS, "-f", self._directory, "-d", self._place.source])
        stored = sum(path.stat().st_size for path in self._directory.iterdir())
        return Entry.of("dump-directory", self._number, sample, stored)

    def restore(self) -> Entry:
        assert self._site is not None
        name = "restored"
        sample = self._place.backupd(
            self._site, "restore", SOURCE, "--at", "latest", "--into", name, "--jobs", JOBS, "--yes"
        )
        entry = Entry.of("restore", self._number, sample)
        entry.phases = phases(sample)
        self._check(name, thoroughly=self._number == 1)
        return entry

    def pg_restore(self, name: str) -> Entry:
        """The database is made beforehand, which is not counted; there is no ANALYZE."""
        source = self._archive if name == "restore-custom" else self._directory
        program = self._place.client.program("pg_restore")
        target = self._place.create("restored")
        sample = self._place.run([program, "--exit-on-error", "-j", JOBS, "-d", target, source])
        self._check("restored", thoroughly=False)
        return Entry.of(name, self._number, sample)

    def dump_nowhere(self, name: str, *options: str) -> Entry:
        command: list[str | Path] = [self._place.client.program("pg_dump"), "-Fc", *options, "-d", self._place.source]
        return Entry.of(name, self._number, self._place.run(command, output=Path("/dev/null")))

    def close(self) -> None:
        """Leave room for the next round."""
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._site is not None:
            shutil.rmtree(self._site.folder)

    def _backup(self, name: str, site: Site) -> Entry:
        sample = self._place.backupd(site, "backup", SOURCE, "--jobs", JOBS, "--json")
        (made,) = json.loads(sample.run.out)
        if made["rows"] != sum(self._rows.values()):
            raise FailedError(f"the backup has {made['rows']} rows, and the source {sum(self._rows.values())}")
        entry = Entry.of(name, self._number, sample, made["stored_bytes"])
        entry.phases = phases(sample)
        return entry

    def _check(self, name: str, *, thoroughly: bool) -> None:
        """Compare a restored database with the source, then drop it."""
        dsn = self._place.server.dsn(name)
        if wrong := unexpected(database.counts(dsn), self._rows):
            raise FailedError(f"the restored database has other rows than the source: {wrong}")
        if thoroughly and (wrong := unexpected(database.fingerprint(dsn), database.fingerprint(self._place.source))):
            raise FailedError(f"the restored rows are not those of the source: {wrong}")
        self._place.drop(name)


def phases(sample: Sample) -> dict[str, float]:
    """How long each phase that backupd reports took; what comes before the first one is the start."""
    found: dict[str, float] = {}
    name, since = "start", sample.run.started
    for line in sample.run.log.splitlines():
        entry: dict[str, Any] = json.loads(line)
        if entry["level"] == "info" and "stream" not in entry:
            moment = datetime.fromisoformat(entry["time"]).timestamp()
            found[name] = moment - since
            name, since = entry["message"], moment
    found[name] = sample.run.started + sample.run.seconds - since
    return found


def steps(each: Round, number: int, groups: Sequence[str]) -> list[Callable[[], Entry]]:
    """What one round measures, in this order."""
    found: list[Callable[[], Entry]] = []
    if "s3" in groups or "restore" in groups:
        found.append(each.backup_s3)
    if "s3" in groups and not missing(*_NEEDED):
        found.append(each.shell_s3)
    if "local" in groups:
        found.append(each.backup_local)
    if "local" in groups or "restore" in groups:
        found.append(each.dump_directory)
    if "restore" in groups:
        found += [each.restore, *(partial(each.pg_restore, name) for name in ("restore-custom", "restore-directory"))]
    if "info" in groups:
        found.append(partial(each.dump_nowhere, "dump-nowhere", "-Z0"))
        if number == 1:  # as slow as everything else together, and compared with nothing
            found.append(partial(each.dump_nowhere, "dump-gzip-nowhere"))
    return found


def measure_all(place: World, rounds: int, rows: dict[str, int], groups: Sequence[str]) -> list[Entry]:
    archive = place.folder / "archive.dump"
    # Not counted. It also brings the whole database into memory, so that the first contender has no colder start.
    place.run([place.client.program("pg_dump"), "-Fc", "-Z0", "-f", archive, "-d", place.source])
    place.warm_up()
    entries = []
    for number in range(1, rounds + 1):
        with place.bucket(f"round-{number}") as bucket:
            each = Round(place, number, bucket, rows, archive)
            try:
                for step in steps(each, number, groups):
                    entry = step()
                    print(f"round {number}: {entry.name:<18} {entry.seconds:7.2f} s", file=sys.stderr, flush=True)
                    entries.append(entry)
            finally:
                each.close()
    return entries


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (default: 3)")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the database; 1 is 1.6 GB (default)")
    parser.add_argument("--only", nargs="+", choices=report.GROUPS, default=report.GROUPS, help="measure only these")
    parser.add_argument("--major", type=int, help="PostgreSQL's major version (default: the newest of this machine)")
    parser.add_argument("--folder", type=Path, help="where to put about 10 GB for a while (default: /var/tmp)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that one program may take (default: 600)")
    parser.add_argument("--no-write", action="store_true", help="leave results.json and README.md as they are")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    with world(folder=given.folder, major=given.major, timeout=given.timeout) as place:
        found = machine(place)
        print(f"building the database at scale {given.scale:g} in {place.folder}", file=sys.stderr, flush=True)
        rows = database.build(place.create(SOURCE), given.scale)
        size = database.size(place.source)
        entries = measure_all(place, given.rounds, rows, given.only)
    results = {
        "machine": found,
        "rounds": given.rounds,
        "scale": given.scale,
        "database_bytes": size,
        "missing": missing(*_NEEDED),
        "entries": [asdict(entry) for entry in entries],
    }
    text = report.benchmark(results)
    print(text)
    if not given.no_write:
        (_HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        report.insert(_HERE / "README.md", "bench", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
