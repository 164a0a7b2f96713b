"""What one test restore found: the record that is stored, signed, beside its backup. docs/format.md describes each key.

A reader ignores keys that it does not know, and refuses a newer format version by name.
"""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backupd.errors import IntegrityError
from backupd.manifest import Moment, Sha256, Size

FORMAT = 1
Status = Literal["passed", "failed", "skipped"]
Verdict = Literal["passed", "failed", "inconclusive"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Check(_Record):
    """One question that was asked of the copy."""

    name: str  # "rows", "indexes", "check: orders of the last day"
    status: Status
    detail: str  # what was compared, or how it differs, or why it was not compared
    items: tuple[str, ...] = ()  # each difference: "index public.orders_idx: missing"
    # The same with the texts that differ, for whoever looks on. Never stored: a proof is not encrypted.
    shown: tuple[str, ...] = Field(default=(), exclude=True, repr=False)
    accepted: bool = False  # an anomaly that the operator declared to be meant


class Scratch(_Record):
    """Where the backup was restored."""

    kind: Literal["ephemeral", "server"]
    server_version: str  # "17.2"
    server_major: int


class Proof(_Record):
    format: int = FORMAT
    repository: str  # the id in backupd.json
    database: str  # the key in the configuration
    id: str  # the backup
    manifest_sha256: Sha256  # of the backup's manifest as it is stored: a proof is of this very backup
    taken_at: Moment  # the backup's snapshot
    started_at: Moment
    finished_at: Moment
    host: str
    backupd_version: str
    source_version: str  # "15.18"
    scratch: Scratch | None  # None: it came to nothing before there was one
    rehearsal: bool = False  # restored into another major version than the backup's, to rehearse an upgrade
    level: Literal["off", "rows", "content"]
    status: Verdict
    reason: str = ""  # why it is inconclusive
    phases: dict[str, float] = {}  # seconds: scratch, restore, compare, checks
    tables_compared: Size = 0
    rows_compared: Size = 0
    checks: tuple[Check, ...] = ()

    @property
    def seconds(self) -> float:
        return (self.finished_at - self.started_at).total_seconds()

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if check.status == "failed"]

    def encode(self) -> bytes:
        """The proof's JSON, as it is stored and signed."""
        return (json.dumps(self.document(), ensure_ascii=False, indent=1) + "\n").encode()

    def document(self) -> dict[str, object]:
        """As `verify --json` prints it."""
        return {**self.model_dump(mode="json"), "seconds": round(self.seconds, 3)}


def decode(data: bytes, where: str) -> Proof:
    """Read a proof whose signature was checked. Raises IntegrityError naming `where`."""
    try:
        raw = json.loads(data)
        version = raw["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"the proof {where} is not readable", detail=f"{type(error).__name__}: {error}") from error
    if not isinstance(version, int) or version > FORMAT:
        raise IntegrityError(
            f"the proof {where} has format version {version}, and this backupd reads up to {FORMAT}",
            hint="Use a newer backupd.",
        )
    try:
        return Proof.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        detail = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise IntegrityError(f"the proof {where} is not readable", detail=detail) from error
