"""What a backup knows of its source beside the dump, so that a restored copy can be held against it: rows, contents,
objects, sequences. All of it is read in the session that holds the snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeVar

import psycopg

from backupd.errors import PostgresError
from backupd.postgres import fingerprint, inventory, objects, sequences
from backupd.postgres.inventory import SourceTable
from backupd.postgres.objects import Inventory
from backupd.postgres.process import Running
from backupd.postgres.sequences import Standing
from backupd.postgres.session import Interruptible, explained
from backupd.postgres.snapshot import Source

_PER_SAVEPOINT = 100  # a count locks a table's indexes until its transaction or savepoint ends
_HELD = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)
Positions = Mapping[str, Standing]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Surveyed:
    """The source as of the snapshot. Only the rows are needed; what else could not be read is missed by test restores
    alone, and told in the survey's `troubles`."""

    rows: dict[int, int]  # by the table's oid
    inventory: Inventory
    contents: dict[int, str]  # hashes, as fingerprint makes them; empty unless asked for
    large_objects: tuple[int, str] | None  # how many, and the hash of their bytes
    probe: str  # how this server hashes


class Survey:
    """Reads in the session that holds the tables' locks: any other would have to queue behind whoever waits for these
    to go, which would be a deadlock that nobody detects. Each step in a savepoint that is given up, and its locks with
    it; none waits for a lock longer than `timeout`, but for that of an index."""

    def __init__(self, source: Source, running: Running, timeout: timedelta) -> None:
        self._source = source
        self.running = running
        self._timeout = timeout
        self.troubles: list[str] = []
        self._refusal: BaseException | None = None  # what the last of them was

    def positions(self) -> Positions | None:
        """Where every sequence stands now; None if that can't be read."""
        return self._attempt("the sequences could not be read", lambda: sequences.read(self._source.connection))

    def look(self, tables: Sequence[SourceTable], *, content: bool) -> Surveyed:
        """Everything but the sequences. Raises PostgresError if the rows can't be counted."""
        session = self._source.connection
        with self._endable():
            found = self._attempt("the database's objects could not be read", lambda: objects.read(session))
            probe = self._attempt("the server's hash could not be asked for", lambda: fingerprint.probe(session))
            contents = self._contents(tables) if content and probe is not None else {}
            rows = {oid: counted for oid, (counted, _) in contents.items()}
            rows |= self._count([table for table in tables if table.oid not in rows])
            large = None
            if content:
                what = "the large objects could not be read"
                large = self._attempt(what, lambda: fingerprint.large_objects(session))
        return Surveyed(
            rows=rows,
            inventory=found or Inventory({}, {}),
            contents={oid: digest for oid, (_, digest) in contents.items()},
            large_objects=large,
            probe=probe or "",
        )

    def _contents(self, tables: Sequence[SourceTable]) -> dict[int, tuple[int, str]]:
        found: dict[int, tuple[int, str]] = {}
        for start in range(0, len(tables), _PER_SAVEPOINT):
            oids = [table.oid for table in tables[start : start + _PER_SAVEPOINT]]
            read = self._attempt(
                "rows could not be hashed", partial(fingerprint.contents, self._source.connection, oids)
            )
            if read is None and len(oids) > 1 and not isinstance(self._refusal, _HELD):
                self.troubles.pop()  # of one of them, which is told alone
                for oid in oids:
                    what = "the rows of a table could not be hashed"
                    found |= self._attempt(what, partial(fingerprint.contents, self._source.connection, [oid])) or {}
            found |= read or {}
        return found

    def _count(self, tables: Sequence[SourceTable]) -> dict[int, int]:
        rows: dict[int, int] = {}
        session = self._source.connection
        for start in range(0, len(tables), _PER_SAVEPOINT):
            self._go_on()
            batch = tables[start : start + _PER_SAVEPOINT]
            with explained("the rows could not be counted"), session.transaction(force_rollback=True):
                rows |= inventory.count_rows(session, batch)
        return rows

    def _go_on(self) -> None:
        if self.running.stopped:  # a cancel that came between two queries was lost
            raise PostgresError("reading the source was stopped")

    def _attempt(self, what: str, read: Callable[[], T]) -> T | None:
        """What is read; None, and a line in `troubles`, if the server refuses it. Raises PostgresError if the session
        is lost or everything is to stop."""
        self._go_on()
        session = self._source.connection
        try:
            with explained(what), session.transaction(force_rollback=True):
                session.execute(f"set local lock_timeout = {int(self._timeout.total_seconds() * 1000)}".encode())
                return read()
        except PostgresError as error:
            if self.running.stopped or session.closed or session.broken:
                raise
            self._refusal = error.__cause__
            told = error.detail.partition("\n")[0]
            self.troubles.append(f"{what}, so no test restore can compare that: {told}")
            return None

    @contextmanager
    def _endable(self) -> Iterator[None]:
        """What the session does ends when everything in `running` is ended."""
        query = Interruptible(self._source.connection)
        self.running.add(query)
        try:
            yield
        finally:
            self.running.remove(query)
