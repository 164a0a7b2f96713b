"""One backup, from the locks to the manifest that makes it exist."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from time import monotonic

from backupd import __version__, manifest, pipeline, times
from backupd.catalog import Catalog, data_prefix
from backupd.crypto import age, minisign
from backupd.errors import PostgresError
from backupd.manifest import Manifest, Stream, Table
from backupd.pace import Pace
from backupd.postgres import dump, inventory, sequences, snapshot, workers
from backupd.postgres.inventory import SourceTable
from backupd.postgres.process import Running
from backupd.postgres.sequences import Span
from backupd.postgres.session import Dsn, explained
from backupd.postgres.snapshot import Source
from backupd.postgres.survey import Survey, Surveyed
from backupd.postgres.tools import Installation, choose_client, find_installations
from backupd.progress import Progress
from backupd.reference import Reference

_MOST_OWN_STREAMS = 256  # beside the one of small tables; each costs a pg_dump, which reads the whole catalog
_MIDDLING = 8 << 20  # bytes from which a table is kept apart from the many small ones, to be restored without them


@dataclass(frozen=True, slots=True)
class Job:
    """Everything one backup needs to know."""

    database: str  # its name in the configuration and the repository
    dsn: Dsn
    recipients: Sequence[age.Recipient]
    signing_key: minisign.SecretKey
    jobs: int = 2
    level: int = 1  # zstd
    lock_timeout: timedelta = timedelta(seconds=30)
    large_table: int = 64 << 20  # bytes from which a table has a stream of its own; middling ones fill half of it
    content: bool = False  # hash every row too, for test restores
    bin_dirs: Sequence[Path] = ()
    give_way_after: timedelta = timedelta()  # how long others may queue behind our locks; 0: for ever
    pace: Pace = field(default_factory=lambda: Pace(0))
    claimed: Callable[[], None] = lambda: None  # called when no other host can back it up, before anything is locked


@dataclass(frozen=True, slots=True)
class Part:
    """A stream to be made: which program's output, under which name."""

    name: str  # data-0003
    kind: str
    label: str  # for people: public.orders
    command: dump.Command
    tables: tuple[str, ...] = ()
    bytes: int = 0  # on the source, to take the largest first


def run(job: Job, catalog: Catalog, progress: Progress) -> Manifest:
    """Back up one database. Whatever goes wrong leaves no backup that anyone could list."""
    begins = catalog.repository_id() is None
    repository, started_at, running = catalog.ensure_repository(), times.now(), Running()
    if begins:  # a disk that is not mounted and a mistyped prefix look just like this
        progress.warn(f"{catalog.storage.url} held no repository: a new one was begun there")
    progress.phase(f"{job.database}: locking tables and taking a snapshot")
    with snapshot.take(
        job.dsn, lock_timeout=job.lock_timeout, holder=repository, parallel=job.content, claimed=job.claimed
    ) as source:
        backup_id = manifest.new_id(source.taken_at)
        client = choose_client(find_installations(job.bin_dirs), source.major)
        application = f"backupd {backup_id}"
        parts = plan_parts(job, source, client, application)
        progress.phase(f"{job.database}: dumping {len(source.tables)} tables in {len(parts)} streams")
        progress.expect(sum(len(part.tables) for part in parts), sum(part.bytes for part in parts), estimated=True)
        try:
            with snapshot.Watch(source, application, job.lock_timeout, running, job.give_way_after) as watch:
                survey = Survey(source, running, job.lock_timeout)
                before = survey.positions()
                stored, found = _dump(job, catalog, survey, source, backup_id, parts, progress, watch)
                spans = None if before is None else sequences.spans(before, survey.positions())
            for trouble in survey.troubles:
                progress.warn(f"{job.database}: {trouble}")
            reference = store_reference(job, catalog, source, backup_id, found, spans)
            made = describe(job, source, client, repository, backup_id, started_at, stored, found, reference)
            source.check_alive()  # a session lost earlier would have let tables change under the dump
            catalog.commit(made, job.signing_key)
        except BaseException as error:
            running.stop()
            if catalog.is_committed(backup_id):
                error.add_note(f"Backup {backup_id} was complete by then, and stays.")
            else:
                source.release()  # nobody is to wait for our locks while the storage is tidied up
                _discard(catalog, job.database, backup_id, error)
            raise
    return made


