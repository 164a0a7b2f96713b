"""The throw-away server: starts wherever we are, and leaves nothing behind, however we end."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from backupd.errors import PostgresError
from backupd.postgres import account
from backupd.postgres.lifetime import happens
from backupd.postgres.server import FAST, ThrowawayServer, stop_stale
from backupd.postgres.tools import Installation, choose_server, find_installations
from tests.postgres import available_majors

NEWEST = available_majors()[-1]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root hands the server to another user")


@pytest.fixture
def installation() -> Installation:
    return choose_server(find_installations(), NEWEST)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can reach, unlike tmp_path."""
    base = Path(tempfile.mkdtemp(prefix="throwaway-"))
    base.chmod(0o755)
    yield base / "server"
    shutil.rmtree(base)


def ask(server: ThrowawayServer, query: str) -> object:
    with psycopg.connect(server.dsn()) as connection:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]


def family(pid: int) -> set[int]:
    """The processes whose parent this is, and itself."""
    found = {pid}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that are not gone, nor dead and waiting to be collected."""
    found = set()
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.add(pid)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("major", available_majors())
@pytest.mark.parametrize("port", [None, 0])
def test_a_server_comes_and_goes(folder: Path, major: int, port: int | None) -> None:
    chosen = choose_server(find_installations(), major)
    with ThrowawayServer(chosen, folder, port=port, settings={**FAST, "work_mem": "7MB"}, superuser="Bo ss") as server:
        assert server.version == chosen.version
        assert str(ask(server, "SHOW server_version")).startswith(f"{major}.")
        assert ask(server, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is True
        assert ask(server, "SELECT current_user") == "Bo ss"
        assert (ask(server, "SHOW fsync"), ask(server, "SHOW work_mem")) == ("off", "7MB")
        assert (ask(server, "SHOW listen_addresses") == "127.0.0.1") is (port is not None)
        assert server.pid is not None
        processes = family(server.pid)
        assert len(processes) > 3
        socket_dir = Path(str(ask(server, "SHOW unix_socket_directories")))
        assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
    assert not alive(processes)
    assert not folder.exists()
    assert not socket_dir.exists()


def test_settings_are_postgres_own_unless_given(folder: Path, installation: Installation) -> None:
    with ThrowawayServer(installation, folder) as server:
        assert ask(server, "SHOW fsync") == "on"


def test_tcp_wants_the_password_and_so_does_the_socket(folder: Path, installation: Installation) -> None:
    with ThrowawayServer(installation, folder, port=0, settings=FAST) as server:
        socket_dir = ask(server, "SHOW unix_socket_directories")
        for host in ("127.0.0.1", socket_dir):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(host=str(host), port=server.port, user="postgres", dbname="postgres", password="wrong")
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(host=str(host), port=server.port, user="postgres", dbname="postgres", passfile="/dev/null")
        assert not list(folder.rglob("password"))
        assert server.password
        assert server.password not in server.log_file.read_text()


def test_stopping_keeps_the_data_and_the_port(folder: Path, installation: Installation) -> None:
    with ThrowawayServer(installation, folder, port=0, settings=FAST) as server:
        with psycopg.connect(server.dsn()) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS a")
        dsn = server.dsn()
        server.stop()
        assert server.pid is None
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(dsn)
        server.start()
        assert server.dsn() == dsn
        assert ask(server, "SELECT a FROM kept") == 42


def test_a_crash_takes_all_processes_and_recovers(folder: Path, installation: Installation) -> None:
    with ThrowawayServer(installation, folder) as server:
        with psycopg.connect(server.dsn()) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS a")
        with psycopg.connect(server.dsn()) as held:
            assert server.pid is not None
            processes = family(server.pid)
            assert held.info.backend_pid in processes
            os.kill(held.info.backend_pid, signal.SIGSTOP)  # one that would not notice its postmaster's death
            server.kill()
            assert not alive(processes)
        server.start()
        assert ask(server, "SELECT a FROM kept") == 42
        assert "was not properly shut down" in server.log_file.read_text()


def test_sessions_do_not_hold_up_the_end(folder: Path, installation: Installation) -> None:
    server = ThrowawayServer(installation, folder, settings=FAST)
    server.start()
    with contextlib.closing(psycopg.connect(server.dsn())) as held:
        held.execute("SELECT 1")
        server.close()
    assert not folder.exists()
    server.close()  # twice is once


def test_it_outlives_the_thread_that_started_it(folder: Path, installation: Installation) -> None:
    with ThrowawayServer(installation, folder, settings=FAST) as server:
        server.stop()
        thread = threading.Thread(target=server.start)
        thread.start()
        thread.join()
        assert server.pid is not None
        assert not happens(lambda: server.pid is None, 1)
        assert ask(server, "SELECT 1") == 1


def test_a_long_path_gets_a_short_socket(folder: Path, installation: Installation) -> None:
    deep = folder / ("d" * 60) / ("e" * 60)
    folder.mkdir()
    deep.parent.mkdir()
    with ThrowawayServer(installation, deep, settings=FAST) as server:
        assert server.data_dir.is_relative_to(deep)
        socket_dir = Path(str(ask(server, "SHOW unix_socket_directories")))
        assert len(str(socket_dir)) < 90
    assert not deep.exists()
    assert not socket_dir.parent.exists()


@pytest.mark.parametrize("name", ["t" * 90, "a,b"])
def test_nor_does_it_have_it_in_a_temporary_folder_that_does_not_suit(
    folder: Path, installation: Installation, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    temporary = folder / name
    temporary.mkdir(parents=True)
    for each in (folder, temporary):
        each.chmod(0o711)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with ThrowawayServer(installation, temporary / "server", settings=FAST) as server:
        assert ask(server, "SELECT 1") == 1


def test_an_odd_path_works(folder: Path, installation: Installation) -> None:
    odd = folder.parent / "a b,c'd\"é"
    with ThrowawayServer(installation, odd, settings=FAST) as server:
        assert ask(server, "SELECT 1") == 1


def test_what_fails_says_why_and_leaves_nothing(folder: Path, installation: Installation) -> None:
    for arguments, detail in (
        ({"settings": {"shared_buffers": "plenty"}}, "shared_buffers"),
        ({"locale": "xx_XX.nonsense"}, "xx_XX.nonsense"),
    ):
        with pytest.raises(PostgresError) as caught, ThrowawayServer(installation, folder, **arguments):
            pass
        assert detail in caught.value.detail
        assert not folder.exists()


def test_a_taken_port_is_an_error(folder: Path, installation: Installation) -> None:
    with ThrowawayServer(installation, folder, port=0, settings=FAST) as server:
        with pytest.raises(PostgresError) as caught:
            ThrowawayServer(installation, folder.parent / "second", port=server.port).start()
        assert "Address already in use" in caught.value.detail


def test_a_folder_with_other_things_is_left_alone(folder: Path, installation: Installation) -> None:
    folder.mkdir()
    (folder / "precious").write_text("data")
    server = ThrowawayServer(installation, folder)
    with pytest.raises(PostgresError, match="not empty"):
        server.start()
    server.close()
    assert (folder / "precious").read_text() == "data"


def test_two_cannot_share_a_folder(folder: Path, installation: Installation) -> None:
    with ThrowawayServer(installation, folder, settings=FAST) as server:
        with pytest.raises(PostgresError, match="another process"):
            ThrowawayServer(installation, folder).start()
        assert ask(server, "SELECT 1") == 1


STARTER = """
import sys
from pathlib import Path
from backupd.postgres import lifetime, server
from backupd.postgres.tools import choose_server, find_installations
if sys.argv[2] == "orphan":
    server.tied = lambda number, command: [*command]  # as on a system that cannot tie a child to its parent
