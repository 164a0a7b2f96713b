"""A signal that asks us to end may come at any instruction: we end, and nobody waits for a lock that nobody holds."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

ROUNDS = 400
WITHIN = 0.003  # seconds after its start, a process gets the signal: about as long as its work takes
SECONDS = 20

# Each round in a process of its own: it says that it begins, and ends by the signal, whenever that comes.
CHILD = f"""
import os, sys, time
from backupd import signals
from backupd.postgres import workers
from backupd.postgres.process import Running

def task():
    time.sleep(0.0002)

for _ in range({ROUNDS}):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signals.heed()
            os.write(1, b"%d\\n" % os.getpid())
            for _ in range(3):
                workers.run([task] * 3, 2, Running(), beside=task)
            time.sleep({SECONDS})
        except signals.Terminated:
            code = 0
        os._exit(code)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(f"{{child}} did not end as it should")
"""


@pytest.mark.timeout(120)
def test_a_signal_at_any_moment_ends_the_work() -> None:
    """Python's own locks (of thread pools, futures, semaphores) were left locked by the exception, once in a few
    hundred: the threads then waited for them for ever, and we for the threads."""
    chance = random.Random(5)
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, start_new_session=True)
    rounds = 0
    try:
        assert process.stdout is not None
        for line in process.stdout:
            time.sleep(chance.uniform(0, WITHIN))  # any moment will do
            os.kill(int(line), signal.SIGTERM)
            rounds += 1
        assert process.wait(SECONDS) == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert rounds == ROUNDS


LATE = """
import os, signal, threading, time
from backupd import signals

signals.heed()

def late():
    time.sleep(0.2)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

threading.Thread(target=late).start()
try:
    os.read(os.pipe()[0], 1)
except signals.Terminated:
    print("ended")
"""


def test_a_signal_that_interrupts_no_system_call_ends_it_all_the_same() -> None:
    """It came just before the call, or another thread took it: Python noted it, and would heed it after the call."""
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
