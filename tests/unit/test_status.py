"""When a database is late, and what is said of it: the worst first, and everything that is not as it should be."""

from __future__ import annotations

import gc
import json
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from backupd import schedules, standing, status
from backupd.agenda import Job
from backupd.catalog import BackupRef
from backupd.config_models import Database
from backupd.holdings import Holdings
from backupd.holdings import Tested as Proven
from backupd.proofs import ProofRef
from backupd.standing import Attempt, Key, Reading
from backupd.summaries import Headline

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def database(schedule: str | None = "0 2 * * *", verify: str | None = None, **more: Any) -> Database:
    values: dict[str, Any] = {"name": "shop", "dsn": SecretStr("host=x"), "verify": {"schedule": verify}, **more}
    return Database.model_validate(values | ({} if schedule is None else {"schedule": schedule}))


def headline(at: datetime, took: timedelta = MINUTE) -> Headline:
    return Headline(at, at, at + took, 300, 100, 1, 10, "17.0")


def ref(at: datetime) -> BackupRef:
    return BackupRef(at, at.strftime("%Y%m%dT%H%M%SZ-abcdef"), "shop")


def held(*backups: datetime, tested: tuple[datetime, str, datetime] | None = None, **more: Any) -> Holdings:
    """Backups of these moments; `tested`: of one of them, with this result, at this time."""
    refs = tuple(ref(at) for at in sorted(backups))
    values: dict[str, Any] = {"headlines": {each.id: headline(each.second) for each in refs}}
    values["newest"] = next((headline(each.second) for each in reversed(refs) if each.second <= NOW), None)
    if tested is not None:
        of, result, at = tested
        proof = Proven(ref(of).id, of, at, result, "rows", 60.0, 42.0, (("rows", result, ""),))
        passed = proof if result == "passed" else None
        values |= {"last_test": proof, "last_passed": passed, "newest_proven": passed}
        values["failed"] = () if passed else (proof,)
        values["proofs"] = (ProofRef(at, result, "shop", ref(of).id, "key"),)
    return Holdings("shop", backups=refs, seen_at=NOW, **(values | more))


def row(
    known: Holdings | None, settings: Database | None = None, attempts: dict[Key, Attempt] | None = None
) -> status.Row:
    settings = settings or database()
    standings = () if known is None else standing.all_of({"shop": settings}, {"shop": known}, timedelta())
    reading = Reading(NOW, standings, NOW, attempts=attempts or {}, databases={"shop": settings})
    (found,) = status.overview(reading).databases
    return found


def failed(at: datetime, text: str = "no route to host") -> Attempt:
    return Attempt(at, "failure", text)


TODAY = NOW.replace(hour=2, minute=1)
TESTED = (TODAY, "passed", TODAY + HOUR)


