"""Exporting: a backup as plain files that pg_restore or psql take, with the commands that go with them.

What is written is decrypted, so only its owner may read it, and no part of it stays if anything fails: all goes to a
hidden folder beside the one asked for, which takes the name in one step when everything is whole.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from backupd import instructions, pipeline, preflight, times
from backupd.catalog import Catalog
from backupd.crypto import age
from backupd.errors import IntegrityError, PostgresError, RefusedError, StorageError
from backupd.instructions import File, Guide
from backupd.manifest import Manifest, Stream
from backupd.postgres import psql, workers
from backupd.postgres.process import Running
from backupd.postgres.tools import Installation, choose_client, find_installations
from backupd.progress import Progress
from backupd.storage.base import PARTIAL, Buffer
from backupd.storage.local_files import write_all

GUIDE = "RESTORE.md"
_STREAM_NAME = re.compile(r"[A-Za-z0-9_-]+")
_HINT = "Make room, or name a folder on another disk."


@dataclass(frozen=True, slots=True)
class Request:
    """What the operator asked for."""

    database: str  # in the repository
    at: datetime | None  # None: the newest
    now: datetime
    directory: Path
    backup_id: str | None = None  # this very backup, instead of a time
    plain: bool = False  # SQL for psql
    jobs: int = 2
    bin_dirs: Sequence[Path] = ()


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """All that an export will do."""

    manifest: Manifest
    signed: bytes  # the manifest as it is stored
    requested_at: datetime
    directory: Path  # absolute, and no link
    client: Installation | None  # whose pg_restore writes the SQL; None for archives
    jobs: int

    @property
    def plain(self) -> bool:
        return self.client is not None

    @property
    def gap(self) -> timedelta:
        """What was committed in this span before the requested time is not in the backup."""
        return self.requested_at - self.manifest.taken_at


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    plan: ExportPlan
    files: tuple[File, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def guide(self) -> Path:
        return self.plan.directory / GUIDE


def plan(request: Request, catalog: Catalog, identities: Sequence[age.Identity]) -> ExportPlan:
    """Choose the backup and check what can be checked before anything is written.

    Raises NoBackupError if none fits, IntegrityError for a backup that can't be believed or is not whole, RefusedError
    if the directory can't be made there or has not the room.
    """
    if request.backup_id is not None:
        ref = catalog.by_id(request.database, request.backup_id)
    else:
        ref = catalog.find(request.database, request.at)
    directory = _free_place(request.directory)
    manifest, signed = catalog.signed_manifest(ref)
    catalog.check_objects(manifest)
    for stream in manifest.streams:
        if not _STREAM_NAME.fullmatch(stream.name):
            raise IntegrityError(f"{stream.key} is not a name that backupd gives", hint="Choose another backup.")
    preflight.check_identity(catalog, manifest, identities)
    _check_room(manifest, directory.parent)
    client = None
    if request.plain:
        client = choose_client(find_installations(request.bin_dirs), max(manifest.dump_major, manifest.server_major))
    requested_at = request.at or (manifest.taken_at if request.backup_id else request.now)
    return ExportPlan(manifest, signed, requested_at, directory, client, request.jobs)


def _free_place(directory: Path) -> Path:
    """Where the directory will be: nothing is there yet, or an empty folder that can be replaced."""
    place = Path(os.path.realpath(directory))
    try:
        if place.is_mount() or place == Path.cwd():
            raise RefusedError(
                f"{directory} can't be replaced: it is {'mounted' if place.is_mount() else 'the folder you stand in'}",
                hint=f"Name a new folder in it: {place / 'export'}",
            )
        if not place.parent.is_dir():
            raise RefusedError(
                f"{directory} can't be made: the folder {place.parent} does not exist",
                hint="Create it first, readable for you alone.",
            )
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise _occupied(place)
        if not os.access(place.parent, os.W_OK | os.X_OK):
            raise RefusedError(
                f"{directory} can't be made: you may not write to {place.parent}", hint="Name a folder of yours."
            )
    except OSError as error:  # a folder above it, or the one that is there, may not be entered
        raise RefusedError(
            f"{directory} can't be made", detail=error.strerror or str(error), hint="Name a folder of yours."
        ) from error
    return place


def _occupied(place: Path) -> RefusedError:
    what = "is not empty" if place.is_dir() else "is a file"
    return RefusedError(f"{place} {what}", hint="Name a folder that does not exist yet. Nothing is ever overwritten.")


def _check_room(manifest: Manifest, folder: Path) -> None:
    with _explained(folder):
        disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if disk.f_blocks and free < manifest.raw_bytes:  # some network file systems tell nothing
        raise RefusedError(
            f"the export needs {times.human_bytes(manifest.raw_bytes)}, and {folder} has"
            f" {times.human_bytes(free)} free",
            detail=f"Decrypted and decompressed, the backup has {manifest.raw_bytes} bytes; {free} are free.",
            hint="Make room, or name a folder on another disk.",
        )


def run(plan: ExportPlan, catalog: Catalog, identities: Sequence[age.Identity], progress: Progress) -> Exported:
    """Write what is planned; after a failure nothing of it is left."""
    with _folder(plan.directory) as folder:
        writer = _Writer(plan, folder, catalog, identities, progress)
        progress.phase(f"writing backup {plan.manifest.id} to {plan.directory}")
        files = sorted(writer.sql() if plan.plain else writer.archives(), key=lambda file: file.name)
        files.append(writer.put("manifest.json", [plan.signed]))
        files.append(writer.put(GUIDE, [instructions.render(_guide(plan, files)).encode()]))
    return Exported(plan, tuple(files))


def _guide(plan: ExportPlan, files: Sequence[File]) -> Guide:
    return Guide(
        manifest=plan.manifest,
        files=files,
        schema=_script_name(plan.manifest) if plan.plain else _name(plan.manifest.schema_stream),
        data=[_name(stream) for stream in _largest_first(plan.manifest.of_kind("data"))],
        plain=plan.plain,
        jobs=plan.jobs,
    )


def _name(stream: Stream) -> str:
    return f"{stream.name}.{'sql' if stream.kind == 'globals' else 'dump'}"


def _label(stream: Stream) -> str:
    if stream.kind != "data":
        return "roles" if stream.kind == "globals" else stream.kind
    if not stream.tables:
        return "sequences and large objects"
    return stream.tables[0] if len(stream.tables) == 1 else f"{len(stream.tables)} tables"


def _script_name(manifest: Manifest) -> str:
    """`shop.sql`; a database that is called as the roles' file is must not take its place."""
    return "globals-database.sql" if manifest.database.lower() == "globals" else f"{manifest.database}.sql"


