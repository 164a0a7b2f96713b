"""The seven targets, and a verdict on each: from what `make bench` measured last, wherever it did."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench import report

_HERE = Path(__file__).parent
_RESULTS, _SCALE = _HERE / "results.json", _HERE / "scale.json"

_MEMORY = 256 << 20  # bytes
_SAME = 0.1  # by how much the memory for the largest database may differ from that for the smaller ones
_FROM = 0.5e9  # bytes of archive from which a database is no small one
_LOCAL = 64 << 10  # bytes written to local disks that pass for logs and the schema archive
_BACKUPS, _LISTS, _GETS = 10_000, 12, 3
_PLAN = 2  # GETs of a restore that has found its backup: that one's schema and roles
_HELP = 0.3  # seconds
_SMALL = 6.0  # seconds
_LINE, _FULL = 200, 0.9  # Mbit/s, and how much of it


@dataclass(frozen=True, slots=True)
class Ratio:
    """At most `limit` times as long as the better of the others, on a database of this kind."""

    title: str
    kind: str
    name: str
    others: tuple[str, ...]
    limit: float


RATIOS = (
    Ratio("1. Backup to S3, against the shell's pipeline", "mixed", "backup-s3", ("shell-s3",), 0.70),
    Ratio("2. Backup to a folder, against `pg_dump -Fd`", "mixed", "backup-local", ("dump-directory",), 1.00),
    Ratio(
        "3. Restore from S3, against `pg_restore`", "mixed", "restore", ("restore-custom", "restore-directory"), 1.15
    ),
)
MANY = Ratio("Backup of 5,000 tables, against `pg_dump -Fd`", "many", "backup-local", ("dump-directory",), 1.30)

Row = list[str]


def keep(name: str, found: Mapping[str, Any]) -> None:
    """Note what bench.scale or bench.network found of one thing, and judge anew."""
    kept = _read(_SCALE)
    kept[name] = found
    _SCALE.write_text(json.dumps(kept, indent=1) + "\n")
    judge()


def judge() -> str:
    """The table of all targets, also put into README.md."""
    kinds, scale = _read(_RESULTS).get("kinds", {}), _read(_SCALE)
    rows = [_ratio(kinds, each) for each in RATIOS]
    rows += [
        *_memory(scale),
        *_disk(scale),
        *_requests(scale),
        *_start(scale),
        *_small(scale),
        *_line(scale),
        _ratio(kinds, MANY),
    ]
    text = report.table(("target", "measured", "at most", "verdict", "on"), rows)
    report.insert(_HERE / "README.md", "bench-targets", text)
    return text


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _ratio(kinds: Mapping[str, Any], target: Ratio) -> Row:
    limit = f"{target.limit:.2f} ×"
    entries: Sequence[Mapping[str, Any]] = kinds[target.kind]["entries"] if target.kind in kinds else []
    ours = report.seconds_of(entries, target.name)
    others = {name: times for name in target.others if (times := report.seconds_of(entries, name))}
    if not ours or not others:
        return _unmeasured(target.title, limit)
    best = min(others, key=lambda name: median(others[name]))
    ratio = median(ours) / median(others[best])
    each = [a / b for a, b in zip(ours, others[best], strict=False)]
    told = f"**{ratio:.2f} ×**: {median(ours):.2f} s and {median(others[best]):.2f} s"
    rounds = f"; in each round {report.span(each)}" if len(each) > 1 else ""
    date = kinds[target.kind]["machine"]["date"]
    return [target.title, told + rounds, limit, report.verdict(ratio <= target.limit), date]


def _memory(scale: Mapping[str, Any]) -> Iterator[Row]:
    title, limit = "4. Memory, the same for 1 GB and 20 GB", f"{_MEMORY >> 20} MiB; {_SAME:.0%} apart"
    if "size" not in scale:
        yield _unmeasured(title, limit)
        return
    for command in ("backup", "restore", "verify"):
        mine = {each["raw"]: each["peak"] for each in scale["size"]["found"] if each["command"] == command}
        peaks = {raw: peak for raw, peak in sorted(mine.items()) if raw >= _FROM}
        if not peaks:
            yield _unmeasured(f"{title}: {command}", limit)
            continue
        first, last = next(iter(peaks.values())), list(peaks.values())[-1]
        told = ", ".join(f"{report.mib(peak)} for {raw / 1e9:.1f} GB of rows" for raw, peak in peaks.items())
        met = abs(last / first - 1) <= _SAME and max(mine.values()) < _MEMORY
        yield [f"{title}: {command}", told, limit, report.verdict(met), scale["size"]["machine"]["date"]]


def _disk(scale: Mapping[str, Any]) -> Iterator[Row]:
    title, limit = "5. Local disk: nothing but the schema archive and logs", f"{_LOCAL:,} B"
    if "size" not in scale:
        yield _unmeasured(title, limit)
        return
    mine = [each for each in scale["size"]["found"] if each["command"] != "verify"]
    most = max(each["written"] for each in mine)
    told = f"{most:,} B written, backup or restore of up to {max(each['raw'] for each in mine) / 1e9:.1f} GB of rows"
    yield [title, told, limit, report.verdict(most <= _LOCAL), scale["size"]["machine"]["date"]]


def _requests(scale: Mapping[str, Any]) -> Iterator[Row]:
    limit = f"{_LISTS} LIST, {_GETS} GET"
    found = [each for each in scale.get("many", {}).get("found", []) if each["backups"] >= _BACKUPS]
    for command in ("list", "restore"):
        title = f"6. `{command}` among {_BACKUPS:,} backups"
        mine = [each for each in found if each["command"].startswith(command)]
        if not mine:
            yield _unmeasured(title, limit)
            continue
        lists, gets = mine[0]["lists"], mine[0]["gets"] - _PLAN * (command == "restore")
        told = f"{lists} LIST, {gets} GET" + f", and {_PLAN} for its schema and roles" * (command == "restore")
        met = lists <= _LISTS and gets <= _GETS
        yield [title, told, limit, report.verdict(met), scale["many"]["machine"]["date"]]


def _start(scale: Mapping[str, Any]) -> Iterator[Row]:
    title, limit = "6. `backupd --help`", f"{_HELP:g} s"
    if "start" not in scale:
        yield _unmeasured(title, limit)
        return
    seconds = scale["start"]["found"]["backupd --help"]
    yield [title, f"{seconds:.2f} s", limit, report.verdict(seconds <= _HELP), scale["start"]["machine"]["date"]]


def _small(scale: Mapping[str, Any]) -> Iterator[Row]:
    title, limit = "7. Verification of a database of 10 MB", f"{_SMALL:g} s"
    if "small" not in scale:
        yield _unmeasured(title, limit)
        return
    found = scale["small"]["found"]
    seconds = median(found["seconds"])
    told = f"{seconds:.1f} s (in each round {report.span(found['seconds'])}), {found['bytes'] / 1e6:.0f} MB"
    yield [title, told, limit, report.verdict(seconds < _SMALL), scale["small"]["machine"]["date"]]


def _line(scale: Mapping[str, Any]) -> Iterator[Row]:
    limit = f"at least {_FULL:.0%}"
    for name, what in (("backup-s3", "Backup"), ("restore", "Restore")):
        title = f"{what} over {_LINE} Mbit/s and 50 ms"
        mine = {each["megabits"]: each for each in scale.get("network", {}).get("found", []) if each["name"] == name}
        if _LINE not in mine:
            yield _unmeasured(title, limit)
            continue
        share = mine[_LINE]["streams"]
        others = "".join(f"; {each['streams']:.0%} of {rate:g}" for rate, each in mine.items() if rate != _LINE)
        date = scale["network"]["machine"]["date"]
        yield [title, f"**{share:.0%}** of the line{others}", limit, report.verdict(share >= _FULL), date]


def _unmeasured(title: str, limit: str) -> Row:
    return [title, "", limit, "not measured", ""]


if __name__ == "__main__":
    print(judge())
