"""What goes beyond the paper: dropout, advantages by criterion, the relative judge, rubrics that grow."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re

import numpy as np
import pytest

from ropd_jax.core.advantages import Part, group_advantages, summed_advantages
from ropd_jax.core.rewards import pass_rate, shown_criteria
from ropd_jax.methods import load_method
from ropd_jax.methods.evolving import evolved, joined
from ropd_jax.teacher import Teacher, TransientError
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.types import Criterion, Judgement, Rubric, UserError
from tests.helpers import Asked, FailsAt
from tests.methods.test_methods import ANSWERS, group
from tests.runs.test_train import tiny_config
from tests.teacher.conftest import Saying


def rubric(*points):
    return Rubric(tuple(Criterion(f"c{i}", f"text {i}", w) for i, w in enumerate(points, 1)))


def judgement_of(points, passed, **more):
    r = rubric(*points)
    rows = tuple(None if p is None else tuple(c == "1" for c in p) for p in passed)
    rewards = tuple(None if v is None else r.score(v) for v in rows)
    causes = tuple(None if v is not None else "missing" for v in rows)
    return Judgement(rewards=rewards, causes=causes, rubric=r, passed=rows, **more)


def judged(method, step=0, teacher=None, answers=ANSWERS, **keys):
    teacher = teacher or Teacher(ScriptedClient(), references_m=2)
    of = dataclasses.replace(group(answers), step=step)
    return asyncio.run(load_method(method, tiny_config(**keys)).judge(teacher, of))


# ---------------------------------------------------------------------------------------------------------- dropout


def test_without_dropout_nothing_changes():
    assert judged("ropd", ropd__dropout=0.0) == judged("ropd")


def test_dropout_hides_criteria_from_the_reward_and_leaves_them_in_the_log():
    whole, part = judged("ropd"), judged("ropd", ropd__dropout=0.5)
    hidden = [k for k, w in enumerate(part.weights) if w == 0]
    assert 0 < len(hidden) < len(whole.rubric.criteria)
    assert (part.rubric, part.passed) == (whole.rubric, whole.passed)
    assert part.rewards == tuple(pass_rate(part.weights, row) for row in whole.passed) != whole.rewards


def test_dropout_hides_its_share_anew_for_each_group_and_the_same_again():
    drawn = [shown_criteria([2.0] * 8, 0.25, f"0/{i}/q") for i in range(500)]
    assert drawn[3] == shown_criteria([2.0] * 8, 0.25, "0/3/q") and len(set(drawn)) > 50
    assert np.mean([row.count(0.0) / 8 for row in drawn]) == pytest.approx(0.25, abs=0.03)


def test_dropout_always_leaves_one_criterion_that_counts():
    drawn = [shown_criteria([0.0, 3.0, 1.0], 0.99, f"{i}") for i in range(50)]
    assert all(row[0] == 0.0 and sum(w > 0 for w in row) >= 1 for row in drawn)
    assert {row.index(max(row)) for row in drawn} == {1, 2}


# ------------------------------------------------------------------------------------------- advantages by criterion


def advantages(judgements, **keys):
    method = load_method("ropd", tiny_config(loss__normalize_std=True, sampling__rollouts=4, **keys))
    groups = [group()] * len(judgements)
    found = method.step_advantages(groups, judgements, 0)
    return [np.asarray(x) for x in found]


def test_by_criterion_with_one_criterion_is_ropd():
    one = [judgement_of([3], ["1", "0", "0", "1"]), judgement_of([2], ["1", None, "0", "0"])]
    for total, each in zip(advantages(one), advantages(one, ropd__advantage="per_criterion"), strict=True):
        np.testing.assert_array_equal(total, each)


def test_by_criterion_is_the_weighted_sum_worked_out_by_hand():
    """Points 3 and 1. The first: 1 1 0 0, mean 1/2, standard deviation sqrt(1/3). The second: 0 0 0 1, 1/4 and 1/2."""
    [advantage_PG, valid_PG, informative_PG] = advantages(
        [judgement_of([3, 1], ["10", "10", "00", "01"])], ropd__advantage="per_criterion"
    )
    first, second = 0.5 / (3**-0.5 + 1e-6), 1 / (0.5 + 1e-6)
    want = [0.75 * first - 0.25 * 0.25 * second] * 2 + [-0.75 * first - 0.25 * 0.25 * second]
    want += [-0.75 * first + 0.25 * 0.75 * second]
    np.testing.assert_allclose(advantage_PG, [want], rtol=1e-5)
    assert valid_PG.all() and informative_PG.all()


def test_a_criterion_that_few_meet_counts_more_than_in_the_total():
    """Two criteria of equal points: one that two of four meet (deviation sqrt(1/3)), one that one meets (1/2)."""
    rare = [judgement_of([1, 1], ["10", "11", "00", "00"])]
    (total,), (each,) = advantages(rare)[0], advantages(rare, ropd__advantage="per_criterion")[0]
    assert (total[1] - total[0]) / (total[0] - total[2]) == pytest.approx(1, rel=1e-4)
    assert (each[1] - each[0]) / (each[0] - each[2]) == pytest.approx(2 / 3**0.5, rel=1e-4)


def test_by_criterion_an_unscored_rollout_is_out_and_a_group_without_contrast_gives_nothing():
    found = advantages(
        [judgement_of([1, 2], ["10", None, "11", "01"]), judgement_of([1, 2], ["11"] * 4),
         Judgement(rewards=(None,) * 4, causes=("timeout",) * 4)],
        ropd__advantage="per_criterion",
    )  # fmt: skip
    advantage_PG, valid_PG, informative_PG = found
    assert not valid_PG[0, 1] and advantage_PG[0, 1] == 0 and informative_PG[0].tolist() == [True, False, True, True]
    assert advantage_PG[0].sum() == pytest.approx(0, abs=1e-5)
    assert not advantage_PG[1:].any() and not informative_PG[1:].any() and not valid_PG[2].any()


def test_without_the_division_the_sum_over_criteria_is_the_advantage_of_the_total():
    rng = np.random.default_rng(0)
    values, weight = rng.integers(0, 2, (5, 6)), rng.random(5)
    parts = [[Part(w, row) for w, row in zip(weight, values.tolist(), strict=True)]]
    valid = np.array([[True] * 5 + [False]])
    each = summed_advantages(parts, valid, normalize_std=False)
    total = group_advantages((weight @ values)[None], valid, normalize_std=False)
    np.testing.assert_allclose(each.advantage_PG, total.advantage_PG, atol=1e-6)


def test_by_criterion_counts_exact_grades_and_overlong_answers_as_parts():
    keys = dict(
        ropd__advantage="per_criterion", rewards__exact_weight=0.5, loss__overlong="shape", loss__overlong_buffer=4
    )
    plain = judgement_of([1], ["1", "1", "0", "0"], exact=(True, False, False, False))
    (row,) = advantages([plain], **keys)[0]
    assert row[0] > row[1] > row[2] == row[3]
    cut = group()
    rollouts = (*cut.rollouts[:3], dataclasses.replace(cut.rollouts[3], finish_reason="length"))
    method = load_method("ropd", tiny_config(loss__normalize_std=True, sampling__rollouts=4, **keys))
    (punished,) = method.step_advantages([dataclasses.replace(cut, rollouts=rollouts)], [plain], 0).advantage_PG
    assert punished[3] < row[3] and punished[2] > row[2]


@pytest.mark.parametrize(("method", "keys", "names"), [
    ("ropd", dict(ropd__advantage="each", loss__normalize_std=True), "ropd.advantage='each'; expected one of total"),
    ("ropd", dict(ropd__advantage="per_criterion", loss__normalize_std=False), "loss.normalize_std=True"),
    ("ropd", dict(ropd__advantage="per_criterion", loss__normalize_std=True, ropd__rubric_per="pair"), "'group'"),
    ("permuted", dict(ropd__advantage="per_criterion", loss__normalize_std=True), "ropd.advantage='total'"),
    ("evolving", dict(teacher__rubric_reuse="per_epoch"), "expected 'teacher' and 'fresh'"),
    ("evolving", dict(evolving__active=0), "evolving.active=0; expected at least 1"),
])  # fmt: skip
def test_settings_that_cannot_work_name_the_remedy(method, keys, names):
    with pytest.raises(UserError, match=".*".join(map(str, [names.replace("(", r"\(")]))):
        load_method(method, tiny_config(**keys))


# ------------------------------------------------------------------------------------------------------------ RULER


def test_ruler_asks_one_relative_question_and_its_scores_are_the_rewards():
    rows = [{"answer_index": i, "score": s} for i, s in enumerate((100, 40, 0, 40), 1)]
    client = Saying(json.dumps({"schema_version": "ropd.scores.v1", "answers": rows}))
    j = judged("ruler", teacher=Teacher(client))
    (request,) = client.requests
    assert "how it stands among the answers" in request.messages[0].content and "reference" not in request.purpose
    assert sorted(j.rewards) == [0.0, 0.4, 0.4, 1.0] and j.rubric is None and j.references == ()


def test_ruler_with_the_scripted_judge_ranks_right_above_wrong():
    j = judged("ruler")
    assert j.rewards[0] > j.rewards[1] > j.rewards[2]


# --------------------------------------------------------------------------------------------------------- evolving


def criteria(*texts):
    return Rubric(tuple(Criterion(f"c{i}", t, 2) for i, t in enumerate(texts, 1)))


def test_a_visit_joins_each_text_once_with_ids_in_order():
    both = joined(criteria("States a.", "States b."), criteria("states  B.", "States d."))
    assert [(c.id, c.text) for c in both.criteria] == [("c1", "States a."), ("c2", "States b."), ("c3", "States d.")]


def test_of_the_active_criteria_the_most_varied_stay_and_the_persistent_ones_always():
    a, b, c, d, e = criteria("a", "b", "c", "d", "e").criteria
    passed = [tuple(x == "1" for x in row) for row in ("11100", "11110", "11101", "11100")] + [None]
    assert evolved((a, b, c, d, e), 2, passed, 2) == (a, b, d, e)  # c is equal for all
    assert evolved((a, b, c, d, e), 2, passed, 1) == (a, b, d)  # of equal variance the older one
    assert evolved((a, b, c, d, e), 3, passed, 5) == (a, b, c, d, e)


def test_later_visits_begin_with_what_was_kept_and_a_repeated_step_with_the_same():
    teacher = Teacher(ScriptedClient(), references_m=2)
    first = judged("evolving", 0, teacher)
    kept = teacher.store.buffer("q", 1)
    assert kept == (first.rubric, len(first.rubric.criteria), first.lineage) and teacher.store.buffer("q", 0) is None
    again = judged(
        "evolving", 3, teacher, answers=("Answer: 12", "Answer: 13", "4", "9 + 5 = 14\n14 - 1 = 13\nAnswer: 13")
    )
    assert again.rubric.criteria[: len(first.rubric.criteria)] == first.rubric.criteria
    saved = json.loads(json.dumps(teacher.store.state()))
    resumed = Teacher(ScriptedClient(), references_m=2)
    resumed.store.restore(saved)
    assert resumed.store.buffer("q", 3) == kept and json.loads(json.dumps(resumed.store.state())) == saved
    other = Teacher(ScriptedClient(), references_m=2)
    other.store.merge(teacher.store.delta(["q"]))
    assert other.store.buffer("q", 4) == teacher.store.buffer("q", 4)


def test_a_visit_that_fails_keeps_the_buffer_and_leaves_the_group_unscored():
    teacher = Teacher(FailsAt("verify", TransientError("503", cause="server_error")), references_m=2)
    j = judged("evolving", 0, teacher)
    assert j.rewards == (None,) * 4 and j.causes == ("server_error",) * 4
    assert teacher.store.buffer("q", 1) is None


# --------------------------------------------------------------------------------------------------------- checklists


def test_a_checklist_is_written_once_from_the_candidates_and_without_references():
    client = Asked()
    teacher = Teacher(client, references_m=2)
    first = judged("rlcf", 0, teacher)
    (asked,) = [r for r in client.requests if r.purpose == "rubric"]
    text = asked.messages[0].content
    assert text.startswith("You write a checklist") and all(a in text for a in ANSWERS[:3]) and "reference" not in text
    assert {r.purpose for r in client.requests} == {"rubric", "verify"} and first.references == ()
    assert first.lineage.references == () and len(first.lineage.answers) == 4
    points = [c.points for c in first.rubric.criteria]
    by_hand = [sum(w for w, v in zip(points, row, strict=True) if v) / sum(points) for row in first.passed]
    assert list(first.rewards) == by_hand and first.rewards[0] > first.rewards[2]

    client.requests.clear()
    other = judged("rlcf", 3, teacher, answers=("Answer: 13", "Answer: 12", "13", "9 + 5 = 14\nAnswer: 14"))
    assert (other.rubric, other.lineage) == (first.rubric, first.lineage)
    assert {r.purpose for r in client.requests} == {"verify"}
    resumed = Teacher(client, references_m=2)
    resumed.store.restore(json.loads(json.dumps(teacher.store.state())))
    client.requests.clear()
    later = judged("rlcf", 5, resumed)
    assert (later.rubric, later.lineage) == (first.rubric, first.lineage)
    assert {r.purpose for r in client.requests} == {"verify"}


def test_a_checklist_that_fails_leaves_the_group_unscored_and_is_asked_for_again():
    teacher = Teacher(FailsAt("rubric", TransientError("503", cause="server_error")))
    j = judged("rlcf", 0, teacher)
    assert j.rewards == (None,) * 4 and j.causes == ("server_error",) * 4 and teacher.store.buffer("q", 1) is None


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("ropd__rubrics", "published", "ropd.rubrics='published'"),
        ("teacher__rubric_reuse", "per_epoch", "teacher.rubric_reuse='per_epoch'"),
        ("ropd__references_pass", True, "ropd.references_pass=True; expected False, because method='rlcf' has no"),
        ("ropd__rubric_per", "pair", "has one checklist per prompt"),
    ],
)
def test_a_checklist_refuses_what_needs_references_or_another_rubric(key, value, text):
    with pytest.raises(UserError, match=re.escape(text)):
        load_method("rlcf", tiny_config(method="rlcf", **{key: value}))
