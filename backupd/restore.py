"""Restoring: `run` does what a RestorePlan says, and what it began is gone again if it fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from backupd import times
from backupd.catalog import Catalog
from backupd.crypto import age
from backupd.errors import BusyError, IntegrityError, ProofError
from backupd.postgres import database, properties, roles
from backupd.postgres.mark import unfinished
from backupd.postgres.names import identifier
from backupd.postgres.swap import Swapped, swap
from backupd.progress import Progress
from backupd.restore_build import Builder
from backupd.restore_plan import RestorePlan
from backupd.restore_rows import confirmed, load_all
from backupd.restore_work import Work


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did."""

    plan: RestorePlan
    seconds: float
    swapped: Swapped | None
    warnings: tuple[str, ...]  # what could not be set, and does not make the data wrong

    @property
    def name(self) -> str:
        """What the restored database is called now."""
        return self.plan.replaces if self.swapped and self.plan.replaces else self.plan.target


def run(plan: RestorePlan, catalog: Catalog, identities: Sequence[age.Identity], progress: Progress) -> Restored:
    """Restore as planned. A failure removes the database if we created it; nothing else was touched."""
    began, work = times.now(), Work(plan, catalog, identities, progress)
    with _new_roles(plan, progress) as refused, _claimed(work):
        with _database(work):
            builder = Builder(work)
            if not work.mark.tables:
                progress.phase("creating the tables")
                builder.tables()
                work.note(tables=True)
            if not work.mark.loaded:
                load_all(work, builder)
                work.note(loaded=True)
            builder.rest()
            progress.phase("gathering statistics")
            warnings = database.analyze(plan.dsn, plan.jobs, work.running)
            work.still_ours()
            if plan.creates:
                wanted = plan.contents.properties
                warnings += properties.apply_properties(plan.server, plan.target, wanted, owners=plan.owners)
        swapped = _take_name(plan, progress) if plan.replaces is not None else None
    return Restored(plan, (times.now() - began).total_seconds(), swapped, (*refused, *warnings))


@contextmanager
def _new_roles(plan: RestorePlan, progress: Progress) -> Iterator[list[str]]:
    """The roles that the target lacks: made first, and dropped again if the block fails and left nothing that is
    theirs. Yields what the server refused of their settings."""
    if plan.new_roles is None or not plan.new_roles.create:
        yield []
        return
    progress.phase(f"creating {len(plan.new_roles.create)} roles")
    refused = roles.create(plan.new_roles, plan.server.dsn)
    try:
        if not plan.server.superuser:
            database.join(plan.server, sorted(plan.contents.owners.intersection(plan.new_roles.create)))
        yield refused
    except BaseException as error:
        if not getattr(error, "keeps_database", False):
            error.add_note(_drop_roles(plan.new_roles, plan))
        raise


def _drop_roles(made: roles.Plan, plan: RestorePlan) -> str:
    try:
        left = roles.drop(made, plan.server.dsn)
    except Exception as second:  # noqa: BLE001  (whatever it is: it must not hide why the restore failed)
        return f"The roles {', '.join(made.create)}, created by this restore, could not be removed: {second}"
    return "\n".join(left) or f"The roles {', '.join(made.create)}, created by this restore, were removed."


@contextmanager
def _claimed(work: Work) -> Iterator[None]:
    """No other restore fills this database meanwhile, and what a dead one left running there is ended."""
    plan = work.plan
    with database.claimed(plan.server, plan.target) as work.claim:
        if plan.resumes:
            if unfinished(plan.server.dsn).get(plan.target) != plan.mark:
                raise BusyError(
                    f"another restore has gone on with {plan.target} since this one was planned",
                    hint="Run the same command again: it is planned anew.",
                )
            database.end_sessions(plan.server, plan.target)
        yield


@contextmanager
def _database(work: Work) -> Iterator[None]:
    """The database to fill: created first, and dropped again if the block fails."""
    plan = work.plan
    if plan.resumes:
        work.progress.phase(f"going on with the database {plan.target}")
        work.marker.mark = confirmed(work)
    if plan.creates and not work.mark.tables:
        work.progress.phase(f"creating the database {plan.target}")
        if plan.resumes:
            database.drop_database(plan.server, plan.target)
        _create(plan)
    try:
        if plan.creates and not work.mark.tables:
            work.note()
            if not plan.contents.properties.has_public_schema:
                database.drop_public_schema(plan.dsn)
        yield
    except BaseException as error:
        work.running.stop()
        error.add_note(_clean_up(work, error))
        raise


def _create(plan: RestorePlan) -> None:
    try:
        database.create_database(plan.server, plan.target, plan.contents.properties)
    except KeyboardInterrupt as error:  # the name was free, but whose the database is now can't be known
        error.add_note(f"The database {plan.target} may have been created, empty, at that moment: see, and drop it.")
        raise


def _clean_up(work: Work, error: BaseException) -> str:
    plan, mark = work.plan, work.mark
    if not plan.creates:
        return f"The database {plan.target}, which was empty, now holds parts of the backup. Empty it before a new try."
    if plan.keeps and mark.tables and not isinstance(error, IntegrityError | ProofError):
        error.keeps_database = True  # type: ignore[attr-defined]
        return (
            f"The database {plan.target} stays, with {len(mark.done)} of {len(plan.contents.streams)} streams loaded."
            f" Go on with it by {mark.way_on(plan.target)} and the same options, or drop it."
        )
    try:
        if "No space left" in str(error):
            database.drop_largest(plan.dsn)
        database.drop_database(plan.server, plan.target)
    except (Exception, KeyboardInterrupt) as second:  # noqa: BLE001  (it must not hide why the restore failed)
        return (
            f"The database {plan.target} was begun and could not be removed: {second or 'interrupted'}\n"
            f"Go on with it when the server is back, by {mark.way_on(plan.target)} and the same options;"
            f" or drop it: DROP DATABASE {identifier(plan.target)};"
        )
    return f"The database {plan.target}, begun by this restore, was removed. Nothing else was touched."


def _take_name(plan: RestorePlan, progress: Progress) -> Swapped:
    """Swap the names. Whatever stops it, the restored database is complete and stays."""
    assert plan.replaces is not None
    progress.phase(f"putting {plan.target} in the place of {plan.replaces}")
    try:
        return swap(plan.server.dsn, plan.replaces, plan.target, plan.kept_as)
    except BaseException as error:
        error.keeps_database = True  # type: ignore[attr-defined]  # and with it the roles that were made for it
        raise
