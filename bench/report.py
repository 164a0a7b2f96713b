"""Results as tables, and their place in README.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.contenders import LABELS
from bench.kinds import KINDS
from bench.work import seconds

CORES = 2  # that the targets are meant for, and both jobs use
_STATISTICS = "gathering statistics"  # the phase of a restore that pg_restore does not have


def benchmark(results: Mapping[str, Any]) -> str:
    """Everything `make bench` found, as Markdown."""
    made: Mapping[str, Mapping[str, Any]] = {name: results["kinds"][name] for name in KINDS if name in results["kinds"]}
    lacking = f"Not on this machine: {', '.join(results['missing'])}." if results["missing"] else ""
    kinds = (_kind(name, made[name]) for name in made)
    return "\n\n".join([*filter(None, [lacking]), *kinds, _levels(made)])


def _kind(name: str, found: Mapping[str, Any]) -> str:
    entries = found["entries"]
    rounds = f"{found['rounds']} round{'s' * (found['rounds'] != 1)}"
    scale = "" if found["scale"] == 1 else f", scale {found['scale']:g}: the targets are meant for scale 1"
    title = KINDS[name].title
    return "\n\n".join(
        [
            f"### {title[0].upper()}{title[1:]}",
            f"{found['machine']['date']}, {rounds}, a database of {mb(found['database_bytes'])}{scale}.",
            _details(entries),
            *filter(None, (_phases(entries, each) for each in ("backup-s3", "backup-local", "restore"))),
            _work(found),
            machine(found["machine"]),
        ]
    )


def _levels(made: Mapping[str, Mapping[str, Any]]) -> str:
    """Every kind of database at every level of zstd."""
    rows = [
        [
            f"`{name}`",
            f"{each['level']:g}",
            f"{each['rate'] / 1e6:.0f}",
            f"{each['rate'] / found['levels'][0]['rate']:.2f}",
            f"{each['ratio']:.1%}",
            f"{each['ratio'] / found['levels'][0]['ratio']:.2f}",
        ]
        for name, found in made.items()
        for each in found.get("levels", ())
    ]
    headers = ["database", "zstd's level", "MB a second, one core", "of level 1's", "stored", "of level 1's"]
    told = "Of 64 MB from all over each archive, or all of it."
    return f"### Levels of compression\n\n{told}\n\n{table(headers, rows, left=2)}"


def _work(found: Mapping[str, Any]) -> str:
    """Why backupd can't be faster than it is, or where it should be."""
    cells = [(name, each) for name, each in seconds(found["work"], found["raw_bytes"])]
    told = "; ".join(f"{name} {each:.1f} s" for name, each in cells)
    text = f"The work itself, on one core and in memory, for {mb(found['raw_bytes'])}: {told}."
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
                f"{median(seconds_of(entries, name)):.2f}",
                span(seconds_of(entries, name)),
                *(f"{median(entry[key] for entry in mine):.1f}" for key in ("cpu", "database_cpu", "storage_cpu")),
                mib(max(entry["peak"] for entry in mine)) if mine[0]["phases"] else "",
                mb(stored) if stored else "",
            ]
        )
        if name == "restore":
            without = [entry["seconds"] - entry["phases"].get(_STATISTICS, 0) for entry in mine]
            rows.append(["… without its ANALYZE", f"{median(without):.2f}", span(without), "", "", "", "", ""])
    headers = ["what", "s", "min – max", "CPU s", "PostgreSQL's CPU s", "S3 server's CPU s", "peak memory", "stored"]
    return table(headers, rows)


def _phases(entries: Sequence[Mapping[str, Any]], name: str) -> str:
    mine = [entry["phases"] for entry in entries if entry["name"] == name]
    if not mine:
        return ""
    cells = (f"{phase} {median(each.get(phase, 0.0) for each in mine):.2f}" for phase in mine[0])
    return f"{LABELS[name]}, seconds of each phase: {'; '.join(cells)}."


def seconds_of(entries: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [entry["seconds"] for entry in entries if entry["name"] == name]


def span(values: Sequence[float]) -> str:
    return f"{min(values):.2f} – {max(values):.2f}"


def mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
