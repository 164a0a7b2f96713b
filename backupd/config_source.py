"""From a file to plain values: TOML, `${NAME}` from the environment, and `KEY_file` for secrets."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from backupd.config_models import (
    ClusterTable,
    DatabaseTable,
    Defaults,
    Repository,
    Verify,
    secret_keys,
)
from backupd.config_problems import Key, Problem
from backupd.config_types import literal_password
from backupd.config_values import resolve_path
from backupd.errors import ConfigError
from backupd.private_files import read_private, refuse_readable

_VARIABLE = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)\})?")
_TABLE_LINE = re.compile(r"\s*(\[{1,2}[^\[\]=]+\]{1,2})\s*(?:#.*)?")
_KEY_LINE = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'|\s*\.\s*)+?)\s*=""")
_POSITION = re.compile(r"(.*) \(at (?:line ([0-9]+), column ([0-9]+)|end of document)\)", re.DOTALL)


@dataclass(slots=True)
class Source:
    """A configuration file, read. `values` has secrets in it: it never leaves `load`."""

    path: Path
    lines: Mapping[Key, int]
    values: dict[str, Any] = field(repr=False)
    problems: list[Problem] = field(default_factory=list)
    from_environment: set[Key] = field(default_factory=set)  # keys whose text had a ${NAME} in it
    from_files: dict[Key, Key] = field(default_factory=dict)  # (…, "password") -> (…, "password_file")


def read(path: Path, environ: Mapping[str, str], home: str) -> Source:
    """Read and expand. ConfigError when the file cannot be read or is not TOML; other problems are collected."""
    text, mode = _read_text(path)
    document = _parse(path, text)
    source = Source(path, key_lines(text), {})
    source.problems += _check_literal_secrets(path, mode, document, environ)
    source.values = {name: _expand(value, (name,), environ, source) for name, value in document.items()}
    _read_secret_files(source, environ, home)
    return source


def _read_text(path: Path) -> tuple[str, int]:
    try:
        with path.open("rb") as file:
            content, mode = file.read(), os.fstat(file.fileno()).st_mode
    except OSError as error:
        hint = "name another with --config, or let the user who runs backupd read it"
        raise ConfigError(f"{path} cannot be read", detail=error.strerror or "", hint=hint) from None
    try:
        return content.decode(), mode
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
    raise ConfigError(f"{path}:{line}: is not UTF-8 text", hint="save the file as UTF-8")


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason = str(error)
    match = _POSITION.fullmatch(reason)
    if match is None:
        raise ConfigError(f"{path}: is not TOML: {reason}")
    line, column = int(match[2] or 0), int(match[3] or 0)
    if not line:
        last = text.split("\n")
        line, column = len(last), len(last[-1]) + 1
    raise ConfigError(
        f"{path}:{line}:{column}: is not TOML: {match[1]}",
        hint="texts are quoted, a table starts with [its.name], and a key is given once",
    )


def key_lines(text: str) -> dict[Key, int]:
    """The line of every table and key that stands at the start of a line. For messages: good enough, not a parser."""
    lines: dict[Key, int] = {}
    seen: dict[Key, int] = {}  # how often [[an.array]] came
    table: Key = ()
    inside = False  # a text of several lines
    for number, line in enumerate(text.split("\n"), 1):
        was_inside = inside
        inside ^= (line.count('"""') + line.count("'''")) % 2 == 1
        if was_inside:
            continue
        if header := _TABLE_LINE.fullmatch(line):
            table = _key_of(header[1])
            if header[1].startswith("[["):
                seen[table] = seen.get(table, -1) + 1
                table = (*table, seen[table])
            lines.setdefault(table, number)
        elif key := _KEY_LINE.match(line):
            lines.setdefault(table + _key_of(f"{key[1]} = 0"), number)
    return lines


def _key_of(line: str) -> Key:
    """The path that one line of TOML names: the parser's own reading of quotes and dots."""
    try:
        value: object = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ()
    key: list[str] = []
    while isinstance(value, dict) and value:
        (name, value), *_ = value.items()
        key.append(name)
    return tuple(key)


