"""Numbers for Prometheus: every metric is named here, once. docs/metrics.md explains each.

What the repository says comes from holdings, so it is right after a restart and on any host; what only a daemon knows
(attempts, what runs, what is next) from its own loop. A scrape computes, and waits for nothing.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from backupd import __version__
from backupd.agenda import Kind
from backupd.jobs import Outcome
from backupd.standing import Reading, Standing, overdue

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_DURATIONS = (1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400)  # seconds
_STATUS = {"passed": 1.0, "failed": 0.0, "skipped": -1.0}


Value = Callable[[Standing], float | None]


def _at(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _seconds(length: timedelta | None) -> float | None:
    return None if length is None else length.total_seconds()


# Each name, its explanation, and its value for a database; None: there is nothing to tell.
_GAUGES: tuple[tuple[str, str, Value], ...] = (
    (
        "backupd_backup_last_success_timestamp_seconds",
        "Snapshot time of the newest backup in the repository.",
        lambda s: _at(s.holdings.newest.taken_at) if s.holdings.newest else None,
    ),
    (
        "backupd_backup_duration_seconds",
        "How long the newest backup took.",
        lambda s: _seconds(s.holdings.newest.duration) if s.holdings.newest else None,
    ),
    (
        "backupd_backup_raw_bytes",
        "Size of the newest backup before compression.",
        lambda s: float(s.holdings.newest.raw_bytes) if s.holdings.newest else None,
    ),
    (
        "backupd_backup_stored_bytes",
        "Size of the newest backup as it is stored.",
        lambda s: float(s.holdings.newest.stored_bytes) if s.holdings.newest else None,
    ),
    (
        "backupd_verify_last_success_timestamp_seconds",
        "When a test restore passed last.",
        lambda s: _at(s.holdings.last_passed.finished_at) if s.holdings.last_passed else None,
    ),
    (
        "backupd_verify_last_status",
        "Whether the last test restore with a verdict passed (1), or failed or an earlier failure stands (0).",
        lambda s: 0.0 if s.holdings.failed else _STATUS[s.holdings.last_test.status] if s.holdings.last_test else None,
    ),
    (
        "backupd_verify_duration_seconds",
        "How long the last test restore with a verdict took.",
        lambda s: s.holdings.last_test.seconds if s.holdings.last_test else None,
    ),
    (
        "backupd_proven_backup_timestamp_seconds",
        "Snapshot time of the newest backup that a test restore passed.",
        lambda s: _at(s.holdings.newest_proven.taken_at) if s.holdings.newest_proven else None,
    ),
    (
        "backupd_proven_restore_seconds",
        "How long the restore of the newest proven backup took.",
        lambda s: s.holdings.newest_proven.restore_seconds if s.holdings.newest_proven else None,
    ),
    ("backupd_retained_backups", "Backups in the repository.", lambda s: float(len(s.holdings.backups))),
    (
        "backupd_retention_excess_backups",
        "Backups that retention does not keep and that are still there.",
        lambda s: float(s.excess),
    ),
    (
        "backupd_prune_paused",
        "Whether nothing is pruned (1) because the newest proof failed.",
        lambda s: float(s.pause is not None),
    ),
    (
        "backupd_unreadable_backups",
        "Backups whose manifest cannot be read or is not believed, or whose data is gone.",
        lambda s: float(len(s.holdings.unreadable) + len(s.holdings.hollow)),
    ),
    (
        "backupd_unbelieved_proofs",
        "Proofs that were read and are not believed.",
        lambda s: float(len(s.holdings.forged)),
    ),
    (
        "backupd_future_dated_backups",
        "Backups that are dated in the future: a clock is or was wrong.",
        lambda s: float(s.ahead),
    ),
    (
        "backupd_repository_bytes",
        "What all backups of the database take in the repository.",
        lambda s: float(s.holdings.repository_bytes),
    ),
)


_OVERDUE: tuple[tuple[str, str, Callable[[Standing], datetime | None]], ...] = (
    (
        "backupd_backup_overdue_seconds",
        "How long the next backup is overdue, by the schedule and with grace; 0: it is not.",
        lambda s: s.backup_expected,
    ),
    (
        "backupd_verify_overdue_seconds",
        "How long the next test restore is overdue, by the schedule and with grace; 0: it is not.",
        lambda s: s.verify_expected,
    ),
)


class _Repository(Collector):
    """What is the same until the repository is looked at again."""

    standings: tuple[Standing, ...] = ()

    def collect(self) -> Iterator[Metric]:
        for name, text, value in _GAUGES:
            family = GaugeMetricFamily(name, text, labels=["database"])
            for standing in self.standings:
                found = value(standing)
                if found is not None:
                    family.add_metric([standing.database], found)
            yield family
        checks = GaugeMetricFamily(
            "backupd_verify_check_status",
            "Each check of the last test restore: passed (1), failed (0), skipped (-1).",
            labels=["database", "check"],
        )
        for standing in self.standings:
            for check, status, _ in standing.holdings.last_test.checks if standing.holdings.last_test else ():
                checks.add_metric([standing.database, check], _STATUS[status])
        yield checks


class _Now(Collector):
    """What changes from one moment to the next."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        reading = self._read()
        about = GaugeMetricFamily("backupd_build_info", "The program.", labels=["version", "python_version"])
        about.add_metric([__version__, platform.python_version()], 1)
        yield about
        if reading.seen_at is not None:
            yield GaugeMetricFamily(
                "backupd_repository_view_age_seconds",
                "How old what is told of the repository is.",
                value=max(0.0, (reading.now - reading.seen_at).total_seconds()),
            )
        if reading.refresh is not None:
            yield GaugeMetricFamily(
                "backupd_repository_refresh_interval_seconds",
                "How often the repository is looked at, at least.",
                value=reading.refresh.total_seconds(),
            )
        clusters = GaugeMetricFamily("backupd_cluster_up", "Whether a cluster told its databases.", labels=["cluster"])
        for cluster, well in reading.clusters.items():
            clusters.add_metric([cluster], float(well))
        yield clusters
        for name, text, expected in _OVERDUE:
            family = GaugeMetricFamily(name, text, labels=["database"])
            for standing in reading.standings:
                late = overdue(expected(standing), reading.now)
                if late is not None:
                    family.add_metric([standing.database], late.total_seconds())
            yield family
        yield from _jobs(reading)
        yield from _attempts(reading)


