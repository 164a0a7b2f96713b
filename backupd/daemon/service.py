"""The daemon: asks the agenda what is due, has the runner do it, and says what came of it.

The main thread alone touches the agenda. Signal handlers only set flags; the storage is asked in a thread.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import schedule

from backupd import config as configuration
from backupd import console, times
from backupd.agenda import Agenda, Job
from backupd.config import Config
from backupd.config_models import Database
from backupd.console import Style
from backupd.daemon.answering import Answering
from backupd.daemon.health import Health
from backupd.daemon.looking import Seen
from backupd.daemon.outcomes import BUSY_AGAIN, Outcomes
from backupd.daemon.runner import Runner
from backupd.daemon.state import State
from backupd.daemon.survey import Survey
from backupd.daemon.systemd import Systemd
from backupd.daemon.telling import Teller
from backupd.daemon.telling import check as check_messages
from backupd.errors import ConfigError
from backupd.jobs import Outcome
from backupd.metrics import Metrics
from backupd.plans import plans
from backupd.postgres import tools
from backupd.standing import clock_trouble

_TICK = 1.0  # seconds


@dataclass
class Daemon:
    """One run of `backupd run`, from READY to STOPPING."""

    path: Path
    environ: Mapping[str, str]
    style: Style
    hung_up: list[int] = field(default_factory=list)  # signals that asked to reload before it ran
    systemd: Systemd = field(default_factory=Systemd)

    def __post_init__(self) -> None:
        config = self._load()
        self.state = State(config, self.path, dict(config.databases), Agenda({}))
        self.runner = Runner(self.style, self.state.config.daemon.jobs)
        self._teller = Teller(lambda text: self._say(text, "warning"))
        self._programs: tools.Survey | None = None  # of PostgreSQL, on this machine
        self._ended: dict[str, float] = {}  # when a job of a database last ended: older looks say nothing of it
        self.metrics = Metrics(self.state.reading)
        self._survey = Survey(self.state, self.metrics.prepare, lambda text: self._say(text, "error"))
        self._outcomes = Outcomes(self.state, self._teller, self.metrics, self._say)
        self._troubles: dict[str, str] = {}  # what was said of the storage and the clusters
        self._reload = self._hurry = False
        self._status = ""
        self.health = Health()
        self._doors = Answering(self._say)
        self._clock = schedule.Scheduler()
        self._plan()

    def run(self) -> int:
        """Until SIGTERM or SIGINT. Raises ConfigError before it began."""
        self._reload = bool(self.hung_up)
        server = self.state.config.server
        doors = self._doors.open(server, self.state.reading, self.metrics.text, self.health)
        with self._signals() as woken, doors:
            databases = f"databases: {len(self.state.databases)}, jobs at a time: {self.runner.limit}"
            self._say(f"backupd runs: {databases}, by {self.path}")
            if not self.state.agenda.plans and not self.state.config.clusters:
                self._say("no database has a schedule: nothing will be done", "warning")
            self._wind_up()
            self.systemd.tell("READY=1", f"MAINPID={os.getpid()}")
            while not self.state.stopping:
                self._turn(woken)
            self._finish(woken)
        return 0

    # ---- the loop

    def _wind_up(self) -> None:
        self._clock.clear()
        self._clock.every(_TICK).seconds.do(self._tick)  # type: ignore[arg-type]
        if self.systemd.watchdog:
            self._clock.every(self.systemd.watchdog / 3).seconds.do(self.systemd.tell, "WATCHDOG=1")  # type: ignore[arg-type]

    def _turn(self, woken: socket.socket) -> None:
        """Wait for whatever comes first: a job's end, a signal, the next tick."""
        self.health.turn()
        idle = self._clock.idle_seconds or 0.0
        if idle > _TICK * 2:  # `schedule` goes by the clock on the wall, which was set back
            self._wind_up()
        for outcome in self.runner.wait(max(0.0, min(idle, _TICK)), [woken]):
            self._take(outcome)
            self._begin_due()
        self._drain(woken)
        if self._reload:
            self._reload = False
            self._load_again()
        self._clock.run_pending()

    def _take(self, outcome: Outcome) -> None:
        self._ended[outcome.job.database] = monotonic()
        self._survey.changed(outcome)
        self._outcomes.take(outcome, times.now())

    def _tick(self) -> None:
        if (seen := self._survey.turn()) is not None:
            self._learn(seen)
            self._survey.learned()
        self._begin_due()
        self._outcomes.look_at_the_long(times.now())
        self.health.note("clock", clock_trouble(self.state.standings, times.now()))
        if self._survey.hangs:
            self.health.note("storage", "servers or storage do not answer for long")
        self.state.troubles = self.health.troubles
        self._tell_status()

    def _begin_due(self) -> None:
        if self.state.stopping:
            return
        for job in self.state.agenda.due(times.now()):
            if not self.runner.has_room:
                return
            self._begin(job)

    def _begin(self, job: Job) -> None:
        database = self.state.databases[job.database]
        self.state.agenda.begin(job, times.now())
        if job.kind == "backup" and not self._outcomes.was_busy(job):
            self._teller.ping(database.ping_url, "start")
        try:
            config = configuration.only(self.state.config, database)
            self.runner.start(job, config, database.max_duration, self._programs)
        except (OSError, EOFError) as error:  # no process, no memory
            self.state.agenda.put_off(job, times.now() + BUSY_AGAIN)
            self._say(f"a job cannot be started: {error}", "error", job)

    def _finish(self, woken: socket.socket) -> None:
        """Running jobs may end by themselves for a while; then they are ended."""
        self.systemd.tell("STOPPING=1", "STATUS=stopping")
        patience = self.state.config.daemon.shutdown_timeout.total_seconds()
        self._say("backupd stops" + ("" if self.runner.is_idle else f": jobs may run for {patience:g} s more"))
        began, told = monotonic(), False
        while not self.runner.is_idle:
            if not told and (self._hurry or monotonic() - began >= patience):
                self.runner.end("backupd was stopped")
                told = True
            for outcome in self.runner.wait(0.5, [woken]):
                self._take(outcome)
            self._drain(woken)
            self.health.turn()
            if self.systemd.watchdog:
                self.systemd.tell("WATCHDOG=1")
        self._teller.close()
        self._say("backupd has stopped")

    # ---- what there is

    def _learn(self, seen: Seen) -> None:
        troubles = {name: ": ".join(filter(None, [e.message, e.detail, e.hint])) for name, e in seen.troubles.items()}
        for name, text in troubles.items():
            if self._troubles.get(name) != text:  # once, not every few minutes
                self._say(text, "error")
                self._teller.message(self.state.config.notify, "backupd: trouble", text)
        for name in self._troubles.keys() - troubles.keys():
            self._say(f"{name or 'the storage'} answers again")
        self._troubles = troubles
        self.health.note("storage", troubles.get(""))
        clusters = self.state.config.clusters
        for name in [*clusters, *(self.state.clusters.keys() - clusters.keys())]:
            self.health.note(f"cluster {name}", troubles.get(name) if name in clusters else None)
        self.state.clusters = {name: name not in troubles for name in clusters}
        self._programs = seen.programs
        silent = seen.troubles.keys() & clusters.keys()  # their databases may be there all the same
        known = self._of_clusters((self.state.databases.keys() | seen.stored) - seen.databases.keys())
        known = {name: each for name, each in known.items() if name.partition(".")[0] in silent}
        self._change({**seen.databases, **known})
        for database, kind in seen.unknown:
            self.state.agenda.ask(database, kind)
        for (database, kind), last in seen.last.items():
            if self._ended.get(database, 0.0) < seen.began:
                self.state.agenda.learn(database, kind, last)

    def _of_clusters(self, names: Iterable[str]) -> dict[str, Database]:
        """Those that are of a cluster, as the configuration is now."""
        config = self.state.config
        found = {name: config.known(name) for name in names if name not in config.databases}
        return {name: each for name, each in found.items() if each is not None}

    def _change(self, databases: Mapping[str, Database]) -> None:
        """Databases of clusters come and go."""
        for name in databases.keys() - self.state.databases.keys():
            self._say(f"found the database {name}: it is backed up from now on")
        gone = self.state.databases.keys() - databases.keys()
        for name in sorted(gone):
            text = f"the database {name} is gone from its cluster: its backups stay, and are not pruned"
            self._say(text, "warning")
            self._teller.message(self.state.config.notify, f"backupd: {name} is gone", text)
            self._forget(name)
        if databases != self.state.databases:
            self.state.databases = dict(databases)
            self._plan()

    def _forget(self, database: str) -> None:
        self.metrics.forget(database)
        self.state.forget(database)

    def _plan(self) -> None:
        self.state.agenda.replace(plans(self.state.config, self.state.databases))
        for database, kind in self.state.agenda.plans:
            self.metrics.expect(database, kind)

    # ---- configuration

    def _load(self) -> Config:
        config = configuration.load(self.path, self.environ)
        config.load_signing_key()  # what every backup needs, missed now and not at three in the morning
        config.recipients()
        check_messages(config.notify)
        return config

    def _load_again(self) -> None:
        self.systemd.reloading()
        try:
            config = self._load()
        except ConfigError as error:
            console.show_error(self.style, error)
            self._say("the configuration was not changed: the one before goes on", "error")
            self.health.note("config", f"not read again, the one before goes on: {error.message}")
        else:
            self.health.note("config", None)
            self._doors.reload()
            self._say_what_needs_a_restart(config)
            before = set(self.state.databases)
            self.state.config = config
            self.runner.limit = config.daemon.jobs
            discovered = self._of_clusters(self.state.databases)
            self.state.databases = {**config.databases, **discovered}
            for name in before - self.state.databases.keys():
                self._forget(name)
            self._survey.begin_anew()  # what is being asked goes by the configuration before
            self._plan()
            self._wind_up()
            self._say(f"the configuration was read again, databases: {len(self.state.databases)}")
        self.systemd.tell("READY=1")

    def _say_what_needs_a_restart(self, config: Config) -> None:
        if config.server != self.state.config.server:
            self._say("[server] has changed, which takes effect when backupd is started again", "warning")

    # ---- signals and words

    @contextmanager
    def _signals(self) -> Iterator[socket.socket]:
        """Signals set flags, and wake whoever waits on the socket."""
        woken, waker = socket.socketpair()
        for each in (woken, waker):
            each.setblocking(False)
        before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        waking = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_end)
        signal.signal(signal.SIGHUP, self._on_reload)
        try:
            yield woken
        finally:
            signal.set_wakeup_fd(waking)
            for number, handler in before.items():
                signal.signal(number, handler)
            woken.close()
            waker.close()

    def _on_end(self, _number: int, _frame: object) -> None:
        self._hurry = self.state.stopping  # the second one
        self.state.stopping = True

    def _on_reload(self, _number: int, _frame: object) -> None:
        self._reload = True

    @staticmethod
    def _drain(woken: socket.socket) -> None:
        try:
            while woken.recv(1024):
                pass
        except BlockingIOError:
            return

    def _say(self, text: str, level: str = "info", job: Job | None = None, outcome: Outcome | None = None) -> None:
        fields: dict[str, object] = {}
        if job is not None:
            fields = {"database": job.database, "job": job.kind, "slot": times.iso(job.slot)}
            if self.style.log_format != "json":
                text = f"{job}: {text}"
        if outcome is not None:
            fields |= {"status": outcome.status, "seconds": round(outcome.seconds, 3)}
            fields |= {"backup": outcome.backup} if outcome.backup else {}
        console.say(self.style, text, level, fields)

    def _tell_status(self) -> None:
        agenda, now = self.state.agenda, times.now()
        found = {key: agenda.next_run(*key, now) for key in agenda.plans}
        self.state.next_runs = {key: moment for key, moment in found.items() if moment is not None}
        self.state.running = agenda.since
        self.state.steps = self.runner.steps
        running = ", ".join(str(job) for job in agenda.running) or "nothing"
        ahead = min(((moment, key) for key, moment in self.state.next_runs.items()), default=None)
        soon = f"{ahead[1][1]} of {ahead[1][0]}, {times.iso(ahead[0])}" if ahead else "nothing"
        text = f"runs {running}; next: {soon}"
        if text != self._status:
            self._status = text
            self.systemd.tell(f"STATUS={text}")
