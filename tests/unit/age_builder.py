"""age files put together line by line, with a valid MAC whatever the lines are: for files no program would write.

Written from the C2SP age spec, and independent of backupd's own code.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

FILE_KEY = bytes(range(16))
NONCE = bytes(range(100, 116))
VERSION = b"age-encryption.org/v1\n"
EPHEMERAL = X25519PrivateKey.from_private_bytes(b"\x07" * 32)
SHARE = EPHEMERAL.public_key().public_bytes_raw()


def b64(raw: bytes) -> bytes:
    return base64.b64encode(raw).rstrip(b"=")


def hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 for one block of SHA-256."""
    extracted = hmac.digest(salt or bytes(32), key, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def x25519_body(recipient: bytes, file_key: bytes = FILE_KEY) -> bytes:
    """The body, undecoded, of the stanza whose share is SHARE."""
    shared = EPHEMERAL.exchange(X25519PublicKey.from_public_bytes(recipient))
    key = hkdf(shared, SHARE + recipient, b"age-encryption.org/v1/X25519")
    return ChaCha20Poly1305(key).encrypt(bytes(12), file_key, None)


def x25519(recipient: bytes) -> bytes:
    """A well-formed stanza, with its line feeds."""
    return b"-> X25519 " + b64(SHARE) + b"\n" + b64(x25519_body(recipient)) + b"\n"


def mac(covered: bytes) -> bytes:
    return hmac.digest(hkdf(FILE_KEY, b"", b"header"), covered, hashlib.sha256)


def payload(chunks: Sequence[bytes], first: int = 0) -> bytes:
    """Chunks of any sizes, encrypted as they are, the last one marked as such."""
    cipher = ChaCha20Poly1305(hkdf(FILE_KEY, NONCE, b"payload"))
    return b"".join(
        cipher.encrypt(index.to_bytes(11, "big") + bytes([index == first + len(chunks) - 1]), chunk, None)
        for index, chunk in enumerate(chunks, first)
    )


def age_file(lines: bytes, *, chunks: Sequence[bytes] = (b"hello",), version: bytes = VERSION) -> bytes:
    """A file with these lines between version line and MAC line."""
    covered = version + lines + b"---"
    return covered + b" " + b64(mac(covered)) + b"\n" + NONCE + payload(chunks)
