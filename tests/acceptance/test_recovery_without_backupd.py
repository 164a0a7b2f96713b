"""docs/recovery-without-backupd.md, followed to the letter: its blocks bring a nasty database back on an empty server,
and refuse a backup that was tampered with, with age, zstd, minisign and PostgreSQL's programs alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from backupd.postgres.server import FAST, ThrowawayServer
from backupd.postgres.tools import choose_server, find_installations
from tests.postgres import NewDatabase, client_for, dump_sql, run
from tests.programs import program
from tests.site import Site, local_site

PAGE = Path(__file__).parents[2] / "docs/recovery-without-backupd.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLAIN = ("bash", "cat", "grep", "mktemp", "rm", "sha256sum", "tee", "xargs")  # what every Linux has
FOREIGN = ("age", "zstd", "minisign")
POSTGRES = ("psql", "pg_restore", "vacuumdb")

ROLES = ('"shop owner"', '"the ""app"""', "reader")
NASTY = r'''
create schema "We""ird sch'ema ä" authorization "shop owner";
grant usage on schema "We""ird sch'ema ä" to reader;
set role "shop owner";
set search_path = "We""ird sch'ema ä";
create type mood as enum ('so so', 'o''k');
create table "a table.with $everything *" (
    id bigint generated always as identity primary key, "the ""text""" text default E'a\nb', m mood default 'so so');
insert into "a table.with $everything *" ("the ""text""") select repeat('x', g) || E'\t\\N\\.\n' || chr(233)
    from generate_series(1, 200) g;
create table "Child" (id serial primary key,
    parent bigint not null references "a table.with $everything *", check (parent > 0));
insert into "Child" (parent) select 1 + g % 200 from generate_series(1, 5000) g;
create index "an index" on "Child" (parent) where id > 10;
create view "a view" as select count(*) from "Child";
create materialized view totals as select parent, count(*) from "Child" group by parent;
create unique index on totals (parent);
create table parts (at date, v int) partition by range (at);
create table parts_1 partition of parts for values from ('2025-01-01') to ('2026-01-01');
create table parts_2 partition of parts for values from ('2026-01-01') to ('2027-01-01');
insert into parts select date '2025-06-01' + g, g from generate_series(1, 400) g;
create table empty ();
create table hashed (m mood, v int) partition by hash (m);
create table hashed_0 partition of hashed for values with (modulus 2, remainder 0);
create table hashed_1 partition of hashed for values with (modulus 2, remainder 1);
insert into hashed select (enum_range(null::mood))[1 + g % 2], g from generate_series(1, 100) g;
create sequence "odd seq" increment 7;
select nextval('"odd seq"') from generate_series(1, 5);
create function "tr ig"() returns trigger language plpgsql as $$ begin raise exception 'not on restore'; end $$;
create trigger t before insert on "Child" execute function "tr ig"();
grant select on "Child" to "the ""app""" with grant option;
select lo_from_bytea(4711, decode(repeat('00ff10', 5000), 'hex'));
grant select on large object 4711 to reader;
comment on large object 4711 is 'It''s large';
reset role;
drop schema public;
comment on database {name} is 'the "shop", it''s ours';
alter database {name} set search_path = "We""ird sch'ema ä", pg_catalog;
alter database {name} set "app.tenant" = 'o''ne, "two"';
alter database {name} set statement_timeout = '17min';
alter role reader in database {name} set work_mem = '5MB';
alter database {name} connection limit 33;
alter database {name} owner to "shop owner";
revoke connect on database {name} from public;
grant connect on database {name} to reader, "the ""app""";
'''
SOURCE = "sh\"op '1'"  # the database's name on its server
TARGET = 'back "again" it\'s'


@dataclass(frozen=True)
class Kept:
    """A backup, and what is needed to open it."""

    site: Site
    source: ThrowawayServer
    id: str

    @property
    def repository(self) -> Path:
        return self.site.folder / "repository"


