"""`make bench-memory`: how much memory backupd takes for a large database, and what it puts on the local disk."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import contents, database, report
from bench.measure import FailedError, Measured, tree
from bench.world import SOURCE, World, machine, unexpected, world
from tests.site import Site

_HERE = Path(__file__).parent
_LIMIT = 256 << 20  # bytes of peak memory
_SMALL = 64 << 10  # bytes of local files beside the schema archive that pass for logs
_ARCHIVE = "memfd:schema"
_ACCESS = 0o3  # O_ACCMODE; 0 is read-only


@dataclass
class Files:
    """The largest size at which each file was seen that backupd or a child of it had open for writing.

    Looked up in /proc/PID/fd, which shows deleted and nameless files too. What TMPDIR holds is seen whoever has it
    open. A file that lives for less than the 50 ms between two looks may be missed; `written` would tell.
    """

    temporary: Path
    ignored: Sequence[Path]  # folders of the servers
    disk: dict[str, int] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)  # memfd: no file on any disk
    everyone: dict[str, int] = field(default_factory=dict)  # new in /tmp, by whatever process of this machine
    before: frozenset[str] = frozenset(path.path for path in os.scandir("/tmp"))

    def look(self, root: int) -> None:
        for pid in tree(root):
            with suppress(OSError):
                for entry in os.scandir(f"/proc/{pid}/fd"):
                    with suppress(OSError):
                        self._open_file(pid, entry.name)
        for path, status in _below(self.temporary):
            _largest(self.disk, str(path), _size(status))
        with suppress(OSError):
            for entry in os.scandir("/tmp"):
                if entry.path not in self.before and entry.is_file(follow_symlinks=False):
                    _largest(self.everyone, entry.path, _size(entry.stat(follow_symlinks=False)))

    def _open_file(self, pid: int, number: str) -> None:
        link = f"/proc/{pid}/fd/{number}"
        name, status = os.readlink(link), os.stat(link)  # noqa: PTH115, PTH116 - the file itself, deleted or not
        if not stat.S_ISREG(status.st_mode):
            return
        if name.startswith("/memfd:"):
            _largest(self.memory, name.removeprefix("/").removesuffix(" (deleted)"), _size(status))
        elif _writes(pid, number) and not any(Path(name).is_relative_to(folder) for folder in self.ignored):
            _largest(self.disk, name, _size(status))


@dataclass
class Entry:
    """One run of backupd."""

    name: str
    jobs: int
    seconds: float
    peak: int  # bytes of VmHWM, sampled every 50 ms
    peak_bound: int  # bytes: ru_maxrss of backupd or its largest child
    written: int  # bytes that backupd and its children wrote to disks, by the kernel's count
    disk: dict[str, int]
    memory: dict[str, int]
    everyone: dict[str, int]


def watched(place: World, site: Site, name: str, jobs: int, *arguments: str) -> tuple[Entry, Measured]:
    files = Files(place.temporary, [place.server.data_dir, place.folder / "s3", place.folder / "pycache"])
    run = place.backupd(site, *arguments, "--jobs", str(jobs), "--json", probe=files.look).run
    numbers = (run.seconds, run.peak, run.peak_bound, run.written)
    print(f"{name}, {jobs} jobs: {run.seconds:.1f} s, {run.peak >> 20} MiB", file=sys.stderr, flush=True)
    return Entry(name, jobs, *numbers, files.disk, files.memory, files.everyone), run


def measure_all(place: World, rows: dict[str, int], jobs: Sequence[int]) -> tuple[list[Entry], dict[str, int]]:
    """Back up and restore with each number of jobs; and the sizes of what was backed up."""
    place.warm_up()
    entries = []
    sizes = {"database": contents.size(place.source)}
    with place.bucket("memory") as bucket:
        site = place.s3_site(bucket)
        for number in jobs:
            entry, run = watched(place, site, "backup", number, "backup", SOURCE)
            (made,) = json.loads(run.out)
            if made["rows"] != sum(rows.values()):
                raise FailedError(f"the backup has {made['rows']} rows, and the source {sum(rows.values())}")
            entries.append(entry)
            sizes |= {"raw": made["raw_bytes"], "stored": made["stored_bytes"]}
        sizes["schema"] = _schema_bytes(site)
        for number in jobs:
            into = ("--at", "latest", "--into", "restored", "--yes")
            entry, _ = watched(place, site, "restore", number, "restore", SOURCE, *into)
            if wrong := unexpected(contents.counts(place.server.dsn("restored")), rows):
                raise FailedError(f"the restored database has other rows than the source: {wrong}")
            place.drop("restored")
            entries.append(entry)
    return entries, sizes


def as_text(results: dict[str, Any]) -> str:
    """Everything `make bench-memory` found, as Markdown."""
    sizes, entries = results["sizes"], results["entries"]
    rows = [_row(entry, sizes["schema"]) for entry in entries]
    headers = ["what", "s", "peak memory", "bound", "verdict", "largest local file", "in memory", "written", "verdict"]
    said = [f"{name} {size / 1e6:,.0f} MB" for name, size in sizes.items() if name != "schema"]
    said.append(f"schema archive {sizes['schema']} B")
    return "\n\n".join(
        [
            f"{results['machine']['date']}, scale {results['scale']:g}: {', '.join(said)}.",
            report.table(headers, rows),
            *_elsewhere(entries),
            report.machine(results["machine"]),
        ]
    )


def _row(entry: dict[str, Any], schema: int) -> list[str]:
    largest = max(entry["disk"].items(), key=lambda item: item[1], default=("none", 0))
    archive = entry["memory"].get(_ARCHIVE, 0)
    dry = largest[1] <= schema + _SMALL and entry["written"] <= schema + _SMALL
    return [
        f"`backupd {entry['name']} --jobs {entry['jobs']}`, S3",
        f"{entry['seconds']:.1f}",
        f"**{entry['peak'] >> 20} MiB**",
        f"≤ {entry['peak_bound'] >> 20} MiB",
        f"< {_LIMIT >> 20} MiB: {report.verdict(entry['peak'] < _LIMIT)}",
        f"{largest[0]}, {largest[1]} B" if largest[1] else "none",
        f"{archive} B" if archive else "",
        f"{entry['written']} B",
        report.verdict(dry),
    ]


def _elsewhere(entries: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What appeared in /tmp meanwhile, whose writer nobody knows; shown, not judged."""
    seen: dict[str, int] = {}
    for entry in entries:
        for name, size in entry["everyone"].items():
            _largest(seen, name, size)
    if seen:
        name, size = max(seen.items(), key=lambda item: item[1])
        yield f"New in /tmp meanwhile, by any process at all: {len(seen)} files; the largest is {name}, {size} B."


