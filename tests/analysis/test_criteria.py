"""Clusters of criteria by wording, and which count as learned."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ropd_jax.analysis import criteria
from ropd_jax.analysis.criteria import Seen, change_of, cluster, measure, seen_in, wording
from ropd_jax.cli.main import main as ropd
from ropd_jax.types import UserError
from tests.viewer.stored import F, T, write_group


def seen(step, text, passed, *, group=0, scored=8, category="Step", points=2.0):
    return Seen(step, group, "c1", category, text, points, scored, passed, 0, 0, 0, 0)


@pytest.mark.parametrize(
    "one, other",
    [
        ('Contains the line "2 + 6 = 8" exactly once.', 'contains the line "10 - 7 = 3" exactly once'),
        ("States the answer 42.", "States the answer -3,14."),
        ("Uses $x^2$ in the steps", r"Uses \(y\) in the step"),
        ("Names the «first» city", "Names the «second» city"),
        ("答案是 `12`", "答案是 `7`"),
    ],
)
def test_numbers_and_quoted_texts_do_not_count(one, other):
    assert wording(one) == wording(other) != ""


def test_an_apostrophe_is_no_quotation():
    assert "theorem" in wording("Uses Euler's theorem and Fermat's lemma") and "§" not in wording("it's Bob's")


def test_alike_wordings_of_one_category_are_one_cluster():
    texts = [
        ("Step", "Derives the area of the triangle before the answer."),
        ("Step", "Derives the area of the triangle before giving the answer."),
        ("step", "Derives the area of a triangle before the answer"),
        ("Step", "Names the capital of the country."),
        ("Form", "Derives the area of the triangle before the answer."),
    ]
    rows = [seen(i, text, 4, category=category) for i, (category, text) in enumerate(texts)]
    assert sorted(map(sorted, cluster(rows))) == [[0, 1, 2], [3], [4]]
    back = [seen(i, text, 4, category=category) for i, (category, text) in enumerate(reversed(texts))]
    assert sorted(len(c) for c in cluster(back)) == [1, 1, 3]
    assert cluster([]) == [] and len(cluster([seen(0, "???", 1), seen(0, "!!!", 1)])) == 1


def test_beyond_the_most_leaders_the_rest_is_one_cluster(monkeypatch):
    monkeypatch.setattr(criteria, "MOST", 2)
    words = ["alpha", "beta", "gamma", "delta", "epsilon"]
    assert sorted(len(c) for c in cluster([seen(0, word, 1) for word in words])) == [1, 1, 3]


def test_the_interval_is_the_one_computed_by_hand():
    # Five groups of 0 and five of 1; with a 0 and a 1 added on either side: means 1/7 and 6/7, variance 1/7 each.
    change, low, high = change_of([0.0] * 5, [1.0] * 5)
    half = 2.1788128296634177 * (2 / 49) ** 0.5  # t of 12 degrees of freedom
    assert change == 1.0
    np.testing.assert_allclose(low, 5 / 7 - half, rtol=1e-9)
    assert high == 1.0  # 1.15, which is impossible for a change
    assert change_of([0.0] * 4, [1.0] * 9) is None


def test_learned_lost_and_neither():
    rows = []
    for step in range(12):
        for group in range(4):
            late = step >= 8
            rows += [
                seen(step, "Rises with training", 7 if late else 1, group=group),
                seen(step, "Falls with training, sadly", 0 if late else 8, group=group),
                seen(step, "Stays where it was all along", 4 + group % 2, group=group),
            ]
    found = {c["text"][:5]: c for c in measure(rows)["clusters"]}
    assert {name: c["verdict"] for name, c in found.items()} == {"Rises": "learned", "Falls": "lost", "Stays": ""}
    rises = found["Rises"]
    assert (rises["early"], rises["late"], rises["change"]) == (1 / 8, 7 / 8, 6 / 8)
    assert rises["discriminates"] == 1.0 and found["Falls"]["discriminates"] == 0.0
    assert rises["spark"] == [1 / 8] * 8 + [7 / 8] * 4 and rises["flips"] is None


def test_few_changes_are_learned_by_chance():
    rng = np.random.default_rng(0)
    verdicts = [change_of(rng.binomial(8, 0.5, 12) / 8, rng.binomial(8, 0.5, 12) / 8) for _ in range(400)]
    assert np.mean([low > 0 or high < 0 for _, low, high in verdicts]) <= 0.05


def test_a_stored_group_is_counted_with_its_references_and_its_second_look(tmp_path):
    row = json.loads(write_group(tmp_path, 3, ((T, T), (T, F), None)).read_text())
    row["answers"][0] |= {"again": {"c1": True, "c2": False}, "places": [0, 1]}
    first, second = seen_in(row)
    assert (first.step, first.scored, first.passed, first.discriminates) == (3, 2, 2, False)
    assert (second.scored, second.passed, second.discriminates, second.points) == (2, 1, True, 3.0)
    assert (second.references, second.references_passed, second.looks, second.flips) == (1, 1, 1, 1)
    assert first.flips == 0


def test_shares_of_unexplored_criteria_and_of_suppressed_answers(tmp_path):
    for step, passed in enumerate((((T, F), (F, T)), ((F, T), (F, F)))):
        write_group(tmp_path, step, passed, texts=("x", "y"), reference_passed=((T, F),))
    found = criteria.read_run(tmp_path)
    assert [(s.id, s.unexplored, s.suppressed) for s in found] == [
        ("c1", False, 1), ("c2", False, 0), ("c1", True, 0), ("c2", False, 0)
    ]  # fmt: skip
    total = measure(found)["all"]
    assert (total["unexplored"], total["suppressed"]) == (1 / 4, 1 / 3)  # of 4 criteria; of 3 verdicts that are met
    assert measure([seen(0, "x", 1)])["all"]["suppressed"] is None


def test_rubrics_of_single_answers_count_with_their_answer(tmp_path):
    row = json.loads(write_group(tmp_path, 0, ((T, T),), texts=("x",)).read_text())
    own = [{"id": "c1", "points": 4, "category": "Step", "text": "Adds."}]
    row["rubric"], row["answers"][0]["rubric"] = [], own
    row["answers"][0]["verdicts"] = {"c1": False}
    row["references"] = []
    [one] = seen_in(row)
    assert (one.scored, one.passed, one.discriminates, one.points) == (1, 0, None, 4.0)
    assert one.unexplored is one.suppressed is None


def test_the_terminal_shows_80_columns_and_hostile_text_as_text(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for step in range(6):
        for group in range(6):
            write_group(tmp_path, step, ((step > 2,) * 2, (T, F), None), index=group)
    path = tmp_path / "groups" / "step_000000.jsonl"
    path.write_text(path.read_text().replace("Ends with 5.", "\\u001b[31m[bold]x[/bold]") + "not a group\n")
    assert ropd(["show", str(tmp_path), "--criteria"]) == 0
    out = capsys.readouterr().out
    assert "72 criteria of 36 groups" in out and "[bold]x[/bold]" in out and "\x1b" not in out
    assert all(len(line) <= 80 for line in out.splitlines()[1:-1])
    assert ropd(["show", str(tmp_path), "--criteria", "--step", "1"]) == 2
    assert "about the whole run" in capsys.readouterr().err


def test_a_run_without_groups_is_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no groups"):
        criteria.read_run(tmp_path)
