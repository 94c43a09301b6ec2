"""``ropd eval``: choice of weights, stored files, a second start. The engine itself is tested elsewhere."""

from __future__ import annotations

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest

from benchmarks.simulated_hosts import SimulatedHosts
from ropd_jax import configs
from ropd_jax.cli.main import main
from ropd_jax.evaluation import answers, grading, subject
from ropd_jax.evaluation import run as evalrun
from ropd_jax.evaluation.benchmarks import load_benchmark
from ropd_jax.evaluation.graders import math_pool
from ropd_jax.evaluation.results import EvalResult
from ropd_jax.models import transformer
from ropd_jax.models.lora import Lora, adapter_shapes, attach
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.sampling import capacity
from ropd_jax.sampling.engine import EngineConfig
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.types import Rollout, UserError
from ropd_jax.weights.hf import save_hf
from ropd_jax.weights.student import load_checkpoint
from ropd_jax.workdir.checkpoint import Checkpoints
from tests.helpers import TINY, trees_max_diff

BASE = ["--benchmark=reasoning_gym:chain_sum", "--template={question}", "--k=2", "--limit=5", "--max_tokens=8"]


def args(out, *more, student="tiny"):
    """The command line; a flag in ``more`` replaces the same default flag."""
    given = {flag.partition("=")[0]: flag for flag in (*BASE, "--rows=16", f"--out={out}", *more)}
    return ["eval", str(student), *given.values()]


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
    problems = [p.id for p in load_benchmark("reasoning_gym:chain_sum", limit=5).prompts]
    assert [(row["id"], row["sample"]) for row in rows] == [(i, n) for i in problems for n in (0, 1)]


def test_after_a_kill_it_goes_on_and_ends_with_the_same_answers(whole, tmp_path, monkeypatch):
    text = (whole / "answers.jsonl").read_text()
    out = tmp_path / "out"
    out.mkdir()
    (out / "settings.json").write_text((whole / "settings.json").read_text())
    kept = text.splitlines(keepends=True)
    there = [kept[7], kept[0], kept[3], kept[7]]  # as they ended; one of them twice, and the last line is torn
    (out / "answers.jsonl").write_text("".join(there) + kept[4][:40])
    sampled = []
    append = evalrun.append
    monkeypatch.setattr(evalrun, "append", lambda f, p, n, r: (sampled.append((p.id, n)), append(f, p, n, r)))
    assert main(args(out)) == 0
    assert (out / "answers.jsonl").read_text() == text  # byte for byte, whatever was there before
    have = {(row["id"], row["sample"]) for row in map(json.loads, there)}
    assert sorted(sampled) == sorted({(row["id"], row["sample"]) for row in lines(whole)} - have)


def test_a_request_to_stop_loses_no_answer_that_has_ended(whole, tmp_path, monkeypatch, caplog):
    def stops_after_the_first_chunk(progress, interrupt):
        def between(tokens):
            raise evalrun.Interrupted

        return between

    monkeypatch.setattr(evalrun, "_between", stops_after_the_first_chunk)
    assert main(args(tmp_path / "out")) == 130
    ended = lines(tmp_path / "out")
    assert ended and "Run the same command to resume" in caplog.text
    monkeypatch.undo()
    assert main(args(tmp_path / "out")) == 0
    assert lines(tmp_path / "out") == lines(whole)


def test_a_finished_one_is_graded_again_without_sampling(whole, monkeypatch, capsys):
    monkeypatch.setattr(evalrun, "sample_rollouts", lambda *a, **k: pytest.fail("it sampled"))
    assert main(args(whole, f"--against={whole / 'result.json'}")) == 0
    assert "difference to" in capsys.readouterr().out


