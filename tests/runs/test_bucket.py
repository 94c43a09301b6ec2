"""A run in a bucket: killed, resumed on a machine without any of its files, and read by every command."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

import ropd_jax
from ropd_jax.cli.main import main
from ropd_jax.train import train
from ropd_jax.training.session import Session
from ropd_jax.utils import buckets, paths
from ropd_jax.workdir.checkpoint import Checkpoints
from ropd_jax.workdir.lock import LockLost
from ropd_jax.workdir.place import stored_tape
from ropd_jax.workdir.policy import kept_steps
from tests.buckets import gcs, s3
from tests.helpers import restore_raw, tape_keys, trees_max_diff
from tests.runs.test_train import tiny_config

# aiohttp advises a stream for a body above 1 MiB
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")

SCRIPT = """
import sys
from ropd_jax.train import train
from ropd_jax.training.session import Session
from tests.runs.test_train import tiny_config
train(tiny_config(steps=4, checkpoint__every=2, log__trackers=("tensorboard",)), sys.argv[1])
"""


def config(**changes):
    return tiny_config(steps=4, checkpoint__every=2, log__trackers=("tensorboard",), **changes)


def params_of(workdir, step=4):
    return restore_raw(Checkpoints(paths.as_path(workdir) / "checkpoints", keep=9), step)[0]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROPD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def local_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("local") / "run"
    train(config(), workdir)
    return workdir


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory):
    """The URL of a run that was killed in its third or fourth step, and resumed without any of its local files."""
    url, cache = f"{gcs()}/runs/killed", tmp_path_factory.mktemp("machine")
    environ = os.environ | {"ROPD_CACHE": str(cache)}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, url], env=environ)
    try:
        while "step_000002.jsonl" not in buckets.listing(f"{url}/groups"):
            assert process.poll() is None, "the run ended before it was killed"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    shutil.rmtree(cache)
    before = tape_keys(stored_tape(url))
    assert before and not any(name.startswith("result") for name in buckets.listing(url))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROPD_CACHE", str(cache))
        train(config(), url)
    return url


def test_a_killed_run_ends_with_the_parameters_of_a_local_one_bit_for_bit(killed_run, local_run):
    assert trees_max_diff(params_of(killed_run), params_of(local_run)) == 0.0


def test_the_bucket_holds_what_a_local_directory_holds(killed_run, local_run):
    there = set(buckets.listing(killed_run))
    assert {p.name for p in local_run.iterdir()} - there <= {"tape.sqlite-wal", "tape.sqlite-shm"}
    assert sorted(buckets.listing(f"{killed_run}/groups")) == sorted(p.name for p in (local_run / "groups").iterdir())
    assert len(buckets.listing(f"{killed_run}/tensorboard")) == 2  # one file of each process
    assert [p.name for p in local_run.parent.iterdir()] == ["run"]
    mine, theirs = ropd_jax.open_run(killed_run), ropd_jax.open_run(local_run)
    assert [g.answers for g in mine.groups()] == [g.answers for g in theirs.groups()]
    a, b = (run.metrics()["reward/mean"] for run in (mine, theirs))
    assert a == b and a[0] == [1, 2, 3, 4]
    assert mine.result["accuracy_after"] == theirs.result["accuracy_after"]
    assert tape_keys(stored_tape(killed_run)) == tape_keys(stored_tape(local_run))


@pytest.mark.parametrize("command", [
    "analyze {run}", "analyze {run} --out {out}", "timeline {run}", "rejudge {run} --out {out}.json",
    "tape stats {run}",
    "tape export {run} {out}.jsonl", "preflight --config {config} --tape {run} --no-calls", "export {run} --to {out}",
    "eval {run} --k 1 --max_tokens 8 --limit 2 --rows 2 --benchmark reasoning_gym:chain_sum --out {out}",
])  # fmt: skip
def test_a_command_reads_a_run_in_a_bucket(command, killed_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = f"{killed_run.replace('killed', 'out')}/{command.split()[0]}"
    words = command.format(run=killed_run, out=out, config=f"{ropd_jax.__path__[0]}/../experiments/quickstart.py")
    assert main(words.split()) == 0, capsys.readouterr().err
    if "--out" in command or "--to" in command or "export" in command:
        folder, _, name = out.rpartition("/")
        assert any(found.startswith(name) for found in buckets.listing(folder))
    assert {p.name for p in tmp_path.iterdir()} <= {"cache"}  # no directory "gs:"


def test_a_student_is_loaded_from_a_bucket(killed_run, local_run):
    mine, theirs = (ropd_jax.load_student(run, step=2) for run in (killed_run, local_run))
    assert trees_max_diff(mine.params, theirs.params) == 0.0
    assert ropd_jax.open_run(killed_run).student().cfg == theirs.cfg


def test_a_run_in_a_bucket_is_forked_into_another_one(killed_run):
    url = f"{gcs()}/runs/forked"
    result = train(config(checkpoint__keep=3), url, fork=f"{killed_run}@2")
    assert result["forked_from"] == {"run": killed_run, "step": 2}
    assert "0" in buckets.listing(f"{url}/checkpoints") and kept_steps(url)[-1] == 4
    assert trees_max_diff(params_of(url, 0)["params"], params_of(killed_run, 2)["params"]) == 0.0


def test_another_process_of_this_machine_is_refused(tmp_path):
    url = f"{gcs()}/runs/held"
    hold = (
        "import sys; from ropd_jax.workdir.place import Place; p = Place(sys.argv[1]); p.fetch(); "
        "print(1, flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold, url], env=dict(os.environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        other.stdout.readline()
        with pytest.raises(ropd_jax.UserError, match="another process of this machine runs in it"):
            train(config(), url)
    finally:
        other.kill()
        other.wait()
        other.stdin.close()
        other.stdout.close()


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    url = f"{gcs()}/runs/other"
    buckets.prepare(url).pipe_file(f"{url}/thesis.txt", b"mine")
    with pytest.raises(ropd_jax.UserError, match="is not empty and holds no run"):
        train(config(), url)
    assert set(buckets.listing(url)) == {"thesis.txt"}


@pytest.mark.parametrize("words, error", [
    ("train --config gs://bkt/c.py --workdir runs/a", "gs://bkt/c.py is a URL"),
    ("train --config {q} --workdir memory://a/b", "memory:// is not supported"),
    ("train --config {q} --workdir gs://no-such-bucket/a", "the bucket gs://no-such-bucket does not exist"),
    ("train --config {q} --workdir runs/a --config.teacher.tape.path=gs://bkt/t.sqlite", "can only be replayed"),
    ("train --config {q} --workdir runs/a --config.student.checkpoint=gs://bkt/none", "gs://bkt/none does not exist"),
    ("train --config {q} --workdir runs/a --config.teacher.prices=gs://bkt/none.toml", "none.toml does not exist"),
    ("collect-references --config {q} --out gs://bkt/refs.jsonl", "--out: gs://bkt/refs.jsonl is a URL"),
    ("calibrate-judge --config {q} --out gs://bkt/judge", "--out: gs://bkt/judge is a URL"),
    ("data gsm8k --prepare gs://bkt/tfds", "tfds:DIR: gs://bkt/tfds is a URL"),
    ("data gsm8k --data gs://bkt/none", "GSM8K is not at gs://bkt/none; put"),
    ("table {t} --runs gs://bkt/runs", "--runs: gs://bkt/runs is a URL"),
    ("tape import gs://bkt/run tape.jsonl", "gs://bkt/run is a URL"),
    ("analyze gs://bkt/none", "nothing is at gs://bkt/none"),
    ("timeline gs://bkt/none", "nothing is at gs://bkt/none"),
    ("export gs://bkt/none --to out", "gs://bkt/none does not exist"),
    ("grade --benchmark reasoning_gym:chain_sum --answers gs://bkt/none.jsonl", "gs://bkt/none.jsonl does not exist"),
    ("serve-teacher --port 0 --answer_key gs://bkt/none.jsonl", "gs://bkt/none.jsonl does not exist"),
])  # fmt: skip
def test_a_url_that_cannot_be_used_is_one_line(words, error, tmp_path, monkeypatch, capsys):
    gcs()
    root = os.path.dirname(ropd_jax.__path__[0])
    monkeypatch.chdir(tmp_path)
    words = words.format(q=f"{root}/experiments/quickstart.py", t=f"{root}/experiments/table_quickstart.py")
    assert main(words.split()) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("ropd: error: ") and error in said, said
    assert not [p for p in tmp_path.iterdir() if ":" in p.name]


def test_a_run_in_s3_is_resumed_elsewhere_and_ends_with_the_parameters_of_a_local_one(local_run, tmp_path, monkeypatch):
    url = f"{s3()}/runs/a"
    monkeypatch.setattr(Session, "finish", lambda *args: 1 / 0)  # at the end, but before the result
    with contextlib.suppress(ZeroDivisionError):
        train(config(checkpoint__keep=1), url)
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setenv("ROPD_CACHE", str(tmp_path / "cache"))
    train(config(checkpoint__keep=1), url)
    mine, theirs = (ropd_jax.load_student(run) for run in (url, local_run))
    assert trees_max_diff(mine.params, theirs.params) == 0.0
    assert kept_steps(url) == [4]
    assert json.loads(buckets.prepare(url).cat_file(f"{url}/result.json"))["steps"] == 4


def objects(url):
    """The objects under a URL, except for the lock: name -> version."""
    found = buckets.prepare(url).find(url, detail=True)
    return {name: buckets.version(info) for name, info in found.items() if "/lock/" not in name}


def test_a_run_that_has_lost_its_bucket_to_another_saves_and_uploads_nothing(monkeypatch):
    url, before = f"{gcs()}/runs/taken", {}

    def lose(*args, **kwargs):
        before.update(objects(url))
        raise LockLost("another run has it")

    monkeypatch.setattr(Session, "save", lose)
    with pytest.raises(LockLost):
        train(config(), url)
    assert before and objects(url) == before


def test_a_damaged_checkpoint_in_a_bucket_is_set_aside_and_the_one_before_resumes(killed_run, local_run, caplog):
    url = f"{gcs()}/runs/damaged"
    fs = buckets.prepare(url)
    for name in fs.find(killed_run):
        if not name.endswith("result.json") and "/lock/" not in name:
            fs.pipe_file(name.replace("runs/killed", "runs/damaged"), fs.cat_file(name))
    victim = max(fs.find(f"{url}/checkpoints/4"), key=fs.size)
    fs.pipe_file(victim, fs.cat_file(victim)[:-7])
    train(config(), url)
    assert f"damaged: {victim.partition('/4/')[2]} has " in caplog.text
    assert {"2", "4", "damaged-4"} <= set(buckets.listing(f"{url}/checkpoints"))
    assert trees_max_diff(params_of(url), params_of(local_run)) == 0.0
