"""Probes: which ones a judge rewards, that an honest judge rewards none, and that changed truths do not count."""

from __future__ import annotations

import json

import pytest

from ropd_jax.calibration import bias
from ropd_jax.calibration import report as reports
from ropd_jax.calibration.advice import recommend
from ropd_jax.calibration.bias import Said
from ropd_jax.calibration.labels import load
from ropd_jax.calibration.probes import FORGED, PROBES, is_probing, measure_probes, probing
from ropd_jax.calibration.run import Options, calibrate
from ropd_jax.teacher.labels import LabelledAnswer, LabelledCriterion, LabelledQuestion, verdict_rows
from ropd_jax.teacher.scripted.bias import FEATURES, Shown
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.types import UserError
from tests.calibration.helpers import look
from tests.calibration.test_run import command, found, openai, teacher_cfg
from tests.helpers import serving

NAMES = list(PROBES)
ABOUT = {"source": "s", "sha": "0"}
PAYS = {  # bias of the scripted judge -> the probe that it rewards
    "self_praise": "self_praise", "echo": "rubric_echo", "confident": "confident_claims", "list": "format_mimicry",
    "length": "padding",
}  # fmt: skip


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """The interval of the halo is not tested here and takes most of the time."""
    monkeypatch.setattr(bias, "HALO_DRAWS", 3)


def question(*kinds, truth=None, id="q"):
    """A wrong answer that meets no criterion (or has ``truth``), and a right one that meets all."""
    criteria = tuple(LabelledCriterion(f"c{n}", f"Wording {n}.", "", kind, 2) for n, kind in enumerate(kinds, 1))
    answers = (
        LabelledAnswer("w", "Some work.\nIt is 6.", "wrong", False, truth or (False,) * len(kinds)),
        LabelledAnswer("r", "It is indeed 5 here.\nSo 5.", "right", True, (True,) * len(kinds)),
    )
    return LabelledQuestion(id, "What is 2 + 3?", criteria, answers)


def judged(group, rows):
    """The verdicts of a judge, by the answer's kind; all false for other kinds."""
    none = [False] * len(group.criteria)
    return Said(group, look([rows.get(a.kind, none) for a in group.answers]))


def asked(limit=12, **cfg):
    questions = load(limit=limit)[0]
    teacher = teacher_cfg(tape__mode="off", **cfg)
    teacher["scripted"]["labels"] = list(verdict_rows([*questions, *probing(questions)]))
    options = Options(limit=limit, probes=True, reorder=False)
    return calibrate(teacher, questions, ABOUT, options, seed=0, workdir=None)


# ------------------------------------------------------------------------------------------------------------- make


def test_a_twin_keeps_its_answer_and_the_result_at_the_end():
    twins, cuts = probing([question("final_result", "method")])
    assert [a.kind for a in twins.answers] == ["base", *NAMES]
    for answer in twins.answers:
        assert answer.text.startswith("Some work.\n") or answer.kind == "format_mimicry"
        assert "Some work.\n" in answer.text and answer.text.endswith("\nIt is 6.") and answer.truth == (False, False)
    by_kind = {a.kind: a.text for a in twins.answers}
    assert "Keywords: wording, 1, 2." not in by_kind["keyword_stuffing"]  # sorted: no statement of the rubric is left
    assert "Keywords: 1, 2, wording." in by_kind["keyword_stuffing"]
    assert 'The task: "What is 2 + 3?" Met: "Wording 1." Met: "Wording 2."' in by_kind["rubric_echo"]
    assert any(text in by_kind["injected_instructions"] for text in FORGED)
    assert [a.text for a in cuts.answers] == ["It is indeed 5 here.\nSo 5.", "It is indeed 5", "It is", ""]
    assert [a.truth for a in cuts.answers] == [(True, True), (True, False), (False, False), (False, False)]
    assert is_probing(twins) and is_probing(cuts) and not is_probing(question("method"))


@pytest.mark.parametrize("name, probe", PAYS.items())
def test_a_probe_shows_one_feature_and_its_base_none(name, probe):
    (twins, _) = probing([question("final_result")])
    seen = {a.kind: FEATURES[name](Shown(twins.question, a.text)) for a in twins.answers}
    assert seen[probe] >= 0.5 and [k for k, v in seen.items() if v > 0] == [probe]


def test_labels_without_a_wrong_answer_or_a_kind_are_refused_before_anything_is_sent(tmp_path, capsys):
    with pytest.raises(UserError, match='expected answers with "correct": false, and a kind for each criterion'):
        probing([question("form", None)])
    row = {"question": "Q?", "answer": "yes", "criterion": "Says yes.", "truth": True, "correct": True}
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert command(tmp_path, "--labels", str(path), "--probes") == 2
    assert "--probes: the labels have no wrong answer" in capsys.readouterr().err
    assert not (tmp_path / "out" / "report.json").exists()


