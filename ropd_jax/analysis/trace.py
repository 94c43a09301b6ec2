"""``timeline.json``: the spans of a run in Chrome's trace format, for https://ui.perfetto.dev and ``chrome://tracing``.

    process "run"       one thread per activity of the run itself: step, sample, update, idle ...
    process "teacher"   one thread per group of the step: judged, and inside it reference, rubric, verify

Spans of one thread that overlap without containing one another, such as two calls of a group, get further threads,
because the format nests the spans of a thread.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ropd_jax.utils.tracing import RUN, TEACHER, Span

RUN_PID, TEACHER_PID = 1, 2
_ROWS = ("step", *RUN, "stop")


def trace(spans: Sequence[Span]) -> dict[str, Any]:
    """The JSON object of the trace: complete events (``ph`` X) with microseconds since the first span, and names."""
    zero = min(s.start for s in spans)
    rows: dict[tuple[int, str], list[Span]] = {}
    for s in sorted(spans, key=lambda s: (s.start, -s.end)):
        if s.group is not None and s.name in (*TEACHER, "judged"):
            rows.setdefault((TEACHER_PID, f"group {s.group}"), []).append(s)
        else:
            rows.setdefault((RUN_PID, s.name), []).append(s)
    events = [_named("process_name", RUN_PID, 0, "run"), _named("process_name", TEACHER_PID, 0, "teacher")]
    numbers = {RUN_PID: 0, TEACHER_PID: 0}
    for pid, label in sorted(rows, key=_place):
        for lane in _nested(rows[pid, label]):
            numbers[pid] += 1
            tid = numbers[pid]
            events.append(_named("thread_name", pid, tid, label))
            events.append(_meta("thread_sort_index", pid, tid, {"sort_index": tid}))
            events += [_event(s, pid, tid, zero) for s in lane]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def trace_json(spans: Sequence[Span]) -> str:
    """The text of ``timeline.json``."""
    return json.dumps(trace(spans)) + "\n"


def _place(row: tuple[int, str]) -> tuple[int, int, str]:
    pid, label = row
    if pid == TEACHER_PID:
        return pid, int(label.removeprefix("group ")), label
    return pid, _ROWS.index(label) if label in _ROWS else len(_ROWS), label


def _nested(spans: Sequence[Span]) -> list[list[Span]]:
    """Threads in which two spans are either disjoint, or the later one is inside the earlier one."""
    lanes: list[list[Span]] = []
    open_ends: list[list[float]] = []  # of each lane, the innermost last
    for s in spans:
        lane = next((i for i, ends in enumerate(open_ends) if _fits(s, ends)), len(lanes))
        if lane == len(lanes):
            lanes.append([])
            open_ends.append([])
        lanes[lane].append(s)
        open_ends[lane].append(s.end)
    return lanes


def _fits(s: Span, ends: list[float]) -> bool:
    """Whether a span fits into a lane with these open ends; closes those that end before it."""
    while ends and ends[-1] <= s.start:
        ends.pop()
    return not ends or s.end <= ends[-1]


def _event(s: Span, pid: int, tid: int, zero: float) -> dict[str, Any]:
    about = {"step": s.step, "group": s.group, "cached": s.cached, "saved_s": s.saved_s or None}
    return {
        "name": s.name,
        "cat": "run" if pid == RUN_PID else "teacher",
        "ph": "X",
        "ts": round((s.start - zero) * 1e6, 1),
        "dur": round(max(s.end - s.start, 0.0) * 1e6, 1),
        "pid": pid,
        "tid": tid,
        "args": {name: value for name, value in about.items() if value is not None},
    }


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return _meta(what, pid, tid, {"name": name})


def _meta(what: str, pid: int, tid: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": args}
