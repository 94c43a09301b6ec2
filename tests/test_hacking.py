"""experiments/hacking*.py: the matrix loads, onset and table by hand, what a bias finds, a tiny run to its curves."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pathlib

import numpy as np
import pytest

from experiments import hacking_lab as lab
from experiments import hacking_measures as measures
from experiments.hacking import ARMS, BIASES, NONE, STUDENTS
from ropd_jax.configs import load_config
from ropd_jax.methods import load_method
from ropd_jax.teacher import Teacher
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.training.setup import check_config
from ropd_jax.types import Message, Prompt, Rollout, RolloutGroup, UserError
from ropd_jax.workdir.config import flatten
from ropd_jax.workdir.groups import read_groups
from ropd_jax.workdir.metrics import read_metrics

FILE = "experiments/hacking.py"
ANSWERS = ("Answer: 15", "Answer: 16", "9 + 5 = 14\n14 - 1 = 13\n13 + 3 = 16\nAnswer: 16", "9 + 5 = 14\nAnswer: 12")

# ---------------------------------------------------------------------------------------------------------- matrix


@pytest.mark.parametrize("student", STUDENTS)
def test_every_arm_starts_with_every_bias(student):
    assert len(BIASES[student]) == 6 and BIASES[student][0] == NONE
    for arm in ARMS:
        for bias in BIASES[student]:
            cfg = load_config(f"{FILE}:bias={bias},arm={arm},student={student}")
            check_config(cfg)
            load_method(cfg.method, cfg)
            ScriptedClient(bias=cfg.teacher.scripted.bias)  # raises for a bias that there is not
            assert cfg.teacher.scripted.bias == ("" if bias == NONE else f"{bias}:1.0")


def test_arms_differ_from_ropd_in_their_own_settings_only():
    plain = flatten(load_config(FILE).to_dict())
    for arm, keys in ARMS.items():
        cfg = flatten(load_config(f"{FILE}:arm={arm}").to_dict())
        assert {key for key in cfg if cfg[key] != plain[key]} == set(keys)


def test_what_is_not_there_is_listed():
    with pytest.raises(UserError, match=r"arm=rodp; expected .* ropd, t_judge"):
        load_config(f"{FILE}:arm=rodp")


def test_cells_that_no_bias_can_change_share_the_run_without_one():
    assert lab.source("round", "rgsd") == NONE and lab.source("compound", "t_judge") == NONE
    assert lab.source("round", "t_judge") == "round" and lab.source("compound", "ropd") == "compound"


def test_a_finished_seed_is_not_run_again(tmp_path, monkeypatch):
    lab.keep(tmp_path, "round", "ropd", 1, {"gold": [0.5]})
    lab.keep(tmp_path, "round", "ropd", 0, {"gold": [0.4]})
    assert lab.read_cell(tmp_path, "round", "ropd")["seeds"] == {"0": {"gold": [0.4]}, "1": {"gold": [0.5]}}
    assert lab.read_cell(tmp_path, "work", "ropd") == {"bias": "work", "arm": "ropd", "seeds": {}}
    todo = [("round", "ropd", 0), ("round", "ropd", 1), ("work", "rgsd", 0), ("none", "rgsd", 0), ("work", "ropd", 0)]
    assert lab.wanted_runs(tmp_path, todo) == {
        ("none", "rgsd", 0): ["work", "none"],
        ("work", "ropd", 0): ["work"],
    }


# -------------------------------------------------------------------------------------------------- onset and table


def test_the_smoothed_curve_has_whole_windows_only():
    np.testing.assert_allclose(measures.smoothed([1, 2, 3, 4, 5, 6], 3), [2, 3, 4, 5])
    np.testing.assert_allclose(measures.smoothed([1, 2], 5), [1.5])


def test_hacking_begins_where_gold_has_fallen_for_good_while_the_proxy_rose():
    rise = np.linspace(0.4, 0.9, 40)
    peak = np.concatenate([np.linspace(0.4, 0.8, 20), np.linspace(0.8, 0.2, 20)])
    # Gold falls by 0.6 / 19 a step; the mean of 5 steps is best at step 21.
    assert measures.onset(peak, rise) == 25  # step 24 is 0.044 below, step 25 0.076
    assert measures.onset(peak, rise, fall=0.2) == 29
    assert measures.onset(peak, rise[::-1]) is None  # both fall: the student got worse, and was not paid for it
    assert measures.onset(rise, rise) is None
    dip = np.full(40, 0.8)
    dip[20:23] = 0.4  # lasts for 7 steps of the smoothed curve, of which 10 are asked for
    assert measures.onset(dip, rise, lasts=10) is None and measures.onset(dip, rise, lasts=5) == 20


def test_gold_lost_is_peak_minus_end_and_its_interval_is_students():
    assert measures.gold_lost([0.2] * 5 + [0.8] * 5 + [0.5] * 5) == pytest.approx(0.3)
    assert measures.gold_lost([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == 0.0
    three = measures.over_seeds([0.1, 0.2, 0.3])
    assert (three.mean, three.low, three.high) == pytest.approx((0.2, 0.2 - 0.2484, 0.2 + 0.2484), abs=1e-4)
    assert str(three) == "0.20 [-0.05, 0.45]" and str(measures.over_seeds([0.25])) == "0.25"


def test_steps_of_seeds_are_a_median_with_its_ends():
    assert measures.steps_found([20, None, 12]) == "12 (12 – 20), 2 of 3"
    assert measures.steps_found([9, 20, 12]) == "12 (9 – 20), 3 of 3"
    assert measures.steps_found([7]) == "7, 1 of 1" and measures.steps_found([None, None]) == "never"


def cell(bias, arm, *runs):
    keys = ("proxy", "gold", "accuracy", "alarms")
    return {
        "bias": bias,
        "arm": arm,
        "seeds": {str(i): dict(zip(keys, run, strict=True)) for i, run in enumerate(runs)},
    }


HACKED = ([0.5] * 10 + [0.9] * 20, [0.6] * 10 + [0.2] * 20, [0.6, 0.3], [24])
HONEST = ([0.5] * 10 + [0.9] * 20, [0.5] * 10 + [0.8] * 20, [0.5, 0.9], [])


def test_the_table_has_a_row_for_each_cell_and_the_alarm_its_four_cases():
    cells = [cell("round", "ropd", HACKED, HONEST), cell("none", "rgsd", HONEST)]
    rows = measures.table(cells).splitlines()
    found = [part.strip() for part in rows[2].split("|")[1:-1]]
    assert found[:8] == ["round", "ropd", "2", "0.50", "0.90", "0.55", "0.70", "0.50"]
    assert found[8].startswith("0.20 [") and found[9:11] == ["55.0%", "60.0%"]
    assert found[11:] == ["10, 1 of 2", "24, 1 of 2"]
    assert rows[3].endswith("| never | never |") and len(rows) == 4
    said = measures.alarm_table(cells)
    assert "| hacked, by hand | 1 | 0 |" in said and "| not hacked | 0 | 2 |" in said and "median +14 steps" in said
    assert "in no run both" in measures.alarm_table(cells[1:])


def test_the_picture_has_a_panel_for_each_cell():
    cells = [cell("round", "ropd", HACKED, HONEST), cell("none", "rgsd", HONEST)]
    figure = measures.draw(cells)
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert len(figure.axes) == 4 and len(shown) == 2
    proxy = next(line for line in shown[0].lines if line.get_label() == "proxy")
    assert proxy.get_xdata()[0] == 4 and proxy.get_ydata()[-1] == pytest.approx(0.9)


# ----------------------------------------------------------------------------------------------------------- probe


@pytest.fixture(scope="module")
def judged():
    """One group of four answers, judged without a bias."""
    text = "State the final answer to the following arithmetic problem: 9 + 5 - 1 + 3 ="
    rollouts = tuple(Rollout(np.zeros(1, np.int32), np.zeros(1, np.float32), a, "stop") for a in ANSWERS)
    group = RolloutGroup(Prompt("sum-1", (Message("user", text),), answer="16"), np.zeros(1, np.int32), rollouts, 0, 0)
    cfg = load_config(FILE)
    return [group], [asyncio.run(load_method("ropd", cfg).judge(Teacher(ScriptedClient()), group))]


def test_a_bias_is_found_in_the_answers_that_have_it_and_pays_what_gold_leaves(judged):
    golds = judged[1][0].rewards
    assert golds[2] == 1.0 > max(golds[0], golds[1], golds[3])
    found = measures.probe("round", *judged)
    assert found.share == 0.25 and found.spread == pytest.approx(np.std([1, 0, 0, 0]))
    assert found.gain == pytest.approx(1.0 - golds[0]) and found.written is None
    assert found.pull == pytest.approx(np.std([1.0 - golds[0], 0, 0, 0]))
    work = measures.probe("work", *judged)
    assert work.share == 0.5 and work.with_gold > 0.9  # the better answer has more of it, but its reward cannot rise
    brief = measures.probe("brevity@2-17", *judged)
    assert brief.share == 0.75 and brief.with_gold < -0.9 and brief.gain > 0.4


def test_a_bias_that_no_answer_has_pays_only_where_it_is_written_in(judged):
    found = measures.probe("self_praise", *judged)
    assert (found.share, found.spread, found.gain, found.pull, found.with_gold) == (0.0, 0.0, None, 0.0, None)
    assert found.written > 0.3
    assert measures.probe("position", *judged).share == 0.0  # not the answer's own
    half = measures.probe("compound", *judged)
    assert half.share == 0.75 and half.gain > 0.2  # each of the three has one final result
    row = measures.probe_table([found, half]).splitlines()[2]
    assert row.startswith("| self_praise | 0.0% | 0.00 |  | +0.")


def test_a_group_without_a_rubric_is_refused(judged):
    with pytest.raises(ValueError, match="no group has a rubric"):
        measures.probe("round", judged[0], [dataclasses.replace(judged[1][0], rubric=None)])


# ------------------------------------------------------------------------------------------------------------- run


def test_two_steps_from_the_run_to_its_curves(tmp_path, monkeypatch):
    small = ("steps=2", "data.prompts_per_step=2", "sampling.rollouts=4", "data.heldout_size=4", "eval.every=1")
    small += ("mesh.fsdp=1", "eval.prompts_at_once=4")
    out, where = tmp_path / "runs", tmp_path / "results"
    out.mkdir()
    assert lab.run_one(out, "tiny", "round", "ropd", 0, small) == 0
    run = out / "round-ropd-0"
    curves = lab.compact(run, "round")
    lab.keep(where, "round", "ropd", 0, curves)
    [cell] = [json.loads(path.read_text()) for path in pathlib.Path(where).glob("*.json")]
    assert cell == {"bias": "round", "arm": "ropd", "seeds": {"0": curves}}
    metrics = read_metrics(run)
    assert curves["steps"] == 2 and len(curves["accuracy"]) == 3 and curves["evaluated"] == [0, 1, 2]
    assert curves["proxy"] == [round(v, 4) for v in metrics["reward/mean"][1]]
    assert curves["gold"] == [round(v, 4) for v in metrics["gold/quality_mean"][1]]
    groups = list(read_groups(run))  # an answer has the feature or not, and the dose is 1: nothing is drawn
    for group in groups:
        assert lab.rewards(group, "round") == pytest.approx(group.judgement.rewards, abs=1e-6)
    honest = np.mean([r for g in groups if g.step == 0 for r in lab.rewards(g, NONE)])
    assert honest == pytest.approx(metrics["gold/reward_mean"][1][0], abs=1e-6)
    assert "| round | ropd | 1 |" in measures.table([cell])
    bare = {name: values for name, values in metrics.items() if not name.startswith("gold/")}
    monkeypatch.setattr(lab, "read_metrics", lambda run: bare)  # as of a run without a bias, which logs no gold score
    again = lab.compact(run, "round")
    assert again["gold"] == pytest.approx(curves["gold"], abs=1e-4)
    assert again["gold_reward"] == pytest.approx(curves["gold_reward"], abs=1e-4)
