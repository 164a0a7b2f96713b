"""`restore --data-only`: from options to a load, and what it says of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from backupd import console, reload, times, views
from backupd.catalog import Catalog
from backupd.console import Style
from backupd.crypto import age
from backupd.errors import ConfigError
from backupd.reload import Reloaded, ReloadPlan
from backupd.restore_plan import Request


def check(request: Request) -> None:
    """Raises ConfigError for what makes no sense where only rows are loaded."""
    choice = request.choice
    for name, given in (
        ("--replace", request.replace),
        ("--create-roles", request.create_roles),
        ("--resume", request.resume),
        ("--no-owner", not choice.owners),
        ("--role-map", choice.role_map),
        ("--exclude-extension", choice.without_extensions),
        ("--skip-privileged", choice.skip_privileged),
    ):
        if given:
            raise ConfigError(
                f"--data-only and {name} exclude each other", hint=f"Only rows are loaded: leave {name} out."
            )
    if request.into is None and (request.target is None or not request.target.database):
        raise ConfigError(
            "--data-only fills tables of a database that exists: which one?",
            hint="Name it with --into NAME, or with a --target that says so: postgresql://USER@HOST/NAME",
        )


def restore(
    style: Style,
    request: Request,
    catalog: Catalog,
    identities: Sequence[age.Identity],
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    plan = reload.plan(request, catalog, identities)
    if dry_run:
        if as_json:
            console.emit_json(document(plan) | {"dry_run": True, "warnings": list(plan.warnings)})
        else:
            console.emit(planned(plan))
        return
    if not as_json:
        console.say(style, planned(plan), "warning")
    if not (yes or as_json) and sys.stdin.isatty() and sys.stderr.isatty():
        click.confirm("Load now?", default=True, abort=True, err=True)
    with console.progress(style, database=plan.database, backup=plan.manifest.id) as progress:
        done = reload.run(plan, catalog, identities, progress)
        for warning in done.warnings:
            progress.warn(warning)
    if as_json:
        told = {"dry_run": False, "seconds": round(done.seconds, 3), "warnings": [*plan.warnings, *done.warnings]}
        console.emit_json(document(plan) | told)
    else:
        console.emit(loaded(done))


def document(plan: ReloadPlan) -> dict[str, Any]:
    """The keys of a restore's document, as far as they mean something here."""
    return {
        "database": plan.database,
        "id": plan.manifest.id,
        "taken_at": times.iso(plan.manifest.taken_at),
        "requested_at": times.iso(plan.requested_at),
        "gap_seconds": round(plan.gap.total_seconds(), 6),
        "data_only": True,
        "target": plan.target,
        "target_dsn": plan.dsn.shown(),
        "creates_database": False,
        "tables": len(plan.tables),
        "rows": plan.contents.rows,
        "sequences": [".".join(name) for name in sorted(plan.sequences)],
        "checks_foreign_keys": plan.replica,
        "streams": [
            {"key": s.key, "kind": s.kind, "tables": s.tables, "raw_bytes": s.raw_bytes, "stored_bytes": s.stored_bytes}
            for s in (plan.manifest.schema_stream, *plan.contents.streams)
        ],
    }


def planned(plan: ReloadPlan) -> str:
    manifest = plan.manifest
    tables = [str(table) for table in plan.tables]
    lines = [
        ("backup", f"{manifest.id} of {plan.database}, PostgreSQL {manifest.server_version}"),
        ("taken at", f"{times.iso(manifest.taken_at)}, {times.human_duration(times.now() - manifest.taken_at)} ago"),
        ("asked for", times.iso(plan.requested_at)),
        ("lost", f"everything committed after {times.iso(manifest.taken_at)}"),
        ("into", f"empty tables of {plan.target} on {plan.server.dsn.server}, PostgreSQL {plan.server.version}"),
        (
            "rows",
            f"{plan.contents.rows} in {', '.join(tables[:8])}" + (f" and {len(tables) - 8} more" if tables[8:] else ""),
        ),
        ("sequences", ", ".join(".".join(name) for name in sorted(plan.sequences)) or "none"),
    ]
    return "\n".join(["Plan", views.facts(lines), *plan.warnings])


def loaded(done: Reloaded) -> str:
    plan = done.plan
    return (
        f"loaded {plan.contents.rows} rows into {len(plan.tables)} tables of {plan.target}, as of"
        f" {times.iso(plan.manifest.taken_at)}, {done.seconds:.1f} s\n"
        f"lost: everything committed after {times.iso(plan.manifest.taken_at)}"
    )
