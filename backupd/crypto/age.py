"""age v1 with X25519 recipients, written and read as streams: https://c2sp.org/age ("the C2SP age spec").

What is written here opens with `age -d -i IDENTITY_FILE`, and the other way round. Wrong data raises
IntegrityError (exit 7), a wrong recipient or identity text ConfigError (exit 2); no error shows a secret.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ..errors import ConfigError, IntegrityError, WrongKeyError
from . import age_header
from .age_header import Buffer, HeaderError, Stanza
from .age_keys import FILE_KEY, Identity, Recipient, parse_identities

__all__ = [
    "CHUNK",
    "Identity",
    "RandomAccess",
    "Recipient",
    "Sealer",
    "open_stream",
    "parse_identities",
    "plaintext_size",
]

CHUNK = 65536  # bytes of plaintext that are encrypted, and authenticated, together
TAG = 16  # bytes by which encryption makes a chunk longer

_SEALED = CHUNK + TAG
_PROBE = 16 << 10  # bytes read at a time while looking for the end of a header
_DAMAGE_HINT = "It was damaged or replaced after it was written: restore another backup, or another copy of this one."


class Sealer:
    """Encrypts one stream, once: a second one under the same keys would give both away.

    `header` is what the encrypted stream starts with: the age header and the 16-byte nonce of the payload.
    Raises ConfigError if there is no recipient, or more than a header holds.
    """

    def __init__(self, recipients: Iterable[Recipient]) -> None:
        file_key, nonce = os.urandom(FILE_KEY), os.urandom(age_header.NONCE)
        stanzas = [recipient.wrap(file_key) for recipient in recipients]
        header = age_header.write(stanzas, file_key)
        if not stanzas or len(header) > age_header.MAX_HEADER:
            raise ConfigError(
                f"Nothing can be encrypted to {len(stanzas)} age recipients", hint="Name 1 to 600 of them."
            )
        self.header = header + nonce
        self._cipher: ChaCha20Poly1305 | None = _payload_cipher(file_key, nonce)

    def seal(self, chunks: Iterable[Buffer]) -> Iterator[bytes]:
        """Yield the header, then the encrypted chunks, 64 KiB + 16 bytes each but the last.

        The pieces of plaintext may have any size, also none; multiples of 64 KiB as `bytes` are not copied.
        """
        cipher, self._cipher = self._cipher, None
        if cipher is None:
            raise RuntimeError("a Sealer encrypts one stream only")
        return self._sealed(cipher, chunks)

    def _sealed(self, cipher: ChaCha20Poly1305, chunks: Iterable[Buffer]) -> Iterator[bytes]:
        yield self.header
        for index, (chunk, last) in enumerate(_cut(chunks, CHUNK)):
            yield cipher.encrypt(_chunk_nonce(index, last), chunk, None)


def open_stream(
    identities: Sequence[Identity],
    chunks: Iterable[Buffer],
    *,
    header_sha256: str | None = None,
    what: str = "the age file",
) -> Iterator[bytes]:
    """Decrypt an age file: yields its plaintext, 64 KiB at a time, each piece authenticated before it is yielded.

    The pieces of ciphertext may have any size. Only the end of the iteration says that the plaintext is complete.
    `header_sha256` is the SHA-256 (hex) of header and nonce, if it is known from elsewhere: who knows a
    recipient can write a valid age file, but not one with this header. `what` names the data in errors.
    Raises IntegrityError for data that is not exactly what a Sealer wrote for one of the identities.
    """
    pieces = iter(chunks)
    cipher, _, rest = _open_header(identities, pieces, header_sha256, what)
    for index, (sealed, last) in enumerate(_cut(chain([rest], pieces), _SEALED)):
        yield _open_chunk(cipher, sealed, index, last, what)


def plaintext_size(stored_size: int, header_size: int, what: str = "the age file") -> int:
    """Bytes of plaintext in an age file of `stored_size` bytes, `header_size` of them header and nonce.

    That is arithmetic, not proof. Raises IntegrityError if no age file has this size.
    """
    payload = stored_size - header_size
    chunks = -(-payload // _SEALED)
    last = payload - (chunks - 1) * _SEALED
    if payload < TAG or (chunks > 1 and last <= TAG):
        raise _damaged(what, f"No age file with a header of {header_size} bytes is {stored_size} bytes long.")
    return payload - chunks * TAG


class RandomAccess:
    """An age file read at any place, through `read_at(offset, length)`, which returns stored bytes of a file of `size`.

    The last chunk is decrypted first, so that `size`, the plaintext's in bytes, is authenticated. Otherwise
    arguments and errors are those of `open_stream`. Not for use by several threads at once.
    """

    def __init__(
        self,
        identities: Sequence[Identity],
        read_at: Callable[[int, int], bytes],
        size: int,
        header_sha256: str | None = None,
        *,
        what: str = "the age file",
    ) -> None:
        self._read_at, self._stored, self._what = read_at, size, what
        pieces = (self._fetch(at, at + _PROBE) for at in range(0, size, _PROBE))
        self._cipher, self._start, _ = _open_header(identities, pieces, header_sha256, what)
        self.size = plaintext_size(size, self._start, what)
        self._last = max(0, self.size - 1) // CHUNK  # index of the last chunk
        self._held = self._last, self._chunks(self._last, self._last)[0]

    def read(self, offset: int, length: int) -> bytes:
        """The plaintext from `offset`, `length` bytes of it or what there is before the end.

        One call of `read_at` fetches the chunks this touches; the chunk used last is kept.
        """
        if offset < 0 or length < 0:
            raise ValueError("offset and length are never negative")
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        first, last = offset // CHUNK, (end - 1) // CHUNK
        if first == last == self._held[0]:
            chunks = [self._held[1]]
        else:
            chunks = self._chunks(first, last)
            self._held = last, chunks[-1]
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return data[offset - first * CHUNK : end - first * CHUNK]

    def _chunks(self, first: int, last: int) -> list[bytes]:
        sealed = memoryview(self._fetch(self._start + first * _SEALED, self._start + (last + 1) * _SEALED))
        return [
            _open_chunk(self._cipher, sealed[at : at + _SEALED], index, index == self._last, self._what)
            for index, at in enumerate(range(0, len(sealed), _SEALED), first)
        ]

    def _fetch(self, start: int, end: int) -> bytes:
        end = min(end, self._stored)
        data = self._read_at(start, end - start)
        if len(data) != end - start:
            raise _damaged(self._what, f"{len(data)} bytes came back for the {end - start} from offset {start}.")
        return data


def _open_header(
    identities: Sequence[Identity], pieces: Iterator[Buffer], sha256: str | None, what: str
) -> tuple[ChaCha20Poly1305, int, bytes]:
    """The payload's cipher, the size of header and nonce, and the payload bytes that were read with them."""
    try:
        header, nonce, rest = age_header.split(pieces)
        found = hashlib.sha256(header + nonce).hexdigest()
        if sha256 is not None and found != sha256:
            raise IntegrityError(
                f"{what} is not the object that was written",
                detail=f"Its age header has the SHA-256 {found}, where {sha256} was recorded.",
                hint=_DAMAGE_HINT,
            )
        stanzas = age_header.parse(header)
        file_key = _find_file_key(stanzas, identities)
    except HeaderError as error:
        raise IntegrityError(
            f"{what} has a malformed age header", detail=f"The reason: {error}.", hint=_DAMAGE_HINT
        ) from None
    if file_key is None:
        raise WrongKeyError(
            f"None of the {len(identities)} identities opens {what}, which has {len(stanzas)} recipients"
            if len(identities) != 1
            else f"The one identity given does not open {what}, which has {len(stanzas)} recipients",
            detail="Identities given: " + (", ".join(str(identity.recipient) for identity in identities) or "none"),
            hint="Use an identity file with the secret key of one of the recipients it was encrypted to.",
        )
    if not age_header.mac_matches(header, file_key):
        raise IntegrityError(f"{what} has a forged age header", detail="Its MAC doesn't match.", hint=_DAMAGE_HINT)
    return _payload_cipher(file_key, nonce), len(header) + len(nonce), rest


