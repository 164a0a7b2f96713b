"""age headers that the format forbids, each with a valid MAC unless the MAC is the point."""

from __future__ import annotations

import pytest

from backupd.crypto import age_header
from backupd.crypto.age import Identity, open_stream
from backupd.errors import IntegrityError

from .age_builder import NONCE, SHARE, VERSION, age_file, b64, mac, payload, x25519, x25519_body

IDENTITY = Identity.generate()
ME = IDENTITY.recipient.key
OTHER = Identity.generate().recipient.key
STANZA = x25519(ME)
BODY = b64(x25519_body(ME)) + b"\n"
ARGUMENTS = b"-> X25519 " + b64(SHARE) + b"\n"
FULL_LINE = b"A" * 64 + b"\n"
SCRYPT = b"-> scrypt " + b64(bytes(16)) + b" 18\n" + b64(bytes(32)) + b"\n"


def opened(stored: bytes) -> bytes:
    return b"".join(open_stream([IDENTITY], [stored], what="The object"))


def mac_line(line: bytes) -> bytes:
    return VERSION + STANZA + line + NONCE + payload([b"hello"])


RIGHT_MAC = b64(mac(VERSION + STANZA + b"---"))


def not_canonical(text: bytes) -> bytes:
    """The same bytes in base64, with a bit set that no byte uses."""
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return text[:-1] + bytes([alphabet[alphabet.index(text[-1]) | 1]])


def stanza(arguments: bytes = ARGUMENTS, body: bytes = BODY) -> bytes:
    return age_file(arguments + body)


ACCEPTED = {
    "one recipient": age_file(STANZA),
    "second of two": age_file(x25519(OTHER) + STANZA),
    "twice the same": age_file(STANZA + STANZA),
    "an unknown type first": age_file(b"-> %gr3@se a/b ~ !\nAAAA\n" + STANZA),
    "an unknown type last": age_file(STANZA + b"-> example.com/enigma\n\n"),
    "a body of one full line": age_file(b"-> grease\n" + FULL_LINE + b"\n" + STANZA),
    "a body of many lines": age_file(b"-> grease\n" + FULL_LINE * 20 + b"AA\n" + STANZA),
    "large, but not too large": age_file(b"-> grease\n" + FULL_LINE * 1000 + b"\n" + STANZA),
}

VERSION_REASON = "version line is not"
NO_AGE_REASON = "does not start as an age file"
START_REASON = "does not start a stanza as it should"
BASE64_REASON = "not canonical base64"
SHARE_REASON = "without exactly one share of 32 bytes"
BODY_REASON = "body is not 32 bytes"
SHORT_REASON = "lacks its short last line"
MAC_REASON = "not a MAC of 32 bytes"
END_REASON = "ends before the header"

