"""What a run shows and leaves behind. Host side only, no jax.

    metrics.jsonl, tensorboard/   ``Metrics``      one line a step; cut back on resume, so that no step stands twice
    (the terminal)                ``Progress``     a bar on a terminal, plain lines elsewhere
    groups/step_000012.jsonl      ``GroupsLog``    every group of a step, for a person to read
    result.json                   ``write_result`` the numbers of the whole run; ``final_table`` shows them
    curves.png                    ``curves_png``   (in ``ropd_jax.workdir.curves``)

Metric names are ``room/name``: ``reward/mean``, ``eval/accuracy``, ``teacher/unscored_frac``,
``sample/tokens_per_s`` ...
A value that is not known is None and stands as ``null``; it never becomes a number.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from ropd_jax.types import Judgement, RolloutGroup, UserError
from ropd_jax.utils.files import whole_rows, write_atomic
from ropd_jax.utils.text import clock

log = logging.getLogger(__name__)


def _finite(value: Any) -> int | float | None:
    """A Python number, or None for None, NaN and infinities. Takes numpy and jax scalars."""
    if value is None or isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


class Metrics:
    """``metrics.jsonl`` and TensorBoard scalars of one run.

    Args:
        workdir: the run's directory.
        start_step: the first step that will be logged; what an earlier process wrote from there on is cut.
        tensorboard: write the scalars for TensorBoard too.
        write: of several hosts one does.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        start_step: int = 0,
        tensorboard: bool = True,
        write: bool = True,
    ):
        self.path = pathlib.Path(workdir) / "metrics.jsonl"
        kept = [row for row in _rows(self.path) if row["step"] < start_step]
        self._held = {(row["step"], name) for row in kept for name in row}
        if write:
            write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = open(self.path if write else os.devnull, "a", encoding="utf-8")  # noqa: SIM115 - see close()
        self._board = None
        if tensorboard and write:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=start_step)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one line. Values are numbers or None; NaN and infinities are written as ``null``."""
        row = {name: _finite(value) for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()
        for name, value in row.items():
            if self._board and value is not None:
                self._board.add_scalar(name, value, step)

    def holds(self, step: int, name: str) -> bool:
        """Whether an earlier process of this run has logged the metric at that step."""
        return (step, name) in self._held

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``."""
    return whole_rows(path, lambda row: isinstance(row.get("step"), int))


def read_metrics(workdir: str | os.PathLike[str]) -> dict[str, tuple[list[int], list[float | None]]]:
    """Each metric of a run as (steps, values), ascending in step; an unknown value is None."""
    series: dict[str, dict[int, float | None]] = {}
    for row in _rows(pathlib.Path(workdir) / "metrics.jsonl"):
        for name, value in row.items():
            if name != "step":
                series.setdefault(name, {})[row["step"]] = value
    return {name: (sorted(points), [points[s] for s in sorted(points)]) for name, points in series.items()}


# --------------------------------------------------------------------------------------------------- progress

SHOWN = (  # (metric, label, format)
    ("reward/mean", "reward", "{:.3f}"),
    ("eval/accuracy", "accuracy", "{:.1%}"),
    ("teacher/unscored_frac", "unscored", "{:.1%}"),
    ("sample/tokens_per_s", "tok/s", "{:,.0f}"),
)