def _find_file_key(stanzas: Sequence[Stanza], identities: Sequence[Identity]) -> bytes | None:
    """The first file key that an identity unwraps. Stanzas of unknown types are passed over, as the spec asks."""
    mine = [stanza for stanza in stanzas if stanza.type == "X25519"]
    for stanza in mine:
        if len(stanza.args) != 1 or len(age_header.decode(stanza.args[0].encode())) != 32:
            raise HeaderError("it has an X25519 stanza without exactly one share of 32 bytes")
        if len(stanza.body) != FILE_KEY + TAG:
            raise HeaderError("it has an X25519 stanza whose body is not 32 bytes long")
    if len(stanzas) > 1 and any(stanza.type == "scrypt" for stanza in stanzas):
        raise HeaderError("it has a passphrase stanza beside others")
    keys = (identity.unwrap(stanza) for identity in identities for stanza in mine)
    return next((key for key in keys if key is not None), None)


def _payload_cipher(file_key: bytes, nonce: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(age_header.hkdf(file_key, salt=nonce, info=b"payload"))


def _chunk_nonce(index: int, last: bool) -> bytes:
    return index.to_bytes(11, "big") + (b"\x01" if last else b"\x00")


def _cut(pieces: Iterable[Buffer], size: int) -> Iterator[tuple[Buffer, bool]]:
    """Cut a stream into chunks of `size` bytes, each with whether it is the last: that one may be shorter.

    The last chunk is empty only if the stream is. It is known by nothing coming after it, so one chunk is held
    back. Chunks are views of their piece; only what spans pieces is copied, once.
    """
    held: list[memoryview] = []
    length = 0  # of what is held: at most `size`
    for piece in pieces:
        # A mutable buffer may change while a view of it is held back.
        view = memoryview(piece if isinstance(piece, bytes) else bytes(piece))
        start = 0
        if length + len(view) > size:
            if held:
                start = size - length
                yield _joined([*held, view[:start]] if start else held), False
                held, length = [], 0
            while len(view) - start > size:
                yield view[start : start + size], False
                start += size
        if start < len(view):
            held.append(view[start:])
            length += len(view) - start
    yield _joined(held), True


def _joined(views: list[memoryview]) -> Buffer:
    return views[0] if len(views) == 1 else b"".join(views)


def _open_chunk(cipher: ChaCha20Poly1305, sealed: Buffer, index: int, last: bool, what: str) -> bytes:
    if len(sealed) < TAG or (len(sealed) == TAG and index):
        raise _damaged(what, f"Its last chunk, number {index}, is cut short or empty.")
    try:
        return cipher.decrypt(_chunk_nonce(index, last), sealed, None)
    except InvalidTag:
        pass
    try:  # only to say what is wrong: as the other kind of chunk, the last or not, it may be genuine
        cipher.decrypt(_chunk_nonce(index, not last), sealed, None)
    except InvalidTag:
        raise _damaged(what, f"Chunk {index}, from byte {index * CHUNK} of the plaintext, is not authentic.") from None
    if last:
        raise _damaged(what, f"It is cut short: what follows chunk {index} is missing.")
    raise _damaged(what, f"There is data after its end, chunk {index}.")


def _damaged(what: str, detail: str) -> IntegrityError:
    return IntegrityError(f"{what} is damaged", detail=detail, hint=_DAMAGE_HINT)
