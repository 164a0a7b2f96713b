"""From a repository's address to its storage."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from backupd.errors import ConfigError, StorageError
from backupd.storage.base import Storage
from backupd.storage.local import LocalStorage
from backupd.storage.s3 import S3Settings, S3Storage
from backupd.storage.s3_errors import scrub

_FORMS = "Use s3://BUCKET/PREFIX or file:///ABSOLUTE/PATH."


def connect(url: str, settings: S3Settings | None = None) -> Storage:
    """The storage at `s3://bucket/prefix` or `file:///absolute/path`; ConfigError for any other address.

    Nothing is opened or asked of the network yet.
    """
    scheme, colon, rest = url.partition("://")
    if not colon:
        raise _invalid(url, "it has no scheme")
    if scheme == "file":
        return LocalStorage(_path(url))
    if scheme != "s3":
        raise _invalid(url, f"{scheme}:// is not a kind of storage that backupd knows")
    # Not urlsplit: `?` and `#` are legal in prefixes, and would vanish.
    bucket, _, prefix = rest.partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", bucket):
        raise _invalid(url, "that is not the name of a bucket" if bucket else "it names no bucket")
    if settings is not None and settings.endpoint_url is not None:
        _check_endpoint(settings.endpoint_url)
    try:
        return S3Storage(bucket, prefix, settings)
    except StorageError as error:
        raise _invalid(url, error.detail) from error


def _path(url: str) -> Path:
    address = urlsplit(url)
    if address.netloc not in {"", "localhost"}:
        raise _invalid(url, "the path is not absolute: a file address has three slashes before it")
    if address.query or address.fragment:
        raise _invalid(url, "write ? as %3F and # as %23")
    path = Path(unquote(address.path))
    if not path.is_absolute() or ".." in path.parts or path == Path("/"):
        raise _invalid(url, "it does not name a folder of its own")
    return path


def _check_endpoint(endpoint: str) -> None:
    address = urlsplit(endpoint)
    if address.scheme not in {"http", "https"} or not address.hostname or address.username or address.query:
        raise ConfigError(
            f"endpoint_url {scrub(endpoint)!r} is not the address of a store",
            hint='Use "https://HOST" or "https://HOST:PORT"; keys belong into access_key_id and secret_access_key.',
        )


def _invalid(url: str, problem: str) -> ConfigError:
    return ConfigError(f"The repository's url {scrub(url)!r} cannot be used", detail=problem, hint=_FORMS)


def preload() -> None:
    """Import what is otherwise imported when it is first needed: for processes that fork."""
    import boto3  # noqa: F401
