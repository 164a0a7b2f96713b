"""What counts as proof: signatures that were checked. Whatever else lies beside them does not, in `list`, `show` and
`evidence`; and what `evidence` prints can be checked with minisign alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from backupd import proof as records
from backupd.config import load
from backupd.crypto import minisign
from backupd.postgres.server import ThrowawayServer
from backupd.proof import Proof
from tests.postgres import drop_database
from tests.programs import program
from tests.proving import Proofs
from tests.site import Site

NAME = f"evidence_{os.getpid()}"
FAILS = {"orders | of `today`": "select count(*) > 1000 from orders"}


class World(Proofs):
    """Three backups: of the first one proof passed, of the second one passed and a later one failed, and a rehearsal
    of it passed; of the third none is known."""

    first: str
    second: str
    third: str

    def proof(self, backup: str, status: str, kind: str = "proofs") -> Path:
        (found,) = (self.root / "shop" / kind / backup).glob(f"*-{status}.json")
        return found

    @property
    def key(self) -> minisign.SecretKey:
        return load(self.site.config, self.site.environ).load_signing_key()

    def plant(self, place: Path, data: bytes, key: minisign.SecretKey | None) -> None:
        """A proof under this key, signed by that one or not at all."""
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        if key is not None:
            comment = f"backupd proof shop/{place.parent.name} {place.name}"
            signature_of(place).write_text(minisign.sign(key, data, trusted_comment=comment))

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """Proofs that come to lie there in the block are gone after it."""
        before = set((self.root / "shop").rglob("*"))
        try:
            yield
        finally:
            for path in sorted(set((self.root / "shop").rglob("*")) - before, reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()

    def evidence(self, *options: str) -> dict[str, Any]:
        found: dict[str, Any] = self.site.run("evidence", "shop", "--json", *options).json
        return found


def signature_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.minisig")


@pytest.fixture(scope="module")
def world(pg15: ThrowawayServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with psycopg.connect(pg15.dsn(), autocommit=True) as connection:
        connection.execute(f"create database {NAME} template template0")
    try:
        made = World.make(tmp_path_factory.mktemp("evidence"), pg15.dsn(NAME), scratch=pg15)
        made.sql("create table orders (id int primary key)", "insert into orders select generate_series(1, 100)")
        made.first, made.second, made.third = (made.backup() for _ in range(3))
        for backup in (made.first, made.second):
            made.verify("passed", "--at", backup)
        made.ask(**FAILS)
        made.verify("failed", "--at", made.second)
        made.ask()
        made.configure("scratch", None)
        made.verify("passed", "--at", made.second, "--server-major", "17")
        yield made
    finally:
        drop_database(pg15, NAME)


# ---- forged


def _copied(world: World) -> Path:
    """Another backup's genuine proof, its signature too."""
    source = world.proof(world.first, "passed")
    place = world.root / "shop/proofs" / world.third / source.name
    world.plant(place, source.read_bytes(), None)
    signature_of(place).write_bytes(signature_of(source).read_bytes())
    return place


def _renamed(world: World) -> Path:
    """A failure that calls itself passed."""
    source = world.proof(world.second, "failed")
    place = source.with_name(source.name.replace("failed", "passed"))
    world.plant(place, source.read_bytes(), None)
    signature_of(place).write_bytes(signature_of(source).read_bytes())
    return place


def _postponed(world: World) -> Path:
    """The proof of before the failure, dressed up as one of after it."""
    source = world.proof(world.second, "passed")
    place = source.with_name(f"{datetime.now(UTC) + timedelta(days=1):%Y%m%dT%H%M%SZ}-passed.json")
    world.plant(place, source.read_bytes(), None)
    signature_of(place).write_bytes(signature_of(source).read_bytes())
    return place


def _rehearsed(world: World) -> Path:
    """A restore into another version is no proof of the backup, wherever it lies."""
    source = world.proof(world.second, "passed", "rehearsals")
    later = datetime.now(UTC) + timedelta(seconds=30)
    place = world.root / "shop/proofs" / world.second / f"{later:%Y%m%dT%H%M%SZ}-passed.json"
    world.plant(place, source.read_bytes(), None)
    signature_of(place).write_bytes(signature_of(source).read_bytes())
    return place


