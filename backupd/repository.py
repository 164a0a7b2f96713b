"""The repository that a configuration names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from backupd.catalog import Catalog
from backupd.config import Config
from backupd.storage.connect import connect


@contextmanager
def opened(config: Config) -> Iterator[Catalog]:
    """For as long as the block lasts. Raises ConfigError and StorageError."""
    with closing(connect(config.repository.url, config.s3_settings())) as storage:
        yield Catalog(storage, config.trusted_signers())
