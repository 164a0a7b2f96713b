"""Which entries of an archive parts of a database are made of: one case for each way in which objects hang together.

tests/acceptance/test_parts.py has the same with real archives; here stands what pg_dump writes for each.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest

from backupd.errors import ConfigError
from backupd.postgres.archive import Entry
from backupd.postgres.selection import Selection, select


class Dump:
    """Entries as pg_dump writes them, in the order of their making. Names of objects here are `schema.name`."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._ids: dict[str, int] = {}
        self._numbers = itertools.count(1)

    def add(self, desc: str, name: str, definition: str = "", needs: Iterable[str] = (), tag: str = "") -> str:
        """An entry; the key under which others need it is `desc name` in small letters."""
        schema, _, last = name.rpartition(".")
        key, number = f"{desc.lower()} {name}", next(self._numbers)
        self._ids[key] = number
        self.entries.append(
            Entry(
                dump_id=number,
                has_data=False,
                table_oid=0,
                oid=0,
                tag=tag or last,
                desc=desc,
                section="pre-data",
                definition=definition or None,
                drop="",
                copy=None,
                schema=schema or None,
                tablespace=None,
                access_method=None,
                relkind=None,
                owner="postgres",
                oids=None,
                dependencies=tuple(self._ids[each] for each in needs),
                place=b"",
            )
        )
        return key

    def table(self, name: str, *needs: str) -> str:
        return self.add("TABLE", name, f"CREATE TABLE {quoted(name)} ();\n", needs)

    def piece(self, desc: str, table: str, name: str, sql: str, *needs: str) -> str:
        """Something of a table: `index s.t i`. Its key ends in its own name alone."""
        schema = table.rpartition(".")[0]
        return self.add(desc, f"{schema}.{name}", sql, (f"table {table}", *needs))

    def key(self, table: str) -> str:
        sql = f'ALTER TABLE ONLY {quoted(table)}\n    ADD CONSTRAINT "k" PRIMARY KEY ("id");\n'
        return self.piece("CONSTRAINT", table, f"{table.rpartition('.')[2]}_pkey", sql)

    def foreign_key(self, table: str, other: str) -> str:
        name = f"{table.rpartition('.')[2]}_to_{other.rpartition('.')[2]}"
        change = f'ADD CONSTRAINT "f" FOREIGN KEY ("o") REFERENCES {quoted(other)}("id")'
        sql = f"ALTER TABLE ONLY {quoted(table)}\n    {change};\n"
        key = f"constraint {other}_pkey"
        return self.piece("FK CONSTRAINT", table, name, sql, f"table {other}", *([key] if key in self._ids else []))

    def attach(self, child: str, parent: str) -> str:
        sql = f"ALTER TABLE ONLY {quoted(parent)} ATTACH PARTITION {quoted(child)} DEFAULT;\n"
        return self.add("TABLE ATTACH", child, sql, (f"table {child}", f"table {parent}"))

    def names(self, ids: Iterable[int]) -> set[str]:
        by_id = {number: key for key, number in self._ids.items()}
        return {by_id[number] for number in ids}

    def select(self, *tables: str, schemas: Iterable[str] = (), with_references: bool = False) -> Selection:
        return select(self.entries, tables, tuple(schemas), with_references=with_references)

    def taken(self, *tables: str, with_references: bool = False) -> set[str]:
        return self.names(self.select(*tables, with_references=with_references).entries)


def quoted(name: str) -> str:
    return ".".join(f'"{part}"' for part in name.split("."))


@pytest.fixture
def dump() -> Dump:
    """Two schemas, each with a table `t` and all that is its own."""
    made = Dump()
    for setting in ("ENCODING", "STDSTRINGS", "SEARCHPATH"):
        made.add(setting, setting)
    made.add("DATABASE", "shop")
    for schema in ("a", "b"):
        made.add("SCHEMA", schema)
        table = made.table(f"{schema}.t", f"schema {schema}")
        made.key(f"{schema}.t")
        made.piece(
            "INDEX", f"{schema}.t", "i", f'CREATE INDEX "i" ON ONLY {quoted(f"{schema}.t")} USING "btree" ("x");\n'
        )
        made.piece(
            "ROW SECURITY", f"{schema}.t", "t", f"ALTER TABLE {quoted(f'{schema}.t')} ENABLE ROW LEVEL SECURITY;"
        )
        made.add("COMMENT", f"{schema}.TABLE t", "", [table])
        made.add("COMMENT", f"{schema}.INDEX i", "", [f"index {schema}.i"])
        acl = made.add("ACL", f"{schema}.TABLE t", "", [table])
        made.add("ACL", f"{schema}.COLUMN t.x", "", [table, acl])
    return made


