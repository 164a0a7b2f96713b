"""pg_restore for one target database: any error fails, whichever major the client has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from backupd.postgres.edit import Edit
from backupd.postgres.process import Program, Running
from backupd.postgres.session import Dsn
from backupd.postgres.tools import Installation
from backupd.storage.base import Buffer

# Safe in a database that nobody uses yet: the last steps of a restore commit durably, and all before it with them.
_SETTINGS = {"synchronous_commit": "off", "default_transaction_read_only": "off"}

# pg_restore 17 and later set this on any server, and older ones don't know it. It is the only error let pass.
_KNOWS_SETTING = 17
# All that may stand in the program's messages then, to the letter: what a function in the archive raises can hold
# any text, but never without lines of its own before or after. Its parallel workers write at the same time: a
# message is written in one piece, but what stands before it is not, and may come before another's.
_BEFORE = r"(?:pg_restore:|error:|warning:|while [A-Z ]+:\n| )*"
_FORGIVEN = re.compile(
    rf"(?:{_BEFORE}"
    r"(?:could not execute query: [^\s:]+:  [^\n]*\"transaction_timeout\"[^\n]*\n"
    r"Command was: SET transaction_timeout = 0;\n+"
    r"|errors ignored on restore: \d+\n))+"
)


@dataclass(frozen=True, slots=True)
class Restorer:
    client: Installation
    dsn: Dsn
    server_major: int
    owners: bool
    tablespaces: bool
    running: Running
    edit: Edit

    def schema(self, section: str, archive: int, *, jobs: int, again: bool = False) -> None:
        """Restore a section of the schema archive, an open file that pg_restore (and its workers) open anew. `again`
        drops first what is there of it."""
        options = [f"--jobs={jobs}"] if jobs > 1 else []
        options += ["--clean", "--if-exists"] if again else []
        program = self._start(f"--section={section}", *options, f"/dev/fd/{archive}", pass_fds=(archive,))
        program.wait()

    def data(
        self,
        chunks: Iterable[Buffer],
        what: str,
        *,
        fresh: frozenset[tuple[str, str]] = frozenset(),
        large: bool = False,
    ) -> None:
        """Restore one data archive as it arrives; of parts of it, no more is read than they need. `fresh`: see Edit;
        `large`: see Program."""
        parts = self.edit.selection is not None
        edited = self.edit.stream(chunks, what, fresh)
        self._start("--section=data", feed=True, large=large).consume(edited, all_of_it=not parts)

    def _start(
        self, *arguments: str, feed: bool = False, large: bool = False, pass_fds: tuple[int, ...] = ()
    ) -> Program:
        lenient = self.client.major >= _KNOWS_SETTING > self.server_major
        return Program(
            [
                self.client.program("pg_restore"),
                "--format=custom",
                "--no-password",
                *([] if lenient else ["--exit-on-error"]),
                *([] if self.owners else ["--no-owner", "--no-acl"]),
                *([] if self.tablespaces else ["--no-tablespaces"]),
                f"--dbname={self.dsn.program_argument()}",
                *arguments,
            ],
            self.dsn.program_environment(**_SETTINGS),
            self.running,
            feed=feed,
            large=large,
            pass_fds=pass_fds,
            forgive=_only_the_setting if lenient else None,
        )


def _only_the_setting(errors: str) -> bool:
    """Whether all that pg_restore complained of is the setting that the older server does not know.

    Its own count of ignored errors is no help: it leaves out those of parallel workers when they connect.
    """
    return _FORGIVEN.fullmatch(errors) is not None
