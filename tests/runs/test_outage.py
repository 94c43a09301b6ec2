"""A run whose teacher is unreachable for a while: no group is lost, and the parameters equal an undisturbed run's.

The server is real and on loopback. It is closed in mid-run, so that connections are refused, and opened again on the
same port. Two minutes of it in virtual time: ``tests/teacher/traffic/test_outage.py``; in real time, with the waits
that users have: ``ROPD_OUTAGE_S=120 pytest tests/runs/test_outage.py -k without_the_outage``.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time

import pytest

from ropd_jax.teacher import OutageError
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.teacher.traffic import outage
from ropd_jax.train import train
from ropd_jax.utils.interrupt import Interrupted
from tests.helpers import serving, trees_max_diff
from tests.runs.test_train import finished_params, groups_of, tiny_config

OUTAGE_S = float(os.environ.get("ROPD_OUTAGE_S", "1.5"))


class ComesAndGoes:
    """The scripted teacher behind a port that is open between `open` and `close`."""

    def __init__(self):
        self.calls, self._server = 0, None
        self.open(port=0)

    def open(self, port=None):
        self._server = serving(self, port=self.port if port is None else port)
        address = self._server.__enter__()
        self.port = int(address.rpartition(":")[2])

    def close(self):
        if self._server is not None:
            self._server.__exit__(None, None, None)
        self._server = None

    async def begin(self, request):
        self.calls += 1
        return await ScriptedClient(latency_s=0.02).begin(request)

    def reply(self, request):
        return ScriptedClient().reply(request)


@pytest.fixture
def server():
    server = ComesAndGoes()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    """The same waits, a hundred times shorter, unless a long outage was requested."""
    if OUTAGE_S > 10:
        return
    monkeypatch.setattr(outage, "_FIRST_POLL_S", 0.05)
    monkeypatch.setattr(outage, "_LONGEST_POLL_S", 0.1)
    monkeypatch.setattr(outage, "_REPORT_EVERY_S", 0.2)


def config(server, **changes):
    return tiny_config(
        teacher__provider="openai", teacher__base_url=f"http://127.0.0.1:{server.port}/v1",
        teacher__max_wait_s=0.05, **changes,
    )  # fmt: skip


def wait_for_line(caplog):
    while not any(r.name == outage.__name__ for r in list(caplog.records)):
        time.sleep(0.01)


def goes_away(server, after_calls, caplog=None, seconds=0.0):
    """Closes the server when it has had so many calls, and opens it ``seconds`` after the run has noticed; never
    without ``caplog``. Gives the thread."""

    def run():
        while server.calls < after_calls:
            time.sleep(0.001)
        server.close()
        if caplog is not None:
            wait_for_line(caplog)
            time.sleep(seconds)
            server.open()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_run_waits_for_its_teacher_and_ends_as_without_the_outage(server, tmp_path, caplog):
    train(config(server), tmp_path / "quiet")
    calls = server.calls
    server.calls = 0
    caplog.clear()
    away = goes_away(server, calls // 2, caplog, OUTAGE_S)
    result = train(config(server), tmp_path / "run")
    away.join()
    assert trees_max_diff(finished_params(tmp_path / "run", 2), finished_params(tmp_path / "quiet", 2)) == 0.0
    assert groups_of(tmp_path / "run") == groups_of(tmp_path / "quiet")
    assert result["groups_unscored"] == 0
    lines = [r.getMessage() for r in caplog.records if r.name == outage.__name__]
    assert any("has been unreachable since" in line and "cannot reach http://127.0.0.1" in line for line in lines)
    assert any("answers again" in line for line in lines)


def test_ctrl_c_while_it_waits_saves_and_ends_at_once(server, tmp_path, caplog):
    caplog.set_level(logging.WARNING, outage.__name__)
    away = goes_away(server, 30)

    def press():
        wait_for_line(caplog)
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    pressed = []
    user = threading.Thread(target=press)
    user.start()
    with pytest.raises(Interrupted):
        train(config(server), tmp_path / "run")
    took = time.monotonic() - pressed[0]
    away.join()
    user.join()
    assert took < 10.0 and "saved a checkpoint after step" in caplog.text
    server.open()
    train(config(server), tmp_path / "run")  # the same command continues
    assert (tmp_path / "run" / "result.json").exists()


def test_after_the_longest_wait_the_run_is_saved_and_loses_no_group(server, tmp_path):
    away = goes_away(server, 30)
    with pytest.raises(OutageError, match=r"teacher\.outage_wait_s=1"):
        train(config(server, teacher__outage_wait_s=1.0), tmp_path / "run")
    away.join()
    server.open()
    result = train(config(server, teacher__outage_wait_s=2.0), tmp_path / "run")
    assert result["groups_unscored"] == 0