def test_other_settings_are_refused_with_the_difference(whole, capsys):
    assert main([*args(whole), "--temperature=0.5"]) == 2
    err = capsys.readouterr().err
    assert "holds answers made with other settings" in err and "'temperature': 0.5" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max_tokens=4000"], "--max_tokens"),
        (["--temperature=0"], "gives the same answer 2 times; use --k 1"),
        (["--pick=best"], "--pick=best is unknown; expected last or heldout"),
        (["--dtype=int8"], "--dtype=int8 is unknown; expected float32 or bfloat16"),
        (["--config.sampling.cache_dtype=int4"], "sampling.cache_dtype='int4'; expected float32, bfloat16, int8"),
        (["--config.mesh.tp=2"], "mesh fsdp=4, tp=2: num_heads=3 does not divide"),
        (["--config.student.enable_thinking=True"], "this student's chat template never reads it"),
        (["--dtype=bfloat16", "--config.student.dtype=float32"], "--dtype=bfloat16 and --config.student.dtype=float32"),
        (["--num_processes=2"], "2 processes without --coordinator"),
        (["--config.seed=3"], "--config.seed does not change an evaluation; give --seed"),
        (["--config.sampling.temperature=0.5"], "does not change an evaluation; give --temperature"),
        (["--config.sampling.prompts_at_once=2"], "does not change an evaluation; give --rows"),
        (["--config.optim.lr=1e-4"], "--config.optim.lr does not change an evaluation; expected one of mesh.fsdp"),
        (["--config.student.lora.rank=4"], "--config.student.lora.rank does not change an evaluation"),
        (["--config.teacher.rubricator.model=x"], "--config.teacher.rubricator.model does not change an evaluation"),
        (["--config.teacher.provider=openai"], "of reasoning_gym:chain_sum, which no model judges; leave it out"),
        (["--config.mesh.tpp=2"], "the config has no key 'mesh.tpp'"),
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
    monkeypatch.setattr(evalrun, "sample_rollouts", lambda *a, **k: pytest.fail("it sampled"))
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
    with pytest.raises(UserError, match=r"holds answers made with other settings \(weights: "):
        evalrun.evaluate(other, "reasoning_gym:chain_sum", **how)


# ------------------------------------------------------------------------------------------------------ a run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with three kept checkpoints of different weights, and a held-out accuracy for two of them."""
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


def test_what_is_given_comes_before_what_the_run_had(run):
    given = subject.subject_of(run, dtype="bfloat16", fsdp=2, tp=1)
    assert given.dtype == "bfloat16" and dict(given.mesh().shape) == {"fsdp": 2, "tp": 1}
    student = given.load(given.mesh())
    kinds = {x.dtype.name for x in jax.tree.leaves(student.params) if x.ndim > 2}
    assert kinds == {"bfloat16"} and {float(x.max()) for x in jax.tree.leaves(student.params)} == {6.0}
    assert {x.dtype.name for x in jax.tree.leaves(student.params) if x.ndim == 1} == {"float32"}  # the last norm


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


def rollout(text):
    return Rollout(np.zeros(2, np.int32), np.zeros(2, np.float32), text, "stop")


def test_what_is_missing_is_known_by_problem_and_sample(tmp_path):
    prompts = load_benchmark("reasoning_gym:gcd", limit=3).prompts
    path = tmp_path / "answers.jsonl"
    assert answers.missing(path, prompts, 2) == {0: [0, 1], 1: [0, 1], 2: [0, 1]}
    with path.open("a") as file:
        for i, n, text in ((1, 1, "a\u2028b"), (0, 0, "é\nc"), (0, 1, "d")):
            answers.append(file, prompts[i], n, rollout(text))
    whole = path.read_text()
    path.write_text(whole + '{"id"')
    assert answers.missing(path, prompts, 2) == {1: [0], 2: [0, 1]}
    assert path.read_text() == whole
    assert [json.loads(line)["response"] for line in whole.splitlines()] == ["a\u2028b", "é\nc", "d"]
    with pytest.raises(UserError, match=r"answers.jsonl:1: sample 1; expected 0 to 0"):
        answers.missing(path, prompts, 1)


