"""Programs of the operator's that run before and after a backup. docs/daemon.md describes their environment."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta

from backupd.config_models import Hooks
from backupd.errors import BackupdError, HookError
from backupd.progress import Progress

_QUOTED = 2000  # characters of what a hook wrote


@contextmanager
def around(hooks: Hooks, facts: Mapping[str, str], progress: Progress) -> Iterator[dict[str, str]]:
    """Run `before`, then the block, then `after` with what came of it.

    The block may add to the facts that `after` is told. Raises HookError if `before` fails, and the block does not
    run; a failure of `after` is a warning, for the backup exists by then.
    """
    told = dict(facts)
    if hooks.before:
        run(hooks.before, told, hooks.timeout)
    try:
        yield told
    except BaseException as error:
        message = error.message if isinstance(error, BackupdError) else type(error).__name__
        _after(hooks, {**told, "STATUS": "failed", "ERROR": message}, progress)
        raise
    _after(hooks, {**told, "STATUS": "done"}, progress)


def _after(hooks: Hooks, told: Mapping[str, str], progress: Progress) -> None:
    if hooks.after:
        try:
            run(hooks.after, told, hooks.timeout)
        except HookError as error:
            progress.warn(f"{error.message}: {error.detail}" if error.detail else error.message)


def run(command: Sequence[str], facts: Mapping[str, str], timeout: timedelta) -> None:
    """Run a program to its end, without a shell, its whole process group ended after `timeout`.

    It has our environment, and each of `facts` as BACKUPD_NAME. Raises HookError unless it exits with 0.
    """
    environ = {**os.environ, **{f"BACKUPD_{name}": value for name, value in facts.items()}}
    try:
        process = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise HookError(f"the hook {command[0]} cannot be started", detail=error.strerror or str(error)) from error
    try:
        output, _ = process.communicate(timeout=timeout.total_seconds())
    except subprocess.TimeoutExpired:
        _end(process)
        raise HookError(
            f"the hook {command[0]} took longer than {timeout.total_seconds():g} s",
            hint="Raise timeout in its hooks table, or let it do less.",
        ) from None
    except BaseException:
        _end(process)
        raise
    if process.returncode != 0:
        text = output.decode(errors="replace").strip()[-_QUOTED:]
        raise HookError(f"the hook {command[0]} exited with {process.returncode}", detail=text)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
