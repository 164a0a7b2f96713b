"""The textual header of an age file, read and written: version line, recipient stanzas, MAC (C2SP age spec, v1).

Nothing here knows a key type or a secret key; age.py does.
"""

from __future__ import annotations

import binascii
import hmac
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Buffer: TypeAlias = bytes | bytearray | memoryview

VERSION_LINE = b"age-encryption.org/v1\n"
NONCE = 16  # bytes between header and payload, from which the payload key is derived
MAX_HEADER = 64 << 10  # bytes; some 650 recipients. The format has no limit, but a reader's memory has.

_COLUMNS = 64
_FAMILY = b"age-encryption.org/"
_ARMOR = b"-----BEGIN AGE"
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*")
_ARGUMENTS = re.compile(rb"-> [!-~]+(?: [!-~]+)*")


class HeaderError(ValueError):
    """The bytes are no age v1 header; the text is the reason, without any of the bytes."""


@dataclass(frozen=True, slots=True)
class Stanza:
    """The file key, wrapped for one recipient."""

    type: str
    args: tuple[str, ...]  # after the type
    body: bytes


def hkdf(key: bytes, *, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA-256, 32 bytes: every key that age derives."""
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(key)


def encode(raw: bytes) -> bytes:
    """Base64 without padding."""
    return binascii.b2a_base64(raw, newline=False).rstrip(b"=")


def decode(text: bytes) -> bytes:
    """Base64 without padding, and only in the one canonical spelling; HeaderError otherwise."""
    if _BASE64.fullmatch(text) and len(text) % 4 != 1:
        raw = binascii.a2b_base64(text + b"=" * (-len(text) % 4))
        if encode(raw) == text:
            return raw
    raise HeaderError("what should be base64 is not canonical base64 without padding")


def write(stanzas: Iterable[Stanza], file_key: bytes) -> bytes:
    """The whole header, MAC line included."""
    lines = [VERSION_LINE]
    for stanza in stanzas:
        lines.append(" ".join(("->", stanza.type, *stanza.args)).encode("ascii") + b"\n")
        body = encode(stanza.body)
        # One line more than is full: the last line is always short, and empty if need be.
        lines += [body[i : i + _COLUMNS] + b"\n" for i in range(0, len(body) + 1, _COLUMNS)]
    covered = b"".join([*lines, b"---"])
    return covered + b" " + encode(_mac(covered, file_key)) + b"\n"


def mac_matches(header: bytes, file_key: bytes) -> bool:
    """Whether who wrote this (well-formed) header knew the file key."""
    covered, _, mac = header.rpartition(b" ")
    return hmac.compare_digest(_mac(covered, file_key), decode(mac.rstrip(b"\n")))


def split(pieces: Iterator[Buffer]) -> tuple[bytes, bytes, bytes]:
    """Read from a stream as much as holds the header: (header, nonce, payload bytes that were read with them).

    Only the version line and the length are looked at, so that the header's hash can be checked before `parse`
    believes anything. Raises HeaderError.
    """
    data = bytearray()
    mark = end = -1  # where the last line's dashes and its line feed are
    for piece in pieces:
        since = max(0, len(data) - 3)
        data += piece
        if not data.startswith(VERSION_LINE[: len(data)]):
            raise HeaderError(_not_v1(data))
        # A body line can't hold a dash, so the first line that starts with --- ends the header, or is an error.
        mark = data.find(b"\n---", since) if mark < 0 else mark
        end = data.find(b"\n", mark + 1) if end < 0 <= mark else end
        if (end if end >= 0 else len(data)) >= MAX_HEADER:
            raise HeaderError(f"it is longer than {MAX_HEADER} bytes")
        if 0 <= end < len(data) - NONCE:
            break
    else:
        raise HeaderError("the data ends before the header and the nonce after it are complete")
    nonce = end + 1
    return bytes(data[:nonce]), bytes(data[nonce : nonce + NONCE]), bytes(memoryview(data)[nonce + NONCE :])


def _not_v1(data: bytearray) -> str:
    if data.startswith(_FAMILY):
        return "its version line is not that of age v1"
    if data.startswith(_ARMOR):
        return "it is ASCII-armored; only binary age files are read here"
    return "it does not start as an age file does"


def parse(header: bytes) -> list[Stanza]:
    """The stanzas of a header that `split` found, in order, at least one. Raises HeaderError."""
    *lines, mac, after = header.split(b"\n")
    if after or not lines or lines[0] + b"\n" != VERSION_LINE:
        raise HeaderError("its version line is not that of age v1")
    if not mac.startswith(b"--- ") or len(decode(mac[4:])) != 32:
        raise HeaderError("its last line is not a MAC of 32 bytes")
    stanzas = []
    position = 1
    while position < len(lines):
        stanza, position = _stanza(lines, position)
        stanzas.append(stanza)
    if not stanzas:
        raise HeaderError("it has no recipient")
    return stanzas


def _stanza(lines: list[bytes], position: int) -> tuple[Stanza, int]:
    """The stanza whose first line is at `position`, and the position after its last."""
    line = lines[position]
    if not _ARGUMENTS.fullmatch(line):
        raise HeaderError(f"line {position + 1} does not start a stanza as it should")
    kind, *args = line[3:].decode("ascii").split(" ")
    body = b""
    for number, line in enumerate(lines[position + 1 :], position + 2):
        if len(line) > _COLUMNS:
            raise HeaderError(f"line {number} is longer than {_COLUMNS} characters")
        if line.startswith(b"->"):
            break
        body += decode(line)
        if len(line) < _COLUMNS:
            return Stanza(kind, tuple(args), body), number
    raise HeaderError(f"the stanza at line {position + 1} lacks its short last line")


def _mac(covered: bytes, file_key: bytes) -> bytes:
    return hmac.digest(hkdf(file_key, salt=b"", info=b"header"), covered, "sha256")
