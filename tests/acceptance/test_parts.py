"""`restore --table` and `--schema`: what comes back is what pg_dump says is theirs, and the rest is told beforehand."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest

from backupd.postgres.names import identifier
from backupd.postgres.patterns import parse
from backupd.postgres.server import ThrowawayServer
from tests.acceptance.torture import torture
from tests.faulty_proxy import FaultyProxy
from tests.postgres import TESTED_MAJORS, NewDatabase, bulk, client_for, drop_database, run
from tests.seaweed import SeaweedServer
from tests.site import Site, local_site, s3_site

COPY = f"part_{os.getpid()}"
MIB = 1 << 20

Objects = dict[tuple[str, str, str], list[str]]  # what each is: kind, schema and name, to its definition or rows
_HEADER = re.compile(r"^-- (?:Data for )?Name: (.*); Type: (.*); Schema: (.*); Owner: .*$", re.MULTILINE)
_NOISE = re.compile(r"(?m)^\\(?:un)?restrict .*\n|^SET .*\n|^--\n|^-- PostgreSQL database dump complete\n")
_REMARKS = ("COMMENT", "ACL")
MOVING = "parted_enum_"  # partitions by the hash of an enum, in which rows are elsewhere in each database


def objects(server: ThrowawayServer, dsn: str, *options: str) -> Objects:
    """What pg_dump finds in a database, one by one; rows in any order."""
    client = client_for(server)
    text = run(client, "pg_dump", "--quote-all-identifiers", f"--dbname={dsn}", *options).decode()
    text = _NOISE.sub("", text)
    found = defaultdict(list)
    headers = list(_HEADER.finditer(text))
    ends = [header.start() for header in headers[1:]] + [len(text)]
    for header, end in zip(headers, ends, strict=True):
        name, kind, schema = header.groups()
        found[kind, "" if schema == "-" else schema, name].append(_sorted(text[header.end() : end]))
    return {key: sorted(bodies) for key, bodies in found.items()}


def _sorted(text: str) -> str:
    """Its lines, without the table that rows are loaded into: of some partitions that is the one at the top."""
    text = re.sub(r"(?m)^-- load via partition root .*|(?<=^COPY ).*(?= \()", "", text)
    text = text.replace(" DEFAULT NULL", "")  # it says that a parent's default is not inherited, where there is one
    return "\n".join(sorted(line for line in text.split("\n") if line))


def rows(found: Objects, keys: Sequence[tuple[str, str, str]]) -> list[str]:
    return sorted(line for key in keys for body in found[key] for line in body.split("\n"))


def said(key: tuple[str, str, str]) -> str:
    """As backupd names it."""
    kind, schema, name = key
    return f"{kind.lower()} {schema}.{name}" if schema else f"{kind.lower()} {name}"


def one_line(names: Sequence[str]) -> set[str]:
    """As pg_dump's headers have them."""
    return {re.sub(r"[\r\n]", " ", name) for name in names}


def relations(dsn: str) -> list[tuple[str, str, str]]:
    """Kind, schema and name of each, but for the sequences of identity columns."""
    kinds = {"r": "TABLE", "p": "TABLE", "f": "FOREIGN TABLE", "v": "VIEW", "m": "MATERIALIZED VIEW", "S": "SEQUENCE"}
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            """
            select relkind::text, nspname, relname from pg_class c join pg_namespace n on n.oid = relnamespace
            where nspname !~ '^pg_' and nspname <> 'information_schema' and relkind::text = any(%s)
              and not exists (select from pg_depend d where classid = 1259 and objid = c.oid
                              and (deptype = 'e' or deptype = 'i' and relkind = 'S'))
            order by 2, 3
            """,
            [list(kinds)],
        ).fetchall()
    return [(kinds[kind], schema, name) for kind, schema, name in rows]


