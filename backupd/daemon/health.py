"""`/metrics`, `/healthz` and `/readyz` on `[server] listen`; and, as `python -m backupd.daemon.health [HOST:PORT]`, the
question that a container's health check asks."""

from __future__ import annotations

import socket
import sys
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import monotonic

from backupd.config_values import Address
from backupd.metrics import CONTENT_TYPE

_ASLEEP = 120.0  # seconds without a turn of the loop, after which it hangs


class Health:
    """What the daemon's loop says of itself."""

    def __init__(self, metrics: Callable[[], bytes]) -> None:
        self.metrics = metrics  # for Prometheus
        self._turned = monotonic()
        self.ready = False  # it has looked at the storage

    def turn(self) -> None:
        self._turned = monotonic()

    @property
    def alive(self) -> bool:
        return monotonic() - self._turned < _ASLEEP


def serve(health: Health, address: Address) -> Callable[[], None]:
    """Answer in the background; returns what ends it. Raises OSError where it can't listen there."""

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "backupd", ""

        def do_GET(self) -> None:
            states = {"/healthz": health.alive, "/readyz": health.alive and health.ready}
            path, kind = self.path.partition("?")[0], "text/plain; charset=utf-8"
            state = states.get(path)
            code, body = (404, b"not found\n") if state is None else (200, b"ok\n") if state else (503, b"not ok\n")
            if path == "/metrics":
                code, body, kind = 200, health.metrics(), CONTENT_TYPE
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Health checks are no news."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        daemon_threads = True

    server = Server((address.host, address.port), Handler)
    Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server.shutdown


def main(address: str = "127.0.0.1:9847") -> int:
    try:
        with urllib.request.urlopen(f"http://{address}/healthz", timeout=5) as answer:
            return 0 if answer.status == 200 else 1
    except OSError:  # refused, late, or 503
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
