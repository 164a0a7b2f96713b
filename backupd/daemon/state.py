"""What the daemon's loop knows. It alone writes it."""

from __future__ import annotations

from dataclasses import dataclass

from backupd.agenda import Agenda
from backupd.config import Config
from backupd.config_models import Database


@dataclass(slots=True)
class State:
    """One run of the daemon, as it stands."""

    config: Config
    databases: dict[str, Database]  # by name: those of the configuration, and those that were discovered
    agenda: Agenda
    stopping: bool = False
