"""However a run ends, it leaves a checkpoint of its last finished step, and resuming gives bit-identical results."""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
import time

import jax
import pytest

import ropd_jax.train
from ropd_jax.methods.ropd import METHOD
from ropd_jax.training.collect import judge_step
from ropd_jax.training.run import Run
from ropd_jax.training.session import Session
from ropd_jax.training.setup import check_config
from ropd_jax.types import UserError
from ropd_jax.utils import interrupt
from ropd_jax.utils.interrupt import Interrupted
from ropd_jax.workdir.checkpoint import Checkpoints
from ropd_jax.workdir.orbax_io import Writer
from tests.helpers import restore_raw, trees_max_diff
from tests.runs.test_train import tiny_config

TRAIN = sys.modules["ropd_jax.train"]


def final(workdir, step):
    checkpoints = Checkpoints(workdir / "checkpoints", keep=9)
    state, host = restore_raw(checkpoints, step)
    checkpoints.close()
    return state, host


def steps_of(workdir):
    return sorted(p.name for p in (workdir / "checkpoints").iterdir())


def signal_when(monkeypatch, moment, signum=signal.SIGTERM):
    """Send this process a signal at the second chunk of sampling at which ``moment()`` is true."""
    seen = []
    check = Session.check

    def watched(session):
        if moment():
            seen.append(1)
            if len(seen) == 2:
                signal.raise_signal(signum)
                signal.raise_signal(signal.SIGTERM)  # a scheduler sends several
        check(session)

    monkeypatch.setattr(Session, "check", watched)
    return seen


@pytest.mark.parametrize("staleness", (0, 1))
def test_sigterm_stops_between_two_chunks_and_saves_the_last_finished_step(staleness, tmp_path, monkeypatch, caplog):
    # Nothing is sampled ahead here, so that the whole of step 1 is still to be sampled, by the policy before step 0.
    monkeypatch.setattr(TRAIN, "judge_step", lambda *args, **how: judge_step(*args, **how | {"lookahead": None}))
    changes = dict(checkpoint__every=9, eval__every=9, data__heldout_size=8, eval__prompts_at_once=8)
    cfg = tiny_config(stream__staleness=staleness, stream__groups=2, loss__is_cap=2.0 * staleness, **changes)
    ropd_jax.train.train(cfg, tmp_path / "whole")
    run = tmp_path / "run"
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="ropd_jax"):
        seen = signal_when(patch, lambda: (run / "groups" / "step_000000.jsonl").exists())
        with pytest.raises(Interrupted):
            ropd_jax.train.train(cfg, run)
    assert len(seen) == 2  # no further chunk was sampled
    assert steps_of(run) == ["1"] and (run / "checkpoints" / "1" / "ahead").exists() == bool(staleness)
    assert "saved a checkpoint after step 1" in caplog.text
    assert "s from the signal to the complete checkpoint" in caplog.text
    spans = [json.loads(line) for line in (run / "timeline.jsonl").read_text().splitlines()]
    (stop,) = [s for s in spans if s["name"] == "stop"]
    (write,) = [s for s in spans if s["name"] == "checkpoint_write"]
    assert stop["start"] <= write["start"] <= write["end"] <= stop["end"]
    ropd_jax.train.train(cfg, run)
    (a, host_a), (b, host_b) = final(run, 2), final(tmp_path / "whole", 2)
    assert trees_max_diff(a, b) == 0.0
    assert host_a["groups_total"] == host_b["groups_total"] == 8


def test_a_save_that_is_there_is_not_repeated(tmp_path, monkeypatch):
    saves = []
    start = Writer.start
    monkeypatch.setattr(Writer, "start", lambda self, step, *rest: saves.append(step) or start(self, step, *rest))
    run = tmp_path / "run"
    signal_when(monkeypatch, lambda: saves == [1], signal.SIGINT)  # in the evaluation after step 1
    with pytest.raises(Interrupted):
        ropd_jax.train.train(tiny_config(eval__every=1), run)
    assert saves == [1] and steps_of(run) == ["1"]


