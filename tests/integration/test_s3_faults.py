"""What the S3 storage does when the network, the store or the settings are bad: a real store behind a bad proxy."""

from __future__ import annotations

import ipaddress
import random
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from backupd.errors import ConfigError, ObjectExistsError, ObjectMissingError, StorageError
from backupd.storage.s3 import S3Settings, S3Storage
from backupd.storage.s3_client import Connection
from tests.faulty_proxy import Fault, FaultyProxy, Rule, Seen
from tests.seaweed import SeaweedServer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MIB = 1 << 20
BUCKET = "faults"
_numbers = count(1)
DATA = random.Random(3).randbytes(3 * MIB + 17)


retries: list[int] = []  # botocore's, in the test that runs


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Back-off without the waiting; ours is recorded."""
    made: list[int] = []

    def delay(*_: object) -> float:
        retries.append(1)
        return 0.001

    retries.clear()
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", delay)
    monkeypatch.setattr(Connection, "pause", lambda _, failures: made.append(failures))
    return made


@pytest.fixture(scope="module")
def client(s3_server: SeaweedServer) -> Iterator[S3Client]:
    """A way past the proxy."""
    with closing(S3Storage(BUCKET, "", s3_server.settings())) as storage:
        with suppress(storage._connection.client.exceptions.BucketAlreadyOwnedByYou):  # this fixture, made again
            storage._connection.client.create_bucket(Bucket=BUCKET)
        yield storage._connection.client


@pytest.fixture
def proxy(s3_server: SeaweedServer, client: S3Client) -> Iterator[FaultyProxy]:
    with FaultyProxy(("127.0.0.1", s3_server.port)) as running:
        yield running


@pytest.fixture
def connect(proxy: FaultyProxy, s3_server: SeaweedServer) -> Iterator[Callable[..., S3Storage]]:
    """Makes a storage behind the proxy, with a folder of its own."""
    made: list[S3Storage] = []

    def make(bucket: str = BUCKET, attempts: int = 4, **settings: Any) -> S3Storage:
        values = {"endpoint_url": proxy.endpoint} | settings
        made.append(S3Storage(bucket, f"p{next(_numbers)}", s3_server.settings(**values), attempts=attempts))
        return made[-1]

    yield make
    for storage in made:
        storage.close()


@pytest.fixture
def storage(connect: Callable[..., S3Storage]) -> S3Storage:
    return connect()


def first(times: int, operation: str, fault: Fault) -> Rule:
    """The fault for the first so many requests of an operation."""
    left = iter(range(times))
    return lambda seen: fault if seen.operation == operation and next(left, None) is not None else None


def always(operation: str, fault: Fault) -> Rule:
    return lambda seen: fault if seen.operation == operation else None


def content(storage: S3Storage, key: str = "a") -> bytes:
    return b"".join(storage.open(key))


def assert_no_secret(error: StorageError | ConfigError, secret: str = SeaweedServer.secret_key) -> None:
    text = "\n".join([str(error), repr(error), str(error.__cause__), *getattr(error, "__notes__", [])])
    assert secret not in text
    assert "Signature=" not in text
    assert "X-Amz-" not in text


# Reading


def test_a_download_cut_short_is_resumed(proxy: FaultyProxy, storage: S3Storage, pauses: list[int]) -> None:
    storage.put("a", [DATA])
    proxy.rule = first(5, "Get", Fault(cut=600_000))  # more often than attempts, but each made progress
    assert content(storage) == DATA
    ranges = [str(seen.headers["Range"]) for seen in proxy.seen if seen.operation == "Get"]
    assert ranges[0] == "None"
    assert len(ranges) == 6
    starts = [int(text.removeprefix("bytes=").partition("-")[0]) for text in ranges[1:]]
    assert starts == sorted(set(starts))
    assert all(seen.headers["If-Match"] for seen in proxy.seen[-5:])
    assert pauses == [1] * 5


def test_a_range_cut_short_is_resumed(proxy: FaultyProxy, storage: S3Storage) -> None:
    storage.put("a", [DATA])
    proxy.rule = first(2, "Get", Fault(cut=100_000))
    assert b"".join(storage.open("a", offset=MIB, length=MIB + 1)) == DATA[MIB : 2 * MIB + 1]


def test_a_download_that_makes_no_progress_is_given_up(
    proxy: FaultyProxy, storage: S3Storage, pauses: list[int]
) -> None:
    storage.put("a", [DATA])
    proxy.rule = lambda seen: Fault(cut=0 if seen.headers["Range"] else MIB) if seen.operation == "Get" else None
    with pytest.raises(StorageError, match=r"Could not read a in s3://faults/p\d+ to its end") as caught:
        content(storage)
    assert caught.value.detail == f"{MIB} of {len(DATA)} bytes came, then the connection broke 4 times"
    assert pauses == [1, 2, 3]


def test_a_length_that_lies_is_an_error(proxy: FaultyProxy, storage: S3Storage) -> None:
    storage.put("a", [DATA])
    proxy.rule = first(1, "Get", Fault(longer=100))
    with pytest.raises(StorageError):
        content(storage)


@pytest.mark.parametrize("change", ["replaced", "replaced by one of its size", "deleted", "replaced, If-Match ignored"])
def test_an_object_that_changes_is_not_spliced(
    proxy: FaultyProxy, storage: S3Storage, client: S3Client, change: str
) -> None:
    storage.put("a", [DATA])

    def rule(seen: Seen) -> Fault | None:
        if seen.operation != "Get":
            return None
        if not seen.headers["Range"]:
            return Fault(cut=MIB)
        name = seen.path.split("/", 2)[2]
        if change == "deleted":
            client.delete_object(Bucket=BUCKET, Key=name)
        else:
            client.put_object(Bucket=BUCKET, Key=name, Body=b"x" * (len(DATA) if "its size" in change else 2 * MIB))
        if "ignored" not in change:
            return None
        headers = (("ETag", '"another"'), ("Content-Range", f"bytes {MIB}-{len(DATA) - 1}/{len(DATA)}"))
        return Fault(206, body=DATA[MIB:], headers=headers)

    proxy.rule = rule
    with pytest.raises(StorageError, match="replaced or deleted while it was read"):
        content(storage)


def test_an_answer_without_a_length(proxy: FaultyProxy, storage: S3Storage, client: S3Client) -> None:
    """Its end cannot be told from a broken connection, so the size has to come from elsewhere, or it is refused."""
    storage.put("a", [DATA])
    etag = client.head_object(Bucket=BUCKET, Key=f"{storage.url.rpartition('/')[2]}/a")["ETag"]
    whole = ("Content-Range", f"bytes 0-{len(DATA) - 1}/{len(DATA)}")
    proxy.rule = first(1, "Get", Fault(206, body=DATA[:-5], headers=(("ETag", etag), whole), sized=False))
    assert content(storage) == DATA
    proxy.rule = always("Get", Fault(200, body=DATA[:-5], headers=(("ETag", etag),), sized=False))
    with pytest.raises(StorageError, match="Could not read a"):
        content(storage)


def test_a_store_that_ignores_ranges(proxy: FaultyProxy, storage: S3Storage) -> None:
    storage.put("a", [DATA])
    proxy.rule = always("Get", Fault(200, body=DATA))
    with pytest.raises(StorageError, match="from byte 5") as caught:
        b"".join(storage.open("a", offset=5))
    assert "range requests" in caught.value.hint


# Trouble that passes, and trouble that does not


@pytest.mark.parametrize("fault", [Fault(503, "SlowDown"), Fault(500, "InternalError"), Fault(drop=True)])
def test_trouble_that_passes(proxy: FaultyProxy, storage: S3Storage, fault: Fault) -> None:
    for operation in ("Put", "Get", "List", "DeleteBatch", "CreateUpload", "UploadPart", "Complete", "ListUploads"):
        proxy.rule = first(3, operation, fault)
        storage.put("a", [b"x" * (9 * MIB if operation in {"CreateUpload", "UploadPart", "Complete"} else 9)])
        assert content(storage)
        assert [info.key for info in storage.list("")] == ["a"]
        storage.delete(["a"])
        assert list(storage.unfinished("")) == []
        assert proxy.operations().count(operation) >= 4, operation
        proxy.seen.clear()


def test_trouble_that_stays(proxy: FaultyProxy, storage: S3Storage) -> None:
    proxy.rule = always("Put", Fault(503, "SlowDown"))
    with pytest.raises(StorageError, match="Could not write a in s3://faults/") as caught:
        storage.put("a", [b"x"])
    assert "SlowDown" in caught.value.detail
    assert "overloaded" in caught.value.hint
    assert proxy.operations() == ["Put"] * 4


@pytest.mark.parametrize(
    ("settings", "code", "hint"),
    [
        ({"bucket": "no-such-bucket"}, "NoSuchBucket", "does not create buckets"),
        ({"access_key_id": "nobody"}, "InvalidAccessKeyId", "access_key_id"),
        ({"secret_access_key": "wrong-Secret-11"}, "SignatureDoesNotMatch", "secret_access_key"),
        ({"access_key_id": "backupd-reader"}, "AccessDenied", "s3:PutObject"),
    ],
)
def test_what_never_passes_is_not_tried_again(
    proxy: FaultyProxy, connect: Callable[..., S3Storage], settings: dict[str, str], code: str, hint: str
) -> None:
    storage = connect(**settings)
    tries: list[tuple[Callable[[], object], int]] = [(lambda: storage.put("a", [b"x"]), 1)]
    if code != "AccessDenied":  # which may read
        tries += [(lambda: storage.stat("a"), 2), (lambda: list(storage.list("")), 1), (lambda: content(storage), 1)]
        tries += [(lambda: storage.put("a", [bytes(9 * MIB)]), 1), (lambda: storage.delete(["a"]), 1)]
    for attempt, requests in tries:
        proxy.seen.clear()
        with pytest.raises(StorageError) as caught:
            attempt()
        assert not isinstance(caught.value, ObjectMissingError)
        assert code in caught.value.detail
        assert hint in caught.value.hint
        assert len(proxy.seen) == requests, proxy.operations()
        assert_no_secret(caught.value, settings.get("secret_access_key", SeaweedServer.secret_key))


@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        (
            Fault(400, "AuthorizationHeaderMalformed", "<Region>eu-central-7</Region>"),
            'another region: set region = "eu-central-7"',
        ),
        (Fault(301, "PermanentRedirect", "<Endpoint>s3.eu-central-7.example</Endpoint>"), "another region"),
        (Fault(301, headers=(("Location", "https://127.0.0.1/x?y"),), body=b"<html>moved</html>"), "endpoint_url"),
        (Fault(200, headers=(("Content-Type", "text/html"),), body=b"<html><br>console</html>"), "endpoint_url"),
        (Fault(403, "RequestTimeTooSkewed"), "clock"),
        (Fault(403, "ExpiredToken"), "session_token"),
        (Fault(400, "InvalidStorageClass"), "storage_class"),
        (Fault(400, "XAmzContentSHA256Mismatch"), 'checksums = "when_required"'),
        (Fault(507, "XMinioStorageFull"), "full"),
    ],
    ids=lambda value: value.code if isinstance(value, Fault) else "",
)
def test_answers_of_other_stores(proxy: FaultyProxy, storage: S3Storage, fault: Fault, hint: str) -> None:
    proxy.rule = lambda _: fault
    with pytest.raises(StorageError) as caught:
        storage.put("a", [b"x"])
        list(storage.list(""))  # a page of a console is taken for a success of PUT: its body is nobody's business
    assert hint in caught.value.hint
    assert_no_secret(caught.value)
    # Once more if botocore follows the region it was told; it takes a page for an error of the store that may pass.
    assert proxy.operations().count("Put") <= (4 if fault.status == 200 else 2)


def test_nothing_listens(connect: Callable[..., S3Storage], proxy: FaultyProxy) -> None:
    with closing(_bound_port()) as port:
        storage = connect(endpoint_url=f"http://127.0.0.1:{port.getsockname()[1]}")
        with pytest.raises(StorageError) as caught:
            storage.read("a")
    assert "Connection refused" in caught.value.detail
    assert retries == []
    assert "endpoint_url" in caught.value.hint


def _bound_port() -> socket.socket:
    """Bound, so that nobody else gets it, but not listening."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound


