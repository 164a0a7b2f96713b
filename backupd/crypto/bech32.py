"""Bech32, the checksummed text form of age keys: BIP 173, without its limit of 90 characters (C2SP age spec)."""

from __future__ import annotations

from collections.abc import Iterable

_CHARSET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VALUES = {character: value for value, character in enumerate(_CHARSET)}
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM = 6  # characters


def encode(prefix: str, data: bytes) -> str:
    """`data` as Bech32 under `prefix` (lower case; BIP 173 calls it the human-readable part), in lower case."""
    values = _regroup(data, 8, 5)
    if extra := len(data) * 8 % 5:
        tail = data[-1] << (5 - extra) & 31
        values.append(tail)
    checksum = _polymod([*_expand(prefix), *values, *[0] * _CHECKSUM]) ^ 1
    values += [checksum >> 5 * (_CHECKSUM - 1 - i) & 31 for i in range(_CHECKSUM)]
    return prefix + "1" + "".join(_CHARSET[value] for value in values)


def decode(text: str) -> tuple[str, bytes]:
    """The prefix, in the case it was written in, and the data.

    Raises ValueError with a reason that never quotes the text, which may be a secret.
    """
    if any(not 33 <= ord(character) <= 126 for character in text):
        raise ValueError("it holds a character that no key has")
    if text not in (text.lower(), text.upper()):
        raise ValueError("it mixes upper and lower case")
    prefix, _, rest = text.rpartition("1")
    if not prefix or len(rest) < _CHECKSUM:
        raise ValueError("it is too short")
    if any(character not in _VALUES for character in rest.lower()):
        raise ValueError("it holds a character that no key has")
    values = [_VALUES[character] for character in rest.lower()]
    if _polymod([*_expand(prefix.lower()), *values]) != 1:
        raise ValueError("its checksum is wrong: a character was mistyped or lost")
    values = values[:-_CHECKSUM]
    extra = len(values) * 5 % 8
    if extra >= 5 or (values and values[-1] & ((1 << extra) - 1)):
        raise ValueError("its padding is wrong")
    return prefix, bytes(_regroup(values, 5, 8))


def _regroup(values: Iterable[int], width: int, into: int) -> list[int]:
    """Groups of `width` bits as groups of `into` bits; an incomplete last group is left out."""
    held = bits = 0
    groups = []
    for value in values:
        held, bits = held << width | value, bits + width
        while bits >= into:
            bits -= into
            groups.append(held >> bits)
            held &= (1 << bits) - 1
    return groups


def _expand(prefix: str) -> list[int]:
    return [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]


def _polymod(values: Iterable[int]) -> int:
    check = 1
    for value in values:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
        for i, generator in enumerate(_GENERATOR):
            if top >> i & 1:
                check ^= generator
    return check
