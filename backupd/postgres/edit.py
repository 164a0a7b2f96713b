"""Changes to archives on their way to pg_restore: entries left out, other owners. Rows pass untouched."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

from backupd.postgres import archive
from backupd.postgres.archive import Entry
from backupd.postgres.names import identifier, unquoted
from backupd.postgres.privileged import by_the_owner
from backupd.postgres.selection import SETTINGS, Selection
from backupd.storage.base import Buffer

# Whose definitions name roles; everywhere else a role is an entry's owner and nothing more.
_NAMING_ROLES = ("ACL", "DEFAULT ACL", "POLICY", "USER MAPPING")
_TOKEN = re.compile(r"""(?P<text>[Ee]?'(?:[^']|'')*')|(?P<name>"(?:[^"]|"")*")|(?P<word>\w+)|(?P<sign>\S)""")
_ROLES_FOLLOW = ("TO", "FROM", "ROLE", "AUTHORIZATION", "FOR")
_FROM_STDIN = " FROM stdin;"
_COPIED_TO = re.compile(r'(COPY )("(?:[^"]|"")*")\.("(?:[^"]|"")*")')


@dataclass(frozen=True, slots=True)
class Edit:
    """What a restore changes in what it restores."""

    selection: Selection | None = None  # None: everything
    without: frozenset[int] = frozenset()  # dump ids in the schema archive
    roles: Mapping[str, str] = field(default_factory=dict)  # old name -> new name
    owners_grant: bool = False  # what others granted of what was granted to them

    def role(self, name: str) -> str:
        return self.roles.get(name, name)

    def schema(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The entries of the schema archive that are restored, as they are restored."""
        for entry in entries:
            kept = self.selection is None or entry.dump_id in self.selection.entries
            if kept and entry.dump_id not in self.without:
                yield self._renamed(entry)

    @property
    def changes_data(self) -> bool:
        return self.selection is not None or bool(self.roles) or self.owners_grant

    def data(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The same for an archive of rows, whose numbers are others."""
        for entry in entries:
            if self.selection is None:
                yield self._renamed(entry)
            elif self._has_rows(entry, self.selection):
                yield self._renamed(_loaded_directly(entry, self.selection))

    def stream(
        self, pieces: Iterable[Buffer], what: str, fresh: frozenset[tuple[str, str]] = frozenset()
    ) -> Iterator[Buffer]:
        """An archive of rows as it arrives, its table of contents changed. `fresh` are tables, as (schema, name), that
        hold nothing and may be emptied."""
        pieces = iter(pieces)
        first = next(pieces, b"")
        whole: Iterator[Buffer] = chain([first], pieces)
        if not self.changes_data and not (fresh and archive.is_known(first)):
            yield from whole
            return
        found, whole = archive.read(whole, what)
        entries = (_frozen(entry, fresh) for entry in self.data(found.entries))
        yield found.with_entries(entries).encode()
        first = next(whole)
        yield memoryview(first)[found.size :]
        yield from whole

    def _has_rows(self, entry: Entry, selection: Selection) -> bool:
        place = (entry.schema or "", entry.tag)
        if entry.desc == "TABLE DATA":
            return place in selection.tables
        if entry.desc == "SEQUENCE SET":
            return place in selection.sequences
        return entry.desc in SETTINGS

    def _renamed(self, entry: Entry) -> Entry:
        if self.owners_grant:
            entry = by_the_owner(entry)
        if not self.roles:
            return entry
        owner = self.role(entry.owner) if entry.owner else entry.owner
        definition = entry.definition
        if definition and entry.desc in _NAMING_ROLES:
            pieces, at = [], 0
            for start, end, name in _roles(definition, entry.desc):
                pieces += [definition[at:start], identifier(self.role(name))]
                at = end
            definition = "".join([*pieces, definition[at:]])
        return replace(entry, owner=owner, definition=definition)


def _frozen(entry: Entry, fresh: frozenset[tuple[str, str]]) -> Entry:
    """The rows of a fresh table, frozen as they come: else whoever first reads them writes every page of it again, to
    note which transactions are done. The table must have been emptied in the same transaction, which is that of both
    statements: pg_restore sends them as one query. (https://www.postgresql.org/docs/current/sql-copy.html, FREEZE)
    """
    place = (entry.schema or "", entry.tag)
    if entry.desc != "TABLE DATA" or place not in fresh or not entry.copy:
        return entry
    match, copy = _COPIED_TO.match(entry.copy), entry.copy.rstrip()
    if match is None or (unquoted(match[2]), unquoted(match[3])) != place or not copy.endswith(_FROM_STDIN):
        return entry  # into the table of which it is a partition
    table = f"{identifier(place[0])}.{identifier(place[1])}"
    return replace(entry, copy=f"TRUNCATE ONLY {table};\n{copy.removesuffix(';')} WITH (FREEZE);\n")


def _loaded_directly(entry: Entry, selection: Selection) -> Entry:
    """The rows of a partition whose parents stay behind. Some partitions are loaded through the one at the top."""
    if not entry.copy or (match := _COPIED_TO.match(entry.copy)) is None:
        return entry
    if (unquoted(match[2]), unquoted(match[3])) in selection.tables:
        return entry
    place = f"{identifier(entry.schema or '')}.{identifier(entry.tag)}"
    return replace(entry, copy=f"{match[1]}{place}{entry.copy[match.end() :]}")


def roles_named(entry: Entry) -> set[str]:
    """The roles without which this entry can't be restored: its owner, and whom grants and policies name."""
    found = {entry.owner} if entry.owner else set()
    if entry.definition and entry.desc in _NAMING_ROLES:
        found |= {name for _, _, name in _roles(entry.definition, entry.desc)}
    return found


def _roles(definition: str, desc: str) -> Iterator[tuple[int, int, str]]:
    """Where a definition names roles: start, end and name. pg_dump quotes every name here, and a role comes after one
    of a few words, or after another role and a comma."""
    expected = False
    for token in _TOKEN.finditer(definition):
        if token["name"]:
            if expected:
                yield token.start(), token.end(), unquoted(token["name"])
        elif token["word"]:
            word = token["word"].upper()
            if desc == "POLICY" and word in ("USING", "WITH"):
                return  # from here on any expression
            expected = word in _ROLES_FOLLOW
        elif token[0] != ",":
            expected = False
