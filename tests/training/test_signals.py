"""Signals that ask a run to stop."""

import os
import signal
import threading

import pytest

from jaxdet.training.signals import Stopped, stop_on_signal


def test_the_second_signal_acts_as_usual_and_handlers_come_back(request: pytest.FixtureRequest) -> None:
    # A shell that starts this in the background has the signal ignored, which is then what is usual.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, inherited))
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stopped):
            stop.break_off(1, 2)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_no_handler_is_set() -> None:
    requests = []

    def work() -> None:
        with stop_on_signal() as stop:
            requests.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert requests[0].signal == 0
