"""The doors: who may ask for what, and that nothing that is asked breaks them. A real server on loopback."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import random
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from pydantic import SecretStr, ValidationError

from backupd import standing, times
from backupd.agenda import Job
from backupd.config_models import Database, Server
from backupd.config_values import Address
from backupd.crypto import minisign
from backupd.daemon.health import Health
from backupd.holdings import Keeper
from backupd.metrics import Metrics
from backupd.progress import Step
from backupd.standing import Attempt, Reading
from backupd.storage.memory import MemoryStorage
from backupd.web import server as web
from backupd.web.app import build
from backupd.web.server import WebServer
from tests.daemon import until
from tests.filled import Filled

TOKEN = "correct-horse-battery-staple"
NASTY = "<script>alert(1)</script>\"'&\x1b[31m\x00‮</td>"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: str


@dataclass
class World:
    """A server in front of what a small repository holds."""

    server: WebServer
    bugs: list[str] = field(default_factory=list)

    def ask(self, path: str, method: str = "GET", host: str | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection(*self.server.address, timeout=10)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", host if host is not None else str(self.server.address))
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read().decode())
        finally:
            connection.close()

    def raw(self, data: bytes, seconds: float = 10) -> bytes:
        """What comes back for these bytes, until it is over."""
        with socket.create_connection(self.server.address, timeout=seconds) as connection:
            found = b""
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(65536):
                    found += part
            except ConnectionError:
                pass
            return found


def reading() -> Reading:
    """Two databases; what can be strange about them is."""
    filled = Filled(MemoryStorage(), minisign.SecretKey.generate())
    now = times.now()
    for hours in range(30):
        made = filled.backup(now - timedelta(hours=hours, minutes=5))
    checks = ({"name": NASTY, "status": "failed", "detail": NASTY, "seconds": 1.0},)
    filled.proof(made, now, status="failed", reason=NASTY, checks=checks)
    databases = {
        name: Database.model_validate({"name": name, "dsn": SecretStr("host=secret-host"), "schedule": "@every 1h"})
        for name in ("shop", "main.a%2Fb")
    }
    holdings = Keeper().refresh(filled.catalog, databases)
    job = Job("backup", "shop", now)
    return Reading(
        now=now,
        standings=standing.all_of(databases, holdings, timedelta()),
        seen_at=now,
        next_runs={("shop", "verify"): now + timedelta(hours=3)},
        running={job: now - timedelta(minutes=2)},
        steps={job: Step(NASTY, 10, 3, 1000, 370)},
        attempts={("main.a%2Fb", "backup"): Attempt(now, "failure", NASTY)},
        databases=databases,
        path=Path("/tmp/a b.toml"),
    )


Starter = Callable[..., World]


@pytest.fixture
def start() -> Iterator[Starter]:
    with ExitStack() as servers:
        told = reading()

        def started(**settings: Any) -> World:
            given = {name: str(each) if isinstance(each, Path) else each for name, each in settings.items()}
            doors = Server.model_validate(
                {"listen": "127.0.0.1:0", **given}, context={"folder": Path("/"), "home": "/"}
            )
            health = Health()
            health.note("storage", None)
            bugs: list[str] = []
            app = build(lambda: told, Metrics(lambda: told).text, health, doors)
            server = WebServer(app, doors, bugs.append)
            servers.callback(server.close)
            return World(server, bugs)

        yield started


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


PAGES = ("/", "/databases/shop", "/databases/main.a%252Fb", "/api/status", "/api/status/shop", "/metrics", "/readyz")


def test_everything_is_there_and_guarded(start: Starter) -> None:
    world = start()
    for path in (*PAGES, "/healthz", "/static/style.css", "/static/page.js", "/static/icon.svg"):
        answer = world.ask(path)
        assert answer.status == 200, path
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] in ("no-store", "no-cache")
        assert "server" not in answer.headers
        head = world.ask(path, "HEAD")
        assert (head.status, head.body) == (200, "")
    for path in ("/nothing", "/databases/nothing", "/databases/shop?page=2", "/databases/shop?page=x", "/api/status/x"):
        assert world.ask(path).status == 404, path
    assert json.loads(world.ask("/api/status/x").body)["error"]
    assert world.bugs == []


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_it_can_only_be_read(start: Starter, method: str) -> None:
    world = start()
    for path in (*PAGES, "/healthz"):
        assert world.ask(path, method).status in (400, 405), path


def test_nothing_strange_becomes_markup(start: Starter) -> None:
    world = start()
    for path in ("/", "/databases/shop", "/databases/main.a%252Fb"):
        text = world.ask(path).body
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert(1)" in text
        assert not any(each in text for each in ("\x1b", "\x00", "‮"))
        assert "\\x1b" in text
        assert "secret-host" not in text
    document = json.loads(world.ask("/api/status/shop").body)
    assert document["tests"][0]["checks"][0][0] == NASTY
    assert "secret-host" not in world.ask("/api/status").body
    assert json.loads(world.ask("/api/status").body)["databases"][0]["database"]


def test_what_the_page_says_the_api_says(start: Starter) -> None:
    world = start()
    document, page = json.loads(world.ask("/api/status/shop").body), world.ask("/databases/shop").body
    assert document["summary"]["state"] == "failing"
    assert len(document["backups"]) == 30
    for backup in document["backups"]:
        assert backup["id"] in page
        assert backup["command"] == f"backupd --config '/tmp/a b.toml' restore shop --at {backup['id']}"
    assert [row["database"] for row in json.loads(world.ask("/api/status").body)["databases"]] == ["main.a%2Fb", "shop"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("localhost", 200), ("LOCALHOST:80", 200), ("127.0.0.1:9847", 200), ("[::1]:1", 200), ("10.0.0.7", 200)),
        *(("backup.example.com:9847", 200), ("evil.example.com", 421), ("", 421), ("localhost.evil.com", 421)),
        *(("127.0.0.1.evil.com", 421), ("backup.example.com:x", 421), ("[::1]x", 421), ("a@localhost", 421)),
    ],
)
def test_only_names_that_are_ours(start: Starter, host: str, status: int) -> None:
    world = start(hosts=["backup.example.com"])
    assert world.ask("/", host=host).status == status
    assert world.ask("/healthz", host=host).status == 200


def test_a_request_has_one_host(start: Starter) -> None:
    world = start()
    both = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.com\r\nConnection: close\r\n\r\n"
    assert world.raw(both).split()[1] in (b"400", b"421")
    assert world.raw(b"GET / HTTP/1.0\r\n\r\n").split()[1] == b"421"


def test_tokens_and_passwords(start: Starter) -> None:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    hashed = bcrypt.hashpw("pässword".encode(), bcrypt.gensalt(4)).decode()
    world = start(tokens_sha256=["0" * 64, digest], users={"ops": hashed})
    for path in (*PAGES, "/static/style.css", "/nothing"):
        refused = world.ask(path)
        assert refused.status == 401, path
        assert refused.headers["www-authenticate"].startswith("Basic ")
        assert refused.headers["x-frame-options"] == "DENY"
        assert "shop" not in refused.body
    assert world.ask("/healthz").status == 200
    for good in (f"Bearer {TOKEN}", f"bearer {TOKEN}", basic("ops", "pässword"), basic("ops", "pässword")):
        assert world.ask("/", Authorization=good).status == 200, good
    for bad in (
        *("Bearer", "Bearer ", f"Bearer {digest}", f"Bearer {TOKEN}x", f"Token {TOKEN}", "Basic", "Basic !!!"),
        *(basic("ops", "password"), basic("ops", ""), basic("", ""), basic("nobody", "pässword"), basic("ops", hashed)),
        *("Basic b3Bz", "Basic " + base64.b64encode(b"\xff:\xff").decode(), basic("ops", "x" * 100)),
    ):
        assert world.ask("/", Authorization=bad).status == 401, bad
    assert world.bugs == []


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    paths = folder / f"{name}.crt", folder / f"{name}.key"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    made += ["-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1", "-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run(made, check=True, capture_output=True)
    return paths


def test_tls_and_a_renewed_certificate(start: Starter, tmp_path: Path) -> None:
    first, second = certificate(tmp_path, "localhost"), certificate(tmp_path, "renewed")
    world = start(tls_certificate_file=first[0], tls_key_file=first[1])
    assert world.server.url.startswith("https://")

    def common_name() -> object:
        context = ssl.create_default_context(cafile=str(first[0]))
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(world.server.address, timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            wrapped.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = wrapped.recv(4096)
            assert b"200 OK" in answer
            assert b"strict-transport-security" in answer
            der = wrapped.getpeercert(binary_form=True)
        return hashlib.sha256(der or b"").hexdigest()

    before = common_name()
    first[0].write_bytes(second[0].read_bytes())
    with pytest.raises(ssl.SSLError):
        world.server.reload_certificate()  # its key is another's
    assert common_name() == before
    first[1].write_bytes(second[1].read_bytes())
    world.server.reload_certificate()
    assert common_name() != before
    assert world.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""  # no word in the clear


def test_what_may_be_reached_from_elsewhere_is_locked(tmp_path: Path) -> None:
    elsewhere = Address("0.0.0.0", 9847)  # noqa: S104
    files: dict[str, Any] = {"tls_certificate_file": "a.crt", "tls_key_file": "a.key"}
    token: dict[str, Any] = {"tokens_sha256": ["0" * 64]}
    users: dict[str, Any] = {"users": {"a": "$2y$10$" + "a" * 53}}
    plain: dict[str, Any] = {"plain_http": True}

    def made(settings: dict[str, Any]) -> Server:
        context = {"folder": tmp_path, "home": "/"}
        return Server.model_validate({"listen": "0.0.0.0:9847", **settings}, context=context)

    for settings in ({}, plain, token, users, files):
        with pytest.raises(ValidationError):
            made(settings)
    for settings in (plain | token, plain | users, files | token):
        assert made(settings).listen == elsewhere


def test_who_asks_nothing_is_shown_out(start: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_PATIENCE", 0.5)
    monkeypatch.setattr(web, "_CONNECTIONS", 20)
    world = start()
    with ExitStack() as held:
        silent = [held.enter_context(socket.create_connection(world.server.address, timeout=10)) for _ in range(30)]
        for number, each in enumerate(silent[:10]):
            each.sendall(b"GET / HTTP/1.1\r\nHost: loc"[: number * 3])
        for each in silent:
            try:
                assert each.recv(10) == b""
            except ConnectionResetError:
                continue
    assert world.ask("/").status == 200


def test_who_does_not_take_his_answers_is_shown_out(start: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of them fits into the server's own buffer: for it they are answered."""

    def with_little_room(address: Address) -> socket.socket:
        made = socket.create_server(address, backlog=64)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of those that are accepted, too
        return made

    monkeypatch.setattr(web, "_PATIENCE", 0.3)
    monkeypatch.setattr(web, "_CONNECTIONS", 10)
    monkeypatch.setattr(web, "_listen", with_little_room)
    world = start()
    with ExitStack() as held:
        for _ in range(10):
            each = held.enter_context(socket.socket())
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            each.connect(world.server.address)
            each.sendall(b"GET /static/style.css HTTP/1.1\r\nHost: localhost\r\n\r\n" * 6)

        def answered() -> bool:
            try:
                return world.ask("/healthz").status == 200
            except (OSError, http.client.HTTPException):
                return False

        assert until(answered, 20)


