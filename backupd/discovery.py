"""Which databases there are: those of the configuration, and those that its clusters hold just now."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from backupd.config import Config
from backupd.config_models import Cluster, Database, member
from backupd.errors import BackupdError
from backupd.jobs import dsn
from backupd.postgres import cluster as servers
from backupd.postgres.session import Dsn


@dataclass(frozen=True, slots=True)
class Found:
    """`troubles`: why a cluster could not be asked, by its name."""

    databases: dict[str, Database]  # by name, in the order of the file
    troubles: dict[str, BackupdError]


def every(config: Config) -> Found:
    """All databases, clusters asked one after the other."""
    databases, troubles = dict(config.databases), {}
    for name, cluster in config.clusters.items():
        try:
            databases |= {each.name: each for each in members(cluster)}
        except BackupdError as error:
            error.message = f"cluster {name}: {error.message}"
            troubles[name] = error
    return Found(databases, troubles)


def members(cluster: Cluster) -> list[Database]:
    """Those that a pattern of `include` takes, and none of `exclude`. Raises PostgresError."""
    found = servers.databases(dsn(member(cluster, Dsn(cluster.dsn.get_secret_value()).database or "postgres")))
    return [member(cluster, name) for name in found if _takes(cluster, name)]


def _takes(cluster: Cluster, name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in cluster.include) and not any(
        fnmatchcase(name, pattern) for pattern in cluster.exclude
    )
