"""The one complaint of pg_restore that is none: a newer one sets what an older server does not know. Whatever else is
said beside it, by whichever of its workers, is a failure."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.postgres.restorer import _only_the_setting

SETTING = (
    'could not execute query: ERROR:  unrecognized configuration parameter "transaction_timeout"\n'
    "Command was: SET transaction_timeout = 0;\n\n"
)
LATE = "pg_restore: warning: errors ignored on restore: 3\n"
OTHERS = (
    'could not execute query: ERROR:  relation "x" does not exist\nCommand was: CREATE INDEX i ON x (a);\n\n',
    'could not execute query: ERROR:  the "transaction_timeout" of a function\nCommand was: SELECT f();\n\n',
    "could not execute query: ERROR:  out of memory\n",
    "a worker process died unexpectedly\n",
)


def interleaved(messages: list[list[str]], seed: int) -> str:
    """What comes of workers that write their pieces at the same time, each worker's in order."""
    rng, text = random.Random(seed), ""
    left = [pieces[:] for pieces in messages]
    while left := [pieces for pieces in left if pieces]:
        text += rng.choice(left).pop(0)
    return text


workers = st.lists(st.just(["pg_restore:", " ", "error: ", SETTING]), min_size=1, max_size=6)


@given(workers, st.integers())
def test_only_the_setting(messages: list[list[str]], seed: int) -> None:
    assert _only_the_setting(interleaved(messages, seed) + LATE)
    assert _only_the_setting(interleaved(messages, seed))
    assert _only_the_setting("pg_restore: while INITIALIZING:\n" + interleaved(messages, seed))


@given(workers, st.integers(), st.sampled_from(OTHERS))
def test_anything_else_counts(messages: list[list[str]], seed: int, other: str) -> None:
    assert not _only_the_setting(interleaved([*messages, ["pg_restore:", " ", "error: ", other]], seed) + LATE)


@pytest.mark.parametrize("text", ["", "pg_restore: error: ", "\n", SETTING + "x", LATE + "FATAL\n"])
def test_no_whole_message(text: str) -> None:
    assert not _only_the_setting(text)
