"""`backupd export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backupd import console, times, views
from backupd.commands import opening
from backupd.console import Style
from backupd.repository import opened


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

    config = opening.load(path)
    now = times.now()
    at, backup_id = opening.asked(options.at, now)
    known = config.known(database)
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
    with opened(config) as catalog:
        with opening.naming(config, database):
            plan = exports.plan(request, catalog, identities)
        with console.progress(style, database=database, backup=plan.manifest.id) as progress:
            done = exports.run(plan, catalog, identities, progress)
    if options.as_json:
        console.emit_json(views.export_document(done))
    else:
        console.emit(views.exported(done))