def test_a_complete_file_is_put_in_order(tmp_path):
    prompts = load_benchmark("reasoning_gym:gcd", limit=2).prompts
    path = tmp_path / "answers.jsonl"
    with path.open("a") as file:
        for i, n in ((1, 1), (0, 1), (1, 0), (0, 0)):
            answers.append(file, prompts[i], n, rollout(f"{i}{n}"))
    answers.put_in_order(path, prompts, 2)
    assert [row["response"] for row in lines(tmp_path)] == ["00", "01", "10", "11"]


# ---------------------------------------------------------------------------------------- rows, memory, progress


@pytest.fixture(scope="module")
def divides(tmp_path_factory):
    """A checkpoint with the tiny student's tokenizer whose sizes divide over tp=2."""
    path = tmp_path_factory.mktemp("divides")
    cfg = dataclasses.replace(TINY, vocab_size=104)
    save_hf(path, cfg, transformer.init_params(cfg, 0), eos_token_id=1)
    load_checkpoint("tiny").tokenizer.save(path)
    return path


def sampled(out, student, *more):
    assert main(args(out, "--limit=4", "--max_tokens=24", "--temperature=0.7", *more, student=student)) == 0
    return [row["response"] for row in lines(out)]


def test_a_mesh_with_tp_2_gives_the_answers_of_one_device_and_rows_are_at_most_as_many(divides, tmp_path, monkeypatch):
    seen = []
    sample = evalrun.sample_rollouts

    def watched(cfg, engine, params, *rest, **how):
        seen.append((dict(jax.sharding.get_mesh().shape), engine.rows, engine.cache_dtype))
        return sample(cfg, engine, params, *rest, **how)

    monkeypatch.setattr(evalrun, "sample_rollouts", watched)
    one = sampled(tmp_path / "one", divides, "--config.mesh.fsdp=1")
    two = sampled(tmp_path / "two", divides, "--config.mesh.fsdp=1", "--config.mesh.tp=2", "--rows=5")
    assert one == two and len(set(one)) > 1
    assert seen == [({"fsdp": 1, "tp": 1}, 16, ""), ({"fsdp": 1, "tp": 2}, 5, "")]
    narrow = sampled(
        tmp_path / "three", divides, "--config.mesh.fsdp=2", "--rows=3", "--config.sampling.cache_dtype=int8"
    )
    assert seen[2] == ({"fsdp": 2, "tp": 1}, 3, "int8") and len(narrow) == 8


def test_a_template_and_a_type_that_are_given_come_before_the_students_own(divides, tmp_path, monkeypatch, capsys):
    file = tmp_path / "brief.jinja"
    file.write_text("{% for m in messages %}{{ m.content[:7] }}{% endfor %}")
    seen = []
    sample = evalrun.sample_rollouts

    def watched(cfg, engine, params, tokenizer, prompts, tokens, **how):
        kinds = {x.ndim - (x.ndim > 1): x.dtype.name for x in jax.tree.leaves(params["layers"])}
        seen.append((sorted(map(len, tokens))[-1], kinds, engine.dtype))
        return sample(cfg, engine, params, tokenizer, prompts, tokens, **how)

    monkeypatch.setattr(evalrun, "sample_rollouts", watched)
    given = (f"--config.student.chat_template={file}", "--config.student.dtype=bfloat16", "--config.mesh.fsdp=1")
    sampled(tmp_path / "out", divides, *given)
    length, kinds, dtype = seen[0]
    assert length == 7 and dtype == "bfloat16" and kinds[2] == "bfloat16" and kinds[1] == "float32"
    file.write_text("{{ messages[0].content[:5] }}")
    more = ("--limit=4", "--max_tokens=24", "--temperature=0.7", *given)
    assert main(args(tmp_path / "out", *more, student=divides)) == 2
    assert "holds answers made with other settings (chat_template: " in capsys.readouterr().err


