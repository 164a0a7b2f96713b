"""What the configuration wants done, and when: the agenda's plans."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from backupd.agenda import Kind, Plan, Retry
from backupd.config import Config
from backupd.config_models import Database


def plans(config: Config, databases: Mapping[str, Database]) -> dict[tuple[str, Kind], Plan]:
    """By database and kind of job; none for what has no schedule."""
    daemon = config.daemon
    return plans_of(databases, daemon.jitter, Retry(daemon.retries, daemon.retry_delay))


def plans_of(
    databases: Mapping[str, Database], jitter: timedelta = timedelta(), retry: Retry | None = None
) -> dict[tuple[str, Kind], Plan]:
    """The same, of what the databases say."""
    found: dict[tuple[str, Kind], Plan] = {}
    retry = retry or Retry()
    for name, database in databases.items():
        for kind, wanted in (("backup", database.schedule), ("verify", database.verify.schedule)):
            if wanted is not None:
                width = jitter if wanted.every is None else min(jitter, wanted.every / 2)
                window = database.window if kind == "backup" else None
                found[name, kind] = Plan(wanted, database.timezone, window, width, retry)  # type: ignore[index]
        if database.schedule is not None:
            found[name, "prune"] = Plan(None, database.timezone, retry=retry)
    return found
