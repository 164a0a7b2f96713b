"""From addresses to storages, and the sizes of parts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backupd.errors import ConfigError
from backupd.storage.connect import connect
from backupd.storage.local import LocalStorage
from backupd.storage.s3 import S3Settings, S3Storage
from backupd.storage.s3_errors import scrub
from backupd.storage.s3_upload import FIRST_PART, MAX_PARTS, MIB, cut, part_size

GIB = 1 << 30
TIB = 1 << 40


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://acme-backups/prod", "s3://acme-backups/prod"),
        ("s3://acme-backups", "s3://acme-backups"),
        ("s3://acme-backups/", "s3://acme-backups"),
        ("s3://acme-backups/a/b/", "s3://acme-backups/a/b"),
        ("s3://acme-backups/a?b#c", "s3://acme-backups/a?b#c"),
        ("file:///var/lib/backupd/repository", "file:///var/lib/backupd/repository"),
        ("file://localhost/var/lib", "file:///var/lib"),
        ("file:///a%20b/%C3%BC", "file:///a%20b/%C3%BC"),
    ],
)
def test_addresses(url: str, shown: str) -> None:
    storage = connect(url, S3Settings())
    assert isinstance(storage, S3Storage if url.startswith("s3") else LocalStorage)
    assert storage.url == shown
    storage.close()


def test_paths_are_decoded(tmp_path: Path) -> None:
    connect(f"file://{tmp_path}/a%20b").put("x", [b"y"])
    assert (tmp_path / "a b" / "x").read_bytes() == b"y"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "no scheme"),
        ("/var/lib/backupd", "no scheme"),
        ("s3:bucket", "no scheme"),
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("s3://a", "not the name of a bucket"),
        ("s3://user:geheim@bucket/x", "not the name of a bucket"),
        ("s3://bucket/a//b", "empty"),
        ("s3://bucket/../b", "empty"),
        ("file://var/lib/backupd", "not absolute"),
        ("file://./x", "not absolute"),
        ("file:///", "folder of its own"),
        ("file:///a/../../b", "folder of its own"),
        ("file:///a?b", "%3F"),
        ("https://geheim:geheim@example.com/bucket", "not a kind of storage"),
    ],
)
def test_addresses_that_cannot_be_used(url: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        connect(url, None)
    assert problem in caught.value.detail
    assert "s3://BUCKET/PREFIX" in caught.value.hint
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["minio:9000", "https://", "https://key:geheim@s3.example.com", "ftp://x"])
def test_endpoints_that_cannot_be_used(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="endpoint_url") as caught:
        connect("s3://bucket/x", S3Settings(endpoint_url=endpoint))
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "checksums", "sent"),
    [
        (None, "auto", True),
        ("https://x", "auto", False),
        (None, "when_required", False),
        ("https://x", "when_supported", True),
    ],
)
def test_look_alikes_get_no_checksums(endpoint: str | None, checksums: str, sent: bool) -> None:
    assert S3Settings(endpoint_url=endpoint, checksums=checksums).sends_checksums == sent  # type: ignore[arg-type]


def test_parts_hold_the_largest_object() -> None:
    sizes = [part_size(number) for number in range(1, MAX_PARTS + 1)]
    assert sum(sizes) >= 5 * TIB
    assert sizes == sorted(sizes)
    assert set(sizes[:1000]) == {FIRST_PART} == {8 * MIB}
    assert max(sizes) <= 5 * GIB
    assert min(sizes) >= 5 * MIB
    assert all(size % MIB == 0 for size in sizes)


@given(st.integers(1, MAX_PARTS - 1))
def test_parts_grow_gently(number: int) -> None:
    """By a twelfth at most, and no part is much of what came before: memory stays small against the object."""
    assert part_size(number) <= part_size(number + 1) <= part_size(number) * 9 / 8
    before = sum(part_size(earlier) for earlier in range(1, number + 1))
    assert part_size(number + 1) <= max(FIRST_PART, before / 500)


@settings(deadline=None, max_examples=60)
@given(
    pieces=st.lists(st.integers(0, 70), max_size=40),
    sizes=st.lists(st.integers(1, 30), min_size=3, max_size=3).map(sorted),
    seed=st.integers(0, 1000),
)
def test_cutting_keeps_every_byte(pieces: list[int], sizes: list[int], seed: int) -> None:
    """With sizes in bytes: parts are full but the last, and the buffer of a chunk is free again afterwards."""
    data = random.Random(seed).randbytes(sum(pieces))

    def size(number: int) -> int:
        return sizes[min(number, 3) - 1]

    def chunks() -> Iterator[bytearray]:
        buffer, position = bytearray(), 0
        for piece in pieces:
            buffer[:] = data[position : position + piece]
            position += piece
            yield buffer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backupd.storage.s3_upload.part_size", size)
        patch.setattr("backupd.storage.s3_upload.FIRST_PART", size(1))
        parts = [bytes(part) for part in cut(chunks())]
    assert b"".join(parts) == data
    assert [len(part) for part in parts[:-1]] == [size(number) for number in range(1, len(parts))]
    assert len(parts) == 1 or 0 < len(parts[-1]) <= size(len(parts))


def test_scrubbing() -> None:
    text = "GET https://key:geheim@s3.example.com:9000/bucket/key?X-Amz-Signature=geheim&x=1 failed, http://p:geheim@q"
    assert scrub(text) == "GET https://s3.example.com:9000/bucket/key failed, http://q"
