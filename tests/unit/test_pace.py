"""A limit on bytes a second: by a clock that only moves when somebody sleeps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 0.2
        self.now += seconds + 1e-6  # or rounding would have us sleep for nothing


@given(st.lists(st.binary(max_size=5000), max_size=40), st.integers(100, 100_000))
def test_no_more_than_allowed(chunks: list[bytes], limit: int) -> None:
    clock = Clock()
    began, sent = clock.now, 0
    for chunk in Pace(limit, clock, clock.sleep).spread(chunks):
        # What is let through was paid for, all but the last chunk and a short burst.
        assert sent <= limit * (clock.now - began + 0.25) + 1
        sent += len(chunk)
    assert clock.now - began <= sent / limit + 1


@given(st.lists(st.binary(max_size=50)))
def test_without_a_limit_nothing_waits(chunks: list[bytes]) -> None:
    clock = Clock()
    assert list(Pace(0, clock, clock.sleep).spread(chunks)) == chunks
    assert clock.now == 100.0


def test_it_ends_when_told() -> None:
    clock = Clock()

    def go_on() -> None:
        if clock.now > 101:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        list(Pace(10, clock, clock.sleep).spread([b"x" * 1000] * 2, go_on))
    assert clock.now < 102
