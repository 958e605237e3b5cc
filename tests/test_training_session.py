"""Signals during a training run."""

from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace

import pytest

from regkit.training import session
from regkit.training.session import stop_signals


def test_a_signal_is_noted_and_its_handler_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals() as received:
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_who_asks_twice_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: now))
    with pytest.raises(KeyboardInterrupt), stop_signals() as received:
        os.kill(os.getpid(), signal.SIGINT)
        now += 0.5  # one that torchrun passes on
        os.kill(os.getpid(), signal.SIGINT)
        now += 1
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGINT, signal.SIGINT, signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")
    assert len(received) == 3


def test_a_run_in_a_thread_leaves_signals_alone() -> None:
    found: list[object] = []

    def run() -> None:
        with stop_signals() as received:
            found.extend([signal.getsignal(signal.SIGTERM), list(received)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM), []]
