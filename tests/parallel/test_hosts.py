"""Two processes of four devices compute what one of eight does; if one ends, so does the other; a signal stops both.

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

from benchmarks.simulated_hosts import SimulatedHosts
from ropd_jax.configs import load_config
from ropd_jax.data.load import load_prompts
from ropd_jax.evaluation.run import evaluate
from ropd_jax.parallel import hosts
from ropd_jax.train import train
from ropd_jax.types import UserError
from ropd_jax.workdir.checkpoint import Checkpoints
from ropd_jax.workdir.groups import read_groups
from tests.helpers import restore_raw, tape_keys, trees_max_diff, xla_flags

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = {
    "steps": 2,
    "mesh.fsdp": 8,
    "data.source": "jsonl",  # importing reasoning-gym takes seconds, in each process
    "data.task": "",
    "data.size": 60,
    "data.heldout_size": 8,
    "data.prompts_per_step": 4,
    "sampling.rollouts": 4,
    "sampling.max_tokens": 24,
    "optim.row_len": 64,
    "eval.prompts_at_once": 8,
    "eval.sampled": False,
    "checkpoint.every": 1,
    "log.trackers": (),
    "teacher.scripted.slip_rate": 0.1,
    "teacher.scripted.fault_rate": 0.1,  # some rollouts stay unscored: a judge's failure changes no shape
    "teacher.attempts": 1,
    "teacher.scripted.latency_s": 0.4,
}
ENDED_S = 60.0


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Host:
    """A process whose lines are read as they come."""

    def __init__(self, command, number, devices):
        env = os.environ | {
            "XLA_FLAGS": xla_flags(devices),
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

    def wait_until(self, condition, timeout_s=240.0):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"ended before the moment came:\n{self.said}"
            assert time.monotonic() < deadline, f"the moment never came:\n{self.said}"
            time.sleep(0.01)

    def finish(self, timeout_s=240.0) -> int:
        code = self.process.wait(timeout_s)
        self._reader.join(10.0)
        return code

    @property
    def said(self) -> str:
        return "".join(self.lines)


@contextlib.contextmanager
def two(*command, devices=4):
    port = free_port()
    both = [Host([port, *command], number, devices) for number in (0, 1)]
    try:
        yield both
    finally:
        for host in both:
            host.process.kill()
            host.finish()
            host.process.stdout.close()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config file: the quickstart on sixty sums."""
    directory = tmp_path_factory.mktemp("config")
    for name, size, seed in (("train", 60, 10_000_000), ("heldout", 8, 90_000_000)):
        options = dict(min_terms=4, max_terms=5, min_digits=1, max_digits=1)
        prompts = load_prompts(source="reasoning_gym", task="chain_sum", size=size, seed=seed, options=options)
        rows = [json.dumps({"id": p.id, "question": p.question, "answer": p.answer}) for p in prompts]
        (directory / f"{name}.jsonl").write_text("\n".join(rows))
    file = directory / "sums.py"
    paths = {"data.path": str(directory / "train.jsonl"), "data.heldout_path": str(directory / "heldout.jsonl")}
    file.write_text(
        "from experiments import quickstart\n\n\ndef get_config():\n    cfg = quickstart.get_config()\n"
        f"    cfg.data.options = {{}}\n    cfg.update_from_flattened_dict({SETTINGS | paths!r})\n    return cfg\n"
    )
    return file


def two_train(config, workdir, *, devices=4, **changes):
    command = [sys.executable, "-m", "ropd_jax.cli.main", "train", "--config", str(config), "--workdir", str(workdir)]
    return two(*command, *(f"--config.{key}={value}" for key, value in changes.items()), devices=devices)


def one_trains(config, workdir, **changes):
    cfg = load_config(str(config)).unlock()
    cfg.update_from_flattened_dict(changes)
    return train(cfg.lock(), workdir)