class Torture:
    """The torture database of one server, and a backup of it."""

    def __init__(self, server: ThrowawayServer, folder: Path, name: str) -> None:
        self.server, self.dsn = server, server.dsn(name)
        torture(server, self.dsn)
        self.site = local_site(folder, {"torture": self.dsn})
        self.site.set("large_table_size", '"256KiB"', table="databases.torture")
        self.site.run("backup")
        self.whole = objects(server, self.dsn)

    def restore(self, *options: str, code: int = 0) -> Any:
        return self.site.run("restore", "torture", "--at", "latest", "--into", COPY, *options, "--json", code=code).json

    def check(self, restored: Any) -> None:
        """The copy holds what it should and nothing else, and the plan told the difference."""
        there = objects(self.server, self.server.dsn(COPY))
        along, left_out = one_line(restored["along"]), one_line(restored["left_out"])
        own = [(s, n) for kind, s, n in relations(self.server.dsn(COPY)) if said((kind, s, n)) not in along]
        options = [f"--table={identifier(schema)}.{identifier(name)}" for schema, name in own]
        wanted = objects(self.server, self.dsn, *options)
        missing = {said(key) for key in wanted if key not in there and key[0] not in _REMARKS}
        lone_sequence = {
            name for name in left_out if name.startswith("sequence owned by ")
        }  # pg_dump has those as well
        assert missing | lone_sequence == left_out
        for remark in (said(key) for key in wanted if key not in there and key[0] in _REMARKS):
            assert any(name.rpartition(" ")[2] in remark for name in left_out), remark
        extra = {
            said(key) for key in there if key not in wanted and key[0] not in (*_REMARKS, "TABLE DATA", "SEQUENCE SET")
        }
        # A schema is asked for or comes along; pg_dump 17 and later leave statistics of chosen tables out.
        told = along - {said(key) for key in wanted}
        # What a view says is its rule's where pg_dump has to create it twice, which it need not in a smaller dump.
        usual = [name for name in extra ^ told if not name.endswith(" _RETURN")]
        assert {name for name in usual if not name.startswith(("schema ", "statistics "))} == set()
        for key, bodies in there.items():
            if key[0] == "TABLE DATA" and f"table {key[1]}.{key[2]}" in along:
                assert not re.search(r"(?m)^\d", bodies[0]), f"rows of {key}"
            elif key[0] == "TABLE DATA" and key[2].startswith(MOVING):
                continue
            elif key[2] != 'SCHEMA "public"':
                assert bodies in (self.whole[key], wanted.get(key)), key
        moved = [key for key in there if key[0] == "TABLE DATA" and key[2].startswith(MOVING)]
        assert rows(there, moved) == rows(wanted, [key for key in moved if key in wanted])


@pytest.fixture(scope="module")
def tortures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Torture]]:
    """One for each version, made when first asked for."""
    name = f"parts_{os.getpid()}"

    class Made(dict[int, Torture]):
        def __missing__(self, major: int) -> Torture:
            server: ThrowawayServer = request.getfixturevalue(f"pg{major}")
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute(f"create database {name} template template0 encoding 'UTF8'".encode())
            self[major] = Torture(server, tmp_path_factory.mktemp(f"torture{major}"), name)
            return self[major]

    made = Made()
    yield made
    for each in made.values():
        drop_database(each.server, name)


@pytest.fixture
def dropped_after() -> Iterator[list[ThrowawayServer]]:
    """Servers on which the copy is dropped when the test is over."""
    servers: list[ThrowawayServer] = []
    yield servers
    for server in servers:
        drop_database(server, COPY)


# ---- the torture database, piece by piece


ALONE = [
    (15, ("--table", "constrained")),
    (15, ("--table", "secured", "--table", "ruled")),
    (17, ("--table", "serials", "--table", "borrows")),
    (17, ("--table", "parted", "--table", "parted_enum_0")),
    (17, ("--table", "egg", "--table", "orphans", "--with-references")),
    (18, ("--table", "torture.pong", "--table", "mat", "--table", "torture.d*")),
    (18, ("--table", "on_18_child", "--with-references")),
    (18, ("--schema", '"select"', "--table", "foreign_table")),
]


@pytest.mark.parametrize("major, options", ALONE, ids=[f"pg{m} {' '.join(o)}" for m, o in ALONE])
def test_parts(
    tortures: dict[int, Torture], dropped_after: list[ThrowawayServer], major: int, options: tuple[str, ...]
) -> None:
    world = tortures[major]
    dropped_after.append(world.server)
    world.check(world.restore(*options))


