"""What there is, looked up in the background: databases, and what the repository holds of them. All of it now and then;
after a job what it may have changed, soon."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic
from typing import Any

from backupd import standing, times
from backupd.config import Config
from backupd.config_models import Database
from backupd.daemon.background import Background
from backupd.daemon.looking import Seen, look
from backupd.daemon.state import State
from backupd.errors import BackupdError
from backupd.holdings import Keeper
from backupd.jobs import Outcome
from backupd.repository import opened
from backupd.standing import Standing

_LONGEST = 600.0  # seconds, after which what does not answer is left alone, and asked anew
_SOON = 2.0  # seconds between two looks after jobs, at least


@dataclass(frozen=True, slots=True)
class Found:
    """How things stand in the repository, and since when that is known."""

    standings: tuple[Standing, ...] = ()
    seen_at: datetime | None = None
    blind: Mapping[str, str] = field(default_factory=dict)  # why something of a database could not be read


class Survey:
    """On the daemon's main thread, but for what it asks and makes of it. `prepare` is given new standings, in the
    background; `complain` lines for the log."""

    def __init__(
        self, state: State, prepare: Callable[[tuple[Standing, ...]], object], complain: Callable[[str], None]
    ) -> None:
        self._state = state
        self._prepare = prepare
        self._complain = complain
        self.begin_anew()

    def begin_anew(self) -> None:
        """Nothing is known; what is being asked does not matter any more."""
        self._background, self._keeper = Background("survey"), Keeper()
        self._looking: Future[Seen] | None = None
        self._reading: Future[Found | None] | None = None
        self._wanted = True  # a look at everything
        self._looked = 0.0
        self._changed: set[str] = set()  # databases of which there may be more
        self._found = Found()
        self._began = 0.0
        self.hangs = False  # what was asked last did not answer for long

    def want(self) -> None:
        """A look at everything."""
        self._wanted = True

    def changed(self, outcome: Outcome) -> None:
        """A job has ended, and may have changed what there is."""
        if outcome.status != "busy":
            self._changed.add(outcome.job.database)
        if outcome.facts.get("dropped") or outcome.facts.get("leftovers"):
            self._keeper.forget(outcome.job.database)

    def turn(self) -> Seen | None:
        """To be called every second. Returns what a look at everything found, once."""
        now = monotonic()
        seen = self._take()
        if self._looking is not None or self._reading is not None:
            if now - self._began > _LONGEST:
                self._complain("servers and storage have not answered for long: they are asked anew")
                keeper = self._keeper
                self.begin_anew()
                self._keeper = keeper  # what it has learned by now is true
                self.hangs = True
        elif seen is None and (self._wanted or now - self._looked >= self._state.config.daemon.refresh.total_seconds()):
            self._wanted, self._began, self._looked = False, now, now
            self._looking = self._background.submit(look, self._state.config, self._keeper)
        elif self._changed and seen is None and now - self._began >= _SOON:
            self._read(self._changed & self._state.databases.keys(), listed=False)
        return seen

    def learned(self) -> None:
        """What a look found is in the state: now for the details."""
        self._read(self._state.databases, listed=True)

    def _read(self, databases: Iterable[str], *, listed: bool) -> None:
        self._began, names = monotonic(), list(databases)
        if not listed:
            self._changed.clear()
        state = self._state
        given = (state.config, self._keeper, dict(state.databases), names, listed, self._found)
        self._reading = self._background.submit(self._made, *given)

    def _made(self, *given: Any) -> Found | None:
        found = _read(*given)
        if found is not None:
            self._prepare(found.standings)
        return found

    def _take(self) -> Seen | None:
        """What has been found by now."""
        if self._reading is not None and self._reading.done():
            reading, self._reading = self._reading, None
            if (error := reading.exception()) is not None:
                self._complain(f"a bug: the repository could not be surveyed: {error!r}")
            elif (found := reading.result()) is not None:
                for name in found.blind.keys() - self._found.blind.keys():
                    self._complain(f"not all that is stored of {name} can be read: {found.blind[name]}")
                self._found = found
                self._state.standings, self._state.seen_at = found.standings, found.seen_at
        if self._looking is not None and self._looking.done():
            looking, self._looking = self._looking, None
            if (error := looking.exception()) is None:
                self.hangs = False
                return looking.result()
            self._complain(f"a bug: servers and storage could not be looked at: {error!r}")
        return None


def _read(
    config: Config,
    keeper: Keeper,
    databases: Mapping[str, Database],
    names: list[str],
    listed: bool,
    before: Found,
) -> Found | None:
    """None: the storage does not answer, or holds no repository of ours, of which a look at everything tells."""
    try:
        with opened(config) as catalog:
            if listed:
                keeper.keep(names)
                found = keeper.details(catalog, names)
            else:
                found = keeper.refresh(catalog, names)
    except BackupdError:
        return None
    made = {each.database: each for each in standing.all_of(databases, found, config.daemon.jitter)}
    others = {each.database: each for each in before.standings if each.database in databases}
    standings = tuple({**others, **made}.values())
    # As old as what is known longest; of one that nothing is known of, that is since ever.
    seen = [each.holdings.seen_at for each in standings if each.holdings.seen_at is not None]
    blind = {each.database: each.holdings.blind for each in standings if each.holdings.blind}
    return Found(standings, min([*seen, times.now()]) if len(seen) == len(databases) else None, blind)
