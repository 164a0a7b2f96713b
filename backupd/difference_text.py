"""How a difference between two databases reads: one line, however long and odd the values are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

_SHOWN = 120  # characters of a value; as many of each side where long texts differ
# Facts whose values are told everywhere: names, choices and rights. Of all others, which may hold expressions and texts
# that people wrote, a proof only says that they differ; numbers, and what is or is not, it tells.
_OPEN = frozenset(
    (
        "access_method",
        "collation",
        "command",
        "compression",
        "enabled",
        "encoding",
        "events",
        "grants",
        "identity",
        "kind",
        "language",
        "owned_by",
        "owner",
        "parent",
        "parents",
        "persistence",
        "privileges",
        "replica_identity",
        "revoked",
        "roles",
        "schema",
        "storage",
        "type",
        "version",
        "volatility",
    )
)
_HASH = re.compile(r"[0-9a-f]{64}")


def label(kind: str, identity: str) -> str:
    """`index public.orders_idx`"""
    if kind == "built-in":  # the identity names its kind
        return _line(identity)
    return kind if kind == "large objects" else _line(f"{kind} {identity}")


def difference(kind: str, fact: str, was: Any, is_: Any) -> str:
    """`enabled is 'D', and was 'O'`; of lists, what one has and the other has not. One line."""
    return _line(_told(kind, fact, was, is_))


def discreet(kind: str, fact: str, was: Any, is_: Any) -> str:
    """The same without what people write into definitions, which may be secret: `body differs`."""
    plain = all(value is None or isinstance(value, int) for value in (was, is_))
    return difference(kind, fact, was, is_) if plain or fact in _OPEN else f"{fact.replace('_', ' ')} differs"


def _told(kind: str, fact: str, was: Any, is_: Any) -> str:
    name = fact.replace("_", " ")
    if kind == "large objects" and isinstance(was, str):  # a hash
        return f"their {name} differ" if name.endswith("s") else f"a {name} differs"
    if fact in ("grants", "revoked", "privileges") and _are(list, was, is_):
        if fact == "revoked":  # what was taken from somebody is a grant the other way round
            name, was, is_ = "grants", is_, was
        return _lacks_and_has(name, _granted(was), _granted(is_), _grants)
    if _are(dict, was, is_):
        return _entries(name, was or {}, is_ or {})
    if _are(list, was, is_):
        one, other = (set(map(_json, value or [])) for value in (was, is_))
        if one != other:
            return _lacks_and_has(name, one, other, ", ".join)
    if isinstance(was, str) and isinstance(is_, str) and max(len(was), len(is_)) > _SHOWN:
        same = next((i for i, (a, b) in enumerate(zip(was, is_, strict=False)) if a != b), min(len(was), len(is_)))
        start = max(0, same - _SHOWN // 4)
        return f"{name} has {_text(is_[start:])} at character {same + 1}, and had {_text(was[start:])}"
    if was is True or is_ is True:  # what is not so is left out of inventories
        was, is_ = bool(was), bool(is_)
    return f"{name} is {_text(is_)}, and was {_text(was)}"


def _are(kind: type, *values: Any) -> bool:
    """Some are of this type, and the others are not there."""
    return any(isinstance(value, kind) for value in values) and all(
        value is None or isinstance(value, kind) for value in values
    )


def _lacks_and_has(name: str, was: set[Any], is_: set[Any], told: Callable[[list[Any]], str]) -> str:
    lacks, has = sorted(was - is_), sorted(is_ - was)
    parts = [f"lacks {name} {_cut(told(lacks))}"] if lacks else []
    return " and ".join([*parts, *([f"has also {name} {_cut(told(has))}"] if has else [])])


def _granted(grants: Any) -> set[tuple[str, ...]]:
    """Every single (grantor, grantee, privilege) of a list as objects.py makes it, which may be without grantors."""
    return {(*who, privilege) for *who, privileges in grants or [] for privilege in privileges.split()}


def _grants(granted: list[tuple[str, ...]]) -> str:
    """`INSERT SELECT* to reader (by owner)`"""
    by: dict[tuple[str, ...], list[str]] = {}
    for *who, privilege in granted:
        by.setdefault(tuple(who), []).append(privilege)
    return ", ".join(
        f"{' '.join(privileges)} to {who[-1]}" + (f" (by {who[0]})" if len(who) > 1 else "")
        for who, privileges in by.items()
    )


def _entries(name: str, was: Mapping[str, Any], is_: Mapping[str, Any]) -> str:
    """By key; values that may be secrets are hashes, and say nothing."""
    told = []
    for key in sorted(was.keys() | is_.keys()):
        if key not in is_:
            told.append(f"lacks {name} {_line(key)}")
        elif key not in was:
            told.append(f"has also {name} {_line(key)}")
        elif was[key] != is_[key]:
            hashed = isinstance(was[key], str) and _HASH.fullmatch(was[key])
            values = "has another value" if hashed else f"is {_text(is_[key])}, and was {_text(was[key])}"
            told.append(f"{name} {_line(key)} {values}")
    return ", ".join(told)


def _text(value: Any) -> str:
    if value is None:
        return "nothing"
    if value is True or value is False:
        return "yes" if value else "no"
    return _cut(f"'{_line(value)}'" if isinstance(value, str) else _json(value))


def _json(value: Any) -> str:
    return _line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _line(text: str) -> str:
    """Without control characters and lone surrogates: names and definitions may hold any."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