@pytest.mark.large
@pytest.mark.parametrize("major", [15, *(pytest.param(m, marks=pytest.mark.large) for m in TESTED_MAJORS[1:])])
def test_each_relation_alone(tortures: dict[int, Torture], major: int) -> None:
    world = tortures[major]
    places = [(schema, name) for _, schema, name in relations(world.dsn) if schema in ("torture", "hidden", "public")]
    assert len(places) > 120
    try:
        for schema, name in places:
            world.check(world.restore("--table", f"{identifier(schema)}.{identifier(name)}"))
            drop_database(world.server, COPY)
    finally:
        drop_database(world.server, COPY)


@pytest.mark.large
@pytest.mark.parametrize("major", [18, *(pytest.param(m, marks=pytest.mark.large) for m in TESTED_MAJORS[:-1])])
def test_each_schema_alone(tortures: dict[int, Torture], dropped_after: list[ThrowawayServer], major: int) -> None:
    world = tortures[major]
    dropped_after.append(world.server)
    for schema in ("torture", "hidden", '"select"', "empty_schema", '"We.ird"*', "*"):
        restored = world.restore("--schema", schema)
        there = objects(world.server, world.server.dsn(COPY))
        schemas = {identifier(place) for _, place, _ in relations(world.dsn)} if schema == "*" else {schema}
        wanted = objects(world.server, world.dsn, *(f"--schema={each}" for each in schemas))
        missing = {said(k) for k in wanted if k not in there and k[0] not in _REMARKS}
        missing.discard("schema public")  # pg_dump writes it when asked for, and every database has it
        assert {name for name in missing if not name.endswith(" _RETURN")} == one_line(restored["left_out"])
        drop_database(world.server, COPY)


def test_the_plan_tells_what_comes_and_what_stays(tortures: dict[int, Torture]) -> None:
    plan = tortures[15].restore("--table", "secured", "--dry-run")
    assert plan["left_out"] == ["policy torture.secured readers"]
    assert plan["along"] == ["schema torture"]
    assert (plan["tables"], plan["rows"]) == (1, 60)
    assert [stream["key"].rpartition("/")[2].partition(".")[0] for stream in plan["streams"]] == ["schema", "data-0000"]
    shown = tortures[15].site.run("restore", "torture", "--at", "latest", "--table", "secured", "--dry-run").out
    assert "policy torture.secured readers" in shown


@pytest.mark.parametrize(
    "options, near",
    [
        (["--table", "securd"], "torture.secured"),
        (["--table", "torture.Wide"], None),
        (["--table", '"Wide"'], "torture.wide"),
        (["--schema", "tortur"], "torture"),
        (["--table", "secured", "--table", "publik.a"], "public.a"),
    ],
)
def test_a_pattern_that_matches_nothing(tortures: dict[int, Torture], options: list[str], near: str | None) -> None:
    if near is None:  # capitals don't count: it matches
        assert tortures[15].restore(*options, "--dry-run")["tables"] == 1
        return
    error = tortures[15].restore(*options, "--dry-run", code=2)["error"]
    assert "in the backup matches" in error["message"]
    assert near in error["detail"]


@pytest.mark.parametrize(
    "options",
    [["--with-references"], ["--schema", "torture", "--with-references"], ["--table", "wide", "--replace"]],
)
def test_options_that_make_no_sense(tortures: dict[int, Torture], options: list[str]) -> None:
    outcome = tortures[15].site.run("restore", "torture", "--at", "latest", *options, "--json", code=2)
    assert outcome.json["error"]["hint"]


def test_patterns_are_psqls(tortures: dict[int, Torture]) -> None:
    """The tables that psql's \\dt lists for a pattern."""
    world = tortures[15]
    client = client_for(world.server)
    patterns = [
        *("public.a", "public.A", 'public."A"', "public.a*", "public.?", 'public."a*"', 'public."a?"', 'public."a.b"'),
        *('public."a""b"', "public.(a|b)", 'public."(a|b)"', "public.[a]", 'public."[a]"', 'public."a{1}"'),
        *('public."$1"', "public.$1", 'public."^a$"', "public.x+", "public.x+y", 'public."*"', "public.Ä", "public.ä"),
        *('"select".a', "select.a", "public.a{1}", "public.*b", "public.[a-b]", "public.aa?", "public.1"),
        *('public."a"b', "publi?.ab", "p*.aab"),
    ]  # fmt: skip
    known = [(schema, name) for kind, schema, name in relations(world.dsn) if kind == "TABLE"]
    for pattern in patterns:
        options = ("--no-psqlrc", "-At", "-R", "\x1e", "-F", "\x1f", "-c", f"\\dt {pattern}")
        listed = run(client, "psql", f"--dbname={world.dsn}", *options).decode()
        rows = [row.split("\x1f") for row in listed.rstrip("\n").split("\x1e") if "\x1f" in row]
        wanted = {(row[0], row[1]) for row in rows if row[2].endswith("table")}
        assert {place for place in known if parse(pattern).matches(*place)} == wanted, pattern


