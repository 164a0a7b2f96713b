"""Which backups stay: laws that hold whatever the backups and the rules, and the edges of each rule."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.catalog import BackupRef
from backupd.retention import Decision, Policy, decide
from tests.naive import is_future, kept, utc

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = [ZoneInfo(name) for name in ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Apia")]
NOW = utc(2026, 11, 22, 6, 14, 3)


def ref(moment: datetime) -> BackupRef:
    return BackupRef(moment, f"{moment:%Y%m%dT%H%M%SZ}-aaaaaa", "shop")


def refs(*moments: datetime) -> list[BackupRef]:
    return [ref(moment) for moment in moments]


def stay(decisions: Sequence[Decision]) -> set[datetime]:
    return {each.ref.second for each in decisions if each.keep}


# Near each other and far apart, so that they share hours, days and years, and around changes of the clocks.
anchors = st.sampled_from(
    [NOW, utc(2026, 10, 25, 0, 30), utc(2026, 3, 29, 1), utc(2025, 1, 1), utc(2024, 2, 29, 23, 59)]
)
moments = st.builds(
    lambda anchor, minutes, days: anchor - timedelta(minutes=minutes, days=days),
    anchors,
    st.integers(-90, 60 * 30),
    st.sampled_from([0, 0, 1, 7, 30, 365]),
)
histories = st.lists(moments, max_size=30, unique=True)
counts = st.integers(0, 4)
policies = st.builds(
    Policy,
    keep_last=counts,
    keep_within=st.none() | st.timedeltas(timedelta(minutes=1), timedelta(days=40)),
    hourly=counts, daily=counts, weekly=counts, monthly=counts, yearly=counts,
)  # fmt: skip
zones = st.sampled_from(ZONES)


@given(histories, policies, zones)
def test_exactly_what_the_policy_says(history: list[datetime], policy: Policy, zone: ZoneInfo) -> None:
    decisions = decide(refs(*history), policy, NOW, zone)
    expected = set(history) if policy.is_empty else kept(history, policy, NOW, zone)
    assert stay(decisions) == expected
    assert [each.ref.second for each in decisions] == sorted(history, reverse=True)
    assert all(each.reasons for each in decisions)


@given(histories, policies, zones)
def test_what_stays_now_is_not_what_went_before(history: list[datetime], policy: Policy, zone: ZoneInfo) -> None:
    """Deciding again of what was left drops nothing more."""
    left = stay(decide(refs(*history), policy, NOW, zone))
    assert stay(decide(refs(*left), policy, NOW, zone)) == left


@given(histories, policies, zones, st.data())
def test_the_protected_stay(history: list[datetime], policy: Policy, zone: ZoneInfo, data: st.DataObject) -> None:
    proven = data.draw(st.lists(st.sampled_from(history), unique=True)) if history else []
    torn = data.draw(st.lists(st.sampled_from(history), unique=True)) if history else []
    unreadable = {ref(moment).id: "a reason" for moment in torn}
    decisions = decide(
        refs(*history), policy, NOW, zone, proven={ref(moment).id for moment in proven}, unreadable=unreadable
    )
    readable = set(history) - set(torn)
    assert stay(decisions) >= set(torn)
    if readable:
        assert max(readable) in stay(decisions)
    real = {moment for moment in readable if not is_future(moment, NOW)}
    if real:
        assert max(real) in stay(decisions)
    newest = {max(set(proven) & real)} if set(proven) & real else set()
    assert stay(decisions) >= newest
    if not policy.is_empty:  # what can't be read uses up no rule's count
        assert stay(decisions) == set(torn) | kept(sorted(readable), policy, NOW, zone) | newest


@given(histories, policies, zones)
def test_nothing_goes_while_pruning_is_paused(history: list[datetime], policy: Policy, zone: ZoneInfo) -> None:
    decisions = decide(refs(*history), policy, NOW, zone, paused="a proof failed")
    assert stay(decisions) == set(history)
    went = set(history) - stay(decide(refs(*history), policy, NOW, zone))
    assert {each.ref.second for each in decisions if each.reasons == ("pruning is paused: a proof failed",)} == went


def test_reasons() -> None:
    history = refs(utc(2026, 11, 22, 6), utc(2026, 11, 22, 0), utc(2026, 11, 21, 22, 30), utc(2026, 11, 20, 12))
    policy = Policy(keep_last=1, keep_within=timedelta(hours=7), daily=2, weekly=1, yearly=3)
    decisions = decide(history, policy, NOW, BERLIN, proven={history[2].id})
    assert [(each.keep, each.reasons) for each in decisions] == [
        (
            True,
            ("the newest", "last 1 of 1", "within 7 h", "daily 2026-11-22", "weekly 2026-W47", "yearly 2026"),
        ),
        (True, ("within 7 h",)),
        (True, ("the newest proven", "daily 2026-11-21")),
        (False, ("no rule keeps it",)),
    ]


def test_days_are_those_of_the_zone() -> None:
    history = refs(utc(2026, 7, 1, 22, 30), utc(2026, 7, 1, 21, 30))  # half past midnight, and an hour before it
    assert stay(decide(history, Policy(daily=2), NOW, BERLIN)) == {each.second for each in history}
    assert stay(decide(history, Policy(daily=2), NOW, ZoneInfo("UTC"))) == {history[0].second}


def test_the_hour_that_comes_twice_is_two() -> None:
    history = refs(utc(2026, 10, 25, 1, 30), utc(2026, 10, 25, 0, 30))  # half past two, twice
    assert len({each.second.astimezone(BERLIN).replace(tzinfo=None) for each in history}) == 1
    assert stay(decide(history, Policy(hourly=2), NOW, BERLIN)) == {each.second for each in history}


def test_weeks_belong_to_the_year_of_their_thursday() -> None:
    history = refs(utc(2027, 1, 3), utc(2026, 12, 28), utc(2026, 12, 27))
    assert stay(decide(history, Policy(weekly=2), utc(2027, 1, 4), ZoneInfo("UTC"))) == {
        history[0].second,
        history[2].second,
    }


@pytest.mark.parametrize("zone", ZONES, ids=str)
def test_a_backup_from_the_future_stays(zone: ZoneInfo) -> None:
    """Clocks are wrong at times. It displaces nothing: what is really the newest, and the newest proven, stay too."""
    history = refs(NOW + timedelta(days=3), NOW, NOW - timedelta(hours=1), NOW - timedelta(hours=2))
    proven = {history[0].id, history[2].id}
    for policy in (Policy(keep_last=1), Policy(weekly=1, yearly=1)):
        assert stay(decide(history, policy, NOW, zone, proven=proven)) == {each.second for each in history[:3]}


def test_without_a_policy_everything_stays() -> None:
    history = refs(*(NOW - timedelta(days=400 * n) for n in range(9)))
    assert {each.reasons[-1] for each in decide(history, Policy(), NOW, BERLIN)} == {"no retention is set"}
