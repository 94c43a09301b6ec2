"""A real pretrained student before and after: trains and measures the arms of experiments/smollm2_rules.py.

    python experiments/smollm2_lab.py --out runs/smollm2                     only ROPD       (make smollm2)
    python experiments/smollm2_lab.py --out runs/smollm2 --arms all          all arms        (make smollm2-all)
    python experiments/smollm2_lab.py --out runs/smollm2 --show              table and picture of the finished parts

Measured for each student, on 300 held-out questions (held-out topics and held-out combinations of rules):

    rules met        share of a question's rules that the answer follows, by IFEval's checks; mean over questions
    all rules met    share of questions whose answer follows every rule
    distinct         share of answers that occur only once
    words            mean length of an answer
    oddness          nats per token of the answers under the *first* student; higher means less like its own answers
    ordinary text    perplexity of a page of plain prose that no run trained on (experiments/ordinary_text.txt)
    IFEval           share of IFEval's own 541 questions whose answer follows every instruction (``--ifeval DIR``)

Finished parts are not repeated. ``--results DIR`` stores the numbers of each student in DIR/NAME.json; a student that
has such a file is neither trained nor measured again, so the arms can come from several machines. With ``--ifeval`` it
is, if its file lacks IFEval.

    python experiments/smollm2_lab.py --out runs/smollm2 --results experiments/results/smollm2 --arms t_judge,rlvr

Hardware: 2 CPU cores. Time and results: experiments/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from experiments.smollm2_rules import ARMS, SIZES
from ropd_jax import load_student
from ropd_jax.analysis.teacher_signals import Row, mean_logprobs
from ropd_jax.data.ifeval import follows
from ropd_jax.evaluation.benchmarks import load_benchmark
from ropd_jax.evaluation.stats import Estimate, clustered, paired_difference
from ropd_jax.types import Message, Prompt
from ropd_jax.utils.files import write_atomic
from ropd_jax.workdir.metrics import read_metrics

HERE = pathlib.Path(__file__).parent
ORDINARY = HERE / "ordinary_text.txt"
QUESTIONS = 300
SAMPLING = ("--k", "1", "--temperature", "0.7", "--top_p", "1.0", "--max_tokens", "80", "--rows", "64")
IFEVAL = ("--k", "1", "--temperature", "0", "--max_tokens", "256", "--rows", "64")
FIRST = "smollm2"  # the student before any training
SHOWN = 8  # answers side by side
BATCH = 16  # answers whose log-probs are computed together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory of the runs")
    parser.add_argument("--arms", default="ropd", help=f"of {', '.join(ARMS)}, separated by commas; or all")
    parser.add_argument("--sizes", default="full", help=f"of {', '.join(SIZES)}, separated by commas")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each arm")
    parser.add_argument("--results", type=pathlib.Path, help="directory of finished numbers; finished ones are added")
    parser.add_argument("--ifeval", type=pathlib.Path, help="directory with ifeval.jsonl; adds its 541 questions")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="keys of the config, for a smoke")
    parser.add_argument("--limit", type=int, default=QUESTIONS, help="held-out questions")
    parser.add_argument("--show", action="store_true", help="run nothing")
    args = parser.parse_args()
    arms = ARMS if args.arms == "all" else args.arms.split(",")
    names = [f"{arm}-{size}-{seed}" for seed in range(args.seeds) for size in args.sizes.split(",") for arm in arms]
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.show:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((args.out / "xla").resolve()))
        if not finished(FIRST, args):
            measure(FIRST, args)
        for name in names:
            if not finished(name, args):
                train(args.out / name, args)
                measure(str(args.out / name), args)
    found = {p.stem: json.loads(p.read_text("utf-8")) for p in sorted(file_of(FIRST, args).parent.glob("*.json"))}
    if FIRST not in found:
        raise SystemExit(f"{file_of(FIRST, args)} does not exist yet; leave --show out")
    found = {FIRST: found.pop(FIRST), **found}
    text = "\n\n".join((table(found), by_kind(found), side_by_side(found)))
    (args.out / "smollm2.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    print(draw(args.out, found))


def finished(name: str, args: argparse.Namespace) -> bool:
    """Whether a student has all numbers that are asked for."""
    path = file_of(name, args)
    return path.exists() and (not args.ifeval or "ifeval" in json.loads(path.read_text("utf-8")))


def file_of(name: str, args: argparse.Namespace) -> pathlib.Path:
    """Where a student's numbers are."""
    return (args.results or args.out / "numbers") / f"{name}.json"


# ------------------------------------------------------------------------------------------------------------- runs


