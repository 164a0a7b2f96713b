"""`backupd restore`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupd import console, times, views
from backupd.commands import opening
from backupd.config import Config
from backupd.console import Style
from backupd.errors import ConfigError
from backupd.repository import opened

if TYPE_CHECKING:
    from backupd.contents import Choice
    from backupd.restore_plan import Request


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
    from backupd import restore as restores
    from backupd import restore_plan
    from backupd.commands import reload

    config = opening.load(path)
    request = _request(config, database, options)
    if options.data_only:
        reload.check(request)
    identities = config.load_identities()  # before anything is planned: without them there is nothing to plan
    with opened(config) as catalog:
        with opening.naming(config, database):
            if options.data_only:
                told = {"dry_run": options.dry_run, "yes": options.yes, "as_json": options.as_json}
                reload.restore(style, request, catalog, identities, **told)
                return
            plan = restore_plan.plan(request, catalog, identities)
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
    at, backup_id = opening.asked(options.at, now)
    known = config.known(database)
    if known is not None:
        source, jobs = opening.dsn(known), known.jobs
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
