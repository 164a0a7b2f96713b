"""What the steps of one restore share."""

from __future__ import annotations

from collections.abc import Sequence

from backupd.catalog import Catalog
from backupd.crypto import age
from backupd.postgres import database
from backupd.postgres.mark import Mark, Marker
from backupd.postgres.process import Running
from backupd.postgres.restorer import Restorer
from backupd.progress import Progress
from backupd.restore_plan import RestorePlan


class Work:
    """One restore under way: what was planned, what runs for it, and how far it has come."""

    def __init__(
        self, plan: RestorePlan, catalog: Catalog, identities: Sequence[age.Identity], progress: Progress
    ) -> None:
        self.plan, self.catalog, self.identities, self.progress = plan, catalog, identities, progress
        self.running = Running()
        self.claim: database.Claim | None = None
        self.marker = Marker(plan.server.dsn, plan.target, plan.mark)
        self.restorer = Restorer(
            plan.client, plan.dsn, plan.server.major, plan.owners, plan.tablespaces, self.running, plan.contents.edit
        )

    def note(self, *, done: str | None = None, tables: bool = False, loaded: bool = False) -> None:
        """Write down what is complete; an existing database keeps its own comment."""
        self.still_ours()
        if self.plan.creates:
            self.marker.note(done=done, tables=tables, loaded=loaded)

    @property
    def mark(self) -> Mark:
        """How far it has come."""
        return self.marker.mark

    def still_ours(self) -> None:
        if self.claim is not None:
            self.claim.check()
