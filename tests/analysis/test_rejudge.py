"""Rejudging a run: the same verifier changes nothing, another has the reported effect, the run is untouched."""

from __future__ import annotations

import asyncio
import io
import json

import numpy as np
import pytest

from ropd_jax import configs
from ropd_jax.analysis import rejudge
from ropd_jax.cli import main as cli
from ropd_jax.teacher import Teacher
from ropd_jax.teacher.judge_group import judge
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.types import Criterion, Judgement, Message, Prompt, Rollout, RolloutGroup, Rubric
from ropd_jax.utils.files import write_atomic
from ropd_jax.workdir.groups import GroupsLog, StoredGroup, read_groups

RUBRIC = Rubric((Criterion("c1", "a", 3), Criterion("c2", "b", 1)))
FAILED = Judgement(rewards=(None,) * 4, causes=("timeout",) * 4)


def judged(*passed):
    passed = tuple(None if row is None else tuple(c == "1" for c in row) for row in passed)
    return Judgement(
        rewards=tuple(None if v is None else RUBRIC.score(v) for v in passed),
        causes=tuple("missing" if v is None else None for v in passed),
        references=("r",),
        rubric=RUBRIC,
        passed=passed,
        reference_passed=((True, True),),
    )


def compared(before, after, **options):
    groups = [
        StoredGroup(i, Prompt("p", (Message("user", "Q?"),)), ("",) * len(b.rewards), (), b)
        for i, b in enumerate(before)
    ]
    return rejudge.compare(groups, after, same_rubric=options.get("same_rubric", True))


def test_a_comparison_worked_out_by_hand():
    # rewards 1, 3/4, 0, 0 -> 0, 3/4, 1, unscored; means of those in both 7/12 and 7/12
    found = compared([judged("11", "10", "00", "00")], [judged("00", "10", "11", None)])
    assert found["reward_mean"] == {"before": 1.75 / 4, "after": 1.75 / 3}
    assert found["rollouts_scored_both"] == 3 and found["reward_changed_frac"] == 2 / 3
    assert found["spearman_within_groups"] == pytest.approx(-1.0) and found["spearman_groups"] == 1
    assert found["pearson"] == pytest.approx(np.corrcoef([1, 0.75, 0], [0, 0.75, 1])[0, 1])
    assert found["rank_changed_frac"] == 2 / 3 and found["best_changed_frac"] == 1.0
    signs = {"rollouts": 3, "flipped": 2, "flipped_frac": 2 / 3, "vanished": 0, "appeared": 0}
    assert found["advantage_signs"] == signs
    assert found["unscored"]["before"] == {"rollouts": 0, "causes": {}}
    assert found["unscored"]["after"] == {"rollouts": 1, "causes": {"missing": 1}}
    assert found["verdicts_changed_frac"] == 4 / 8  # three rollouts and the reference, two criteria
    assert [(c["id"], c["agreement"], c["answers"]) for c in found["criteria"]] == [("c1", 0.5, 4), ("c2", 0.5, 4)]
    assert found["kappa"] == pytest.approx(-1 / 15)  # 5 of 8 true in both: 0.5 observed, 34/64 by chance
    assert set(found["kappa_by_points"]) == {"3", "1"}


def test_an_advantage_can_vanish_and_appear():
    found = compared([judged("11", "00"), judged("11", "11")], [judged("11", "11"), judged("11", "00")])
    assert found["advantage_signs"] == {
        "rollouts": 4, "flipped": 0, "flipped_frac": 0.0, "vanished": 2, "appeared": 2,
    }  # fmt: skip
    assert found["spearman_within_groups"] is None and found["spearman_groups"] == 0
    assert found["zero_variance_frac"] == {"before": 0.5, "after": 0.5}


def test_nothing_scored_is_unknown_not_zero():
    found = compared([judged("11", "00")], [Judgement(rewards=(None, None), causes=("timeout",) * 2)])
    unknown = ("pearson", "spearman_within_groups", "rank_changed_frac", "kappa", "reward_changed_frac")
    assert [found[k] for k in unknown] == [None] * 5
    assert found["reward_mean"]["after"] is None and found["advantage_signs"]["flipped_frac"] is None


def test_verdicts_under_another_rubric_are_not_compared():
    found = compared([judged("11", "00")], [judged("11", "00")], same_rubric=False)
    assert found["kappa"] is None and found["criteria"] == []


@pytest.fixture
def run(tmp_path, sum_prompt, sum_answers):
    """The directory of a run of two steps with three groups, one of which had failed."""
    teacher = Teacher(ScriptedClient(), references_m=2, seed=5)
    cfg = configs.default()
    cfg.seed = 5
    directory = tmp_path / "run"
    write_atomic(directory / "config.json", json.dumps(cfg.to_dict()))
    rollouts = tuple(Rollout(np.zeros(1, np.int32), np.zeros(1, np.float32), t, "stop") for t in sum_answers)
    for step, failed in ((0, False), (1, True)):
        group = RolloutGroup(sum_prompt, np.zeros(1, np.int32), rollouts, step, 0)
        judgements = [asyncio.run(judge(teacher, sum_prompt, sum_answers, step=step)), *([FAILED] if failed else [])]
        GroupsLog(directory).write(step, [group] * len(judgements), judgements, [[0.0] * 4] * len(judgements))
    return directory


