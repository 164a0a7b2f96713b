"""What backupd asks of a storage: small enough that a local directory and any S3 look-alike can keep it.

Keys are `/`-separated, relative, without empty, `.` or `..` parts; `check_key` is the rule every storage applies.
An object appears whole or not at all. A key that is also a folder of other keys is for object stores only.
Retries, back-off and timeouts live below this protocol and nowhere else. The contract is spelled out by
tests/integration/test_storage_contract.py, which every implementation passes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias

from backupd.errors import StorageError

Buffer: TypeAlias = bytes | bytearray | memoryview

PARTIAL = ".partial-"  # how the name of an unfinished file begins, so no key may have such a part


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object, as a listing shows it."""

    key: str
    size: int  # bytes
    modified: datetime  # aware, UTC


@dataclass(frozen=True, slots=True)
class Upload:
    """An unfinished write that a dead process may have left: a multipart upload, a partial file."""

    key: str
    started: datetime  # aware, UTC
    token: str  # what `abort` needs; opaque


def check_key(key: str) -> str:
    """The key itself, if every storage can hold it; StorageError otherwise."""
    parts = key.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        problem = "it must be relative, without empty, `.` or `..` parts"
    elif any(part.startswith(PARTIAL) for part in parts):
        problem = f"names that begin with {PARTIAL!r} are kept for unfinished writes"
    elif any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or 0xD800 <= ord(char) < 0xE000 for char in key):
        problem = "it has control characters or is not valid Unicode"
    elif "\\" in key:
        problem = "some look-alikes of S3 take a backslash for a slash"
    elif len(key.encode()) > 900 or any(len(part.encode()) > 255 for part in parts):
        problem = "it is longer than 900 bytes, or one of its parts is longer than 255"
    else:
        return key
    raise StorageError(f"{key!r} cannot be the key of an object", detail=problem)


def check_prefix(prefix: str) -> str:
    """The prefix itself, if a key could begin with it; StorageError otherwise. Look-alikes would tidy it up."""
    if any(part in {"", ".", ".."} for part in prefix.split("/")[:-1]):
        raise StorageError(f"{prefix!r} cannot begin a key", detail="it has empty, `.` or `..` parts")
    return prefix


class Storage(Protocol):
    """Raises StorageError (exit 5) for trouble, ObjectMissingError for a key that is not there."""

    @property
    def url(self) -> str:
        """Where it is, without secrets: for messages."""

    def put(self, key: str, chunks: Iterable[Buffer], *, create_only: bool = False) -> int:
        """Store the chunks, end to end, as one object and return its size in bytes.

        Chunks are read as they are needed, with a bound on what is held in memory, and may be buffers
        that the caller reuses after the next one was asked for. Whatever `chunks` raises aborts the
        write, leaves nothing behind and reaches the caller unchanged. With `create_only`, raises
        ObjectExistsError rather than replace an object.
        """

    def open(self, key: str, *, offset: int = 0, length: int | None = None) -> Generator[bytes, None, None]:
        """Yield the object's bytes from `offset`: `length` of them, or up to its end if that comes first.

        A dropped connection is resumed where it broke, and an object replaced meanwhile is an error, not a
        splice. Fewer bytes than the object holds, or an `offset` behind its end, is an error, never a short
        read. Nothing is asked of the storage before the first `next`. Close it (contextlib.closing) when
        you stop early: that releases the connection.
        """

    def read(self, key: str, *, limit: int = 64 << 20) -> bytes:
        """A small object whole; StorageError if it is larger than `limit` bytes."""

    def stat(self, key: str) -> ObjectInfo:
        """Size and time of one object."""

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix`, in the order of their keys (code points, as Python's strings)."""

    def list_folders(self, prefix: str) -> Iterator[str]:
        """The names of the folders directly below `prefix` (which ends in `/` or is empty), in the order of their keys.

        A look-alike may still name a folder whose last object was just deleted.
        """

    def delete(self, keys: Iterable[str]) -> None:
        """Delete these objects; one that is not there is no error."""

    def unfinished(self, prefix: str) -> Iterator[Upload]:
        """Writes below `prefix` that were begun and neither finished nor aborted, those of running backups too."""

    def abort(self, upload: Upload) -> None:
        """Remove an unfinished write; one that is gone is no error."""

    def close(self) -> None:
        """Release connections and threads."""
