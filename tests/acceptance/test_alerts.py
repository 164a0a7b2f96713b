"""The alerts: each fires when it must (tests/alerts/), and none fires where nothing is wrong. What is
quiet is told by our own schedules and metrics, through weeks in which clocks change, restarts and all."""

from __future__ import annotations

import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from backupd import standing
from backupd.agenda import Agenda, Job, Kind, Retry
from backupd.catalog import BackupRef
from backupd.config_models import Daemon, Database
from backupd.holdings import Holdings
from backupd.holdings import Tested as Proven
from backupd.metrics import Metrics
from backupd.plans import plans_of
from backupd.schedules import latest
from backupd.standing import Attempt, Reading
from backupd.summaries import Headline
from tests.programs import program

ROOT = Path(__file__).parents[2]
RULES = ROOT / "config" / "prometheus" / "backupd.rules.yml"
FIRES = sorted((ROOT / "tests" / "alerts").glob("*.test.yml"))
USED = set(re.findall(r"\bbackupd_\w+", RULES.read_text()))
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
SCRAPE = 5 * MINUTE
JOBS = 3


def promtool(*arguments: str) -> str:
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts() -> set[str]:
    return set(re.findall(r"(?m)^ *- alert: (\w+)$", RULES.read_text()))


def test_each_fires_when_it_must() -> None:
    promtool("check", "rules", str(RULES))
    promtool("test", "rules", *map(str, FIRES))


def test_each_is_tested_and_tells_what_to_do() -> None:
    tested = "".join(path.read_text() for path in FIRES)
    for name in alerts():
        assert re.search(rf"(?m)^ *- alert: {name}\n(?:.*\n)+?.*severity: (critical|warning)", RULES.read_text())
        assert name in tested or name.startswith("BackupdProof"), name  # these by a pattern
    rules = RULES.read_text().split("- alert: ")[1:]
    assert len(rules) == len(alerts()) == 15
    for rule in rules:
        assert "summary:" in rule
        assert "description:" in rule
        others = ("BackupdRepositoryViewStale", "BackupdAbsent", "BackupdClusterUnreachable")
        assert "$labels.database" in rule or rule.startswith(others)


def test_every_metric_that_they_use_exists() -> None:
    known = (ROOT / "docs" / "metrics.md").read_text()
    for name in USED:
        assert f"`{name}`" in known, name


# ---- quiet weeks


