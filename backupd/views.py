"""Results as people and scripts read them: backups, plans and what came of them, as text and as JSON documents."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from backupd import console, proof_views, times
from backupd.catalog import BackupRef
from backupd.errors import BackupdError, IntegrityError
from backupd.manifest import Manifest, Stream
from backupd.postgres.names import free_name, identifier, literal, renames, way_back
from backupd.proof import Proof
from backupd.summaries import Headline, ProofHead

if TYPE_CHECKING:
    from backupd.export import Exported
    from backupd.restore import Restored
    from backupd.restore_plan import RestorePlan


def facts(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name + ':':<{width}}{value}" for name, value in rows)


def made(manifest: Manifest) -> str:
    ratio = manifest.stored_bytes / manifest.raw_bytes if manifest.raw_bytes else 1
    return (
        f"{manifest.database}: backup {manifest.id} of {times.iso(manifest.taken_at)}, {len(manifest.tables)} tables,"
        f" {manifest.rows} rows, {times.human_bytes(manifest.raw_bytes)} stored in"
        f" {times.human_bytes(manifest.stored_bytes)} ({ratio:.0%}), {manifest.duration.total_seconds():.1f} s"
    )


def proven(proof: Proof | ProofHead | None) -> dict[str, Any]:
    """What the newest proof says."""
    return {"status": proof.status, "at": times.iso(proof.finished_at)} if proof else {"status": "none", "at": None}


def listed(ref: BackupRef, headline: Headline, proof: ProofHead | None = None) -> dict[str, Any]:
    return {
        "database": ref.database,
        "id": ref.id,
        "taken_at": times.iso(headline.taken_at),
        "finished_at": times.iso(headline.finished_at),
        "raw_bytes": headline.raw_bytes,
        "stored_bytes": headline.stored_bytes,
        "tables": headline.tables,
        "rows": headline.rows,
        "server_version": headline.server_version,
        "proof": proven(proof),
    }


def made_now(manifest: Manifest) -> dict[str, Any]:
    """A backup that nobody can have tested yet, as `list` will show it."""
    ref = BackupRef(manifest.taken_at.replace(microsecond=0), manifest.id, manifest.database)
    return listed(ref, Headline.of(manifest))


def unreadable(ref: BackupRef, error: BackupdError) -> dict[str, Any]:
    nothing = dict.fromkeys(("finished_at", "raw_bytes", "stored_bytes", "tables", "rows", "server_version"))
    return {
        "database": ref.database,
        "id": ref.id,
        "taken_at": times.iso(ref.second),
        **nothing,
        "proof": proven(None),
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


def pruned(rows: Sequence[Mapping[str, Any]], *, dry_run: bool) -> str:
    """Why each backup stays or goes."""
    goes = "goes" if dry_run else "gone"
    cells = [(row["database"], row["id"], "stays" if row["keep"] else goes, ", ".join(row["reasons"])) for row in rows]
    return console.table(("DATABASE", "ID", "", "WHY"), cells)


def _whole_seconds(taken_at: str) -> str:
    """Rounded up, so that the time shown, typed after --at, means this backup and not the one before."""
    moment = datetime.fromisoformat(taken_at)
    return times.iso(moment.replace(microsecond=0) + timedelta(seconds=1 if moment.microsecond else 0))


def _numbers(row: dict[str, Any]) -> tuple[str, str, str, str, str]:
    sizes = times.human_bytes(row["raw_bytes"]), times.human_bytes(row["stored_bytes"])
    return *sizes, str(row["tables"]), str(row["rows"]), row["server_version"]


def plan_document(plan: RestorePlan) -> dict[str, Any]:
    manifest, contents = plan.manifest, plan.contents
    return {
        "database": plan.database,
        "id": manifest.id,
        "taken_at": times.iso(manifest.taken_at),
        "requested_at": times.iso(plan.requested_at),
        "gap_seconds": round(plan.gap.total_seconds(), 6),
        "target": plan.target,
        "target_dsn": plan.dsn.shown(),
        "creates_database": plan.creates and not plan.resumes,
        "replaces": plan.replaces,
        "kept_as": plan.kept_as,
        "resumes": plan.resumes,
        "jobs": plan.jobs,
        "owners": plan.owners,
        "tables": len(contents.tables),
        "rows": contents.rows,
        "along": contents.along,
        "left_out": contents.left_out,
        "referring": contents.referring,
        "roles_created": plan.new_roles.create if plan.new_roles else (),
        "role_differences": plan.new_roles.differences if plan.new_roles else (),
        "raw_bytes": manifest.raw_bytes,
        "stored_bytes": manifest.stored_bytes,
        "streams": [
            {"key": s.key, "kind": s.kind, "tables": s.tables, "raw_bytes": s.raw_bytes, "stored_bytes": s.stored_bytes}
            for s in _read(plan)
        ],
    }


def restored_document(done: Restored) -> dict[str, Any]:
    """The plan's document, with what the database is called now."""
    document = plan_document(done.plan) | {
        "dry_run": False,
        "target": done.name,
        "target_dsn": done.plan.server.dsn.replace(dbname=done.name).shown(),
        "seconds": round(done.seconds, 3),
    }
    if done.swapped is not None:
        document["swapped"] = {"seconds": round(done.swapped.seconds, 3), "sessions_ended": done.swapped.ended}
    return document


