"""How a server's processes end: with us, whatever becomes of us, and all of them."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_GONE_SECONDS = 10


def kill_tree(pid: int) -> None:
    """SIGKILL a postmaster and its children, which have sessions of their own, and wait until all are gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)  # it starts no more children
    family = [pid, *(child for child, (parent, _) in _processes().items() if parent == pid)]
    for member in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    happens(lambda: all(_processes().get(member, (0, "Z"))[1] == "Z" for member in family), _GONE_SECONDS)


def _processes() -> dict[int, tuple[int, str]]:
    """Every process's parent and state ("Z": dead, not yet collected)."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text(errors="replace").rpartition(")")[2].split()[:2]
            found[int(path.parent.name)] = (int(parent), state)
    return found


def happens(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def spawn(start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """Start a process from a thread that lives as long as we do.

    The kernel's "parent died" means the thread that forked: a worker thread's end would take the server with it.
    """
    if threading.current_thread() is threading.main_thread():
        return start()
    return _spawner().submit(start).result()


@functools.cache
def _spawner() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="postgres-parent")


def tied(number: signal.Signals, command: Sequence[str | Path]) -> list[str | Path]:
    """The command line of a program that gets this signal when the thread that starts it ends, however it ends.

    Through setpriv (util-linux), and not by a function of ours between fork and exec: for one, Python runs its
    at-fork hooks, in which an interrupt is lost and can leave a lock held for ever. Without setpriv a program ends
    when its pipe or its connection breaks.
    """
    setpriv = _setpriv()
    return [setpriv, "--pdeathsig", number.name.removeprefix("SIG"), "--", *command] if setpriv else [*command]


@functools.cache
def _setpriv() -> str | None:
    found = shutil.which("setpriv")
    if found is None:
        return None
    asked = [found, "--pdeathsig", "TERM", "--", found, "--version"]  # a small one may not know the option
    return found if subprocess.run(asked, capture_output=True, check=False).returncode == 0 else None