def test_no_credentials(proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with closing(S3Storage(BUCKET, "", S3Settings(endpoint_url=proxy.endpoint))) as storage:
        with pytest.raises(StorageError) as caught:
            storage.read("a")
        assert "access_key_id" in caught.value.hint
    with closing(S3Storage(BUCKET, "", S3Settings(profile="nobody"))) as storage, pytest.raises(ConfigError) as config:
        storage.read("a")
    assert "profile" in config.value.hint
    assert proxy.seen == []


def test_tls(s3_server: SeaweedServer, client: S3Client, tmp_path: Path) -> None:
    pem, bundle = _certificate(tmp_path)
    with FaultyProxy(("127.0.0.1", s3_server.port), pem) as proxy:
        settings = s3_server.settings(endpoint_url=proxy.endpoint)
        with closing(S3Storage(BUCKET, "tls", settings)) as storage, pytest.raises(StorageError) as caught:
            storage.put("a", [b"x"])
        assert "ca_bundle" in caught.value.hint
        assert proxy.seen == []
        settings = s3_server.settings(endpoint_url=proxy.endpoint, ca_bundle=bundle)
        with closing(S3Storage(BUCKET, "tls", settings)) as storage:
            assert storage.put("a", [DATA]) == len(DATA)
            assert content(storage) == DATA
    settings = s3_server.settings(ca_bundle=tmp_path / "none.pem")
    with closing(S3Storage(BUCKET, "tls", settings)) as storage, pytest.raises(ConfigError, match=r"none\.pem"):
        storage.read("a")


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of our own authority for 127.0.0.1: file with key, and bundle to trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(public + private)
    (folder / "bundle.pem").write_bytes(public)
    return folder / "server.pem", folder / "bundle.pem"


# Writing


def test_a_part_that_always_fails(proxy: FaultyProxy, storage: S3Storage) -> None:
    asked = []

    def chunks() -> Iterator[bytes]:
        for number in range(200):
            asked.append(number)
            yield bytes(MIB)

    proxy.rule = lambda seen: Fault(500, "InternalError") if "partNumber=2" in seen.path else None
    with pytest.raises(StorageError, match="Could not write shop/a in"):
        storage.put("shop/a", chunks())
    assert len(asked) < 80, "the dump was read on although the upload had failed"
    assert proxy.operations()[-1] == "Abort"
    assert list(storage.list("")) == []
    assert list(storage.unfinished("")) == []


def test_parts_under_way_are_over_before_the_abort(proxy: FaultyProxy, storage: S3Storage) -> None:
    """Or the store would keep what arrives after it."""
    failed, aborted = threading.Event(), threading.Event()
    done_before: list[int] = []

    def rule(seen: Seen) -> None:
        if seen.operation == "UploadPart":
            failed.wait(10)
            aborted.wait(0.3)  # it would come at once if nobody waited for us
        elif seen.operation == "Abort":
            done_before.append(sum(done.operation == "UploadPart" for done in proxy.done))
            aborted.set()

    def chunks() -> Iterator[bytes]:
        yield bytes(8 * MIB)
        yield bytes(8 * MIB)
        failed.set()
        raise KeyError("the dump's own error")

    proxy.rule = rule
    with pytest.raises(KeyError):
        storage.put("a", chunks())
    started = proxy.operations().count("UploadPart")
    assert started >= 1
    assert done_before == [started]
    assert list(storage.unfinished("")) == []


def test_a_failed_abort_does_not_hide_the_error(proxy: FaultyProxy, storage: S3Storage, client: S3Client) -> None:
    def chunks() -> Iterator[bytes]:
        yield bytes(9 * MIB)
        raise KeyError("the dump's own error")

    proxy.rule = always("Abort", Fault(403, "AccessDenied"))
    with pytest.raises(KeyError, match="the dump's own error") as caught:
        storage.put("a", chunks())
    assert "abort the upload of a" in caught.value.__notes__[0]
    assert "AccessDenied" in caught.value.__notes__[0]
    proxy.rule = lambda _: None
    [left] = storage.unfinished("")
    storage.abort(left)
    assert list(storage.unfinished("")) == []


@pytest.mark.parametrize("size", [5, 9 * MIB, 17 * MIB])
def test_an_answer_that_is_lost(proxy: FaultyProxy, storage: S3Storage, size: int) -> None:
    """The store did it, and refuses to do it again: that is no other writer."""
    data = random.Random(size).randbytes(size)
    proxy.rule = first(1, "Complete" if size > MIB else "Put", Fault(lose_answer=True))
    assert storage.put("a", [data], create_only=True) == size
    assert content(storage) == data
    assert list(storage.unfinished("")) == []


@pytest.mark.parametrize("size", [5, 9 * MIB])
def test_another_writer_is_not_taken_for_a_lost_answer(
    proxy: FaultyProxy, storage: S3Storage, client: S3Client, size: int
) -> None:
    faults = first(1, "Complete" if size > MIB else "Put", Fault(503, "SlowDown"))

    def rule(seen: Seen) -> Fault | None:
        if fault := faults(seen):
            name = seen.path.partition("?")[0].split("/", 2)[2]
            client.put_object(Bucket=BUCKET, Key=name, Body=b"y" * size)
            return fault
        return None

    proxy.rule = rule
    with pytest.raises(ObjectExistsError):
        storage.put("a", [b"x" * size], create_only=True)
    assert content(storage) == b"y" * size


@pytest.mark.parametrize("fault", [Fault(501, "NotImplemented"), Fault(400, "InvalidArgument")])
@pytest.mark.parametrize("size", [5, 9 * MIB])
def test_a_store_without_conditional_writes(proxy: FaultyProxy, storage: S3Storage, fault: Fault, size: int) -> None:
    proxy.rule = lambda seen: fault if seen.headers["If-None-Match"] else None
    assert storage.put("a", [b"x" * size], create_only=True) == size
    assert storage.put("b", [b"x" * size], create_only=True) == size
    assert sum(bool(seen.headers["If-None-Match"]) for seen in proxy.seen) == 1, "it was asked again"
    for other in (5, 9 * MIB):
        with pytest.raises(ObjectExistsError):
            storage.put("a", [b"y" * other], create_only=True)
    assert content(storage) == b"x" * size


def test_a_conflict_with_another_conditional_write(proxy: FaultyProxy, storage: S3Storage, pauses: list[int]) -> None:
    proxy.rule = first(2, "Put", Fault(409, "ConditionalRequestConflict"))
    assert storage.put("a", [b"x"], create_only=True) == 1
    assert pauses == [0, 1]


@pytest.mark.parametrize("fault", [Fault(501, "NotImplemented"), Fault(400, "MissingContentMD5")])
def test_a_store_without_batch_delete(proxy: FaultyProxy, storage: S3Storage, fault: Fault) -> None:
    for key in "abc":
        storage.put(key, [b"x"])
    proxy.rule = always("DeleteBatch", fault)
    storage.delete(["a", "none"])
    storage.delete(["b"])
    assert [info.key for info in storage.list("")] == ["c"]
    assert proxy.operations().count("DeleteBatch") == 1


def test_objects_that_cannot_be_deleted_are_named(proxy: FaultyProxy, storage: S3Storage) -> None:
    body = (
        b"<DeleteResult><Error><Key>p/a</Key><Code>AccessDenied</Code><Message>locked</Message></Error></DeleteResult>"
    )
    proxy.rule = always("DeleteBatch", Fault(body=body))
    with pytest.raises(StorageError, match="Could not delete 1 of 2 objects") as caught:
        storage.delete(["a", "b"])
    assert caught.value.detail == "p/a: AccessDenied locked"


def test_storage_class_is_sent(proxy: FaultyProxy, connect: Callable[..., S3Storage]) -> None:
    storage = connect(storage_class="STANDARD_IA")
    storage.put("a", [b"x"])
    storage.put("b", [bytes(9 * MIB)])
    sent = [
        str(seen.headers["x-amz-storage-class"]) for seen in proxy.seen if seen.operation in {"Put", "CreateUpload"}
    ]
    assert sent == ["STANDARD_IA"] * 2


@pytest.mark.parametrize(("checksums", "sent"), [("auto", False), ("when_required", False), ("when_supported", True)])
def test_checksums(proxy: FaultyProxy, connect: Callable[..., S3Storage], checksums: str, sent: bool) -> None:
    storage = connect(checksums=checksums)
    storage.put("a", [DATA])
    storage.put("b", [bytes(9 * MIB)])
    assert content(storage) == DATA
    uploads = [seen for seen in proxy.seen if seen.operation in {"Put", "UploadPart"}]
    assert len(uploads) == 3
    for seen in uploads:
        assert bool(seen.headers["x-amz-checksum-crc32"]) == sent
        assert not seen.headers["x-amz-trailer"]
        assert not seen.headers["Content-Encoding"]


# Listing


@pytest.mark.parametrize("operation", ["List", "ListUploads"])
def test_a_list_cut_short_is_an_error(proxy: FaultyProxy, storage: S3Storage, operation: str) -> None:
    kind = "ListBucketResult" if operation == "List" else "ListMultipartUploadsResult"
    proxy.rule = always(operation, Fault(body=f"<{kind}><IsTruncated>true</IsTruncated></{kind}>".encode()))
    with pytest.raises(StorageError, match="Could not list all"):
        list(storage.list("") if operation == "List" else storage.unfinished(""))
    assert len(proxy.seen) == 1


def test_unfinished_uploads_are_paged(proxy: FaultyProxy, storage: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    client = storage._connection.client
    prefix = storage.url.rpartition("/")[2]
    for number in range(3):
        client.create_multipart_upload(Bucket=BUCKET, Key=f"{prefix}/{number}")
    original = client.list_multipart_uploads
    monkeypatch.setattr(client, "list_multipart_uploads", lambda **request: original(**request, MaxUploads=1))
    found = list(storage.unfinished(""))
    assert sorted(upload.key for upload in found) == ["0", "1", "2"]
    for upload in found:
        storage.abort(upload)


# The machine


def test_an_address_that_worked_is_tried_again(s3_server: SeaweedServer, client: S3Client) -> None:
    with FaultyProxy(("127.0.0.1", s3_server.port)) as proxy:
        storage = S3Storage(BUCKET, "again", s3_server.settings(endpoint_url=proxy.endpoint), attempts=3)
        storage.put("a", [b"x"])
    storage.close()
    fresh, retries[:] = [*retries], []
    with pytest.raises(StorageError) as caught:
        storage.read("a")
    assert "endpoint_url" in caught.value.hint
    assert (len(fresh), len(retries)) == (0, 2)


@pytest.mark.large  # it takes the store 15 seconds to come up again
def test_a_store_that_dies_and_returns() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="seaweed-") as folder,
        SeaweedServer(Path(folder)) as server,
        closing(S3Storage(BUCKET, "", server.settings(), attempts=3)) as storage,
    ):
        storage._connection.client.create_bucket(Bucket=BUCKET)
        server.kill()
        with pytest.raises(StorageError) as caught:
            storage.put("a", [bytes(20 * MIB)])
        assert "endpoint_url" in caught.value.hint
        server.restart()
        assert storage.put("a", [DATA]) == len(DATA)
        assert content(storage) == DATA


_MEMORY_SCRIPT = """
import resource, sys
from backupd.storage.s3 import S3Settings, S3Storage
endpoint, access, secret = sys.argv[1:]
settings = S3Settings(endpoint_url=endpoint, access_key_id=access, secret_access_key=secret)
storage = S3Storage("faults", "memory", settings)
storage.put("warm", [b"x"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
block = bytes(65552)
storage.put("a", (block for _ in range((200 << 20) // len(block))))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert sum(map(len, storage.open("a"))) == len(block) * ((200 << 20) // len(block))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
storage.close()
"""


def test_memory_is_bounded(s3_server: SeaweedServer, client: S3Client) -> None:
    """In MiB above what the libraries take: three parts under way, one that fills, and some slack."""
    command = [sys.executable, "-c", _MEMORY_SCRIPT, s3_server.endpoint, s3_server.access_key, s3_server.secret_key]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    put, read = map(int, done.stdout.split())
    assert put < 80
    assert read < 16
