"""What of a backup a restore takes: everything, or parts; which entries, rows, streams and roles that means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from backupd.errors import RefusedError
from backupd.manifest import SHARED_STREAM, DatabaseProperties, Manifest, Stream, Table
from backupd.postgres import archive
from backupd.postgres.archive import Archive, Entry
from backupd.postgres.edit import Edit, roles_named
from backupd.postgres.privileged import Powers, dependents, lent, made_by_others, privileged, superusers
from backupd.postgres.selection import describe, select

_ALL_ALONG = ("COMMENT", "ACL")  # what goes with an extension without being asked
_FOR_ROLES = ("POLICY", "USER MAPPING")
_NOBODYS = ("ACL", "COMMENT", "DATABASE", "DATABASE PROPERTIES")  # name an owner, and make nobody one
_WHOEVER_OWNS_THE_DATABASE = "pg_database_owner"  # a member of it is the restoring user from the beginning


@dataclass(frozen=True, slots=True)
class Choice:
    """What the operator chose of a backup."""

    tables: tuple[str, ...] = ()  # psql's patterns
    schemas: tuple[str, ...] = ()
    with_references: bool = False  # the tables that foreign keys refer to as well
    owners: bool = True
    role_map: Mapping[str, str] = field(default_factory=dict)
    without_extensions: tuple[str, ...] = ()
    skip_privileged: bool = False  # leave out what only a superuser can restore

    @property
    def parts(self) -> bool:
        return bool(self.tables or self.schemas)


@dataclass(frozen=True, slots=True)
class Contents:
    """What will be restored."""

    archive: bytes = field(repr=False)  # the schema archive, as pg_restore gets it
    edit: Edit
    tables: tuple[Table, ...]  # whose rows come
    streams: tuple[Stream, ...]  # of rows; those to be read
    extensions: frozenset[str]
    roles: frozenset[str]  # that it names, as they are called on the target
    owners: frozenset[str]  # those of them whom the restoring user must be able to make owners
    properties: DatabaseProperties  # of the database, roles renamed
    privileged: tuple[str, ...]  # in it, what this user can't restore
    doubtful: tuple[str, ...] = ()  # what a managed service may refuse this user
    superusers: frozenset[str] = frozenset()  # owners of what only a superuser may own
    regranted: int = 0  # objects with grants that the owner makes in the place of others
    along: tuple[str, ...] = ()  # what parts need beside themselves
    left_out: tuple[str, ...] = ()  # what of the choice stays behind, for people
    referring: tuple[str, ...] = ()  # what refers to the choice, and is no part of it
    subscriptions: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)


def contents(manifest: Manifest, schema: bytes, choice: Choice, powers: Powers) -> Contents:
    """Decide what a restore takes. `schema` is the backup's schema archive; `powers` are those of who will restore it.

    Raises ConfigError for a pattern or an extension that is not in the backup, RefusedError for an extension or
    something privileged that others of its objects need, and PostgresError for an archive that is too new to take
    parts of.
    """
    plain = not choice.parts and not choice.role_map and not choice.without_extensions
    if plain and powers.superuser and b"SUBSCRIPTION" not in schema:
        return _whole(manifest, schema, choice)
    whole, _ = archive.read([schema], f"the schema archive of {manifest.id}")
    selection = None
    if choice.parts:
        selection = select(whole.entries, choice.tables, choice.schemas, with_references=choice.with_references)
    without = _extension_entries(whole.entries, choice.without_extensions)
    beyond = privileged(list(Edit(selection, without).schema(whole.entries)), powers, grants=choice.owners)
    skipped = beyond.refused | beyond.doubtful if choice.skip_privileged else frozenset[int]()
    without |= _skipped(whole.entries, skipped)
    edit = Edit(selection, without, dict(choice.role_map), owners_grant=not powers.superuser)
    entries = tuple(edit.schema(whole.entries))
    properties = _properties(manifest.properties, edit)
    archived = entries if powers.superuser or not choice.owners else tuple(lent(entries))
    tables = manifest.tables
    if selection is not None:
        chosen = set(selection.tables)
        tables = tuple(t for t in manifest.tables if (t.schema_, t.name) in chosen)
    by_id = {entry.dump_id: entry for entry in whole.entries}
    left = [e for e in whole.entries if e.dump_id in without and (e.desc not in _ALL_ALONG or e.dump_id in skipped)]
    return Contents(
        archive=_rewritten(whole, archived, schema),
        edit=edit,
        tables=tables,
        streams=_streams(manifest, edit, tables),
        extensions=frozenset(e.tag for e in entries if e.desc == "EXTENSION"),
        roles=_roles(manifest, choice, edit, entries, [by_id[i] for i in sorted(without)]),
        owners=_owners(manifest, choice, edit, entries),
        properties=properties,
        privileged=tuple(describe(by_id[i]) for i in sorted(beyond.refused - skipped)),
        doubtful=tuple(describe(by_id[i]) for i in sorted(beyond.doubtful - skipped)),
        superusers=superusers(entries) if choice.owners else frozenset(),
        regranted=sum(map(made_by_others, whole.entries)) if choice.owners and not powers.superuser else 0,
        along=selection.along if selection else (),
        left_out=(*(selection.left_out if selection else ()), *map(describe, left)),
        referring=selection.referring if selection else (),
        subscriptions=tuple(e.tag for e in entries if e.desc == "SUBSCRIPTION"),
    )


def _whole(manifest: Manifest, schema: bytes, choice: Choice) -> Contents:
    """Everything, as it is: not even looked into, so that an archive newer than we know can be restored too."""
    return Contents(
        archive=schema,
        edit=Edit(),
        tables=manifest.tables,
        streams=tuple(manifest.of_kind("data")),
        extensions=frozenset(e.name for e in manifest.extensions),
        roles=frozenset(manifest.roles if choice.owners else manifest.policy_roles),
        owners=frozenset(),  # a superuser may make anybody one
        properties=manifest.properties,
        privileged=(),
    )


def _rewritten(whole: Archive, entries: Sequence[Entry], schema: bytes) -> bytes:
    return whole.with_entries(entries).encode() + schema[whole.size :]


def _streams(manifest: Manifest, edit: Edit, tables: Sequence[Table]) -> tuple[Stream, ...]:
    """The streams of rows that hold something of it. A sequence comes with the table that owns it; the others' values
    are with the small tables."""
    if edit.selection is None:
        return tuple(manifest.of_kind("data"))
    wanted = {table.stream for table in tables}
    own = {(t.schema_, t.name) for t in tables if t.stream != SHARED_STREAM}
    if any(edit.selection.owners.get(sequence) not in own for sequence in edit.selection.sequences):
        wanted.add(SHARED_STREAM)
    return tuple(stream for stream in manifest.of_kind("data") if stream.name in wanted)


def _roles(
    manifest: Manifest, choice: Choice, edit: Edit, entries: Sequence[Entry], without: Sequence[Entry]
) -> frozenset[str]:
    if edit.selection is None:
        named = set(manifest.roles if choice.owners else manifest.policy_roles)
        gone = set().union(*map(roles_named, without))
        gone -= {*manifest.large_object_owners, *_roles_of_database(manifest.properties)}
        kept = set().union(*map(roles_named, entries))
        return frozenset(set(map(edit.role, named)) - (set(map(edit.role, gone)) - kept))
    if choice.owners:
        return frozenset(set().union(*map(roles_named, entries)) | {edit.role(manifest.properties.owner)})
    return frozenset(set().union(*(roles_named(e) - {e.owner} for e in entries if e.desc in _FOR_ROLES)))


def _roles_of_database(properties: DatabaseProperties) -> set[str]:
    granted = {name for g in properties.grants or () for name in (g.grantee, g.grantor) if name is not None}
    return {properties.owner, *granted, *(s.role for s in properties.settings if s.role is not None)}


def _owners(manifest: Manifest, choice: Choice, edit: Edit, entries: Sequence[Entry]) -> frozenset[str]:
    """Of whom the restoring user must be a member, to make things theirs and to fill what is theirs."""
    if not choice.owners:
        return frozenset()
    found = {e.owner for e in entries if e.owner and e.desc not in _NOBODYS} | {edit.role(manifest.properties.owner)}
    if edit.selection is None:
        found |= {edit.role(name) for name in manifest.large_object_owners}
    return frozenset(found - {_WHOEVER_OWNS_THE_DATABASE})


def _properties(properties: DatabaseProperties, edit: Edit) -> DatabaseProperties:
    if not edit.roles:
        return properties
    grants = properties.grants
    if grants is not None:
        grants = tuple(
            g.model_copy(
                update={
                    "grantee": edit.role(g.grantee) if g.grantee is not None else None,
                    "grantor": edit.role(g.grantor),
                }
            )
            for g in grants
        )
    settings = tuple(
        s.model_copy(update={"role": edit.role(s.role) if s.role is not None else None}) for s in properties.settings
    )
    return properties.model_copy(update={"owner": edit.role(properties.owner), "grants": grants, "settings": settings})


# ---- extensions


def _extension_entries(entries: Sequence[Entry], names: Sequence[str]) -> frozenset[int]:
    """The entries of these extensions, if nothing else needs them."""
    known = {entry.tag: entry for entry in entries if entry.desc == "EXTENSION"}
    for name in names:
        if name not in known:
            raise RefusedError(
                f"the backup has no extension {name}",
                detail="It has " + (", ".join(sorted(known)) or "none") + ".",
                hint="Leave --exclude-extension out, or correct the name.",
            )
    ids = {known[name].dump_id for name in names}
    found = _with_remarks(entries, ids)
    users = [e for e in entries if e.dump_id not in found and ids.intersection(e.dependencies)]
    if users:
        raise RefusedError(
            f"{len(users)} objects of the backup need the extension {', '.join(names)}",
            detail="\n".join(describe(e) for e in users[:10]),
            hint="Install the extension on the target, or restore the other tables with --table.",
        )
    return frozenset(found)


def _skipped(entries: Sequence[Entry], ids: frozenset[int]) -> frozenset[int]:
    """These entries, and all that can't be without them; tables are never among those."""
    found = dependents(entries, ids)
    tables = [e for e in entries if e.dump_id in found and e.desc == "TABLE"]
    if tables:
        raise RefusedError(
            f"{len(tables)} tables of the backup need what only a superuser can restore",
            detail="\n".join(describe(e) for e in tables[:10]),
            hint="Restore as a superuser, or only the other tables with --table.",
        )
    return found


def _with_remarks(entries: Sequence[Entry], ids: set[int]) -> frozenset[int]:
    """These entries, and the comments and grants that are theirs alone."""
    remarks = {
        e.dump_id for e in entries if e.desc in (*_ALL_ALONG, "SECURITY LABEL") and ids.intersection(e.dependencies)
    }
    return frozenset(ids | remarks)
