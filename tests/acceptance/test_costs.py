"""What a backup and a restore may cost, whatever the machine: memory, local disk, requests, bytes stored, bytes copied.

Seconds are measured by `make bench`; these bounds are what no noise can break.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import zstandard

from backupd.postgres.server import ThrowawayServer
from backupd.storage.s3_upload import FIRST_PART
from bench.measure import Measured, run
from tests.faulty_proxy import FaultyProxy
from tests.postgres import NewDatabase, client_for, drop_database
from tests.postgres import run as run_client
from tests.seaweed import SeaweedServer
from tests.site import Site, s3_site

MIB = 1 << 20
SMALL_OBJECTS = ("schema", "globals", "data-0000", "reference")
MARKER = 1
ROWS = (
    "create table large as select i, repeat(md5(i::text), 4) as a, sha512(int8send(i)) as b"
    " from generate_series(1, %d) i"
)


@dataclass
class Place:
    """A database of 40 MB, of which one table is large enough for a stream of its own, and a bucket behind a proxy
    that counts."""

    site: Site
    proxy: FaultyProxy
    server: ThrowawayServer
    dsn: str
    temporary: Path

    def run(self, *arguments: str) -> tuple[Measured, Counter[str], int]:
        """How it went, what was asked of the storage, and the largest sum of sizes seen in its temporary folder."""
        largest = 0

        def look(_: int) -> None:
            nonlocal largest
            largest = max(largest, sum(path.lstat().st_size for path in self.temporary.rglob("*") if path.is_file()))

        before = len(self.proxy.seen)
        env = {**self.site.environ, "TMPDIR": str(self.temporary)}
        done = run([self.site.command(*arguments)], folder=self.site.folder, env=env, timeout=240, probe=look)
        return done, Counter(self.proxy.operations()[before:]), largest


@pytest.fixture(scope="module")
def place(pg15: ThrowawayServer, s3_server: SeaweedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    name = f"costs_{os.getpid()}"
    with psycopg.connect(pg15.dsn(), autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    dsn = pg15.dsn(name)
    with psycopg.connect(dsn) as connection:
        connection.execute(ROWS % 160_000)
        for number in range(5):
            connection.execute(f"create table small{number} as select i from generate_series(1, 100) i".encode())
        connection.execute("create index on large (i)")
    folder = tmp_path_factory.mktemp("costs")
    with FaultyProxy(("127.0.0.1", s3_server.port)) as proxy:
        site = s3_site(folder / "site", s3_server, s3_server.new_bucket(), {"shop": dsn})
        site.edit(lambda text: text.replace(s3_server.endpoint, proxy.endpoint))
        site.set("large_table_size", '"16MiB"', table="defaults")
        site.run("backup", "shop")  # makes the marker
        temporary = folder / "tmp"
        temporary.mkdir()
        yield Place(site, proxy, pg15, dsn, temporary)
    drop_database(pg15, name)


def archive(place: Place, *options: str) -> bytes:
    return run_client(client_for(place.server), "pg_dump", "-Fc", "-Z0", "--dbname", place.dsn, *options)


def test_a_backup(place: Place) -> None:
    done, asked, largest = place.run("backup", "shop", "--json")
    (made,) = json.loads(done.out)
    plain = archive(place)
    compressed = len(zstandard.ZstdCompressor(level=1).compress(plain))
    raw, stored = made["raw_bytes"], made["stored_bytes"]
    assert raw == pytest.approx(len(plain), rel=0.01)
    assert compressed < 0.9 * len(plain)
    # One byte in a thousand for age, and some kilobytes for what pg_dump says again in each stream.
    assert stored < 1.002 * compressed + 64_000
    assert largest == 0
    assert done.written < 64 << 10  # the kernel's notes of when files were read (relatime)
    assert done.peak < 140 * MIB
    parts = math.ceil(stored / FIRST_PART)
    assert asked["UploadPart"] <= parts + 1
    assert asked["CreateUpload"] == asked["Complete"] == 1
    assert asked["Put"] == len(SMALL_OBJECTS) + 2  # signature and manifest
    assert asked["Get"] <= MARKER + 1  # a HEAD that is refused says no reason, so a GET is asked for it
    assert asked["List"] <= 1  # that all is there
    assert asked["Head"] <= 1  # that the manifest is not
    assert set(asked) <= {"UploadPart", "CreateUpload", "Complete", "Put", "Get", "List", "Head"}


def test_a_restore(place: Place) -> None:
    name = f"costs_copy_{os.getpid()}"
    try:
        done, asked, largest = place.run("restore", "shop", "--at", "latest", "--into", name, "--yes", "--jobs", "2")
    finally:
        drop_database(place.server, name)
    assert largest == 0
    assert done.written < 64 << 10
    assert done.peak < 120 * MIB
    # The marker, a manifest and its signature; then each stream once, and of the schema and roles no more.
    assert asked["Get"] <= MARKER + 2 + 4
    assert asked["List"] <= 2  # the backups, and the objects of one
    assert set(asked) <= {"Get", "List"}


def test_every_byte_is_copied_once(place: Place, tmp_path: Path) -> None:
    """Into a folder: what is read of pg_dump, and what is written of it, by the kernel's own count."""
    site = Site(tmp_path / "site", f"file://{tmp_path / 'repository'}", {"shop": place.dsn})
    site.set("large_table_size", '"16MiB"', table="defaults")
    site.run("backup", "shop")
    done = run([site.command("backup", "shop", "--json")], folder=site.folder, env=site.environ, timeout=240)
    (made,) = json.loads(done.out)
    raw, stored = made["raw_bytes"], made["stored_bytes"]
    modules = 40 * MIB  # of Python and its libraries, and the programs'
    assert done.read_chars < raw + modules  # from pg_dump's pipes
    assert done.written_chars < raw + stored + 2 * MIB  # by pg_dump, and by us
    assert stored < done.written < stored + 2 * MIB


def test_memory_does_not_grow_with_the_database(
    place: Place, s3_server: SeaweedServer, new_database: NewDatabase, tmp_path: Path
) -> None:
    """Four times the rows."""
    small, _, _ = place.run("backup", "shop", "--json")
    dsn = new_database(place.server)
    with psycopg.connect(dsn) as connection:
        connection.execute(ROWS % 640_000)
    site = s3_site(tmp_path / "site", s3_server, s3_server.new_bucket(), {"shop": dsn})
    site.set("large_table_size", '"16MiB"', table="defaults")
    large = run([site.command("backup", "shop", "--json")], folder=site.folder, env=site.environ, timeout=240)
    sizes = [json.loads(done.out)[0]["stored_bytes"] for done in (small, large)]
    assert sizes[1] > sizes[0] + 40 * MIB
    assert large.peak < small.peak + 24 * MIB
