"""The command line as scripts and shells meet it: exit codes, what goes to stdout and what to stderr, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import psycopg
import pytest

from backupd import __version__, jobs
from backupd.cli import app
from backupd.config import load
from backupd.postgres import claim
from backupd.postgres.server import ThrowawayServer
from tests.postgres import NewDatabase, drop_database
from tests.site import COMMAND, Site, call, local_site

COMMANDS = sorted(app.list_commands(click.Context(app)))
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site whose server cannot be reached: enough for everything that fails before it matters."""
    made = local_site(tmp_path / "site", {"shop": NOWHERE, "billing": NOWHERE})
    made.environ.pop("PYTHONUNBUFFERED", None)
    return made


@pytest.fixture
def shop(tmp_path: Path, pg15: ThrowawayServer, new_database: NewDatabase) -> Site:
    """A site with a small database, named as in the configuration, and one that cannot be reached."""
    dsn = new_database(pg15)
    with psycopg.connect(dsn) as connection:
        connection.execute("create table orders as select g as id from generate_series(1, 100) g")
    made = local_site(tmp_path / "site", {"broken": NOWHERE, "shop": dsn})
    made.environ.pop("PYTHONUNBUFFERED", None)  # or what is written late would be written at once
    return made


# ---- help and usage


def test_version(tmp_path: Path) -> None:
    done = call(["--version"], folder=tmp_path)
    assert (done.code, done.out, done.err) == (0, f"backupd {__version__}\n", "")


@pytest.mark.parametrize("command", ["", *COMMANDS])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(tmp_path: Path, command: str, option: str) -> None:
    done = call([*([command] if command else []), option], folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: backupd")


def test_no_command_is_usage(tmp_path: Path) -> None:
    done = call([], folder=tmp_path)
    assert done.code == 2
    assert "Usage: backupd" in done.out + done.err


WRONG = {
    "unknown command": ["explode"],
    "unknown option": ["list", "--frobnicate"],
    "an argument too many": ["show", "shop", "latest", "more"],
    "no database": ["restore", "--at", "latest"],
    "no time": ["restore", "shop"],
    "no number": ["backup", "--jobs", "many"],
    "no jobs": ["backup", "--jobs", "0"],
    "unreadable time": ["restore", "shop", "--at", "yesterday"],
    "unreadable gap": ["restore", "shop", "--at", "latest", "--max-gap", "much"],
    "unreadable target": ["restore", "shop", "--at", "latest", "--target", "postgresql://[::1/x"],
    "unknown database": ["backup", "shopp"],
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG)
def test_usage_error(site: Site, arguments: list[str]) -> None:
    outcome = site.run(*arguments, code=2)
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert "hint: " in outcome.err


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG)
def test_usage_error_as_json(site: Site, arguments: list[str]) -> None:
    outcome = site.run(*arguments, "--json", code=2)
    assert set(outcome.json) == {"error"}
    error = outcome.json["error"]
    assert set(error) == {"message", "detail", "hint", "exit"}
    assert error["exit"] == 2
    assert error["message"]
    assert outcome.err == ""


@pytest.mark.parametrize("command", [["backup"], ["list"], ["show"], ["restore", "--at", "latest"]], ids=lambda c: c[0])
def test_unknown_database_names_the_nearest(site: Site, command: list[str]) -> None:
    outcome = site.run(command[0], "biling", *command[1:], code=2)
    assert "did you mean billing?" in outcome.err


def test_verbose_and_quiet_exclude_each_other(site: Site) -> None:
    outcome = site.run("list", code=0)
    done = call(["--verbose", "--quiet", "--config", str(site.config), "list"], folder=site.folder)
    assert done.code == 2
    assert outcome.code == 0


def test_no_configuration(tmp_path: Path) -> None:
    done = call(["--config", "missing.toml", "list", "--json"], folder=tmp_path)
    assert done.code == 2
    assert json.loads(done.out)["error"]["exit"] == 2


