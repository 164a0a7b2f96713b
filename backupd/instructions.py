"""RESTORE.md: how one export becomes a database again, in commands to copy and paste into a shell, in order.

A test runs them all. Names come quoted, or encoded where they would steer a terminal: see postgres/psql.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from backupd import __version__, times
from backupd.manifest import Manifest
from backupd.postgres import psql
from backupd.postgres.names import free_name

_PSQL = "psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1"

# The same as in docs/recovery-without-backupd.md: partitions are counted together, by the root of their tree.
_DIFFERENCES = r"""\set manifest `cat manifest.json`
set row_security = off;
select format('select %L as "table", %s as expected, found from (select %s as found) as counted where found <> %s',
              place, expected, counts, expected)
from (select coalesce(t->>'root', format('%I.%I', t->>'schema', t->>'name')) as place, sum((t->>'rows')::bigint) as expected,
             string_agg(format('(select count(*) from only %I.%I)', t->>'schema', t->>'name'), ' + ') as counts
      from jsonb_array_elements(:'manifest'::jsonb->'tables') as t group by place) as places
\gexec"""  # noqa: E501


@dataclass(frozen=True, slots=True)
class File:
    """One file of an export."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Guide:
    """What RESTORE.md tells of."""

    manifest: Manifest
    files: Sequence[File]  # in the folder, beside RESTORE.md
    schema: str  # the file of the definitions, or of everything where there is no other
    data: Sequence[str]  # the files of the rows, in the order to begin them
    plain: bool  # `schema` is SQL for psql, rows and all
    jobs: int

    @property
    def through_psql(self) -> bool:
        """pg_restore can't connect itself: servers of the source's version would refuse a setting of its own."""
        return self.manifest.dump_major >= psql.KNOWS_SETTING > self.manifest.server_major


def render(guide: Guide) -> str:
    """The text of RESTORE.md."""
    parts = [_front(guide), _needs(guide), _name(guide), _sums(guide), _roles(guide), _database(guide)]
    parts += [_content(guide), _rows(), _properties(guide)]
    return "\n\n".join(parts) + "\n"


def _front(guide: Guide) -> str:
    manifest = guide.manifest
    facts = [
        f"backup: `{manifest.id}` of `{manifest.database}`",
        f"taken at: {times.iso(manifest.taken_at)}. What was committed later is not in it",
        f"source: the database {_code(manifest.properties.name)} on PostgreSQL {manifest.server_version}",
        f"holds: {len(manifest.tables)} tables, {manifest.rows} rows",
        f"roles that it names: {_codes(manifest.roles)}",
        "extensions: " + (", ".join(f"{_code(e.name)} {_code(e.version)}" for e in manifest.extensions) or "none"),
        f"tablespaces other than the default: {_codes(manifest.tablespaces)}",
        f"written by: backupd {__version__}, from a backup that pg_dump {manifest.tools.get('pg_dump', '?')} made",
    ]
    files = [f"`{file.name}`: {_holds(guide, file.name)}, {times.human_bytes(file.bytes)}" for file in guide.files]
    return (
        f"# {manifest.database}, as of {times.iso(manifest.taken_at)}\n\n"
        "**Everything in this folder is decrypted**: rows, definitions, and the hashes of roles' passwords if the\n"
        "backup has them. Only the user who made the folder can read it. Keep it so, also for copies, and delete it\n"
        f"when it is no longer needed.\n\n{_list(facts)}\n\nThe files:\n\n{_list(files)}"
    )


def _holds(guide: Guide, name: str) -> str:
    if name == "manifest.json":
        return "the description of the backup, as it was signed"
    if name == "globals.sql":
        return "the server's roles, as SQL"
    if name == guide.schema:
        return "definitions and rows, as SQL" if guide.plain else "definitions"
    stream = next(stream for stream in guide.manifest.streams if name.startswith(f"{stream.name}."))
    if len(stream.tables) == 1:
        return f"the rows of {_code(stream.tables[0])}"
    others = f"the rows of {len(stream.tables)} tables, " if stream.tables else ""
    return f"{others}sequences and large objects"


def _needs(guide: Guide) -> str:
    manifest = guide.manifest
    programs = "`psql`, best of the server's version"
    if not guide.plain:
        programs = f"`psql` and `pg_restore`, best of the server's version; PostgreSQL {manifest.dump_major} or newer"
    return (
        "## What it takes\n\n"
        f"- a server of PostgreSQL {manifest.server_major} or newer, with the extensions installed;\n"
        f"- {programs}. Take\n"
        "  the newest minor version: dumps since August 2025 hold a line `\\restrict`, which older ones don't know;\n"
        "- a superuser, or one who may create databases and roles, and is a member of those that will own something.\n"
        "  Set `PGHOST`, `PGPORT`, `PGUSER` and `PGPASSWORD` as always.\n\n"
        "Open a shell in this folder, and paste the blocks one after the other; stop if one prints an error that is\n"
        "not expected. If something fails half-way: drop the new database, and begin again with step 4."
    )


def _name(guide: Guide) -> str:
    stamp = f"_restored_{times.compact(guide.manifest.taken_at)}"
    name = shlex.quote(free_name(guide.manifest.database, stamp))
    return "## 1. The new database's name\n\nIt must not exist yet. Change it as you like:\n\n" + _block(
        f"export PGDATABASE={name}\nexport PGCLIENTENCODING=UTF8"
    )


def _sums(guide: Guide) -> str:
    sums = "\n".join(f"{file.sha256}  {file.name}" for file in guide.files)
    return "## 2. Are the files whole?\n\n" + _block(f"sha256sum -c <<'SUMS'\n{sums}\nSUMS")


