"""``ropd eval``: which weights, what is stored, what a second start does. The engine itself is tested elsewhere."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from ropd_jax import configs
from ropd_jax.cli.main import main
from ropd_jax.evaluation import grading, subject
from ropd_jax.evaluation import run as evalrun
from ropd_jax.evaluation.benchmarks import load_benchmark
from ropd_jax.evaluation.graders import math_pool
from ropd_jax.models.lora import Lora, adapter_shapes, attach
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.types import Rollout, RolloutGroup, UserError
from ropd_jax.weights.student import load_checkpoint
from ropd_jax.workdir.checkpoint import Checkpoints
from tests.helpers import trees_max_diff

BASE = ["eval", "tiny", "--benchmark=reasoning_gym:chain_sum", "--template={question}", "--k=2", "--limit=5"]


def args(out, *more):
    return [*BASE, "--max_tokens=8", "--rows=16", f"--out={out}", *more]


def lines(out):
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One real evaluation of the shipped student."""
    out = tmp_path_factory.mktemp("eval") / "out"
    assert main(args(out)) == 0
    return out


def test_answers_and_result_hold_what_is_needed_to_trust_them(whole):
    rows = lines(whole)
    assert len(rows) == 10 and {row["sample"] for row in rows} == {0, 1}
    assert all(row["tokens"] <= 8 and row["finish_reason"] in ("stop", "length") for row in rows)
    result = json.loads((whole / "result.json").read_text())
    assert (result["metric"], result["problems"]["answered"], result["k"]) == ("avg@2", 5, [2, 2])
    assert result["sampling"] == {"k": 2, "temperature": 1.0, "top_p": 0.95, "max_tokens": 8}
    assert result["truncated"]["answers"] == sum(row["finish_reason"] == "length" for row in rows)
    assert result["truncated"]["unknown"] == 0 and result["checkpoint"] is None
    assert (result["student"], result["template"], result["device"]) == ("tiny", "{question}", "cpu")


