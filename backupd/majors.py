"""What a newer major of PostgreSQL says otherwise of an object that is the same: each with its reason.

Whatever is not told here is a difference. No rule makes texts alike by leaving much out: each follows what the newer
server does to the older one's word, and no further.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Facts = Mapping[str, Any]

_TABLE_PRIVILEGES = ("DELETE", "INSERT", "REFERENCES", "SELECT", "TRIGGER", "TRUNCATE", "UPDATE")
_NAME = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)'
# A literal, to be passed over; or the qualifier of a column, as opposed to the schema of something.
_QUALIFIER = re.compile(
    rf"'(?:[^']|'')*'|(?<![\w.\"])(?<!FROM )(?<!JOIN )(?<!ONLY )(?<!COLLATE )(?<!::)({_NAME})\.(?={_NAME}(?![\w$(]))"
)


@dataclass(frozen=True, slots=True)
class ChangedFact:
    """What the older server said of a fact, and what the newer one says."""

    major: int  # that brought it
    why: str
    kinds: tuple[str, ...]
    fact: str
    same: Callable[[Any, Any], bool]  # of the older and the newer value; None where there is none


@dataclass(frozen=True, slots=True)
class NewObject:
    """An object that only the newer server has, made of something that the older one says elsewhere."""

    major: int
    why: str
    kind: str
    is_one: Callable[[Facts], bool]


def _unqualified(old: Any, new: Any) -> bool:
    """The newer text is the older one without the name of one relation before columns."""
    if not isinstance(old, str) or not isinstance(new, str):
        return False
    found = [match for match in _QUALIFIER.finditer(old) if match[1]]
    return any(_without([m for m in found if m[1] == name], old, new) for name in {match[1] for match in found})


def _without(qualifiers: list[re.Match[str]], old: str, new: str) -> bool:
    """Whether leaving out some of these makes the new text of the old one."""
    starts, ends = [m.start() for m in qualifiers], [m.end() for m in qualifiers]
    parts = [re.escape(old[end:start]) for end, start in zip([0, *ends], [*starts, len(old)], strict=True)]
    return re.fullmatch(f"(?:{re.escape(qualifiers[0][0])})?".join(parts), new) is not None


def _with_maintain(old: Any, new: Any) -> bool:
    """Besides, MAINTAIN for owners, who have it unless it is taken from them, and for those who had all there was."""
    before, after = _granted(old), _granted(new)
    return all(
        before.get(who, frozenset()) == after.get(who)
        or _gained_maintain(before.get(who, frozenset()), after.get(who, frozenset()), owner=who[0] == who[1])
        for who in before.keys() | after.keys()
    )


def _granted(grants: Any) -> dict[tuple[str, str], frozenset[str]]:
    return {(grantor, grantee): frozenset(privileges.split()) for grantor, grantee, privileges in grants or []}


def _gained_maintain(before: frozenset[str], after: frozenset[str], *, owner: bool) -> bool:
    if before <= after and after - before <= {"MAINTAIN", "MAINTAIN*"}:
        return owner or any(before == {name + sign for name in _TABLE_PRIVILEGES} for sign in ("", "*"))
    return False


def _language_tag(old: Any, new: Any) -> bool:
    """`de@collation=phonebook` or `de_DE` became a tag of the same language."""
    if not isinstance(old, str) or not isinstance(new, str) or not re.search("[@_]", old):
        return False
    return re.split("[-@_]", old)[0].lower() == new.split("-")[0].lower()


RULES: tuple[ChangedFact | NewObject, ...] = (
    ChangedFact(
        14,
        "a range has a multirange",
        ("type",),
        "multirange",
        lambda old, new: old is None and new is not None,
    ),
    ChangedFact(
        14,
        "what takes subscripts has a function for it",
        ("type",),
        "subscript",
        lambda old, new: old is None and str(new).endswith("array_subscript_handler(internal)"),
    ),
    ChangedFact(
        16,
        "ICU's locales are named by language tags",
        ("collation",),
        "locale",
        _language_tag,
    ),
    ChangedFact(
        16,
        "a view of one relation names its columns without it",
        ("view", "materialized view"),
        "definition",
        _unqualified,
    ),
    ChangedFact(
        16,
        "subscriptions of older servers run as their owner",
        ("subscription",),
        "run_as_owner",
        lambda old, new: old is None and new is True,
    ),
    ChangedFact(
        16,
        "subscriptions take changes of any origin",
        ("subscription",),
        "origin",
        lambda old, new: old is None and new == "any",
    ),
    ChangedFact(
        17,
        "MAINTAIN is one more privilege of tables",
        ("table", "view", "materialized view"),
        "grants",
        _with_maintain,
    ),
    ChangedFact(
        17,
        "MAINTAIN is one more privilege of tables",
        ("default privileges",),
        "privileges",
        _with_maintain,
    ),
    ChangedFact(
        18,
        "subscriptions stream in parallel; of those that do not stream, an older pg_dump says nothing",
        ("subscription",),
        "streaming",
        lambda old, new: (old, new) == ("f", "p"),
    ),
    NewObject(
        17,
        "NOT NULL of a domain is a constraint",
        "constraint",
        lambda facts: facts.get("type") == "n" and "domain" in facts,
    ),
    NewObject(
        18,
        "NOT NULL of a column is a constraint",
        "constraint",
        lambda facts: facts.get("type") == "n" and "table" in facts,
    ),
)


def explained(kind: str, fact: str, old: Any, new: Any, majors: range) -> bool:
    """Whether one of these majors says `new` where the ones before said `old` (None: nothing) of the same thing."""
    return any(
        rule.same(old, new)
        for rule in RULES
        if isinstance(rule, ChangedFact) and rule.major in majors and kind in rule.kinds and fact == rule.fact
    )


def made_of_another(kind: str, facts: Facts, majors: range) -> bool:
    """Whether one of these majors makes such an object of what the ones before say elsewhere."""
    return any(
        rule.is_one(facts)
        for rule in RULES
        if isinstance(rule, NewObject) and rule.major in majors and kind == rule.kind
    )
