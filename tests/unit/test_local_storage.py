"""What only a local folder can do wrong."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from backupd.errors import ObjectExistsError, ObjectMissingError, StorageError
from backupd.storage import local_files
from backupd.storage.base import Upload
from backupd.storage.local import LocalStorage


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "above" / "repository"


@pytest.fixture
def storage(root: Path) -> LocalStorage:
    return LocalStorage(root)


@pytest.fixture(params=["anonymous files", "named files", "no hard links"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the file system can do."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if request.param != "anonymous files":
        monkeypatch.setattr(os, "O_TMPFILE", 0o40000000)  # a flag this kernel does not know
        original = os.open

        def open_without(path: object, flags: int, *arguments: object, **keywords: object) -> int:
            if flags & 0o40000000:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            return original(path, flags, *arguments, **keywords)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", open_without)
    if request.param == "no hard links":
        monkeypatch.setattr(os, "link", refuse)
    return str(request.param)


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_modes_are_private(storage: LocalStorage, root: Path, kind: str) -> None:
    previous = os.umask(0)
    try:
        storage.put("shop/data/1/x", [b"x"])
    finally:
        os.umask(previous)
    assert mode(root / "shop/data/1/x") == 0o600
    for folder in (root, root / "shop", root / "shop/data", root / "shop/data/1"):
        assert mode(folder) == 0o700


def test_every_kind_of_file_system_keeps_the_contract(storage: LocalStorage, root: Path, kind: str) -> None:
    partials: list[list[str]] = []

    def chunks() -> Iterator[bytes]:
        yield b"one"
        partials.append([upload.key for upload in storage.unfinished("shop/")])
        assert [info.key for info in storage.list("")] == ([] if len(partials) == 1 else ["shop/x"])
        yield b"two"

    assert storage.put("shop/x", chunks(), create_only=True) == 6
    assert partials == [[] if kind == "anonymous files" else ["shop/x"]]
    assert storage.put("shop/x", chunks()) == 6
    with pytest.raises(ObjectExistsError):
        storage.put("shop/x", [b"other"], create_only=True)
    assert storage.read("shop/x") == b"onetwo"
    assert files(root) == ["shop", "shop/x"]


def test_create_only_holds_until_the_end(storage: LocalStorage, root: Path, kind: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"second"
        storage.put("shop/x", [b"first"], create_only=True)

    with pytest.raises(ObjectExistsError, match="shop/x already exists"):
        storage.put("shop/x", chunks(), create_only=True)
    assert storage.read("shop/x") == b"first"
    assert files(root) == ["shop", "shop/x"]


def test_failing_chunks_leave_no_file_and_no_folder(storage: LocalStorage, root: Path, kind: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"one"
        raise FileExistsError(errno.EEXIST, "the caller's own")

    with pytest.raises(FileExistsError, match="the caller's own"):
        storage.put("shop/data/1/x", chunks())
    assert files(root) == []


_KILLED = """
import os, signal, sys
from pathlib import Path
from backupd.storage.local import LocalStorage
def chunks():
    yield bytes(100_000)
    os.kill(os.getpid(), signal.SIGKILL)