made = server.ThrowawayServer(choose_server(find_installations(), int(sys.argv[3])), Path(sys.argv[1]))
made.start()
print(made.pid, made.data_dir, flush=True)
sys.stdin.read()
"""


def start_elsewhere(folder: Path, mode: str) -> tuple[subprocess.Popen[str], int, Path]:
    """A Python process that runs a server: it, the server's process id and its data folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, folder, mode, str(NEWEST)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    pid, data = process.stdout.readline().split()
    return process, int(pid), Path(data)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_killed_owner_takes_the_server_with_it(folder: Path, installation: Installation) -> None:
    process, pid, data = start_elsewhere(folder, "tied")
    processes = family(pid)
    assert len(processes) > 3
    kill(process)
    assert happens(lambda: not alive(processes), 15)
    with ThrowawayServer(installation, folder, settings=FAST) as server:  # what it left is cleared away
        assert ask(server, "SELECT 1") == 1
    assert not folder.exists()
    assert not data.exists()


def test_a_stale_server_is_stopped_before_its_folder_is_reused(folder: Path, installation: Installation) -> None:
    process, pid, data = start_elsewhere(folder, "orphan")
    processes = family(pid)
    kill(process)
    try:
        assert not happens(lambda: pid not in alive(processes), 0.5), "the test needs a server that stays"
        with ThrowawayServer(installation, folder, settings=FAST) as server:
            assert not alive(processes)
            assert ask(server, "SELECT 1") == 1
    finally:
        for left in alive({pid}):
            os.kill(left, signal.SIGKILL)
    assert not data.exists()


