"""`backupd run` as its operators know it: it does what is due, whatever happens, and leaves nothing when it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psycopg
import pytest

from backupd import times
from backupd.postgres import claim
from backupd.postgres.server import ThrowawayServer
from tests.daemon import Running, daemon, until
from tests.filled import filling
from tests.postgres import NewDatabase, bulk
from tests.site import Site, local_site

STAMP = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


def made(folder: Path, databases: dict[str, str]) -> Site:
    """Everything is due often; nothing is put off."""
    site = local_site(folder, databases)
    site.set("schedule", '"@every 1h"', table="defaults")
    site.set("jitter", '"0s"', table="daemon")
    site.set("refresh", '"1s"', table="daemon")
    site.set("retry_delay", '"1s"', table="daemon")
    site.set("listen", '"127.0.0.1:0"', table="server")
    return site


def filled_database(dsn: str) -> str:
    with psycopg.connect(dsn) as connection:
        connection.execute("create table orders as select g as id from generate_series(1, 100) g")
    return dsn


@pytest.fixture
def dsn(pg15: ThrowawayServer, new_database: NewDatabase) -> str:
    return filled_database(new_database(pg15))


@pytest.fixture
def site(tmp_path: Path, dsn: str) -> Site:
    return made(tmp_path / "site", {"shop": dsn})


def slow(site: Site, dsn: str) -> None:
    """From now on a backup of it takes most of a minute."""
    bulk(dsn, "large", rows=4000, width=1000)
    with psycopg.connect(dsn) as connection:
        connection.execute("create table noise as select gen_random_uuid() u from generate_series(1, 100000)")
    site.set("bandwidth_limit", '"50kB"', table="defaults")


def locks(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "select count(*) from pg_locks where pid <> pg_backend_pid() and database = (select oid from pg_database"
            " where datname = current_database())"
        ).fetchone()
    assert row is not None
    return int(row[0])


def objects(site: Site) -> list[str]:
    return [str(path) for path in (site.folder / "repository").rglob("*") if path.is_file()]


# ---- what is due


def test_it_backs_up_verifies_and_prunes(site: Site) -> None:
    site.set("schedule", '"@every 1h"', table="defaults.verify")
    site.set("retention", "{ keep_last = 1 }", table="defaults")
    with filling(site) as filled:
        old = [filled.backup(times.now() - n * timedelta(days=1)) for n in (2, 3)]
    with daemon(site) as running:
        (done,) = running.wait(database="shop", job="backup", status="done")
        assert running.wait(database="shop", job="verify", status="done")[0]["backup"] == done["backup"]
        running.wait(database="shop", job="prune", status="done")
        assert running.stop() == 0
        assert running.gone()
    (left,) = site.backups()
    assert left["id"] == done["backup"]
    assert left["proof"]["status"] == "passed"
    assert not [name for name in objects(site) if old[0] in name or old[1] in name]


def test_what_was_missed_runs_once_and_a_restart_resets_nothing(site: Site) -> None:
    with filling(site) as filled:
        filled.backup(times.now() - timedelta(hours=5))
        filled.backup(times.now() + timedelta(days=400))  # by a clock that was wrong: it must not stop all backups
    with daemon(site) as running:
        running.wait(job="backup", status="done")
        running.wait(job="prune", status="done")
        assert running.stop() == 0
    assert len(site.backups()) == 3
    with daemon(site, name="again") as running:
        running.wait(message="backupd runs")
        assert not until(lambda: bool(running.find(job="backup")), 4)
        assert running.stop() == 0
    assert len(site.backups()) == 3


def test_one_that_fails_is_tried_again_and_delays_nobody(tmp_path: Path, dsn: str) -> None:
    with receiver() as (port, received):
        site = made(tmp_path / "site", {"broken": NOWHERE, "shop": dsn})
        site.set("retries", "2", table="daemon")
        site.set("ping_url", f'"http://127.0.0.1:{port}/ping/${{PING}}"', table="defaults")
        site.set("urls", f'["json://127.0.0.1:{port}/message"]', table="notify")
        site.environ["PING"] = "secret-uuid"
        with daemon(site) as running:
            running.wait(database="shop", job="backup", status="done")
            (failed,) = running.wait(message="not tried again", database="broken", level="error")
            assert len(running.find(message="tried again at", database="broken")) == 2
            assert "cannot connect" in failed["message"]
            assert until(lambda: any(path == "/message" for path, _ in received), 20)
            assert until(lambda: {"/ping/secret-uuid/fail", "/ping/secret-uuid"} <= {p for p, _ in received}, 20)
            assert running.stop() == 0
        paths = [path for path, _ in received]
        assert paths.count("/ping/secret-uuid/start") == 4
        (message,) = [json.loads(body) for path, body in received if path == "/message"]
        assert message["title"] == "backupd: backup of broken failed"
        assert "secret-uuid" not in running.log.read_text()


@pytest.mark.large
def test_dead_messengers_fail_nothing(site: Site) -> None:
    site.set("ping_url", '"http://127.0.0.1:1/x-secret-x"', table="defaults")
    with daemon(site) as running:
        running.wait(job="backup", status="done")
        running.wait(message="a ping could not be sent")
        assert running.stop() == 0
    assert "x-secret-x" not in running.log.read_text()
    assert len(site.backups()) == 1


@pytest.mark.large
def test_two_daemons_do_each_slot_once(tmp_path: Path, pg15: ThrowawayServer, new_database: NewDatabase) -> None:
    databases = {f"db{n}": filled_database(new_database(pg15)) for n in range(4)}
    site = made(tmp_path / "site", databases)
    site.set("schedule", '"@every 1h"', table="defaults.verify")
    with daemon(site, name="one") as one, daemon(site, name="two") as two:
        for name in databases:
            for job in ("backup", "verify"):

                def done(name: str = name, job: str = job) -> bool:
                    return any(each.find(database=name, job=job, status="done") for each in (one, two))

                assert until(done, 90), one.told() + two.told()
        assert not until(lambda: one.process.poll() is not None or two.process.poll() is not None, 8)  # what was busy
        assert [one.stop(), two.stop()] == [0, 0]
    assert sorted(row["database"] for row in site.backups()) == sorted(databases)
    proofs = [name for name in objects(site) if "/proofs/" in name and name.endswith(".json")]
    assert len(proofs) == len(databases)


@contextmanager
def receiver() -> Iterator[tuple[int, list[tuple[str, bytes]]]]:
    """A web server that takes whatever is sent to it: its port, and the paths and bodies that came."""
    received: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            received.append((self.path.rstrip("/"), body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# ---- how it ends, and goes on


def test_one_whose_folder_cannot_be_read_stops_no_other(
    tmp_path: Path, dsn: str, new_database: NewDatabase, pg15: ThrowawayServer
) -> None:
    """Nor is it silent: the storage would not say of it what there is, so its own job fails, and that is told."""
    site = made(tmp_path / "site", {"shop": dsn, "torn": filled_database(new_database(pg15))})
    site.set("retries", "0", table="daemon")
    site.run("backup", "shop")
    for path in (site.folder / "repository" / "shop" / "manifests").iterdir():
        path.unlink()
    (site.folder / "repository" / "torn").write_text("no folder")
    with daemon(site) as running:
        running.wait(database="shop", job="backup", status="done")
        running.wait(database="torn", job="backup", message="not tried again", level="error")
        assert running.stop() == 0


def test_it_ends_although_the_storage_does_not_answer(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        site = made(tmp_path / "site", {"shop": NOWHERE})
        place = f'url = "s3://bucket/prod"\nendpoint_url = "http://127.0.0.1:{silent.getsockname()[1]}"'
        keys = 'access_key_id = "a"\nsecret_access_key = "${SECRET}"\nregion = "x"'
        site.edit(lambda text: text.replace(f'url = "{site.repository}"', f"{place}\n{keys}"))
        site.environ["SECRET"] = "b"
        with daemon(site) as running:
            running.wait(message="backupd runs")
            assert not until(lambda: len(running.lines()) > 2, 2)  # it asks, and waits
            assert running.stop(seconds=15) == 0


def test_signals_while_it_starts(site: Site) -> None:
    """It reads the configuration and looks for servers then: SIGHUP changes nothing, SIGTERM is a clean end."""
    usual, site.config = site.config, site.folder / "slow.toml"
    os.mkfifo(site.config)
    with daemon(site, name="ended") as running, site.config.open("wb"):  # it waits to read now
        running.signal(signal.SIGTERM)
        assert running.process.wait(60) == 0, running.told()
    with daemon(site, name="reloaded") as running:
        with site.config.open("wb") as slow:
            running.signal(signal.SIGHUP)
            shutil.copy(usual, site.folder / "again.toml")
            (site.folder / "again.toml").rename(site.config)
            slow.write(usual.read_bytes())
        running.wait(message="the configuration was read again")
        assert running.stop() == 0


def test_stopped_in_a_backup(site: Site, dsn: str) -> None:
    """It may go on for a moment, then it is ended: nothing of it is left, and the exit code is 0."""
    slow(site, dsn)
    site.set("shutdown_timeout", '"1s"', table="daemon")
    with daemon(site, "--verbose") as running:
        running.wait(message="dumping")
        assert running.stop() == 0
        assert running.find(message="not finished: backupd was stopped", job="backup", status="interrupted")
        assert running.gone()
    assert site.backups() == []
    assert [name for name in objects(site) if "/data/" in name] == []
    assert locks(dsn) == 0


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGSEGV, marks=pytest.mark.large)], ids=lambda n: n.name
)
def test_killed_in_a_backup(site: Site, dsn: str, number: signal.Signals) -> None:
    """No process and no lock is left; the next one does what this one could not."""
    slow(site, dsn)
    with daemon(site, "--verbose") as running:
        running.wait(message="dumping")
        running.stop(number)
        assert running.gone(), running.processes()
    assert until(lambda: locks(dsn) == 0, 10)
    assert site.backups() == []
    site.set("bandwidth_limit", '"0"', table="databases.shop")
    with daemon(site, name="again") as running:
        running.wait(job="backup", status="done")
        assert running.stop() == 0
    assert len(site.backups()) == 1


@pytest.mark.large
def test_one_that_takes_too_long_is_ended(site: Site, dsn: str) -> None:
    slow(site, dsn)
    site.set("max_duration", '"2s"', table="defaults")
    site.set("retries", "0", table="daemon")
    with daemon(site) as running:
        (failed,) = running.wait(message="longer than max_duration", level="error")
        assert 2 <= failed["seconds"] < 30
        assert running.stop() == 0
    assert site.backups() == []
    assert [name for name in objects(site) if "/data/" in name] == []


def test_reload(site: Site, new_database: NewDatabase, pg15: ThrowawayServer) -> None:
    good = site.config.read_text()
    with daemon(site) as running:
        running.wait(database="shop", job="prune", status="done")
        site.config.write_text(good.replace("[daemon]", "[deamon]"))
        running.signal(signal.SIGHUP)
        running.wait(message="the one before goes on", level="error")
        assert running.find(message="deamon")
        text = good.replace("[databases.shop]", f'[databases.crm]\ndsn = "{new_database(pg15)}"\n[databases.shop]')
        site.config.write_text(text)
        running.signal(signal.SIGHUP)
        running.wait(message="was read again, databases: 2")
        running.wait(database="crm", job="backup", status="done")
        assert len(running.find(database="shop", job="backup", status="done")) == 1
        assert running.stop() == 0


def test_a_wrong_configuration_at_the_start(site: Site) -> None:
    site.edit(lambda text: text.replace("[daemon]", "[deamon]"))
    assert "did you mean" in site.run("run", code=2).err


@pytest.mark.large
def test_the_storage_comes_later(site: Site) -> None:
    """A job that fails is tried again; what is there by then does it."""
    folder = site.folder / "repository"
    folder.write_text("a file where the folder belongs")
    site.set("retries", "20", table="daemon")
    with daemon(site) as running:
        running.wait(message="tried again at", level="warning")
        folder.unlink()
        running.wait(job="backup", status="done", seconds=90)
        assert running.stop() == 0


def test_systemd_and_health(site: Site, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    site.edit(lambda text: text.replace('listen = "127.0.0.1:0"', f'listen = "127.0.0.1:{port}"'))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(30)
        site.environ |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
        heard: list[str] = []

        def hear(what: str) -> None:
            while not any(line.startswith(what) for line in heard):
                heard.extend(listening.recv(4096).decode().splitlines())

        with daemon(site) as running:
            hear("READY=1")
            hear("WATCHDOG=1")
            hear("STATUS=runs nothing; next: backup of shop")
            for path, code in (("healthz", 200), ("readyz", 200), ("nothing", 404)):
                assert asked(f"http://127.0.0.1:{port}/{path}") == code
            heard.clear()
            running.signal(signal.SIGHUP)
            hear("RELOADING=1")
            hear("MONOTONIC_USEC=")
            hear("READY=1")
            assert running.stop() == 0
            hear("STOPPING=1")


def asked(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


# ---- clusters


def test_databases_come_and_go(tmp_path: Path, pg15: ThrowawayServer, new_database: NewDatabase) -> None:
    prefix = f"c{os.getpid()}"
    for name in (f"{prefix}_a", f"{prefix} ö.b", f"{prefix}_not"):
        filled_database(new_database(pg15, name))
    site = made(tmp_path / "site", {})
    site.edit(
        lambda text: (
            text.replace("[databases.shop]\n", "").replace('dsn = "postgresql://backupd@db.internal/shop"', "")
            + f'\n[clusters.main]\ndsn = "{pg15.dsn()}"\ninclude = ["{prefix}*"]\nexclude = ["*_not"]\n'
        )
    )
    with daemon(site) as running:
        running.wait(database=f"main.{prefix}_a", job="backup", status="done")
        encoded = f"main.{prefix}%20%C3%B6.b"
        running.wait(database=encoded, job="backup", status="done")
        filled_database(new_database(pg15, f"{prefix}_late"))
        running.wait(message=f"found the database main.{prefix}_late")
        running.wait(database=f"main.{prefix}_late", job="prune", status="done")
        with psycopg.connect(pg15.dsn(), autocommit=True) as connection:
            connection.execute(f'drop database "{prefix}_late" with (force)'.encode())
        running.wait(message=f"main.{prefix}_late is gone")
        assert running.stop() == 0
    assert {row["database"] for row in site.backups()} == {f"main.{prefix}_a", encoded, f"main.{prefix}_late"}
    assert [row["database"] for row in site.run("backup", "--json").json] == [encoded, f"main.{prefix}_a"]
    assert {row["database"] for row in site.run("prune", "--dry-run", "--json").json} == {encoded, f"main.{prefix}_a"}
    findings = site.run("check", "--json", code=None).json
    assert any(encoded in finding["name"] for finding in findings)
    (cluster,) = (finding for finding in findings if finding["name"] == "cluster main")
    assert cluster["detail"] == f"2 databases: {encoded}, main.{prefix}_a"
    plan = site.run("restore", encoded, "--at", "latest", "--dry-run", "--json").json
    assert plan["database"] == encoded
    assert "it has: main.…" in site.run("list", "x", code=2).err


# ---- hooks


def test_hooks(site: Site, dsn: str) -> None:
    def hook(name: str, code: int) -> None:
        script = site.folder / name
        script.write_text(f"#!/bin/sh\nenv | grep BACKUPD_ | sort > {site.folder}/{name}.env\nexit {code}\n")
        script.chmod(0o755)

    hook("before", 0)
    hook("after", 3)
    hooks = f'{{ before = ["{site.folder}/before", "x y"], after = ["{site.folder}/after"] }}'
    site.set("hooks", hooks, table="defaults")
    outcome = site.run("backup")
    (backup,) = site.backups()
    before, after = told(site, "before"), told(site, "after")
    assert before["BACKUPD_DATABASE"] == "shop"
    assert "BACKUPD_STATUS" not in before
    assert (after["BACKUPD_STATUS"], after["BACKUPD_ID"]) == ("done", backup["id"])
    assert "exited with 3" in outcome.err
    repository = json.loads((site.folder / "repository" / "backupd.json").read_text())["repository"]
    (site.folder / "before.env").unlink()
    (site.folder / "after.env").unlink()
    with psycopg.connect(dsn, autocommit=True) as another:
        claim.take(another, repository, "backup")
        site.run("backup", code=75)  # another host is at it: its hooks are its own
    assert not list(site.folder.glob("*.env"))
    hook("before", 7)
    refused = site.run("backup", code=8)
    assert "exited with 7" in refused.err
    assert len(site.backups()) == 1
    hook("before", 0)
    site.edit(lambda text: text.replace(dsn, NOWHERE) if dsn in text else text)
    (site.folder / "before").write_text("#!/bin/sh\nsleep 60\n")
    site.edit(lambda text: text.replace('/after"] }', '/after"], timeout = "1s" }'))
    assert "took longer than 1 s" in site.run("backup", code=8).err


def test_a_hook_may_leave_something_running(site: Site) -> None:
    """A tunnel, say, that has the hook's output: it is not waited for."""
    script = site.folder / "before"
    script.write_text(f"#!/bin/sh\nsetsid sleep 600 &\necho $! > {site.folder}/left\n")
    script.chmod(0o755)
    site.set("hooks", f'{{ before = ["{script}"], timeout = "60s" }}', table="defaults")
    try:
        began = time.monotonic()
        site.run("backup")
        assert time.monotonic() - began < 50
    finally:
        os.kill(int((site.folder / "left").read_text()), signal.SIGKILL)


