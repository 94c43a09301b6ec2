"""``status.json``: what a run is doing, for other processes."""

from __future__ import annotations

import json
import time

from ropd_jax.utils.tracing import Timeline, span
from ropd_jax.workdir import status
from ropd_jax.workdir.status import in_flight, read_status, reporting


def test_it_says_what_is_in_flight_and_how_the_run_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(status, "EVERY_S", 0.02)
    progress = {"done": 3, "steps": 8, "doing": "judged 1/2 groups"}
    with Timeline(tmp_path).recording() as timeline, reporting(timeline, tmp_path, lambda: progress):
        with span("step"), span("idle"), span("verify"), span("verify"), span("rubric"):
            until = time.monotonic() + 30
            while time.monotonic() < until:
                found = read_status(tmp_path)
                if found.get("calls"):
                    break
                time.sleep(0.01)
        assert {c["role"]: c["count"] for c in found["calls"]} == {"verify": 2, "rubric": 1}
        assert [s["name"] for s in found["spans"]] == ["idle"] and found["state"] == "running"
        assert (found["done"], found["steps"], found["doing"]) == (3, 8, "judged 1/2 groups")
        assert found["age_s"] < 30
    found = read_status(tmp_path)
    assert found["state"] == "ended" and found["calls"] == []


def test_only_one_host_writes(tmp_path):
    timeline = Timeline(tmp_path / "none", write=False)
    with timeline.recording(), reporting(timeline, tmp_path, dict, write=False):
        assert in_flight(timeline)["calls"] == []
    assert read_status(tmp_path) == {} and not (tmp_path / "status.json").exists()


def test_a_directory_that_is_gone_stops_no_run(tmp_path, caplog):
    with Timeline(tmp_path).recording() as timeline, reporting(timeline, tmp_path / "gone", lambda: {}):
        pass
    assert sum("cannot be written" in r.getMessage() for r in caplog.records) == 1


def test_a_file_that_is_no_status_is_nothing(tmp_path):
    for text in ("", "{", "[]", '{"at": "x"}', json.dumps({"state": "running"})):
        (tmp_path / "status.json").write_text(text)
        assert read_status(tmp_path) == {}
