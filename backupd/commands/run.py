"""`backupd run`."""

from __future__ import annotations

import os
from pathlib import Path

from backupd import config as configuration
from backupd.console import Style


def run(style: Style, path: str | None) -> int:
    from backupd.daemon.service import Daemon

    found = configuration.find(path, os.environ, Path.cwd())
    return Daemon(found.absolute(), dict(os.environ), style).run()
