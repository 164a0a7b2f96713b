"""The HTTP server, on a thread of its own: uvicorn, within bounds."""

from __future__ import annotations

import logging
import os
import socket
import ssl
from asyncio import CancelledError, TimerHandle, Transport, constants
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from backupd.config_models import Server
from backupd.config_values import Address

_CONNECTIONS = 200  # at a time
_REQUEST = 16 << 10  # bytes of a request's line and headers
_PATIENCE = 10  # seconds for a request to come, and for a connection without one
_LOOKS = 6  # times this for an answer to be taken
_BACKLOG = 64


class _Bounded(H11Protocol):
    """Connections that ask nothing, or do not take their answer, are closed: nobody keeps others out for long."""

    _watch: TimerHandle | None = None
    _seen: object = None  # the answer that was under way when it was looked last, and
    _looks = 0  # how often

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > _CONNECTIONS:
            transport.close()
        self._watch = self.loop.call_later(_PATIENCE, self._look, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def _look(self, transport: Transport) -> None:
        cycle = self.cycle
        idle = cycle is None or (cycle.response_complete and self.timeout_keep_alive_task is None)
        self._seen, self._looks = cycle, self._looks + 1 if cycle is self._seen else 0
        # One that closes waits until its answer is taken.
        if idle or transport.is_closing() or self._looks >= _LOOKS:
            transport.abort()
        else:
            self._watch = self.loop.call_later(_PATIENCE, self._look, transport)


class _Complaints(logging.Handler):
    """uvicorn's errors: what an application raised."""

    def __init__(self, complain: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self._complain = complain

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, CancelledError):  # the server ends
            return
        self._complain(f"a bug: a request was not answered: {error!r}" if error else record.getMessage())


class WebServer:
    """Listens once it is made, and answers until `close`."""

    def __init__(self, app: ASGIApp, doors: Server, complain: Callable[[str], None]) -> None:
        """`complain` is told of bugs. Raises OSError (ssl.SSLError is one) where it can't listen, or where the
        certificate or its key can't be used."""
        self._doors = doors
        self._tls = self._load(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)) if doors.tls_key_file else None
        listener = _listen(doors.listen)
        self.address = Address(*listener.getsockname()[:2])
        config = uvicorn.Config(
            app,
            http=_Bounded,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_PATIENCE,
            timeout_graceful_shutdown=2,
            h11_max_incomplete_event_size=_REQUEST,
            backlog=_BACKLOG,
        )
        config.load()
        config.ssl = self._tls
        constants.SSL_HANDSHAKE_TIMEOUT = _PATIENCE  # of loops in this process: uvicorn has no word for it
        logger = logging.getLogger("uvicorn.error")
        logger.handlers, logger.propagate = [_Complaints(complain)], False
        self._server = uvicorn.Server(config)
        self._thread = Thread(target=self._server.run, args=([listener],), name="web", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://{self.address}"

    def reload_certificate(self) -> None:
        """A renewed one, for connections to come. Raises OSError, and the one before stays."""
        if self._tls is not None:
            self._load(self._tls)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(5)

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        """Tried out on another context first. Both take the very same bytes, though files may change just then."""
        assert self._doors.tls_certificate_file is not None
        assert self._doors.tls_key_file is not None
        with _held(self._doors.tls_certificate_file) as certificate, _held(self._doors.tls_key_file) as key:
            for each in (ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), context):
                # A key with a passphrase would be asked for on the terminal.
                each.load_cert_chain(certificate, key, password="")
        return context


@contextmanager
def _held(path: Path) -> Iterator[str]:
    """A copy of a file in memory, by a name of its own."""
    number = os.memfd_create("backupd-tls", os.MFD_CLOEXEC)
    try:
        os.write(number, path.read_bytes())
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    return socket.create_server((address.host, address.port), family=family, backlog=_BACKLOG)
