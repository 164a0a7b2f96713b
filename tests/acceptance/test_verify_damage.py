"""`verify` of a backup that somebody or something changed: never passed, the object named, no traceback, and the
proof says failed from then on, until one passes again."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from backupd import jobs, verify
from backupd.config import load
from backupd.console import Lines, Style
from backupd.crypto import age
from backupd.errors import NoBackupError
from backupd.postgres.server import ThrowawayServer
from backupd.repository import opened
from tests.postgres import drop_database
from tests.proving import Proofs

NAME = f"damaged_{os.getpid()}"
OBJECTS = ("schema", "globals", "data-0000", "data-0001", "reference")
Damage = Callable[[Path, Path], None]


class World(Proofs):
    """Two backups of one database; what is damaged is the newer one."""

    older: str
    newer: str

    def object(self, name: str, backup: str | None = None) -> Path:
        (found,) = (self.root / "shop" / "data" / (backup or self.newer)).glob(f"{name}.*")
        return found

    def verdict(self, key: str) -> str:
        """That of a verify which must fail and name this object."""
        outcome = self.site.run("verify", "shop", "--json", code=None)
        assert outcome.code in (4, 7), (outcome.code, outcome.out, outcome.err)
        assert key in outcome.out, outcome.out
        if outcome.code == 7:
            assert outcome.json["error"]["exit"] == 7
            return "error"
        assert outcome.json["status"] == "failed"
        return "failed"


@pytest.fixture(scope="module")
def world(pg15: ThrowawayServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with psycopg.connect(pg15.dsn(), autocommit=True) as connection:
        connection.execute(f"create database {NAME} template template0")
    try:
        made = World.make(tmp_path_factory.mktemp("damaged"), pg15.dsn(NAME), scratch=pg15)
        made.site.set("large_table_size", '"256KiB"', table="defaults")
        made.sql(
            "create table customers (id int primary key, name text)",
            "insert into customers select g, 'customer ' || g from generate_series(1, 3000) g",
            "create table orders (id int primary key, noise text)",
            "insert into orders select g, repeat(md5(g::text), 3) from generate_series(1, 9000) g",
        )
        made.older, made.newer = made.backup(), made.backup()
        yield made
        assert made.scratch_databases(pg15) == []
    finally:
        drop_database(pg15, NAME)


@contextmanager
def restored(*paths: Path) -> Iterator[None]:
    """What the block does to these files is undone."""
    genuine = {path: path.read_bytes() for path in paths}
    try:
        yield
    finally:
        for path, data in genuine.items():
            path.write_bytes(data)


def flip_at(share: float) -> Damage:
    def flip(path: Path, _: Path) -> None:
        data = bytearray(path.read_bytes())
        place = min(int(len(data) * share), len(data) - 1)
        data[place] ^= 1 << random.Random(place).randrange(8)
        path.write_bytes(data)

    return flip


def truncate(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def delete(path: Path, _: Path) -> None:
    path.unlink()


def swap(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def swap_and_fit(path: Path, other: Path) -> None:
    """Another backup's, cut or filled to the size in the manifest: a listing does not tell."""
    size = path.stat().st_size
    path.write_bytes(other.read_bytes()[:size].ljust(size, b"\0"))


DAMAGE: dict[str, Damage] = {
    "header": flip_at(0.0),
    "middle": flip_at(0.7),
    "end": flip_at(1.0),
    "truncated": truncate,
    "deleted": delete,
    "swapped": swap,
    "swapped to size": swap_and_fit,
}
# Of each object what only its reader can tell; of the rows, which are read last and in parallel, the other ways too.
EVERY_DAY = [(name, "middle") for name in OBJECTS]
EVERY_DAY += [("data-0001", "header"), ("data-0001", "deleted"), ("data-0001", "swapped to size")]
CASES = [
    pytest.param(name, damage, marks=[] if (name, damage) in EVERY_DAY else [pytest.mark.large])
    for name in OBJECTS
    for damage in DAMAGE
]


@pytest.mark.parametrize("name, damage", CASES)
def test_damage_never_passes(world: World, name: str, damage: str) -> None:
    path = world.object(name)
    before = len(world.stored())
    with restored(path):
        DAMAGE[damage](path, world.object(name, world.older))
        verdict = world.verdict(str(path.relative_to(world.root)))
        if verdict == "failed":
            assert world.listed() == "failed"
            assert world.listed(world.older) == "none"
            assert len(world.stored()) == before + 1
        else:
            assert len(world.stored()) == before


def test_damage_of_the_rows_is_told_to_people(world: World) -> None:
    """In the text, not only in the JSON; and a later proof that passes counts again."""
    path = world.object("data-0001")
    with restored(path):
        DAMAGE["middle"](path, path)
        outcome = world.site.run("verify", "shop", code=4)
        assert "FAILED" in outcome.out
        assert str(path.relative_to(world.root)) in outcome.out
        assert re.search(r"(?m)^failed +stored objects: ", outcome.out)
    assert world.listed() == "failed"
    world.verify("passed")
    assert world.listed() == "passed"


def test_another_identity(world: World) -> None:
    """A wrong key says nothing about the backup: an error, and no proof of anything."""
    before = world.stored()
    identity = world.site.folder / "identity.age"
    with restored(identity):
        identity.write_text(age.Identity.generate().encode())
        error = world.site.run("verify", "shop", "--json", code=7).json["error"]
    assert "identit" in f"{error['message']} {error['detail']} {error['hint']}"
    assert world.stored() == before


@pytest.mark.parametrize("kind", ["changed", "unsigned", "signed by another", "of another backup"])
def test_manifest(world: World, kind: str) -> None:
    manifest = world.root / "shop" / "manifests" / f"{world.newer}.json"
    signature = world.root / "shop" / "signatures" / f"{world.newer}.json.minisig"
    before = world.stored()
    with restored(manifest, signature):
        if kind == "changed":
            manifest.write_bytes(manifest.read_bytes().replace(b'"rows": 9000', b'"rows": 9001'))
        elif kind == "unsigned":
            signature.unlink()
        elif kind == "signed by another":
            signature.write_bytes(signature.read_bytes().replace(b"R", b"S"))
        else:
            for path in (manifest, signature):
                path.write_bytes(path.with_name(path.name.replace(world.newer, world.older)).read_bytes())
        error = world.site.run("verify", "shop", "--json", code=7).json["error"]
        assert world.newer in error["message"] + error["detail"]
    assert world.stored() == before


def test_pruned_while_it_is_tested(world: World) -> None:
    """By another host: no proof says that it failed, as nobody knows whether it would have."""
    config = load(world.site.config, world.site.environ)
    names = ("data-0001", "data-0000")
    manifest = world.root / "shop" / "manifests" / f"{world.newer}.json"
    before = world.stored()

    class Pruned(Lines):
        def phase(self, text: str) -> None:
            if text == "loading the rows":
                for path in (manifest, *(world.object(name) for name in names)):
                    path.unlink()

    with restored(manifest, *(world.object(name) for name in names)), opened(config) as catalog:
        job = jobs.verify_job(config, config.database("shop"))
        with pytest.raises(NoBackupError, match="deleted while it was tested"):
            verify.run(job, catalog, config.load_identities(), Pruned(Style(quiet=True)))
    assert world.stored() == before
