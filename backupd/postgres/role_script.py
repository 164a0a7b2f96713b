"""Reading what `pg_dumpall --roles-only` writes: a backup's roles, as records.

Only the statements that pg_dumpall is known to write are understood (src/bin/pg_dump/pg_dumpall.c, 13 to 18), and
none of their text is ever executed or quoted: it may hold passwords, and names may hold anything.
"""

from __future__ import annotations

import codecs
import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import SecretStr

from backupd.errors import PostgresError
from backupd.postgres.role_scanner import HINT, Statement, Token, not_understood, scan

# What a role may do by itself. `INHERIT` is what CREATE ROLE gives if nothing is said.
ATTRIBUTES = ("SUPERUSER", "INHERIT", "CREATEROLE", "CREATEDB", "LOGIN", "REPLICATION", "BYPASSRLS")


@dataclass(frozen=True, slots=True)
class RoleSetting:
    """One `ALTER ROLE … SET`. Lists of names, such as search_path, have several values, or none."""

    name: str
    values: tuple[str, ...] = field(repr=False)  # some keep secrets there: pgrst.jwt_secret


@dataclass(frozen=True, slots=True)
class Role:
    """A role as the source had it."""

    name: str
    attributes: frozenset[str] = frozenset({"INHERIT"})  # of ATTRIBUTES
    connection_limit: int = -1
    password: SecretStr | None = None  # its hash: SCRAM-SHA-256$… or md5…
    valid_until: str | None = None
    comment: str | None = None
    labels: tuple[tuple[str, str], ...] = ()  # provider, label
    settings: tuple[RoleSetting, ...] = ()


@dataclass(frozen=True, slots=True)
class Membership:
    """`member` is a member of `role`. From PostgreSQL 16 there may be several with different grantors."""

    role: str
    member: str
    admin: bool = False
    inherit: bool | None = None  # None: not said, as before 16: by the member's own INHERIT
    set_role: bool = True
    grantor: str | None = None


@dataclass(frozen=True, slots=True)
class ParameterGrant:
    """A privilege on a server's parameter, from PostgreSQL 15: `GRANT SET ON PARAMETER …`."""

    parameter: str
    role: str | None  # None: PUBLIC
    privilege: str  # SET, ALTER SYSTEM or ALL
    grantable: bool = False


@dataclass(frozen=True, slots=True)
class Globals:
    """All roles of the source's server and what binds them, in the order in which they were written."""

    roles: tuple[Role, ...]
    memberships: tuple[Membership, ...] = ()
    parameters: tuple[ParameterGrant, ...] = ()


def decode(data: bytes) -> str:
    """The text of a globals stream, which says itself in which encoding it is. Raises PostgresError."""
    match = re.search(rb"^SET client_encoding = '([A-Za-z0-9_]+)';$", data, re.MULTILINE)
    name = match[1].decode() if match else "UTF8"
    codec = re.sub(r"^WIN", "cp", re.sub(r"^KOI8([RU])$", r"koi8_\1", name))
    try:
        return data.decode("utf8" if name == "SQL_ASCII" else codecs.lookup(codec).name)
    except (LookupError, UnicodeDecodeError):
        raise PostgresError(
            f"the roles of the backup are in the encoding {name}, and can't be read", hint=HINT
        ) from None  # the cause quotes the text


def parse(text: str) -> Globals:
    """Read pg_dumpall's text. Raises PostgresError with the number of a line that is not understood, never with it."""
    if undecoded := re.search("[\ud800-\udfff]", text):  # bytes of another encoding: no server would take them
        raise not_understood(text.count("\n", 0, undecoded.start()) + 1)
    # Until August 2025 pg_dumpall wrote names into comments as they are: after a line feed in a name came SQL of
    # whoever had chosen it. The roles themselves stand above all such comments.
    for name in _created(text):
        comment = f'\n-- User Config "{name}"\n'
        text = text.replace(comment, "\n--" + "\n" * (comment.count("\n") - 1))
    found = _read(text)
    return Globals(tuple(found.roles.values()), tuple(found.memberships), tuple(found.parameters))


def _created(text: str) -> list[str]:
    """The names of more than one line among the roles that the text creates, as far as it is understood."""
    names = []
    with suppress(PostgresError):
        for statement in scan(text):
            match statement.tokens:
                case (Token("word", "CREATE"), Token("word", "ROLE"), Token("name", name)):
                    names.append(name)
    return [name for name in names if "\n" in name or "\r" in name]


@dataclass(slots=True)
class _Found:
    roles: dict[str, Role] = field(default_factory=dict)
    memberships: list[Membership] = field(default_factory=list)
    parameters: list[ParameterGrant] = field(default_factory=list)

    def change(self, name: str, **changes: Any) -> None:
        self.roles[name] = replace(self.roles[name], **changes)


