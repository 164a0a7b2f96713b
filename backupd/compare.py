"""A restored copy held against what the source was in the dump's own snapshot: every check of a proof but the
operator's own and the anomalies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import psycopg

from backupd.differences import differences
from backupd.manifest import DatabaseProperties, Manifest, Table
from backupd.postgres import database, fingerprint, inventory, objects, sequences
from backupd.postgres.names import readable
from backupd.postgres.process import Running
from backupd.postgres.session import Dsn, Interruptible, connect, explained
from backupd.proof import Check
from backupd.reference import Reference

_PER_QUERY = 100  # tables; each is locked until the query ends
_NO_REFERENCE = "the backup has no record of this; it said why when it was made, or an older backupd made it"


@dataclass(frozen=True, slots=True)
class Question:
    """What is compared with what."""

    manifest: Manifest
    reference: Reference | None  # None: of a backup that has none
    copy: Dsn
    copy_major: int
    content: bool  # hash every row, if the source's were hashed


@dataclass(frozen=True, slots=True)
class Found:
    checks: tuple[Check, ...]
    tables: int  # that were compared
    rows: int


def compare(question: Question, running: Running) -> Found:
    """Read the copy and compare. Raises PostgresError only if the copy can't be read."""
    manifest, reference = question.manifest, question.reference
    with closing(connect(question.copy, settings=fingerprint.SETTINGS, autocommit=False)) as session:
        query = Interruptible(session)
        running.add(query)
        try:
            with explained("the restored copy could not be read"):
                probe = fingerprint.probe(session)
                hashing = _why_not_hashed(question, probe) is None
                found = _read_tables(session, manifest.tables, content=hashing)
                checks = [
                    _rows(manifest, {key: rows for key, (rows, _) in found.items()}),
                    *_contents(question, probe, found, session),
                    _sequences(reference, session),
                    *_objects(question, session),
                    *_properties(manifest, inventory.properties(session), question.copy_major),
                ]
        finally:
            running.remove(query)
    return Found(tuple(checks), len(found), sum(rows for rows, _ in found.values()))


# ---- rows


def _key(table: Table) -> tuple[str, str]:
    return table.schema_, table.name


def _place(table: Table) -> str:
    """Where its rows are: a partition's may come back in another one of the same tree."""
    return table.root or readable(table.schema_, table.name)


def _read_tables(
    session: psycopg.Connection, tables: Sequence[Table], *, content: bool
) -> dict[tuple[str, str], tuple[int, str]]:
    """Rows and hash of each table that is there; the hash is "" unless asked for."""
    rows = session.execute(
        "select n.nspname, c.relname, c.oid::bigint from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where c.relkind = 'r'"
    ).fetchall()
    oids = {(str(schema), str(name)): int(oid) for schema, name, oid in rows}
    here = [table for table in tables if _key(table) in oids]
    names = {oids[_key(table)]: _key(table) for table in here}
    found: dict[tuple[str, str], tuple[int, str]] = {}
    # What the backup could not hash, a row of a gigabyte say, can't be hashed here either.
    hashed = [table for table in here if content and table.content is not None]
    counted = [table for table in here if not (content and table.content is not None)]
    for batch in _batches(hashed):
        with session.transaction(force_rollback=True):
            read = fingerprint.contents(session, [oids[_key(table)] for table in batch])
        found |= {names[oid]: value for oid, value in read.items()}
    for batch in _batches(counted):
        with session.transaction(force_rollback=True):
            keys = [_key(table) for table in batch]
            found |= {key: (rows, "") for key, rows in zip(keys, database.count(session, keys), strict=True)}
    return found


def _batches(tables: Sequence[Table]) -> Iterator[Sequence[Table]]:
    return (tables[start : start + _PER_QUERY] for start in range(0, len(tables), _PER_QUERY))


def _rows(manifest: Manifest, found: dict[tuple[str, str], int]) -> Check:
    expected, counted = Counter[str](), Counter[str]()
    for table in manifest.tables:
        expected[_place(table)] += table.rows
        counted[_place(table)] += found.get(_key(table), 0)
    missing = [table for table in manifest.tables if _key(table) not in found]
    alone = {_place(table) for table in missing if table.root is None}  # that their rows are gone needs no telling
    told = [f"table {readable(table.schema_, table.name)}: missing" for table in missing]
    told += [
        f"table {place}: {counted[place]} rows, and the source had {rows}"
        for place, rows in expected.items()
        if counted[place] != rows and place not in alone
    ]
    return _check("rows", f"{len(manifest.tables)} tables, {manifest.rows} rows", told)


def _why_not_hashed(question: Question, probe: str) -> str | None:
    if not question.content:
        return 'not asked for: fingerprint = "content" hashes every row'
    hashed = any(table.content is not None for table in question.manifest.tables)
    if question.reference is None or not (hashed or question.reference.large_objects is not None):
        return 'the backup was made without hashes; those made with fingerprint = "content" have them'
    if question.reference.probe != probe:
        return "the two servers hash differently (another byte order or encoding), so hashes say nothing"
    return None


