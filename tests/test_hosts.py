"""Two processes of four devices do what one of eight does; one that goes ends the other; a signal to one stops both.

Loopback, CPU devices, gloo. The processes are `ropd train` as a user starts it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from ropd_jax import hosts, train
from ropd_jax.checkpoint import Checkpoints
from ropd_jax.cli import load_config
from ropd_jax.groups import read_groups
from ropd_jax.teacher.tape import Tape
from ropd_jax.types import UserError
from tests.helpers import trees_max_diff

ROOT = pathlib.Path(__file__).parent.parent
SETTINGS = {
    "steps": 2,
    "mesh.fsdp": 8,
    "data.size": 200,
    "data.heldout_size": 16,
    "data.prompts_per_step": 4,
    "sampling.rollouts": 4,
    "sampling.max_tokens": 24,
    "optim.row_len": 64,
    "eval.prompts_at_once": 16,
    "eval.sampled": False,
    "checkpoint.every": 1,
    "log.tensorboard": False,
    "teacher.scripted.slip_rate": 0.1,
    "teacher.scripted.fault_rate": 0.05,  # some rollouts stay unscored: a judge's failure changes no shape
    "teacher.attempts": 1,
}
ENDED_S = 60.0


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Host:
    """A process whose lines are read as they come."""

    def __init__(self, command, number):
        env = os.environ | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{command[0]}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(number),
        }
        self.process = subprocess.Popen(
            command[1:], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True)
        self._reader.start()

    def wait_for(self, text, timeout_s=240.0):
        deadline = time.monotonic() + timeout_s
        while not any(text in line for line in self.lines):
            assert self.process.poll() is None, f"ended before it said {text!r}:\n{self.said}"
            assert time.monotonic() < deadline, f"never said {text!r}:\n{self.said}"
            time.sleep(0.01)

    def finish(self, timeout_s=240.0) -> int:
        code = self.process.wait(timeout_s)
        self._reader.join(10.0)
        return code

    @property
    def said(self) -> str:
        return "".join(self.lines)


@contextlib.contextmanager
def two(*command):
    port = free_port()
    both = [Host([port, *command], number) for number in (0, 1)]
    try:
        yield both
    finally:
        for host in both:
            host.process.kill()
            host.process.wait()


def two_trains(workdir):
    settings = [f"--config.{key}={value}" for key, value in SETTINGS.items()]
    command = [sys.executable, "-m", "ropd_jax.cli", "train", "--config", "experiments/quickstart.py", *settings]
    return two(*command, "--workdir", str(workdir))


def one_trains(workdir):
    cfg = load_config(str(ROOT / "experiments" / "quickstart.py"))
    with cfg.unlocked():
        cfg.update_from_flattened_dict(SETTINGS)
    return train.main(cfg, workdir)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run on one host of eight devices."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    assert one_trains(workdir) == 0
    return workdir


def after_step_one(run, to):
    """A copy of a run as it was after its first step."""
    shutil.copytree(run, to)
    shutil.rmtree(to / "checkpoints" / "2")
    (to / "result.json").unlink()
    return to


def metrics(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timing = ("time/", "sample/tokens_per_s", "teacher/concurrency")
    return [{k: v for k, v in row.items() if not k.startswith(timing)} for row in rows]


def saved(workdir, step):
    checkpoints = Checkpoints(workdir / "checkpoints", keep=2)
    with contextlib.closing(checkpoints):
        return checkpoints.restore_raw(step)


def check_equal(workdir, one):
    """Everything that a run leaves: texts and counts exactly, numbers of the devices to rounding."""
    for mine, theirs in zip(metrics(workdir), metrics(one), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=2e-6)
    for file in sorted((one / "groups").iterdir()):
        assert (workdir / "groups" / file.name).read_bytes() == file.read_bytes()
    (state, host), (state_one, host_one) = saved(workdir, 2), saved(one, 2)
    assert trees_max_diff(state, state_one) < 1e-6
    timing = {"seconds"}
    assert {k: v for k, v in host.items() if k not in timing} == {k: v for k, v in host_one.items() if k not in timing}


@pytest.mark.timeout(600)
def test_two_hosts_give_the_numbers_of_one_and_one_goes_on_from_their_checkpoint(one, tmp_path):
    causes = {c for g in read_groups(one) for c in g.judgement.causes}
    assert len(causes) > 1, "no judge failed, so this proves less than it says"
    with two_trains(tmp_path / "two") as both:
        assert [host.finish() for host in both] == [0, 0], both[0].said + both[1].said
    assert "result" in both[0].said and "accuracy" not in both[1].said  # host 0 alone shows and writes
    check_equal(tmp_path / "two", one)
    keys = Tape(one / "tape.sqlite", read_only=True).keys()
    for name in ("tape.sqlite", "tape.1.sqlite"):  # each tape is whole
        assert Tape(tmp_path / "two" / name, read_only=True).keys() == keys
    calls = [json.loads((tmp_path / "two" / n).read_text())["verify"]["calls"] for n in ("spent.json", "spent.1.json")]
    assert min(calls) > 0 and sum(calls) == json.loads((one / "spent.json").read_text())["verify"]["calls"]

    workdir = after_step_one(tmp_path / "two", tmp_path / "one_again")
    assert one_trains(workdir) == 0
    check_equal(workdir, one)
    assert not (workdir / "spent.1.json").exists()  # host 0 keeps the books


@pytest.mark.timeout(600)
def test_a_signal_to_one_host_saves_and_stops_both_and_two_go_on_from_a_checkpoint_of_one(one, tmp_path):
    workdir = after_step_one(one, tmp_path / "run")
    with two_trains(workdir) as both:
        both[1].wait_for("resumed after step 1")
        both[1].process.send_signal(signal.SIGTERM)
        assert [host.finish() for host in both] == [130, 130], both[0].said + both[1].said
    assert "saved a checkpoint after step 1" in both[0].said
    with two_trains(workdir) as both:
        assert [host.finish() for host in both] == [0, 0], both[0].said + both[1].said
    check_equal(workdir, one)


@pytest.mark.timeout(600)
def test_a_killed_host_ends_the_other_within_a_minute_with_a_message(one, tmp_path):
    workdir = after_step_one(one, tmp_path / "run")
    with two_trains(workdir) as both:
        both[1].wait_for("resumed after step 1")
        both[1].process.send_signal(signal.SIGKILL)
        start = time.monotonic()
        code = both[0].finish(ENDED_S)
        assert time.monotonic() - start < ENDED_S
    assert code == hosts.LOST, both[0].said
    assert "has lost another host" in both[0].said and "the same command on all hosts" in both[0].said
    assert (workdir / "checkpoints" / "1").is_dir()


MEETINGS = """
import sys, time
from ropd_jax import hosts
with hosts.joined():
    said = hosts.exchange("x" * (5000 * hosts.index()))
    print([len(text) for text in said], hosts.any_host(hosts.index() == 1), hosts.first_says(hosts.index()), flush=True)
    {then}
