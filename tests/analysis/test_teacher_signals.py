from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from ropd_jax import configs
from ropd_jax.analysis.teacher_signals import NAME, SIGNALS, Row, _messages, mean_logprobs, mean_signals, score_run
from ropd_jax.cli.main import main
from ropd_jax.models import transformer
from ropd_jax.types import Judgement, Message, Prompt, Rollout, RolloutGroup, UserError
from ropd_jax.weights.student import load_checkpoint
from ropd_jax.workdir.checkpoint import Checkpoints
from ropd_jax.workdir.groups import GroupsLog


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
    return load_checkpoint("tiny")


@pytest.fixture
def run(tmp_path, teacher):
    question = "State the final answer to the following arithmetic problem: 1 + 2 ="
    texts = ("1 + 2 = 3\nAnswer: 3", "Answer: 7", "")
    rollouts = tuple(Rollout(np.zeros(1, np.int32), np.zeros(1, np.float32), t, "stop") for t in texts)
    prompt = Prompt("p", (Message("user", question),), answer="3")
    group = RolloutGroup(prompt, np.zeros(1, np.int32), rollouts, 4, 0)
    GroupsLog(tmp_path).write(4, [group], [Judgement((1.0, 0.0, 0.0), (None,) * 3)], [[0.5, -0.5, -0.5]])
    return tmp_path


def scores_of(file):
    return [json.loads(line) for line in pathlib.Path(file).read_text().splitlines()]


def test_padding_and_neighbours_change_no_score(teacher):
    rows = [Row((0, "a", 0), [3, 4, 5, 6, 7], 2), Row((0, "b", 0), list(range(3, 45)), 40)]
    got = mean_logprobs(teacher, rows, rows=4)
    assert got == pytest.approx([by_hand(teacher, r.tokens, r.start) for r in rows], abs=1e-4)
    assert mean_logprobs(teacher, rows[:1]) == pytest.approx(got[:1], abs=1e-4)


def test_every_stored_answer_gets_its_teachers_mean_logprob(run, teacher, tmp_path):
    rows = scores_of(score_run(run, "tiny", tmp_path / "deep" / "scores.jsonl"))
    assert [(r["step"], r["prompt_id"], r["sample"]) for r in rows] == [(4, "p", 0), (4, "p", 1)]  # "" has no tokens
    prompt = teacher.tokenizer.apply_chat_template(
        (Message("user", "State the final answer to the following arithmetic problem: 1 + 2 ="),)
    )
    tokens = [*prompt, *teacher.tokenizer.encode("Answer: 7")]
    assert rows[1][NAME] == pytest.approx(by_hand(teacher, tokens, len(prompt)), abs=1e-4)
    assert rows[0][NAME] > rows[1][NAME]  # the student knows that 1 + 2 is not 7


def saved(run, steps):
    """Writes checkpoints after ``steps``; each is the shipped student with its output table rolled by that many ids."""
    (run / "config.json").write_text(json.dumps(configs.default().to_dict()))
    params = load_checkpoint("tiny").params
    checkpoints = Checkpoints(run / "checkpoints", keep=9)
    for step in steps:
        turned = {**params, "embed": {"table_VD": np.roll(np.asarray(params["embed"]["table_VD"]), step, axis=0)}}
        checkpoints.save(step, {"params": turned}, {})
    checkpoints.close()


def test_the_overlap_is_with_the_student_that_was_there(run, teacher, tmp_path):
    saved(run, (3, 5))  # the rollouts are of step 4
    rows = scores_of(score_run(run, "tiny", tmp_path / "s.jsonl", top_k=3))
    prompt = teacher.tokenizer.apply_chat_template(
        (Message("user", "State the final answer to the following arithmetic problem: 1 + 2 ="),)
    )
    answers = [Row((4, "p", i), [*prompt, *teacher.tokenizer.encode(t)], len(prompt))
               for i, t in enumerate(("1 + 2 = 3\nAnswer: 3", "Answer: 7"))]  # fmt: skip
    turned = {**teacher.params, "embed": {"table_VD": np.roll(teacher.params["embed"]["table_VD"], 3, axis=0)}}
    wanted = mean_signals(type(teacher)(teacher.cfg, turned, teacher.tokenizer), teacher, answers, k=3)
    for name in SIGNALS:
        np.testing.assert_allclose([r[name] for r in rows], [one[name] for one in wanted], atol=1e-5)
    np.testing.assert_allclose([r[NAME] for r in rows], mean_logprobs(teacher, answers), atol=1e-5)
    assert max(one["topk_overlap"] for one in wanted) < 0.9  # not the teacher itself
    own = mean_signals(teacher, teacher, answers, k=3, rows=4)
    assert [one["topk_overlap"] for one in own] == [1.0, 1.0] and all(0.5 < one["topk_mass"] <= 1 for one in own)


def test_before_the_first_kept_checkpoint_it_is_the_student_that_the_run_started_from(run, tmp_path):
    saved(run, (5,))
    rows = scores_of(score_run(run, "tiny", tmp_path / "s.jsonl", top_k=3))
    assert [r["topk_overlap"] for r in rows] == [1.0, 1.0]
    with pytest.raises(UserError, match="--top_k=9999; expected at most"):
        score_run(run, "tiny", tmp_path / "s.jsonl", top_k=9999)


def test_a_system_message_is_given_back_its_role():
    question = "system: Be brief.\n\nuser: 1 + 1?"
    assert _messages(question, "Be brief.") == (Message("system", "Be brief."), Message("user", "1 + 1?"))
    assert _messages("1 + 1?", "Be brief.") == (Message("user", "1 + 1?"),)


def test_an_answer_too_long_for_the_teacher_is_said(tmp_path):
    long = Rollout(np.zeros(1, np.int32), np.zeros(1, np.float32), "Answer: 3\n" * 60, "length")
    group = RolloutGroup(Prompt("p", (Message("user", "1 + 2 ="),)), np.zeros(1, np.int32), (long,), 0, 0)
    GroupsLog(tmp_path).write(0, [group], [Judgement((1.0,), (None,))], [[0.0]])
    with pytest.raises(UserError, match="supports 128"):
        score_run(tmp_path, "tiny", tmp_path / "s.jsonl")


def test_the_command_puts_it_beside_the_reward(run, capsys):
    (run / "config.json").write_text(json.dumps(configs.default().to_dict()))
    assert main(["analyze", str(run), "--teacher=tiny"]) == 0
    found = json.loads((run / "analysis" / "analysis.json").read_text())
    assert found["signals"][NAME]["auc"] == 1.0 and found["signals"][NAME]["left_out"] == 1
    assert set(found["signals"]) == {"rubric", NAME}  # no checkpoints, so no overlap
    assert "teacher" in capsys.readouterr().out
    assert main(["analyze", str(run), "--teacher=tiny", "--scores=x"]) == 2