def test_check_looks_at_what_runs_only_later(site: Site) -> None:
    site.set("hooks", '{ before = ["no-such-program", "x"], after = ["sh"] }', table="defaults")
    site.set("urls", '["json://127.0.0.1", "nonsense"]', table="notify")
    site.set("retention", "{ keep_last = 3, daily = 7 }", table="defaults")
    outcome = site.run("check", "--json", code=2)
    (plan,) = (finding["detail"] for finding in outcome.json if finding["name"] == "shop: schedule")
    assert re.fullmatch(
        r"backup @every 1h, next 20\S+Z; verify never; retention keep_last 3, daily 7; time zone UTC", plan
    )
    status = {finding["name"]: finding["status"] for finding in outcome.json}
    assert (status["shop: hook before"], status["shop: hook after"], status["messages"]) == ("failed", "ok", "failed")
    site.edit(lambda text: text.replace("no-such-program", "env").replace(', "nonsense"', ""))
    status = {finding["name"]: finding["status"] for finding in site.run("check", "--json").json}
    assert (status["shop: hook before"], status["messages"]) == ("ok", "ok")


def told(site: Site, name: str) -> dict[str, str]:
    """The variables that a hook had."""
    lines = (site.folder / f"{name}.env").read_text().splitlines()
    return {line.partition("=")[0]: line.partition("=")[2] for line in lines}


@pytest.mark.large
def test_the_log_is_text_for_people_and_json_for_programs(site: Site) -> None:
    def first(running: Running) -> str:
        done = ("backup of shop: 2", '"backup": "2')
        assert until(lambda: any(each in running.log.read_text() for each in done), 60)
        assert running.stop() == 0
        return running.log.read_text()

    with daemon(site) as running:
        assert all(json.loads(line) for line in first(running).splitlines())
    with filling(site) as filled:
        for info in list(filled.storage.list("shop/manifests/")):
            filled.storage.delete([info.key])
    with daemon(site, "--log-format", "text", name="text") as running:
        text = first(running)
    assert re.fullmatch(rf"{STAMP} backupd runs: databases: 1, jobs at a time: 2, by .*toml", text.splitlines()[1])
    assert re.search(rf"(?m)^{STAMP} backup of shop: 2", text)
