"""Sources whose catalogs are odd: what a test restore wants to know of them must not cost them their backup."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from backupd.postgres.server import ThrowawayServer
from tests.postgres import NewDatabase
from tests.site import Site, local_site

# What people who came from 8.2 made, so that anything could be put together with ||.
CASTS = "".join(
    f"create cast ({kind} as text) with inout as implicit;" for kind in ("smallint", "oid", "bigint", "int", "numeric")
)


def content_site(folder: Path, dsn: str) -> Site:
    site = local_site(folder, {"odd": dsn})
    site.set("fingerprint", '"content"', table="databases.odd.verify")
    return site


def test_casts_that_make_operators_ambiguous(pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path) -> None:
    dsn = new_database(pg15)
    with psycopg.connect(dsn) as connection:
        connection.execute(CASTS.encode())
        connection.execute("create table t as select 1 as i; select lo_from_bytea(0, 'large')")
        connection.execute("create operator family f using btree; create sequence s")
    site = content_site(tmp_path, dsn)
    assert "compare" not in site.run("backup").err
    assert site.run("verify", "odd", "--json").json["status"] == "passed"


def test_names_that_are_no_text(pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path) -> None:
    """In an SQL_ASCII database they are whatever bytes somebody's terminal sent."""
    dsn = new_database(pg15, options="encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C'")
    with psycopg.connect(dsn, client_encoding="latin1") as connection:
        connection.execute("create table t (größe int); insert into t values (1), (2)")
        connection.execute("create sequence größe; select nextval('größe')")
    site = content_site(tmp_path, dsn)
    assert "compare" not in site.run("backup").err
    proof = site.run("verify", "odd", "--json").json
    assert proof["status"] == "passed"
    compared = {check["name"]: check["detail"] for check in proof["checks"] if check["status"] == "passed"}
    assert compared["sequence values"] == "1 sequences"
    assert "1 tables" in compared["content"]


def test_a_login_trigger_writes_nothing_into_the_copy(
    pg17: ThrowawayServer, new_database: NewDatabase, tmp_path: Path
) -> None:
    dsn = new_database(pg17)
    with psycopg.connect(dsn) as connection:
        connection.execute(
            """
            create table logins (at timestamptz);
            create function note() returns event_trigger language plpgsql as
              $$ begin insert into public.logins values (now()); end $$;
            create event trigger note on login execute function note();
            alter event trigger note enable always
            """
        )
    site = content_site(tmp_path, dsn)
    site.run("backup")
    assert site.run("verify", "odd", "--json").json["status"] == "passed"
    site.set("scratch", f'"{pg17.dsn()}"', table="databases.odd.verify")
    assert site.run("verify", "odd", "--json").json["status"] == "passed"


@pytest.mark.parametrize(
    "said",
    [
        "No such file or directory",
        *(pytest.param(each, marks=pytest.mark.large) for each in ("out of memory", "could not extend file")),
        "terminating connection",
    ],
)
def test_what_a_backup_says_itself_is_no_trouble_of_the_server(
    pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path, said: str
) -> None:
    """A constraint that no row passes any more, and that says what a server in trouble would say."""
    dsn = new_database(pg15)
    with psycopg.connect(dsn) as connection:
        connection.execute(
            f"""
            create function fits(int) returns boolean language plpgsql as $$ begin return true; end $$;
            create table t (i int check (fits(i)));
            insert into t values (7);
            create or replace function fits(int) returns boolean language plpgsql as
              $$ begin raise '{said}: %', $1; end $$
            """.encode()
        )
    site = content_site(tmp_path, dsn)
    site.run("backup")
    proof = site.run("verify", "odd", "--json", code=4).json
    assert proof["status"] == "failed"
    assert said not in str(proof), "what people wrote stands in a proof, which is plain"
    assert said in site.run("verify", "odd", code=4).out


def test_a_server_without_room_for_temporary_files_says_nothing_of_the_backup(
    pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path
) -> None:
    dsn = new_database(pg15)
    with psycopg.connect(dsn) as connection:
        connection.execute("create table t as select i, md5(i::text) s from generate_series(1, 200000) i")
        connection.execute("create index on t (s, i)")
    site = content_site(tmp_path, dsn)
    settings = '{ temp_file_limit = "64kB", maintenance_work_mem = "1MB", max_parallel_maintenance_workers = "0" }'
    site.set("scratch_settings", settings, table="databases.odd.verify")
    site.run("backup")
    assert site.run("verify", "odd", "--json", code=6).json["status"] == "inconclusive"


@pytest.mark.large
def test_a_row_that_is_too_large_to_be_hashed(pg15: ThrowawayServer, new_database: NewDatabase, tmp_path: Path) -> None:
    """COPY writes it; as a row's text it would be more than 1 GB, since quotes are doubled there."""
    dsn = new_database(pg15)
    with psycopg.connect(dsn) as connection:
        connection.execute("create table huge as select repeat('\"', 540 * 1000 * 1000) as quotes")
        connection.execute("create table usual as select generate_series(1, 10) i")
    site = content_site(tmp_path, dsn)
    assert "the rows of a table could not be hashed" in site.run("backup").err
    proof = site.run("verify", "odd", "--json").json
    assert proof["status"] == "passed"
    (content,) = (check for check in proof["checks"] if check["name"] == "content")
    assert content["detail"] == (
        "every column of every row of 1 tables; not of public.huge, which the backup could not hash"
    )