@pytest.fixture(scope="module")
def one(config, tmp_path_factory):
    """The run on one host of eight devices."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    one_trains(config, workdir)
    return workdir


def after_step_one(run, to):
    """A copy of a run as it was after its first step."""
    shutil.copytree(run, to)
    shutil.rmtree(to / "checkpoints" / "2")
    (to / "result.json").unlink()
    return to


def metrics(workdir):
    """Rows of the metrics, without times and what depends on which calls the tape has answered."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    of_the_moment = ("time/", "sample/tokens_per_s", "teacher/")
    counted = ("teacher/unscored_frac", "teacher/failed_frac")
    return [{k: v for k, v in row.items() if k in counted or not k.startswith(of_the_moment)} for row in rows]


def spent(workdir, name="spent.json"):
    return {role: row["calls"] for role, row in json.loads((workdir / name).read_text()).items()}


def saved(workdir, step):
    checkpoints = Checkpoints(workdir / "checkpoints", keep=2)
    with contextlib.closing(checkpoints):
        state, host = restore_raw(checkpoints, step)
    return state, host


def check_equal(workdir, one, steps=2):
    """What a run leaves: texts, rewards and counts exactly, sums over devices to rounding."""
    for mine, theirs in zip(metrics(workdir)[: steps + 1], metrics(one)[: steps + 1], strict=True):
        # On-policy this number is nothing but rounding: of two log-probs, at the one token of all where it is largest.
        gaps = [row.pop("update/logp_gap_max", 0.0) for row in (mine, theirs)]
        assert gaps[0] == pytest.approx(gaps[1], abs=2e-5)
        assert mine == pytest.approx(theirs, rel=1e-5, abs=5e-6)
        assert mine["step"] == 0 or mine["reward/mean"] == theirs["reward/mean"]
    for step in range(steps):
        name = f"step_{step:06d}.jsonl"
        assert (workdir / "groups" / name).read_bytes() == (one / "groups" / name).read_bytes()
    (state, host), (state_one, host_one) = saved(workdir, steps), saved(one, steps)
    assert trees_max_diff(state, state_one) < 1e-6
    same = ("groups_total", "groups_unscored", "before", "failures")
    assert {key: host[key] for key in same} == {key: host_one[key] for key in same}
    return host["teacher"], host_one["teacher"]


@pytest.mark.timeout(600)
def test_two_hosts_give_the_numbers_of_one_a_signal_to_one_stops_both_and_one_goes_on(config, one, tmp_path):
    causes = {c for g in read_groups(one) for c in g.judgement.causes}
    assert len(causes) > 1, "no judge failed, so this proves less than it says"
    workdir = tmp_path / "run"
    with two_train(config, workdir) as both:
        both[0].wait_until(lambda: (workdir / "checkpoints" / "1").is_dir())
        both[1].process.send_signal(signal.SIGTERM)
        assert [host.finish() for host in both] == [130, 130], both[0].said + both[1].said
    assert all("saved a checkpoint after step 1" in host.said for host in both)
    assert "step 1/2" in both[0].said and "step 1/2" not in both[1].said  # only host 0 shows and writes
    here, there = check_equal(workdir, one, steps=1)
    assert here["stats"]["calls"] == there["stats"]["calls"] and here["spent"]["verify"]["calls"] > 0
    first, second = spent(workdir), spent(workdir, "spent.1.json")
    assert first["verify"] > 0 and second["verify"] > 0  # each judged its own

    one_trains(config, workdir)
    check_equal(workdir, one)
    assert not (workdir / "spent.1.json").exists()  # host 0 does the accounting
    assert spent(workdir)["verify"] == spent(one)["verify"]  # and no request was sent twice


@pytest.mark.timeout(600)
def test_two_hosts_go_on_from_a_checkpoint_of_one_on_another_mesh(config, one, tmp_path):
    workdir = after_step_one(one, tmp_path / "run")
    (workdir / "tape.sqlite").unlink()  # the second step is judged again
    with two_train(config, workdir, devices=2, **{"mesh.fsdp": 4}) as both:
        assert [host.finish() for host in both] == [0, 0], both[0].said + both[1].said
    here, there = check_equal(workdir, one)
    assert here["stats"]["calls"] == there["stats"]["calls"]
    first, second = (tape_keys(workdir / name) for name in ("tape.sqlite", "tape.1.sqlite"))
    assert first == second and first < tape_keys(one / "tape.sqlite")  # each tape is whole


