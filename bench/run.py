"""`make bench`: backupd against what people pipe together and against other tools, in turns on one machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import contents, plot, report, targets
from bench.contenders import GROUPS, PROGRAMS, Entry, one_round
from bench.kinds import KINDS, Kind
from bench.work import costs, levels
from bench.world import SOURCE, World, machine, missing, world

_HERE = Path(__file__).parent
# Every contender is measured on the first kind; on the others backupd and its direct rival, each where it counts.
_RIVALS = ("backup-s3", "shell-s3", "backup-local", "dump-directory", "restore", "restore-directory")
_LARGE = 4.0  # gigabytes from which one round must do


def measured(kind: Kind, groups: Sequence[str]) -> list[str]:
    names = [name for group in groups for name in GROUPS[group]]
    return names if kind.name == "mixed" else [name for name in names if name in _RIVALS]


def measure_all(place: World, kind: Kind, rounds: int, groups: Sequence[str]) -> list[Entry]:
    """All rounds on the database that is there. Whole before anybody is timed: it is read once, and backupd has run
    once, so that nobody starts colder than another."""
    rows = contents.counts(place.source)
    place.run([place.client.program("pg_dump"), "-Fc", "-Z0", "-d", place.source], output=Path("/dev/null"))
    place.warm_up()
    entries: list[Entry] = []
    for number in range(1, rounds + 1):
        with place.bucket(f"{kind.name}-{number}") as bucket:
            entries += one_round(place, bucket, number, rows, measured(kind, groups))
    return entries


def measure_kind(given: argparse.Namespace, kind: Kind) -> dict[str, Any]:
    """One kind of database, on servers of its own."""
    scale = given.scale * (1.0 if kind.name != "single" else given.single)
    rounds = 1 if kind.gigabytes * scale >= _LARGE else given.rounds
    with world(folder=given.folder, major=given.major, timeout=given.timeout) as place:
        found = machine(place)
        print(f"building {kind.name} at scale {scale:g} in {place.folder}", file=sys.stderr, flush=True)
        kind.build(place.programs, place.create(SOURCE), scale)
        size = contents.size(place.source)
        entries = measure_all(place, kind, rounds, given.only)
        work, compression = costs(place.archive), levels(place.archive)
        raw = place.archive.stat().st_size
    return {
        "machine": found,
        "rounds": rounds,
        "scale": scale,
        "database_bytes": size,
        "raw_bytes": raw,
        "work": work,
        "levels": compression,
        "entries": [asdict(entry) for entry in entries],
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--databases", nargs="+", choices=list(KINDS), default=list(KINDS), help="kinds (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (default: 3)")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the databases; 1 is that of the targets")
    parser.add_argument("--single", type=float, default=1.0, help="further scale of the single table; 1 is 10 GB")
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS), help="measure only these")
    parser.add_argument("--major", type=int, help="PostgreSQL's major version (default: the newest of this machine)")
    parser.add_argument("--folder", type=Path, help="where to put up to 40 GB for a while (default: /var/tmp)")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds that one program may take (default: 1800)")
    parser.add_argument("--no-write", action="store_true", help="leave results.json and README.md as they are")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    file = _HERE / "results.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    results["missing"] = sorted({name for programs in PROGRAMS.values() for name in missing(*programs)})
    for name in given.databases:
        results.setdefault("kinds", {})[name] = measure_kind(given, KINDS[name])
        if not given.no_write:  # at once: what follows may fail, or be interrupted
            file.write_text(json.dumps(results, indent=1) + "\n")
            report.insert(_HERE / "README.md", "bench", report.benchmark(results))
            plot.draw(results, _HERE / "results.svg")
            targets.judge()
    print(report.benchmark(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
