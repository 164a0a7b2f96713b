"""A throw-away PostgreSQL server: for the demo, for tests, for proving restores on this machine.

The server is our child and cannot outlive us: the kernel ends it when we die, even by SIGKILL.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import string
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Self

import psycopg
from psycopg.conninfo import make_conninfo

from backupd.errors import PostgresError
from backupd.postgres.account import discard, reachable, reachable_folder, server_account
from backupd.postgres.lifetime import happens, kill_tree, spawn, tied
from backupd.postgres.scram import verifier
from backupd.postgres.tools import Installation

# Settings for a server whose data may be lost: nothing waits for the disk, little is logged ahead.
FAST: Mapping[str, str] = MappingProxyType(
    {
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "wal_level": "minimal",
        "max_wal_senders": "0",
    }
)

READY_SECONDS = 60  # to the first connection; includes recovery after a crash
FAST_STOP_SECONDS = 30
IMMEDIATE_STOP_SECONDS = 10

LOCK_NAME = "throw-away-server.lock"  # says that a folder is ours to empty; locked while its server is in use
_SOCKET_LIMIT = 107 - len("/.s.PGSQL.65535")  # bytes of sun_path that are left for the folder
_PLAIN = frozenset(string.ascii_letters + string.digits + "/._-")  # a comma would separate folders and hosts
_PORT_ATTEMPTS = 5


class ThrowawayServer:
    """A server with an empty cluster in `folder`, which must be new, empty, or left by an earlier one.

    Without a port it listens only on a Unix socket in a private folder and trusts who gets there. With one
    (0: a free one) it listens on 127.0.0.1 too and wants `password`. `start` and `stop` may be repeated and
    keep the data; `close` removes everything, the folder too. All raise PostgresError. FAST is a good base
    for `settings`, which are postgres's own.
    """

    def __init__(
        self,
        installation: Installation,
        folder: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] = MappingProxyType({}),
        superuser: str = "postgres",
        locale: str = "C",
    ) -> None:
        self.installation = installation
        self.version = installation.version
        self.folder = folder.absolute()
        self.superuser = superuser
        self.password = "" if port is None else secrets.token_urlsafe(24)  # "" where the socket is trusted
        self.port = port or 5432  # without TCP it only names the socket
        self._tcp = port is not None
        self._any_port = port == 0
        self._settings = dict(settings)
        self._locale = locale
        self._account = server_account()
        self._home = self.folder  # where data and socket are: elsewhere if the account cannot enter the folder
        self._elsewhere: list[Path] = []
        self._socket_dir = self.folder
        self._programs: Installation | None = None  # set once the cluster exists
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The postmaster's process id; None if it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def data_dir(self) -> Path:
        return self._home / "data"

    @property
    def log_file(self) -> Path:
        return self.folder / "server.log"

    def dsn(self, dbname: str = "postgres") -> str:
        """A libpq connection string for the superuser; holds the password if there is one."""
        if self._tcp:
            where = {"host": "127.0.0.1", "password": self.password, "sslmode": "disable", "gssencmode": "disable"}
        else:
            where = {"host": str(self._socket_dir)}
        return make_conninfo("", **where, port=self.port, user=self.superuser, dbname=dbname)

    def start(self) -> None:
        """Make the cluster if there is none yet, start the server and wait until it takes connections."""
        if self.pid is not None:
            return
        if self._programs is None:
            try:
                self._make_cluster()
            except BaseException:
                self.close()
                raise
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            if self._any_port:
                self.port = _free_port()
            self._launch()
            try:
                self._wait_until_ready()
            except BaseException as error:
                self.kill()
                if not (self._any_port and attempt < _PORT_ATTEMPTS and "Address already in use" in str(error)):
                    raise
            else:
                self._any_port = False  # keeps the port over a restart
                return

    def stop(self) -> None:
        """End the server: politely, then at once, then by force. Does nothing if it does not run."""
        if self._process is None:
            return
        for number, seconds in ((signal.SIGINT, FAST_STOP_SECONDS), (signal.SIGQUIT, IMMEDIATE_STOP_SECONDS)):
            if self._process.poll() is None:
                self._process.send_signal(number)
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue
            self._process = None
            return
        self.kill()

    def kill(self) -> None:
        """End the server and all its processes with SIGKILL, as a crash would. `start` then recovers the data."""
        if self._process is None:
            return
        if self._process.poll() is None:
            kill_tree(self._process.pid)
        self._process.wait()
        self._process = None

    def close(self) -> None:
        """Stop the server and remove all it ever wrote."""
        self.stop()
        for folder in self._elsewhere:
            discard(folder)
        self._elsewhere.clear()
        self._programs = None
        if self._lock is None:
            return  # the folder never was ours
        try:
            shutil.rmtree(self.folder)
        except OSError as error:
            raise PostgresError(
                f"the folder {self.folder} of a throw-away server could not be removed", detail=str(error)
            ) from error
        finally:
            os.close(self._lock)
            self._lock = None

    def _make_cluster(self) -> None:
        self._take_folder()
        programs = reachable(self.installation, self._account)
        if self._account.uid is not None:
            self.folder.chmod(0o711)  # the server's user must enter; what is inside has its own modes
        if not self._account.can_enter(self.folder):
            self._home = self._new_folder()
            (self.folder / "data").symlink_to(self._home / "data")  # so that stop_stale finds it
        self._socket_dir = self._home / "socket"
        if not _takes_socket(self._socket_dir):
            self._socket_dir = self._new_folder(lambda folder: _takes_socket(folder / "socket")) / "socket"
        for private in (self.data_dir, self._socket_dir):
            private.mkdir(mode=0o700)
            self._account.own(private)
        self._initdb(programs)
        self._programs = programs

    def _new_folder(self, suits: Callable[[Path], bool] = lambda _: True) -> Path:
        folder = reachable_folder(self._account, suits)
        self._elsewhere.append(folder)
        return folder

    def _take_folder(self) -> None:
        """Lock the folder and empty it of what a killed process left in it."""
        if self._lock is not None:
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            names = {path.name for path in self.folder.iterdir()}
            if names and LOCK_NAME not in names:
                raise PostgresError(
                    f"the folder {self.folder} is not empty, and no throw-away server left it so",
                    hint="name a folder that does not exist yet",
                )
            lock = os.open(self.folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise PostgresError(
                f"the folder {self.folder} for a throw-away server cannot be used", detail=str(error)
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise PostgresError(
                f"another process runs a throw-away server in {self.folder}", hint="wait for it, or name another folder"
            ) from None
        self._lock = lock
        stop_stale(self.folder)
        for name in names - {LOCK_NAME}:
            path = self.folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _initdb(self, programs: Installation) -> None:
        method = "scram-sha-256" if self._tcp else "trust"
        command: list[str | Path] = [
            programs.program("initdb"),
            f"--pgdata={self.data_dir}",
            f"--username={self.superuser}",
            f"--locale={self._locale}",
            "--encoding=UTF8",
            "--no-sync",
            f"--auth-local={method}",
            f"--auth-host={method if self._tcp else 'reject'}",
        ]
        secret = self._home / "password"
        if self._tcp:
            secret.touch(mode=0o600)
            secret.write_text(verifier(self.password) + "\n")
            self._account.own(secret)
            command.append(f"--pwfile={secret}")
        try:
            with self.log_file.open("ab") as log:
                initdb = self._popen(command, log)
            try:
                status = initdb.wait()
            except BaseException:  # interrupted: nothing may write to a folder that is about to be removed
                _end_group(initdb)
                raise
        finally:
            secret.unlink(missing_ok=True)
        if status != 0:
            raise self._failure("could not make its cluster: initdb failed")

    def _launch(self) -> None:
        assert self._programs is not None  # start() saw to it
        settings = {
            **self._settings,
            "listen_addresses": "127.0.0.1" if self._tcp else "",
            "port": str(self.port),
            "unix_socket_directories": str(self._socket_dir),
        }
        command: list[str | Path] = [self._programs.program("postgres"), "-D", self.data_dir]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with self.log_file.open("ab") as log:
            self._process = spawn(lambda: self._popen(command, log))

    def _popen(self, command: list[str | Path], log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start one of the server's programs as its user, in a session of its own: Ctrl-C is for us to handle."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        try:
            return subprocess.Popen(
                tied(signal.SIGQUIT, command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",  # ours may be closed to the server's user
                env={**environment, "LC_ALL": "C"},
                user=self._account.uid,
                group=self._account.gid,
                extra_groups=None if self._account.uid is None else [],
                start_new_session=True,
            )
        except OSError as error:
            raise PostgresError(
                f"{command[0]} could not be started", detail=str(error), hint="is the installation whole?"
            ) from error

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            if self.pid is None:
                raise self._failure("did not start")
            try:
                psycopg.connect(self.dsn(), connect_timeout=5).close()
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise self._failure(f"took no connections within {READY_SECONDS} s") from error
            else:
                return
            time.sleep(0.02)

    def _failure(self, what: str) -> PostgresError:
        try:
            tail = self.log_file.read_text(errors="replace").splitlines()[-15:]
        except OSError:
            tail = []
        return PostgresError(
            f"a throw-away server of PostgreSQL {self.version[0]} {what}",
            detail="\n".join(tail),
            hint=f"the lines above are its own log; its programs are in {self.installation.bin_dir}",
        )


def _end_group(leader: subprocess.Popen[bytes]) -> None:
    """SIGKILL a program with a session of its own and all that it started there, and wait until they are gone."""

    def gone() -> bool:
        leader.poll()
        try:
            os.killpg(leader.pid, signal.SIGKILL)
        except ProcessLookupError:
            return True
        return False

    happens(gone, IMMEDIATE_STOP_SECONDS)


def stop_stale(folder: Path) -> bool:
    """Stop the server that a killed process left running in this folder of a ThrowawayServer; False if none runs."""
    data = folder / "data"
    pid = _postmaster(data)
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGQUIT)
    if not happens(lambda: _postmaster(data) is None, IMMEDIATE_STOP_SECONDS):
        kill_tree(pid)
    return True


def _postmaster(data: Path) -> int | None:
    """The process that postmaster.pid names, if it lives and really works in that folder: ids are reused."""
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
        if Path(f"/proc/{pid}/cwd").readlink() == data.resolve(strict=True):
            return pid
    except (OSError, ValueError):
        return None
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _takes_socket(folder: Path) -> bool:
    """Whether a server can have its socket there."""
    return len(os.fsencode(folder)) <= _SOCKET_LIMIT and _PLAIN.issuperset(str(folder))