@dataclass
class Source:
    """A database whose backups and test restores take their time, and go well."""

    database: Database
    takes: timedelta
    added: timedelta = timedelta()  # after the beginning
    wait: timedelta = timedelta()  # after its slot, until it is its turn
    backups: list[Headline] = field(default_factory=list)
    tests: list[Proven] = field(default_factory=list)

    def go_back(self, begin: datetime) -> None:
        """It has been looked after for a while."""
        name, schedule, check = self.database.name, self.database.schedule, self.database.verify.schedule
        assert schedule is not None
        moment = begin
        slots = [moment := latest(schedule, self.database.timezone, moment - MINUTE) or moment for _ in range(8)]
        for slot in reversed(slots):
            began = slot + self.wait + MINUTE
            self.end(Job("backup", name, slot), began, began + self.takes)
        if check is not None:
            slot = latest(check, self.database.timezone, begin) or begin
            self.end(Job("verify", name, slot), slot + MINUTE, slot + MINUTE + self.takes)

    def holdings(self, now: datetime) -> Holdings:
        refs = tuple(BackupRef(each.taken_at, each.taken_at.isoformat(), self.database.name) for each in self.backups)
        return Holdings(
            self.database.name,
            backups=refs[-7:],
            headlines={ref.id: each for ref, each in zip(refs, self.backups, strict=True)},
            newest=self.backups[-1] if self.backups else None,
            last_test=self.tests[-1] if self.tests else None,
            last_passed=self.tests[-1] if self.tests else None,
            newest_proven=self.tests[-1] if self.tests else None,
            seen_at=now,
        )

    def end(self, job: Job, began: datetime, now: datetime) -> None:
        if job.kind == "backup":
            size = 1_000_000_000 + 10_000_000 * len(self.backups)
            self.backups.append(Headline(began, began, now, size, size // 3, 10, 1000, "17.0"))
        elif job.kind == "verify":
            newest = self.backups[-1].taken_at
            seconds = (now - began).total_seconds()
            self.tests.append(Proven("x", newest, now, "passed", "rows", seconds, seconds, (("rows", "passed", ""),)))


def source(
    name: str,
    schedule: str,
    verify: str | None = None,
    *,
    takes: timedelta,
    added: timedelta = timedelta(),
    turn: int = 0,
    **given: Any,
) -> Source:
    values: dict[str, Any] = {"name": name, "dsn": SecretStr("dbname=x"), "schedule": schedule, **given}
    if verify is not None:
        values["verify"] = {"schedule": verify}
    return Source(Database.model_validate(values), takes, added, takes * turn)


def world() -> list[Source]:
    """What people have: nightly ones in zones with summer time, frequent ones, one of hours, windows, many at once."""
    berlin: dict[str, Any] = {"timezone": "Europe/Berlin", "retention": {"keep_last": 7}}
    return [
        source("nightly", "30 2 * * *", "0 6 * * 0", takes=20 * MINUTE, **berlin),
        source("hourly", "@every 1h", "15 3 * * *", takes=2 * MINUTE, retention={"daily": 7}),
        source("large", "0 22 * * *", "0 12 1 * *", takes=5 * HOUR, timezone="America/New_York"),
        source("window", "0 18 * * *", takes=HOUR, window="22:00-06:00", **berlin),
        source("unverified", "@every 6h", takes=MINUTE),
        source("added", "30 2 * * *", "0 6 * * *", takes=HOUR, added=2 * DAY + 11 * HOUR, **berlin),
        source("added in a window", "@every 1d", takes=HOUR, window="22:00-06:00", added=2 * DAY + 9 * HOUR),
        *(source(f"many {n}", "0 1 * * *", takes=20 * MINUTE, turn=n // JOBS, **berlin) for n in range(8)),
    ]


class Simulation:
    """A daemon with a few jobs at a time, its clock, and what Prometheus scrapes of it."""

    def __init__(self, begin: datetime) -> None:
        self.begin = self.now = begin
        self.sources = {each.database.name: each for each in world()}
        self.settings = Daemon.model_validate({"jitter": "30s"})
        self.series: dict[str, dict[int, float]] = defaultdict(dict)
        for each in self.there.values():
            each.go_back(begin)
        self.start()

    def start(self) -> None:
        """The daemon starts, and knows what the repository holds."""
        self.agenda = Agenda({})
        self.known: set[str] = set()
        self.ends: dict[Job, datetime] = {}
        self.attempts: dict[tuple[str, Kind], Attempt] = {}
        self.pruned: dict[str, datetime] = {}

    @property
    def there(self) -> dict[str, Source]:
        return {name: each for name, each in self.sources.items() if self.begin + each.added <= self.now}

    def turn(self) -> None:
        """What the loop does each minute."""
        there = self.there
        if self.known != set(there):
            self.known = set(there)
            databases = {name: each.database for name, each in there.items()}
            self.agenda.replace(plans_of(databases, self.settings.jitter, Retry()))
            for name, each in there.items():
                self.agenda.learn(name, "backup", each.backups[-1].taken_at if each.backups else None)
                self.agenda.learn(name, "verify", each.tests[-1].finished_at if each.tests else None)
        for job, end in list(self.ends.items()):
            if self.now >= end:
                self.finish(job)
        for job in self.agenda.due(self.now):
            if len(self.ends) < JOBS:
                takes = there[job.database].takes if job.kind != "prune" else MINUTE
                self.agenda.begin(job, self.now)
                self.ends[job] = self.now + takes

    def finish(self, job: Job) -> None:
        del self.ends[job]
        source = self.sources[job.database]
        began = self.agenda.since[job]
        source.end(job, began, self.now)
        last = {"backup": began, "verify": self.now}.get(job.kind)
        self.agenda.succeed(job, self.now, last)
        self.attempts[job.database, job.kind] = Attempt(self.now, "success", "")
        if job.kind == "prune":
            self.pruned[job.database] = self.now
        else:
            self.agenda.want(job.database, "prune", self.now)

    def scrape(self) -> None:
        standings = standing.all_of(
            {name: each.database for name, each in self.there.items()},
            {name: each.holdings(self.now) for name, each in self.there.items()},
            self.settings.jitter,
        )
        ahead = {key: self.agenda.next_run(*key, self.now) for key in self.agenda.plans}
        reading = Reading(
            now=self.now,
            standings=standings,
            seen_at=self.now - MINUTE,
            next_runs={key: moment for key, moment in ahead.items() if moment is not None},
            running=self.agenda.since,
            attempts=self.attempts,
            pruned=self.pruned,
            refresh=self.settings.refresh,
        )
        at = int((self.now - self.begin) / SCRAPE)
        for name, value in self.told(Metrics(lambda: reading)):
            self.series[name][at] = value

    def told(self, metrics: Metrics) -> Iterator[tuple[str, float]]:
        """Prometheus' names of the series: our label `job` is exported_job there. Time begins at 0."""
        for family in metrics.families():
            for each in family.samples if family.name in USED else ():
                value = each.value
                if "_timestamp_seconds" in each.name:
                    value -= self.begin.timestamp()
                labels = {("exported_job" if key == "job" else key): each.labels[key] for key in each.labels}
                labels |= {"instance": "a:9847", "job": "backupd"}
                inner = ",".join(f"{key}={json.dumps(labels[key])}" for key in sorted(labels))
                yield f"{each.name}{{{inner}}}", value


def values(samples: Mapping[int, float], length: int) -> str:
    return " ".join("_" if n not in samples else f"{samples[n]:.15g}" for n in range(length))


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(datetime(2026, 10, 23, 7, 13, tzinfo=UTC), id="clocks are set back"),
        pytest.param(datetime(2026, 3, 27, 7, 13, tzinfo=UTC), id="clocks are set forward", marks=pytest.mark.large),
    ],
)
def test_none_fires_where_nothing_is_wrong(tmp_path: Path, begin: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Simulation(begin)
    monkeypatch.setattr("backupd.times.now", lambda: made.now)
    length, restart = 5 * DAY, 4 * DAY + 3 * HOUR
    while made.now < begin + length:
        down = restart <= made.now - begin < restart + 8 * MINUTE
        if down:
            made.start()
        else:
            made.turn()
            if (made.now - begin) % SCRAPE == timedelta():
                made.scrape()
        made.now += MINUTE
    assert all(len(each.backups) > 1 for each in made.sources.values())
    series = [{"series": name, "values": values(made.series[name], int(length / SCRAPE))} for name in made.series]
    fired = "count by (alertname, database) (count_over_time(ALERTS{alertstate='firing'}[8d]))"
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "5m",
        "tests": [
            {
                "interval": "5m",
                "input_series": series,
                "promql_expr_test": [{"expr": fired, "eval_time": "5d", "exp_samples": []}],
            }
        ],
    }
    path = tmp_path / "quiet.test.yml"
    path.write_text(json.dumps(test))  # which is YAML too
    promtool("test", "rules", str(path))
