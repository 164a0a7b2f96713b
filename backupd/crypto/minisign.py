"""minisign signatures, made and checked: https://jedisct1.github.io/minisign/ ("Signature format", "Key format").

Keys are Ed25519. A signature file has four lines: a comment that nobody signed, the signature of the data
(of its BLAKE2b-512 hash if the algorithm is `ED`, of the data itself if it is the legacy `Ed`), a trusted
comment, and the global signature, of the data's signature and the trusted comment.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..errors import ConfigError, IntegrityError

_UNTRUSTED = "untrusted comment: "
_TRUSTED = "trusted comment: "
_MAX_UNTRUSTED, _MAX_TRUSTED = 1024, 8192  # bytes of a line that minisign reads, prefix and final zero included

_KEY_ALGORITHM = _LEGACY = b"Ed"
_PREHASHED = b"ED"
_NO_PASSWORD, _SCRYPT = b"\0\0", b"Sc"
_BLAKE2B = b"B2"
# A secret key's parts, in bytes: algorithm, key derivation, checksum algorithm, salt, two limits, then
# what a password would encrypt: key id, seed, public key, checksum.
_SECRET_PARTS = (2, 2, 2, 32, 8, 8, 8, 32, 32, 32)
_NO_CHECKSUM = bytes(32)  # minisign writes none if there is no password to check
_HINT = "`minisign -G -W` makes a key pair without a password."


@dataclass(frozen=True, slots=True)
class PublicKey:
    """Whose signatures are believed."""

    number: bytes  # 8, random: names the key
    key: bytes  # 32, an Ed25519 public key

    def __str__(self) -> str:
        return _encode(_KEY_ALGORITHM + self.number + self.key)

    @property
    def key_id(self) -> str:
        """As minisign prints it: sixteen upper-case hexadecimal digits, of a little-endian number."""
        return _key_id(self.number)

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """From `RW…`, or the text of a .pub file: an untrusted comment and `RW…`. ConfigError for anything else."""
        lines = _lines(text.strip())
        if len(lines) == 2 and lines[0].startswith(_UNTRUSTED):
            del lines[0]
        raw = _decode(lines[0]) if len(lines) == 1 else b""
        if len(raw) != 42 or raw[:2] != _KEY_ALGORITHM:  # it isn't quoted: it may be a secret key
            raise ConfigError(
                "This is not a minisign public key", hint="One is RW and 54 characters: what `minisign -G` prints."
            )
        return cls(raw[2:10], raw[10:])


class SecretKey:
    """A key to sign with; what it shows of itself is its public half."""

    __slots__ = ("_key", "public")

    def __init__(self, number: bytes, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(number, key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"<SecretKey of {self.public}>"

    @classmethod
    def generate(cls) -> SecretKey:
        return cls(os.urandom(8), Ed25519PrivateKey.generate())

    @classmethod
    def parse(cls, text: str, where: str = "The signing key") -> SecretKey:
        """From the text of a secret key file without a password, as `minisign -G -W` writes it.

        Raises ConfigError, which names `where` and doesn't quote the text.
        """
        lines = _lines(text.strip())
        raw = _decode(lines[1]) if len(lines) == 2 and lines[0].startswith(_UNTRUSTED) else b""
        if len(raw) != sum(_SECRET_PARTS):
            raise ConfigError(f"{where} is not a minisign secret key", hint=_HINT)
        parts = []
        for size in _SECRET_PARTS:
            parts.append(raw[:size])
            raw = raw[size:]
        algorithm, derivation, checksum_algorithm, _, _, _, number, seed, public, checksum = parts
        if derivation == _SCRYPT:
            raise ConfigError(
                f"{where} is a minisign key with a password, which nobody could type for a daemon",
                hint=f"{_HINT} `minisign -C -W` takes the password off this one.",
            )
        if (algorithm, derivation, checksum_algorithm) != (_KEY_ALGORITHM, _NO_PASSWORD, _BLAKE2B):
            raise ConfigError(f"{where} is a minisign secret key of an unknown kind", hint=_HINT)
        secret = cls(number, Ed25519PrivateKey.from_private_bytes(seed))
        right = hashlib.blake2b(algorithm + number + seed + public, digest_size=32).digest()
        if secret.public.key != public or checksum not in (_NO_CHECKSUM, right):
            raise ConfigError(f"{where} is a damaged minisign secret key", hint=_HINT)
        return secret

    def encode(self, comment: str = "minisign secret key") -> str:
        """The text of a secret key file, without a password."""
        head = _KEY_ALGORITHM + _NO_PASSWORD + _BLAKE2B + bytes(32 + 8 + 8)
        tail = self.public.number + self._key.private_bytes_raw() + self.public.key + _NO_CHECKSUM
        return f"{_comment(_UNTRUSTED, comment, _MAX_UNTRUSTED)}\n{_encode(head + tail)}\n"

    def sign_bytes(self, data: bytes) -> bytes:
        """The plain Ed25519 signature, 64 bytes."""
        return self._key.sign(data)


def sign(
    secret: SecretKey, data: bytes, *, trusted_comment: str, untrusted_comment: str = "signature from backupd"
) -> str:
    """The text of a signature file, prehashed (`ED`). ValueError for a comment of several lines, or too long."""
    signature = secret.sign_bytes(_hash(data))
    comment = _comment(_TRUSTED, trusted_comment, _MAX_TRUSTED)
    lines = (
        _comment(_UNTRUSTED, untrusted_comment, _MAX_UNTRUSTED),
        _encode(_PREHASHED + secret.public.number + signature),
        comment,
        _encode(secret.sign_bytes(signature + trusted_comment.encode())),
    )
    return "".join(f"{line}\n" for line in lines)


def verify(signature_text: str, data: bytes, trusted: Iterable[PublicKey], what: str) -> str:
    """The trusted comment of a signature file, once one of the `trusted` keys is found to have signed data and comment.

    `what` names the data in errors: IntegrityError if the text is no signature file, its signer isn't trusted, or
    either signature is wrong.
    """
    algorithm, number, signature, comment, global_signature = _parse(signature_text, what)
    keys = list(trusted)
    candidates = [key for key in keys if key.number == number]
    if not candidates:
        raise IntegrityError(
            f"{what} is signed by minisign key {_key_id(number)}, which is not trusted",
            detail="Trusted: " + (", ".join(key.key_id for key in keys) or "none"),
            hint="If you know whose key that is, add its public key to the trusted signers.",
        )
    signed = _hash(data) if algorithm == _PREHASHED else data
    signers = [key for key in candidates if _is_signed(key, signature, signed)]
    if not signers:
        raise IntegrityError(
            f"{what} is not what minisign key {_key_id(number)} signed",
            detail="The signature doesn't match: data or signature were changed afterwards, or are not this key's.",
            hint="Don't believe it. Use another backup, or another copy of this one.",
        )
    if not any(_is_signed(key, global_signature, signature + comment.encode()) for key in signers):
        raise IntegrityError(
            f"The trusted comment of the signature of {what} is not what minisign key {_key_id(number)} signed",
            detail="The data is genuine; the comment, or the signature of it, was changed afterwards.",
            hint="Don't believe it. Use another backup, or another copy of this one.",
        )
    return comment


def _parse(text: str, what: str) -> tuple[bytes, bytes, bytes, str, bytes]:
    """Algorithm, key number, signature, trusted comment, global signature."""
    lines = _lines(text)
    if len(lines) != 4 or not lines[0].startswith(_UNTRUSTED) or not lines[2].startswith(_TRUSTED):
        raise _malformed(what, "It doesn't have the four lines of one.")
    raw, global_signature = _decode(lines[1]), _decode(lines[3])
    if len(raw) != 74 or len(global_signature) != 64:
        raise _malformed(what, "One of its signatures is not base64, or not of the right length.")
    if raw[:2] not in (_PREHASHED, _LEGACY):
        raise _malformed(what, "Its algorithm is neither ED nor Ed.")
    comment = lines[2].removeprefix(_TRUSTED)
    if not _is_text(comment):
        raise _malformed(what, "Its trusted comment is not UTF-8 text.")
    return raw[:2], raw[2:10], raw[10:], comment, global_signature


def _malformed(what: str, detail: str) -> IntegrityError:
    return IntegrityError(
        f"The signature of {what} is not a minisign signature",
        detail=detail,
        hint="Don't believe it. Use another backup, or another copy of this one.",
    )


def _is_signed(key: PublicKey, signature: bytes, data: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key.key).verify(signature, data)
    except InvalidSignature:
        return False
    return True


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data).digest()


def _key_id(number: bytes) -> str:
    return f"{int.from_bytes(number, 'little'):016X}"


def _lines(text: str) -> list[str]:
    """The lines of a text, whose last may lack its line feed; a carriage return belongs to the line's end."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _comment(prefix: str, comment: str, limit: int) -> str:
    if not comment.replace("\t", "").isprintable():
        raise ValueError("a comment is one line of printable text")
    if len((prefix + comment).encode()) + 1 >= limit:
        raise ValueError(f"a comment has at most {limit} bytes, prefix included")
    return prefix + comment


def _is_text(comment: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in comment)


def _encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _decode(text: str) -> bytes:
    """Base64 with padding, in its canonical spelling; b"" for anything else."""
    if not text.isascii():
        return b""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        return b""
    return raw if _encode(raw) == text else b""
