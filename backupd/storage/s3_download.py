"""One object from S3 as a stream of bytes that survives broken connections, and never splices two objects."""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError
from urllib3.exceptions import HTTPError

from backupd.errors import StorageError
from backupd.storage.s3_client import Connection
from backupd.storage.s3_errors import NOT_S3, PRECONDITION, error_code, http_status

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3.type_defs import GetObjectRequestTypeDef

_READ_SIZE = 256 << 10
# What reading a body raises when the connection is the problem.
_BROKEN = (HTTPClientError, HTTPError, IncompleteReadError, OSError)


@dataclass(frozen=True, slots=True)
class _Source:
    """Which object the first answer came from: later ones must be of the same."""

    size: int  # bytes, of the whole object
    etag: str


def download(
    connection: Connection, key: str, name: str, offset: int, length: int | None
) -> Generator[bytes, None, None]:
    """Yield the object's bytes as storage.base.Storage.open promises.

    A read that breaks goes on where it broke, after a pause; attempts are counted since the last byte.
    """
    source: _Source | None = None
    end = None if length is None else offset + length
    failures = 0
    while True:
        try:
            body, source = _request(connection, key, name, offset, end, source)
        except _EmptyRangeError:
            return
        end = source.size if end is None else min(end, source.size)
        try:
            while offset < end:
                data = body.read(min(_READ_SIZE, end - offset))
                if not data:
                    raise IncompleteReadError(actual_bytes=offset, expected_bytes=end)
                offset += len(data)
                failures = 0
                yield data
        except _BROKEN as error:
            failures += 1
            if failures >= connection.attempts:
                raise StorageError(
                    f"Could not read {key} in {connection.url} to its end",
                    detail=f"{offset} of {end} bytes came, then the connection broke {failures} times",
                    hint="The store, or a proxy before it, cuts downloads short; try later.",
                ) from error
        else:
            return
        finally:
            body.close()
        connection.pause(failures)


class _EmptyRangeError(Exception):
    """The range begins where the object ends, which HTTP cannot express."""


def _request(
    connection: Connection, key: str, name: str, offset: int, end: int | None, source: _Source | None
) -> tuple[StreamingBody, _Source]:
    """Ask for the bytes from `offset`, to `end` if it is known, of `source` if it is known."""
    request: GetObjectRequestTypeDef = {"Bucket": connection.bucket, "Key": name}
    if end == offset and source is None:
        end += 1  # an empty range cannot be asked for, but its object must be there
    if offset or end is not None:
        request["Range"] = f"bytes={offset}-" if end is None else f"bytes={offset}-{end - 1}"
    if source is not None and source.etag:
        request["IfMatch"] = source.etag
    with connection.explained("read", key):
        try:
            answer = connection.client.get_object(**request)
        except ClientError as error:
            if source is not None and _is_gone(error):
                raise _replaced(connection, key) from error
            if source is None and http_status(error) == 416:
                head = connection.head(name)
                raise _behind(connection, key, offset, head["ContentLength"]) from error
            raise
    body, size, start = answer["Body"], answer.get("ContentLength", -1), 0
    if whole := re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.get("ContentRange", "")):
        start, size = int(whole[1]), int(whole[2])
    found = _Source(size, answer.get("ETag", ""))
    if size < 0:
        body.close()
        raise StorageError(f"Could not read {key} in {connection.url}", detail="the answer has no length", hint=NOT_S3)
    if start != offset or (source is not None and found != source):
        body.close()
        if source is not None and found != source:
            raise _replaced(connection, key)
        raise StorageError(
            f"Could not read {key} in {connection.url} from byte {offset}",
            detail=f"the store answered with bytes from {start}",
            hint="The store, or a proxy before it, does not support range requests.",
        )
    return body, found


def _is_gone(error: ClientError) -> bool:
    """Whether the object we were reading is not the one that is there now, if any."""
    return error_code(error) in {*PRECONDITION, "NoSuchKey"} or http_status(error) == 416


def _behind(connection: Connection, key: str, offset: int, size: int) -> Exception:
    if offset == size:
        return _EmptyRangeError()
    return StorageError(f"{key} in {connection.url} has {size} bytes, none at {offset}")


def _replaced(connection: Connection, key: str) -> StorageError:
    return StorageError(
        f"{key} in {connection.url} was replaced or deleted while it was read",
        hint="Run it again, and look for what else writes to this repository.",
    )