# ---- what is read


class Counted:
    """A site on S3 behind a proxy that counts."""

    def __init__(self, site: Site, proxy: FaultyProxy, server: ThrowawayServer) -> None:
        self.site, self.proxy, self.server = site, proxy, server
        self.streams = {
            stream["key"].rpartition("/")[2].partition(".")[0]: stream
            for stream in site.run("show", "shop", "--json").json["streams"]
        }

    def stored(self, name: str) -> int:
        return int(self.streams[name]["stored_bytes"])

    def restore(self, *options: str) -> dict[str, int]:
        """Bytes read by object: marker, manifest …, or the stream's name."""
        self.proxy.sent.clear()
        self.site.run("restore", "shop", "--at", "latest", "--into", COPY, *options)
        drop_database(self.server, COPY)
        read: Counter[str] = Counter()
        for path, size in self.proxy.sent.items():
            folder, _, name = path.rstrip("/").rpartition("/")
            if "/data/" in path and name:
                read[name.partition(".")[0]] += size
            elif name == "backupd.json":
                read["marker"] += size
            else:
                read[folder.rpartition("/")[2] if name.startswith("2") else "listing"] += size
        return read


SHOP = """
create sequence numbers;
alter table events alter id set default nextval('numbers');
alter table orders add line serial;
create table customers (id int primary key, name text);
insert into customers select i, 'customer ' || i from generate_series(1, 100) i;
create table zz_last (i int);
insert into zz_last values (1), (2);
do $$ begin
  for n in 1..20 loop
    execute format('create table filler_%s as select string_agg(md5(format(''%%s %%s %s'', i, j)), '''') as t'
                   ' from generate_series(1, 450) i, generate_series(1, 60) j group by i', n, n);
  end loop;
end $$;
"""


@pytest.fixture
def counted(
    pg15: ThrowawayServer, new_database: NewDatabase, s3_server: SeaweedServer, s3_bucket: str, tmp_path: Path
) -> Iterator[Counted]:
    """Two tables with streams of their own; in data-0000 a small one before and one behind megabytes of others."""
    dsn = new_database(pg15)
    for table in ("orders", "events"):
        bulk(dsn, table, rows=20_000)
    with psycopg.connect(dsn) as connection:
        connection.execute(SHOP.encode())
    host, _, port = s3_server.endpoint.removeprefix("http://").partition(":")
    with FaultyProxy((host, int(port))) as proxy:
        site = s3_site(tmp_path / "site", s3_server, s3_bucket, {"shop": dsn})
        site.edit(lambda text: text.replace(s3_server.endpoint, proxy.endpoint))
        site.set("large_table_size", '"1MiB"', table="databases.shop")
        site.run("backup")
        yield Counted(site, proxy, pg15)


