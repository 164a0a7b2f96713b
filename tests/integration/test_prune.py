"""`backupd prune`: the table that it prints is what it does; what must not go does not; what is left is finished."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backupd import prune, times
from backupd.catalog import BackupRef, Catalog
from backupd.crypto import minisign
from backupd.errors import StorageError
from backupd.retention import Policy
from backupd.storage.base import Storage
from backupd.storage.memory import MemoryStorage
from tests.filled import Filled, filling
from tests.site import Site, local_site

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"  # pruning asks no server
NOW = datetime(2026, 11, 22, 6, 14, 3, tzinfo=UTC)
DAY = timedelta(days=1)
GRACE = timedelta(days=2)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = local_site(tmp_path / "site", {"shop": NOWHERE, "shop2": NOWHERE, "old": NOWHERE})
    made.set("retention", "{ keep_last = 2 }", table="defaults")
    return made


@pytest.fixture
def filled(site: Site) -> Iterator[Filled]:
    with filling(site) as made:
        yield made


def ids(site: Site, database: str = "shop") -> list[str]:
    return [row["id"] for row in site.backups(database)]


def of(filled: Filled, backup: str) -> list[str]:
    return [key for key in filled.names() if backup in key]


def test_the_table_is_what_is_done(site: Site, filled: Filled) -> None:
    made = [filled.backup(times.now() - n * DAY) for n in range(5)]
    before = filled.names()
    dry = site.run("prune", "shop", "--dry-run", "--json").json
    assert filled.names() == before
    assert [row["id"] for row in dry] == made
    assert [row["keep"] for row in dry] == [True, True, False, False, False]
    assert dry[0]["reasons"] == ["the newest", "last 1 of 2"]
    assert {row["database"] for row in dry} == {"shop"}
    assert site.run("prune", "shop", "--json").json == dry
    assert ids(site) == made[:2]
    for gone in made[2:]:
        assert of(filled, gone) == []
    again = site.run("prune", "shop")
    assert again.out.splitlines()[1].split("  ")[0] == "shop"
    assert ids(site) == made[:2]


def test_only_what_is_named_or_configured(site: Site, filled: Filled) -> None:
    """Names that share a prefix never mix, and a database that left the configuration is never touched."""
    made = {name: [filled.backup(times.now() - n * DAY, name) for n in range(4)] for name in ("shop", "shop2", "old")}
    site.edit(lambda text: text.replace("[databases.old]", "[databases.other]"))
    site.run("prune", "shop")
    assert [len(ids(site, name)) for name in made] == [2, 4, 4]
    site.run("prune")
    assert [len(ids(site, name)) for name in made] == [2, 2, 4]
    refused = site.run("prune", "old", code=2)
    assert "no database 'old'" in refused.err
    assert ids(site, "old") == made["old"]


def test_without_retention_everything_stays(site: Site, filled: Filled) -> None:
    site.edit(lambda text: text.replace("retention = { keep_last = 2 }\n", ""))
    made = [filled.backup(times.now() - n * 100 * DAY) for n in range(5)]
    rows = site.run("prune", "--json").json
    assert {row["reasons"][-1] for row in rows} == {"no retention is set"}
    assert ids(site) == made


def test_the_newest_proven_stays(site: Site, filled: Filled) -> None:
    made = [filled.backup(times.now() - n * DAY) for n in range(5)]
    filled.proof(made[4], times.now() - 9 * DAY)
    filled.proof(made[3], times.now() - 8 * DAY)
    rows = site.run("prune", "shop", "--json").json
    assert [row["keep"] for row in rows] == [True, True, False, True, False]
    assert rows[3]["reasons"] == ["the newest proven"]
    assert ids(site) == [made[0], made[1], made[3]]
    assert [key for key in of(filled, made[4]) if "/proofs/" not in key] == []
    assert of(filled, made[4])  # what was proven stays on record


def test_a_failed_proof_pauses(site: Site, filled: Filled) -> None:
    made = [filled.backup(times.now() - n * DAY) for n in range(4)]
    filled.proof(made[2], times.now() - 3 * DAY)
    filled.proof(made[0], times.now() - 2 * DAY, status="failed")
    filled.proof(made[0], times.now() - DAY, status="inconclusive")  # says nothing
    outcome = site.run("prune", "shop")
    assert f"nothing is pruned, since its newest proof, of {made[0]}" in outcome.err
    assert ids(site) == made
    filled.proof(made[1], times.now() - timedelta(hours=2))  # of an older one: the newer still does not restore
    filled.proof(made[0], times.now() - timedelta(hours=1), level="off")  # asks less than what failed
    assert f"since its newest proof, of {made[0]}" in site.run("prune", "shop").err
    assert ids(site) == made
    filled.proof(made[0], times.now())
    site.run("prune", "shop")
    assert ids(site) == made[:2]


def test_what_is_dated_in_the_future_displaces_nothing(site: Site, filled: Filled) -> None:
    """A clock was wrong once: what is really the newest, and the newest proven, still stays."""
    future = filled.backup(times.now() + 300 * DAY)
    filled.proof(future, times.now() + 300 * DAY)
    made = [filled.backup(times.now() - n * DAY) for n in range(4)]
    filled.proof(made[3], times.now() - 2 * DAY)
    site.edit(lambda text: text.replace("{ keep_last = 2 }", "{ keep_last = 1, weekly = 1, yearly = 1 }"))
    rows = site.run("prune", "shop", "--json").json
    assert (rows[0]["id"], rows[0]["reasons"]) == (future, ["dated in the future"])
    assert ids(site) == [future, made[0], made[3]]
    filled.proof(made[0], times.now() - DAY, status="failed")
    assert f"since its newest proof, of {made[0]}" in site.run("prune", "shop").err


def test_a_proof_that_is_not_believed_pauses(site: Site, filled: Filled) -> None:
    made = [filled.backup(times.now() - n * DAY) for n in range(4)]
    place = filled.proof(made[0], times.now())
    filled.storage.put(place, [filled.storage.read(place).replace(b'"here"', b'"there"')])
    assert "is not believed" in site.run("prune", "shop").err
    assert ids(site) == made


def test_what_cannot_be_read_stays(site: Site, filled: Filled) -> None:
    made = [filled.backup(times.now() - n * DAY) for n in range(5)]
    for torn in (made[0], made[3]):
        filled.storage.delete([f"shop/signatures/{torn}.json.minisig"])
    rows = site.run("prune", "shop", "--json").json
    assert [row["keep"] for row in rows] == [True, True, True, True, False]
    assert rows[3]["reasons"][0].startswith("cannot be read: ")
    assert of(filled, made[3])
    assert of(filled, made[0])


# ---- interrupted, and leftovers


class Breaking:
    """A storage that refuses to delete, or to write, from the nth key on."""

    def __init__(self, inner: Storage, after: int) -> None:
        self._inner = inner
        self._left = after

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def _spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise StorageError("broken on purpose")

    def delete(self, keys: list[str]) -> None:
        for key in keys:
            self._spend()
            self._inner.delete([key])

    def put(self, *arguments: object, **options: object) -> int:
        self._spend()
        return self._inner.put(*arguments, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def key() -> minisign.SecretKey:
    return minisign.SecretKey.generate()


def planned(catalog: Catalog, keep: int = 2, now: datetime = NOW) -> prune.PrunePlan:
    from zoneinfo import ZoneInfo

    return prune.plan(catalog, "shop", Policy(keep_last=keep), now, ZoneInfo("UTC"), grace=GRACE)


def whole(filled: Filled) -> list[BackupRef]:
    """The backups that are listed; each must be as it was committed."""
    refs = filled.catalog.backups("shop")
    for ref in refs:
        filled.catalog.check_objects(filled.catalog.manifest(ref))
    return refs


@pytest.mark.parametrize("after", range(26))
def test_interrupted_wherever(key: minisign.SecretKey, after: int) -> None:
    """What is listed is whole; the next run, though it keeps more, finishes what was begun."""
    filled = Filled(MemoryStorage(lambda: NOW), key)
    made = [filled.backup(NOW - n * timedelta(minutes=1)) for n in range(6)]
    try:
        broken = Catalog(Breaking(filled.storage, after), [key.public])  # type: ignore[arg-type]
        prune.run(planned(broken), broken)
    except StorageError:
        pass
    else:
        assert after >= 20
    left = [ref.id for ref in whole(filled)]
    assert set(made[:2]) <= set(left)
    prune.run(planned(filled.catalog, keep=9), filled.catalog)
    assert [ref.id for ref in whole(filled)] == left
    assert {key.split("/")[2].split(".")[0] for key in filled.names() if key.startswith("shop/")} == set(left)
    assert not [key for key in filled.names() if "/deleting/" in key]


def test_leftovers_of_failed_backups(key: minisign.SecretKey) -> None:
    """Old ones go: data without a manifest, a lone signature, unfinished uploads. Young ones may be running backups."""
    clock = [NOW - 9 * DAY]
    storage = MemoryStorage(lambda: clock[0])
    filled = Filled(storage, key)
    kept = filled.backup(NOW - 9 * DAY)
    old, slow, young, signed = (f"{times.compact(NOW - n * DAY)}-aaaaa{n}" for n in (8, 7, 1, 6))
    filled.data(old)
    filled.data(slow)
    storage.put(f"shop/signatures/{signed}.json.minisig", [b"signature"])
    storage.put("shop/data/notes.txt", [b"not ours"])
    storage.begin(f"shop/data/{old}/data-0001.dump.zst.age")
    storage.begin("shop2/data/x/data-0001.dump.zst.age")
    clock[0] = NOW - DAY
    filled.data(young)
    storage.put(f"shop/data/{slow}/data-0000.dump.zst.age", [b"written a day ago"])
    storage.begin(f"shop/data/{young}/data-0001.dump.zst.age")
    plan = planned(filled.catalog)
    assert sorted(each.id for each in plan.leftovers) == sorted([old, signed])
    assert [upload.key for upload in plan.uploads] == [f"shop/data/{old}/data-0001.dump.zst.age"]
    prune.run(plan, filled.catalog)
    assert not [name for name in filled.names() if old in name or signed in name]
    assert [name for name in filled.names() if slow in name]
    assert [name for name in filled.names() if young in name]
    assert "shop/data/notes.txt" in filled.names()
    assert [ref.id for ref in whole(filled)] == [kept]
    assert len(list(storage.unfinished(""))) == 2
    plan = planned(filled.catalog, now=NOW + 9 * DAY)
    prune.run(plan, filled.catalog)
    assert not [name for name in filled.names() if young in name or slow in name]


def test_one_that_fails_does_not_delay_the_others(site: Site, filled: Filled) -> None:
    made = {name: [filled.backup(times.now() - n * DAY, name) for n in range(4)] for name in ("shop", "shop2")}
    place = site.folder / "repository" / "shop" / "proofs"
    place.parent.joinpath("proofs").write_text("a file where a folder belongs")
    outcome = site.run("prune", code=None)
    if os.geteuid() != 0 or outcome.code:
        assert outcome.code == 5
        assert "shop: " in outcome.err
    assert ids(site, "shop2") == made["shop2"][:2]