def _dump(
    job: Job,
    catalog: Catalog,
    survey: Survey,
    source: Source,
    backup_id: str,
    parts: Sequence[Part],
    progress: Progress,
    watch: snapshot.Watch,
) -> tuple[list[Stream], Surveyed]:
    """All streams, and beside them what the source holds in the same snapshot."""
    counted = [table for part in parts for table in _tables_of(part, source)]
    try:
        stored, found = workers.run(
            [partial(store, job, catalog, backup_id, part, survey.running, progress) for part in ordered(parts)],
            job.jobs,
            survey.running,
            beside=partial(survey.look, counted, content=job.content),
        )
    except (PostgresError, workers.Cancelled) as error:
        if watch.error is not None:  # what it stopped failed because of that
            raise watch.error from error
        raise
    assert found is not None
    return stored, found


def plan_parts(job: Job, source: Source, client: Installation, application: str) -> list[Part]:
    """Globals, the schema, one data stream for all small tables, one for each large table, and some that a few
    middling ones share; the largest first."""
    dumping = [table for table in source.tables if table.has_rows]
    apart = grouped([t for t in dumping if _can_be_named(t, source)], sum(t.bytes for t in dumping), job.large_table)
    own = {table.oid for group in apart for table in group}
    small = [table for table in dumping if table.oid not in own]
    tool = dump.Dumper(client, source, job.lock_timeout, application)
    # No two programs that lock every table run at once: with ours that would be three locks a table, and a server
    # with default settings has room for about three times 5,000.
    all_tables = threading.Lock()
    parts = [
        Part("schema", "schema", "schema", tool.schema(alone=all_tables)),
        Part("globals", "globals", "roles", tool.globals()),
        Part(
            manifest.SHARED_STREAM,
            "data",
            f"{len(small)} tables" if small else "sequences and large objects",
            tool.all_but([t for group in apart for t in group], alone=all_tables),
            tuple(t.sql for t in small),
            sum(t.bytes for t in small),
        ),
    ]
    for number, group in enumerate(apart, 1):
        names, size = tuple(t.sql for t in group), sum(t.bytes for t in group)
        label = names[0] if len(names) == 1 else f"{len(names)} tables"
        parts.append(Part(f"data-{number:04}", "data", label, tool.only(group), names, size))
    return parts


