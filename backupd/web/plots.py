"""Small drawings as SVG, in plain attributes and classes: no style that a strict browser would refuse. What they show
stands in the page's tables too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from backupd import times

WIDTH, HEIGHT = 640, 160
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 12, 10, 22


@dataclass(frozen=True, slots=True)
class Tick:
    """A line across the plot, or a mark below it."""

    at: float  # pixels
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """What a template needs to draw values over time."""

    label: str  # for those who don't see it
    points: str  # of a polyline
    dots: tuple[tuple[float, float, str], ...]  # x, y and what it says
    across: tuple[Tick, ...]
    below: tuple[Tick, ...]


@dataclass(frozen=True, slots=True)
class Strip:
    """Backups along a line of time."""

    label: str
    marks: tuple[tuple[float, str, str], ...]  # x, class, and what it says
    below: tuple[Tick, ...]


Sample = tuple[datetime, float]


def line(title: str, samples: Sequence[Sample], shown: Callable[[float], str]) -> Line | None:
    """Values over time from 0 up; None for fewer than two."""
    if len(samples) < 2:
        return None
    ordered = sorted(samples)
    first, last = ordered[0][0], ordered[-1][0]
    top = max(value for _, value in ordered) or 1.0
    step = _round_step(top / 2)
    steps = math.ceil(top / step)
    ceiling = step * steps

    def y(value: float) -> float:
        return round(HEIGHT - _BOTTOM - value / ceiling * (HEIGHT - _TOP - _BOTTOM), 1)

    dots = tuple((_x(at, first, last), y(value), f"{_stamp(at)}: {shown(value)}") for at, value in ordered)
    lowest, highest = min(v for _, v in ordered), max(v for _, v in ordered)
    return Line(
        label=f"{title} of {len(ordered)} backups, {_stamp(first)} to {_stamp(last)}: from {shown(lowest)} to"
        f" {shown(highest)}, the newest {shown(ordered[-1][1])}",
        points=" ".join(f"{x},{y}" for x, y, _ in dots),
        dots=dots,
        across=tuple(Tick(y(step * n), shown(step * n)) for n in range(steps + 1)),
        below=_days(first, last),
    )


def strip(marks: Sequence[tuple[datetime, str, str]], now: datetime) -> Strip | None:
    """Each: when, its class, and what it says."""
    if not marks:
        return None
    first, last = min(at for at, _, _ in marks), max(now, *(at for at, _, _ in marks))
    counts = {kind: sum(each == kind for _, each, _ in marks) for kind in sorted({kind for _, kind, _ in marks})}
    told = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    return Strip(
        label=f"Timeline of {len(marks)} backups from {_stamp(first)} to now: {told}",
        marks=tuple((_x(at, first, last), kind, text) for at, kind, text in marks),
        below=_days(first, last),
    )


def _x(at: datetime, first: datetime, last: datetime) -> float:
    span = (last - first).total_seconds() or 1.0
    return round(_LEFT + (at - first).total_seconds() / span * (WIDTH - _LEFT - _RIGHT), 1)


def _days(first: datetime, last: datetime) -> tuple[Tick, ...]:
    """The ends, and the middle."""
    form = "%d %b %H:%M" if (last - first).total_seconds() < 3 * 86400 else "%d %b %Y"
    moments = [first, first + (last - first) / 2, last] if last > first else [first]
    return tuple(Tick(_x(at, first, last), at.strftime(form)) for at in moments)


def _round_step(wanted: float) -> float:
    """1, 2 or 5 times a power of ten, or a bit more than wanted."""
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(power * n for n in (1, 2, 5, 10) if power * n >= wanted)


def _stamp(at: datetime) -> str:
    return times.iso(at.replace(microsecond=0))
