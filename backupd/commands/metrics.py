"""`backupd metrics`."""

from __future__ import annotations

from backupd import console
from backupd.commands import opening
from backupd.console import Style


def show(style: Style, path: str | None) -> int:
    """What the repository and the schedules say, for a textfile collector; what only a daemon knows is not in it.
    Of what can't be asked only that is said: on stderr, and by the exit code."""
    from backupd import discovery, standing, times
    from backupd.agenda import Agenda, Kind
    from backupd.holdings import Keeper
    from backupd.metrics import Metrics
    from backupd.plans import plans
    from backupd.repository import opened
    from backupd.standing import Reading

    config = opening.load(path)
    found = discovery.every(config)
    now = times.now()
    with opened(config) as catalog:
        keeper = Keeper(headlines=1)
        holdings = keeper.refresh(catalog, found.databases)
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
    troubles = [*found.troubles.values(), *keeper.troubles.values()]
    for trouble in troubles:
        console.show_error(style, trouble)
    return troubles[0].exit_code if troubles else 0
