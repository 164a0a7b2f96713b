"""A password as PostgreSQL keeps it: https://www.rfc-editor.org/rfc/rfc5802, with SHA-256 (RFC 7677)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

_SALT = 16  # bytes


def verifier(password: str) -> str:
    """What `PASSWORD '…'` and initdb's --pwfile take instead of a random password: it does not tell the password.

    With one iteration: more only slow down whoever guesses, and 24 random bytes can't be guessed; but they would slow
    down every connection, by some 20 ms.
    """
    salt = secrets.token_bytes(_SALT)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 1)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    texts = (base64.b64encode(data).decode() for data in (salt, stored, server))
    return "SCRAM-SHA-256$1:{}${}:{}".format(*texts)
