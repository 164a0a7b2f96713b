"""Somebody who can write to the repository, or a disk that rots: whatever was changed, `restore` says so and exits
with 7, names the object, leaves no database behind, and hands PostgreSQL nothing that was not authenticated.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psycopg
import pytest
import zstandard

from backupd import pipeline
from backupd.catalog import manifest_key, signature_key
from backupd.config import Config, load
from backupd.crypto import age, minisign
from backupd.manifest import SHARED_STREAM, Manifest, Stream, decode
from backupd.postgres.edit import Edit
from backupd.postgres.server import ThrowawayServer
from backupd.storage.base import Storage
from backupd.storage.connect import connect
from tests.postgres import client_for, drop_database, run
from tests.programs import program
from tests.seaweed import SeaweedServer
from tests.site import Outcome, Site, local_site, s3_site

SHOP, OTHER = f"tampered_{os.getpid()}", f"tampered_{os.getpid()}_other"
BACK = f"tampered_{os.getpid()}_back"
SEALED = age.CHUNK + 16

# Objects to change: None removes one.
Changes = Mapping[str, bytes | None]


@dataclass
class World:
    """Two backups of `shop` and one of `other` in one repository, and a pg_restore that records what it is fed."""

    site: Site
    server: ThrowawayServer
    storage: Storage
    recorded: Path

    @cached_property
    def config(self) -> Config:
        return load(self.site.config, self.site.environ)

    @cached_property
    def objects(self) -> dict[str, bytes]:
        """The repository as it should be."""
        return {info.key: self.storage.read(info.key) for info in self.storage.list("")}

    @cached_property
    def manifests(self) -> list[Manifest]:
        """The older and the newer backup of `shop`, and that of `other`."""
        keys = [key for key in sorted(self.objects) if "/manifests/" in key]
        found = sorted((decode(self.objects[key], key) for key in keys), key=lambda m: m.taken_at)
        return [m for m in found if m.database == "shop"] + [m for m in found if m.database == "other"]

    @property
    def older(self) -> Manifest:
        return self.manifests[0]

    @property
    def newer(self) -> Manifest:
        return self.manifests[1]

    @property
    def other(self) -> Manifest:
        return self.manifests[2]

    def stream(self, name: str, *, of: Manifest | None = None) -> Stream:
        return next(stream for stream in (of or self.newer).streams if stream.name == name)

    def stored(self, name: str, *, of: Manifest | None = None) -> bytes:
        return self.objects[self.stream(name, of=of).key]

    @cached_property
    def plain(self) -> list[bytes]:
        """What the data streams of the newer backup hold; large tables' with the statement that freezes their rows."""
        identities = self.config.load_identities()
        return [
            b"".join(map(bytes, Edit().stream(pipeline.fetch(self.storage, stream, identities, _nobody), "it", fresh)))
            for stream in self.newer.of_kind("data")
            for fresh in [self._fresh(stream)]
        ]

    def _fresh(self, stream: Stream) -> frozenset[tuple[str, str]]:
        own = stream.name != SHARED_STREAM
        return frozenset((t.schema_, t.name) for t in self.newer.tables if own and t.stream == stream.name)

    @contextmanager
    def changed(self, changes: Changes) -> Iterator[None]:
        genuine = {key: self.objects.get(key) for key in changes}
        self._write(changes)
        try:
            yield
        finally:
            self._write(genuine)

    def _write(self, changes: Changes) -> None:
        for key, data in changes.items():
            if data is None:
                self.storage.delete([key])
            else:
                self.storage.put(key, [data])

    def restore(self, *, code: int) -> Outcome:
        for file in self.recorded.iterdir():
            file.unlink()
        return self.site.run("restore", "shop", "--at", "latest", "--into", BACK, "--yes", code=code)

    def reached_postgres(self) -> list[bytes]:
        """What each pg_restore was fed."""
        return [file.read_bytes() for file in self.recorded.iterdir()]

    def databases(self) -> set[str]:
        with psycopg.connect(self.server.dsn()) as connection:
            return {row[0] for row in connection.execute("select datname from pg_database")}


def _nobody(_: int) -> None:
    """Told how many bytes went through."""


