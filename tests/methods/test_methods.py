"""Methods: their requests to the teacher, what a failure becomes, and how a user's method is loaded."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from experiments import quickstart
from ropd_jax.methods import load_method
from ropd_jax.teacher import ConfigurationError, Teacher, TransientError
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.types import Message, Prompt, Rollout, RolloutGroup, UserError
from tests.helpers import FailsAt, IdTokenizer

QUESTION = "State the final answer to the following arithmetic problem: 9 + 5 - 1 ="
ANSWERS = ("9 + 5 = 14\n14 - 1 = 13\nAnswer: 13", "9 + 5 = 14\nAnswer: 13", "Answer: 12", "<think>no</think>Answer: 13")


def config():
    return quickstart.get_config().lock()


def group(answers=ANSWERS):
    rollouts = tuple(Rollout(np.array([2, 1], np.int32), np.zeros(2, np.float32), a, "stop") for a in answers)
    prompt = Prompt("q", (Message("user", QUESTION),), answer="13")
    return RolloutGroup(prompt, np.array([5], np.int32), rollouts, step=0, index=0)


def judged(method="ropd", client=None, **kw):
    teacher = Teacher(client or ScriptedClient(**kw), references_m=2)
    return asyncio.run(load_method(method, config()).judge(teacher, group()))


def test_reward_is_the_weighted_pass_rate_of_the_rubric():
    j = judged()
    w = np.array(j.rubric.weights)
    assert j.rewards == tuple(float(w @ np.array(v) / w.sum()) for v in j.passed)
    assert j.rewards[0] == 1.0 and 0 < j.rewards[2] + 0.01 < j.rewards[1] < 1.0
    assert len(j.references) == 2 and all(all(v) for v in j.reference_passed)
    assert j.causes == (None,) * 4


@pytest.mark.parametrize("purpose", ["reference", "rubric", "verify"])
def test_a_failure_leaves_the_group_unscored_with_its_cause(purpose):
    j = judged(client=FailsAt(purpose, TransientError("503", cause="server_error")))
    assert j.rewards == (None,) * 4 and j.causes == ("server_error",) * 4
    assert (j.rubric is not None) == (purpose == "verify")


@pytest.mark.parametrize("method", ["ropd", "sft", "permuted"])
def test_a_wrong_key_stops_the_run(method):
    with pytest.raises(ConfigurationError):
        judged(method, client=FailsAt("reference", ConfigurationError("401")))


def test_sft_trains_on_the_references_and_counts_missing_ones_nowhere():
    method = load_method("sft", config())
    j = judged("sft")
    assert j.rewards == (1.0, 1.0, None, None)  # m = 4 in the config, this teacher writes 2

    class Tokens(IdTokenizer):
        def encode(self, text):
            return [7] * len(text)

    rows = method.sequences(group(()), j, Tokens())
    assert [len(r.completion_T) for r in rows] == [len(j.references[0]) + 1, len(j.references[1]) + 1, 0, 0]
    assert rows[0].completion_T[-1] == 1  # the stop token is learned
    reward_PG = np.array([[1, 1, np.nan, np.nan]], np.float32)
    adv = method.advantages(reward_PG, ~np.isnan(reward_PG), 0)
    np.testing.assert_array_equal(adv.advantage_PG, [[1, 1, 0, 0]])


def test_the_control_permutes_rewards_and_gives_none_to_the_unscored():
    method = load_method("permuted", config())
    reward_PG = np.arange(32, dtype=np.float32).reshape(4, 8) / 32
    reward_PG[1, 3] = np.nan
    valid_PG = ~np.isnan(reward_PG)
    adv = method.advantages(reward_PG, valid_PG, 0)
    plain = load_method("ropd", config()).advantages(reward_PG, valid_PG, 0)
    assert not np.asarray(adv.valid_PG)[1, 3] and np.asarray(adv.valid_PG).sum() in (30, 31)
    assert float(np.abs(np.asarray(adv.advantage_PG)).mean()) > 2 * float(np.abs(np.asarray(plain.advantage_PG)).mean())
    np.testing.assert_array_equal(adv.advantage_PG, method.advantages(reward_PG, valid_PG, 0).advantage_PG)
    assert (np.asarray(adv.advantage_PG) != np.asarray(method.advantages(reward_PG, valid_PG, 1).advantage_PG)).any()


def test_a_method_is_one_file_outside_the_package(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from ropd_jax.methods.ropd import ROPD\nclass Mine(ROPD):\n    sequences_per_prompt = 3\nMETHOD = Mine\n"
    )
    assert load_method(str(path), config()).sequences_per_prompt == 3
    path.write_text("x = 1\n")
    with pytest.raises(UserError, match=r"mine.py defines no METHOD"):
        load_method(str(path), config())
    with pytest.raises(
        UserError,
        match=r"'rod' is not known.*cort, cripo, evolving, exopd, .*, ropd, ruler, sft, t_judge",
    ):
        load_method("rod", config())
