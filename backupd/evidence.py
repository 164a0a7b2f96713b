"""What an auditor is shown: which backups were proven to restore, when and how, from checked signatures only."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from backupd import proofs, times
from backupd.catalog import BackupRef, Catalog
from backupd.errors import BackupdError, IntegrityError, NoBackupError
from backupd.proof import Proof
from backupd.proofs import ProofRef


@dataclass(frozen=True, slots=True)
class Entry:
    """A proof whose signature holds, and its backup as far as that is still there."""

    ref: ProofRef
    proof: Proof
    backup: str  # "as proven", "deleted since", or why it is not believed


@dataclass(frozen=True, slots=True)
class Evidence:
    database: str
    repository: str
    since: datetime | None
    made_at: datetime
    signers: tuple[str, ...]  # whose signatures count
    entries: tuple[Entry, ...]  # oldest first
    refused: tuple[tuple[str, str], ...]  # a proof's key, and why it does not count
    unproven: tuple[BackupRef, ...]  # backups of that time without any proof that counts

    def document(self) -> dict[str, Any]:
        return {
            "database": self.database,
            "repository": self.repository,
            "since": times.iso(self.since) if self.since else None,
            "made_at": times.iso(self.made_at),
            "trusted_signers": self.signers,
            "verdicts": dict(self._verdicts()),
            "proofs": [{"key": e.ref.key, "backup": e.backup, **e.proof.document()} for e in self.entries],
            "not_counted": [{"key": key, "reason": reason} for key, reason in self.refused],
            "unproven": [ref.id for ref in self.unproven],
        }

    def _verdicts(self) -> Counter[str]:
        return Counter(e.proof.status for e in self.entries if not e.proof.rehearsal)

    def markdown(self) -> str:
        """The report. Every number in it is of a proof whose signature was checked to make it."""
        verdicts = self._verdicts()
        span = f"since {times.iso(self.since)}" if self.since else "of all time"
        passed = [e.proof for e in self.entries if e.proof.status == "passed" and not e.proof.rehearsal]
        longest = max((proof.phases.get("restore", 0.0) for proof in passed), default=None)
        lines = [
            f"# Restore tests of {_cell(self.database)}",
            "",
            f"Made by backupd at {_whole(self.made_at)} from {_cell(self.repository)}: test restores {span}.",
            "Each line rests on a signature that was checked to make this report; signatures by these keys count:",
            "",
            *(f"- `{signer}`" for signer in self.signers),
            "",
            "## Summary",
            "",
            f"- passed: {verdicts['passed']}",
            f"- failed: {verdicts['failed']}",
            f"- inconclusive, as the place to restore into failed, not the backup: {verdicts['inconclusive']}",
            f"- newest backup proven to restore: {max((times.iso(p.taken_at) for p in passed), default='none')}",
            f"- longest restore of those that passed: {f'{longest:.1f} s' if longest is not None else 'none'}",
            f"- backups of this time without a proof: {len(self.unproven)}",
            f"- proofs that do not count: {len(self.refused)}",
            "",
            "## Restore tests",
            "",
            f"| {' | '.join(_COLUMNS)} |",
            f"|{' --- |' * len(_COLUMNS)}",
            *(_row(entry) for entry in self.entries),
        ]
        return "\n".join([*lines, *self._failures(), *self._aside(), *_BY_HAND])

    def _failures(self) -> list[str]:
        lines: list[str] = []
        for entry in self.entries:
            proof = entry.proof
            if proof.status == "passed" and not any(check.accepted for check in proof.checks):
                continue
            lines += ["", f"### {_whole(proof.finished_at)}: {_cell(proof.id)}, {proof.status}", ""]
            lines += [f"- {_cell(proof.reason)}"] if proof.reason else []
            for check in proof.checks:
                if check.status == "failed" or check.accepted:
                    lines.append(f"- {check.status}: {_cell(check.name)}: {_cell(check.detail)}")
                    lines += [f"  - {_cell(item)}" for item in check.items[:50]]
        return ["", "## What failed, was inconclusive, or was accepted", *lines] if lines else []

    def _aside(self) -> list[str]:
        lines = []
        if self.unproven:
            lines += ["", "## Backups without a proof", "", *(f"- {ref.id}" for ref in self.unproven)]
        if self.refused:
            lines += ["", "## Not counted", "", *(f"- {_cell(key)}: {_cell(why)}" for key, why in self.refused)]
        return lines


_COLUMNS = (
    "tested at",
    "backup",
    "data as of",
    "verdict",
    "tables",
    "rows",
    "compared",
    "server",
    "restore",
    "on",
    "the backup now",
)
_BY_HAND = (
    "",
    "## Checking it by hand",
    "",
    "Every proof is an object in the repository, `DATABASE/proofs/ID/TIME-VERDICT.json`, with its signature beside it:",
    "",
    "    minisign -V -P SIGNER -m TIME-VERDICT.json -x TIME-VERDICT.json.minisig",
)


def _cell(text: str) -> str:
    """Text that stays in its cell, whatever is in it."""
    flat = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in flat)


def _whole(moment: datetime) -> str:
    return times.iso(moment.replace(microsecond=0))


def _row(entry: Entry) -> str:
    p = entry.proof
    cells = (
        _whole(p.finished_at),
        p.id,
        _whole(p.taken_at),
        p.status + (" (upgrade rehearsal)" if p.rehearsal else ""),
        str(p.tables_compared),
        str(p.rows_compared),
        {"off": "nothing", "rows": "rows, objects", "content": "every value, objects"}[p.level],
        p.scratch.server_version if p.scratch else "none",
        f"{p.phases.get('restore', 0.0):.1f} s",
        _cell(p.host),
        _cell(entry.backup),
    )
    return f"| {' | '.join(cells)} |"


def collect(catalog: Catalog, database: str, since: datetime | None) -> Evidence:
    """Read and check everything. Raises NoBackupError where the repository knows nothing of the database."""
    known = {ref.id: ref for ref in catalog.backups(database)}
    refs = sorted([*proofs.refs(catalog, database), *proofs.refs(catalog, database, rehearsal=True)])
    if not known and not refs:
        raise NoBackupError(f"there is no backup of {database}", detail=catalog.storage.url)
    entries: list[Entry] = []
    refused: list[tuple[str, str]] = []
    backups: dict[str, str] = {}
    for ref in refs:
        if since is not None and ref.at < since.replace(microsecond=0):
            continue
        try:
            proof = proofs.read(catalog, ref)
        except IntegrityError as error:
            refused.append((ref.key, error.message))
            continue
        if ref.backup not in backups:
            backups[ref.backup] = _digest(catalog, known.get(ref.backup))
        entries.append(Entry(ref, proof, _state(proof, backups[ref.backup])))
    proven = {entry.proof.id for entry in entries if entry.proof.status != "inconclusive" and not entry.proof.rehearsal}
    unproven = [ref for ref in known.values() if ref.id not in proven and (since is None or ref.second >= since)]
    return Evidence(
        database=database,
        repository=catalog.storage.url,
        since=since,
        made_at=times.now(),
        signers=tuple(map(str, catalog.trusted)),
        entries=tuple(entries),
        refused=tuple(refused),
        unproven=tuple(sorted(unproven)),
    )


def _digest(catalog: Catalog, ref: BackupRef | None) -> str:
    """The hash of a backup's manifest, or in words why there is none."""
    if ref is None:
        return "deleted since"
    try:
        _, data = catalog.signed_manifest(ref)
    except NoBackupError:
        return "deleted since"
    except BackupdError as error:
        return f"not believed: {error.message}"
    return hashlib.sha256(data).hexdigest()


def _state(proof: Proof, digest: str) -> str:
    if digest == proof.manifest_sha256:
        return "as proven"
    return digest if " " in digest else "another manifest than the one that was proven"