def _written(world: World, key: minisign.SecretKey | None, **changes: object) -> Path:
    """A proof of the third backup, from the words of the first one's."""
    source = world.proof(world.first, "passed")
    document = json.loads(source.read_bytes()) | {"id": world.third} | changes
    place = world.root / "shop/proofs" / world.third / source.name
    world.plant(place, json.dumps(document).encode(), key)
    return place


FORGERIES: dict[str, Callable[[World], Path]] = {
    "copied to another backup": _copied,
    "renamed to passed": _renamed,
    "given a later time": _postponed,
    "a rehearsal": _rehearsed,
    "not signed": lambda world: _written(world, None),
    "signed by another key": lambda world: _written(world, minisign.SecretKey.generate()),
    "of another repository": lambda world: _written(world, world.key, repository="f" * 32),
    "of another database": lambda world: _written(world, world.key, database="other"),
    "of a newer format": lambda world: _written(world, world.key, format=records.FORMAT + 1),
    "of no format": lambda world: _written(world, world.key, format="new"),
    "without a verdict": lambda world: _written(world, world.key, status=None),
}


@pytest.fixture(scope="module")
def genuine(world: World) -> dict[str, Any]:
    """The evidence while nothing is forged."""
    return world.evidence()


@pytest.mark.parametrize("kind", FORGERIES)
def test_what_is_forged_never_counts(world: World, genuine: dict[str, Any], kind: str) -> None:
    before = genuine
    with world.as_it_was():
        place = FORGERIES[kind](world)
        backup, key = place.parent.name, str(place.relative_to(world.root))
        outcome = world.site.run("list", "shop", "--json")
        (row,) = (row for row in outcome.json if row["id"] == backup)
        # The genuine verdict stands; where there is none, somebody should know why this is none.
        assert row["proof"]["status"] == ("failed" if backup == world.second else "none")
        assert backup == world.second or "not believed" in outcome.err
        assert any(key in p.get("error", "") for p in world.shown(backup))
        found = world.evidence()
        assert found["verdicts"] == before["verdicts"]
        assert found["proofs"] == before["proofs"]
        assert [each["key"] for each in found["not_counted"]] == [key]
        assert found["unproven"] == before["unproven"]


def test_a_genuine_proof_would_have_counted(world: World) -> None:
    """The forgeries fail by what is wrong with them, not by how they are planted."""
    with world.as_it_was():
        forged = _written(world, minisign.SecretKey.generate())
        assert "NOT BELIEVED" in world.site.run("show", "shop", world.third).out
        _written(world, world.key)
        assert forged.exists()
        assert world.listed(world.third) == "passed"
        assert world.evidence()["not_counted"] == []


def test_what_is_no_proof_by_its_name_is_passed_over(world: World) -> None:
    with world.as_it_was():
        for name in ("notes.txt", "20261399T000000Z-passed.json", "20260101T000000Z-great.json", "passed.json"):
            world.plant(world.root / "shop/proofs" / world.third / name, b"{}", world.key)
        assert world.listed(world.third) == "none"
        assert world.evidence()["not_counted"] == []


# ---- told


def test_list_and_show(world: World) -> None:
    expected = {world.first: "passed", world.second: "failed", world.third: "none"}
    rows = world.site.backups("shop")
    assert {row["id"]: row["proof"]["status"] for row in rows} == expected
    for row in rows:
        assert (row["proof"]["at"] is None) == (row["proof"]["status"] == "none")
    told = [(p["status"], p["rehearsal"], p["scratch"]["server_major"]) for p in world.shown(world.second)]
    assert sorted(told) == [("failed", False, 15), ("passed", False, 15), ("passed", True, 17)]
    assert "passed (rehearsal)" in world.site.run("show", "shop", world.second).out