def _contents(
    question: Question, probe: str, found: dict[tuple[str, str], tuple[int, str]], session: psycopg.Connection
) -> Iterator[Check]:
    why = _why_not_hashed(question, probe)
    if why is not None:
        yield Check(name="content", status="skipped", detail=why)
        yield Check(name="large object content", status="skipped", detail=why)
        return
    expected, hashed, unknown = Counter[str](), Counter[str](), set()
    for table in question.manifest.tables:
        if table.content is None:
            unknown.add(_place(table))
        expected[_place(table)] += int(table.content or 0)
        hashed[_place(table)] += int(found.get(_key(table), (0, ""))[1] or 0)
    differing = [
        f"table {place}: its rows are others"
        for place, value in expected.items()
        if hashed[place] != value and place not in unknown
    ]
    aside = f"; not of {', '.join(sorted(unknown))}, which the backup could not hash" if unknown else ""
    yield _check("content", f"every column of every row of {len(expected) - len(unknown)} tables{aside}", differing)
    assert question.reference is not None
    if question.reference.large_objects is None:
        yield Check(name="large object content", status="skipped", detail="the backup could not hash them")
        return
    was, is_ = question.reference.large_objects, fingerprint.large_objects(session)
    told = []
    if was[0] != is_[0]:
        told = [f"{is_[0]} large objects, and the source had {was[0]}"]
    elif was[1] != is_[1]:
        told = ["the bytes of large objects are others"]
    yield _check("large object content", f"every byte of {was[0]} large objects", told)


# ---- what is beside the rows


def _sequences(reference: Reference | None, session: psycopg.Connection) -> Check:
    name = "sequence values"
    if reference is None or reference.sequences is None:
        return Check(name=name, status="skipped", detail=_NO_REFERENCE)
    found = sequences.read(session)
    told, unknown = [], []
    for sequence, span in reference.sequences.items():
        if not span.known:
            unknown.append(sequence)
        elif sequence not in found:
            told.append(f"sequence {sequence}: missing")
        elif not span.has(found[sequence][0]):
            told.append(f"sequence {sequence}: stands at {found[sequence][0]}, and the source's at {span}")
    aside = (
        f"; not compared, as they cycle, or were set back during the dump or not read after it: {', '.join(unknown)}"
        if unknown
        else ""
    )
    return _check(name, f"{len(reference.sequences)} sequences{aside}", told)


def _objects(question: Question, session: psycopg.Connection) -> Iterator[Check]:
    if question.reference is None:
        yield Check(name="objects", status="skipped", detail=_NO_REFERENCE)
        return
    found = differences(
        question.reference.inventory,
        objects.read(session),
        source_major=question.manifest.server_major,
        copy_major=question.copy_major,
    )
    for check in found:
        yield Check(name=check.name, status=check.status, detail=check.detail, items=check.discreet, shown=check.items)


def _properties(manifest: Manifest, found: DatabaseProperties, copy_major: int) -> Iterator[Check]:
    """What belongs to the database as a whole."""
    was = manifest.properties
    places = ["encoding", "collate", "ctype", "locale_provider"]
    # From 16 on an ICU locale is kept in its canonical form, whatever was typed.
    if was.locale_provider != "icu" or copy_major == manifest.server_major or manifest.server_major >= 16:
        places.append("locale")
    if manifest.server_major >= 16 or copy_major == manifest.server_major:
        places.append("icu_rules")
    yield _check("encoding and locale", ", ".join(_values(was, places[:3])), _differing(was, found, places))
    told = _differing(was, found, ["comment", "connection_limit", "has_public_schema"])
    told += _unlike("setting", {_setting(s) for s in was.settings}, {_setting(s) for s in found.settings})
    yield _check("database settings", f"{len(was.settings)} settings, comment, connection limit", told)
    told = _differing(was, found, ["owner"])
    told += _unlike("grant", _grants(was), _grants(found))
    yield _check("database owner and grants", f"owner {was.owner}", told)


def _values(properties: DatabaseProperties, names: Sequence[str]) -> list[str]:
    return [str(getattr(properties, name)) for name in names]


def _differing(was: DatabaseProperties, found: DatabaseProperties, names: Sequence[str]) -> list[str]:
    return [
        f"{name.replace('_', ' ')}: {getattr(found, name)}, and the source had {getattr(was, name)}"
        for name in names
        if getattr(was, name) != getattr(found, name)
    ]


def _unlike(what: str, was: set[str], found: set[str]) -> list[str]:
    return [
        *(f"{what} missing: {text}" for text in sorted(was - found)),
        *(f"{what} that the source did not have: {text}" for text in sorted(found - was)),
    ]


def _setting(setting: object) -> str:
    role, name, value = (getattr(setting, key) for key in ("role", "name", "value"))
    return f"{name} = {value}" + (f" for {role}" if role is not None else "")


def _grants(properties: DatabaseProperties) -> set[str]:
    if properties.grants is None:  # the defaults, as acldefault() has them
        theirs = {f"{word} to {properties.owner} by {properties.owner}" for word in ("CREATE", "CONNECT", "TEMPORARY")}
        return theirs | {f"{word} to PUBLIC by {properties.owner}" for word in ("CONNECT", "TEMPORARY")}
    return {
        f"{g.privilege} to {g.grantee or 'PUBLIC'} by {g.grantor}{' with grant option' if g.grantable else ''}"
        for g in properties.grants
    }


def _check(name: str, detail: str, told: Sequence[str]) -> Check:
    """Passed if there is nothing to tell."""
    if not told:
        return Check(name=name, status="passed", detail=detail)
    return Check(name=name, status="failed", detail=f"{len(told)} differ, of {detail}", items=tuple(told))