@pytest.mark.parametrize(
    ("state", "said", "known", "settings", "attempts"),
    [
        ("proven", "", held(TODAY, tested=TESTED), database(verify="0 3 * * *"), {}),
        ("proven", "", held(TODAY, tested=TESTED), database(), {}),
        ("unknown", "not told", None, database(), {}),
        ("none", "there is no backup", held(), database(), {}),
        ("unproven", "no backup was proven", held(TODAY), database(), {}),
        ("unproven", "no test restore is scheduled", held(TODAY, NOW, tested=TESTED), database(), {}),
        ("late", "backup is overdue by", held(TODAY - 2 * DAY), database(), {}),
        ("late", "test restore is overdue by", held(TODAY, tested=TESTED), database(verify="0 4 * * *"), {}),
        ("failing", "test restore of 2026", held(TODAY, tested=(TODAY, "failed", NOW)), database(), {}),
        ("failing", "no route", held(TODAY, tested=TESTED), database(), {("shop", "backup"): failed(NOW)}),
        ("failing", "no route", held(), database(), {("shop", "backup"): failed(NOW)}),
        ("failing", "no route", None, database(), {("shop", "backup"): failed(NOW)}),
        ("failing", "no route", held(TODAY, tested=TESTED), database(), {("shop", "verify"): failed(NOW)}),
        ("failing", "pruning failed", held(TODAY, tested=TESTED), database(), {("shop", "prune"): failed(NOW)}),
        ("proven", "", held(TODAY, tested=TESTED), database(), {("shop", "backup"): failed(TODAY - HOUR)}),
        ("proven", "", held(TODAY, tested=TESTED), database(), {("shop", "backup"): Attempt(NOW, "success", "")}),
        (
            *("failing", "2 backups cannot be read: signed by nobody"),
            *(held(TODAY, tested=TESTED, unreadable={"a": "signed by nobody", "b": "x"}), database(), {}),
        ),
        ("late", "dated in the future", held(TODAY, NOW + DAY, tested=(NOW + DAY, "passed", NOW)), database(), {}),
        ("failing", "newest proof is not believed", held(TODAY, tested=TESTED, doubtful=True), database(), {}),
        ("failing", "is gone from", held(TODAY, tested=TESTED, hollow=frozenset({"x"})), database(), {}),
        ("unknown", "not all of it can be read", held(TODAY, tested=TESTED, blind="no"), database(), {}),
        ("late", "backup is overdue", held(TODAY - 9 * DAY, newest=None, headlines={}), database(), {}),
    ],
)
def test_the_state_is_the_worst_that_there_is_to_say(
    state: str, said: str, known: Holdings | None, settings: Database, attempts: dict[Key, Attempt]
) -> None:
    found = row(known, settings, attempts)
    assert found.state == state, found.reasons
    assert said in " ".join(found.reasons)
    assert bool(found.reasons) == (state != "proven")


def test_what_a_restore_would_lose_and_take() -> None:
    found = row(held(TODAY, NOW - 90 * MINUTE, tested=TESTED))
    assert found.loss_seconds == 5400
    assert found.restore_seconds == 42
    assert found.proof_age_seconds == (NOW - TODAY - HOUR).total_seconds()
    nothing = row(held())
    assert (nothing.loss_seconds, nothing.restore_seconds, nothing.newest_backup) == (None, None, None)


def expected(settings: Database, known: Holdings) -> datetime | None:
    return standing.standing(settings, known, timedelta(), NOW).backup_expected


@pytest.mark.parametrize(
    ("schedule", "took", "grace"),
    [
        ("@every 1h", MINUTE, 15 * MINUTE),  # the least
        ("@every 6h", MINUTE, HOUR),  # a sixth
        ("0 2 * * *", MINUTE, 3 * HOUR),  # of a day would be 4
        ("0 2 * * 0", MINUTE, 3 * HOUR),
        ("@every 6h", 2 * HOUR, 4 * HOUR),  # twice what it took
    ],
)
def test_grace_goes_by_the_schedule_and_by_what_backups_take(schedule: str, took: timedelta, grace: timedelta) -> None:
    settings = database(schedule)
    assert settings.schedule is not None
    slot = schedules.latest(settings.schedule, settings.timezone, NOW)
    assert slot is not None
    made = headline(slot, took)
    known = Holdings("shop", backups=(ref(slot),), headlines={ref(slot).id: made}, newest=made)
    following = schedules.after(settings.schedule, settings.timezone, slot)
    assert following is not None
    assert expected(settings, known) == following + grace


def test_who_waits_for_his_turn_every_night_is_not_late() -> None:
    nights = [TODAY.replace(minute=0) - n * DAY + 5 * HOUR for n in range(5)]  # five hours after their slots
    settings = database("0 2 * * *")
    assert expected(settings, held(*nights)) == TODAY.replace(minute=0) + DAY + 5 * HOUR + 2 * MINUTE
    once = [TODAY.replace(minute=0) - n * DAY for n in range(1, 5)] + [nights[0]]
    assert expected(settings, held(*once)) == TODAY.replace(minute=0) + DAY + 3 * HOUR  # once is no custom


