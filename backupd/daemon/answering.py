"""The daemon's doors to the network: the web server, if it can listen. That it can't is said, and stops no backup."""

from __future__ import annotations

import resource
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from backupd.config_models import Server
from backupd.daemon.health import Health
from backupd.standing import Reading

_FILES = 65536  # open at a time


class Answering:
    """`say` is given lines for the log, and their level."""

    def __init__(self, say: Callable[[str, str], None]) -> None:
        self._say = say
        self._reload: Callable[[], None] = lambda: None

    @contextmanager
    def open(
        self, doors: Server, read: Callable[[], Reading], metrics: Callable[[], bytes], health: Health
    ) -> Iterator[None]:
        from backupd.web.app import build
        from backupd.web.server import WebServer

        _allow_files()
        try:
            app = build(read, metrics, health, doors)
            server = WebServer(app, doors, lambda text: self._say(text, "error"))
        except (OSError, UnicodeError) as error:
            self._say(f"nothing is answered, cannot listen on {doors.listen}: {_reason(error)}", "error")
            yield
            return
        self._reload = server.reload_certificate
        self._say(f"answers at {server.url}: the status page, /metrics, /healthz, /readyz", "info")
        try:
            yield
        finally:
            server.close()

    def reload(self) -> None:
        """A renewed certificate."""
        try:
            self._reload()
        except OSError as error:
            self._say(f"the certificate was not changed, as it cannot be read: {_reason(error)}", "error")


def _allow_files() -> None:
    """Whoever opens connections is not to use up the files that jobs need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _reason(error: OSError | UnicodeError) -> str:
    if isinstance(error, UnicodeError):
        return "that is no name of a host"
    if isinstance(error, ssl.SSLError):
        return f"the certificate or its key: {error.reason or error}"
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
