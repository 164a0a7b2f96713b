"""The preflight: everything a backup and a restore need, each tried for real, a line each with its remedy."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace as with_changes

from backupd import check_server, preflight, status
from backupd.catalog import Catalog
from backupd.config import Config
from backupd.config_models import Database
from backupd.errors import BackupdError, IntegrityError, ObjectExistsError, StorageError
from backupd.finding import Finding, failed
from backupd.postgres.session import Dsn
from backupd.postgres.tools import find_installations
from backupd.storage.base import Storage
from backupd.storage.connect import connect as connect_storage

_PROBE = ".probe"  # no database can have this name
_SEVERAL_PARTS = 11 << 20  # more than one part of a multipart upload


def examine(
    config: Config, databases: Sequence[Database], dsns: Sequence[Dsn], troubles: Mapping[str, BackupdError]
) -> Iterator[Finding]:
    """Each finding as soon as it is known; a failed one carries the exit code of its kind. `troubles`: why a cluster
    could not be asked for its databases, by its name."""
    yield Finding("configuration", "ok", f"{config.path}, databases: {', '.join(config.databases) or 'none'}")
    yield from _keys(config)
    yield _tools(config)
    yield from _storage(config)
    for database, dsn in zip(databases, dsns, strict=True):
        yield from check_server.examine(config, database, dsn)
        yield _schedule(database)
        yield from _hooks(database)
    for name in config.clusters.keys() - troubles.keys():
        members = [each.name for each in databases if each.name.startswith(f"{name}.")]
        yield Finding(f"cluster {name}", "ok", f"{len(members)} databases: {', '.join(members)}")
    for name, trouble in troubles.items():
        yield failed(f"cluster {name}", trouble)
    if not databases and not troubles:
        yield Finding("databases", "failed", "none is configured", "Add a [databases.NAME] with its dsn.", 2)


def _attempt(name: str, work: Callable[[], Finding]) -> Finding:
    try:
        return work()
    except BackupdError as error:
        return failed(name, error)


def _keys(config: Config) -> Iterator[Finding]:
    yield _attempt("recipients", lambda: Finding("recipients", "ok", f"{len(config.recipients())} can open backups"))
    yield _attempt("identity", lambda: _identity(config))

    def signing() -> Finding:
        public = config.load_signing_key().public
        if public not in config.trusted_signers():
            return Finding(
                "signing key",
                "failed",
                f"{public.key_id} is not among trusted_signers: what it signs would not be believed",
                f'Add "{public}" to trusted_signers.',
                2,
            )
        return Finding("signing key", "ok", f"{public.key_id}, trusted")

    yield _attempt("signing key", signing)


def _identity(config: Config) -> Finding:
    if config.encryption.identity_file is None:
        return Finding("identity", "ok", "none here: this host can back up, and can neither restore nor verify")
    own = {identity.recipient for identity in config.load_identities()}
    if own.isdisjoint(config.recipients()):
        return Finding(
            "identity",
            "failed",
            f"{config.encryption.identity_file} opens none of the backups that are made here",
            "Put its public key among the recipients: age-keygen -y prints it.",
            7,
        )
    return Finding("identity", "ok", f"{config.encryption.identity_file} opens the backups made here")


def _tools(config: Config) -> Finding:
    found = find_installations(config.postgres.bin_dirs)
    if not found:
        hint = "Install postgresql-client, or pip install 'backupd[postgres]', or name bin_dirs in [postgres]."
        return Finding("tools", "failed", "no PostgreSQL client was found", hint, 6)
    return Finding("tools", "ok", "PostgreSQL clients " + ", ".join(str(each) for each in found))


def _schedule(database: Database) -> Finding:
    """A key that stands in the wrong table shows here."""
    return Finding(f"{database.name}: schedule", "ok", status.schedule_text(database))


def _hooks(database: Database) -> Iterator[Finding]:
    """Whether they can be started: they run with the next backup only."""
    for when in ("before", "after"):
        command = getattr(database.hooks, when)
        if not command:
            continue
        name = f"{database.name}: hook {when}"
        if shutil.which(command[0]) is None:
            hint = "It is a program and its arguments, that no shell reads: is it there, and may we run it?"
            yield Finding(name, "failed", f"{command[0]} is no program that can be run here", hint, 2)
        else:
            yield Finding(name, "ok", command[0])


# ---- storage


def _storage(config: Config) -> Iterator[Finding]:
    url = config.repository.url
    try:
        with closing(connect_storage(url, config.s3_settings())) as storage:
            # Read first: some stores create a misspelt bucket with the first write to it.
            found = _attempt("repository", lambda: _repository(config, storage))
            yield found
            if found.status == "failed":
                return
            yield from _probe(storage)
            yield from _openable(config, storage)
    except BackupdError as error:
        hint = error.hint
        if isinstance(error, StorageError | IntegrityError) and url.startswith("s3:"):
            hint = " ".join(filter(None, [_settings_that_work(config), hint]))
        error.hint = hint
        yield failed("storage", error)


def _openable(config: Config, storage: Storage) -> Iterator[Finding]:
    """Whether this host's identity opens the newest backup of each database, not only those to come."""
    if config.encryption.identity_file is None:
        return

    def newest(name: str) -> Finding:
        catalog, identities = Catalog(storage, config.trusted_signers()), config.load_identities()
        manifest = catalog.manifest(catalog.find(name, None))
        preflight.check_identity(catalog, manifest, identities)
        return Finding(f"backups of {name}", "ok", f"the newest, {manifest.id}, opens with the identity here")

    known = set(Catalog(storage, ()).databases())
    for name in config.databases:
        if name in known:
            finding = _attempt(f"backups of {name}", lambda name=name: newest(name))  # type: ignore[misc]
            if finding.exit_code != 3:  # a folder without a committed backup
                yield finding


