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
from backupd.errors import IntegrityError, ObjectMissingError, StorageError
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

    def read(self, key: str, **options: Any) -> bytes:
        self.reads.append(key)
        return self._inner.read(key, **options)

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
    assert sorted(reads) == ["backupd.json", PLACE]
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
    assert len(reads) == 2 + 2 + 2
    pruned(filled, now=NOW + HOUR)
    assert told(filled) == (backups, verdicts, ["backupd.json", PLACE])


def test_what_was_pruned_is_gone_from_it(filled: Filled) -> None:
    kept = pruned(filled, keep=WORTH_IT)
    assert len(kept.dropped) > 0
    document = json.loads(json.loads(filled.storage.read(PLACE))["summary"])
    there = {ref.id for ref in filled.catalog.backups("shop")}
    assert set(document["backups"]) == there
    assert {key.split("/")[2] for key in document["proofs"]} <= there


def test_where_little_is_left_it_goes(key: minisign.SecretKey) -> None:
    filled = Filled(MemoryStorage(lambda: NOW), key)
    for n in range(BACKUPS):
        filled.backup(NOW - n * HOUR)
    pruned(filled)
    assert PLACE in filled.names()
    pruned(filled, keep=2)
    assert PLACE not in filled.names()


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


@pytest.mark.parametrize("how", ["without its signature", "with a damaged signature", "with a damaged manifest"])
def test_what_the_summary_still_calls_right_is_read_before_anything_goes(filled: Filled, how: str) -> None:
    """Prune believes no summary."""
    refs = filled.catalog.backups("shop")
    if how == "without its signature":
        filled.storage.delete([signature_key("shop", refs[0].id)])
    elif how == "with a damaged signature":
        filled.storage.put(signature_key("shop", refs[0].id), [b"damaged"])
    else:  # of the same size, at the same time
        place = manifest_key("shop", refs[0].id)
        filled.storage.put(place, [filled.storage.read(place).replace(b"17.0", b"16.0")])
    plan = pruned(filled, keep=2)
    (kept,) = [each for each in plan.decisions if each.ref == refs[0]]
    assert kept.keep
    assert kept.reasons[0].startswith("cannot be read: ")


def as_stored(text: str, key: minisign.SecretKey, comment: str) -> bytes:
    signature = minisign.sign(key, text.encode(), trusted_comment=comment)
    return json.dumps({"signature": signature, "summary": text}).encode()


@pytest.mark.parametrize("how", ["edited", "another key", "another database", "no signature", "no text"])
def test_what_is_forged_is_not_believed(filled: Filled, how: str) -> None:
    before = told(filled)
    document = json.loads(filled.storage.read(PLACE))
    forged, ours = document["summary"].replace('"17.0"', '"99.9"'), "backupd summary shop"
    filled.storage.put(
        PLACE,
        [
            {
                "edited": json.dumps({**document, "summary": forged}).encode(),
                "another key": as_stored(forged, minisign.SecretKey.generate(), ours),
                "another database": as_stored(forged, filled.key, "backupd summary shop2"),
                "no signature": json.dumps({"summary": forged}).encode(),
                "no text": b"\xff{",
            }[how]
        ],
    )
    assert View(filled.catalog, "shop").doubt is not None
    assert told(filled)[:2] == before[:2]
    pruned(filled)
    assert View(filled.catalog, "shop").doubt is None
    assert told(filled) == before


def test_a_signer_who_is_not_trusted_any_more(filled: Filled) -> None:
    """The summary, signed by another, does not vouch for what he signed."""
    newer = minisign.SecretKey.generate()
    both = Catalog(filled.storage, [filled.key.public, newer.public])
    plan = prune.plan(both, "shop", Policy(keep_last=99), NOW, ZoneInfo("UTC"), grace=48 * HOUR)
    prune.run(plan, both, newer)
    assert all(isinstance(each, Headline) for each in View(both, "shop").backups.values())
    now = View(Catalog(filled.storage, [newer.public]), "shop")
    assert now.doubt is None
    assert all(isinstance(each, IntegrityError) for each in now.backups.values())


def test_one_of_a_newer_format_is_passed_over(filled: Filled) -> None:
    before = told(filled)
    newer = json.dumps({"format": 2, "what": "else"})
    filled.storage.put(PLACE, [as_stored(newer, filled.key, "backupd summary shop")])
    assert View(filled.catalog, "shop").doubt is None
    assert told(filled)[:2] == before[:2]


class Odd:
    """A storage with a trouble: some keys can't be read or written, others are listed and then not there."""

    def __init__(self, inner: Storage, *, closed: str = "", hidden: str = "") -> None:
        self._inner, self._closed, self._hidden = inner, closed, hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _refuse(self, key: str) -> None:
        if self._closed and key == self._closed:
            raise StorageError("closed on purpose")
        if self._hidden and self._hidden in key:
            raise ObjectMissingError(f"there is no {key}")

    def open(self, key: str, **options: Any) -> Generator[bytes]:
        self._refuse(key)
        return self._inner.open(key, **options)

    def read(self, key: str, **options: Any) -> bytes:
        self._refuse(key)
        return self._inner.read(key, **options)

    def put(self, key: str, *arguments: Any, **options: Any) -> int:
        self._refuse(key)
        return self._inner.put(key, *arguments, **options)


def test_one_that_cannot_be_read_or_stored_stops_nothing(filled: Filled) -> None:
    """A folder's file of another user, a bucket in which nothing may be replaced."""
    odd = Catalog(Odd(filled.storage, closed=PLACE), [filled.key.public])
    assert len(View(odd, "shop").backups) == BACKUPS
    plan = prune.plan(odd, "shop", Policy(keep_last=WORTH_IT + 2), NOW, ZoneInfo("UTC"), grace=48 * HOUR)
    assert prune.run(plan, odd, filled.key) == "closed on purpose"
    assert len(filled.catalog.backups("shop")) < BACKUPS


def test_what_is_listed_and_then_not_there_loses_no_data(filled: Filled) -> None:
    """Some stores list an object and answer for a while that it is missing."""
    refs = filled.catalog.backups("shop")
    odd = Catalog(Odd(filled.storage, hidden=f"manifests/{refs[0].id}"), [filled.key.public])
    plan = prune.plan(odd, "shop", Policy(keep_last=99), NOW + 99 * HOUR, ZoneInfo("UTC"), grace=HOUR)
    assert plan.leftovers == ()
    prune.run(plan, odd, filled.key)
    filled.catalog.check_objects(filled.catalog.manifest(refs[0]))


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
