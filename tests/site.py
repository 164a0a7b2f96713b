"""A place where backupd is used as people use it: a configuration, keys, a repository, and its command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backupd.init import init
from tests.forker import FORKER
from tests.seaweed import SeaweedServer

COMMAND = (sys.executable, "-m", "backupd")


@dataclass(frozen=True)
class Outcome:
    """How one run of the command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def call(
    arguments: Sequence[str], *, folder: Path, environ: Mapping[str, str] = os.environ, timeout: float = 240
) -> Outcome:
    """Run `backupd ARGUMENTS` to its end, in a process of its own."""
    if FORKER.fits(environ):
        code, out, err = FORKER.run(arguments, environ, folder, timeout)
        return Outcome(code, out.decode(), err.decode())
    done = subprocess.run(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=dict(environ),
        cwd=folder,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


class Site:
    """`init` has run in `folder`; `run` runs the command line there, in a process of its own."""

    def __init__(self, folder: Path, repository: str, databases: Mapping[str, str], *, extra: str = "") -> None:
        self.folder = folder
        self.repository = repository
        folder.mkdir(parents=True, exist_ok=True)
        self.config = init(folder / "backupd.toml", repository, databases).config
        if extra:
            self.edit(lambda text: text + "\n" + extra)
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "AWS", "BACKUPD"))}

    def edit(self, change: Any) -> None:
        """Change the text of the configuration."""
        self.config.write_text(change(self.config.read_text()))

    def set(self, key: str, value: str, *, table: str) -> None:
        """Set a key of a table to a TOML value; the template's tables stand there already, maybe commented out."""

        def change(text: str) -> str:
            text = re.sub(rf"(?m)^#?\s*\[{re.escape(table)}\]\s*$", f"[{table}]", text, count=1)
            if not re.search(rf"(?m)^\[{re.escape(table)}\]$", text):
                text += f"\n[{table}]\n"
            return text.replace(f"[{table}]\n", f"[{table}]\n{key} = {value}\n", 1)

        self.edit(change)

    def command(self, *arguments: str) -> list[str]:
        return [*COMMAND, "--config", str(self.config), *arguments]

    def run(self, *arguments: str, code: int | None = 0, timeout: float = 240) -> Outcome:
        """Run to the end; fails the test if the exit code is not `code` (None: any)."""
        if type(self).command is Site.command:
            given = ["--config", str(self.config), *arguments]
            outcome = call(given, folder=self.folder, environ=self.environ, timeout=timeout)
        else:
            outcome = self._started(arguments, timeout)
        assert code is None or outcome.code == code, f"exit {outcome.code}, not {code}:\n{outcome.out}\n{outcome.err}"
        assert "Traceback" not in outcome.err, outcome.err
        return outcome

    def _started(self, arguments: Sequence[str], timeout: float) -> Outcome:
        done = subprocess.run(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environ,
            cwd=self.folder,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Run in the background; the caller waits for it or kills it."""
        return subprocess.Popen(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environ,
            cwd=self.folder,
        )

    def backups(self, database: str | None = None) -> list[dict[str, Any]]:
        """`list --json`."""
        found: list[dict[str, Any]] = self.run("list", *([database] if database else []), "--json").json
        return found


def local_site(folder: Path, databases: Mapping[str, str], *, extra: str = "") -> Site:
    return Site(folder, f"file://{folder / 'repository'}", databases, extra=extra)


def s3_site(folder: Path, server: SeaweedServer, bucket: str, databases: Mapping[str, str], *, extra: str = "") -> Site:
    """A site on a real S3 server; the bucket exists. Its secret key is given by file, as in production."""
    site = Site(folder, f"s3://{bucket}/prod", databases, extra=extra)
    secret = folder / "s3.secret"
    secret.write_text(server.secret_key + "\n")
    secret.chmod(0o600)
    lines = (
        f'endpoint_url = "{server.endpoint}"\nregion = "{server.region}"\n'
        f'access_key_id = "{server.access_key}"\nsecret_access_key_file = "s3.secret"\n'
    )
    site.edit(lambda text: re.sub(r'(?m)^(url = "s3://.*")$', lambda m: f"{m[1]}\n{lines}", text, count=1))
    return site
