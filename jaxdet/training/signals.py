"""Stopping a run from outside: SIGTERM and Ctrl-C ask it to save and leave."""

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
    """Which signal asked for the end, 0 if none did."""

    signal: int = 0

    def agreed(self, step: int, every: int) -> bool:
        """Whether to stop after ``step``.  Several processes must stop at the same one: they ask each other at times.

        Args:
            step: the step that was just done, the same on every process.
            every: several processes compare notes after each so many steps.
        """
        if jax.process_count() == 1:
            return self.signal != 0
        if step % every:
            return False
        self.signal = int(np.max(multihost_utils.process_allgather(np.int32(self.signal))))
        return self.signal != 0

    def break_off(self, done: int, total: int) -> None:
        """A progress callback that raises `Stopped`.  Several processes go on, as they wait for each other."""
        if self.signal and jax.process_count() == 1:
            raise Stopped(f"after {done} of {total}")


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Inside, the first SIGTERM or Ctrl-C is only noted; a second one acts as usual."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers there alone
        yield request
        return
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
