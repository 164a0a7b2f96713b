"""Running PostgreSQL's programs as stages of a pipeline.

Reading: the end of a program's output *is* its exit status, so a dump that failed can't be taken for a
whole one. Writing: a program that was not fed to the end is killed before it could finish cleanly.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock, Timer
from typing import Protocol

from backupd.errors import BackupdError, PostgresError
from backupd.postgres.lifetime import tied
from backupd.storage.base import Buffer

READ_SIZE = 1 << 20
_PIPE_SIZE = 1 << 20
_QUOTED_ERRORS = 5
_GRACE = 5.0  # seconds from SIGTERM to SIGKILL


def _roomy(command: Sequence[str | Path], *, feed: bool) -> list[str | Path]:
    """The command line of a program that reads or writes its end of the pipe in large pieces, where C's own buffer
    has 4 KiB: each piece wakes up the other end. By stdbuf (coreutils); without it all goes on, only slower."""
    stdbuf = shutil.which("stdbuf")
    way = [f"--{'input' if feed else 'output'}={_PIPE_SIZE}", command[0]]
    return [stdbuf, *way, *command[1:]] if stdbuf and _takes(stdbuf, *way) else [*command]


@functools.cache
def _takes(*command: str | Path) -> bool:
    """Whether the program starts like that, and has nothing to say about it: stdbuf lends it a library, which one of
    another system or C library would refuse."""
    done = subprocess.run([*command, "--version"], capture_output=True, check=False)
    return done.returncode == 0 and not done.stderr


class Killable(Protocol):
    def kill(self) -> None:
        """Make it end soon; from any thread, and harmless if it has ended."""


class Running:
    """The programs and queries that run for one backup or restore, so that all can be ended at once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._members: set[Killable] = set()
        self._stopped = False

    def add(self, member: Killable) -> None:
        with self._lock:
            self._members.add(member)
            stopped = self._stopped
        if stopped:
            member.kill()

    def remove(self, member: Killable) -> None:
        with self._lock:
            self._members.discard(member)

    def stop(self) -> None:
        """End everything, and what is still to come as well."""
        with self._lock:
            self._stopped = True
            members = list(self._members)
        for member in members:
            member.kill()

    @property
    def stopped(self) -> bool:
        return self._stopped


class Program:
    """One program, started at once, in a process group of its own (Ctrl-C is ours to handle)."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        env: Mapping[str, str],
        running: Running,
        *,
        feed: bool = False,
        output: int | None = None,
        pass_fds: Sequence[int] = (),
        forgive: Callable[[str], bool] | None = None,
        large: bool = False,
    ) -> None:
        """`output`, of a program that is fed, is an open file that takes what it writes. `forgive` is asked, with all
        that the program complained of, whether a failure is none. `large`: much will go through the pipe."""
        assert feed or output is None  # else nobody would wait for its end
        self.name = Path(argv[0]).name
        self._forgive = forgive
        self._running = running
        self._errors = os.memfd_create("stderr")  # no thread, no file on disk, no pipe that fills up
        try:
            self._process = subprocess.Popen(
                tied(
                    signal.SIGTERM, _roomy(argv, feed=feed) if large else argv
                ),  # so that no dump goes on holding locks
                env=dict(env),
                stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
                stdout=output if output is not None else subprocess.DEVNULL if feed else subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                process_group=0,
                pass_fds=pass_fds,
            )
        except OSError as error:
            os.close(self._errors)
            raise PostgresError(f"cannot start {self.name}", detail=f"{argv[0]}: {error.strerror}") from error
        self._pipe = self._process.stdin if feed else self._process.stdout
        assert self._pipe is not None
        with suppress(OSError):  # a smaller pipe is only slower (pipe-user-pages-soft)
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        running.add(self)

    def output(self) -> Iterator[memoryview]:
        """The program's output, in views of one buffer that the next read reuses; ends only if it exited with 0."""
        assert self._pipe is not None
        buffer = bytearray(READ_SIZE)
        view = memoryview(buffer)
        try:
            while size := os.readv(self._pipe.fileno(), [buffer]):
                yield view[:size]
            self._finish()
        finally:
            self.close()

    def consume(self, chunks: Iterable[Buffer], *, all_of_it: bool = True) -> None:
        """Feed the program to its end. If `chunks` raises, the program is killed before it sees an end.

        A program that has read what it needs may end well before that, unless it must take `all_of_it`.
        """
        assert self._pipe is not None
        try:
            try:
                for chunk in chunks:
                    self._write(memoryview(chunk))
            except BrokenPipeError:
                pass  # it ended early: its exit status says why
            else:
                self._pipe.close()
                self._finish()
                return
            self._finish()
            if all_of_it:
                raise PostgresError(f"{self.name} stopped reading before the end", detail=self._quote())
        finally:
            self.close()

    def wait(self) -> None:
        """For a program whose output does not matter: wait until it is done, well or not."""
        for _ in self.output():
            pass

    def kill(self) -> None:
        """Ask it to end: PostgreSQL's programs cancel what they have running on the server, and go. A server that
        answers nothing would keep them, so they are not asked for long."""
        self._signal(signal.SIGTERM)
        if self._process.poll() is None:
            insist = Timer(_GRACE, self._signal, [signal.SIGKILL])
            insist.daemon = True
            insist.start()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def close(self) -> None:
        """End the program if it still runs, and reap it."""
        if self._errors < 0:
            return
        self.kill()
        if self._pipe is not None:
            with suppress(BrokenPipeError):
                self._pipe.close()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        os.close(self._errors)
        self._errors = -1
        self._running.remove(self)

    def _write(self, view: memoryview) -> None:
        assert self._pipe is not None
        while view:
            view = view[os.write(self._pipe.fileno(), view) :]

    def _finish(self) -> None:
        code = self._process.wait()
        if code != 0 and not (code > 0 and self._forgive and self._forgive(self._complaints())):
            raise self._failure(code)

    def _failure(self, code: int) -> BackupdError:
        if code < 0 and self._running.stopped:
            return PostgresError(f"{self.name} was stopped", detail="Another part of the same run failed first.")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit status {code}"
        text = self._quote()
        return PostgresError(f"{self.name} {how}", detail=text, hint=_hint(text, self.name))

    def _complaints(self) -> str:
        size = os.fstat(self._errors).st_size
        return os.pread(self._errors, min(size, 16 << 20), 0).decode("utf-8", "replace")

    def _quote(self) -> str:
        """The first errors that the program wrote, with what belongs to them."""
        lines = _without_secrets(self._complaints()).splitlines()
        starts = [i for i, line in enumerate(lines) if "error:" in line or "ERROR:" in line]
        if not starts:
            return "\n".join(lines[-_QUOTED_ERRORS * 2 :])
        end = starts[_QUOTED_ERRORS] if len(starts) > _QUOTED_ERRORS else len(lines)
        return "\n".join(line[:500] for line in lines[starts[0] : min(end, starts[0] + 40)])


