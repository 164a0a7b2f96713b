"""Starts backupd hundreds of times without importing it anew each time: a process that has imported it once forks one
for every run. Each is a process of its own, with its own arguments, environment, folder, output and exit status.

`python -m tests.forker` reads requests from stdin, a line of JSON each, and answers each on stdout with the process's
id when it runs and its exit status when it has ended.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Timer

ROOT = Path(__file__).parents[1]
# What Python and its libraries read once, at their start: who sets these must not come here.
AT_START = ("PYTHON", "LC_", "LANG", "SSL", "OPENSSL", "LD_")


class Forker:
    """One forking process, started when first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def fits(self, environ: Mapping[str, str]) -> bool:
        """Whether a run with these variables is the same here as in a new process."""
        names = {name for name in {*environ, *os.environ} if name.startswith(AT_START)}
        return all(environ.get(name) == os.environ.get(name) for name in names)

    def run(
        self, arguments: Sequence[str], environ: Mapping[str, str], folder: Path, timeout: float
    ) -> tuple[int, bytes, bytes]:
        """Exit status, stdout and stderr of `backupd ARGUMENTS`. subprocess.TimeoutExpired after `timeout` seconds."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            request = {
                "arguments": list(arguments),
                "environ": dict(environ),
                "folder": str(folder),
                "output": [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (out, err)],
            }
            code = self._ask(json.dumps(request), timeout)
            out.seek(0)
            err.seek(0)
            if code is None:
                raise subprocess.TimeoutExpired(list(arguments), timeout, out.read(), err.read())
            return code, out.read(), err.read()

    def _ask(self, request: str, timeout: float) -> int | None:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(request + "\n")
        process.stdin.flush()
        pid, late = int(process.stdout.readline()), []

        def end() -> None:
            late.append(pid)
            os.kill(pid, 9)

        timer = Timer(timeout, end)
        timer.start()
        try:
            code = int(process.stdout.readline())
        finally:
            timer.cancel()
        return None if late else code

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forker"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for whoever tests: its end is the end of our input
            )
            atexit.register(self._close, self._process)
        return self._process

    @staticmethod
    def _close(process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


FORKER = Forker()


def serve() -> None:
    import boto3  # noqa: F401  (imported by backupd itself only where the storage is S3)

    import backupd

    for module in pkgutil.walk_packages(backupd.__path__, "backupd."):
        if module.name != "backupd.__main__":
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            become(**json.loads(line))
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def become(*, arguments: list[str], environ: dict[str, str], folder: str, output: list[str]) -> None:
    """Be the backupd that was asked for, until it exits."""
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    for number, path in enumerate(output, 1):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.close(nowhere)
    sys.stdin = os.fdopen(0, closefd=False)
    os.environ.clear()
    os.environ.update(environ)
    time.tzset()
    os.chdir(folder)
    sys.argv = ["backupd", *arguments]
    code = 1
    try:
        from backupd.__main__ import main

        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:  # noqa: BLE001  (what Python does with it at its end)
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
