"""Loading rows alone: `restore --data-only` fills tables that exist and are empty, all of them or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from backupd import contents, pipeline, preflight, times
from backupd.catalog import Catalog
from backupd.contents import Contents
from backupd.crypto import age
from backupd.errors import BackupdError, IntegrityError, PostgresError, ProofError, RefusedError
from backupd.manifest import Manifest, Stream
from backupd.postgres import archive, reload, rows, target
from backupd.postgres.archive import Entry
from backupd.postgres.names import identifier
from backupd.postgres.process import Running
from backupd.postgres.session import Dsn
from backupd.progress import Progress
from backupd.restore_plan import Request, schema_archive


@dataclass(frozen=True, slots=True)
class ReloadPlan:
    """All that a load will do."""

    database: str
    manifest: Manifest
    requested_at: datetime
    server: target.Server
    target: str  # the database with the tables
    contents: Contents
    tables: tuple[reload.Table, ...]
    sequences: Mapping[tuple[str, str], tuple[int, bool]]  # of these tables: value, and whether it was handed out
    replica: bool  # triggers and foreign keys keep still
    warnings: tuple[str, ...]

    @property
    def gap(self) -> timedelta:
        """What was committed in this span before the requested time is not in the backup."""
        return self.requested_at - self.manifest.taken_at

    @property
    def dsn(self) -> Dsn:
        return self.server.dsn.replace(dbname=self.target)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a load did."""

    plan: ReloadPlan
    seconds: float
    warnings: tuple[str, ...]


def plan(request: Request, catalog: Catalog, identities: Sequence[age.Identity]) -> ReloadPlan:
    """Choose the backup, and look at the tables that its rows would go to. Raises one error with every obstacle."""
    if request.backup_id is not None:
        ref = catalog.by_id(request.database, request.backup_id)
    else:
        ref = catalog.find(request.database, request.at)
    manifest = catalog.manifest(ref)
    catalog.check_objects(manifest)
    schema = schema_archive(catalog, manifest, identities)
    server = target.inspect(request.target or request.source)
    choice = request.choice if request.choice.parts else replace(request.choice, schemas=("*",))
    chosen = contents.contents(manifest, schema, choice, server.powers)
    entries = _heads(chosen, catalog, identities)
    copies = {(e.schema or "", e.tag): e.copy or "" for e in entries if e.desc == "TABLE DATA"}
    lacking = [t for t in chosen.tables if (t.schema_, t.name) not in copies]
    if lacking:
        raise IntegrityError(
            f"the backup has no rows of {lacking[0].schema_}.{lacking[0].name}, though its manifest says so",
            hint="Choose another backup: backupd list.",
        )
    tables = tuple(reload.Table(t.schema_, t.name, rows.columns(copies[t.schema_, t.name])) for t in chosen.tables)
    assert chosen.edit.selection is not None
    owners, parents = chosen.edit.selection.owners, set(chosen.edit.selection.tables)
    values = {name: value for name, value in rows.sequence_values(entries).items() if owners.get(name) in parents}
    name = request.into or (request.target.database if request.target else None) or ""
    dsn = server.dsn.replace(dbname=name)
    replica = name in server.databases and not server.standby and reload.may_replicate(dsn)
    obstacles = [*_refused(request, manifest, server, name)]
    if name in server.databases and not server.standby:
        obstacles += reload.obstacles(dsn, tables, values, replica=replica)
    if obstacles:
        raise preflight.together(obstacles)
    requested = request.at or (manifest.taken_at if request.backup_id else request.now)
    warnings = (
        ["Triggers and foreign keys keep still while rows are loaded; the foreign keys are checked in the end."]
        if replica
        else []
    )
    return ReloadPlan(
        request.database, manifest, requested, server, name, chosen, tables, values, replica, tuple(warnings)
    )