REFUSED = {
    "version 2": (age_file(STANZA, version=b"age-encryption.org/v2\n"), VERSION_REASON),
    "version with CR": (age_file(STANZA, version=VERSION[:-1] + b"\r\n"), VERSION_REASON),
    "version with a space": (age_file(STANZA, version=VERSION[:-1] + b" \n"), VERSION_REASON),
    "no version": (age_file(STANZA, version=b""), NO_AGE_REASON),
    "blank line before": (age_file(STANZA, version=b"\n" + VERSION), NO_AGE_REASON),
    "upper-case version": (age_file(STANZA, version=b"AGE-encryption.org/v1\n"), NO_AGE_REASON),
    "armored": (b"-----BEGIN AGE ENCRYPTED FILE-----\nYWdlLWVuY3J5cHRpb24=\n", "ASCII-armored"),
    "empty": (b"", END_REASON),
    "no stanza": (age_file(b""), "no recipient"),
    "CR everywhere": (age_file(STANZA.replace(b"\n", b"\r\n")), START_REASON),
    "CR after the body": (stanza(body=BODY[:-1] + b"\r\n"), BASE64_REASON),
    "no arguments": (stanza(b"->\n"), START_REASON),
    "an empty argument": (stanza(b"-> \n"), START_REASON),
    "two spaces at first": (stanza(b"->  X25519 " + b64(SHARE) + b"\n"), START_REASON),
    "two spaces between": (stanza(b"-> X25519  " + b64(SHARE) + b"\n"), START_REASON),
    "a space at the end": (stanza(ARGUMENTS[:-1] + b" \n"), START_REASON),
    "no space": (stanza(ARGUMENTS.replace(b"-> ", b"->")), START_REASON),
    "a tab": (age_file(b"-> grease a\tb\n\n" + STANZA), START_REASON),
    "not ASCII": (age_file(b"-> grease \xc3\xa9\n\n" + STANZA), START_REASON),
    "DEL": (age_file(b"-> grease \x7f\n\n" + STANZA), START_REASON),
    "NUL": (age_file(b"-> grease \x00\n\n" + STANZA), START_REASON),
    "another start": (stanza(b"=" + ARGUMENTS[1:]), START_REASON),
    "a blank line between": (age_file(STANZA + b"\n" + STANZA), START_REASON),
    "a line after the short one": (stanza(body=BODY + b"AAAA\n"), START_REASON),
    "body padded": (stanza(body=BODY[:-1] + b"=\n"), BASE64_REASON),
    "body not canonical": (stanza(body=not_canonical(BODY[:-1]) + b"\n"), BASE64_REASON),
    "body of the URL alphabet": (age_file(b"-> grease\nAA_A\n" + STANZA), BASE64_REASON),
    "body with a space": (age_file(b"-> grease\nAA AA\n" + STANZA), BASE64_REASON),
    "body of 4n+1 characters": (age_file(b"-> grease\nAAAAA\n" + STANZA), BASE64_REASON),
    "unknown type, body not canonical": (age_file(b"-> grease\nAB\n" + STANZA), BASE64_REASON),
    "body line too long": (age_file(b"-> grease\n" + b"A" * 68 + b"\n" + STANZA), "longer than 64 characters"),
    "no short last line": (age_file(STANZA + b"-> grease\n" + FULL_LINE), SHORT_REASON),
    "no short last line, another follows": (age_file(b"-> grease\n" + FULL_LINE + STANZA), SHORT_REASON),
    "no body at all": (age_file(b"-> grease\n" + STANZA), SHORT_REASON),
    "X25519 without share": (stanza(b"-> X25519\n"), SHARE_REASON),
    "X25519 with more": (stanza(ARGUMENTS[:-1] + b" more\n"), SHARE_REASON),
    "a share too short": (stanza(b"-> X25519 " + b64(SHARE[:31]) + b"\n"), SHARE_REASON),
    "a share too long": (stanza(b"-> X25519 " + b64(SHARE + b"\0") + b"\n"), SHARE_REASON),
    "a share not canonical": (stanza(b"-> X25519 " + not_canonical(b64(SHARE)) + b"\n"), BASE64_REASON),
    "a share padded": (stanza(b"-> X25519 " + b64(SHARE) + b"=\n"), BASE64_REASON),
    "a body too short": (stanza(body=b64(bytes(31)) + b"\n"), BODY_REASON),
    "a body too long": (stanza(body=b64(x25519_body(ME, bytes(17))) + b"\n"), BODY_REASON),
    "an empty body": (stanza(body=b"\n"), BODY_REASON),
    "malformed after the one that fits": (age_file(STANZA + b"-> X25519\n" + BODY), SHARE_REASON),
    "low order: zero": (stanza(b"-> X25519 " + b64(bytes(32)) + b"\n"), "low order"),
    "low order: one": (stanza(b"-> X25519 " + b64(b"\1" + bytes(31)) + b"\n"), "low order"),
    "scrypt beside another": (age_file(SCRYPT + STANZA), "passphrase stanza beside"),
    "scrypt after another": (age_file(STANZA + SCRYPT), "passphrase stanza beside"),
    "too large": (age_file(b"-> grease\n" + FULL_LINE * 1030 + b"\n" + STANZA), "longer than 65536"),
    "too large, without an end": (VERSION + b"-> grease\n" + FULL_LINE * 2000, "longer than 65536"),
    "no MAC line": (VERSION + STANZA + NONCE + payload([b"hello"]), END_REASON),
    "MAC missing": (mac_line(b"---\n"), MAC_REASON),
    "MAC empty": (mac_line(b"--- \n"), MAC_REASON),
    "MAC without a space": (mac_line(b"---" + RIGHT_MAC + b"\n"), MAC_REASON),
    "MAC after two spaces": (mac_line(b"---  " + RIGHT_MAC + b"\n"), BASE64_REASON),
    "MAC before a space": (mac_line(b"--- " + RIGHT_MAC + b" \n"), BASE64_REASON),
    "MAC before CR": (mac_line(b"--- " + RIGHT_MAC + b"\r\n"), BASE64_REASON),
    "MAC padded": (mac_line(b"--- " + RIGHT_MAC + b"=\n"), BASE64_REASON),
    "MAC not canonical": (mac_line(b"--- " + not_canonical(RIGHT_MAC) + b"\n"), BASE64_REASON),
    "MAC of 31 bytes": (mac_line(b"--- " + b"A" * 42 + b"\n"), MAC_REASON),
    "MAC of 24 bytes": (mac_line(b"--- " + RIGHT_MAC[:32] + b"\n"), MAC_REASON),
    "MAC of another header": (mac_line(b"--- " + b64(mac(VERSION + b"---")) + b"\n"), "MAC doesn't match"),
    "a stanza added under an old MAC": (age_file(STANZA).replace(STANZA, STANZA + b"-> x\n\n"), "MAC doesn't match"),
}


