"""`backupd init`: a commented configuration with fresh keys beside it. Never overwrites anything.

The template is the documentation of every key; what is filled in is the repository, the keys and the databases.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pydantic import SecretStr, TypeAdapter, ValidationError

from backupd.config_models import Repository
from backupd.config_source import is_literal_secret
from backupd.config_types import Dsn
from backupd.config_values import is_database_name
from backupd.errors import ConfigError, RefusedError
from backupd.private_files import create_file

CONFIG_NAME = "backupd.toml"
IDENTITY_NAME = "identity.age"
SIGNING_KEY_NAME = "signing.key"
SIGNING_PUBLIC_NAME = "signing.pub"
DEFAULT_REPOSITORY = "file:///var/lib/backupd/repository"

_MARK = re.compile(r"@(URL|RECIPIENTS|TRUSTED_SIGNERS|DATABASES)@")
_NO_DATABASE = """\
#
#[databases.shop]
#dsn = "postgresql://backupd@db.internal/shop"
#password_file = "/run/secrets/shop"
"""


@dataclass(frozen=True, slots=True)
class InitResult:
    """What was written, and the public halves of the new keys."""

    config: Path
    files: tuple[Path, ...]  # everything created, the configuration last
    repository: str
    recipient: str  # age1…
    signer: str  # RW…


@dataclass(frozen=True, slots=True)
class _DatabaseFiles:
    """A database as it goes into the configuration: a line of TOML per key, and the secret files they name."""

    lines: tuple[str, ...]
    secrets: Mapping[str, str]  # file name -> content


def init(target: Path, repository: str | None = None, databases: Mapping[str, str] | None = None) -> InitResult:
    """Write `backupd.toml` into the folder `target` (or to the file `target`), and new keys beside it, all 0600.

    `databases` maps names to DSNs; a password in one moves to `NAME.password`, so that the configuration holds no
    secret. Either all files are written or none. RefusedError if one of them exists; ConfigError for a bad name, DSN
    or repository, and for a folder that cannot be written.
    """
    from backupd.crypto import age, minisign

    target = target.absolute()
    config = target / CONFIG_NAME if target.is_dir() else target
    folder, url = config.parent, repository or DEFAULT_REPOSITORY
    _check_repository(url)
    given = {name: _database_files(name, dsn) for name, dsn in (databases or {}).items()}

    identity, signing_key = age.Identity.generate(), minisign.SecretKey.generate()
    recipient, signer = str(identity.recipient), str(signing_key.public)
    contents = {
        folder / IDENTITY_NAME: f"# public key: {recipient}\n{identity.encode().strip()}\n",
        folder / SIGNING_KEY_NAME: signing_key.encode("backupd signing key"),
        folder / SIGNING_PUBLIC_NAME: f"untrusted comment: minisign public key {signing_key.public.key_id}\n{signer}\n",
    }
    contents |= {folder / name: text for each in given.values() for name, text in each.secrets.items()}
    blocks = {name: each.lines for name, each in given.items()}
    if config in contents:
        raise ConfigError(f"{config} is the name of a key file", hint=f"call the configuration {CONFIG_NAME}")
    contents[config] = render(url, [recipient], [signer], blocks)
    _create(contents)
    return InitResult(config, tuple(contents), url, recipient, signer)


def render(
    repository: str,
    recipients: Sequence[str],
    trusted_signers: Sequence[str],
    databases: Mapping[str, Sequence[str]],
) -> str:
    """The template with these values; `databases` maps names to the lines of their sections."""
    sections = "".join(
        f"\n[databases.{_toml(name) if '.' in name else name}]\n" + "".join(f"{line}\n" for line in lines)
        for name, lines in databases.items()
    )
    values = {
        "URL": _toml(repository),
        "RECIPIENTS": f"[{', '.join(map(_toml, recipients))}]",
        "TRUSTED_SIGNERS": f"[{', '.join(map(_toml, trusted_signers))}]",
        "DATABASES": (sections or _NO_DATABASE).removesuffix("\n"),
    }
    text = files("backupd").joinpath("config_template.toml").read_text(encoding="utf-8")
    return _MARK.sub(lambda match: values[match[1]], text)


def _toml(text: str) -> str:
    """A TOML string: JSON's escapes are TOML's, except that TOML also forbids a bare DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _check_repository(url: str) -> None:
    if "${" in url:
        return  # from the environment, later
    try:
        Repository(url=url)
    except ValidationError:
        pass  # its message quotes the URL, which may hold a key
    else:
        return
    raise ConfigError(
        "this is not the URL of a repository",
        hint='expected "s3://BUCKET", "s3://BUCKET/PREFIX" or "file:///FOLDER", without keys or passwords in it',
    )


def _database_files(name: str, dsn: str) -> _DatabaseFiles:
    import psycopg.conninfo  # takes a while; not needed without databases

    if not is_database_name(name):
        hint = 'use letters, digits, "_", "-" and ".", and no "." at the start'
        raise ConfigError(f"{name!r} is not a database name", hint=hint)
    if not is_literal_secret("dsn", dsn):
        _check_dsn(name, dsn)
        return _DatabaseFiles((f"dsn = {_toml(dsn)}",), {})
    parameters = psycopg.conninfo.conninfo_to_dict(dsn)
    if parameters.get("sslpassword"):  # libpq takes this one from the DSN only
        return _DatabaseFiles((f'dsn_file = "{name}.dsn"',), {f"{name}.dsn": _as_file(dsn)})
    password = str(parameters.pop("password", ""))
    lines = [f"dsn = {_toml(psycopg.conninfo.make_conninfo('', **parameters))}"]
    if not password:
        return _DatabaseFiles(tuple(lines), {})
    lines.append(f'password_file = "{name}.password"')
    return _DatabaseFiles(tuple(lines), {f"{name}.password": _as_file(password)})


def _as_file(secret: str) -> str:
    """With the one line break that reading drops, "\\r\\n" or "\\n"."""
    return secret + ("\r\n" if secret.endswith("\r") else "\n")


def _check_dsn(name: str, dsn: str) -> None:
    if "${" in dsn:
        return  # from the environment, later
    try:
        TypeAdapter(Dsn).validate_python(SecretStr(dsn))
    except ValidationError:
        pass  # its message may quote a password
    else:
        return
    raise ConfigError(
        f"the DSN of {name!r} is not a PostgreSQL connection string",
        hint=f'write --database {name}="postgresql://user@host/name" or {name}="host=… dbname=…"',
    )


def _create(contents: Mapping[Path, str]) -> None:
    """Create these files, all or none."""
    with ExitStack() as undo:
        for path, text in contents.items():
            if not path.parent.is_dir():
                raise ConfigError(f"the folder {path.parent} does not exist", hint=f"run: mkdir -p {path.parent}")
            try:
                create_file(path, text, 0o644 if path.name == SIGNING_PUBLIC_NAME else 0o600)
            except FileExistsError:
                raise _exists(path) from None
            except OSError as error:
                hint = "give a folder that you can write to"
                raise ConfigError(f"{path} cannot be written", detail=error.strerror or "", hint=hint) from None
            undo.callback(path.unlink)
        undo.pop_all()


def _exists(path: Path) -> RefusedError:
    return RefusedError(
        f"{path} exists, and init never overwrites",
        detail="Nothing was changed.",
        hint="edit the configuration you have, or give init another folder; without a key, old backups stay closed",
    )