def _schema_bytes(site: Site) -> int:
    streams = site.run("show", SOURCE, "--json").json["streams"]
    return next(int(stream["raw_bytes"]) for stream in streams if stream["kind"] == "schema")


def _below(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.rglob("*"):
        with suppress(OSError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                yield path, status


def _writes(pid: int, number: str) -> bool:
    text = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
    flags = next(line.split()[1] for line in text.splitlines() if line.startswith("flags:"))
    return bool(int(flags, 8) & _ACCESS)


def _size(status: os.stat_result) -> int:
    """The larger of its length and the room it takes: either can be small while the other is not."""
    return max(status.st_size, status.st_blocks * 512)


def _largest(sizes: dict[str, int], name: str, size: int) -> None:
    sizes[name] = max(size, sizes.get(name, 0))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=2.0, help="size of the database; 2 is 3.2 GB (default)")
    parser.add_argument("--jobs", type=int, nargs="+", default=[2, 4], help="numbers of jobs (default: 2 4)")
    parser.add_argument("--major", type=int, help="PostgreSQL's major version (default: the newest of this machine)")
    parser.add_argument("--folder", type=Path, help="where to put about 14 GB for a while (default: /var/tmp)")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds that one program may take (default: 1200)")
    parser.add_argument("--no-write", action="store_true", help="leave memory.json and README.md as they are")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    with world(folder=given.folder, major=given.major, timeout=given.timeout) as place:
        found = machine(place)
        print(f"building the database at scale {given.scale:g} in {place.folder}", file=sys.stderr, flush=True)
        rows = database.build(place.create(SOURCE), given.scale)
        entries, sizes = measure_all(place, rows, given.jobs)
    results = {
        "machine": found,
        "scale": given.scale,
        "sizes": sizes,
        "entries": [asdict(entry) for entry in entries],
    }
    text = as_text(results)
    print(text)
    if not given.no_write:
        (_HERE / "memory.json").write_text(json.dumps(results, indent=2) + "\n")
        report.insert(_HERE / "README.md", "bench-memory", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
