"""`backupd backup`."""

from __future__ import annotations

from collections.abc import Sequence

from backupd import console, views
from backupd.commands import opening
from backupd.console import Style
from backupd.errors import BackupdError
from backupd.manifest import Manifest
from backupd.repository import opened


def backup(style: Style, path: str | None, databases: Sequence[str], streams: int | None, as_json: bool) -> int:
    from backupd import jobs

    config = opening.load(path)
    chosen, failures = opening.chosen(config, databases)
    for failure in failures:
        console.show_error(style, failure)
    made: list[Manifest] = []
    with opened(config) as catalog:
        for database in chosen:
            work = jobs.backup_job(config, database, streams)
            try:
                with console.progress(style, database=database.name) as progress:
                    made.append(jobs.back_up(database, work, catalog, progress))
            except BackupdError as error:
                if len(chosen) == 1 and not failures:
                    raise
                error.message = f"{database.name}: {error.message}"
                console.show_error(style, error)  # the other databases get their backup all the same
                failures.append(error)
                continue
            if not as_json:
                console.emit(views.made(made[-1]))
    if as_json:
        console.emit_json([views.made_now(manifest) for manifest in made])
    return failures[0].exit_code if failures else 0
