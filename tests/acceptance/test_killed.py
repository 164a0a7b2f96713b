"""Backups whose dump program, server, storage or own process is killed, at moments spread from their first to their
last request to the storage, each chosen by that request and not by the clock.

What must hold afterwards, whoever died and whenever: no backup is listed unless it is whole, nothing runs on or
keeps a lock, an orderly failure leaves nothing in the storage, and the next backup works.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import psycopg
import pytest

from backupd.errors import StorageError
from backupd.postgres.server import FAST, ThrowawayServer
from backupd.postgres.tools import choose_server, find_installations
from backupd.storage.s3 import S3Storage
from tests.faulty_proxy import Fault, FaultyProxy, Rule, Seen
from tests.postgres import drop_database
from tests.seaweed import SeaweedServer
from tests.site import Site, s3_site
from tests.watch import committed, eventually, left_behind, programs_on, sessions

MOMENTS = int(os.environ.get("BACKUPD_TEST_MOMENTS", "3"))  # of a backup; `make test-large` tries ten
DATABASE = "killed"
# Megabytes of random bytes; pg_dump writes twice as much. Large ones have streams of their own, the first one
# of several parts.
TABLES = {"first": 10, "second": 5, "third": 4, "small": 1}
RUN_SECONDS = 150.0
ATTEMPTS = 6  # what the storage gives a request
WRITES = ("Put", "CreateUpload", "UploadPart", "Complete")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayServer]:
    """A server of our own, to be killed."""
    installation = choose_server(find_installations(), None)
    folder = tmp_path_factory.mktemp("killed") / "server"
    with ThrowawayServer(installation, folder, port=0, settings=FAST) as running:
        with psycopg.connect(running.dsn(), autocommit=True) as connection:
            connection.execute(f"create database {DATABASE}")
        _fill(running.dsn(DATABASE))
        yield running


def _fill(dsn: str) -> None:
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        for name, megabytes in TABLES.items():
            cursor.execute(f"create table {name} (id int primary key, data bytea)")
            cursor.execute(f"alter table {name} alter data set storage external")
            with cursor.copy(f"copy {name} from stdin (format binary)") as copy:
                copy.set_types(["int4", "bytea"])
                for number in range(megabytes * 4):
                    copy.write_row((number, os.urandom(250_000)))


def content(dsn: str) -> list[tuple[object, ...]]:
    """Equal for databases with equal rows."""
    query = " union all ".join(
        f"select '{name}', count(*), sum(hashtextextended(encode(data, 'hex'), id)) from {name}" for name in TABLES
    )
    with psycopg.connect(dsn) as connection:
        return sorted(connection.execute(query).fetchall())


@dataclass
class Place:
    """A repository behind a proxy, and the site that backs up to it."""

    site: Site
    proxy: FaultyProxy
    storage: S3Storage  # past the proxy
    server: ThrowawayServer

    def run(self, rule: Rule) -> Run:
        with self.start(rule) as run:
            return run.finish()

    @contextmanager
    def start(self, rule: Rule) -> Iterator[Run]:
        before = committed(self.storage, DATABASE)
        left = set(left_behind(self.storage, DATABASE))
        self.proxy.rule = rule
        process = self.site.start("backup", "--jobs", "2")
        try:
            yield Run(self, process, before, left)
        finally:
            process.kill()
            process.communicate()

    def serves(self) -> bool:
        """Whether the store hands out what it has: after a start its gateway answers before its volumes are known."""
        try:
            self.storage.read("backupd.json")
        except StorageError:
            return False
        return True

    def backup_and_restore(self) -> None:
        """The next backup works, is listed with those before it alone, and restores."""
        known = committed(self.storage, DATABASE)
        (made,) = self.site.run("backup", "--json").json
        assert {row["id"] for row in self.site.backups(DATABASE)} == known | {made["id"]}
        self.site.run("restore", DATABASE, "--at", "latest", "--into", "restored", "--yes")
        try:
            assert content(self.server.dsn("restored")) == content(self.server.dsn(DATABASE))
        finally:
            drop_database(self.server, "restored")


@dataclass
class Run:
    """One backup under way, and how it ended."""

    place: Place
    process: subprocess.Popen[str]
    before: set[str]  # committed backups
    left: set[str]  # what these own, and what killed ones left
    errors: str = ""

    def finish(self) -> Run:
        _, self.errors = self.process.communicate(timeout=RUN_SECONDS)
        self.place.proxy.rule = lambda _: None
        assert "Traceback" not in self.errors, self.errors
        return self

    @property
    def code(self) -> int:
        return self.process.returncode

    @property
    def made(self) -> set[str]:
        return committed(self.place.storage, DATABASE) - self.before

    def leaves_nothing_running(self) -> None:
        assert eventually(lambda: not programs_on(DATABASE)), f"programs run on: {programs_on(DATABASE)}"
        dsn = self.place.server.dsn()
        assert eventually(lambda: not sessions(dsn, DATABASE)), sessions(dsn, DATABASE)

    def leaves_nothing_stored(self) -> None:
        """Of this run, unless it made a backup."""
        new = set(left_behind(self.place.storage, DATABASE)) - self.left
        assert [key for key in new if not any(made in key for made in self.made)] == [], self.errors

    def stays_only_if_complete(self) -> None:
        """After an interrupt there is no backup, or one that was whole by then, which is said, and it restores."""
        for made in self.made:
            assert f"Backup {made} was complete by then, and stays." in self.errors
            self.place.site.run("restore", DATABASE, "--at", made, "--dry-run")

    def clears_away(self, code: int) -> None:
        """Ended with `code` after an orderly failure, or with a backup and success; nothing else."""
        assert self.code == (0 if self.made else code), f"exit {self.code}, made {self.made}\n{self.errors}"
        self.leaves_nothing_running()
        self.leaves_nothing_stored()


@dataclass
class At:
    """A proxy's rule: at request `number` (from 0), before it is passed on, do something, once."""

    number: int
    act: Callable[[], object]
    count: int = 0
    trouble: list[BaseException] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, _: Seen) -> None:
        with self.lock:
            due, self.count = self.count == self.number, self.count + 1
        if due:
            try:
                self.act()
            except BaseException as error:  # noqa: BLE001  (the proxy would swallow it)
                self.trouble.append(error)