LocalStorage(Path(sys.argv[1])).put("shop/x", chunks())
"""


def test_sigkill_leaves_nothing(storage: LocalStorage, root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(root)], check=False, timeout=30)
    assert done.returncode == -signal.SIGKILL
    assert files(root) == ["shop"]
    assert all(not list(look("")) for look in (storage.list, storage.unfinished, storage.list_folders))


def test_everything_is_safe_on_the_disk_before_it_has_a_name(
    storage: LocalStorage, root: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    original = os.fsync

    def fsync(file: int) -> None:
        where = Path(f"/proc/self/fd/{file}").readlink()
        is_folder = stat.S_ISDIR(os.fstat(file).st_mode)
        named = (root / "shop/x").exists()
        events.append(f"{where.relative_to(root.parent) if is_folder else 'file'}{' after' * named}")
        original(file)

    monkeypatch.setattr(os, "fsync", fsync)
    storage.put("shop/x", [b"x"])
    assert events == [".", "repository", "file", "repository/shop after"]


def test_deletions_are_safe_on_the_disk(storage: LocalStorage, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.put("shop/a", [b"x"])
    storage.put("shop/b", [b"x"])
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(str(Path(f"/proc/self/fd/{file}").readlink())))
    storage.delete(["shop/a"])
    assert synced == [str(root / "shop")]
    storage.delete(["shop/b"])
    assert synced[1:] == [str(root / "shop"), str(root)]
    assert files(root) == []


@pytest.mark.parametrize("target", ["folder", "file"])
def test_links_are_not_followed(storage: LocalStorage, root: Path, tmp_path: Path, target: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_text("secret")
    storage.put("other/x", [b"x"])
    if target == "folder":
        (root / "shop").symlink_to(outside)
    else:
        (root / "shop").mkdir()
        (root / "shop/x").symlink_to(outside / "x")
    with pytest.raises(StorageError, match="Could not read shop/x") as caught:
        storage.read("shop/x")
    assert "symbolic links" in caught.value.hint
    if target == "folder":
        with pytest.raises(StorageError, match="Could not write shop/new"):
            storage.put("shop/new", [b"x"])
        with pytest.raises(StorageError, match="Could not delete shop/x"):
            storage.delete(["shop/x"])
    for look in (storage.list, storage.list_folders, storage.unfinished):
        with pytest.raises(StorageError, match="symbolic link"):
            list(look("" if target == "folder" else "shop/"))
    assert [path.name for path in outside.iterdir()] == ["x"]
    storage.put("shop/x" if target == "file" else "zoo", [b"replaced"])
    assert (outside / "x").read_text() == "secret"


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "repository").symlink_to(tmp_path / "disk")
    LocalStorage(tmp_path / "repository").put("a", [b"x"])
    assert (tmp_path / "disk/a").read_bytes() == b"x"


def test_a_missing_root_is_an_empty_storage(storage: LocalStorage, root: Path) -> None:
    assert all(not list(look("")) for look in (storage.list, storage.unfinished, storage.list_folders))
    storage.delete(["a"])
    with pytest.raises(ObjectMissingError):
        storage.stat("a")
    assert not root.parent.exists()


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.ENOSPC, "Free space"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "must own"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "kernel's log"),
    ],
)
def test_what_the_system_refuses_is_explained(
    storage: LocalStorage, root: Path, monkeypatch: pytest.MonkeyPatch, code: int, hint: str, kind: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    for step in ("write", "fsync", "open"):
        storage.put("other", [b"x"])
        with monkeypatch.context() as patch:
            patch.setattr(os, step, refuse)
            with pytest.raises(StorageError, match="Could not write shop/x in file://") as caught:
                storage.put("shop/x", [b"x"])
        assert caught.value.detail == os.strerror(code)
        assert hint in caught.value.hint
        if step == "write":
            assert files(root) == ["other"]


def test_a_limit_on_file_sizes(storage: LocalStorage, root: Path) -> None:
    """As a full disk: the system takes a part of a chunk, then none."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="Could not write shop/x") as caught:
            storage.put("shop/x", [bytes(65_552)] * 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "ulimit" in caught.value.hint
    assert files(root) == []


def test_short_writes_are_continued(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.write
    monkeypatch.setattr(os, "write", lambda file, data: original(file, memoryview(data)[:1000]))
    data = os.urandom(65_552)
    assert storage.put("a", [data, memoryview(data)]) == 2 * len(data)
    assert storage.read("a") == data * 2


def test_a_file_where_a_folder_should_be(storage: LocalStorage) -> None:
    storage.put("shop", [b"x"])
    with pytest.raises(StorageError, match="Could not write shop/x") as caught:
        storage.put("shop/x", [b"x"])
    assert "A file is where a folder should be" in caught.value.hint
    storage.put("zoo/x", [b"x"])
    with pytest.raises(StorageError, match="Could not write zoo") as caught:
        storage.put("zoo", [b"x"])
    assert "A folder is where an object should be" in caught.value.hint
    assert [info.key for info in storage.list("")] == ["shop", "zoo/x"]


def test_a_file_that_shrinks_while_it_is_read(storage: LocalStorage, root: Path) -> None:
    storage.put("a", [bytes(1_000_000)])
    with closing(storage.open("a")) as chunks:
        next(chunks)
        os.truncate(root / "a", 300_000)
        with pytest.raises(StorageError, match="became shorter"):
            list(chunks)


def test_an_object_replaced_while_it_is_read_stays_whole(storage: LocalStorage) -> None:
    storage.put("a", [b"1" * 1_000_000])
    with closing(storage.open("a")) as chunks:
        start = next(chunks)
        storage.put("a", [b"2" * 1_000_000])
        assert start + b"".join(chunks) == b"1" * 1_000_000


def test_closing_early_closes_the_file(storage: LocalStorage) -> None:
    storage.put("a", [bytes(1_000_000)])
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(5):
        with closing(storage.open("a")) as chunks:
            next(chunks)
        with suppress(StorageError):
            list(storage.open("a", offset=2_000_000))
        storage.put("b", [b"x"])
        list(storage.list(""))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_what_is_no_object_is_none(storage: LocalStorage, root: Path) -> None:
    storage.put("a", [b"x"])
    os.mkfifo(root / "fifo")
    (root / "lost+found").mkdir(mode=0o000)
    (root / "empty/below").mkdir(parents=True)
    assert [info.key for info in storage.list("")] == ["a"]
    assert list(storage.list_folders("")) == []
    for key in ("fifo", "empty"):
        with pytest.raises(ObjectMissingError):
            storage.read(key)


def test_only_unfinished_writes_can_be_aborted(storage: LocalStorage, root: Path, tmp_path: Path) -> None:
    storage.put("a", [b"x"])
    (tmp_path / ".partial-0-x").write_text("not ours")
    [info] = storage.list("")
    for token in ("a", "../../.partial-0-x"):
        with pytest.raises(StorageError):
            storage.abort(Upload("a", info.modified, token))
    assert (tmp_path / ".partial-0-x").exists()
    assert storage.read("a") == b"x"


def test_a_folder_that_vanishes_while_it_is_written_to(
    storage: LocalStorage, root: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process deletes the folder's last object and the folder, between any two steps of ours."""

    def chunks() -> Iterator[bytes]:
        yield b"one"
        with suppress(OSError):  # with a named file in it, it is not empty
            (root / "shop").rmdir()

    assert storage.put("shop/x", chunks()) == 3
    assert storage.read("shop/x") == b"one"
    original, left = local_files.open_anonymous, [2]

    def vanish(folder: int) -> int:
        if left[0]:
            left[0] -= 1
            (root / "zoo").rmdir()
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return original(folder)

    monkeypatch.setattr("backupd.storage.local.open_anonymous", vanish)
    assert storage.put("zoo/x", [b"y"]) == 1
    assert left == [0]


def test_without_proc_files_have_names(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    seen: list[list[str]] = []

    def chunks() -> Iterator[bytes]:
        yield b"x"
        seen.append([upload.key for upload in storage.unfinished("")])

    storage.put("a", chunks())
    assert seen == [["a"]]
