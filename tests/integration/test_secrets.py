"""No password and no key in anything that others can see: output, logs, the repository, the list of processes.

Each secret is a marker that occurs nowhere else; everything that a run gives away is searched for it.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from backupd import pipeline
from backupd.config import load
from backupd.manifest import decode
from backupd.postgres.server import ThrowawayServer
from backupd.storage.connect import connect
from tests.postgres import NewDatabase, drop_database
from tests.seaweed import SeaweedServer
from tests.site import COMMAND, Site, call, local_site, s3_site
from tests.watch import command_lines

LOOKS = (("--verbose",), ("--verbose", "--log-format", "json"))


@dataclass
class Watch:
    """Samples every process's arguments for as long as it is entered, and keeps what holds a marker."""

    markers: list[str]
    leaks: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)  # programs: shows that it looks often enough

    def __enter__(self) -> Watch:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        markers = [marker.encode() for marker in self.markers]
        while not self._over.wait(0.02):
            for _, line in command_lines():
                self.seen.add(Path(os.fsdecode(line.partition(b"\0")[0])).name)
                if any(marker in line for marker in markers):
                    self.leaks.add(line.replace(b"\0", b" ").decode(errors="replace"))


@dataclass
class Runs:
    """Runs commands on a site and searches all they say."""

    site: Site
    markers: list[str]

    def __call__(self, *arguments: str, code: int | None = 0, look: tuple[str, ...] = ()) -> str:
        given = ["--config", str(self.site.config), *look, *arguments]
        with Watch(self.markers) as watch:
            done = call(given, folder=self.site.folder, environ=self.site.environ)
        said = done.out + done.err
        assert code is None or done.code == code, f"exit {done.code}, not {code}: {said}"
        assert not watch.leaks
        self.search(said, " ".join(arguments))
        return said

    def search(self, text: str | bytes, where: str) -> None:
        data = text if isinstance(text, bytes) else text.encode()
        assert not [marker for marker in self.markers if marker.encode() in data], f"a secret in {where}"


def key_markers(site: Site) -> list[str]:
    """What the key files must not give away."""
    return [
        next(line for line in (site.folder / "identity.age").read_text().splitlines() if line.startswith("AGE-SECRET")),
        (site.folder / "signing.key").read_text().splitlines()[1],
    ]


def search_repository(runs: Runs) -> None:
    """Every object as it is stored, and the roles as they are restored: hashes of passwords, never passwords."""
    config = load(runs.site.config, runs.site.environ)
    with closing(connect(config.repository.url, config.s3_settings())) as storage:
        keys = [info.key for info in storage.list("")]
        assert len(keys) > 4
        for key in keys:
            runs.search(storage.read(key), key)
        for key in keys:
            if "/manifests/" in key:
                (roles,) = decode(storage.read(key), key).of_kind("globals")
                plain = b"".join(map(bytes, pipeline.fetch(storage, roles, config.load_identities(), lambda _: None)))
                assert b"CREATE ROLE" in plain
                runs.search(plain, "the roles")


@dataclass(frozen=True)
class Account:
    """A superuser with a password of its own, and a database."""

    server: ThrowawayServer
    database: str
    role: str
    password: str

    @property
    def open_dsn(self) -> str:
        return f"postgresql://{self.role}@127.0.0.1:{self.server.port}/{self.database}?sslmode=disable"

    @property
    def full_dsn(self) -> str:
        return self.open_dsn.replace("@", f":{self.password}@", 1)


