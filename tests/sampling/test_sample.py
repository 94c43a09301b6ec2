"""`sample`: prompts of any kind, without a config and without a mesh."""

from __future__ import annotations

import logging

import jax
import numpy as np
import pytest

from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.sampling.engine import EngineConfig, sample_groups
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.sampling.sample import _lengths, as_prompts, sample
from ropd_jax.types import Message, Prompt, UserError
from ropd_jax.weights.student import load_checkpoint

TASK = "State the final answer to the following arithmetic problem: "
TEXTS = [f"{TASK}{a} + {b} =" for a, b in ((1, 2), (3, 4), (5, 6))]


@pytest.fixture(scope="module")
def student():
    return load_checkpoint("tiny")


@pytest.fixture(scope="module")
def groups(student):
    return sample(student, TEXTS, n=2, max_tokens=16, seed=3)


def tokens_of(groups):
    return [[r.tokens_T.tolist() for r in g.rollouts] for g in groups]


def test_one_group_per_prompt_in_order_with_n_answers_each(student, groups):
    assert [g.prompt.question for g in groups] == TEXTS and [g.index for g in groups] == [0, 1, 2]
    for group in groups:
        assert len(group.rollouts) == 2
        prompt = student.tokenizer.apply_chat_template(group.prompt.messages)
        assert group.prompt_tokens_T.tolist() == prompt
        for rollout in group.rollouts:
            assert 1 <= len(rollout.tokens_T) <= 16 and len(rollout.logp_T) == len(rollout.tokens_T)
            assert rollout.finish_reason == ("stop" if rollout.tokens_T[-1] == 1 else "length")


def test_the_same_arguments_give_the_same_answers_and_another_seed_others(student, groups):
    again = sample(student, TEXTS, n=2, max_tokens=16, seed=3)
    assert tokens_of(again) == tokens_of(groups)
    for a, b in zip(again, groups, strict=True):
        for x, y in zip(a.rollouts, b.rollouts, strict=True):
            np.testing.assert_array_equal(x.logp_T, y.logp_T)
    assert tokens_of(sample(student, TEXTS, n=2, max_tokens=16, seed=4)) != tokens_of(groups)


def test_texts_chats_and_prompts_are_the_same_prompt(student, groups):
    chats = [
        {"role": "user", "content": TEXTS[0]},
        Message("user", TEXTS[1]),
        Message("user", TEXTS[2]),
    ]
    mixed = [[chats[0]], (chats[1],), Prompt(groups[2].prompt.id, (chats[2],), answer="11")]
    assert tokens_of(sample(student, mixed, n=2, max_tokens=16, seed=3)) == tokens_of(groups)
    one = as_prompts(TEXTS[0])
    assert one == as_prompts([TEXTS[0]]) == as_prompts([chats[0]]) == as_prompts([[chats[0]]]) == as_prompts(one[0])
    assert sample(student, []) == []


def test_greedy_answers_with_a_stop_text_are_those_of_the_engine_without_a_mesh(student, caplog):
    prompts = as_prompts(TEXTS)
    tokens = [np.asarray(student.tokenizer.apply_chat_template(p.messages), np.int32) for p in prompts]
    engine = EngineConfig(1, 3, 16, 16, student.tokenizer.stop_ids, SamplingRule(0.0), stop=("Answer",))
    plain = sample_groups(
        student.cfg, engine, student.params, student.tokenizer, prompts, tokens, seed=0, step=0
    )  # fmt: skip
    with caplog.at_level(logging.INFO, logger="ropd_jax"):
        found = sample(student, TEXTS, n=1, max_tokens=16, temperature=0, stop=["Answer"])
    assert tokens_of(found) == tokens_of(sorted(plain, key=lambda g: g.index))
    assert all("Answer" not in r.text for g in found for r in g.rollouts)
    assert "sampling 3 prompts x 1 answers of at most 16 tokens" in caplog.text
    assert "sampled 3 prompts in" in caplog.text


def test_weights_on_a_mesh_stay_there(groups, monkeypatch):
    mesh = mesh_lib.make_mesh(2, 1)
    placed = load_checkpoint("tiny", mesh=mesh)
    monkeypatch.setattr(mesh_lib, "put", lambda *args: pytest.fail("the weights were copied"))
    found = sample(placed, TEXTS, n=2, max_tokens=16, temperature=0)
    assert len(found) == 3
    with jax.set_mesh(mesh):  # a mesh that is already set does not matter
        assert tokens_of(sample(placed, TEXTS, n=2, max_tokens=16, temperature=0)) == tokens_of(found)


def test_lengths_fit_the_student():
    assert _lengths(21, None, 128) == (32, 96)
    assert _lengths(21, 16, 128) == (32, 16)
    assert _lengths(21, 107, 128) == (21, 107)  # padding is reduced
    assert _lengths(21, None, 100_000) == (32, 512)
    with pytest.raises(
        UserError, match=r"has 21 tokens and the answer 108, more than the 128 .* max_tokens=107 or less"
    ):
        _lengths(21, 108, 128)
    with pytest.raises(UserError, match=r"has 128 tokens, but the student supports only 128; shorten it"):
        _lengths(128, None, 128)


@pytest.mark.parametrize(
    "prompts, settings, message",
    [
        ([7], {}, r"prompt 7; expected a text, a list of messages or a Prompt"),
        ([[]], {}, r"prompt \[\]; expected a text"),
        ([[{"role": "user"}]], {}, r"message \{'role': 'user'\}; expected a Message or"),
        (["1"], {"n": 0}, r"n=0, .* expected positive numbers"),
        (["1"], {"temperature": -1}, r"sampling.temperature=-1; expected 0"),
        (["1"], {"max_tokens": 1000}, r"more than the 128 that the student supports; give max_tokens=126 or less"),
    ],
)
def test_what_cannot_be_sampled_is_named(student, prompts, settings, message):
    with pytest.raises(UserError, match=message):
        sample(student, prompts, **settings)
