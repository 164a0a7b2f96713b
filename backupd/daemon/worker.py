"""What the process of one job does. It is forked from one that has imported everything, and ends with its job: so it
starts at once, its memory goes with it, and a signal ends it as it ends `backupd backup`."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import select
import signal
import traceback
from dataclasses import replace
from functools import partial
from multiprocessing import connection
from multiprocessing.connection import Connection
from threading import Lock, Thread

from backupd import console, jobs, signals
from backupd import verify as _verify  # noqa: F401  (so that all is imported before the fork)
from backupd.agenda import Job
from backupd.config import Config
from backupd.console import Style
from backupd.errors import BackupdError
from backupd.jobs import Outcome
from backupd.postgres import lifetime, tools
from backupd.progress import Step, Steps
from backupd.storage.connect import preload

preload()
lifetime.tied(signal.SIGTERM, [])  # asks setpriv what it knows, once for all jobs
_PR_SET_PDEATHSIG = 1  # prctl(2)
_PHASE = 500  # characters of its name that are told


def work(config: Config, job: Job, style: Style, programs: tools.Survey | None, answer: Connection) -> None:
    """Do the job, and send its outcome. `programs`: what the daemon found on this machine."""
    fields = {"database": job.database, "job": job.kind}
    speaking = Lock()
    try:
        signals.heed()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon, which lets its jobs finish
        _end_with_the_daemon()
        if programs is not None:
            tools.remember(config.postgres.bin_dirs, programs)
        outcome = jobs.perform(config, job, Steps(console.Log(style, fields), partial(_tell, answer, speaking)))
    except signals.Terminated as error:
        notes = "; ".join(getattr(error, "__notes__", []))
        outcome = Outcome(job, "interrupted", f"interrupted{f': {notes}' if notes else ''}")
    except Exception as error:  # noqa: BLE001  (the last resort: a bug, said as such)
        console.say(style, f"unexpected failure\n{traceback.format_exc()}", "error", fields)
        bug = BackupdError(f"unexpected failure: {type(error).__name__}", detail=str(error), hint="A bug in backupd.")
        outcome = Outcome(job, "failed", bug.message, error=bug.document())
    speaking.acquire(timeout=5)  # an interrupt may have come between a lock and its release
    answer.send(outcome)
    answer.close()


def _tell(answer: Connection, speaking: Lock, step: Step) -> None:
    """How far it is, unless the daemon does not listen just now: no job waits for that. What is shorter than PIPE_BUF
    is written at once where there is room at all: pipe(7)."""
    if speaking.acquire(blocking=False):
        try:
            if not answer.closed and select.select([], [answer], [], 0)[1]:
                answer.send(replace(step, phase=step.phase[:_PHASE]))
        except BrokenPipeError:  # the daemon is no more, of which _watch tells
            pass
        finally:
            speaking.release()


def _end_with_the_daemon() -> None:
    """Be told to end when the daemon is no more, or the process that we were forked from: nobody would know of us."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    daemon = multiprocessing.parent_process()
    assert daemon is not None
    Thread(target=_watch, args=(daemon.sentinel,), name="watch-daemon", daemon=True).start()


def _watch(sentinel: int) -> None:
    connection.wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
