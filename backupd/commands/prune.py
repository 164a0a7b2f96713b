"""`backupd prune`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backupd import console, jobs, views
from backupd import prune as pruning
from backupd.commands import opening
from backupd.console import Style
from backupd.errors import BackupdError
from backupd.repository import opened


def prune(style: Style, path: str | None, databases: Sequence[str], *, dry_run: bool, as_json: bool) -> int:
    config = opening.load(path)
    chosen, failures = opening.chosen(config, databases)
    for failure in failures:
        console.show_error(style, failure)
    rows: list[Mapping[str, object]] = []
    with opened(config) as catalog:
        for database in chosen:
            try:
                plan = jobs.prune_plan(catalog, database)
                if plan.paused is not None:
                    console.say(style, f"{database.name}: nothing is pruned, since {plan.paused}", "warning")
                if not dry_run:
                    trouble = pruning.run(plan, catalog, jobs.summing_key(config))
                    if trouble is not None:
                        text = f"{database.name}: the summary that lists are quick by could not be stored: {trouble}"
                        console.say(style, text, "warning")
            except BackupdError as error:
                if len(chosen) == 1 and not failures:
                    raise
                error.message = f"{database.name}: {error.message}"
                console.show_error(style, error)  # the others are pruned all the same
                failures.append(error)
                continue
            rows += pruning.rows(plan)
    if as_json:
        console.emit_json(rows)
    elif rows:
        console.emit(views.pruned(rows, dry_run=dry_run))
    return failures[0].exit_code if failures else 0
