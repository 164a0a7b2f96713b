"""Signals that ask us to end, as exceptions: whatever runs is cleaned up after, as after any failure."""

from __future__ import annotations

import os
import signal
import sys
from threading import Timer
from time import monotonic
from types import FrameType


class Terminated(KeyboardInterrupt):
    """A signal that asks us to end: cleaned up after, as any failure is."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


_PATIENCE = 10.0  # seconds in which cleaning up after a signal is not interrupted by another
_MOMENT = 0.05  # seconds, in which the main thread leaves the destructor
_last_signal = 0.0


def _terminate(number: int, _frame: FrameType | None) -> None:
    """Raise, in whatever the main thread does. Not for a second one that soon follows, since cleaning up must not be
    interrupted; but for a later one, as Python loses exceptions raised in a few places."""
    global _last_signal
    now, before = monotonic(), _last_signal
    if not before or now - before > _PATIENCE:
        _last_signal = now
        raise Terminated(number)


def _again(lost: sys.UnraisableHookArgs) -> None:
    """Python drops what is raised in destructors and callbacks. Our end must not be dropped: the signal comes again."""
    if not isinstance(lost.exc_value, Terminated):
        sys.__unraisablehook__(lost)
        return
    global _last_signal
    _last_signal = 0.0
    resend = Timer(_MOMENT, os.kill, [os.getpid(), lost.exc_value.number])
    resend.daemon = True
    resend.start()


def heed() -> None:
    """From now on a signal that asks us to end raises Terminated in the main thread."""
    sys.unraisablehook = _again
    for each in _ENDING:
        if signal.getsignal(each) is not signal.SIG_IGN:  # as nohup and shells set it, for a reason
            signal.signal(each, _terminate)
