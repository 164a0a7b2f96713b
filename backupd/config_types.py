"""The types of a configuration's values: parsed, checked one at a time, and explained in whole sentences if wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf, SecretStr, ValidationInfo
from pydantic_core import PydanticCustomError

from backupd.config_values import Schedule, parse_duration, parse_schedule, resolve_path

EPHEMERAL = "ephemeral"


def problem(text: str) -> PydanticCustomError:
    """A whole sentence about a value, where "expected X, found Y" would not say it. Never quotes the value."""
    return PydanticCustomError("problem", "{text}", {"text": text})


def parsed_by(parse: Callable[[str], object]) -> BeforeValidator:
    """A text in one of the small languages of config_values."""

    def validate(value: object) -> object:
        if not isinstance(value, str):
            _ = parse("")  # raises what it expects
        return parse(str(value))

    return BeforeValidator(validate)


def _resolved(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("expected a path")
    context: dict[str, Any] = info.context or {}
    return resolve_path(value, context["folder"], context["home"])


def not_empty(value: SecretStr) -> SecretStr:
    if not value.get_secret_value():
        raise problem("is empty")
    return value


def at_least_a_second(value: timedelta) -> timedelta:
    # For PostgreSQL a lock timeout of 0 means: wait for ever, which is what it is there to prevent.
    if not timedelta(seconds=1) <= value <= timedelta(days=1):
        raise ValueError("expected a duration from 1s to 1d")
    return value


def at_least_an_hour(value: timedelta) -> timedelta:
    if value < timedelta(hours=1):  # the objects of a backup that is being made are no leftovers
        raise ValueError("expected a duration of at least 1h")
    return value


def not_nothing(value: timedelta) -> timedelta:
    if not value:
        raise ValueError("expected a duration of more than 0")
    return value


def _checked_dsn(value: SecretStr) -> SecretStr:
    _conninfo(not_empty(value))
    return value


def checked_scratch(value: SecretStr) -> SecretStr:
    return value if value.get_secret_value() == EPHEMERAL else _checked_dsn(value)


def _checked_url(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"https?://[^\s/]+\S*", value.get_secret_value()):
        raise ValueError('expected "https://…"')
    return value


def _conninfo(dsn: SecretStr) -> dict[str, Any]:
    """The parameters of a libpq connection string."""
    import psycopg.conninfo  # not at the top: loading libpq takes longer than the rest of this file

    try:
        return dict(psycopg.conninfo.conninfo_to_dict(dsn.get_secret_value()))
    except psycopg.ProgrammingError:
        pass  # libpq's message may quote the password, so nothing of it is passed on
    raise ValueError('expected a PostgreSQL connection string: "postgresql://user@host/name" or "host=… dbname=…"')


def has_password(dsn: SecretStr) -> bool:
    """Whether a connection string holds a password itself. ValueError for one that cannot be read."""
    return not {"password", "sslpassword"}.isdisjoint(_conninfo(dsn))


def literal_password(dsn: str, stand_in: str) -> bool:
    """Whether a connection string holds a password in which `stand_in` (for a variable) does not occur."""
    try:
        parameters = _conninfo(SecretStr(dsn))
    except ValueError:
        return False  # "ephemeral", or no connection string at all, which is reported elsewhere
    return any(stand_in not in parameters.get(name, stand_in) for name in ("password", "sslpassword"))


FilePath = Annotated[Path, BeforeValidator(_resolved)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]  # TOML knows lists only
Password = Annotated[SecretStr, AfterValidator(not_empty)]
Dsn = Annotated[SecretStr, AfterValidator(_checked_dsn)]
ScheduleText = Annotated[InstanceOf[Schedule], parsed_by(parse_schedule)]
Command = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]  # no shell reads it
Duration = Annotated[timedelta, parsed_by(parse_duration)]
Url = Annotated[SecretStr, AfterValidator(_checked_url)]
Count = Annotated[int, Field(ge=0, le=100_000)]