class _Cursor:
    """Goes through one statement's tokens."""

    def __init__(self, statement: Statement) -> None:
        self._tokens = statement.tokens
        self._line = statement.line
        self._next = 0

    def refuse(self) -> PostgresError:
        return not_understood(self._line)

    def accept(self, *words: str) -> bool:
        """Pass these key words if they are next."""
        found = self._tokens[self._next : self._next + len(words)]
        if [(token.kind, token.value.upper()) for token in found] != [("word", word) for word in words]:
            return False
        self._next += len(words)
        return True

    def expect(self, *words: str) -> None:
        if not self.accept(*words):
            raise self.refuse()

    def mark(self, mark: str) -> bool:
        if self._tokens[self._next : self._next + 1] != (Token("mark", mark),):
            return False
        self._next += 1
        return True

    def take(self, kind: str) -> str:
        if self.done or self._tokens[self._next].kind != kind:
            raise self.refuse()
        self._next += 1
        return self._tokens[self._next - 1].value

    def name(self) -> str:
        if not self.done and self._tokens[self._next].kind == "word":
            return self.take("word").lower()
        return self.take("name")

    def role(self, found: _Found) -> str:
        """The name of a role that was created above."""
        name = self.name()
        if name not in found.roles:
            raise self.refuse()
        return name

    @property
    def done(self) -> bool:
        return self._next == len(self._tokens)

    def pass_over(self) -> None:
        self._next = len(self._tokens)


def _read(text: str) -> _Found:
    found = _Found()
    for statement in scan(text):
        at = _Cursor(statement)
        _statement(at, found)
        if not at.done:
            raise at.refuse()
    return found


def _statement(at: _Cursor, found: _Found) -> None:
    if at.accept("CREATE", "ROLE"):
        name = at.name()
        if name in found.roles:
            raise at.refuse()
        found.roles[name] = Role(name)
    elif at.accept("ALTER", "ROLE"):
        _alter(at, found)
    elif at.accept("COMMENT", "ON", "ROLE"):
        name = at.role(found)
        at.expect("IS")
        found.change(name, comment=at.take("text"))
    elif at.accept("SECURITY", "LABEL", "FOR"):
        provider = at.name()
        at.expect("ON", "ROLE")
        name = at.role(found)
        at.expect("IS")
        found.change(name, labels=(*found.roles[name].labels, (provider, at.take("text"))))
    elif at.accept("GRANT"):
        _grant(at, found)
    elif at.accept("SET") or at.accept("RESET") or at.accept("REVOKE"):
        # The session's settings; and REVOKE … ON PARAMETER, which only ever takes from the owner what is its own.
        at.pass_over()
    else:
        raise at.refuse()


def _alter(at: _Cursor, found: _Found) -> None:
    name = at.role(found)
    if at.accept("IN", "DATABASE"):  # a database's own: its manifest has them
        at.pass_over()
    elif at.accept("SET"):
        setting = [at.name()]
        while at.mark("."):
            setting.append(at.name())
        at.expect("TO")
        values = [] if at.done else [at.take("text")]
        while at.mark(","):
            values.append(at.take("text"))
        made = RoleSetting(".".join(setting), tuple(values))
        found.change(name, settings=(*found.roles[name].settings, made))
    else:
        at.expect("WITH")
        while not at.done:
            _option(at, found, name)


def _option(at: _Cursor, found: _Found, name: str) -> None:
    """One of what follows `ALTER ROLE … WITH`."""
    if at.accept("CONNECTION", "LIMIT"):
        found.change(name, connection_limit=int(at.take("number")))
    elif at.accept("PASSWORD"):
        found.change(name, password=None if at.accept("NULL") else SecretStr(at.take("text")))
    elif at.accept("VALID", "UNTIL"):
        found.change(name, valid_until=at.take("text"))
    else:
        word = at.take("word").upper()
        attributes = found.roles[name].attributes
        if word in ATTRIBUTES:
            found.change(name, attributes=attributes | {word})
        elif word.removeprefix("NO") in ATTRIBUTES:
            found.change(name, attributes=attributes - {word.removeprefix("NO")})
        else:
            raise at.refuse()


def _grant(at: _Cursor, found: _Found) -> None:
    privileges = _privileges(at)
    if privileges:
        at.expect("ON", "PARAMETER")
        parameter = at.name()
        at.expect("TO")
        role = None if at.accept("PUBLIC") else at.name()
        grantable = at.accept("WITH", "GRANT", "OPTION")
        found.parameters += [ParameterGrant(parameter, role, privilege, grantable) for privilege in privileges]
        return
    role = at.name()
    at.expect("TO")
    grant = Membership(role, at.name())
    if at.accept("WITH"):
        grant = _grant_option(at, grant)
        while at.mark(","):
            grant = _grant_option(at, grant)
    if at.accept("GRANTED", "BY"):
        grant = replace(grant, grantor=at.name())
    found.memberships.append(grant)


def _privileges(at: _Cursor) -> list[str]:
    """Those on a parameter; none if what follows is a role."""
    privileges = []
    while word := next((word for word in ("SET", "ALL", "ALTER SYSTEM") if at.accept(*word.split())), None):
        privileges.append(word)
        if not at.mark(","):
            break
    return privileges


def _grant_option(at: _Cursor, grant: Membership) -> Membership:
    for word, key in (("ADMIN", "admin"), ("INHERIT", "inherit"), ("SET", "set_role")):
        if at.accept(word):
            if at.accept("OPTION") or at.accept("TRUE"):
                return replace(grant, **{key: True})  # type: ignore[arg-type]
            at.expect("FALSE")
            return replace(grant, **{key: False})  # type: ignore[arg-type]
    raise at.refuse()