SETTINGS = {"encoding ENCODING", "stdstrings STDSTRINGS", "searchpath SEARCHPATH"}
OF_A = {
    *("schema a", "table a.t", "constraint a.t_pkey", "index a.i", "row security a.t"),
    *("comment a.TABLE t", "comment a.INDEX i", "acl a.TABLE t", "acl a.COLUMN t.x"),
}


def test_a_table_with_all_that_is_its_own(dump: Dump) -> None:
    chosen = dump.select("a.t")
    assert dump.names(chosen.entries) == SETTINGS | OF_A
    assert (chosen.tables, chosen.along, chosen.left_out) == ((("a", "t"),), ("schema a",), ())


def test_a_name_matches_in_every_schema(dump: Dump) -> None:
    assert dump.select("t").tables == (("a", "t"), ("b", "t"))
    assert dump.select("a.t", "b.*").tables == (("a", "t"), ("b", "t"))


@pytest.mark.parametrize("text", ["x", "c.t", '"T"', "t.a"])
def test_nothing_matches(dump: Dump, text: str) -> None:
    with pytest.raises(ConfigError, match="no table in the backup matches"):
        dump.select(text)


def test_no_schema_matches(dump: Dump) -> None:
    with pytest.raises(ConfigError, match="no schema in the backup matches aa") as raised:
        dump.select(schemas=["aa"])
    assert raised.value.detail == "There is a."
    with pytest.raises(ConfigError, match="is not a pattern for one schema's name"):
        dump.select(schemas=["a.t"])


def test_a_schema(dump: Dump) -> None:
    dump.add("FUNCTION", "a.f()", "", ["schema a"])
    dump.add("TYPE", "a.unused", "", ["schema a"])
    dump.add("DEFAULT ACL", "a.DEFAULT PRIVILEGES FOR TABLES")
    dump.add("PUBLICATION", "p")
    dump.add("PUBLICATION TABLE", "a.p t", "", ["table a.t", "publication p"])
    chosen = dump.select(schemas=["A"])
    more = {"function a.f()", "type a.unused", "default acl a.DEFAULT PRIVILEGES FOR TABLES"}
    assert dump.names(chosen.entries) == SETTINGS | OF_A | more
    assert (chosen.along, chosen.left_out) == ((), ())
    assert dump.select("b.t", schemas=["a"]).tables == (("a", "t"), ("b", "t"))


def test_an_empty_schema(dump: Dump) -> None:
    dump.add("SCHEMA", "nothing")
    assert dump.names(dump.select(schemas=["nothing"]).entries) == SETTINGS | {"schema nothing"}


# ---- what it needs


def test_types_functions_and_extensions_come_along_however_far(dump: Dump) -> None:
    dump.add("EXTENSION", "citext")
    dump.add("COMMENT", "EXTENSION citext", "", ["extension citext"])
    dump.add("DOMAIN", "b.d", "", ["schema b", "extension citext"])
    dump.add(
        "CHECK CONSTRAINT",
        "b.late",
        'ALTER DOMAIN "b"."d"\n    ADD CONSTRAINT "late" CHECK (x) NOT VALID;\n',
        ["domain b.d"],
    )
    dump.add("FUNCTION", "b.f()", "", ["domain b.d"])
    dump.add("FUNCTION", "b.g()")
    dump.table("a.u", "function b.f()")
    chosen = dump.select("a.u")
    along = {"extension citext", "domain b.d", "check constraint b.late", "function b.f()", "schema a", "schema b"}
    assert dump.names(chosen.entries) - SETTINGS == along | {"table a.u", "comment EXTENSION citext"}
    assert set(chosen.along) == along
    assert chosen.tables == (("a", "u"),)


