"""Spans of a run."""

from __future__ import annotations

import asyncio

from ropd_jax.teacher import ChatReply, ChatRequest, TeacherLoop
from ropd_jax.teacher.traffic.tracing import ObservedClient
from ropd_jax.utils import tracing
from ropd_jax.utils.tracing import Timeline, read_spans


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