# Commands that hold passwords of other servers, which pg_restore quotes when they fail: up to its next message.
_TELLING = re.compile(
    r"(Command was: [^']*?\b(?:SUBSCRIPTION|USER MAPPING|SERVER|ROLE)\b[^']*)'.*?(?=\npg_[a-z]+: |\Z)", re.DOTALL
)


def _without_secrets(text: str) -> str:
    return _TELLING.sub(r"\1'…", text)


_HINTS = (
    ("out of shared memory", "Raise max_locks_per_transaction on this server (it needs a restart)."),
    ("No space left", "The server's disk is full. Make room there and run it again."),
    ("could not extend file", "The server's disk is full. Make room there and run it again."),
    ("too many clients", "The server has no connection to spare: end some sessions, or use fewer --jobs."),
    ("remaining connection slots", "The server has no connection to spare: end some sessions, or use fewer --jobs."),
    ("server closed the connection", "The server went away. Run it again when it is back."),
    ("terminating connection", "Somebody ended the session, or the server went away. Run it again."),
    ("Connection refused", "The server is not reachable. Run it again when it is back."),
)
_DUMP_HINTS = (
    (
        "statement timeout",  # pg_dump --lock-wait-timeout; it sets no other
        "Another session holds a table exclusively, or waits to. Try again later, or raise lock_wait_timeout.",
    ),
    (
        "lock timeout",
        "Another session holds a table exclusively. Try again when it is done, or raise lock_wait_timeout.",
    ),
    (
        "conflict with recovery",
        "The standby cancelled the dump. Raise max_standby_streaming_delay or set hot_standby_feedback.",
    ),
    (
        "large object",
        "Large objects have grants of their own: GRANT SELECT ON LARGE OBJECT … TO …, or back up as their owner.",
    ),
    (
        "permission denied",
        "Grant the user what is missing: GRANT pg_read_all_data TO … reads everything (14 and later).",
    ),
    ("row-level security", "The user needs BYPASSRLS, or must own the table: a dump must see every row."),
)
_RESTORE_HINTS = (
    (
        "permission denied",
        "Restore as a superuser, or make the user a member of the owners; or leave owners and grants out: --no-owner",
    ),
    ("must be ", "Restore as a superuser, or leave what only one can restore out: --skip-privileged"),
    (
        "ERROR:",
        "Mend what the first error names, or restore parts (--table); backupd export gives files to do it by hand.",
    ),
)


def _hint(text: str, program: str) -> str:
    hints = (*_HINTS, *(_RESTORE_HINTS if program == "pg_restore" else _DUMP_HINTS))
    return next((hint for sign, hint in hints if sign in text), "")
