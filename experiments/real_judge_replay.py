"""The results of real_judge.py as small files, and a replay of the study from them, without a model.

    RESULTS/figures.json         setting, models, data, figures with intervals
    RESULTS/answers.jsonl.gz     the student's answers; those to judged problems with the value of each signal
    RESULTS/replies.jsonl.gz     every reply of the judge, by the hash of its request
    RESULTS/real_judge.md        the tables
    RESULTS/real_judge.png       the picture

The requests are not stored: they contain the benchmark's questions, which are not part of this repository. A replay
rebuilds them from your copy of the data, and looks up the replies by their hashes. A replay into the directory of a
study continues it on another machine, which has no tape of the first part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import pathlib
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

from experiments import real_judge_figures, real_judge_study
from ropd_jax.analysis.teacher_signals import SIGNALS as WHITEBOX_SIGNALS
from ropd_jax.teacher import ChatReply, ChatRequest, ConfigurationError, Tape, Teacher, Usage
from ropd_jax.teacher.tape.inspect import export_tape
from ropd_jax.teacher.tape.store import Failure, body_key, request_body
from ropd_jax.utils.files import write_atomic

FIGURES, ANSWERS, REPLIES = "figures.json", "answers.jsonl.gz", "replies.jsonl.gz"
SIGNALS = "signals"  # of an answer to a judged problem
PROVIDER = "openai"
TOLERANCE = 1e-4  # the stored values of the signals have six digits


class RecordedClient:
    """A ``ChatClient`` with the replies of an exported study.

    Args:
        rows: of ``replies.jsonl.gz``.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]):
        self._rows = {row["key"]: row for row in rows}

    async def chat(self, request: ChatRequest) -> ChatReply:
        """The recorded reply.

        Raises:
            ConfigurationError: there is none.
            TeacherError: the request failed when it was recorded.
        """
        row = self._rows.get(body_key(request_body(PROVIDER, request)))
        if row is None:
            raise ConfigurationError(
                f"the results have no reply to this {request.purpose} request; replay with the data and the version "
                "of the package that recorded them",
                cause="tape_miss",
            )
        if row["reply"] is None:
            raise Failure(**row["failures"][-1]).error()
        return ChatReply(row["reply"]["text"], usage=Usage(**row["reply"]["usage"]), source="tape")

    async def close(self) -> None:
        """Nothing to close."""


def export(study: pathlib.Path, about: Mapping[str, Any], results: pathlib.Path) -> dict[str, Any]:
    """Writes the results of a study; returns ``figures.json``. Replies that the results have already are kept.

    Args:
        about: what ``figures.json`` contains in addition to setting and figures.
    """
    results.mkdir(parents=True, exist_ok=True)
    rows = real_judge_study.stored_rollouts(study)
    for step, signals in real_judge_figures.values(study).items():
        answers = rows[step]["answers"]
        rows[step]["answers"] = [a | {SIGNALS: s} for a, s in zip(answers, signals, strict=True)]
    write_lines(results / ANSWERS, rows)
    replies = {row["key"]: row for row in read_lines(results / REPLIES)} if (results / REPLIES).exists() else {}
    if (tape := study.parent / real_judge_study.TAPE).exists():
        replies |= {row["key"]: row for row in replies_of(tape)}
    write_lines(results / REPLIES, [row for _, row in sorted(replies.items())])
    figures = real_judge_figures.measured(study)
    setting = json.loads((study / "setting.json").read_text(encoding="utf-8"))
    found = {"setting": setting, **about, "figures": figures}
    write_atomic(results / FIGURES, json.dumps(found, indent=1) + "\n")
    if figures["problems"]:
        write_atomic(results / "real_judge.md", real_judge_figures.shown(figures) + "\n")
        real_judge_figures.draw(figures, results / "real_judge.png")
    return found


