from __future__ import annotations

import json

import numpy as np
import pytest

from ropd_jax.cli import main
from ropd_jax.models import transformer
from ropd_jax.report import GroupsLog
from ropd_jax.signals import NAME, Row, _messages, mean_logprobs, score_run
from ropd_jax.student import load_student
from ropd_jax.types import Judgement, Message, Prompt, Rollout, RolloutGroup, UserError


def by_hand(teacher, tokens, start):
    """The mean log-prob of tokens[start:] from the logits of the whole sequence."""
    ids = np.asarray(tokens, np.int32)[None]
    positions, segments = np.arange(len(tokens), dtype=np.int32)[None], np.ones((1, len(tokens)), np.int32)
    x = transformer.hidden(teacher.cfg, teacher.params, ids, positions, segments)
    logits = np.asarray(transformer.logits(teacher.cfg, teacher.params, x), np.float64)[0]
    logp = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    return float(np.mean([logp[t - 1, tokens[t]] for t in range(start, len(tokens))]))


@pytest.fixture(scope="module")
def teacher():
    return load_student("tiny")


@pytest.fixture
def run(tmp_path, teacher):
    question = "State the final answer to the following arithmetic problem: 1 + 2 ="
    texts = ("1 + 2 = 3\nAnswer: 3", "Answer: 7", "")
    rollouts = tuple(Rollout(np.zeros(1, np.int32), np.zeros(1, np.float32), t, "stop") for t in texts)
    prompt = Prompt("p", (Message("user", question),), answer="3")
    group = RolloutGroup(prompt, np.zeros(1, np.int32), rollouts, 4, 0)
    GroupsLog(tmp_path).write(4, [group], [Judgement((1.0, 0.0, 0.0), (None,) * 3)], [[0.5, -0.5, -0.5]])
    return tmp_path


def test_padding_and_neighbours_change_no_score(teacher):
    rows = [Row((0, "a", 0), [3, 4, 5, 6, 7], 2), Row((0, "b", 0), list(range(3, 45)), 40)]
    got = mean_logprobs(teacher, rows, rows=4)
    assert got == pytest.approx([by_hand(teacher, r.tokens, r.start) for r in rows], abs=1e-4)
    assert mean_logprobs(teacher, rows[:1]) == pytest.approx(got[:1], abs=1e-4)


def test_every_stored_answer_gets_its_teachers_mean_logprob(run, teacher, tmp_path):
    path = score_run(run, "tiny", tmp_path / "deep" / "scores.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["step"], r["prompt_id"], r["sample"]) for r in rows] == [(4, "p", 0), (4, "p", 1)]  # "" has no tokens
    prompt = teacher.tokenizer.apply_chat_template(
        (Message("user", "State the final answer to the following arithmetic problem: 1 + 2 ="),)
    )
    tokens = [*prompt, *teacher.tokenizer.encode("Answer: 7")]
    assert rows[1][NAME] == pytest.approx(by_hand(teacher, tokens, len(prompt)), abs=1e-4)
    assert rows[0][NAME] > rows[1][NAME]  # the student knows that 1 + 2 is not 7


def test_a_system_message_is_given_back_its_role():
    question = "system: Be brief.\n\nuser: 1 + 1?"
    assert _messages(question, "Be brief.") == (Message("system", "Be brief."), Message("user", "1 + 1?"))
    assert _messages("1 + 1?", "Be brief.") == (Message("user", "1 + 1?"),)


def test_an_answer_too_long_for_the_teacher_is_said(tmp_path):
    long = Rollout(np.zeros(1, np.int32), np.zeros(1, np.float32), "Answer: 3\n" * 60, "length")
    group = RolloutGroup(Prompt("p", (Message("user", "1 + 2 ="),)), np.zeros(1, np.int32), (long,), 0, 0)
    GroupsLog(tmp_path).write(0, [group], [Judgement((1.0,), (None,))], [[0.0]])
    with pytest.raises(UserError, match="was made for 128"):
        score_run(tmp_path, "tiny", tmp_path / "s.jsonl")


def test_the_command_puts_it_beside_the_reward(run, capsys):
    from ropd_jax import configs

    (run / "config.json").write_text(json.dumps(configs.default().to_dict()))
    assert main(["analyze", str(run), "--teacher=tiny"]) == 0
    found = json.loads((run / "analysis" / "analysis.json").read_text())
    assert found["signals"][NAME]["auc"] == 1.0 and found["signals"][NAME]["left_out"] == 1
    assert "teacher" in capsys.readouterr().out
    assert main(["analyze", str(run), "--teacher=tiny", "--scores=x"]) == 2
