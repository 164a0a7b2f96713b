"""Files that hold keys and passwords: read only if nobody else can read them, created for their owner alone."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path

from backupd.errors import ConfigError

CONTAINER_SECRETS = Path("/run/secrets")
_OTHERS_READ = stat.S_IRGRP | stat.S_IROTH
_LIMIT = 1 << 20  # bytes; a key or a password is far smaller, and /dev/zero is larger


def read_private(path: Path, environ: Mapping[str, str]) -> str:
    """The text of a file that holds a secret.

    ConfigError when it is missing, is not text, or can be read by others (see `refuse_readable`).
    """
    try:
        with path.open("rb") as file:
            refuse_readable(path, os.fstat(file.fileno()).st_mode, environ)
            content = file.read(_LIMIT + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", hint="create it, or correct the path") from None
    except OSError as error:
        hint = f"let the user who runs backupd read it: ls -l {shlex.quote(str(path))}"
        raise ConfigError(f"{path} cannot be read", detail=error.strerror or "", hint=hint) from None
    if len(content) > _LIMIT:
        raise ConfigError(f"{path} is larger than a key or a password can be", hint="correct the path")
    try:
        return content.decode()
    except UnicodeDecodeError:
        pass  # its message quotes the bytes
    raise ConfigError(f"{path} is not UTF-8 text", hint="correct the path, or write the file anew")


def refuse_readable(path: Path, mode: int, environ: Mapping[str, str]) -> None:
    """ConfigError when its group or others can read a file with this mode.

    Where the system hands secrets over itself, it also looks after who sees them, and files may be 0444:
    the folder that systemd names in $CREDENTIALS_DIRECTORY, and /run/secrets of containers.
    """
    if not mode & _OTHERS_READ or _handed_over(path, environ):
        return
    raise ConfigError(
        f"{path} holds a secret, and others can read it (mode {stat.S_IMODE(mode):04o})",
        hint=f"run: chmod 600 {shlex.quote(str(path))}",
    )


def _handed_over(path: Path, environ: Mapping[str, str]) -> bool:
    folders = [CONTAINER_SECRETS]
    if environ.get("CREDENTIALS_DIRECTORY", "").startswith("/"):
        folders.append(Path(environ["CREDENTIALS_DIRECTORY"]))
    # resolved, so that neither ".." nor a link leads out of the folder
    return any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)


def create_file(path: Path, text: str, mode: int) -> None:
    """Write a new file with exactly this mode, synced to disk. FileExistsError if there is one already."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
    except OSError:
        path.unlink()
        raise
