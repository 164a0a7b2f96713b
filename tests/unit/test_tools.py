"""Which programs are found and chosen, on made-up machines."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from backupd.errors import PostgresError
from backupd.postgres import tools
from backupd.postgres.tools import Installation, choose_client, choose_server, find_installations, survey

ALL = ("pg_dump", "pg_restore", "psql", "postgres", "initdb")


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No PostgreSQL but what the test makes."""
    monkeypatch.setattr(tools, "USUAL_FOLDERS", (str(tmp_path / "lib/*/bin"),))
    monkeypatch.setattr(tools, "WHEELS", ())
    monkeypatch.setenv("PATH", str(tmp_path / "no-such-folder"))
    tools._known.clear()


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def folder(path: Path, version: str, programs: tuple[str, ...] = ALL) -> Path:
    for program in programs:
        script(path / program, f"echo '{program} (PostgreSQL) {version}'")
    return path


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("pg_dump (PostgreSQL) 17.10", (17, 10)),
        ("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", (15, 18)),
        ("pg_dump (PostgreSQL) 18rc1", (18, 0)),
        ("pg_dump (PostgreSQL) 19beta2 (Ubuntu 19~beta2-1)", (19, 0)),
        ("pg_dump (PostgreSQL) 20devel", (20, 0)),
        ("pg_dump (PostgreSQL) 17.2 - Percona Distribution", (17, 2)),
        ("pg_dump (EnterpriseDB) 16.4.1", (16, 4)),
        ("pg_dump (PostgreSQL) 9.6.24", (9, 6)),
    ],
)
def test_versions(tmp_path: Path, said: str, version: tuple[int, int]) -> None:
    script(tmp_path / "bin/pg_dump", f"echo '{said}'")
    assert find_installations([tmp_path / "bin"]) == [Installation(tmp_path / "bin", version)]


def test_named_folders_come_first_then_path_then_the_usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in ("9.6", "10", "16"):
        folder(tmp_path / "lib" / number / "bin", number)
    monkeypatch.chdir(folder(tmp_path / "here", "12.1"))  # never looked into, nor anything below it
    folder(tmp_path / "here/relative", "12.2")
    monkeypatch.setenv("PATH", os.pathsep.join(["", "relative", str(folder(tmp_path / "onpath", "14.1"))]))
    found = find_installations([folder(tmp_path / "named", "13.3")])
    assert [installation.version for installation in found] == [(13, 3), (14, 1), (16, 0), (10, 0), (9, 6)]


def test_the_same_programs_by_two_ways_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = folder(tmp_path / "lib/17/bin", "17.1")
    (tmp_path / "links").mkdir()
    (tmp_path / "links/pg_dump").symlink_to(real / "pg_dump")  # as alternatives do: the server is not linked
    (tmp_path / "whole").symlink_to(real)
    monkeypatch.setenv("PATH", f"{tmp_path}/links{os.pathsep}{tmp_path}/whole")
    assert find_installations() == [Installation(real, (17, 1))]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("echo 'pyenv: pg_dump: command not found' >&2; exit 127", "pyenv: pg_dump: command not found"),
        ("exit 3", "exit status 3"),
        ("echo hello", "hello"),
        ("sleep 60 >/dev/null 2>&1", "no answer"),
    ],
)
def test_what_does_not_answer_is_passed_over_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    monkeypatch.setattr(tools, "_ANSWER_SECONDS", 0.5)
    monkeypatch.setenv("PATH", f"{tmp_path}/no-such-folder:/bin")  # for sleep; Debian's pg_wrapper may be there
    script(tmp_path / "shims/pg_dump", body)
    found = survey([tmp_path / "shims"])
    assert reason in dict(found.skipped)[tmp_path / "shims"]
    assert all(installation.bin_dir != tmp_path / "shims" for installation in found.installations)


def test_a_broken_program_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/pg_dump").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "bin/pg_dump").chmod(0o755)
    assert "cannot be run" in dict(survey([tmp_path / "bin"]).skipped)[tmp_path / "bin"]


