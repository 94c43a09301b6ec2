"""rgsd, rcsd, cort, cripo: the prompts that they show, and their losses against numbers worked out by hand."""

from __future__ import annotations

import asyncio
import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.core.batches import TokenSequence, make_batch
from ropd_jax.methods import Divergence, Tokens, load_method
from ropd_jax.methods.conditioning import FREE, MEETS, MISSES
from ropd_jax.teacher import Teacher, TransientError
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.types import Judgement, Message, UserError
from ropd_jax.workdir.policy import load_student
from tests.helpers import FailsAt
from tests.methods.test_beyond import judgement_of
from tests.methods.test_methods import QUESTION, group
from tests.runs.test_train import tiny_config

OLD = ([-0.5, -1.0, -2.0], [-1.5, -0.3])
TOLD = ([-0.2, -1.0, -3.5], [math.nan, math.nan])
UNEVEN = dict(loss__normalize_std=False, loss__aggregation="token_mean")


def method(name, **keys):
    return load_method(name, tiny_config(**UNEVEN, **keys))


def tokens_of(advantage=(0.0, 0.0), now=OLD, **told):
    """Two answers after the prompt [3, 4] in one packed row, sampled at OLD; ``told``: log-probs by context."""

    def batch(values):
        rows = [
            TokenSequence(np.array([3, 4], np.int32), np.full(len(row), 5, np.int32), np.float32(v))
            for row, v in zip(OLD, values, strict=True)
        ]
        yes = np.ones(2, bool)
        return make_batch(rows, np.float32(advantage), yes, yes, 6, places=[[0, 1]], row_len=9)

    extras = {f"told/{name}": jnp.asarray(batch(values).old_logp_BT) for name, values in told.items()}
    logp_BT = jnp.asarray(batch(now).old_logp_BT)
    return Tokens(batch(OLD), logp_BT, jnp.zeros_like(logp_BT), extras=extras)


def of_answers(tokens, x_BT):
    """The values of the two answers' tokens, in order."""
    mask_BT = np.asarray(tokens.batch.mask_BT)
    found = np.asarray(x_BT)[mask_BT]
    return found[:3].tolist(), found[3:].tolist()


# ------------------------------------------------------------------------------------------------------------- RGSD


def test_rgsd_moves_each_token_by_its_gap_and_leaves_alone_what_was_not_told():
    m, tokens = method("rgsd"), tokens_of(rubric=TOLD)
    loss_BT, metrics = m.loss(tokens)
    first, second = of_answers(tokens, loss_BT)
    assert first == pytest.approx([-0.3, 0.0, 1.5], abs=1e-6) and second == [0.0, 0.0]  # ratio 1: minus the advantage
    assert of_answers(tokens, metrics["told_gap"])[0] == pytest.approx([0.3, 0.0, -1.5], abs=1e-6)


def test_rgsd_that_is_told_nothing_new_changes_nothing():
    tokens = tokens_of(rubric=OLD)
    loss_BT, _ = method("rgsd").loss(tokens)
    assert not np.asarray(loss_BT).any()


def test_rgsd_asks_for_a_rubric_and_no_verdicts():
    calls = []

    class Counts(ScriptedClient):
        async def chat(self, request):
            calls.append(request.purpose)
            return await super().chat(request)

    m = method("rgsd")
    j = asyncio.run(m.judge(Teacher(Counts(), references_m=2), group()))
    assert set(calls) == {"reference", "rubric"} == set(m.asks) and j.rubric and not j.passed
    assert j.rewards == (1.0,) * 4
    found = m.step_advantages([group()], [j], 0)
    assert np.asarray(found.informative_PG).all()


def test_rgsd_without_a_rubric_is_not_trained_on():
    failing = Teacher(FailsAt("rubric", TransientError("503", cause="server_error")), references_m=2)
    m = method("rgsd")
    j = asyncio.run(m.judge(failing, group()))
    assert j.rewards == (None,) * 4 and j.causes == ("server_error",) * 4
    assert not np.asarray(m.step_advantages([group()], [j], 0).informative_PG).any()
    assert [row.told for row in m.sequences(group(), j, load_student("tiny").tokenizer)] == [{}] * 4