def ropd(*words: str) -> None:
    """Runs a ropd command and shows its output; ends this script if it fails."""
    print("$ ropd " + " ".join(words), flush=True)
    done = subprocess.run([sys.executable, "-m", "ropd_jax.cli.main", *words])
    if done.returncode:
        raise SystemExit(done.returncode)


def train(run: pathlib.Path, args: argparse.Namespace) -> None:
    """One run to its end; a run that was stopped continues."""
    if (run / "result.json").exists():
        return
    arm, size, seed = run.name.split("-")
    config = f"{HERE / 'smollm2_rules.py'}:arm={arm},size={size}"
    keys = [f"--config.{key}" for key in (f"seed={seed}", *args.set)]
    begin = time.monotonic()
    ropd("train", f"--config={config}", f"--workdir={run}", *keys)
    print(f"{run.name}: {(time.monotonic() - begin) / 60:.0f} minutes", flush=True)


def measure(student: str, args: argparse.Namespace) -> None:
    """Evaluates a student and stores its numbers."""
    name = pathlib.Path(student).name
    where = args.out / "measured" / name
    benchmarks: list[tuple[str, tuple[str, ...]]] = [("instructions", (*SAMPLING, "--limit", str(args.limit)))]
    if args.ifeval:
        benchmarks.append(("ifeval", (*IFEVAL, "--data", str(args.ifeval))))
    for benchmark, flags in benchmarks:
        if not (where / benchmark / "result.json").exists():
            ropd("eval", student, "--benchmark", benchmark, *flags, "--out", str(where / benchmark))
    found = numbers(student, where, args)
    file_of(name, args).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file_of(name, args), json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def met(where: pathlib.Path, questions: Iterable[Prompt]) -> tuple[list[dict[str, Any]], dict[str, list[bool]]]:
    """The stored answers of a benchmark, and for each question which of its instructions the answer follows."""
    rows = [json.loads(line) for line in (where / "answers.jsonl").read_text("utf-8").splitlines()]
    asked = {q.id: q.metadata["instructions"] for q in questions}
    return rows, {row["id"]: follows(asked[row["id"]], row["response"]) for row in rows}


