"""The result of `judge` is checked: a one-line error that names its line, instead of a failure much later."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import quickstart
from ropd_jax.methods import Method, check_judgement, load_method
from ropd_jax.types import Judgement, Message, Prompt, Rollout, RolloutGroup, UserError


class Mine(Method):
    async def judge(self, teacher, group):
        raise NotImplementedError


def group(n=2):
    rollouts = (Rollout(np.zeros(1, np.int32), np.zeros(1, np.float32), "x", "stop"),) * n
    return RolloutGroup(Prompt("q7", (Message("user", "?"),)), np.zeros(1, np.int32), rollouts, 0, 0)


@pytest.fixture(scope="module")
def method():
    return load_method(Mine, quickstart.get_config().lock())


@pytest.mark.parametrize(
    "rewards", [(1.0, None), (0, 1), (np.float32(0.5), np.float64(1)), (None, None), (-3.5, 1e9), [1.0, 0.0]]
)
def test_numbers_and_none_are_rewards(method, rewards):
    judgement = Judgement(rewards, (None, None))
    assert check_judgement(method, judgement, group()) is judgement


@pytest.mark.parametrize(
    ("judgement", "message"),
    [
        ({"rewards": (1.0, 1.0)}, r"returned a dict for the group of prompt 'q7'; expected ropd_jax.types.Judgement"),
        (None, "returned a NoneType"),
        ((1.0, 2.0), "returned a tuple"),
        (Judgement((1.0,), (None, None)), "returned 1 rewards .*; expected a tuple of 2, one per rollout"),
        (Judgement((1.0,) * 3, (None,) * 3), "returned 3 rewards .*; expected a tuple of 2"),
        (Judgement((), ()), "returned 0 rewards"),
        (Judgement((1.0, 1.0), (None,)), "returned 1 causes"),
        (Judgement(1.0, (None, None)), "returned rewards=1.0 .*; expected a tuple of 2"),
        (Judgement((1.0, "0.5"), (None, None)), r"returned reward '0.5' \(str\) for rollout 1 .*; expected a finite"),
        (Judgement((float("nan"), 1.0), (None, None)), r"reward nan \(float\) for rollout 0 .*or None for a rollout"),
        (Judgement((float("inf"), 1.0), (None, None)), "reward inf"),
        (Judgement((True, 1.0), (None, None)), r"reward True \(bool\)"),
        (Judgement((jnp.ones(2), 1.0), (None, None)), "expected a finite float"),
    ],
)
def test_a_wrong_judgement_is_one_line_with_the_line_of_judge(method, judgement, message):
    with pytest.raises(UserError, match=message) as e:
        check_judgement(method, judgement, group())
    assert "\n" not in str(e.value)
    assert f"test_check.py:{Mine.judge.__code__.co_firstlineno}: Mine.judge returned" in str(e.value)


def test_a_method_without_rollouts_has_a_reward_for_each_of_its_sequences():
    cfg = quickstart.get_config().lock()
    method = load_method("sft", cfg)
    m = cfg.teacher.references
    assert check_judgement(method, Judgement((1.0,) * m, (None,) * m), group(0))
    with pytest.raises(UserError, match=f"expected a tuple of {m}"):
        check_judgement(method, Judgement((), ()), group(0))
