"""What is wrong with a configuration, in words: every problem of a file, with its key, its line and a hint.

Values are shown only where no secret can be: keys of `_SHOWN`, written out in the file (not from the environment).
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from pydantic import BaseModel

from backupd.config_models import DatabaseTable, Document, Retention, Verify, secret_keys
from backupd.config_values import nearest
from backupd.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Key: TypeAlias = tuple[str | int, ...]

_SHOWN = {
    *("jobs", "compression", "schedule", "timezone", "lock_wait_timeout", "large_table_size", "listen"),
    *("keep_last", "keep_within", "hourly", "daily", "weekly", "monthly", "yearly"),
    *("fingerprint", "addressing_style", "checksums"),
}
_KINDS = {str: "a text", bool: "a boolean", int: "a whole number", float: "a number", list: "a list", dict: "a table"}
_EXPECTED = {
    "string_type": "a text in quotes",
    "string_too_short": "a text that is not empty",
    "string_too_long": "at most {max_length} characters",
    "int_type": "a whole number",
    "greater_than_equal": "a whole number of at least {ge}",
    "less_than_equal": "a whole number of at most {le}",
    "tuple_type": "a list",
    "model_type": "a table",
    "dict_type": "a table",
    "literal_error": "{expected}",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong, at one key; () is the file as a whole."""

    key: Key
    text: str
    hint: str = ""


def dotted(key: Key) -> str:
    """`databases.shop.verify.checks[0].sql`; parts that TOML would quote are quoted."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part, ensure_ascii=False)
            text += f".{shown}" if text else shown
    return text


def explain(error: ErrorDetails, from_environment: Container[Key]) -> Problem:
    """One of pydantic's errors in our words; none of its own texts, which quote values."""
    key: Key = error["loc"]
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown(key, value)
    if kind == "missing":
        also = f", or {key[-1]}_file" if key[-1] in secret_keys(_table_at(key[:-1])) else ""
        return Problem(key, f"is required{also}")
    if kind == "problem":
        return Problem(key, str(context["text"]))
    if kind == "value_error":
        expected = str(context["error"])
    elif kind in _EXPECTED:
        expected = "expected " + _EXPECTED[kind].format(**context).replace("'", '"')
    else:
        expected = f"is not valid ({kind})"
    return Problem(key, expected + _found(key, value, from_environment))


def _found(key: Key, value: object, from_environment: Container[Key]) -> str:
    leaf = next((part for part in reversed(key) if isinstance(part, str)), "")
    if leaf in _SHOWN and key not in from_environment and isinstance(value, str | int | float):
        return f", found {json.dumps(value, ensure_ascii=False)[:60]}"
    if isinstance(value, str):
        return ""
    return f", found {_KINDS.get(type(value), 'a date or time')}"


def _unknown(key: Key, value: object) -> Problem:
    *parents, last = key
    name = str(last)
    known = _known_keys(_table_at(tuple(parents)))
    if len(key) == 3 and key[0] == "databases" and isinstance(value, dict) and {"dsn", "dsn_file"} & value.keys():
        return Problem(key, "is not a key of a database", f'a name with a dot is quoted: [databases."{key[1]}.{name}"]')
    homes = [home for home, model in _homes().items() if name in _known_keys(model)]
    if homes:
        return Problem(key, "is not known here", f"{name} belongs in {' or '.join(homes)}")
    near = nearest(name, known)
    if near:
        return Problem(key, "is not a known key", f"did you mean {near}?")
    return Problem(key, "is not a known key", f"known here: {', '.join(known)}")


def _homes() -> dict[str, type[BaseModel]]:
    homes: dict[str, type[BaseModel]] = {
        f"[{name}]": _table_at((name,)) for name in Document.model_fields if name not in ("defaults", "databases")
    }
    database: dict[str, type[BaseModel]] = {"[databases.NAME]": DatabaseTable}
    return homes | database | {"[databases.NAME.retention]": Retention, "[databases.NAME.verify]": Verify}


def _known_keys(model: type[BaseModel]) -> list[str]:
    return sorted({*model.model_fields, *(f"{name}_file" for name in secret_keys(model))})


def _table_at(key: Key) -> type[BaseModel]:
    """The model of the table at this key."""
    names = [part for part in key if isinstance(part, str)]
    model: type[BaseModel] = Document
    if names[:1] == ["databases"] and len(names) > 1:
        model, names = DatabaseTable, names[2:]
    for name in names:
        model = _model_in(model.model_fields[name].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def report(path: Path, problems: Sequence[Problem], lines: Mapping[Key, int]) -> ConfigError:
    """All problems of a file as one error, in the order of the file."""
    placed = sorted(((_line(problem.key, lines), problem) for problem in problems), key=lambda pair: pair[0])
    if len(placed) == 1:
        line, problem = placed[0]
        return ConfigError(_sentence(path, line, problem), hint=problem.hint or "correct it, then run: backupd check")
    sentences = [
        _sentence(path, line, problem) + (f" ({problem.hint})" if problem.hint else "") for line, problem in placed
    ]
    return ConfigError(
        f"{path}: {len(placed)} problems", detail="\n".join(sentences), hint="correct them, then run: backupd check"
    )


def _sentence(path: Path, line: int, problem: Problem) -> str:
    place = f"{path}:{line}" if line else str(path)
    return f"{place}: {dotted(problem.key)}: {problem.text}" if problem.key else f"{place}: {problem.text}"


def _line(key: Key, lines: Mapping[Key, int]) -> int:
    """The line of the key, or of the nearest table around it; 0 if that is the file."""
    return next((lines[key[:end]] for end in range(len(key), 0, -1) if key[:end] in lines), 0)


def without(problems: Iterable[Problem], reported: Iterable[Key]) -> list[Problem]:
    """The problems that do not merely follow from one that is reported already, at the same key or below it."""
    earlier = list(reported)
    return [problem for problem in problems if not any(key[: len(problem.key)] == problem.key for key in earlier)]
