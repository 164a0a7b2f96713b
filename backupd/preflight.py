"""Everything that can stop a restore, looked for before anything is written, and told all at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from backupd import times
from backupd.catalog import Catalog
from backupd.contents import Choice, Contents
from backupd.crypto import age
from backupd.errors import BackupdError, PostgresError, RefusedError, WrongKeyError
from backupd.manifest import Manifest
from backupd.postgres import target
from backupd.postgres.mark import Mark
from backupd.postgres.names import identifier
from backupd.postgres.tools import Installation, choose_client, find_installations


@dataclass(frozen=True, slots=True)
class Question:
    """May this be restored there?"""

    manifest: Manifest
    server: target.Server
    target: str
    creates: bool
    resumes: bool  # it was begun, and is gone on with
    replaces: str | None  # the name that it takes at the end
    gap: timedelta
    max_gap: timedelta | None
    contents: Contents
    choice: Choice
    new_roles: frozenset[str]  # that are created first
    bin_dirs: Sequence[Path]
    future: bool  # the time asked for is still to come
    left: Mapping[str, Mark]  # unfinished restores of the same database: by their databases' names


@dataclass(frozen=True, slots=True)
class Answer:
    client: Installation
    warnings: tuple[str, ...]


def examine(question: Question) -> Answer:
    """Raises one error with every obstacle in it; safety outranks PostgreSQL."""
    obstacles = [*_safety(question), *_server(question), *_replacing(question), *_needs(question)]
    client: Installation | None = None
    try:
        client = _client(question)
    except PostgresError as error:
        obstacles.append(error)
    if obstacles or client is None:
        raise together(obstacles)
    return Answer(client, tuple(_warnings(question)))


@contextmanager
def identity_explained() -> Iterator[None]:
    """Whoever has no identity for a backup is told where to look for one."""
    try:
        yield
    except WrongKeyError as error:
        error.hint = "Put back the identity of the recipients it was made for: a new one opens only new backups."
        raise


def check_identity(catalog: Catalog, manifest: Manifest, identities: Sequence[age.Identity]) -> None:
    """One of the identities opens the backup: its schema archive's header and last chunk. Raises IntegrityError."""
    stream = manifest.schema_stream

    def read_at(offset: int, length: int) -> bytes:
        with closing(catalog.storage.open(stream.key, offset=offset, length=length)) as chunks:
            return b"".join(chunks)

    with identity_explained():
        age.RandomAccess(identities, read_at, stream.stored_bytes, stream.header_sha256, what=stream.key)


def _safety(question: Question) -> Iterator[BackupdError]:
    if question.max_gap is not None and question.gap > question.max_gap:
        yield RefusedError(
            f"the newest backup that fits is {times.human_duration(question.gap)} older than the time asked for",
            detail=f"{question.manifest.id} was taken at {times.iso(question.manifest.taken_at)};"
            f" --max-gap allows {times.human_duration(question.max_gap)}.",
            hint="Allow a larger --max-gap, or leave it out.",
        )
    if question.creates:
        if question.target in question.server.databases and not question.resumes:
            yield RefusedError(
                f"the database {question.target} exists on {question.server.dsn.server}",
                hint="Choose another name with --into; an existing database is never overwritten.",
            )
        return
    there = question.server.dsn.replace(dbname=question.target)
    encoding = target.encoding(there)
    if encoding != question.manifest.properties.encoding:
        yield RefusedError(
            f"the database {question.target} has the encoding {encoding}, and the backup"
            f" {question.manifest.properties.encoding}",
            hint="Give the name of a database that does not exist yet: it is created as the original was.",
        )
    held = target.contents(there)
    if held:
        yield RefusedError(
            f"the database {question.target} on {question.server.dsn.server} is not empty",
            detail="It holds " + ", ".join(held[:5]) + (" and more" if len(held) > 5 else ""),
            hint="Give an empty database, or a name that does not exist yet: it is created.",
        )
    refused = target.refused_to(there) if not question.server.standby else []
    if refused:
        yield PostgresError(
            f"the user {question.server.user} may not create anything in the database {question.target}",
            hint="Let the database's owner or a superuser do: "
            + " ".join(f"{line} TO {identifier(question.server.user)};" for line in refused)
            + " Or give a name that does not exist yet: it is created.",
        )


