"""Names of schemas and tables, as SQL and as pg_dump's patterns want them."""

from __future__ import annotations


def identifier(name: str) -> str:
    """The name quoted for SQL, whatever is in it: `we"ird` becomes `"we""ird"`."""
    return '"' + name.replace('"', '""') + '"'


def unquoted(quoted: str) -> str:
    """The name in a quoted one."""
    return quoted[1:-1].replace('""', '"')


def pattern(schema: str, table: str) -> str:
    """A pattern for pg_dump's -t, --exclude-table-data and the like that matches this table alone.

    Within double quotes pg_dump takes `*`, `?`, `.` and every regular-expression character as it is. It reads
    the pattern in the client encoding: pass `--encoding=UTF8` if the database has another one.
    """
    return f"{identifier(schema)}.{identifier(table)}"
