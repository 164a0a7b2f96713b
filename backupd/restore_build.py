"""The definitions of a restore: tables before the rows, indexes and constraints after them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Lock

from backupd.errors import PostgresError
from backupd.manifest import SHARED_STREAM, Table
from backupd.postgres import archive, database, indexes
from backupd.postgres.archive import Archive, Entry
from backupd.postgres.workers import Behind
from backupd.restore_work import Work

_WHAT = "the schema archive"
_WORTH_SPLITTING = 64 << 20  # bytes of a table; less is sooner done than shared out


class Builder:
    """Has the schema archive, and builds of it what is due."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._whole = work.plan.contents.archive
        self._built: set[int] = set()  # dump ids
        self._lock = Lock()
        self._announced = False
        # Where an earlier run was interrupted, nobody knows what it had built: all of it comes at the end then.
        self._resumed = work.plan.resumes and work.mark.tables
        own = [(t.schema_, t.name) for t in work.plan.contents.tables if t.stream != SHARED_STREAM]
        parsed = archive.parse(self._whole, _WHAT) if own and not self._resumed else None
        self._behind = len(self._whole) - parsed.size if parsed is not None else 0  # bytes after the table of contents
        self._early = indexes.early(parsed.entries, own) if parsed is not None else {}
        # Of thousands of entries no more is kept than is needed meanwhile.
        self._frame = parsed.with_entries(indexes.settings(parsed.entries)) if parsed is not None else None

    def tables(self) -> None:
        """All that rows need."""
        with _in_memory(self._whole) as file:
            self._work.restorer.schema("pre-data", file, jobs=1)

    def announce(self) -> None:
        """Say that all rows are there, and what goes on: once."""
        if not self._announced:
            self._announced = True
            self._work.progress.phase("building indexes and constraints")

    def early(self, tables: Sequence[Table], behind: Behind) -> None:
        """Leave behind what can be built of tables that are loaded: their indexes and keys, as far as they need nothing
        else. Those of a large table one by one, for several jobs."""
        for table in tables:
            due = self._early.get((table.schema_, table.name), ())
            whole = table.bytes < _WORTH_SPLITTING
            together = [entry for entry in due if whole or indexes.is_exclusive(entry)]
            others = [[entry] for entry in due if entry not in together]
            if together:
                behind.add(partial(self._build, together, others, behind))
            else:
                self._leave(others, behind)

    def _leave(self, groups: Sequence[Sequence[Entry]], behind: Behind) -> None:
        for group in groups:
            behind.add(partial(self._build, group, (), behind))

    def _build(self, due: Sequence[Entry], others: Sequence[Sequence[Entry]], behind: Behind) -> None:
        """These, one after the other; then leave the others, which would have had to wait for them."""
        assert self._frame is not None
        with _in_memory(self._only(self._frame, [*self._frame.entries, *due])) as file:
            self._work.restorer.schema("post-data", file, jobs=1)
        with self._lock:
            self._built |= {entry.dump_id for entry in due}
        self._leave(others, behind)

    def rest(self) -> None:
        """Indexes, constraints, triggers and the like. Where pg_restore's parallel jobs lock each other out (it does
        not know what a partitioned table's trigger locks), all of them once more with a single one."""
        self.announce()
        try:
            self._after_rows(self._rest(), jobs=self._work.plan.jobs, again=self._resumed)
        except PostgresError as error:
            if self._work.plan.jobs == 1 or "deadlock detected" not in error.detail:
                raise
            self._work.progress.warn(
                "two jobs of pg_restore locked each other out: the rest is built once more, by a single one"
            )
            self._after_rows(self._whole, jobs=1, again=True)

    def _after_rows(self, data: bytes, *, jobs: int, again: bool) -> None:
        """`again`: some may be there."""
        if again:  # what pg_restore --clean would leave, and what it would drop too much
            database.drop_loose_indexes(self._work.plan.dsn)
            database.drop_subscriptions(self._work.plan.dsn)
        with _in_memory(data) as file:
            self._work.restorer.schema("post-data", file, jobs=jobs, again=again)

    def _rest(self) -> bytes:
        parsed = archive.parse(self._whole, _WHAT) if self._built else None
        if parsed is None:
            return self._whole
        # Comments stay where they were, whatever is built of what stood before them.
        return self._only(parsed, [e for e in archive.placed(parsed.entries) if e.dump_id not in self._built])

    def _only(self, frame: Archive, entries: Sequence[Entry]) -> bytes:
        size = len(self._whole) - self._behind
        return frame.with_entries(entries).encode() + self._whole[size:]


@contextmanager
def _in_memory(data: bytes) -> Iterator[int]:
    """An archive as an open file in memory: pg_restore seeks in it, and nothing of it stays behind on disk however we
    end."""
    descriptor = os.memfd_create("schema")
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        yield descriptor
    finally:
        os.close(descriptor)
