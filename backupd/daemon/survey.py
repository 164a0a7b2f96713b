"""What the repository holds, in the daemon's state: looked up in the background, soon after a job and now and then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import datetime
from time import monotonic

from backupd import standing, times
from backupd.config import Config
from backupd.config_models import Database
from backupd.daemon.background import Background
from backupd.daemon.state import State
from backupd.errors import BackupdError
from backupd.holdings import Keeper
from backupd.jobs import Outcome
from backupd.repository import opened
from backupd.standing import Standing

_SOON = 5.0  # seconds between two looks, at least,
_SHARE = 10  # and so many times as long as a look takes

Found = tuple[tuple[Standing, ...], datetime | None]


class Survey:
    """`complain` is told of bugs."""

    def __init__(self, state: State, complain: Callable[[str], None]) -> None:
        self._state = state
        self._complain = complain
        self._background = Background("survey")
        self._keeper = Keeper()
        self._looking: Future[Found | None] | None = None
        self._began = self._took = 0.0
        self._stale = True

    def changed(self, outcome: Outcome) -> None:
        """A job has ended, and may have changed what there is."""
        if outcome.status != "busy":
            self.begin_soon()
        if outcome.facts.get("dropped") or outcome.facts.get("leftovers"):
            self._keeper.forget(outcome.job.database)

    def begin_soon(self) -> None:
        self._stale = True

    def turn(self) -> None:
        """To be called every second."""
        now = monotonic()
        if self._looking is not None:
            if not self._looking.done():
                return
            looked, self._looking = self._looking, None
            self._took = now - self._began
            error = looked.exception()
            if error is not None:
                self._complain(f"a bug: the repository could not be surveyed: {error!r}")
            elif (found := looked.result()) is not None:
                self._state.standings, self._state.seen_at = found
        pause = max(_SOON, self._state.config.daemon.refresh.total_seconds())
        if self._stale:
            pause = min(pause, max(_SOON, self._took * _SHARE))
        if not self._began or now - self._began >= pause:
            self._stale, self._began = False, now
            config, databases = self._state.config, dict(self._state.databases)
            self._looking = self._background.submit(_look, config, databases, self._keeper)


def _look(config: Config, databases: Mapping[str, Database], keeper: Keeper) -> Found | None:
    """None: the storage does not answer, or holds no repository of ours, of which the daemon's own look tells."""
    at = times.now()
    try:
        with opened(config) as catalog:
            holdings = keeper.refresh(catalog, databases)
    except BackupdError:
        return None
    # As old as what is known longest; of one that nothing is known of, that is since ever.
    seen = [each.seen_at for each in holdings.values() if each.seen_at is not None]
    whole = len(seen) == len(databases)
    return standing.all_of(databases, holdings, config.daemon.jitter), min([at, *seen]) if whole else None
