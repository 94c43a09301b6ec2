"""SIGKILL at any moment, then the same command: the final parameters are the uninterrupted run's, bit for bit."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from ropd_jax.workdir.checkpoint import Checkpoints
from tests.helpers import restore_raw, trees_max_diff

STEPS = 6
COMMAND = [
    *(sys.executable, "-m", "ropd_jax.cli.main", "train", "--config", "experiments/quickstart.py"),
    *(f"--config.steps={STEPS}", "--config.data.size=200", "--config.data.heldout_size=64", "--config.mesh.fsdp=1"),
    *("--config.data.prompts_per_step=4", "--config.eval.prompts_at_once=64", "--config.eval.sampled=False"),
    *("--config.eval.every=2", "--config.checkpoint.every=2", "--config.log.trackers=()"),
    *("--config.teacher.scripted.latency_s=0.05", "--config.teacher.scripted.slip_rate=0.1"),
]
ROOT = pathlib.Path(__file__).parents[2]


def start(workdir):
    return subprocess.Popen(
        [*COMMAND, "--workdir", str(workdir)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    out, _ = process.communicate(timeout=240)
    return process.returncode, out


def wait_for(process, condition):
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, f"ended before the moment came:\n{process.stdout.read()}"
        assert time.monotonic() < deadline, "the moment to kill never came"
        time.sleep(0.001)


def final_state(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints", keep=2)
    state, host = restore_raw(checkpoints, STEPS)
    checkpoints.close()
    return state, host


def steps_logged(workdir):
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    code, out = finish(start(workdir))
    assert code == 0, out
    return workdir


def check_equal(workdir, uninterrupted):
    (a, host_a), (b, host_b) = final_state(workdir), final_state(uninterrupted)
    assert trees_max_diff(a, b) == 0.0
    for key in ("groups_total", "groups_unscored", "before"):
        assert host_a[key] == host_b[key]
    assert steps_logged(workdir) == steps_logged(uninterrupted)
    for path in sorted((uninterrupted / "groups").iterdir()):
        assert (workdir / "groups" / path.name).read_bytes() == path.read_bytes()


MOMENTS = {
    "while sampling or judging, past a checkpoint": lambda w: (w / "groups" / "step_000002.jsonl").exists(),
    "while a checkpoint is being written": lambda w: any((w / "checkpoints").glob("4.orbax*")),
    "before the first checkpoint": lambda w: (w / "groups" / "step_000000.jsonl").exists(),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("moment", MOMENTS)
def test_sigkill_then_the_same_command_ends_bit_for_bit_equal(moment, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir)
    wait_for(process, lambda: MOMENTS[moment](workdir))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (workdir / "result.json").exists()
    code, out = finish(start(workdir))
    assert code == 0, out
    check_equal(workdir, uninterrupted)


@pytest.mark.timeout(600)
def test_ctrl_c_saves_and_says_how_to_go_on(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir)
    wait_for(process, lambda: (workdir / "groups" / "step_000002.jsonl").exists())
    process.send_signal(signal.SIGINT)
    code, out = finish(process)
    assert code == 130, out
    saved = re.search(r"saved a checkpoint after step (\d)", out)
    assert saved and f"--workdir {workdir}" in out, out
    assert 3 <= int(saved[1]) < STEPS
    code, out = finish(start(workdir))
    assert code == 0 and f"resumed after step {saved[1]}" in out, out
    check_equal(workdir, uninterrupted)
