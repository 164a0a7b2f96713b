"""What a repository holds, kept in memory and brought up to date: so that nobody who asks waits for the storage.

A refresh asks for what is newer than is known: one LIST for each database, and the new manifests. Now and then it asks
for everything: what was deleted is noticed then, and what the objects take. What it gives out are values that never
change, for any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial

from backupd import proofs, times
from backupd.catalog import BackupRef, Catalog, backup_ref, manifest_key
from backupd.errors import IntegrityError, NoBackupError, StorageError
from backupd.proof import Check, Proof
from backupd.proofs import ProofRef
from backupd.retention import CLOCKS_DIFFER
from backupd.summaries import Headline

_READERS = 8  # databases looked at a time
_UNREADABLE = 20  # manifests of one database, after which no more are read
_MANIFESTS = 2000  # read in one refresh, of all databases together; at least one of each
_TESTS = 10  # proofs read of each database, at least, for what is shown over time
_ITEMS = 20  # differences of a check that are told
_OVERLAP = timedelta(hours=26)  # a backup is listed when it is complete: later than those that began after it


@dataclass(frozen=True, slots=True)
class Tested:
    """A proof in short."""

    backup: str
    taken_at: datetime  # the backup's snapshot
    finished_at: datetime
    status: str
    level: str
    seconds: float
    restore_seconds: float
    checks: tuple[tuple[str, str, str], ...]  # name, status, detail


@dataclass(frozen=True, slots=True)
class Holdings:
    """What there is of one database."""

    database: str
    backups: tuple[BackupRef, ...] = ()  # oldest first
    proofs: tuple[ProofRef, ...] = ()  # in the order in which they were made
    headlines: Mapping[str, Headline] = field(default_factory=dict)  # of those whose manifests were read, by ID
    unreadable: Mapping[str, str] = field(default_factory=dict)  # why a manifest is not believed, by ID
    hollow: frozenset[str] = frozenset()  # backups whose manifest is there and whose data is gone, by ID
    newest: Headline | None = None  # of those whose manifest is believed, and that are not dated in the future
    last_test: Tested | None = None  # the newest that came to a verdict and is believed
    last_passed: Tested | None = None  # the newest that passed
    newest_proven: Tested | None = None  # of the newest backup whose verdict is that it restores
    failed: tuple[Tested, ...] = ()  # failures that stand: of the newest proven backup and of later ones
    doubtful: bool = False  # the newest proof, by its name, is not believed
    tests: tuple[Tested, ...] = ()  # the newest ones, the newest first
    forged: frozenset[str] = frozenset()  # keys of proofs that were read and are not believed
    stored_bytes: Mapping[str, int] = field(default_factory=dict)  # of all that was stored, by ID
    named_at: datetime | None = None  # when its names were listed last
    seen_at: datetime | None = None  # and when all was read that is told here
    listed_at: datetime | None = None  # when everything was asked for
    blind: str = ""  # why something of it could not be read

    def last(self, kind: str, now: datetime) -> datetime | None:
        """When it was backed up or verified last, by names. What is dated in the future does not count."""
        if kind == "backup":
            found = [ref.second for ref in self.backups]
        else:
            found = [ref.at for ref in self.proofs if ref.status != "inconclusive"]
        return max((moment for moment in found if moment <= now + CLOCKS_DIFFER), default=None)

    @property
    def repository_bytes(self) -> int:
        return sum(self.stored_bytes.values())


class Keeper:
    """Refreshes the holdings of some databases. One thread at a time; any may call `forget`."""

    def __init__(self, whole_after: timedelta = timedelta(hours=1), headlines: int = 60) -> None:
        self._whole_after = whole_after
        self._most = headlines  # manifests read of one database, the newest: for what is shown over time
        self._known: dict[str, Holdings] = {}
        self._sizes: set[str] = set()  # databases of which it is to be asked what they store
        self._tests: dict[str, Tested | None] = {}  # by the proof's key
        self._deleted: set[str] = set()  # databases of which something was
        self.troubles: Mapping[str, StorageError] = {}  # of the last refresh

    def refresh(self, catalog: Catalog, databases: Iterable[str]) -> Mapping[str, Holdings]:
        """What there is now, by database: `names`, then `details`. One that the storage says nothing of stays as it was
        known, or is left out: `troubles` says why. Raises StorageError if that is all of them."""
        names = list(databases)
        self.names(catalog, names)
        troubles = self.troubles
        found = self.details(catalog, names)
        self.troubles = {**self.troubles, **troubles}
        return found

    def names(self, catalog: Catalog, databases: Iterable[str]) -> Mapping[str, Holdings]:
        """Which backups and test restores there are, by one LIST of each database."""
        return self._each(self._listed, catalog, list(databases))

    def details(self, catalog: Catalog, databases: Iterable[str]) -> Mapping[str, Holdings]:
        """What those say of themselves that are new among the names."""
        names = [name for name in databases if name in self._known]
        quota = max(1, _MANIFESTS // max(1, len(names)))
        return self._each(partial(self._detailed, quota), catalog, names)

    def known(self, databases: Iterable[str]) -> Mapping[str, Holdings]:
        """As far as anything is."""
        return {name: self._known[name] for name in databases if name in self._known}

    def keep(self, databases: Iterable[str]) -> None:
        """Of these alone, and nothing of others."""
        wanted = set(databases)
        self._known = {name: known for name, known in list(self._known.items()) if name in wanted}
        keys = {ref.key for each in self._known.values() for ref in each.proofs}
        self._tests = {key: tested for key, tested in self._tests.items() if key in keys}

    def forget(self, database: str) -> None:
        """Ask for everything of it next time: something was deleted."""
        self._deleted.add(database)

    # ---- one database

    def _each(
        self, work: Callable[[Catalog, str], Holdings], catalog: Catalog, names: list[str]
    ) -> Mapping[str, Holdings]:
        def tried(database: str) -> Holdings | StorageError:
            try:
                made = work(catalog, database)
            except StorageError as error:
                return error
            self._known[database] = made  # at once: who gives up waiting for all of them has this
            return made

        catalog.repository_id()  # once, before many threads ask for it
        with ThreadPoolExecutor(_READERS, thread_name_prefix="holdings") as readers:
            answers = dict(zip(names, readers.map(tried, names), strict=True))
        self.troubles = {name: each for name, each in answers.items() if isinstance(each, StorageError)}
        if names and len(self.troubles) == len(names):
            raise self.troubles[names[0]]
        return self.known(names)

    def _listed(self, catalog: Catalog, database: str) -> Holdings:
        now = times.now()
        known = self._known.get(database, Holdings(database))
        # A clock that was set back is no reason to wait.
        fresh = known.listed_at is not None and timedelta() <= now - known.listed_at < self._whole_after
        whole = not fresh or database in self._deleted
        backups, tests = _listed(catalog, database, None if whole else now - _OVERLAP)
        if whole:
            self._deleted.discard(database)
            self._sizes.add(database)
        else:
            backups |= set(known.backups)
        listed_at = now if whole else known.listed_at
        ordered, proofs = tuple(sorted(backups)), tuple(sorted(tests))
        return replace(known, backups=ordered, proofs=proofs, named_at=now, listed_at=listed_at)

    def _detailed(self, quota: int, catalog: Catalog, database: str) -> Holdings:
        """What can't be read of it makes it blind, as old as it was; the rest is told."""
        made, now = self._known[database], times.now()
        try:
            if database in self._sizes:
                made = _with_sizes(catalog, made)
                self._sizes.discard(database)
            made = self._with_headlines(catalog, made, quota, now)
            made = self._with_tests(catalog, made, quota, now)
        except StorageError as error:
            return replace(made, blind=error.message)
        return replace(made, blind="", seen_at=made.named_at)

    def _with_headlines(self, catalog: Catalog, made: Holdings, quota: int, now: datetime) -> Holdings:
        """The newest manifests: some more at each look, until there are as many as are shown."""
        count = min(self._most, len(made.headlines) + quota)
        headlines: dict[str, Headline] = {}
        unreadable: dict[str, str] = {}
        sizes = dict(made.stored_bytes)
        gone = set()
        for ref in reversed(made.backups):
            if len(headlines) >= count or len(unreadable) >= _UNREADABLE:
                break
            if ref.id in made.headlines:
                headlines[ref.id] = made.headlines[ref.id]
                continue
            try:
                headlines[ref.id] = Headline.of(catalog.manifest(ref))
                sizes.setdefault(ref.id, headlines[ref.id].stored_bytes)
            except NoBackupError:  # deleted since it was listed
                gone.add(ref.id)
            except (IntegrityError, StorageError) as error:
                unreadable[ref.id] = error.message
        backups = tuple(ref for ref in made.backups if ref.id not in gone)
        believed = [ref for ref in reversed(backups) if ref.id in headlines and ref.id not in made.hollow]
        newest = next((headlines[ref.id] for ref in believed if ref.second <= now + CLOCKS_DIFFER), None)
        made = replace(made, backups=backups, headlines=headlines, unreadable=unreadable, stored_bytes=sizes)
        return replace(made, newest=newest or next((headlines[ref.id] for ref in believed), None))

    def _with_tests(self, catalog: Catalog, made: Holdings, quota: int, now: datetime) -> Holdings:
        newest = made.proofs[: -_TESTS - 1 : -1]
        new = [ref for ref in newest if ref.key not in self._tests][:quota]
        tests = [self._read(catalog, ref) for ref in newest if ref in new or ref.key in self._tests]
        decided = [ref for ref in reversed(made.proofs) if ref.status != "inconclusive"]
        # One that is dated in the future tells nothing of now, unless there is no other.
        decided = [ref for ref in decided if ref.at <= now + CLOCKS_DIFFER] or decided
        read = (self._read(catalog, ref) for ref in decided)
        passed = (self._read(catalog, ref) for ref in decided if ref.status == "passed")
        proven, failed = self._verdicts(catalog, made, decided)
        made = replace(
            made,
            last_test=next(filter(None, read), None),
            last_passed=next(filter(None, passed), None),
            newest_proven=proven,
            failed=failed,
            tests=tuple(filter(None, tests)),
            doubtful=bool(decided) and self._read(catalog, decided[0]) is None,
        )
        return replace(made, forged=frozenset(ref.key for ref in made.proofs if self._tests.get(ref.key, ()) is None))

    def _verdicts(
        self, catalog: Catalog, made: Holdings, decided: list[ProofRef]
    ) -> tuple[Tested | None, tuple[Tested, ...]]:
        """Of the newest backup whose verdict is that it restores; and the failures of that were tested last or are
        newer, which put everything in doubt. As `prune` has it."""
        of: dict[str, list[ProofRef]] = {}
        for ref in reversed(decided):
            of.setdefault(ref.backup, []).append(ref)
        there = {ref.id for ref in made.backups} - made.hollow
        failed: dict[str, Tested] = {}
        proven = None
        last = {decided[0].backup} if decided else set()
        for backup in [*sorted(of, reverse=True), *last]:
            verdict = self._verdict(catalog, of[backup]) if proven is None or backup in last else None
            if verdict is not None and verdict.status == "failed":
                failed[backup] = verdict
            elif verdict is not None and proven is None and backup in there:
                proven = verdict
        return proven, tuple(failed.values())

    def _verdict(self, catalog: Catalog, refs: list[ProofRef]) -> Tested | None:
        """What counts of all that are believed, oldest first. The newest is enough where no name says failed."""
        newest = self._read(catalog, refs[-1])
        if newest is not None and all(ref.status == "passed" for ref in refs):
            return newest
        counts = None
        for ref in refs:
            tested = self._read(catalog, ref)
            if tested is not None and proofs.settles(tested, counts):
                counts = tested
        return counts

    def _read(self, catalog: Catalog, ref: ProofRef) -> Tested | None:
        """None: it is not believed."""
        if ref.key not in self._tests:
            try:
                self._tests[ref.key] = _tested(proofs.read(catalog, ref))
            except IntegrityError:
                self._tests[ref.key] = None
        return self._tests[ref.key]