def test_an_evaluation_takes_as_many_rows_as_fit_and_says_what_does_not(divides, tmp_path, monkeypatch, capsys):
    cfg = load_checkpoint(str(divides)).cfg
    engine = EngineConfig(2, 1, 32, 24, (0,), SamplingRule(), reserve=True, copy_weights=False)
    mesh = mesh_lib.make_mesh(2, 1, jax.devices()[:2])
    with jax.set_mesh(mesh):
        own = capacity.with_rows(engine, 6, 2)
        six = capacity.cache_bytes(cfg, own) + capacity.work_bytes(cfg, own, 1)
    assert (
        capacity.most_rows(cfg, engine, mesh, six, 64) == 6 and capacity.most_rows(cfg, engine, mesh, six - 1, 64) == 4
    )
    assert capacity.most_rows(cfg, engine, mesh, 1e3, 64) == 0
    with_copy = dataclasses.replace(engine, copy_weights=True)
    with jax.set_mesh(mesh):
        own = capacity.with_rows(with_copy, 6, 2)
        more = capacity.cache_bytes(cfg, own) + capacity.work_bytes(cfg, own, 1)
    for free, wanted, asked, copy in ((more, 12, False, True), (more - 1, 12, False, False), (more, 12, True, False)):
        assert capacity.choose_copy(cfg, with_copy, mesh, free, wanted, asked=asked).copy_weights is copy
    chosen = []
    monkeypatch.setattr(capacity, "free_bytes", lambda mesh: six)
    monkeypatch.setattr(evalrun, "sample_rollouts", lambda c, e, *a, **k: chosen.append(e) or iter(()))
    monkeypatch.setattr(evalrun, "put_in_order", lambda *a: None)
    monkeypatch.setattr(
        evalrun.Evaluation, "grade", lambda self: EvalResult({"answers": 1, "ungraded": {"answers": 0}})
    )
    monkeypatch.setattr(EvalResult, "show", lambda self: None)
    given = ["--max_tokens=24", "--config.mesh.fsdp=2"]
    base = [a for a in args(tmp_path / "a", *given, student=divides) if not a.startswith("--rows")]
    assert main(base) == 0
    assert chosen[0].rows == 6 and chosen[0].reserve
    assert main([*base, "--rows=12"]) == 2
    assert "--rows=12 with answers of 24 tokens do not fit" in (error := capsys.readouterr().err)
    assert "use --rows 6, --config.sampling.cache_dtype=int8 or a larger --config.mesh.tp" in error


def test_the_time_left_is_known_before_the_first_answer_and_is_bounded(caplog):
    caplog.set_level(logging.INFO)
    progress = evalrun._Progress(dict.fromkeys(range(50), 2), most=1_000)
    progress._tokens = 5_000
    assert progress.left(10.0) == "at most 3:20 left"  # 100,000 tokens at 500 per second
    for i in range(10):
        progress.answered(i)
    assert progress.left(10.0) == "1:30 left"
    progress._tokens = 50_000
    assert progress.left(10.0) == "18 s left"  # 90 answers have at most 90,000 tokens
    progress.answered(0)
    progress._report()
    assert "answered 1 of 50 problems (11 of 100 answers) in " in caplog.text


def test_hosts_with_other_settings_are_told(tmp_path):
    simulated = SimulatedHosts(2)
    found = simulated.run(
        lambda i: evalrun.prepare(
            "tiny", "reasoning_gym:gcd", out=tmp_path / "out", k=i + 1, limit=2, template="{question}"
        )
    )
    assert {str(e).partition(";")[0] for e in found} == {
        "the evaluation of host 1 is not that of host 0: sampling is {'k': 2, 'temperature': 1.0, 'top_p': 0.95, "
        "'max_tokens': 32768} there and {'k': 1, 'temperature': 1.0, 'top_p': 0.95, 'max_tokens': 32768} on host 0"
    }
