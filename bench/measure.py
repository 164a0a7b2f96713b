"""Running what is measured: programs joined by pipes, their time, CPU, memory and what they wrote to disks.

All from Linux: wait4() and /proc. Where a number is a sample or a bound, its comment says so.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_TICK = os.sysconf("SC_CLK_TCK")
_EVERY = 0.05  # seconds between samples

Probe = Callable[[int], None]  # called with the first program's id, again and again while it runs


class FailedError(Exception):
    """A measured program did not do its work; its numbers are worth nothing."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run took."""

    started: float  # seconds since the epoch
    seconds: float  # from before the first program starts until the last one has ended
    cpu: float  # user and system seconds of the programs and all children they waited for
    peak: int  # VmHWM of the first program alone, bytes: sampled, so growth in its last 50 ms may be missed
    peak_bound: int  # ru_maxrss of the first program or of its largest child, bytes: the true peak is not above it
    written: int  # bytes that the first program and its children caused to go to disks (write_bytes of /proc/PID/io)
    read_chars: int  # bytes that both read of files and pipes, or asked the kernel to copy (rchar)
    written_chars: int  # and wrote to them; what goes over sockets is in neither (wchar)
    out: str  # of the last program, unless it went to a file
    log: str  # stderr of all


def run(
    commands: Sequence[Sequence[str | Path]],
    *,
    folder: Path,
    env: Mapping[str, str],
    timeout: float,
    output: Path | None = None,
    probe: Probe | None = None,
) -> Measured:
    """Run programs as a shell's pipeline would, in one process group; all of them must exit with 0.

    stdout of the last goes to `output`, or is kept, in memory as all that goes to stderr is: logs are no part of
    `written`. After `timeout` seconds the whole group is killed.
    """
    with output.open("wb") if output else _caught("stdout") as out, _caught("stderr") as errors:
        started, began = time.time(), time.perf_counter()
        programs = _start(commands, folder, env, out.fileno(), errors.fileno())
        group = programs[0].pid
        killer = threading.Timer(timeout, _kill, [group])
        killer.start()
        try:
            with _Sampler(group, probe) as sampler:
                _wait(programs)
                seconds = time.perf_counter() - began
        except BaseException:
            _kill(group)
            raise
        finally:
            killer.cancel()  # before anything is reaped: until then the group's number is ours
            written, read_chars, written_chars = (_io(group, name) for name in ("write_bytes", "rchar", "wchar"))
            usages = [_reap(program) for program in programs]
        text = _text(errors)
        kept = "" if output else _text(out)
    codes = [program.returncode for program in programs]
    if any(codes):
        late = " (killed: it took too long)" if seconds >= timeout else ""
        raise FailedError(f"{_names(commands)} ended with {codes}{late}:\n{text[-3000:]}")
    return Measured(
        started=started,
        seconds=seconds,
        cpu=sum(usage.ru_utime + usage.ru_stime for usage in usages),
        peak=sampler.peak,
        peak_bound=usages[0].ru_maxrss << 10,
        written=written,
        read_chars=read_chars,
        written_chars=written_chars,
        out=kept,
        log=text,
    )


def cpu_of_tree(root: int) -> float:
    """CPU seconds that a process, its living descendants, and those it has waited for have taken so far."""
    total = 0
    for pid in tree(root):
        with suppress(OSError):
            fields = _stat(pid)
            # utime, stime; and of the root also cutime, cstime: a server's sessions come and go.
            total += int(fields[11]) + int(fields[12])
            total += int(fields[13]) + int(fields[14]) if pid == root else 0
    return total / _TICK


def tree(root: int) -> list[int]:
    """A process and its living descendants."""
    found = [root]
    for pid in found:  # grows while it is walked
        with suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def children_named(name: str) -> list[int]:
    """Our own living descendants that run this program."""
    found = []
    for pid in tree(os.getpid()):
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                found.append(pid)
    return found


def _start(
    commands: Sequence[Sequence[str | Path]], folder: Path, env: Mapping[str, str], out: int, errors: int
) -> list[subprocess.Popen[bytes]]:
    programs: list[subprocess.Popen[bytes]] = []
    for number, command in enumerate(commands, 1):
        source = programs[-1].stdout if programs else subprocess.DEVNULL
        programs.append(
            subprocess.Popen(
                [str(part) for part in command],
                stdin=source,
                stdout=out if number == len(commands) else subprocess.PIPE,
                stderr=errors,
                env=dict(env),
                cwd=folder,
                process_group=programs[0].pid if programs else 0,
            )
        )
        if len(programs) > 1 and (pipe := programs[-2].stdout):
            pipe.close()  # ours; or the writer would never learn that its reader is gone
    return programs


def _caught(name: str) -> IO[bytes]:
    """A file that is on no disk."""
    return os.fdopen(os.memfd_create(name), "r+b")


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _wait(programs: Sequence[subprocess.Popen[bytes]]) -> None:
    """Until all have ended, without reaping them: the dead still tell what they wrote."""
    for program in programs:
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)


def _reap(program: subprocess.Popen[bytes]) -> os.struct_rusage:  # type: ignore[name-defined]
    _, status, usage = os.wait4(program.pid, 0)
    program.returncode = os.waitstatus_to_exitcode(status)
    return usage


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _io(pid: int, name: str) -> int:
    """Of a process and the children it has waited for."""
    return _field(Path(f"/proc/{pid}/io"), name)


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    return 0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _names(commands: Sequence[Sequence[str | Path]]) -> str:
    return " | ".join(Path(command[0]).name for command in commands)


class _Sampler:
    """Looks at a process twenty times a second."""

    def __init__(self, pid: int, probe: Probe | None) -> None:
        self.peak = 0
        self._pid = pid
        self._probe = probe
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> _Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._done.wait(_EVERY):
            with suppress(OSError):
                self.peak = max(self.peak, _field(Path(f"/proc/{self._pid}/status"), "VmHWM") << 10)
                if self._probe:
                    self._probe(self._pid)
