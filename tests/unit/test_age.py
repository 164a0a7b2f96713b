"""age streams: what goes in comes out, and nothing else ever does."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backupd.crypto.age import (
    CHUNK,
    Identity,
    RandomAccess,
    Sealer,
    open_stream,
    plaintext_size,
)
from backupd.errors import ConfigError, IntegrityError

from .age_builder import age_file, payload, x25519

IDENTITY = Identity.generate()
PLAIN = random.Random(1).randbytes(3 * CHUNK + 100)
SEALED = CHUNK + 16  # a chunk as it is stored

near_chunks = st.builds(lambda chunks, delta: max(0, chunks * CHUNK + delta), st.integers(0, 3), st.integers(-18, 18))
sizes = st.integers(0, 200) | near_chunks | st.integers(0, len(PLAIN))
splits = st.lists(st.integers(1, 3 * CHUNK) | st.integers(1, 40) | st.just(CHUNK), min_size=1, max_size=6)


def pieces(data: bytes, split: list[int]) -> Iterator[bytes]:
    """The data in pieces of these sizes, over and over, with an empty one here and there."""
    position = 0
    for size in itertools.cycle(split):
        if position >= len(data):
            return
        yield data[position : position + max(size, 16)]
        yield b""
        position += max(size, 16)


def seal(plain: bytes) -> tuple[bytes, int]:
    """What is stored, and how much of it is header and nonce."""
    sealer = Sealer([IDENTITY.recipient])
    return b"".join(sealer.seal([plain])), len(sealer.header)


def opened(stored: bytes) -> bytes:
    return b"".join(open_stream([IDENTITY], [stored]))


STORED, HEADER = seal(PLAIN)


def refused(stored: bytes, plain: bytes = PLAIN) -> str:
    """The reason for which it is refused; what was yielded before is a true beginning of the plaintext."""
    got = b""
    with pytest.raises(IntegrityError) as error:
        for chunk in open_stream([IDENTITY], [stored]):
            got += chunk
    assert plain.startswith(got)
    assert error.value.hint
    return error.value.detail


@given(size=sizes, split=splits, stored_split=splits)
def test_what_is_sealed_opens(size: int, split: list[int], stored_split: list[int]) -> None:
    plain = PLAIN[:size]
    sealer = Sealer([Identity.generate().recipient, IDENTITY.recipient])
    stored = b"".join(sealer.seal(pieces(plain, split)))
    assert stored.startswith(sealer.header)
    assert plaintext_size(len(stored), len(sealer.header)) == size
    chunks = list(open_stream([IDENTITY], pieces(stored, stored_split)))
    assert b"".join(chunks) == plain
    assert all(len(chunk) == CHUNK for chunk in chunks[:-1])


@given(cut=st.integers(0, len(STORED) - 1) | st.builds(lambda n, d: HEADER + n * SEALED + d, *[st.integers(0, 3)] * 2))
@settings(max_examples=200)
def test_a_stream_cut_anywhere_is_refused(cut: int) -> None:
    refused(STORED[:cut])


def test_every_cut_of_a_small_stream_is_refused() -> None:
    stored, _ = seal(b"small")
    for cut in range(len(stored)):
        refused(stored[:cut], b"small")
    assert "chunk 1 is missing" in refused(STORED[: HEADER + 2 * SEALED])


@given(bit=st.integers(0, len(STORED) * 8 - 1) | st.integers(0, HEADER * 8 - 1))
@settings(max_examples=200)
def test_a_flipped_bit_is_refused(bit: int) -> None:
    damaged = bytearray(STORED)
    damaged[bit // 8] ^= 1 << bit % 8
    refused(bytes(damaged))


@given(order=st.lists(st.integers(0, 3), max_size=6).filter(lambda order: order != [0, 1, 2, 3]))
def test_chunks_swapped_repeated_or_left_out_are_refused(order: list[int]) -> None:
    chunks = [STORED[HEADER + i * SEALED : HEADER + (i + 1) * SEALED] for i in range(4)]
    refused(STORED[:HEADER] + b"".join(chunks[i] for i in order))


@given(extra=st.binary(min_size=1, max_size=40) | sizes.filter(bool).map(lambda size: STORED[HEADER:][:size]))
@pytest.mark.parametrize("size", [0, 5, CHUNK, CHUNK + 5, 2 * CHUNK])
def test_anything_appended_is_refused(size: int, extra: bytes) -> None:
    refused(seal(PLAIN[:size])[0] + extra, PLAIN[:size])


def test_data_after_a_full_last_chunk_is_named() -> None:
    assert "data after its end" in refused(seal(PLAIN[:CHUNK])[0] + bytes(16))


def test_the_chunk_that_is_damaged_is_named() -> None:
    damaged = bytearray(STORED)
    damaged[HEADER + SEALED + 5] ^= 1
    assert "Chunk 1, from byte 65536 of the plaintext, is not authentic" in refused(bytes(damaged))


def test_chunk_sizes_that_the_format_forbids() -> None:
    """The right key made these; only their shape is wrong."""
    stanza = x25519(IDENTITY.recipient.key)
    full = bytes(CHUNK)
    assert opened(age_file(stanza, chunks=[b""])) == b""
    assert opened(age_file(stanza, chunks=[full, b"x"])) == full + b"x"
    assert "number 1, is cut short or empty" in refused(age_file(stanza, chunks=[full, b""]), full)
    assert "number 2" in refused(age_file(stanza, chunks=[full, full, b""]), full + full)
    refused(age_file(stanza, chunks=[full + b"x"]), full)
    refused(age_file(stanza, chunks=[b"short", b"x"]), b"")
    refused(age_file(stanza, chunks=[]), b"")
    refused(age_file(stanza, chunks=[b""])[:-16] + payload([b"x"], first=1), b"")


def test_a_header_known_by_its_hash_cannot_be_replaced() -> None:
    known = hashlib.sha256(STORED[:HEADER]).hexdigest()
    assert b"".join(open_stream([IDENTITY], [STORED], header_sha256=known)) == PLAIN
    forged, size = seal(PLAIN)
    assert opened(forged) == PLAIN
    for data in (
        forged,
        forged[:size] + STORED[HEADER:],
        STORED[: HEADER - 1] + bytes([STORED[HEADER - 1] ^ 1]) + STORED[HEADER:],
    ):
        with pytest.raises(IntegrityError, match="X is not the object that was written"):
            next(open_stream([IDENTITY], [data], header_sha256=known, what="X"))
        with pytest.raises(IntegrityError, match="X is not the object that was written"):
            access(data, header_sha256=known)
    # The hash comes first: no complaint about content that nobody vouches for.
    with pytest.raises(IntegrityError, match="not the object"):
        next(open_stream([], [age_file(b"-> nonsense  \n")], header_sha256=known))


def test_streams_are_not_collected() -> None:
    taken = 0

    def counted(data: bytes) -> Iterator[bytes]:
        nonlocal taken
        for i in range(0, len(data), 1000):
            taken += 1
            yield data[i : i + 1000]

    sealed = Sealer([IDENTITY.recipient]).seal(counted(PLAIN))
    assert next(sealed).startswith(b"age-encryption.org/v1\n")
    assert taken == 0
    assert len(next(sealed)) == SEALED
    assert taken == 66
    taken = 0
    assert next(open_stream([IDENTITY], counted(STORED))) == PLAIN[:CHUNK]
    assert taken == 66


def test_a_buffer_may_be_used_again() -> None:
    def reused(data: bytes) -> Iterator[memoryview]:
        buffer = bytearray(50_000)
        for i in range(0, len(data), len(buffer)):
            piece = data[i : i + len(buffer)]
            buffer[: len(piece)] = piece
            yield memoryview(buffer)[: len(piece)]
            buffer[:] = bytes(len(buffer))

    stored = b"".join(Sealer([IDENTITY.recipient]).seal(reused(PLAIN)))
    assert opened(stored) == PLAIN
    assert b"".join(open_stream([IDENTITY], reused(stored))) == PLAIN


def test_a_sealer_seals_once_and_never_with_the_same_keys() -> None:
    sealer = Sealer([IDENTITY.recipient])
    list(sealer.seal([b"one"]))
    with pytest.raises(RuntimeError):
        sealer.seal([b"two"])
    assert len({Sealer([IDENTITY.recipient]).header for _ in range(10)}) == 10
    assert seal(b"same")[0][-20:] != seal(b"same")[0][-20:]


@pytest.mark.parametrize("count", [0, 700])
def test_a_sealer_writes_no_header_that_is_not_read(count: int) -> None:
    with pytest.raises(ConfigError, match=f"{count} age recipients"):
        Sealer([IDENTITY.recipient] * count)
    assert opened(b"".join(Sealer([IDENTITY.recipient] * 600).seal([]))) == b""


def access(stored: bytes, header_sha256: str | None = None, reads: list[tuple[int, int]] | None = None) -> RandomAccess:
    def read_at(offset: int, length: int) -> bytes:
        if reads is not None:
            reads.append((offset, length))
        return stored[offset : offset + length]

    return RandomAccess([IDENTITY], read_at, len(stored), header_sha256, what="X")


@given(size=sizes, ranges=st.lists(st.tuples(sizes, sizes), max_size=8))
def test_random_access_is_a_slice(size: int, ranges: list[tuple[int, int]]) -> None:
    plain = PLAIN[:size]
    data = access(seal(plain)[0])
    assert data.size == size
    for offset, length in ranges:
        assert data.read(offset, length) == plain[offset : offset + length]


def test_random_access_reads_only_what_it_needs() -> None:
    reads: list[tuple[int, int]] = []
    data = access(STORED, hashlib.sha256(STORED[:HEADER]).hexdigest(), reads)
    assert reads == [(0, 16384), (HEADER + 3 * SEALED, 116)]
    reads.clear()
    assert data.read(CHUNK + 7, CHUNK) == PLAIN[CHUNK + 7 : 2 * CHUNK + 7]
    assert reads == [(HEADER + SEALED, 2 * SEALED)]
    assert data.read(2 * CHUNK, 10) == PLAIN[2 * CHUNK : 2 * CHUNK + 10]
    assert len(reads) == 1
    with pytest.raises(ValueError, match="negative"):
        data.read(-1, 5)


@given(cut=st.integers(0, len(STORED) - 1) | st.sampled_from([HEADER + n * SEALED for n in range(4)]))
def test_random_access_to_a_cut_file_is_refused_at_once(cut: int) -> None:
    with pytest.raises(IntegrityError):
        access(STORED[:cut])


@given(byte=st.integers(HEADER, len(STORED) - 1))
def test_random_access_never_returns_damaged_bytes(byte: int) -> None:
    damaged = STORED[:byte] + bytes([STORED[byte] ^ 1]) + STORED[byte + 1 :]
    with pytest.raises(IntegrityError, match="X is damaged"):
        access(damaged).read((byte - HEADER) // SEALED * CHUNK, 1)


def test_random_access_refuses_a_short_read_and_an_empty_last_chunk() -> None:
    with pytest.raises(IntegrityError, match="0 bytes came back"):
        RandomAccess([IDENTITY], lambda offset, _: b"" if offset else STORED[: HEADER + 20], HEADER + 20)
    with pytest.raises(IntegrityError, match="is damaged"):
        access(age_file(x25519(IDENTITY.recipient.key), chunks=[bytes(CHUNK), b""]))


@pytest.mark.parametrize("payload_size", [-1, 0, 15, SEALED + 1, SEALED + 16, 2 * SEALED + 16])
def test_sizes_no_file_can_have(payload_size: int) -> None:
    with pytest.raises(IntegrityError, match="is damaged"):
        plaintext_size(HEADER + payload_size, HEADER)
