"""What the commands begin with: the configuration, the repository, and what `--at` asks for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from backupd import config as configuration
from backupd import times
from backupd.config import Config
from backupd.config_models import Database
from backupd.errors import BackupdError, ConfigError, NoBackupError
from backupd.manifest import id_second

if TYPE_CHECKING:
    from backupd.postgres.session import Dsn


def load(path: str | None) -> Config:
    """`path` is what `--config` says. Raises ConfigError."""
    return configuration.load(configuration.find(path, os.environ, Path.cwd()), os.environ)


@contextmanager
def naming(config: Config, database: str) -> Iterator[None]:
    """A database that has no backup, and that the configuration does not know either, may be a slip: raises ConfigError
    with the name that may have been meant."""
    try:
        yield
    except NoBackupError:
        config.database(database)
        raise


def chosen(config: Config, names: Sequence[str]) -> tuple[list[Database], list[BackupdError]]:
    """The databases that are named, or all: with those of clusters, and why a cluster could not be asked for its own.
    Raises ConfigError for a name that nobody knows, and where there is none at all."""
    from backupd import discovery

    if names:
        return [config.database(name) for name in names], []
    if not config.databases and not config.clusters:
        raise ConfigError(f"no database in {config.path}", hint='Add one: [databases.NAME] with dsn = "postgresql://…"')
    found = discovery.every(config)
    return list(found.databases.values()), list(found.troubles.values())


def dsn(database: Database) -> Dsn:
    from backupd import jobs

    return jobs.dsn(database)


def asked(at: str, now: datetime) -> tuple[datetime | None, str | None]:
    """What `--at` says: a time (None: the newest backup), or the ID of one backup."""
    if id_second(at) is not None:
        return None, at
    return None if at == "latest" else times.parse_moment(at, reference=now), None