@pytest.mark.timeout(600)
def test_two_hosts_sum_the_same_groups_in_the_same_order_and_sample_ahead(config, tmp_path):
    stream = {"stream.groups": 2, "stream.staleness": 1}
    one_trains(config, tmp_path / "one", **stream)
    with two_train(config, tmp_path / "run", **stream) as both:
        assert [host.finish() for host in both] == [0, 0], both[0].said + both[1].said
    check_equal(tmp_path / "run", tmp_path / "one")
    assert metrics(tmp_path / "run")[2]["update/logp_gap_max"] > 0


@pytest.mark.timeout(600)
def test_a_killed_host_ends_the_other_within_a_minute_with_a_message(config, one, tmp_path):
    workdir = after_step_one(one, tmp_path / "run")
    with two_train(config, workdir) as both:
        both[1].wait_until(lambda: "resumed after step 1" in both[1].said)
        both[1].process.send_signal(signal.SIGKILL)
        code = both[0].finish(ENDED_S)
    assert code == hosts.LOST, both[0].said
    assert "has lost another host" in both[0].said and "the same command on all hosts" in both[0].said
    assert (workdir / "checkpoints" / "1").is_dir()


@pytest.mark.timeout(600)
def test_two_hosts_evaluate_as_one_does_and_go_on_where_it_stopped(tmp_path):
    task = "reasoning_gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1"
    how = dict(k=2, limit=6, max_tokens=8, template="{question}", rows=16)
    evaluate("tiny", task, out=tmp_path / "one", **how)
    wanted = (tmp_path / "one" / "answers.jsonl").read_text()
    out = tmp_path / "two"
    shutil.copytree(tmp_path / "one", out)
    (out / "result.json").unlink()
    (out / "answers.jsonl").write_text("".join(wanted.splitlines(keepends=True)[3:9]) + '{"id": "')
    command = [sys.executable, "-m", "ropd_jax.cli.main", "eval", "tiny", "--benchmark", task, f"--out={out}"]
    with two(*command, *(f"--{name}={value}" for name, value in how.items())) as both:
        assert [host.finish() for host in both] == [0, 0], both[0].said + both[1].said
    assert (out / "answers.jsonl").read_text() == wanted
    assert "avg@2" in both[0].said and "avg@2" not in both[1].said  # host 0 grades
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")]
    assert results[0]["value"] == results[1]["value"]


MEETINGS = """
import sys, time
from ropd_jax.parallel import hosts
with hosts.joined():
    said = hosts.exchange("x" * (5000 * hosts.index()))
    any_host, first = hosts.any_host(hosts.index() == 1), hosts.broadcast_from_host0(hosts.index())
    print([len(text) for text in said], any_host, first, flush=True)
    {then}
"""


def test_a_lost_coordinator_ends_the_other_host():
    loop = "\n    ".join(["while True:", "    hosts.any_host(False)", "    time.sleep(0.05)"])
    with two(sys.executable, "-c", MEETINGS.format(then=loop)) as both:
        for host in both:
            host.wait_until(lambda host=host: "[0, 5000] True 0" in host.said)
        both[0].process.send_signal(signal.SIGKILL)
        assert both[1].finish(ENDED_S) not in (0, None)
    assert "has lost another host" in both[1].said or "Terminating process" in both[1].said


