"""Where a backup is restored only to be looked at: a throw-away server of this machine, or a database on one that is
named, made for it and dropped again.

What a killed run left is recognised for certain before it goes: a server's folder by its lock, which nobody holds; a
database by a name that holds a keyed hash of itself, which only the same repository's backupd gives.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from backupd import times
from backupd.errors import PostgresError
from backupd.postgres import account, database, target
from backupd.postgres.lifetime import happens
from backupd.postgres.server import FAST, LOCK_NAME, ThrowawayServer, stop_stale
from backupd.postgres.session import Dsn, connect, explained
from backupd.postgres.tools import Installation

PREFIX = "backupd_scratch_"
_FOLDER = "backupd-scratch-"
_NAME = re.compile(rf"{PREFIX}(\d{{8}}T\d{{6}}Z_[0-9a-f]{{6}})_([0-9a-f]{{10}})")
_YOUNG_SECONDS = 60  # a folder without a lock this young may be about to get one
_DYING_SECONDS = 5
_SPARE_BYTES = 128 << 20  # an empty cluster and its first log files

# A copy that is thrown away needs neither durability nor housekeeping; it is loaded, indexed, read once.
_SETTINGS: Mapping[str, str] = {
    **FAST,
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
    "max_wal_size": "1GB",
    "shared_buffers": "128MB",
    "maintenance_work_mem": "256MB",
    "max_locks_per_transaction": "256",
    "max_connections": "50",
    "jit": "off",
    # The log tells the SQLSTATE of what failed, which pg_restore does not. No statement, whose text may be anything.
    "log_line_prefix": "%e ",
    "log_min_messages": "error",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}
# A copy's own event triggers would write into it (log-ins, from 17 on) while it is compared.
_QUIET_FROM, _QUIET = 17, {"event_triggers": "off"}


@dataclass(frozen=True, slots=True)
class Scratch:
    """A place to restore into. `name` is free there."""

    dsn: Dsn
    name: str
    ephemeral: bool
    log: Path | None = None  # of the server, if it is ours: each line begins with an SQLSTATE
    afterwards: ExitStack = field(default_factory=ExitStack)  # when the database is gone, before others come


@contextmanager
def ephemeral(
    installation: Installation, folder: Path, *, superuser: str, name: str, settings: Mapping[str, str]
) -> Iterator[Scratch]:
    """A server in a new folder below `folder`, for this block alone. Raises PostgresError."""
    sweep(folder)
    wanted = {**_SETTINGS, **(_QUIET if installation.major >= _QUIET_FROM else {}), **settings}
    try:
        home = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=folder))
    except OSError as error:
        raise PostgresError(
            f"a scratch server cannot be made below {folder}",
            detail=error.strerror or str(error),
            hint="Name a folder that backupd may write to: scratch_folder in [defaults.verify].",
        ) from error
    try:
        with ThrowawayServer(installation, home, settings=wanted, superuser=superuser) as server:
            dsn = Dsn(server.dsn())
            if name == dsn.database:  # a new server has one of that name
                dsn = dsn.replace(dbname="template1")
                database.drop_database(target.inspect(dsn, avoid=name), name)
            yield Scratch(dsn, name, ephemeral=True, log=server.log_file)
    finally:
        _remove(home)  # as a rule it is gone


def room(folder: Path, needed: int) -> str | None:
    """Why there is not room enough for a cluster with a database of `needed` bytes; None if there is."""
    wanted = needed + needed // 5 + min(needed, 1 << 30) + _SPARE_BYTES
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"{folder}: {error.strerror}"
    if free >= wanted:
        return None
    return (
        f"{folder} has {times.human_bytes(free)} free, and a copy of {times.human_bytes(needed)} needs"
        f" {times.human_bytes(wanted)}"
    )


def sweep(folder: Path) -> None:
    """Remove the scratch servers that killed runs left below `folder`."""
    account.sweep()
    for path in folder.glob(f"{_FOLDER}*"):
        with suppress(OSError):  # another run removes it, or it is not ours
            if path.lstat().st_uid == os.geteuid() and not path.is_symlink():
                _sweep_one(path)


def _sweep_one(path: Path) -> None:
    try:
        lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        if time.time() - path.stat().st_mtime > _YOUNG_SECONDS:
            _remove(path)
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        stop_stale(path)
        _remove(path)
    except BlockingIOError:
        return  # in use
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    """Also what an initdb that is just dying writes there meanwhile."""

    def removed() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    happens(removed, _DYING_SECONDS)


# ---- on a server that is named


@contextmanager
def on_server(dsn: Dsn, *, repository: str, now: datetime) -> Iterator[Scratch]:
    """A name for a database on this server, which is dropped after the block if it came to be. Leftovers of killed
    runs go first. Raises PostgresError."""
    server = target.inspect(dsn)
    if server.superuser and server.major >= _QUIET_FROM:
        dsn = dsn.with_options(**_QUIET)
    name = scratch_name(repository, now)
    with _alone(server), _held(server, name) as held:
        _drop_leftovers(server, repository)
        assert held  # the name is new
        place = Scratch(dsn, name, ephemeral=False)
        with place.afterwards:
            try:
                yield place
            finally:
                database.drop_database(server, name)


def scratch_name(repository: str, now: datetime) -> str:
    """`backupd_scratch_20261122T061403Z_5f3a9c_1b2c3d4e5f`: when, chance, and what shows whose it is."""
    unique = f"{times.compact(now)}_{secrets.token_hex(3)}"
    return f"{PREFIX}{unique}_{_tag(repository, unique)}"


def is_ours(name: str, repository: str) -> bool:
    """Whether a backupd of this repository gave a database its name."""
    match = _NAME.fullmatch(name)
    return match is not None and hmac.compare_digest(match[2], _tag(repository, match[1]))


def _tag(repository: str, unique: str) -> str:
    return hmac.new(repository.encode(), unique.encode(), hashlib.sha256).hexdigest()[:10]


def _drop_leftovers(server: target.Server, repository: str) -> None:
    """Drop the scratch databases of runs that are dead."""
    for name in sorted(server.databases):
        if is_ours(name, repository):
            with _held(server, name) as dead:
                if dead:
                    database.drop_database(server, name)


@contextmanager
def _alone(server: target.Server) -> Iterator[None]:
    """One test restore at a time on a server: they share its roles, which one may drop while another needs them. Waits
    for the one that is there."""
    with closing(connect(server.dsn)) as connection:
        with explained("the scratch server could not be claimed"):
            connection.execute("select pg_advisory_lock(hashtextextended('backupd verifies here', 0))")
        yield


@contextmanager
def _held(server: target.Server, name: str) -> Iterator[bool]:
    """Hold a scratch database by a lock that ends with our session; False if a living run holds it."""
    with closing(connect(server.dsn)) as connection:
        with explained(f"the scratch database {name} could not be claimed"):
            row = connection.execute(
                "select pg_try_advisory_lock(hashtextextended(%s, 0))", [f"backupd verifies in {name}"]
            ).fetchone()
        yield row is not None and bool(row[0])
