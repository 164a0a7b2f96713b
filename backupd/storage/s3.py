"""S3 and its look-alikes as storage."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from backupd.errors import StorageError
from backupd.storage.base import Buffer, ObjectInfo, Upload, check_key, check_prefix
from backupd.storage.s3_client import Connection, S3Settings
from backupd.storage.s3_errors import HINTS, MISSING_KEY, NOT_S3, error_code, http_status
from backupd.storage.s3_upload import ObjectWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mypy_boto3_s3.type_defs import (
        ListMultipartUploadsRequestTypeDef,
        ListObjectsV2OutputTypeDef,
        ListObjectsV2RequestTypeDef,
    )

__all__ = ["S3Settings", "S3Storage"]

_PAGE = 1000  # keys per LIST or DELETE, S3's limit
# What look-alikes answer that lack the batch delete or want it signed in the way of ten years ago.
_NO_BATCH = frozenset({"MissingContentMD5", "InvalidDigest", "InvalidRequest", "MalformedXML", "MethodNotAllowed"})


class S3Storage:
    """Objects in `bucket`, below the folder `prefix` unless it is empty. Safe to share between threads.

    `attempts` bounds the tries of every request, the first one included, and of a read without progress.
    """

    def __init__(self, bucket: str, prefix: str = "", settings: S3Settings | None = None, *, attempts: int = 6) -> None:
        prefix = prefix.strip("/")
        self._prefix = f"{check_key(prefix)}/" if prefix else ""
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._connection = Connection(bucket, self.url, settings or S3Settings(), attempts)
        # AWS lists by key. Look-alikes on folders list `a/x` before `a-b/x`, and lose keys behind StartAfter.
        self._lists_by_key = self._connection.settings.endpoint_url is None
        self._conditional_writes = True  # until the store says otherwise
        self._batch_deletes = True

    def put(self, key: str, chunks: Iterable[Buffer], *, create_only: bool = False) -> int:
        writer = ObjectWriter(
            self._connection, key, self._name(key), create_only=create_only, conditional=self._conditional_writes
        )
        size = writer.run(chunks)
        self._conditional_writes = writer.conditional
        return size

    def open(self, key: str, *, offset: int = 0, length: int | None = None) -> Generator[bytes, None, None]:
        from backupd.storage.s3_download import download  # with urllib3, which takes 0.1 s to import

        yield from download(self._connection, key, self._name(key), offset, length)

    def read(self, key: str, *, limit: int = 64 << 20) -> bytes:
        data = b"".join(self.open(key, length=limit + 1))
        if len(data) > limit:
            raise StorageError(f"{key} in {self.url} is larger than {limit} bytes")
        return data

    def stat(self, key: str) -> ObjectInfo:
        name = self._name(key)
        with self._connection.explained("read", key):
            head = self._connection.head(name)
        if not {"LastModified", "ContentLength"} <= head.keys():
            raise StorageError(f"Could not read {key} in {self.url}", detail="the answer is not S3's", hint=NOT_S3)
        return ObjectInfo(key, head["ContentLength"], head["LastModified"])

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        found = self._list(prefix, start_after)
        yield from found if self._lists_by_key else sorted(found, key=lambda info: info.key)

    def list_folders(self, prefix: str) -> Iterator[str]:
        above = self._prefix + check_prefix(prefix)
        found = {
            folder.get("Prefix", "").removeprefix(above)
            for page in self._pages({"Bucket": self._connection.bucket, "Prefix": above, "Delimiter": "/"})
            for folder in page.get("CommonPrefixes", [])
        }
        for folder in sorted(found):
            if name := folder.rstrip("/"):
                yield name

    def delete(self, keys: Iterable[str]) -> None:
        names = (self._name(key) for key in keys)
        while batch := [*islice(names, _PAGE)]:
            if not (self._batch_deletes and self._delete_batch(batch)):
                for done in [self._connection.threads.submit(self._delete_one, name) for name in batch]:
                    done.result()

    def unfinished(self, prefix: str) -> Iterator[Upload]:
        request: ListMultipartUploadsRequestTypeDef = {"Bucket": self._connection.bucket}
        request["Prefix"] = self._prefix + check_prefix(prefix)
        seen: set[str] = set()
        while True:
            with self._connection.explained("list unfinished uploads below", prefix):
                page = self._connection.client.list_multipart_uploads(**request)
            fresh = [upload for upload in page.get("Uploads", []) if upload.get("UploadId") not in seen]
            for upload in fresh:
                seen.add(upload["UploadId"])
                if upload["Key"].startswith(self._prefix + prefix):
                    yield Upload(upload["Key"].removeprefix(self._prefix), upload["Initiated"], upload["UploadId"])
            if not page.get("IsTruncated"):
                return
            if not fresh:
                raise self._cut_short("unfinished uploads", prefix)
            # SeaweedFS gives only the second marker and wants only that back.
            for name in ("KeyMarker", "UploadIdMarker"):
                request.pop(name, None)  # type: ignore[misc]
            if marker := page.get("NextKeyMarker"):
                request["KeyMarker"] = marker
            if marker := page.get("NextUploadIdMarker"):
                request["UploadIdMarker"] = marker

    def abort(self, upload: Upload) -> None:
        with self._connection.explained("abort the upload of", upload.key):
            try:
                self._connection.client.abort_multipart_upload(
                    Bucket=self._connection.bucket, Key=self._name(upload.key), UploadId=upload.token
                )
            except ClientError as error:
                if error_code(error) not in {"NoSuchUpload", "404"}:
                    raise

    def close(self) -> None:
        self._connection.close()

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _list(self, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        request: ListObjectsV2RequestTypeDef = {
            "Bucket": self._connection.bucket,
            "Prefix": self._prefix + check_prefix(prefix),
        }
        if start_after and self._lists_by_key:
            request["StartAfter"] = self._prefix + start_after
        for page in self._pages(request):
            for item in page.get("Contents", []):
                key = item["Key"].removeprefix(self._prefix)
                # A key that ends in `/` is what web consoles make to show an empty folder.
                if key > start_after and not key.endswith("/"):
                    yield ObjectInfo(key, item["Size"], item["LastModified"])

    def _pages(self, request: ListObjectsV2RequestTypeDef) -> Iterator[ListObjectsV2OutputTypeDef]:
        request["MaxKeys"] = _PAGE
        prefix = request.get("Prefix", "")
        while True:
            with self._connection.explained("list", prefix.removeprefix(self._prefix)):
                page = self._connection.client.list_objects_v2(**request)
            yield page
            if not page.get("IsTruncated"):
                return
            token = page.get("NextContinuationToken", "")
            if not token or token == request.get("ContinuationToken"):
                raise self._cut_short("objects", prefix)
            request["ContinuationToken"] = token

    def _cut_short(self, what: str, prefix: str) -> StorageError:
        return StorageError(
            f"Could not list all {what} below {prefix!r} in {self.url}",
            detail="the store says there are more, but not how to get them",
            hint="This look-alike's listing is broken; see whether a newer version works.",
        )

    def _delete_batch(self, names: Sequence[str]) -> bool:
        """Delete up to a page of objects; False if the store cannot do this in one request."""
        with self._connection.explained("delete objects in"):
            try:
                answer = self._connection.client.delete_objects(
                    Bucket=self._connection.bucket,
                    Delete={"Objects": [{"Key": name} for name in names], "Quiet": True},
                )
            except ClientError as error:
                if not _lacks_batches(error):
                    raise
                self._batch_deletes = False
                return False
        failed = [item for item in answer.get("Errors", []) if item.get("Code") != "NoSuchKey"]
        if failed:
            quoted = [f"{item.get('Key')}: {item.get('Code')} {item.get('Message', '')}".strip() for item in failed[:3]]
            raise StorageError(
                f"Could not delete {len(failed)} of {len(names)} objects in {self.url}",
                detail="\n".join(quoted),
                hint=HINTS.get(failed[0].get("Code", ""), "An object lock or a bucket policy may keep them."),
            )
        return True

    def _delete_one(self, name: str) -> None:
        with self._connection.explained("delete", name.removeprefix(self._prefix)):
            try:
                self._connection.client.delete_object(Bucket=self._connection.bucket, Key=name)
            except ClientError as error:
                if error_code(error) not in MISSING_KEY:
                    raise


def _lacks_batches(error: ClientError) -> bool:
    return http_status(error) in {405, 501} or error_code(error) in _NO_BATCH
