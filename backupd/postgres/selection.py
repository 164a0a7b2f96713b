"""Parts of a database: which entries of its schema archive some tables need, and which of their own must stay behind.

pg_restore's own --table leaves out indexes, constraints, triggers and all else that a table is more than its columns.
Names in definitions are all quoted: backups are made with pg_dump --quote-all-identifiers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from backupd.errors import ConfigError
from backupd.postgres import patterns
from backupd.postgres.archive import Entry
from backupd.postgres.names import unquoted

_TABLES = ("TABLE", "FOREIGN TABLE", "VIEW", "MATERIALIZED VIEW")
_RELATIONS = (*_TABLES, "SEQUENCE")
# What says something of another object, its only reason to be there.
_REMARKS = ("COMMENT", "ACL", "SECURITY LABEL")
# What a table has beside its columns, and would be another table without.
_PIECES = ("INDEX", "CONSTRAINT", "CHECK CONSTRAINT", "DEFAULT", "ROW SECURITY")
# What may refer to other tables, and can then be missed: the table is whole without it, and its rows are.
_LINKS = ("FK CONSTRAINT", "TRIGGER", "RULE", "POLICY")
# What stands between objects, and is wanted when all of them are.
_JOINTS = ("TABLE ATTACH", "INDEX ATTACH", "SEQUENCE OWNED BY", "STATISTICS")
SETTINGS = ("ENCODING", "STDSTRINGS", "SEARCHPATH")
_NAMES = re.compile(r'("(?:[^"]|"")*")\.("(?:[^"]|"")*")|"(?:[^"]|"")*"|\'(?:[^\']|\'\')*\'')
# Their default operator classes for ordinary types are an extension's, which pg_dump does not say.
_OVERLAPS = re.compile(r' EXCLUDE USING "gist"| WITHOUT OVERLAPS\)')
_BRINGS_OVERLAPS = "btree_gist"


@dataclass(frozen=True, slots=True)
class Selection:
    """What of an archive is restored."""

    entries: frozenset[int]  # dump ids in the schema archive
    tables: tuple[tuple[str, str], ...]  # (schema, name) of those whose rows come
    sequences: tuple[tuple[str, str], ...]  # whose values come
    owners: Mapping[tuple[str, str], tuple[str, str]]  # of those sequences that a table owns: the table
    along: tuple[str, ...]  # what the selection refers to and cannot do without: only defined, without rows
    left_out: tuple[str, ...]  # what belongs to the selection and refers to what is not in it
    referring: tuple[str, ...] = ()  # what refers to it and is no part of it: others' foreign keys, and views


def describe(entry: Entry) -> str:
    """For people: `fk constraint public.orders orders_customer_fkey`."""
    where = f"{entry.schema}." if entry.schema else ""
    return f"{entry.desc.lower()} {where}{entry.tag}"


def select(
    entries: Sequence[Entry], tables: Sequence[str], schemas: Sequence[str], *, with_references: bool = False
) -> Selection:
    """What belongs to the relations and schemas that match any of the patterns, and what these need.

    Partitions come with their parent, owned sequences with their table. `with_references` takes the tables that
    foreign keys refer to as well, however far. Raises ConfigError for a pattern that matches nothing.
    """
    return _Selector(entries).select(tables, schemas, with_references=with_references)


class _Selector:
    def __init__(self, entries: Sequence[Entry]) -> None:
        self._all = entries
        self._by_id = {entry.dump_id: entry for entry in entries}
        self._relations = {(e.schema or "", e.tag): e for e in entries if e.desc in _RELATIONS and not is_column(e)}
        self._domains = {(e.schema or "", e.tag): e for e in entries if e.desc == "DOMAIN"}
        self._schemas = {e.tag: e.dump_id for e in entries if e.desc == "SCHEMA"}
        self._extensions = {e.tag: e.dump_id for e in entries if e.desc == "EXTENSION"}
        self._owner = {e.dump_id: self._owner_of(e) for e in entries if e.desc in _PIECES + _LINKS or is_column(e)}
        self._ends = {e.dump_id: self._ends_of(e) for e in entries if e.desc in _LINKS + _JOINTS}
        self._partition_of = dict(self._partitions())
        self._sequences_of = dict(self._owned_sequences())
        self._completed_by = self._completions()
        self._chosen: set[int] = set()
        self._left_out: set[int] = set()

    def select(self, tables: Sequence[str], schemas: Sequence[str], *, with_references: bool) -> Selection:
        for text in tables:
            self._chosen.update(self._matching(text))
        for text in schemas:
            self._chosen.update(self._inside(text))
        while more := self._members() | (self._referenced() if with_references else set()):
            self._chosen |= more
        for entry in self._all:
            self._decide(entry)
        for entry in self._all:
            if entry.desc == "MATERIALIZED VIEW DATA":
                self._decide_rows(entry)
        along = self._along()
        there = self._chosen | set(along)
        there |= {e.dump_id for e in self._all if e.desc in SETTINGS} | set(self._remarks(there))
        sequences = [e for e in self._all if e.desc == "SEQUENCE" and e.dump_id in there]
        return Selection(
            entries=frozenset(there),
            tables=tuple(_place(e) for e in self._all if e.desc == "TABLE" and e.dump_id in self._chosen),
            sequences=tuple(map(_place, sequences)),
            owners=self._owners(sequences),
            along=tuple(describe(self._by_id[i]) for i in along),
            left_out=tuple(describe(e) for e in self._all if e.dump_id in self._left_out),
            referring=tuple(describe(e) for e in self._all if self._refers(e, there)),
        )

    def _refers(self, entry: Entry, there: set[int]) -> bool:
        """Whether DROP … CASCADE of what was chosen takes this along, and it does not come back with it."""
        if entry.desc not in ("FK CONSTRAINT", "VIEW", "MATERIALIZED VIEW") or entry.dump_id in there | self._left_out:
            return False
        return not self._chosen.isdisjoint(entry.dependencies)

    # ---- what the archive says of itself

    def _owner_of(self, entry: Entry) -> int | None:
        """The table (or domain) that an index, a constraint, a trigger … is of: it stands first of all qualified
        names in the definition."""
        place = next(_qualified(entry), _place(entry))
        found = self._relations.get(place) or self._domains.get(place)
        return found.dump_id if found else None

    def _ends_of(self, entry: Entry) -> frozenset[int]:
        """The tables that something refers to, by name or through their keys, indexes and triggers."""
        if entry.desc == "SEQUENCE OWNED BY":
            known = [self._relations.get(place) for place in _qualified(entry)]
            return frozenset(e.dump_id for e in known if e)
        found = {self._owner.get(each, each) for each in entry.dependencies}
        return frozenset(i for i in found if i in self._by_id and self._by_id[i].desc in _TABLES)

    def _partitions(self) -> Iterator[tuple[int, int]]:
        """Each partition, and its parent."""
        for entry in self._all:
            child = self._relations.get(_place(entry)) if entry.desc == "TABLE ATTACH" else None
            if child:
                for parent in self._ends[entry.dump_id] - {child.dump_id}:
                    yield child.dump_id, parent

    def _owned_sequences(self) -> Iterator[tuple[int, int]]:
        """Each sequence that belongs to a column, and the table."""
        for entry in self._all:
            owner = self._owner.get(entry.dump_id)
            if entry.desc == "SEQUENCE" and owner is not None:
                yield entry.dump_id, owner
            elif entry.desc == "SEQUENCE OWNED BY":
                ends = sorted(self._ends[entry.dump_id], key=lambda i: self._by_id[i].desc != "SEQUENCE")
                if len(ends) == 2:
                    yield ends[0], ends[1]

    def _completions(self) -> dict[int, list[int]]:
        """What an object would be another without, though it does not depend on it: a view in a circle of them gets its
        query by a rule, a domain some checks later, and a key needs the operators of its base type."""
        found = defaultdict(list)
        for entry in self._all:
            owner = self._owner.get(entry.dump_id)
            if owner is not None and (_is_query(entry) or self._by_id[owner].desc == "DOMAIN"):
                found[owner].append(entry.dump_id)
            elif entry.desc == "OPERATOR CLASS":
                for each in entry.dependencies:
                    if each in self._by_id and self._by_id[each].desc == "TYPE":
                        found[each].append(entry.dump_id)
        return found

    # ---- what is asked for

    def _matching(self, text: str) -> list[int]:
        pattern = patterns.parse(text)
        found = [e.dump_id for place, e in self._relations.items() if pattern.matches(*place)]
        if not found:
            raise patterns.nothing("table", text, self._relations)
        return found

    def _inside(self, text: str) -> list[int]:
        pattern = patterns.parse(text)
        if pattern.schema is not None:
            raise ConfigError(
                f"{text!r} is not a pattern for one schema's name", hint="Tables are chosen with --table."
            )
        decided = (*_PIECES, *_LINKS, *_JOINTS, *_REMARKS, "MATERIALIZED VIEW DATA")
        found = [
            e.dump_id
            for e in self._all
            if (e.schema is not None and pattern.matches("", e.schema))
            or (e.desc == "SCHEMA" and pattern.matches("", e.tag))
            if e.desc not in decided and not e.desc.startswith("PUBLICATION") and not is_column(e)
        ]
        if not found:
            raise patterns.nothing("schema", text, {(e.schema,) for e in self._all if e.schema})
        return found

    # ---- what belongs to it

    def _members(self) -> set[int]:
        """Partitions of chosen tables, and the sequences that they own."""
        whole = {**self._partition_of, **self._sequences_of}
        return {part for part, of in whole.items() if of in self._chosen} - self._chosen

    def _referenced(self) -> set[int]:
        """Tables that foreign keys of chosen ones refer to."""
        found: set[int] = set()
        for entry in self._all:
            if entry.desc == "FK CONSTRAINT" and self._owner[entry.dump_id] in self._chosen:
                found |= self._ends[entry.dump_id]
        return found - self._chosen

    def _decide(self, entry: Entry) -> None:
        """Choose what is of chosen tables alone, and leave out what refers to others too."""
        if entry.desc in _PIECES or _is_query(entry):
            if self._owner[entry.dump_id] in self._chosen:
                self._chosen.add(entry.dump_id)
            return
        if entry.desc not in _LINKS + _JOINTS:
            return
        ends = self._ends[entry.dump_id]
        ours = {self._owner[entry.dump_id]} if entry.desc in _LINKS else ends
        if ends and self._chosen.issuperset(ends):
            self._chosen.add(entry.dump_id)
        elif self._chosen.intersection(ours):
            self._left_out.add(entry.dump_id)

    def _decide_rows(self, entry: Entry) -> None:
        """A materialized view is filled if all that it reads is. If not it stays unfilled, and says so when asked."""
        view = self._relations.get(_place(entry))
        if view is None or view.dump_id not in self._chosen:
            return
        read = {i for i in self._reached([view.dump_id]) if self._by_id[i].desc in _TABLES}
        (self._chosen if self._chosen.issuperset(read) else self._left_out).add(entry.dump_id)

    # ---- what it needs

    def _along(self) -> list[int]:
        """Everything else that the chosen depend on, however far: types, functions, schemas, extensions, parents."""
        found = self._reached(self._chosen)
        return [e.dump_id for e in self._all if e.dump_id in found and e.dump_id not in self._chosen]

    def _reached(self, start: Iterable[int]) -> set[int]:
        found, waiting = set(start), list(start)
        while waiting:
            more = set(self._needs(self._by_id[waiting.pop()])) - found - self._left_out
            found |= more
            waiting += more
        return found

    def _needs(self, entry: Entry) -> Iterator[int]:
        for each in entry.dependencies:
            if each in self._by_id and not self._only_orders(entry, each):
                yield each
        if entry.schema in self._schemas:
            yield self._schemas[entry.schema]
        if entry.desc == "CONSTRAINT" and _OVERLAPS.search(entry.definition or ""):
            yield from filter(None, [self._extensions.get(_BRINGS_OVERLAPS)])
        yield from self._completed_by.get(entry.dump_id, ())

    def _only_orders(self, entry: Entry, needed: int) -> bool:
        """Whether pg_dump names a dependency that only matters where both are restored: a partition's parent, the key
        and the indexes that a partition's own are attached to, the table that owns a sequence."""
        if entry.desc in ("INDEX", "CONSTRAINT"):
            owner = self._owner[entry.dump_id]
            return self._by_id[needed].desc in ("INDEX", "CONSTRAINT") and self._owner[needed] != owner
        if entry.desc == "SEQUENCE":
            return not is_column(entry) and self._by_id[needed].desc in _TABLES
        return self._partition_of.get(entry.dump_id) == needed

    def _remarks(self, there: set[int]) -> Iterator[int]:
        """Comments, grants and labels of what is there. Grants on columns depend on those on their table as well."""
        for entry in self._all:
            if entry.desc in _REMARKS:
                known = [i for i in entry.dependencies if i in self._by_id and self._by_id[i].desc not in _REMARKS]
                if known and there.issuperset(known):
                    yield entry.dump_id

    def _owners(self, sequences: Iterable[Entry]) -> dict[tuple[str, str], tuple[str, str]]:
        owned = {e: self._by_id[self._sequences_of[e.dump_id]] for e in sequences if e.dump_id in self._sequences_of}
        return {_place(sequence): _place(table) for sequence, table in owned.items()}


def is_column(entry: Entry) -> bool:
    """The sequence of an identity column: defined by its table."""
    return entry.desc == "SEQUENCE" and (entry.definition or "").startswith("ALTER TABLE ")


def _is_query(entry: Entry) -> bool:
    """The query of a view in a circle of dependencies, which is defined late, as a rule."""
    return entry.desc == "RULE" and entry.tag.endswith(" _RETURN")


def _place(entry: Entry) -> tuple[str, str]:
    return entry.schema or "", entry.tag


def _qualified(entry: Entry) -> Iterator[tuple[str, str]]:
    """The names with a schema in a definition, in their order."""
    for match in _NAMES.finditer(entry.definition or ""):
        if match[1] is not None:
            yield unquoted(match[1]), unquoted(match[2])
