"""What only a superuser can restore, where no server here has it to try: the rest is tried in test_troubles."""

from __future__ import annotations

import pytest

from backupd.postgres.archive import Entry
from backupd.postgres.privileged import Powers, by_the_owner, lent, privileged

NOBODY = Powers(superuser=False)
MANAGED = Powers(superuser=False, stand_in=True)


def entry(desc: str, definition: str, *, tag: str = "thing", number: int = 1, **more: object) -> Entry:
    given = dict[str, object](dump_id=number, has_data=False, table_oid=0, oid=0, tag=tag, desc=desc)
    given |= {"section": "pre-data", "definition": definition, "drop": "", "copy": None, "schema": None}
    given |= {"tablespace": None, "access_method": None, "relkind": None, "owner": "app", "oids": "false"}
    given |= {"dependencies": (), "place": b""}
    return Entry(**(given | more))  # type: ignore[arg-type]


WITHOUT_PASSWORD = 'CREATE SUBSCRIPTION "s" CONNECTION \'host=h user=u\' PUBLICATION "p" WITH (connect = false)'
WITH_PASSWORD = WITHOUT_PASSWORD.replace("user=u", "user=u password=p")


@pytest.mark.parametrize(
    ("desc", "definition", "powers", "expected"),
    [
        ("SECURITY LABEL", 'SECURITY LABEL FOR "anon" ON COLUMN "public"."t"."c" IS \'x\';', NOBODY, "refused"),
        ("SECURITY LABEL", 'SECURITY LABEL FOR "anon" ON COLUMN "public"."t"."c" IS \'x\';', MANAGED, "doubtful"),
        ("TRANSFORM", 'CREATE TRANSFORM FOR "public"."hstore" LANGUAGE "plperl" (…);', NOBODY, "refused"),
        ("PROCEDURAL LANGUAGE", 'CREATE OR REPLACE PROCEDURAL LANGUAGE "plx";', MANAGED, "refused"),
        (
            "FUNCTION",
            'CREATE FUNCTION "f"() RETURNS integer\n    LANGUAGE "plpython3u"\n    AS $$x$$;',
            NOBODY,
            "refused",
        ),
        (
            "FUNCTION",
            'CREATE FUNCTION "f"() RETURNS integer\n    LANGUAGE "plpython3u"\n    AS $$x$$;',
            MANAGED,
            "refused",
        ),
        ("PROCEDURE", 'CREATE PROCEDURE "f"()\n    LANGUAGE "plperlu"\n    AS $$x$$;', NOBODY, "refused"),
        ("FUNCTION", 'CREATE FUNCTION "f"() RETURNS integer\n    LANGUAGE "plpgsql"\n    AS $$x$$;', NOBODY, ""),
        ("FUNCTION", 'CREATE FUNCTION "f"() RETURNS integer\n    LANGUAGE "plperl"\n    AS $$x$$;', NOBODY, ""),
        ("FUNCTION", 'CREATE FUNCTION "f"() RETURNS integer\n    LANGUAGE "plv8"\n    AS $$x$$;', NOBODY, ""),
        ("SUBSCRIPTION", WITH_PASSWORD, NOBODY, "refused"),
        ("SUBSCRIPTION", WITH_PASSWORD, Powers(superuser=False, subscribes=True), ""),
        ("SUBSCRIPTION", WITHOUT_PASSWORD, Powers(superuser=False, subscribes=True), "refused"),
        ("SUBSCRIPTION", WITHOUT_PASSWORD, MANAGED, "doubtful"),
        (
            "USER MAPPING",
            'CREATE USER MAPPING FOR "u" SERVER "s" OPTIONS (\n    password_required \'false\'\n);',
            NOBODY,
            "refused",
        ),
        ("USER MAPPING", 'CREATE USER MAPPING FOR "u" SERVER "s" OPTIONS (\n    "user" \'guest\'\n);', NOBODY, ""),
        ("EVENT TRIGGER", 'CREATE EVENT TRIGGER "e" ON "sql_drop" EXECUTE FUNCTION "f"();', Powers(superuser=True), ""),
    ],
    ids=range(17),
)
def test_kinds(desc: str, definition: str, powers: Powers, expected: str) -> None:
    found = privileged([entry(desc, definition)], powers, grants=True)
    assert (found.refused == {1}, found.doubtful == {1}) == (expected == "refused", expected == "doubtful")


