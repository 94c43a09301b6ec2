"""Whole runs in a stream: the same update, steps that overlap, and chaos.

A teacher that stalls, a group that never answers, a slow one, SIGTERM in the middle: the step ends, says what it left
out, and the run continues.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import signal

import pytest

from ropd_jax.analysis.timeline import shares
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.train import train
from ropd_jax.utils.interrupt import Interrupted
from ropd_jax.utils.tracing import read_spans
from ropd_jax.workdir.checkpoint import Checkpoints
from tests.helpers import restore_raw, trees_max_diff
from tests.runs.test_train import finished_params, groups_of, tiny_config

STREAM = dict(stream__groups=2, steps=2)


@pytest.fixture
def before_call(monkeypatch):
    """Sets a coroutine function of (purpose, its number in the run) that the scripted teacher awaits first."""
    real, counts, hooks = ScriptedClient.chat, collections.Counter(), []

    async def chat(self, request):
        number = counts[request.purpose]
        counts[request.purpose] += 1
        for hook in hooks:
            await hook(request.purpose, number)
        return await real(self, request)

    monkeypatch.setattr(ScriptedClient, "chat", chat)
    return hooks.append


def metrics_of(workdir):
    """All metrics of each step, merged."""
    rows: dict = {}
    for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        rows.setdefault(row["step"], {}).update(row)
    return rows


def stopping(step, answer):
    """Sends SIGTERM when the answers of the step come to be verified for the ``answer``-th time; (hook, was it so)."""
    sent = []

    async def terminate(purpose, number):
        if not sent and purpose == "verify" and number == 4 * step + answer:
            sent.append(step)
            os.kill(os.getpid(), signal.SIGTERM)

    return terminate, sent


# ---------------------------------------------------------------------------------------------------- the same update


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("streamed") / "run"
    train(tiny_config(**STREAM), workdir)
    return workdir


def test_a_streamed_run_learns_what_a_whole_one_does(streamed, tmp_path):
    train(tiny_config(steps=2), tmp_path / "run")
    one, other = (metrics_of(run)[1] for run in (tmp_path / "run", streamed))
    for key in ("update/loss", "update/entropy", "update/grad_norm", "update/tokens", "update/clip_frac"):
        assert other[key] == pytest.approx(one[key], abs=1e-5)
    assert other["update/logp_gap_max"] < 1e-4  # still strictly on-policy
    difference = trees_max_diff(*(finished_params(run, 2)["params"] for run in (tmp_path / "run", streamed)))
    assert 0.0 < difference < 1e-4


def test_a_slow_teacher_and_sigterm_in_the_middle_of_a_stream_change_no_bit(streamed, before_call, tmp_path, caplog):
    hook, sent = stopping(1, 2)
    before_call(hook)
    cfg = tiny_config(**STREAM, teacher__scripted__latency_s=0.25)
    with pytest.raises(Interrupted):
        train(cfg, tmp_path / "run")
    assert sent and "saved a checkpoint after step 1" in caplog.text
    train(cfg, tmp_path / "run")
    assert trees_max_diff(finished_params(tmp_path / "run", 2), finished_params(streamed, 2)) == 0.0
    assert groups_of(tmp_path / "run") == groups_of(streamed)
    spans = read_spans(tmp_path / "run")
    for step in range(2):
        assert {s.name for s in spans if s.step == step} >= {
            "step", "sample", "prefill", "reference", "rubric", "verify", "judged", "update", "checkpoint",
        }  # fmt: skip
        assert {s.group for s in spans if s.step == step and s.name == "verify"} == {0, 1, 2, 3}
    assert "idle" in {s.name for s in spans}  # in one of the steps: in the other the compiler can fill the wait
    found = shares(spans)
    assert found.steps == 2 and sum(found.spent.values()) == pytest.approx(1.0)


def test_staleness_one_goes_on_bit_for_bit_and_says_how_far_off_policy_it_is(before_call, tmp_path):
    cfg = tiny_config(stream__staleness=1, stream__groups=2, steps=3, optim__lr=1e-3)
    train(cfg, tmp_path / "whole")
    rows = metrics_of(tmp_path / "whole")
    assert rows[1]["update/logp_gap_max"] < 1e-4  # the first step has no policy before it
    assert min(rows[step]["update/logp_gap_max"] for step in (2, 3)) > 1e-4
    assert "update/capped_frac" in rows[2] and "update/clip_frac" not in rows[2]
    hook, sent = stopping(3 + 1, 0)  # the second step of the second run
    before_call(hook)
    with pytest.raises(Interrupted):
        train(cfg, tmp_path / "run")
    assert sent
    train(cfg, tmp_path / "run")
    assert trees_max_diff(finished_params(tmp_path / "run", 3), finished_params(tmp_path / "whole", 3)) == 0.0
    assert groups_of(tmp_path / "run") == groups_of(tmp_path / "whole")
    assert metrics_of(tmp_path / "run").keys() == rows.keys()


# ---------------------------------------------------------------------------------------------------------- chaos


def test_a_teacher_that_stalls_is_waited_for_and_the_watchdog_says_where_it_stands(before_call, tmp_path, caplog):
    async def stall(purpose, number):
        if purpose == "rubric" and number >= 4:  # all of the second step
            await asyncio.sleep(2.5)

    before_call(stall)
    train(tiny_config(**STREAM, log__watchdog_s=0.8), tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["groups_total"], result["groups_unscored"]) == (8, 0)
    texts = [path.read_text() for path in (tmp_path / "run").glob("stacks_*.txt")]
    stalled = [text for text in texts if "rubric step 1 group" in text]
    assert stalled and "stall" in stalled[0] and "judge_step" in stalled[0]  # the coroutine and the main thread
    assert "no progress for" in caplog.text


def test_a_group_that_never_answers_is_left_out_by_name_and_the_step_ends(before_call, tmp_path, caplog):
    async def never(purpose, number):
        if purpose == "verify" and number == 1:
            await asyncio.Event().wait()

    before_call(never)
    cfg = tiny_config(**STREAM | dict(steps=1), teacher__timeout_s=3.0, teacher__attempts=1)
    train(cfg, tmp_path / "run")
    groups = groups_of(tmp_path / "run")
    (lost,) = [g for g in groups if all(a["reward"] is None for a in g["answers"])]
    assert {a["unscored"] for a in lost["answers"]} == {"timeout"} and len(groups) == 4
    assert f"step 0: 1 of 4 groups have no score and are left out (timeout 4): {lost['prompt_id']}" in caplog.text
    row = metrics_of(tmp_path / "run")[1]
    assert row["teacher/unscored_frac"] == 0.25 and row["update/count"] == 1 and row["reward/unscored_timeout"] == 4


def test_a_slow_group_is_carried_over_through_a_stop_and_counted_once(before_call, tmp_path, caplog):
    slow = [True]

    async def dawdle(purpose, number):
        if slow and purpose == "verify" and number == 3:
            await asyncio.sleep(600.0)

    hook, sent = stopping(1, 2)  # while the slow group of the first step is waited for
    before_call(dawdle)
    before_call(hook)
    how = dict(stream__deterministic=False, stream__straggler_timeout_s=2.0, teacher__timeout_s=900.0, optim__lr=1e-3)
    cfg = tiny_config(**STREAM, **how)
    with pytest.raises(Interrupted):
        train(cfg, tmp_path / "run")
    assert sent
    assert "step 0: 1 groups are not judged yet and are deferred to step 1" in caplog.text
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=9)
    _, host = restore_raw(checkpoints, 1)
    assert len(host["carried"]) == 1 and host["groups_total"] == 3
    slow.clear()
    train(cfg, tmp_path / "run")
    groups = groups_of(tmp_path / "run")
    assert sorted(g["step"] for g in groups) == [0] * 4 + [1] * 4  # nothing is dropped because it is slow
    assert len((tmp_path / "run" / "groups" / "step_000001.jsonl").read_text().splitlines()) == 5
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["groups_total"], result["groups_unscored"]) == (8, 0)
    rows = metrics_of(tmp_path / "run")
    assert rows[1]["group/deferred"] == 1 and rows[2]["group/deferred"] == 0
    assert rows[2]["update/logp_gap_max"] > rows[1]["update/logp_gap_max"]  # its policy is one update old