# ---- failures


def test_unreachable_server(site: Site) -> None:
    outcome = site.run("backup", "shop", code=6)
    assert "127.0.0.1:1" in outcome.err
    assert "hint: " in outcome.err
    assert site.run("backup", "shop", "--json", code=6).json["error"]["exit"] == 6
    assert site.backups() == []


def test_unreachable_storage(site: Site) -> None:
    url = f"file://{site.folder / 'repository'}"
    settings = 'endpoint_url = "http://127.0.0.1:1"\naccess_key_id = "me"\nsecret_access_key_file = "s3.secret"'
    site.edit(lambda text: text.replace(f'url = "{url}"', f'url = "s3://bucket/prod"\n{settings}'))
    secret = site.folder / "s3.secret"
    secret.write_text("secret\n")
    secret.chmod(0o600)
    for command in (["list"], ["backup", "shop"], ["show", "shop"], ["restore", "shop", "--at", "latest"]):
        outcome = site.run(*command, "--json", code=5)
        assert outcome.json["error"]["exit"] == 5
        assert "endpoint_url" in outcome.json["error"]["hint"]


def test_no_backup_yet(site: Site) -> None:
    assert site.run("list", "--json").json == []
    assert site.run("list", "shop", "--json").json == []
    text = site.run("list")
    assert text.out == ""
    assert "no backups" in text.err
    for command in (["show", "shop"], ["restore", "shop", "--at", "latest"]):
        assert "backupd backup shop" in site.run(*command, code=3).err


def test_nothing_before_the_first_backup(shop: Site) -> None:
    shop.run("backup", "shop")
    outcome = shop.run("restore", "shop", "--at", "1d", "--json", code=3)
    assert outcome.json["error"]["exit"] == 3
    assert shop.run("show", "shop", "20200101T000000Z-aaaaaa", code=3).out == ""


def test_existing_database_is_never_overwritten(shop: Site, pg15: ThrowawayServer, new_database: NewDatabase) -> None:
    shop.run("backup", "shop")
    taken = new_database(pg15).split("dbname=")[1].split()[0]
    assert shop.run("restore", "shop", "--at", "latest", "--into", taken, "--json", code=8).json["error"]["exit"] == 8


def test_one_of_two_databases_fails(shop: Site) -> None:
    """The first one's failure does not cost the second its backup."""
    outcome = shop.run("backup", "--json", code=6)
    assert [row["database"] for row in outcome.json] == ["shop"]
    assert "broken" in outcome.err
    assert [row["database"] for row in shop.backups()] == ["shop"]
    assert len(shop.backups("shop")) == 1


def test_busy(shop: Site) -> None:
    """While another session holds the backup's lock; which one it is, a second run learns from a first one."""
    shop.run("backup", "shop")
    (marker,) = (json.loads((shop.folder / "repository" / "backupd.json").read_text())["repository"],)
    assert marker
    with psycopg.connect(_dsn(shop), autocommit=True) as connection:
        claim.take(connection, marker, "backup")
        outcome = shop.run("backup", "shop", "--json", code=75)
    assert outcome.json["error"]["exit"] == 75
    assert len(shop.backups()) == 1


def _dsn(site: Site) -> str:
    from backupd.config import load

    database = load(site.config, site.environ).database("shop")
    assert database.password is not None
    return psycopg.conninfo.make_conninfo(
        database.dsn.get_secret_value(), password=database.password.get_secret_value()
    )


# ---- stdout is for results


def test_json_is_alone_on_stdout(shop: Site) -> None:
    """And parses, while progress goes to stderr."""
    made = shop.run("backup", "shop", "--json")
    assert made.json[0]["rows"] == 100
    assert "locking tables" in made.err
    assert shop.run("list", "--json").json == made.json
    shown = shop.run("show", "shop", "--json")
    assert shown.json["id"] == made.json[0]["id"]
    plan = shop.run("restore", "shop", "--at", "latest", "--dry-run", "--json")
    assert plan.json["dry_run"] is True


