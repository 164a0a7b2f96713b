"""When jobs are due: laws for every schedule and zone, and the two days a year on which clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.config_values import parse_schedule
from backupd.schedules import after, jitter, latest
from tests.naive import utc

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = [
    ZoneInfo(name)
    for name in ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Cairo")
]
SCHEDULES = ["0 3 * * *", "30 2 * * *", "*/15 * * * *", "0 */6 * * *", "5 0 1 * *", "15,45 1-3 * * 0", "@every 1h30m"]
# Around changes of the clocks, and anywhere.
moments = st.builds(
    lambda anchor, seconds: anchor + timedelta(seconds=seconds),
    st.sampled_from(
        [utc(2026, 3, 29, 1), utc(2026, 10, 25, 1), utc(2026, 11, 1, 6), utc(2026, 4, 4, 15), utc(2027, 1, 1)]
    ),
    st.integers(-40 * 3600, 40 * 3600),
)
schedules = st.sampled_from(SCHEDULES).map(parse_schedule)
zones = st.sampled_from(ZONES)


@given(schedules, zones, moments)
def test_the_latest_and_the_next_have_nothing_between(schedule, zone, moment) -> None:  # type: ignore[no-untyped-def]
    before, ahead = latest(schedule, zone, moment), after(schedule, zone, moment)
    assert before is not None
    assert ahead is not None
    assert before <= moment < ahead
    assert after(schedule, zone, before) == ahead
    assert latest(schedule, zone, ahead) == ahead
    assert latest(schedule, zone, ahead - timedelta(seconds=1)) == before
    assert before.second == ahead.second == 0


@given(st.sampled_from(["0 3 * * *", "30 2 * * *", "30 1 * * *", "0 0 * * *"]), zones, st.integers(2025, 2030))
def test_a_nightly_job_runs_once_a_day(text: str, zone: ZoneInfo, year: int) -> None:
    """On every day of the year, also where its hour is skipped or comes twice."""
    schedule, slot = parse_schedule(text), datetime(year, 1, 1, tzinfo=zone).astimezone(UTC)
    days = []
    while slot.astimezone(zone).year == year:
        found = latest(schedule, zone, slot)
        assert found is not None
        slot = after(schedule, zone, slot) or slot
        days.append(slot.astimezone(zone).date())
    assert all(later - earlier == timedelta(days=1) for earlier, later in pairwise(days))


def test_the_hour_that_is_skipped() -> None:
    nightly = parse_schedule("30 2 * * *")
    assert after(nightly, BERLIN, utc(2026, 3, 28, 12)) == utc(2026, 3, 29, 1)  # 03:00, just after the gap
    assert after(nightly, BERLIN, utc(2026, 3, 29, 1)) == utc(2026, 3, 30, 0, 30)


def test_the_hour_that_comes_twice() -> None:
    nightly = parse_schedule("30 2 * * *")
    first = utc(2026, 10, 25, 0, 30)
    assert after(nightly, BERLIN, utc(2026, 10, 24, 12)) == first
    for within in (first, first + timedelta(minutes=31), first + timedelta(hours=1, minutes=5)):
        assert after(nightly, BERLIN, within) == utc(2026, 10, 26, 1, 30)
        assert latest(nightly, BERLIN, within) == first
    hourly = parse_schedule("30 * * * *")
    assert after(hourly, BERLIN, first) == first + timedelta(hours=1)


def test_rare_ones() -> None:
    leap = parse_schedule("0 0 29 2 *")
    assert latest(leap, BERLIN, utc(2027, 6, 1)) == utc(2024, 2, 28, 23)
    assert after(leap, BERLIN, utc(2027, 6, 1)) == utc(2028, 2, 28, 23)


@pytest.mark.parametrize("width", [timedelta(), timedelta(seconds=30), timedelta(hours=1)])
def test_jitter_is_spread_and_always_the_same(width: timedelta) -> None:
    found = [jitter(f"db{n} backup", width) for n in range(400)]
    assert found == [jitter(f"db{n} backup", width) for n in range(400)]
    assert all(timedelta() <= each <= width for each in found)
    if width:
        quarters = {each // (width / 4) for each in found if each < width}
        assert quarters == {0, 1, 2, 3}
        assert len({each // timedelta(seconds=1) for each in found}) > 20