def _read(plan: RestorePlan) -> list[Stream]:
    """The streams that the restore reads, or those of a resumed one that are left."""
    return [plan.manifest.schema_stream, *(s for s in plan.contents.streams if s.name not in plan.mark.done)]


def plan(what: RestorePlan) -> str:
    manifest = what.manifest
    made = "new database" if what.creates else "existing empty database"
    if what.resumes:
        made = "unfinished database"
    read = _read(what)
    rows = [
        ("backup", f"{manifest.id} of {what.database}, PostgreSQL {manifest.server_version}"),
        ("taken at", f"{times.iso(manifest.taken_at)}, {times.human_duration(times.now() - manifest.taken_at)} ago"),
        ("asked for", times.iso(what.requested_at)),
        ("lost", _loss(what)),
        ("to", f"{made} {what.target} on {what.server.dsn.server}, PostgreSQL {what.server.version}"),
        *_replacing(what),
        ("holds", _held(what)),
        (
            "reads",
            f"{times.human_bytes(sum(s.stored_bytes for s in read))} in {len(read)} objects, {what.jobs} at a time",
        ),
        *_resuming(what),
        *_roles(what),
        *(("note", warning) for warning in what.warnings),
    ]
    return "Plan\n" + "\n".join("  " + line for line in facts(rows).splitlines())


def _held(plan: RestorePlan) -> str:
    tables, rows = plan.contents.tables, plan.contents.rows
    if not plan.choice.parts:
        return f"{len(tables)} tables, {rows} rows, {times.human_bytes(plan.manifest.raw_bytes)}"
    names = [f"{table.schema_}.{table.name}" for table in tables]
    some = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"{len(tables)} of {len(plan.manifest.tables)} tables, {rows} rows: {some}"


def _replacing(plan: RestorePlan) -> list[tuple[str, str]]:
    if plan.replaces is None:
        return []
    kept = f"; what is there now is kept as {plan.kept_as}" if plan.kept_as else ""
    return [("then", f"it takes the name {plan.replaces}{kept}")]


def _resuming(plan: RestorePlan) -> list[tuple[str, str]]:
    if not plan.resumes:
        return []
    return [("done", f"{len(plan.mark.done)} of {len(plan.contents.streams)} streams were loaded before")]


def _roles(plan: RestorePlan) -> list[tuple[str, str]]:
    if plan.new_roles is None:
        return []
    return [
        ("roles", f"creates {', '.join(plan.new_roles.create) or 'none'}"),
        *(("differs", line) for line in plan.new_roles.differences),
    ]


def _loss(plan: RestorePlan) -> str:
    """Never a time after the one asked for: that part was asked for, and is no loss."""
    gap = times.human_duration(plan.gap)
    whence = f", {gap} before the time asked for" if plan.gap else ""
    return f"everything committed after {times.iso(plan.manifest.taken_at)}{whence}"


def backup_document(manifest: Manifest, proofs: Sequence[Proof | IntegrityError]) -> dict[str, Any]:
    """The manifest as it is stored, and its proofs, oldest first."""
    document = manifest.model_dump(mode="json", by_alias=True)
    document["proofs"] = [p.document() if isinstance(p, Proof) else {"error": p.message} for p in proofs]
    return document


