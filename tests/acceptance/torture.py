"""The torture database: torture.sql applied to a server."""

from __future__ import annotations

from pathlib import Path

from backupd.postgres.server import ThrowawayServer
from tests.postgres import client_for, run

SCRIPT = Path(__file__).with_name("torture.sql")


def torture(server: ThrowawayServer, dsn: str) -> None:
    """Fill an empty UTF8 database. PostgresError quotes the statement that failed."""
    run(client_for(server), "psql", f"--dbname={dsn}", "--no-psqlrc", "--quiet", f"--file={SCRIPT}")
