"""A storage in memory, for unit tests: the contract without a disk or a network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from datetime import UTC, datetime
from itertools import count

from backupd.errors import ObjectExistsError, ObjectMissingError, StorageError
from backupd.storage.base import Buffer, ObjectInfo, Upload, check_key, check_prefix


class MemoryStorage:
    """`now` dates the objects, so that tests can age them."""

    url = "memory:"

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._objects: dict[str, tuple[bytes, datetime]] = {}
        self._uploads: dict[str, Upload] = {}
        self._tokens = count(1)
        self._lock = threading.Lock()

    def put(self, key: str, chunks: Iterable[Buffer], *, create_only: bool = False) -> int:
        upload = self.begin(key)
        try:
            data = b"".join(bytes(chunk) for chunk in chunks)
            with self._lock:
                if create_only and key in self._objects:
                    raise ObjectExistsError(f"{key} already exists in {self.url}")
                self._objects[key] = (data, self._now())
        finally:
            self.abort(upload)
        return len(data)

    def begin(self, key: str, started: datetime | None = None) -> Upload:
        """An unfinished write, as a process that died leaves one."""
        upload = Upload(check_key(key), started or self._now(), str(next(self._tokens)))
        with self._lock:
            self._uploads[upload.token] = upload
        return upload

    def open(self, key: str, *, offset: int = 0, length: int | None = None) -> Generator[bytes, None, None]:
        data, _ = self._get(key)
        if offset > len(data):
            raise StorageError(f"{key} in {self.url} has {len(data)} bytes, none at {offset}")
        end = len(data) if length is None else min(len(data), offset + length)
        for start in range(offset, end, 64 << 10):
            yield data[start : min(end, start + (64 << 10))]

    def read(self, key: str, *, limit: int = 64 << 20) -> bytes:
        data, _ = self._get(key)
        if len(data) > limit:
            raise StorageError(f"{key} in {self.url} is larger than {limit} bytes", detail=f"{len(data)} bytes")
        return data

    def stat(self, key: str) -> ObjectInfo:
        data, modified = self._get(key)
        return ObjectInfo(key, len(data), modified)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        with self._lock:
            found = [ObjectInfo(key, len(data), at) for key, (data, at) in self._objects.items()]
        for info in sorted(found, key=lambda info: info.key):
            if info.key.startswith(prefix) and info.key > start_after:
                yield info

    def list_folders(self, prefix: str) -> Iterator[str]:
        rests = [info.key.removeprefix(prefix) for info in self.list(prefix)]
        yield from dict.fromkeys(rest.split("/")[0] for rest in rests if "/" in rest)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with self._lock:
                self._objects.pop(check_key(key), None)

    def unfinished(self, prefix: str) -> Iterator[Upload]:
        check_prefix(prefix)
        with self._lock:
            found = list(self._uploads.values())
        yield from (upload for upload in found if upload.key.startswith(prefix))

    def abort(self, upload: Upload) -> None:
        with self._lock:
            self._uploads.pop(upload.token, None)

    def close(self) -> None:
        """Nothing to release; the objects stay."""

    def _get(self, key: str) -> tuple[bytes, datetime]:
        with self._lock:
            found = self._objects.get(check_key(key))
        if found is None:
            raise ObjectMissingError(f"There is no {key} in {self.url}")
        return found