def test_what_is_told_is_the_question_and_the_criteria():
    tokenizer, m = load_student("tiny").tokenizer, method("rgsd")
    j = judgement_of([2, 1], ["11", "10", "00", "01"])
    rows = m.sequences(group(), j, tokenizer)
    text = "\n".join([QUESTION, "", MEETS, "- text 1", "- text 2"])
    want = tokenizer.apply_chat_template((Message("user", text),))
    assert all(row.told["rubric"].tolist() == want for row in rows)
    assert [row.prompt_T.tolist() for row in rows] == [group().prompt_tokens_T.tolist()] * 4


def test_rgsd_over_the_vocabulary_is_the_divergence_where_it_is_known():
    tokens = tokens_of()
    known_BT = tokens.batch.mask_BT & (tokens.batch.segments_BT == 1)
    divergence_BT = jnp.where(known_BT, jnp.arange(9, dtype=jnp.float32)[None], 0.0)
    tokens = tokens._replace(extras={"divergence/rubric": divergence_BT, "known/rubric": known_BT})
    m = method("rgsd", rgsd__mode="full", rgsd__beta=0.25, context__max_tokens=77)
    loss_BT, metrics = m.loss(tokens)
    assert of_answers(tokens, loss_BT) == ([1.0, 2.0, 3.0], [0.0, 0.0])
    np.testing.assert_array_equal(metrics["divergence"], loss_BT)
    assert m.divergence == Divergence(0.25, 77) and method("rgsd").divergence is None
    assert method("rgsd", rgsd__mode="top_k", rgsd__top_k=5).divergence == Divergence(1.0, 512, 5)
    assert method("rcsd", rgsd__mode="full").divergence is None


def test_rgsd_refuses_an_unknown_mode_and_more_classes_than_tokens():
    with pytest.raises(UserError, match=r"rgsd\.mode='all'; expected one of sampled, full, top_k"):
        method("rgsd", rgsd__mode="all")
    student = load_student("tiny")
    m = method("rgsd", rgsd__mode="top_k", rgsd__top_k=student.cfg.vocab_size + 1)
    with pytest.raises(UserError, match=f"the student's vocabulary has {student.cfg.vocab_size} rows; lower it"):
        m.check_student(student, None)
    method("rgsd", rgsd__mode="top_k", rgsd__top_k=student.cfg.vocab_size).check_student(student, None)


# ------------------------------------------------------------------------------------------------------------- RCSD


def test_rcsd_is_the_mean_gap_over_the_criteria_that_are_known():
    tokens = tokens_of(criterion_1=TOLD, criterion_2=([-0.4, -2.0, -2.0], [-1.0, -0.3]))
    loss_BT, _ = method("rcsd", rcsd__criteria=2).loss(tokens)
    first, second = of_answers(tokens, loss_BT)
    assert first == pytest.approx([-(0.3 + 0.1) / 2, 1.0 / 2, 1.5 / 2], abs=1e-6)
    assert second == pytest.approx([-0.5, 0.0], abs=1e-6)


def test_rcsd_tells_the_criteria_of_most_points_one_at_a_time():
    tokenizer, m = load_student("tiny").tokenizer, method("rcsd", rcsd__criteria=2)
    row = m.sequences(group(), judgement_of([1, 3, 2], ["111"] * 4), tokenizer)[0]
    told = {name: tokenizer.decode(ids) for name, ids in row.told.items()}
    assert list(told) == ["criterion_1", "criterion_2"] == list(m.contexts)
    assert "text 2" in told["criterion_1"] and "text 3" in told["criterion_2"]
    assert all(text.count("- text") == 1 for text in told.values())


# ------------------------------------------------------------------------------------------------------------- CoRT


def test_cort_with_a_uniform_contrast_is_grpo():
    shifted = tuple([v - 0.7 for v in row] for row in OLD)
    now = tuple([v + 0.1 for v in row] for row in OLD)
    tokens = tokens_of((1.5, -0.5), now, rubric=OLD, free=shifted)
    mine, grpo = method("cort").loss(tokens)[0], method("ropd").loss(tokens)[0]
    np.testing.assert_allclose(mine, grpo, rtol=1e-6)


def test_cort_spreads_the_advantage_by_the_bounded_contrast():
    free = ([-0.2 - 0.5, -1.0, -3.5 + 4.0], [-1.0, -1.0])  # contrasts 0.5, 0 and -4, which the bound makes -1
    tokens = tokens_of((2.0, -1.0), rubric=TOLD, free=free)
    loss_BT, _ = method("cort", cort__bound=1.0).loss(tokens)
    w = np.exp([0.5, 0.0, -1.0])
    first, second = of_answers(tokens, loss_BT)
    assert first == pytest.approx((-2.0 * w / w.mean()).tolist(), rel=1e-5)
    assert second == pytest.approx([1.0, 1.0])  # not told: its advantage as it is
    assert np.mean(first) == pytest.approx(-2.0)