@contextmanager
def _place(
    s3: SeaweedServer, bucket: str, server: ThrowawayServer, folder: Path, name: str = "prod"
) -> Iterator[Place]:
    """In a repository called `name`, in that bucket."""
    site = s3_site(folder, s3, bucket, {DATABASE: server.dsn(DATABASE)})
    site.edit(lambda text: text.replace(f"s3://{bucket}/prod", f"s3://{bucket}/{name}"))
    site.set("large_table_size", '"4MiB"', table="defaults")
    with FaultyProxy(("127.0.0.1", s3.port)) as proxy:
        site.edit(lambda text: text.replace(s3.endpoint, proxy.endpoint))
        storage = S3Storage(bucket, name, s3.settings())
        try:
            yield Place(site, proxy, storage, server)
        finally:
            storage.close()


@pytest.fixture(scope="module")
def place(
    s3_server: SeaweedServer, server: ThrowawayServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    with _place(s3_server, s3_server.new_bucket(), server, tmp_path_factory.mktemp("place")) as made:
        yield made


def spread(numbers: range) -> list[int]:
    """Some of them, evenly, the first and the last among them."""
    return [numbers[round(step * (len(numbers) - 1) / (MOMENTS - 1))] for step in range(MOMENTS)]


@pytest.fixture(scope="module")
def requests(place: Place) -> int:
    """How many requests an undisturbed backup makes of the storage."""
    place.site.run("backup")  # makes the marker, which later runs find
    rule = At(-1, lambda: None)
    run = place.run(rule)
    assert run.code == 0, run.errors
    assert rule.count > MOMENTS, "too few requests to choose moments from"
    return rule.count


class Sniper:
    """Kills one pg_dump when all that ran so far have written so many bytes together."""

    def __init__(self, number: signal.Signals, size: int) -> None:
        self._number = number
        self._size = size
        self._written: dict[int, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.killed = False

    def __enter__(self) -> Sniper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not (self.killed or self._over.wait(0.004)):
            for pid in programs_on(DATABASE, "pg_dump"):
                with suppress(OSError):  # it is done
                    text = Path(f"/proc/{pid}/io").read_text()
                    self._written[pid] = int(text.partition("wchar: ")[2].split()[0])
                    if sum(self._written.values()) >= self._size:
                        os.kill(pid, self._number)
                        self.killed = True
                        return


@pytest.mark.large
def test_killed_dump_program(place: Place) -> None:
    failed = 0
    numbers = cycle((signal.SIGKILL, signal.SIGTERM))
    whole = 2 * sum(TABLES.values()) * 1_000_000  # what they write: bytes as hexadecimal digits
    for size in spread(range(whole * 95 // 100)):
        with Sniper(next(numbers), size) as sniper:
            run = place.run(lambda _: None)
        run.clears_away(code=6)
        if run.code:
            assert sniper.killed
            failed += 1
            assert "pg_dump" in run.errors
    assert failed >= MOMENTS - 3  # now and then it is done just before it is killed
    place.backup_and_restore()


def test_killed_server(place: Place, requests: int) -> None:
    failed = 0
    for moment in spread(range(requests)):
        rule = At(moment, place.server.kill)
        run = place.run(rule)
        place.server.start()
        assert not rule.trouble
        run.clears_away(code=6)
        failed += run.code != 0
    assert failed >= MOMENTS - 3  # at the last requests PostgreSQL is not needed any more
    place.backup_and_restore()


def test_interrupted_backup(place: Place, requests: int) -> None:
    signals = cycle((signal.SIGTERM, signal.SIGINT))
    for moment in spread(range(requests)):
        number = next(signals)
        run = _signalled(place, moment, number)
        run.stays_only_if_complete()
        run.leaves_nothing_running()
        run.leaves_nothing_stored()
        assert run.code == 128 + number, f"request {moment} never came"
    place.backup_and_restore()


def test_killed_backup(place: Place, requests: int) -> None:
    """SIGKILL leaves objects behind, but nothing that runs and no backup that is not whole."""
    for moment in spread(range(requests)):
        run = _signalled(place, moment, signal.SIGKILL)
        assert run.code == -signal.SIGKILL
        run.leaves_nothing_running()
        if run.made:  # it died waiting for the answer to the request that makes the backup exist
            assert moment == requests - 1
        for made in run.made:
            place.site.run("restore", DATABASE, "--at", made, "--dry-run")
    place.backup_and_restore()


def _signalled(place: Place, moment: int, number: signal.Signals) -> Run:
    started: list[Run] = []
    rule = At(moment, lambda: started[0].process.send_signal(number))
    with place.start(rule) as run:
        started.append(run)
        run.finish()
    assert not rule.trouble
    return run


@pytest.mark.large
def test_impatient_interrupts(place: Place, requests: int) -> None:
    """A second Ctrl-C, or systemd's SIGTERM after it, must not stop the clearing away."""
    for moment in spread(range(requests))[2::3]:
        started: list[Run] = []

        def interrupt(runs: list[Run] = started) -> None:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                runs[0].process.send_signal(number)

        first = At(moment, interrupt)

        def rule(seen: Seen, first: At = first, interrupt: Callable[[], None] = interrupt) -> None:
            first(seen)
            if first.count > first.number and seen.operation in ("Abort", "DeleteBatch", "List"):
                interrupt()

        with place.start(rule) as run:
            started.append(run)
            run.finish()
        assert not first.trouble
        assert run.code in (130, 143)
        run.stays_only_if_complete()
        run.leaves_nothing_running()
        run.leaves_nothing_stored()


def test_interrupted_while_the_backup_is_committed(place: Place, requests: int) -> None:
    """The write that makes the backup exist is slow, and its program is told to end: it waits for the write, and then
    the backup exists and stays, with its data."""
    started: list[Run] = []
    deletes: list[Seen] = []
    clearing, waited = threading.Event(), threading.Event()

    def rule(seen: Seen) -> None:
        if seen.operation == "Put" and "/manifests/" in seen.path:
            started[0].process.send_signal(signal.SIGTERM)
            clearing.wait(2)  # nothing is to come before this request is answered: hence a limit
            waited.set()
        elif seen.operation == "DeleteBatch":
            deletes.append(seen)
            if len(deletes) > 1:  # the first, of the manifest, is answered
                clearing.set()

    with place.start(rule) as run:
        started.append(run)
        run.finish()
    assert waited.is_set()
    assert run.code == 143
    run.stays_only_if_complete()
    assert len(run.made) == 1
    assert deletes == []
    run.leaves_nothing_stored()


def test_storage_refuses_writes(place: Place, requests: int) -> None:
    """A quota or a policy that strikes in mid-run: what was stored can still be removed, and is."""
    for moment in spread(range(requests))[::3]:
        full = At(moment, lambda: None)

        def refuse(seen: Seen, full: At = full) -> Fault | None:
            full(seen)
            return Fault(403, "AccessDenied") if full.count > full.number and seen.operation in WRITES else None

        run = place.run(refuse)
        run.clears_away(code=5)
        assert run.code == 5
        assert "AccessDenied" in run.errors
    place.backup_and_restore()


class Outage:
    """A proxy's rule: from request `number` on nobody answers, until one request was tried as often as can be."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._count = 0
        self._tries: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._over = False
        self.began = threading.Event()

    def __call__(self, seen: Seen) -> Fault | None:
        with self._lock:
            self._count += 1
            if self._count <= self._number or self._over:
                return None
            self.began.set()
            self._tries[f"{seen.method} {seen.path}"] += 1
            self._over = max(self._tries.values()) == ATTEMPTS
            return Fault(drop=True)


@pytest.mark.large
def test_dead_storage(s3_server: SeaweedServer, requests: int, server: ThrowawayServer, tmp_path: Path) -> None:
    """Outages, each of a proxy's own, that last until backupd gives up, and a store that is really killed and
    stays dead. All at the same time: such a run spends it waiting between attempts."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="killed-")))
        mortal = stack.enter_context(SeaweedServer(folder))
        dead = stack.enter_context(_place(mortal, mortal.new_bucket(), server, tmp_path / "mortal"))
        dead.site.run("backup")
        death = At(requests // 2, mortal.kill)
        killed = stack.enter_context(dead.start(death))
        runs = []
        bucket = s3_server.new_bucket()
        for index, moment in enumerate(spread(range(requests))):
            name = f"outage-{index}"
            where = stack.enter_context(_place(s3_server, bucket, server, tmp_path / name, name))
            outage = Outage(moment)
            runs.append(stack.enter_context(where.start(outage)))
            assert outage.began.wait(RUN_SECONDS), runs[-1].process.poll()
        for run in runs:
            run.finish()
        for run in runs:
            assert run.code == 5, run.errors
            run.clears_away(code=5)
        killed.finish()
        assert killed.code == 5, killed.errors
        assert "could not be removed" in killed.errors
        assert not death.trouble
        mortal.restart()
        assert eventually(dead.serves, 60)
        assert killed.made == set()
        killed.leaves_nothing_running()
        dead.backup_and_restore()
