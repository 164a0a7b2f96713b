"""The summary of a database spares reading its manifests, and changes nothing that anybody is told."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from backupd import prune, times
from backupd.catalog import Catalog, manifest_key, signature_key
from backupd.crypto import minisign
from backupd.errors import IntegrityError
from backupd.retention import Policy
from backupd.storage.base import ObjectInfo, Storage
from backupd.storage.memory import MemoryStorage
from backupd.summaries import WORTH_IT, Headline, View, summary_key
from tests.filled import Filled, filling
from tests.site import Site, local_site

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
NOW = datetime(2026, 11, 22, 6, 14, 3, tzinfo=UTC)
HOUR = timedelta(hours=1)
BACKUPS = WORTH_IT + 5
PLACE = summary_key("shop")


class Counting:
    """Counts what is asked of a storage."""

    def __init__(self, inner: Storage) -> None:
        self._inner = inner
        self.reads: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open(self, key: str, **options: Any) -> Generator[bytes]:
        self.reads.append(key)
        return self._inner.open(key, **options)

    def list(self, prefix: str, **options: Any) -> Iterator[ObjectInfo]:
        return self._inner.list(prefix, **options)


@pytest.fixture(scope="module")
def key() -> minisign.SecretKey:
    return minisign.SecretKey.generate()


@pytest.fixture
def filled(key: minisign.SecretKey) -> Filled:
    """Backups with and without proofs, and a summary of them."""
    filled = Filled(MemoryStorage(lambda: NOW), key)
    made = [filled.backup(NOW - n * HOUR, seconds=n) for n in range(BACKUPS)]
    for number, status in ((3, "passed"), (5, "failed"), (5, "passed"), (7, "failed")):
        filled.proof(made[number], NOW - number * HOUR, status=status)
    pruned(filled)
    assert PLACE in filled.names()
    return filled


def pruned(filled: Filled, keep: int = BACKUPS + 5, now: datetime = NOW) -> prune.PrunePlan:
    plan = prune.plan(filled.catalog, "shop", Policy(keep_last=keep), now, ZoneInfo("UTC"), grace=48 * HOUR)
    prune.run(plan, filled.catalog, filled.key)
    return plan


def told(filled: Filled) -> tuple[Any, Any, list[str]]:
    """What a view says, and which objects it read for that."""
    storage = Counting(filled.storage)
    view = View(Catalog(storage, [filled.key.public]), "shop")
    backups = {ref.id: says if isinstance(says, Headline) else type(says) for ref, says in view.backups.items()}
    verdicts = {
        backup: (says.status, says.finished_at) if not isinstance(says, IntegrityError) else type(says)
        for backup, says in view.verdicts.items()
    }
    return backups, verdicts, storage.reads


def test_it_says_what_the_manifests_say_and_spares_reading_them(filled: Filled) -> None:
    backups, verdicts, reads = told(filled)
    assert len(backups) == BACKUPS
    assert sorted({status for status, _ in verdicts.values()}) == ["failed", "passed"]
    assert sorted(reads) == sorted(["backupd.json", PLACE, f"{PLACE}.minisig"])
    filled.storage.delete([PLACE])
    again, verdicts_again, reads = told(filled)
    assert (again, verdicts_again) == (backups, verdicts)
    assert len(reads) > 2 * BACKUPS


def test_what_is_new_is_read(filled: Filled) -> None:
    newest = filled.backup(NOW + HOUR, seconds=7)
    proof = filled.proof(newest, NOW + HOUR)
    backups, verdicts, reads = told(filled)
    assert backups[newest].duration.total_seconds() == 7
    assert verdicts[newest][0] == "passed"
    assert {manifest_key("shop", newest), proof} <= set(reads)
    assert len(reads) == 3 + 2 + 2
    pruned(filled, now=NOW + HOUR)
    assert told(filled) == (backups, verdicts, ["backupd.json", PLACE, f"{PLACE}.minisig"])


def test_what_was_pruned_is_gone_from_it(filled: Filled) -> None:
    kept = pruned(filled, keep=WORTH_IT)
    assert len(kept.dropped) > 0
    document = json.loads(filled.storage.read(PLACE))
    there = {ref.id for ref in filled.catalog.backups("shop")}
    assert set(document["backups"]) == there
    assert {key.split("/")[2] for key in document["proofs"]} <= there


def test_a_manifest_that_is_another_now_is_read(filled: Filled) -> None:
    """Of the same size, at another time; and at the same time, of another size."""
    refs = filled.catalog.backups("shop")
    later = MemoryStorage(lambda: NOW + HOUR)
    place = manifest_key("shop", refs[2].id)
    data = filled.storage.read(place)
    later.put(place, [data.replace(b'"17.0"', b'"16.0"')])
    filled.storage._objects[place] = later._objects[place]  # type: ignore[attr-defined]
    other = manifest_key("shop", refs[4].id)
    filled.storage.put(other, [filled.storage.read(other) + b" "])
    backups, _, reads = told(filled)
    assert backups[refs[2].id] is IntegrityError
    assert backups[refs[4].id] is IntegrityError
    assert {place, other} <= set(reads)


def test_a_backup_without_its_signature_is_never_pruned(filled: Filled) -> None:
    refs = filled.catalog.backups("shop")
    filled.storage.delete([signature_key("shop", refs[0].id)])
    plan = pruned(filled, keep=2)
    (kept,) = [each for each in plan.decisions if each.ref == refs[0]]
    assert kept.keep
    assert kept.reasons[0].startswith("cannot be read: ")


@pytest.mark.parametrize("how", ["edited", "another key", "another database", "no signature", "no text"])
def test_what_is_forged_is_not_believed(filled: Filled, how: str) -> None:
    before = told(filled)
    data = filled.storage.read(PLACE)
    forged = data.replace(b'"17.0"', b'"99.9"')
    key, comment = filled.key, "backupd summary shop"
    if how == "another key":
        key = minisign.SecretKey.generate()
    if how == "another database":
        comment = "backupd summary shop2"
    if how == "no text":
        forged = b"\xff{"
    filled.storage.put(PLACE, [forged])
    if how not in ("edited", "no signature"):
        filled.storage.put(f"{PLACE}.minisig", [minisign.sign(key, forged, trusted_comment=comment).encode()])
    if how == "no signature":
        filled.storage.delete([f"{PLACE}.minisig"])
    assert View(filled.catalog, "shop").doubt is not None
    assert told(filled)[:2] == before[:2]
    pruned(filled)
    assert View(filled.catalog, "shop").doubt is None
    assert told(filled) == before


def test_few_need_none(key: minisign.SecretKey) -> None:
    filled = Filled(MemoryStorage(lambda: NOW), key)
    for n in range(WORTH_IT - 1):
        filled.backup(NOW - n * HOUR)
    pruned(filled)
    assert PLACE not in filled.names()


def test_a_host_without_a_key_prunes_and_stores_none(key: minisign.SecretKey) -> None:
    filled = Filled(MemoryStorage(lambda: NOW), key)
    for n in range(BACKUPS):
        filled.backup(NOW - n * HOUR)
    plan = prune.plan(filled.catalog, "shop", Policy(keep_last=2), NOW, ZoneInfo("UTC"), grace=48 * HOUR)
    prune.run(plan, filled.catalog, None)
    assert len(filled.catalog.backups("shop")) == 2
    assert not [name for name in filled.names() if "summary" in name]


# ---- through the command line


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return local_site(tmp_path / "site", {"shop": NOWHERE})


def test_list_says_the_same_with_and_without(site: Site) -> None:
    with filling(site) as filled:
        made = [filled.backup(times.now() - n * HOUR) for n in range(BACKUPS)]
        filled.proof(made[1], times.now(), status="failed")
        site.run("prune", "--dry-run")
        assert PLACE not in filled.names()
        without = site.backups("shop")
        site.run("prune")
        assert PLACE in filled.names()
        assert site.backups("shop") == without
        torn = manifest_key("shop", made[3])
        (site.folder / "repository" / torn).write_text("{}")
        refused = site.run("list", "--json", code=7)
        assert [row["id"] for row in refused.json if "error" in row] == [made[3]]
        filled.storage.put(PLACE, [b"{}"])
        warned = site.run("list", code=7)
        assert "a summary is not believed" in warned.err
