"""A repository full of backups and proofs of any age, without a server: each is signed, and small."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from backupd import manifest, proofs
from backupd.catalog import Catalog, data_prefix
from backupd.config import load
from backupd.crypto import minisign
from backupd.manifest import DatabaseProperties, Manifest, Stream
from backupd.proof import Proof
from backupd.storage.base import Storage
from backupd.storage.connect import connect
from tests.site import Site


@dataclass
class Filled:
    """Fills `storage` with what `key` signs."""

    storage: Storage
    key: minisign.SecretKey

    def __post_init__(self) -> None:
        self.catalog = Catalog(self.storage, [self.key.public])
        self.repository = self.catalog.ensure_repository()

    def data(self, backup_id: str, database: str = "shop", size: int = 4) -> str:
        """What a backup stores before it is committed. Large ones, in a folder, are holes in files."""
        place = f"{data_prefix(database, backup_id)}schema.dump.zst.age"
        self.storage.put(place, [b"data"])
        if size > 4:
            os.truncate(Path(self.storage.url.removeprefix("file://")) / place, size)
        return place

    def backup(self, at: datetime, database: str = "shop", *, size: int = 4, seconds: float = 1) -> str:
        """A committed backup of that moment; its ID. `size`: raw bytes."""
        backup_id = manifest.new_id(at)
        stream = Stream(
            key=self.data(backup_id, database, max(4, size // 3)),
            kind="schema",
            raw_bytes=size,
            stored_bytes=max(4, size // 3),
            sha256=hashlib.sha256(b"data").hexdigest(),
            header_sha256="0" * 64,
        )
        made = Manifest(
            format=1, kind="logical", repository=self.repository, database=database, id=backup_id, taken_at=at,
            started_at=at, finished_at=at + timedelta(seconds=seconds), backupd_version="0", server_version="17.0",
            server_major=17, tools={}, streams=(stream,), tables=(),
            properties=DatabaseProperties(name=database, owner="o", encoding="UTF8", collate="C", ctype="C"),
        )  # fmt: skip
        self.catalog.commit(made, self.key)
        return backup_id

    def proof(self, backup_id: str, at: datetime, database: str = "shop", **changes: Any) -> str:
        """A recorded proof of it, passed unless said otherwise; its key."""
        (ref,) = [ref for ref in self.catalog.backups(database) if ref.id == backup_id]
        found, data = self.catalog.signed_manifest(ref)
        values: dict[str, Any] = {
            "repository": self.repository,
            "database": database,
            "id": backup_id,
            "manifest_sha256": hashlib.sha256(data).hexdigest(),
            "taken_at": found.taken_at,
            "started_at": at,
            "finished_at": at,
            "host": "here",
            "backupd_version": "0",
            "source_version": "17.0",
            "scratch": None,
            "level": "rows",
            "status": "passed",
            "phases": {},
            "tables_compared": 0,
            "rows_compared": 0,
            "checks": (),
        }
        return proofs.record(self.catalog, Proof(**(values | changes)), self.key)

    def names(self) -> list[str]:
        return [info.key for info in self.storage.list("")]


@contextmanager
def filling(site: Site) -> Iterator[Filled]:
    """To fill a site's own repository, as its own signer."""
    config = load(site.config, site.environ)
    with closing(connect(config.repository.url, config.s3_settings())) as storage:
        yield Filled(storage, config.load_signing_key())
