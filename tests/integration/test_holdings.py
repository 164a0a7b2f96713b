"""What is kept of a repository is what it holds, and a refresh asks for little."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backupd import proofs, times
from backupd.catalog import manifest_key
from backupd.crypto import minisign
from backupd.errors import StorageError
from backupd.holdings import Holdings, Keeper
from backupd.storage.base import ObjectInfo
from backupd.storage.memory import MemoryStorage
from tests.filled import Filled

NOW = datetime(2026, 11, 22, 6, 14, 3, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


class Asked(MemoryStorage):
    """Notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.lists: list[tuple[str, str]] = []
        self.reads: list[str] = []

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        self.lists.append((prefix, start_after))
        return super().list(prefix, start_after=start_after)

    def open(self, key: str, *, offset: int = 0, length: int | None = None):  # type: ignore[no-untyped-def]
        self.reads.append(key)
        return super().open(key, offset=offset, length=length)


class World:
    """A repository, a keeper of it, and the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.storage = Asked()
        self.filled = Filled(self.storage, minisign.SecretKey.generate())
        self.keeper = Keeper()
        self.now = NOW
        monkeypatch.setattr(times, "now", lambda: self.now)

    def refresh(self, *databases: str) -> dict[str, Holdings]:
        self.storage.lists.clear()
        self.storage.reads.clear()
        return dict(self.keeper.refresh(self.filled.catalog, databases or ("shop",)))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def ids(holdings: Holdings) -> list[str]:
    return [ref.id for ref in holdings.backups]


def test_it_knows_what_there_is(world: World) -> None:
    made = [world.filled.backup(NOW - n * DAY) for n in (3, 2, 1)]
    other = world.filled.backup(NOW - HOUR, "shop2")
    world.filled.proof(made[1], NOW - HOUR, phases={"restore": 7.0})
    found = world.refresh("shop", "shop2", "nothing")
    assert ids(found["shop"]) == made
    assert ids(found["shop2"]) == [other]
    assert found["nothing"].backups == ()
    assert found["nothing"].newest is None
    shop = found["shop"]
    assert shop.newest is not None
    assert shop.newest.taken_at == NOW - DAY
    assert shop.newest_proven is not None
    assert (shop.newest_proven.backup, shop.newest_proven.restore_seconds) == (made[1], 7.0)
    assert shop.repository_bytes == 12
    assert shop.last("backup", NOW) == NOW - DAY
    assert shop.last("verify", NOW) == NOW - HOUR


def test_a_refresh_asks_only_for_what_is_new(world: World) -> None:
    made = [world.filled.backup(NOW - n * DAY) for n in range(50, 0, -1)]
    world.filled.proof(made[-1], NOW - HOUR)
    world.refresh()
    world.now += timedelta(minutes=5)
    world.refresh()
    ((prefix, after),) = world.storage.lists
    assert prefix == "shop/"
    assert after > manifest_key("shop", made[-3])
    assert world.storage.reads == []
    new = world.filled.backup(world.now)
    found = world.refresh()["shop"]
    assert ids(found) == [*made, new]
    assert len(world.storage.lists) == 1
    assert {key for key in world.storage.reads if "manifests" in key} == {manifest_key("shop", new)}
    assert found.repository_bytes == 51 * 4


def test_what_was_deleted_is_noticed_within_the_hour(world: World) -> None:
    made = [world.filled.backup(NOW - n * DAY) for n in (9, 1)]
    world.refresh()
    world.storage.delete([manifest_key("shop", made[0]), world.filled.data(made[0])])
    world.now += timedelta(minutes=30)
    assert ids(world.refresh()["shop"]) == made
    world.keeper.forget("shop")  # a prune of our own is known at once
    assert ids(world.refresh()["shop"]) == made[1:]
    world.storage.delete([manifest_key("shop", made[1]), world.filled.data(made[1])])
    world.now += HOUR
    found = world.refresh()["shop"]
    assert (ids(found), found.repository_bytes) == ([], 0)


def test_a_backup_that_was_long_in_the_making_is_found(world: World) -> None:
    """Its name is older than those that were listed before it was complete."""
    first = world.filled.backup(NOW - HOUR)
    world.refresh()
    world.now += timedelta(minutes=5)
    late = world.filled.backup(NOW - 20 * HOUR)
    assert ids(world.refresh()["shop"]) == [late, first]


def test_what_nobody_signed_is_no_backup(world: World) -> None:
    good = world.filled.backup(NOW - DAY)
    bad = world.filled.backup(NOW - HOUR)
    world.storage.put(manifest_key("shop", bad), [b"{}"])
    key = world.filled.proof(good, NOW)
    world.storage.put(key, [b"{}"])
    found = world.refresh()["shop"]
    assert found.newest is not None
    assert found.newest.taken_at == NOW - DAY
    assert set(found.unreadable) == {bad}
    assert found.last_test is found.newest_proven is None


def test_a_failed_proof_stands_until_one_passes(world: World) -> None:
    old, new = world.filled.backup(NOW - DAY), world.filled.backup(NOW - HOUR)
    world.filled.proof(old, NOW - HOUR)
    world.filled.proof(new, NOW, status="failed")
    found = world.refresh()["shop"]
    assert found.last_test is not None
    assert found.last_passed is not None
    assert found.newest_proven is not None
    assert (found.last_test.status, found.last_passed.backup, found.newest_proven.backup) == ("failed", old, old)
    world.filled.proof(new, NOW + HOUR, status="inconclusive")
    world.filled.proof(new, NOW + 2 * HOUR)
    world.now += 3 * HOUR
    found = world.refresh()["shop"]
    assert found.newest_proven is not None
    assert found.newest_proven.backup == new


def test_a_forged_proof_hides_no_failure(world: World) -> None:
    made = world.filled.backup(NOW - DAY)
    world.filled.proof(made, NOW - HOUR, status="failed")
    world.storage.put(f"shop/proofs/{made}/{times.compact(NOW)}-passed.json", [b"{}"])
    found = world.refresh()["shop"]
    assert found.last_test is not None
    assert (found.last_test.status, len(found.failed), found.doubtful, len(found.forged)) == ("failed", 1, True, 1)


def test_a_proof_of_tomorrow_hides_no_failure(world: World) -> None:
    made = world.filled.backup(NOW - DAY)
    world.filled.proof(made, NOW + 300 * DAY)
    world.filled.proof(world.filled.backup(NOW - HOUR), NOW, status="failed")
    found = world.refresh()["shop"]
    assert found.last_test is not None
    assert found.last_test.status == "failed"
    assert [each.status for each in found.failed] == ["failed"]


def test_a_failure_of_a_closer_look_stands(world: World) -> None:
    """As in `list` and `prune`: counted rows say nothing about what hashes found."""
    made = world.filled.backup(NOW - DAY)
    world.filled.proof(made, NOW - 2 * HOUR, status="failed", level="content")
    world.filled.proof(made, NOW - HOUR, level="rows")
    found = world.refresh()["shop"]
    assert found.newest_proven is None
    assert [each.level for each in found.failed] == ["content"]
    world.filled.proof(made, NOW, level="content")
    found = world.refresh()["shop"]
    assert found.newest_proven is not None
    assert found.failed == ()


def test_a_backup_of_tomorrow_is_not_the_newest(world: World) -> None:
    world.filled.backup(NOW - 30 * DAY)
    world.filled.backup(NOW + DAY)
    newest = world.refresh()["shop"].newest
    assert newest is not None
    assert newest.taken_at == NOW - 30 * DAY


def test_what_cannot_be_read_makes_blind_and_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = world.filled.backup(NOW - DAY)
    key = world.filled.proof(made, NOW - HOUR)
    read = world.storage.open

    def refused(name: str, **more: int):  # type: ignore[no-untyped-def]
        if name == key:
            raise StorageError("archived")
        return read(name, **more)

    monkeypatch.setattr(world.storage, "open", refused)
    found = world.refresh()["shop"]
    assert (found.blind, found.seen_at) == ("archived", None)
    assert ids(found) == [made]
    assert found.newest is not None
    monkeypatch.undo()
    monkeypatch.setattr(times, "now", lambda: world.now)
    found = world.refresh()["shop"]
    assert (found.blind, found.seen_at) == ("", NOW)


def test_data_that_is_gone_is_noticed(world: World) -> None:
    made = [world.filled.backup(NOW - n * DAY) for n in (2, 1)]
    world.filled.proof(made[1], NOW)
    assert world.refresh()["shop"].hollow == frozenset()
    world.storage.delete([info.key for info in world.storage.list(f"shop/data/{made[1]}/")])
    world.now += 2 * HOUR
    found = world.refresh()["shop"]
    assert found.hollow == {made[1]}
    assert found.newest is not None
    assert found.newest.taken_at == NOW - 2 * DAY
    assert found.newest_proven is None


STEPS = st.lists(
    st.tuples(st.sampled_from(["backup", "late", "proof", "wait", "delete"]), st.integers(1, 70)), max_size=12
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_refreshed_step_by_step_it_is_what_a_new_look_finds(steps: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        world = World(patch)
        for step, number in steps:
            known = world.filled.catalog.backups("shop")
            if step == "backup":
                world.filled.backup(world.now)
            elif step == "late":
                world.filled.backup(world.now - timedelta(minutes=number * 20))
            elif step == "proof" and known:
                world.filled.proof(known[number % len(known)].id, world.now, status=("passed", "failed")[number % 2])
            elif step == "delete" and known:
                gone = known[number % len(known)]
                world.storage.delete(
                    [manifest_key("shop", gone.id), *(i.key for i in world.storage.list(f"shop/data/{gone.id}/"))]
                )
                world.keeper.forget("shop")
            world.now += timedelta(minutes=number if step == "wait" else 1)
            found = world.refresh()["shop"]
            fresh = dict(Keeper().refresh(world.filled.catalog, ["shop"]))["shop"]
            assert found.backups == tuple(world.filled.catalog.backups("shop")) == fresh.backups
            assert found.proofs == tuple(proofs.refs(world.filled.catalog, "shop"))
            assert (found.newest, found.last_test, found.newest_proven) == (
                fresh.newest,
                fresh.last_test,
                fresh.newest_proven,
            )
            assert found.repository_bytes == fresh.repository_bytes
