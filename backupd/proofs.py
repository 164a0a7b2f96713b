"""The proofs of a repository: recorded, found, and believed only as far as their signatures go.

A proof lies under DATABASE/proofs/ID/, its verdict in its name: one LIST tells what there is. What counts is what a
trusted signer signed, of this repository, this database, this backup and its very manifest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol, TypeVar

from backupd import proof as records
from backupd import times
from backupd.catalog import BackupRef, Catalog
from backupd.crypto import minisign
from backupd.errors import IntegrityError, ObjectExistsError, ObjectMissingError
from backupd.manifest import id_second
from backupd.proof import Proof
from backupd.storage.base import ObjectInfo

REHEARSALS = "rehearsals"  # restores into another major version: no proofs of the backup, kept apart from them
_LIMIT = 64 << 20  # bytes of a proof
_LEVELS = ("off", "rows", "content")
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
    # Also where the clock went back: only names that are signed are gone by, not what anybody planted there.
    ahead = [ref for ref in known if ref.at >= made.finished_at.replace(microsecond=0)]
    believed = [ref.at for ref in ahead if isinstance(next(_read_each(catalog, [ref])), Proof)]
    moment = max([made.finished_at, *(at + timedelta(seconds=1) for at in believed)])
    while True:
        name = f"{times.compact(moment)}-{made.status}.json"
        place = f"{folder(made.database, rehearsal=made.rehearsal)}{made.id}/{name}"
        signature = minisign.sign(key, data, trusted_comment=_comment(made.database, made.id, name)).encode()
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


def _comment(database: str, backup: str, name: str) -> str:
    """Signed with the proof: it belongs into this place and under this name, which says when it was made."""
    return f"backupd proof {database}/{backup} {name}"


def _is_ours(catalog: Catalog, place: str, data: bytes) -> bool:
    """Whether a write whose answer was lost, and that was then retried, met itself."""
    try:
        return catalog.storage.read(place) == data
    except ObjectMissingError:
        return False


def refs(catalog: Catalog, database: str, *, rehearsal: bool = False, backup: str | None = None) -> list[ProofRef]:
    """Every proof of a database or of one backup, oldest first. Asks for names only."""
    return sorted(listed(catalog, database, rehearsal=rehearsal, backup=backup))


def listed(
    catalog: Catalog, database: str, *, rehearsal: bool = False, backup: str | None = None
) -> dict[ProofRef, ObjectInfo]:
    """The same, each as the listing shows it."""
    prefix = folder(database, rehearsal=rehearsal)
    infos = catalog.storage.list(prefix if backup is None else f"{prefix}{backup}/")
    return {found: info for info in infos if (found := ref(database, info.key, rehearsal=rehearsal)) is not None}


def ref(database: str, key: str, *, rehearsal: bool = False) -> ProofRef | None:
    """The proof that lies there, as far as its name tells; None for any other key."""
    prefix = folder(database, rehearsal=rehearsal)
    backup, _, name = key.removeprefix(prefix).partition("/")
    match = _NAME.fullmatch(name)
    if match is None or not key.startswith(prefix) or id_second(backup) is None:
        return None
    try:
        at = datetime.strptime(match[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:  # the digits of no date
        return None
    return ProofRef(at, match[2], database, backup, key)


def read(catalog: Catalog, ref: ProofRef) -> Proof:
    """The checked proof. Raises IntegrityError for one that is not exactly right."""
    comment = _comment(ref.database, ref.backup, ref.key.rpartition("/")[2])
    try:
        data = catalog.read_signed(ref.key, f"{ref.key}.minisig", _LIMIT, comment=comment)
    except ObjectMissingError as error:
        raise IntegrityError(f"the proof {ref.key} is gone", detail="It was deleted since it was listed.") from error
    found = records.decode(data, ref.key)
    for what, is_, should in (
        ("database", found.database, ref.database),
        ("backup", found.id, ref.backup),
        ("verdict", found.status, ref.status),
        ("kind", _kind(found.rehearsal), _kind(ref.key.startswith(folder(ref.database, rehearsal=True)))),
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


class Result(Protocol):
    """What a test restore found, and how closely it looked."""

    @property
    def status(self) -> str: ...

    @property
    def level(self) -> str: ...


R = TypeVar("R", bound=Result)


def verdict(found: Iterable[R | IntegrityError]) -> R | IntegrityError | None:
    """The proof that counts of all those of one backup, oldest first: the newest that came to a verdict, but a failure
    stands until as much was asked again and passed. An error if there are proofs, and none can be believed."""
    counts: R | None = None
    refused: IntegrityError | None = None
    for each in found:
        if isinstance(each, IntegrityError):
            refused = each
        elif settles(each, counts):
            counts = each
    return counts or refused


def settles(later: Result, earlier: Result | None) -> bool:
    """Whether the later of two results of one backup is what counts now."""
    if later.status == "passed":
        stands = earlier is not None and earlier.status == "failed"
        return not (stands and earlier is not None and _LEVELS.index(later.level) < _LEVELS.index(earlier.level))
    return later.status == "failed"


def decided(refs: Iterable[ProofRef]) -> dict[str, list[ProofRef]]:
    """Those that say passed or failed, by their backups, in the order in which they come."""
    found: dict[str, list[ProofRef]] = {}
    for ref in refs:
        if ref.status != "inconclusive":
            found.setdefault(ref.backup, []).append(ref)
    return found


def counting(refs: Sequence[ProofRef], read: Callable[[ProofRef], R | IntegrityError]) -> R | IntegrityError | None:
    """The verdict on a backup, from its proofs, oldest first. Reads the newest alone where that is enough: where no
    proof failed."""
    alone = read(refs[-1])
    if all(ref.status == "passed" for ref in refs) and not isinstance(alone, IntegrityError):
        return alone
    return verdict(map(read, refs))


def _read_each(catalog: Catalog, refs: Iterable[ProofRef]) -> Iterator[Proof | IntegrityError]:
    return (_read_or_doubt(catalog, ref) for ref in refs)


def _read_or_doubt(catalog: Catalog, ref: ProofRef) -> Proof | IntegrityError:
    try:
        return read(catalog, ref)
    except IntegrityError as error:
        return error


def of_backup(catalog: Catalog, ref: BackupRef) -> Iterator[Proof | IntegrityError]:
    """Every proof and rehearsal of one backup, oldest first; one that can't be believed comes as its error."""
    both = (refs(catalog, ref.database, rehearsal=rehearsal, backup=ref.id) for rehearsal in (False, True))
    return _read_each(catalog, sorted(found for each in both for found in each))


def proven(catalog: Catalog, database: str, *, before: BackupRef, most: int) -> list[BackupRef]:
    """The last backups older than that one that were compared and passed, newest first."""
    named = decided(refs(catalog, database))
    found: list[BackupRef] = []
    for backup in sorted((ref for ref in catalog.backups(database) if ref < before and ref.id in named), reverse=True):
        proof = counting(named[backup.id], partial(_read_or_doubt, catalog))
        if isinstance(proof, Proof) and proof.status == "passed" and proof.level != "off":
            found.append(backup)
        if len(found) == most:
            break
    return found
