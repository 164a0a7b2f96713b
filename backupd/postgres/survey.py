"""What a backup knows of its source beside the dump, so that a restored copy can be held against it: rows, contents,
objects, sequences. All of it is read in the session that holds the snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from psycopg import sql

from backupd.errors import PostgresError
from backupd.postgres import fingerprint, inventory, objects, sequences
from backupd.postgres.inventory import SourceTable
from backupd.postgres.objects import Inventory
from backupd.postgres.process import Running
from backupd.postgres.sequences import Position
from backupd.postgres.session import Interruptible, explained
from backupd.postgres.snapshot import Source

_PER_SAVEPOINT = 100  # a count locks a table's indexes until its transaction or savepoint ends


@dataclass(frozen=True, slots=True)
class Surveyed:
    """The source as of the snapshot. `contents` and `large_objects` are empty unless they were asked for."""

    inventory: Inventory
    rows: dict[int, int]  # by the table's oid
    contents: dict[int, str]  # hashes, as fingerprint makes them
    large_objects: tuple[int, str] | None  # how many, and the hash of their bytes
    probe: str  # how this server hashes


def survey(
    source: Source, tables: Sequence[SourceTable], running: Running, *, timeout: timedelta, content: bool
) -> Surveyed:
    """Everything but the sequences. Raises PostgresError; it waits for no lock longer than `timeout`, except for that
    of an index.

    In the session that holds the tables' locks: any other would have to queue behind whoever waits for these to
    go, which would be a deadlock that nobody detects.
    """
    rows: dict[int, int] = {}
    contents: dict[int, str] = {}
    session = source.connection
    with _endable(source, running):
        with explained("the database's objects could not be read"), _patience(source, timeout):
            found = objects.read(session)
            probe = fingerprint.probe(session)
        for start in range(0, len(tables), _PER_SAVEPOINT):
            if running.stopped:  # a cancel that came between two queries was lost
                raise PostgresError("counting the rows was stopped")
            batch = tables[start : start + _PER_SAVEPOINT]
            with explained("the rows could not be counted"), session.transaction(force_rollback=True):
                if content:
                    both = fingerprint.contents(session, [(t.oid, sql.Identifier(t.schema, t.name)) for t in batch])
                    rows |= {oid: count for oid, (count, _) in both.items()}
                    contents |= {oid: digest for oid, (_, digest) in both.items()}
                else:
                    rows |= inventory.count_rows(session, batch)
        large = None
        if content:
            with explained("the large objects could not be read"), session.transaction(force_rollback=True):
                large = fingerprint.large_objects(session)
    return Surveyed(found, rows, contents, large, probe)


def positions(source: Source, timeout: timedelta) -> dict[str, tuple[Position, int]]:
    """Where every sequence stands now."""
    with explained("the sequences could not be read"), _patience(source, timeout):
        return sequences.read(source.connection)


@contextmanager
def _patience(source: Source, timeout: timedelta) -> Iterator[None]:
    """No statement of the block waits longer than this for a lock."""
    source.connection.execute(f"set lock_timeout = {int(timeout.total_seconds() * 1000)}".encode())
    yield
    source.connection.execute("set lock_timeout = 0")


@contextmanager
def _endable(source: Source, running: Running) -> Iterator[None]:
    """What the session does ends when everything in `running` is ended."""
    query = Interruptible(source.connection)
    running.add(query)
    try:
        yield
    finally:
        running.remove(query)
