"""How a server's processes end: with us, whatever becomes of us, and all of them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_PR_SET_PDEATHSIG = 1
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


def dies_with(parent: int) -> Callable[[], None] | None:
    """What a child runs before exec so that it gets SIGQUIT (end at once, cleanly) when its parent is gone."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGQUIT), 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask
