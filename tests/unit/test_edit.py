"""What a restore changes in archives on their way: roles, which rows come and where they go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backupd.postgres import archive
from backupd.postgres.archive import Entry
from backupd.postgres.edit import Edit, roles_named
from backupd.postgres.selection import Selection
from tests.unit.test_archive import encoding, entry, made

ODD = '"odd ""röle"" TO \\ 1"'  # a role's name as pg_dump quotes it
ODD_NAME = 'odd "röle" TO \\ 1'


def named(desc: str, definition: str) -> set[str]:
    return roles_named(entry(desc=desc, definition=definition, owner="boss"))


@pytest.mark.parametrize(
    "desc, definition, names",
    [
        ("ACL", 'REVOKE ALL ON TABLE "s"."TO" FROM PUBLIC;\nGRANT ALL ON TABLE "s"."TO" TO "a";', {"a"}),
        ("ACL", f'GRANT SELECT("from"),UPDATE("to") ON TABLE "s"."t" TO "a","b", {ODD};\n', {"a", "b", ODD_NAME}),
        (
            "ACL",
            'SET SESSION AUTHORIZATION "a";\nGRANT ALL ON TABLE "s"."t" TO "b";\nRESET SESSION AUTHORIZATION;\n',
            {"a", "b"},
        ),
        ("ACL", 'GRANT ALL ON FUNCTION "s"."f"("a" "text") TO "b";', {"b"}),
        ("ACL", "SELECT pg_catalog.lo_unlink('1');", set()),
        (
            "DEFAULT ACL",
            'ALTER DEFAULT PRIVILEGES FOR ROLE "a" IN SCHEMA "s" GRANT SELECT ON TABLES  TO "b";',
            {"a", "b"},
        ),
        ("DEFAULT ACL", 'ALTER DEFAULT PRIVILEGES FOR ROLE "a" REVOKE ALL ON TYPES  FROM PUBLIC;', {"a"}),
        ("POLICY", """CREATE POLICY "TO" ON "s"."t" TO "a", "b" USING (("x" = 'TO "c"'));""", {"a", "b"}),
        ("POLICY", 'CREATE POLICY "p" ON "s"."t" FOR INSERT TO "a" WITH CHECK (("FOR" = "to"));', {"a"}),
        ("POLICY", 'CREATE POLICY "p" ON "s"."t" AS RESTRICTIVE FOR SELECT TO "using" USING (true);', {"using"}),
        ("POLICY", 'CREATE POLICY "p" ON "s"."t" USING (true);', set()),
        ("POLICY", 'CREATE POLICY "p" ON "s"."t" TO "a" USING ((EXTRACT(epoch FROM "at") > 0));', {"a"}),
        ("USER MAPPING", """CREATE USER MAPPING FOR "a" SERVER "b" OPTIONS (\n    "user" 'FOR "c"'\n);""", {"a"}),
        ("USER MAPPING", 'CREATE USER MAPPING FOR "public" SERVER "b";', {"public"}),
        ("TABLE", 'CREATE TABLE "s"."t" ("TO" "a");', set()),
    ],
)  # fmt: skip
def test_roles_that_definitions_name(desc: str, definition: str, names: set[str]) -> None:
    assert named(desc, definition) == names | {"boss"}


def test_roles_are_renamed_where_they_stand_and_nowhere_else() -> None:
    definition = f'GRANT SELECT("a") ON TABLE "a"."a" TO "a";\nGRANT INSERT ON TABLE "a"."a" TO {ODD};\n'
    edit = Edit(roles={"a": 'new "a"', ODD_NAME: "plain"})
    (changed,) = edit.schema([entry(desc="ACL", definition=definition, owner="a", tag="a", schema="a")])
    assert changed.definition == (
        'GRANT SELECT("a") ON TABLE "a"."a" TO "new ""a""";\nGRANT INSERT ON TABLE "a"."a" TO "plain";\n'
    )
    assert (changed.owner, changed.tag, changed.schema) == ('new "a"', "a", "a")
    (table,) = edit.schema([entry(definition='CREATE TABLE "a"."t" ();', owner="a")])
    assert (table.owner, table.definition) == ('new "a"', 'CREATE TABLE "a"."t" ();')


# ---- rows


def selection(tables: list[tuple[str, str]], sequences: list[tuple[str, str]]) -> Selection:
    return Selection(frozenset(), tuple(tables), tuple(sequences), {}, (), ())


def rows(name: str, to: str = "") -> Entry:
    place = to or f'"s"."{name}"'
    copy = f'COPY {place} ("a", "b") FROM stdin;\n'
    return entry(desc="TABLE DATA", tag=name, schema="s", definition="", copy=copy, section="data")


def data_archive() -> Iterator[Entry]:
    yield encoding("UTF8")
    yield entry(desc="DATABASE", tag="shop", schema=None)
    for name in ("one", "two"):
        yield rows(name)
        yield entry(desc="SEQUENCE SET", tag=f"{name}_seq", schema="s", section="data")
    yield entry(desc="BLOBS", tag="BLOBS", schema=None, section="data")


def test_only_chosen_rows_and_values_come() -> None:
    edit = Edit(selection([("s", "two"), ("s", "no such")], [("s", "one_seq")]))
    taken = [(each.desc, each.tag) for each in edit.data(data_archive())]
    assert taken == [("ENCODING", "ENCODING"), ("SEQUENCE SET", "one_seq"), ("TABLE DATA", "two")]


@pytest.mark.parametrize("chosen, to", [(["leaf"], '"s"."leaf"'), (["leaf", "top"], '"s"."top"')])
def test_a_partition_alone_takes_its_rows_itself(chosen: list[str], to: str) -> None:
    """pg_dump loads some partitions through the table at the top, which may have stayed behind."""
    edit = Edit(selection([("s", name) for name in chosen], []))
    (changed,) = edit.data([rows("leaf", '"s"."top"')])
    assert changed.copy == f'COPY {to} ("a", "b") FROM stdin;\n'


@pytest.mark.parametrize("edit", [Edit(selection([("s", "two")], [])), Edit(roles={"postgres": "other"})])
def test_rows_pass_untouched(edit: Edit) -> None:
    contents = made(list(data_archive())).encode()
    pieces = [contents[:40], contents[40:] + b"first rows", b"more rows", b"the end"]
    changed = b"".join(bytes(piece) for piece in edit.stream(iter(pieces), "it"))
    found, _ = archive.read([changed], "it")
    assert found.entries == tuple(edit.data(data_archive()))
    assert changed[found.size :] == b"first rowsmore rowsthe end"


def test_what_changes_nothing_is_not_even_read() -> None:
    assert b"".join(Edit().stream([b"no archive", b" at all"], "it")) == b"no archive at all"