@pytest.mark.parametrize("stored", ACCEPTED.values(), ids=ACCEPTED)
def test_headers_the_format_allows_open(stored: bytes) -> None:
    assert opened(stored) == b"hello"
    assert b"".join(open_stream([IDENTITY], [stored[i : i + 1] for i in range(len(stored))])) == b"hello"


@pytest.mark.parametrize("stored, reason", REFUSED.values(), ids=REFUSED)
def test_headers_the_format_forbids_are_refused_for_their_own_reason(stored: bytes, reason: str) -> None:
    with pytest.raises(IntegrityError) as error:
        opened(stored)
    assert reason in error.value.detail
    assert error.value.message.startswith("The object has a ")
    assert error.value.hint


@pytest.mark.parametrize("size", [0, 1, 31, 47, 48, 49, 95, 96, 97])
def test_bodies_of_any_length_are_wrapped_as_the_format_wants(size: int) -> None:
    stanza = age_header.Stanza("grease", ("a", "b"), bytes(size))
    header = age_header.write([stanza, stanza], bytes(16))
    assert age_header.parse(header) == [stanza, stanza]
    assert age_header.mac_matches(header, bytes(16))
    assert not age_header.mac_matches(header, b"x" * 16)
    assert max(map(len, header.split(b"\n"))) <= 64


def test_a_file_for_others_says_who_cannot_open_it() -> None:
    lines = x25519(OTHER) + STANZA.replace(b"X25519", b"x25519") + b"-> grease\n\n"
    with pytest.raises(IntegrityError) as error:
        opened(age_file(lines))
    assert error.value.message == "The one identity given does not open The object, which has 3 recipients"
    assert str(IDENTITY.recipient) in error.value.detail
    with pytest.raises(IntegrityError, match="None of the 2 identities opens X, which has 3 recipients"):
        next(open_stream([IDENTITY, IDENTITY], [age_file(lines)], what="X"))
    with pytest.raises(IntegrityError, match="None of the 0 identities"):
        next(open_stream([], [age_file(lines)]))


def test_a_file_with_a_passphrase_is_for_others() -> None:
    with pytest.raises(IntegrityError, match="does not open"):
        opened(age_file(SCRYPT))


def test_any_identity_that_fits_is_enough() -> None:
    stored = age_file(x25519(OTHER) + STANZA)
    assert b"".join(open_stream([Identity.generate(), IDENTITY], [stored])) == b"hello"
