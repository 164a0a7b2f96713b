"""Programs of the operator's that run before and after a backup. docs/daemon.md describes their environment."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta

from backupd.config_models import Hooks
from backupd.errors import BackupdError, HookError
from backupd.progress import Progress

_QUOTED = 2000  # bytes of what a hook wrote


class Around:
    """`before` and `after` of one backup, as a context: `begin` is called in it when the backup is about to begin, and
    no other host is at it. Only then is there something to come `after`."""

    def __init__(self, hooks: Hooks, facts: Mapping[str, str], progress: Progress) -> None:
        self._hooks = hooks
        self._progress = progress
        self._began = False
        self.facts = dict(facts)  # what the hooks are told; to be added to

    def begin(self) -> None:
        """Run `before`. Raises HookError if it fails: then there is to be no backup."""
        if self._hooks.before:
            run(self._hooks.before, self.facts, self._hooks.timeout)
        self._began = True

    def __enter__(self) -> Around:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Run `after`. That it fails is a warning: what became of the backup is decided by then."""
        if not (self._began and self._hooks.after):
            return
        outcome = {"STATUS": "done"}
        if error is not None:
            outcome = {
                "STATUS": "failed",
                "ERROR": error.message if isinstance(error, BackupdError) else type(error).__name__,
            }
        try:
            run(self._hooks.after, self.facts | outcome, self._hooks.timeout)
        except HookError as failure:
            self._progress.warn(": ".join(filter(None, [failure.message, failure.detail])))


def run(command: Sequence[str], facts: Mapping[str, str], timeout: timedelta) -> None:
    """Run a program to its end, without a shell, its whole process group ended after `timeout`.

    It has our environment, and each of `facts` as BACKUPD_NAME. Raises HookError unless it exits with 0.
    """
    environ = {**os.environ, **{f"BACKUPD_{name}": value for name, value in facts.items()}}
    with os.fdopen(os.memfd_create("hook"), "w+b") as output:  # no pipe: what it leaves running may keep that open
        try:
            process = subprocess.Popen(
                command, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        except OSError as error:
            raise HookError(
                f"the hook {command[0]} cannot be started",
                detail=error.strerror or str(error),
                hint="It is a program and its arguments, that no shell reads: is it there, and may we run it?",
            ) from error
        try:
            if not _ends(process, timeout):
                raise HookError(  # noqa: TRY301
                    f"the hook {command[0]} took longer than {timeout.total_seconds():g} s",
                    hint="Raise timeout in its hooks table, or let it do less.",
                )
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            process.wait()
        if process.returncode != 0:
            output.seek(max(0, output.seek(0, os.SEEK_END) - _QUOTED))
            raise HookError(
                f"the hook {command[0]} exited with {process.returncode}",
                detail=output.read().decode(errors="replace").strip(),
                hint="Mend what it says, or take it out of the hooks table.",
            )


def _ends(process: subprocess.Popen[bytes], timeout: timedelta) -> bool:
    """Wait for the program itself, where a signal that asks us to end gets through (see signals.py)."""
    ended = os.pidfd_open(process.pid)
    try:
        return bool(select.select([ended], [], [], timeout.total_seconds())[0])
    finally:
        os.close(ended)
