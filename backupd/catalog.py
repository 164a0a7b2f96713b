"""The committed backups of a repository: keys and manifests, not bytes. docs/format.md has the layout.

A backup exists when its manifest does. Manifests are believed only when a trusted signer signed them and
when they are what their place says: this repository's, this database's, this backup's.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby

from backupd import manifest as manifests
from backupd import times
from backupd.crypto import minisign
from backupd.errors import (
    IntegrityError,
    NoBackupError,
    ObjectExistsError,
    ObjectMissingError,
)
from backupd.manifest import Manifest
from backupd.postgres import workers
from backupd.postgres.process import Running
from backupd.storage.base import ObjectInfo, Storage

MARKER = "backupd.json"
# In bytes; a manifest has some 150 for each table.
_MARKER_LIMIT, _SIGNATURE_LIMIT, _MANIFEST_LIMIT = 1 << 20, 1 << 16, 256 << 20


def manifest_key(database: str, backup_id: str) -> str:
    return f"{database}/manifests/{backup_id}.json"


def signature_key(database: str, backup_id: str) -> str:
    return f"{database}/signatures/{backup_id}.json.minisig"


def data_prefix(database: str, backup_id: str) -> str:
    return f"{database}/data/{backup_id}/"


@dataclass(frozen=True, slots=True, order=True)
class BackupRef:
    """A committed backup, as far as its name tells."""

    second: datetime  # the snapshot's time, cut to the second
    id: str
    database: str


def backup_ref(database: str, key: str) -> BackupRef | None:
    """The backup whose manifest this is; None for any other key."""
    prefix = f"{database}/manifests/"
    backup_id = key[len(prefix) :].removesuffix(".json")
    second = manifests.id_second(backup_id)
    if second is None or not (key.startswith(prefix) and key.endswith(".json")):
        return None
    return BackupRef(second, backup_id, database)


class Catalog:
    """One repository. Reads need `trusted`; `commit` needs the signing key."""

    def __init__(self, storage: Storage, trusted: Sequence[minisign.PublicKey]) -> None:
        self.storage = storage
        self.trusted = trusted
        self._repository: str | None = None
        self._committed: set[str] = set()

    # ---- the marker

    def repository_id(self) -> str | None:
        """The id in the marker; None where there is none (yet)."""
        if self._repository is None:
            try:
                raw = json.loads(self._small(MARKER, _MARKER_LIMIT))
                version, repository = int(raw["format"]), str(raw["repository"])
            except ObjectMissingError:
                return None
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                raise IntegrityError(
                    f"the repository's marker {MARKER} is not readable",
                    detail=f"{self.storage.url}: {type(error).__name__}: {error}",
                    hint="Is this a backupd repository? Restore the marker from a copy of the bucket.",
                ) from error
            if version > manifests.FORMAT:
                raise IntegrityError(
                    f"the repository has format version {version}, and this backupd reads up to {manifests.FORMAT}",
                    detail=self.storage.url,
                    hint="Use a newer backupd.",
                )
            self._repository = repository  # not before: every call refuses a repository that cannot be read
        return self._repository

    def ensure_repository(self) -> str:
        """The repository's id; the first backup makes the marker, and one that was lost is made again."""
        found = self.repository_id()
        if found is not None:
            return found
        marker = {
            "format": manifests.FORMAT,
            "repository": self._id_of_backups() or uuid.uuid4().hex,
            "created_at": times.iso(times.now()),
        }
        with suppress(ObjectExistsError):  # another host was first: its marker counts
            self.storage.put(MARKER, [json.dumps(marker).encode() + b"\n"], create_only=True)
        again = self.repository_id()
        if again is None:
            raise IntegrityError(f"the marker {MARKER} vanished just after it was written", detail=self.storage.url)
        return again

    def _id_of_backups(self) -> str | None:
        """What the backups that are here say, if the marker alone was lost: another id would disown them all."""
        for database in self.databases():
            known = self.backups(database)
            if known:
                return self.manifest(known[-1]).repository
        return None

    # ---- finding

    def databases(self) -> list[str]:
        """Every database the repository has a folder for, in or out of the configuration."""
        return [name for name in self.storage.list_folders("") if not name.startswith(".")]

    def backups(self, database: str) -> list[BackupRef]:
        """The committed backups of one database, oldest first. Asks for names only."""
        return sorted(self.listed(database))

    def listed(self, database: str) -> dict[BackupRef, ObjectInfo]:
        """The same, with each one's manifest as the listing shows it."""
        infos = self.storage.list(f"{database}/manifests/")
        return {ref: info for info in infos if (ref := backup_ref(database, info.key)) is not None}

    def find(self, database: str, at: datetime | None) -> BackupRef:
        """The newest backup whose snapshot is at or before `at` (None: the newest). Never a later one.

        Names tell the second; manifests are read only for the very second asked for, and where two backups share one.
        """
        known = self.backups(database)
        for second, sharing in groupby(reversed(known), key=lambda ref: ref.second):
            refs = list(sharing)
            if at is not None and second > at:
                continue
            if len(refs) == 1 and (at is None or second + timedelta(seconds=1) <= at):
                return refs[0]
            dated = sorted(((self.manifest(ref).taken_at, ref) for ref in refs), reverse=True)
            for taken_at, ref in dated:
                if at is None or taken_at <= at:
                    return ref
        raise self._nothing(database, known, at)

    def by_id(self, database: str, backup_id: str) -> BackupRef:
        known = self.backups(database)
        for ref in known:
            if ref.id == backup_id:
                return ref
        raise NoBackupError(
            f"there is no backup {backup_id} of {database}",
            detail=self.storage.url,
            hint=f"See what there is: backupd list {database}",
        )

    def _nothing(self, database: str, known: list[BackupRef], at: datetime | None) -> NoBackupError:
        if not known:
            others = ", ".join(self.databases()) or "nothing"
            return NoBackupError(
                f"there is no backup of {database}",
                detail=f"{self.storage.url} holds: {others}",
                hint=f"Is this the right repository and database? Make one: backupd backup {database}",
            )
        assert at is not None
        return NoBackupError(
            f"no backup of {database} was taken at or before {times.iso(at)}",
            detail=f"The oldest is {known[0].id}.",
            hint=f"Ask for that time or a later one: --at {times.iso(known[0].second + timedelta(seconds=1))}",
        )

    # ---- reading and writing manifests

    def manifest(self, ref: BackupRef) -> Manifest:
        """The checked manifest. Raises IntegrityError (exit 7) for anything that is not exactly right."""
        return self.signed_manifest(ref)[0]

    def signed_manifest(self, ref: BackupRef) -> tuple[Manifest, bytes]:
        """The checked manifest, and its bytes as they were signed."""
        where = manifest_key(ref.database, ref.id)
        try:
            data = self.read_signed(where, signature_key(ref.database, ref.id), _MANIFEST_LIMIT)
        except ObjectMissingError as error:
            raise NoBackupError(
                f"backup {ref.id} of {ref.database} is gone", detail="Its manifest was deleted since it was listed."
            ) from error
        found = manifests.decode(data, where)
        self._in_its_place(found, ref, where)
        return found, data

    def read_signed(self, key: str, signature: str, limit: int, *, comment: str | None = None) -> bytes:
        """A small object that a trusted signer signed, with this trusted `comment` if one is given. Raises
        IntegrityError, and ObjectMissingError if it is gone."""
        data = self._small(key, limit)
        try:
            signed = self._small(signature, _SIGNATURE_LIMIT)
        except ObjectMissingError as error:
            raise IntegrityError(
                f"{key} has no signature",
                detail=signature,
                hint="What nobody signed is not believed. Choose an older backup: backupd list.",
            ) from error
        found = minisign.verify(signed.decode("utf-8", "replace"), data, self.trusted, what=key)
        if comment is not None and found != comment:
            raise IntegrityError(
                f"the signature of {key} is that of another object",
                detail=f"It is of: {found}",
                hint="Somebody moved, copied or renamed objects in the repository.",
            )
        return data

    def _small(self, key: str, limit: int) -> bytes:
        """An object that is never large; one that is was not written by backupd, and is no reason to read it all."""
        with closing(self.storage.open(key, length=limit + 1)) as chunks:
            data = b"".join(chunks)
        if len(data) > limit:
            raise IntegrityError(
                f"{key} is larger than any that backupd writes",
                detail=f"More than {limit} bytes, in {self.storage.url}.",
                hint="The object was damaged or replaced. Choose another backup: backupd list.",
            )
        return data

    def _in_its_place(self, found: Manifest, ref: BackupRef, where: str) -> None:
        repository = self.repository_id()
        for what, is_, should in (
            ("database", found.database, ref.database),
            ("backup", found.id, ref.id),
            ("repository", found.repository, repository or found.repository),
        ):
            if is_ != should:
                raise IntegrityError(
                    f"the manifest {where} is that of another {what}",
                    detail=f"It says {what} {is_}, and its place says {should}.",
                    hint="Somebody moved or swapped objects in the repository. Choose another backup.",
                )

    def check_objects(self, manifest: Manifest) -> None:
        """Every object of the backup is there and of the manifest's size, by one listing. Raises IntegrityError."""
        prefix = data_prefix(manifest.database, manifest.id)
        sizes = {info.key: info.size for info in self.storage.list(prefix)}
        wrong = []
        for stream in manifest.objects:
            if not stream.key.startswith(prefix):
                wrong.append(f"{stream.key} lies outside of {prefix}")
            elif stream.key not in sizes:
                wrong.append(f"{stream.key} is missing")
            elif sizes[stream.key] != stream.stored_bytes:
                wrong.append(f"{stream.key} has {sizes[stream.key]} bytes, and the manifest says {stream.stored_bytes}")
        if wrong:
            raise IntegrityError(
                f"backup {manifest.id} of {manifest.database} is not whole",
                detail="\n".join(wrong),
                hint=f"Choose another backup: backupd list {manifest.database}",
            )

    def commit(self, made: Manifest, key: minisign.SecretKey) -> None:
        """Make a backup exist: its signature first, then, create-only, its manifest.

        On a thread of its own, which an interrupt waits for: a write that is still under way when its backup is
        discarded could arrive after that.
        """
        workers.run([partial(self._commit, made, key)], 1, Running())

    def _commit(self, made: Manifest, key: minisign.SecretKey) -> None:
        self.check_objects(made)  # a store may have acknowledged what it does not have
        data = made.encode()
        signature = minisign.sign(key, data, trusted_comment=f"backupd manifest {made.database}/{made.id}")
        self.storage.put(signature_key(made.database, made.id), [signature.encode()])
        place = manifest_key(made.database, made.id)
        try:
            self.storage.put(place, [data], create_only=True)
        except ObjectExistsError:
            # A write whose answer was lost and that was then retried meets itself.
            if self.storage.read(place) != data:
                raise
        self._committed.add(made.id)

    def is_committed(self, backup_id: str) -> bool:
        """Whether this catalog committed it, also if an interrupt came before anybody was told."""
        return backup_id in self._committed

    def discard(self, database: str, backup_id: str) -> None:
        """Remove all that a failed backup stored. The manifest first: a write that failed may have happened after
        all, and as long as that is not known to be undone, the data stays."""
        self.storage.delete([manifest_key(database, backup_id)])
        self.storage.delete([signature_key(database, backup_id)])
        self.storage.delete([info.key for info in self.storage.list(data_prefix(database, backup_id))])
