"""Where each sequence stands. A dump reads sequences outside of its snapshot, as they are at that moment: so a copy's
may stand anywhere between where the source's stood before the dump and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql
from pydantic import BaseModel, ConfigDict

_BATCH = 100  # a sequence that is read is locked until the savepoint ends


class Position(BaseModel):
    """What a sequence holds."""

    model_config = ConfigDict(frozen=True)

    value: int
    called: bool  # False: `value` is the next one that it gives, not the last one that it gave

    def __str__(self) -> str:
        return f"{self.value}" if self.called else f"{self.value}, not yet used"


class Span(BaseModel):
    """A sequence before and after the dump."""

    model_config = ConfigDict(frozen=True)

    before: Position
    after: Position
    increment: int

    def has(self, found: Position) -> bool:
        """Whether a copy may stand there."""
        low, high = self._next(self.before), self._next(self.after)
        if self.increment < 0:
            low, high = high, low
        return low <= self._next(found) <= high if low < high else found == self.before

    @property
    def known(self) -> bool:
        """False if it was set back meanwhile, or began anew: then it may stand anywhere."""
        way = self._next(self.after) - self._next(self.before)
        return self.before == self.after or way * self.increment > 0

    def _next(self, position: Position) -> int:
        return position.value + self.increment if position.called else position.value

    def __str__(self) -> str:
        return str(self.before) if self.before == self.after else f"{self.before} to {self.after}"


def read(connection: psycopg.Connection) -> dict[str, tuple[Position, int]]:
    """Position and increment of every sequence outside the system schemas, by its quoted name; without those of
    extensions, and without unlogged ones on a standby, which can't be read there. Needs a transaction."""
    rows = connection.execute(
        """
        select c.oid::bigint, n.nspname, c.relname, quote_ident(n.nspname) || '.' || quote_ident(c.relname),
               s.seqincrement
        from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_sequence s on s.seqrelid = c.oid
        where c.relkind = 'S' and c.relpersistence <> 't' and n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
          and not (c.relpersistence = 'u' and pg_is_in_recovery())
          and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid
                          and d.deptype = 'e')
        order by c.oid
        """
    ).fetchall()
    return _read(connection, rows)


def _read(connection: psycopg.Connection, rows: Sequence[tuple[Any, ...]]) -> dict[str, tuple[Position, int]]:
    found: dict[str, tuple[Position, int]] = {}
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        query = sql.SQL(" union all ").join(
            sql.SQL("select {}::bigint, last_value, is_called from {}").format(
                sql.Literal(row[0]), sql.Identifier(row[1], row[2])
            )
            for row in batch
        )
        try:
            with connection.transaction(force_rollback=True):
                values = {oid: Position(value=value, called=called) for oid, value, called in connection.execute(query)}
        except psycopg.errors.UndefinedTable:  # one was dropped or renamed since they were listed
            if len(batch) > 1:
                for row in batch:
                    found |= _read(connection, [row])
            continue
        found |= {name: (values[oid], increment) for oid, _, _, name, increment in batch}
    return found


def spans(before: Mapping[str, tuple[Position, int]], after: Mapping[str, tuple[Position, int]]) -> dict[str, Span]:
    """Those that were there all the time."""
    return {
        name: Span(before=position, after=after[name][0], increment=increment)
        for name, (position, increment) in before.items()
        if name in after
    }
