"""What tells a restored copy from its source: named checks, each with every object that differs."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Literal

from backupd import majors
from backupd.difference_text import difference, discreet, label
from backupd.postgres.objects import Facts, Inventory

# Every check with the kinds whose objects it compares. Some facts have checks of their own.
KINDS: Mapping[str, tuple[str, ...]] = {
    "schemas": ("schema",),
    "extensions": ("extension", "extension dependency"),
    "types": ("type", "attribute"),
    "functions": ("function", "aggregate"),
    "operators": ("operator", "operator class", "operator family"),
    "casts": ("cast", "transform"),
    "collations": ("collation", "conversion"),
    "text search": (
        "text search configuration",
        "text search dictionary",
        "text search parser",
        "text search template",
    ),
    "languages": ("language", "access method"),
    "tables": ("table",),
    "columns": ("column",),
    "sequences": ("sequence",),
    "constraints": ("constraint",),
    "indexes": ("index",),
    "statistics": ("statistics",),
    "views": ("view",),
    "materialized views": ("materialized view",),
    "triggers": ("trigger",),
    "event triggers": ("event trigger",),
    "rules": ("rule",),
    "policies": ("policy",),
    "foreign data": ("foreign-data wrapper", "server", "user mapping"),
    "publications": ("publication",),
    "subscriptions": ("subscription",),
    "large objects": ("large objects",),
    "default privileges": ("default privileges",),
    "security labels": ("security label",),
}
FACTS: Mapping[str, str] = {"owner": "owners", "grants": "grants", "revoked": "grants", "comment": "comments"}
CHECKS = (*KINDS, "owners", "grants", "comments")
_BUILT_IN = "built-in"
# If large objects are missing or new, the hashes over all of them say nothing more.
_BEFORE = {"identifiers": ("count",), **dict.fromkeys(("owner", "grants", "comment"), ("count", "identifiers"))}
_NOT_NULL = "not null"  # no kind that is read: the columns of which that alone is gone, or new
_CHECK_OF_KIND = {kind: check for check, kinds in KINDS.items() for kind in kinds} | {_BUILT_IN: "grants"}
_NOT_COMPARED = {("extension", "default_version"), ("user mapping", "hidden")}

# Which fact names what an object belongs to. What goes with something that is missing is not named again.
_RELATIONS = ("table", "view", "materialized view")
_PARTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "column": {"table": _RELATIONS},
    "constraint": {"table": _RELATIONS, "domain": ("type",), "column": (_NOT_NULL,)},
    "index": {"table": _RELATIONS, "constraint": ("constraint",)},
    "statistics": {"table": _RELATIONS},
    "trigger": {"table": _RELATIONS},
    "rule": {"table": _RELATIONS},
    "policy": {"table": _RELATIONS},
    "sequence": {"owned_by": ("column",)},
    "attribute": {"of_type": ("type",)},
}


@dataclass(frozen=True, slots=True)
class Check:
    """One of CHECKS."""

    name: str
    status: Literal["passed", "failed", "skipped"]
    detail: str  # `2 of 41 differ`; why it was skipped
    items: tuple[str, ...] = ()  # one line for each difference
    discreet: tuple[str, ...] = ()  # the same lines without texts of definitions and comments


@dataclass(slots=True)
class _Tally:
    """What one check has seen so far."""

    compared: int = 0
    items: list[tuple[str, str]] = field(default_factory=list)  # in full, and discreet
    notes: list[str] = field(default_factory=list)
    unread: str = ""

    def check(self, name: str) -> Check:
        notes = "".join(f"; {note}" for note in self.notes)
        if self.items:
            full, discreet = zip(*self.items, strict=True)
            return Check(name, "failed", f"{len(self.items)} of {self.compared} differ{notes}", full, discreet)
        if self.unread and not self.compared:
            return Check(name, "skipped", self.unread)
        return Check(name, "passed", (f"{self.compared} compared" if self.compared else "there are none") + notes)


def differences(source: Inventory, copy: Inventory, *, source_major: int, copy_major: int) -> list[Check]:
    """Compare all that the source held with what the copy holds: the checks of CHECKS, in that order.

    Missing and additional objects are differences, and so is every fact that is not the same, but for what no dump
    preserves and what majors.py explains.
    """
    comparison = _Comparison(source, copy, source_major, copy_major)
    for kind in _CHECK_OF_KIND:
        comparison.compare(kind)
    return [comparison.tallies[name].check(name) for name in CHECKS]


_Objects = Mapping[str, Mapping[str, Facts]]


class _Comparison:
    def __init__(self, source: Inventory, copy: Inventory, source_major: int, copy_major: int) -> None:
        self.tallies = {name: _Tally() for name in CHECKS}
        self._upward = source_major <= copy_major
        self._majors = range(min(source_major, copy_major) + 1, max(source_major, copy_major) + 1)
        self._unread = {kind: "this backup does not tell" for kind in _CHECK_OF_KIND if kind not in source.objects}
        self._unread |= source.unread
        self._source: _Objects = {kind: self._dumped(source, kind) for kind in _CHECK_OF_KIND}
        self._copy: _Objects = {kind: self._made(copy, kind) for kind in _CHECK_OF_KIND}
        self._gone = self._only_in(self._source, self._copy)
        self._new = self._only_in(self._copy, self._source)
        self._reshaped = self._wholes("column", "table") | self._wholes("attribute", "of_type")

    @staticmethod
    def _only_in(one: _Objects, other: _Objects) -> dict[str, Set[str]]:
        columns = one["column"].keys() & other["column"].keys()
        loose = {c for c in columns if one["column"][c].get("not_null") and not other["column"][c].get("not_null")}
        return {_NOT_NULL: loose, **{kind: one[kind].keys() - other[kind].keys() for kind in _CHECK_OF_KIND}}

    def _wholes(self, kind: str, fact: str) -> Set[str]:
        """What any of the missing and new objects belongs to."""
        pairs = ((self._source, self._gone), (self._copy, self._new))
        return {objects[kind][identity][fact] for objects, only in pairs for identity in only[kind]}

    def _dumped(self, source: Inventory, kind: str) -> Mapping[str, Facts]:
        """What a dump takes along: no index that is invalid, unless it waits for those of partitions."""
        return {
            identity: facts
            for identity, facts in source.objects.get(kind, {}).items()
            if not (kind == "index" and facts.get("invalid") and not facts.get("partitioned"))
            and (self._upward or not majors.made_of_another(kind, facts, self._majors))
        }

    def _made(self, copy: Inventory, kind: str) -> Mapping[str, Facts]:
        """What a restore makes: plpgsql is in a new database even if the source had dropped it."""
        return {
            identity: facts
            for identity, facts in copy.objects.get(kind, {}).items()
            if not (kind == "extension" and identity == "plpgsql" and identity not in self._source[kind])
            and not (self._upward and majors.made_of_another(kind, facts, self._majors))
        }

    def compare(self, kind: str) -> None:
        if kind in self._unread:
            self.tallies[_CHECK_OF_KIND[kind]].unread = self._unread[kind]
            return
        source, copy = self._source[kind], self._copy[kind]
        for identity in sorted(source.keys() | copy.keys()):
            was, is_ = source.get(identity), copy.get(identity)
            if kind == _BUILT_IN:  # always there: only what was granted on it tells
                was, is_ = was or {}, is_ or {}
            if was is not None and is_ is not None:
                self._compare_facts(kind, identity, was, is_)
                continue
            tally = self.tallies[_CHECK_OF_KIND[kind]]
            tally.compared += 1
            if not self._goes_with_another(kind, was or is_ or {}, self._gone if is_ is None else self._new):
                line = f"{label(kind, identity)}: {'missing' if is_ is None else 'is not in the source'}"
                tally.items.append((line, line))

    def _goes_with_another(self, kind: str, facts: Facts, absent: Mapping[str, Set[str]]) -> bool:
        return any(
            facts.get(fact) in absent[whole] for fact, wholes in _PARTS.get(kind, {}).items() for whole in wholes
        )

    def _compare_facts(self, kind: str, identity: str, was: Facts, is_: Facts) -> None:
        told: dict[str, list[tuple[str, str]]] = {} if kind == _BUILT_IN else {_CHECK_OF_KIND[kind]: []}
        for fact in sorted(was.keys() | is_.keys()):
            of_check = told.setdefault(FACTS.get(fact, _CHECK_OF_KIND[kind]), [])
            if was.get(fact) == is_.get(fact) or self._accepted(kind, fact, was, is_):
                continue
            if kind == "extension" and fact == "version" and is_[fact] == is_.get("default_version"):
                note = f"{identity} is {is_[fact]}, this server's default, and was {was[fact]}"
                self.tallies[_CHECK_OF_KIND[kind]].notes.append(note)
                continue
            values = was.get(fact), is_.get(fact)
            of_check.append((difference(kind, fact, *values), discreet(kind, fact, *values)))
        for check, differing in told.items():
            self.tallies[check].compared += 1
            if differing:
                lines = ("; ".join(parts) for parts in zip(*differing, strict=True))
                full, less = (f"{label(kind, identity)}: {line}" for line in lines)
                self.tallies[check].items.append((full, less))

    def _keeps_its_columns(self, facts: Facts) -> bool:
        return facts.get("table", facts.get("of_type")) not in self._reshaped

    def _accepted(self, kind: str, fact: str, was: Facts, is_: Facts) -> bool:
        """Values may differ where no dump preserves them, where the source could not be read, where another
        difference says it all, and between majors."""
        if (kind, fact) in _NOT_COMPARED or (kind == "user mapping" and was.get("hidden")):
            return True
        if fact == "definition" and fact not in was:  # dropped while it was read
            return True
        if fact == "position" and not (fact in was and fact in is_ and self._keeps_its_columns(was)):
            return True
        if kind == "large objects" and any(was[key] != is_[key] for key in _BEFORE.get(fact, ())):
            return True
        old, new = (was, is_) if self._upward else (is_, was)
        one, other = old.get(fact), new.get(fact)
        if fact == "grants" and was.get("owner") != is_.get("owner"):
            one, other = _of_whoever_owns(one, old.get("owner")), _of_whoever_owns(other, new.get("owner"))
        return one == other or majors.explained(kind, fact, one, other, self._majors)


def _of_whoever_owns(grants: Any, owner: str | None) -> Any:
    """Grants without the name of the owner, of whom another check tells: with a table, they go to its new owner."""
    if not isinstance(grants, list):
        return grants
    return sorted([*("" if role == owner else role for role in roles), privileges] for *roles, privileges in grants)
