"""`backupd run`."""

from __future__ import annotations

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
        return Daemon(found.absolute(), dict(os.environ), replace(style, stamped=True), hung_up).run()
    except Terminated:  # before anything began
        return 0