def test_a_key_on_a_base_type_needs_its_operators(dump: Dump) -> None:
    dump.add("TYPE", "b.base", "CREATE TYPE")
    dump.add("OPERATOR CLASS", "b.base_ops", "", ["type b.base"])
    dump.table("a.u", "type b.base")
    dump.key("a.u")
    assert {"type b.base", "operator class b.base_ops"} <= dump.taken("a.u")


@pytest.mark.parametrize(
    "text, needed",
    [
        ('EXCLUDE USING "gist" ("room" WITH =)', True),
        ('PRIMARY KEY ("c", "at" WITHOUT OVERLAPS)', True),
        ('PRIMARY KEY ("c")', False),
        ('EXCLUDE USING "btree" ("c" WITH =)', False),
    ],
)
def test_an_exclusion_needs_an_extension_that_pg_dump_does_not_name(dump: Dump, text: str, needed: bool) -> None:
    dump.add("EXTENSION", "btree_gist")
    dump.table("a.rooms")
    dump.piece("CONSTRAINT", "a.rooms", "c", f'ALTER TABLE ONLY "a"."rooms"\n    ADD CONSTRAINT "c" {text};\n')
    assert ("extension btree_gist" in dump.taken("a.rooms")) == needed


def test_inherited_columns_need_the_parent_and_not_its_rows(dump: Dump) -> None:
    dump.table("b.child", "table a.t")
    chosen = dump.select("child")
    assert chosen.tables == (("b", "child"),)
    assert set(chosen.along) == {"schema a", "schema b", "table a.t"}
    taken = dump.names(chosen.entries)
    assert "acl a.TABLE t" in taken
    assert "index a.i" not in taken
    assert dump.select("a.t").tables == (("a", "t"),)  # children are not parts of their parent


# ---- sequences


@pytest.fixture
def serials(dump: Dump) -> Dump:
    """`a.t` owns a.owned, has an identity, and takes its third default from b.other, which b.t owns."""
    dump.add("SEQUENCE", "a.owned", 'CREATE SEQUENCE "a"."owned";', ["table a.t"])
    dump.add("SEQUENCE OWNED BY", "a.owned", 'ALTER SEQUENCE "a"."owned" OWNED BY "a"."t"."x";', ["sequence a.owned"])
    dump.add(
        "SEQUENCE",
        "a.t_id_seq",
        'ALTER TABLE "a"."t" ALTER COLUMN "id" ADD GENERATED ALWAYS AS IDENTITY (\nSEQUENCE NAME "a"."t_id_seq");',
        ["table a.t"],
    )
    dump.add("SEQUENCE", "b.other", 'CREATE SEQUENCE "b"."other";', ["table b.t"])
    dump.add("SEQUENCE OWNED BY", "b.other", 'ALTER SEQUENCE "b"."other" OWNED BY "b"."t"."y";', ["sequence b.other"])
    for column, sequence in (("x", "a.owned"), ("z", "b.other")):
        default = f'"nextval"(\'{quoted(sequence)}\'::"regclass")'
        sql = f'ALTER TABLE ONLY "a"."t" ALTER COLUMN "{column}" SET DEFAULT {default};'
        dump.piece("DEFAULT", "a.t", f"t {column}", sql, f"sequence {sequence}")
    return dump


def test_sequences_come_with_their_values(serials: Dump) -> None:
    chosen = serials.select("a.t")
    assert set(chosen.sequences) == {("a", "owned"), ("a", "t_id_seq"), ("b", "other")}
    assert chosen.owners == {("a", "owned"): ("a", "t"), ("a", "t_id_seq"): ("a", "t"), ("b", "other"): ("b", "t")}
    assert set(chosen.along) == {"schema a", "schema b", "sequence b.other"}
    assert chosen.tables == (("a", "t"),)
    taken = serials.names(chosen.entries)
    assert {"default a.t x", "default a.t z", "sequence owned by a.owned", "sequence a.t_id_seq"} <= taken
    assert "sequence owned by b.other" not in taken


def test_a_sequence_without_its_table(serials: Dump) -> None:
    chosen = serials.select("a.owned")
    assert serials.names(chosen.entries) == SETTINGS | {"schema a", "sequence a.owned"}
    assert (chosen.tables, chosen.sequences) == ((), (("a", "owned"),))
    assert chosen.left_out == ("sequence owned by a.owned",)


def test_an_identity_is_no_relation_of_its_own(serials: Dump) -> None:
    with pytest.raises(ConfigError):
        serials.select("t_id_seq")


