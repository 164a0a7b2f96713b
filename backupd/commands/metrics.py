"""`backupd metrics`."""

from __future__ import annotations

from collections.abc import Mapping

from backupd import console
from backupd.commands import opening
from backupd.console import Style


def show(style: Style, path: str | None) -> int:
    """What the repository and the schedules say, for a textfile collector; what only a daemon knows is not in it.
    Of what can't be asked only that is said: on stderr, and by the exit code."""
    from backupd import discovery, standing, times
    from backupd.agenda import Agenda, Kind
    from backupd.errors import BackupdError, ConfigError, StorageError
    from backupd.holdings import Holdings, Keeper
    from backupd.metrics import Metrics
    from backupd.plans import plans
    from backupd.repository import opened
    from backupd.standing import Reading

    config = opening.load(path)
    found = discovery.every(config)
    now = times.now()
    keeper = Keeper(headlines=1)
    holdings: Mapping[str, Holdings] = {}
    troubles: list[BackupdError] = list(found.troubles.values())
    try:
        with opened(config) as catalog:
            holdings = keeper.refresh(catalog, found.databases)
    except (StorageError, ConfigError) as error:
        troubles.append(error)
    agenda = Agenda(plans(config, found.databases))
    kinds: tuple[Kind, ...] = ("backup", "verify")
    for name, each in holdings.items():
        for kind in kinds:
            agenda.learn(name, kind, each.last(kind, now))
    ahead = {key: agenda.next_run(*key, now) for key in agenda.plans}
    blind = [name for name in found.databases if name not in holdings or holdings[name].blind]
    reading = Reading(
        now=now,
        standings=standing.all_of(found.databases, holdings, config.daemon.jitter),
        seen_at=None if blind else now,
        next_runs={key: moment for key, moment in ahead.items() if moment is not None},
        refresh=config.daemon.refresh,
        clusters={name: name not in found.troubles for name in config.clusters},
    )
    console.emit(Metrics(lambda: reading).text().decode().rstrip())
    troubles += [error for error in keeper.troubles.values() if error not in troubles]
    for trouble in troubles:
        console.show_error(style, trouble)
    return troubles[0].exit_code if troubles else 0
