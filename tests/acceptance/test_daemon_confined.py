"""The daemon under the limits of its systemd unit, as far as they can be had without systemd (tests/confined.py)."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import SIGHUP
from threading import Thread

import psycopg
import pytest

from backupd.postgres.server import FAST, ThrowawayServer
from backupd.postgres.tools import choose_server, find_installations
from tests.confined import PROJECT
from tests.daemon import daemon, until
from tests.site import Site

NOBODY = 65534
PYTHONS = (sys.executable, "/usr/bin/python3")

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None or ctypes.util.find_library("seccomp") is None,
    reason="system calls are filtered by libseccomp, and named by systemd-analyze",
)


class Confined(Site):
    """Everything runs as `prefix` makes it run."""

    prefix: tuple[str, ...] = ()
    python = sys.executable

    def command(self, *arguments: str) -> list[str]:
        return [*self.prefix, self.python, "-m", "backupd", "--config", str(self.config), *arguments]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Confined]:
    """Of a server that is reached by TCP: its socket would be hidden with everything else in /tmp."""
    tmp_path.chmod(0o755)
    installation = choose_server(find_installations(), None)
    with ThrowawayServer(installation, tmp_path / "server", port=0, settings=FAST) as server:
        dsn = server.dsn()
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("create table orders as select g as id from generate_series(1, 100) g")
        site = Confined(tmp_path / "state", f"file://{tmp_path}/state/repository", {"shop": dsn})
        site.set("schedule", '"@every 1h"', table="defaults")
        site.set("schedule", '"@every 1h"', table="defaults.verify")
        site.set("jitter", '"0s"', table="daemon")
        site.set("listen", '"127.0.0.1:0"', table="server")
        site.environ["PYTHONPATH"] = os.pathsep.join([str(PROJECT), *(p for p in sys.path if p.endswith("-packages"))])
        yield site


@pytest.mark.skipif(os.geteuid() == 0, reason="no service runs as root; the next test is root's")
def test_with_what_everybody_can_give_up(site: Confined) -> None:
    site.prefix = (sys.executable, "-m", "tests.confined", "begin", str(site.folder), "--")
    lives(site)


def test_as_a_user_who_can_write_nowhere_else(site: Confined) -> None:
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0:
        pytest.skip("only root can mount, and not in every container")
    site.python = next(python for python in PYTHONS if fits(python))
    site.prefix = (sys.executable, "-m", "tests.confined", "begin", str(site.folder), str(NOBODY), site.python, "--")
    for path in (site.folder, *site.folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    lives(site)
    refused = probed(site)
    assert refused == {
        *(
            "user 65534",
            "EROFS open /etc",
            "EPERM mmap",
            "EAFNOSUPPORT socket",
            "EPERM chroot",
            "root's processes: False",
        ),
    }


# What the limits forbid, tried: that they are there at all.
PROBE = """
import errno, mmap, os, socket
def tried(what, do, *arguments):
    try:
        do(*arguments)
    except OSError as error:
        print(errno.errorcode[error.errno], what)
print("user", os.geteuid())
print("root's processes:", os.path.exists("/proc/1"))
tried("open /etc", open, "/etc/written", "w")
tried("mmap", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC))
tried("socket", socket.socket, socket.AF_NETLINK, socket.SOCK_RAW)
tried("chroot", os.chroot, "/tmp")
"""


def probed(site: Confined) -> set[str]:
    done = subprocess.run([*site.prefix, site.python, "-c", PROBE], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


def fits(python: str) -> bool:
    """Whether anybody may run it, and it can use what is installed for us."""
    version = [python, "-c", f"import sys; print(sys.version_info[:2] == {sys.version_info[:2]!r})"]
    try:
        asked = subprocess.run(version, capture_output=True, text=True, check=False, user=NOBODY, cwd="/")
    except PermissionError:
        return False
    return asked.stdout == "True\n"


@contextmanager
def heard(notified: socket.socket) -> Iterator[Sequence[bytes]]:
    """All that systemd is told, as it comes: its socket holds ten messages, and whoever reads none is waited for."""
    words: list[bytes] = []

    def listen() -> None:
        while word := notified.recv(4096):
            words.append(word)

    listening = Thread(target=listen)
    listening.start()
    try:
        yield words
    finally:
        notified.shutdown(socket.SHUT_RDWR)
        listening.join()


def lives(site: Confined) -> None:
    """It backs up, proves, reloads and ends; and `check` finds nothing wrong."""
    site.run("check")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(site.folder / "notify"))
        (site.folder / "notify").chmod(0o666)
        site.environ["NOTIFY_SOCKET"] = str(site.folder / "notify")
        with daemon(site) as running, heard(notified) as words:
            assert until(lambda: any(b"READY=1" in each for each in words), 60)
            running.wait(database="shop", job="backup", status="done")
            running.wait(database="shop", job="verify", status="done")
            running.signal(SIGHUP)
            running.wait(message="the configuration was read again")
            assert running.stop() == 0
    assert [line for line in running.lines() if line["level"] not in ("info", "debug")][1:] == []
    (backup,) = site.backups("shop")
    assert backup["proof"]["status"] == "passed"
