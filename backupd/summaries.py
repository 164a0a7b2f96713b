"""What the manifests and proofs of one database say of themselves, in short, kept in one object of the repository: who
lists ten thousand backups need not read ten thousand manifests.

It is signed, and a line of it counts only for an object of the very size and time that it was read from, as the listing
tells. Whatever is not in it, or not any more, is read. `prune` writes it, and itself reads everything: nothing is ever
deleted, restored or proven by what a summary says. docs/format.md describes each key.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from backupd import proofs
from backupd.catalog import BackupRef, Catalog
from backupd.crypto import minisign
from backupd.errors import BackupdError, IntegrityError, NoBackupError, StorageError
from backupd.manifest import Manifest, Moment, Size
from backupd.proof import Proof
from backupd.proofs import ProofRef
from backupd.storage.base import ObjectInfo

FORMAT = 1
WORTH_IT = 10  # backups and proofs from which one is kept; fewer are read as fast
_LIMIT = 256 << 20  # bytes; a backup has some 300
_READERS = 8  # objects read at a time


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


@dataclass(frozen=True, slots=True)
class Headline:
    """A manifest in short."""

    taken_at: Moment
    started_at: Moment
    finished_at: Moment
    raw_bytes: Size
    stored_bytes: Size
    tables: Size
    rows: Size
    server_version: str

    @property
    def duration(self) -> timedelta:
        return self.finished_at - self.started_at

    @staticmethod
    def of(made: Manifest) -> Headline:
        return Headline(
            taken_at=made.taken_at,
            started_at=made.started_at,
            finished_at=made.finished_at,
            raw_bytes=made.raw_bytes,
            stored_bytes=made.stored_bytes,
            tables=len(made.tables),
            rows=made.rows,
            server_version=made.server_version,
        )


@dataclass(frozen=True, slots=True)
class ProofHead:
    """A proof in short."""

    status: Literal["passed", "failed", "inconclusive"]
    level: Literal["off", "rows", "content"]
    finished_at: Moment

    @staticmethod
    def of(made: Proof) -> ProofHead:
        return ProofHead(status=made.status, level=made.level, finished_at=made.finished_at)


class _Backup(_Record):
    size: Size  # of the manifest, bytes
    modified: Moment
    says: Headline


class _Proof(_Record):
    size: Size
    modified: Moment
    says: ProofHead


class _Summary(_Record):
    format: int
    repository: str  # the id in backupd.json
    database: str  # the key in the configuration
    trusted: tuple[str, ...]  # signers, of whom one signed each manifest and proof that it is of
    backups: Mapping[str, _Backup] = {}  # by ID
    proofs: Mapping[str, _Proof] = {}  # by key


def summary_key(database: str) -> str:
    return f"{database}/summary.json"


class View:
    """One database as a list shows it: every backup and the verdict on it. Reads the storage when it is made."""

    def __init__(self, catalog: Catalog, database: str, *, whole: bool = False) -> None:
        """`whole`: every manifest and proof is read, whatever a summary says. Raises StorageError."""
        self._catalog = catalog
        self._database = database
        self.doubt: IntegrityError | None = None  # why the stored summary is not believed
        catalog.repository_id()  # once, before many threads ask for it
        self._manifests = catalog.listed(database)  # as a listing shows them
        self._proofs = proofs.listed(catalog, database)
        few = len(self._manifests) + len(self._proofs) < WORTH_IT
        self._known = None if few or whole else self._stored()
        self._read: dict[str, ProofHead | IntegrityError] = {}  # proofs, by key
        self.backups: Mapping[BackupRef, Headline | BackupdError] = self._headlines()
        self.verdicts: Mapping[str, ProofHead | IntegrityError] = self._verdicts()

    def keep(self, key: minisign.SecretKey, *, without: Collection[str] = ()) -> None:
        """Store what this view knows, if that is other than what is stored; `without` the backups of these IDs, which
        were deleted since."""
        backups = {
            ref.id: _Backup(size=info.size, modified=info.modified, says=says)
            for ref, info in self._manifests.items()
            if isinstance(says := self.backups.get(ref), Headline) and ref.id not in without
        }
        results = {
            ref.key: _Proof(size=info.size, modified=info.modified, says=said)
            for ref, info in self._proofs.items()
            if isinstance(said := self._said(ref), ProofHead) and ref.backup not in without
        }
        repository = self._catalog.repository_id()
        if len(backups) + len(results) < WORTH_IT or repository is None:
            if without:  # of what is left one would be as quick, and of nothing it would keep the folder
                self._catalog.storage.delete([summary_key(self._database)])
            return
        made = _Summary(
            format=FORMAT,
            repository=repository,
            database=self._database,
            trusted=tuple(sorted(map(str, self._catalog.trusted))),
            backups=backups,
            proofs=results,
        )
        if made == self._stored():
            return
        text = json.dumps(made.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))
        signature = minisign.sign(key, text.encode(), trusted_comment=_comment(self._database))
        # One object, so that two who write it never leave one's text with the other's signature.
        document = json.dumps({"signature": signature, "summary": text}, ensure_ascii=False)
        self._catalog.storage.put(summary_key(self._database), [document.encode()])

    def _stored(self) -> _Summary | None:
        """None where there is none that helps."""
        place = summary_key(self._database)
        try:
            data = self._catalog.storage.read(place, limit=_LIMIT)
            text = _signed(data, place, self._database, self._catalog.trusted)
            found = _decode(text, place, self._database, self._catalog.repository_id())
        except IntegrityError as error:
            self.doubt = error
            return None
        except StorageError:  # it is not there, or can't be read: then the manifests are
            return None
        believed = found is not None and set(found.trusted) <= set(map(str, self._catalog.trusted))
        return found if believed else None

    def _headlines(self) -> dict[BackupRef, Headline | BackupdError]:
        """Newest first."""

        def read(ref: BackupRef) -> Headline | BackupdError | None:
            line = self._known.backups.get(ref.id) if self._known is not None else None
            if line is not None and _is_of(line, self._manifests[ref]):
                return line.says
            try:
                return Headline.of(self._catalog.manifest(ref))
            except IntegrityError as error:
                return error
            except NoBackupError:  # deleted since it was listed
                return None

        refs = sorted(self._manifests, reverse=True)
        with ThreadPoolExecutor(_READERS, thread_name_prefix="manifests") as pool:
            found = zip(refs, pool.map(read, refs), strict=True)
            return {ref: says for ref, says in found if says is not None}

    def _verdicts(self) -> Mapping[str, ProofHead | IntegrityError]:
        of = proofs.decided(self.proof_refs)
        with ThreadPoolExecutor(_READERS, thread_name_prefix="proofs") as pool:
            verdicts = zip(of, pool.map(lambda refs: proofs.counting(refs, self.proof), of.values()), strict=True)
            return {backup: found for backup, found in verdicts if found is not None}

    def proof(self, ref: ProofRef) -> ProofHead | IntegrityError:
        """What this proof says, if it is believed."""
        said = self._said(ref)
        if said is None:
            try:
                said = ProofHead.of(proofs.read(self._catalog, ref))
            except IntegrityError as error:
                said = error
            self._read[ref.key] = said
        return said

    def _said(self, ref: ProofRef) -> ProofHead | IntegrityError | None:
        """As far as it was read, now or before."""
        line = self._known.proofs.get(ref.key) if self._known is not None else None
        info = self._proofs.get(ref)
        if line is not None and info is not None and _is_of(line, info):
            return line.says
        return self._read.get(ref.key)

    @property
    def listed(self) -> Collection[BackupRef]:
        """Every backup whose manifest the storage lists, also where it then could not be read."""
        return self._manifests.keys()

    @property
    def proof_refs(self) -> Sequence[ProofRef]:
        """Every proof, oldest first."""
        return sorted(self._proofs)


def _comment(database: str) -> str:
    """Signed with it: it is a summary, and of this database."""
    return f"backupd summary {database}"


def _signed(data: bytes, where: str, database: str, trusted: Sequence[minisign.PublicKey]) -> str:
    """The text in a stored summary, if a trusted signer signed it as one of this database. Raises IntegrityError."""
    try:
        document = json.loads(data)
        signature, text = str(document["signature"]), str(document["summary"])
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"the summary {where} is not readable", detail=f"{type(error).__name__}: {error}"
        ) from error
    if minisign.verify(signature, text.encode(), trusted, what=where) != _comment(database):
        raise IntegrityError(f"the summary {where} is that of another database")
    return text


def _is_of(line: _Backup | _Proof, info: ObjectInfo) -> bool:
    return (line.size, line.modified) == (info.size, info.modified)


def _decode(text: str, where: str, database: str, repository: str | None) -> _Summary | None:
    """None: of a newer format, so of no use here."""
    try:
        raw = json.loads(text)
        if int(raw["format"]) > FORMAT:
            return None
        found = _Summary.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise IntegrityError(f"the summary {where} is not readable", detail=str(first["msg"])) from error
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"the summary {where} is not readable", detail=f"{type(error).__name__}: {error}"
        ) from error
    if (found.database, found.repository) != (database, repository or found.repository):
        raise IntegrityError(f"the summary {where} is that of another database or repository")
    return found
