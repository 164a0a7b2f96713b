"""`backupd verify` and `backupd evidence`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from backupd import console, proof_views, times
from backupd.commands import opening
from backupd.config import Config
from backupd.config_models import Database
from backupd.console import Style
from backupd.errors import ConfigError, PostgresError, ProofError
from backupd.repository import opened

if TYPE_CHECKING:
    from backupd.verify import Job

_EXIT = {"passed": 0, "failed": ProofError.exit_code, "inconclusive": PostgresError.exit_code}


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """The options of `verify` as typed."""

    at: str = "latest"
    server_major: int | None = None
    fingerprint: Literal["off", "rows", "content"] | None = None
    accept: bool = False
    jobs: int | None = None
    as_json: bool = False


def verify(style: Style, path: str | None, database: str, options: VerifyOptions) -> int:
    from backupd import verify as verifying

    config = opening.load(path)
    job = _job(config, config.database(database), options)
    identities = config.load_identities()
    with opened(config) as catalog, console.progress(style, database=database) as progress:
        made = verifying.run(job, catalog, identities, progress)
    if options.as_json:
        console.emit_json(made.document())
    else:
        console.emit(proof_views.proof(made))
    return _EXIT[made.status]


def _job(config: Config, known: Database, options: VerifyOptions) -> Job:
    from backupd import jobs

    if options.server_major is not None and known.verify.scratch_dsn is not None:
        raise ConfigError(
            "--server-major chooses a throw-away server's version, and scratch names a server",
            hint='Set scratch = "ephemeral", or point scratch at a server of that version.',
        )
    at, backup_id = opening.asked(options.at, times.now())
    work = jobs.verify_job(config, known)
    return replace(
        work,
        at=at,
        backup_id=backup_id,
        major=options.server_major,
        level=options.fingerprint or work.level,
        accept=options.accept,
        jobs=options.jobs or work.jobs,
    )


def evidence(path: str | None, database: str, since: str | None, as_json: bool) -> int:
    from backupd import evidence as evidences

    config = opening.load(path)
    with opened(config) as catalog, opening.naming(config, database):
        moment = times.parse_moment(since, reference=times.now()) if since is not None else None
        found = evidences.collect(catalog, database, moment)
    if as_json:
        console.emit_json(found.document())
    else:
        console.emit(found.markdown())
    return 0