def _largest_first(streams: Sequence[Stream]) -> list[Stream]:
    return sorted(streams, key=lambda stream: stream.raw_bytes, reverse=True)


@contextmanager
def _folder(directory: Path) -> Iterator[Path]:
    """A hidden folder that becomes `directory` if the block succeeds, and goes if it fails."""
    folder = directory.with_name(f"{PARTIAL}{secrets.token_hex(8)}")
    try:
        with _explained(directory):
            folder.mkdir(mode=0o700)
        yield folder
        with _explained(directory):
            _sync(folder)
            try:
                folder.rename(directory)  # over an empty folder, and nothing else
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise _occupied(directory) from error
                raise
            _sync(directory.parent)
    except BaseException as error:
        error.add_note(_clean_up(folder, directory))
        raise


def _clean_up(folder: Path, directory: Path) -> str:
    if not folder.exists() and (directory / GUIDE).exists():
        return f"The export was complete by then, and stays in {directory}."
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return "Nothing was written."
    except OSError as error:
        return f"{folder}, which holds decrypted data, could not be removed: {error.strerror}. Remove it by hand."
    return "What was written of the export was removed."


class _Writer:
    """Fills the folder of one export."""

    def __init__(
        self, plan: ExportPlan, folder: Path, catalog: Catalog, identities: Sequence[age.Identity], progress: Progress
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._catalog = catalog
        self._identities = identities
        self._progress = progress
        self._running = Running()

    def archives(self) -> list[File]:
        """Each stream as a file, several at a time."""
        tasks = [partial(self._archive, stream) for stream in _largest_first(self._plan.manifest.streams)]
        written, _ = workers.run(tasks, self._plan.jobs, self._running)
        return written

    def _archive(self, stream: Stream) -> File:
        with closing(self._fetch(stream)) as chunks:
            return self.put(_name(stream), chunks)

    def sql(self) -> list[File]:
        """The roles, and everything else as one script in the order of a restore."""
        manifest, name = self._plan.manifest, _script_name(self._plan.manifest)
        roles = [self._archive(stream) for stream in manifest.of_kind("globals")]
        with closing(self._fetch(manifest.schema_stream)) as chunks:
            definitions = [bytes(chunk) for chunk in chunks]
        with self._new(name) as descriptor:
            self._section("pre-data", definitions, name, descriptor)
            for stream in manifest.of_kind("data"):
                with closing(self._fetch(stream)) as chunks:
                    self._section("data", chunks, name, descriptor)
            self._section("post-data", definitions, name, descriptor)
        with _explained(self._plan.directory / name), (self._folder / name).open("rb") as file:
            return [
                *roles,
                File(name, os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()),
            ]

    def _section(self, section: str, archive: Iterable[Buffer], name: str, descriptor: int) -> None:
        client, server_major = self._plan.client, self._plan.manifest.server_major
        assert client is not None
        try:
            with _explained(self._plan.directory / name):
                psql.write_section(client, section, archive, descriptor, server_major, self._running)
        except PostgresError as error:
            if "output file" not in error.detail and "SIGXFSZ" not in error.message:
                raise
            raise StorageError(  # it is our disk, and no matter of PostgreSQL's
                f"{self._plan.directory / name} could not be written",
                detail=error.detail or error.message,
                hint=_HINT,
            ) from error

    def _fetch(self, stream: Stream) -> Generator[Buffer]:
        """The bytes of a stream, checked to the last; ends early if another part of the export failed."""
        self._progress.begin(stream.name, _label(stream), stream.raw_bytes)
        advance = partial(self._progress.advance, stream.name)
        with closing(pipeline.fetch(self._catalog.storage, stream, self._identities, advance)) as chunks:
            for chunk in chunks:
                if self._running.stopped:
                    raise workers.Cancelled
                yield chunk
        self._progress.end(stream.name)

    def put(self, name: str, chunks: Iterable[Buffer]) -> File:
        digest, size = hashlib.sha256(), 0
        with self._new(name) as descriptor:
            for chunk in chunks:
                with _explained(self._plan.directory / name):
                    size += write_all(descriptor, chunk)
                digest.update(chunk)
        return File(name, size, digest.hexdigest())

    @contextmanager
    def _new(self, name: str) -> Iterator[int]:
        """A new file, on disk when the block ends."""
        where = self._plan.directory / name
        with _explained(where):
            descriptor = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            yield descriptor
            with _explained(where):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _explained(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{where} could not be written", detail=error.strerror or str(error), hint=_HINT) from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