def test_the_report(world: World) -> None:
    text = world.site.run("evidence", "shop").out
    assert "- passed: 2\n- failed: 1\n- inconclusive" in text
    assert "- backups of this time without a proof: 1\n" in text
    rows = re.findall(r"(?m)^\| 2\d{3}-.*$", text)
    assert len(rows) == 4
    assert all(len(re.split(r"(?<!\\)\|", row)) == len(re.split(r"\|", rows[0])) for row in rows)
    assert sum("upgrade rehearsal" in row for row in rows) == 1
    assert all("as proven" in row for row in rows)
    assert "orders \\| of \\`today\\`" in text  # stays text, whatever is in it
    assert f"- {world.third}" in text.partition("## Backups without a proof")[2]
    document = world.evidence()
    assert document["verdicts"] == {"passed": 2, "failed": 1}
    assert document["unproven"] == [world.third]
    assert document["since"] is None
    assert len(document["proofs"]) == 4


def test_since(world: World) -> None:
    """Proofs of that time, and the backups of that time that lack one."""
    proofs = world.evidence()["proofs"]
    failed = next(p for p in proofs if p["status"] == "failed")
    found = world.evidence("--since", failed["finished_at"])
    assert [(p["status"], p["rehearsal"]) for p in found["proofs"]] == [("failed", False), ("passed", True)]
    assert found["verdicts"] == {"failed": 1}
    assert found["since"] == failed["finished_at"]
    assert found["unproven"] == []
    assert world.evidence("--since", "1d")["verdicts"] == {"passed": 2, "failed": 1}
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert world.evidence("--since", later)["proofs"] == []
    assert "- newest backup proven to restore: none" in world.site.run("evidence", "shop", "--since", later).out
    assert world.site.run("evidence", "shop", "--since", "soon", code=2).out == ""


def test_minisign_agrees(world: World, tmp_path: Path) -> None:
    """By hand, with what the report says: the objects, the printed signer, and the real program."""
    text = world.site.run("evidence", "shop").out
    (signer,) = re.findall(r"(?m)^- `(RW[^`]+)`$", text)
    document = world.evidence()
    assert document["trusted_signers"] == [signer]
    for each in document["proofs"]:
        object_ = world.root / each["key"]
        command = [program("minisign"), "-V", "-P", signer, "-m", object_, "-x", signature_of(object_)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert f"backupd proof shop/{each['id']} {object_.name}" in done.stdout
        changed = tmp_path / object_.name
        changed.write_bytes(object_.read_bytes().replace(b"15.", b"16."))
        command[5] = changed
        assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_backups_that_are_gone_or_changed(world: World) -> None:
    manifest = world.root / "shop/manifests" / f"{world.first}.json"
    genuine = manifest.read_bytes()
    try:
        manifest.write_bytes(genuine.replace(b"15.", b"16."))
        states = {p["id"]: p["backup"] for p in world.evidence()["proofs"]}
        assert states[world.first].startswith("not believed")
        assert states[world.second] == "as proven"
        manifest.unlink()
        states = {p["id"]: p["backup"] for p in world.evidence()["proofs"]}
        assert states[world.first] == "deleted since"
    finally:
        manifest.write_bytes(genuine)


def test_nothing_to_report(world: World) -> None:
    assert world.site.run("evidence", "shpo", "--json", code=2).json["error"]["exit"] == 2
    fresh = Site(world.site.folder / "fresh", f"file://{world.site.folder}/fresh/repository", {"shop": world.dsn})
    assert fresh.run("evidence", "shop", "--json", code=3).json["error"]["exit"] == 3


def test_only_trusted_signers_count(world: World) -> None:
    """Once the configuration trusts somebody else, nothing of what was signed before is proof of anything."""
    genuine = world.site.config.read_text()
    stranger = str(minisign.SecretKey.generate().public)
    try:
        world.site.config.write_text(
            re.sub(r"(?m)^trusted_signers = .*$", f'trusted_signers = ["{stranger}"]', genuine)
        )
        document = world.evidence()
        assert document["proofs"] == []
        assert len(document["not_counted"]) == 4
        assert len(document["unproven"]) == 3
    finally:
        world.site.config.write_text(genuine)


def test_the_record_is_what_was_signed(world: World) -> None:
    """`show --json` has the proof as it is stored, and both as `verify --json` printed it."""
    stored = world.proof(world.first, "passed").read_bytes()
    assert records.decode(stored, "it") == Proof.model_validate(world.shown(world.first)[0])