def _expand(value: Any, key: Key, environ: Mapping[str, str], source: Source) -> Any:
    if isinstance(value, dict):
        return {name: _expand(inner, (*key, name), environ, source) for name, inner in value.items()}
    if isinstance(value, list):
        return [_expand(inner, (*key, index), environ, source) for index, inner in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replacement(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        name = match[1]
        if name is None:
            source.problems.append(Problem(key, "has a ${ that is not ${NAME}", "write $${ for a literal ${"))
        elif name not in environ:
            hint = f"set {name}, or write $${{ for a literal ${{"
            source.problems.append(Problem(key, f"the environment variable {name} is not set", hint))
        return environ.get(name or "", "")

    if "${" in value:
        source.from_environment.add(key)
    return _VARIABLE.sub(replacement, value)


def _tables(document: Mapping[str, Any]) -> Iterator[tuple[Key, type[BaseModel], dict[str, Any]]]:
    """The tables of a document that have secret keys; what is no table is left to the models to report."""
    found: list[tuple[Key, type[BaseModel], Any]] = [
        (("repository",), Repository, document.get("repository")),
        (("defaults",), Defaults, document.get("defaults")),
    ]
    models: tuple[tuple[str, type[BaseModel]], ...] = (("databases", DatabaseTable), ("clusters", ClusterTable))
    for section, model in models:
        tables = document.get(section)
        if isinstance(tables, dict):
            found += [((section, name), model, table) for name, table in tables.items()]
    for key, model, table in found:
        if isinstance(table, dict):
            yield key, model, table
            if "verify" in model.model_fields and isinstance(table.get("verify"), dict):
                yield (*key, "verify"), Verify, table["verify"]


def _read_secret_files(source: Source, environ: Mapping[str, str], home: str) -> None:
    """Put the content of KEY_file in the place of KEY."""
    for key, model, table in _tables(source.values):
        for name in sorted(secret_keys(model)):
            file_key = (*key, f"{name}_file")
            if f"{name}_file" not in table:
                continue
            file = table.pop(f"{name}_file")
            if name in table:
                source.problems.append(Problem(file_key, f"{name} and {name}_file are both given", "keep one"))
                continue
            source.from_files[(*key, name)] = file_key
            if any(problem.key == file_key for problem in source.problems):
                pass  # its path has a variable that is not set
            elif not isinstance(file, str) or not file or "\0" in file:
                source.problems.append(Problem(file_key, "expected the path of a file"))
            else:
                try:
                    content = read_private(resolve_path(file, source.path.parent, home), environ)
                    table[name] = content.removesuffix("\r\n" if content.endswith("\r\n") else "\n")
                except ConfigError as error:
                    text = f"{error.message}: {error.detail}" if error.detail else error.message
                    source.problems.append(Problem(file_key, text, error.hint))


def _check_literal_secrets(
    path: Path, mode: int, document: Mapping[str, Any], environ: Mapping[str, str]
) -> Iterator[Problem]:
    """A file with a secret written out in it is itself a secret. An access key's id alone is none."""
    for key, model, table in _tables(document):
        for name in sorted(secret_keys(model) - {"access_key_id"}):
            value = table.get(name)
            if not isinstance(value, str) or not is_literal_secret(name, value):
                continue
            try:
                refuse_readable(path, mode, environ)
            except ConfigError as error:
                yield Problem((*key, name), error.message, f"{error.hint}, or use {name}_file")
            return  # one is enough


def is_literal_secret(name: str, value: str) -> bool:
    """Whether the value of a secret key spells out a secret, and does not leave it to `${NAME}`."""
    stand_in = "FROM-THE-ENVIRONMENT"
    value = _VARIABLE.sub(lambda match: stand_in if match[1] else match[0], value)
    if name in ("dsn", "scratch"):
        return literal_password(value, stand_in)
    return bool(value) and stand_in not in value
