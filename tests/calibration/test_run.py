"""``ropd calibrate-judge`` from end to end: reports, budget, tape, forms, a hostile file."""

from __future__ import annotations

import json

import pytest

from ropd_jax import configs
from ropd_jax.calibration import report as reports
from ropd_jax.calibration.labels import groups, load
from ropd_jax.calibration.run import MOST_ANSWERS, Options, calibrate, main
from ropd_jax.cli import main as cli
from ropd_jax.teacher import BudgetError
from ropd_jax.teacher.calibration import SCHEMA_VERSION, reliability, summary
from ropd_jax.teacher.labels import LabelledAnswer, LabelledCriterion, LabelledQuestion, verdict_rows
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.types import UserError
from tests.helpers import serving

QUICK = ("calibrate-judge", "--config", "experiments/quickstart.py")


def command(tmp_path, *args):
    return cli.main([*QUICK, "--out", str(tmp_path / "out"), *args])


def found(tmp_path):
    return json.loads((tmp_path / "out" / "report.json").read_text())


def teacher_cfg(**more):
    teacher = configs.default().teacher.to_dict()
    for key, value in more.items():
        section, name = key.split("__")
        teacher[section][name] = value
    return teacher


@pytest.fixture
def model():
    """A chat model behind HTTP that knows the first six questions; its requests are recorded on a tape."""
    rows = list(verdict_rows(load(limit=6)[0]))
    with serving(ScriptedClient(labels=rows), api_key="the-key") as address:
        yield address


def openai(address, **more):
    teacher = teacher_cfg(**more)
    return teacher | {"provider": "openai", "base_url": address + "/v1", "api_key_env": "THE_KEY"}


# ----------------------------------------------------------------------------------------------------------- command


def test_a_verifier_that_gives_no_verdict_is_no_success(tmp_path, caplog):
    broken = ("--config.teacher.scripted.fault_rate=1.0", "--config.teacher.attempts=1")
    assert command(tmp_path, "--limit", "2", *broken) == 3
    assert found(tmp_path)["overall"]["n"] == 0 and "gave no verdict that could be used" in caplog.text


def test_a_scripted_verifier_is_calibrated_without_anything_else(tmp_path, capsys):
    assert command(tmp_path, "--limit", "12") == 0
    report = found(tmp_path)
    assert report["schema_version"] == SCHEMA_VERSION and report["stopped"] is None
    assert report["overall"]["accuracy"]["value"] == 1.0 and report["labels"]["asked"] == 12
    assert report["labels"]["source"] == "ropd_jax dev" and len(report["labels"]["sha"]) == 16
    assert report["traffic"]["calls"] == 24 and report["traffic"]["usd"] == 0.0
    assert not (tmp_path / "out" / "tape.sqlite").exists()  # another noise setting must not get the old verdicts
    out = capsys.readouterr().out
    assert "You can train with this verifier; expect about 0 % wrong verdicts." in out
    assert "Only 12 questions were used" in out
    page = (tmp_path / "out" / "report.md").read_text()
    assert page.startswith("# Calibration of scripted\n") and "## Recommendation" in page


def test_noise_of_the_config_is_seen(tmp_path):
    noise = '{"kinds": {"other": {"false_positive": 0.5, "false_negative": 0.5}}}'
    assert command(tmp_path, f"--config.teacher.scripted.noise={noise}", "--scorer") == 0
    report = found(tmp_path)
    assert abs(report["overall"]["kappa"]["value"]) < 0.1
    assert report["recommendation"][0].startswith(
        "Do not train with this verifier: its verdicts cannot be distinguished from"
    )
    assert report["scorer_auc"]["within"]["value"] > 0.8
    assert report["traffic"]["scorer"]["calls"] == 42


def test_a_report_feeds_the_config_that_it_measured(tmp_path, capsys):
    assert command(tmp_path, "--limit", "6") == 0
    path = tmp_path / "out" / "report.json"
    about = summary(path)
    assert about["kappa"]["value"] == 1.0 and about["form"] == found(tmp_path)["verifier"]["form"]
    assert about["labels_sha"] == found(tmp_path)["labels"]["sha"]
    assert reliability(path)["final_result"] == 1.0
    again = tmp_path / "again"
    assert cli.main([*QUICK, "--out", str(again), "--limit", "6", f"--config.teacher.scripted.noise={path}"]) == 0
    capsys.readouterr()
    assert cli.main(["preflight", "--config", "experiments/quickstart.py", "--no-calls",
                     f"--config.teacher.calibration={path}"]) == 0  # fmt: skip
    assert "Verifier: kappa 1.00 [" in capsys.readouterr().out


