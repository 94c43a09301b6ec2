"""Where metrics are sent in addition to ``metrics.jsonl``: TensorBoard, W&B and MLflow, opened by their own readers."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from ropd_jax.types import UserError
from ropd_jax.workdir import trackers
from ropd_jax.workdir.metrics import Metrics
from ropd_jax.workdir.trackers import Start, check_trackers, make_trackers
from ropd_jax.workdir.trackers.base import Background, Trackers

SECRET = "sk-trackers-0123456789"
CONFIG = {"seed": 3, "teacher": {"model": "scripted", "api_key_env": "OPENAI_API_KEY"}}
ROWS = [{"step": 0, "group": 1, "question": "q", "answer": "a <b>", "reward": 0.5},
        {"step": 0, "group": 1, "question": "q", "answer": "c", "reward": None}]  # fmt: skip


class Kept:
    """A tracker that records its calls."""

    def __init__(self, fails=()):
        self.calls, self.fails = [], fails

    def __getattr__(self, name):
        if name.startswith("_") or name == "lost":
            raise AttributeError(name)

        def call(*args):
            if name in self.fails:
                raise ConnectionError(f"{name} is down")
            self.calls.append((name, *args))

        return call


def test_a_tracker_that_fails_is_one_warning_and_the_others_go_on(tmp_path, caplog):
    good, bad = Kept(), Kept(fails=("log", "finish"))
    found = Trackers({"bad": bad, "good": good}, Start(CONFIG, tmp_path, "run"))
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            found.log(step, {"a": 0.5, "b": None})
        found.table(2, lambda: ROWS)
        found.finish(1)
    assert [call[0] for call in good.calls] == ["start", "log", "log", "log", "table", "finish"]
    assert good.calls[-1] == ("finish", 1) and found.failures == {"bad": 4, "good": 0}
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 2 and "bad failed (ConnectionError: log is down); the run continues" in messages[0]
    assert "bad: 4 calls failed" in messages[1]


def test_a_tracker_that_hangs_holds_nothing_up(tmp_path, caplog):
    free = threading.Event()

    class Hangs(Kept):
        def log(self, step, values):
            free.wait(30)

    slow = Background(Hangs(), room=3, finish_s=0.2)
    found = Trackers({"slow": slow}, Start(CONFIG, tmp_path, "run"))
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        for step in range(50):
            found.log(step, {"a": 1.0})
        found.finish(0)
    free.set()
    assert time.monotonic() - began < 10 and slow.lost >= 45 and found.failures == {"slow": 1}
    assert "calls failed or were dropped" in caplog.text


def test_a_missing_package_and_an_unknown_name_are_one_line(monkeypatch):
    with pytest.raises(UserError, match="'wandv'; did you mean wandb"):
        check_trackers(("wandv",))
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs mlflow; run pip install 'ropd_jax\[mlflow\]'"):
        check_trackers(("tensorboard", "mlflow"))
    check_trackers(("tensorboard",))
    check_trackers(())


def test_tensorboard_gets_what_the_metrics_get(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    found = make_trackers(("tensorboard",), Start(CONFIG, tmp_path, "run", first_step=4))
    metrics = Metrics(tmp_path, trackers=found)
    metrics.log(4, {"reward/mean": 0.25, "unknown": float("nan")})
    metrics.close()
    found.finish(0)
    [path] = (tmp_path / "tensorboard").glob("events*")
    data, events = path.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    values = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert values == [(4, "reward/mean", 0.25)] and events[1].step == 4  # the second one: forget what follows step 4


def in_a_process(code, workdir, **environment):
    """Runs code with ``start(resumed)`` in a separate process: these packages leave threads and settings behind."""
    head = (
        "import sys, pathlib\n"
        "from ropd_jax.workdir.trackers import Start, make_trackers\n"
        f"CONFIG, ROWS, PLACE = {CONFIG!r}, {ROWS!r}, pathlib.Path({str(workdir)!r})\n"
        "def start(name, resumed=False):\n"
        "    return make_trackers((name,), Start(CONFIG, PLACE, 'my run', 1 + resumed, resumed))\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "MLFLOW"))}
    done = subprocess.run([sys.executable, "-c", head + code], env={**clean, "OPENAI_API_KEY": SECRET, **environment},
                          capture_output=True, text=True, timeout=200)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def holds(directory, text):
    return [p for p in directory.rglob("*") if p.is_file() and text.encode() in p.read_bytes()]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline_has_metrics_config_and_table_and_a_resumed_run_its_id(tmp_path):
    code = (
        "t = start('wandb')\n"
        "t.log(1, {'reward/mean': 0.5, 'x': None}); t.table(1, lambda: ROWS); t.finish(1)\n"
        "t = start('wandb', resumed=True)\n"
        "t.log(2, {'reward/mean': 0.75}); t.finish(0)\n"
        "assert t.failures == {'wandb': 0} and t._trackers['wandb'].lost == 0\n"
    )
    in_a_process(code, tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    name = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    stores = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(stores) == 2 and {p.name for p in stores} == {f"run-{name}.wandb"}
    first, second = (_wandb_records(p) for p in stores)
    assert {r.run.run_id for r in (*first, *second) if r.WhichOneof("record_type") == "run"} == {name}
    config = {u.key: json.loads(u.value_json) for r in first if r.WhichOneof("record_type") == "run"
              for u in r.run.config.update}  # fmt: skip
    assert config["seed"] == 3 and config["teacher"]["model"] == "scripted"
    assert _wandb_history(first)[0] == {"step": 1, "reward/mean": 0.5} and "x" not in _wandb_history(first)[0]
    assert _wandb_history(second)[0] == {"step": 2, "reward/mean": 0.75}
    [exits] = [[r.exit.exit_code for r in rs if r.WhichOneof("record_type") == "exit"] for rs in (first,)]
    assert exits == [1]
    [table] = (tmp_path / "wandb").rglob("*.table.json")
    assert json.loads(table.read_text()) == {"columns": list(ROWS[0]), "data": [list(row.values()) for row in ROWS]}
    assert not holds(tmp_path, SECRET)


def _wandb_records(path):
    """The records of an offline file: W&B's own protocol, framed as LevelDB's log is (header 7 bytes, block 32 KiB)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part, records = path.read_bytes(), 7, b"", []
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(part))
            part = b""
    return records


