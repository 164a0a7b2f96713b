"""What is due, step by step: failures, other hosts, overruns, windows, and what nobody has asked the storage about."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from backupd.agenda import Agenda, Job, Plan, Retry
from backupd.config_values import parse_schedule, parse_window
from tests.naive import utc

UTC = ZoneInfo("UTC")
NOW = utc(2026, 11, 22, 12, 30)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def agenda(text: str = "0 * * * *", last: datetime | None = None, **changes: object) -> Agenda:
    plans = {("shop", "backup"): Plan(parse_schedule(text), UTC, **changes)}  # type: ignore[arg-type]
    made = Agenda({**plans, ("shop", "prune"): Plan(None, UTC)})  # type: ignore[dict-item]
    made.learn("shop", "backup", last)
    return made


def begun(made: Agenda, now: datetime) -> Job:
    (job,) = made.due(now)
    made.begin(job, now)
    assert made.due(now) == []
    return job


def test_nothing_is_due_before_the_storage_was_asked() -> None:
    assert Agenda({("shop", "backup"): Plan(parse_schedule("* * * * *"), UTC)}).due(NOW) == []


def test_what_the_storage_holds_is_not_due() -> None:
    made = agenda(last=utc(2026, 11, 22, 12, 1))
    assert made.due(NOW) == []
    assert made.next_run("shop", "backup", NOW) == utc(2026, 11, 22, 13)
    made.learn("shop", "backup", utc(2026, 11, 22, 11, 59))
    assert begun(made, NOW).slot == utc(2026, 11, 22, 12)


def test_failures_are_tried_again_then_told() -> None:
    made, now = agenda(retry=Retry(2, MINUTE)), NOW
    for wait in (MINUTE, 2 * MINUTE):
        assert made.fail(begun(made, now), now) == now + wait
        assert made.due(now + wait - timedelta(seconds=1)) == []
        now += wait
    assert made.fail(begun(made, now), now) is None
    assert made.due(now + 20 * MINUTE) == []
    assert begun(made, utc(2026, 11, 22, 13)).slot == utc(2026, 11, 22, 13)


@pytest.mark.parametrize("schedule", ["@every 1m", "* * * * *"])
def test_somebody_is_told_also_where_slots_come_faster_than_attempts(schedule: str) -> None:
    made, now, told = agenda(schedule, retry=Retry(3, MINUTE)), NOW, 0
    for _ in range(40):
        if made.due(now):
            told += made.fail(begun(made, now), now) is None
        now += timedelta(seconds=30)
    assert told >= 3


def test_a_success_ends_the_count() -> None:
    made = agenda("@every 1m", retry=Retry(1, MINUTE))
    assert made.fail(begun(made, NOW), NOW) is not None
    made.succeed(begun(made, NOW + MINUTE), NOW + MINUTE, NOW + MINUTE)
    assert made.fail(begun(made, NOW + 2 * MINUTE), NOW + 2 * MINUTE) is not None


def test_an_overrun_is_left_out_and_told() -> None:
    made = agenda(last=NOW - HOUR)
    job = begun(made, NOW)
    ended = NOW + 2 * HOUR
    assert made.succeed(job, ended, NOW) == utc(2026, 11, 22, 14)
    assert made.due(ended) == []
    assert begun(made, utc(2026, 11, 22, 15)).slot == utc(2026, 11, 22, 15)


def test_a_slot_that_is_met_by_chance_is_not_left_out() -> None:
    """The job had to wait, and ran over the hour for a minute only."""
    made = agenda(last=NOW - HOUR)
    job = begun(made, utc(2026, 11, 22, 12, 59))
    assert made.succeed(job, utc(2026, 11, 22, 13, 1), utc(2026, 11, 22, 12, 59)) is None
    assert begun(made, utc(2026, 11, 22, 13, 1)).slot == utc(2026, 11, 22, 13)


def test_what_is_put_off_comes_again_and_counts_as_no_failure() -> None:
    made = agenda(retry=Retry(0, MINUTE))
    made.put_off(begun(made, NOW), NOW + MINUTE)
    assert made.due(NOW) == []
    made.want("shop", "prune", NOW)
    prune = begun(made, NOW)
    assert prune.kind == "prune"
    made.put_off(prune, NOW + 2 * MINUTE)
    assert begun(made, NOW + MINUTE).kind == "backup"


def test_the_window() -> None:
    made = agenda(window=parse_window("22:00-06:00"))
    assert made.due(NOW) == []
    assert begun(made, utc(2026, 11, 22, 22)).slot == utc(2026, 11, 22, 22)


def test_another_configuration_while_a_job_runs() -> None:
    made = agenda()
    job = begun(made, NOW)
    made.replace({})
    assert made.fail(job, NOW) is None
    assert made.due(NOW + HOUR) == []


def test_jitter_never_outlasts_the_slot() -> None:
    """Wider than the time between two slots, it put half of all databases off for ever."""
    for number in range(10):
        name, ran = f"db{number}", 0
        made = Agenda({(name, "backup"): Plan(parse_schedule("*/15 * * * *"), UTC, jitter=30 * MINUTE)})
        made.learn(name, "backup", None)
        for minute in range(24 * 60):
            now = NOW + minute * MINUTE
            for job in made.due(now):
                made.begin(job, now)
                made.succeed(job, now, now)
                ran += 1
        assert 95 <= ran <= 97


def test_a_clock_that_was_ahead_stops_nothing() -> None:
    made = agenda(last=NOW - 3 * HOUR, retry=Retry(0))
    ahead = NOW + 6 * HOUR
    made.succeed(begun(made, ahead), ahead, NOW)  # by the source's clock, which was right
    assert made.fail(begun(made, NOW + HOUR), ahead) is None  # it jumped again meanwhile
    assert made.due(NOW + HOUR + MINUTE)


def test_what_the_storage_does_not_say_the_job_finds_out() -> None:
    made = Agenda({("shop", "backup"): Plan(parse_schedule("0 * * * *"), UTC)})
    made.ask("shop", "backup")
    assert made.due(NOW)
    made.learn("shop", "backup", NOW)
    made.ask("shop", "backup")  # later it does not say: what is known still holds
    assert made.due(NOW) == []
