"""A local folder as storage: an object is a file that appears whole, after it is safe on the disk.

A file is written without a name (O_TMPFILE) and linked into place when complete, so that even SIGKILL leaves
nothing behind; where the file system cannot do that, under a `.partial-…` name that `unfinished` finds.
Every path is walked from the root by file descriptor without following symbolic links.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from backupd.errors import ObjectExistsError, ObjectMissingError, StorageError
from backupd.storage.base import PARTIAL, Buffer, ObjectInfo, Upload, check_key, check_prefix
from backupd.storage.local_files import (
    FILE_MODE,
    HINTS,
    NoAnonymousFiles,
    begin_writing,
    is_link,
    link_anonymous,
    open_anonymous,
    rename_to_new,
    write_all,
)

_T = TypeVar("_T")

_FOLDER_MODE = 0o700
_READ_SIZE = 256 << 10
_WRITE_BEHIND = 8 << 20  # bytes after which the disk begins to write: at the end little is left to wait for
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = (errno.ENOENT, errno.ENOTDIR)  # the key, or a folder of it, is not there
# How often a folder may vanish, because another process deleted its last object, between two of our steps.
_FOLDER_TRIES = 10


class LocalStorage:
    """Objects below `root`, which is created (0700) by the first write."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @property
    def url(self) -> str:
        return self._root.as_uri()

    def put(self, key: str, chunks: Iterable[Buffer], *, create_only: bool = False) -> int:
        *folders, name = check_key(key).split("/")
        with self._explained("write", key):
            # Looked at before hours of dumping, and enforced by `link` at the end.
            if create_only and self._exists(folders, name):
                raise self._taken(key)
            file, partial = self._create(folders, name)
        try:
            size = begun = 0
            for chunk in chunks:
                with self._explained("write", key):
                    size += write_all(file, chunk)
                    if size - begun >= _WRITE_BEHIND:
                        begin_writing(file, begun, size)
                        begun = size
            with self._explained("write", key):
                os.fsync(file)
                self._publish(file, partial, folders, name, create_only=create_only)
        except BaseException as error:
            self._undo(folders, partial, error)
            raise
        finally:
            os.close(file)
        return size

    def open(self, key: str, *, offset: int = 0, length: int | None = None) -> Generator[bytes, None, None]:
        file, info = self._open(key)
        try:
            if offset > info.size:
                raise StorageError(f"{key} in {self.url} has {info.size} bytes, none at {offset}")
            end = info.size if length is None else min(info.size, offset + length)
            while offset < end:
                with self._explained("read", key):
                    data = os.pread(file, min(_READ_SIZE, end - offset), offset)
                if not data:
                    raise StorageError(f"{key} in {self.url} became shorter while it was read")
                offset += len(data)
                yield data
        finally:
            os.close(file)

    def read(self, key: str, *, limit: int = 64 << 20) -> bytes:
        data = b"".join(self.open(key, length=limit + 1))
        if len(data) > limit:
            raise StorageError(f"{key} in {self.url} is larger than {limit} bytes")
        return data

    def stat(self, key: str) -> ObjectInfo:
        file, info = self._open(key)
        os.close(file)
        return info

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        folder = check_prefix(prefix).rpartition("/")[0]
        for key, status in self._walk(folder, prefix, start_after):
            if key.startswith(prefix) and key > start_after and not _is_partial(key):
                yield _info(key, status)

    def list_folders(self, prefix: str) -> Iterator[str]:
        above = check_prefix(prefix).removesuffix("/")
        for name, status in self._entries(above):
            # A folder without an object in it is what a crash left, not a folder of the storage.
            if status is None and next(self.list(f"{prefix}{name}/"), None) is not None:
                yield name

    def delete(self, keys: Iterable[str]) -> None:
        touched: dict[tuple[str, ...], None] = {}
        for key in keys:
            *folders, name = check_key(key).split("/")
            with self._explained("delete", key):
                self._remove(folders, name)
            touched[tuple(folders)] = None
        with self._explained("delete objects of", ""):
            for parts in touched:
                self._tidy(parts)

    def unfinished(self, prefix: str) -> Iterator[Upload]:
        for path, status in self._walk(check_prefix(prefix).rpartition("/")[0], prefix, ""):
            folder, _, name = path.rpartition("/")
            if _is_partial(path):
                # .partial-<token>-<name>; its last write stands for its start, which makes it younger, never older.
                key = f"{folder}/" * bool(folder) + name.removeprefix(PARTIAL).partition("-")[2]
                if key.startswith(prefix):
                    yield Upload(key, _modified(status), path)

    def abort(self, upload: Upload) -> None:
        *folders, name = upload.token.split("/")
        if not name.startswith(PARTIAL):
            raise StorageError(f"{upload.token!r} is not an unfinished write in {self.url}")
        with self._explained("remove", upload.token):
            self._remove(folders, name)
            self._tidy(tuple(folders))

    def close(self) -> None:
        """Nothing is held between calls."""

    # Folders, by descriptor

    @contextmanager
    def _folder(self, parts: Sequence[str], *, make: bool = False) -> Iterator[int]:
        """The folder's descriptor; with `make`, folders that are missing are made and safe on the disk."""
        if make and not self._root.is_dir():
            self._root.mkdir(_FOLDER_MODE, parents=True, exist_ok=True)
            _sync_folder(self._root.parent)
        folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # the root itself may be a link
        try:
            for part in parts:
                if part in {".", ".."}:
                    raise StorageError(f"{'/'.join(parts)!r} leads out of {self.url}")
                try:
                    below = os.open(part, _FOLDER_FLAGS, dir_fd=folder)
                except OSError as error:
                    if error.errno == errno.ENOTDIR and is_link(part, folder):
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), part) from error
                    if error.errno != errno.ENOENT or not make:
                        raise
                    with suppress(FileExistsError):
                        os.mkdir(part, _FOLDER_MODE, dir_fd=folder)
                    os.fsync(folder)
                    below = os.open(part, _FOLDER_FLAGS, dir_fd=folder)
                os.close(folder)
                folder = below
            yield folder
        finally:
            os.close(folder)

    def _entries(self, folder: str) -> Iterator[tuple[str, os.stat_result | None]]:
        """Names in a folder with the status of a file, None for a folder, in the order of the keys they make."""
        try:
            with self._explained("list", folder), self._folder(folder.split("/") if folder else ()) as descriptor:
                found = []
                with os.scandir(descriptor) as entries:
                    for entry in entries:
                        with suppress(FileNotFoundError):  # deleted meanwhile
                            found.append((entry.name, entry.stat(follow_symlinks=False)))
        except ObjectMissingError:
            return
        for name, status in sorted(found, key=lambda entry: entry[0] + "/" * stat.S_ISDIR(entry[1].st_mode)):
            if stat.S_ISLNK(status.st_mode):
                raise StorageError(f"{folder}/{name} in {self.url} is a symbolic link", hint=HINTS[errno.ELOOP])
            if stat.S_ISDIR(status.st_mode) and not (name == "lost+found" and not folder):
                yield name, None
            elif stat.S_ISREG(status.st_mode):
                yield name, status

    def _walk(self, folder: str, prefix: str, start_after: str) -> Iterator[tuple[str, os.stat_result]]:
        """Every file below, partial ones too; folders that hold nothing of interest are not entered."""
        for name, status in self._entries(folder):
            path = f"{folder}/{name}" if folder else name
            if status is not None:
                yield path, status
            elif (f"{path}/".startswith(prefix) or prefix.startswith(f"{path}/")) and (
                f"{path}/" > start_after or start_after.startswith(f"{path}/")
            ):
                yield from self._walk(path, prefix, start_after)

    # Files

    def _create(self, folders: Sequence[str], name: str) -> tuple[int, str | None]:
        """A file to write to, and its name if it had to have one."""
        partial = f"{PARTIAL}{secrets.token_hex(8)}-{name}"

        def create() -> tuple[int, str | None]:
            with self._folder(folders, make=True) as folder:
                with suppress(NoAnonymousFiles):
                    return open_anonymous(folder), None
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                return os.open(partial, flags, FILE_MODE, dir_fd=folder), partial

        return _while_folders_vanish(create)

    def _publish(self, file: int, partial: str | None, folders: Sequence[str], name: str, *, create_only: bool) -> None:
        """Give the complete file its name, and make that durable."""

        def publish() -> None:
            with self._folder(folders, make=True) as folder:
                if partial is None:
                    link_anonymous(file, folder, name, replace=not create_only)
                elif create_only:
                    rename_to_new(partial, folder, name)
                else:
                    os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
                os.fsync(folder)

        _while_folders_vanish(publish)

    def _undo(self, folders: Sequence[str], partial: str | None, error: BaseException) -> None:
        """Remove what a failed write made; trouble with that is only noted on the error that matters."""
        try:
            if partial is not None:
                self._remove(folders, partial)
            self._tidy(tuple(folders))
        except OSError as trouble:
            error.add_note(f"cleaning up after it failed, too: {trouble}")

    def _open(self, key: str) -> tuple[int, ObjectInfo]:
        *folders, name = check_key(key).split("/")
        with self._explained("read", key):
            with self._folder(folders) as folder:
                # O_NONBLOCK: opening a FIFO someone put there must not wait for its writer.
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            os.close(file)
            raise ObjectMissingError(f"There is no {key} in {self.url}", detail="something else has its name")
        return file, _info(key, status)

    def _exists(self, folders: Sequence[str], name: str) -> bool:
        try:
            with self._folder(folders) as folder:
                os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _remove(self, folders: Sequence[str], name: str) -> None:
        try:
            with self._folder(folders) as folder:
                os.unlink(name, dir_fd=folder)
        except OSError as error:
            if error.errno not in (*_GONE, errno.EISDIR):  # a folder has that name, so no object has
                raise

    def _tidy(self, parts: tuple[str, ...]) -> None:
        """Make deletions in a folder durable, and remove it and those above it when they are empty."""
        while True:
            try:
                with self._folder(parts) as folder:
                    os.fsync(folder)
                    with os.scandir(folder) as entries:
                        if not parts or next(entries, None) is not None:
                            return
                with self._folder(parts[:-1]) as above:
                    os.rmdir(parts[-1], dir_fd=above)
            except OSError as error:
                if error.errno == errno.ENOTEMPTY:  # someone writes there again
                    return
                if error.errno not in _GONE:
                    raise
                if not parts:
                    return
            parts = parts[:-1]

    # Errors

    def _taken(self, key: str) -> ObjectExistsError:
        return ObjectExistsError(f"{key} already exists in {self.url}", hint="Nothing was replaced.")

    @contextmanager
    def _explained(self, action: str, key: str) -> Iterator[None]:
        """Turn the system's errors into ours."""
        try:
            yield
        except FileExistsError as error:
            raise self._taken(key) from error
        except OSError as error:
            if error.errno in _GONE and action in {"read", "list"}:
                raise ObjectMissingError(f"There is no {key} in {self.url}") from error
            where = f"{key} in {self.url}" if key else self.url
            detail = os.strerror(error.errno) if error.errno else str(error)
            raise StorageError(
                f"Could not {action} {where}", detail=detail, hint=HINTS.get(error.errno or 0, "")
            ) from error


def _while_folders_vanish(step: Callable[[], _T]) -> _T:
    for _ in range(_FOLDER_TRIES):
        with suppress(FileNotFoundError):
            return step()
    return step()


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _is_partial(path: str) -> bool:
    return path.rpartition("/")[2].startswith(PARTIAL)


def _modified(status: os.stat_result) -> datetime:
    return datetime.fromtimestamp(status.st_mtime, UTC)


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, _modified(status))
