"""Each command of the command line: options to calls, results to text or JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backupd import config as configuration
from backupd import console, proofs, times, views
from backupd.catalog import BackupRef, Catalog
from backupd.config import Config
from backupd.config_models import Database
from backupd.console import Style
from backupd.errors import BackupdError, ConfigError, IntegrityError, NoBackupError
from backupd.manifest import Manifest, id_second
from backupd.proof import Proof
from backupd.storage.connect import connect

if TYPE_CHECKING:
    from backupd.contents import Choice
    from backupd.postgres.session import Dsn
    from backupd.restore_plan import Request


def _load(path: str | None) -> Config:
    return configuration.load(configuration.find(path, os.environ, Path.cwd()), os.environ)


@contextmanager
def _catalog(config: Config) -> Iterator[Catalog]:
    with closing(connect(config.repository.url, config.s3_settings())) as storage:
        yield Catalog(storage, config.trusted_signers())


def _dsn(database: Database) -> Dsn:
    from backupd.postgres.session import Dsn

    password = database.password.get_secret_value() if database.password else None
    return Dsn(database.dsn.get_secret_value()).with_password(password)


# ---- init and check


def init(style: Style, path: str | None, repository: str | None, databases: Sequence[str]) -> None:
    from backupd.init import IDENTITY_NAME
    from backupd.init import init as write

    pairs: dict[str, str] = {}
    for text in databases:
        name, equals, dsn = text.partition("=")
        if not equals or not name or not dsn or name in pairs:
            raise ConfigError(
                "--database takes NAME=DSN, each name once",
                hint="--database shop=postgresql://backupd@db.internal/shop",
            )
        pairs[name] = dsn
    result = write(Path(path or "backupd.toml"), repository, pairs)
    for created in result.files:
        console.emit(str(created))
    identity = next(file for file in result.files if file.name == IDENTITY_NAME)
    console.say(style, f"Keep a copy of {identity} somewhere else: without it no backup can be opened.", "warning")
    console.say(style, f"Next: backupd --config {result.config} check")


def check(path: str | None, databases: Sequence[str], as_json: bool) -> int:
    from backupd.check import examine

    config = _load(path)
    chosen = [config.database(name) for name in databases] or list(config.databases.values())
    worst, rows = 0, []
    for finding in examine(config, chosen, [_dsn(each) for each in chosen]):
        worst = worst or finding.exit_code
        rows.append({"name": finding.name, "status": finding.status, "detail": finding.detail, "hint": finding.hint})
        if not as_json:
            hint = f"\n         {finding.hint}" if finding.hint and finding.status != "ok" else ""
            console.emit(f"{finding.status:<7}  {finding.name}: {finding.detail}{hint}")
    if as_json:
        console.emit_json(rows)
    return worst


# ---- backup, list, show


def backup(style: Style, path: str | None, databases: Sequence[str], jobs: int | None, as_json: bool) -> int:
    from backupd import backup as backups

    config = _load(path)
    chosen = [config.database(name) for name in databases] or list(config.databases.values())
    if not chosen:
        raise ConfigError(f"no database in {config.path}", hint='Add one: [databases.NAME] with dsn = "postgresql://…"')
    made: list[Manifest] = []
    failures: list[BackupdError] = []
    with _catalog(config) as catalog:
        for database in chosen:
            job = backups.Job(
                database=database.name,
                dsn=_dsn(database),
                recipients=config.recipients(),
                signing_key=config.load_signing_key(),
                jobs=jobs or database.jobs,
                level=database.compression.level,
                lock_timeout=database.lock_wait_timeout,
                large_table=database.large_table_size,
                content=database.verify.fingerprint == "content",
                bin_dirs=config.postgres.bin_dirs,
            )
            try:
                with console.progress(style, database=database.name) as progress:
                    made.append(backups.run(job, catalog, progress))
            except BackupdError as error:
                if len(chosen) == 1:
                    raise
                error.message = f"{database.name}: {error.message}"
                console.show_error(style, error)  # the other databases get their backup all the same
                failures.append(error)
                continue
            if not as_json:
                console.emit(views.made(made[-1]))
    if as_json:
        console.emit_json([views.listed(manifest) for manifest in made])
    return failures[0].exit_code if failures else 0


def list_backups(style: Style, path: str | None, database: str | None, as_json: bool) -> int:
    config = _load(path)
    rows: list[dict[str, Any]] = []
    damaged: list[BackupdError] = []
    with _catalog(config) as catalog:
        for name in [database] if database else catalog.databases():
            newest = proofs.newest(catalog, name)
            for ref, manifest in catalog.all_manifests(name):
                if isinstance(manifest, Manifest):
                    rows.append(views.listed(manifest, _believed(style, newest.get(ref.id))))
                else:
                    damaged.append(manifest)
                    rows.append(views.unreadable(ref, manifest))
        if database and not rows and database not in config.databases:
            config.database(database)  # a name that nobody knows is an error, not an empty list
        where = catalog.storage.url
    rows.sort(key=lambda row: row["taken_at"], reverse=True)
    if as_json:
        console.emit_json(rows)
    elif rows:
        console.emit(views.backups(rows))
    else:
        console.say(style, f"no backups in {where}", "warning")
    for error in damaged:
        console.show_error(style, error)
    return IntegrityError.exit_code if damaged else 0


def _believed(style: Style, found: Proof | IntegrityError | None) -> Proof | None:
    """A proof that can't be believed proves nothing, and somebody should know of it."""
    if isinstance(found, IntegrityError):
        console.say(style, f"a proof is not believed: {found.message}", "warning")
        return None
    return found


