"""Whether a failed restore speaks against the backup, or against the server that it was restored on."""

from __future__ import annotations

import re

from backupd.errors import PostgresError
from backupd.postgres.session import Dsn, connect

# What PostgreSQL and its programs say when the machine, and not the statement, is at fault: SQLSTATE classes 08, 53,
# 57 and 58 in English. pg_restore tells no SQLSTATE.
_SIGNS = re.compile(
    r"No space left|could not (?:extend|write|fsync|open|create|read)\b.*(?:file|segment|directory)"
    r"|[Dd]isk quota exceeded|out of memory|out of shared memory|Cannot allocate memory|too many clients"
    r"|remaining connection slots|server closed the connection|terminating connection|Connection refused"
    r"|connection to server .* failed|the database system is|could not fork|No such file or directory"
    r"|cannot start pg_restore|was killed by SIG|the connection was lost|Input/output error|Read-only file system"
    r"|could not access file \"\$libdir|could not load library|must be loaded via \"?shared_preload_libraries"
)

# What pg_restore quotes beside a message: rows and statements of the backup, which may say anything.
_QUOTES = re.compile(r"(?:DETAIL|HINT|QUERY|CONTEXT|STATEMENT|LINE \d+|Command was):")


def is_of_the_server(error: PostgresError, dsn: Dsn) -> bool:
    """Whether the server (or this machine) is the reason: it says so, or does not answer any more."""
    if _SIGNS.search(_messages(error.detail)) or _SIGNS.search(error.message):
        return True
    try:
        connect(dsn).close()
    except PostgresError:
        return True
    return False


def _messages(detail: str) -> str:
    """Without what is quoted, from its label to the next message of pg_restore's."""
    kept, quoted = [], False
    for line in detail.splitlines():
        quoted = _QUOTES.match(line) is not None or (quoted and not line.startswith("pg_restore: "))
        if not quoted:
            kept.append(line)
    return "\n".join(kept)