def test_grants_on_what_is_not_in_the_archive() -> None:
    """The system's own things, and those of extensions; not on schemas and large objects, which may lie elsewhere."""
    entries = [
        entry("TABLE", "CREATE TABLE …", number=1),
        entry("ACL", "GRANT …", tag='TABLE "thing"', number=2, dependencies=(1,)),
        entry("ACL", "GRANT …", tag='TABLE "spatial_ref_sys"', number=3, dependencies=(77,)),
        entry("ACL", "GRANT …", tag='SCHEMA "public"', number=4, dependencies=(78,)),
        entry("ACL", "GRANT …", tag="LARGE OBJECT 4711", number=5, dependencies=(79,)),
    ]
    assert privileged(entries, NOBODY, grants=True).refused == {3}
    assert privileged(entries, NOBODY, grants=False).refused == set()


def test_grants_of_others_become_the_owners() -> None:
    text = (
        'GRANT SELECT ON TABLE "t" TO "a" WITH GRANT OPTION;\nSET SESSION AUTHORIZATION "a";\n'
        'GRANT SELECT ON TABLE "t" TO "b";\nRESET SESSION AUTHORIZATION;\n'
    )
    found = by_the_owner(entry("ACL", text)).definition
    assert found == 'GRANT SELECT ON TABLE "t" TO "a" WITH GRANT OPTION;\nGRANT SELECT ON TABLE "t" TO "b";\n'
    policy = entry("POLICY", text)
    assert by_the_owner(policy) == policy


def test_create_is_lent_and_returned() -> None:
    """To owners in schemas of others; what the archive grants them stays."""
    entries = [
        entry("ENCODING", "", tag="ENCODING", owner=None),
        entry("SCHEMA", "CREATE SCHEMA s;", tag="s", number=2, owner="boss"),
        entry("ACL", 'GRANT ALL ON SCHEMA "s" TO "granted";', tag='SCHEMA "s"', number=3, owner="boss"),
        entry("TABLE", "", tag="a", schema="s", number=4, owner="boss"),
        entry("TABLE", "", tag="b", schema="s", number=5, owner='we"ird'),
        entry("TABLE", "", tag="c", schema="s", number=6, owner="granted"),
        entry("TABLE", "", tag="d", schema="public", number=7, owner="app"),
        entry("PUBLICATION", "", tag="p", number=8, owner="o'% $lend$"),
    ]
    made = [(e.desc, e.definition) for e in lent(entries) if e not in entries]
    on_database = "DO $lend_$BEGIN EXECUTE format('{} CREATE ON DATABASE %I {} \"o''%% $lend$\"', current_database());"
    assert made == [
        ("PRIVILEGE", 'GRANT CREATE ON SCHEMA "public" TO "app";\n'),
        ("PRIVILEGE", on_database.format("GRANT", "TO") + " END$lend_$;\n"),
        ("PRIVILEGE", 'GRANT CREATE ON SCHEMA "s" TO "granted", "we""ird";\n'),
        ("ACL", 'REVOKE CREATE ON SCHEMA "s" FROM "we""ird";\n'),
        ("ACL", 'REVOKE CREATE ON SCHEMA "public" FROM "app";\n'),
        ("ACL", on_database.format("REVOKE", "FROM") + " END$lend_$;\n"),
    ]
    order = [e.tag for e in lent(entries)]
    assert order[:4] == ["ENCODING", "lent", "lent", "s"]
    assert order[4] == "lent"
    assert len({e.dump_id for e in lent(entries)}) == len(order)
