"""Spans, the chart of a run, and the watchdog. No jax."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest

from ropd_jax.analysis import timeline
from ropd_jax.cli.main import main as ropd
from ropd_jax.teacher import ChatReply, ChatRequest, TeacherLoop
from ropd_jax.teacher.traffic.tracing import ObservedClient
from ropd_jax.types import UserError
from ropd_jax.utils import tracing
from ropd_jax.utils.tracing import Span, Timeline, read_spans
from ropd_jax.workdir.watchdog import watching


def test_a_span_knows_its_step_and_group_in_the_threads_and_coroutines_below(tmp_path):
    class Client:
        async def chat(self, request):
            await asyncio.sleep(0.01)
            return ChatReply("ok")

    async def group(client, index):
        with tracing.about(group=index):
            await asyncio.gather(*(client.chat(ChatRequest(p, (), "m")) for p in ("rubric", "verify")))

    with Timeline(tmp_path).recording(), TeacherLoop() as loop, tracing.about(step=7):
        client = ObservedClient(Client(), tracing.span)
        for future in [loop.submit(group(client, i)) for i in range(3)]:
            future.result(5)
        with tracing.span("update"):
            pass
    found = read_spans(tmp_path)
    assert sorted((s.name, s.step, s.group) for s in found if s.group is not None) == sorted(
        (purpose, 7, i) for i in range(3) for purpose in ("rubric", "verify")
    )
    assert [(s.step, s.group) for s in found if s.name == "update"] == [(7, None)]
    assert all(s.end - s.start >= 0.009 for s in found if s.name != "update")


def test_without_a_timeline_nothing_is_kept():
    with tracing.span("update"):
        tracing.moved()


def test_a_resumed_run_cuts_the_steps_that_it_repeats_and_a_torn_line(tmp_path):
    with Timeline(tmp_path).recording():
        for step in range(4):
            with tracing.span("step", step=step):
                pass
    with open(tmp_path / "timeline.jsonl", "a") as f:
        f.write('{"name": "step", "st')
    with Timeline(tmp_path, start_step=2).recording(), tracing.span("step", step=2):
        pass
    assert [s.step for s in read_spans(tmp_path)] == [0, 1, 2]


def hand_made():
    """Two steps of 10 s: 4 sampling, 3 idle (rubric 1, verify 1.5, nothing 0.5), 2 update, 1 of the host's own."""
    rows = []
    for step in (0, 1):
        t = 100.0 + 10 * step
        rows += [Span("step", t, t + 10, step), Span("sample", t, t + 4, step), Span("prefill", t, t + 1, step),
                 Span("idle", t + 4, t + 7, step), Span("update", t + 7, t + 9, step)]  # fmt: skip
        rows += [Span("judged", t + 2, t + 6.5, step, 1), Span("rubric", t + 2, t + 5, step, 1),
                 Span("verify", t + 5, t + 6.5, step, 1), Span("judged", t + 2, t + 4, step, 0),
                 Span("verify", t + 2, t + 4, step, 0)]  # fmt: skip
    return rows


def test_shares_follow_the_last_group_of_each_step():
    found = timeline.shares(hand_made())
    assert (found.steps, found.seconds) == (2, pytest.approx(20))
    spent = dict(sample=0.4, idle=0.3, update=0.2, host=0.1, evaluate=0, checkpoint=0)
    assert found.spent == {name: pytest.approx(share) for name, share in spent.items()}
    roles = {"rubric": 0.1, "verify": 0.15, "between calls": 0.05}
    assert found.roles == {name: pytest.approx(share) for name, share in roles.items()}
    assert found.line("r") == (
        "r: waits for sampling; of 2 steps, 20.0 s: sampling 40%, the teacher 30% (verify 15%, rubric 10%, "
        "between calls 5%), the update 20%, the host's own work 10%"
    )


def test_work_beside_work_is_counted_once():
    rows = [Span("step", 0, 10, 0), Span("sample", 0, 10, 0), Span("update", 4, 6, 0), Span("update", 5, 8, 0)]
    assert timeline.shares(rows).spent == {"host": 0, "update": 0.4, "sample": 0.6, "evaluate": 0, "checkpoint": 0,
                                           "idle": 0}  # fmt: skip


def test_the_verb_draws_the_steps_asked_for(tmp_path, capsys):
    rows = [{k: v for k, v in vars(s).items() if v is not None} for s in hand_made()]
    (tmp_path / "timeline.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert ropd(["timeline", str(tmp_path), "--steps", "1:", "--out", str(tmp_path / "out")]) == 0
    assert "of 1 steps, 10.0 s: sampling 40%" in capsys.readouterr().out
    page = (tmp_path / "out" / "timeline.html").read_text()
    assert "step 1 group 1" in page and "step 0 group" not in page
    assert "<title>verify step 1 group 1: 1.500 s</title>" in page
    assert (tmp_path / "out" / "timeline.png").stat().st_size > 5_000
    assert ropd(["timeline", str(tmp_path), "--steps", "9:"]) == 2
    with pytest.raises(UserError, match="does not exist"):
        read_spans(tmp_path / "out")


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
    assert "nothing has moved for" in caplog.text and str(path) in caplog.text


def test_the_watchdog_is_quiet_while_anything_moves(tmp_path):
    before = threading.active_count()
    with Timeline(tmp_path).recording() as line, watching(line, 0.3, tmp_path):
        for _ in range(12):
            tracing.moved()
            time.sleep(0.05)
    assert not list(tmp_path.glob("stacks_*.txt")) and threading.active_count() == before