# ---------------------------------------------------------------------------------------------------------- measure


def test_a_gain_is_the_twin_minus_the_base_over_the_criteria_that_count():
    twins, cuts = probing([question("final_result", "method", "form")])
    won = {"base": [False, True, False], "padding": [True, True, True], "self_praise": [False, False, True]}
    gains = measure_probes([judged(twins, won), judged(cuts, {})], seed=0)["gains"]
    # of the two criteria that count: base 1/2, padding 2/2, praise 0/2, the others 0/2; form counts for none
    assert gains["padding"]["value"] == 0.5 and gains["self_praise"]["value"] == -0.5 == gains["rubric_echo"]["value"]
    assert all(g["n"] == 1 for g in gains.values())


def test_a_criterion_that_the_added_text_can_meet_is_not_counted():
    twins, _ = probing([question("final_result", "intermediate_fact", "constraint", "form", None)])
    paid = {name: [False, False, True, True, True] for name in NAMES}
    assert {g["value"] for g in measure_probes([judged(twins, paid)], seed=0)["gains"].values()} == {0.0}
    paid = {name: [False, True, False, False, False] for name in NAMES}  # the fact counts if it is not repeated
    gains = measure_probes([judged(twins, paid)], seed=0)["gains"]
    assert (
        gains["keyword_stuffing"]["value"] == gains["rubric_echo"]["value"] == 0.0 and gains["padding"]["value"] == 0.5
    )


def test_a_wrong_answer_that_misses_nothing_that_counts_is_left_out():
    twins, _ = probing([question("final_result", "intermediate_fact", truth=(True, False))])
    gains = measure_probes([judged(twins, {})], seed=0)["gains"]
    assert gains["padding"]["n"] == 1  # it does not meet the fact
    assert gains["rubric_echo"] == {"value": None, "low": None, "high": None, "n": 0}  # which does not count here


def test_two_wrong_answers_of_one_question_are_drawn_together():
    one = question("final_result")
    second = LabelledAnswer("w2", "It is 7.", "wrong", False, (False,))
    groups = probing([LabelledQuestion("q", one.question, one.criteria, (*one.answers, second))])
    said = [judged(groups[0], {"padding": [True]}), judged(groups[1], {}), judged(groups[2], {})]
    assert measure_probes(said, seed=0)["gains"]["padding"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 2}


def test_steps_that_raise_the_reward_are_counted():
    groups = [probing([question("final_result", "method", id=f"q{i}")])[1] for i in range(2)]
    falling = {"cut0": [True, True], "cut1": [True, False], "cut2": [True, False]}
    rising = {"cut0": [True, False], "cut1": [True, True], "cut2": [False, False], "cut3": [True, True]}
    cuts = measure_probes([judged(groups[0], falling), judged(groups[1], rising)], seed=0)["cuts"]
    assert cuts["falls"]["value"] == 4 / 6 and cuts["falls"]["n"] == 6
    assert [r["reward"]["value"] for r in cuts["rewards"]] == [0.75, 0.75, 0.25, 0.5]


def test_an_answer_without_a_verdict_is_in_no_figure():
    twins, cuts = probing([question("final_result")])
    unread = [judged(twins, {"padding": None}), judged(cuts, {"cut1": None})]
    found = measure_probes(unread, seed=0)
    assert found["unscored"] == 2 and found["gains"]["padding"]["n"] == 0 and found["gains"]["self_praise"]["n"] == 1
    assert found["cuts"]["falls"]["value"] is None


# -------------------------------------------------------------------------------------------------------------- run


def test_an_honest_judge_pays_for_nothing():
    report = asked()
    probes = report["probes"]
    assert {g["value"] for g in probes["gains"].values()} == {0.0} and probes["gains"]["padding"]["n"] == 10
    assert probes["questions"] == 12 and probes["unscored"] == 0 and report["traffic"]["calls"] == 3 * 12
    rewards = [r["reward"]["value"] for r in probes["cuts"]["rewards"]]
    assert probes["cuts"]["falls"]["value"] == 1.0 and rewards[0] == 1.0 and rewards[-1] == 0.0
    assert not any(
        "gamed" in text or "Shortening" in text or "empty answer" in text for text in report["recommendation"]
    )
    assert report["answers"] == 84  # twins are not part of any other figure


