"""The watchdog."""

from __future__ import annotations

import asyncio
import threading
import time

from ropd_jax.teacher import TeacherLoop
from ropd_jax.utils import tracing
from ropd_jax.utils.tracing import Timeline
from ropd_jax.workdir.watchdog import watching


def test_the_watchdog_writes_all_stacks_once_and_what_is_in_flight(tmp_path, caplog):
    async def asks():
        await hangs_for_ever()

    async def hangs_for_ever():
        await asyncio.Event().wait()

    with Timeline(tmp_path).recording() as line, TeacherLoop() as loop, watching(line, 0.2, tmp_path, loop.stacks):
        future = loop.submit(asks())
        with tracing.span("verify", step=3, group=5):
            end = time.monotonic() + 5
            while not list(tmp_path.glob("stacks_*.txt")) and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(0.4)
        future.cancel()
    (path,) = tmp_path.glob("stacks_*.txt")
    text = path.read_text()
    assert "verify step 3 group 5 for" in text
    assert (
        "thread MainThread" in text
        and "test_the_watchdog_writes" in text
        and "in asks" in text
        and "in hangs_for_ever" in text
    )
    assert "no progress for" in caplog.text and str(path) in caplog.text


def test_the_watchdog_is_quiet_while_anything_moves(tmp_path):
    before = threading.active_count()
    with Timeline(tmp_path).recording() as line, watching(line, 0.3, tmp_path):
        for _ in range(12):
            tracing.moved()
            time.sleep(0.05)
    assert not list(tmp_path.glob("stacks_*.txt")) and threading.active_count() == before
