"""Restoring: `plan` decides everything and checks it, and changes nothing; `run` does what the plan says."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from backupd import pipeline, preflight, times
from backupd.catalog import Catalog
from backupd.crypto import age
from backupd.errors import ProofError
from backupd.manifest import Manifest, Stream, Table
from backupd.postgres import target, workers
from backupd.postgres.names import identifier
from backupd.postgres.process import Running
from backupd.postgres.restorer import Restorer
from backupd.postgres.session import Dsn
from backupd.postgres.tools import Installation
from backupd.progress import Progress


@dataclass(frozen=True, slots=True)
class Request:
    """What the operator asked for."""

    database: str  # in the configuration and the repository
    at: datetime | None  # None: the newest
    now: datetime
    source: Dsn  # the original's connection string
    backup_id: str | None = None  # this very backup, instead of a time
    into: str | None = None  # name of the database to create
    target: Dsn | None = None  # another server or database
    max_gap: timedelta | None = None
    owners: bool = True
    jobs: int = 2
    bin_dirs: Sequence[Path] = ()


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """All that a restore will do: what `--dry-run` prints is what `run` executes."""

    database: str
    manifest: Manifest
    requested_at: datetime
    server: target.Server
    target: str  # the database's name there
    creates: bool  # False: it exists and is empty
    client: Installation
    owners: bool
    tablespaces: bool  # False: everything goes to the default tablespace
    jobs: int
    warnings: tuple[str, ...]

    @property
    def gap(self) -> timedelta:
        """What was committed in this span before the requested time is not in the backup."""
        return self.requested_at - self.manifest.taken_at

    @property
    def dsn(self) -> Dsn:
        return self.server.dsn.replace(dbname=self.target)


def plan(request: Request, catalog: Catalog, identities: Sequence[age.Identity]) -> RestorePlan:
    """Choose the backup and check everything that can be checked before anything is written.

    Raises NoBackupError if none fits, IntegrityError for a backup that can't be believed or is not whole, and
    otherwise one error that lists every obstacle with its remedy.
    """
    if request.backup_id is not None:
        ref = catalog.by_id(request.database, request.backup_id)
    else:
        ref = catalog.find(request.database, request.at)
    manifest = catalog.manifest(ref)
    requested_at = request.at or (manifest.taken_at if request.backup_id else request.now)
    server = target.inspect(request.target or request.source)
    name, creates = _destination(request, manifest, server)
    found = preflight.examine(
        preflight.Question(
            manifest=manifest,
            catalog=catalog,
            server=server,
            target=name,
            creates=creates,
            named=request.into is not None,
            gap=requested_at - manifest.taken_at,
            max_gap=request.max_gap,
            owners=request.owners,
            bin_dirs=request.bin_dirs,
            identities=identities,
            future=request.at is not None and request.at > request.now,
        )
    )
    return RestorePlan(
        database=request.database,
        manifest=manifest,
        requested_at=requested_at,
        server=server,
        target=name,
        creates=creates,
        client=found.client,
        owners=request.owners,
        tablespaces=set(manifest.tablespaces) <= server.tablespaces,
        jobs=request.jobs,
        warnings=found.warnings,
    )


def _destination(request: Request, manifest: Manifest, server: target.Server) -> tuple[str, bool]:
    """The database's name on the target, and whether it is to be created."""
    if request.into is not None:
        return request.into, True
    if request.target is not None and request.target.database:
        return request.target.database, request.target.database not in server.databases
    return target.free_name(manifest.properties.name, f"_restored_{times.compact(request.now)}"), True


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did."""

    plan: RestorePlan
    seconds: float
    warnings: tuple[str, ...]  # what could not be set, and does not make the data wrong


def run(plan: RestorePlan, catalog: Catalog, identities: Sequence[age.Identity], progress: Progress) -> Restored:
    """Restore as planned. A failure removes the database if we created it; nothing else was touched."""
    began, running = times.now(), Running()
    with _schema_archive(plan, catalog, identities, progress) as archive, _database(plan, running, progress):
        restorer = Restorer(plan.client, plan.dsn, plan.server.major, plan.owners, plan.tablespaces, running)
        progress.phase("creating the tables")
        restorer.schema("pre-data", archive, jobs=1)
        progress.phase("loading the rows")
        load = partial(_load, plan, restorer, catalog, identities, progress, running)
        feeds = [partial(load, stream) for stream in _largest_first(plan)]
        loaded, _ = workers.run(feeds, plan.jobs, running)
        compared = {table for tables in loaded for table in tables}
        _compare_rows(plan, [table for table in plan.manifest.tables if table not in compared], running)
        progress.phase("building indexes and constraints")
        restorer.schema("post-data", archive, jobs=plan.jobs)
        progress.phase("gathering statistics")
        warnings = target.analyze(plan.dsn, plan.jobs, running)
        if plan.creates:
            warnings += target.apply_properties(plan.server, plan.target, plan.manifest.properties, owners=plan.owners)
    return Restored(plan, (times.now() - began).total_seconds(), tuple(warnings))


def _largest_first(plan: RestorePlan) -> list[Stream]:
    return sorted(plan.manifest.of_kind("data"), key=lambda stream: stream.raw_bytes, reverse=True)


@contextmanager
def _database(plan: RestorePlan, running: Running, progress: Progress) -> Iterator[None]:
    """The database to fill: created first, and dropped again if the block fails."""
    if plan.creates:
        progress.phase(f"creating the database {plan.target}")
        try:
            target.create_database(plan.server, plan.target, plan.manifest.properties)
        except KeyboardInterrupt as error:  # the name was free, but whose the database is now can't be known
            error.add_note(
                f"The database {plan.target} may have been created, empty, at that moment: see, and drop it."
            )
            raise
    try:
        if plan.creates and not plan.manifest.properties.has_public_schema:
            target.drop_public_schema(plan.dsn)
        yield
    except BaseException as error:
        running.stop()
        error.add_note(_clean_up(plan))
        raise


def _clean_up(plan: RestorePlan) -> str:
    if not plan.creates:
        return f"The database {plan.target}, which was empty, now holds parts of the backup. Empty it before a new try."
    try:
        target.drop_database(plan.server, plan.target)
    except Exception as error:  # noqa: BLE001  (whatever it is: it must not hide why the restore failed)
        return f"The database {plan.target} was begun and could not be removed: {error}"
    return f"The database {plan.target}, begun by this restore, was removed. Nothing else was touched."


@contextmanager
def _schema_archive(
    plan: RestorePlan, catalog: Catalog, identities: Sequence[age.Identity], progress: Progress
) -> Iterator[int]:
    """The schema archive, whole and checked, as an open file in memory: pg_restore seeks in it, and nothing of it
    stays behind on disk however we end."""
    stream = plan.manifest.schema_stream
    progress.begin(stream.name, "schema", stream.raw_bytes)
    descriptor = os.memfd_create("schema")
    try:
        with closing(
            pipeline.fetch(catalog.storage, stream, identities, partial(progress.advance, stream.name))
        ) as chunks:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    view = view[os.write(descriptor, view) :]
        progress.end(stream.name)
        yield descriptor
    finally:
        os.close(descriptor)


def _load(
    plan: RestorePlan,
    restorer: Restorer,
    catalog: Catalog,
    identities: Sequence[age.Identity],
    progress: Progress,
    running: Running,
    stream: Stream,
) -> list[Table]:
    """Feed one data stream to pg_restore, checked to its last byte before pg_restore may see an end; then count what
    arrived, and return the tables that this settles."""
    label = stream.tables[0] if len(stream.tables) == 1 else f"{len(stream.tables)} tables"
    if not stream.tables:
        label = "sequences and large objects"
    progress.begin(stream.name, label, stream.raw_bytes)
    with closing(pipeline.fetch(catalog.storage, stream, identities, partial(progress.advance, stream.name))) as chunks:
        restorer.data(chunks)
    settled = [table for table in plan.manifest.tables if table.stream == stream.name and table.root is None]
    _compare_rows(plan, settled, running)
    progress.end(stream.name)
    return settled


def _compare_rows(plan: RestorePlan, tables: Sequence[Table], running: Running) -> None:
    """The copy has the rows that the source had in the snapshot, table by table, and partitions tree by tree (their
    rows may come back in another partition). Raises ProofError."""
    expected, found = Counter[str](), Counter[str]()
    counted = target.count_rows(plan.dsn, [(table.schema_, table.name) for table in tables], running)
    for table, rows in zip(tables, counted, strict=True):
        place = table.root or f"{identifier(table.schema_)}.{identifier(table.name)}"
        expected[place] += table.rows
        found[place] += rows
    differing = [
        f"{place}: {found[place]} rows, and the source had {rows}"
        for place, rows in expected.items()
        if found[place] != rows
    ]
    if differing:
        raise ProofError(
            f"the restored copy differs from the source in {len(differing)} tables",
            detail="\n".join(differing[:10]),
            hint="Choose another backup, and report this: backupd should not have stored this one.",
        )
