"""The way of one stream's bytes, there and back, over the storage in memory."""

from __future__ import annotations

import hashlib
import subprocess
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backupd import pipeline
from backupd.crypto import age
from backupd.errors import IntegrityError
from backupd.manifest import Stream
from backupd.storage.base import Upload
from backupd.storage.memory import MemoryStorage
from tests.programs import program

KEY = "shop/data/20261122T061403Z-k3f9qa/data-0000.dump.zst.age"
IDENTITY = age.Identity.generate()
MIB = 1 << 20


def ignore(_: int) -> None:
    """Progress that nobody watches."""


def pieces(data: bytes, cuts: list[int]) -> Iterator[memoryview]:
    """The data cut at these places, in one buffer that is reused, as a program's output is read."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        buffer = bytearray(data[start:end])
        yield memoryview(buffer)
        buffer[:] = bytes(len(buffer))


@dataclass(frozen=True)
class Object:
    """A stream as stored: its bytes, and what the manifest says of it."""

    plain: bytes
    stored: bytes
    stream: Stream


def described(stored: pipeline.Stored) -> Stream:
    return Stream(
        key=KEY,
        kind="data",
        raw_bytes=stored.raw_bytes,
        stored_bytes=stored.stored_bytes,
        sha256=stored.sha256,
        header_sha256=stored.header_sha256,
    )


def made(plain: bytes, cuts: list[int] | None = None, *, level: int = 1) -> Object:
    storage = MemoryStorage()
    stored = pipeline.store(
        pieces(plain, cuts or []), storage, KEY, recipients=[IDENTITY.recipient], level=level, advance=ignore
    )
    return Object(plain, storage.read(KEY), described(stored))


def fetched(stored: bytes, stream: Stream) -> tuple[bytes, IntegrityError | None]:
    """What came out, and the error that ended it."""
    storage = MemoryStorage()
    storage.put(KEY, [stored])
    out = bytearray()
    try:
        for view in pipeline.fetch(storage, stream, [IDENTITY], ignore):
            out += view
    except IntegrityError as error:
        return bytes(out), error
    return bytes(out), None


@given(plain=st.binary(max_size=300_000), cuts=st.lists(st.integers(0, 1 << 20), max_size=8), level=st.integers(1, 3))
def test_round_trip_of_any_bytes_in_any_pieces(plain: bytes, cuts: list[int], level: int) -> None:
    thing = made(plain, cuts, level=level)
    assert fetched(thing.stored, thing.stream) == (plain, None)


def test_sizes_and_hashes_are_those_of_the_object() -> None:
    plain, storage = bytes(range(256)) * 5000, MemoryStorage()
    seen: list[int] = []
    stored = pipeline.store(
        pieces(plain, [1, 70_000]), storage, KEY, recipients=[IDENTITY.recipient], level=1, advance=seen.append
    )
    data = storage.read(KEY)
    header = data.index(b"\n", data.index(b"\n--- ") + 1) + 1 + 16  # the nonce follows the MAC's line
    assert stored.raw_bytes == len(plain) == sum(seen)
    assert stored.stored_bytes == len(data)
    assert stored.sha256 == hashlib.sha256(data).hexdigest()
    assert stored.header_sha256 == hashlib.sha256(data[:header]).hexdigest()


# Random bytes (a stream of several chunks of age and several blocks of zstd), and a text that compresses.
_NOISE = hashlib.shake_256(b"noise").digest(400_000)
OBJECTS = [made(_NOISE), made(b"insert into orders values (1);\n" * 60_000), made(b"")]


@pytest.fixture(scope="module", params=range(len(OBJECTS)), ids=["noise", "text", "empty"])
def thing(request: pytest.FixtureRequest) -> Object:
    number: int = request.param
    return OBJECTS[number]


def is_refused(thing: Object, stored: bytes) -> None:
    """An IntegrityError that says which object and what to do, and before it nothing but the genuine beginning."""
    out, error = fetched(stored, thing.stream)
    assert error is not None, "a changed object was taken for whole"
    assert thing.plain.startswith(out), "bytes that were never dumped came out"
    assert KEY in error.message
    assert error.hint


@given(length=st.integers(0, 1 << 20))
def test_truncation_is_refused(thing: Object, length: int) -> None:
    is_refused(thing, thing.stored[: length % len(thing.stored)])


@given(place=st.integers(0, 1 << 20), bit=st.integers(0, 7))
def test_flipped_bit_is_refused(thing: Object, place: int, bit: int) -> None:
    changed = bytearray(thing.stored)
    changed[place % len(changed)] ^= 1 << bit
    is_refused(thing, bytes(changed))


@given(more=st.binary(min_size=1, max_size=200_000))
def test_appended_bytes_are_refused(thing: Object, more: bytes) -> None:
    is_refused(thing, thing.stored + more)


@given(place=st.integers(0, 1 << 20), length=st.integers(1, 200_000), to=st.integers(0, 1 << 20))
def test_moved_bytes_are_refused(thing: Object, place: int, length: int, to: int) -> None:
    data = thing.stored
    place %= len(data)
    taken, rest = data[place : place + length], data[:place] + data[place + length :]
    to %= len(rest) + 1
    moved = rest[:to] + taken + rest[to:]
    assume(moved != data)
    is_refused(thing, moved)


def test_swapped_chunks_are_refused() -> None:
    thing, sealed = OBJECTS[0], age.CHUNK + 16
    start = len(thing.stored) - len(thing.stored) % sealed - 2 * sealed
    swapped = thing.stored[:start] + thing.stored[start + sealed : start + 2 * sealed]
    swapped += thing.stored[start : start + sealed] + thing.stored[start + 2 * sealed :]
    assert len(swapped) == len(thing.stored)
    is_refused(thing, swapped)


def test_forgery_for_the_same_recipient_yields_nothing() -> None:
    """Who knows the recipient can write an object that opens; its header is not the one that was signed."""
    thing, forged = made(b"genuine" * 9), made(b"evil!!!" * 9)
    assert fetched(forged.stored, thing.stream)[0] == b""
    is_refused(thing, forged.stored)


@pytest.mark.parametrize("field", ["raw_bytes", "stored_bytes"])
@pytest.mark.parametrize("by", [-1, 1])
def test_size_that_differs_from_the_manifest_is_refused(field: str, by: int) -> None:
    thing = made(b"rows" * 50_000)
    stream = thing.stream.model_copy(update={field: getattr(thing.stream, field) + by})
    out, error = fetched(thing.stored, stream)
    assert error is not None
    assert thing.plain.startswith(out)


def test_hash_that_differs_from_the_manifest_is_refused() -> None:
    thing = made(b"rows")
    assert fetched(thing.stored, thing.stream.model_copy(update={"sha256": "0" * 64}))[1] is not None


def test_missing_object_is_refused() -> None:
    with pytest.raises(IntegrityError, match="missing"):
        list(pipeline.fetch(MemoryStorage(), OBJECTS[0].stream, [IDENTITY], ignore))


@pytest.mark.parametrize("after", [0, 1, 40])
def test_source_that_fails_leaves_nothing(after: int) -> None:
    class FailedError(Exception):
        pass

    def source() -> Iterator[bytes]:
        for _ in range(after):
            yield _NOISE
        raise FailedError

    storage = MemoryStorage()
    with pytest.raises(FailedError):
        pipeline.store(source(), storage, KEY, recipients=[IDENTITY.recipient], level=1, advance=ignore)
    assert list(storage.list("")) == []
    assert list(storage.unfinished("")) == []


class _Counting(MemoryStorage):
    """Counts what is put, and keeps none of it."""

    size = 0

    def put(self, key: str, chunks: object, *, create_only: bool = False) -> int:
        upload: Upload = self.begin(key)
        for chunk in chunks:  # type: ignore[attr-defined]
            self.size += len(chunk)
        self.abort(upload)
        return self.size


def _peak() -> int:
    return tracemalloc.get_traced_memory()[1]


def test_memory_is_bounded_when_storing() -> None:
    block, storage = bytearray(hashlib.shake_256(b"block").digest(MIB)), _Counting()
    tracemalloc.start()
    try:
        pipeline.store(
            (block for _ in range(96)), storage, KEY, recipients=[IDENTITY.recipient], level=1, advance=ignore
        )
        assert storage.size > 96 * MIB
        assert _peak() < 16 * MIB
    finally:
        tracemalloc.stop()


def test_memory_is_bounded_however_well_it_was_compressed() -> None:
    """A gibibyte of zeros is an object of some 100 kB."""
    zeros, storage = bytes(4 * MIB), MemoryStorage()
    tracemalloc.start()
    try:
        stored = pipeline.store(
            (zeros for _ in range(256)), storage, KEY, recipients=[IDENTITY.recipient], level=1, advance=ignore
        )
        assert stored.raw_bytes == 1 << 30
        assert stored.stored_bytes < MIB
        size = 0
        for view in pipeline.fetch(storage, described(stored), [IDENTITY], ignore):
            assert len(view) <= MIB
            size += len(view)
        assert size == 1 << 30
        assert _peak() < 16 * MIB
    finally:
        tracemalloc.stop()


def test_standard_programs_read_what_was_stored(tmp_path: Path) -> None:
    """Nobody needs backupd to get at the data: age and zstd alone do."""
    plain = _NOISE + b"\0" * 100_000
    thing = made(plain, [5, 131_072], level=3)
    (tmp_path / "identity").write_text(IDENTITY.encode())
    (tmp_path / "object").write_bytes(thing.stored)
    opened = subprocess.run(
        [program("age"), "-d", "-i", tmp_path / "identity", tmp_path / "object"], capture_output=True, check=True
    )
    unpacked = subprocess.run([program("zstd"), "-d", "-c"], input=opened.stdout, capture_output=True, check=True)
    assert unpacked.stdout == plain
    # The checksum that zstd verifies is in the frame, and its window is one that every zstd allows.
    (tmp_path / "frame.zst").write_bytes(opened.stdout)
    listed = subprocess.run(
        [program("zstd"), "-lv", tmp_path / "frame.zst"], capture_output=True, check=True, text=True
    )
    assert "XXH64" in listed.stdout


def test_what_zstd_refuses_is_refused() -> None:
    with pytest.raises(IntegrityError, match="zstd"):
        list(pipeline.decompress(iter([b"no frame at all"]), KEY))


@pytest.mark.parametrize("after", [b"".join(pipeline.compress([b"two"], 1)), b"garbage"], ids=["frame", "garbage"])
@pytest.mark.parametrize("apart", [True, False])
def test_what_follows_the_frame_is_not_passed_over(after: bytes, apart: bool) -> None:
    """`zstd -d` would write it too: the two must never disagree on what an object holds."""
    plain = b"one"
    frame = b"".join(pipeline.compress([plain], 1))
    sealed = _sealed([frame, after] if apart else [frame + after], raw_bytes=len(plain))
    out, error = fetched(*sealed)
    assert error is not None
    assert plain.startswith(out)


def _sealed(chunks: list[bytes], *, raw_bytes: int) -> tuple[bytes, Stream]:
    """An object whose encryption and hashes are right, whatever is inside."""
    sealer = age.Sealer([IDENTITY.recipient])
    data = b"".join(sealer.seal(chunks))
    stored = pipeline.Stored(
        raw_bytes, len(data), hashlib.sha256(data).hexdigest(), hashlib.sha256(sealer.header).hexdigest()
    )
    return data, described(stored)


def test_a_frame_cut_short_is_refused() -> None:
    """zstd's reader ends quietly then; the manifest's size tells."""
    frame = b"".join(pipeline.compress([_NOISE], 1))
    out, error = fetched(*_sealed([frame[:-100]], raw_bytes=len(_NOISE)))
    assert error is not None
    assert _NOISE.startswith(out)
