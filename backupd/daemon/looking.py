"""A look at the servers and the storage: which databases there are, and what was done last of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic

from backupd import discovery, times
from backupd.agenda import Kind
from backupd.config import Config
from backupd.config_models import Database
from backupd.errors import BackupdError, ConfigError, StorageError
from backupd.holdings import Keeper
from backupd.postgres import tools
from backupd.repository import opened

_KINDS: tuple[Kind, ...] = ("backup", "verify")  # that leave something in the storage


@dataclass(slots=True)
class Seen:
    """What was found."""

    began: float  # monotonic
    databases: Mapping[str, Database]
    programs: tools.Survey
    troubles: dict[str, BackupdError]
    last: dict[tuple[str, Kind], datetime | None] = field(default_factory=dict)
    unknown: Sequence[tuple[str, Kind]] = ()  # of which the storage would not say
    stored: frozenset[str] = frozenset()  # what the repository holds of clusters that do not answer


def look(config: Config, keeper: Keeper) -> Seen:
    """Ask the clusters for their databases, and the storage for the newest backup and test restore of each."""
    began = monotonic()
    found = discovery.every(config)
    programs = tools.survey(config.postgres.bin_dirs, anew=True)
    seen = Seen(began, found.databases, programs, dict(found.troubles))
    try:
        with opened(config) as catalog:
            if found.troubles:
                seen.stored = frozenset(catalog.databases())
            keeper.names(catalog, found.databases)
    except (StorageError, ConfigError) as error:  # nothing of one database alone
        seen.troubles[""] = _of_the_storage(error)
        return seen
    now = times.now()
    known = keeper.known(found.databases.keys() - keeper.troubles.keys())
    seen.last = {(name, kind): each.last(kind, now) for name, each in known.items() for kind in _KINDS}
    seen.unknown = [(name, kind) for name in keeper.troubles for kind in _KINDS]
    seen.troubles |= {name: _of_the_storage(error) for name, error in keeper.troubles.items()}
    return seen


def _of_the_storage(error: StorageError | ConfigError) -> BackupdError:
    said = "the storage could not be asked what there is: "
    error.message = said + error.message.removeprefix(said)
    return error
