"""A look at the servers and the storage: which databases there are, and what was done last of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from time import monotonic

from backupd import discovery, jobs
from backupd.agenda import Kind
from backupd.catalog import Catalog
from backupd.config import Config
from backupd.config_models import Database
from backupd.errors import BackupdError, ConfigError, StorageError
from backupd.postgres import tools
from backupd.repository import opened

_READERS = 8  # databases whose repository is asked at a time


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found."""

    began: float  # monotonic
    databases: Mapping[str, Database]
    last: Mapping[tuple[str, Kind], datetime | None]
    unknown: Sequence[tuple[str, Kind]]  # of which the storage would not say
    troubles: Mapping[str, BackupdError]
    programs: tools.Survey


def look(config: Config) -> Seen:
    """Ask the clusters for their databases, and the storage for the newest backup and test restore of each."""
    began = monotonic()
    found = discovery.every(config)
    troubles: dict[str, BackupdError] = dict(found.troubles)
    last: dict[tuple[str, Kind], datetime | None] = {}
    wanted: list[tuple[str, Kind]] = [(name, kind) for name in found.databases for kind in ("backup", "verify")]
    unknown: list[tuple[str, Kind]] = []

    def newest(catalog: Catalog, key: tuple[str, Kind]) -> datetime | StorageError | None:
        try:
            return jobs.newest(catalog, *key)
        except StorageError as error:
            return error

    try:
        with opened(config) as catalog, ThreadPoolExecutor(_READERS, thread_name_prefix="reader") as readers:
            answers = dict(zip(wanted, readers.map(partial(newest, catalog), wanted), strict=True))
    except (StorageError, ConfigError) as error:
        answers = {}
        troubles[""] = _of_the_storage(error)
    for key, answer in answers.items():
        if isinstance(answer, StorageError):
            unknown.append(key)
            troubles[key[0]] = _of_the_storage(answer)
        else:
            last[key] = answer
    if unknown and not last:  # nothing of one database alone
        troubles = {name: each for name, each in troubles.items() if name not in found.databases}
        troubles[""] = _of_the_storage(next(each for each in answers.values() if isinstance(each, StorageError)))
        unknown = []
    return Seen(began, found.databases, last, unknown, troubles, tools.survey(config.postgres.bin_dirs, anew=True))


def _of_the_storage(error: StorageError | ConfigError) -> BackupdError:
    said = "the storage could not be asked what there is: "
    error.message = said + error.message.removeprefix(said)
    return error
