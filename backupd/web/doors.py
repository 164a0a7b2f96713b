"""Who may ask, and how the answers are guarded. Before anything else sees a request.

Host is checked against the names that are ours, so that no page of another site reaches a loopback address by a name of
its own (DNS rebinding); addresses can't be rebound, and are taken as they are. Tokens and passwords are compared in
constant time, by their hashes alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import socket
from ipaddress import ip_address

import bcrypt
from anyio import CapacityLimiter, WouldBlock, to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backupd.config_models import Server

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_LONGEST = 2000  # bytes of an address
_HEADERS_SIZE = 16 << 10  # bytes
_OPEN = "/healthz"  # which tells nothing else, to anybody
_PAGES = 4  # made at the same time: the daemon's loop wants its turn too
_WAITING = 8  # passwords that are looked at, or wait for it
_REMEMBERED = 100  # who came in


class Doors:
    """An ASGI middleware."""

    def __init__(self, app: ASGIApp, doors: Server) -> None:
        self._app = app
        self._hosts = {"localhost", socket.gethostname().lower(), *(name.lower() for name in doors.hosts)}
        if not _is_address(doors.listen.host):
            self._hosts.add(doors.listen.host.lower())
        self._encrypted = doors.tls_key_file is not None
        self._guests = Guests(doors)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"  # the server is started without others

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if self._encrypted:
                    headers.setdefault("Strict-Transport-Security", "max-age=31536000")
            await send(message)

        to_thread.current_default_thread_limiter().total_tokens = _PAGES
        answer = await self._refusal(scope)
        if answer is not None:
            answer.headers["Connection"] = "close"  # who is refused keeps nobody else out
        await (answer or self._app)(scope, receive, guarded)

    async def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("only GET and HEAD\n", 405, {"Allow": "GET, HEAD"})
        if len(scope["raw_path"]) + len(scope["query_string"]) > _LONGEST:
            return PlainTextResponse("The address is too long.\n", 414)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _HEADERS_SIZE:
            return PlainTextResponse("The headers are too large.\n", 431)
        if scope["path"] == _OPEN:
            return None
        if not self._is_ours(headers.getlist("host")):
            return PlainTextResponse(
                "This is not a name of this server: add it to `hosts` in [server] of backupd's configuration.\n", 421
            )
        try:
            admitted = await self._guests.admit(headers.getlist("authorization"))
        except WouldBlock:
            return PlainTextResponse("Too many passwords are tried.\n", 429, {"Retry-After": "5"})
        if not admitted:
            challenge = {"WWW-Authenticate": 'Basic realm="backupd", charset="UTF-8"'}
            return PlainTextResponse("A token or a password is needed.\n", 401, challenge)
        return None

    def _is_ours(self, given: list[str]) -> bool:
        if len(given) != 1:
            return False
        host = given[0].lower()
        name, colon, port = host.rpartition(":")
        if colon and port.isdecimal() and port.isascii():
            host = name
        return host in self._hosts or _is_address(host.removeprefix("[").removesuffix("]"))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


class Guests:
    """Who has a token or a password; everybody, if neither is asked for."""

    def __init__(self, doors: Server) -> None:
        self._tokens = [bytes.fromhex(text) for text in doors.tokens_sha256]
        self._users = dict(doors.users)
        self._key = secrets.token_bytes(32)
        self._known: dict[bytes, None] = {}  # what came in before, hashed: bcrypt takes its time
        costs = [int(text.split("$")[2]) for text in self._users.values()]
        # Takes the time of a hash where there is no such user.
        self._nobody = bcrypt.hashpw(b"", bcrypt.gensalt(max(costs, default=4)))
        self._limiter: CapacityLimiter | None = None
        self._trying = 0

    async def admit(self, given: list[str]) -> bool:
        """`given`: the values of Authorization."""
        if not self._tokens and not self._users:
            return True
        if len(given) != 1:
            return False
        scheme, _, value = given[0].partition(" ")
        if scheme.lower() == "bearer":
            return self._has_token(value.strip())
        if scheme.lower() == "basic" and self._users:
            seal = hmac.digest(self._key, value.encode(), "sha256")
            return seal in self._known or await self._try(value.strip(), seal)
        return False

    async def _try(self, value: str, seal: bytes) -> bool:
        """One at a time, on a thread of their own: whoever guesses gets one core at most, and keeps no page waiting."""
        self._limiter = self._limiter or CapacityLimiter(1)
        if self._trying >= _WAITING:
            raise WouldBlock
        self._trying += 1
        try:
            return await to_thread.run_sync(self._has_password, value, seal, limiter=self._limiter)
        finally:
            self._trying -= 1

    def _has_token(self, token: str) -> bool:
        digest = hashlib.sha256(token.encode()).digest()
        return sum(hmac.compare_digest(digest, each) for each in self._tokens) > 0  # all of them, always

    def _has_password(self, value: str, seal: bytes) -> bool:
        try:
            name, colon, password = base64.b64decode(value, validate=True).partition(b":")
            user = name.decode()
        except (binascii.Error, UnicodeDecodeError):
            return False
        wanted = self._users[user].encode() if user in self._users else self._nobody
        # bcrypt reads 72 bytes, and no NUL.
        fits = len(password) <= 72 and b"\0" not in password
        right = bcrypt.checkpw(password if fits else b"", wanted)
        if not (colon and fits and right and user in self._users):
            return False
        while len(self._known) >= _REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[seal] = None
        return True