def _server(question: Question) -> Iterator[BackupdError]:
    server, manifest = question.server, question.manifest
    if server.major < manifest.server_major:
        yield PostgresError(
            f"the target runs PostgreSQL {server.version}, and the backup is from {manifest.server_version}",
            hint=f"Restore to PostgreSQL {manifest.server_major} or newer: an older server can't read it.",
        )
    if server.standby:
        yield PostgresError(
            f"the target {server.dsn.server} is a standby: nothing can be written there", hint="Name the primary."
        )
    yield from _disk(question)
    yield from _locale(question)
    if (question.creates or question.replaces) and not server.may_create:
        yield PostgresError(
            f"the user {server.user} may not create databases on {server.dsn.server}",
            hint=f"Restore as one who may: --target postgresql://USER@HOST:PORT; or ALTER ROLE {server.user} CREATEDB;",
        )


def _disk(question: Question) -> Iterator[BackupdError]:
    """Refused only where it can hardly fit: a copy without the original's bloat may need much less than that has."""
    free = question.server.free_bytes
    needed = sum(table.bytes for table in question.contents.tables)
    if free is not None and free < needed // 2 and not question.resumes:
        yield RefusedError(
            f"the target's disk has {times.human_bytes(free)} free, and the tables had"
            f" {times.human_bytes(needed)} on the source, without their indexes",
            hint="Make room there, or restore to another server with --target.",
        )


def _locale(question: Question) -> Iterator[BackupdError]:
    if not question.creates or question.resumes or question.server.standby:
        return
    reason = target.lacks_locale(question.server, question.contents.properties)
    if reason:
        yield PostgresError(
            f"the target can't create a database with the original's locale {question.contents.properties.collate}"
            f" ({question.contents.properties.locale_provider})",
            detail=reason,
            hint="Install the locale on the server (Debian: dpkg-reconfigure locales, or the package locales-all) and"
            " restart it; or create an empty database with another locale yourself and name it with --target.",
        )


def _needs(question: Question) -> Iterator[BackupdError]:
    server, manifest, contents = question.server, question.manifest, question.contents
    missing = sorted(contents.roles - server.roles - question.new_roles)
    if missing:
        avoidable = question.choice.owners and server.roles.issuperset(manifest.policy_roles)
        yield PostgresError(
            f"the target has no role {', '.join(missing)}",
            detail="The backup's owners, grants, policies or user mappings name "
            + ("it." if len(missing) == 1 else "them."),
            hint="Create them from the backup with --create-roles, or by hand ("
            + " ".join(f'CREATE ROLE "{name}";' for name in missing[:5])
            + (" …" if len(missing) > 5 else "")
            + "), or give what is theirs to others with --role-map OLD=NEW"
            + (", or restore without owners and grants: --no-owner" if avoidable else ""),
        )
    foreign = sorted((contents.owners & server.roles) - server.acts_as)
    if foreign and not server.superuser:
        yield PostgresError(
            f"the user {server.user} may not make {_some(foreign)} the owner of anything",
            detail="Only a superuser or a member of a role, who inherits what it may do, can give things to it and fill"
            " them.",
            hint=f"Make {server.user} a member ("
            + " ".join(_membership(server, name) for name in foreign[:5])
            + "), give what is theirs to others with --role-map OLD=NEW, or leave owners and grants out: --no-owner",
        )
    weak = sorted((contents.superusers & server.roles) - server.superusers)
    if weak and server.superuser:  # others can't restore these things at all
        yield PostgresError(
            f"event triggers, foreign-data wrappers or publications of whole schemas would belong to {', '.join(weak)},"
            " and only a superuser may own such",
            hint="Map their owner to a superuser (--role-map OLD=NEW), or leave owners and grants out: --no-owner",
        )
    wanted = [e for e in manifest.extensions if e.name in contents.extensions]
    absent = [e for e in wanted if e.name not in server.extensions]
    if absent:
        yield PostgresError(
            "the target can't create the extension " + ", ".join(f"{e.name} {e.version}" for e in absent),
            hint="Install the package that brings it on the target server (postgresql-contrib, postgis, …), or leave it"
            f" out, if nothing in the backup needs it: {' '.join(f'--exclude-extension {e.name}' for e in absent)}",
        )
    forbidden = [e.name for e in wanted if e.name in server.forbidden and server.managed is None]
    if forbidden:
        yield PostgresError(
            f"the user {server.user} may not create the extension {', '.join(forbidden)}: only a superuser may",
            hint="Restore as a superuser, or leave it out if nothing needs it: "
            + " ".join(f"--exclude-extension {name}" for name in forbidden),
        )
    if contents.privileged:
        yield PostgresError(
            f"only a superuser can restore {_things(len(contents.privileged))} of the backup, and {server.user} is"
            " none",
            detail="\n".join(contents.privileged[:10]) + ("\nand more" if len(contents.privileged) > 10 else ""),
            hint="Restore as a superuser, or leave out what only one can restore: --skip-privileged",
        )


