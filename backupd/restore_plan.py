"""What a restore will do, decided and checked before anything is written: the value that --dry-run prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path

from backupd import contents, pipeline, preflight, times
from backupd.catalog import Catalog
from backupd.contents import Choice, Contents
from backupd.crypto import age
from backupd.errors import RefusedError
from backupd.manifest import Manifest
from backupd.postgres import mark, roles, target
from backupd.postgres.mark import Mark
from backupd.postgres.names import free_name, identifier
from backupd.postgres.session import Dsn, connect
from backupd.postgres.tools import Installation


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
    replace: bool = False  # take the original's name when all is restored
    choice: Choice = field(default_factory=Choice)
    create_roles: bool = False
    resume: bool = False  # go on with an unfinished restore, and keep what is loaded if this one fails too
    max_gap: timedelta | None = None
    jobs: int = 2
    bin_dirs: Sequence[Path] = ()


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """All that a restore will do: what `--dry-run` prints is what `run` executes."""

    database: str
    manifest: Manifest
    requested_at: datetime
    server: target.Server
    target: str  # the database's name there while it is filled
    creates: bool  # False: it exists and is empty
    replaces: str | None  # the name it takes when all is restored
    kept_as: str | None  # what becomes of the database that has this name; None if there is none
    contents: Contents
    choice: Choice
    mark: Mark  # how far the restore is before it begins
    resumes: bool
    keeps: bool  # what was loaded before a failure, for --resume
    new_roles: roles.Plan | None
    client: Installation
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

    @property
    def owners(self) -> bool:
        return self.choice.owners


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
    catalog.check_objects(manifest)
    schema = schema_archive(catalog, manifest, identities)
    replaces = _replaced(request, manifest)
    # Nobody can rename the database that they are connected to.
    server = target.inspect(request.target or request.source, avoid=replaces)
    chosen = contents.contents(manifest, schema, request.choice, server.powers)
    begun = Mark(request.database, manifest.id, _options(request), named=_named(request))
    left = mark.unfinished(server.dsn)
    resumed = _resumed(request, begun, left) if request.resume else None
    name, creates = (resumed, True) if resumed is not None else _destination(request, manifest, server)
    new_roles = _new_roles(catalog, manifest, identities, server, chosen) if request.create_roles else None
    found = preflight.examine(
        preflight.Question(
            manifest=manifest,
            server=server,
            target=name,
            creates=creates,
            resumes=resumed is not None,
            replaces=replaces,
            gap=(request.at or (manifest.taken_at if request.backup_id else request.now)) - manifest.taken_at,
            max_gap=request.max_gap,
            contents=chosen,
            choice=request.choice,
            new_roles=frozenset(new_roles.create if new_roles else ()),
            bin_dirs=request.bin_dirs,
            future=request.at is not None and request.at > request.now,
            left={n: m for n, m in left.items() if m.database == request.database and n != resumed},
        )
    )
    return RestorePlan(
        database=request.database,
        manifest=manifest,
        requested_at=request.at or (manifest.taken_at if request.backup_id else request.now),
        server=server,
        target=name,
        creates=creates,
        replaces=replaces,
        kept_as=_unused(replaces, "replaced", server, request.now)
        if replaces is not None and replaces in server.databases
        else None,
        contents=chosen,
        choice=request.choice,
        mark=left[resumed] if resumed is not None else begun,
        resumes=resumed is not None,
        keeps=request.resume,
        new_roles=new_roles,
        client=found.client,
        tablespaces=set(manifest.tablespaces) <= server.tablespaces,
        jobs=request.jobs,
        warnings=(*found.warnings, *(new_roles.warnings if new_roles else ())),
    )


def schema_archive(catalog: Catalog, manifest: Manifest, identities: Sequence[age.Identity]) -> bytes:
    """All definitions, whole and checked: also the proof that an identity opens the backup."""
    with preflight.identity_explained():
        return pipeline.read(catalog.storage, manifest.schema_stream, identities)


def _new_roles(
    catalog: Catalog, manifest: Manifest, identities: Sequence[age.Identity], server: target.Server, chosen: Contents
) -> roles.Plan:
    """The backup's roles that the server lacks. For a whole database all of them: who logs in may have nothing in it
    but through another role. For parts those that they name, and what these are members of."""
    (stream,) = manifest.of_kind("globals")
    script = roles.parse(roles.decode(pipeline.read(catalog.storage, stream, identities)))
    with closing(connect(server.dsn)) as connection:
        return roles.plan(script, connection, only=chosen.roles if chosen.edit.selection is not None else None)


def _destination(request: Request, manifest: Manifest, server: target.Server) -> tuple[str, bool]:
    """The database's name on the target, and whether it is to be created."""
    if request.into is not None:
        return request.into, True
    if not request.replace and request.target is not None and request.target.database:
        return request.target.database, request.target.database not in server.databases
    base = _replaced(request, manifest) or manifest.properties.name
    return _unused(base, "restored", server, request.now), True


def _unused(base: str, what: str, server: target.Server, now: datetime) -> str:
    """`NAME_restored_TIME` that no database there has: of a later second if one that was killed just now has ours."""
    seconds = (times.compact(now + timedelta(seconds=n)) for n in count())
    return next(name for second in seconds if (name := free_name(base, f"_{what}_{second}")) not in server.databases)


def _replaced(request: Request, manifest: Manifest) -> str | None:
    """The name that the restored database is to take."""
    if not request.replace:
        return None
    if request.target is not None:
        return request.target.database or manifest.properties.name
    return request.source.database or manifest.properties.name


def _named(request: Request) -> bool:
    """Whether the operator chose the new database's name."""
    return request.into is not None or bool(
        request.target is not None and request.target.database and not request.replace
    )


def _options(request: Request) -> str:
    """What a copy will be, beside the backup it is of: two restores that differ here must not be mixed."""
    choice = request.choice
    told = {
        "tables": choice.tables,
        "schemas": choice.schemas,
        "with_references": choice.with_references,
        "owners": choice.owners,
        "role_map": dict(sorted(choice.role_map.items())),
        "without_extensions": choice.without_extensions,
        "skip_privileged": choice.skip_privileged,
        "replace": request.replace,
    }
    return json.dumps({key: value for key, value in told.items() if value not in ((), {}, False)})


def _resumed(request: Request, begun: Mark, left: dict[str, Mark]) -> str | None:
    """The database of the unfinished restore to go on with; None if there is none, and this one begins anew."""
    given = request.into or (request.target.database if request.target is not None and not request.replace else None)
    candidates = {
        name: found
        for name, found in left.items()
        if found.database == request.database and (name == given if given else not found.named)
    }
    fitting = [
        name for name, found in candidates.items() if (found.backup, found.options) == (begun.backup, begun.options)
    ]
    if len(fitting) > 1:
        raise RefusedError(
            f"{len(fitting)} unfinished restores fit",
            detail=", ".join(sorted(fitting)),
            hint="Remove those that are not needed: DROP DATABASE …; then run the same command again.",
        )
    if candidates and not fitting:
        name, found = max(candidates.items())
        raise RefusedError(
            f"the unfinished restore in {name} is of another backup, or was begun with other options",
            detail=f"It is of {found.backup} {found.options}; this would be of {begun.backup} {begun.options}.",
            hint=f"Go on with it: {found.way_on(name)}, and the same options. Or remove it:"
            f" DROP DATABASE {identifier(name)}; and leave --resume out.",
        )
    return fitting[0] if fitting else None