def recording_programs(folder: Path, recorded: Path, server: ThrowawayServer) -> Path:
    """A folder of PostgreSQL's programs whose pg_restore keeps a copy of its stdin."""
    folder.mkdir()
    recorded.mkdir()
    real = client_for(server).bin_dir
    for name in ("pg_dump", "pg_dumpall", "pg_restore"):
        feed = f'case "$*" in *--section=data*) tee "{recorded}/$$" | "{real}/{name}" "$@"; exit $?;; esac\n'
        script = folder / name
        script.write_text(f'#!/bin/sh\n{feed if name == "pg_restore" else ""}exec "{real}/{name}" "$@"\n')
        script.chmod(0o755)
    return folder


@contextmanager
def world(site: Site, server: ThrowawayServer) -> Iterator[World]:
    recorded = site.folder / "recorded"
    programs = recording_programs(site.folder / "programs", recorded, server)
    site.set("bin_dirs", json.dumps([str(programs)]), table="postgres")
    site.set("large_table_size", '"256KiB"', table="defaults")
    for database in ("shop", "shop", "other"):
        site.run("backup", database)
    config = load(site.config, site.environ)
    storage = connect(config.repository.url, config.s3_settings())
    try:
        yield World(site, server, storage, recorded)
    finally:
        storage.close()


@pytest.fixture(scope="module")
def sources(pg15: ThrowawayServer) -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        with psycopg.connect(pg15.dsn(), autocommit=True) as connection:
            for name in (SHOP, OTHER):
                connection.execute(f"create database {name}")
                stack.callback(drop_database, pg15, name)
        for name in (SHOP, OTHER):
            with psycopg.connect(pg15.dsn(name)) as connection:
                connection.execute("create table customers (id int primary key, name text)")
                connection.execute("insert into customers select g, 'customer ' || g from generate_series(1, 3000) g")
                connection.execute("create table orders (id int primary key, noise text)")
                connection.execute(
                    "insert into orders select g, repeat(md5(random()::text), 3) from generate_series(1, 9000) g"
                )
        yield {"shop": pg15.dsn(SHOP), "other": pg15.dsn(OTHER)}


