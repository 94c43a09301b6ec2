"""Valid replies of a rollout server, and those that end the run: an incomplete reply never becomes an answer."""

from __future__ import annotations

import pytest

from ropd_jax.sampling.server_reply import Answer, Expected, check_copies, read_answers
from ropd_jax.teacher import ConfigurationError, TransientError

PROMPT = [5, 6]
WANT = Expected(n=1, prompt=PROMPT, vocab=64, max_tokens=4, stop_ids=(1,), stop_texts=False)


def choice(ids=(7, 1), logp=(-0.5, -0.25), reason="stop", **more):
    tokens = {"tokens": [f"token_id:{i}" for i in ids], "token_logprobs": list(logp)}
    return {"index": 0, "finish_reason": reason, "logprobs": tokens, "token_ids": list(ids), **more}


def read(*choices, **want):
    return read_answers({"choices": list(choices)}, WANT._replace(**want), "http://h/v1")


def test_the_forms_of_vllm_sglang_and_llama_cpp_give_the_same_answer():
    numbered = choice()
    del numbered["token_ids"]
    renamed = dict(numbered, response_token_ids=[7, 1], logprobs={"tokens": ["a", ""], "token_logprobs": [-0.5, -0.25]})
    content = [{"id": 7, "token": "a", "logprob": -0.5}, {"id": 1, "token": "", "logprob": -0.25}]
    llama = {"index": 0, "finish_reason": "stop", "logprobs": {"content": content}}
    wanted = [Answer([7, 1], [-0.5, -0.25], True)]
    assert [read(c) for c in (choice(), numbered, renamed, llama)] == [wanted] * 4


def test_answers_come_in_the_order_of_their_index():
    one, two = choice(ids=(8, 1), index=1), choice(ids=(9, 1))
    assert [a.tokens for a in read(one, two, n=2)] == [[9, 1], [8, 1]]


def test_an_answer_that_was_cut_is_not_stopped():
    assert read(choice(ids=(7, 7, 7, 7), logp=(-1.0,) * 4, reason="length")) == [Answer([7] * 4, [-1.0] * 4, False)]


def test_a_stop_token_whose_id_alone_is_missing_is_added():
    left_out = choice(ids=(7,), stop_reason=1)
    left_out["logprobs"]["token_logprobs"] = [-0.5, -0.25]
    assert read(left_out) == [Answer([7, 1], [-0.5, -0.25], True)]


def test_a_stop_text_can_end_an_answer_at_any_token():
    assert read(choice(ids=(7, 9)), stop_texts=True) == [Answer([7, 9], [-0.5, -0.25], True)]


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ({}, "sent 0 answers; expected 1"),
        (choice(reason="content_filter"), "'content_filter'; expected 'stop' or 'length'"),
        (choice(logprobs=None), "sent no log-probs"),
        (choice(logprobs={"tokens": ["a", "b"]}), "sent no log-probs of tokens"),
        (choice(token_ids=None, logprobs={"tokens": ["a", "b"], "token_logprobs": [-1, -1]}), "sent no token ids"),
        (choice(token_ids=[7]), "sent 1 token ids with 2 log-probs"),
        (choice(token_ids=[True, 1]), "sent no token ids"),
        (choice(ids=(), logp=()), "an answer without tokens"),
        (choice(logp=(-0.5, float("nan"))), "a log-prob of nan; expected a finite number"),
        (choice(logp=(-0.5, None)), "a log-prob of None"),
        (choice(logp=(3.5, -0.5)), "a log-prob of 3.5; expected at most 0"),
        (choice(ids=(64, 1)), "sent token 64; expected ids below 64"),
        (choice(ids=(-1, 1)), "sent token -1"),
        (choice(ids=(7,) * 5, logp=(-1.0,) * 5), "an answer of 5 tokens; expected at most sampling.max_tokens=4"),
        (choice(ids=(7, 9), stop_reason=2), "ended an answer at token 9; its stop token is 2; expected a stop token"),
        (choice(ids=(7, 9), reason="length"), "cut an answer at 2 tokens"),
        (choice(prompt_token_ids=[0, 5, 6]), "a prompt of 3 tokens that differs"),
    ],
)
def test_what_cannot_be_an_answer_of_this_student_names_what_was_expected(spoiled, message):
    with pytest.raises(ConfigurationError) as error:
        read(*([spoiled] if spoiled else []))
    assert message in str(error.value) and "http://h/v1" in str(error.value)


def test_a_reply_that_is_no_completion_is_refused():
    for reply in ([], {"choices": 3}, {"choices": [3]}, {"error": "x"}, None):
        with pytest.raises(ConfigurationError, match="without choices"):
            read_answers(reply, WANT, "h")
    with pytest.raises(ConfigurationError, match="numbers its answers"):
        read(choice(index=0), choice(index=0), n=2)


def test_an_aborted_answer_is_worth_another_try():
    with pytest.raises(TransientError):
        read(choice(reason="abort"))


def test_equal_answers_are_copies_unless_chance_explains_them():
    short, long = Answer([1], [-0.1], True), Answer([7, 8, 1], [-15.0, -15.0, -1.0], True)
    check_copies([short, short, long], "h")
    with pytest.raises(ConfigurationError, match="the same answer twice"):
        check_copies([long, short, long], "h")