def test_quiet(shop: Site) -> None:
    shop.run("backup", "shop")  # the first one warns, quiet or not, that it begins a repository
    command = [*COMMAND, "--quiet", "--config", str(shop.config), "backup", "shop"]
    done = subprocess.run(command, capture_output=True, text=True, env=shop.environ, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith("shop: backup ")


def test_log_lines_as_json(shop: Site) -> None:
    command = [*COMMAND, "--log-format", "json", "--config", str(shop.config), "backup"]
    done = subprocess.run(command, capture_output=True, text=True, env=shop.environ, check=False)
    assert done.returncode == 6
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert len(lines) > 3
    for line in lines:
        assert {"time", "level", "message"} <= set(line)
    progress = [line for line in lines if line["level"] == "info"]
    assert {line["database"] for line in progress} == {"shop", "broken"}
    assert {line["stream"] for line in progress if "stream" in line} == {"schema", "globals", "data-0000"}
    (failure,) = [line for line in lines if line["level"] == "error"]
    assert failure["exit"] == 6
    assert failure["hint"]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["list"], id="list"),
        pytest.param(["--help"], id="--help"),
        pytest.param(["list", "--json"], id="list --json", marks=pytest.mark.large),
        pytest.param(["show", "shop"], id="show shop", marks=pytest.mark.large),
    ],
)
def test_reader_that_hangs_up(shop: Site, command: list[str]) -> None:
    """`backupd list | head -0`: no complaint, and no exit code that looks like a failure of ours."""
    shop.run("backup", "shop")
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            shop.command(*command), stdout=writer, stderr=subprocess.PIPE, text=True, env=shop.environ, check=False
        )
    finally:
        os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 141


def test_error_whose_reader_hangs_up(site: Site) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            site.command("show", "nothing", "--json"),
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            env=site.environ,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 141


def test_full_disk_behind_stdout(shop: Site) -> None:
    """A result that could not be written is not success."""
    shop.run("backup", "shop")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            shop.command("list"), stdout=full, stderr=subprocess.PIPE, text=True, env=shop.environ, check=False
        )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr


# ---- what a name may do to a terminal


def test_names_do_not_steer_the_terminal(tmp_path: Path, pg15: ThrowawayServer, new_database: NewDatabase) -> None:
    """Table names are data: an escape sequence, a line break or a C1 control character in one is shown, not sent."""
    dsn = new_database(pg15)
    evil = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\x7f‮evil"
    with psycopg.connect(dsn) as connection:
        name = psycopg.sql.Identifier(evil)
        connection.execute(psycopg.sql.SQL("create table {} (id int)").format(name))
        connection.execute(psycopg.sql.SQL("create table plain (id int)"))
    site = local_site(tmp_path / "site", {"shop": dsn})
    site.set("large_table_size", '"0"', table="defaults")
    for command in (["backup"], ["backup", "--json"], ["show", "shop"], ["show", "shop", "--json"], ["list"]):
        done = subprocess.run(site.command(*command), capture_output=True, env=site.environ, check=True)
        raw = (done.stdout + done.stderr).decode()
        assert [c for c in raw if not c.isprintable() and c != "\n"] == [], command
        assert not any(line.startswith(("\x9b", "31m")) for line in raw.splitlines())
    tables = json.loads(site.run("show", "shop", "--json").out)["tables"]
    assert evil in {table["name"] for table in tables}  # and JSON still says exactly what it is
    logged = subprocess.run(
        [*COMMAND, "--log-format", "json", *site.command("backup")[len(COMMAND) :]],
        capture_output=True,
        env=site.environ,
        check=True,
    )
    assert [c for c in logged.stderr.decode() if not c.isprintable() and c != "\n"] == []