@pytest.fixture
def kept(tmp_path: Path, pg15: ThrowawayServer, new_database: NewDatabase) -> Iterator[Kept]:
    dsn = new_database(pg15, SOURCE, options="ENCODING 'UTF8'")
    with psycopg.connect(pg15.dsn(), autocommit=True) as connection:
        for role in ROLES:
            connection.execute(f"create role {role}".encode())
    try:
        with psycopg.connect(dsn) as connection:
            connection.execute(NASTY.format(name='"' + SOURCE.replace('"', '""') + '"').encode())
        site = local_site(tmp_path / "site", {"eu.shop": dsn})
        site.set("large_table_size", '"0"', table="defaults")
        (made,) = site.run("backup", "--json").json
        yield Kept(site, pg15, made["id"])
    finally:
        with psycopg.connect(pg15.dsn(), autocommit=True) as connection:
            connection.execute(f'drop database if exists "{SOURCE.replace(chr(34), chr(34) * 2)}"'.encode())
            for role in ROLES:
                connection.execute(f"drop role {role}".encode())


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[ThrowawayServer]:
    """A server that has nothing yet."""
    with ThrowawayServer(choose_server(find_installations(), 15), tmp_path / "elsewhere", port=0, settings=FAST) as new:
        yield new


def tools(folder: Path, server: ThrowawayServer) -> Path:
    """A folder with what the page asks for, and nothing else."""
    folder.mkdir()
    client = client_for(server)
    for name in PLAIN:
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    for name in FOREIGN:
        (folder / name).symlink_to(program(name))
    for name in POSTGRES:
        (folder / name).symlink_to(client.program(name))
    return folder


