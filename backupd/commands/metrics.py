"""`backupd metrics`."""

from __future__ import annotations

from backupd import console
from backupd.commands import opening


def show(path: str | None) -> None:
    """What the repository and the schedules say, for a textfile collector. What only a daemon knows is not in it."""
    from backupd import discovery, standing, times
    from backupd.agenda import Agenda, Kind
    from backupd.daemon.service import plans
    from backupd.holdings import Keeper
    from backupd.metrics import Metrics, Reading
    from backupd.repository import opened

    config = opening.load(path)
    found = discovery.every(config)
    for trouble in found.troubles.values():
        raise trouble
    now = times.now()
    with opened(config) as catalog:
        holdings = Keeper(headlines=1).refresh(catalog, found.databases)
    agenda = Agenda(plans(config, found.databases))
    kinds: tuple[Kind, ...] = ("backup", "verify")
    for name, each in holdings.items():
        for kind in kinds:
            agenda.learn(name, kind, each.last(kind, now))
    ahead = {key: agenda.next_run(*key, now) for key in agenda.plans}
    reading = Reading(
        now=now,
        standings=standing.all_of(found.databases, holdings, config.daemon.jitter),
        seen_at=now,
        next_runs={key: moment for key, moment in ahead.items() if moment is not None},
    )
    console.emit(Metrics(lambda: reading).text().decode().rstrip())
