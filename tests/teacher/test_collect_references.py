"""References collected ahead of time: resumable, a bounded number of repeats for duplicates, a run that uses them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from experiments import quickstart
from ropd_jax.cli import collect_references
from ropd_jax.cli import main as cli
from ropd_jax.teacher import ConfigurationError, MalformedError, Role, Teacher, TransientError
from ropd_jax.teacher.collect_references import EXTRA, collect_one
from ropd_jax.teacher.roles.references import SEED_STRIDE
from ropd_jax.teacher.tape.reference_index import read_index
from ropd_jax.types import Message, Prompt, UserError

PROMPT = Prompt("p", (Message("user", "Q?"),))
SIZES = ["--config.data.size=40", "--config.data.heldout_size=20", "--config.data.prompts_per_step=4"]
CONFIG = ["--config", "experiments/quickstart.py", *SIZES]


def collected(saying, replies, *, m, sources=1):
    client = saying(*replies)
    teacher = Teacher(client, references_m=m, reference=[Role(f"m{i}") for i in range(sources)])
    samples = asyncio.run(collect_one(teacher, PROMPT, m))
    return samples, client.requests


def test_equal_answers_are_asked_for_again_with_another_seed(saying):
    samples, requests = collected(saying, ["a", "a", "b", "a", "c", "a", "d"], m=4)
    assert [s.text for s in samples] == ["a", "c", "b", "d"]
    assert [r.sample_index for r in requests] == [0, 1, 2, 3, 5, 7, 11]  # 1 and 3 again, then 3 once more


def test_a_teacher_that_repeats_itself_is_asked_a_bounded_number_of_times(saying):
    samples, requests = collected(saying, ["a"] * 99, m=4)
    assert [s.text for s in samples] == ["a"] * 4
    assert len(requests) == 4 + EXTRA * 3


def test_a_replacement_comes_from_the_same_model(saying):
    samples, requests = collected(saying, ["a", "a", "a", "b", "c"], m=3, sources=2)
    assert [(s.text, s.model) for s in samples] == [("a", "m0"), ("b", "m1"), ("c", "m0")]
    assert [(r.sample_index, r.model) for r in requests[3:]] == [(1 + 6, "m1"), (2 + 6, "m0")]


def test_an_unusable_answer_is_asked_for_again_with_seeds_of_its_own(saying):
    samples, requests = collected(saying, ["a", "<think>no end", "a", "...", "b"], m=2)
    assert [s.text for s in samples] == ["a", "b"]
    # 1 is unusable and requested again; it repeats 0, so it is requested as 1 + 2, which is also unusable.
    assert [r.sample_index for r in requests] == [0, 1, 1 + SEED_STRIDE, 3, 3 + SEED_STRIDE]


def test_a_prompt_that_lacks_a_reference_gets_no_row(saying):
    with pytest.raises(MalformedError, match="thinking"):
        collected(saying, ["<think>", "<think>", "<think>", "a"], m=2)
    with pytest.raises(TransientError):
        collected(saying, ["a", TransientError("x", cause="timeout"), "b"], m=3)


def config(**changes):
    cfg = quickstart.get_config()
    cfg.data.size, cfg.data.heldout_size, cfg.data.prompts_per_step = 40, 20, 4
    cfg.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return cfg.lock()


def test_failures_are_counted_and_the_same_command_asks_for_the_rest(tmp_path, monkeypatch):
    out = tmp_path / "refs.jsonl"
    real, down = Teacher.reference_samples, {"on": True}

    async def flaky(self, prompt, indices=None):
        if down["on"] and prompt.id.endswith("7"):
            raise TransientError("x", cause="unavailable")
        return await real(self, prompt, indices)

    monkeypatch.setattr(Teacher, "reference_samples", flaky)
    with pytest.raises(UserError, match=r"4 of \d+ prompts have no references yet \(unavailable 4\)"):
        collect_references.collect(config(), out)
    there = out.read_bytes()
    down["on"] = False
    collect_references.collect(config(), out)
    assert out.read_bytes().startswith(there) and out.read_bytes().count(b"\n") == there.count(b"\n") + 4
    assert all(len(row.answers) == 4 for row in read_index(out))
    before = out.read_bytes()
    collect_references.collect(config(), out)
    assert out.read_bytes() == before


def test_another_teacher_does_not_go_into_the_same_file(tmp_path):
    out = tmp_path / "refs.jsonl"
    collect_references.collect(config(), out)
    with pytest.raises(ConfigurationError, match=r"temperature is 0\.7, the config has 0.1"):
        collect_references.collect(config(teacher__reference__temperature=0.1), out)
    with pytest.raises(UserError, match=r"fewer than teacher.references=5 references for \d+ prompts"):
        collect_references.collect(config(teacher__references=5), out)


def test_collapsed_references_are_warned_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        collect_references.collect(config(), tmp_path / "refs.jsonl")
    assert "have fewer than 4 different references" in caplog.text and "temperature (it is 0.7)" in caplog.text


@pytest.mark.timeout(120)
def test_sigkill_loses_what_was_in_flight_and_the_same_command_continues(tmp_path):
    out = tmp_path / "refs.jsonl"
    command = [sys.executable, "-m", "ropd_jax.cli.main", "teach", *CONFIG, "--out", str(out)]
    slow = [*command, "--config.teacher.scripted.latency_s=0.2", "--config.teacher.concurrency=4"]
    process = subprocess.Popen(slow, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (out.exists() and out.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = out.read_bytes()
    assert 3 <= there.count(b"\n") < 40
    out.write_bytes(there + b'{"schema_version": "ropd.tea')  # the result of a kill in the middle of a write
    collect_references.collect(config(), out)
    rows = [json.loads(line) for line in out.read_text().split("\n")[:-1]]
    assert out.read_bytes().startswith(there) and len({r["uid"] for r in rows}) == len(rows) >= 36


@pytest.mark.timeout(200)
def test_a_run_takes_its_references_from_the_index_and_gets_the_same_rewards(tmp_path):
    refs = tmp_path / "refs.jsonl"
    assert cli.main(["teach", *CONFIG, "--out", str(refs)]) == 0
    small = [
        "--config.steps=2",
        "--config.mesh.fsdp=1",
        "--config.log.trackers=()",
        "--config.eval.sampled=False",
    ]
    with_index = [*small, f"--config.teacher.index={refs}"]
    for name, args in (("live", small), ("index", with_index)):
        assert cli.main(["train", *CONFIG, *args, "--workdir", str(tmp_path / name)]) == 0
    live, index = (
        [
            json.loads(line)
            for s in (0, 1)
            for line in (tmp_path / n / "groups" / f"step_00000{s}.jsonl").read_text().splitlines()
        ]
        for n in ("live", "index")
    )
    for group, other in zip(live, index, strict=True):
        calls, others = group.pop("calls"), other.pop("calls")
        assert [c for c in calls if c[0] != "reference"] == others  # the requests; references come from the index
    assert live == index
    metrics = json.loads((tmp_path / "index" / "result.json").read_text())["teacher"]
    assert "teacher/calls_reference" not in metrics and metrics["teacher/calls_rubric"] > 0


def test_a_run_whose_index_lacks_prompts_does_not_start(tmp_path, capsys):
    refs = tmp_path / "refs.jsonl"
    assert cli.main(["teach", *CONFIG, "--config.data.size=20", "--out", str(refs)]) == 0
    run = ["train", *CONFIG, f"--config.teacher.index={refs}", "--workdir", str(tmp_path / "run")]
    assert cli.main(run) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert "lacks references for 20 of 40 prompts" in err
    assert f"ropd collect-references --config FILE --out {refs}" in err
    assert not (tmp_path / "run").exists()
