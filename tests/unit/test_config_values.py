"""The small languages inside configuration values."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.config_values import format_duration, parse_duration, parse_size


@given(st.timedeltas(timedelta(0), timedelta(days=9999)))
def test_durations_round_trip(value: timedelta) -> None:
    assert parse_duration(format_duration(value)) == value - timedelta(microseconds=value.microseconds)


@given(st.integers(0, 9999), st.integers(0, 9999))
def test_durations_add_up(hours: int, minutes: int) -> None:
    assert parse_duration(f"{hours}h{minutes}m") == timedelta(hours=hours, minutes=minutes)


@given(st.integers(0, 10**12), st.sampled_from(["B", "kB", "KB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"]))
def test_sizes(number: int, unit: str) -> None:
    factor = (1024 if "i" in unit else 1000) ** "BKMGT".index(unit[0].upper())
    assert parse_size(f"{number}{unit}") == number * factor


@given(st.text(max_size=12) | st.from_regex(r"[0-9dhms.+ -]{0,8}", fullmatch=True))
def test_any_other_text_is_refused_and_not_quoted(text: str) -> None:
    duration, size = r"(\d+d)?(\d+h)?(\d+m)?(\d+s)?", r"0|\d+ ?([kKMGT]?B|[KMGT]iB)"
    for parse, shape in ((parse_duration, duration), (parse_size, size)):
        if text and re.fullmatch(shape, text, re.ASCII):
            parse(text)
        else:
            with pytest.raises(ValueError, match=r"^expected a"):
                parse(text)