def show(path: str | None, database: str, which: str, as_json: bool) -> None:
    config = _load(path)
    with _catalog(config) as catalog:
        ref = _chosen(config, catalog, database, which)
        manifest = catalog.manifest(ref)
        found = list(proofs.of_backup(catalog, ref))
    if as_json:
        console.emit_json(views.backup_document(manifest, found))
        return
    console.emit(views.backup(manifest, found))


def _chosen(config: Config, catalog: Catalog, database: str, which: str) -> BackupRef:
    try:
        return catalog.find(database, None) if which == "latest" else catalog.by_id(database, which)
    except NoBackupError:
        if database not in config.databases:
            config.database(database)  # says which name may have been meant
        raise


def _asked(at: str, now: datetime) -> tuple[datetime | None, str | None]:
    """What `--at` says: a time (None: the newest backup), or the ID of one backup."""
    if id_second(at) is not None:
        return None, at
    return None if at == "latest" else times.parse_moment(at, reference=now), None


# ---- restore


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """The options of `restore` as typed."""

    at: str
    into: str | None = None
    target: str | None = None
    replace: bool = False
    tables: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()
    with_references: bool = False
    data_only: bool = False
    jobs: int | None = None
    max_gap: str | None = None
    no_owner: bool = False
    create_roles: bool = False
    role_map: tuple[str, ...] = ()
    exclude_extension: tuple[str, ...] = ()
    skip_privileged: bool = False
    resume: bool = False
    dry_run: bool = False
    yes: bool = False
    as_json: bool = False


def restore(style: Style, path: str | None, database: str, options: RestoreOptions) -> None:
    from backupd import reload_command, restore_plan
    from backupd import restore as restores

    config = _load(path)
    request = _request(config, database, options)
    if options.data_only:
        reload_command.check(request)
    identities = config.load_identities()  # before anything is planned: without them there is nothing to plan
    with _catalog(config) as catalog:
        try:
            if options.data_only:
                told = {"dry_run": options.dry_run, "yes": options.yes, "as_json": options.as_json}
                reload_command.restore(style, request, catalog, identities, **told)
                return
            plan = restore_plan.plan(request, catalog, identities)
        except NoBackupError:
            if database not in config.databases:
                config.database(database)
            raise
        if options.dry_run:
            if options.as_json:
                console.emit_json(views.plan_document(plan) | {"dry_run": True, "warnings": list(plan.warnings)})
            else:
                console.emit(views.plan(plan))
            return
        if not options.as_json:
            console.say(style, views.plan(plan), "warning")
        if not (options.yes or options.as_json) and sys.stdin.isatty() and sys.stderr.isatty():
            import click

            click.confirm("Restore now?", default=True, abort=True, err=True)
        with console.progress(style, database=database, backup=plan.manifest.id) as progress:
            done = restores.run(plan, catalog, identities, progress)
            for warning in done.warnings:
                progress.warn(warning)
    if options.as_json:
        document = views.restored_document(done)
        console.emit_json(document | {"warnings": [*plan.warnings, *done.warnings]})
    else:
        console.emit(views.restored(done))


