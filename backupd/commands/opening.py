"""What the commands begin with: the configuration, the repository, and what `--at` asks for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from backupd import config as configuration
from backupd import times
from backupd.catalog import Catalog
from backupd.config import Config
from backupd.config_models import Database
from backupd.errors import NoBackupError
from backupd.manifest import id_second
from backupd.storage.connect import connect

if TYPE_CHECKING:
    from backupd.postgres.session import Dsn


def load(path: str | None) -> Config:
    """`path` is what `--config` says. Raises ConfigError."""
    return configuration.load(configuration.find(path, os.environ, Path.cwd()), os.environ)


@contextmanager
def repository(config: Config) -> Iterator[Catalog]:
    with closing(connect(config.repository.url, config.s3_settings())) as storage:
        yield Catalog(storage, config.trusted_signers())


@contextmanager
def naming(config: Config, database: str) -> Iterator[None]:
    """A database that has no backup, and that the configuration does not know either, may be a slip: raises ConfigError
    with the name that may have been meant."""
    try:
        yield
    except NoBackupError:
        if database not in config.databases:
            config.database(database)
        raise


def dsn(database: Database) -> Dsn:
    from backupd import jobs

    return jobs.dsn(database)


def asked(at: str, now: datetime) -> tuple[datetime | None, str | None]:
    """What `--at` says: a time (None: the newest backup), or the ID of one backup."""
    if id_second(at) is not None:
        return None, at
    return None if at == "latest" else times.parse_moment(at, reference=now), None
