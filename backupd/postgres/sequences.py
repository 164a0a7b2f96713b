"""Where each sequence stands. A dump reads sequences outside of its snapshot, as they are at that moment: so a copy's
may stand anywhere between where the source's stood before the dump and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from pydantic import BaseModel, ConfigDict

from backupd.postgres.objects import settle

_BATCH = 100  # a sequence that is read is locked until the savepoint ends


class Position(BaseModel):
    """What a sequence holds."""

    model_config = ConfigDict(frozen=True)

    value: int
    called: bool  # False: `value` is the next one that it gives, not the last one that it gave

    def __str__(self) -> str:
        return f"{self.value}" if self.called else f"{self.value}, not yet used"


Standing = tuple[Position, int, bool]  # where it stands, its increment, and whether it cycles


class Span(BaseModel):
    """A sequence before and after the dump."""

    model_config = ConfigDict(frozen=True)

    before: Position
    after: Position | None  # None: it could not be read
    increment: int
    cycles: bool = False  # begins anew at its end

    def has(self, found: Position) -> bool:
        """Whether a copy may stand there; only to be asked if it is `known`."""
        assert self.after is not None
        low, high = self._next(self.before), self._next(self.after)
        if self.increment < 0:
            low, high = high, low
        return low <= self._next(found) <= high if low < high else found == self.before

    @property
    def known(self) -> bool:
        """False if it was set back meanwhile, or not read: then it may stand anywhere. So may one that cycles, even if
        it stands where it stood: how often it came round nobody knows."""
        if self.after is None or self.cycles:
            return False
        way = self._next(self.after) - self._next(self.before)
        return self.before == self.after or way * self.increment > 0

    def _next(self, position: Position) -> int:
        return position.value + self.increment if position.called else position.value

    def __str__(self) -> str:
        return str(self.before) if self.before == self.after else f"{self.before} to {self.after}"


def read(connection: psycopg.Connection) -> dict[str, Standing]:
    """Position and increment of every sequence outside the system schemas, by its quoted name; without those of
    extensions, and without unlogged ones on a standby, which can't be read there. Needs a transaction."""
    with connection.cursor() as cursor:
        settle(cursor)
        rows = cursor.execute(_SEQUENCES).fetchall()
        return _read(cursor, rows)


_SEQUENCES = """
select c.oid::bigint, quote_ident(n.nspname) || '.' || quote_ident(c.relname), s.seqincrement,
       s.seqcycle
from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_sequence s on s.seqrelid = c.oid
where c.relkind = 'S' and c.relpersistence <> 't' and n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
  and not (c.relpersistence = 'u' and pg_is_in_recovery())
  and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid
                  and d.deptype = 'e')
order by c.oid
"""


def _read(cursor: psycopg.Cursor[Any], rows: Sequence[tuple[int, str, int, bool]]) -> dict[str, Standing]:
    found: dict[str, Standing] = {}
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        queries = [f"select {int(oid)}::bigint, last_value, is_called from {name}" for oid, name, _, _ in batch]  # noqa: S608
        try:
            with cursor.connection.transaction(force_rollback=True):
                cursor.execute(" union all ".join(queries).encode("utf-8", "surrogateescape"))
                values = {oid: Position(value=value, called=called) for oid, value, called in cursor.fetchall()}
        except psycopg.errors.UndefinedTable:  # one was dropped or renamed since they were listed
            if len(batch) > 1:
                for row in batch:
                    found |= _read(cursor, [row])
            continue
        found |= {name: (values[oid], increment, cycles) for oid, name, increment, cycles in batch}
    return found


def spans(before: Mapping[str, Standing], after: Mapping[str, Standing] | None) -> dict[str, Span]:
    """Those that were there all the time. `after` is None if they could not be read again."""
    return {
        name: Span(before=position, after=None if after is None else after[name][0], increment=increment, cycles=cycles)
        for name, (position, increment, cycles) in before.items()
        if after is None or name in after
    }
