"""`backupd run`."""

from __future__ import annotations

import atexit
import os
import signal
from dataclasses import replace
from pathlib import Path

from backupd import config as configuration
from backupd.console import Style
from backupd.signals import Terminated


def run(style: Style, path: str | None) -> int:
    hung_up: list[int] = []  # while it starts, and has no handlers of its own yet
    signal.signal(signal.SIGHUP, lambda number, _: hung_up.append(number))
    try:
        from backupd.daemon.service import Daemon

        found = configuration.find(path, os.environ, Path.cwd())
        code = Daemon(found.absolute(), dict(os.environ), replace(style, stamped=True), hung_up).run()
    except Terminated as error:  # before anything began
        if error.number == signal.SIGHUP:  # that came before this did
            raise
        return 0
    # Python would wait for threads that wait for a storage, or a server, which does not answer. We don't.
    atexit._run_exitfuncs()
    os._exit(code)
