"""Everything that can stop a restore, looked for before anything is written, and told all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from backupd import times
from backupd.catalog import Catalog
from backupd.crypto import age
from backupd.errors import BackupdError, IntegrityError, PostgresError, RefusedError
from backupd.manifest import Manifest
from backupd.postgres import target
from backupd.postgres.tools import Installation, choose_client, find_installations


@dataclass(frozen=True, slots=True)
class Question:
    """May this backup be restored there?"""

    manifest: Manifest
    catalog: Catalog
    server: target.Server
    target: str
    creates: bool
    named: bool  # the operator chose the name
    gap: timedelta
    max_gap: timedelta | None
    owners: bool
    bin_dirs: Sequence[Path]
    identities: Sequence[age.Identity]
    future: bool  # the time asked for is still to come


@dataclass(frozen=True, slots=True)
class Answer:
    client: Installation
    warnings: tuple[str, ...]


def examine(question: Question) -> Answer:
    """Raises one error with every obstacle in it; integrity outranks safety, and safety outranks PostgreSQL."""
    question.catalog.check_objects(question.manifest)
    check_identity(question.catalog, question.manifest, question.identities)
    obstacles = [*_safety(question), *_server(question), *_needs(question)]
    client: Installation | None = None
    try:
        client = _client(question)
    except PostgresError as error:
        obstacles.append(error)
    if obstacles or client is None:
        raise _together(obstacles)
    return Answer(client, tuple(_warnings(question)))


def check_identity(catalog: Catalog, manifest: Manifest, identities: Sequence[age.Identity]) -> None:
    """One of the identities opens the backup: its schema archive's header and last chunk. Raises IntegrityError."""
    stream = manifest.schema_stream

    def read_at(offset: int, length: int) -> bytes:
        with closing(catalog.storage.open(stream.key, offset=offset, length=length)) as chunks:
            return b"".join(chunks)

    try:
        age.RandomAccess(identities, read_at, stream.stored_bytes, stream.header_sha256, what=stream.key)
    except IntegrityError as error:
        if " open" in error.message:  # none of the identities does
            error.hint = "Put back the identity of the recipients it was made for: a new one opens only new backups."
        raise


def _safety(question: Question) -> Iterator[BackupdError]:
    if question.max_gap is not None and question.gap > question.max_gap:
        yield RefusedError(
            f"the newest backup that fits is {times.human_duration(question.gap)} older than the time asked for",
            detail=f"{question.manifest.id} was taken at {times.iso(question.manifest.taken_at)};"
            f" --max-gap allows {times.human_duration(question.max_gap)}.",
            hint="Allow a larger --max-gap, or leave it out.",
        )
    if question.creates:
        if question.target in question.server.databases:
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
    if question.creates and not server.may_create:
        yield PostgresError(
            f"the user {server.user} may not create databases on {server.dsn.server}",
            hint=f"Restore as one who may: --target postgresql://USER@HOST:PORT; or ALTER ROLE {server.user} CREATEDB;",
        )


def _needs(question: Question) -> Iterator[BackupdError]:
    server, manifest = question.server, question.manifest
    missing_roles = sorted(set(manifest.roles if question.owners else manifest.policy_roles) - server.roles)
    if missing_roles:
        avoidable = question.owners and server.roles.issuperset(manifest.policy_roles)
        yield PostgresError(
            f"the target has no role {', '.join(missing_roles)}",
            detail="The backup's owners, grants, policies or user mappings name "
            + ("it." if len(missing_roles) == 1 else "them."),
            hint="Create them ("
            + " ".join(f'CREATE ROLE "{name}";' for name in missing_roles[:5])
            + (" …" if len(missing_roles) > 5 else "")
            + "; their logins, passwords and memberships are in the backup's globals)"
            + (" or restore without owners and grants: --no-owner" if avoidable else ""),
        )
    missing = [e for e in manifest.extensions if e.name not in server.extensions]
    if missing:
        yield PostgresError(
            "the target can't create the extension " + ", ".join(f"{e.name} {e.version}" for e in missing),
            hint="Install the package that brings it on the target server (postgresql-contrib, postgis, …).",
        )


def _client(question: Question) -> Installation:
    """A pg_restore that reads the archive (not older than the pg_dump that wrote it) and knows the target."""
    writer = int(question.manifest.tools.get("pg_dump", str(question.manifest.server_major)).split(".")[0])
    return choose_client(find_installations(question.bin_dirs), max(writer, question.server.major))


def _warnings(question: Question) -> Iterator[str]:
    if not question.creates:
        yield "Owner, grants, settings and comment of the existing database itself are left as they are."
    if question.gap < timedelta(0) and not question.future:
        yield "The backup is from after the time asked for, by the source server's clock, which must have been ahead."
    if question.future:
        yield "The time asked for is still to come: this is the newest backup there is."
    lacking = sorted(set(question.manifest.tablespaces) - question.server.tablespaces)
    if lacking:
        yield f"The target has no tablespace {', '.join(lacking)}: everything goes to the default one."
    for extension in question.manifest.extensions:
        offered = question.server.extensions.get(extension.name, frozenset())
        if offered and extension.version not in offered:
            yield (
                f"Extension {extension.name} was {extension.version}; the target offers {', '.join(sorted(offered))}."
            )
    if not question.owners:
        yield "Owners and grants are left out: everything will belong to the restoring user."


def _together(obstacles: Sequence[BackupdError]) -> BackupdError:
    """One error of them all; the safety of what is there decides the exit code."""
    if len(obstacles) == 1:
        return obstacles[0]
    kind = next((type(o) for o in obstacles if isinstance(o, RefusedError)), type(obstacles[0]))
    return kind(
        f"{len(obstacles)} things stand in the way; nothing was written",
        detail="\n".join(f"- {o.message}" + (f" ({o.detail})" if o.detail else "") for o in obstacles),
        hint="\n".join(f"- {o.hint}" for o in obstacles if o.hint),
    )
