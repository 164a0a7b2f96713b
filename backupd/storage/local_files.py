"""Steps on files in one folder, by descriptor: write without a name, name it in one step, say what went wrong."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from contextlib import suppress

from backupd.storage.base import PARTIAL, Buffer

FILE_MODE = 0o600
# What kernels and file systems answer that know no O_TMPFILE.
_NO_ANONYMOUS_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS)
# … and those without hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)

HINTS = {
    errno.ENOSPC: "Free space on this file system, or let `backupd prune` do it.",
    errno.EDQUOT: "The disk quota of this user is used up.",
    errno.EFBIG: "A limit on the size of files is set for this process (ulimit -f), or the file system has one.",
    errno.EACCES: "The user that runs backupd must own this folder, and may need to enter the ones above it.",
    errno.EPERM: "The user that runs backupd must own this folder, and may need to enter the ones above it.",
    errno.EROFS: "The file system is mounted read-only; under systemd, the unit needs ReadWritePaths= for it.",
    errno.ENOTDIR: "A file is where a folder should be.",
    errno.EISDIR: "A folder is where an object should be.",
    errno.ELOOP: "backupd does not follow symbolic links inside a repository; mount or bind-mount the folder instead.",
    errno.EIO: "The disk reports an input/output error; look at the kernel's log.",
    errno.EMFILE: "Too many open files; raise the limit (LimitNOFILE= under systemd).",
    errno.ENAMETOOLONG: "This file system allows shorter names only.",
}


class NoAnonymousFiles(Exception):  # noqa: N818 - an answer, not a failure
    """The file system, or the machine without /proc, cannot make a file without a name and name it later."""


def open_anonymous(folder: int) -> int:
    try:
        file = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, FILE_MODE, dir_fd=folder)
    except OSError as error:
        if error.errno in _NO_ANONYMOUS_FILES:
            raise NoAnonymousFiles from error
        raise
    if not os.path.lexists(f"/proc/self/fd/{file}"):
        os.close(file)
        raise NoAnonymousFiles
    return file


def link_anonymous(file: int, folder: int, name: str, *, replace: bool) -> None:
    source = f"/proc/self/fd/{file}"
    try:
        os.link(source, name, dst_dir_fd=folder, follow_symlinks=True)
    except FileExistsError:
        if not replace:
            raise
        # A link cannot replace, a rename can: both names exist for that moment only.
        partial = f"{PARTIAL}{secrets.token_hex(8)}-{name}"
        os.link(source, partial, dst_dir_fd=folder, follow_symlinks=True)
        try:
            os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            os.unlink(partial, dir_fd=folder)
            raise


def rename_to_new(partial: str, folder: int, name: str) -> None:
    """Rename, but never over an object: by a hard link, or under a lock where there are none."""
    try:
        os.link(partial, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    else:
        os.unlink(partial, dir_fd=folder)
        return
    fcntl.flock(folder, fcntl.LOCK_EX)
    with suppress(FileNotFoundError):
        os.stat(name, dir_fd=folder, follow_symlinks=False)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
    os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)


def begin_writing(file: int, start: int, end: int) -> None:
    """Have the kernel write these bytes to the disk now, without waiting for it, and forget what it has written: a
    backup needs no place in its cache, and the database does. Only advice, so a file system may refuse it."""
    with suppress(OSError):
        for begin in (max(0, 2 * start - end), start):  # what was begun the last time is written by now
            os.posix_fadvise(file, begin, end - start, os.POSIX_FADV_DONTNEED)


def write_all(file: int, chunk: Buffer) -> int:
    """Write a chunk without copying it; returns its size in bytes."""
    size = written = os.write(file, chunk)
    total = memoryview(chunk).nbytes
    while size < total:
        written = os.write(file, memoryview(chunk).cast("B")[size:])
        size += written
    return size


def is_link(name: str, folder: int) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
