"""What of an archive only a superuser can restore, and what others need for the rest.

Found out by restoring one of each kind as a plain owner of the database, with PostgreSQL 15, 17 and 18.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from backupd.postgres.archive import Entry
from backupd.postgres.names import identifier

_ALWAYS = frozenset(
    {
        *("EVENT TRIGGER", "FOREIGN DATA WRAPPER", "ACCESS METHOD", "SECURITY LABEL", "TRANSFORM"),
        *("OPERATOR CLASS", "OPERATOR FAMILY", "TEXT SEARCH PARSER", "TEXT SEARCH TEMPLATE"),
        *("SHELL TYPE", "PROCEDURAL LANGUAGE", "PUBLICATION TABLES IN SCHEMA"),
    }
)
# What managed services let the members of their stand-in for a superuser do, all of it or some.
_DELEGATED = frozenset({"EVENT TRIGGER", "FOREIGN DATA WRAPPER", "SECURITY LABEL", "SUBSCRIPTION", "CAST"})
_UNTRUSTED = re.compile(r'\n    LANGUAGE "?(?:c|internal|pl\w*u|plr|plsh)"?(?=[ \n]|$)')
_SUPERUSERS_CLAUSE = re.compile(r"\n    LANGUAGE [^\n]* (?:LEAKPROOF|SUPPORT)\b")
_SETTING = re.compile(r'\n    SET "?([\w.]+)"? TO ')
_INTERNAL_STATE = re.compile(r'\n    M?STYPE = "?internal"?(?=[,\n])')
_BASE_TYPE = re.compile(r'CREATE TYPE (?:"(?:[^"]|"")*"|[^\s"(])+(?: \(\n    INTERNALLENGTH = |;)')
_FREE_GRANTS = ("DATABASE ", "LARGE OBJECT", 'SCHEMA "public"', "SCHEMA public")
_GRANTOR = re.compile(r"^(?:SET SESSION AUTHORIZATION .*|RESET SESSION AUTHORIZATION);\n", re.MULTILINE)
_TYPES = frozenset({"TYPE", "SHELL TYPE", "DOMAIN", "TABLE", "VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE"})


@dataclass(frozen=True, slots=True)
class Powers:
    """What the restoring user may do on the target."""

    superuser: bool
    stand_in: bool = False  # of a managed service: may do some of what a superuser may
    subscribes: bool = False  # may create subscriptions
    reserved: frozenset[str] = frozenset()  # parameters that the user may not set


@dataclass(frozen=True, slots=True)
class Privileged:
    """Entries by their dump ids."""

    refused: frozenset[int] = frozenset()  # will fail, or change nothing
    doubtful: frozenset[int] = frozenset()  # a managed service may allow them


def privileged(entries: Sequence[Entry], powers: Powers, *, grants: bool) -> Privileged:
    """Which entries this user can't restore; `grants` tells whether grants are restored at all."""
    if powers.superuser:
        return Privileged()
    known = {entry.dump_id: entry for entry in entries}
    found = [e for e in entries if _is_privileged(e, known, powers) or (grants and _is_foreign_grant(e, known))]
    doubtful = frozenset(e.dump_id for e in found if powers.stand_in and _is_delegated(e))
    return Privileged(frozenset(e.dump_id for e in found) - doubtful, doubtful)


def _is_privileged(entry: Entry, known: Mapping[int, Entry], powers: Powers) -> bool:
    text, desc = entry.definition or "", entry.desc
    if desc in _ALWAYS:
        return True
    if desc in ("FUNCTION", "PROCEDURE"):
        head = text.split("\n    AS ", 1)[0]  # the body may hold any text
        return bool(_UNTRUSTED.search(head) or _SUPERUSERS_CLAUSE.search(head)) or any(
            name.lower() in powers.reserved for name in _SETTING.findall(head)
        )
    if desc == "CAST":  # needs one of the types to be one's own
        own = any(known[i].desc in _TYPES for i in entry.dependencies if i in known)
        return "WITHOUT FUNCTION" in text or not own
    if desc == "SUBSCRIPTION":  # others than superusers must give a password
        return not powers.subscribes or "password_required = false" in text or "password=" not in text
    return (
        (desc == "PUBLICATION" and " FOR ALL TABLES" in text)
        or (desc == "AGGREGATE" and bool(_INTERNAL_STATE.search(text)))
        or (desc == "TYPE" and bool(_BASE_TYPE.match(text)))
        or (desc == "USER MAPPING" and "password_required 'false'" in text)
    )


def _is_foreign_grant(entry: Entry, known: Mapping[int, Entry]) -> bool:
    """A grant on what is not in the archive: the system's own, or an extension's, which belongs to a superuser even
    where others may create the extension."""
    if entry.desc != "ACL" or entry.tag.startswith(_FREE_GRANTS):
        return False
    return not known.keys() & set(entry.dependencies)


def _is_delegated(entry: Entry) -> bool:
    return entry.desc in _DELEGATED or entry.desc.startswith("PUBLICATION")


def superusers(entries: Iterable[Entry]) -> frozenset[str]:
    """The owners of what only superusers may own, whoever restores it."""
    return frozenset(
        e.owner
        for e in entries
        if e.owner
        and (
            e.desc in ("EVENT TRIGGER", "FOREIGN DATA WRAPPER", "PUBLICATION TABLES IN SCHEMA")
            or (e.desc == "PUBLICATION" and " FOR ALL TABLES" in (e.definition or ""))
        )
    )