def backup(manifest: Manifest, proofs: Sequence[Proof | IntegrityError]) -> str:
    lines = [
        ("backup", f"{manifest.database} {manifest.id}"),
        ("taken at", f"{times.iso(manifest.taken_at)} ({times.human_duration(times.now() - manifest.taken_at)} ago)"),
        ("finished at", f"{times.iso(manifest.finished_at)} after {manifest.duration.total_seconds():.1f} s"),
        ("source", f"{manifest.properties.name}, PostgreSQL {manifest.server_version}"),
        ("size", f"{times.human_bytes(manifest.raw_bytes)}, stored {times.human_bytes(manifest.stored_bytes)}"),
        ("rows", f"{manifest.rows} in {len(manifest.tables)} tables"),
        ("extensions", ", ".join(f"{e.name} {e.version}" for e in manifest.extensions) or "none"),
        ("roles", ", ".join(manifest.roles) or "none"),
        ("proofs", str(len(proofs)) if proofs else f"none; make one: backupd verify {manifest.database}"),
    ]
    streams = [
        (s.name, s.kind, times.human_bytes(s.raw_bytes), times.human_bytes(s.stored_bytes), f"{s.seconds:.1f} s", s.key)
        for s in manifest.objects
    ]
    tables = [(t.stream, f"{t.schema_}.{t.name}", str(t.rows), times.human_bytes(t.bytes)) for t in manifest.tables]
    return "\n\n".join(
        [
            facts(lines),
            *([proof_views.history(proofs)] if proofs else []),
            console.table(("STREAM", "KIND", "RAW", "STORED", "TIME", "KEY"), streams, right=(2, 3, 4)),
            console.table(("STREAM", "TABLE", "ROWS", "BYTES"), tables, right=(2, 3)),
        ]
    )


def restored(done: Restored) -> str:
    """The last lines of a restore: what is back, as of when, what is lost, how to get at it."""
    plan, contents = done.plan, done.plan.contents
    return "\n".join(
        [
            (
                f"restored {plan.database} as of {times.iso(plan.manifest.taken_at)} into {done.name}:"
                f" {len(contents.tables)} tables, {contents.rows} rows, {done.seconds:.1f} s"
            ),
            f"lost: {_loss(plan)}",
            f"connect: psql {shlex.quote(plan.server.dsn.replace(dbname=done.name).shown())}",
            *_next_steps(done),
        ]
    )


def _next_steps(done: Restored) -> list[str]:
    plan = done.plan
    if done.swapped is not None:
        if plan.kept_as is None or plan.replaces is None:
            return []
        other = plan.server.dsn
        return [
            (
                f"the original is kept as {plan.kept_as}; new sessions waited {done.swapped.seconds:.1f} s,"
                f" {done.swapped.ended} were ended"
            ),
            f"the way back: connect to another database, {shlex.quote(other.shown())}; then, all in one go:",
            f"  SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {literal(plan.replaces)};",  # noqa: S608
            *(f"  {line}" for line in way_back(plan.replaces, plan.target, plan.kept_as)),
            f"  (what was written since the swap is in {plan.target} then)",
            f"when you are sure that it is not needed any more: DROP DATABASE {identifier(plan.kept_as)};",
        ]
    original = plan.manifest.properties.name
    if not plan.creates or plan.choice.parts or original not in plan.server.databases:
        return []
    kept = free_name(original, "_before")
    return [
        "to put it in the original's place, when nobody is connected (--replace does it while they are):",
        *(f"  {line}" for line in renames(original, plan.target, kept)),
    ]


def export_document(done: Exported) -> dict[str, Any]:
    plan, manifest = done.plan, done.plan.manifest
    return {
        "database": manifest.database,
        "id": manifest.id,
        "taken_at": times.iso(manifest.taken_at),
        "requested_at": times.iso(plan.requested_at),
        "gap_seconds": round(plan.gap.total_seconds(), 6),
        "directory": str(plan.directory),
        "plain": plan.plain,
        "files": [{"name": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in done.files],
    }


def exported(done: Exported) -> str:
    """What is in the folder, and what to do with it."""
    plan, manifest = done.plan, done.plan.manifest
    gap = f", {times.human_duration(plan.gap)} before the time asked for" if plan.gap else ""
    files = [(file.name, times.human_bytes(file.bytes)) for file in done.files]
    return (
        f"exported {manifest.database} as of {times.iso(manifest.taken_at)}{gap}\n"
        f"{console.table(('FILE', 'SIZE'), files, right=(1,))}\n"
        f"to {plan.directory}: {len(files)} files, {times.human_bytes(done.bytes)}, decrypted, readable for you alone\n"
        f"next: read {shlex.quote(str(done.guide))}"
    )