def test_after_a_kill_it_goes_on_and_ends_with_the_same_answers(whole, tmp_path):
    text = (whole / "answers.jsonl").read_text()
    out = tmp_path / "out"
    out.mkdir()
    (out / "settings.json").write_text((whole / "settings.json").read_text())
    (out / "answers.jsonl").write_text(text[: text.index("\n", len(text) // 2) + 40])  # torn inside a line
    assert main(args(out)) == 0
    key = lambda row: (row["id"], row["sample"])  # noqa: E731
    assert sorted(lines(out), key=key) == sorted(lines(whole), key=key)


def test_a_finished_one_is_graded_again_without_sampling(whole, monkeypatch, capsys):
    monkeypatch.setattr(evalrun, "sample_groups", lambda *a, **k: pytest.fail("it sampled"))
    assert main(args(whole, f"--against={whole / 'result.json'}")) == 0
    assert "difference to" in capsys.readouterr().out


def test_other_settings_are_refused_with_the_difference(whole, capsys):
    assert main([*args(whole), "--temperature=0.5"]) == 2
    err = capsys.readouterr().err
    assert "holds answers of other settings" in err and "'temperature': 0.5" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max_tokens=4000"], "--max_tokens"),
        (["--temperature=0"], "gives one answer 2 times; give --k 1"),
        (["--pick=best"], "--pick=best is unknown; expected last or heldout"),
    ],
)
def test_what_cannot_be_sampled_is_said_before_anything_is(tmp_path, capsys, more, message):
    assert main([*args(tmp_path / "o"), *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("grader", ["math", "ifeval"])
def test_a_grader_that_is_not_installed_is_said_before_anything_is_sampled(tmp_path, monkeypatch, capsys, grader):
    def fails(*_):
        raise math_pool.MathPoolError("the grading process does not start (no math_verify); pip install ...")

    monkeypatch.setattr(math_pool, "_started", fails)
    monkeypatch.setattr(grading.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(evalrun, "sample_groups", lambda *a, **k: pytest.fail("it sampled"))
    found = load_benchmark("reasoning_gym:chain_sum", "", limit=2, template="{question}")
    other = dataclasses.replace(found, benchmark=dataclasses.replace(found.benchmark, grader=grader))
    monkeypatch.setattr(evalrun, "load_benchmark", lambda *a, **k: other)
    assert main(args(tmp_path / "o")) == 2
    err = capsys.readouterr().err
    assert ("does not start" if grader == "math" else "needs langdetect, punkt, nltk") in err


@pytest.mark.parametrize("on_mesh", [False, True])
def test_a_loaded_student_is_evaluated_in_memory_with_the_answers_of_the_command(whole, tmp_path, monkeypatch, on_mesh):
    monkeypatch.chdir(tmp_path)
    student = load_checkpoint("tiny", mesh=mesh_lib.make_mesh(-1, 1) if on_mesh else None)
    how = {"k": 2, "limit": 5, "template": "{question}", "max_tokens": 8, "rows": 16}
    result = evalrun.evaluate(student, "reasoning_gym:chain_sum", **how)
    assert [(a.id, a.response) for a in result.answers] == [(r["id"], r["response"]) for r in lines(whole)]
    stored = json.loads((whole / "result.json").read_text())
    assert (result.metric, result.per_problem) == (stored["metric"], stored["per_problem"])
    assert dataclasses.asdict(result.value) == stored["value"]
    assert dataclasses.asdict(result.pass_at(2)) == stored["pass"]["2"]
    assert result.data["student"] == "in memory" and result.data["answers_file"] == "in memory"
    assert str(result).startswith("chain_sum avg@2: 0.")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_answers_of_other_weights_is_refused(tmp_path):
    student = load_checkpoint("tiny")
    how = {"k": 2, "limit": 2, "template": "{question}", "max_tokens": 8, "rows": 16, "out": tmp_path / "out"}
    evalrun.evaluate(student, "reasoning_gym:chain_sum", **how)
    other = dataclasses.replace(student, params=jax.tree.map(lambda x: x + 1, student.params))
    with pytest.raises(UserError, match=r"holds answers of other settings \(weights: "):
        evalrun.evaluate(other, "reasoning_gym:chain_sum", **how)


# ------------------------------------------------------------------------------------------------------ a run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three kept checkpoints, each of other weights, with a held-out accuracy for two of them."""
    path = tmp_path_factory.mktemp("run")
    cfg = configs.default()
    (path / "config.json").write_text(json.dumps(cfg.to_dict()))
    params = load_checkpoint("tiny").params
    checkpoints = Checkpoints(path / "checkpoints", keep=9)
    for step in (2, 4, 6):
        checkpoints.save(step, {"params": jax.tree.map(lambda x, s=step: np.full_like(x, s), params)}, {})
    checkpoints.close()
    rows = [{"step": 2, "eval/accuracy": 0.5}, {"step": 4, "eval/accuracy": 0.5}, {"step": 5, "eval/accuracy": 0.9}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_the_checkpoint_is_the_last_or_the_best_on_the_held_out_set(run):
    cfg = subject.run_config(str(run))
    assert subject.choose_step(run, cfg.data, "last") == {"step": 6, "rule": "last", "why": "the newest of the 3 kept"}
    chosen = subject.choose_step(run, cfg.data, "heldout")
    assert (chosen["step"], chosen["rule"]) == (2, "heldout")
    assert "0.5000" in chosen["why"] and "reasoning_gym:chain_sum (seed=90000000)" in chosen["why"]


def test_without_a_held_out_accuracy_nothing_is_picked_by_it(run, tmp_path):
    (tmp_path / "checkpoints" / "6").mkdir(parents=True)
    with pytest.raises(UserError, match="no kept checkpoint"):
        subject.choose_step(tmp_path, configs.default().data, "heldout")
    (tmp_path / "checkpoints" / "6").rmdir()
    with pytest.raises(UserError, match="no checkpoint yet"):
        subject.choose_step(tmp_path, configs.default().data, "last")


def test_the_weights_are_those_of_the_chosen_step(run):
    chosen = subject.subject_of(run, pick="last")
    assert (chosen.name, chosen.checkpoint["step"], chosen.dtype) == (str(run), 6, "float32")
    student = chosen.load(mesh_lib.make_mesh(1, 1, jax.devices()[:1]))
    assert {float(x.min()) for x in jax.tree.leaves(student.params)} == {6.0}
    assert {float(x.max()) for x in jax.tree.leaves(student.params)} == {6.0}


def test_the_adapters_of_a_run_stand_beside_its_frozen_weights(tmp_path):
    cfg = configs.default()
    cfg.student.lora.rank = 2
    (tmp_path / "config.json").write_text(json.dumps(cfg.to_dict()))
    lora, tiny = Lora.from_config(cfg.student.lora), load_checkpoint("tiny")
    adapters = jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), adapter_shapes(tiny.cfg, lora))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(3, {"params": adapters}, {})
    checkpoints.close()
    (tmp_path / "config.json").write_text(json.dumps(cfg.to_dict()))
    student = subject.subject_of(tmp_path).load(mesh_lib.make_mesh(1, 1, jax.devices()[:1]))
    wanted = attach(lora, tiny.params, adapters)
    assert trees_max_diff(jax.device_get(student.params), wanted) == 0.0


def test_a_run_is_distinguished_from_a_checkpoint(run, tmp_path):
    assert subject.run_config("tiny") is None
    assert subject.run_config(str(tmp_path)) is None
    assert subject.run_config(str(run)).student.checkpoint == "tiny"


# ------------------------------------------------------------------------------------------------ the answers' file


def group(prompt, texts):
    rollouts = tuple(Rollout(np.zeros(2, np.int32), np.zeros(2, np.float32), t, "stop") for t in texts)
    return RolloutGroup(prompt, np.zeros(1, np.int32), rollouts, 0, 0)


def test_only_problems_with_all_their_samples_are_done(tmp_path):
    prompts = load_benchmark("reasoning_gym:gcd", limit=3).prompts
    path = tmp_path / "answers.jsonl"
    assert evalrun.remaining(path, prompts, 2) == list(prompts)
    one, two = (evalrun.answer_lines(group(p, ["a\u2028b", "é\nc"])) for p in prompts[:2])
    path.write_text(one + two.split("\n")[0] + '\n{"id"')
    assert evalrun.remaining(path, prompts, 2) == list(prompts[1:])
    assert path.read_text() == one
    assert [json.loads(line)["response"] for line in one.splitlines()] == ["a\u2028b", "é\nc"]
