"""`make bench-network`: backup and restore over a line of 200 Mbit/s and 50 ms, and how full they keep it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from bench import contents, report
from bench.contenders import LABELS, Entry, one_round
from bench.kinds import KINDS
from bench.shaped import shaped
from bench.world import SOURCE, World, machine, world

_HERE = Path(__file__).parent
_MEASURED = ("backup-s3", "shell-s3", "restore", "restore-download")
_PHASES = {"backup-s3": "dumping", "restore": "loading the rows"}  # in which the streams go over the line
_LEAST = 0.9


@dataclass(frozen=True)
class Far:
    """An S3 server behind a line; everything else of it as it is."""

    server: object
    port: int

    def __getattr__(self, name: str) -> object:
        return getattr(self.server, name)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def far(place: World, given: argparse.Namespace) -> Iterator[World]:
    with shaped(place.s3.port, megabits=given.megabits, milliseconds=given.milliseconds) as port:
        yield replace(place, s3=Far(place.s3, port))  # type: ignore[arg-type]


def measure(place: World, given: argparse.Namespace) -> list[Entry]:
    rows = contents.counts(place.source)
    entries: list[Entry] = []
    place.warm_up()
    with far(place, given) as there:
        for number in range(1, given.rounds + 1):
            with place.bucket(f"network-{number}") as bucket:
                entries += one_round(there, bucket, number, rows, _MEASURED)
    return entries


def told(given: argparse.Namespace, found: dict[str, str], size: int, entries: list[Entry]) -> str:
    """What was seen, as Markdown."""
    rate = given.megabits * 1e6 / 8
    stored = median(entry.stored or 0 for entry in entries if entry.name == "backup-s3")
    rows = []
    for name in _MEASURED:
        mine = [entry for entry in entries if entry.name == name]
        if not mine:
            continue
        whole = median(stored / rate / entry.seconds for entry in mine)
        cells = [LABELS[name], f"{median(entry.seconds for entry in mine):.2f}", f"{whole:.0%}"]
        if name in _PHASES:
            phase = median(stored / rate / _phase(entry, _PHASES[name]) for entry in mine)
            rows.append([*cells, f"**{phase:.0%}**", f"≥ {_LEAST:.0%}", report.verdict(phase >= _LEAST)])
        else:
            rows.append([*cells, "", "", ""])
    headers = ["what", "s", "of the line, in all", "while streams go over it", "at least", "verdict"]
    line = f"{given.megabits:g} Mbit/s and {given.milliseconds:g} ms"
    began = f"{found['date']}: a line of {line}, {given.rounds} rounds, a database of {size / 1e6:,.0f} MB,"
    began += f" {stored / 1e6:,.0f} MB stored: {stored / rate:.1f} s of the line."
    return "\n\n".join([began, report.table(headers, rows), report.machine(found)])


def _phase(entry: Entry, words: str) -> float:
    return sum(seconds for name, seconds in entry.phases.items() if words in name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabits", type=float, default=200, help="of the line, a second (default: 200)")
    parser.add_argument("--milliseconds", type=float, default=50, help="of a round trip (default: 50)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the database; 1 is 1.6 GB (default)")
    parser.add_argument("--major", type=int, help="PostgreSQL's major version (default: the newest of this machine)")
    parser.add_argument("--folder", type=Path, help="where everything lies for a while (default: /var/tmp)")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds that one program may take (default: 1200)")
    parser.add_argument("--no-write", action="store_true", help="leave README.md as it is")
    given = parser.parse_args()
    with world(folder=given.folder, major=given.major, timeout=given.timeout) as place:
        found = machine(place)
        KINDS["mixed"].build(place.programs, place.create(SOURCE), given.scale)
        size = contents.size(place.source)
        text = told(given, found, size, measure(place, given))
    print(text)
    if not given.no_write:
        report.insert(_HERE / "README.md", "bench-network", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
