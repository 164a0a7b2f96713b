"""What the daemon's loop knows. It alone writes it; the HTTP server reads parts of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from backupd import times
from backupd.agenda import Agenda, Job, Kind
from backupd.config import Config
from backupd.config_models import Database
from backupd.metrics import Reading
from backupd.standing import Standing


@dataclass(slots=True)
class State:
    """One run of the daemon, as it stands."""

    config: Config
    databases: dict[str, Database]  # by name: those of the configuration, and those that were discovered
    agenda: Agenda
    stopping: bool = False
    # Replaced as a whole, never changed: other threads read them.
    standings: tuple[Standing, ...] = ()
    seen_at: datetime | None = None  # when the repository was looked at last
    next_runs: Mapping[tuple[str, Kind], datetime] = field(default_factory=dict)
    running: Mapping[Job, datetime] = field(default_factory=dict)  # and since when

    def reading(self) -> Reading:
        """For a scrape, on whatever thread."""
        return Reading(times.now(), self.standings, self.seen_at, self.next_runs, self.running)
