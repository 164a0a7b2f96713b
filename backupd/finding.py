"""What a check finds: a line each, with its remedy."""

from __future__ import annotations

from dataclasses import dataclass

from backupd.errors import BackupdError


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    status: str  # ok, warning, failed
    detail: str
    hint: str = ""
    exit_code: int = 0


def failed(name: str, error: BackupdError) -> Finding:
    detail = f"{error.message}: {error.detail}" if error.detail else error.message
    return Finding(name, "failed", detail.replace("\n", "; "), error.hint, error.exit_code)