"""


def test_a_lost_coordinator_ends_the_other_host():
    loop = "\n    ".join(["while True:", "    hosts.any_host(False)", "    time.sleep(0.05)"])
    with two(sys.executable, "-c", MEETINGS.format(then=loop)) as both:
        for host in both:
            host.wait_for("[0, 5000] True 0")
        both[0].process.send_signal(signal.SIGKILL)
        assert both[1].finish(ENDED_S) not in (0, None)
    assert "has lost another host" in both[1].said or "Terminating process" in both[1].said


def test_a_host_that_hangs_ends_the_other(monkeypatch):
    monkeypatch.setenv("ROPD_HOSTS_TIMEOUT_S", "3")
    with two(sys.executable, "-c", MEETINGS.format(then="time.sleep(300) if hosts.index() else hosts.exchange(1)")) as both:
        assert both[0].finish(ENDED_S) == hosts.LOST
    assert "heard nothing of the other hosts" in both[0].said


def test_an_error_of_one_host_is_said_and_ends_both():
    fails = "hosts.check_same('the config', {'seed': hosts.index()})"
    with two(sys.executable, "-c", MEETINGS.format(then=fails)) as both:
        assert [host.finish(ENDED_S) for host in both] == [2, 2], both[0].said + both[1].said
    for host in both:
        assert "the config of host 1 is not that of host 0: seed is 1 there and 0 on host 0" in host.said


# ------------------------------------------------------------------------------------------------------- joining


@pytest.fixture
def no_cluster(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_one_host_meets_itself(no_cluster):
    with hosts.joined():
        assert hosts.count() == 1 and hosts.exchange("x") == ["x"] and hosts.mine(7)
    with hosts.joined("127.0.0.1:1", 1, 0):
        assert hosts.count() == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("", 2, 0), "2 processes without --coordinator"),
        (("h:1", None, 0), "without --num-processes and --process-id"),
        (("h:1", 2, 2), "--process-id 2 of 2; expected 0 to 1"),
        (("h", 2, 0), "--coordinator h; expected HOST:PORT"),
    ],
)
def test_flags_that_do_not_belong_together_are_named(given, said, no_cluster):
    with pytest.raises(UserError, match=said):
        hosts.start(*given)


def test_the_environment_stands_in_for_the_flags(no_cluster):
    no_cluster.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.2:8476")
    no_cluster.setenv("JAX_NUM_PROCESSES", "4")
    no_cluster.setenv("JAX_PROCESS_ID", "x")
    with pytest.raises(UserError, match="JAX_PROCESS_ID='x'"):
        hosts.start()
    no_cluster.setenv("JAX_PROCESS_ID", "3")
    assert hosts._how("", None, None) == {
        "coordinator_address": "10.0.0.2:8476",
        "num_processes": 4,
        "process_id": 3,
    }
    assert hosts._how("auto", None, None) == {}
