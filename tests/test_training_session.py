"""Signals during a training run."""

from __future__ import annotations

import os
import signal
import threading

from regkit.training.session import stop_signals


def test_a_signal_is_noted_and_its_handler_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals() as received:
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_in_a_thread_leaves_signals_alone() -> None:
    found: list[object] = []

    def run() -> None:
        with stop_signals() as received:
            found.extend([signal.getsignal(signal.SIGTERM), list(received)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM), []]