def _choice(options: RestoreOptions) -> Choice:
    from backupd.contents import Choice

    role_map: dict[str, str] = {}
    for text in options.role_map:
        old, equals, new = text.partition("=")
        if not equals or not old or not new or role_map.get(old, new) != new:
            raise ConfigError("--role-map takes OLD=NEW, each old name once", hint="--role-map app_owner=admin")
        role_map[old] = new
    if options.with_references and not options.tables:
        raise ConfigError("--with-references goes with --table", hint="Name the tables: --table orders")
    return Choice(
        tables=options.tables,
        schemas=options.schemas,
        with_references=options.with_references,
        owners=not options.no_owner,
        role_map=role_map,
        without_extensions=options.exclude_extension,
        skip_privileged=options.skip_privileged,
    )


def _request(config: Config, database: str, options: RestoreOptions) -> Request:
    from backupd.postgres.session import Dsn
    from backupd.restore_plan import Request

    if options.replace and options.into is not None:
        raise ConfigError("--replace and --into exclude each other", hint="--replace gives the original's name.")
    if options.replace and (options.tables or options.schemas) and not options.data_only:
        raise ConfigError(
            "--replace takes a whole database",
            hint="Restore the parts beside the original, and copy what is missing: docs/recipes.md shows how.",
        )
    now = times.now()
    at, backup_id = _asked(options.at, now)
    if database in config.databases:
        known = config.databases[database]
        source, jobs = _dsn(known), known.jobs
    elif options.target is not None:  # a database that left the configuration can still be restored elsewhere
        source, jobs = Dsn(options.target), 2
    else:
        config.database(database)
        raise AssertionError(database)
    max_gap = times.parse_age(options.max_gap) if options.max_gap else None
    if options.max_gap and max_gap is None:
        raise ConfigError(f"cannot read the duration {options.max_gap!r} of --max-gap", hint="Use 90m, 2h or 3d.")
    return Request(
        database=database,
        at=at,
        now=now,
        source=source,
        backup_id=backup_id,
        into=options.into,
        target=Dsn(options.target) if options.target else None,
        max_gap=max_gap,
        replace=options.replace,
        choice=_choice(options),
        create_roles=options.create_roles,
        resume=options.resume,
        jobs=options.jobs or jobs,
        bin_dirs=config.postgres.bin_dirs,
    )


# ---- export


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The arguments and options of `export` as typed."""

    at: str
    directory: str
    plain: bool
    jobs: int | None
    as_json: bool


def export(style: Style, path: str | None, database: str, options: ExportOptions) -> None:
    from backupd import export as exports

    config = _load(path)
    now = times.now()
    at, backup_id = _asked(options.at, now)
    known = config.databases.get(database)
    request = exports.Request(
        database=database,
        at=at,
        now=now,
        directory=Path(options.directory),
        backup_id=backup_id,
        plain=options.plain,
        jobs=options.jobs or (known.jobs if known else 2),
        bin_dirs=config.postgres.bin_dirs,
    )
    identities = config.load_identities()
    with _catalog(config) as catalog:
        try:
            plan = exports.plan(request, catalog, identities)
        except NoBackupError:
            if known is None:
                config.database(database)  # says which name may have been meant
            raise
        with console.progress(style, database=database, backup=plan.manifest.id) as progress:
            done = exports.run(plan, catalog, identities, progress)
    if options.as_json:
        console.emit_json(views.export_document(done))
    else:
        console.emit(views.exported(done))
