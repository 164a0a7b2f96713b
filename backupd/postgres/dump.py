"""The dump programs of one backup: which arguments make pg_dump write which stream."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from backupd.postgres.inventory import SourceTable
from backupd.postgres.names import pattern
from backupd.postgres.process import Program, Running
from backupd.postgres.session import explained
from backupd.postgres.snapshot import Source
from backupd.postgres.tools import Installation

# Both are the schema's, and stand in its archive; each data stream's program would read whole catalogs of them.
_NO_NOTES = ("--no-comments", "--no-security-labels")


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run for its output."""

    argv: tuple[str | Path, ...]
    env: Mapping[str, str]
    alone: threading.Lock | None = None  # held while it runs

    def output(self, running: Running, *, large: bool = False) -> Generator[memoryview]:
        with self.alone or nullcontext():
            yield from Program(self.argv, self.env, running, large=large).output()


class Dumper:
    """Makes the commands for one snapshot."""

    def __init__(self, client: Installation, source: Source, lock_timeout: timedelta, application: str) -> None:
        self._client = client
        self._source = source
        # The programs that dump databases set it themselves; the one that dumps roles writes dates as it finds it.
        self._env = source.dsn.program_environment(DateStyle="ISO") | {"PGAPPNAME": application}
        # Our own locks don't spare pg_dump its turn: its request can queue behind that of a migration which waits
        # for ours. Nobody would ever see that as a deadlock, so it must time out.
        self._common: tuple[str | Path, ...] = (
            client.program("pg_dump"),
            "--format=custom",
            "--compress=0",
            "--no-password",
            "--quote-all-identifiers",  # what is no keyword here may be one on a newer server
            f"--snapshot={source.snapshot}",
            f"--lock-wait-timeout={int(lock_timeout.total_seconds() * 1000)}",
            f"--dbname={source.dsn.program_argument()}",
        )

    def schema(self, *, alone: threading.Lock) -> Command:
        """All definitions. By section, since --schema-only would leave out large objects and matviews' state."""
        return self._command("--section=pre-data", "--section=post-data", alone=alone)

    def only(self, tables: Sequence[SourceTable]) -> Command:
        """The rows of these tables."""
        chosen = [f"--table={pattern(t.schema, t.name)}" for t in tables]
        return self._command("--section=data", "--strict-names", *_NO_NOTES, *chosen)

    def all_but(self, tables: Sequence[SourceTable], *, alone: threading.Lock) -> Command:
        """The rows of all other tables, the sequences and the large objects."""
        excluded = [f"--exclude-table-data={pattern(t.schema, t.name)}" for t in tables]
        with explained("the large objects could not be read"):
            row = self._source.connection.execute("select exists (select from pg_largeobject_metadata)").fetchone()
        # From 17 on, pg_dump takes a large object's comment for data.
        notes = () if row and row[0] else _NO_NOTES
        return self._command("--section=data", *notes, *excluded, alone=alone)

    def globals(self) -> Command:
        """Roles, their settings and memberships; their passwords' hashes where the user may read them."""
        with explained("the roles could not be read"):
            row = self._source.connection.execute(
                "select has_table_privilege('pg_catalog.pg_authid', 'select')"
            ).fetchone()
        argv: list[str | Path] = [
            self._client.program("pg_dumpall"),
            "--roles-only",
            "--no-password",
            "--quote-all-identifiers",
            f"--lock-wait-timeout={30_000}",
            f"--dbname={self._source.dsn.program_argument()}",
            f"--database={self._source.connection.info.dbname}",
        ]
        return Command(tuple(argv if row and row[0] else [*argv, "--no-role-passwords"]), self._env)

    def _command(self, *arguments: str, alone: threading.Lock | None = None) -> Command:
        return Command((*self._common, *arguments), self._env, alone)
