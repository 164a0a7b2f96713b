"""Names of databases, schemas and tables, as SQL and as pg_dump's patterns want them."""

from __future__ import annotations

import re

_PLAIN = re.compile(r"[a-z_][a-z0-9_$]*")
_NAME_BYTES = 63  # PostgreSQL cuts the rest off


def identifier(name: str) -> str:
    """The name quoted for SQL, whatever is in it: `we"ird` becomes `"we""ird"`."""
    return '"' + name.replace('"', '""') + '"'


def readable(schema: str, name: str) -> str:
    """A name for people, quoted only where SQL would need it for its letters."""
    return ".".join(part if _PLAIN.fullmatch(part) else identifier(part) for part in (schema, name))


def unquoted(quoted: str) -> str:
    """The name in a quoted one."""
    return quoted[1:-1].replace('""', '"')


def literal(text: str) -> str:
    """The text as an SQL string, whatever is in it (with standard_conforming_strings, as everywhere since 9.1)."""
    return "'" + text.replace("'", "''") + "'"


def pattern(schema: str, table: str) -> str:
    """A pattern for pg_dump's -t, --exclude-table-data and the like that matches this table alone.

    Within double quotes pg_dump takes `*`, `?`, `.` and every regular-expression character as it is. It reads
    the pattern in the client encoding: pass `--encoding=UTF8` if the database has another one.
    """
    return f"{identifier(schema)}.{identifier(table)}"


def free_name(base: str, suffix: str) -> str:
    """`base` + `suffix`, with the base shortened so that PostgreSQL does not cut the suffix off."""
    room = _NAME_BYTES - len(suffix.encode())
    return base.encode()[:room].decode("utf-8", "ignore") + suffix


def renames(name: str, restored: str, kept: str | None) -> list[str]:
    """The statements of a swap, for one transaction: `kept` is the original's new name, None if there is none."""
    first = [f"ALTER DATABASE {identifier(name)} RENAME TO {identifier(kept)};"] if kept is not None else []
    return [*first, f"ALTER DATABASE {identifier(restored)} RENAME TO {identifier(name)};"]


def way_back(name: str, restored: str, kept: str) -> list[str]:
    """The statements that undo a swap."""
    return [
        f"ALTER DATABASE {identifier(name)} RENAME TO {identifier(restored)};",
        f"ALTER DATABASE {identifier(kept)} RENAME TO {identifier(name)};",
    ]
