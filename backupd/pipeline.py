"""The bytes of one stream: dump -> count -> zstd -> age -> SHA-256 -> storage, and the mirror of it.

Each stage is an iterator around the one before, and knows nothing else. Nothing is written to local disk;
what is held in memory is bounded by the stages' buffers, whatever the size of the stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import IO, cast

import zstandard

from backupd.crypto import age
from backupd.errors import IntegrityError, ObjectMissingError
from backupd.manifest import Stream
from backupd.storage.base import Buffer, Storage

BLOCK = 1 << 20  # what is compressed and decompressed at a time
_FAST_WINDOW = 17  # log2 of its bytes
_WINDOW_LIMIT = 1 << 27  # zstd --long needs no more; a frame that asks for more is not ours

_HINT = "The object was damaged or replaced. Choose another backup: backupd list."

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Stored:
    """What came of storing one stream."""

    raw_bytes: int
    stored_bytes: int
    sha256: str
    header_sha256: str


class _Meter:
    """Passes chunks through, adding up their size and, if asked to, their hash."""

    def __init__(self, *, digest: bool, advance: Advance | None = None) -> None:
        self.size = 0
        self._hash = hashlib.sha256() if digest else None
        self._advance = advance

    def through(self, chunks: Iterable[Buffer]) -> Iterator[Buffer]:
        for chunk in chunks:
            size = len(chunk)
            self.size += size
            if self._hash:
                self._hash.update(chunk)
            if self._advance:
                self._advance(size)
            yield chunk

    def hexdigest(self) -> str:
        assert self._hash is not None
        return self._hash.hexdigest()


def compress(chunks: Iterable[Buffer], level: int) -> Iterator[bytes]:
    """One zstd frame (RFC 8878) with a checksum of its content."""
    parameters = zstandard.ZstdCompressionParameters.from_level(level, write_checksum=True, **_window(level))
    chunker = zstandard.ZstdCompressor(compression_params=parameters).chunker(chunk_size=BLOCK)
    for chunk in chunks:
        yield from chunker.compress(chunk)
    yield from chunker.finish()  # type: ignore[no-untyped-call]


def _window(level: int) -> dict[str, int]:
    """At level 1 zstd remembers 16,384 places of the last 512 KiB. A quarter of that stays in a processor's own cache,
    takes a sixth less time, and makes dumps less than one in a hundred larger (bench/README.md)."""
    return {"window_log": _FAST_WINDOW} if level == 1 else {}


def store(
    source: Iterable[Buffer],
    storage: Storage,
    key: str,
    *,
    recipients: Sequence[age.Recipient],
    level: int,
    advance: Advance,
    pace: Callable[[Iterable[Buffer]], Iterable[Buffer]] = lambda sealed: sealed,
) -> Stored:
    """Compress, encrypt and store everything that `source` yields, when `pace` lets it through. What they raise aborts
    the upload."""
    raw, stored = _Meter(digest=False, advance=advance), _Meter(digest=True)
    sealer = age.Sealer(recipients)
    sealed = stored.through(sealer.seal(compress(raw.through(source), level)))
    size = storage.put(key, pace(sealed))
    if size != stored.size:
        raise IntegrityError(f"{key} was stored with {size} bytes of {stored.size}", detail=storage.url)
    header = hashlib.sha256(sealer.header).hexdigest()
    return Stored(raw.size, stored.size, stored.hexdigest(), header)


def fetch(storage: Storage, stream: Stream, identities: Sequence[age.Identity], advance: Advance) -> Generator[Buffer]:
    """The raw bytes of a stored stream, in views of one buffer that the next read reuses.

    Every byte was authenticated when it is yielded: the key that each chunk is checked under is that of the very
    header which the signed manifest names. The iterator ends only if the whole object had the manifest's length
    and hash, and raises IntegrityError (exit 7) otherwise.
    """
    stored = _Meter(digest=True)
    size = 0
    try:
        with closing(storage.open(stream.key)) as object_:
            plain = age.open_stream(
                identities,
                stored.through(object_),
                header_sha256=stream.header_sha256,
            )
            for view in decompress(plain, stream.key):
                size += len(view)
                if size > stream.raw_bytes:
                    break
                advance(len(view))
                yield view
    except IntegrityError as error:
        error.message = f"{stream.key}: {error.message}" if stream.key not in error.message else error.message
        raise
    except ObjectMissingError as error:
        raise IntegrityError(
            f"{stream.key} is missing from the repository", detail=storage.url, hint="Choose another backup."
        ) from error
    for what, found, expected in (
        ("stored bytes", stored.size, stream.stored_bytes),
        ("raw bytes", size, stream.raw_bytes),
        ("SHA-256", stored.hexdigest(), stream.sha256),
    ):
        if found != expected:
            raise IntegrityError(
                f"{stream.key} is not what the manifest describes",
                detail=f"{what}: {found}, and the manifest says {expected}",
                hint=_HINT,
            )


def read(storage: Storage, stream: Stream, identities: Sequence[age.Identity]) -> bytes:
    """All of a small stream, whole and checked. Raises as `fetch` does."""
    data = bytearray()  # the views that come are of one buffer: each is copied before the next
    with closing(fetch(storage, stream, identities, lambda _: None)) as chunks:
        for chunk in chunks:
            data += chunk
    return bytes(data)


class _Reader:
    """Chunks as the file that zstandard reads from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; empty only at the end."""
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._rest = memoryview(chunk)
        taken = self._rest if size < 0 else self._rest[:size]
        self._rest = self._rest[len(taken) :]
        return bytes(taken)


def decompress(chunks: Iterator[bytes], where: str) -> Iterator[memoryview]:
    """The content of a zstd frame in views of one buffer: bounded, however well it was compressed.

    Further frames are content too, as for `zstd -d`. Reads `chunks` to their end, so that what authenticates the
    last of them has run. Raises IntegrityError.
    """
    reader = _Reader(chunks)
    buffer = bytearray(BLOCK)
    view = memoryview(buffer)
    try:
        with zstandard.ZstdDecompressor(max_window_size=_WINDOW_LIMIT).stream_reader(
            cast(IO[bytes], reader),
            read_size=1 << 17,
            read_across_frames=True,  # what follows the first is data too, as for `zstd -d`: never passed over
        ) as frame:
            while size := frame.readinto(buffer):
                yield view[:size]
    except zstandard.ZstdError as error:
        raise IntegrityError(f"{where} is not the zstd frame it should be", detail=str(error), hint=_HINT) from error
    if reader.read(1):
        raise IntegrityError(f"{where} goes on after its zstd frame", hint=_HINT)