def _refused(request: Request, manifest: Manifest, server: target.Server, name: str) -> list[BackupdError]:
    found: list[BackupdError] = []
    gap = (request.at or (manifest.taken_at if request.backup_id else request.now)) - manifest.taken_at
    if request.max_gap is not None and gap > request.max_gap:
        found.append(
            RefusedError(
                f"the newest backup that fits is {times.human_duration(gap)} older than the time asked for",
                hint="Allow a larger --max-gap, or leave it out.",
            )
        )
    if server.standby:
        found.append(
            PostgresError(
                f"the target {server.dsn.server} is a standby: nothing can be written there", hint="Name the primary."
            )
        )
    if name not in server.databases:
        found.append(
            PostgresError(
                f"there is no database {name} on {server.dsn.server}",
                hint="--data-only fills tables that exist. Leave it out to restore the tables too.",
            )
        )
    return found


def _heads(chosen: Contents, catalog: Catalog, identities: Sequence[age.Identity]) -> list[Entry]:
    """What the streams will bring, from their beginnings."""
    found: list[Entry] = []
    for stream in chosen.streams:
        with closing(pipeline.fetch(catalog.storage, stream, identities, lambda _: None)) as chunks:
            head, _ = archive.read(chunks, stream.key)
        found += chosen.edit.data(head.entries)
    return found


def run(plan: ReloadPlan, catalog: Catalog, identities: Sequence[age.Identity], progress: Progress) -> Reloaded:
    """Load as planned, in one transaction: whatever fails, nothing was changed."""
    began, running = times.now(), Running()
    streams = [stream for stream in plan.contents.streams if any(t.stream == stream.name for t in plan.contents.tables)]
    try:
        progress.phase("locking the tables")
        with reload.transaction(plan.dsn, plan.tables, running, replica=plan.replica) as load:
            progress.phase("loading the rows")
            progress.expect(len(plan.tables), sum(stream.raw_bytes for stream in streams))
            for stream in streams:
                _load(plan, load, stream, catalog, identities, progress)
            progress.phase("checking rows and foreign keys")
            _compare(plan, load.counts())
            unchecked = load.check_keys() if plan.replica else []
            missing = load.advance(plan.sequences)
            load.commit()
    except BaseException as error:
        error.add_note("Nothing was changed: all of it was one transaction, which was rolled back.")
        raise
    warnings = [f"The sequence {name} is not there: its value was left out." for name in missing]
    warnings += [f"The foreign key {name} was not checked: it is about periods." for name in unchecked]
    return Reloaded(plan, (times.now() - began).total_seconds(), tuple(warnings))


def _load(
    plan: ReloadPlan,
    load: reload.Load,
    stream: Stream,
    catalog: Catalog,
    identities: Sequence[age.Identity],
    progress: Progress,
) -> None:
    tables = [table for table in plan.contents.tables if table.stream == stream.name]
    label = stream.tables[0] if len(stream.tables) == 1 else f"{len(tables)} tables"
    progress.begin(stream.name, label, stream.raw_bytes, tables=len(tables))
    advance = partial(progress.advance, stream.name)
    with closing(pipeline.fetch(catalog.storage, stream, identities, advance)) as chunks:
        head, whole = archive.read(chunks, stream.key)
        chosen = head.with_entries(plan.contents.edit.data(head.entries))
        rows.load(chosen, whole, partial(load.copy, chosen), stream.key)
    progress.end(stream.name)


def _compare(plan: ReloadPlan, counted: Mapping[tuple[str, str], int]) -> None:
    """Partitions tree by tree, as rows may come back in another one than they were in. Raises ProofError."""
    expected, found = Counter[str](), Counter[str]()
    for table in plan.contents.tables:
        place = table.root or f"{identifier(table.schema_)}.{identifier(table.name)}"
        expected[place] += table.rows
        found[place] += counted[table.schema_, table.name]
    differing = [
        f"{place}: {found[place]} rows, and the source had {n}" for place, n in expected.items() if found[place] != n
    ]
    if differing:
        raise ProofError(
            f"the loaded rows differ from the source's in {len(differing)} tables",
            detail="\n".join(differing[:10]),
            hint="Choose another backup, and report this: backupd should not have stored this one.",
        )
