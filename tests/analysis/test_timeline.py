"""The shares and the chart of a run. No jax."""

from __future__ import annotations

import json

import pytest

from ropd_jax.analysis import timeline
from ropd_jax.analysis.trace import trace
from ropd_jax.cli.main import main as ropd
from ropd_jax.types import UserError
from ropd_jax.utils.tracing import Span, read_spans


def hand_made():
    """Two steps of 10 s: 4 sampling, 3 idle (rubric 1, verify 1.5, nothing 0.5), 2 update, 1 other work of the host."""
    rows = []
    for step in (0, 1):
        t = 100.0 + 10 * step
        rows += [Span("step", t, t + 10, step), Span("sample", t, t + 4, step), Span("prefill", t, t + 1, step),
                 Span("idle", t + 4, t + 7, step), Span("update", t + 7, t + 9, step)]  # fmt: skip
        rows += [Span("judged", t + 2, t + 6.5, step, 1), Span("rubric", t + 2, t + 5, step, 1),
                 Span("verify", t + 5, t + 6.5, step, 1), Span("judged", t + 2, t + 4, step, 0),
                 Span("verify", t + 2, t + 4, step, 0)]  # fmt: skip
    return rows


def test_shares_follow_the_last_group_of_each_step():
    found = timeline.shares(hand_made())
    assert (found.steps, found.seconds) == (2, pytest.approx(20))
    spent = dict(sample=0.4, idle=0.3, update=0.2, host=0.1, evaluate=0, checkpoint=0, compile=0)
    assert found.spent == {name: pytest.approx(share) for name, share in spent.items()}
    roles = {"rubric": 0.1, "verify": 0.15, "between calls": 0.05}
    assert found.roles == {name: pytest.approx(share) for name, share in roles.items()}
    assert found.line("r") == (
        "r: waits for sampling; of 2 steps, 20.0 s: sampling 40%, the teacher 30% (verify 15%, rubric 10%, "
        "between calls 5%), the update 20%, the host's own work 10%"
    )


def test_work_beside_work_is_counted_once():
    rows = [Span("step", 0, 10, 0), Span("sample", 0, 10, 0), Span("update", 4, 6, 0), Span("update", 5, 8, 0)]
    assert timeline.shares(rows).spent == {"host": 0, "update": 0.4, "sample": 0.6, "evaluate": 0, "checkpoint": 0,
                                           "idle": 0, "compile": 0}  # fmt: skip


def test_the_command_draws_the_steps_asked_for(tmp_path, capsys):
    rows = [{k: v for k, v in vars(s).items() if v is not None} for s in hand_made()]
    (tmp_path / "timeline.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert ropd(["timeline", str(tmp_path), "--steps", "1:", "--out", str(tmp_path / "out")]) == 0
    assert "of 1 steps, 10.0 s: sampling 40%" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["timeline.json", "timeline.png"]
    assert (tmp_path / "out" / "timeline.png").stat().st_size > 5_000
    events = json.loads((tmp_path / "out" / "timeline.json").read_text())["traceEvents"]
    assert {e["args"]["step"] for e in events if e["ph"] == "X"} == {1}
    assert ropd(["timeline", str(tmp_path), "--steps", "9:"]) == 2
    with pytest.raises(UserError, match="does not exist"):
        read_spans(tmp_path / "out")


def test_the_trace_has_the_events_and_names_that_perfetto_reads():
    found = json.loads(json.dumps(trace(hand_made())))
    events = [e for e in found["traceEvents"] if e["ph"] == "X"]
    assert len(events) == len(hand_made()) and {e["ph"] for e in found["traceEvents"]} == {"X", "M"}
    for e in events:
        assert e["name"] and e["ts"] >= 0 and e["dur"] >= 0 and isinstance(e["pid"], int) and isinstance(e["tid"], int)
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in found["traceEvents"] if e["name"] == "thread_name"}
    processes = {e["pid"]: e["args"]["name"] for e in found["traceEvents"] if e["name"] == "process_name"}
    assert processes == {1: "run", 2: "teacher"}
    assert all((e["pid"], e["tid"]) in names for e in events)
    verify = next(e for e in events if e["name"] == "verify" and e["args"] == {"step": 1, "group": 1})
    assert (verify["ts"], verify["dur"]) == (15e6, 1.5e6) and names[verify["pid"], verify["tid"]] == "group 1"
    assert [names[1, tid] for tid in (1, 2, 3)] == ["step", "sample", "prefill"]


def test_what_shares_a_thread_of_the_trace_is_nested():
    calls = [
        Span("judged", 0, 9, 0, 0),
        Span("verify", 1, 4, 0, 0),
        Span("verify", 2, 6, 0, 0),
        Span("score", 4, 5, 0, 0),
    ]
    events = [e for e in trace(calls)["traceEvents"] if e["ph"] == "X"]
    for a in events:
        for b in events:
            if a is not b and a["tid"] == b["tid"]:
                first, then = sorted((a, b), key=lambda e: (e["ts"], -e["dur"]))
                end = first["ts"] + first["dur"]
                assert then["ts"] >= end or then["ts"] + then["dur"] <= end
    assert len({e["tid"] for e in events}) == 2 and len(events) == 4
