"""The proofs of a repository: recorded, found, and believed only as far as their signatures go.

A proof lies under DATABASE/proofs/ID/, its verdict in its name: one LIST tells what there is. What counts is what a
trusted signer signed, of this repository, this database, this backup and its very manifest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from backupd import proof as records
from backupd import times
from backupd.catalog import BackupRef, Catalog
from backupd.crypto import minisign
from backupd.errors import IntegrityError, ObjectExistsError, ObjectMissingError
from backupd.proof import Proof

REHEARSALS = "rehearsals"  # restores into another major version: no proofs of the backup, kept apart from them
_LIMIT = 64 << 20  # bytes of a proof
_READERS = 8  # proofs read at a time
_AHEAD = timedelta(minutes=10)  # how far the time in a name may run ahead of the proof's own
_NAME = re.compile(r"(\d{8}T\d{6}Z)-(passed|failed|inconclusive)\.json")


@dataclass(frozen=True, slots=True, order=True)
class ProofRef:
    """A recorded proof, as far as its name tells."""

    at: datetime  # cut to the second
    status: str
    database: str
    backup: str
    key: str


def folder(database: str, *, rehearsal: bool = False) -> str:
    return f"{database}/{REHEARSALS if rehearsal else 'proofs'}/"


def record(catalog: Catalog, made: Proof, key: minisign.SecretKey) -> str:
    """Store a proof, its signature first. Returns its key in the repository."""
    data = made.encode()
    # The newest proof of a backup is the one that counts: no other's name may be as late, however quick they were.
    known = refs(catalog, made.database, rehearsal=made.rehearsal, backup=made.id)
    ahead = [ref.at + timedelta(seconds=1) for ref in known if ref.at < made.finished_at + _AHEAD]
    moment = max([made.finished_at, *ahead])
    while True:
        name = f"{times.compact(moment)}-{made.status}.json"
        place = f"{folder(made.database, rehearsal=made.rehearsal)}{made.id}/{name}"
        comment = f"backupd proof {made.database}/{made.id} {name}"
        signature = minisign.sign(key, data, trusted_comment=comment).encode()
        try:
            # The proof is what makes itself exist; a signature without one is nothing.
            catalog.storage.put(f"{place}.minisig", [signature], create_only=True)
            catalog.storage.put(place, [data], create_only=True)
        except ObjectExistsError:
            if _is_ours(catalog, place, data):
                return place
            moment += timedelta(seconds=1)  # another run ended in the same second
        else:
            return place


def _is_ours(catalog: Catalog, place: str, data: bytes) -> bool:
    """Whether a write whose answer was lost, and that was then retried, met itself."""
    try:
        return catalog.storage.read(place) == data
    except ObjectMissingError:
        return False


def refs(catalog: Catalog, database: str, *, rehearsal: bool = False, backup: str | None = None) -> list[ProofRef]:
    """Every proof of a database or of one backup, oldest first. Asks for names only."""
    prefix = folder(database, rehearsal=rehearsal)
    found = []
    for info in catalog.storage.list(prefix if backup is None else f"{prefix}{backup}/"):
        backup, _, name = info.key.removeprefix(prefix).partition("/")
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        try:
            at = datetime.strptime(match[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        except ValueError:  # the digits of no date
            continue
        found.append(ProofRef(at, match[2], database, backup, info.key))
    return sorted(found)


def read(catalog: Catalog, ref: ProofRef) -> Proof:
    """The checked proof. Raises IntegrityError for one that is not exactly right."""
    found = records.decode(catalog.read_signed(ref.key, f"{ref.key}.minisig", _LIMIT), ref.key)
    early = ref.at - found.finished_at  # of the name, which is cut to the second, or runs a little ahead
    in_time = -timedelta(seconds=1) < early < 2 * _AHEAD
    for what, is_, should in (
        ("database", found.database, ref.database),
        ("backup", found.id, ref.backup),
        ("verdict", found.status, ref.status),
        ("kind", _kind(found.rehearsal), _kind(ref.key.startswith(folder(ref.database, rehearsal=True)))),
        ("time", times.iso(ref.at if in_time else found.finished_at), times.iso(ref.at)),
        ("repository", found.repository, catalog.repository_id() or found.repository),
    ):
        if is_ != should:
            raise IntegrityError(
                f"the proof {ref.key} is that of another {what}",
                detail=f"It says {what} {is_}, and its place says {should}.",
                hint="Somebody moved or swapped objects in the repository. Verify the backup again.",
            )
    return found


def _kind(rehearsal: bool) -> str:
    return "rehearsal" if rehearsal else "proof"


def latest(catalog: Catalog, database: str) -> dict[str, ProofRef]:
    """The newest proof of each backup that came to a verdict, by the backup's ID."""
    return {ref.backup: ref for ref in refs(catalog, database) if ref.status != "inconclusive"}


def newest(catalog: Catalog, database: str) -> dict[str, Proof | IntegrityError]:
    """The newest verdict on each backup, by the backup's ID; one that can't be believed comes as its error."""

    def checked(ref: ProofRef) -> Proof | IntegrityError | None:
        try:
            return read(catalog, ref)
        except IntegrityError as error:
            return error
        except ObjectMissingError:  # deleted since it was listed
            return None

    found = latest(catalog, database)
    catalog.repository_id()  # once, before many threads ask for it
    with ThreadPoolExecutor(_READERS, thread_name_prefix="proofs") as pool:
        read_ = dict(zip(found, pool.map(checked, found.values()), strict=True))
    return {backup: proof for backup, proof in read_.items() if proof is not None}


def of_backup(catalog: Catalog, ref: BackupRef) -> Iterator[Proof | IntegrityError]:
    """Every proof and rehearsal of one backup, oldest first; one that can't be believed comes as its error."""
    both = [*refs(catalog, ref.database), *refs(catalog, ref.database, rehearsal=True)]
    for found in sorted(both):
        if found.backup == ref.id:
            try:
                yield read(catalog, found)
            except IntegrityError as error:
                yield error


def proven(catalog: Catalog, database: str, *, before: BackupRef, most: int) -> list[BackupRef]:
    """The last backups older than that one whose newest proof passed, newest first."""
    known = {ref.id: ref for ref in catalog.backups(database)}
    newest = latest(catalog, database)
    found: list[BackupRef] = []
    for ref in sorted((known[name] for name in newest if name in known), reverse=True):
        if len(found) < most and ref < before and newest[ref.id].status == "passed":
            try:
                passed = read(catalog, newest[ref.id]).status == "passed"
            except IntegrityError:  # nobody trusted signed it: it proves nothing
                continue
            if passed:
                found.append(ref)
    return found