def _roles(guide: Guide) -> str:
    return (
        "## 3. Roles\n\n"
        "Roles belong to the server, not to the database. This creates those that are missing, and leaves your own\n"
        "as it is. Errors that say `already exists` are expected.\n\n"
        "**Read `globals.sql` first on a server that has other databases**: it holds all roles of the source's\n"
        "server, and its `ALTER ROLE` sets attributes, settings and passwords of those that exist already too. To be\n"
        f"careful, create only the roles named above by hand{'' if guide.plain else ', or do without'}.\n\n"
        + _block(
            "me=$(psql --no-psqlrc --dbname=postgres --no-align --tuples-only <<'SQL'\n"
            "select format('ALTER ROLE \"%s\" WITH ', replace(current_user, '\"', '\"\"'));\n"
            "SQL\n"
            ")\n"
            'LC_ALL=C grep -v -F -e "$me" globals.sql | psql --no-psqlrc --dbname=postgres --quiet'
        )
    )


def _database(guide: Guide) -> str:
    properties = guide.manifest.properties
    blocks = [_sql(psql.create_database(properties, guide.manifest.server_major), f"{_PSQL} --dbname=postgres")]
    if not properties.has_public_schema:
        blocks.append(
            "The original has no schema `public`:\n\n" + _block(f"{_PSQL} --command='drop schema if exists public'")
        )
    return "## 4. The database\n\nWith the encoding and locale of the original:\n\n" + "\n\n".join(blocks)


def _content(guide: Guide) -> str:
    title = "## 5. Definitions, rows, indexes\n\n"
    if guide.plain:
        return (
            f"{title}All in one, in the order in which a database is built:\n\n"
            + _block(f"{_PSQL} --output=/dev/null {shlex.quote(f'--file={guide.schema}')}")
            + f"\n\n{_statistics()}"
        )
    files = "\n".join(guide.data)
    rows = f"xargs -P {guide.jobs} -I FILE {_restore(guide, 'data', 'FILE')} <<'FILES'\n{files}\nFILES"
    without = " Without roles: add\n`--no-owner --no-acl` to each `pg_restore`."
    if guide.manifest.tablespaces:
        without += " Without tablespaces: `--no-tablespaces`."
    how = "An empty `--dbname` means `PGDATABASE`."
    if guide.through_psql:
        how = (
            f"Not straight into the server, since `pg_restore` {guide.manifest.dump_major} sets `transaction_timeout`,"
            f"\nwhich PostgreSQL {guide.manifest.server_major} does not know."
        )
    return (
        f"{title}{how}{without}\n\nFirst what rows need:\n\n{_block(_restore(guide, 'pre-data', guide.schema))}\n\n"
        f"The rows, {guide.jobs} files at a time; their order does not matter:\n\n{_block(rows)}\n\n"
        "Indexes, constraints, triggers, and the contents of materialized views:\n\n"
        f"{_block(_restore(guide, 'post-data', guide.schema))}\n\n{_statistics()}"
    )


def _restore(guide: Guide, section: str, file: str) -> str:
    if not guide.through_psql:
        jobs = f" --jobs={guide.jobs}" if section == "post-data" and guide.jobs > 1 else ""
        return f"pg_restore --exit-on-error --section={section}{jobs} --dbname= {file}"
    # Only before the archive's own statements: a row may look like it.
    strip = f'sed "1,/^SET client_encoding/s/^{psql.SETTING.decode()}$//"'
    return f"sh -c 'pg_restore --section={section} --file=- {file} | LC_ALL=C {strip} | {_PSQL} --output=/dev/null'"


def _statistics() -> str:
    return "Statistics for the planner:\n\n" + _block("psql --no-psqlrc --quiet --command=analyze")


def _rows() -> str:
    return (
        "## 6. Is it all there?\n\n"
        "The manifest has the number of rows of each table. This prints the tables that differ, with the expected\n"
        "and the found number, and fails if there are any:\n\n"
        + _block(
            f"if differing=$({_PSQL} --no-align --tuples-only <<'SQL'\n{_DIFFERENCES}\nSQL\n"
            ') && test -z "$differing"; then\n'
            "  echo 'Each table has the rows that the source had.'\n"
            "else\n"
            "  printf '%s\\n' 'NOT THE SAME:' \"$differing\" >&2; false\n"
            "fi"
        )
    )


def _properties(guide: Guide) -> str:
    return (
        "## 7. Settings of the database\n\n"
        "Comment, settings, connection limit, owner and grants of the database itself are not in a dump. A line that\n"
        "your server refuses leaves the data as right as it is.\n\n"
        # From inside, where names and texts are in the encoding in which they were read.
        + _sql(psql.set_properties(guide.manifest.properties), "psql --no-psqlrc --quiet")
    )


def _sql(lines: Sequence[str], program: str) -> str:
    """A block that runs these, with the new database's name in psql's variable `target`."""
    text = "\n".join(lines)
    return _block(f"{program} --set=target=\"$PGDATABASE\" <<'SQL'\n{text}\nSQL")


def _block(text: str) -> str:
    return f"```sh\n{text}\n```"


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _codes(names: Sequence[str]) -> str:
    return ", ".join(map(_code, names)) or "none"


def _code(text: str) -> str:
    """A name as it is shown: as code, and on one line."""
    shown = "".join(_escaped(text))
    fence = "`" * (max(map(len, re.findall("`+", shown)), default=0) + 1)
    return f"{fence} {shown} {fence}" if len(fence) > 1 else f"`{shown}`"


def _escaped(text: str) -> Iterator[str]:
    for char in text:
        yield char if char.isprintable() else char.encode("unicode_escape").decode()