def replies_of(tape: pathlib.Path) -> list[dict[str, Any]]:
    """Key, role, reply and failures of each request of a tape; the requests are left out."""
    with tempfile.TemporaryDirectory() as scratch:
        file = pathlib.Path(scratch) / "tape.jsonl"
        with contextlib.closing(Tape(tape, read_only=True)) as reader:
            export_tape(reader, file)
        lines = [json.loads(line) for line in file.read_text(encoding="ascii").splitlines()[1:]]
    kept = ("text", "usage", "latency_s")
    return [
        {
            "key": line["key"],
            "role": line["role"],
            "reply": None if line["reply"] is None else {k: line["reply"][k] for k in kept},
            "failures": [] if line["reply"] is not None else line["failures"],
        }
        for line in lines
    ]


def replay(results: pathlib.Path, data: str, place: pathlib.Path) -> dict[str, Any]:
    """The figures of the results, computed from answers and replies, with ``place`` as the study's directory.

    The log-probs and overlaps are the stored ones, because they need the weights.

    Raises:
        SystemExit: a signal or a figure differs from the stored one.
        UserError: no results or no data there.
    """
    stored = json.loads((results / FIGURES).read_text(encoding="utf-8"))
    setting = real_judge_study.Setting(**stored["setting"] | {"criteria": tuple(stored["setting"]["criteria"])})
    rows = read_lines(results / ANSWERS)
    real_judge_study.agreed(setting, place)
    values = {
        step: [answer.pop(SIGNALS) for answer in row["answers"]]
        for step, row in enumerate(rows)
        if SIGNALS in row["answers"][0]
    }
    scores = [
        {"step": step, "prompt_id": rows[step]["id"], "sample": n}
        | {k: s[k] for k in WHITEBOX_SIGNALS if s.get(k) is not None}
        for step, signals in values.items()
        for n, s in enumerate(signals)
        if s.get(WHITEBOX_SIGNALS[0]) is not None
    ]
    write_atomic(place / real_judge_study.ROLLOUTS, _lines(rows))
    write_atomic(place / real_judge_study.WHITEBOX, _lines(scores))
    prompts = real_judge_study.problems(data, len(rows), setting.template).prompts
    groups = [group for group in real_judge_study.stored_groups(place, prompts) if group.step in values]
    recorded = RecordedClient(read_lines(results / REPLIES))

    def prepare(teacher: Teacher) -> None:
        teacher.client = recorded

    real_judge_study.judge_all(setting, groups, place, data, prepare=prepare)
    for folder in real_judge_study.RUBRICS:
        for name, one in stored["figures"][folder].items():
            form = dataclasses.replace(setting, form=real_judge_study.form_named(name))
            mine = [g for g in groups if g.step in one["judged"]]
            real_judge_study.verify_all(form, mine, place, folder=folder, prepare=prepare)
    found = real_judge_figures.measured(place)
    different = list(differences(values, real_judge_figures.values(place), "answers"))
    different += sorted(differences(without_cost(stored["figures"]), without_cost(found)))
    if different:
        raise SystemExit(f"the replay differs from {results} in {', '.join(different[:8])}")
    return found


def without_cost(tree: Any) -> Any:
    """The figures without calls, tokens and seconds, which a replay does not have."""
    return {k: without_cost(v) for k, v in tree.items() if k != "cost"} if isinstance(tree, dict) else tree


def differences(a: Any, b: Any, where: str = "") -> Iterable[str]:
    """Names of the values that differ by more than rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            yield from differences(a.get(key), b.get(key), f"{where}.{key}" if where else key)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for n, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{where}.{n}")
    elif isinstance(a, float) and isinstance(b, float):
        if abs(a - b) > TOLERANCE:
            yield f"{where} ({a} there, {b} here)"
    elif a != b:
        yield f"{where} ({a!r:.40} there, {b!r:.40} here)"


def write_lines(file: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, compressed; the same rows give the same bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as out:
        out.write(_lines(rows).encode("ascii"))
    file.write_bytes(buffer.getvalue())


def read_lines(file: pathlib.Path) -> list[dict[str, Any]]:
    """What `write_lines` wrote."""
    with gzip.open(file, "rt", encoding="ascii") as lines:
        return [json.loads(line) for line in lines]


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
