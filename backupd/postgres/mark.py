"""How far a restore into a database has come, kept where it can't get lost from it: in the database's own comment.

The comment is replaced by the original's when the restore is complete. Until then it tells `restore --resume` what need
not be loaded again, and everybody else that the database is not whole.
"""

from __future__ import annotations

import json
import shlex
import threading
from contextlib import closing
from dataclasses import dataclass, replace

from psycopg import sql

from backupd.manifest import id_second
from backupd.postgres.session import Dsn, connect, explained

_BEGINNING = "Unfinished restore by backupd; backupd restore --resume goes on with it. "


@dataclass(frozen=True, slots=True)
class Mark:
    """An unfinished restore. Holds no secret: everybody who can connect can read it."""

    database: str  # in the configuration
    backup: str  # its ID
    options: str  # what else decides what the copy will be; another restore must not go on with it
    named: bool = False  # the operator chose the database's name: only who names it again goes on with it
    done: frozenset[str] = frozenset()  # data streams that were loaded and counted
    tables: bool = False  # they were all created
    loaded: bool = False  # all rows are there; what may be half-way are indexes and constraints

    def way_on(self, name: str) -> str:
        """The options that go on with it, in the database of this name; beside those it was begun with."""
        return f"--at {self.backup}{f' --into {shlex.quote(name)}' if self.named else ''} --resume"

    def text(self) -> str:
        document = {
            "database": self.database,
            "backup": self.backup,
            "options": self.options,
            "named": self.named,
            "done": sorted(self.done),
            "tables": self.tables,
            "loaded": self.loaded,
        }
        return _BEGINNING + json.dumps(document)


def is_mark(comment: str | None) -> bool:
    """Whether the database that has this comment is not whole."""
    return comment is not None and comment.startswith(_BEGINNING)


def parse(comment: str | None) -> Mark | None:
    """The mark in a database's comment; None if that is any other comment."""
    if comment is None or not is_mark(comment):
        return None
    try:
        found = json.loads(comment.removeprefix(_BEGINNING))
        if id_second(str(found["backup"])) is None or not str(found["options"]).isprintable():
            return None
        return Mark(
            database=str(found["database"]),
            backup=str(found["backup"]),
            options=str(found["options"]),
            named=bool(found["named"]),
            done=frozenset(map(str, found["done"])),
            tables=bool(found["tables"]),
            loaded=bool(found["loaded"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def unfinished(dsn: Dsn) -> dict[str, Mark]:
    """Every database on the server in which this user began a restore and did not finish it.

    Only databases that belong to this very user: anybody can write such a comment on a database of his own, and have
    his triggers wait there for who goes on with it.
    """
    with closing(connect(dsn)) as connection, explained("the server's databases could not be listed"):
        rows = connection.execute(
            "select datname, shobj_description(d.oid, 'pg_database') from pg_database d"
            " join pg_roles r on r.oid = d.datdba where r.rolname = current_user order by datname"
        ).fetchall()
    return {str(name): mark for name, comment in rows if (mark := parse(comment)) is not None}


class Marker:
    """Keeps the mark of one database; `note` may be called from several threads."""

    def __init__(self, dsn: Dsn, name: str, mark: Mark) -> None:
        self._dsn = dsn
        self._name = name
        self._lock = threading.Lock()
        self.mark = mark

    def note(self, *, done: str | None = None, tables: bool = False, loaded: bool = False) -> None:
        """Write down what is complete. Commits durably, and so does everything that was committed before it."""
        with self._lock:
            added = {done} if done is not None else set()
            self.mark = replace(
                self.mark,
                done=self.mark.done | added,
                tables=self.mark.tables or tables,
                loaded=self.mark.loaded or loaded,
            )
            self._write(self.mark.text())

    def _write(self, text: str) -> None:
        query = sql.SQL("comment on database {} is {}").format(sql.Identifier(self._name), sql.Literal(text))
        with (
            closing(connect(self._dsn, settings={"synchronous_commit": "on"})) as connection,
            explained(f"the state of {self._name} could not be written down"),
        ):
            connection.execute(query)