def test_a_host_that_dies_while_the_other_is_in_no_collective_ends_it_with_a_message():
    waits = "time.sleep(300)"
    with two(
        sys.executable, "-c", "from ropd_jax.parallel import hosts\nhosts.SILENT_S = 6\n" + MEETINGS.format(then=waits)
    ) as both:
        for host in both:
            host.wait_until(lambda host=host: "[0, 5000] True 0" in host.said)
        time.sleep(2 * hosts.BEAT_S)
        both[1].process.send_signal(signal.SIGKILL)
        assert both[0].finish(ENDED_S) == hosts.LOST, both[0].said
    assert "has lost another host: host 1 has sent no heartbeat for 6 s" in both[0].said


def test_silence_is_a_beat_that_stays_the_same():
    silence = hosts.Silence(limit_s=10.0, now_s=0.0)
    names = [hosts._BEATS + "0", hosts._BEATS + "1"]
    assert [silence.of(dict(zip(names, (str(t), "5"), strict=True)), float(t)) for t in (0, 4, 8)] == [[], [], []]
    assert silence.of({names[0]: "9"}, 10.0) == []  # host 1 has been silent for ten seconds, not longer
    assert silence.of({names[0]: "10"}, 11.0) == ["host 1"]
    assert silence.of({}, 14.0) == ["host 1"]  # the store is missing as well: host 0 has three seconds of it
    assert silence.of({}, 18.0) == ["host 1"] and silence.of({}, 22.0) == ["host 0", "host 1"]


def test_after_a_pause_of_its_own_a_host_judges_nobody():
    silence = hosts.Silence(limit_s=10.0, now_s=0.0)
    assert silence.of({"ropd/alive/1": "1"}, 1.0) == []
    assert silence.of({"ropd/alive/1": "1"}, 31.0) == []  # stopped for half a minute
    assert silence.of({"ropd/alive/1": "1"}, 35.0) == [] and silence.of({"ropd/alive/1": "1"}, 40.0) == []
    assert silence.of({"ropd/alive/1": "1"}, 42.0) == ["host 1"]


def test_a_host_that_hangs_ends_the_other(monkeypatch):
    monkeypatch.setenv("ROPD_HOSTS_TIMEOUT_S", "3")
    hangs = "time.sleep(300) if hosts.index() else hosts.exchange(1)"
    with two(sys.executable, "-c", MEETINGS.format(then=hangs)) as both:
        assert both[0].finish(ENDED_S) == hosts.LOST
    assert "heard nothing from the other hosts" in both[0].said


def test_hosts_with_other_configs_are_told_the_first_difference():
    three = [{"seed": 0, "steps": 2}, {"seed": 0, "steps": 2}, {"seed": 0, "steps": 3, "z": 1}]
    found = SimulatedHosts(3).run(lambda i: hosts.check_same("the config", three[i]))
    assert {str(e) for e in found} == {
        "the config of host 2 is not that of host 0: steps is 3 there and 2 on host 0; start all hosts with the same "
        "command and the same files"
    }


@pytest.mark.parametrize("change", [{"k7": -1}, {"new": 5}, {"k7": "7"}])
def test_equal_values_of_any_size_take_a_digest_and_a_difference_is_found_among_many_keys(change):
    rows = {f"k{i}": i for i in range(20_000)}
    simulated = SimulatedHosts(3)
    reversed_rows = dict(reversed(rows.items()))
    assert simulated.run(lambda i: hosts.check_same("rows", reversed_rows if i else rows)) == [None] * 3
    assert len(simulated.sent) == 1 and simulated.sent[0] < 64

    found = simulated.run(lambda i: hosts.check_same("rows", (rows | change if i == 1 else rows).items))
    ((key, value),) = change.items()
    assert {str(e).partition(";")[0] for e in found} == {
        f"rows of host 1 is not that of host 0: {key} is {value!r} there and {rows.get(key, 'absent')} on host 0"
    }
    assert sum(simulated.sent) < 40_000  # while the whole value has 190 kB


# ------------------------------------------------------------------------------------------------------- joining


@pytest.fixture
def no_cluster(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_one_host_meets_itself(no_cluster):
    with hosts.joined():
        assert hosts.count() == 1 and hosts.exchange("x") == ["x"] and hosts.is_local(7)
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
