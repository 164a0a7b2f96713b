"""Times as people type them, and as the repository writes them. Always aware; UTC inside."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from backupd.errors import ConfigError

_AGE = re.compile(r"(?:\d+(?:\.\d+)?[smhdw])+")
_AGE_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def now() -> datetime:
    return datetime.now(UTC)


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC with a `Z`; microseconds only where there are any."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def compact(moment: datetime) -> str:
    """`20261122T061403Z`: sorts as time does, and is a legal file name and identifier."""
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")


def parse_age(text: str) -> timedelta | None:
    """`90m`, `2h`, `3d`, `1h30m` as a duration; None if it is none."""
    if not _AGE.fullmatch(text):
        return None
    return timedelta(seconds=sum(float(number) * _UNIT[unit] for number, unit in _AGE_PART.findall(text)))


def parse_moment(text: str, *, reference: datetime) -> datetime:
    """A point in time as an operator types it: ISO 8601, or an age counted back from `reference`.

    Without an offset it is read in the machine's zone; a local time that occurs twice or never
    (daylight saving) raises ConfigError, since a guess could restore the wrong hour.
    """
    text = text.strip()
    age = parse_age(text)
    if age is not None:
        return reference - age
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"cannot read the time {text!r}",
            hint="Use ISO 8601 (2026-11-22T03:00Z, '2026-11-22 03:00'), 'latest', or an age (90m, 2h, 3d).",
        ) from None
    if moment.tzinfo is not None:
        return moment.astimezone(UTC)
    earlier, later = moment.replace(fold=0).astimezone(UTC), moment.replace(fold=1).astimezone(UTC)
    if earlier != later:
        there = earlier.astimezone().replace(tzinfo=None) == moment
        kind = "occurs twice" if there else "does not exist"
        raise ConfigError(
            f"the local time {text!r} {kind}: the clocks change then",
            detail=f"It could mean {iso(earlier)} or {iso(later)}.",
            hint="Give the time with an offset, or in UTC with a Z.",
        )
    return earlier


def human_duration(span: timedelta) -> str:
    """`2 h 5 min 3 s`, exact to the second, for plans and summaries."""
    return " ".join(f"{n} {unit}" for n, unit in _units(span) if n) or "0 s"


def brief_duration(span: timedelta) -> str:
    """`2 h 5 min`, `44 min`, `3 d`: two figures or so, cut off, for a glance."""
    parts = _units(span)
    first = next((i for i, (n, _) in enumerate(parts) if n), len(parts) - 1)
    count = 1 if parts[first][0] >= 10 else 2
    return " ".join(f"{n} {unit}" for n, unit in parts[first : first + count] if n) or "0 s"


def _units(span: timedelta) -> list[tuple[int, str]]:
    seconds = int(abs(span.total_seconds()))
    days, seconds = divmod(seconds, 86400)
    hours, seconds = divmod(seconds, 3600)
    minutes, seconds = divmod(seconds, 60)
    return [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]


def human_bytes(size: float) -> str:
    """`1.4 GB`: decimal units, as storage is sold and metrics are drawn."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"
