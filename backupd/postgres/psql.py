"""What psql is given to run: archives as SQL, and statements as lines that are safe to paste into a terminal."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable

from psycopg import sql

from backupd.manifest import DatabaseProperties
from backupd.postgres import properties
from backupd.postgres.process import Program, Running
from backupd.postgres.session import Dsn
from backupd.postgres.tools import Installation
from backupd.storage.base import Buffer

# pg_restore 17 and later begin with this, and older servers don't know it.
SETTING, KNOWS_SETTING = b"SET transaction_timeout = 0;", 17
_HEAD = 4096  # bytes in which everything stands that pg_restore puts before the archive's own statements

_NAME = "\0"  # where the database's name belongs: no text of PostgreSQL's has such a character


def write_section(
    client: Installation, section: str, archive: Iterable[Buffer], output: int, server_major: int, running: Running
) -> None:
    """Write one section of an archive as SQL to the end of an open file, for servers from `server_major` on."""
    start = os.lseek(output, 0, os.SEEK_END)
    argv = (client.program("pg_restore"), "--format=custom", f"--section={section}", "--file=-")
    Program(argv, Dsn("").program_environment(), running, feed=True, output=output).consume(archive)
    if client.major >= KNOWS_SETTING > server_major:
        at = os.pread(output, _HEAD, start).find(b"\n" + SETTING + b"\n")
        if at >= 0:
            # pg_restore left the file open for appending only, for us too.
            fcntl.fcntl(output, fcntl.F_SETFL, fcntl.fcntl(output, fcntl.F_GETFL) & ~os.O_APPEND)
            os.pwrite(output, b"-- ", start + at + 1)  # a comment, as long as what it was


def create_database(wanted: DatabaseProperties, server_major: int) -> list[str]:
    """Lines that create the database named in psql's variable `target`, on servers from `server_major` on."""
    lines = [_line(properties.creation(sql.SQL(_NAME), wanted, max(server_major, 15)))]
    if server_major >= 15:
        return lines
    older = _line(properties.creation(sql.SQL(_NAME), wanted, server_major))
    knows = "select current_setting('server_version_num')::int >= 150000 as knows_providers \\gset"
    return [knows, "\\if :knows_providers", *lines, "\\else", older, "\\endif"]


def set_properties(wanted: DatabaseProperties) -> list[str]:
    """Lines that give that database all that dumps leave out: owner, grants, comment, settings, connection limit."""
    return [_line(query) for _, query in properties.property_statements(sql.SQL(_NAME), wanted, owners=True)]


def _line(query: sql.Composed) -> str:
    """A statement as one line. Names and texts of the source may hold what steers a terminal, or would end a
    here-document: such a statement goes encoded, and the server itself decodes it."""
    text = query.as_string(None)
    if text.replace(_NAME, "").isprintable():
        return text.replace(_NAME, ':"target"') + ";"
    template = text.replace("%", "%%").replace(_NAME, "%I").encode().hex()
    return f"select format(convert_from(decode('{template}', 'hex'), 'UTF8'), :'target') \\gexec"
