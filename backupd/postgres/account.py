"""Who a throw-away server runs as: PostgreSQL refuses to run as root, so root hands it to another user.

That user often cannot reach what root can: a virtual environment below /root, a private temporary folder.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from backupd.errors import PostgresError
from backupd.postgres.tools import Installation

SHARED_PREFIX = "backupd-shared-"
_LOCK = "in-use"  # held by the process that made a shared folder; free means that process is dead
_COPY_LIMIT = 1 << 30  # bytes; a larger folder is not one installation but a whole prefix such as ~/.local


@dataclass(frozen=True, slots=True)
class Account:
    """An operating-system user to run a server as. `uid` is None when that is simply us."""

    name: str
    uid: int | None = None
    gid: int | None = None

    def own(self, path: Path) -> None:
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    def can_enter(self, folder: Path) -> bool:
        """Whether the permission bits let this user into the folder, from the root down."""
        if self.uid is None:
            return True
        real = folder.resolve()
        return all(self._may_pass(path.stat()) for path in (real, *real.parents))

    def can_run(self, installation: Installation) -> bool:
        """Whether a server of this installation starts for this user: tried, not guessed."""
        return all(self._answers(installation.program(name)) for name in ("postgres", "initdb"))

    def _may_pass(self, status: os.stat_result) -> bool:
        if status.st_uid == self.uid:
            return bool(status.st_mode & stat.S_IXUSR)
        return bool(status.st_mode & (stat.S_IXGRP if status.st_gid == self.gid else stat.S_IXOTH))

    def _answers(self, program: Path) -> bool:
        try:
            answer = subprocess.run(
                [program, "--version"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd="/",
                user=self.uid,
                group=self.gid,
                extra_groups=None if self.uid is None else [],
                check=False,
            )
        except PermissionError:
            return False
        return answer.returncode == 0


def server_account() -> Account:
    """Ourselves, or for root `postgres` if there is such a user, else `nobody`. PostgresError if neither exists."""
    if os.geteuid() != 0:
        return Account("")
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise PostgresError(
        "PostgreSQL does not run as root, and this machine has neither a user postgres nor a user nobody",
        hint="run backupd as an ordinary user, or create a user named postgres",
    )


def reachable(installation: Installation, account: Account) -> Installation:
    """The installation, or a copy of it that `account` can run; one copy per process, removed at its end.

    PostgresError if it is too large to copy or the copy cannot run either.
    """
    if account.can_run(installation):
        return installation
    known = _copies.get((installation.bin_dir, account.uid))
    if known is not None:
        return known
    root = installation.bin_dir.parent
    size = sum(path.lstat().st_size for path in root.rglob("*"))
    if size > _COPY_LIMIT:
        raise _unreachable(installation, account, f"{root} holds {size >> 20} MiB, too much to copy aside")
    for base in _temporary_folders(account):
        folder = shared_folder(base)
        copy = Installation(_copy(root, folder) / installation.bin_dir.name, installation.version, installation.wheel)
        if account.can_run(copy):
            _copies[installation.bin_dir, account.uid] = copy
            return copy
        discard(folder)  # a folder mounted noexec, for one
    raise _unreachable(installation, account, "a copy in a temporary folder cannot be run either")


def reachable_folder(account: Account, suits: Callable[[Path], bool] = lambda _: True) -> Path:
    """A new empty folder in a place that `account` can enter; `discard` removes it. `suits` is asked of folders with
    a name of the same length. PostgresError if there is none."""
    for base in _temporary_folders(account):
        if suits(base / f"{SHARED_PREFIX}12345678"):  # as tempfile adds to it
            return shared_folder(base)
    raise PostgresError(
        f"{f'the user {account.name}' if account.name else 'the user'} who runs the throw-away server can enter no"
        " temporary folder that suits",
        hint="set TMPDIR to a folder that other users may enter, such as /tmp",
    )


def shared_folder(base: Path) -> Path:
    """A new folder below `base` that others may enter, not list. It goes when this process ends, however it ends:
    what a killed process left is removed by the next one that asks for such a folder.
    """
    _sweep(base)
    hidden = Path(tempfile.mkdtemp(prefix=f".{SHARED_PREFIX}", dir=base))
    lock = os.open(hidden / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    hidden.chmod(0o711)
    folder = hidden.rename(base / hidden.name.removeprefix("."))  # seen by _sweep only now that it is locked
    _held[folder] = lock
    return folder


def sweep() -> None:
    """Remove the shared folders that killed processes left."""
    for base in {Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")}:  # noqa: S108 - they are only looked at
        _sweep(base)


def discard(folder: Path) -> None:
    """Remove a folder made by `shared_folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    lock = _held.pop(folder, None)
    if lock is not None:
        os.close(lock)


_copies: dict[tuple[Path, int | None], Installation] = {}
_held: dict[Path, int] = {}
_owner = os.getpid()


@atexit.register
def _discard_all() -> None:
    if os.getpid() == _owner:  # a forked child must not remove what its parent uses
        for folder in list(_held):
            discard(folder)


def _temporary_folders(account: Account) -> Iterator[Path]:
    seen = set()
    for name in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 - mkdtemp makes the names
        folder = Path(name)
        if folder not in seen and folder.is_dir() and os.access(folder, os.W_OK) and account.can_enter(folder):
            yield folder
        seen.add(folder)


def _sweep(base: Path) -> None:
    """Remove the shared folders of processes that were killed."""
    for folder in base.glob(f"{SHARED_PREFIX}*"):
        try:
            if folder.lstat().st_uid != os.geteuid():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue  # somebody removed it first, or is just making it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # in use
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _copy(root: Path, folder: Path) -> Path:
    """Copy an installation; the libraries of a wheel stay where its programs look for them ($ORIGIN/../../../)."""
    target = folder / "site" / root.parent.name / root.name
    shutil.copytree(root, target, symlinks=True)
    libraries = root.parent.with_name(f"{root.parent.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / "site" / libraries.name, symlinks=True)
    for path in (folder / "site", *(folder / "site").rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(0o755 if mode & stat.S_IXUSR else 0o644)
    return target


def _unreachable(installation: Installation, account: Account, why: str) -> PostgresError:
    return PostgresError(
        f"the user {account.name}, who runs the throw-away server, cannot run PostgreSQL {installation}",
        detail=why,
        hint="install PostgreSQL's server package, or run backupd as an ordinary user",
    )
