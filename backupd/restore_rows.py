"""The rows of a restore: every stream into its tables, and each table compared with what the source had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Lock

from backupd import pipeline
from backupd.errors import ProofError
from backupd.manifest import SHARED_STREAM, Stream, Table
from backupd.postgres import archive, database, workers
from backupd.postgres.mark import Mark
from backupd.postgres.names import identifier
from backupd.restore_build import Builder
from backupd.restore_plan import RestorePlan
from backupd.restore_work import Work


def load_all(work: Work, builder: Builder) -> None:
    """Every stream of rows, the largest first; afterwards every table has the rows that it had in the snapshot."""
    plan = work.plan
    streams = _unloaded(plan, work.mark.done)
    if plan.resumes and work.mark.tables:
        _empty(work, streams)
    waiting = {stream.name for stream in streams}
    apart = [(t.schema_, t.name) for t in plan.contents.tables if t.stream in waiting - {SHARED_STREAM}]
    fresh = database.that_can_be_emptied(plan.dsn, apart) if apart else frozenset[tuple[str, str]]()
    work.progress.phase("loading the rows")
    work.progress.expect(len(plan.contents.tables), sum(stream.raw_bytes for stream in streams))
    loader = _Loader(work, builder, fresh, len(streams))
    feeds = [partial(loader.load, stream) for stream in streams]
    settled, _ = workers.run(feeds, plan.jobs, work.running, behind=loader.behind) if feeds else ([], None)
    compared = {table for tables in settled for table in tables}
    rest = [t for t in plan.contents.tables if t not in compared and (t.stream in waiting or t.root is not None)]
    _compare_rows(work, rest)


def _unloaded(plan: RestorePlan, done: frozenset[str]) -> list[Stream]:
    """What is still to be read, the largest first. Partitions of one table are loaded together or not at all: rows may
    come back in another one than they were in, so no stream of them can be taken back alone."""
    streams = {stream.name: stream for stream in plan.contents.streams}
    missing = set(streams) - done
    roots = {t.root for t in plan.contents.tables if t.root is not None and t.stream in missing}
    while more := {t.stream for t in plan.contents.tables if t.root in roots} - missing:
        missing |= more
        roots |= {t.root for t in plan.contents.tables if t.root is not None and t.stream in more}
    return sorted((streams[name] for name in missing), key=lambda stream: stream.raw_bytes, reverse=True)


def _empty(work: Work, streams: Sequence[Stream]) -> None:
    """Take back what an interrupted restore loaded of these streams."""
    names = {stream.name for stream in streams}
    tables = [(t.schema_, t.name) for t in work.plan.contents.tables if t.stream in names]
    # From pg_dump 17 on large objects are made with their content; older ones make them with the tables, and loading
    # their content again overwrites it.
    made_again = work.plan.manifest.dump_major >= 17
    database.empty(work.plan.dsn, tables, large_objects=made_again and SHARED_STREAM in names)


@dataclass
class _Loader:
    work: Work
    builder: Builder
    fresh: frozenset[tuple[str, str]]  # see Edit
    left: int  # streams
    behind: workers.Behind = field(default_factory=workers.Behind)
    lock: Lock = field(default_factory=Lock)

    def load(self, stream: Stream) -> list[Table]:
        """Feed one data stream to pg_restore, checked to its last byte before pg_restore may see an end; then count
        what arrived, leave behind what can be built now, and return the tables that this settles."""
        work = self.work
        tables = [table for table in work.plan.contents.tables if table.stream == stream.name]
        label = stream.tables[0] if len(stream.tables) == 1 else f"{len(tables)} tables"
        if not tables:
            label = "sequences" if work.plan.choice.parts else "sequences and large objects"
        work.progress.begin(stream.name, label, stream.raw_bytes, tables=len(tables))
        advance = partial(work.progress.advance, stream.name)
        with closing(pipeline.fetch(work.catalog.storage, stream, work.identities, advance)) as chunks:
            work.restorer.data(chunks, stream.key, fresh=self.fresh, large=stream.raw_bytes >= pipeline.BLOCK)
        settled = [table for table in tables if table.root is None]
        _compare_rows(work, settled)
        work.note(done=stream.name)
        work.progress.end(stream.name)
        self.builder.early(tables, self.behind)
        with self.lock:
            self.left -= 1
            if not self.left:
                self.builder.announce()
        return settled


def _compare_rows(work: Work, tables: Sequence[Table]) -> None:
    """The copy has the rows that the source had in the snapshot. Raises ProofError."""
    differing = _differing(work, tables)
    if differing:
        raise ProofError(
            f"the restored copy differs from the source in {len(differing)} tables",
            detail="\n".join(list(differing.values())[:10]),
            hint="Choose another backup, and report this: backupd should not have stored this one.",
        )


def _differing(work: Work, tables: Sequence[Table]) -> dict[str, str]:
    """Which tables have other rows than the source had in the snapshot, and how many: table by table, and partitions
    tree by tree (their rows may come back in another partition)."""
    expected, found = Counter[str](), Counter[str]()
    counted = database.count_rows(work.plan.dsn, [(table.schema_, table.name) for table in tables], work.running)
    for table, rows in zip(tables, counted, strict=True):
        expected[_place(table)] += table.rows
        found[_place(table)] += rows
    return {
        place: f"{place}: {found[place]} rows, and the source had {rows}"
        for place, rows in expected.items()
        if found[place] != rows
    }


def _place(table: Table) -> str:
    return table.root or f"{identifier(table.schema_)}.{identifier(table.name)}"


def confirmed(work: Work) -> Mark:
    """What of an unfinished restore's mark holds: a server that crashed since has emptied unlogged tables. Nothing
    does, and it is made anew, where that is sooner done than told apart."""
    plan, mark = work.plan, work.plan.mark
    nothing = replace(mark, done=frozenset(), tables=False, loaded=False)
    if not mark.tables:
        return nothing
    done = {stream.name for stream in plan.contents.streams} if mark.loaded else mark.done
    redone = {stream.name for stream in _unloaded(plan, frozenset(done))}
    tables = [table for table in plan.contents.tables if table.stream in done - redone]
    wrong = _differing(work, tables)
    if wrong and mark.loaded:
        return nothing
    lost = {table.stream for table in tables if _place(table) in wrong}
    if SHARED_STREAM in redone | lost and _fills_extensions(work):
        return nothing
    return replace(mark, done=mark.done - lost)


def _fills_extensions(work: Work) -> bool:
    """Whether the stream of small tables has rows of extensions' own tables: some of those are there from the start,
    so what was loaded of them can't be taken back."""
    stream = next((s for s in work.plan.contents.streams if s.name == SHARED_STREAM), None)
    if stream is None:
        return False
    known = {(table.schema_, table.name) for table in work.plan.manifest.tables}
    with closing(pipeline.fetch(work.catalog.storage, stream, work.identities, lambda _: None)) as chunks:
        found, _ = archive.read(chunks, stream.key)
    return any(e.desc == "TABLE DATA" and (e.schema or "", e.tag) not in known for e in found.entries)