def test_cort_tells_the_rubric_and_the_same_without_criteria():
    tokenizer = load_student("tiny").tokenizer
    row = method("cort").sequences(group(), judgement_of([1], ["1", "0", "0", "1"]), tokenizer)[0]
    told = {name: tokenizer.decode(ids) for name, ids in row.told.items()}
    assert MEETS in told["rubric"] and "- text 1" in told["rubric"]
    assert FREE in told["free"] and "text 1" not in told["free"]


# ------------------------------------------------------------------------------------------------------------ CriPO


def test_cripo_flips_the_tokens_of_a_suppressed_criterion_only():
    opposite = ([-0.2 - 1.5, -1.0, -3.5], [-2.0, -2.0])
    suppressed = (TOLD[0], [-0.5, -1.9])
    unknown = ([math.nan] * 3, [math.nan] * 2)
    told = dict(suppressed=suppressed, opposite=opposite, unexplored=unknown)
    tokens = tokens_of((-1.0, -2.0), **told)
    loss_BT, metrics = method("cripo", cripo__margin=1.0).loss(tokens)
    assert of_answers(tokens, loss_BT) == (pytest.approx([-1.0, 1.0, 1.0]), pytest.approx([-2.0, 2.0]))
    assert of_answers(tokens, metrics["flipped_frac"]) == ([True, False, False], [True, False])
    positive = tokens_of((1.0, 0.0), **told)
    assert of_answers(positive, method("cripo").loss(positive)[0]) == (pytest.approx([-1.0] * 3), [0.0, 0.0])


def test_cripo_adds_the_distillation_from_an_unexplored_criterion():
    unknown = ([math.nan] * 3, [math.nan] * 2)
    tokens = tokens_of((1.0, 0.0), suppressed=unknown, opposite=unknown, unexplored=TOLD)
    loss_BT, _ = method("cripo", cripo__beta=0.1).loss(tokens)
    first, second = of_answers(tokens, loss_BT)
    assert first == pytest.approx([-1.0 - 0.03, -1.0, -1.0 + 0.15], abs=1e-6) and second == [0.0, 0.0]
    without, _ = method("cripo", cripo__beta=0.0).loss(tokens)
    assert of_answers(tokens, without)[0] == pytest.approx([-1.0] * 3)


def test_cripo_tells_each_rollout_its_heaviest_suppressed_criterion_and_all_an_unexplored_one():
    tokenizer = load_student("tiny").tokenizer
    j = judgement_of([5, 1, 2, 3], ["1000", "0110", "0010", "1000"], reference_passed=((True,) * 4,))
    assert j.rewards[1] < np.mean(j.rewards)
    late = dataclasses.replace(group(), step=50)
    rows = method("cripo").sequences(late, j, tokenizer)
    assert [set(row.told) for row in rows] == [
        {"unexplored"}, {"unexplored", "suppressed", "opposite"}, {"unexplored", "suppressed", "opposite"},
        {"unexplored"},
    ]  # fmt: skip
    told = {name: tokenizer.decode(ids) for name, ids in rows[1].told.items()}
    assert "text 3" in told["suppressed"] and MEETS in told["suppressed"]  # of two suppressed ones that of most points
    assert "text 3" in told["opposite"] and MISSES in told["opposite"] and "text 4" in told["unexplored"]
    early = method("cripo").sequences(group(), j, tokenizer)
    assert not any("unexplored" in row.told for row in early)  # the first 50 steps


def test_cripo_learns_from_a_group_without_contrast_if_a_criterion_is_unexplored():
    j = judgement_of([5, 1], ["10"] * 4, reference_passed=((True, True),))
    m = method("cripo", cripo__warmup_steps=3)
    informative = [np.asarray(m.step_advantages([group()], [j], step).informative_PG).all() for step in (2, 3)]
    assert informative == [False, True]
    lost = Judgement(rewards=(None,) * 4, causes=("timeout",) * 4)
    assert not np.asarray(m.step_advantages([group()], [lost], 9).informative_PG).any()


@pytest.mark.parametrize("name", ["rgsd", "rcsd", "cripo", "evolving"])
def test_methods_that_share_a_criterion_refuse_a_rubric_for_each_rollout(name):
    with pytest.raises(UserError, match="expected 'group'"):
        method(name, ropd__rubric_per="pair")
