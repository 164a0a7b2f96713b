"""Restoring: `run` does what a RestorePlan says, and what it began is gone again if it fails."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from backupd import pipeline, times
from backupd.catalog import Catalog
from backupd.crypto import age
from backupd.errors import BusyError, IntegrityError, PostgresError, ProofError
from backupd.manifest import SHARED_STREAM, Stream, Table
from backupd.postgres import archive, database, properties, roles, workers
from backupd.postgres.mark import Mark, Marker, unfinished
from backupd.postgres.names import identifier
from backupd.postgres.process import Running
from backupd.postgres.restorer import Restorer
from backupd.postgres.swap import Swapped, swap
from backupd.progress import Progress
from backupd.restore_plan import RestorePlan


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did."""

    plan: RestorePlan
    seconds: float
    swapped: Swapped | None
    warnings: tuple[str, ...]  # what could not be set, and does not make the data wrong

    @property
    def name(self) -> str:
        """What the restored database is called now."""
        return self.plan.replaces if self.swapped and self.plan.replaces else self.plan.target


class _Work:
    """What the steps of one restore share."""

    def __init__(
        self, plan: RestorePlan, catalog: Catalog, identities: Sequence[age.Identity], progress: Progress
    ) -> None:
        self.plan, self.catalog, self.identities, self.progress = plan, catalog, identities, progress
        self.running = Running()
        self.claim: database.Claim | None = None
        self.marker = Marker(plan.server.dsn, plan.target, plan.mark)
        self.restorer = Restorer(
            plan.client, plan.dsn, plan.server.major, plan.owners, plan.tablespaces, self.running, plan.contents.edit
        )

    def note(self, *, done: str | None = None, tables: bool = False, loaded: bool = False) -> None:
        """Write down what is complete; an existing database keeps its own comment."""
        self.still_ours()
        if self.plan.creates:
            self.marker.note(done=done, tables=tables, loaded=loaded)

    @property
    def mark(self) -> Mark:
        """How far it has come."""
        return self.marker.mark

    def still_ours(self) -> None:
        if self.claim is not None:
            self.claim.check()


def run(plan: RestorePlan, catalog: Catalog, identities: Sequence[age.Identity], progress: Progress) -> Restored:
    """Restore as planned. A failure removes the database if we created it; nothing else was touched."""
    began, work = times.now(), _Work(plan, catalog, identities, progress)
    with _new_roles(plan, progress) as refused, _archive(plan) as schema, _claimed(work):
        with _database(work):
            if not work.mark.tables:
                progress.phase("creating the tables")
                work.restorer.schema("pre-data", schema, jobs=1)
                work.note(tables=True)
            again = work.mark.loaded
            if not work.mark.loaded:
                _load_all(work)
                work.note(loaded=True)
            progress.phase("building indexes and constraints")
            _build(work, schema, again=again)
            progress.phase("gathering statistics")
            warnings = database.analyze(plan.dsn, plan.jobs, work.running)
            work.still_ours()
            if plan.creates:
                wanted = plan.contents.properties
                warnings += properties.apply_properties(plan.server, plan.target, wanted, owners=plan.owners)
        swapped = _take_name(plan, progress) if plan.replaces is not None else None
    return Restored(plan, (times.now() - began).total_seconds(), swapped, (*refused, *warnings))


def _build(work: _Work, schema: int, *, again: bool) -> None:
    """Indexes, constraints, triggers and the like; `again`: some may be there. Where pg_restore's parallel jobs lock
    each other out (it does not know what a partitioned table's trigger locks), once more with a single one."""
    try:
        _build_with(work, schema, jobs=work.plan.jobs, again=again)
    except PostgresError as error:
        if work.plan.jobs == 1 or "deadlock detected" not in error.detail:
            raise
        work.progress.warn("two jobs of pg_restore locked each other out: the rest is built once more, by a single one")
        _build_with(work, schema, jobs=1, again=True)


def _build_with(work: _Work, schema: int, *, jobs: int, again: bool) -> None:
    if again:  # what pg_restore --clean would leave, and what it would drop too much
        database.drop_loose_indexes(work.plan.dsn)
        database.drop_subscriptions(work.plan.dsn)
    work.restorer.schema("post-data", schema, jobs=jobs, again=again)