def dependents(entries: Sequence[Entry], ids: Collection[int]) -> frozenset[int]:
    """These entries and all that need them, however far."""
    found = set(ids)
    while more := {e.dump_id for e in entries if e.dump_id not in found and not found.isdisjoint(e.dependencies)}:
        found |= more
    return frozenset(found)


# ---- what others than superusers need


def by_the_owner(entry: Entry) -> Entry:
    """Grants that others made of what was granted to them are made by the owner: only a superuser can make them in
    somebody's name."""
    if not made_by_others(entry):
        return entry
    return replace(entry, definition=_GRANTOR.sub("", entry.definition or ""))


def made_by_others(entry: Entry) -> bool:
    return entry.desc in ("ACL", "DEFAULT ACL") and bool(_GRANTOR.search(entry.definition or ""))


def lent(entries: Sequence[Entry]) -> Iterator[Entry]:
    """The entries for a restoring user who is no superuser and gives things to their owners.

    PostgreSQL wants an owner-to-be to have CREATE on the schema (of a publication: on the database) then. Many lack it,
    since a superuser made them owners; and those who have it by a grant get that last of all. So it is lent to them,
    and what was not theirs is taken back in the end.
    """
    schemas = {entry.tag: entry.owner or "" for entry in entries if entry.desc == "SCHEMA"}
    owners = {"public": "pg_database_owner", **schemas}
    loans = _loans(entries, owners)
    shared = sorted({e.owner for e in entries if e.desc in _OF_THE_DATABASE and e.owner})
    new = _Numbers(entries)
    begun = False
    for entry in entries:
        if not begun and entry.desc not in _FIRST:
            begun = True
            if "public" not in schemas and "public" in loans:
                yield new.entry("pre-data", _on_schema("GRANT", "public", "TO", loans["public"]))
            if shared:
                yield new.entry("pre-data", _on_database("GRANT", "TO", shared))
        yield entry
        if entry.desc == "SCHEMA" and entry.tag in loans:
            yield new.entry("pre-data", _on_schema("GRANT", entry.tag, "TO", loans[entry.tag]))
    for schema, borrowers in loans.items():
        if back := sorted(set(borrowers) - _creators(entries, schema)):
            yield new.entry("none", _on_schema("REVOKE", schema, "FROM", back))
    if shared:  # who has it otherwise gets it with the other properties of the database
        yield new.entry("none", _on_database("REVOKE", "FROM", shared))


_FIRST = ("ENCODING", "STDSTRINGS", "SEARCHPATH")
_OF_THE_DATABASE = ("PUBLICATION", "SUBSCRIPTION")
_GRANT = re.compile(r'GRANT ([A-Z,]+) ON SCHEMA (?:"(?:[^"]|"")*"|[^\s"]+) TO "((?:[^"]|"")*)"')


def _loans(entries: Iterable[Entry], owners: Mapping[str, str]) -> dict[str, list[str]]:
    """Who needs CREATE on which schema, besides its owner."""
    found: dict[str, set[str]] = {}
    for entry in entries:
        schema = entry.schema
        if schema is not None and schema in owners and entry.owner and entry.owner != owners[schema]:
            found.setdefault(schema, set()).add(entry.owner)
    return {schema: sorted(names) for schema, names in found.items()}


def _creators(entries: Iterable[Entry], schema: str) -> set[str]:
    """Whom the archive itself grants CREATE on it."""
    found = set()
    for entry in entries:
        if entry.desc == "ACL" and entry.tag in (f"SCHEMA {identifier(schema)}", f"SCHEMA {schema}"):
            for words, name in _GRANT.findall(entry.definition or ""):
                if {"ALL", "CREATE"}.intersection(words.split(",")):
                    found.add(name.replace('""', '"'))
    return found


class _Numbers:
    """Entries of our own, with numbers that no other has."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._like = entries[0]
        self._last = max(entry.dump_id for entry in entries)

    def entry(self, section: str, statement: str) -> Entry:
        """In pre-data where it stands; else in its section's last pass, which pg_restore keeps for grants."""
        self._last += 1
        return replace(
            self._like,
            dump_id=self._last,
            tag="lent",
            desc="PRIVILEGE" if section == "pre-data" else "ACL",
            section=section,
            definition=statement,
            drop="",
            owner="",
            dependencies=(),
        )


def _on_schema(verb: str, schema: str, link: str, roles: Iterable[str]) -> str:
    return f"{verb} CREATE ON SCHEMA {identifier(schema)} {link} {', '.join(map(identifier, roles))};\n"


def _on_database(verb: str, link: str, roles: Iterable[str]) -> str:
    """Of the database connected to: an archive does not know its name."""
    text = f"{verb} CREATE ON DATABASE %I {link} {', '.join(map(identifier, roles))}".replace("'", "''")
    quoted = text.replace("%", "%%").replace("%%I", "%I", 1)
    mark = "$lend$"
    while mark in quoted:
        mark = f"{mark[:-1]}_$"
    return f"DO {mark}BEGIN EXECUTE format('{quoted}', current_database()); END{mark};\n"