def contents(directory):
    return {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def rejudged(run, tmp_path, *args):
    assert cli.main(["rejudge", str(run), "--out", str(tmp_path / "out.json"), *args]) == 0
    return json.loads((tmp_path / "out.json").read_text())


@pytest.mark.parametrize("rubric", ["stored", "fresh"])
def test_the_same_verifier_changes_nothing_and_the_run_is_left_as_it_is(run, tmp_path, rubric):
    before = contents(run)
    found = rejudged(run, tmp_path, "--rubric", rubric)
    assert contents(run) == before
    assert (found["groups"], found["groups_skipped"]) == (2, 1)
    assert found["reward_changed_frac"] == 0.0 and found["advantage_signs"]["flipped"] == 0
    assert found["spearman_within_groups"] == pytest.approx(1.0)
    assert found["kappa"] == (1.0 if rubric == "stored" else None)
    assert found["calls"]["teacher/calls_verify"] == 2.0
    assert found["calls"].get("teacher/calls_rubric", 0) == (0 if rubric == "stored" else 1)  # equal ones share a call
    assert found["health"]["before"] == found["health"]["after"]


def test_another_verifier_changes_what_it_is_said_to_change(run, tmp_path, capsys):
    args = ["--config.teacher.scripted.wrong_verdict_rate=1", "--verifier", "perverse", "--steps", "0:1"]
    found = rejudged(run, tmp_path, *args)
    assert found["steps"] == [0] and found["verdicts_changed_frac"] == 1.0 and found["kappa"] < 0
    (group,) = read_groups(run, steps=(0, 1))
    turned = [1 - r for r in group.judgement.rewards]
    assert found["reward_mean"]["after"] == pytest.approx(np.mean(turned))
    assert found["spearman_within_groups"] == pytest.approx(-1.0)
    assert found["verifier"]["before"]["model"] == "scripted" and found["verifier"]["after"]["model"] == "perverse"
    shown = capsys.readouterr().out
    assert "perverse" in shown and "advantages with the opposite sign" in shown and "agreement" in shown


def test_a_prompt_of_ones_own_is_used_and_its_hash_noted(run, tmp_path):
    own = tmp_path / "mine.md"
    own.write_text("{{token}} {{question}} {{rubric}} {{answers}}")
    found = rejudged(run, tmp_path, f"--config.teacher.verifier.template={own}")
    assert str(own) in found["prompts"] and "verifier.v3" not in found["prompts"]
    assert found["kappa"] == 1.0


@pytest.mark.parametrize(
    "args, message",
    [
        ([], "which run?"),
        (["RUN", "--config.optim.lr=1"], "--config.optim.lr does not change a judgement"),
        (["RUN", "--steps", "7"], "--steps=7 is not a range"),
        (["RUN", "--steps", "4:9"], "no step in 4:9; it has 0 to 1"),
        (["RUN", "--rubric", "old"], "--rubric=old is unknown; expected stored or fresh"),
        (["RUN", "--out", "RUN/x.json"], "is inside the run"),
        (["nowhere"], "expected the directory of a run"),
        (["RUN", "--config.teacher.verifier.template=none.md"], "'none.md' cannot be read"),
        (["RUN", "--config.teacher.verifier.template=reference.v1"], "lacks answers, rubric; expected answers"),
        (["RUN", "--config.teacher.verifier.provider=opnai"], "did you mean openai?"),
    ],
)
def test_mistakes_are_one_line(run, capsys, args, message):
    assert cli.main(["rejudge", *(a.replace("RUN", str(run)) for a in args)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_teacher_that_scores_nothing_is_no_success(run, caplog):
    broken = ("--config.teacher.scripted.fault_rate=1.0", "--config.teacher.attempts=1")
    assert cli.main(["rejudge", str(run), *broken]) == 3
    assert "rollouts could be scored" in caplog.text


def test_no_key_is_needed_for_roles_that_are_not_asked(run, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    other = "--config.teacher.{}.provider=openai"
    found = rejudged(run, tmp_path, other.format("reference"), other.format("rubricator"))
    assert found["kappa"] == 1.0


def test_a_criterion_nobody_agrees_on_is_shown():
    found = compared([judged("11", "10", "00", "00")], [judged("00", "10", "11", None)])
    out = io.StringIO()
    sides = {side: {"model": "m"} for side in ("before", "after")}
    rejudge.show(
        found | {"run": "r", "steps": [0], "rubric": "stored", "groups_skipped": 2, "verifier": sides}, file=out
    )
    text = out.getvalue()
    assert (
        "2 groups without references or rubric left out" in text.replace("\n", "")
        and "2 of 4" in text
        and "1 (missing 1)" in text
    )