def numbers(student: str, where: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
    """What the table, the picture and the answers side by side show of a student."""
    questions = {q.id: q for q in load_benchmark("instructions", limit=args.limit).prompts}
    rows, held = met(where / "instructions", questions.values())
    kinds: dict[str, list[bool]] = {}
    for i, flags in held.items():
        for kind, flag in zip(questions[i].metadata["kinds"], flags, strict=True):
            kinds.setdefault(kind, []).append(flag)
    texts = [row["response"].strip() for row in rows]
    times = Counter(texts)
    first, own = load_student(FIRST), load_student(student)
    answers = [
        scored_row(first, first.tokenizer.apply_chat_template((Message("user", questions[r["id"]].question),)), text)
        for r, text in zip(rows, texts, strict=True)
        if text
    ]
    prose = [scored_row(own, own.tokenizer.encode("\n"), text) for text in ORDINARY.read_text("utf-8").split("\n\n")]
    found: dict[str, Any] = {
        "rules": {i: float(np.mean(flags)) for i, flags in held.items()},
        "all": {i: float(all(flags)) for i, flags in held.items()},
        "kinds": {kind: float(np.mean(flags)) for kind, flags in sorted(kinds.items())},
        "distinct": sum(n == 1 for n in times.values()) / len(texts),
        "words": float(np.mean([len(t.split()) for t in texts])),
        "cut": float(np.mean([row.get("finish_reason") == "length" for row in rows])),
        "oddness": nats(first, answers),
        "ordinary": float(np.exp(nats(own, prose))),
        "ordinary_tokens": sum(len(row.tokens) - row.start for row in prose),
        "shown": [
            {"question": q.question, "answer": text}
            for q, text in ((questions[row["id"]], row["response"].strip()) for row in rows)
            if "language" not in q.metadata["kinds"]
        ][:SHOWN],
    }
    if args.ifeval:
        asked = load_benchmark("ifeval", str(args.ifeval)).prompts
        found["ifeval"] = {i: float(all(flags)) for i, flags in met(where / "ifeval", asked)[1].items()}
    # the reward of SFT is that of the references
    if student != FIRST and not pathlib.Path(student).name.startswith("sft-"):
        steps, rewards = read_metrics(pathlib.Path(student)).get("reward/mean", ([], []))
        found["rewards"] = [[int(step) for step in steps], [float(reward) for reward in rewards]]
    return found


def scored_row(student: Any, before: Sequence[int], text: str) -> Row:
    return Row((0, "", 0), [*before, *student.tokenizer.encode(text.strip())], len(before))


def nats(student: Any, rows: Sequence[Row]) -> float:
    """The negative mean log-prob of a token over all rows."""
    total, tokens = 0.0, 0
    rows = sorted(rows, key=lambda row: len(row.tokens))
    for i in range(0, len(rows), BATCH):
        part = rows[i : i + BATCH]
        for row, mean in zip(part, mean_logprobs(student, part, rows=BATCH), strict=True):
            total -= mean * (len(row.tokens) - row.start)
            tokens += len(row.tokens) - row.start
    return total / tokens


# ------------------------------------------------------------------------------------------------- table and picture


def percent(e: Estimate) -> str:
    return f"{100 * e.value:.1f} % [{100 * e.low:.1f}, {100 * e.high:.1f}]" if e.value is not None else "unknown"


def points(e: Estimate) -> str:
    return f"{100 * e.value:+.1f} [{100 * e.low:+.1f}, {100 * e.high:+.1f}]" if e.value is not None else "unknown"


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: one row per student; the changes are paired by question."""
    heads = ["student", "rules met", "change, points", "all rules met", "change, points"]
    heads += ["distinct", "words", "cut", "oddness", "ordinary text", "IFEval", "change, points"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    first = found[FIRST]
    for name, one in found.items():
        cells = list[str]()
        for key in ("rules", "all"):
            change = "" if name == FIRST else points(paired_difference(first[key], one[key]))
            cells += [percent(clustered(list(one[key].values()))), change]
        cells += [f"{100 * one['distinct']:.0f} %", f"{one['words']:.1f}", f"{100 * one['cut']:.1f} %"]
        cells += [f"{one['oddness']:.2f}", f"{one['ordinary']:.1f}"]
        answered = one.get("ifeval")
        both = answered and first.get("ifeval") and name != FIRST
        cells += [percent(clustered(list(answered.values()))) if answered else ""]
        cells += [points(paired_difference(first["ifeval"], answered)) if both else ""]
        rows.append(f"| {_label(name)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def by_kind(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: the share of rules met, by kind of rule."""
    kinds = sorted({kind for one in found.values() for kind in one["kinds"]})
    rows = [f"| rules met | {' | '.join(kind.replace('_', ' ') for kind in kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for name, one in found.items():
        shares = (f"{100 * one['kinds'][kind]:.0f} %" if kind in one["kinds"] else "" for kind in kinds)
        rows.append(f"| {_label(name)} | {' | '.join(shares)} |")
    return "\n".join(rows)


def side_by_side(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: the answers of the first student and of ROPD to the first held-out questions in English."""
    name = next((n for n in found if n.startswith("ropd-")), None)
    if name is None:
        return ""
    after = {shown["question"]: shown["answer"] for shown in found[name]["shown"]}
    rows = ["| question | before | after |", "|---|---|---|"]
    for shown in found[FIRST]["shown"]:
        cells = (shown["question"], shown["answer"], after.get(shown["question"], ""))
        rows.append(
            "| "
            + " | ".join(escape(cell, quote=False).replace("|", "\\|").replace("\n", "<br>") for cell in cells)
            + " |"
        )
    return "\n".join(rows)


def draw(out: pathlib.Path, found: Mapping[str, Mapping[str, Any]]) -> pathlib.Path:
    """The reward of each run against the step, and the shares before and after."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    curve, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    names = [n for n in found if n != FIRST]
    for i, name in enumerate(names):
        if "rewards" in found[name]:
            curve.plot(*found[name]["rewards"], color=f"C{i}")
    curve.set(xlabel="step", ylabel="mean reward of a step", title="training")
    for place, (key, label) in enumerate((("rules", "rules met"), ("all", "all rules met"))):
        for i, name in enumerate([FIRST, *names]):
            e = clustered(list(found[name][key].values()))
            low, high = (max(e.value - e.low, 0), max(e.high - e.value, 0))
            where = place * (len(names) + 2) + i
            color = "0.6" if name == FIRST else f"C{i - 1}"
            label_once = _label(name) if not place else None
            bars.bar(where, e.value, color=color, yerr=[[low], [high]], capsize=2, label=label_once)
        bars.text(place * (len(names) + 2), 1.0, label, fontsize=8)
    bars.set(ylim=(0, 1.1), xticks=[], title="held-out questions")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    path = out / "smollm2.png"
    figure.savefig(path, dpi=150)
    return path


def _label(name: str) -> str:
    """How the picture names a student: ``ropd-full-0`` is ROPD."""
    arm, _, rest = name.partition("-")
    known = {"smollm2": "before", "ropd": "ROPD", "permuted": "control: rewards permuted", "sft": "SFT on references",
             "t_judge": "T-Judge", "rlvr": "RLVR"}  # fmt: skip
    return known[arm] + ("" if rest in ("", "full-0") else f", {rest}")


if __name__ == "__main__":
    main()
