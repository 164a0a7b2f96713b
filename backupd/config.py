"""The configuration: found, read, checked as a whole, and asked for what the rest of backupd needs.

`load` reports every problem of a file at once. No secret is in any message, repr or str; the places that hold one
are SecretStr, or are read only when asked for (keys).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from pydantic import SecretStr, ValidationError

from backupd.config_models import (
    Cluster,
    ClusterTable,
    Daemon,
    Database,
    DatabaseTable,
    Defaults,
    Document,
    Encryption,
    Hooks,
    Notify,
    Postgres,
    Repository,
    Server,
    Verify,
    member,
)
from backupd.config_problems import Problem, explain, report, without
from backupd.config_source import Source, read
from backupd.config_types import has_password
from backupd.config_values import is_database_name, nearest, resolve_path
from backupd.errors import ConfigError
from backupd.private_files import read_private, refuse_readable

if TYPE_CHECKING:
    from backupd.crypto import age, minisign
    from backupd.storage.s3 import S3Settings

T = TypeVar("T")
SYSTEM_FILE = Path("/etc/backupd/backupd.toml")


@dataclass(frozen=True, slots=True)
class Config:
    """A checked configuration."""

    path: Path  # absolute
    repository: Repository
    encryption: Encryption
    databases: Mapping[str, Database]  # defaults merged in, in the order of the file; may be empty
    clusters: Mapping[str, Cluster]
    daemon: Daemon
    notify: Notify
    postgres: Postgres
    server: Server
    environ: Mapping[str, str] = field(repr=False)

    def known(self, name: str) -> Database | None:
        """One database; any of a cluster, whether it is there or not."""
        cluster, dot, encoded = name.partition(".")
        if name not in self.databases and dot and cluster in self.clusters:
            return member(self.clusters[cluster], unquote(encoded))
        return self.databases.get(name)

    def database(self, name: str) -> Database:
        """One database. ConfigError names the nearest one there is."""
        if (found := self.known(name)) is not None:
            return found
        near = nearest(name, self.databases)
        names = [*self.databases, *(f"{cluster}.…" for cluster in self.clusters)]
        known = f"it has: {', '.join(names)}" if names else "it has none; add a [databases.NAME]"
        raise ConfigError(f"no database {name!r} in {self.path}", hint=f"did you mean {near}?" if near else f"{known}")

    def load_identities(self) -> list[age.Identity]:
        """The secret keys that open backups: at least one. ConfigError when they are not here."""
        from backupd.crypto import age

        path = self.encryption.identity_file
        if path is None:
            raise ConfigError(
                f"no identity_file in [encryption] of {self.path}",
                hint="it is needed to restore and verify: the age identity file that belongs to one of the recipients",
            )
        try:
            return age.parse_identities(read_private(path, self.environ), str(path))
        except ConfigError as error:
            if not path.exists() or path.stat().st_size == 0:
                error.hint = f"Put your copy of it back, as {path}, mode 600. A new key opens no backup that is there."
            raise

    def load_signing_key(self) -> minisign.SecretKey:
        """The key that signs manifests. ConfigError when it is not here."""
        from backupd.crypto import minisign

        path = self.encryption.signing_key_file
        if path is None:
            raise ConfigError(
                f"no signing_key_file in [encryption] of {self.path}",
                hint="it is needed to back up and to record proofs; `backupd init` makes one",
            )
        return minisign.SecretKey.parse(read_private(path, self.environ), str(path))

    def trusted_signers(self) -> list[minisign.PublicKey]:
        """Whose manifests are believed: those listed, else the signing key's own; at least one."""
        from backupd.crypto import minisign

        if self.encryption.trusted_signers:
            return self._each(minisign.PublicKey.parse, "trusted_signers", self.encryption.trusted_signers)
        if self.encryption.signing_key_file is not None:
            return [self.load_signing_key().public]
        raise ConfigError(
            f"no trusted_signers in [encryption] of {self.path}",
            hint="list the second line of the signing.pub that belongs to the key which signs the backups",
        )

    def recipients(self) -> list[age.Recipient]:
        """Who can open the backups made here: at least one."""
        from backupd.crypto import age

        if not self.encryption.recipients:
            raise ConfigError(
                f"no recipients in [encryption] of {self.path}",
                hint='list at least one public key, recipients = ["age1…"]; it stands in the identity file',
            )
        return self._each(age.Recipient.parse, "recipients", self.encryption.recipients)

    def _each(self, parse: Callable[[str], T], key: str, texts: Iterable[str]) -> list[T]:
        """Each text parsed; ConfigError names the one that cannot be."""
        parsed = []
        for index, text in enumerate(texts):
            try:
                parsed.append(parse(text.strip()))
            except ConfigError as error:
                message = f"{self.path}: encryption.{key}[{index}]: {error.message}"
                raise ConfigError(message, detail=error.detail, hint=error.hint) from None
        return parsed

    def s3_settings(self) -> S3Settings:
        """What the S3 storage needs to know; of no use for a file:// repository."""
        from backupd.storage.s3 import S3Settings

        given = self.repository
        return S3Settings(
            endpoint_url=given.endpoint_url,
            region=given.region,
            profile=given.profile,
            addressing_style=given.addressing_style,
            storage_class=given.storage_class,
            checksums=given.checksums,
            ca_bundle=given.ca_bundle,
            access_key_id=_revealed(given.access_key_id),
            secret_access_key=_revealed(given.secret_access_key),
            session_token=_revealed(given.session_token),
        )


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def only(config: Config, database: Database) -> Config:
    """The same configuration for one database, also if it was found on a cluster."""
    return replace(config, databases={database.name: database}, clusters={})


