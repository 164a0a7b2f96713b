"""Loading rows into tables that exist and are empty: what could stop it, and the load itself, in one transaction.

COPY goes through a session of ours and not through pg_restore: so locks, rows, their comparison and the checks of
foreign keys stand or fall together, and a failure leaves nothing to be taken back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql

from backupd.errors import BackupdError, PostgresError, ProofError, RefusedError
from backupd.postgres.archive import Archive, Entry
from backupd.postgres.process import Running
from backupd.postgres.session import Dsn, Interruptible, connect, explained

_SETTINGS = {"xmloption": "content"}  # as pg_restore has it
_LOCK_WAIT = "30s"

Name = tuple[str, str]  # schema and name


@dataclass(frozen=True, slots=True)
class Table:
    """A table to be filled, and what its rows bring."""

    schema: str
    name: str
    columns: tuple[str, ...]

    @property
    def place(self) -> Name:
        return self.schema, self.name

    @property
    def sql(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def may_replicate(dsn: Dsn) -> bool:
    """Whether this user can load rows as a replica does: without triggers and foreign keys."""
    with closing(connect(dsn)) as connection:
        try:
            connection.execute("set session_replication_role = replica")
        except psycopg.errors.InsufficientPrivilege:
            return False
    return True


def obstacles(dsn: Dsn, tables: Sequence[Table], sequences: Collection[Name], *, replica: bool) -> list[BackupdError]:
    """Everything that stands in the way."""
    with closing(connect(dsn)) as connection, explained("the tables to be filled could not be looked at"):
        found = [error for table in tables for error in _obstacles(connection, table, replica)]
        rows = connection.execute(
            """
            select format('%%I.%%I', nspname, relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace
            where relkind = 'S' and (nspname, relname) in (select * from unnest(%s::text[], %s::text[]))
              and not (has_sequence_privilege(c.oid, 'select') and has_sequence_privilege(c.oid, 'update')) order by 1
            """,
            [[schema for schema, _ in sequences], [name for _, name in sequences]],
        ).fetchall()
        names = ", ".join(str(row[0]) for row in rows)
    if rows:
        hint = f"GRANT SELECT, UPDATE ON SEQUENCE {names} TO …;"
        found.append(PostgresError(f"the user may not advance the sequence {names}", hint=hint))
    return found


def _obstacles(connection: psycopg.Connection, table: Table, replica: bool) -> Iterator[BackupdError]:
    row = connection.execute(
        """
        select c.relkind::text,
               has_table_privilege(c.oid, 'insert') and has_table_privilege(c.oid, 'select')
                 and has_table_privilege(c.oid, 'update, delete, truncate'),
               array(select attname::text from pg_attribute
                     where attrelid = c.oid and attnum > 0 and not attisdropped and attgenerated = ''),
               array(select tgname::text from pg_trigger
                     where tgrelid = c.oid and not tgisinternal and tgenabled <> 'D'),
               array(select tgname::text from pg_trigger where tgrelid = c.oid and tgenabled in ('A', 'R')),
               array(select conname::text from pg_constraint where conrelid = c.oid and contype = 'f')
        from pg_class c join pg_namespace n on n.oid = c.relnamespace where nspname = %s and relname = %s
        """,
        table.place,
    ).fetchone()
    if row is None:
        yield PostgresError(
            f"there is no table {table} to load rows into",
            hint="Restore it whole: leave --data-only out, or create it.",
        )
        return
    kind, allowed, columns, triggers, stubborn, keys = row
    if kind not in ("r", "p"):
        yield PostgresError(f"{table} is no table", hint="Choose other tables with --table.")
        return
    missing = [name for name in table.columns if name not in columns]
    if missing:
        yield PostgresError(
            f"the table {table} lacks the column {', '.join(missing)}",
            hint="Restore the table beside it, with --table and without --data-only, and copy what fits.",
        )
    if not allowed:
        yield PostgresError(
            f"the user may not fill the table {table}",
            hint=f"GRANT SELECT, INSERT, UPDATE ON {table} TO …; or be its owner.",
        )
    elif connection.execute(sql.SQL("select from only {} limit 1").format(table.sql)).rowcount:
        yield RefusedError(
            f"the table {table} is not empty",
            hint="Rows are only loaded into empty tables. Restore it beside, with --table and without --data-only, and"
            " copy the rows that are missing: docs/recipes.md shows how.",
        )
    if not replica and (triggers or keys):
        yield PostgresError(
            f"the table {table} has triggers or foreign keys, which only a superuser can keep still for a load",
            detail=", ".join([*triggers, *keys][:10]),
            hint="Load as a superuser, or after GRANT SET ON PARAMETER session_replication_role TO … (15 and later).",
        )
    if replica and stubborn:
        yield PostgresError(
            f"triggers of {table} would run for each row that is loaded: {', '.join(stubborn)}",
            detail="They are enabled ALWAYS or for REPLICA.",
            hint=f"ALTER TABLE {table} DISABLE TRIGGER …; and enable them again when the rows are there.",
        )


class Load:
    """One transaction that fills tables. Nobody else sees its rows, or changes these tables, before `commit`."""

    def __init__(self, connection: psycopg.Connection, tables: Sequence[Table]) -> None:
        self._connection = connection
        self._tables = tables

    def lock(self) -> None:
        """Keep everybody else's changes away from the tables, and from those that they refer to."""
        referred = {
            place for key in self._keys() for place in [key.other] if place not in {t.place for t in self._tables}
        }
        with explained("the tables could not be locked", hint="Somebody else is changing them. Try again later."):
            self._connection.execute(f"set local lock_timeout = '{_LOCK_WAIT}'".encode())
            for table in self._tables:
                self._connection.execute(sql.SQL("lock table only {} in share row exclusive mode").format(table.sql))
            for place in sorted(referred):
                self._connection.execute(sql.SQL("lock table {} in share mode").format(sql.Identifier(*place)))
            for table in self._tables:  # as somebody may have been quicker
                if self._connection.execute(sql.SQL("select from only {} limit 1").format(table.sql)).rowcount:
                    raise RefusedError(f"the table {table} is not empty any more", hint="Somebody filled it just now.")

    def copy(self, archive: Archive, entry: Entry, rows: Iterator[bytes]) -> None:
        """The rows of one table, in the encoding that they are in."""
        assert entry.copy is not None
        statement = f"{entry.copy.rstrip().rstrip(';')} with (encoding '{_encoding(archive)}')"
        with (
            explained(f"the rows of {entry.schema}.{entry.tag} could not be loaded"),
            self._connection.cursor() as cursor,
            cursor.copy(statement.encode()) as target,
        ):
            for piece in rows:
                target.write(piece)

    def counts(self) -> dict[Name, int]:
        """The rows of each table."""
        found = {}
        with explained("the loaded rows could not be counted"):
            for table in self._tables:
                row = self._connection.execute(sql.SQL("select count(*) from only {}").format(table.sql)).fetchone()
                assert row is not None
                found[table.place] = int(row[0])
        return found

    def check_keys(self) -> list[str]:
        """Every foreign key of the tables holds, which nothing has checked so far; returns those that could not be
        looked at. Raises ProofError."""
        broken, unchecked = [], []
        with explained("the foreign keys could not be checked"):
            for key in self._keys():
                if key.period:
                    unchecked.append(f"{key.name} of {'.'.join(key.table)}")
                    continue
                row = self._connection.execute(key.orphans()).fetchone()
                if row and row[0]:
                    broken.append(
                        f"{key.name} of {'.'.join(key.table)}: {row[0]} rows refer to none in {'.'.join(key.other)}"
                    )
        if broken:
            raise ProofError(
                f"{len(broken)} foreign keys would be broken",
                detail="\n".join(broken[:10]),
                hint="Load the tables that they refer to as well: --with-references, or --table for each.",
            )
        return unchecked

    def advance(self, values: Mapping[Name, tuple[int, bool]]) -> list[str]:
        """Take sequences to these values, if that is forward; returns those that are not there."""
        missing = []
        with explained("the sequences could not be advanced"):
            for place, (value, called) in sorted(values.items()):
                row = self._connection.execute(
                    "select seqincrement > 0 from pg_sequence s join pg_class c on c.oid = seqrelid join pg_namespace n"
                    " on n.oid = relnamespace where nspname = %s and relname = %s",
                    place,
                ).fetchone()
                if row is None:
                    missing.append(".".join(place))
                    continue
                sign = sql.SQL(">" if row[0] else "<")
                query = sql.SQL(
                    "select setval({name}, {value}, {called}) from {sequence}"
                    " where {value} {sign} last_value or ({value} = last_value and {called} and not is_called)"
                )
                name = sql.Literal(sql.Identifier(*place).as_string(self._connection))
                parts = {"value": sql.Literal(value), "called": sql.Literal(called), "sign": sign, "name": name}
                self._connection.execute(query.format(sequence=sql.Identifier(*place), **parts))
        return missing

    def commit(self) -> None:
        with explained("the loaded rows could not be committed"):
            self._connection.commit()

    def _keys(self) -> list[_Key]:
        """Foreign keys that hold for all rows; of one to a partitioned table, the whole and not its parts."""
        rows = self._connection.execute(
            """
            select k.conname, n.nspname, c.relname, rn.nspname, r.relname, k.confmatchtype::text = 'f',
                   coalesce((to_jsonb(k) ->> 'conperiod')::bool, false),
                   array(select attname::text from unnest(k.conkey) with ordinality u (num, i) join pg_attribute
                         on attrelid = k.conrelid and attnum = num order by i),
                   array(select attname::text from unnest(k.confkey) with ordinality u (num, i) join pg_attribute
                         on attrelid = k.confrelid and attnum = num order by i),
                   array(select format('operator(%%I.%%s)', opn.nspname, oprname)
                         from unnest(k.conpfeqop) with ordinality u (op, i) join pg_operator o on o.oid = op
                         join pg_namespace opn on opn.oid = oprnamespace order by i)
            from pg_constraint k
            join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
            join pg_class r on r.oid = k.confrelid join pg_namespace rn on rn.oid = r.relnamespace
            where k.contype = 'f' and k.convalidated and coalesce((to_jsonb(k) ->> 'conenforced')::bool, true)
              and (n.nspname, c.relname) in (select * from unnest(%s::text[], %s::text[]))
              and not exists (select from pg_constraint p where p.oid = k.conparentid and p.conrelid = k.conrelid)
            order by 2, 3, 1
            """,
            [[t.schema for t in self._tables], [t.name for t in self._tables]],
        ).fetchall()
        return [_Key(r[0], (r[1], r[2]), (r[3], r[4]), r[5], r[6], r[7], r[8], r[9]) for r in rows]


@dataclass(frozen=True, slots=True)
class _Key:
    """A foreign key."""

    name: str
    table: Name
    other: Name
    full: bool  # MATCH FULL: all columns are null, or none
    period: bool
    columns: Sequence[str]
    referred: Sequence[str]
    operators: Sequence[str]

    def orphans(self) -> sql.Composed:
        """How many rows break it."""
        own = [sql.SQL("f.{}").format(sql.Identifier(name)) for name in self.columns]
        equal = [
            sql.SQL("r.{} {} {}").format(sql.Identifier(name), sql.SQL(operator), column)
            for name, operator, column in zip(self.referred, self.operators, own, strict=True)
        ]
        nulls = sql.SQL(" and ").join(
            sql.SQL("{} is null" if self.full else "{} is not null").format(column) for column in own
        )
        refers = sql.SQL("not ({})").format(nulls) if self.full else nulls
        return sql.SQL("select count(*) from only {} f where {} and not exists (select from {} r where {})").format(
            sql.Identifier(*self.table),
            refers,
            sql.Identifier(*self.other),
            sql.SQL(" and ").join(equal),
        )


@contextmanager
def transaction(dsn: Dsn, tables: Sequence[Table], running: Running, *, replica: bool) -> Iterator[Load]:
    """A load of these tables, locked; rolled back if the block does not commit it."""
    settings = _SETTINGS | ({"session_replication_role": "replica"} if replica else {})
    with closing(connect(dsn, settings=settings, autocommit=False)) as connection:
        query = Interruptible(connection)
        running.add(query)
        try:
            load = Load(connection, tables)
            load.lock()
            yield load
        finally:
            running.remove(query)


def _encoding(archive: Archive) -> str:
    (entry,) = (each for each in archive.entries if each.desc == "ENCODING")
    return (entry.definition or "").split("'")[1]