def test_own_labels_in_the_flat_form(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [
        {"question": f"Question {i}?", "answer": a, "criterion": "Says yes.", "truth": t, "correct": t}
        for i in range(4)
        for a, t in (("yes", True), ("no", False))
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert command(tmp_path, "--labels", str(path)) == 0
    report = found(tmp_path)
    assert report["labels"]["source"] == str(path) and report["overall"]["n"] == 8
    assert report["kinds"].keys() == {"other"} and report["auc"]["within"]["value"] == 1.0
    assert report["bias"]["length"]["difference"]["value"] is None  # no pairs


@pytest.mark.parametrize(
    "args, message",
    [
        (("--part=test",), "--part=test is unknown; expected dev or heldout"),
        (("--forms=lists/x",), "is not a form"),
        (("--labels=/nowhere.jsonl",), "cannot read '/nowhere.jsonl'"),
        (("--config.teacher.scripted.noise=x.json",), "cannot read teacher.scripted.noise='x.json'"),
        (("--config.teacher.scripted.labels=x.jsonl",), "teacher.scripted.labels: cannot read"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, args, message):
    assert command(tmp_path, *args) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# ------------------------------------------------------------------------------------------------------ tape, budget


def test_a_second_calibration_costs_nothing_and_says_the_same(tmp_path, model, monkeypatch):
    monkeypatch.setenv("THE_KEY", "the-key")
    questions, options = load(limit=6)[0], Options(limit=6)
    first, second = (
        calibrate(openai(model), questions, {"source": "s", "sha": "0"}, options, seed=0, workdir=tmp_path)
        for _ in range(2)
    )
    assert (first["traffic"]["taped"], second["traffic"]["taped"]) == (0, 12)
    same = ("calls", "input_tokens", "output_tokens")
    assert [first["traffic"][k] for k in same] == [second["traffic"][k] for k in same]
    assert second["traffic"]["wall_seconds"] is None and first["traffic"]["wall_seconds"] > 0
    assert first["traffic"]["usd"] is None and first["traffic"]["per_1000_verdicts"]["usd"] is None  # no price
    assert first["traffic"]["spent_usd"] is None
    for key in ("overall", "kinds", "families", "bias", "auc", "flips"):
        assert first[key] == second[key]
    assert first["overall"]["accuracy"]["value"] == 1.0
    assert "unknown cost" in reports.markdown(first)


def test_a_cap_of_the_budget_reports_what_there_is(tmp_path, capsys):
    assert command(tmp_path, "--config.teacher.budget.calls=7", "--config.teacher.concurrency=1",
                   "--config.teacher.min_concurrency=1") == 4  # fmt: skip
    report = found(tmp_path)
    assert report["traffic"]["calls"] == 7 and "teacher.budget.calls=7 is reached" in report["stopped"]
    assert 1 <= report["labels"]["asked"] < 42 and report["overall"]["accuracy"]["value"] == 1.0
    assert any("The budget was reached" in text for text in report["recommendation"])


def test_a_budget_spent_before_is_an_error(tmp_path):
    teacher = teacher_cfg(budget__calls=1, tape__mode="off")
    labels = {"source": "s", "sha": "0"}
    questions = load(limit=1)[0]
    teacher["scripted"]["labels"] = list(verdict_rows(questions))
    first = calibrate(teacher, questions, labels, Options(), seed=0, workdir=tmp_path)
    assert first["stopped"] and first["flips"]["value"] is None  # only the first look
    with pytest.raises(BudgetError, match="no question could be judged"):
        calibrate(teacher, questions, labels, Options(), seed=0, workdir=tmp_path)


def test_a_failing_teacher_leaves_answers_unscored_by_cause(tmp_path):
    teacher = teacher_cfg(scripted__fault_rate=1.0, tape__mode="off") | {"attempts": 1}
    questions = load(limit=2)[0]
    teacher["scripted"]["labels"] = list(verdict_rows(questions))
    report = calibrate(teacher, questions, {"source": "s", "sha": "0"}, Options(), seed=0, workdir=None)
    assert report["unscored"]["share"] == 1.0 and sum(report["unscored"]["causes"].values()) == 28
    assert report["overall"]["accuracy"]["value"] is None and report["traffic"]["failures"]


# ---------------------------------------------------------------------------------------------------------- forms


def test_several_forms_make_one_table(tmp_path, monkeypatch):
    teacher = teacher_cfg()
    teacher["verifier"] |= {"form": "lists", "answers_per_call": 0, "criteria_per_call": 0}
    monkeypatch.setattr("ropd_jax.calibration.run.with_form", lambda verifier, form: dict(verifier))
    found = main(teacher, Options(limit=3, forms="lists,lists/3"), seed=0, out=tmp_path)
    assert len(found) == 2
    comparison = json.loads((tmp_path / "report.json").read_text())
    assert [row["form"] for row in comparison["forms"]] == ["lists", "lists/3"]
    assert comparison["recommendation"][0].startswith("Best by kappa: lists (1.00)")
    assert summary(tmp_path / "lists_3" / "report.json")["kappa"]["value"] == 1.0
    page = (tmp_path / "report.md").read_text()
    assert page.count("\n| lists") == 2 and "## Recommendation" in page


def test_a_budget_that_ends_between_two_forms_reports_the_first(tmp_path, monkeypatch):
    teacher = teacher_cfg(budget__calls=2)
    teacher["verifier"] |= {"form": "lists", "answers_per_call": 0, "criteria_per_call": 0}
    monkeypatch.setattr("ropd_jax.calibration.run.with_form", lambda verifier, form: dict(verifier))
    (only,) = main(teacher, Options(limit=1, forms="lists,lists/3"), seed=0, out=tmp_path)
    assert "teacher.budget.calls=2 is reached" in only["stopped"]
    assert len(json.loads((tmp_path / "report.json").read_text())["forms"]) == 1


def test_a_form_changes_the_request_and_smaller_calls_have_no_halo_and_no_place(tmp_path):
    noise = '{"kinds": {"other": {"false_positive": 0.2, "false_negative": 0.2}}, "halo": 0.4, "position": -0.2}'
    options = Options(limit=12, forms="lists,keyed,by_criterion,keyed/1,keyed/1/1")
    lists, keyed, by_criterion, one, single = main(teacher_cfg(scripted__noise=noise), options, seed=0, out=tmp_path)
    assert lists["overall"] == keyed["overall"] == by_criterion["overall"]  # the same judge, the same errors
    assert lists["bias"]["halo"]["low"] > 0.1 and lists["bias"]["position"]["high"] < 0
    assert one["bias"]["position"]["value"] is None and one["bias"]["halo"]["low"] > 0.1
    assert single["bias"]["halo"]["low"] < 0.05 and single["traffic"]["calls"] > 5 * one["traffic"]["calls"] / 2
    assert single["auc"]["within"]["value"] > lists["auc"]["within"]["value"]


# ---------------------------------------------------------------------------------------------------------- labels


def test_a_long_question_is_asked_in_groups_and_pairs_stay_together():
    criteria = (LabelledCriterion("c1", "x"),)
    answers = [LabelledAnswer(f"a{i}", str(i), truth=(True,)) for i in range(20)]
    answers.append(LabelledAnswer("twin", "0 0", truth=(True,), like="a0", differs="length"))
    parts = groups(LabelledQuestion("q", "Q?", criteria, tuple(answers)), MOST_ANSWERS)
    assert [len(p.answers) for p in parts] == [12, 9]
    assert {a.id for p in parts for a in p.answers} == {a.id for a in answers}
    assert {"a0", "twin"} <= {a.id for a in parts[0].answers}
    assert groups(parts[0], MOST_ANSWERS) == [parts[0]]


def test_a_limit_has_every_family_and_a_part_that_is_not_there_is_an_error(tmp_path):
    questions, _, sha = load(limit=6)
    assert len({q.family for q in questions}) == 6 and sha == load()[2] != load(part="heldout")[2]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(questions[0].as_row()) + "\n")
    with pytest.raises(UserError, match="has no question in part 'heldout'; use --part dev"):
        load(str(path), part="heldout")


def test_foreign_text_in_labels_cannot_break_the_report(tmp_path, capsys):
    evil = "<img src=x>|[a](http://x)\x1b[2J `#"
    row = {
        "question": "Q?", "family": evil, "criteria": [{"text": "Says yes."}],
        "answers": [{"text": "yes\x1b[2J", "kind": evil, "truth": [True], "correct": True}],
    }  # fmt: skip
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert command(tmp_path, "--labels", str(path)) == 0
    page = (tmp_path / "out" / "report.md").read_text()
    assert "\x1b" not in page and "\x1b[2J" not in capsys.readouterr().out
    line = next(text for text in page.splitlines() if "img" in text)
    assert "\\<img src=x\\>\\|\\[a\\](http" in line and line.replace("\\|", "").count("|") == 8
