"""Signals: the first is a request, a second Ctrl-C exits, and a thread handles one that is not polled."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from ropd_jax.utils import interrupt
from ropd_jax.utils.interrupt import Interrupt, Interrupted


def test_the_first_signal_is_a_request_and_further_sigterms_change_nothing(monkeypatch):
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt().listening() as stop:
        stop.check()
        assert not stop.requested and stop.waited_s() is None
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert stop.requested and left == [] and stop.waited_s() >= 0
        with pytest.raises(Interrupted):
            stop.check()
        signal.raise_signal(signal.SIGINT)
        assert left == [130]
    assert signal.getsignal(signal.SIGTERM) is before and signal.set_wakeup_fd(-1) == -1


def test_a_request_that_nobody_looks_at_is_heard_by_a_thread_once(monkeypatch):
    monkeypatch.setattr(interrupt, "UNHEARD_S", 0.02)
    called, done = [], threading.Event()
    stop = Interrupt()
    stop.unheard = lambda: (called.append(threading.current_thread().name), done.set())
    with stop.listening():
        signal.raise_signal(signal.SIGTERM)
        assert done.wait(30)
        signal.raise_signal(signal.SIGTERM)
    assert called == ["signals"]


def test_a_request_that_is_looked_at_is_left_to_the_run(monkeypatch):
    monkeypatch.setattr(interrupt, "UNHEARD_S", 60.0)
    called = []
    stop = Interrupt()
    stop.unheard = lambda: called.append(1)
    with stop.listening():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):
            stop.check()
    assert called == []
