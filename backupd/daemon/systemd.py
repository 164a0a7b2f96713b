"""What systemd is told of a service of Type=notify: sd_notify(3). Elsewhere nothing is told."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress

# Seconds to wait for room in the socket, which takes some ten messages by the kernel's default: a supervisor that reads
# none must not hang us. One that never hears READY ends us, so that may take longer.
_PATIENCE, _PATIENCE_FOR_READY = 0.5, 10.0


class Systemd:
    """Reads $NOTIFY_SOCKET and $WATCHDOG_USEC."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        try:
            ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
            self.watchdog = int(environ["WATCHDOG_USEC"]) / 1e6 if ours else None  # seconds within which to be heard of
        except (KeyError, ValueError):
            self.watchdog = None

    def tell(self, *lines: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
            sending.settimeout(_PATIENCE_FOR_READY if "READY=1" in lines else _PATIENCE)
            sending.sendto("\n".join(lines).encode(), address)

    def reloading(self) -> None:
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
