"""What changed so much since the last proven backups that a person should look at it: pure, no I/O.

A restored copy can equal a source that had lost its data. So a backup is measured against the last ones that were
proven. An anomaly is one only if it is one against each of them: a table that is emptied and filled in turn is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from backupd import times
from backupd.manifest import Manifest
from backupd.postgres.names import readable
from backupd.proof import Check

PROVEN = 3  # how many of the last proven backups it is measured against


@dataclass(frozen=True, slots=True)
class Policy:
    """When a change is an anomaly."""

    max_shrink: float = 0.5  # the share of rows or bytes that may be gone; 1: any share
    min_rows: int = 10  # tables that had fewer are not asked about shares
    ignore: Sequence[str] = ()  # patterns of tables that may do as they like: public.queue_*


def checks(
    now: Manifest,
    proven: Sequence[Manifest],
    policy: Policy,
    *,
    accept: bool = False,
    accepted: Collection[str] = (),
) -> list[Check]:
    """One check for each kind of anomaly. `proven` are the last proven backups of the same database, newest first.

    `accept`: all that is found is meant; `accepted` names the checks of which that was said of this backup before.
    """
    kinds: tuple[tuple[str, Callable[[Manifest, Manifest, Policy], dict[str, str]]], ...] = (
        ("vanished tables", _vanished),
        ("emptied tables", _emptied),
        ("shrunk tables", _shrunk_tables),
        ("shrunk database", _shrunk_database),
    )
    before = proven[:PROVEN]
    if not before:
        return [
            Check(name="anomalies", status="skipped", detail="there is no earlier proven backup to measure against")
        ]
    found = []
    for kind, find in kinds:
        name = f"anomaly: {kind}"
        found.append(_check(name, [find(now, old, policy) for old in before], before, accept or name in accepted))
    return found


def _check(name: str, found: Sequence[dict[str, str]], before: Sequence[Manifest], accept: bool) -> Check:
    against = f"against {len(before)} proven backup{'s' * (len(before) > 1)}, the last {before[0].id}"
    in_all = [what for what in found[0] if all(what in each for each in found)]
    if not in_all:
        return Check(name=name, status="passed", detail=against)
    items = tuple(found[0][what] for what in in_all)
    if accept:
        detail = f"accepted as intended: {len(items)}, {against}"
        return Check(name=name, status="passed", detail=detail, items=items, accepted=True)
    return Check(name=name, status="failed", detail=f"{len(items)}, {against}", items=items)


def _rows(manifest: Manifest, policy: Policy) -> Counter[str]:
    """Rows by the table's name; partitions are taken together, as one table: they come and go."""
    found = Counter[str]()
    for table in manifest.tables:
        name = table.root or readable(table.schema_, table.name)
        if not any(fnmatchcase(name, pattern) for pattern in policy.ignore):
            found[name] += table.rows
    return found


def _vanished(now: Manifest, old: Manifest, policy: Policy) -> dict[str, str]:
    here = _rows(now, policy)
    return {
        name: f"table {name} is gone; it had {rows} rows in {old.id}"
        for name, rows in _rows(old, policy).items()
        if name not in here
    }


def _both(now: Manifest, old: Manifest, policy: Policy) -> Iterator[tuple[str, int, int]]:
    here = _rows(now, policy)
    for name, rows in _rows(old, policy).items():
        if name in here:
            yield name, rows, here[name]


def _emptied(now: Manifest, old: Manifest, policy: Policy) -> dict[str, str]:
    return {
        name: f"table {name} is empty; it had {was} rows in {old.id}"
        for name, was, is_ in _both(now, old, policy)
        if was and not is_
    }


def _shrunk_tables(now: Manifest, old: Manifest, policy: Policy) -> dict[str, str]:
    return {
        name: f"table {name}: {was} rows in {old.id}, {is_} now ({_share(was, is_)} less)"
        for name, was, is_ in _both(now, old, policy)
        if is_ and was >= policy.min_rows and _fell(was, is_, policy)
    }


def _shrunk_database(now: Manifest, old: Manifest, policy: Policy) -> dict[str, str]:
    """Of what was dumped, not of the files on the source's disk, which VACUUM FULL may shrink by any share."""
    found: dict[str, str] = {}
    was, is_ = _rows(old, policy).total(), _rows(now, policy).total()
    if was < policy.min_rows:
        return found
    if _fell(was, is_, policy):
        found["rows"] = f"{was} rows in {old.id}, {is_} now ({_share(was, is_)} less)"
    if was < old.rows:  # what was dumped of the tables that may do as they like is not known
        return found
    was, is_ = (sum(s.raw_bytes for s in each.of_kind("data")) for each in (old, now))
    if _fell(was, is_, policy):
        sizes = f"{times.human_bytes(was)} of rows in {old.id}, {times.human_bytes(is_)} now"
        found["bytes"] = f"{sizes} ({_share(was, is_)} less)"
    return found


def _fell(was: int, is_: int, policy: Policy) -> bool:
    return is_ < was * (1 - policy.max_shrink)


def _share(was: int, is_: int) -> str:
    return f"{(was - is_) / was:.0%}"
