"""The scanner for what pg_dumpall writes of roles: statements and tokens, and never a guess.

Strings and quoted names may hold anything: line feeds, semicolons, quotes, what looks like a comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from backupd.errors import PostgresError

HINT = "Create the roles by hand: docs/recovery-without-backupd.md shows how to read them."


def not_understood(line: int) -> PostgresError:
    return PostgresError(f"line {line} of the backup's roles is not understood", hint=HINT)


class Token(NamedTuple):
    kind: str  # name (quoted), text (a string), word, number, mark
    value: str


@dataclass(frozen=True, slots=True)
class Statement:
    line: int  # where it begins
    tokens: tuple[Token, ...] = field(repr=False)


# Without backtracking (++): what is not closed is not understood, rather than read in some other way. A string with
# backslashes is always written as E'…' with each doubled, whatever the server's standard_conforming_strings.
_TOKEN = re.compile(
    r"""
    (?P<blank>   \s++ | --[^\n]*+ )
  | (?P<name>    "(?: [^"]++ | "" )++" )
  | (?P<escaped> E'(?: [^'\\]++ | '' | \\\\ )*+' )
  | (?P<text>    '(?: [^'\\]++ | '' )*+' )
  | (?P<word>    [A-Za-z_][A-Za-z0-9_]*+ (?!['"]) )
  | (?P<number>  -?[0-9]++ )
  | (?P<mark>    [,;=.] )
    """,
    re.VERBOSE | re.ASCII,
)


def scan(text: str) -> Iterator[Statement]:
    """The statements, without comments and psql's own commands (\\connect, \\restrict). Raises PostgresError."""
    position, line, begun = 0, 1, 1
    tokens: list[Token] = []
    while position < len(text):
        if text[position] == "\\" and not tokens and text[position - 1 : position] in ("", "\n"):
            end = text.find("\n", position)
            position = end if end >= 0 else len(text)
            continue
        match = _TOKEN.match(text, position)
        if match is None:
            raise not_understood(line)
        token = _token(match)
        if token is not None and not tokens:
            begun = line
        if token == Token("mark", ";"):
            if tokens:
                yield Statement(begun, tuple(tokens))
            tokens = []
        elif token is not None:
            tokens.append(token)
        line += match[0].count("\n")
        position = match.end()
    if tokens:
        raise not_understood(begun)


def _token(match: re.Match[str]) -> Token | None:
    kind, found = match.lastgroup or "", match[0]
    if kind == "blank":
        return None
    if kind == "name":
        return Token("name", found[1:-1].replace('""', '"'))
    if kind == "text":
        return Token("text", found[1:-1].replace("''", "'"))
    if kind == "escaped":
        return Token("text", found[2:-1].replace("''", "'").replace("\\\\", "\\"))
    return Token(kind, found)
