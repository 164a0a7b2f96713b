"""`backupd verify` and `backupd evidence`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from backupd import console, proof_views, times
from backupd.commands import opening
from backupd.config import Config
from backupd.config_models import Database
from backupd.console import Style
from backupd.errors import ConfigError, PostgresError, ProofError

if TYPE_CHECKING:
    from backupd.crypto.minisign import SecretKey
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
    with opening.repository(config) as catalog, console.progress(style, database=database) as progress:
        made = verifying.run(job, catalog, identities, progress)
    if options.as_json:
        console.emit_json(made.document())
    else:
        console.emit(proof_views.proof(made))
    return _EXIT[made.status]


def _job(config: Config, known: Database, options: VerifyOptions) -> Job:
    from backupd.anomalies import Policy
    from backupd.postgres.assertions import Assertion
    from backupd.postgres.session import Dsn
    from backupd.verify import Job

    wanted = known.verify
    at, backup_id = opening.asked(options.at, times.now())
    server = wanted.scratch_dsn
    if options.server_major is not None and server is not None:
        raise ConfigError(
            "--server-major chooses a throw-away server's version, and scratch names a server",
            hint='Set scratch = "ephemeral", or point scratch at a server of that version.',
        )
    return Job(
        database=known.name,
        at=at,
        backup_id=backup_id,
        signing_key=_signing_key(config),
        server=None if server is None else Dsn(server.get_secret_value()),
        folder=wanted.scratch_folder or Path(tempfile.gettempdir()),
        settings=wanted.scratch_settings,
        major=options.server_major,
        level=options.fingerprint or wanted.fingerprint,
        assertions=[Assertion(check.name, check.sql) for check in wanted.checks],
        assertion_timeout=wanted.check_timeout,
        anomalies=Policy(wanted.anomalies.max_shrink / 100, wanted.anomalies.min_rows, wanted.anomalies.ignore),
        accept=options.accept,
        jobs=options.jobs or known.jobs,
        bin_dirs=config.postgres.bin_dirs,
    )


def _signing_key(config: Config) -> SecretKey:
    """One whose proofs are believed."""
    key = config.load_signing_key()
    if key.public not in config.trusted_signers():
        raise ConfigError(
            "the key that would sign the proof is not among trusted_signers, so nobody would believe it",
            detail=f"{config.encryption.signing_key_file}: {key.public}",
            hint="Add it to trusted_signers in [encryption], here and wherever proofs are looked at.",
        )
    return key


def evidence(path: str | None, database: str, since: str | None, as_json: bool) -> int:
    from backupd import evidence as evidences

    config = opening.load(path)
    with opening.repository(config) as catalog, opening.naming(config, database):
        moment = times.parse_moment(since, reference=times.now()) if since is not None else None
        found = evidences.collect(catalog, database, moment)
    if as_json:
        console.emit_json(found.document())
    else:
        console.emit(found.markdown())
    return 0
