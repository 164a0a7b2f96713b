"""Results as people and scripts read them: backups, plans and what came of them, as text and as JSON documents."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from backupd import console, times
from backupd.catalog import BackupRef
from backupd.errors import BackupdError
from backupd.manifest import Manifest
from backupd.postgres import target
from backupd.postgres.names import identifier

if TYPE_CHECKING:
    from backupd.restore import Restored, RestorePlan


# Test restores are not recorded yet. Until they are, signed and checked, nothing counts as proven.
_NO_PROOF = {"status": "none", "at": None}


def _facts(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name + ':':<{width}}{value}" for name, value in rows)


def made(manifest: Manifest) -> str:
    ratio = manifest.stored_bytes / manifest.raw_bytes if manifest.raw_bytes else 1
    return (
        f"{manifest.database}: backup {manifest.id} of {times.iso(manifest.taken_at)}, {len(manifest.tables)} tables,"
        f" {manifest.rows} rows, {times.human_bytes(manifest.raw_bytes)} stored in"
        f" {times.human_bytes(manifest.stored_bytes)} ({ratio:.0%}), {manifest.duration.total_seconds():.1f} s"
    )


def listed(manifest: Manifest) -> dict[str, Any]:
    return {
        "database": manifest.database,
        "id": manifest.id,
        "taken_at": times.iso(manifest.taken_at),
        "finished_at": times.iso(manifest.finished_at),
        "raw_bytes": manifest.raw_bytes,
        "stored_bytes": manifest.stored_bytes,
        "tables": len(manifest.tables),
        "rows": manifest.rows,
        "server_version": manifest.server_version,
        "proof": _NO_PROOF,
    }


def unreadable(ref: BackupRef, error: BackupdError) -> dict[str, Any]:
    nothing = dict.fromkeys(("finished_at", "raw_bytes", "stored_bytes", "tables", "rows", "server_version"))
    return {
        "database": ref.database,
        "id": ref.id,
        "taken_at": times.iso(ref.second),
        **nothing,
        "proof": _NO_PROOF,
        "error": error.message,
    }


def backups(rows: Sequence[dict[str, Any]]) -> str:
    headers = ("DATABASE", "ID", "TAKEN AT", "RAW", "STORED", "TABLES", "ROWS", "SERVER", "PROOF")
    cells = [
        (
            row["database"],
            row["id"],
            _whole_seconds(row["taken_at"]),
            *(("?",) * 5 if "error" in row else _numbers(row)),
            "UNREADABLE" if "error" in row else row["proof"]["status"],
        )
        for row in rows
    ]
    return console.table(headers, cells, right=(3, 4, 5, 6))


def _whole_seconds(taken_at: str) -> str:
    """Rounded up, so that the time shown, typed after --at, means this backup and not the one before."""
    moment = datetime.fromisoformat(taken_at)
    return times.iso(moment.replace(microsecond=0) + timedelta(seconds=1 if moment.microsecond else 0))


def _numbers(row: dict[str, Any]) -> tuple[str, str, str, str, str]:
    sizes = times.human_bytes(row["raw_bytes"]), times.human_bytes(row["stored_bytes"])
    return *sizes, str(row["tables"]), str(row["rows"]), row["server_version"]


def plan_document(plan: RestorePlan) -> dict[str, Any]:
    manifest = plan.manifest
    return {
        "database": plan.database,
        "id": manifest.id,
        "taken_at": times.iso(manifest.taken_at),
        "requested_at": times.iso(plan.requested_at),
        "gap_seconds": round(plan.gap.total_seconds(), 6),
        "target": plan.target,
        "target_dsn": plan.dsn.shown(),
        "creates_database": plan.creates,
        "jobs": plan.jobs,
        "owners": plan.owners,
        "tables": len(manifest.tables),
        "rows": manifest.rows,
        "raw_bytes": manifest.raw_bytes,
        "stored_bytes": manifest.stored_bytes,
        "streams": [
            {"key": s.key, "kind": s.kind, "tables": s.tables, "raw_bytes": s.raw_bytes, "stored_bytes": s.stored_bytes}
            for s in manifest.streams
            if s.kind != "globals"
        ],
    }


def plan(what: RestorePlan) -> str:
    manifest = what.manifest
    made = "new database" if what.creates else "existing empty database"
    read = [stream for stream in manifest.streams if stream.kind != "globals"]
    rows = [
        ("backup", f"{manifest.id} of {what.database}, PostgreSQL {manifest.server_version}"),
        ("taken at", f"{times.iso(manifest.taken_at)}, {times.human_duration(times.now() - manifest.taken_at)} ago"),
        ("asked for", times.iso(what.requested_at)),
        ("lost", _loss(what)),
        ("to", f"{made} {what.target} on {what.server.dsn.server}, PostgreSQL {what.server.version}"),
        ("holds", f"{len(manifest.tables)} tables, {manifest.rows} rows, {times.human_bytes(manifest.raw_bytes)}"),
        (
            "reads",
            f"{times.human_bytes(sum(s.stored_bytes for s in read))} in {len(read)} objects, {what.jobs} at a time",
        ),
        *(("note", warning) for warning in what.warnings),
    ]
    return "Plan\n" + "\n".join("  " + line for line in _facts(rows).splitlines())


def _loss(plan: RestorePlan) -> str:
    """Never a time after the one asked for: that part was asked for, and is no loss."""
    gap = times.human_duration(plan.gap)
    whence = f", {gap} before the time asked for" if plan.gap else ""
    return f"everything committed after {times.iso(plan.manifest.taken_at)}{whence}"


def backup_document(manifest: Manifest) -> dict[str, Any]:
    """The manifest as it is stored, and its proofs."""
    document = manifest.model_dump(mode="json", by_alias=True)
    document["proofs"] = []
    return document


def backup(manifest: Manifest) -> str:
    facts = [
        ("backup", f"{manifest.database} {manifest.id}"),
        ("taken at", f"{times.iso(manifest.taken_at)} ({times.human_duration(times.now() - manifest.taken_at)} ago)"),
        ("finished at", f"{times.iso(manifest.finished_at)} after {manifest.duration.total_seconds():.1f} s"),
        ("source", f"{manifest.properties.name}, PostgreSQL {manifest.server_version}"),
        ("size", f"{times.human_bytes(manifest.raw_bytes)}, stored {times.human_bytes(manifest.stored_bytes)}"),
        ("rows", f"{manifest.rows} in {len(manifest.tables)} tables"),
        ("extensions", ", ".join(f"{e.name} {e.version}" for e in manifest.extensions) or "none"),
        ("roles", ", ".join(manifest.roles) or "none"),
        ("proof", "none"),
    ]
    streams = [
        (s.name, s.kind, times.human_bytes(s.raw_bytes), times.human_bytes(s.stored_bytes), f"{s.seconds:.1f} s", s.key)
        for s in manifest.streams
    ]
    tables = [(t.stream, f"{t.schema_}.{t.name}", str(t.rows), times.human_bytes(t.bytes)) for t in manifest.tables]
    return "\n\n".join(
        [
            _facts(facts),
            console.table(("STREAM", "KIND", "RAW", "STORED", "TIME", "KEY"), streams, right=(2, 3, 4)),
            console.table(("STREAM", "TABLE", "ROWS", "BYTES"), tables, right=(2, 3)),
        ]
    )


def restored(done: Restored) -> str:
    """The last lines of a restore: what is back, as of when, what is lost, how to get at it."""
    plan, manifest = done.plan, done.plan.manifest
    original, copy = identifier(manifest.properties.name), identifier(plan.target)
    swap = (
        f"\nto put it in the original's place, when nobody is connected:"
        f"\n  ALTER DATABASE {original} RENAME TO {identifier(target.free_name(manifest.properties.name, '_before'))};"
        f"\n  ALTER DATABASE {copy} RENAME TO {original};"
    )
    beside = plan.creates and manifest.properties.name in plan.server.databases
    return (
        f"restored {plan.database} as of {times.iso(manifest.taken_at)} into {plan.target}:"
        f" {len(manifest.tables)} tables, {manifest.rows} rows, {done.seconds:.1f} s\n"
        f"lost: {_loss(plan)}\n"
        f"connect: psql {shlex.quote(plan.dsn.shown())}"
        f"{swap if beside else ''}"
    )
