"""A reverse proxy on loopback that misbehaves on demand: what networks and stores do to HTTP, repeatably."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import cast


@dataclass(frozen=True)
class Seen:
    """One request, as it arrived."""

    method: str
    path: str  # with the query
    headers: Message[str, str]

    @property
    def operation(self) -> str:
        """The S3 operation, as far as the tests need to tell them apart."""
        query = self.path.partition("?")[2]
        for operation, method, pattern in (
            ("ListUploads", "GET", r"(^|&)uploads(=|&|$)"),
            ("List", "GET", r"list-type=2"),
            ("CreateUpload", "POST", r"(^|&)uploads"),
            ("DeleteBatch", "POST", r"(^|&)delete"),
            ("Complete", "POST", r"uploadId="),
            ("UploadPart", "PUT", r"uploadId="),
            ("Abort", "DELETE", r"uploadId="),
        ):
            if self.method == method and re.search(pattern, query):
                return operation
        return self.method.capitalize()


@dataclass(frozen=True)
class Fault:
    """What to do with a request instead of passing it on and back faithfully."""

    status: int = 0  # answer with this, and `body` or an error document of `code`
    code: str = ""
    extra: str = ""  # more fields of the document
    body: bytes = b""  # answer with this, and 200 if there is no status
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/xml"),)  # of such an answer
    sized: bool = True  # say how long such an answer is, or only hang up at its end
    drop: bool = False  # hang up without an answer
    lose_answer: bool = False  # pass it on, then hang up
    cut: int = -1  # pass so many bytes of the answer's body, then hang up
    longer: int = 0  # say the answer is so much longer than it is, then hang up


Rule = Callable[[Seen], Fault | None]


@dataclass
class FaultyProxy:
    """Passes everything to `upstream`, except what `rule` has a fault for."""

    upstream: tuple[str, int]
    certificate: Path | None = None  # PEM with the key: speak TLS
    rule: Rule = lambda _: None
    seen: list[Seen] = field(default_factory=list)  # requests, as they arrive
    done: list[Seen] = field(default_factory=list)  # and when they are over
    sent: Counter[str] = field(default_factory=Counter)  # bytes of answers by path, as far as the client took them

    def __enter__(self) -> FaultyProxy:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        if self.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            self._server.tls = context
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)

    @property
    def endpoint(self) -> str:
        return f"http{'s' * (self.certificate is not None)}://127.0.0.1:{self._server.server_address[1]}"

    def operations(self) -> list[str]:
        return [seen.operation for seen in self.seen]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    proxy: FaultyProxy
    tls: ssl.SSLContext | None = None

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20

    def setup(self) -> None:
        server = cast("_Server", self.server)
        if server.tls is not None:
            self.request = server.tls.wrap_socket(self.request, server_side=True)
        # What waits in the kernel counts as sent: let that be little.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        super().setup()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        self.request.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def answer(self) -> None:
        proxy = cast("_Server", self.server).proxy
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        seen = Seen(self.command, self.path, self.headers)
        proxy.seen.append(seen)
        self._treat(proxy, body, proxy.rule(seen) or Fault())
        proxy.done.append(seen)

    do_GET = answer  # noqa: N815
    do_PUT = answer  # noqa: N815
    do_POST = answer  # noqa: N815
    do_DELETE = answer  # noqa: N815
    do_HEAD = answer  # noqa: N815

    def _treat(self, proxy: FaultyProxy, body: bytes, fault: Fault) -> None:
        if fault.drop:
            self.close_connection = True
        elif fault.status or fault.body:
            document = f"<Error><Code>{fault.code}</Code><Message>no</Message>{fault.extra}</Error>".encode()
            answer = fault.body or document
            self._send(fault.status or 200, list(fault.headers), answer, len(answer) if fault.sized else None)
            self.close_connection = not fault.sized
        else:
            self._pass_on(proxy, body, fault)

    def _pass_on(self, proxy: FaultyProxy, body: bytes, fault: Fault) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in {"connection", "expect"}}
        upstream = http.client.HTTPConnection(*proxy.upstream, timeout=20)
        try:
            upstream.request(self.command, self.path, body or None, headers)
            response = upstream.getresponse()
            data = response.read()
        finally:
            upstream.close()
        self.close_connection = fault.lose_answer
        if fault.lose_answer:
            return
        kept = [
            item
            for item in response.getheaders()
            if item[0].lower() not in {"transfer-encoding", "connection", "content-length"}
        ]
        length = int(response.getheader("Content-Length") or len(data)) if self.command == "HEAD" else len(data)
        self._send(response.status, kept, data[: fault.cut] if fault.cut >= 0 else data, length + fault.longer)
        if fault.cut >= 0 or fault.longer:
            self.close_connection = True

    def _send(self, status: int, headers: list[tuple[str, str]], data: bytes, length: int | None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            sent = cast("_Server", self.server).proxy.sent
            for start in range(0, len(data), 1 << 16):
                sent[self.path.partition("?")[0]] += self.wfile.write(data[start : start + (1 << 16)])
