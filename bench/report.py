"""Results as tables, and their place in README.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.contenders import LABELS
from bench.kinds import KINDS
from bench.work import seconds

CORES = 2  # that the targets are meant for, and both jobs use
_STATISTICS = "gathering statistics"  # the phase of a restore that pg_restore does not have


@dataclass(frozen=True, slots=True)
class Target:
    """At most `limit` times as long as the better of the others, on a database of this kind."""

    title: str
    kind: str
    name: str
    others: tuple[str, ...]
    limit: float


TARGETS = (
    Target("1. Backup to S3", "mixed", "backup-s3", ("shell-s3",), 0.70),
    Target("2. Backup to a folder", "mixed", "backup-local", ("dump-directory",), 1.00),
    Target("3. Restore from S3", "mixed", "restore", ("restore-custom", "restore-directory"), 1.15),
    Target("Backup of 5,000 tables to a folder", "many", "backup-local", ("dump-directory",), 1.30),
)


def benchmark(results: Mapping[str, Any]) -> str:
    """Everything `make bench` found, as Markdown."""
    made: Mapping[str, Mapping[str, Any]] = {name: results["kinds"][name] for name in KINDS if name in results["kinds"]}
    lacking = f"Not on this machine: {', '.join(results['missing'])}." if results["missing"] else ""
    return "\n\n".join([_targets(made), *filter(None, [lacking]), *(_kind(name, made[name]) for name in made)])


def _kind(name: str, found: Mapping[str, Any]) -> str:
    entries = found["entries"]
    rounds = f"{found['rounds']} round{'s' * (found['rounds'] != 1)}"
    scale = "" if found["scale"] == 1 else f", scale {found['scale']:g}: the targets are meant for scale 1"
    title = KINDS[name].title
    return "\n\n".join(
        [
            f"### {title[0].upper()}{title[1:]}",
            f"{found['machine']['date']}, {rounds}, a database of {_mb(found['database_bytes'])}{scale}.",
            _details(entries),
            *filter(None, (_phases(entries, each) for each in ("backup-s3", "backup-local", "restore"))),
            _work(found),
            machine(found["machine"]),
        ]
    )


def _work(found: Mapping[str, Any]) -> str:
    """Why backupd can't be faster than it is, or where it should be."""
    cells = [(name, each) for name, each in seconds(found["work"], found["raw_bytes"])]
    told = "; ".join(f"{name} {each:.1f} s" for name, each in cells)
    text = f"The work itself, on one core and in memory, for {_mb(found['raw_bytes'])}: {told}."
    dumps = [entry for entry in found["entries"] if entry["name"] == "dump-directory"]
    if dumps:
        spare = median(CORES * each["seconds"] - each["cpu"] - each["database_cpu"] for each in dumps)
        text += (
            f" `pg_dump -Fd -Z0 -j2` leaves {spare:.1f} s of its {CORES} cores unused: what is beyond that, nobody can"
            " do in its time."
        )
    return text


def machine(found: Mapping[str, str]) -> str:
    return "Made with: " + "; ".join(f"{name} {value}" for name, value in found.items() if name != "date") + "."


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table; all but the first columns are numbers."""
    ruler = ["---"] * left + ["---:"] * (len(headers) - left)
    return "\n".join(f"| {' | '.join(row)} |" for row in (headers, ruler, *rows))


def insert(path: Path, name: str, text: str) -> None:
    """Put text between `<!-- name:begin -->` and `<!-- name:end -->`."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    old = path.read_text()
    new, count = re.subn(f"{begin}.*?{end}", lambda _: f"{begin}\n{text}\n{end}", old, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{path} has no section between {begin} and {end}, or more than one")
    path.write_text(new)


def verdict(met: bool) -> str:
    return "met" if met else "**MISSED**"


def _targets(made: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for target in TARGETS:
        entries = made[target.kind]["entries"] if target.kind in made else []
        ours = _seconds(entries, target.name)
        others = {name: times for name in target.others if (times := _seconds(entries, name))}
        limit = f"≤ {target.limit:.2f} ×"
        if not ours or not others:
            rows.append([target.title, "–", "–", "–", "–", limit, "not measured"])
            continue
        best = min(others, key=lambda name: median(others[name]))
        ratio = median(ours) / median(others[best])
        each = [a / b for a, b in zip(ours, others[best], strict=False)]
        cells = [f"{median(ours):.2f}", f"{median(others[best]):.2f}", f"**{ratio:.2f} ×**", _range(each)]
        rows.append([target.title, *cells, limit, verdict(ratio <= target.limit)])
    headers = ["target", "backupd, s", "compared with, s", "ratio", "in each round", "at most", "verdict"]
    return table(headers, rows)


def _details(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for name, label in LABELS.items():
        mine = [entry for entry in entries if entry["name"] == name]
        if not mine:
            continue
        stored = mine[0]["stored"]
        rows.append(
            [
                label,
                f"{median(_seconds(entries, name)):.2f}",
                _range(_seconds(entries, name)),
                *(f"{median(entry[key] for entry in mine):.1f}" for key in ("cpu", "database_cpu", "storage_cpu")),
                _mib(max(entry["peak"] for entry in mine)) if mine[0]["phases"] else "",
                _mb(stored) if stored else "",
            ]
        )
        if name == "restore":
            without = [entry["seconds"] - entry["phases"].get(_STATISTICS, 0) for entry in mine]
            rows.append(["… without its ANALYZE", f"{median(without):.2f}", _range(without), "", "", "", "", ""])
    headers = ["what", "s", "min – max", "CPU s", "PostgreSQL's CPU s", "S3 server's CPU s", "peak memory", "stored"]
    return table(headers, rows)


def _phases(entries: Sequence[Mapping[str, Any]], name: str) -> str:
    mine = [entry["phases"] for entry in entries if entry["name"] == name]
    if not mine:
        return ""
    cells = (f"{phase} {median(each.get(phase, 0.0) for each in mine):.2f}" for phase in mine[0])
    return f"{LABELS[name]}, seconds of each phase: {'; '.join(cells)}."


def _seconds(entries: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [entry["seconds"] for entry in entries if entry["name"] == name]


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} – {max(values):.2f}"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