# ---- the rows


def _load_all(work: _Work) -> None:
    """Every stream of rows, the largest first; afterwards every table has the rows that it had in the snapshot."""
    plan = work.plan
    streams = _unloaded(plan, work.mark.done)
    if plan.resumes and work.mark.tables:
        _empty(work, streams)
    waiting = {stream.name for stream in streams}
    work.progress.phase("loading the rows")
    work.progress.expect(len(plan.contents.tables), sum(stream.raw_bytes for stream in streams))
    feeds = [partial(_load, work, stream) for stream in streams]
    settled, _ = workers.run(feeds, plan.jobs, work.running) if feeds else ([], None)
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


def _empty(work: _Work, streams: Sequence[Stream]) -> None:
    """Take back what an interrupted restore loaded of these streams."""
    names = {stream.name for stream in streams}
    tables = [(t.schema_, t.name) for t in work.plan.contents.tables if t.stream in names]
    # From pg_dump 17 on large objects are made with their content; older ones make them with the tables, and loading
    # their content again overwrites it.
    made_again = work.plan.manifest.dump_major >= 17
    database.empty(work.plan.dsn, tables, large_objects=made_again and SHARED_STREAM in names)


def _load(work: _Work, stream: Stream) -> list[Table]:
    """Feed one data stream to pg_restore, checked to its last byte before pg_restore may see an end; then count what
    arrived, and return the tables that this settles."""
    tables = [table for table in work.plan.contents.tables if table.stream == stream.name]
    label = stream.tables[0] if len(stream.tables) == 1 else f"{len(tables)} tables"
    if not tables:
        label = "sequences" if work.plan.choice.parts else "sequences and large objects"
    work.progress.begin(stream.name, label, stream.raw_bytes, tables=len(tables))
    advance = partial(work.progress.advance, stream.name)
    with closing(pipeline.fetch(work.catalog.storage, stream, work.identities, advance)) as chunks:
        work.restorer.data(chunks, stream.key)
    settled = [table for table in tables if table.root is None]
    _compare_rows(work, settled)
    work.note(done=stream.name)
    work.progress.end(stream.name)
    return settled


def _compare_rows(work: _Work, tables: Sequence[Table]) -> None:
    """The copy has the rows that the source had in the snapshot. Raises ProofError."""
    differing = _differing(work, tables)
    if differing:
        raise ProofError(
            f"the restored copy differs from the source in {len(differing)} tables",
            detail="\n".join(list(differing.values())[:10]),
            hint="Choose another backup, and report this: backupd should not have stored this one.",
        )


def _differing(work: _Work, tables: Sequence[Table]) -> dict[str, str]:
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


# ---- what surrounds them


@contextmanager
def _archive(plan: RestorePlan) -> Iterator[int]:
    """The schema archive as an open file in memory: pg_restore seeks in it, and nothing of it stays behind on disk
    however we end."""
    descriptor = os.memfd_create("schema")
    try:
        view = memoryview(plan.contents.archive)
        while view:
            view = view[os.write(descriptor, view) :]
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _new_roles(plan: RestorePlan, progress: Progress) -> Iterator[list[str]]:
    """The roles that the target lacks: made first, and dropped again if the block fails and left nothing that is
    theirs. Yields what the server refused of their settings."""
    if plan.new_roles is None or not plan.new_roles.create:
        yield []
        return
    progress.phase(f"creating {len(plan.new_roles.create)} roles")
    refused = roles.create(plan.new_roles, plan.server.dsn)
    try:
        if not plan.server.superuser:
            database.join(plan.server, sorted(plan.contents.owners.intersection(plan.new_roles.create)))
        yield refused
    except BaseException as error:
        if not getattr(error, "keeps_database", False):
            error.add_note(_drop_roles(plan.new_roles, plan))
        raise


def _drop_roles(made: roles.Plan, plan: RestorePlan) -> str:
    try:
        left = roles.drop(made, plan.server.dsn)
    except Exception as second:  # noqa: BLE001  (whatever it is: it must not hide why the restore failed)
        return f"The roles {', '.join(made.create)}, created by this restore, could not be removed: {second}"
    return "\n".join(left) or f"The roles {', '.join(made.create)}, created by this restore, were removed."


