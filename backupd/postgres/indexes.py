"""Which indexes and keys of a schema archive can be built as soon as their table is loaded, while others are still
loading: what pg_restore --jobs does with an archive that has rows and definitions in one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from backupd.postgres.archive import Entry
from backupd.postgres.selection import SETTINGS

_KEY = re.compile(r"ALTER (?:FOREIGN )?TABLE ONLY ")
# What an index may depend on beside its table: not on its parent's index, which belongs to all partitions, and on no
# function, which may read other tables, whatever it says of itself, and these may not be loaded yet. An extension
# stands for its functions, and a domain for those of its checks.
_HARMLESS = ("TYPE", "COLLATION", "SCHEMA")


def early(entries: Sequence[Entry], tables: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], tuple[Entry, ...]]:
    """By (schema, table), of these tables: the entries that need nothing but the table and its rows, in their order."""
    wanted = set(tables)
    by_id = {entry.dump_id: entry for entry in entries}
    found: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        if not _is_of_one_table(entry):
            continue
        needed = [by_id[number] for number in entry.dependencies if number in by_id]
        places = {(e.schema or "", e.tag) for e in needed if e.desc == "TABLE"}
        if len(places) == 1 and places <= wanted and all(e.desc in ("TABLE", *_HARMLESS) for e in needed):
            found[places.pop()].append(entry)
    return {place: tuple(own) for place, own in found.items()}


def _is_of_one_table(entry: Entry) -> bool:
    """Whether it is an index or a key. From version 18 on pg_dump calls a NOT NULL that is not valid a CONSTRAINT too,
    and that one goes down to tables that inherit, loaded or not: it is the one without an ONLY."""
    if entry.section != "post-data":
        return False
    key = entry.desc == "CONSTRAINT" and _KEY.match(entry.definition or "") is not None
    return key or entry.desc == "INDEX"


def is_exclusive(entry: Entry) -> bool:
    """Whether it locks its table against every other: nothing else of that table is to be built beside it then. An
    index that is the table's order or identity comes with an ALTER TABLE."""
    return entry.desc != "INDEX" or "ALTER TABLE" in (entry.definition or "")


def settings(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Those that say how an archive's strings are to be read: any part of it needs them."""
    return tuple(entry for entry in entries if entry.desc in SETTINGS)