def _membership(server: target.Server, name: str) -> str:
    options = " WITH INHERIT TRUE, SET TRUE" if server.major >= 16 else ""
    return f"GRANT {identifier(name)} TO {identifier(server.user)}{options};"


def _things(number: int) -> str:
    return "1 thing" if number == 1 else f"{number} things"


def _replacing(question: Question) -> Iterator[BackupdError]:
    """What would stop the swap of names, hours later."""
    server, name = question.server, question.replaces
    if name is None or name not in server.databases:
        return
    if not server.superuser and name not in server.may_own:
        yield PostgresError(
            f"the user {server.user} does not own the database {name} and can't rename it",
            hint=f'Restore as its owner or a superuser, or without --replace; or ALTER DATABASE "{name}" OWNER TO …;',
        )
    prepared = target.prepared_transactions(server.dsn, name)
    if prepared:
        yield RefusedError(
            f"the database {name} has {len(prepared)} prepared transactions, and can't be renamed while it has",
            detail=", ".join(prepared[:10]),
            hint="COMMIT PREPARED or ROLLBACK PREPARED each of them first.",
        )


def _client(question: Question) -> Installation:
    """A pg_restore that reads the archive (not older than the pg_dump that wrote it) and knows the target."""
    found, writer = find_installations(question.bin_dirs), question.manifest.dump_major
    needed = max(writer, question.server.major)
    whole = [each for each in found if each.major >= needed and each.has("pg_restore")]
    try:
        client = choose_client(whole or found, needed)
    except PostgresError as error:
        if writer > question.server.major:
            error.message = f"pg_dump {writer} wrote the backup, and no client here is as new"
        raise
    client.program("pg_restore")  # raises, naming what to install
    return client


def _warnings(question: Question) -> Iterator[str]:
    if not question.creates:
        yield "Owner, grants, settings and comment of the existing database itself are left as they are."
    if question.gap < timedelta(0) and not question.future:
        yield "The backup is from after the time asked for, by the source server's clock, which must have been ahead."
    if question.future:
        yield "The time asked for is still to come: this is the newest backup there is."
    free, whole = question.server.free_bytes, question.manifest.database_bytes
    if free is not None and free < whole and not question.choice.parts:
        yield (
            f"The target's disk has {times.human_bytes(free)} free; the original took {times.human_bytes(whole)} with"
            " all its indexes."
        )
    lacking = sorted(set(question.manifest.tablespaces) - question.server.tablespaces)
    if lacking:
        whose = "" if question.server.superuser else f" that {question.server.user} may use"
        yield f"The target has no tablespace {', '.join(lacking)}{whose}: everything goes to the default one."
    for extension in question.manifest.extensions:
        if extension.name not in question.contents.extensions:
            continue
        offered = question.server.extensions.get(extension.name, extension.version)
        if offered != extension.version:  # a dump names no versions
            yield f"The extension {extension.name} was {extension.version}, and will be the target's {offered}."
    yield from _about_parts(question)
    yield from _about_replacing(question)
    for name, mark in question.left.items():
        yield (
            f"The database {name} holds an unfinished restore of {mark.backup}: go on with it by {mark.way_on(name)},"
            f" or remove it: DROP DATABASE {identifier(name)};"
        )
    yield from _about_privileges(question)
    if not question.choice.owners:
        yield "Owners and grants are left out: everything will belong to the restoring user."