def _repository(config: Config, storage: Storage) -> Finding:
    catalog = Catalog(storage, config.trusted_signers())
    found = catalog.repository_id()
    if found is None:
        return Finding("repository", "ok", f"{storage.url} is empty: the first backup begins it")
    return Finding("repository", "ok", f"{storage.url}, id {found}, {len(catalog.databases())} databases")


def _probe(storage: Storage) -> Iterator[Finding]:
    """Write, read back, list, refuse, abort and delete for real; leaves nothing behind."""
    prefix = f"{_PROBE}/{secrets.token_hex(8)}/"
    small, large = prefix + "small", prefix + "large"
    try:
        _round_trip(storage, small, b"backupd " * 100)
        _round_trip(storage, large, secrets.token_bytes(1 << 20) * (_SEVERAL_PARTS >> 20))
        listed = [info.key for info in storage.list(prefix)]
        if listed != [large, small]:
            raise StorageError(
                "a listing does not show what was written", detail=f"wrote 2 objects, listed {len(listed)}"
            )
        yield Finding("storage", "ok", f"{storage.url}: write, read, range, list")
        yield _create_only(storage, small)
        yield _aborts(storage, prefix)
    finally:
        storage.delete([small, large])
    if list(storage.list(prefix)):
        raise StorageError("deleted objects are still listed", hint="Are object locks or versions on for this bucket?")
    yield Finding("storage deletes", "ok", "what was written is gone")


def _round_trip(storage: Storage, key: str, data: bytes) -> None:
    storage.put(key, [data[:1000], data[1000:]])
    got = b"".join(storage.open(key))
    if got != data:
        raise IntegrityError(
            f"the storage gives back {len(got)} bytes that are not the {len(data)} bytes written",
            hint='Some look-alikes store checksum trailers inside objects: set checksums = "when_required".',
        )
    if b"".join(storage.open(key, offset=100, length=50)) != data[100:150]:
        raise IntegrityError("the storage does not honour ranges", hint="Downloads could not be resumed: use another.")


def _create_only(storage: Storage, key: str) -> Finding:
    try:
        storage.put(key, [b"second"], create_only=True)
    except ObjectExistsError:
        return Finding("storage create-only", "ok", "an existing object is not replaced")
    return Finding(
        "storage create-only",
        "warning",
        "an existing object was replaced although that was to be refused",
        "The store ignores If-None-Match. IDs of backups hold chance, so none is replaced by accident.",
    )


def _aborts(storage: Storage, prefix: str) -> Finding:
    class Stop(Exception):  # noqa: N818
        pass

    def broken() -> Iterator[bytes]:
        yield bytes(_SEVERAL_PARTS)
        raise Stop

    key = prefix + "aborted"
    with suppress(Stop):
        storage.put(key, broken())
    if any(info.key == key for info in storage.list(prefix)):
        storage.delete([key])
        raise StorageError("an aborted upload appeared as an object", hint="This store can't be trusted with backups.")
    return Finding("storage aborts", "ok", "an aborted upload leaves no object")


def _settings_that_work(config: Config) -> str:
    """Try the settings that look-alikes differ in, and say which combination works."""
    given = config.s3_settings()
    for style in ("path", "virtual"):
        for checksums in ("when_required", "when_supported"):
            settings = with_changes(given, addressing_style=style, checksums=checksums)
            try:
                with closing(connect_storage(config.repository.url, settings)) as storage:
                    for _ in _probe(storage):
                        pass
            except BackupdError:
                continue
            return f'These settings work here: addressing_style = "{style}", checksums = "{checksums}".'
    return ""