def test_a_terminal_that_knows_no_unicode(shop: Site) -> None:
    shop.run("backup", "shop")
    environ = {**shop.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    shop.edit(lambda text: text.replace("[databases.broken]", "[databases.broken]\n# Grüße"))
    for command in (["list"], ["show", "shop"], ["show", "shop", "--json"]):
        subprocess.run(shop.command(*command), capture_output=True, env=environ, check=True)


# ---- signals


def test_hangup_in_a_restore_leaves_no_database(shop: Site, pg15: ThrowawayServer, tmp_path: Path) -> None:
    """The terminal is closed at 3 a.m.: what was begun is removed, as for Ctrl-C."""
    shop.run("backup", "shop")
    gate = _slow_pg_restore(tmp_path, shop)
    process = shop.start("restore", "shop", "--at", "latest", "--into", "cli_back", "--yes")
    try:
        with gate.open() as waiting:  # opens when pg_restore does
            assert waiting.read(1) == "x"
        process.send_signal(signal.SIGHUP)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
        with psycopg.connect(pg15.dsn()) as connection:
            left = connection.execute("select from pg_database where datname = 'cli_back'").rowcount
        drop_database(pg15, "cli_back")
    assert process.returncode == 128 + signal.SIGHUP
    assert "was removed" in errors
    assert not left


def test_jobs_that_lock_each_other_out_are_followed_by_one(shop: Site, pg15: ThrowawayServer, tmp_path: Path) -> None:
    """As pg_restore's do now and then with partitions: the parallel one fails here half-way."""
    source = jobs.dsn(load(shop.config, shop.environ).databases["shop"])
    with psycopg.connect(source.text()) as connection:
        connection.execute("create table keyed (id int primary key, other int unique)")
        connection.execute("create index on keyed (id, other)")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("pg_dump", "pg_dumpall", "pg_restore"):
        real = Path("/usr/lib/postgresql/15/bin") / name
        fails = f'''case "$*" in *--section=post-data*--jobs=2*)
"{real}" "$@" || exit 1; echo "pg_restore: error: could not execute query: ERROR:  deadlock detected" >&2; exit 1;; esac
'''
        (programs / name).write_text(f'#!/bin/sh\n{fails if name == "pg_restore" else ""}exec "{real}" "$@"\n')
        (programs / name).chmod(0o755)
    shop.set("bin_dirs", json.dumps([str(programs)]), table="postgres")
    shop.run("backup", "shop")
    try:
        outcome = shop.run("restore", "shop", "--at", "latest", "--into", "cli_again", "--jobs", "2", "--yes")
        assert "locked each other out" in outcome.err
        with psycopg.connect(pg15.dsn("cli_again")) as connection:
            indexes = connection.execute("select from pg_indexes where tablename = 'keyed'").rowcount
        assert indexes == 3
    finally:
        drop_database(pg15, "cli_again")


_ENDED_IN_A_DESTRUCTOR = """
import signal, sys, time
from backupd import cli

class Late:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
        for _ in range(10): pass

@cli.app.command()
def wait():
    Late()
    time.sleep(50)

sys.exit(cli.run(["wait"]))
"""


def test_a_signal_is_not_lost_where_python_drops_exceptions() -> None:
    command = [sys.executable, "-c", _ENDED_IN_A_DESTRUCTOR]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert "interrupted" in done.stderr


def _slow_pg_restore(folder: Path, site: Site) -> Path:
    """PostgreSQL's programs with a pg_restore that says it is there and then hangs; and where it says so."""
    programs, gate = folder / "programs", folder / "gate"
    programs.mkdir()
    os.mkfifo(gate)
    for name in ("pg_dump", "pg_dumpall", "pg_restore"):
        real = Path("/usr/lib/postgresql/15/bin") / name
        script = programs / name
        hang = f'printf x > "{gate}"\nexec sleep 60\n' if name == "pg_restore" else f'exec "{real}" "$@"\n'
        script.write_text(f"#!/bin/sh\n{hang}")
        script.chmod(0o755)
    site.set("bin_dirs", json.dumps([str(programs)]), table="postgres")
    return gate
