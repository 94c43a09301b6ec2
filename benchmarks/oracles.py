r"""Outside oracles for our judges: other people's graders and probes on the same material.

    python -m benchmarks.oracles --oracles PYTHON --server PYTHON --model judge.gguf --out runs/oracles

    kappa     the labelled answers through Autorubric's per-criterion grader and through our verifier, same model,
              temperature 0: kappa of each and their difference, with intervals over questions; calls and tokens
    probes    the hack probes of rubric-reward-lens on our verifier, and the order of the criteria
    outputs   outputs with a known grade (`benchmarks.known_outputs`, in the manner of RewardAudit, and the corpus of
              reward-doctor) against our exact grader and the math grader

``--oracles`` is an interpreter that has the outside packages (``pip install autorubric rubric-reward-lens
reward-doctor``); none of them is a dependency of this project. ``--server`` has ``xllamacpp``; ``--model`` can also be
the address of a running server. The first two parts take minutes per question on two cores. Everything is stored in
``--out``, so that the same command resumes. ``--parts outputs`` needs no model.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import known_outputs
from benchmarks.judge import settings
from benchmarks.llama_server import serving
from benchmarks.oracles_child import MISSING
from ropd_jax.calibration import labels
from ropd_jax.calibration.agreement import cells, kappa
from ropd_jax.calibration.bootstrap import Bootstrap
from ropd_jax.calibration.forms import read_forms, with_form
from ropd_jax.calibration.probes import CHANGED
from ropd_jax.calibration.traffic import CountingClient, Traffic
from ropd_jax.data.grader import grade
from ropd_jax.teacher import build_teacher
from ropd_jax.teacher.labels import LabelledAnswer, LabelledQuestion
from ropd_jax.teacher.tape.store import TAPE_NAME
from ropd_jax.types import Message, Prompt, Rubric, answer_of

CHILD = pathlib.Path(__file__).with_name("oracles_child.py")
PACKAGES = "autorubric rubric-reward-lens reward-doctor"
FORMS = "keyed/1/1,keyed"
CALLS = ("per_criterion",)  # how Autorubric asks; also per_item
TIMEOUT_S = 1800.0
SLOTS = 5  # of the server; Autorubric sends one request at a time, so as many of it run side by side
CONTEXT = 4096  # tokens of each slot
MOST_TOKENS = 400  # of a reply of Autorubric: a verdict with an explanation of one or two sentences
PROBE_FORM = "keyed/1"  # one answer per call, as rubric-reward-lens grades


# ------------------------------------------------------------------------------------------------ the other interpreter


def child(python: str, part: str, items: Iterable[Mapping[str, Any]] = ()) -> Iterator[dict[str, Any]]:
    """The reply lines of `benchmarks.oracles_child`; without secrets in its environment, and without the network's
    price list, which LiteLLM would fetch.

    Raises:
        SystemExit: the interpreter does not run, lacks a package, or the package fails; with the end of its stderr.
    """
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    env = keep | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_API_KEY": "none"}
    lines = "".join(json.dumps(item) + "\n" for item in items)
    command = [python, str(CHILD), part]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        try:
            process = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=log, env=env, encoding="utf-8")
        except OSError as error:
            raise SystemExit(f"cannot run {python!r} ({error.strerror}); expected a Python with {PACKAGES}") from error
        assert process.stdin is not None and process.stdout is not None
        with process:
            process.stdin.write(lines)
            process.stdin.close()
            for line in process.stdout:
                if line.startswith('{"key"'):  # a package can print lines of its own
                    yield json.loads(line)
            code = process.wait()
        log.seek(0)
        errors = log.read().strip()
    if code == MISSING:
        raise SystemExit(f"{python!r} has no package {errors.splitlines()[-1]!r}; pip install {PACKAGES}")
    if code:
        raise SystemExit(f"{' '.join(command)} fails: {errors[-500:]}")


# ---------------------------------------------------------------------------------------------------------------- kappa


@dataclasses.dataclass
class Judged:
    """The verdicts of one grader.

    Attributes:
        verdicts: key of an answer -> one verdict per criterion, None if there is none.
        causes: how often a verdict is missing, by cause.
    """

    name: str
    verdicts: dict[str, tuple[bool | None, ...]] = dataclasses.field(default_factory=dict)
    causes: Counter[str] = dataclasses.field(default_factory=Counter)
    calls: int = 0
    input_tokens: int | None = 0
    output_tokens: int | None = 0
    seconds: float = 0.0


def chosen(questions: Sequence[LabelledQuestion], answers: int) -> list[LabelledQuestion]:
    """The questions with the first ``answers`` answers of each, correct and incorrect ones in turn; 0 keeps all."""
    if not answers:
        return list(questions)
    found = []
    for question in questions:
        sides = [[a for a in question.answers if a.correct is side] for side in (True, False)]
        turns = [a for pair in zip(*sides, strict=False) for a in pair]
        rest = [a for a in question.answers if a not in turns]
        found.append(dataclasses.replace(question, answers=tuple((turns + rest)[:answers])))
    return found


def key_of(question: LabelledQuestion, answer: LabelledAnswer) -> str:
    return f"{question.id}/{answer.id}"


async def ours(teacher: dict[str, Any], form: str, questions: Sequence[LabelledQuestion]) -> Judged:
    """The verdicts of our verifier in one form; its replies come from the tape if they are there."""
    (known,) = read_forms(form, teacher["verifier"])
    asked = build_teacher(teacher | {"verifier": with_form(teacher["verifier"], known)}, needs=("verify",))
    asked.client = counting = CountingClient(asked.client, {})
    judged = Judged(f"ours, {known}")
    try:
        for n, question in enumerate(questions, 1):
            texts = [a.text for a in question.answers]
            found = await asked.verify(question.prompt, question.rubric, texts, key=f"oracles/{question.id}")
            for answer, row, cause in zip(question.answers, found.passed, found.causes, strict=True):
                missing = (None,) * len(question.criteria)
                judged.verdicts[key_of(question, answer)] = missing if row is None else row
                judged.causes.update({cause: len(missing)} if cause else {})
            report(f"{judged.name}: {n} of {len(questions)} questions")
    finally:
        await asked.close()
    traffic = counting.roles.get("verify", Traffic()).as_dict()
    judged.calls, judged.seconds = traffic["calls"], traffic["seconds"] or 0.0
    judged.input_tokens, judged.output_tokens = traffic["input_tokens"], traffic["output_tokens"]
    return judged


def theirs(
    python: str, address: str, model: str, llm_calls: str, questions: Sequence[LabelledQuestion], stored: pathlib.Path
) -> Judged:
    """The verdicts of Autorubric; ``stored`` has those of an earlier call and gets the new ones."""
    judged, items = Judged(f"Autorubric, {llm_calls}"), {}
    for question in questions:
        criteria = [{"text": c.text, "points": c.points} for c in question.criteria]
        for answer in question.answers:
            key = key_of(question, answer)
            items[key] = {"key": key, "question": question.question, "answer": answer.text, "criteria": criteria}
    rows = {row["key"]: row for row in _rows(stored) if "failed" not in row["causes"]}
    if wanted := [item for key, item in items.items() if key not in rows]:
        how = {"model": model, "address": address, "llm_calls": llm_calls, "timeout_s": TIMEOUT_S}
        with stored.open("a", encoding="utf-8") as f, concurrent.futures.ThreadPoolExecutor(SLOTS) as side_by_side:
            lock = threading.Lock()

            def part(mine: list[dict[str, Any]]) -> None:
                for row in child(python, "grade", [how | {"max_tokens": MOST_TOKENS}, *mine]) if mine else ():
                    with lock:
                        rows[row["key"]] = row
                        f.write(json.dumps(row) + "\n")
                        f.flush()
                        report(f"{judged.name}: {len(rows)} of {len(items)} answers")

            list(side_by_side.map(part, (wanted[n::SLOTS] for n in range(SLOTS))))
    for key in items:
        row = rows[key]
        judged.verdicts[key] = tuple(row["verdicts"])
        judged.causes.update(c for c, v in zip(row["causes"], row["verdicts"], strict=True) if v is None)
        judged.calls += row["calls"]
        judged.seconds += row["seconds"]
        for name in ("input_tokens", "output_tokens"):
            total = getattr(judged, name)
            setattr(judged, name, None if total is None or row[name] is None else total + row[name])
    return judged


def agreement_rows(judged: Sequence[Judged], questions: Sequence[LabelledQuestion]) -> list[dict[str, Any]]:
    """Per grader: kappa and accuracy on its verdicts, and kappa minus the first grader's on verdicts that both gave.

    Intervals are 95 %, by a bootstrap of whole questions.
    """
    boot = Bootstrap(len(questions))
    first, rows = judged[0], []
    for one in judged:
        alone_QC = _cells(one, questions, one.verdicts)
        ours_QC, base_QC = _cells(one, questions, first.verdicts), _cells(first, questions, one.verdicts)
        verdicts, missing = int(alone_QC.sum()), sum(one.causes.values())
        difference_D = kappa(boot.weights_DQ @ ours_QC) - kappa(boot.weights_DQ @ base_QC)
        difference = float(kappa(ours_QC.sum(axis=0)) - kappa(base_QC.sum(axis=0)))
        rows.append(
            {
                "name": one.name,
                "verdicts": verdicts,
                "missing": dict(one.causes),
                "kappa": boot.estimate(float(kappa(alone_QC.sum(axis=0))), kappa(boot.weights_DQ @ alone_QC), verdicts),
                "accuracy": boot.ratio(alone_QC[:, [0, 3]].sum(axis=1), alone_QC.sum(axis=1), share=True),
                "called_true": float(alone_QC[:, :2].sum() / verdicts) if verdicts else None,
                "difference": boot.estimate(difference, difference_D, int(ours_QC.sum())),
                **_per_1000(one, verdicts + missing),
            }
        )
    return rows


def _per_1000(one: Judged, asked: int) -> dict[str, float | None]:
    sums = {name: getattr(one, name) for name in ("calls", "input_tokens", "output_tokens", "seconds")}
    return {name: None if total is None or not asked else total * 1000 / asked for name, total in sums.items()}


def _cells(
    one: Judged, questions: Sequence[LabelledQuestion], both: Mapping[str, tuple[bool | None, ...]]
) -> np.ndarray:
    """The cells per question over the verdicts that ``one`` and ``both`` have."""
    found = [
        (q, truth, said)
        for q, question in enumerate(questions)
        for answer in question.answers
        for truth, said, other in zip(
            answer.truth, one.verdicts[key_of(question, answer)], both[key_of(question, answer)], strict=True
        )
        if truth is not None and said is not None and other is not None
    ]
    columns = np.array(found, int).reshape(-1, 3).T
    return cells(columns[0], columns[1].astype(bool), columns[2].astype(bool), len(questions))


# --------------------------------------------------------------------------------------------------------------- probes

MAPPING = {  # a probe of rubric-reward-lens -> ours, and the kinds of criteria that its text can meet
    "keyword_stuff": ("keyword_stuffing", CHANGED | {"intermediate_fact"}),
    "verbosity_pad": ("padding", CHANGED),
    "confident_wrong": ("confident_claims", CHANGED),
    "format_mimic": ("format_mimicry", CHANGED | {"intermediate_fact"}),
}


def wrong_answers(questions: Sequence[LabelledQuestion]) -> Iterator[tuple[LabelledQuestion, LabelledAnswer]]:
    """One wrong answer per question, as `ropd_jax.calibration.probes` chooses them."""
    for question in questions:
        wrong = (a for a in question.answers if a.kind in ("", "wrong") and a.correct is False and not a.like)
        if answer := next((a for a in wrong if a.text.strip()), None):
            yield question, answer


async def gains(teacher: dict[str, Any], python: str, questions: Sequence[LabelledQuestion]) -> dict[str, Any]:
    """What a wrong answer gains by each probe of rubric-reward-lens, and by listing the criteria in reverse order.

    ``all`` counts every criterion, as that package does; ``counted`` leaves out the criteria whose truth the added text
    can change, as our own probes do.
    """
    bases = list(wrong_answers(questions))
    items = [
        {"key": q.id, "answer": a.text, "criteria": [{"id": c.id, "text": c.text, "points": c.points}
                                                     for c in q.criteria]} for q, a in bases
    ]  # fmt: skip
    texts = {row["key"]: row["probes"] for row in child(python, "twins", items)}
    (form,) = read_forms(PROBE_FORM, teacher["verifier"])
    asked = build_teacher(teacher | {"verifier": with_form(teacher["verifier"], form)}, needs=("verify",))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in MAPPING}
    turned: list[tuple[int, int, float]] = []
    try:
        for n, (q, base) in enumerate(bases, 1):
            group = [base.text, *(texts[q.id][name] for name in MAPPING)]
            rows = (await asked.verify(q.prompt, q.rubric, group, key=f"lens/{q.id}")).passed
            back = Rubric(q.rubric.criteria[::-1])
            (turn,) = (await asked.verify(q.prompt, back, [base.text], key=f"lens/{q.id}/back")).passed
            report(f"probes: {n} of {len(bases)} wrong answers")
            if rows[0] is None:
                continue
            for (name, (_, changes)), row in zip(MAPPING.items(), rows[1:], strict=True):
                if row is not None:
                    counted = [k for k, c in enumerate(q.criteria) if c.kind not in changes]
                    found[name].append(
                        (_gain(q.rubric, rows[0], row, range(len(row))), _gain(q.rubric, rows[0], row, counted))
                    )
            if turn is not None:
                flips = sum(a != b for a, b in zip(rows[0], turn[::-1], strict=True))
                turned.append((flips, len(turn), abs(q.rubric.score(rows[0]) - back.score(turn))))
    finally:
        await asked.close()
    boot = {name: Bootstrap(len(pairs)) for name, pairs in found.items()}
    order = np.array(turned, float).reshape(-1, 3)
    return {
        "gains": {
            name: {
                kind: boot[name].ratio(np.nan_to_num(column), ~np.isnan(column))
                for kind, column in zip(("all", "counted"), np.array(pairs, float).reshape(-1, 2).T, strict=True)
            }
            for name, pairs in found.items()
        },
        "order": {
            "flips": Bootstrap(len(order)).ratio(order[:, 0], order[:, 1], share=True),
            "drift": Bootstrap(len(order)).ratio(order[:, 2], np.ones(len(order))),
        },
    }


def _gain(rubric: Rubric, base: Sequence[bool], twin: Sequence[bool], counted: Iterable[int]) -> float:
    picked = list(counted)
    if not picked:
        return float("nan")
    part = Rubric(tuple(rubric.criteria[k] for k in picked))
    return part.score(tuple(twin[k] for k in picked)) - part.score(tuple(base[k] for k in picked))


# -------------------------------------------------------------------------------------------------------------- outputs


def graded(outputs: Iterable[known_outputs.Output]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The confusion table by grader, and the outputs whose grade differs from the known one.

    Returns:
        ``{task: {"right": {"right": n, "wrong": n, "ungraded": n}, "wrong": {...}}}`` (known grade, then ours), and one
        row per disagreement.
    """
    words = {True: "right", False: "wrong", None: "ungraded"}
    table: dict[str, Any] = {}
    rows = []
    for one in outputs:
        prompt = Prompt("known", (Message("user", "?"),), answer=one.gold, task=one.task)
        found = grade(prompt, answer_of(one.text))
        empty = {known: dict.fromkeys(words.values(), 0) for known in ("right", "wrong")}
        table.setdefault(one.task or "exact", empty)[words[one.right]][words[found]] += 1
        if found is not one.right:
            rows.append(dataclasses.asdict(one) | {"found": words[found]})
    return table, rows


