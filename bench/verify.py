"""`make bench-verify`: what each level of fingerprints costs, on the source while it is backed up and where a backup is
verified."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench import contents, database, report
from bench.measure import FailedError
from bench.world import SOURCE, Sample, World, machine, world

_PAGE = Path(__file__).parents[1] / "docs/verify.md"
_DATA = Path(__file__).parent / "verify.json"
_LIMIT = 256 << 20  # bytes of backupd's peak memory
LEVELS = ("rows", "content")


@dataclass
class Entry:
    """One run of backupd."""

    command: str  # backup, verify
    level: str
    seconds: float
    cpu: float  # of backupd and the programs it waited for, the scratch server not among them
    database_cpu: float  # of the source's server
    peak: int  # bytes: backupd's own
    phases: dict[str, float]  # of a verification


def _entry(command: str, level: str, sample: Sample, phases: dict[str, float]) -> Entry:
    run = sample.run
    print(f"{command} {level}: {run.seconds:.1f} s, {run.peak >> 20} MiB", file=sys.stderr, flush=True)
    return Entry(command, level, run.seconds, run.cpu, sample.database_cpu, run.peak, phases)


def one_round(place: World, number: int) -> list[Entry]:
    """Back up and verify at each level, in an order that turns from round to round."""
    entries = []
    for level in LEVELS if number % 2 else reversed(LEVELS):
        site = place.local_site(f"round-{number}-{level}")
        site.set("fingerprint", f'"{level}"', table=f"databases.{SOURCE}.verify")
        site.set("scratch_folder", f'"{place.folder}"', table=f"databases.{SOURCE}.verify")
        entries.append(_entry("backup", level, place.backupd(site, "backup", SOURCE), {}))
        sample = place.backupd(site, "verify", SOURCE, "--json")
        proof = json.loads(sample.run.out)
        if proof["status"] != "passed":
            raise FailedError(f"the proof of a right copy {proof['status']}: {proof}")
        entries.append(_entry("verify", level, sample, proof["phases"]))
    return entries


def as_text(results: dict[str, Any]) -> str:
    """Everything that was found, as Markdown."""
    entries = [Entry(**entry) for entry in results["entries"]]
    headers = ["what", "level", "s", "against `rows`", "CPU s of the source's server", "peak memory of backupd"]
    rows = [_row(entries, command, level) for command in ("backup", "verify") for level in LEVELS]
    phases = [[level, *(_phase(entries, level, name) for name in _PHASES)] for level in LEVELS]
    peak = max(entry.peak for entry in entries if entry.command == "verify")
    size, date, rounds = results["size"] / 1e6, results["machine"]["date"], results["rounds"]
    bound = f"(< {_LIMIT >> 20} MiB: {report.verdict(peak < _LIMIT)})"
    return "\n\n".join(
        [
            f"{date}: a database of {size:,.0f} MB, medians of {rounds} rounds.",
            report.table(headers, rows, left=2),
            f"The largest peak of any verification: {peak >> 20} MiB {bound}. The seconds of a verification:",
            report.table(["level", *_PHASES], phases),
            report.machine(results["machine"]),
        ]
    )


_PHASES = ("scratch", "restore", "compare")


def _of(entries: Sequence[Entry], command: str, level: str) -> list[Entry]:
    return [entry for entry in entries if (entry.command, entry.level) == (command, level)]


def _phase(entries: Sequence[Entry], level: str, name: str) -> str:
    return f"{median(entry.phases[name] for entry in _of(entries, 'verify', level)):.1f}"


def _row(entries: Sequence[Entry], command: str, level: str) -> list[str]:
    mine, usual = _of(entries, command, level), _of(entries, command, "rows")
    ratio = median(one.seconds / other.seconds for one, other in zip(mine, usual, strict=True))
    return [
        f"`backupd {command}`",
        f"`{level}`",
        f"{median(entry.seconds for entry in mine):.1f}",
        f"{ratio:.2f} ×",
        f"{median(entry.database_cpu for entry in mine):.1f}",
        f"{max(entry.peak for entry in mine) >> 20} MiB",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=2.0, help="size of the database; 2 is 3.2 GB (default)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--no-write", action="store_true", help="leave verify.json and docs/verify.md as they are")
    given = parser.parse_args()
    with world(folder=None, major=None, timeout=1200) as place:
        found = machine(place)
        database.build(place.create(SOURCE), given.scale)
        place.warm_up()
        entries = [entry for number in range(given.rounds) for entry in one_round(place, number)]
        size = contents.size(place.source)
    results = {
        "machine": found,
        "size": size,
        "rounds": given.rounds,
        "entries": [asdict(entry) for entry in entries],
    }
    text = as_text(results)
    print(text)
    if not given.no_write:
        _DATA.write_text(json.dumps(results, indent=2) + "\n")
        report.insert(_PAGE, "bench-verify", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
