"""Sets of prompts and their order."""

from __future__ import annotations

import pytest

from ropd_jax.data.load import load_prompts
from ropd_jax.data.prompts import PromptSet, disjoint, normalise
from ropd_jax.data.stream import PromptStream
from ropd_jax.types import Message, Prompt, UserError


def chain(size=50, seed=1, **kw):
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    return load_prompts(source="reasoning_gym", task="chain_sum", size=size, seed=seed, options=options, **kw)


def prompts(n):
    return [Prompt(id=f"p{i}", messages=(Message("user", f"question {i}"),)) for i in range(n)]


def test_held_out_questions_leave_the_training_set_even_under_another_template():
    train, held = chain(size=200, seed=0), chain(size=60, seed=5000, template="Q: {question}")
    got = disjoint(train, held)
    asked = {normalise(p.metadata["question"]) for p in held}
    assert not asked & {normalise(p.metadata["question"]) for p in got}
    assert got.dropped["in_held_out"] == len(train) - len(got) > 0
    assert got.dropped["duplicate"] == train.dropped["duplicate"]
    with pytest.raises(UserError, match="are in the held-out set too"):
        disjoint(held, held)


def test_questions_are_one_up_to_case_space_and_final_punctuation():
    assert normalise("What is  2 + 2 ?\n") == normalise("what is 2 + 2") != normalise("what is 2 - 2")


def test_what_changes_a_question_is_no_duplicate():
    for one, other in (
        ("What is 5!", "What is 5?"), ("What is 5!?", "What is 5?"), ("Compute n!", "Compute n"), ("5!!", "5!"),
        ("What is 2\u2075?", "What is 25?"), ("What is x\u2082?", "What is x2?"), ("What is \u00bd?", "What is 1?"),
        ("What is -5?", "What is 5?"), ("What is 3.5?", "What is 35?"),
        ("What is 5%?", "What is 5?"),
    ):  # fmt: skip
        assert normalise(one) != normalise(other), (one, other)
    for one, other in (
        ("What is 5!?", "What is 5!"),
        ("Is 5 prime?", "is  5 Prime"),
        ("What is \uff15?", "What is 5?"),
    ):
        assert normalise(one) == normalise(other), (one, other)


def test_no_prompt_repeats_within_an_epoch_and_epochs_differ():
    stream = PromptStream(prompts(10), batch=3, seed=7)
    assert stream.steps_per_epoch == 3
    epochs = [[p.id for step in range(e * 3, e * 3 + 3) for p in stream.batch(step)] for e in range(3)]
    assert all(len(set(e)) == 9 for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert len({i for e in epochs for i in e}) == 10


def test_a_batch_depends_on_seed_and_step_alone():
    one, two = (PromptStream(prompts(10), batch=4, seed=3) for _ in range(2))
    forward = [one.batch(s) for s in range(6)]
    assert forward == [two.batch(s) for s in reversed(range(6))][::-1]
    assert forward != [PromptStream(prompts(10), batch=4, seed=4).batch(s) for s in range(6)]


def test_fewer_prompts_than_a_batch_are_refused():
    with pytest.raises(UserError, match="2 training prompts, but 3 per step"):
        PromptStream(PromptSet(tuple(prompts(2))), batch=3, seed=0)


def test_spare_prompts_are_a_function_of_step_and_round_and_never_those_in_use():
    stream = PromptStream(prompts(10), batch=4, seed=3)
    used = {p.id for p in stream.batch(0)}
    spare = stream.spare(0, 0, 4, without=used)
    assert len(spare) == 4 and not used & {p.id for p in spare}
    assert [p.id for p in spare] == [
        p.id for p in PromptStream(prompts(10), batch=4, seed=3).spare(0, 0, 4, without=used)
    ]
    assert len({tuple(p.id for p in stream.spare(s, r, 4)) for s in range(3) for r in range(2)}) == 6
    assert len(stream.spare(0, 0, 9, without=used)) == 6  # there are no more