# ---- foreign keys


@pytest.fixture
def family(dump: Dump) -> Dump:
    """one -> two -> three -> one, and loner -> loner; every key is there."""
    for name in ("a.one", "a.two", "b.three", "a.loner"):
        dump.table(name)
        dump.key(name)
    for table, other in (("a.one", "a.two"), ("a.two", "b.three"), ("b.three", "a.one"), ("a.loner", "a.loner")):
        dump.foreign_key(table, other)
    return dump


def test_keys_to_tables_left_behind_are_left_out(family: Dump) -> None:
    chosen = family.select("one")
    assert chosen.tables == (("a", "one"),)
    assert chosen.left_out == ("fk constraint a.one_to_two",)
    assert family.select("one", "two").left_out == ("fk constraint a.two_to_three",)
    assert family.select("loner").left_out == ()
    assert "fk constraint a.loner_to_loner" in family.taken("loner")


def test_references_are_followed_round_in_circles(family: Dump) -> None:
    chosen = family.select("two", with_references=True)
    assert set(chosen.tables) == {("a", "one"), ("a", "two"), ("b", "three")}
    assert chosen.left_out == ()
    keys = {"fk constraint a.one_to_two", "fk constraint a.two_to_three", "fk constraint b.three_to_one"}
    assert keys <= family.names(chosen.entries)


# ---- partitions


@pytest.fixture
def parted(dump: Dump) -> Dump:
    """b.top > b.mid > a.leaf: an index on each, a trigger that one switched off, a table that refers to top."""
    before = ""
    for table in ("b.top", "b.mid", "a.leaf"):
        schema, _, name = table.partition(".")
        dump.table(table, f"schema {schema}", *([f"table {before}"] if before else []))
        if before:
            dump.attach(table, before)
        above = f"index {before}_i"
        sql = f'CREATE INDEX "{name}_i" ON ONLY {quoted(table)} USING "btree" ("x");'
        dump.piece("INDEX", table, f"{name}_i", sql, *([above] if before else []))
        if before:
            attach = f"ALTER INDEX {quoted(before + '_i')} ATTACH PARTITION {quoted(table + '_i')};"
            needs = [f"index {table}_i", above, f"table {table}", f"table {before}"]
            dump.add("INDEX ATTACH", f"{table}_i", attach, needs)
        before = table
    dump.add("FUNCTION", "b.f()")
    dump.piece(
        "TRIGGER",
        "b.top",
        "top g",
        'CREATE TRIGGER "g" AFTER INSERT ON "b"."top" EXECUTE FUNCTION "b"."f"();',
        "function b.f()",
    )
    dump.piece(
        "TRIGGER",
        "a.leaf",
        "leaf g",
        '\nALTER TABLE "a"."leaf" DISABLE TRIGGER "g";',
        "function b.f()",
        "trigger b.top g",
    )
    dump.key("b.top")
    dump.table("a.refers")
    dump.foreign_key("a.refers", "b.top")
    return dump


def test_partitions_come_with_their_parent(parted: Dump) -> None:
    chosen = parted.select("top")
    assert set(chosen.tables) == {("b", "top"), ("b", "mid"), ("a", "leaf")}
    assert chosen.left_out == ()
    assert {"table attach a.leaf", "index attach a.leaf_i", "trigger a.leaf g"} <= parted.names(chosen.entries)


def test_a_partition_alone_becomes_a_table(parted: Dump) -> None:
    chosen = parted.select("leaf")
    assert parted.names(chosen.entries) == SETTINGS | {"schema a", "table a.leaf", "index a.leaf_i"}
    assert set(chosen.left_out) == {"table attach a.leaf", "index attach a.leaf_i", "trigger a.leaf g"}
    assert set(parted.select("mid").tables) == {("b", "mid"), ("a", "leaf")}


def test_references_to_parents_bring_partitions(parted: Dump) -> None:
    assert len(parted.select("refers", with_references=True).tables) == 4
    assert parted.select("refers").left_out == ("fk constraint a.refers_to_top",)


# ---- triggers, rules, policies, statistics