def find(explicit: str | None, environ: Mapping[str, str], cwd: Path) -> Path:
    """The configuration to use: `--config`, `$BACKUPD_CONFIG`, `./backupd.toml`, `/etc/backupd/backupd.toml`.

    One that is named must be there: the others are not tried. ConfigError lists where was looked.
    """
    for named, origin in ((explicit, "--config"), (environ.get("BACKUPD_CONFIG"), "$BACKUPD_CONFIG")):
        if named:
            path = Path(os.path.normpath(cwd / named))
            if path.exists():
                return path
            raise ConfigError(f"{path} does not exist", detail=f"named by {origin}", hint="`backupd init` writes one")
    places = (cwd / "backupd.toml", SYSTEM_FILE)
    for path in places:
        if path.exists():
            return path
    looked = "--config (not given), $BACKUPD_CONFIG (not set), " + ", ".join(map(str, places))
    raise ConfigError(
        "no configuration found",
        detail=f"looked at: {looked}",
        hint="Name yours: backupd --config FILE … (`backupd init` writes one with new keys)",
    )


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Read and check a configuration file. ConfigError tells everything that is wrong with it."""
    path = path.absolute()
    home = environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111  unlike Path.home(), never raises
    source = read(path, environ, home)
    problems = [*source.problems, *_misnamed(source), *_readable_keys(source, environ, home)]
    document: Document | None = None
    try:
        document = Document.model_validate(source.values, context={"folder": path.parent, "home": home})
    except ValidationError as error:
        found = [explain(each, source.from_environment) for each in error.errors(include_url=False)]
        unread = [key for key, file_key in source.from_files.items() if file_key in {each.key for each in problems}]
        problems += without(found, [*(each.key for each in problems), *unread])
    if problems or document is None:
        renamed = [Problem(source.from_files.get(each.key, each.key), each.text, each.hint) for each in problems]
        raise report(path, renamed, source.lines)
    return Config(
        path=path,
        repository=document.repository,
        encryption=document.encryption,
        databases={name: _merged(name, table, document.defaults) for name, table in document.databases.items()},
        clusters={name: _cluster(name, table, document.defaults) for name, table in document.clusters.items()},
        daemon=document.daemon,
        notify=document.notify,
        postgres=document.postgres,
        server=document.server,
        environ=dict(environ),  # as it is now: processes of jobs get a copy
    )


def _misnamed(source: Source) -> list[Problem]:
    databases, clusters = source.values.get("databases"), source.values.get("clusters")
    names = list(databases) if isinstance(databases, dict) else []
    members = list(clusters) if isinstance(clusters, dict) else []
    text = 'is not a database name: letters, digits, "_", "-" and ".", not starting with "."'
    found = [Problem(("databases", name), text) for name in names if not is_database_name(name)]
    text = 'is not the name of a cluster: letters, digits, "_" and "-"'
    found += [Problem(("clusters", name), text) for name in members if "." in name or not is_database_name(name)]
    text = "has the name that a database of the cluster {} would have"
    found += [
        Problem(("databases", name), text.format(name.partition(".")[0]), "call one of them otherwise")
        for name in names
        if "." in name and name.partition(".")[0] in members
    ]
    return found


def _readable_keys(source: Source, environ: Mapping[str, str], home: str) -> list[Problem]:
    """Key files that others can read. One that is missing here is no problem yet: not every command needs it."""
    problems = []
    encryption = source.values.get("encryption")
    for name in ("identity_file", "signing_key_file"):
        value = encryption.get(name) if isinstance(encryption, dict) else None
        if not isinstance(value, str) or not value or "\0" in value:
            continue
        path = resolve_path(value, source.path.parent, home)
        try:
            mode = path.stat().st_mode
        except OSError:
            continue
        try:
            refuse_readable(path, mode, environ)
        except ConfigError as error:
            problems.append(Problem(("encryption", name), error.message, error.hint))
    return problems


def _merged(name: str, own: DatabaseTable, defaults: Defaults) -> Database:
    return Database.model_construct(name=name, **_with_defaults(own, defaults))


def _cluster(name: str, own: ClusterTable, defaults: Defaults) -> Cluster:
    return Cluster.model_construct(name=name, **_with_defaults(own, defaults))


def _with_defaults(own: DatabaseTable, defaults: Defaults) -> dict[str, Any]:
    """A database's own keys override the defaults. `retention` replaces as a whole, `verify` and `hooks` key by key."""
    values = _given(defaults)
    if has_password(own.dsn):
        values.pop("password", None)
    values |= _given(own)
    values["verify"] = Verify.model_construct(**(_given(defaults.verify) | _given(own.verify)))
    values["hooks"] = Hooks.model_construct(**(_given(defaults.hooks) | _given(own.hooks)))
    return values


def _given(table: Defaults | Verify | Hooks) -> dict[str, Any]:
    """The keys that stand in the file."""
    return {name: getattr(table, name) for name in table.model_fields_set}
