"""What the work of a backup costs by itself, on one core and in memory: below that no program gets that does it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

from backupd import pipeline
from backupd.crypto import age
from backupd.crypto.age_keys import Identity

_PIECES, _PIECE = 16, 4 << 20  # of the archive, from all over it
_ROUNDS = 7
_LEVELS = (1, 2, 3, 6, 9)  # of zstd


def costs(archive: Path) -> dict[str, float]:
    """Bytes that each stage takes in a second, by its name: medians. `ratio` is what compression leaves."""
    sample = _sample(archive)
    blocks = [memoryview(sample)[start : start + pipeline.BLOCK] for start in range(0, len(sample), pipeline.BLOCK)]
    compressed = b"".join(pipeline.compress(blocks, 1))
    pieces = [memoryview(compressed)[start : start + age.CHUNK] for start in range(0, len(compressed), age.CHUNK)]
    recipient = Identity.generate().recipient
    return {
        "zstd": _rate(len(sample), lambda: list(pipeline.compress(blocks, 1))),
        "age": _rate(len(compressed), lambda: list(age.Sealer([recipient]).seal(map(bytes, pieces)))),
        "sha256": _rate(len(compressed), lambda: hashlib.sha256(compressed).digest()),
        "ratio": len(compressed) / len(sample),
    }


def seconds(found: dict[str, float], raw: int, *, hashes: int = 1) -> Iterator[tuple[str, float]]:
    """What each stage takes for an archive of `raw` bytes."""
    stored = raw * found["ratio"]
    yield "zstd, level 1", raw / found["zstd"]
    yield "age", stored / found["age"]
    yield "SHA-256", hashes * stored / found["sha256"]


def levels(archive: Path) -> list[dict[str, float]]:
    """What compression at each `level` takes, in bytes a second (`rate`, the best of three), and leaves (`ratio`)."""
    sample = _sample(archive)
    blocks = [memoryview(sample)[start : start + pipeline.BLOCK] for start in range(0, len(sample), pipeline.BLOCK)]
    found = []
    for level in _LEVELS:
        taken, left = min(_compressed(blocks, level) for _ in range(3))
        found.append({"level": level, "rate": len(sample) / taken, "ratio": left / len(sample)})
    return found


def _compressed(blocks: Sequence[memoryview], level: int) -> tuple[float, int]:
    """Seconds, and bytes that are left."""
    began = time.perf_counter()
    left = sum(map(len, pipeline.compress(blocks, level)))
    return time.perf_counter() - began, left


def _sample(archive: Path) -> bytes:
    size, found = archive.stat().st_size, bytearray()
    if size <= _PIECES * _PIECE:  # pieces would overlap, and what comes twice compresses well
        return archive.read_bytes()
    with archive.open("rb") as file:
        for number in range(_PIECES):
            file.seek(size * number // _PIECES)
            found += file.read(_PIECE)
    return bytes(found)


def _rate(size: int, work: Callable[[], object]) -> float:
    def once() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return size / median(once() for _ in range(_ROUNDS))
