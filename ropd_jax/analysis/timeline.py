"""The timeline of a run as a picture, and what it waits for, in one line (``ropd timeline``). No jax.

The line covers the chosen steps: the share of their seconds in which the device sampled or updated, the share in which
the run only waited for the teacher (``idle``), and the rest. What it waits for follows from the critical path: the role
in which the step's last group was while the run was idle.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence

from ropd_jax.analysis import trace
from ropd_jax.types import UserError
from ropd_jax.utils import tables
from ropd_jax.utils.files import write_atomic
from ropd_jax.utils.paths import written
from ropd_jax.utils.tracing import RUN, TEACHER, Span, read_spans

COLOURS = {
    "compile": "#882255", "sample": "#4477aa", "prefill": "#66ccee", "sync": "#332288", "update": "#228833",
    "evaluate": "#999933",
    "checkpoint": "#aa4499", "checkpoint_write": "#ddaacc", "idle": "#dddddd", "reference": "#ddaa33",
    "rubric": "#ee8866", "verify": "#cc3311", "score": "#cc3311",
}  # fmt: skip
ORDER = ("compile", "update", "sample", "evaluate", "checkpoint", "idle")
SHOWN = 3  # steps of the chart if none are chosen
WAITING = {"compile": "the compiler", "sample": "sampling", "update": "the update", "evaluate": "evaluation",
           "checkpoint": "checkpoints", "idle": "the teacher", "host": "the host's own work"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shares:
    """How the seconds of some steps were spent.

    Attributes:
        steps: number of steps.
        seconds: of all of them together.
        spent: share of each activity of the run itself; ``host`` is time that no span covers.
        roles: share in which the run was idle, by the role that it waited for.
    """

    steps: int
    seconds: float
    spent: dict[str, float]
    roles: dict[str, float]

    def line(self, run: str) -> str:
        """One sentence: what the run waits for, and the shares."""
        most = max(self.spent, key=self.spent.__getitem__)
        roles = ", ".join(f"{role} {share:.0%}" for role, share in self.roles.items() if share >= 0.005)
        shown = [f"{WAITING[name]} {share:.0%}" + (f" ({roles})" if name == "idle" and roles else "")
                for name, share in sorted(self.spent.items(), key=lambda one: -one[1]) if share >= 0.005]  # fmt: skip
        return f"{run}: waits for {WAITING[most]}; of {self.steps} steps, {self.seconds:.1f} s: {', '.join(shown)}"


def shares(spans: Sequence[Span]) -> Shares:
    """`Shares` of the steps among the spans.

    Raises:
        UserError: no finished step among them.
    """
    steps = [s for s in spans if s.name == "step"]
    seconds = sum(s.end - s.start for s in steps)
    if not seconds:
        raise UserError("no finished step in the timeline; wait for the first, or choose other --steps")
    spent: defaultdict[str, float] = defaultdict(float, host=seconds)
    roles: defaultdict[str, float] = defaultdict(float)
    for step in steps:
        inside = [s for s in spans if s.start < step.end and s.end > step.start]
        free = [(step.start, step.end)]
        for name in ORDER:  # of two at the same time the first one counts
            found = [(max(s.start, step.start), min(s.end, step.end)) for s in inside if s.name == name]
            covered, free = _take(free, found)
            spent[name] += _length(covered)
            spent["host"] -= _length(covered)
            if name == "idle":
                for role, waited in _waited_for(covered, inside, step.step).items():
                    roles[role] += waited
    return Shares(
        len(steps),
        seconds,
        {name: value / seconds for name, value in spent.items()},
        {role: value / seconds for role, value in sorted(roles.items(), key=lambda one: -one[1])},
    )


def compiled(spans: Sequence[Span]) -> str:
    """Compilations, and the time that the compile cache saved, in one line; "" if the run recorded neither."""
    programs = [s for s in spans if s.name == "compile"]
    if not programs:
        return ""
    loaded = [s for s in programs if s.cached]
    seconds = sum(s.end - s.start for s in programs if not s.cached)
    return (
        f"compile cache: {len(loaded)} programs loaded, {sum(s.saved_s for s in loaded):.1f} s saved; "
        f"{len(programs) - len(loaded)} compiled in {seconds:.1f} s"
    )


def _waited_for(idle: list[tuple[float, float]], spans: Sequence[Span], step: int | None) -> dict[str, float]:
    """Seconds of ``idle`` by the role in which the step's last group was."""
    calls = [s for s in spans if s.name in TEACHER and s.step == step]
    if not calls:
        return {}
    last = max(calls, key=lambda s: s.end).group
    found: dict[str, float] = {}
    for role in TEACHER:
        taken, idle = _take(idle, [(s.start, s.end) for s in calls if s.group == last and s.name == role])
        found[role] = _length(taken)
    found["between calls"] = _length(idle)
    return {role: seconds for role, seconds in found.items() if seconds > 0}