@pytest.fixture(scope="module")
def local(sources: dict[str, str], pg15: ThrowawayServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(local_site(tmp_path_factory.mktemp("tampered") / "site", sources), pg15) as made:
        yield made


@pytest.fixture(scope="module")
def remote(
    sources: dict[str, str],
    pg15: ThrowawayServer,
    s3_server: SeaweedServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    bucket = s3_server.new_bucket()  # one of its own each time: this fixture may be made more than once
    with world(s3_site(tmp_path_factory.mktemp("tampered") / "site", s3_server, bucket, sources), pg15) as made:
        yield made


@pytest.fixture
def both(request: pytest.FixtureRequest) -> World:
    """Named by `indirect` parameters: a local repository, or one on S3."""
    made: World = request.getfixturevalue(request.param)
    return made


on_both = pytest.mark.parametrize("both", ["local", "remote"], indirect=True)


def is_refused(world: World, changes: Changes, *names: str) -> Outcome:
    """Restore after these changes fails as it should, and is told to have to do with one of `names`."""
    before = world.databases()
    with world.changed(changes):
        outcome = world.restore(code=7)
        if any("/data/" not in key for key in changes):  # `list` does not look at data
            listed = {row["id"]: row for row in world.site.run("list", "--json", code=7).json}
            assert all(("error" in listed[each.id]) == (each is world.newer) for each in world.manifests)
    assert any(name in outcome.err for name in names), outcome.err
    assert "hint:" in outcome.err
    assert outcome.out == ""
    assert world.databases() == before, "a database was left behind"
    for fed in world.reached_postgres():
        assert any(plain.startswith(fed) for plain in world.plain), "bytes that were never dumped reached PostgreSQL"
    return outcome


# ---- the recorder itself, and that nothing is refused that is genuine


@on_both
def test_genuine_backup_restores(both: World) -> None:
    both.restore(code=0)
    drop_database(both.server, BACK)
    assert sorted(both.reached_postgres()) == sorted(both.plain)


# ---- objects


def _flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 0x40
    return bytes(changed)


def _middle(data: bytes) -> int:
    return len(data) // 2


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "one byte is left": lambda data: data[:1],
    "half is left": lambda data: data[: len(data) // 2],
    "the last byte is gone": lambda data: data[:-1],
    "the first byte": lambda data: _flipped(data, 0),
    "a byte of the header": lambda data: _flipped(data, 60),
    "a byte of the header's MAC": lambda data: _flipped(data, data.index(b"\n--- ") + 20),
    "a byte of the nonce": lambda data: _flipped(data, data.index(b"\n", data.index(b"\n--- ") + 1) + 5),
    "a byte in the middle": lambda data: _flipped(data, _middle(data)),
    "the last byte": lambda data: _flipped(data, len(data) - 1),
    "a byte more": lambda data: data + b"\0",
    "itself once more": lambda data: data + data,
    "missing": lambda data: None,
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_large_stream(local: World, how: str) -> None:
    stream = local.stream("data-0001")
    is_refused(local, {stream.key: DAMAGE[how](local.objects[stream.key])}, stream.key)


@pytest.mark.parametrize("how", ["half is left", "a byte of the header", "a byte in the middle", "missing"])
@pytest.mark.parametrize("name", ["schema", "data-0000"])
def test_damaged_other_stream(local: World, name: str, how: str) -> None:
    stream = local.stream(name)
    is_refused(local, {stream.key: DAMAGE[how](local.objects[stream.key])}, stream.key)


@pytest.mark.parametrize("how", ["half is left", "a byte in the middle", "the last byte", "a byte more", "missing"])
def test_damaged_on_s3(remote: World, how: str) -> None:
    stream = remote.stream("data-0001")
    is_refused(remote, {stream.key: DAMAGE[how](remote.objects[stream.key])}, stream.key)


def test_damage_behind_genuine_bytes(local: World) -> None:
    """Where the beginning is genuine it may reach PostgreSQL, and the end never does."""
    stream = local.stream("data-0001")
    is_refused(local, {stream.key: DAMAGE["the last byte"](local.objects[stream.key])}, stream.key)
    assert all(len(fed) < stream.raw_bytes for fed in local.reached_postgres())


def test_swapped_chunks(local: World) -> None:
    stream, data = local.stream("data-0001"), local.stored("data-0001")
    start = data.index(b"\n", data.index(b"\n--- ") + 1) + 1 + 16
    first, second = data[start : start + SEALED], data[start + SEALED : start + 2 * SEALED]
    assert len(second) == SEALED, "the stream is too short for this test"
    is_refused(local, {stream.key: data[:start] + second + first + data[start + 2 * SEALED :]}, stream.key)


@pytest.mark.parametrize("name", ["schema", "data-0000", "data-0001"])
def test_object_of_another_backup(local: World, name: str) -> None:
    """Encrypted to the same recipient, made by the same program, from the same tables: a rollback of one stream."""
    stream = local.stream(name)
    is_refused(local, {stream.key: local.stored(name, of=local.older)}, stream.key)


def test_swapped_streams(local: World) -> None:
    first, second = local.stream("data-0000").key, local.stream("data-0001").key
    is_refused(local, {first: local.objects[second], second: local.objects[first]}, first, second)


@pytest.mark.parametrize("name", ["schema", "data-0000", "data-0001"])
def test_forged_by_who_knows_the_recipient(local: World, name: str) -> None:
    """The recipient is no secret: anyone can write an object of the right size that opens with the identity."""
    stream = local.stream(name)
    forged = _forged(local, stream)
    assert len(forged) == stream.stored_bytes, "it has to pass the check of sizes"
    outcome = is_refused(local, {stream.key: forged}, stream.key)
    assert "is not the object that was written" in outcome.err
    genuine = [fed for fed in local.reached_postgres() if fed]
    assert all(b"EVIL" not in fed for fed in genuine)


def _forged(world: World, stream: Stream) -> bytes:
    """A whole pg_dump archive, padded with a frame that zstd skips, encrypted by age to the site's recipient."""
    archive = run(
        client_for(world.server), "pg_dump", "-Fc", "-Z0", f"--dbname={world.server.dsn(OTHER)}", "--schema-only"
    )
    frame = zstandard.compress(archive.replace(b"customers", b"EVIL_EVIL"))
    room = age.plaintext_size(stream.stored_bytes, len(_header(world.objects[stream.key]))) - len(frame) - 8
    assert room >= 0, "the genuine object is too small for this test"
    frame += (0x184D2A50).to_bytes(4, "little") + room.to_bytes(4, "little") + bytes(room)
    recipient = world.config.encryption.recipients[0]
    return subprocess.run([program("age"), "-r", recipient], input=frame, capture_output=True, check=True).stdout


def _header(data: bytes) -> bytes:
    return data[: data.index(b"\n", data.index(b"\n--- ") + 1) + 1 + 16]


def test_missing_objects_are_all_named(local: World) -> None:
    keys = [stream.key for stream in local.newer.streams]
    outcome = is_refused(local, dict.fromkeys(keys), *keys)
    assert all(key in outcome.err for key in keys)


# ---- manifests and signatures


def _signed_by_stranger(data: bytes) -> bytes:
    return minisign.sign(minisign.SecretKey.generate(), data, trusted_comment="backupd manifest").encode()


def _signed_by_impostor(world: World, data: bytes) -> bytes:
    """Another key under the trusted one's number."""
    number, key = world.config.load_signing_key().public.number, minisign.SecretKey.generate()
    return minisign.sign(minisign.SecretKey(number, key._key), data, trusted_comment="backupd manifest").encode()


SIGNATURES: dict[str, Callable[[World, bytes], bytes | None]] = {
    "missing": lambda _, __: None,
    "empty": lambda _, __: b"",
    "garbage": lambda _, __: b"\xff\x00 not a signature",
    "too large": lambda _, __: b"untrusted comment: " + b"x" * (1 << 20),
    "of another manifest": lambda world, _: world.objects[signature_key("shop", world.older.id)],
    "by a stranger": lambda _, data: _signed_by_stranger(data),
    "by an impostor": _signed_by_impostor,
    "with another comment": lambda world, _: re.sub(
        rb"(?m)^(trusted comment: .*)$", rb"\1!", world.objects[signature_key("shop", world.newer.id)]
    ),
}


@pytest.mark.parametrize("how", SIGNATURES)
def test_bad_signature(local: World, how: str) -> None:
    place, manifest = signature_key("shop", local.newer.id), manifest_key("shop", local.newer.id)
    is_refused(local, {place: SIGNATURES[how](local, local.objects[manifest])}, place, manifest)
    assert local.reached_postgres() == []


def test_missing_signature_on_s3(remote: World) -> None:
    place = signature_key("shop", remote.newer.id)
    is_refused(remote, {place: None}, place)


def _put(world: World, data: bytes, signature: bytes | None = None) -> Changes:
    """A manifest in the newer backup's place, signed by the site's own key unless a signature is given."""
    if signature is None:
        key = world.config.load_signing_key()
        signature = minisign.sign(key, data, trusted_comment="backupd manifest").encode()
    return {manifest_key("shop", world.newer.id): data, signature_key("shop", world.newer.id): signature}


def _moved(world: World, manifest: Manifest) -> Changes:
    """Another manifest in the newer backup's place, with the signature it came with."""
    database, backup_id = manifest.database, manifest.id
    data, signature = manifest_key(database, backup_id), signature_key(database, backup_id)
    return _put(world, world.objects[data], world.objects[signature])


def _edited(world: World, **changes: object) -> bytes:
    return world.newer.model_copy(update=changes).encode()


MANIFESTS: dict[str, Callable[[World], Changes]] = {
    "rows changed": lambda world: _put(
        world,
        world.objects[manifest_key("shop", world.newer.id)].replace(b'"rows": 9000', b'"rows": 9001'),
        world.objects[signature_key("shop", world.newer.id)],
    ),
    "cut short": lambda world: _put(
        world,
        world.objects[manifest_key("shop", world.newer.id)][:-20],
        world.objects[signature_key("shop", world.newer.id)],
    ),
    "of another database": lambda world: _moved(world, world.other),
    "of another backup": lambda world: _moved(world, world.older),
    "of another repository": lambda world: _put(world, _edited(world, repository="0" * 32)),
    "newer format": lambda world: _put(world, _edited(world, format=2)),
    "no JSON": lambda world: _put(world, b"{"),
    "no object": lambda world: _put(world, b"[]"),
    "without streams": lambda world: _put(world, _edited(world, streams=())),
}


@pytest.mark.parametrize("how", MANIFESTS)
def test_bad_manifest(local: World, how: str) -> None:
    changes = MANIFESTS[how](local)
    assert changes[manifest_key("shop", local.newer.id)] != local.objects[manifest_key("shop", local.newer.id)]
    is_refused(local, changes, manifest_key("shop", local.newer.id), local.newer.id)
    assert local.reached_postgres() == []


@pytest.mark.parametrize("whose", ["another backup", "another database"])
def test_manifest_with_objects_of_another(local: World, whose: str) -> None:
    """Even where the signature is right: a backup's objects lie in its own folder."""
    other = local.older if whose == "another backup" else local.other
    with local.changed(_put(local, _edited(local, streams=other.streams))):
        outcome = local.restore(code=7)
    assert "lies outside of" in outcome.err
    assert "hint:" in outcome.err
    assert local.reached_postgres() == []


def test_newer_format_is_called_so(local: World) -> None:
    outcome = is_refused(local, MANIFESTS["newer format"](local), manifest_key("shop", local.newer.id))
    assert "format version 2" in outcome.err
    assert "newer backupd" in outcome.err


def test_repository_of_a_newer_format(local: World) -> None:
    marker = json.loads(local.objects["backupd.json"]) | {"format": 2}
    with local.changed({"backupd.json": json.dumps(marker).encode()}):
        outcome = local.restore(code=7)
        assert "format version 2" in outcome.err
        assert "format version 2" in local.site.run("list", code=7).err


MARKERS = {
    "empty": b"",
    "binary": b"\xff",
    "a list": b"[]",
    "without an id": b'{"format": 1}',
    "infinite": b'{"format": 1e999, "repository": "x"}',
    "deep": b"[" * 90_000,
    "large": b" " * (2 << 20),
}


@pytest.mark.parametrize("marker", MARKERS.values(), ids=MARKERS)
def test_unreadable_marker(local: World, marker: bytes) -> None:
    with local.changed({"backupd.json": marker}):
        outcome = local.restore(code=7)
        assert "backupd.json" in outcome.err
        local.site.run("backup", "other", code=7)
    assert "hint:" in outcome.err


# ---- keys


def test_wrong_identity(local: World, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.age"
    wrong.write_text(age.Identity.generate().encode())
    wrong.chmod(0o600)
    with _identity(local, str(wrong)):
        outcome = is_refused(local, {}, local.stream("schema").key)
    assert "does not open" in outcome.err
    assert local.reached_postgres() == []


def test_missing_identity(local: World, tmp_path: Path) -> None:
    before = local.databases()
    with _identity(local, str(tmp_path / "missing.age")):
        outcome = local.restore(code=2)
    assert "missing.age" in outcome.err
    assert "hint:" in outcome.err
    assert local.databases() == before


@contextmanager
def _identity(world: World, path: str) -> Iterator[None]:
    genuine = world.site.config.read_text()
    changed = genuine.replace('identity_file = "identity.age"', f"identity_file = {json.dumps(path)}")
    assert changed != genuine
    world.site.config.write_text(changed)
    try:
        yield
    finally:
        world.site.config.write_text(genuine)


def test_untrusted_signer(local: World) -> None:
    """The repository is intact, but the configuration trusts somebody else."""
    genuine = local.site.config.read_text()
    stranger = str(minisign.SecretKey.generate().public)
    local.site.config.write_text(re.sub(r"(?m)^trusted_signers = .*$", f'trusted_signers = ["{stranger}"]', genuine))
    try:
        outcome = local.restore(code=7)
        listed = local.site.run("list", "--json", code=7).json
    finally:
        local.site.config.write_text(genuine)
    assert "not trusted" in outcome.err
    assert len(listed) == 3
    assert all("error" in row for row in listed)
