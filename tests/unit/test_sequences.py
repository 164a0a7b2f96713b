"""Where a copy's sequence may stand: between where the source's stood before the dump and after it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.postgres.sequences import Position, Span, spans


def span(before: Position, after: Position, increment: int = 1) -> Span:
    return Span(before=before, after=after, increment=increment)


def used(value: int) -> Position:
    return Position(value=value, called=True)


def fresh(value: int) -> Position:
    return Position(value=value, called=False)


steps = st.sampled_from([1, 2, 7, 100, -1, -3, -50])
counts = st.integers(0, 20)


@given(st.integers(-1000, 1000), steps, counts, counts, st.booleans())
def test_everything_that_it_gave_meanwhile(start: int, step: int, early: int, late: int, called: bool) -> None:
    """Ascending or descending: whatever the dump saw between the two looks is right, and nothing outside is."""
    before = Position(value=start, called=called)
    first = start + step if called else start  # the next that it gives
    total = early + late
    after = before if total == 0 else used(first + step * (total - 1))
    whole = span(before, after, step)
    assert whole.known
    assert whole.has(before)
    assert whole.has(after)
    if early:
        assert whole.has(used(first + step * (early - 1)))
    assert not whole.has(used(first + step * total))
    assert not whole.has(used(first - 2 * step))


@given(st.integers(-1000, 1000), steps, st.booleans(), st.integers(-1000, 1000), st.booleans())
def test_one_that_rested(value: int, step: int, called: bool, other: int, other_called: bool) -> None:
    """Only that very position, not one that gives the same next number: nobody moved it."""
    here, there = Position(value=value, called=called), Position(value=other, called=other_called)
    resting = span(here, here, step)
    assert resting.known
    assert resting.has(there) == (here == there)


@pytest.mark.parametrize(
    "before, after, increment",
    [
        (used(100), used(5), 1),  # setval back, or a cycle from its end
        (used(-100), used(-5), -1),
        (used(9), fresh(1), 1),  # RESTART, or TRUNCATE … RESTART IDENTITY
        (used(4), fresh(5), 1),  # the same next number, and yet somebody set it
        (fresh(5), used(4), 1),
        (used(1), used(9), -1),  # a descending one that went up
    ],
)
def test_one_that_was_set_back_may_stand_anywhere(before: Position, after: Position, increment: int) -> None:
    assert not span(before, after, increment).known


def test_the_limits_of_bigint() -> None:
    top = 2**63 - 1
    whole = span(used(top - 1), used(top))
    assert whole.known
    assert whole.has(used(top))
    assert not whole.has(used(top - 2))
    assert Span.model_validate(whole.model_dump()) == whole


def test_what_is_told() -> None:
    assert str(span(fresh(1), used(7))) == "1, not yet used to 7"
    assert str(span(used(7), used(7))) == "7"


def test_a_cycling_one_may_stand_anywhere() -> None:
    """How often it came round nobody knows: not even whether it rested where it stood."""
    assert not Span(before=used(3), after=used(5), increment=1, cycles=True).known
    assert not Span(before=used(3), after=used(3), increment=1, cycles=True).known


def test_spans_of_those_that_stayed() -> None:
    before = {"public.a": (used(1), 1, False), "public.gone": (used(1), 1, False)}
    after = {"public.a": (used(5), 1, False), "public.new": (fresh(1), 1, False)}
    assert spans(before, after) == {"public.a": span(used(1), used(5))}
    assert spans({}, after) == {}
    unread = spans(before, None)  # they could not be read again
    assert set(unread) == set(before)
    assert not any(each.known for each in unread.values())