def test_many_wrong_passwords_keep_no_page_waiting(start: Starter) -> None:
    hashed = bcrypt.hashpw(b"right", bcrypt.gensalt(10)).decode()
    world = start(users={"ops": hashed}, tokens_sha256=[hashlib.sha256(TOKEN.encode()).hexdigest()])
    with ThreadPoolExecutor(30) as guessing:
        guesses = [guessing.submit(world.ask, "/", Authorization=basic("ops", f"wrong {n}")) for n in range(30)]
        began = time.monotonic()
        assert world.ask("/metrics", Authorization=f"Bearer {TOKEN}").status == 200
        assert time.monotonic() - began < 3
        statuses = {each.result().status for each in guesses}
    assert statuses == {401, 429}
    assert world.ask("/", Authorization=basic("ops", "right")).status == 200


def test_a_large_request_is_refused(start: Starter) -> None:
    world = start()
    for data in (
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"a" * 1_000_000,
    ):
        answer = world.raw(data)
        assert answer == b"" or answer.split()[1] in (b"400", b"414", b"431"), answer[:100]
    assert world.ask("/").status == 200


def test_no_request_breaks_it(start: Starter) -> None:
    """Requests made of right and wrong parts, at random: never a 500, and never a word of what is secret."""
    world = start()
    chance = random.Random(20261122)
    methods = ("GET", "HEAD", "POST", "get", "GET\x00", "", "A" * 300)
    paths: tuple[str, ...] = (
        *PAGES,
        "/healthz",
        "//",
        "/../../etc/passwd",
        "/static/../app.py",
        "/databases/",
        "/%00",
        "/%ff%fe",
        "*",
    )
    paths += (
        "/databases/%2e%2e",
        "http://evil.com/",
        "/?page=" + "9" * 5000,
        "/databases/shop?page=-1",
        "/a b",
        "/\xe9",
    )
    paths += ("/databases/shop?page=99999999999999999999999", "/databases/shop?page=%F0%9F", "/databases/shop?page=١")
    names: tuple[str, ...] = (
        "Host",
        "host",
        "Authorization",
        "Accept-Encoding",
        "If-None-Match",
        "Range",
        "Cookie",
        "X-Forwarded-For",
    )
    names += ("Content-Length", "Transfer-Encoding", "Expect", "Upgrade", "Connection", "X" * 200, "Bad Name", "")
    texts: tuple[str, ...] = (
        "localhost",
        "",
        "x" * 3000,
        "bytes=0-1",
        "chunked",
        "100-continue",
        "-1",
        "websocket",
        "upgrade",
        "close",
    )
    texts += ("\x00", "é", "Basic ====", "Bearer \xff", "gzip;q=9", '"*"', "5", "keep-alive, upgrade", "\r\n x")
    statuses = set()
    for _ in range(600):
        lines = [f"{chance.choice(methods)} {chance.choice(paths)} HTTP/{chance.choice(('1.1', '1.0', '2', ''))}"]
        lines += ["Host: localhost"] * chance.choice((1, 1, 1, 0, 2))
        lines += [f"{chance.choice(names)}: {chance.choice(texts)}" for _ in range(chance.randrange(4))]
        data = "\r\n".join([*lines, "Connection: close", "", ""]).encode("utf-8", "replace")
        data += chance.choice((b"", b"", b"body", b"0\r\n\r\n", bytes(chance.randrange(256) for _ in range(50))))
        answer = world.raw(data)
        if answer.startswith(b"HTTP/"):
            statuses.add(int(answer.split()[1]))
        assert b"secret-host" not in answer
        assert b"Traceback" not in answer
    assert {200, 400, 404, 405, 421} <= statuses
    assert not {each for each in statuses if each >= 500}
    assert world.bugs == []
    assert world.ask("/").status == 200