def _attempts(reading: Reading) -> Iterator[Metric]:
    labels = ["database"]
    at = GaugeMetricFamily(
        "backupd_backup_last_attempt_timestamp_seconds", "When a backup ended last, well or not.", labels=labels
    )
    backup = GaugeMetricFamily(
        "backupd_backup_last_status", "Whether the last backup was made (1) or failed (0).", labels=labels
    )
    prune = GaugeMetricFamily(
        "backupd_prune_last_status", "Whether the last pruning ended well (1) or failed (0).", labels=labels
    )
    pruned = GaugeMetricFamily(
        "backupd_prune_last_success_timestamp_seconds", "When pruning ended well last.", labels=labels
    )
    for (database, kind), attempt in reading.attempts.items():
        well = float(attempt.outcome == "success")
        if kind == "backup":
            at.add_metric([database], attempt.at.timestamp())
            backup.add_metric([database], well)
        elif kind == "prune":
            prune.add_metric([database], well)
    for database, moment in reading.pruned.items():
        pruned.add_metric([database], moment.timestamp())
    yield from (at, backup, prune, pruned)


def _jobs(reading: Reading) -> Iterator[Metric]:
    labels = ["database", "job"]
    ahead = GaugeMetricFamily("backupd_next_run_timestamp_seconds", "When a job is due next.", labels=labels)
    for (database, kind), moment in reading.next_runs.items():
        ahead.add_metric([database, kind], moment.timestamp())
    yield ahead
    runs = {(job.database, job.kind): since for job, since in reading.running.items()}
    running = GaugeMetricFamily("backupd_job_running", "Whether a job runs now.", labels=labels)
    began = GaugeMetricFamily("backupd_job_started_timestamp_seconds", "Since when a job runs.", labels=labels)
    for database, kind in {**dict.fromkeys(reading.next_runs), **dict.fromkeys(runs)}:
        running.add_metric([database, kind], float((database, kind) in runs))
    for (database, job), since in runs.items():
        began.add_metric([database, job], since.timestamp())
    yield running
    yield began


class Metrics:
    """Everything that is told, of what `read` returns and of the outcomes that were counted since the start."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read
        self._repository_text: tuple[tuple[Standing, ...], bytes] | None = None
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Now(read))
        self._ends: dict[Kind, Counter] = {
            "backup": self._counter("backupd_backups", "Backups that ended, by outcome."),
            "verify": self._counter("backupd_verifies", "Test restores that ended, by outcome."),
            "prune": self._counter("backupd_prunes", "Prunings that ended, by outcome."),
        }
        self._seconds = Histogram(
            "backupd_job_duration_seconds",
            "How long jobs took.",
            ["job"],
            buckets=_DURATIONS,
            registry=self.registry,
        )
        self._expected: set[tuple[str, Kind]] = set()

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, ["database", "outcome"], registry=self.registry)

    def expect(self, database: str, kind: Kind) -> None:
        """Begin at 0, so that the first failure is seen as an increase."""
        self._expected.add((database, kind))
        for outcome in _OUTCOMES[kind]:
            self._ends[kind].labels(database, outcome)

    def forget(self, database: str) -> None:
        """The database is gone."""
        for kind, counter in self._ends.items():
            if (database, kind) in self._expected:
                self._expected.remove((database, kind))
                for outcome in _OUTCOMES[kind]:
                    counter.remove(database, outcome)

    def count(self, outcome: Outcome) -> None:
        """A job has ended. What another host had done, or was doing, was no attempt."""
        word = WORDS.get(outcome.status)
        if word is None:
            return
        job = outcome.job
        self.expect(job.database, job.kind)
        self._ends[job.kind].labels(job.database, word).inc()
        self._seconds.labels(job.kind).observe(outcome.seconds)

    def prepare(self, standings: tuple[Standing, ...]) -> bytes:
        """What is said of the repository: rendered once, by whoever has looked at it, as it is most of all."""
        known = self._repository_text
        if known is None or known[0] is not standings:
            repository, registry = _Repository(), CollectorRegistry(auto_describe=False)
            repository.standings = standings
            registry.register(repository)
            known = self._repository_text = standings, generate_latest(registry)
        return known[1]

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry) + self.prepare(self._read().standings)

    def families(self) -> Iterator[Metric]:
        """The same as values."""
        yield from self.registry.collect()
        repository = _Repository()
        repository.standings = self._read().standings
        yield from repository.collect()


WORDS = {"done": "success", "unproven": "failed_proof", "failed": "failure", "interrupted": "failure"}
_OUTCOMES: Mapping[Kind, tuple[str, ...]] = {
    "backup": ("success", "failure"),
    "verify": ("success", "failure", "failed_proof"),
    "prune": ("success", "failure"),
}
