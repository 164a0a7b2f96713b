"""`backupd list` and `backupd show`."""

from __future__ import annotations

from typing import Any

from backupd import console, proofs, views
from backupd.commands import opening
from backupd.console import Style
from backupd.errors import BackupdError, IntegrityError
from backupd.repository import opened
from backupd.summaries import Headline, ProofHead, View


def list_backups(style: Style, path: str | None, database: str | None, as_json: bool) -> int:
    config = opening.load(path)
    rows: list[dict[str, Any]] = []
    damaged: list[BackupdError] = []
    with opened(config) as catalog:
        for name in [database] if database else catalog.databases():
            view = View(catalog, name)
            if view.doubt is not None:
                text = f"a summary is not believed, so manifests are read instead: {view.doubt.message}"
                console.say(style, f"{text}. The next `backupd prune {name}` writes it anew.", "warning")
            for ref, found in view.backups.items():
                if isinstance(found, Headline):
                    rows.append(views.listed(ref, found, _believed(style, view.verdicts.get(ref.id))))
                else:
                    damaged.append(found)
                    rows.append(views.unreadable(ref, found))
        if database and not rows:
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


def _believed(style: Style, found: ProofHead | IntegrityError | None) -> ProofHead | None:
    """A proof that can't be believed proves nothing, and somebody should know of it."""
    if isinstance(found, IntegrityError):
        console.say(style, f"a proof is not believed: {found.message}", "warning")
        return None
    return found


def show(path: str | None, database: str, which: str, as_json: bool) -> None:
    config = opening.load(path)
    with opened(config) as catalog:
        with opening.naming(config, database):
            ref = catalog.find(database, None) if which == "latest" else catalog.by_id(database, which)
        manifest = catalog.manifest(ref)
        found = list(proofs.of_backup(catalog, ref))
    if as_json:
        console.emit_json(views.backup_document(manifest, found))
        return
    console.emit(views.backup(manifest, found))
