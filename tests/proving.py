"""What the tests of `verify` share: proofs as its JSON has them, and what a run must not leave behind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psycopg

from backupd.postgres.scratch import PREFIX, is_ours
from backupd.postgres.server import ThrowawayServer
from tests.site import Site, local_site

MARK = "# what the tests set\n"
EXIT = {"passed": 0, "failed": 4, "inconclusive": 6}


def execute(dsn: str, *statements: str) -> None:
    with closing(psycopg.connect(dsn, autocommit=True)) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@dataclass
class Proofs:
    """One database `shop` of a site whose repository is a folder."""

    site: Site
    dsn: str
    database: str = "shop"
    settings: dict[str, str] = field(default_factory=dict)  # of [defaults.verify], as TOML
    checks: dict[str, str] = field(default_factory=dict)  # the operator's own

    @classmethod
    def make(cls, folder: Path, dsn: str, *, scratch: ThrowawayServer | None = None) -> Self:
        """Copies are made on `scratch` if there is one, which takes half the time of a server of their own."""
        made = cls(local_site(folder, {"shop": dsn}), dsn)
        if scratch is not None:
            made.on_server(scratch.dsn())
        return made

    def on_server(self, dsn: str) -> None:
        self.configure("scratch", f'"{dsn}"')

    def configure(self, key: str, value: str | None) -> None:
        """Set a key of [defaults.verify] to a TOML value, or take it back."""
        self.settings = {k: v for k, v in {**self.settings, key: value}.items() if v is not None}
        self._write()

    def ask(self, **checks: str) -> None:
        """These are the operator's own checks from now on, names to SQL."""
        self.checks = checks
        self._write()

    def _write(self) -> None:
        """The section stands at the end of the configuration, behind a mark."""
        lines = [MARK, "[defaults.verify]", *(f"{key} = {value}" for key, value in self.settings.items())]
        for name, query in self.checks.items():
            lines += ["[[defaults.verify.checks]]", f"name = {json.dumps(name)}", f"sql = {json.dumps(query)}"]
        self.site.edit(lambda text: text.partition(MARK)[0] + "\n".join(lines) + "\n")

    def sql(self, *statements: str) -> None:
        execute(self.dsn, *statements)

    def backup(self) -> str:
        (made,) = self.site.run("backup", self.database, "--json").json
        return str(made["id"])

    def verify(self, expected: str, *options: str) -> dict[str, Any]:
        """The proof, whose verdict must be this one, and whose exit code that verdict's."""
        outcome = self.site.run("verify", self.database, "--json", *options, code=None)
        assert outcome.code == EXIT[expected], f"exit {outcome.code}, not {expected}:\n{outcome.out}\n{outcome.err}"
        proof: dict[str, Any] = outcome.json
        assert proof["status"] == expected
        return proof

    def listed(self, backup: str | None = None) -> str:
        """What `list` says of a backup, the newest if none is named."""
        rows = self.site.backups(self.database)
        row = rows[0] if backup is None else next(row for row in rows if row["id"] == backup)
        return str(row["proof"]["status"])

    def shown(self, backup: str = "latest") -> list[dict[str, Any]]:
        """The proofs that `show` has, oldest first."""
        proofs: list[dict[str, Any]] = self.site.run("show", self.database, backup, "--json").json["proofs"]
        return proofs

    @property
    def root(self) -> Path:
        return Path(self.site.repository.removeprefix("file://"))

    def stored(self, kind: str = "proofs") -> list[Path]:
        """The recorded proofs, oldest first."""
        return sorted((self.root / self.database / kind).glob("*/*.json"))

    def scratch_databases(self, server: ThrowawayServer) -> list[str]:
        """Those that are ours on this server."""
        repository = str(self.site.run("show", self.database, "--json").json["repository"])
        return [name for name in databases(server) if name.startswith(PREFIX) and is_ours(name, repository)]


def databases(server: ThrowawayServer) -> set[str]:
    with closing(psycopg.connect(server.dsn())) as connection:
        return {str(row[0]) for row in connection.execute("select datname from pg_database")}


def check(proof: dict[str, Any], name: str) -> dict[str, Any]:
    found = [each for each in proof["checks"] if each["name"] == name]
    assert len(found) == 1, (name, [each["name"] for each in proof["checks"]])
    one: dict[str, Any] = found[0]
    return one


def failures(proof: dict[str, Any]) -> dict[str, str]:
    """The checks that failed, with all that they say."""
    return {
        each["name"]: "\n".join([each["detail"], *each["items"]])
        for each in proof["checks"]
        if each["status"] == "failed"
    }


def processes_of(folder: Path) -> Iterator[str]:
    """What runs with this temporary folder: backupd, and every program and server that it started."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            ours = f"TMPDIR={folder}\0".encode() in path.read_bytes()
            command = path.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # it ended, or is not ours to look at
        if ours and command and int(path.parent.name) != os.getpid():
            yield command
