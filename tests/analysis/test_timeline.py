"""The shares and the chart of a run. No jax."""

from __future__ import annotations

import json

import pytest

from ropd_jax.analysis import timeline
from ropd_jax.cli.main import main as ropd
from ropd_jax.types import UserError
from ropd_jax.utils.tracing import Span, read_spans


def hand_made():
    """Two steps of 10 s: 4 sampling, 3 idle (rubric 1, verify 1.5, nothing 0.5), 2 update, 1 of the host's own."""
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
    page = (tmp_path / "out" / "timeline.html").read_text()
    assert "step 1 group 1" in page and "step 0 group" not in page
    assert "<title>verify step 1 group 1: 1.500 s</title>" in page
    assert (tmp_path / "out" / "timeline.png").stat().st_size > 5_000
    assert ropd(["timeline", str(tmp_path), "--steps", "9:"]) == 2
    with pytest.raises(UserError, match="does not exist"):
        read_spans(tmp_path / "out")
