"""The keys of age's X25519 recipient type: their text forms, and how they wrap a file key (C2SP age spec)."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ..errors import ConfigError
from . import age_header, bech32
from .age_header import HeaderError, Stanza

FILE_KEY = 16  # bytes

_RECIPIENT = "age"
_IDENTITY = "AGE-SECRET-KEY-"
_WRAP_INFO = b"age-encryption.org/v1/X25519"
_WRAP_NONCE = bytes(12)  # every wrap key is used once


@dataclass(frozen=True, slots=True)
class Recipient:
    """A public key to encrypt to."""

    key: bytes  # 32, a point of X25519

    def __str__(self) -> str:
        return bech32.encode(_RECIPIENT, self.key)

    @classmethod
    def parse(cls, text: str) -> Recipient:
        """From `age1…`; ConfigError if it is anything else."""
        hint = "A recipient is what `age-keygen` prints as the public key: age1 and 58 characters."
        if not text.startswith("age1"):  # so it may be anything, also a secret key: it isn't quoted
            if _IDENTITY in text.upper():
                message = "A secret age identity stands where an age recipient belongs"
                hint = "Write its public key there: `age-keygen -y IDENTITY_FILE` prints it."
            else:
                message = "This is not an age X25519 recipient: it does not start with age1"
            raise ConfigError(message, hint=hint)
        try:
            recipient = cls(_decode(text, _RECIPIENT))
            recipient.wrap(bytes(FILE_KEY))
        except ValueError as error:
            message = f"{text!r} is not an age X25519 recipient"
            raise ConfigError(message, detail=_sentence(error), hint=hint) from None
        return recipient

    def wrap(self, file_key: bytes) -> Stanza:
        """The file key for this recipient; ValueError for one of the few points that give all senders one secret."""
        ephemeral = X25519PrivateKey.generate()
        share = ephemeral.public_key().public_bytes_raw()
        try:
            shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(self.key))
        except ValueError:
            raise ValueError("it is a point of low order, which hides nothing") from None
        cipher = _wrap_cipher(shared, share, self)
        return Stanza("X25519", (age_header.encode(share).decode(),), cipher.encrypt(_WRAP_NONCE, file_key, None))


class Identity:
    """A secret key; what it shows of itself is its public half."""

    __slots__ = ("_key", "recipient")

    def __init__(self, key: X25519PrivateKey) -> None:
        self._key = key
        self.recipient = Recipient(key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"<Identity of {self.recipient}>"

    @classmethod
    def generate(cls) -> Identity:
        return cls(X25519PrivateKey.generate())

    @classmethod
    def parse(cls, text: str) -> Identity:
        """From `AGE-SECRET-KEY-1…`; ConfigError, which doesn't quote it, if it is anything else."""
        try:
            return cls(X25519PrivateKey.from_private_bytes(_decode(text, _IDENTITY)))
        except ValueError as error:
            raise ConfigError(
                "This is not an age X25519 identity",
                detail=_sentence(error),
                hint="An identity is what `age-keygen` writes: AGE-SECRET-KEY-1 and 58 characters, all upper case.",
            ) from None

    def encode(self) -> str:
        """The secret key as text: `AGE-SECRET-KEY-1…`."""
        return bech32.encode(_IDENTITY.lower(), self._key.private_bytes_raw()).upper()

    def unwrap(self, stanza: Stanza) -> bytes | None:
        """The file key, or None if the stanza is for somebody else. HeaderError for a share that hides nothing."""
        share = age_header.decode(stanza.args[0].encode())
        try:
            shared = self._key.exchange(X25519PublicKey.from_public_bytes(share))
        except ValueError:  # all zero: the sender chose a point of low order
            raise HeaderError("it has an X25519 stanza whose share is a point of low order") from None
        try:
            return _wrap_cipher(shared, share, self.recipient).decrypt(_WRAP_NONCE, stanza.body, None)
        except InvalidTag:
            return None


def parse_identities(text: str, where: str) -> list[Identity]:
    """The identities of an age identity file: one a line, with `#` comments and empty lines. `where` names the file.

    Raises ConfigError, which names file and line and never quotes the content, also if there is none.
    """
    if text.startswith(("age-encryption.org/", "-----BEGIN AGE")):
        raise ConfigError(
            f"{where} is encrypted itself", hint="Identity files are read as they are: decrypt it with `age -d` first."
        )
    identities = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            try:
                identities.append(Identity.parse(line))
            except ConfigError as error:
                message = f"{where}, line {number}: not an age X25519 identity"
                raise ConfigError(message, detail=error.detail, hint=error.hint) from None
    if not identities:
        raise ConfigError(f"{where} holds no age identity", hint="`age-keygen` makes one.")
    return identities


def _wrap_cipher(shared: bytes, share: bytes, recipient: Recipient) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(age_header.hkdf(shared, salt=share + recipient.key, info=_WRAP_INFO))


def _decode(text: str, prefix: str) -> bytes:
    """The 32 bytes of a key; ValueError, which doesn't quote it, for anything else."""
    found, key = bech32.decode(text)
    if found != prefix or len(key) != 32:
        raise ValueError("it is a key of another kind")
    return key


def _sentence(error: ValueError) -> str:
    reason = str(error)
    return reason[:1].upper() + reason[1:] + "."
