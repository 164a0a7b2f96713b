"""What an S3 store or the way to it answered, as an error with a remedy.

A permanent cause (names, keys, permissions, clocks, certificates) is told apart from trouble that may pass.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from botocore import exceptions as boto

from backupd.errors import BackupdError, ConfigError, ObjectExistsError, ObjectMissingError, StorageError

MISSING_KEY = frozenset({"NoSuchKey", "404", "NotFound"})
PRECONDITION = frozenset({"PreconditionFailed", "412"})
# Where HEAD, which has no body, only gives a number; GET then says the name.
UNNAMED = frozenset({"301", "307", "400", "403", "404", "405"})
_REGION = frozenset(
    {"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
    | {"301", "307"}
)

_PERMISSIONS = (
    "The key needs s3:ListBucket and s3:ListBucketMultipartUploads on the bucket, and s3:GetObject, s3:PutObject, "
    "s3:DeleteObject and s3:AbortMultipartUpload on its objects."
)
_CLOCK = "Set this machine's clock (NTP): the store refuses requests signed at another time."
_SESSION = "Get fresh temporary credentials: session_token has expired or does not belong to the access key."
_CHECKSUMS = 'This may be a look-alike that misreads checksums: try checksums = "when_required" in [repository].'
_KEY_ID = "Check access_key_id (or the profile): the store does not know this key."
_SIGNATURE = (
    "Check secret_access_key: it does not belong to the access key. A proxy that changes requests also does this."
)
_FULL = "The store is full, or its quota is used up."
_BUSY = "The store is overloaded or broken; try later, or with fewer jobs."
_STORAGE_CLASS = "Check storage_class in [repository]: the store does not have this one."

HINTS = {
    "NoSuchBucket": "Check the bucket's name in [repository] url; backupd does not create buckets.",
    "InvalidBucketName": "Check the bucket's name in [repository] url.",
    "AccessDenied": _PERMISSIONS,
    "AllAccessDisabled": _PERMISSIONS,
    "403": _PERMISSIONS,
    "SignatureDoesNotMatch": _SIGNATURE,
    "InvalidAccessKeyId": _KEY_ID,
    "ExpiredToken": _SESSION,
    "InvalidToken": _SESSION,
    "TokenRefreshRequired": _SESSION,
    "RequestTimeTooSkewed": _CLOCK,
    "RequestExpired": _CLOCK,
    "BadDigest": _CHECKSUMS,
    "InvalidDigest": _CHECKSUMS,
    "XAmzContentSHA256Mismatch": _CHECKSUMS,
    "MissingContentLength": _CHECKSUMS,
    "InvalidArgument": _CHECKSUMS,
    "InvalidRequest": _CHECKSUMS,
    "NotImplemented": "This look-alike lacks an operation that backupd needs. " + _CHECKSUMS,
    "InvalidStorageClass": _STORAGE_CLASS,
    "InvalidObjectState": "The object is in an archive class (Glacier): restore it there first, or wait until it is.",
    "InvalidPart": "Cloudflare R2, for one, wants all parts of one size, so it takes objects up to about 8 GB only.",
    "EntityTooLarge": "The store does not take objects or parts of this size.",
    "QuotaExceeded": _FULL,
    "InsufficientStorage": _FULL,
    "XMinioStorageFull": _FULL,
    "507": _FULL,
    "SlowDown": _BUSY,
    "ServiceUnavailable": _BUSY,
    "InternalError": _BUSY,
    "500": _BUSY,
    "503": _BUSY,
}
_CREDENTIALS = (
    "Set access_key_id and secret_access_key (or their _file) or profile in [repository], or give the machine a role."
)
_ENDPOINT = "Check endpoint_url in [repository], and that this machine's network and firewall let it through."
NOT_S3 = "Something else than an S3 store answered: check endpoint_url, and proxies on the way."
_CERTIFICATE = "If the store's certificate is signed by your own authority, name its file as ca_bundle in [repository]."


def error_code(error: boto.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code") or http_status(error))


def http_status(error: boto.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def was_retried(error: boto.ClientError) -> bool:
    """Whether an earlier attempt, whose answer was lost, may have done what this one was refused for."""
    return int(error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)) > 0


def explain(error: Exception, action: str, key: str, url: str) -> BackupdError:
    """The error to raise for one of botocore's, a ClientError or a BotoCoreError.

    Args:
        action: what was tried, as a verb: "read", "list"
        key: on which object; may be empty
        url: the repository, without secrets
    """
    where = f"{key} in {url}" if key else url
    if isinstance(error, boto.ClientError):
        return _answered(error, action, key, where, url)
    detail, hint = scrub(str(error)), ""
    if isinstance(error, boto.ProfileNotFound | boto.ConfigParseError | boto.ConfigNotFound):
        return ConfigError("The AWS profile cannot be used", detail=detail, hint="Check profile in [repository].")
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.NoAuthTokenError):
        hint = _CREDENTIALS
    elif isinstance(error, boto.CredentialRetrievalError | boto.TokenRetrievalError | boto.SSOError | boto.LoginError):
        hint = "The source of the credentials (profile, role or sign-on) failed; sign in again or check it."
    elif isinstance(error, boto.SSLError):
        hint = _CERTIFICATE
    elif isinstance(error, boto.ConnectionError):
        detail, hint = scrub(_cause(error)), _ENDPOINT
    elif isinstance(error, boto.HTTPClientError):
        hint = "The connection broke again and again; try later."
    elif isinstance(error, boto.ParamValidationError | boto.EndpointProviderError | boto.InvalidDNSNameError):
        hint = "Check the bucket's name in [repository] url, region and endpoint_url."
    elif not isinstance(error, boto.BotoCoreError):  # ResponseParserError
        detail, hint = "the answer is not S3's", NOT_S3
    return StorageError(f"Could not {action} {where}", detail=detail, hint=hint)


def _answered(error: boto.ClientError, action: str, key: str, where: str, url: str) -> BackupdError:
    # Only code and message: other fields of the answer may quote what was signed.
    code, said = error_code(error), scrub(str(error.response.get("Error", {}).get("Message", "")))
    detail = f"the store answered {code}: {said}" if said else f"the store answered {code}"
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    is_page = "html" in headers.get("content-type", "")
    if code in MISSING_KEY and action == "read" and not is_page:
        return ObjectMissingError(f"There is no {key} in {url}")
    if code in PRECONDITION and action == "write":
        return ObjectExistsError(f"{key} already exists in {url}", hint="Nothing was replaced.")
    hint = HINTS.get(code, "")
    if code in _REGION:
        region = _region(error)
        hint = (
            f'The bucket is in another region: set region = "{region}" in [repository].'
            if region
            else "The bucket is in another region, or behind another endpoint: check region and endpoint_url."
        )
        if target := headers.get("location"):
            detail += f", redirecting to {scrub(target)}"
    elif is_page:
        hint = NOT_S3
    if not hint and http_status(error) in {501, 405}:
        hint = HINTS["NotImplemented"]
    return StorageError(f"Could not {action} {where}", detail=detail, hint=hint)


def _region(error: boto.ClientError) -> str:
    """The region the store names, in the body or in a header."""
    fields: dict[str, str] = {**error.response.get("Error", {})}  # type: ignore[dict-item]
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    found = fields.get("Region") or headers.get("x-amz-bucket-region") or ""
    if not found and (match := re.search(r"expecting '([a-z0-9-]+)'", fields.get("Message", ""))):
        found = match[1]
    return found if re.fullmatch(r"[A-Za-z0-9-]{1,40}", found) else ""


def _cause(error: boto.ConnectionError) -> str:
    """Host and reason; botocore's message has the whole address, but not why."""
    address = urlsplit(str(error.kwargs.get("endpoint_url", "")))
    reason = str(error.kwargs.get("error", "") or error.__cause__ or "")
    known = re.search(r"\[Errno -?\d+\] ([^')\]]+)|(timed out)", reason)
    return (
        f"{address.hostname}:{address.port or address.scheme}: {(known[1] or known[2]) if known else 'no connection'}"
    )


def scrub(text: str) -> str:
    """Without what could let a reader in: user information and queries of addresses (signed ones have both)."""
    text = re.sub(r"(?<=://)[^/@\s]+@", "", text)
    return re.sub(r"(://[^\s?\"']+)\?[^\s\"']*", r"\1", text)
