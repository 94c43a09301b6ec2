"""Benchmarks during a run: what is measured when, how it is graded, and the warning if one selects the checkpoints."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from ropd_jax.data.source import Found
from ropd_jax.evaluation.benchmarks import Loaded, benchmark_of
from ropd_jax.training.benchmarks import graded
from ropd_jax.training.run import Run
from ropd_jax.training.setup import check_config, read_config
from ropd_jax.training.validate import note_best
from ropd_jax.types import Message, Prompt, Rollout, RolloutGroup, UserError
from tests.runs.test_train import tiny_config

RG = "reasoning_gym:chain_sum"


def config(**changes):
    return tiny_config(**dict(steps=12, eval__every=4, eval__benchmarks=(RG,)) | changes)


def test_what_is_due_follows_the_two_intervals():
    how = read_config(config(eval__benchmarks_every=6))
    run = SimpleNamespace(cfg=how, steps=12, heldout=SimpleNamespace(prompts=(1,)))
    due = {step: Run.evaluations(run, step) for step in range(13)}
    assert {s: names for s, names in due.items() if names} == {
        0: ("accuracy", RG), 4: ("accuracy",), 6: (RG,), 8: ("accuracy",), 12: ("accuracy", RG),
    }  # fmt: skip
    run.heldout.prompts = ()
    assert Run.evaluations(run, 12) == (RG,) and Run.evaluations(run, 4) == ()


def test_the_value_is_the_mean_over_problems_of_their_share_of_right_answers():
    """2 of 2 right and 1 of 4 right: 0.625 over problems, not 3 of 6."""

    def group(i, texts):
        prompt = Prompt(f"p{i}", (Message("user", "2+2?"),), answer="4", task="exact")
        rollouts = tuple(Rollout(np.zeros(1, np.int32), np.zeros(1, np.float32), t, "length") for t in texts)
        return RolloutGroup(prompt, np.zeros(1, np.int32), rollouts, 0, i)

    groups = [group(1, ["Answer: 4", "Answer: 5", "4 or 5", "Answer: 44"]), group(0, ["Answer: 4"] * 2)]
    prompts = tuple(g.prompt for g in groups)
    found = graded(Loaded(benchmark_of(RG), prompts, Found("", 2, "", None, None)), groups)
    assert (found[f"eval/{RG}"], found[f"eval/{RG}_n"], found[f"eval/{RG}_truncated_frac"]) == (0.625, 2, 1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(eval__benchmarks=("aime_2042",)), "benchmark 'aime_2042' is unknown"),
        (dict(eval__benchmarks=("healthbench",)), "which is graded by a paid model"),
        (dict(eval__benchmarks=(RG, RG)), "names a benchmark twice"),
        (dict(checkpoint__best_by="aime_2024"), "best_by='aime_2024'; expected one of accuracy, .*chain_sum"),
        (dict(checkpoint__best_by=RG, checkpoint__keep_best=1, checkpoint__every=5, eval__benchmarks_every=8),
         "eval.benchmarks_every=8 first meet at step 40"),
    ],
)  # fmt: skip
def test_benchmarks_that_cannot_work_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        check_config(config(**changes))


def test_checkpoints_chosen_on_a_benchmark_are_warned_of(caplog):
    best = dict(checkpoint__keep_best=1, checkpoint__every=4)
    with caplog.at_level(logging.WARNING, logger="ropd_jax"):
        note_best(check_config(config(**best)))
        assert not caplog.records
        note_best(check_config(config(**best, checkpoint__best_by=RG, data__heldout=False)))
    assert "is then not a test set of this run" in caplog.text
