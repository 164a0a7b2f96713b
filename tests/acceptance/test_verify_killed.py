"""A test restore that is ended, whenever and however: of what it made nothing stays, no process, no folder, no socket,
no database; what SIGKILL leaves, the next verify removes."""

from __future__ import annotations

import itertools
import os
import pwd
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from backupd.postgres.account import server_account
from backupd.postgres.server import ThrowawayServer
from tests.acceptance.test_demo import python_for_others
from tests.postgres import drop_database
from tests.proving import Proofs, execute, processes_of
from tests.site import Site, local_site
from tests.watch import eventually

SEED = 20261122
KILLS = int(os.environ.get("BACKUPD_TEST_KILLS", "13"))  # of one campaign; each is followed by a run that passes
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
_numbers = itertools.count(1)


class OtherUsersSite(Site):
    """One whose backupd runs as `nobody`."""

    prefix: tuple[str, ...] = ()

    def command(self, *arguments: str) -> list[str]:
        return [*self.prefix, "-m", "backupd", "--config", str(self.config), *arguments]


class World(Proofs):
    """A backup to be verified, in a temporary folder of its own: what is left there is seen."""

    temporary: Path

    def start(self) -> subprocess.Popen[str]:
        return self.site.start("verify", "shop", "--json")

    def left(self) -> list[str]:
        """Processes and files. A process that was killed takes a moment."""
        eventually(lambda: not list(processes_of(self.temporary)))
        # Whose folder is empty and young cannot be known: another run may be about to fill it. It goes in a minute.
        files = [str(path.relative_to(self.temporary)) for path in self.temporary.rglob("*") if not is_new(path)]
        return [*processes_of(self.temporary), *files]

    def kill(self, run: subprocess.Popen[str], number: signal.Signals) -> int:
        """Its exit code. A run that ended first is no failure."""
        run.send_signal(number)
        out, err = run.communicate(timeout=60)
        assert "Traceback" not in out + err, (out, err)
        # When all is done and Python ends, the system's own handling of signals is back.
        ended = {0, CODES[number], -number} if out else {0, CODES[number]}
        assert run.returncode in ended, (run.returncode, out, err)
        return run.returncode


def is_new(path: Path) -> bool:
    return path.name.startswith("backupd-scratch-") and path.is_dir() and not list(path.iterdir())


@contextmanager
def open_folder() -> Iterator[Path]:
    """One that a server's user can enter."""
    usual = Path(tempfile.gettempdir())
    base = usual if server_account().can_enter(usual) else Path("/tmp")
    with tempfile.TemporaryDirectory(prefix="killed-", dir=base) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def world(server: ThrowawayServer, *, other_user: bool = False) -> Iterator[World]:
    name = f"killed_verify_{os.getpid()}_{next(_numbers)}"
    dsn = server.dsn(name)
    execute(server.dsn(), f"create database {name} template template0")
    try:
        with open_folder() as folder:
            site = as_nobody(folder, dsn) if other_user else local_site(folder / "site", {"shop": dsn})
            temporary = folder / "tmp"
            temporary.mkdir(mode=0o711)
            site.environ["TMPDIR"] = str(temporary)
            made = World(site, dsn)
            made.temporary = temporary
            made.sql(
                "create table words (id int primary key, word text)",
                "insert into words select g, repeat(md5(g::text), 4) from generate_series(1, 30000) g",
                "create index on words (word)",
                "select lo_from_bytea(0, decode(repeat('ff', 1000000), 'hex'))",
            )
            made.configure("fingerprint", '"content"')
            if other_user:
                give(folder)
            made.backup()
            yield made
    finally:
        drop_database(server, name)


def as_nobody(folder: Path, dsn: str) -> Site:
    nobody, setpriv = pwd.getpwnam("nobody"), shutil.which("setpriv")
    assert setpriv is not None
    python, environ = python_for_others(folder)
    site = OtherUsersSite(folder / "site", f"file://{folder / 'site' / 'repository'}", {"shop": dsn})
    user = ("--reuid", str(nobody.pw_uid), "--regid", str(nobody.pw_gid), "--clear-groups")
    site.prefix = (setpriv, *user, "--", python)
    site.environ = environ | {"HOME": str(folder / "site"), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    return site


def give(folder: Path) -> None:
    """The site and its temporary folder to `nobody`."""
    nobody = pwd.getpwnam("nobody")
    for path in (folder / "tmp", folder / "site", *(folder / "site").rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)


@pytest.fixture(scope="module")
def local(pg15: ThrowawayServer) -> Iterator[World]:
    with world(pg15) as made:
        yield made


MOMENTS = [
    ("ephemeral", "making a place", signal.SIGTERM),
    ("ephemeral", "loading the rows", signal.SIGKILL),
    ("ephemeral", "comparing the copy", signal.SIGINT),
    pytest.param("server", "building indexes", signal.SIGTERM, marks=pytest.mark.large),
    ("server", "comparing the copy", signal.SIGKILL),
]


@pytest.mark.parametrize("place, phase, number", MOMENTS)
def test_ended_in_a_phase(local: World, pg15: ThrowawayServer, place: str, phase: str, number: signal.Signals) -> None:
    local.configure("scratch", f'"{pg15.dsn() if place == "server" else "ephemeral"}"')
    run = local.start()
    try:
        assert run.stderr is not None
        assert any(phase in line for line in run.stderr)
        time.sleep(random.Random(f"{SEED} {place} {phase}").uniform(0, 0.1))  # somewhere in it
        code = local.kill(run, number)
    finally:
        run.kill()
        run.communicate()
    assert code == CODES[number]
    if number == signal.SIGKILL:
        assert not list(local.stored())
        local.verify("passed")
        local.stored()[-1].unlink()
    assert local.left() == []
    assert eventually(lambda: local.scratch_databases(pg15) == [])


@pytest.mark.large
@pytest.mark.parametrize("user", ["root", "nobody"])
@pytest.mark.parametrize("major", [15, 17])
@pytest.mark.timeout(1200)
def test_a_campaign(request: pytest.FixtureRequest, user: str, major: int) -> None:
    """Ended at moments spread at random over the whole run, by every signal; with the system's programs (15) and
    with those of a wheel (17)."""
    if user == "nobody" and os.geteuid() != 0:
        pytest.skip("only root can become another user")
    server = cast(ThrowawayServer, request.getfixturevalue(f"pg{major}"))
    rng, codes = random.Random(f"{SEED} {user} {major}"), []
    with world(server, other_user=user == "nobody") as made:
        began = time.monotonic()
        made.verify("passed")
        whole = time.monotonic() - began
        assert made.left() == []
        for _ in range(KILLS):
            number = rng.choice(list(CODES))
            run = made.start()
            try:
                assert run.stderr is not None
                assert run.stderr.readline()  # before that Python itself starts, and answers signals as it likes
                time.sleep(rng.uniform(0, whole))
                code = made.kill(run, number)
            finally:
                run.kill()
                run.communicate()
            codes.append(code)
            if number != signal.SIGKILL:
                left = made.left()
                assert not left, (number, code, left)
            made.verify("passed")
            left = made.left()
            assert not left, (number, code, left)
        for path in made.temporary.iterdir():
            os.utime(path, (0, 0))
        made.verify("passed")
        assert list(made.temporary.iterdir()) == []
    assert sum(code != 0 for code in codes) > KILLS // 2, codes
