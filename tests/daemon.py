"""A running `backupd run`: its log as it comes, its processes, its end."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Any

from tests.site import Site

Line = dict[str, Any]


@dataclass
class Running:
    """One daemon."""

    site: Site
    process: subprocess.Popen[bytes]
    log: Path

    def lines(self) -> list[Line]:
        return [json.loads(line) for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def find(self, **wanted: object) -> list[Line]:
        """Lines with these fields; of `message`, a part is enough."""
        text = str(wanted.pop("message", ""))
        return [
            line
            for line in self.lines()
            if text in line["message"] and all(line.get(name) == value for name, value in wanted.items())
        ]

    def wait(self, count: int = 1, seconds: float = 60, **wanted: object) -> list[Line]:
        """Until so many lines like that are there."""
        assert until(lambda: len(self.find(**wanted)) >= count or self.process.poll() is not None, seconds), self.told()
        found = self.find(**wanted)
        assert len(found) >= count, self.told()
        return found

    def told(self) -> str:
        return self.log.read_text()[-6000:]

    def signal(self, number: Signals) -> None:
        self.process.send_signal(number)

    def stop(self, number: Signals = SIGTERM, seconds: float = 60) -> int:
        self.signal(number)
        return self.process.wait(seconds)

    def processes(self) -> list[str]:
        """What still runs of it: whatever has its temporary folder."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                ours = f"TMPDIR={self.site.environ['TMPDIR']}\0".encode() in path.read_bytes()
                command = path.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            if ours and command:
                found.append(command)
        return found

    def gone(self, seconds: float = 20) -> bool:
        return until(lambda: not self.processes(), seconds)


def until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@contextmanager
def daemon(site: Site, *options: str, name: str = "daemon") -> Iterator[Running]:
    """It is killed at the end, if it still runs; that leaves nothing."""
    temporary = site.folder / f"{name}.tmp"
    temporary.mkdir(exist_ok=True, mode=0o711)
    environ = site.environ | {"TMPDIR": str(temporary)}
    site.environ["TMPDIR"] = str(temporary)
    log = site.folder / f"{name}.log"
    command = site.command("run")
    with log.open("ab") as writing:
        process = subprocess.Popen(
            [*command[:-1], *options, "run"],
            env=environ,
            cwd=site.folder,
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
        )
    running = Running(site, process, log)
    try:
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert running.gone(), running.processes()