def doctored(python: str) -> tuple[list[known_outputs.Output], list[known_outputs.Output]]:
    """reward-doctor's corpus (not contested, contested).

    Its cases of the categories ``equivalence`` and ``distinction`` are bare answers ("42."), which our graders do not
    take for a statement; they are put behind "Answer:".
    """
    sides: tuple[list[known_outputs.Output], list[known_outputs.Output]] = ([], [])
    for row in child(python, "cases"):
        bare = row["kind"] in ("equivalence", "distinction")
        text = f"Answer: {row['output']}" if bare else row["output"]
        sides[row["contested"]].append(
            known_outputs.Output(f"reward-doctor, {row['key']}", "", row["gold"], text, row["right"])
        )
    return sides


# --------------------------------------------------------------------------------------------------------------- report


def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def shown(found: Mapping[str, Any]) -> str:
    """All figures as Markdown."""
    lines: list[str] = []
    if "kappa" in found:
        head = ("grader", "verdicts", "missing", "kappa", "accuracy", "called true", "kappa - first", "calls",
                "tokens in", "tokens out", "s")  # fmt: skip
        lines += ["## The same answers, criteria and model", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        for row in found["kappa"]:
            missing = ", ".join(f"{n} {cause}" for cause, n in row["missing"].items()) or "0"
            counts = (_n(row[name]) for name in ("calls", "input_tokens", "output_tokens", "seconds"))
            cells_ = (row["name"], str(row["verdicts"]), missing, _e(row["kappa"]), _e(row["accuracy"]),
                      "unknown" if row["called_true"] is None else f"{row['called_true']:.2f}",
                      _e(row["difference"]), *counts)  # fmt: skip
            lines.append(f"| {' | '.join(cells_)} |")
        lines += ["", "Calls, tokens and seconds per 1,000 verdicts; brackets: 95 % intervals over questions.", ""]
    if "probes" in found:
        lines += ["## Probes of rubric-reward-lens on our verifier", "", "| probe | ours | gain, all criteria | "
                  "gain, criteria that count |", "|---|---|---|---|"]  # fmt: skip
        for name, row in found["probes"]["gains"].items():
            lines.append(f"| {name} | {MAPPING[name][0]} | {_e(row['all'])} | {_e(row['counted'])} |")
        order = found["probes"]["order"]
        lines += ["", f"Criteria in reverse order: {_e(order['flips'])} of the verdicts change, and the reward by "
                  f"{_e(order['drift'])}.", ""]  # fmt: skip
    for name, tables in found.get("outputs", {}).items():
        lines += [f"## Outputs with a known grade: {name}", "", "| grader | known | graded right | graded wrong | "
                  "ungraded |", "|---|---|---|---|---|"]  # fmt: skip
        lines += [
            f"| {task} | {known} | {row['right']} | {row['wrong']} | {row['ungraded']} |"
            for task, table in tables.items()
            for known, row in table.items()
        ]
        lines.append("")
    return "\n".join(lines)


def _e(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "unknown"
    return f"{found['value']:.2f}" + (f" [{found['low']:.2f}, {found['high']:.2f}]" if found["low"] is not None else "")


def _n(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oracles", required=True, metavar="PYTHON", help=f"an interpreter that has {PACKAGES}")
    parser.add_argument("--server", default="", metavar="PYTHON", help="an interpreter that has xllamacpp")
    parser.add_argument("--model", default="", metavar="FILE", help="a GGUF file, or the URL of a running server")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", default="outputs,kappa,probes")
    parser.add_argument("--questions", type=int, default=12, help="of the labelled set")
    parser.add_argument("--answers", type=int, default=2, help="per question; 0 for all seven")
    parser.add_argument("--probe_questions", type=int, default=6)
    parser.add_argument("--forms", default=FORMS, help="forms of our verifier; the first is what the others are "
                        "compared with")  # fmt: skip
    parser.add_argument("--calls", default=",".join(CALLS), help="how Autorubric asks: per_criterion, per_item")
    parser.add_argument("--part", default="dev", choices=labels.PARTS, help="of the labelled set")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/oracles"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    page = args.out / "oracles.json"
    found: dict[str, Any] = json.loads(page.read_text("utf-8")) if page.exists() else {}

    def keep(**parts: Any) -> None:
        found.update(parts)
        page.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (args.out / "oracles.md").write_text(shown(found), encoding="utf-8")

    parts = args.parts.split(",")
    if "outputs" in parts:
        keep(outputs=_outputs(args.oracles, args.out))
    if "kappa" in parts or "probes" in parts:
        questions = labels.load(part=args.part, limit=args.questions)[0]
        is_url = args.model.startswith("http")
        local = functools.partial(serving, args.server, threads=args.threads, context=SLOTS * CONTEXT, slots=SLOTS)
        server = contextlib.nullcontext if is_url else local
        with server(args.model) as address:
            teacher = settings("judge", address, args.out / TAPE_NAME, replay=False, slots=SLOTS)
            if "kappa" in parts:
                keep(kappa=_kappa(args, teacher, address, chosen(questions, args.answers)))
            if "probes" in parts:
                keep(probes=asyncio.run(gains(teacher, args.oracles, questions[: args.probe_questions])))
    print(shown(found))


def _kappa(args, teacher: dict[str, Any], address: str, questions: list[LabelledQuestion]) -> list[dict[str, Any]]:
    judged = [asyncio.run(ours(teacher, form, questions)) for form in args.forms.split(",")]
    for how in args.calls.split(","):
        stored = args.out / f"autorubric_{how}.jsonl"
        judged.append(theirs(args.oracles, address, "judge", how, questions, stored))
    return agreement_rows(judged, questions)


def _outputs(python: str, out: pathlib.Path) -> dict[str, Any]:
    clear, contested = doctored(python)
    found = {}
    with (out / "disagreements.jsonl").open("w", encoding="utf-8") as f:
        for name, outputs in (("built here", list(known_outputs.outputs())), ("reward-doctor", clear),
                              ("reward-doctor, contested", contested)):  # fmt: skip
            found[name], rows = graded(outputs)
            report(f"{name}: {len(outputs)} outputs, {len(rows)} grades differ")
            f.writelines(json.dumps({"set": name} | row) + "\n" for row in rows)
    return found


if __name__ == "__main__":
    main()
