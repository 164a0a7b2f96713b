"""Signals that ask us to end, as exceptions: whatever runs is cleaned up after, as after any failure.

Python may raise them between any two of its instructions. In the middle of its own locks, that would leave one locked
for ever, and whoever waits for it then waits for ever: there we put the signal off for a moment. And a signal that
comes just before a system call does not interrupt it: so another one follows soon.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from time import monotonic, sleep
from types import FrameType


class Terminated(KeyboardInterrupt):
    """A signal that asks us to end: cleaned up after, as any failure is."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


_PATIENCE = 10.0  # seconds in which cleaning up after a signal is not interrupted by another
_MOMENT = 0.02  # seconds until a signal that came at a bad moment comes again
_NUDGES = (0.02, 0.1, 0.5)  # seconds
_NUDGED = frozenset({*_ENDING, signal.SIGALRM})
_last_signal = 0.0
_put_off = 0  # the signal that comes again

_LIBRARY = Path(threading.__file__).parent
# Where Python takes locks, starts threads and processes, collects exit statuses and imports.
_LOCKING = (
    *(str(_LIBRARY / name) for name in ("threading.py", "queue.py", "subprocess.py")),
    *(f"{_LIBRARY / name}/" for name in ("concurrent", "logging")),
    "<frozen importlib",
)
_WAITING = str(_LIBRARY / "selectors.py")  # no lock is held there
_CONTEXTS = str(_LIBRARY / "contextlib.py")
_ENTERING = frozenset({"__enter__", "__exit__", "__init__"})


def _terminate(number: int, frame: FrameType | None) -> None:
    """Raise, in whatever the main thread does. Not for a second one that soon follows, since cleaning up must not be
    interrupted; but for a later one, as Python loses exceptions raised in a few places."""
    global _last_signal
    now, before = monotonic(), _last_signal
    if before and now - before <= _PATIENCE:
        return
    if frame is not None and _at_a_bad_moment(frame):
        _soon(number)
        return
    _last_signal = now
    raise Terminated(number)


def _at_a_bad_moment(frame: FrameType) -> bool:
    """Whether an exception here could leave a lock held, a process unknown, or what a `with` began without its end."""
    code = frame.f_code
    if code.co_filename == _WAITING:
        return False
    if code.co_filename == _CONTEXTS or code.co_name in _ENTERING:
        return True
    each: FrameType | None = frame
    while each is not None:
        if each.f_code.co_filename.startswith(_LOCKING):
            return True
        each = each.f_back
    return False


def _soon(number: int) -> None:
    """By a timer of the system's: to start a thread takes the very locks that may be held now."""
    global _put_off
    _put_off = number
    signal.signal(signal.SIGALRM, _come_again)
    signal.setitimer(signal.ITIMER_REAL, _MOMENT)


def _come_again(_: int, frame: FrameType | None) -> None:
    if signal.getsignal(_put_off) is _terminate:
        _terminate(_put_off, frame)
    else:  # somebody else heeds it by now
        os.kill(os.getpid(), _put_off)


def _again(lost: sys.UnraisableHookArgs) -> None:
    """Python drops what is raised in destructors and callbacks. Our end must not be dropped: the signal comes again."""
    if not isinstance(lost.exc_value, Terminated):
        sys.__unraisablehook__(lost)
        return
    global _last_signal
    _last_signal = 0.0
    _soon(lost.exc_value.number)


def _nudge(told: int) -> None:
    """Python notes a signal and heeds it between two instructions: what blocks by then has to be interrupted again."""
    main = threading.main_thread().ident
    while numbers := os.read(told, 64):
        if _NUDGED.isdisjoint(numbers):
            continue
        for pause in _NUDGES:
            sleep(pause)
            if main is not None:
                signal.pthread_kill(main, signal.SIGURG)


def heed() -> None:
    """From now on a signal that asks us to end raises Terminated in the main thread."""
    sys.unraisablehook = _again
    told, telling = os.pipe()
    os.set_blocking(telling, False)
    signal.signal(signal.SIGURG, lambda *_: None)
    signal.set_wakeup_fd(telling, warn_on_full_buffer=False)
    threading.Thread(target=_nudge, args=(told,), name="nudge", daemon=True).start()
    for each in _ENDING:
        if signal.getsignal(each) is not signal.SIG_IGN:  # as nohup and shells set it, for a reason
            signal.signal(each, _terminate)
