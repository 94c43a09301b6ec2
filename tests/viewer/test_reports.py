"""The runs next to each other, and the reports of other commands about a run: the data behind the pages."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import aiohttp
import pytest

from ropd_jax.analysis import criteria as analysis
from ropd_jax.evaluation.stats import clustered
from ropd_jax.viewer import criteria as module
from ropd_jax.viewer import server
from tests.viewer.stored import F, T, write_group


def result(values, **more):
    """A result as ``ropd eval`` writes it."""
    e = clustered(list(values.values()))
    value = {"value": e.value, "low": e.low, "high": e.high, "n": e.n, "ungraded": e.ungraded}
    return {
        "version": 1, "benchmark": "gsm8k", "title": "GSM8K", "metric": "avg@2", "value": value, "k": [2, 2],
        "problems": {"answered": len(values), "of": 9}, "answers": 2 * len(values), "wrong": {"no answer": 1},
        "ungraded": {"answers": 0, "frac": 0.0, "causes": {}}, "truncated": {"answers": 0, "frac": 0.0, "unknown": 0},
        "data": {"sha": "s", "place": "p"}, "pass": {"1": value, "2": value}, "maj": value, "parts": {},
        "per_problem": values, **more,
    }  # fmt: skip


def calibration():
    e = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    measures = {"n": 9, "accuracy": e, "sensitivity": e, "specificity": e, "kappa": e}
    each = {"calls": 3.0, "input_tokens": 9.0, "output_tokens": 1.0, "usd": None, "call_seconds": 1.0}
    return {
        "schema_version": "ropd.calibration.v1", "verifier": {"model": "<b>judge</b>", "form": "keyed"},
        "labels": {"asked": 4, "questions": 6}, "verdicts": 9, "stopped": None, "recommendation": ["Do <i>not</i>."],
        "overall": measures, "kinds": {"final_result": {**measures, "reliability": 0.5}},
        "families": {"facts": {**measures, "auc": {"all": e}}}, "auc": {"all": e, "within": e}, "flips": e,
        "bias": {"position": e, "length": {"difference": e, "per_doubling": e}, "style": {"difference": e}, "halo": e},
        "traffic": {"per_1000_verdicts": each},
    }  # fmt: skip


def rejudged(run):
    cell = {"step": 1, "group": 0, "answer": "0", "id": "c1", "points": 1, "text": "<b>adds</b>", "before": True,
            "after": False}  # fmt: skip
    criterion = {"step": 1, "prompt_id": "sum-1-0", "id": "c1", "points": 1, "text": "adds", "answers": 4,
                 "agreement": 0.5, "kappa": None, "true_before": 3, "true_after": 1}  # fmt: skip
    sides = {"before": {"model": "one"}, "after": {"model": "two"}}
    return {
        "run": run, "steps": [1], "rubric": "stored", "verifier": sides, "groups": 1, "rollouts": 3, "kappa": 0.25,
        "kappa_by_points": {"1": None}, "verdicts_changed_frac": 0.5, "reward_changed_frac": 0.5, "pearson": None,
        "best_changed_frac": 0.0, "spearman_within_groups": None, "reward_mean": {"before": 0.5, "after": 0.25},
        "advantage_signs": {"rollouts": 3, "flipped": 1, "flipped_frac": 0.3, "vanished": 0, "appeared": 0},
        "unscored": {"before": {"rollouts": 0, "causes": {}}, "after": {"rollouts": 1, "causes": {}}},
        "criteria": [criterion, {**criterion, "agreement": 1.0}], "cells": [cell],
    }  # fmt: skip


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def make_folder(place):
    """Runs a_s0 and a_s1 (seeds of one config), b (another learning rate, still running), and reports of all kinds."""
    for name, seed, lr in (("a_s0", 0, 1e-4), ("a_s1", 1, 1e-4), ("b", 0, 3e-4)):
        run = place / name
        for step in range(6):
            for group in range(6):
                passed = ((T, step > 2), (T, F), None)
                write_group(run, step, passed, index=group)
        write(run / "config.json", {"seed": seed, "steps": 6, "method": "ropd", "optim": {"lr": lr}})
        rows = [
            {"step": s, "reward/mean": 0.1 * s + 0.2 * seed, "eval/drift": float(s == 5), "teacher/calls": 9.0 * s,
             "teacher/calls_verify": 9.0 * s, "teacher/cost_usd_verify": 0.01 * s, "teacher/cost_usd": 0.01 * s,
             "reward/unscored_malformed": 2} for s in range(1, 7)
        ]  # fmt: skip
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if name != "b":
            write(run / "result.json", {"method": "ropd", "accuracy_after": 0.5, "accuracy_after_interval": [0.4, 0.6]})
    before = {f"p{i}": 0.5 for i in range(4)} | {"left": None}
    write(place / "a_s0" / "eval" / "gsm8k_step6" / "result.json",
          result({"p0": 1.0, "p1": 0.5, "p2": 0.0, "p3": 1.0, "left": 1.0}))  # fmt: skip
    write(place / "evals" / "tiny" / "gsm8k" / "result.json", result(before))
    lines = [{"id": "p1", "response": "<b>five</b>", "finish_reason": "length"}, {"id": "p2", "response": "no"}]
    (place / "a_s0" / "eval" / "gsm8k_step6" / "answers.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    write(place / "calibrate-judge" / "report.json", calibration())
    write(place / "rejudged.json", rejudged("runs/a_s0"))
    write(place / "other.json", {"anything": 1})
    (place / "broken.json").write_text("{")
    return place


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path)


def fetched(directory, *paths):
    """(status, value) of each path of the API."""

    async def main():
        found = []
        async with server.running(directory, token="t") as url, aiohttp.ClientSession() as session:
            for path in paths:
                async with session.get(f"{url}api/{path}") as reply:
                    found.append((reply.status, await reply.json()))
        return found

    return asyncio.run(main())


def test_the_runs_say_how_far_they_are(folder):
    write(folder / "b" / "status.json", {"at": 1.0, "state": "ended", "done": 6})
    [(_, found)] = fetched(folder, "overview")
    rows = {r["name"]: r for r in found["runs"]}
    assert {n: r["state"] for n, r in rows.items()} == {"a_s0": "finished", "a_s1": "finished", "b": "ended"}
    assert (rows["a_s1"]["done"], rows["a_s1"]["steps"], rows["a_s1"]["seed"]) == (6, 6, 1)
    assert rows["a_s1"]["reward"] == pytest.approx(0.8) and rows["a_s1"]["alarms"] == 1


def test_seeds_are_one_line_and_only_the_differing_keys_are_listed(folder):
    [(_, found), (status, error)] = fetched(folder, "compare?runs=a_s0,b,a_s1", "compare?runs=a_s0,c")
    assert found["lines"] == [{"label": "a (2 seeds)", "runs": ["a_s0", "a_s1"]}, {"label": "b", "runs": ["b"]}]
    [difference] = found["differences"]
    assert (difference["key"], difference["values"], difference["default"]) == ("optim.lr", [1e-4, 3e-4], 1e-6)
    assert found["running"] and status == 404 and "c" in error["error"]


def test_a_run_says_what_differs_from_the_defaults_and_shows_no_password(folder):
    config = {"seed": 5, "teacher": {"base_url": "http://me:secret@host/v1"}, "own": 1}
    write(folder / "b" / "config.json", config)
    [(_, about)] = fetched(folder, "runs/b")
    keys = {c["key"]: c for c in about["changes"]}
    assert (keys["seed"]["value"], keys["seed"]["default"], keys["own"]["known"]) == (5, 0, False)
    assert "secret" not in json.dumps(about) and about["result"] is None and about["status"] == {}


def test_criteria_are_clustered_in_the_background(folder):
    async def main():
        async with server.running(folder, token="t") as url, aiohttp.ClientSession() as session:
            async with session.get(f"{url}api/runs/a_s0/criteria") as reply:  # not from a page: it gets everything
                found = await reply.json()
            first = next(c for c in found["found"]["clusters"] if c["text"] == "Ends with 5.")
            async with session.get(f"{url}api/runs/a_s0/criteria/{first['id']}") as reply:
                one = await reply.json()
            async with session.get(f"{url}api/runs/a_s0/criteria/nothing") as reply:
                return found, one, reply.status

    found, one, status = asyncio.run(main())
    assert (found["found"]["criteria"], found["found"]["groups"], found["read"]) == (72, 36, 6)
    assert not found["working"]
    assert {c["text"]: c["verdict"] for c in found["found"]["clusters"]} == {
        "Adds the first two numbers.": "", "Ends with 5.": "learned"
    }  # fmt: skip
    assert "members" not in found["found"]["clusters"][0] and found["found"]["rarer"] == 0
    assert len(one["criteria"]) == 36 and one["criteria"][0]["rate"] == 0.5 and status == 404


def test_a_page_sees_the_progress_and_new_files_begin_a_new_pass(folder, monkeypatch):
    gate, reading = threading.Event(), analysis.read_file
    monkeypatch.setattr(analysis, "read_file", lambda path: gate.wait(60) and reading(path))
    monkeypatch.setattr(module, "AGAIN_S", 0.0)
    job = module.CriteriaJob(folder / "b")
    first = job.clusters(wait_s=0.01)
    assert (first["working"], first["read"], first["of"], first["found"]) == (True, 0, 6, None)
    gate.set()
    assert job.clusters(wait_s=60.0)["found"]["groups"] == 36
    write_group(folder / "b", 6)
    job.clusters()
    for _ in range(600):
        found = job.clusters()
        if not found["working"]:
            break
        time.sleep(0.05)
    assert found["found"]["groups"] == 37


def test_benchmarks_of_the_run_come_first_and_are_paired(folder):
    name, other = "a_s0/eval/gsm8k_step6/result.json", "evals/tiny/gsm8k/result.json"
    place = f"runs/a_s0/benchmarks?result={name}"
    listed, paired, answers, unknown, outside = (
        value for value in fetched(folder, "runs/a_s0/benchmarks", f"{place}&against={other}", f"{place}&problem=p1",
                                   f"{place}&against=nothing", "runs/a_s0/benchmarks?result=../x.json")
    )  # fmt: skip
    assert [(r["name"], r["own"]) for r in listed[1]["results"]] == [(name, True), (other, False)]
    found = paired[1]["paired"]
    assert (found["better"], found["worse"], found["n"], found["value"]) == (2, 1, 4, 0.125)
    assert found["p"] == 1.0  # two against one
    rows = {r["id"]: (r["value"], r["before"]) for r in paired[1]["rows"]}
    assert rows["p2"] == (0.0, 0.5) and rows["left"] == (1.0, None) and paired[1]["others"] == [other]
    assert answers[1]["answers"] == [{"text": "<b>five</b>", "truncated": True}]
    assert unknown[0] == outside[0] == 404


def test_the_judge_page_finds_reports_and_leads_to_groups(folder):
    (_, mine), (_, other) = fetched(folder, "runs/a_s0/judge", "runs/b/judge")
    [report] = mine["rejudged"]
    assert (report["cells"][0]["group"], report["cells_total"], report["kappa"]) == (0, 1, 0.25)
    assert [(c["group"], c["agreement"]) for c in report["criteria"]] == [(0, 0.5)]  # by its prompt
    assert [c["name"] for c in mine["calibrations"]] == ["calibrate-judge/report.json"]
    assert other["rejudged"] == [] and len(other["calibrations"]) == 1