def test_debians_wrapper_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "lib/15/bin", "15.2")
    wrapper = script(tmp_path / "share/pg_wrapper", "echo 'pg_dump (PostgreSQL) 17.0'")
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr/pg_dump").symlink_to(wrapper)
    monkeypatch.setenv("PATH", str(tmp_path / "usr"))
    assert [found.version for found in find_installations()] == [(15, 2)]
    assert "pg_wrapper" in dict(survey().skipped)[tmp_path / "usr"]


def test_a_named_folder_without_programs_is_reported(tmp_path: Path) -> None:
    assert survey([tmp_path / "typo"]).skipped == ((tmp_path / "typo", "has no pg_dump that can be run"),)


def test_wheels_are_found_without_importing_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_dir = folder(tmp_path / "site/fake_pg_wheel/pginstall/bin", "18.1")
    (tmp_path / "site/fake_pg_wheel/__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(tools, "WHEELS", ("fake_pg_wheel", "no_such_wheel"))
    assert find_installations() == [Installation(bin_dir, (18, 1), wheel=True)]
    assert "fake_pg_wheel" not in sys.modules
    assert find_installations([bin_dir])[0].wheel is False  # whom the operator names, comes first


def test_programs_are_run_once_per_process(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script(tmp_path / "bin/pg_dump", f"echo run >>{log}; echo 'pg_dump (PostgreSQL) 17.1'")
    for _ in range(3):
        find_installations([tmp_path / "bin"])
    assert log.read_text() == "run\n"


def test_a_missing_program_names_the_package(tmp_path: Path) -> None:
    client = Installation(folder(tmp_path / "bin", "17.1", ("pg_dump",)), (17, 1))
    assert client.program("pg_dump") == tmp_path / "bin/pg_dump"
    with pytest.raises(PostgresError, match="postgresql-client-17"):
        client.program("pg_restore")
    with pytest.raises(PostgresError, match=r"postgresql-17\b"):
        client.program("initdb")


def at(name: str, major: int, *, wheel: bool = False) -> Installation:
    return Installation(Path("/pg") / name, (major, 1), wheel)


@pytest.mark.parametrize(
    ("server", "chosen"),
    [(13, "14"), (14, "14"), (15, "16a"), (16, "16a"), (17, "wheel17"), (18, "18"), (19, "19")],
)
def test_the_smallest_client_that_is_not_older(server: int, chosen: str) -> None:
    machine = [at("19", 19), at("wheel18", 18, wheel=True), at("wheel17", 17, wheel=True), at("16a", 16)]
    machine += [at("18", 18), at("16b", 16), at("14", 14), at("12", 12)]
    assert choose_client(machine, server).bin_dir.name == chosen


def test_no_client_names_what_is_there_and_what_to_install() -> None:
    with pytest.raises(PostgresError) as caught:
        choose_client([at("15", 15), at("16", 16)], 17)
    assert "PostgreSQL 17" in caught.value.message
    assert caught.value.detail == "found: 15.1 in /pg/15, 16.1 in /pg/16"
    for word in ("postgresql-client-17", "apt.postgresql.org", "backupd[postgres]", "bin_dirs"):
        assert word in caught.value.hint
    with pytest.raises(PostgresError) as caught:
        choose_client([], 18)
    assert caught.value.detail == "found: none"
    assert "backupd[postgres]" not in caught.value.hint  # it would not help


def test_an_old_server_is_refused_even_if_a_client_fits() -> None:
    with pytest.raises(PostgresError, match="supports 13 and newer"):
        choose_client([at("17", 17)], 12)


def test_servers(tmp_path: Path) -> None:
    old, new = (Installation(folder(tmp_path / str(n), f"{n}.1"), (n, 1)) for n in (15, 16))
    client = Installation(folder(tmp_path / "client", "19.1", ("pg_dump",)), (19, 1))
    wheel = Installation(folder(tmp_path / "wheel", "18.1"), (18, 1), wheel=True)
    machine = [client, wheel, old, new]
    assert choose_server(machine, None) is new
    assert choose_server(machine, 15) is old
    assert choose_server(machine, 18) is wheel
    assert choose_server([client, wheel], None) is wheel
    for major in (19, 17):
        with pytest.raises(PostgresError, match=f"no PostgreSQL {major} server"):
            choose_server(machine, major)