def grouped(tables: Sequence[SourceTable], total: int, large: int) -> list[list[SourceTable]]:
    """Which tables are dumped apart from the others, and which of them together. Who restores one table reads the
    stream that it lies in: so that is its own, or small, unless all rows of the database (`total` bytes) are few."""
    by_size = sorted(tables, key=lambda t: t.bytes, reverse=True)
    groups = [[table] for table in by_size if table.bytes >= large]
    room = [0] * len(groups)
    for table in by_size if total > large else ():
        if _MIDDLING <= table.bytes < large:
            place = next((i for i, left in enumerate(room) if left >= table.bytes), None)
            if place is None:
                place = len(groups)
                groups.append([])
                room.append(large // 2)
            groups[place].append(table)
            room[place] -= table.bytes
    return groups[:_MOST_OWN_STREAMS]


def _can_be_named(table: SourceTable, source: Source) -> bool:
    """Whether pg_dump, which takes names in the database's encoding, understands ours; else it goes with the rest."""
    return table.sql.isascii() or source.encoding in ("UTF8", "SQL_ASCII")


def ordered(parts: Sequence[Part]) -> list[Part]:
    """The schema first (its locks make way for the small tables'), then the largest first."""
    return sorted(parts, key=lambda part: (part.kind != "schema", -part.bytes))


def store(job: Job, catalog: Catalog, backup_id: str, part: Part, running: Running, progress: Progress) -> Stream:
    """Run one dump program into the repository."""
    key = f"{data_prefix(job.database, backup_id)}{part.name}.{'sql' if part.kind == 'globals' else 'dump'}.zst.age"
    progress.begin(part.name, part.label, part.bytes or None, tables=len(part.tables))
    began = monotonic()
    with closing(part.command.output(running, large=part.bytes >= pipeline.BLOCK)) as output:
        stored = pipeline.store(
            output,
            catalog.storage,
            key,
            recipients=job.recipients,
            level=job.level,
            advance=partial(progress.advance, part.name),
            pace=partial(job.pace.spread, go_on=partial(_go_on, running)),
        )
    progress.end(part.name)
    return _stream(key, part.kind, stored, monotonic() - began, part.tables)


def _go_on(running: Running) -> None:
    if running.stopped:
        raise workers.Cancelled


def _stream(key: str, kind: str, stored: pipeline.Stored, seconds: float, tables: tuple[str, ...] = ()) -> Stream:
    return Stream(
        key=key,
        kind=kind,  # type: ignore[arg-type]
        tables=tables,
        raw_bytes=stored.raw_bytes,
        stored_bytes=stored.stored_bytes,
        sha256=stored.sha256,
        header_sha256=stored.header_sha256,
        seconds=round(seconds, 3),
    )


def store_reference(
    job: Job, catalog: Catalog, source: Source, backup_id: str, found: Surveyed, spans: Mapping[str, Span] | None
) -> Stream:
    """Keep what a restored copy will be held against, beside the streams and as they are."""
    began, key = monotonic(), f"{data_prefix(job.database, backup_id)}reference.json.zst.age"
    record = Reference(
        inventory=found.inventory,
        sequences=spans,
        bootstrap=inventory.bootstrap(source.connection),
        probe=found.probe,
        large_objects=found.large_objects,
    )
    stored = pipeline.store(
        [record.encode()],
        catalog.storage,
        key,
        recipients=job.recipients,
        level=job.level,
        advance=lambda _: None,
    )
    return _stream(key, "reference", stored, monotonic() - began)


def describe(
    job: Job,
    source: Source,
    client: Installation,
    repository: str,
    backup_id: str,
    started_at: datetime,
    streams: Sequence[Stream],
    found: Surveyed,
    reference: Stream,
) -> Manifest:
    """The manifest, its inventory read in the dump's own snapshot."""
    holding = {table: stream.name for stream in streams for table in stream.tables}
    session = source.connection
    with explained("the database's catalogs could not be read"):
        row = session.execute("select pg_database_size(current_database())").fetchone()
        assert row is not None
        return Manifest(
            format=manifest.FORMAT,
            kind="logical",
            repository=repository,
            database=job.database,
            id=backup_id,
            taken_at=source.taken_at,
            started_at=started_at,
            finished_at=times.now(),
            backupd_version=__version__,
            server_version=source.version,
            server_major=source.major,
            tools={"pg_dump": "{}.{}".format(*client.version)},
            standby=source.standby,
            properties=inventory.properties(session),
            extensions=inventory.extensions(session),
            roles=inventory.roles(session),
            policy_roles=inventory.policy_roles(session),
            large_object_owners=inventory.large_object_owners(session),
            tablespaces=inventory.tablespaces(session),
            database_bytes=row[0],
            streams=tuple(sorted(streams, key=lambda stream: stream.key)),
            tables=tuple(
                Table(
                    schema_=t.schema,
                    name=t.name,
                    rows=found.rows[t.oid],
                    content=found.contents.get(t.oid),
                    bytes=t.bytes,
                    stream=holding[t.sql],
                    root=t.root,
                )
                for t in source.tables
                if t.has_rows
            ),
            reference=reference,
        )


def _tables_of(part: Part, source: Source) -> Iterator[SourceTable]:
    names = set(part.tables)
    return (table for table in source.tables if table.sql in names)


def _discard(catalog: Catalog, database: str, backup_id: str, error: BaseException) -> None:
    """Remove what was stored. If that fails too, the first error stays the one that is told."""
    try:
        catalog.discard(database, backup_id)
        error.add_note("What was stored of this backup was removed.")
    except Exception as second:  # noqa: BLE001  (whatever it is: it must not hide the first)
        error.add_note(f"What was stored of it could not be removed from {data_prefix(database, backup_id)}: {second}")