def test_what_refers_to_other_tables_can_be_missed(dump: Dump) -> None:
    dump.add("FUNCTION", "b.f()")
    for desc, name, sql in (
        ("TRIGGER", "t own", 'CREATE TRIGGER "own" AFTER INSERT ON "a"."t" FOR EACH ROW EXECUTE FUNCTION "b"."f"();'),
        ("POLICY", "t mine", 'CREATE POLICY "mine" ON "a"."t" USING (true);'),
        ("RULE", "t never", 'CREATE RULE "never" AS\n    ON DELETE TO "a"."t" DO INSTEAD NOTHING;'),
    ):
        dump.piece(desc, "a.t", name, sql, *(["function b.f()"] if desc == "TRIGGER" else []))
    for desc, name, sql in (
        ("TRIGGER", "t from", 'CREATE CONSTRAINT TRIGGER "from" AFTER INSERT ON "a"."t" FROM "b"."t";'),
        ("POLICY", "t looks", 'CREATE POLICY "looks" ON "a"."t" USING ((SELECT true FROM "b"."t"));'),
        ("RULE", "t logs", 'CREATE RULE "logs" AS\n    ON UPDATE TO "a"."t" DO  INSERT INTO "b"."t" VALUES (1);'),
    ):
        dump.piece(desc, "a.t", name, sql, "table b.t")
    dump.add("COMMENT", "a.POLICY looks", "", ["policy a.t looks"])
    dump.add("STATISTICS", "b.s", 'CREATE STATISTICS "b"."s" ON "x", "y" FROM "a"."t";', ["table a.t", "schema b"])
    chosen = dump.select("a.t")
    assert set(chosen.left_out) == {"trigger a.t from", "policy a.t looks", "rule a.t logs"}
    taken = dump.names(chosen.entries)
    assert {"trigger a.t own", "function b.f()", "policy a.t mine", "rule a.t never", "statistics b.s"} <= taken
    assert "comment a.POLICY looks" not in taken
    both = dump.select("t")
    assert both.left_out == ()
    assert {"trigger a.t from", "comment a.POLICY looks"} <= dump.names(both.entries)


# ---- views


@pytest.fixture
def views(dump: Dump) -> Dump:
    """ping and pong need each other, so pg_dump gives ping its query later; filled reads a.t, unfilled reads ping."""
    dump.add("VIEW", "a.ping", 'CREATE VIEW "a"."ping" AS\nSELECT\n    NULL::integer AS "a";', ["schema a"])
    dump.add("VIEW", "a.pong", 'CREATE VIEW "a"."pong" AS SELECT "ping"."a" FROM "a"."ping";', ["view a.ping"])
    sql = 'CREATE OR REPLACE VIEW "a"."ping" AS SELECT "pong"."a" FROM "a"."pong", "b"."t";'
    dump.add("RULE", "a.ping _RETURN", sql, ["view a.pong", "view a.ping", "table b.t"])
    for name, read in (("filled", "table a.t"), ("unfilled", "view a.ping")):
        dump.add("MATERIALIZED VIEW", f"b.{name}", "", [read])
        dump.add(
            "INDEX",
            f"b.{name}_i",
            f'CREATE UNIQUE INDEX "i" ON "b"."{name}" USING "btree" ("x");',
            [f"materialized view b.{name}"],
        )
        dump.add("MATERIALIZED VIEW DATA", f"b.{name}", "", [f"materialized view b.{name}"])
    return dump


def test_a_view_brings_the_tables_without_their_rows(views: Dump) -> None:
    chosen = views.select("pong")
    assert chosen.tables == ()
    assert {"view a.ping", "rule a.ping _RETURN", "table b.t"} <= set(chosen.along)
    assert {"view a.ping", "rule a.ping _RETURN", "view a.pong"} <= views.names(chosen.entries)
    assert "rule a.ping _RETURN" in views.taken("ping")
    assert views.select("ping").left_out == ()


def test_a_materialized_view_is_filled_if_all_that_it_reads_is(views: Dump) -> None:
    alone = views.select("filled")
    assert alone.left_out == ("materialized view data b.filled",)
    assert "index b.filled_i" in views.names(alone.entries)
    assert views.select("filled", "a.t").left_out == ()
    assert "materialized view data b.filled" in views.taken("filled", "a.t")
    assert views.select("unfilled", "ping").left_out == ("materialized view data b.unfilled",)
    assert views.select("unfilled", "p?ng", "b.t").left_out == ()
