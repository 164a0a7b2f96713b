"""Who is measured, and how each is run: backupd, and what people use or pipe together instead of it."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from backupd.init import IDENTITY_NAME
from bench import contents
from bench.measure import FailedError
from bench.world import SOURCE, Sample, World, missing, unexpected
from tests.site import Site

JOBS = "2"
_TOLERANCE = 0.2  # by how much the pipeline's object may differ from backupd's before it cannot be the same data

LABELS = {
    "backup-s3": "`backupd backup --jobs 2` to S3",
    "shell-s3": "`pg_dump -Fc -Z0 \\| zstd -1 -T2 \\| age \\| rclone rcat` to the same S3",
    "restic-s3": "`pg_dump -Fc -Z0 \\| restic backup --stdin` to the same S3, first run",
    "backup-local": "`backupd backup --jobs 2` to a folder",
    "dump-directory": "`pg_dump -Fd -Z0 -j2` to the same disk",
    "restore": "`backupd restore --jobs 2` from S3, with ANALYZE",
    "restore-4": "`backupd restore --jobs 4` from S3, with ANALYZE",
    "restore-custom": "`pg_restore -j2` from a local `-Fc -Z0` archive, without ANALYZE",
    "restore-directory": "`pg_restore -j2` from a local `-Fd -Z0` archive, without ANALYZE",
    "restore-download": "`rclone cat \\| age -d \\| zstd -d` to a file, then `pg_restore -j2`, without ANALYZE",
    "dump-nowhere": "`pg_dump -Fc -Z0` to nowhere",
    "dump-gzip-nowhere": "`pg_dump -Fc` (its default compression) to nowhere, once",
}
GROUPS = {
    "s3": ("backup-s3", "shell-s3", "restic-s3"),
    "local": ("backup-local", "dump-directory"),
    "restore": ("restore", "restore-custom", "restore-directory", "restore-download"),
    "info": ("dump-nowhere", "dump-gzip-nowhere"),
}
ONCE = ("dump-gzip-nowhere",)  # as slow as everything else together, and compared with nothing
PROGRAMS = {
    "shell-s3": ("zstd", "age", "rclone"),
    "restore-download": ("zstd", "age", "rclone"),
    "restic-s3": ("restic",),
}
# What must have run before, to leave what this one reads.
_AFTER = {
    "shell-s3": "backup-s3",
    "restore": "backup-s3",
    "restore-4": "backup-s3",
    "restore-directory": "dump-directory",
    "restore-download": "shell-s3",
}


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
    started: float = 0.0  # seconds since the epoch
    phases: dict[str, float] = field(default_factory=dict)  # seconds; of backupd

    @staticmethod
    def of(name: str, number: int, *samples: Sample, stored: int | None = None) -> Entry:
        """Of one run, or of several that follow one another."""
        return Entry(
            name=name,
            round=number,
            seconds=sum(sample.run.seconds for sample in samples),
            cpu=sum(sample.run.cpu for sample in samples),
            database_cpu=sum(sample.database_cpu for sample in samples),
            storage_cpu=sum(sample.storage_cpu for sample in samples),
            peak=max(sample.run.peak for sample in samples),
            peak_bound=max(sample.run.peak_bound for sample in samples),
            stored=stored,
            started=samples[0].run.started,
        )


class Round:
    """Every contender once, one after the other; each leaves what the next one needs."""

    def __init__(self, place: World, number: int, bucket: str, rows: Mapping[str, int]) -> None:
        self._place = place
        self._number = number
        self._bucket = bucket
        self._rows = rows
        self._directory = place.folder / f"directory-{number}"  # by pg_dump -Fd -Z0
        self._site: Site | None = None
        self._stored = 0

    def run(self, name: str) -> Entry:
        """Raises FailedError if the contender did not do its work."""
        steps: Mapping[str, Callable[[], Entry]] = {
            "backup-s3": self._backup_s3,
            "shell-s3": self._shell_s3,
            "restic-s3": self._restic_s3,
            "backup-local": self._backup_local,
            "dump-directory": self._dump_directory,
            "restore": partial(self._restore, "restore", JOBS),
            "restore-4": partial(self._restore, "restore-4", "4"),
            "restore-custom": partial(self._pg_restore, "restore-custom"),
            "restore-directory": partial(self._pg_restore, "restore-directory"),
            "restore-download": self._download,
            "dump-nowhere": partial(self._dump_nowhere, "dump-nowhere", "-Z0"),
            "dump-gzip-nowhere": partial(self._dump_nowhere, "dump-gzip-nowhere"),
        }
        return steps[name]()

    def _client(self, program: str) -> Path:
        return self._place.client.program(program)

    def _backup_s3(self) -> Entry:
        self._site = self._place.s3_site(self._bucket)
        entry = self._backup("backup-s3", self._site)
        self._stored = entry.stored or 0
        return entry

    def _shell_s3(self) -> Entry:
        """What a careful person types. The age key is backupd's, the database and the bucket are the same."""
        assert self._site is not None
        sample = self._place.run(
            [self._client("pg_dump"), "-Fc", "-Z0", "-d", self._place.source],
            ["zstd", "-q", "-1", "-T2"],
            ["age", "-r", self._place.recipient(self._site)],
            ["rclone", "rcat", f"bench:{self._bucket}/{_SHELL}"],
        )
        stored = self._place.size(self._bucket, _SHELL)
        if abs(stored / self._stored - 1) > _TOLERANCE:
            raise FailedError(f"the shell pipeline stored {stored} bytes, and backupd {self._stored}")
        return Entry.of("shell-s3", self._number, sample, stored=stored)

    def _restic_s3(self) -> Entry:
        """Its repository is made beforehand, which is not counted. Deduplication finds nothing in a first run."""
        repository = f"s3:{self._place.s3.endpoint}/{self._bucket}/restic"
        env = {
            "RESTIC_REPOSITORY": repository,
            "RESTIC_PASSWORD": secrets.token_hex(8),
            "AWS_ACCESS_KEY_ID": self._place.s3.access_key,
            "AWS_SECRET_ACCESS_KEY": self._place.s3.secret_key,
            "XDG_CACHE_HOME": str(self._place.temporary),
        }
        self._place.run(["restic", "init", "--quiet"], env=env)
        sample = self._place.run(
            [self._client("pg_dump"), "-Fc", "-Z0", "-d", self._place.source],
            ["restic", "backup", "--quiet", "--stdin", "--stdin-filename", "bench.dump"],
            env=env,
        )
        return Entry.of("restic-s3", self._number, sample, stored=self._place.stored(self._bucket, "restic/"))

    def _backup_local(self) -> Entry:
        site = self._place.local_site(f"local-{self._number}")
        try:
            return self._backup("backup-local", site)
        finally:
            shutil.rmtree(site.folder)

    def _dump_directory(self) -> Entry:
        command: list[str | Path] = [
            self._client("pg_dump"),
            "-Fd",
            "-Z0",
            "-j",
            JOBS,
            "-f",
            self._directory,
            "-d",
            self._place.source,
        ]
        sample = self._place.run(command)
        stored = sum(path.stat().st_size for path in self._directory.iterdir())
        return Entry.of("dump-directory", self._number, sample, stored=stored)

    def _restore(self, name: str, jobs: str) -> Entry:
        assert self._site is not None
        arguments = ("--at", "latest", "--into", _COPY, "--jobs", jobs, "--yes")
        sample = self._place.backupd(self._site, "restore", SOURCE, *arguments)
        entry = Entry.of(name, self._number, sample)
        entry.phases = phases(sample)
        self._check(thoroughly=self._number == 1)
        return entry

    def _pg_restore(self, name: str) -> Entry:
        """The database is made beforehand, which is not counted; there is no ANALYZE."""
        source = self._place.archive if name == "restore-custom" else self._directory
        sample = self._restore_from(source)
        return Entry.of(name, self._number, sample)

    def _download(self) -> Entry:
        """What the shell pipeline stored comes back by way of the local disk, as pg_restore -j can't read a pipe."""
        assert self._site is not None
        file = self._place.folder / "downloaded.dump"
        identity = self._site.folder / IDENTITY_NAME
        try:
            fetched = self._place.run(
                ["rclone", "cat", f"bench:{self._bucket}/{_SHELL}"],
                ["age", "-d", "-i", identity],
                ["zstd", "-q", "-d"],
                output=file,
            )
            restored = self._restore_from(file)
        finally:
            file.unlink(missing_ok=True)
        return Entry.of("restore-download", self._number, fetched, restored)

    def _restore_from(self, source: Path) -> Sample:
        target = self._place.create(_COPY)
        sample = self._place.run([self._client("pg_restore"), "--exit-on-error", "-j", JOBS, "-d", target, source])
        self._check(thoroughly=False)
        return sample

    def _dump_nowhere(self, name: str, *options: str) -> Entry:
        command: list[str | Path] = [self._client("pg_dump"), "-Fc", *options, "-d", self._place.source]
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
        entry = Entry.of(name, self._number, sample, stored=made["stored_bytes"])
        entry.phases = phases(sample)
        return entry

    def _check(self, *, thoroughly: bool) -> None:
        """Compare a restored database with the source, then drop it."""
        dsn = self._place.server.dsn(_COPY)
        if wrong := unexpected(contents.counts(dsn), self._rows):
            raise FailedError(f"the restored database has other rows than the source: {wrong}")
        if thoroughly and (wrong := unexpected(contents.fingerprint(dsn), contents.fingerprint(self._place.source))):
            raise FailedError(f"the restored rows are not those of the source: {wrong}")
        self._place.drop(_COPY)


def one_round(place: World, bucket: str, number: int, rows: Mapping[str, int], names: Sequence[str]) -> Iterator[Entry]:
    """Measure these contenders in turn, and tell of each."""
    each = Round(place, number, bucket, rows)
    try:
        for name in steps(names, number):
            entry = each.run(name)
            print(f"{bucket}: {name:<18} {entry.seconds:7.2f} s", file=sys.stderr, flush=True)
            yield entry
    finally:
        each.close()


_SHELL = "shell/bench.dump.zst.age"
_COPY = "restored"


def steps(names: Sequence[str], number: int) -> list[str]:
    """What one round measures, in this order, with what that needs to be there; without what this machine has no
    programs for."""
    wanted = set(names)
    for name in names:
        before = _AFTER.get(name)
        while before is not None:
            wanted.add(before)
            before = _AFTER.get(before)
    lacking = {name for name, programs in PROGRAMS.items() if missing(*programs)}
    return [name for name in LABELS if name in wanted - lacking and not (number > 1 and name in ONCE)]


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
