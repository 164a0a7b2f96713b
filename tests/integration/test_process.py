"""What PostgreSQL's programs say when they fail, as backupd tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from backupd.errors import PostgresError
from backupd.postgres.process import Program, Running

SECRET = "pg_restore: error: could not execute query: ERROR:  no\nCommand was: {}\n\npg_restore: error: another\n"


@pytest.mark.parametrize(
    "command",
    [
        """CREATE SUBSCRIPTION "s" CONNECTION 'host=h\n password=TOPSECRET' PUBLICATION "p" WITH (connect = false);""",
        """CREATE USER MAPPING FOR "u" SERVER "s" OPTIONS (\n    "user" 'x',\n    "password" 'a''TOPSECRET'\n);""",
        """ALTER ROLE "r" WITH PASSWORD 'TOPSECRET';""",
    ],
)
def test_a_failed_commands_passwords_are_not_told(tmp_path: Path, command: str) -> None:
    program = tmp_path / "pg_restore"
    (tmp_path / "says").write_text(SECRET.format(command))
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/says >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(PostgresError) as caught:
        Program([program], {"PATH": "/usr/bin:/bin"}, Running()).wait()
    assert "TOPSECRET" not in str(caught.value)
    assert command.split("'", maxsplit=1)[0].split("\n", maxsplit=1)[0] in caught.value.detail
    assert "pg_restore: error: another" in caught.value.detail


def test_other_commands_are_quoted_as_they_are(tmp_path: Path) -> None:
    program = tmp_path / "pg_restore"
    (tmp_path / "says").write_text(SECRET.format("ALTER TABLE t ADD CHECK (state <> 'gone');"))
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/says >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(PostgresError) as caught:
        Program([program], {"PATH": "/usr/bin:/bin"}, Running()).wait()
    assert "state <> 'gone'" in caught.value.detail