class Progress:
    """One bar on a terminal; plain lines elsewhere, at least ``every_s`` seconds apart (the last step always).

    Shows step, reward, held-out accuracy (the latest known), unscored share, tokens per second and time left. Time
    left comes from the median of the last 20 steps, so the compilation in the first one does not spoil it.
    """

    def __init__(self, total: int, *, start: int = 0, every_s: float = 5.0, file: TextIO | None = None):
        self._total, self._done, self._every_s = total, start, every_s
        self._file = file
        self._seen: dict[str, Any] = {}
        self._durations: list[float] = []
        self._last_step = self._last_line = time.monotonic()
        console = Console(file=file or sys.stderr)
        self._bar = None
        if console.is_terminal:
            count, values = TextColumn("{task.completed}/{task.total}"), TextColumn("{task.description}")
            self._bar = RichProgress(count, BarColumn(bar_width=24), values, console=console)
            self._task = self._bar.add_task("", total=total, completed=start)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar:
            self._bar.stop()

    def note(self, metrics: Mapping[str, Any]) -> None:
        """Takes values to show, an evaluation's for example, without counting a step."""
        self._seen.update({k: v for k, v in metrics.items() if k.startswith("eval/")})
        self._last_step = time.monotonic()  # an evaluation is no part of a step's duration
        if self._bar:
            self._bar.update(self._task, description=self.line())

    def step(self, done: int, metrics: Mapping[str, Any]) -> None:
        """Says that ``done`` steps of the run are finished, and what the last one measured."""
        now = time.monotonic()
        self._durations = [*self._durations[-19:], (now - self._last_step) / max(1, done - self._done)]
        self._last_step, self._done = now, done
        self._seen = {k: v for k, v in self._seen.items() if k.startswith("eval/")} | dict(metrics)
        if self._bar:
            self._bar.update(self._task, completed=done, description=self.line())
        elif now - self._last_line >= self._every_s or done >= self._total or len(self._durations) == 1:
            self._last_line = now
            self._print(f"step {done}/{self._total}  {self.line()}")

    def say(self, what: str) -> None:
        """What the run is doing within a step: on the bar at once, as a plain line when none came for ``every_s``."""
        if self._bar:
            self._bar.update(self._task, description=f"{self.line()}  {what}")
        elif time.monotonic() - self._last_line >= self._every_s:
            self._last_line = time.monotonic()
            self._print(f"step {self._done}/{self._total}  {what}")

    def line(self) -> str:
        """The values as one text; what is not known is shown as ``-``."""
        parts = []
        for name, label, form in SHOWN:
            value = _finite(self._seen.get(name))
            parts.append(f"{label} {'-' if value is None else form.format(value)}")
        if self._seen.get("eval/drift"):
            parts.append(f"DRIFT since step {self._seen['eval/drift_since']:.0f}")
        if self._durations:
            usual = sorted(self._durations[1:] or self._durations)
            middle = usual[len(usual) // 2]
            parts.append(f"{clock(middle * (self._total - self._done))} left")
        return "  ".join(parts)

    def _print(self, text: str) -> None:
        if self._file is None:
            log.info("%s", text)
        else:
            self._file.write(text + "\n")
            self._file.flush()


# ----------------------------------------------------------------------------------------------------- result

RESULT_ROWS = (  # (key, label, format)
    ("accuracy_before", "held-out accuracy before (greedy)", "{:.1%}"),
    ("accuracy_after", "held-out accuracy after (greedy)", "{:.1%}"),
    ("sampled_accuracy_before", "held-out accuracy before (sampled)", "{:.1%}"),
    ("sampled_accuracy_after", "held-out accuracy after (sampled)", "{:.1%}"),
    ("heldout_n", "held-out questions", "{:,}"),
    ("steps", "optimizer steps", "{:,}"),
    ("seconds", "seconds", "{:,.1f}"),
    ("groups_total", "groups", "{:,}"),
    ("groups_unscored", "groups unscored", "{:,}"),
    ("seed", "seed", "{}"),
    ("drift_alarms", "drift alarm at steps", "{}"),
)


def final_table(result: Mapping[str, Any]) -> Table:
    """The result as a table; ``KEY_interval`` ([low, high]) is shown behind KEY, an unknown value as ``unknown``."""
    table = Table(title="result", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for key, label, form in RESULT_ROWS:
        if key not in result or result[key] == []:
            continue
        value = result[key]
        text = "unknown" if value is None else form.format(value)
        interval = result.get(f"{key}_interval")
        if value is not None and interval is not None:
            text += f"  [{form.format(interval[0])}, {form.format(interval[1])}]"
        table.add_row(label, text)
    return table


def show_result(result: Mapping[str, Any], *, file: TextIO | None = None) -> None:
    """Puts ``final_table`` on standard output (or ``file``)."""
    Console(file=file or sys.stdout, highlight=False).print(final_table(result))


def write_result(workdir: str | os.PathLike[str], result: Mapping[str, Any]) -> pathlib.Path:
    """Writes ``result.json`` whole or not at all; NaN and infinities, at any depth, become ``null``."""
    path = pathlib.Path(workdir) / "result.json"
    write_atomic(path, json.dumps(_plain(result), indent=2, ensure_ascii=False) + "\n")
    return path


def read_result(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """The numbers that ``write_result`` left.

    Raises:
        UserError: there is no ``result.json``, or it is not JSON.
    """
    path = pathlib.Path(workdir) / "result.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); expected the result of a finished run") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, str | bool):
        return value
    return _finite(value)


# ----------------------------------------------------------------------------------------------------- groups


class GroupsLog:
    """``groups/step_000012.jsonl``: one line a group, everything that went into its rewards."""

    def __init__(self, workdir: str | os.PathLike[str]):
        self.directory = pathlib.Path(workdir) / "groups"

    def write(
        self,
        step: int,
        groups: Iterable[RolloutGroup],
        judgements: Iterable[Judgement],
        advantages: Iterable[Sequence[float | None]],
    ) -> pathlib.Path:
        """Writes the groups of one step, whole or not at all; a resumed run overwrites the step it repeats.

        Args:
            step: 0, 1, 2, ...
            groups: P groups; judgements: one each; advantages: one per rollout of each (unscored: None or any
                value; it is written as null).
        """
        rows = [group_row(*one) for one in zip(groups, judgements, advantages, strict=True)]
        path = self.directory / f"step_{step:06d}.jsonl"
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return path


def _criteria(judgement: Judgement) -> list[dict[str, Any]]:
    """The criteria of a judgement's rubric; with what each counted for, where that is not its points."""
    criteria = judgement.rubric.criteria if judgement.rubric else ()
    rows = [{"id": c.id, "points": c.points, "category": c.category, "text": c.text} for c in criteria]
    weights = [{"weight": w} for w in judgement.weights] or [{}] * len(rows)
    return [row | weight for row, weight in zip(rows, weights, strict=True)]


def _named(judgement: Judgement) -> dict[str, bool] | None:
    """The verdicts on the one answer of a part, by criterion."""
    if judgement.rubric is None or not judgement.passed or judgement.passed[0] is None:
        return None
    return dict(zip([c.id for c in judgement.rubric.criteria], judgement.passed[0], strict=True))


def group_row(group: RolloutGroup, judgement: Judgement, advantages: Sequence[float | None]) -> dict[str, Any]:
    """One group as plain data, in reading order: question, references, rubric, then each answer with its verdicts.

    Where it is known: the ``model`` of a reference, what a second look said (``again``, with the ``places`` of both
    looks), and the rubric's ``lineage``. ``ropd_jax.workdir.groups`` reads it all back.
    """
    ids = [c.id for c in judgement.rubric.criteria] if judgement.rubric else []

    def verdicts(passed: Sequence[tuple[bool, ...] | None], i: int) -> dict[str, bool] | None:
        row = passed[i] if i < len(passed) else None
        return None if row is None else dict(zip(ids, row, strict=True))

    def again(i: int) -> dict[str, Any]:
        repeat = judgement.repeat
        return (
            {}
            if repeat is None or i >= len(repeat.places)
            else {"again": verdicts(repeat.passed, i), "places": list(repeat.places[i])}
        )

    answers = []
    for i, (rollout, reward, advantage) in enumerate(zip(group.rollouts, judgement.rewards, advantages, strict=True)):
        alone = judgement.parts[i] if judgement.parts else None
        answers.append(
            {
                "text": rollout.text,
                "finish_reason": rollout.finish_reason,
                "tokens": len(rollout.tokens_T),
                "verdicts": verdicts(judgement.passed, i),
                "reward": _finite(reward),
                "advantage": None if reward is None else _finite(advantage),
                "unscored": judgement.causes[i],
                **({"score": judgement.scores[i]} if judgement.scores else {}),
                **({} if alone is None else {"rubric": _criteria(alone), "verdicts": _named(alone)}),
                **again(i),
            }
        )
    models = [{"model": m} for m in judgement.reference_models] or [{}] * len(judgement.references)
    row = {
        "step": group.step,
        "group": group.index,
        "prompt_id": group.prompt.id,
        "question": group.prompt.question,
        "gold_answer": group.prompt.answer,
        "references": [
            {"text": text, **models[i], "verdicts": verdicts(judgement.reference_passed, i), **again(len(answers) + i)}
            for i, text in enumerate(judgement.references)
        ],
        "rubric": _criteria(judgement),
        "answers": answers,
    }
    return row if judgement.lineage is None else row | {"lineage": dataclasses.asdict(judgement.lineage)}