def _take(
    free: list[tuple[float, float]], wanted: Iterable[tuple[float, float]]
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(the part of ``free`` that the intervals cover, the rest); no moment is counted twice."""
    covered: list[tuple[float, float]] = []
    for start, end in wanted:
        left = []
        for a, b in free:
            lo, hi = max(a, start), min(b, end)
            if lo >= hi:
                left.append((a, b))
                continue
            covered.append((lo, hi))
            left += [(x, y) for x, y in ((a, lo), (hi, b)) if x < y]
        free = left
    return covered, free


def _length(intervals: Iterable[tuple[float, float]]) -> float:
    return sum(b - a for a, b in intervals)


# ------------------------------------------------------------------------------------------------------ the chart


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar: its lane, counted from the top, and its seconds from the left edge of the chart."""

    lane: int
    name: str
    start: float
    end: float


def lanes(spans: Sequence[Span]) -> tuple[list[str], list[Bar]]:
    """(label of each lane, bars): the run's own lanes, then one for each group of each step.

    A group's sampling bar ends where its judgement starts. Bars of simultaneous calls overlap.

        sample          ████████            ████
        update                  ███             ███
        step 0 group 0  ██░rubric░▒verify▒
        step 0 group 1  █████░rubric░▒▒verify▒▒
    """
    present = [name for name in RUN if any(s.name == name for s in spans)]
    labels, at = list(present), {name: i for i, name in enumerate(present)}
    zero = min(s.start for s in spans)
    bars = [_bar(at[s.name], s, zero) for s in spans if s.name in at]
    began = {s.step: s.start for s in reversed(spans) if s.name == "sample"}
    for key in sorted({(s.step, s.group) for s in spans if s.name == "judged" and s.group is not None}):
        own = [s for s in spans if (s.step, s.group) == key]
        lane = len(labels)
        labels.append(f"step {key[0]} group {key[1]}")
        judged = min(s.start for s in own if s.name == "judged")
        if key[0] in began:
            bars.append(_bar(lane, Span("sample", began[key[0]], judged, *key), zero))
        bars += [_bar(lane, s, zero) for s in own if s.name in (*TEACHER, "update")]
    return labels, bars


def _bar(lane: int, s: Span, zero: float) -> Bar:
    return Bar(lane, s.name, s.start - zero, s.end - zero)


def chart_png(path: pathlib.Path, labels: Sequence[str], bars: Sequence[Bar], title: str) -> None:
    """Draws the bars."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without pyplot: no global state, no display
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(14, min(2.2 + 0.16 * len(labels), 24)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name in dict.fromkeys(b.name for b in bars):
        own = [b for b in bars if b.name == name]
        axes.barh([b.lane for b in own], [b.end - b.start for b in own], left=[b.start for b in own], height=0.8,
                  color=COLOURS[name], linewidth=0)  # fmt: skip
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel("seconds")
    axes.set_title(tables.chart_label(title), fontsize=9, loc="left", wrap=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    used = list(dict.fromkeys(b.name for b in bars))
    figure.legend(handles=[Patch(color=COLOURS[n], label=n) for n in used], loc="outside lower center",
                  ncols=len(used), fontsize=8, frameon=False)  # fmt: skip
    figure.savefig(path, dpi=110)


def main(run: str, *, steps: tuple[int, int] | None = None, out: str = "") -> Shares:
    """Prints the line, writes ``timeline.png`` and ``timeline.json``, and returns the shares.

    The JSON is a trace of all the chosen steps, which is every step by default.

    Raises:
        UserError: no timeline, or no such steps.
    """
    everything = read_spans(run)
    spans = [s for s in everything if steps is None or (s.step is not None and steps[0] <= s.step < steps[1])]
    found = shares(spans)
    line = found.line(str(run))
    events = trace.trace_json(spans)
    if steps is None:
        known = sorted({s.step for s in spans if s.name == "step" and s.step is not None})
        spans = [s for s in spans if s.step in known[-SHOWN:]]
    labels, bars = lanes(spans)
    named = (out or run).rstrip("/")
    with written(named, "--out") as directory:
        directory.mkdir(parents=True, exist_ok=True)
        chart_png(directory / "timeline.png", labels, bars, line)
        write_atomic(directory / "timeline.json", events)
    lines = [line, compiled(everything if steps is None else spans)]
    lines += [f"{named}/timeline.png", f"{named}/timeline.json (open it at https://ui.perfetto.dev)"]
    sys.stdout.write("".join(f"{text}\n" for text in lines if text))
    return found
