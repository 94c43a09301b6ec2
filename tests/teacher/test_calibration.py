"""The part of a calibration report that a run reads."""

from __future__ import annotations

import json

import pytest

from ropd_jax.plan.preflight import calibration_line
from ropd_jax.teacher.calibration import SCHEMA_VERSION, reliability, summary
from ropd_jax.training.metrics import make_result
from ropd_jax.training.setup import setup
from ropd_jax.types import UserError
from ropd_jax.workdir.result import final_table
from tests.runs.test_train import tiny_config

REPORT = {
    "schema_version": SCHEMA_VERSION,
    "verifier": {"model": "m", "form": "keyed/1", "template": "verifier.v2@ab"},
    "labels": {"source": "ropd_jax dev", "sha": "abcd"},
    "verdicts": 10,
    "overall": {
        "kappa": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10},
        "accuracy": {"value": None, "low": None, "high": None, "n": 0},
    },
    "kinds": {"form": {"reliability": 0.25}, "method": {"reliability": None}},
}


def write(path, **changes):
    path.write_text(json.dumps(REPORT | changes))
    return path


def test_a_summary_has_kappa_accuracy_form_and_labels(tmp_path):
    found = summary(write(tmp_path / "report.json"))
    assert found["kappa"] == {"value": 0.5, "low": 0.4, "high": 0.6} and found["accuracy"]["value"] is None
    assert (found["model"], found["form"], found["labels_sha"], found["verdicts"]) == ("m", "keyed/1", "abcd", 10)
    assert len(found["sha"]) == 16 and summary("") is None


def test_reliability_by_kind_is_none_where_it_is_unknown(tmp_path):
    found = reliability(write(tmp_path / "report.json"))
    assert found["form"] == 0.25 and found["method"] is None and found["no_error"] is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"schema_version": "ropd.calibration.v9"}, "schema_version is 'ropd.calibration.v9'"),
        ({"overall": {}}, "an unexpected form"),
        ({"overall": 3}, "an unexpected form"),
        ({"verdicts": "many"}, "an unexpected form"),
    ],
)
def test_a_file_that_is_no_report_is_one_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        summary(write(tmp_path / "report.json", **changes))


def test_a_reliability_outside_0_to_1_is_refused(tmp_path):
    with pytest.raises(UserError, match="reliability of form is 7"):
        reliability(write(tmp_path / "report.json", kinds={"form": {"reliability": 7}}))


def test_a_run_reads_its_report_before_anything_else(tmp_path):
    with pytest.raises(UserError, match=r"teacher\.calibration: no file 'none\.json'"):
        setup(tiny_config(teacher__calibration="none.json"), tmp_path)


def test_the_result_records_the_summary(tmp_path):
    numbers = dict(method="ropd", seed=0, steps=1, heldout_n=1, seconds=1.0, groups_total=1, groups_unscored=0)
    made = make_result(**numbers, before={}, after={}, teacher={}, calibration=summary(write(tmp_path / "r.json")))
    assert made["calibration"]["kappa"]["value"] == 0.5 and made["calibration"]["form"] == "keyed/1"
    assert make_result(**numbers, before={}, after={}, teacher={})["calibration"] is None


def test_the_table_of_a_result_shows_the_kappa(tmp_path):
    about = summary(write(tmp_path / "r.json"))
    cells = [str(c) for c in final_table({"calibration": about}).columns[1].cells]
    assert cells == ["0.50"] and not list(final_table({"calibration": None}).columns[1].cells)


def test_preflight_names_the_figures_or_the_command(tmp_path):
    found = summary(write(tmp_path / "report.json"))
    line = calibration_line(found, "m")
    assert line.startswith("Verifier: kappa 0.50 [0.40, 0.60], accuracy unknown in form keyed/1 (")
    assert "That was m; this run's verifier is n." in calibration_line(found, "n")
    assert "ropd calibrate-judge --config FILE measures it" in calibration_line(None, "m")
