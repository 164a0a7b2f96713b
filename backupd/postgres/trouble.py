"""Whether a failed restore speaks against the backup, or against the server that it was restored on."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg

from backupd.errors import PostgresError
from backupd.postgres.session import Dsn, connect

# SQLSTATEs that are the server's, the machine's or an administrator's doing, by class or in full: connection,
# concurrency, resources, intervention, system errors, and data that the disk damaged.
_CLASSES = ("08", "40", "53", "57", "58")
_CODES = frozenset({"25006", "55P03", "55006", "XX001", "XX002"})
# The same where there is no log to look it up in, as PostgreSQL says it in English. Each is the beginning of a message:
# rows, names and RAISE can hold any text, but they do not begin one like these.
_SERVER = re.compile(
    r"out of memory|out of shared memory"
    r"|could not (?:extend|write to|write|fsync|open|create|read|access) (?:\w+ )?file"
    r"|could not (?:resize|open) shared memory|could not load library|could not fork|could not write block"
    r"|temporary file size exceeds|disk full|sorry, too many clients|remaining connection slots"
    r"|canceling statement due to|terminating connection|deadlock detected|tuple concurrently updated"
    r"|cannot execute .* in a read-only transaction|the database system is|No space left on device"
    r"|permission denied to create extension|\S+ must be loaded via"
)
_PROGRAM = re.compile(
    r"pg_restore: error: (?:connection to server|could not connect|could not fork|out of memory)"
    r"|pg_restore: error: .*(?:server closed the connection|connection to server was lost|SSL connection has been)"
)
_MESSAGE = re.compile(r"(?:ERROR|FATAL|PANIC):  (.*)")
_LOGGED = re.compile(r"([0-9A-Z]{5}) (?:ERROR|FATAL|PANIC):  (.*)")


def is_of_the_server(error: PostgresError, dsn: Dsn, log: Path | None) -> bool:
    """Whether the server (or this machine) is the reason: it says so, or does not answer any more.

    `log` is the log of a scratch server of ours, whose lines begin with SQLSTATEs.
    """
    if "was killed by SIG" in error.message or error.message.startswith("cannot start"):
        return True
    if isinstance(error.__cause__, psycopg.Error) and error.__cause__.sqlstate:  # of a query of ours
        return _is_trouble(error.__cause__.sqlstate)
    messages = _first_messages(error.detail)
    if log is not None and (codes := _codes(log, messages)):
        return all(_is_trouble(code) for code in codes)
    if messages and all(_SERVER.match(message) for message in messages):
        return True
    if not messages and _PROGRAM.search(error.detail):
        return True
    try:
        connect(dsn).close()
    except PostgresError:
        return True
    return False


def _first_messages(detail: str) -> list[str]:
    """What the server says in the lines that begin an error of the program's: not in those that it quotes."""
    lines = [line for line in detail.splitlines() if line.startswith(("pg_restore: error:", "ERROR:  ", "FATAL:  "))]
    messages = (match[1] for line in lines if (match := _MESSAGE.search(line)))
    return [message for message in messages if "transaction_timeout" not in message]  # on older servers always refused


def _codes(log: Path, messages: list[str]) -> set[str]:
    """The SQLSTATEs under which the server logged these messages."""
    try:
        logged = [match for line in log.read_text(errors="replace").splitlines() if (match := _LOGGED.match(line))]
    except OSError:
        return set()
    return {match[1] for match in logged if match[2] in messages}


def _is_trouble(code: str) -> bool:
    return code.startswith(_CLASSES) or code in _CODES