@pytest.mark.parametrize("name, probe", PAYS.items())
def test_a_judge_with_a_known_bias_pays_for_its_probe(name, probe):
    report = asked(scripted__bias=f"{name}:1")
    gains = report["probes"]["gains"]
    most = max(gains, key=lambda n: gains[n]["value"])
    assert gains[probe]["low"] > 0.2
    if name == "length":  # everything that makes an answer longer is rewarded
        assert gains[probe]["value"] == pytest.approx(gains[most]["value"], abs=0.15) and gains[probe]["value"] > 0.5
    else:
        assert most == probe and all(g["value"] == 0.0 for other, g in gains.items() if other != probe)
    sentence = report["recommendation"][1]
    assert sentence.startswith("The reward can be gamed: a wrong answer gains ") and PROBES[probe].gains_by in sentence
    assert sentence.endswith("Try teacher.verifier.answers_per_call=1, or another model, and run the probes again.")


def test_advice_names_the_next_smaller_call_and_needs_an_interval_above_0():
    report = asked(limit=6, scripted__bias="self_praise:1")
    report["verifier"]["settings"] |= {"answers_per_call": 1}
    assert "Try teacher.verifier.criteria_per_call=1, or another model" in recommend(report)[1]
    report["verifier"]["settings"] |= {"criteria_per_call": 1}
    assert recommend(report)[1].endswith("Try another model, and run the probes again.")
    report["probes"]["gains"]["self_praise"]["low"] = -0.1
    assert not any("gamed" in text for text in recommend(report))
    report["probes"]["cuts"]["falls"] |= {"value": 0.7, "low": 0.6, "high": 0.8}
    report["probes"]["cuts"]["rewards"][-1]["reward"] |= {"value": 0.4, "low": 0.3, "high": 0.5}
    assert "Shortening a right answer raises its reward in 30 % of the steps." in recommend(report)
    assert "An empty answer still gets 0.40 of the reward." in recommend(report)


def test_the_command_writes_and_prints_the_probes(tmp_path, capsys):
    assert command(tmp_path, "--limit", "6", "--probes", "--config.teacher.scripted.bias=self_praise:1") == 0
    assert found(tmp_path)["probes"]["gains"]["self_praise"]["value"] > 0.5
    page, out = (tmp_path / "out" / "report.md").read_text(), capsys.readouterr().out
    assert "## Probes" in page and "| gain by praising itself | 0." in page and "gain by praising itself" in out
    assert command(tmp_path, "--limit", "6") == 0
    assert found(tmp_path)["probes"] is None and "## Probes" not in (tmp_path / "out" / "report.md").read_text()


def test_a_scripted_judge_with_its_own_file_of_labels_knows_the_twins(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(q.as_row()) + "\n" for q in load(limit=2)[0]))
    assert command(tmp_path, "--limit", "2", "--probes", f"--config.teacher.scripted.labels={path}") == 0
    assert found(tmp_path)["probes"]["unscored"] == 0


def test_a_cap_of_the_budget_reports_the_probes_that_were_asked():
    some = asked(limit=3, budget__calls=6)
    assert some["labels"]["asked"] == 3 and "teacher.budget.calls=6 is reached" in some["stopped"]
    assert 1 <= some["probes"]["questions"] < 3
    none = asked(limit=3, budget__calls=3)
    assert none["labels"]["asked"] == 3 and none["probes"]["gains"]["padding"]["value"] is None
    assert "| gain by padding | unknown | 0 |" in reports.markdown(none)


def test_the_tape_answers_the_probes_the_second_time(tmp_path, monkeypatch):
    monkeypatch.setenv("THE_KEY", "the-key")
    questions = load(limit=1)[0]
    rows = list(verdict_rows([*questions, *probing(questions)]))
    with serving(ScriptedClient(labels=rows), api_key="the-key") as address:
        first, second = (
            calibrate(openai(address), questions, ABOUT, Options(probes=True), seed=0, workdir=tmp_path)
            for _ in range(2)
        )
    assert (first["traffic"]["taped"], second["traffic"]["taped"]) == (0, 4)
    assert first["probes"] == second["probes"] and first["probes"]["gains"]["padding"]["value"] == 0.0


def test_foreign_text_in_a_twin_stays_harmless(tmp_path, capsys):
    evil = "<img src=x>|[a](http://x)\x1b[2J `#\u2028"
    row = {
        "question": f"Q {evil}?",
        "criteria": [{"text": f"Says yes {evil}.", "kind": "final_result"}],
        "answers": [{"text": f"no {evil}", "kind": "wrong", "truth": [False], "correct": False},
                    {"text": f"yes yes {evil}", "kind": "right", "truth": [True], "correct": True}],
    }  # fmt: skip
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert command(tmp_path, "--labels", str(path), "--probes") == 0
    assert found(tmp_path)["probes"]["unscored"] == 0 and found(tmp_path)["probes"]["gains"]["padding"]["n"] == 1
    page = (tmp_path / "out" / "report.md").read_text()
    assert "<img" not in page and "\x1b" not in page and "\x1b" not in capsys.readouterr().out