def _about_parts(question: Question) -> Iterator[str]:
    contents = question.contents
    if contents.along:
        yield f"Comes along, as the parts need it, without rows: {_some(contents.along)}."
    if contents.left_out:
        yield f"Left out: {_some(contents.left_out)}."
    if contents.referring:
        yield f"Refer to it, and are no part of it: {_some(contents.referring)}."
    if question.choice.parts:
        yield "Large objects and functions named only in the text of others are no part of a table: they are left out."
    for name in contents.subscriptions:
        yield (
            f"The subscription {name} comes back disabled, and names the original's replication slot. Before it is"
            " dropped or enabled: ALTER SUBSCRIPTION … SET (slot_name = NONE); or the original loses its slot."
        )


def _about_privileges(question: Question) -> Iterator[str]:
    server, contents = question.server, question.contents
    if contents.regranted:
        yield (
            f"Grants that others than the owner made come from the owner: on {_things(contents.regranted)}. Only a"
            " superuser can make them in somebody's name."
        )
    if contents.doubtful:
        yield (
            f"Plain PostgreSQL lets only superusers restore {_some(contents.doubtful)}. Whether {server.user} may, as a"
            f" member of {server.managed}, the service decides; --skip-privileged leaves them out."
        )
    forbidden = sorted(contents.extensions & server.forbidden)
    if forbidden and server.managed is not None:
        yield (
            f"Whether {server.user} may create the extension {', '.join(forbidden)}, as a member of {server.managed},"
            " the service decides; --exclude-extension NAME leaves one out."
        )
    unnamed = sorted(set(question.choice.role_map) - set(question.manifest.roles))
    if unnamed:
        yield f"The backup names no role {', '.join(unnamed)}: that --role-map changes nothing."
    joined = sorted(contents.owners & question.new_roles)
    if joined and not server.superuser:
        yield f"{server.user} becomes a member of the new roles that own something: {_some(joined)}."


def _about_replacing(question: Question) -> Iterator[str]:
    server, name = question.server, question.replaces
    if name is None:
        return
    if name not in server.databases:
        yield f"There is no database {name} on {server.dsn.server}: the restored one takes the name."
        return
    if not server.superuser and not server.may_signal:
        yield (
            f"The user {server.user} may only end sessions of roles that it is a member of: others on {name} would stop"
            " the swap of names at the end. GRANT pg_signal_backend helps."
        )
    slots = target.logical_slots(server.dsn, name)
    if slots:
        yield (
            f"Logical replication slots belong to the database that is replaced, and stay with it: {_some(slots)}."
            " Their subscribers must be set up again."
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def together(obstacles: Sequence[BackupdError]) -> BackupdError:
    """One error of them all; the safety of what is there decides the exit code."""
    if len(obstacles) == 1:
        return obstacles[0]
    kind = next((type(o) for o in obstacles if isinstance(o, RefusedError)), type(obstacles[0]))
    return kind(
        f"{len(obstacles)} things stand in the way; nothing was written",
        detail="\n".join(f"- {o.message}" + (f" ({o.detail})" if o.detail else "") for o in obstacles),
        hint="\n".join(f"- {o.hint}" for o in obstacles if o.hint),
    )