def test_a_window_gives_a_day_and_no_schedule_is_never_late() -> None:
    late = TODAY - 2 * DAY
    assert row(held(late), database(window="02:00-04:00")).state == "late"
    assert row(held(late + DAY), database(window="02:00-04:00")).state == "unproven"
    assert row(held(late - 100 * DAY), database(None)).state == "unproven"


@given(st.lists(st.integers(0, 60 * 24 * 30), min_size=1, max_size=20), st.integers(0, 60 * 24 * 40))
def test_what_is_overdue_only_grows_until_a_backup_is_made(minutes: list[int], later: int) -> None:
    known = held(*(NOW - timedelta(minutes=each) for each in minutes))
    due = expected(database("@every 6h"), known)
    assert due is not None
    assert due > max(each.taken_at for each in known.headlines.values())
    first, second = standing.overdue(due, NOW), standing.overdue(due, NOW + timedelta(minutes=later))
    assert first is not None
    assert second is not None
    assert timedelta() <= first <= second <= first + timedelta(minutes=later)


def test_what_is_known_ages() -> None:
    """What was proven a week ago, as far as anybody could see, is not proven now."""
    settings, known = database(None), held(TODAY, tested=TESTED)
    standings = standing.all_of({"shop": settings}, {"shop": known}, timedelta())
    for hours, state in ((0, "proven"), (1, "unknown")):
        reading = Reading(
            NOW + hours * HOUR,
            standings,
            NOW,
            databases={"shop": settings},
            refresh=5 * MINUTE,
            troubles={"storage": "x"},
        )
        found = status.overview(reading)
        assert [each.state for each in found.databases] == [state]
        assert found.troubles == {"storage": "x"}


def test_the_worst_comes_first() -> None:
    known = {"a": held(TODAY, tested=TESTED), "b": held(TODAY - 3 * DAY), "c": held()}
    both = {name: database(name=name) for name in known}
    standings = standing.all_of(both, known, timedelta())
    found = status.overview(Reading(NOW, standings, NOW, databases=both))
    assert [each.state for each in found.databases] == ["late", "none", "proven"]
    assert dict(found.counts) == {"late": 1, "none": 1, "proven": 1}


def test_proofs_that_are_not_believed_say_nothing() -> None:
    forged = held(TODAY, forged=frozenset({"key"}), proofs=(ProofRef(NOW, "passed", "shop", ref(TODAY).id, "key"),))
    standings = standing.all_of({"shop": database()}, {"shop": forged}, timedelta())
    found = status.details(Reading(NOW, standings, NOW, databases={"shop": database()}), "shop")
    assert found is not None
    assert found.backups[0].proof is None


def test_all_of_it_is_json() -> None:
    known = held(TODAY, NOW, tested=TESTED)
    standings = standing.all_of({"shop": database()}, {"shop": known}, timedelta())
    job = Job("backup", "shop", NOW)
    reading = Reading(NOW, standings, NOW, running={job: NOW - MINUTE}, databases={"shop": database()})
    document = json.loads(json.dumps(status.document(status.details(reading, "shop"))))
    assert document["summary"]["running"][0]["seconds"] == 60
    assert document["backups"][0]["taken_at"] == "2026-11-22T12:00:00Z"
    assert document["backups"][1]["proof"] == "passed"
    assert "host=x" not in json.dumps(document)


def test_looks_remember_no_more_however_many_backups_come_and_go() -> None:
    """A daemon looks for years: what it asked of a schedule for backups that are long gone must not stay."""
    settings = {"shop": database("*/5 * * * *")}

    def look(number: int) -> None:
        at = TODAY + number * 5 * MINUTE
        standing.all_of(settings, {"shop": held(*(at + n * MINUTE for n in range(4)))}, timedelta())

    def kept(looks: range) -> int:
        """Bytes: of what backupd made, as other threads of the tests have their own."""
        for number in looks:
            look(number)
        gc.collect()
        ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/backupd/*")])
        return sum(trace.size for trace in ours.traces)

    tracemalloc.start()
    try:
        before = kept(range(50))
        grown = kept(range(50, 1050)) - before
    finally:
        tracemalloc.stop()
    assert grown < 1000 * 100  # each look would leave 300
