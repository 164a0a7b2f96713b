"""The record of the source beside a backup: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backupd.errors import IntegrityError
from backupd.postgres.objects import Inventory
from backupd.postgres.sequences import Position, Span
from backupd.reference import FORMAT, Reference, decode

SPAN = Span(before=Position(value=1, called=False), after=None, increment=-3, cycles=True)
MADE = Reference(
    inventory=Inventory({"table": {"public.\udce4": {"owner": "app", "options": ["fillfactor=70"]}}}, {"role": "why"}),
    sequences={"public.s": SPAN},
    bootstrap="postgres",
    probe="a hash",
    large_objects=(3, "another"),
)
BARE = Reference(Inventory({}, {}), None, "postgres", "", None)


@pytest.mark.parametrize("made", [MADE, BARE])
def test_what_is_written_is_read(made: Reference) -> None:
    assert json.loads(made.encode())["format"] == FORMAT
    assert decode(made.encode(), "x") == made
    assert decode(json.dumps({**json.loads(made.encode()), "later": 1}).encode(), "x") == made


@pytest.mark.parametrize(
    "change",
    [
        {"objects": {"table": {"t": 1}}},
        {"objects": {"table": []}},
        {"objects": None},
        {"unread": []},
        {"sequences": {"s": {"before": 1}}},
        {"sequences": [1]},
        {"large_objects": [1]},
        {"large_objects": 7},
        {"format": None},
    ],
)
def test_a_record_that_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match=r"^the reference is not readable"):
        decode(json.dumps(json.loads(MADE.encode()) | change).encode(), "the reference")


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"format": 1}', b"\xff", b"7"])
def test_bytes_that_are_none(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"^the reference is not readable"):
        decode(data, "the reference")


def test_a_later_format() -> None:
    with pytest.raises(IntegrityError, match=r"^the reference has format version 2, and this backupd reads up to 1"):
        decode(b'{"format": 2}', "the reference")