@pytest.fixture
def account(pg15: ThrowawayServer, new_database: NewDatabase) -> Iterator[Account]:
    name = f"secretive_{os.getpid()}"
    password = f"marker-{secrets.token_hex(8)}"
    dsn = new_database(pg15, name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table orders as select g as id from generate_series(1, 500) g")
        connection.execute(
            sql.SQL("create role {} superuser login password {}").format(sql.Identifier(name), sql.Literal(password))
        )
    yield Account(pg15, name, name, password)
    with psycopg.connect(pg15.dsn(), autocommit=True) as connection:
        drop_database(pg15, f"{name}_back")
        drop_database(pg15, name)
        connection.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def private(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def in_the_file(folder: Path, account: Account) -> Site:
    site = local_site(folder, {"shop": account.open_dsn})
    site.edit(lambda text: text.replace(account.open_dsn, account.full_dsn))
    return site


def in_a_password_file(folder: Path, account: Account) -> Site:
    site = local_site(folder, {"shop": account.full_dsn})  # `init` moves it there
    assert account.password not in site.config.read_text()
    return site


def in_pgpassword(folder: Path, account: Account) -> Site:
    site = local_site(folder, {"shop": account.open_dsn})
    site.environ["PGPASSWORD"] = account.password
    return site


def in_pgpass(folder: Path, account: Account) -> Site:
    site = local_site(folder, {"shop": account.open_dsn})
    private(folder / ".pgpass", f"127.0.0.1:{account.server.port}:*:{account.role}:{account.password}\n")
    site.environ["HOME"] = str(folder)
    return site


def in_a_service_file(folder: Path, account: Account) -> Site:
    site = local_site(folder, {"shop": "service=shop"})
    service = private(
        folder / "services",
        f"[shop]\nhost=127.0.0.1\nport={account.server.port}\nuser={account.role}\npassword={account.password}\n"
        f"dbname={account.database}\nsslmode=disable\n",
    )
    site.environ["PGSERVICEFILE"] = str(service)
    return site


def in_a_variable(folder: Path, account: Account) -> Site:
    site = local_site(folder, {"shop": account.open_dsn.replace("@", ":${SHOP_SECRET}@", 1)})
    site.environ["SHOP_SECRET"] = account.password
    return site


PLACES: tuple[Callable[[Path, Account], Site], ...] = (
    in_the_file,
    in_a_password_file,
    in_pgpassword,
    in_pgpass,
    in_a_service_file,
    in_a_variable,
)


@pytest.mark.parametrize(
    "place",
    [*PLACES[:2], *(pytest.param(place, marks=pytest.mark.large) for place in PLACES[2:])],
    ids=[place.__name__ for place in PLACES],
)
def test_password_is_not_shown(place: Callable[[Path, Account], Site], account: Account, tmp_path: Path) -> None:
    site = place(tmp_path / "site", account)
    runs = Runs(site, [account.password, *key_markers(site)])
    back = f"{account.database}_back"
    runs("backup", look=LOOKS[0])
    runs("show", "shop", look=LOOKS[1])
    runs("restore", "shop", "--at", "latest", "--into", back, "--yes", look=LOOKS[1])
    runs("restore", "shop", "--at", "latest", "--dry-run", "--json")
    search_repository(runs)


def test_every_command_is_silent_about_secrets(account: Account, tmp_path: Path) -> None:
    """The commands that the others leave out, in every form of output; and the sampling does see programs."""
    site = in_a_password_file(tmp_path / "site", account)
    runs = Runs(site, [account.password, *key_markers(site)])
    with Watch([]) as watch:
        runs("backup", "--json", look=LOOKS[1])
    assert "pg_dump" in watch.seen
    for look in LOOKS:
        runs("list", look=look)
        runs("list", "--json", look=look)
        runs("show", "shop", "--json", look=look)
        runs("check", code=None, look=look)
    runs("restore", "shop", "--at", "latest", "--target", account.open_dsn, "--yes", code=None, look=LOOKS[0])


def test_target_password_is_not_shown(account: Account, pg15: ThrowawayServer, tmp_path: Path) -> None:
    """A --target with a password stands on our own command line, which the operator wrote; and nowhere else."""
    site = local_site(tmp_path / "site", {"shop": pg15.dsn(account.database)})
    site.run("backup")
    target = account.full_dsn.replace(f"/{account.database}?", f"/{account.database}_back?")
    arguments = ["restore", "shop", "--at", "latest", "--target", target, "--yes"]
    with Watch([account.password]) as watch:
        text = site.run(*arguments)
    assert account.password not in text.out + text.err
    assert [leak for leak in watch.leaks if "backupd --config" not in leak] == []
    as_json = site.run(*arguments, "--json", code=8)  # it is not empty any more
    assert account.password not in as_json.out + as_json.err


@pytest.mark.parametrize("look", [pytest.param(LOOKS[0], marks=pytest.mark.large), LOOKS[1]], ids=["text", "json"])
def test_failures_do_not_show_passwords(account: Account, tmp_path: Path, look: tuple[str, ...]) -> None:
    site = in_a_password_file(tmp_path / "site", account)
    genuine, wrong = site.config.read_text(), f"wrong-{secrets.token_hex(8)}"
    runs = Runs(site, [account.password, wrong, *key_markers(site)])

    private(site.folder / "shop.password", wrong + "\n")
    assert "password authentication failed" in runs("backup", code=6, look=look)
    runs("backup", "--json", code=6, look=look)
    runs("check", code=None, look=look)
    private(site.folder / "shop.password", account.password + "\n")

    def dsn(text: str, code: int, *command: str) -> str:
        lines = [line for line in genuine.splitlines() if not line.startswith("password_file")]
        lines = [f"dsn = {json.dumps(text)}" if line.startswith("dsn = ") else line for line in lines]
        site.config.write_text("\n".join(lines))
        return runs(*(command or ("backup",)), code=code, look=look)

    dsn(f"postgresql://u:{wrong}@127.0.0.1:1/shop", 6)
    dsn(f"postgresql://u:{wrong}@no-such-host.invalid/shop", 6)
    dsn(f"postgresql://u:{wrong}@127.0.0.1:1/shop", 6, "backup", "--json")
    # Strings that no parser reads, in which a password is all the more likely to be quoted.
    for bad in (
        f"postgresql://u:{wrong}@[::1/shop",
        f"host=h password={wrong} dbname",
        f"host=h password='{wrong}",
        f"mysql://u:{wrong}@h/shop",
        f"postgresql://u@h/shop?pasword={wrong}",
    ):
        dsn(bad, 2)


@pytest.mark.parametrize("look", [pytest.param(LOOKS[0], marks=pytest.mark.large), LOOKS[1]], ids=["text", "json"])
def test_storage_secret_is_not_shown(
    account: Account, s3_server: SeaweedServer, s3_bucket: str, tmp_path: Path, look: tuple[str, ...]
) -> None:
    site = s3_site(tmp_path / "site", s3_server, s3_bucket, {"shop": account.full_dsn})
    wrong = f"wrong-{secrets.token_hex(8)}"
    runs = Runs(site, [account.password, s3_server.secret_key, wrong, *key_markers(site)])
    runs("backup", look=look)
    runs("list", look=look)
    search_repository(runs)
    private(site.folder / "s3.secret", wrong + "\n")
    assert "secret_access_key" in runs("backup", code=5, look=look)
    runs("list", "--json", code=5, look=look)
    private(site.folder / "s3.secret", s3_server.secret_key + "\n")
    site.edit(lambda text: text.replace(s3_server.access_key, "backupd-reader"))  # may only read
    runs("backup", code=5, look=look)
    site.edit(lambda text: text.replace(s3_server.endpoint, "http://127.0.0.1:1"))
    runs("list", code=5, look=look)


@pytest.mark.parametrize("name", ["identity.age", "signing.key", "shop.password"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_secret_that_others_can_read_is_refused(account: Account, tmp_path: Path, name: str, mode: int) -> None:
    site = in_a_password_file(tmp_path / "site", account)
    path = site.folder / name
    path.chmod(mode)
    said = Runs(site, [account.password, *key_markers(site)])("backup", code=2)
    assert f"chmod 600 {path}" in said


def test_key_files_are_private(tmp_path: Path) -> None:
    password = f"marker-{secrets.token_hex(8)}"
    options = ("--repository", f"file://{tmp_path}/repository", "--database", f"shop=postgresql://u:{password}@h/shop")
    done = subprocess.run(
        [*COMMAND, "--config", "backupd.toml", "--verbose", "init", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        umask=0,  # what others' umask would have given away
    )
    made = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert made.pop("signing.pub") == 0o644
    assert set(made) == {"backupd.toml", "identity.age", "signing.key", "shop.password"}
    assert set(made.values()) == {0o600}
    assert password not in done.stdout + done.stderr + (tmp_path / "backupd.toml").read_text()
    assert not any("AGE-SECRET" in text for text in (done.stdout, done.stderr))


def test_repository_is_private(account: Account, tmp_path: Path) -> None:
    """A local repository's objects are encrypted, and still nobody else's to read."""
    site = in_a_password_file(tmp_path / "site", account)
    site.run("backup")
    paths = [site.folder / "repository", *(site.folder / "repository").rglob("*")]
    assert [path for path in paths if path.stat().st_mode & 0o077] == []
