"""A real model as the verifier: seven request forms, binding and loose schemas, and the saving of a prompt cache.

    python -m benchmarks.judge --server PYTHON --model qwen15=qwen15.gguf --model qwen05=qwen05.gguf --out runs/judge

PYTHON is an interpreter that has ``xllamacpp`` (llama.cpp's server as a wheel). A server is started for each GGUF file,
on its own loopback port. ``--model NAME=URL`` uses a running server. This takes hours on two cores: a 1.5B model reads
30 tokens per second there and writes 8.

    forms     the labelled questions through `ropd_jax.calibration`: kappa, AUC, tokens, with intervals over questions
    schema    usable replies, for rubrics and for verdicts as lists, with the bound and the loose schema
    prefix    tokens that a fresh server took from its cache: all answers in one call, and one
              answer in each call, with our prompt and with the older one

Everything is on tapes in ``--out``, so an interrupted run can be resumed, and a second run costs nothing. ``--export``
writes the tapes as one small file, from which ``--replay`` regenerates all tables without a model.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import gzip
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.llama_server import serving
from ropd_jax import configs
from ropd_jax.calibration import labels, run
from ropd_jax.teacher import ConfigurationError, MalformedError, Tape, TeacherError, build_teacher
from ropd_jax.teacher.clients.chat import ChatRequest
from ropd_jax.teacher.clients.structured_output import loosened
from ropd_jax.teacher.labels import LabelledQuestion
from ropd_jax.teacher.roles import rubricator, verifier
from ropd_jax.teacher.roles.json_reply import token_of
from ropd_jax.teacher.tape.inspect import export_tape, import_tape
from ropd_jax.teacher.tape.store import TAPE_NAME

FORMS = "lists,keyed,by_criterion,keyed/1,keyed_reason,keyed_reasons,keyed/1/1"
SCHEMA_TOKENS = 1200  # output limit: twice what a usable reply needs; a longer reply counts as unusable
PREFIX_QUESTIONS = 2


def settings(name: str, address: str, tape: pathlib.Path, *, replay: bool, slots: int = 1) -> dict[str, Any]:
    """``cfg.teacher`` for one model on a server with so many slots."""
    cfg = configs.default().teacher
    cfg.provider, cfg.base_url = "openai", address
    cfg.concurrency = cfg.min_concurrency = slots
    cfg.timeout_s, cfg.attempts = 1800.0, 2
    for role in (cfg.verifier, cfg.rubricator):
        role.model, role.max_output_tokens, role.temperature = name, 6000, 0.0
    cfg.tape.path, cfg.tape.mode = str(tape), "replay" if replay else "record"
    return cfg.to_dict()


# ------------------------------------------------------------------------------------------------------ the parts


def forms(teacher: dict[str, Any], names: str, questions: int, out: pathlib.Path) -> list[dict[str, Any]]:
    """One row per form; in a replay, only the forms on the tape."""
    rows = []
    for name in names.split(","):
        options = run.Options(forms=name, limit=questions, reorder=False)
        try:
            (report,) = run.main(teacher, options, seed=0, out=out / name.replace("/", "_"))
        except ConfigurationError as e:
            if e.cause != "tape_miss":
                raise
            print(f"{name} is not on the tape", flush=True)
            continue
        traffic, verdicts = report["traffic"], report["traffic"]["verdicts"]
        known = None not in (traffic["input_tokens"], traffic["cached_tokens"])
        each = 1000 / verdicts
        rows.append(
            {
                "form": report["verifier"]["form"],
                "verdicts": report["overall"]["n"],
                "kappa": report["overall"]["kappa"],
                "accuracy": report["overall"]["accuracy"],
                "sensitivity": report["overall"]["sensitivity"]["value"],
                "specificity": report["overall"]["specificity"]["value"],
                "auc": report["auc"]["within"],
                "unscored": report["unscored"]["share"],
                "calls": traffic["calls"] * each,
                "input": traffic["input_tokens"] * each if known else None,
                "new_input": (traffic["input_tokens"] - traffic["cached_tokens"]) * each if known else None,
                "output": traffic["output_tokens"] * each if known else None,
                "seconds": traffic["seconds"] * each if traffic["seconds"] is not None else None,
            }
        )
    return rows


def schema(teacher: dict[str, Any], n: int) -> dict[str, str]:
    """Usable replies out of ``n``, by kind of request and schema; one attempt each, without a repeated request."""
    questions = labels.load()[0][:n]
    return asyncio.run(_schema(teacher, questions))


async def _schema(teacher: dict[str, Any], questions: list[LabelledQuestion]) -> dict[str, str]:
    asked = build_teacher(teacher, needs=("verify", "rubric"))
    how = asked.roles["verify"].wording()
    found: dict[str, str] = {}
    for kind, make in (("verdicts", _verdicts), ("rubric", _rubric)):
        for bound in (True, False):
            usable = 0
            for question in questions:
                request, parse = make(question, how)
                if not bound:
                    request = dataclasses.replace(request, json_schema=loosened(request.json_schema))
                usable += await _usable(asked, request, parse)
            found[f"{kind}, {'bound' if bound else 'loose'}"] = f"{usable} of {len(questions)}"
    await asked.close()
    return found


def _verdicts(question: LabelledQuestion, how: dict[str, Any]) -> tuple[ChatRequest, Callable[[str], Any]]:
    texts = [a.text for a in question.answers]
    request = verifier.verify_request(question.prompt.question, question.rubric, texts, form="lists", **how)

    def parse(text: str) -> None:
        causes = verifier.parse_verdicts(text, question.rubric, len(texts), token_of(request.json_schema)).causes
        if any(causes):
            raise MalformedError(f"answers without verdicts: {causes}")

    return request, parse


def _rubric(question: LabelledQuestion, how: dict[str, Any]) -> tuple[ChatRequest, Callable[[str], Any]]:
    right = [a.text for a in question.answers if a.correct][:2]
    wrong = [a.text for a in question.answers if not a.correct][:2]
    request = rubricator.rubric_request(question.prompt.question, right, wrong, **how)
    return request, lambda text: rubricator.parse_rubric(text, token=token_of(request.json_schema))


async def _usable(teacher: Any, request: ChatRequest, parse: Callable[[str], Any]) -> bool:
    try:
        parse((await teacher.client.chat(dataclasses.replace(request, max_output_tokens=SCHEMA_TOKENS))).text)
    except ConfigurationError:
        raise
    except TeacherError:
        return False
    return True


PREFIX = {  # label -> template, answers in each call
    "all answers in one call": ("", 0),
    "one answer in each call": ("", 1),
    "one answer in each call, verifier.v2": ("verifier.v2", 1),
}


def prefix(teacher: dict[str, Any], template: str, answers_per_call: int, out: pathlib.Path) -> dict[str, Any]:
    """Prompt tokens of a few questions, and how many of them the server had to read."""
    asking = {"template": template, "answers_per_call": answers_per_call}
    teacher = teacher | {"verifier": teacher["verifier"] | asking}
    (report,) = run.main(teacher, run.Options(limit=PREFIX_QUESTIONS, reorder=False), seed=0, out=out)
    traffic = report["traffic"]
    known = None not in (traffic["input_tokens"], traffic["cached_tokens"])
    return {
        "calls": traffic["calls"],
        "input": traffic["input_tokens"],
        "new": traffic["input_tokens"] - traffic["cached_tokens"] if known else None,
        "output": traffic["output_tokens"],
    }


# ---------------------------------------------------------------------------------------------------------- report


def shown(name: str, found: dict[str, Any]) -> str:
    """The figures of one model as Markdown."""
    head = ("form", "verdicts", "kappa", "AUC, one question", "accuracy", "sens.", "spec.", "unscored", "calls",
            "tokens in", "of them new", "tokens out", "s")  # fmt: skip
    lines = [f"## {name}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in found["forms"]:
        counts = (_n(row[key]) for key in ("calls", "input", "new_input", "output", "seconds"))
        cells = (row["form"], str(row["verdicts"]), _e(row["kappa"]), _e(row["auc"]), _e(row["accuracy"]),
                 _s(row["sensitivity"]), _s(row["specificity"]), _s(row["unscored"]), *counts)  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Calls, tokens and seconds per 1,000 verdicts; brackets: 95 % intervals over questions.", ""]
    if "schema" in found:
        lines += [f"Usable replies: {'; '.join(f'{k}: {v}' for k, v in found['schema'].items())}.", ""]
    if "prefix" in found:
        lines += ["| of a fresh server | calls | prompt tokens | of them new | tokens out |", f"|{'---|' * 5}"]
        for label, row in found["prefix"].items():
            lines.append(f"| {label} | {' | '.join(_n(row[key]) for key in ('calls', 'input', 'new', 'output'))} |")
        lines.append("")
    return "\n".join(lines)


def _e(found: dict[str, Any]) -> str:
    return "unknown" if found["value"] is None else f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _s(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _n(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"


def measured(name: str, server: Callable[[], contextlib.AbstractContextManager[str]], args) -> dict[str, Any]:
    """All figures of one model; ``server`` starts a server and yields its address."""
    out, replay, found = args.out / name, bool(args.replay), {}
    with server() as address:
        teacher = settings(name, address, out / TAPE_NAME, replay=replay)
        found["forms"] = forms(teacher, args.forms, args.questions, out)
        if "schema" in args.parts:
            found["schema"] = schema(teacher, args.schema_questions)
    if "prefix" in args.parts:
        found["prefix"] = {}
        for number, (label, (template, cut)) in enumerate(PREFIX.items()):
            folder = out / f"prefix{number}"
            with server() as address:
                teacher = settings(name, address, folder / TAPE_NAME, replay=replay)
                found["prefix"][label] = prefix(teacher, template, cut, folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="or NAME=URL of a running server; repeatable",
    )
    parser.add_argument("--server", default="", metavar="PYTHON", help="an interpreter with xllamacpp, or llama-server")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--forms", default=FORMS)
    parser.add_argument("--questions", type=int, default=6, help="number of questions, with about 36 verdicts each")
    parser.add_argument(
        "--schema_questions",
        type=int,
        default=6,
        help="questions with two requests each: a rubric and verdicts",
    )
    parser.add_argument("--parts", default="schema,prefix", help="parts to run in addition to the forms")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/judge"))
    parser.add_argument("--export", metavar="FILE.jsonl.gz", help="write the tapes of all models to this file")
    parser.add_argument("--replay", metavar="FILE.jsonl.gz", help="read the replies from a file that --export wrote")
    args = parser.parse_args()
    models = dict(one.split("=", 1) for one in args.model)
    if args.replay:
        models = _unpacked(args.replay, args.out)
    pages = []
    for name, place in models.items():
        if args.replay or place.startswith("http"):
            server = functools.partial(contextlib.nullcontext, place)
        else:
            server = functools.partial(serving, args.server, place, args.threads)
        found = measured(name, server, args)
        (args.out / name / "figures.json").write_text(json.dumps(found, indent=1) + "\n")
        pages.append(shown(name, found))
        print(pages[-1], flush=True)
    (args.out / "judge.md").write_text("\n".join(pages))
    if args.export:
        _packed(args.export, args.out, list(models))


def _packed(path: str, out: pathlib.Path, models: list[str]) -> None:
    """All tapes of the models in one file; each line names its tape."""
    with gzip.open(path, "wt", encoding="ascii") as f, tempfile.TemporaryDirectory() as scratch:
        lines = pathlib.Path(scratch) / "tape.jsonl"
        for name in models:
            for tape in sorted((out / name).rglob(TAPE_NAME)):
                with contextlib.closing(Tape(tape, read_only=True)) as reader:
                    export_tape(reader, lines)
                for line in lines.read_text(encoding="ascii").splitlines():
                    f.write(json.dumps({"tape": tape.relative_to(out).as_posix(), "line": line}) + "\n")


def _unpacked(path: str, out: pathlib.Path) -> dict[str, str]:
    """Writes the tapes of the file into ``out``. Returns each model with an address; a replay never opens it."""
    lines: dict[str, list[str]] = {}
    with gzip.open(path, "rt", encoding="ascii") as f:
        for row in map(json.loads, f):
            lines.setdefault(row["tape"], []).append(row["line"])
    with tempfile.TemporaryDirectory() as scratch:
        file = pathlib.Path(scratch) / "tape.jsonl"
        for place, rows in lines.items():
            if place.startswith("/") or ".." in place.split("/"):
                raise SystemExit(f"{path}: {place!r} leaves the directory; expected a file that --export wrote")
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(rows) + "\n", encoding="ascii")
            with contextlib.closing(Tape(out / place)) as tape:
                import_tape(tape, file)
    return dict.fromkeys((place.split("/")[0] for place in lines), "http://127.0.0.1:1/v1")


if __name__ == "__main__":
    main()
