"""Stopping a run from outside: SIGTERM, which schedulers send before they kill, and Ctrl-C ask it to save and leave."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_log = logging.getLogger(__name__)


class Stopped(Exception):
    """Work was broken off because a signal asked for it."""


@dataclass
class StopRequest:
    """The request to stop, which a signal handler notes and the loop reads between steps."""

    signal: int = 0  #: number of the signal that asked; 0: none did

    def agreed(self, step: int, every: int) -> bool:
        """Whether to stop after ``step``.

        Signals reach processes of a job at different times, but all must stop at the same step, since every step is
        one program of all of them.  So they exchange their requests, at intervals because that costs time.

        Args:
            step: the step that was just done, the same on every process.
            every: number of steps between two exchanges of several processes.
        """
        if jax.process_count() == 1:
            return self.signal != 0
        if step % every:
            return False
        self.signal = int(np.max(multihost_utils.process_allgather(np.int32(self.signal))))
        return self.signal != 0

    def at_once(self) -> bool:
        """Whether to stop before the next step, which this process may do if it is the only one."""
        return self.signal != 0 and jax.process_count() == 1

    def break_off(self, done: int, total: int) -> None:
        """Raise `Stopped` if a signal came; a progress callback for an evaluation.

        Several processes finish their evaluation, as the others would wait for one that leaves.
        """
        if self.at_once():
            raise Stopped(f"after {done} of {total}")


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Note the first SIGTERM or Ctrl-C that comes inside; a second one acts as it would have without this."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
        yield request
        return
    # The program that called `train` may have its own handlers.
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: FrameType | None) -> None:
        restore()
        request.signal = number
        _log.warning("%s: stopping after this step; once more to stop at once", signal.Signals(number).name)

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
