"""Every error backupd raises on purpose: what happened, to which object, what to do about it.

The class decides the exit code of the command line (docs/operations.md lists them), so that scripts can tell
a missing backup from a broken one.
"""

from __future__ import annotations

from typing import Any, ClassVar


class BackupdError(Exception):
    """An error in three parts. `message` says what happened; `detail` quotes the evidence; `hint` says what to do.

    No part may ever hold a secret: they go to logs, terminals and JSON as they are.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint

    def document(self) -> dict[str, Any]:
        """As plain values, with what was noted on its way."""
        detail = "\n".join([*filter(None, [self.detail]), *getattr(self, "__notes__", [])])
        return {"message": self.message, "detail": detail, "hint": self.hint, "exit": self.exit_code}

    def __str__(self) -> str:
        return "\n".join(part for part in (self.message, self.detail, self.hint) if part)


class ConfigError(BackupdError):
    """The command line or the configuration is wrong."""

    exit_code = 2


class NoBackupError(BackupdError):
    """No committed backup matches what was asked for."""

    exit_code = 3


class ProofError(BackupdError):
    """A restored copy differs from what the source held."""

    exit_code = 4


class StorageError(BackupdError):
    """The storage did not do what was asked, after the retries that made sense."""

    exit_code = 5


class ObjectMissingError(StorageError):
    """There is no object under this key."""


class ObjectExistsError(StorageError):
    """A create-only write found an object under its key."""


class PostgresError(BackupdError):
    """PostgreSQL, or one of its tools, failed or is not there."""

    exit_code = 6


class IntegrityError(BackupdError):
    """Wrong key, bad signature, or an object that is damaged or missing."""

    exit_code = 7


class WrongKeyError(IntegrityError):
    """None of the identities opens the object, which is as it was written."""


class RefusedError(BackupdError):
    """Refused for safety; nothing was changed."""

    exit_code = 8


class HookError(RefusedError):
    """A hook of the operator's failed: what it was to precede does not begin."""


class BusyError(BackupdError):
    """Another run holds this database."""

    exit_code = 75
