"""psql's patterns for names: `orders`, `shop.*`, `"Odd.Name"`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from backupd.errors import ConfigError

_SIGNS = "|*+?()[]{}.^$\\"  # of a regular expression
_FAR = 0.4  # from here on a name is not meant
_HINT = 'Write NAME, SCHEMA.NAME or "Quoted"."Name"; * and ? stand for any characters.'


@dataclass(frozen=True, slots=True)
class Pattern:
    """What names match, each as a whole."""

    text: str
    schema: re.Pattern[str] | None  # None: any
    name: re.Pattern[str]

    def matches(self, schema: str, name: str) -> bool:
        return bool(self.name.fullmatch(name) and (self.schema is None or self.schema.fullmatch(schema)))


def parse(text: str) -> Pattern:
    """Read a pattern as psql and pg_dump do: `*` and `?` stand for any characters and any one, a dot parts schema and
    name, capitals don't count, and the other signs are a regular expression's; within double quotes all is literal.
    Other than there, a name alone matches in every schema. Raises ConfigError."""
    parts, quoted, at = [""], False, 0
    while at < len(text):
        c = text[at]
        if c == '"':
            if quoted and text[at + 1 : at + 2] == '"':
                parts[-1] += '"'
                at += 1
            else:
                quoted = not quoted
        elif quoted:
            parts[-1] += re.escape(c)
        elif c == ".":
            parts.append("")
        elif text.startswith("[]", at) or c == "$":  # psql takes these two as they are
            parts[-1] += re.escape(c)
        elif c in _SIGNS:
            parts[-1] += {"*": ".*", "?": "."}.get(c, c)
        else:
            parts[-1] += c.lower() if c.isascii() else c  # as PostgreSQL folds names
        at += 1
    if quoted or len(parts) > 2 or not all(parts):
        raise ConfigError(f"{text!r} is not a pattern for names", hint=_HINT)
    try:
        *schema, name = (re.compile(part, re.DOTALL) for part in parts)
    except re.error as error:
        raise ConfigError(f"{text!r} is not a pattern for names", detail=str(error), hint=_HINT) from error
    return Pattern(text, schema[0] if schema else None, name)


def nothing(kind: str, text: str, known: Iterable[Sequence[str]]) -> ConfigError:
    """The error for a pattern that matches nothing, with the names that it may have meant."""
    names = sorted(".".join(parts) for parts in known)
    wanted = text.replace('"', "").lower()
    near = sorted(names, key=lambda name: _unlikeness(name.lower(), wanted))[:3]
    near = [name for name in near if _unlikeness(name.lower(), wanted) < _FAR]
    if near:
        detail = f"There is {' or '.join(near)}."
    elif names:
        detail = f"There are {len(names)}: " + ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
    else:
        detail = "There is none at all."
    return ConfigError(
        f"no {kind} in the backup matches {text}",
        detail=detail,
        hint='Patterns are as in psql: names with capitals need double quotes ("Orders"), * and ? stand for anything.',
    )


def _unlikeness(name: str, wanted: str) -> float:
    """0 to 1. Who left the schema out meant that of any."""
    whole = SequenceMatcher(None, name, wanted).ratio()
    last = SequenceMatcher(None, name.rpartition(".")[2], wanted).ratio()
    return 1 - max(whole, last if "." not in wanted else 0)
