from __future__ import annotations

import io
import json
import pathlib

import numpy as np
import pytest

from ropd_jax.types import Criterion, Judgement, Message, Prompt, Rollout, RolloutGroup, Rubric, UserError
from ropd_jax.utils.text import clock
from ropd_jax.workdir.curves import curves_png
from ropd_jax.workdir.groups import GroupsLog, group_row
from ropd_jax.workdir.metrics import Metrics, read_metrics
from ropd_jax.workdir.progress import Progress
from ropd_jax.workdir.result import Result, read_result, write_result


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def log_steps(workdir, steps, start, value=1.0):
    metrics = Metrics(workdir, start_step=start)
    for step in steps:
        metrics.log(step, {"reward/mean": value})
    metrics.close()


# ------------------------------------------------------------------------------------------------------ metrics


def test_what_is_not_known_is_null_and_never_a_number(tmp_path):
    metrics = Metrics(tmp_path)
    values = {"a": float("nan"), "b": np.float32(np.inf), "c": None, "d": np.float32(0.5), "e": np.int64(3), "f": 7}
    metrics.log(0, values)
    metrics.close()
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 0, "a": null, "b": null, "c": null, "d": 0.5, "e": 3.0, "f": 7}\n'
    )


def test_a_resumed_run_holds_each_step_once(tmp_path):
    log_steps(tmp_path, range(1, 6), start=1)
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 6, "reward/m')  # killed while writing
    log_steps(tmp_path, range(4, 7), start=4, value=2.0)
    rows = lines(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6]
    assert [r["reward/mean"] for r in rows] == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]


