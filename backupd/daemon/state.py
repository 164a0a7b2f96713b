"""What the daemon's loop knows. It alone writes it; the HTTP server reads parts of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from backupd import times
from backupd.agenda import Agenda, Job
from backupd.config import SYSTEM_FILE, Config
from backupd.config_models import Database
from backupd.progress import Step
from backupd.standing import Attempt, Key, Reading, Standing


@dataclass(slots=True)
class State:
    """One run of the daemon, as it stands."""

    config: Config
    path: Path  # of the configuration
    databases: dict[str, Database]  # by name: those of the configuration, and those that were discovered
    agenda: Agenda
    stopping: bool = False
    # Replaced as a whole, never changed: other threads read them.
    standings: tuple[Standing, ...] = ()
    seen_at: datetime | None = None  # when the repository was looked at last
    next_runs: Mapping[Key, datetime] = field(default_factory=dict)
    running: Mapping[Job, datetime] = field(default_factory=dict)  # and since when
    steps: Mapping[Job, Step] = field(default_factory=dict)  # how far they are
    attempts: Mapping[Key, Attempt] = field(default_factory=dict)  # the last of each
    pruned: Mapping[str, datetime] = field(default_factory=dict)  # when that was done last
    troubles: Mapping[str, str] = field(default_factory=dict)  # what is not well: config, storage, clock, clusters
    clusters: Mapping[str, bool] = field(default_factory=dict)  # whether they answer

    def reading(self) -> Reading:
        """For whoever asks, on whatever thread."""
        return Reading(
            now=times.now(),
            standings=self.standings,
            seen_at=self.seen_at,
            next_runs=self.next_runs,
            running=self.running,
            steps=self.steps,
            attempts=self.attempts,
            pruned=self.pruned,
            databases=self.databases,
            refresh=self.config.daemon.refresh,
            troubles=self.troubles,
            clusters=self.clusters,
            path=None if self.path == SYSTEM_FILE else self.path,
        )

    def note(self, key: Key, attempt: Attempt) -> None:
        """A job was tried."""
        self.attempts = {**self.attempts, key: attempt}
        if key[1] == "prune" and attempt.outcome == "success":
            self.pruned = {**self.pruned, key[0]: attempt.at}

    def settle(self, key: Key) -> None:
        """It was done elsewhere: what failed here matters no more."""
        self.attempts = {other: each for other, each in self.attempts.items() if other != key}

    def forget(self, database: str) -> None:
        """It is gone."""
        self.attempts = {key: each for key, each in self.attempts.items() if key[0] != database}
        self.pruned = {name: at for name, at in self.pruned.items() if name != database}
        self.standings = tuple(each for each in self.standings if each.database != database)
