"""One object to S3: a single request if it is small, else parts uploaded while the next one fills.

Part sizes grow, so that memory is flat for the first gigabytes and the largest object S3 allows still fits.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from backupd.errors import ObjectExistsError, StorageError
from backupd.storage.base import Buffer
from backupd.storage.s3_client import Connection
from backupd.storage.s3_errors import MISSING_KEY, PRECONDITION, error_code, http_status, was_retried

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import (
        CompletedPartTypeDef,
        CompleteMultipartUploadRequestTypeDef,
        CreateMultipartUploadRequestTypeDef,
        PutObjectRequestTypeDef,
        UploadPartRequestTypeDef,
    )

MIB = 1 << 20
FIRST_PART = 8 * MIB
MAX_PARTS = 10_000  # S3's limit
_FLAT_PARTS = 1_000
_GROWTH = 0.00068  # per part behind the flat ones; 10,000 parts then hold 5.1 TiB, the last 3.6 GiB
_TOGETHER = 3  # parts of one object on their way, while they have the first one's size; fewer when they are larger
_CONFLICTS = 5  # how often S3 may answer that another conditional write is under way


def part_size(number: int) -> int:
    """Bytes of part `number`, counted from 1."""
    return math.ceil(8 * math.exp(_GROWTH * max(0, number - _FLAT_PARTS))) * MIB


def cut(chunks: Iterable[Buffer]) -> Iterator[bytearray]:
    """The chunks as parts: each full but the last, copied once. No chunks give one empty part."""
    number, size, part = 1, FIRST_PART, bytearray()
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        while len(part) + len(view) >= size:
            room = size - len(part)
            part += view[:room]
            view = view[room:]
            yield part
            number, size, part = number + 1, part_size(number + 1), bytearray()
        part += view
        view.release()  # the caller may resize its buffer
    if part or number == 1:
        yield part


class ObjectWriter:
    """Writes of one object; `conditional` tells whether the store knows If-None-Match."""

    def __init__(self, connection: Connection, key: str, name: str, *, create_only: bool, conditional: bool) -> None:
        self._connection = connection
        self._key = key  # as our callers know it
        self._name = name  # in the bucket
        self._create_only = create_only
        self.conditional = conditional
        self._pending: set[Future[CompletedPartTypeDef]] = set()
        self._sent: list[CompletedPartTypeDef] = []
        self._count = 0  # parts
        self._size = 0  # bytes

    def run(self, chunks: Iterable[Buffer]) -> int:
        """Store the chunks and return their size in bytes; after any error nothing of it is left in the store."""
        if self._create_only:
            # Before hours of dumping, and for stores that ignore the condition at the end.
            with self._connection.explained("write", self._key):
                self._refuse_taken()
        parts = cut(chunks)
        first = next(parts)
        if len(first) < FIRST_PART:
            self._put(first)
            return len(first)
        upload_id = self._begin()
        try:
            self._upload(upload_id, first)
            del first  # or it stays in memory
            for part in parts:
                self._upload(upload_id, part)
                del part
            self._complete(upload_id)
        except BaseException as error:
            self._abort(upload_id, error)
            raise
        return self._size

    # In one request

    def _put(self, body: bytearray) -> None:
        request: PutObjectRequestTypeDef = {
            "Bucket": self._connection.bucket,
            "Key": self._name,
            "Body": body,  # type: ignore[typeddict-item]  # botocore takes it as it is
        }
        settings = self._connection.settings
        if settings.storage_class is not None:
            request["StorageClass"] = settings.storage_class  # type: ignore[typeddict-item]
        if settings.sends_checksums:
            request["ChecksumCRC32"] = _crc32(body)
        if self._create_only and self.conditional:
            request["IfNoneMatch"] = "*"
        with self._connection.explained("write", self._key):
            for conflicts in range(_CONFLICTS):
                try:
                    self._connection.client.put_object(**request)
                except ClientError as error:
                    if error_code(error) == "ConditionalRequestConflict" and conflicts + 1 < _CONFLICTS:
                        self._connection.pause(conflicts)
                    elif self._refuses_condition(error):
                        request.pop("IfNoneMatch")
                    elif error_code(error) in PRECONDITION and was_retried(error) and self._holds(body):
                        return
                    else:
                        raise
                else:
                    return

    def _holds(self, body: bytearray) -> bool:
        """Whether the object that is in the way is ours: an earlier attempt stored it and its answer was lost."""
        answer = self._connection.client.get_object(Bucket=self._connection.bucket, Key=self._name)
        return answer["ContentLength"] == len(body) and answer["Body"].read() == body

    # In parts

    def _begin(self) -> str:
        request: CreateMultipartUploadRequestTypeDef = {"Bucket": self._connection.bucket, "Key": self._name}
        settings = self._connection.settings
        if settings.storage_class is not None:
            request["StorageClass"] = settings.storage_class  # type: ignore[typeddict-item]
        if settings.sends_checksums:
            request["ChecksumAlgorithm"] = "CRC32"
        with self._connection.explained("write", self._key):
            return self._connection.client.create_multipart_upload(**request)["UploadId"]

    def _upload(self, upload_id: str, body: bytearray) -> None:
        """Hand a part to the threads, as soon as few enough bytes are on their way."""
        if self._count == MAX_PARTS:
            raise StorageError(f"{self._key} is larger than {self._size} bytes, the most S3 takes")
        self._settle(min(_TOGETHER, max(1, _TOGETHER * FIRST_PART // len(body))) - 1)
        self._count += 1
        self._size += len(body)
        self._pending.add(self._connection.threads.submit(self._send, upload_id, self._count, body))

    def _settle(self, unfinished: int) -> None:
        """Wait until at most so many parts are on their way; raises what went wrong with one."""
        while len(self._pending) > unfinished:
            done, self._pending = wait(self._pending, return_when=FIRST_COMPLETED)
            self._sent += [part.result() for part in done]

    def _send(self, upload_id: str, number: int, body: bytearray) -> CompletedPartTypeDef:
        request: UploadPartRequestTypeDef = {
            "Bucket": self._connection.bucket,
            "Key": self._name,
            "UploadId": upload_id,
            "PartNumber": number,
            "Body": body,  # type: ignore[typeddict-item]
        }
        sent: CompletedPartTypeDef = {"PartNumber": number}
        if self._connection.settings.sends_checksums:
            sent["ChecksumCRC32"] = request["ChecksumCRC32"] = _crc32(body)
        with self._connection.explained("write", self._key):
            sent["ETag"] = self._connection.client.upload_part(**request)["ETag"]
        return sent

    def _complete(self, upload_id: str) -> None:
        self._settle(0)
        request: CompleteMultipartUploadRequestTypeDef = {
            "Bucket": self._connection.bucket,
            "Key": self._name,
            "UploadId": upload_id,
            "MultipartUpload": {"Parts": sorted(self._sent, key=lambda part: part.get("PartNumber", 0))},
        }
        if self._create_only and self.conditional:
            request["IfNoneMatch"] = "*"
        with self._connection.explained("write", self._key):
            try:
                self._complete_request(request)
            except ClientError as error:
                if not (was_retried(error) and http_status(error) in {404, 412} and self._is_complete()):
                    raise

    def _complete_request(self, request: CompleteMultipartUploadRequestTypeDef) -> None:
        try:
            self._connection.client.complete_multipart_upload(**request)
        except ClientError as error:
            if not self._refuses_condition(error):
                raise
            request.pop("IfNoneMatch")
            self._connection.client.complete_multipart_upload(**request)

    def _is_complete(self) -> bool:
        """Whether the object is there as we sent it: an earlier attempt completed it and its answer was lost."""
        head = self._head()
        return head == (self._size, f"-{self._count}")

    def _abort(self, upload_id: str, error: BaseException) -> None:
        """Give up the parts: once none is under way any more, or the store would keep it."""
        for part in self._pending:
            part.cancel()
        wait(self._pending)
        try:
            with self._connection.explained("abort the upload of", self._key):
                self._connection.client.abort_multipart_upload(
                    Bucket=self._connection.bucket, Key=self._name, UploadId=upload_id
                )
        except StorageError as trouble:
            if "NoSuchUpload" not in trouble.detail:
                error.add_note(str(trouble))

    # Conditions and errors

    def _refuses_condition(self, error: ClientError) -> bool:
        """Whether to repeat without If-None-Match: a look-alike does not know it, and there is no such object."""
        if not (self._create_only and self.conditional and http_status(error) in {400, 501}):
            return False
        self._refuse_taken()
        self.conditional = False
        return True

    def _refuse_taken(self) -> None:
        if self._head() is not None:
            raise ObjectExistsError(
                f"{self._key} already exists in {self._connection.url}", hint="Nothing was replaced."
            )

    def _head(self) -> tuple[int, str] | None:
        """Size in bytes and the ETag from its dash on (the number of parts), None if there is no such object."""
        try:
            answer = self._connection.head(self._name)
        except ClientError as error:
            if error_code(error) in MISSING_KEY:
                return None
            raise
        _, dash, parts = answer["ETag"].strip('"').partition("-")
        return answer["ContentLength"], dash + parts


def _crc32(body: bytearray) -> str:
    """As S3 wants it. Sent as a header, it spares us the trailers that look-alikes choke on."""
    return base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()