def test_read_metrics_merges_lines_of_one_step(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.log(2, {"reward/mean": 0.5})
    metrics.log(1, {"reward/mean": None})
    metrics.log(2, {"eval/accuracy": 0.25})
    metrics.close()
    assert read_metrics(tmp_path) == {"reward/mean": ([1, 2], [None, 0.5]), "eval/accuracy": ([2], [0.25])}


# ----------------------------------------------------------------------------------------------------- progress


def test_without_a_terminal_plain_lines_show_each_value():
    out = io.StringIO()
    metrics = {"reward/mean": 0.5, "teacher/unscored_frac": 0.125, "sample/tokens_per_s": 12345.6}
    with Progress(4, file=out, every_s=0.0) as progress:
        progress.note({"eval/accuracy": 0.4375, "reward/mean": 9.0})
        progress.step(1, metrics)
        progress.step(2, metrics | {"eval/accuracy": 0.75, "teacher/unscored_frac": float("nan")})
    first, second = out.getvalue().splitlines()
    assert first.startswith("step 1/4  reward 0.500  accuracy 43.8%  unscored 12.5%  tok/s 12,346  0 s left")
    assert second.startswith("step 2/4  reward 0.500  accuracy 75.0%  unscored -  tok/s 12,346")


def test_plain_lines_keep_their_distance_but_never_miss_the_first_and_the_last_step():
    out = io.StringIO()
    with Progress(9, file=out, every_s=60.0) as progress:
        for done in range(1, 10):
            progress.step(done, {})
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["1/9", "9/9"]


def test_a_terminal_gets_one_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    with Progress(2, file=out) as progress:
        progress.step(1, {"reward/mean": 0.5})
        progress.step(2, {"reward/mean": 0.75})
    assert "2/2" in out.getvalue()
    assert "reward 0.750" in out.getvalue()


@pytest.mark.parametrize("seconds, text", [(41.2, "41 s"), (59.7, "1:00"), (187, "3:07"), (3729, "1:02:09")])
def test_clock(seconds, text):
    assert clock(seconds) == text


# ------------------------------------------------------------------------------------------------------- result


def test_result_is_written_whole_and_without_nan(tmp_path):
    path = write_result(tmp_path, {"accuracy_after": float("nan"), "by": {"x": [np.float32(0.5), None]}, "n": 3})
    assert lines_of(path) == {"accuracy_after": None, "by": {"x": [0.5, None]}, "n": 3}
    assert read_result(tmp_path) == lines_of(path)
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
    with pytest.raises(UserError, match="expected the result of a finished run"):
        read_result(tmp_path / "other")


def lines_of(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_table_shows_intervals_and_says_unknown():
    result = {"accuracy_before": 0.4375, "accuracy_before_interval": [0.395, 0.481], "accuracy_after": None, "seed": 0}
    text = str(Result(pathlib.Path("w"), result))
    assert "43.8%  [39.5%, 48.1%]" in text
    assert "unknown" in text
    assert "sampled" not in text


# ------------------------------------------------------------------------------------------------------- groups


def rollout(text, n, reason="stop"):
    return Rollout(np.zeros(n, np.int32), np.zeros(n, np.float32), text, reason)


def group():
    prompt = Prompt(id="p7", messages=(Message("user", "9 + 5 = ?"),), answer="14")
    rollouts = (rollout("Answer: 14", 5), rollout("half \udc80", 8, "length"))
    return RolloutGroup(prompt, np.zeros(3, np.int32), rollouts, step=12, index=0)


def judgement():
    rubric = Rubric((Criterion("c1", "states 14", 5, "decisive"), Criterion("c2", "is short", 1)))
    return Judgement(
        rewards=(5 / 6, None),
        causes=(None, "malformed"),
        references=("9 + 5 = 14\nAnswer: 14",),
        rubric=rubric,
        passed=((True, False), None),
        reference_passed=((True, True),),
    )


def test_a_groups_line_holds_all_that_made_its_rewards(tmp_path):
    path = GroupsLog(tmp_path).write(12, [group()], [judgement()], [[0.25, 0.0]])
    assert path == tmp_path / "groups" / "step_000012.jsonl"
    (row,) = lines(path)
    assert list(row) == ["step", "group", "prompt_id", "question", "gold_answer", "references", "rubric", "answers"]
    assert (row["step"], row["prompt_id"], row["question"], row["gold_answer"]) == (12, "p7", "9 + 5 = ?", "14")
    assert row["references"] == [{"text": "9 + 5 = 14\nAnswer: 14", "verdicts": {"c1": True, "c2": True}}]
    assert row["rubric"][0] == {"id": "c1", "points": 5, "category": "decisive", "text": "states 14"}
    good, bad = row["answers"]
    assert good == {
        "text": "Answer: 14",
        "finish_reason": "stop",
        "tokens": 5,
        "verdicts": {"c1": True, "c2": False},
        "reward": 5 / 6,
        "advantage": 0.25,
        "unscored": None,
    }
    assert bad["unscored"] == "malformed"
    assert bad["reward"] is bad["advantage"] is bad["verdicts"] is None  # an unscored answer has no advantage either
    assert bad["text"] == "half \udc80"


def test_a_resumed_run_overwrites_the_step_it_repeats(tmp_path):
    log = GroupsLog(tmp_path)
    log.write(3, [group(), group()], [judgement()] * 2, [[0.0, 0.0]] * 2)
    log.write(3, [group()], [judgement()], [[0.0, 0.0]])
    assert len(lines(tmp_path / "groups" / "step_000003.jsonl")) == 1
    assert len(list((tmp_path / "groups").iterdir())) == 1


def test_a_group_without_rubric_is_written_too(tmp_path):
    failed = Judgement(rewards=(None, None), causes=("timeout", "timeout"))
    row = group_row(group(), failed, [0.0, 0.0])
    assert row["rubric"] == []
    assert [a["unscored"] for a in row["answers"]] == ["timeout", "timeout"]


# ------------------------------------------------------------------------------------------------------ figures


def test_curves_are_drawn_also_when_metrics_are_missing(tmp_path):
    log_steps(tmp_path, range(1, 4), start=1)
    path = curves_png(tmp_path, title="three steps")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(tmp_path.glob(".curves*"))
