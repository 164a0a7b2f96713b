"""What PostgreSQL's programs say when they fail, as backupd tells it."""

from __future__ import annotations

import os
import shutil
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


WRITES = ("od", "-An", "-v", "-tx1", "-N", "2000000", "/dev/zero")  # 6 MB, by way of C's buffer


def test_a_large_output_comes_in_large_pieces() -> None:
    program = shutil.which(WRITES[0])
    assert program is not None
    pieces = [len(piece) for piece in Program([program, *WRITES[1:]], dict(os.environ), Running(), large=True).output()]
    assert sum(pieces) > 6_000_000
    assert len(pieces) < 60, "4 KiB at a time"


def test_it_comes_without_stdbuf_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = shutil.which(WRITES[0])
    assert program is not None
    environ = dict(os.environ)

    def written() -> bytes:
        command = [program, *WRITES[1:]]
        return b"".join(map(bytes, Program(command, environ, Running(), large=True).output()))

    plain = written()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert written() == plain


def test_a_program_that_stdbuf_upsets_is_left_alone(tmp_path: Path) -> None:
    """As one of another C library, whose loader complains of what it is lent; nobody would forgive a line too many."""
    program = tmp_path / "pg_restore"
    program.write_text(
        "#!/bin/sh\n"
        'if test -n "$LD_PRELOAD"; then echo "it cannot be preloaded" >&2; test "$1" = --version || exit 1; fi\n'
        "cat > /dev/null\n"
    )
    program.chmod(0o755)
    Program([program], dict(os.environ), Running(), feed=True, large=True).consume([b"x" * 100])