def _wandb_history(records):
    rows = []
    for r in records:
        if r.WhichOneof("record_type") == "history":
            items = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in r.history.item}
            rows.append({k: v for k, v in items.items() if not k.startswith("_")})
    return rows


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_has_metrics_config_and_table_and_a_resumed_run_its_id(tmp_path):
    code = (
        "t = start('mlflow')\n"
        "t.log(1, {'reward/mean': 0.5, 'x': None}); t.table(1, lambda: ROWS); t.finish(1)\n"
        "t = start('mlflow', resumed=True)\n"
        "t.log(2, {'reward/mean': 0.75}); t.finish(0)\n"
        "assert t.failures == {'mlflow': 0} and t._trackers['mlflow'].lost == 0\n"
        "import json\n"
        "from mlflow.tracking import MlflowClient\n"
        "client = MlflowClient(tracking_uri=(PLACE / 'mlruns').resolve().as_uri())\n"
        "[experiment] = [e for e in client.search_experiments() if e.name == 'ropd_jax']\n"
        "[run] = client.search_runs([experiment.experiment_id])\n"
        "history = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, 'reward/mean')]\n"
        "file = client.download_artifacts(run.info.run_id, 'groups/step_000001.json')\n"
        "print(json.dumps([run.info.run_id, run.info.status, run.info.run_name, run.data.params, history,\n"
        "                  json.load(open(file))]))\n"
    )
    name, status, called, params, history, table = json.loads(in_a_process(code, tmp_path).splitlines()[-1])
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"mlflow": name}
    assert (status, called, history) == ("FINISHED", "my run", [[1, 0.5], [2, 0.75]])
    assert params["seed"] == "3" and params["teacher.model"] == "scripted"
    assert table == {"columns": list(ROWS[0]), "data": [list(row.values()) for row in ROWS]}
    assert not holds(tmp_path, SECRET)