@contextmanager
def _claimed(work: _Work) -> Iterator[None]:
    """No other restore fills this database meanwhile, and what a dead one left running there is ended."""
    plan = work.plan
    with database.claimed(plan.server, plan.target) as work.claim:
        if plan.resumes:
            if unfinished(plan.server.dsn).get(plan.target) != plan.mark:
                raise BusyError(
                    f"another restore has gone on with {plan.target} since this one was planned",
                    hint="Run the same command again: it is planned anew.",
                )
            database.end_sessions(plan.server, plan.target)
        yield


@contextmanager
def _database(work: _Work) -> Iterator[None]:
    """The database to fill: created first, and dropped again if the block fails."""
    plan = work.plan
    if plan.resumes:
        work.progress.phase(f"going on with the database {plan.target}")
        work.marker.mark = _confirmed(work)
    if plan.creates and not work.mark.tables:
        work.progress.phase(f"creating the database {plan.target}")
        if plan.resumes:
            database.drop_database(plan.server, plan.target)
        _create(plan)
    try:
        if plan.creates and not work.mark.tables:
            work.note()
            if not plan.contents.properties.has_public_schema:
                database.drop_public_schema(plan.dsn)
        yield
    except BaseException as error:
        work.running.stop()
        error.add_note(_clean_up(work, error))
        raise


def _create(plan: RestorePlan) -> None:
    try:
        database.create_database(plan.server, plan.target, plan.contents.properties)
    except KeyboardInterrupt as error:  # the name was free, but whose the database is now can't be known
        error.add_note(f"The database {plan.target} may have been created, empty, at that moment: see, and drop it.")
        raise


def _confirmed(work: _Work) -> Mark:
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


def _fills_extensions(work: _Work) -> bool:
    """Whether the stream of small tables has rows of extensions' own tables: some of those are there from the start,
    so what was loaded of them can't be taken back."""
    stream = next((s for s in work.plan.contents.streams if s.name == SHARED_STREAM), None)
    if stream is None:
        return False
    known = {(table.schema_, table.name) for table in work.plan.manifest.tables}
    with closing(pipeline.fetch(work.catalog.storage, stream, work.identities, lambda _: None)) as chunks:
        found, _ = archive.read(chunks, stream.key)
    return any(e.desc == "TABLE DATA" and (e.schema or "", e.tag) not in known for e in found.entries)


def _clean_up(work: _Work, error: BaseException) -> str:
    plan, mark = work.plan, work.mark
    if not plan.creates:
        return f"The database {plan.target}, which was empty, now holds parts of the backup. Empty it before a new try."
    if plan.keeps and mark.tables and not isinstance(error, IntegrityError | ProofError):
        error.keeps_database = True  # type: ignore[attr-defined]
        return (
            f"The database {plan.target} stays, with {len(mark.done)} of {len(plan.contents.streams)} streams loaded."
            f" Go on with it by {mark.way_on(plan.target)} and the same options, or drop it."
        )
    try:
        if "No space left" in str(error):
            database.drop_largest(plan.dsn)
        database.drop_database(plan.server, plan.target)
    except (Exception, KeyboardInterrupt) as second:  # noqa: BLE001  (it must not hide why the restore failed)
        return (
            f"The database {plan.target} was begun and could not be removed: {second or 'interrupted'}\n"
            f"Go on with it when the server is back, by {mark.way_on(plan.target)} and the same options;"
            f" or drop it: DROP DATABASE {identifier(plan.target)};"
        )
    return f"The database {plan.target}, begun by this restore, was removed. Nothing else was touched."


def _take_name(plan: RestorePlan, progress: Progress) -> Swapped:
    """Swap the names. Whatever stops it, the restored database is complete and stays."""
    assert plan.replaces is not None
    progress.phase(f"putting {plan.target} in the place of {plan.replaces}")
    try:
        return swap(plan.server.dsn, plan.replaces, plan.target, plan.kept_as)
    except BaseException as error:
        error.keeps_database = True  # type: ignore[attr-defined]  # and with it the roles that were made for it
        raise