def test_a_stale_pid_of_another_process_is_not_touched(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"], cwd="/") as bystander:
        (folder / "data" / "postmaster.pid").write_text(f"{bystander.pid}\n{folder}/data\n")
        assert stop_stale(folder) is False
        assert bystander.poll() is None
        bystander.kill()
    assert stop_stale(folder / "no such folder") is False


@as_root
def test_root_hands_the_server_to_another_user(folder: Path, installation: Installation) -> None:
    with ThrowawayServer(installation, folder, settings=FAST) as server:
        assert Path(f"/proc/{server.pid}").stat().st_uid == account.server_account().uid != 0
        assert server.data_dir.is_relative_to(folder)


@as_root
@pytest.mark.parametrize("major", available_majors())
def test_a_folder_and_programs_only_root_can_reach(folder: Path, major: int) -> None:
    original = choose_server(find_installations(), major)
    closed = folder.parent / "closed"
    closed.mkdir(mode=0o700)
    prefix = original.bin_dir.parent
    hidden = closed / "site" / prefix.parent.name / prefix.name
    if "lib/postgresql" in str(prefix):
        pytest.skip("Debian's own is where all can reach it, and cannot be moved")
    shutil.copytree(prefix, hidden, symlinks=True)
    libraries = prefix.parent.with_name(f"{prefix.parent.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, hidden.parent.with_name(libraries.name))
    with ThrowawayServer(Installation(hidden / "bin", original.version), closed / "server", settings=FAST) as server:
        assert ask(server, "SELECT 1") == 1
        with psycopg.connect(server.dsn()) as connection:
            connection.execute("CREATE EXTENSION btree_gist")  # its library is found in the copy
        assert not server.data_dir.is_relative_to(closed)
        elsewhere = server.data_dir
        server.kill()
    assert not elsewhere.exists()
    assert not (closed / "server").exists()


@as_root
def test_copies_of_a_killed_process_are_swept(folder: Path) -> None:
    folder.mkdir()
    program = "import sys, pathlib, os\nfrom backupd.postgres.account import shared_folder\n"
    program += "print(shared_folder(pathlib.Path(sys.argv[1])), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        ours = account.shared_folder(folder)
        assert theirs.exists()  # in use
        process.kill()
    second = account.shared_folder(folder)
    assert not theirs.exists()
    assert ours.exists()
    account.discard(ours)
    account.discard(second)
    assert not list(folder.iterdir())


@as_root
@pytest.mark.parametrize("port", [None, 0])
def test_an_ordinary_user_runs_it_as_himself(folder: Path, installation: Installation, port: int | None) -> None:
    folder.mkdir()
    user = pwd.getpwnam("nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    programs = account.reachable(installation, account.Account(user.pw_name, user.pw_uid, user.pw_gid))
    child = os.fork()  # not a new Python: nobody may be unable to reach it, and all that is needed is loaded here
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
            with ThrowawayServer(programs, folder / "server", port=port, settings=FAST) as server:
                assert ask(server, "SELECT 1") == 1
                assert server.data_dir.is_relative_to(folder)
                server.kill()
                server.start()
                assert ask(server, "SELECT 1") == 1
            assert not (folder / "server").exists()
            status = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not list(folder.iterdir())