@pytest.mark.large
@pytest.mark.timeout(1800)
def test_fifty_megabytes_out_of_three_gigabytes(
    pg15: ThrowawayServer, new_database: NewDatabase, s3_server: SeaweedServer, s3_bucket: str, tmp_path: Path
) -> None:
    """With the settings as they come, and rows that nothing compresses: the table is smaller than what is called large
    there, and most of the database is such tables."""
    dsn, random, tables = new_database(pg15), Random(4711), 62
    with psycopg.connect(dsn) as connection:
        connection.execute("create table t0 (id int, payload bytea)")
        connection.execute("alter table t0 alter payload set storage external")
        with connection.cursor() as cursor, cursor.copy("copy t0 from stdin") as copy:
            for number in range(50_000_000 // 980):
                copy.write_row((number, random.randbytes(940)))
        for number in range(1, tables):
            connection.execute(f"create table t{number} as table t0".encode())
        connection.execute("alter table t30 add id2 serial, add primary key (id)")
    site = s3_site(tmp_path / "site", s3_server, s3_bucket, {"shop": dsn})
    (made,) = site.run("backup", "--json", timeout=1500).json
    (size,) = (t["bytes"] for t in site.run("show", "shop", "--json").json["tables"] if t["name"] == "t30")
    host, _, port = s3_server.endpoint.removeprefix("http://").partition(":")
    with FaultyProxy((host, int(port))) as proxy:
        site.edit(lambda text: text.replace(s3_server.endpoint, proxy.endpoint))
        site.run("restore", "shop", "--at", "latest", "--table", "t30", "--into", COPY, timeout=1500)
        drop_database(pg15, COPY)
    read = sum(proxy.sent.values())
    print(f"stored {made['stored_bytes']}, table {size}, read {read}")
    assert made["stored_bytes"] > 3_000_000_000
    assert 49_000_000 < size < 56_000_000
    assert read < 60_000_000


ALWAYS = {"marker", "manifests", "signatures", "schema", "listing"}


def test_no_more_is_read_than_holds_the_parts(counted: Counted) -> None:
    assert set(counted.streams) == {"schema", "globals", "data-0000", "data-0001", "data-0002"}
    (orders,) = (name for name, stream in counted.streams.items() if stream["tables"] == ["public.orders"])
    (events,) = (name for name, stream in counted.streams.items() if stream["tables"] == ["public.events"])
    shared = counted.stored("data-0000")
    assert shared > 8 * MIB
    some = 5 * MIB  # of what goes on behind what is needed, this may wait in pipes and sockets

    read = counted.restore("--table", "orders")  # whose sequence is its own
    assert set(read) - ALWAYS == {orders}
    assert read[orders] == counted.stored(orders)
    assert read["schema"] == counted.stored("schema")
    assert sum(read.values()) < counted.stored(orders) + counted.stored("schema") + (64 << 10)

    read = counted.restore("--table", "events")  # whose sequence is nobody's: its value stands where data-0000 begins
    assert read[events] == counted.stored(events)
    assert 0 < read["data-0000"] < some

    read = counted.restore("--table", "customers")  # the first of those that share a stream
    assert set(read) - ALWAYS == {"data-0000"}
    assert 0 < read["data-0000"] < some

    read = counted.restore("--table", "zz_last")  # and the last
    assert read["data-0000"] > shared * 0.9


@pytest.mark.parametrize("encoding, word", [("LATIN1", "Größe"), ("EUC_JP", "表")])
def test_names_in_other_encodings(
    pg15: ThrowawayServer,
    new_database: NewDatabase,
    tmp_path: Path,
    dropped_after: list[ThrowawayServer],
    encoding: str,
    word: str,
) -> None:
    source = new_database(pg15, options=f"encoding '{encoding}' lc_collate 'C' lc_ctype 'C'")
    with psycopg.connect(source, client_encoding="utf8") as connection:
        for name in (word, "other"):
            connection.execute(f'create table "{name}" (i serial primary key, "{word}" text)'.encode())
            connection.execute(f"insert into \"{name}\" (\"{word}\") values ('{word}'), ('x')".encode())
    site = local_site(tmp_path, {"shop": source})
    site.run("backup")
    dropped_after.append(pg15)
    restored = site.run("restore", "shop", "--at", "latest", "--table", f'"{word}"', "--into", COPY, "--json").json
    assert (restored["tables"], restored["rows"]) == (1, 2)
    with psycopg.connect(pg15.dsn(COPY), client_encoding="utf8") as connection:
        assert connection.execute(f'select "{word}" from "{word}" order by i'.encode()).fetchall() == [(word,), ("x",)]
        connection.execute(f'truncate "{word}"'.encode())
    arguments = ("restore", "shop", "--at", "latest", "--data-only", "--table", f'"{word}"', "--into", COPY, "--json")
    assert site.run(*arguments).json["rows"] == 2
    with psycopg.connect(pg15.dsn(COPY), client_encoding="utf8") as connection:
        assert connection.execute(f'select "{word}" from "{word}" order by i'.encode()).fetchall() == [(word,), ("x",)]
