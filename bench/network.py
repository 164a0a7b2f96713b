"""`make bench-network`: backup and restore over lines of 200 and 100 Mbit/s and 50 ms, and how full they keep them.

Two lines, as two cores may not be able to restore as fast as the first one carries.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from bench import contents, report, targets
from bench.contenders import LABELS, Entry, one_round
from bench.kinds import KINDS
from bench.shaped import Carried, Shaped, shaped
from bench.world import SOURCE, World, machine, world

_HERE = Path(__file__).parent
_MEASURED = ("backup-s3", "shell-s3", "restore", "restore-4", "restore-download")
_OURS = ("backup-s3", "restore", "restore-4")
_THERE = ("backup-s3", "shell-s3")  # these send; the others receive
_STREAMS = 0.05  # of what the line can carry: with less than that in a tenth of a second no streams are under way


@dataclass(frozen=True)
class Far:
    """An S3 server behind a line; everything else of it as it is."""

    server: object
    line: Shaped

    def __getattr__(self, name: str) -> object:
        return getattr(self.server, name)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.line.port}"


@dataclass(frozen=True)
class Seen:
    """One measurement, and for how long streams went over the line in it."""

    entry: Entry
    streams: float  # seconds


@contextmanager
def far(place: World, megabits: float, milliseconds: float) -> Iterator[tuple[World, Shaped]]:
    with shaped(place.s3.port, megabits=megabits, milliseconds=milliseconds) as line:
        yield replace(place, s3=Far(place.s3, line)), line  # type: ignore[arg-type]


def measure(place: World, given: argparse.Namespace, megabits: float, names: Sequence[str]) -> list[Seen]:
    rows = contents.counts(place.source)
    seen: list[Seen] = []
    with far(place, megabits, given.milliseconds) as (there, line):
        for number in range(1, given.rounds + 1):
            with place.bucket(f"network-{megabits:g}-{number}") as bucket:
                seen += [
                    Seen(entry, _streaming(entry, line.carried()[entry.name not in _THERE], megabits))
                    for entry in one_round(there, bucket, number, rows, names)
                ]
    return seen


def _streaming(entry: Entry, carried: Carried, megabits: float) -> float:
    """From the first to the last tenth of a second of this run in which streams were under way."""
    least = _STREAMS * megabits * 1e6 / 8 / 10
    began, ended = entry.started * 10, (entry.started + entry.seconds) * 10
    busy = [tenth for tenth, size in carried.items() if size >= least and began - 1 <= tenth <= ended]
    return (max(busy) + 1 - min(busy)) / 10


def shares(megabits: float, seen: list[Seen]) -> Iterator[dict[str, Any]]:
    """How full who was measured kept the line, in all (`whole`) and while streams went over it (`streams`)."""
    rate = megabits * 1e6 / 8
    stored = median(each.entry.stored or 0 for each in seen if each.entry.name == "backup-s3")
    for name in _MEASURED:
        mine = [each for each in seen if each.entry.name == name]
        if mine:
            yield {
                "megabits": megabits,
                "name": name,
                "seconds": median(each.entry.seconds for each in mine),
                "whole": median(stored / rate / each.entry.seconds for each in mine),
                "streams": median(stored / rate / each.streams for each in mine),
                "line": stored / rate,
            }


def told(found: list[dict[str, Any]]) -> str:
    """What was seen, as Markdown."""
    rows = []
    for each in found:
        cells = [f"{each['seconds']:.2f}", f"{each['line']:.2f}", f"{each['whole']:.0%}", f"**{each['streams']:.0%}**"]
        rows.append([f"{each['megabits']:g}", LABELS[each["name"]], *cells])
    headers = ["Mbit/s", "what", "s", "the line by itself, s", "of the line, in all", "while streams go over it"]
    return report.table(headers, rows, left=2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--megabits", type=float, nargs="+", default=[200, 100], help="of each line, a second (default: 200 100)"
    )
    parser.add_argument("--milliseconds", type=float, default=50, help="of a round trip (default: 50)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the database; 1 is 1.6 GB (default)")
    parser.add_argument("--major", type=int, help="PostgreSQL's major version (default: the newest of this machine)")
    parser.add_argument("--folder", type=Path, help="where everything lies for a while (default: /var/tmp)")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds that one program may take (default: 1200)")
    parser.add_argument("--no-write", action="store_true", help="leave README.md as it is")
    given = parser.parse_args()
    shared: list[dict[str, Any]] = []
    with world(folder=given.folder, major=given.major, timeout=given.timeout) as place:
        found = machine(place)
        KINDS["mixed"].build(place.programs, place.create(SOURCE), given.scale)
        size = contents.size(place.source)
        place.warm_up()
        for number, megabits in enumerate(given.megabits):
            names = _MEASURED if number == 0 else _OURS
            shared += shares(megabits, measure(place, given, megabits, names))
    rounds = f"{given.rounds} round{'s' * (given.rounds != 1)}"
    began = f"{found['date']}: {given.milliseconds:g} ms, {rounds}, a database of {size / 1e6:,.0f} MB."
    text = "\n\n".join([began, told(shared), report.machine(found)])
    print(text)
    if not given.no_write:
        report.insert(_HERE / "README.md", "bench-network", text)
        targets.keep("network", {"machine": found, "found": shared})
    return 0


if __name__ == "__main__":
    sys.exit(main())