def test_a_signal_while_the_run_is_busy_saves_beside_it(tmp_path, monkeypatch, caplog):
    saved = tmp_path / "run" / "checkpoints" / "1"

    class Compiles(METHOD):
        def advantages(self, reward_PG, valid_PG, step):
            if step == 1 and not saved.exists():
                signal.raise_signal(signal.SIGTERM)
                deadline = time.monotonic() + 120
                while not saved.exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
            return super().advantages(reward_PG, valid_PG, step)

    monkeypatch.setattr(interrupt, "UNHEARD_S", 0.05)
    cfg = tiny_config(checkpoint__every=9, data__heldout_size=8, eval__prompts_at_once=8, stream__groups=0)
    with caplog.at_level(logging.WARNING, logger="ropd_jax"), pytest.raises(Interrupted):
        ropd_jax.train.train(cfg, tmp_path / "run", method=Compiles)
    assert steps_of(tmp_path / "run") == ["1", "2"]  # and the step that was then finished
    assert "saved a checkpoint after step 1, " in caplog.text
    assert final(tmp_path / "run", 1)[1]["groups_total"] == 4


@pytest.mark.parametrize("error", (RuntimeError("a bug"), KeyboardInterrupt(), MemoryError()))
def test_any_exception_leaves_a_checkpoint_and_is_raised(error, tmp_path, caplog):
    class Fails(METHOD):
        def advantages(self, reward_PG, valid_PG, step):
            if step == 1:
                raise error
            return super().advantages(reward_PG, valid_PG, step)

    cfg = tiny_config(checkpoint__every=9, data__heldout_size=8, eval__prompts_at_once=8, stream__groups=0)
    with pytest.raises(type(error)) as caught:
        ropd_jax.train.train(cfg, tmp_path / "run", method=Fails)
    assert caught.value is error and steps_of(tmp_path / "run") == ["1"]
    assert final(tmp_path / "run", 1)[1]["groups_total"] == 4


def test_a_state_that_is_lost_is_not_saved(tmp_path, monkeypatch, caplog):
    def breaks(run, state, rows, advantages):
        jax.tree.leaves(state.params)[0].delete()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Run, "whole_update", breaks)
    cfg = tiny_config(checkpoint__every=9, data__heldout_size=8, eval__prompts_at_once=8, stream__groups=0)
    with caplog.at_level(logging.WARNING, logger="ropd_jax"), pytest.raises(RuntimeError, match="out of memory"):
        ropd_jax.train.train(cfg, tmp_path / "run")
    assert steps_of(tmp_path / "run") == [] and "had donated the arrays" in caplog.text


def test_the_best_checkpoint_is_kept_over_a_resume(tmp_path, monkeypatch):
    accuracy = {0: 0.1, 1: 0.9, 2: 0.2, 3: 0.4, 4: 0.3}
    evaluate = TRAIN.evaluate
    monkeypatch.setattr(
        TRAIN,
        "evaluate",
        lambda run, state, step, out: evaluate(run, state, step, out) | {"eval/accuracy": accuracy[step]},
    )

    left = [RuntimeError("a bug")]

    class FailsOnce(METHOD):
        def advantages(self, reward_PG, valid_PG, step):
            if step == 2 and left:
                raise left.pop()
            return super().advantages(reward_PG, valid_PG, step)

    cfg = tiny_config(
        steps=4, eval__every=1, data__heldout_size=8, eval__prompts_at_once=8, stream__groups=0,
        checkpoint__keep=1, checkpoint__keep_best=1,
    )  # fmt: skip
    with pytest.raises(RuntimeError):
        ropd_jax.train.train(cfg, tmp_path / "run", method=FailsOnce)
    assert steps_of(tmp_path / "run") == ["1", "2"]
    ropd_jax.train.train(cfg, tmp_path / "run", method=FailsOnce)
    assert steps_of(tmp_path / "run") == ["1", "4"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"keep_best": -1}, "checkpoint.keep_best=-1"),
        ({"keep_best": 1, "best_by": "loss"}, "checkpoint.best_by='loss'; expected one of accuracy"),
        ({"keep_best": 1, "best_by": "judge"}, "without teacher.judge.model"),
        ({"keep_best": 1, "best_by": "sampled_accuracy"}, "eval.sampled=False"),
        ({"keep_best": 1, "every": 3}, "first meet at step 15 of 12"),
    ],
)
def test_a_choice_of_the_best_that_cannot_work_is_refused(changes, said):
    cfg = tiny_config(steps=12, eval__every=5, **{f"checkpoint__{key}": value for key, value in changes.items()})
    with pytest.raises(UserError, match=re.escape(said)):
        check_config(cfg)