def script(variables: Mapping[str, str]) -> str:
    """The page's blocks, with the variables of the first set to these values."""
    first, *rest = BLOCK.findall(PAGE.read_text())
    names = re.findall(r"(?m)^export ([A-Z]+)=", first)
    assert sorted(names) == sorted(variables), "the first block sets other variables than the test"
    assert len(first.splitlines()) == len(names)
    return "".join([*(f"export {name}={_quoted(value)}\n" for name, value in variables.items()), *rest])


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def recover(kept: Kept, target: ThrowawayServer, folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    variables = {
        "REPOSITORY": str(kept.repository),
        "DATABASE": "eu.shop",
        "ID": kept.id,
        "IDENTITY": str(kept.site.folder / "identity.age"),
        "SIGNER": (kept.site.folder / "signing.pub").read_text().splitlines()[1],
        "TARGET": TARGET,
        "JOBS": "3",
    }
    path = folder / "recover.sh"
    path.write_text(script(variables | changes))
    scratch = folder / "tmp"
    scratch.mkdir()
    environ = {
        "PATH": str(tools(folder / "bin", target)),
        "HOME": str(folder),
        "TMPDIR": str(scratch),
        "PGHOST": "127.0.0.1",
        "PGPORT": str(target.port),
        "PGUSER": "postgres",
        "PGPASSWORD": target.password,
    }
    bash = shutil.which("bash")
    assert bash
    return subprocess.run(
        [bash, "-euo", "pipefail", str(path)],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=folder,
    )


def settings(server: ThrowawayServer, name: str) -> list[tuple[object, ...]]:
    """What dumps of a database leave out."""
    with psycopg.connect(server.dsn()) as connection:
        return connection.execute(
            """
            select pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datctype, datconnlimit,
                   array(select a::text from unnest(datacl) a order by 1), shobj_description(d.oid, 'pg_database'),
                   array(select concat(setrole::regrole, ' ', c) from pg_db_role_setting, unnest(setconfig) c
                         where setdatabase = d.oid order by 1)
            from pg_database d where datname = %s
            """,
            [name],
        ).fetchall()


def roles(server: ThrowawayServer) -> list[str]:
    text = run(client_for(server), "pg_dumpall", "--roles-only", f"--dbname={server.dsn()}").decode()
    return sorted(line for line in text.splitlines() if re.match("(CREATE|ALTER) ROLE (?!postgres)|GRANT", line))


def test_the_page_brings_everything_back(kept: Kept, elsewhere: ThrowawayServer, tmp_path: Path) -> None:
    streams = kept.site.run("show", "eu.shop", "--json").json["streams"]
    assert len([stream for stream in streams if stream["kind"] == "data"]) >= 5
    done = recover(kept, elsewhere, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stderr.splitlines() if "already exists" not in line] == []
    client = client_for(kept.source)
    before = dump_sql(client, kept.source.dsn(SOURCE))
    assert len(before) > 5000
    assert dump_sql(client, elsewhere.dsn(TARGET)) == before
    assert settings(elsewhere, TARGET) == settings(kept.source, SOURCE) != []
    assert set(ROLES) <= {match[1] for line in roles(elsewhere) if (match := re.match("CREATE ROLE (.*);", line))}
    assert list((tmp_path / "tmp").iterdir()) == []  # nothing with secrets in it stays
    with psycopg.connect(elsewhere.dsn(TARGET)) as connection:
        analyzed = connection.execute("select count(*) from pg_stats where schemaname like 'We%'").fetchone()
    assert analyzed is not None
    assert analyzed[0] > 5
    check_that_counting_fails(kept, elsewhere, tmp_path)


def check_that_counting_fails(kept: Kept, elsewhere: ThrowawayServer, tmp_path: Path) -> None:
    """The counting block by itself, when a row is gone: it names the table, and fails."""
    with psycopg.connect(elsewhere.dsn(TARGET)) as connection:
        connection.execute('delete from "We""ird sch\'ema ä"."Child" where id = 7')
    counting = next(block for block in BLOCK.findall(PAGE.read_text()) if "as counted" in block)
    environ = {
        **os.environ,
        "TARGET": TARGET,
        "WORK": str(tmp_path),
        "MANIFEST": str(kept.repository / f"eu.shop/manifests/{kept.id}.json"),
        "PGHOST": "127.0.0.1",
        "PGPORT": str(elsewhere.port),
        "PGUSER": "postgres",
        "PGPASSWORD": elsewhere.password,
        "PGCLIENTENCODING": "UTF8",
        "PATH": str(tmp_path / "bin"),
    }
    bash = str(shutil.which("bash"))
    failed = subprocess.run(
        [bash, "-euo", "pipefail", "-c", counting], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert failed.returncode != 0
    assert failed.stdout == '"We""ird sch\'ema ä"."Child"|5000|4999\n'


def test_it_stops_at_a_damaged_object(kept: Kept, elsewhere: ThrowawayServer, tmp_path: Path) -> None:
    path = kept.repository / f"eu.shop/data/{kept.id}/data-0001.dump.zst.age"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = recover(kept, elsewhere, tmp_path)
    assert done.returncode != 0
    assert "data-0001.dump.zst.age: FAILED" in done.stdout
    assert settings(elsewhere, TARGET) == []


def test_it_stops_at_another_signer(kept: Kept, elsewhere: ThrowawayServer, tmp_path: Path) -> None:
    other = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"
    done = recover(kept, elsewhere, tmp_path, SIGNER=other)
    assert done.returncode != 0
    assert "key id" in done.stdout + done.stderr
    assert settings(elsewhere, TARGET) == []


def test_it_stops_at_a_manifest_of_another_backup(kept: Kept, elsewhere: ThrowawayServer, tmp_path: Path) -> None:
    """Genuine, and in another backup's place: only the trusted comment tells."""
    other = "20300101T000000Z-aaaaaa"
    for folder, ending in (("manifests", ".json"), ("signatures", ".json.minisig")):
        place = kept.repository / "eu.shop" / folder
        shutil.copy(place / f"{kept.id}{ending}", place / f"{other}{ending}")
    shutil.copytree(kept.repository / f"eu.shop/data/{kept.id}", kept.repository / f"eu.shop/data/{other}")
    done = recover(kept, elsewhere, tmp_path, ID=other)
    assert done.returncode != 0
    assert (done.stdout, done.stderr) == ("", "")  # before anything else is read
    assert settings(elsewhere, TARGET) == []
