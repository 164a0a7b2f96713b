"""How to reach an S3 store: settings, one lazily made client with its retries, and errors in our terms."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from botocore.exceptions import BotoCoreError, ClientError, SSLError
from botocore.exceptions import ConnectionError as NotConnectedError

from backupd.errors import ConfigError
from backupd.storage.s3_errors import UNNAMED, error_code, explain, scrub

if TYPE_CHECKING:
    from botocore.awsrequest import AWSResponse as HTTPResponse
    from botocore.model import OperationModel
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

# Uploading parts, for all writes of a storage together; a write alone keeps three busy.
CONCURRENCY = 6
_CONNECTIONS = 32  # parts, and one per stream that is read
_CONNECT_SECONDS = 10
_READ_SECONDS = 60  # without a byte, not in all
_LONGEST_PAUSE = 20.0  # seconds, as botocore's


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where the store is and how to speak to it. None leaves it to boto3: environment, profile, role."""

    endpoint_url: str | None = None  # of a look-alike; None is AWS
    region: str | None = None
    profile: str | None = None  # of ~/.aws/config
    addressing_style: Literal["auto", "path", "virtual"] = "auto"  # auto is path for an endpoint_url
    storage_class: str | None = None  # of what is written
    checksums: Literal["auto", "when_supported", "when_required"] = "auto"
    ca_bundle: Path | None = None  # PEM
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)

    @property
    def sends_checksums(self) -> bool:
        """Look-alikes choke on checksums, or store them in the object; AWS verifies them."""
        if self.checksums == "auto":
            return self.endpoint_url is None
        return self.checksums == "when_supported"


class Connection:
    """A bucket's client and the threads that upload to it: made when first needed, shared by all threads."""

    def __init__(self, bucket: str, url: str, settings: S3Settings, attempts: int) -> None:
        self.bucket = bucket
        self.url = url
        self.settings = settings
        self.attempts = attempts
        self._client: S3Client | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._answered = False

    @property
    def client(self) -> S3Client:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    @property
    def threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="s3")
            return self._threads

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown()
        if client is not None:
            client.close()

    @contextmanager
    def explained(self, action: str, key: str = "") -> Iterator[None]:
        """Raise botocore's errors as ours. Only around requests: what a caller's iterator raises is the caller's."""

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise explain(error, action, key, self.url) from error

    def head(self, name: str) -> HeadObjectOutputTypeDef:
        """HEAD; its refusals have no body, so a GET has to say the reason. Raises botocore's errors."""
        try:
            return self.client.head_object(Bucket=self.bucket, Key=name)
        except ClientError as error:
            if error_code(error) in UNNAMED:
                self.client.get_object(Bucket=self.bucket, Key=name, Range="bytes=0-0")["Body"].close()
            raise

    def pause(self, failures: int) -> None:
        """Before another attempt at what botocore cannot repeat."""
        time.sleep(random.uniform(0, min(_LONGEST_PAUSE, 0.5 * 2**failures)))  # noqa: S311 - jitter

    def _connect(self) -> S3Client:
        # Importing these takes 0.2 s, which commands that need no S3 should not pay.
        import boto3
        from botocore.config import Config

        settings = self.settings
        if settings.ca_bundle is not None and not settings.ca_bundle.is_file():
            raise ConfigError(f"There is no file {settings.ca_bundle}", hint="Check ca_bundle in [repository].")
        try:
            session = boto3.Session(
                aws_access_key_id=settings.access_key_id,
                aws_secret_access_key=settings.secret_access_key,
                aws_session_token=settings.session_token,
                profile_name=settings.profile,
            )
            client = session.client(
                "s3",
                endpoint_url=settings.endpoint_url,
                region_name=settings.region or session.region_name or "us-east-1",
                verify=None if settings.ca_bundle is None else str(settings.ca_bundle),
                config=Config(
                    retries={"mode": "standard", "total_max_attempts": self.attempts},
                    connect_timeout=_CONNECT_SECONDS,
                    read_timeout=_READ_SECONDS,
                    tcp_keepalive=True,
                    max_pool_connections=_CONNECTIONS,
                    s3={"addressing_style": settings.addressing_style},
                    request_checksum_calculation="when_supported" if settings.sends_checksums else "when_required",
                    # Whole objects are verified by the manifest's SHA-256, and resumed reads have no checksum.
                    response_checksum_validation="when_required",
                    user_agent_extra="backupd",
                ),
            )
        except BotoCoreError as error:
            raise explain(error, "reach", "", self.url) from error
        except ValueError as error:  # botocore's word for an address it cannot parse
            raise ConfigError("The storage's address is not valid", detail=scrub(str(error))) from error
        client.meta.events.register_first("needs-retry.s3", self._refuse_retry)
        return client

    def _refuse_retry(
        self,
        response: tuple[HTTPResponse, dict[str, Any]] | None,
        operation: OperationModel,
        caught_exception: Exception | None,
        **_: object,
    ) -> None:
        """Raise at once what botocore would try again in vain, or for ever."""
        if response is not None:
            self._answered = True
            found = response[0].status_code in {301, 302, 307} and "x-amz-bucket-region" not in response[0].headers
            # A look-alike, or a web server in its place, that redirects everything: botocore would ask HEAD Bucket
            # for the region, be redirected, ask again …
            if found and (self.settings.endpoint_url is not None or operation.name == "HeadBucket"):
                raise ClientError(response[1], operation.name)  # type: ignore[arg-type]
        elif isinstance(caught_exception, SSLError):
            if not self._answered or "CERTIFICATE_VERIFY_FAILED" in str(caught_exception):
                raise caught_exception
        elif isinstance(caught_exception, NotConnectedError) and not self._answered:
            raise caught_exception  # an address that never worked; one that did is tried again


def _parser_error() -> type[Exception]:
    """What botocore raises for an answer that is not S3's: a proxy's page, a console's."""
    from botocore.parsers import ResponseParserError

    return ResponseParserError