def _listed(catalog: Catalog, database: str, since: datetime | None) -> tuple[set[BackupRef], set[ProofRef]]:
    """The backups from a time on, and all proofs: one listing, as their names follow one another."""
    first = f"{database}/manifests/"
    after = first if since is None else f"{first}{times.compact(since)}"
    backups, tests = set(), set()
    for info in catalog.storage.list(f"{database}/", start_after=after):
        if (ref := backup_ref(database, info.key)) is not None:
            backups.add(ref)
        elif (test := proofs.ref(database, info.key)) is not None:
            tests.add(test)
        elif info.key > f"{database}/proofs0":  # behind what begins with proofs/
            break
    return backups, tests


def _with_sizes(catalog: Catalog, made: Holdings) -> Holdings:
    """What each backup takes, by one listing; and those whose data is gone."""
    sizes = dict(_sizes(catalog, made.database))
    missing = [ref for ref in made.backups if ref.id not in sizes]
    hollow = {ref.id for ref in missing if _is_there(catalog, ref)}  # not those that were deleted meanwhile
    return replace(made, stored_bytes=sizes, hollow=frozenset(hollow))


def _sizes(catalog: Catalog, database: str) -> Iterator[tuple[str, int]]:
    prefix, backup, size = f"{database}/data/", "", 0
    for info in catalog.storage.list(prefix):
        of = info.key.removeprefix(prefix).partition("/")[0]
        if of != backup:
            if backup:
                yield backup, size
            backup, size = of, 0
        size += info.size
    if backup:
        yield backup, size


def _is_there(catalog: Catalog, ref: BackupRef) -> bool:
    key = manifest_key(ref.database, ref.id)
    return any(info.key == key for info in catalog.storage.list(key))


def _tested(made: Proof) -> Tested:
    checks = tuple((check.name, check.status, _detail(check)) for check in made.checks)
    restore = made.phases.get("restore", made.seconds)
    return Tested(made.id, made.taken_at, made.finished_at, made.status, made.level, made.seconds, restore, checks)


def _detail(check: Check) -> str:
    """And what differs, if that is so."""
    more = len(check.items) - _ITEMS
    items = [*check.items[:_ITEMS], *([f"and {more} more"] if more > 0 else [])] if check.status == "failed" else []
    return "; ".join([check.detail, *items])
