"""The paper's benchmarks as data: row source, user message, sampling settings and grader.

``BENCHMARKS`` holds all of them. ``reasoning_gym:TASK`` names any reasoning-gym task, and ``instructions`` generates
held-out texts with rules (`data.instructions`), graded like IFEval. This package contains no text of a published
benchmark: ``load_benchmark`` reads it from a directory or from the Hub (see ``ropd_jax.data.reading``).

Sampling is the paper's (arXiv 2605.07396, section 3.1 and appendix C): k=16 samples per problem, temperature 1.0,
top-p 0.95, at most 32,768 tokens. Its prompts are not published; ours are below.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Mapping
from typing import Any, Literal

from ropd_jax.data import published
from ropd_jax.data.golds import gold_text
from ropd_jax.data.load import load_prompts
from ropd_jax.data.prompts import GSM_MARK
from ropd_jax.data.reading import read_source
from ropd_jax.data.source import Found, Source, check, content_sha, first
from ropd_jax.types import Message, Prompt, UserError
from ropd_jax.utils.suggest import near

Grader = Literal["math", "choice", "ifeval", "healthbench", "exact"]

BOXED = "{question}\n\nReason step by step, and put your final answer within \\boxed{}."
CHOICE = (
    "Answer the following question. Its four options are lettered A to D, and exactly one is right. Think step by "
    "step; end with a line of its own, 'Answer: X', where X is the letter of your choice.\n\n{question}"
)
EXACT = "{question}\n\nEnd with a line of its own, 'Answer: X', where X is your result."
PLAIN = "{question}"
LETTERS = "ABCD"


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How answers are sampled: k per problem."""

    k: int = 16
    temperature: float = 1.0
    top_p: float = 0.95
    max_tokens: int = 32_768


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: its name on the command line.
        title: its name as a table heading.
        grader: one of ``ropd_jax.evaluation.grading``.
        template: the user message around the question; it states the format of the answer.
        source: None if the items are generated.
    """

    name: str
    title: str
    grader: Grader
    template: str
    source: Source | None
    sampling: Sampling = Sampling()


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A benchmark with its prompts, and what was read."""

    benchmark: Benchmark
    prompts: tuple[Prompt, ...]
    found: Found


_KINDS: dict[str, tuple[Grader, str]] = {
    "gpqa_diamond": ("choice", CHOICE),
    "ifeval": ("ifeval", PLAIN),
    **dict.fromkeys(("healthbench", "healthbench_hard", "healthbench_consensus"), ("healthbench", PLAIN)),
}
BENCHMARKS: dict[str, Benchmark] = {
    name: Benchmark(name, source.name, *_KINDS.get(name, ("math", BOXED)), source)
    for name, source in published.BENCHMARKS.items()
}

RG = "reasoning_gym:"
DRAWN_SEED = 90_000_000  # the held-out draw of ropd_jax.configs
DRAWN_SIZE = 500
INSTRUCTIONS = Benchmark("instructions", "Instructions", "ifeval", PLAIN, None)


def benchmark_of(name: str) -> Benchmark:
    """The benchmark called ``name``.

    ``reasoning_gym:TASK`` is any reasoning-gym task, ``reasoning_gym:gcd,max_value=99`` one with its own settings.

    Raises:
        UserError: no such benchmark.
    """
    if name.startswith(RG) and len(name) > len(RG):
        task, _ = _task(name)
        return Benchmark(name, task, "exact", EXACT, None)
    if name == INSTRUCTIONS.name:
        return INSTRUCTIONS
    if name not in BENCHMARKS:
        raise UserError(f"benchmark {name!r} is unknown; {near(name, [*BENCHMARKS, INSTRUCTIONS.name, RG + 'TASK'])}")
    return BENCHMARKS[name]


def _task(name: str) -> tuple[str, dict[str, Any]]:
    """(task, settings) of ``reasoning_gym:TASK,key=value,...``; values are JSON, or else strings."""
    task, *settings = name.removeprefix(RG).split(",")
    options = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"{name}: {setting!r} is not a setting; expected key=value, e.g. {RG}gcd,max_value=99")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return task, options


def slug(name: str, thinking: bool | None = None) -> str:
    """A benchmark's name as part of a path, with the chat template's mode if one was chosen."""
    mode = {None: "", True: "_thinking", False: "_nothinking"}[thinking]
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") + mode


def load_benchmark(
    name: str,
    place: str = "",
    *,
    limit: int | None = None,
    seed: int = 0,
    size: int = DRAWN_SIZE,
    template: str = "",
) -> Loaded:
    """The prompts of a benchmark in source order.

    Args:
        place: a directory, ``hub`` or "" (see ``read_source``); not used if the items are generated.
        limit: only the first ``limit`` problems.
        seed: for the order of the choices (GPQA); simple-evals uses 0.
        size: reasoning-gym and instructions: the number of items to generate, before duplicates are dropped.
        template: replaces the benchmark's own user message; it contains {question}.

    Raises:
        UserError: the benchmark is unknown, its data are missing, or the rows have another format.
    """
    benchmark = benchmark_of(name)
    if template:
        if "{question}" not in template:
            raise UserError(f"template {template!r} has no {{question}}; put it where the question goes")
        benchmark = dataclasses.replace(benchmark, template=template)
    if benchmark.source is None:
        return _drawn(benchmark, limit, size)
    rows, where = read_source(benchmark.source, place)
    rng = random.Random(seed)
    prompts = [_MAKERS[benchmark.grader](benchmark, row, i, f"{where}, row {i + 1}", rng) for i, row in enumerate(rows)]
    ids = [p.id for p in prompts]
    if len(set(ids)) < len(ids):
        twice = next(i for n, i in enumerate(ids) if i in ids[:n])
        raise UserError(f"{where}: two rows have the id {twice!r}; give each its own id")
    if not prompts:
        raise UserError(f"{where} is empty; expected the rows of {benchmark.source.name}")
    found = check(benchmark.source, prompts, where)
    return Loaded(benchmark, tuple(prompts[:limit]), found)


def _drawn(benchmark: Benchmark, limit: int | None, size: int) -> Loaded:
    """A benchmark whose items are generated on each call; they are always the same."""
    size = 2 * limit if limit else size  # room for the duplicates that are dropped
    if benchmark.name == INSTRUCTIONS.name:
        how: dict[str, Any] = {"source": "instructions", "path": "heldout"}
    else:
        task, options = _task(benchmark.name)
        how = {"source": "reasoning_gym", "task": task, "options": options}
    drawn = load_prompts(**how, size=size, seed=DRAWN_SEED, template=benchmark.template)
    prompts = tuple(drawn.prompts[:limit])
    place = f"{benchmark.name} (size={size}, seed={DRAWN_SEED})"
    return Loaded(benchmark, prompts, Found(place, len(prompts), content_sha(prompts), None, None))


# -------------------------------------------------------------------------------------- from a row to a prompt

_BARE_SQRT = re.compile(r"(?<![\\a-zA-Z])sqrt(?=\s*[{\[(])")


def _math(benchmark: Benchmark, row: Mapping[str, Any], i: int, where: str, rng: random.Random) -> Prompt:
    question = str(first(row, ("problem", "Problem", "question"), where))
    raw = str(gold_text(first(row, ("answer", "Answer"), where), where)).strip()
    if GSM_MARK in raw:  # GSM8K as published: solution #### n
        raw = raw.rpartition(GSM_MARK)[2].strip().replace(",", "")
    # one gold answer of HMMT November has "sqrt{7}", which math-verify reads as s*q*r*t*7: right answers would be wrong
    answer = _BARE_SQRT.sub(r"\\sqrt", raw)
    more = {} if answer == raw else {"answer_raw": raw}
    return _prompt(benchmark, row, i, question, answer, **more)


def _choice(benchmark: Benchmark, row: Mapping[str, Any], i: int, where: str, rng: random.Random) -> Prompt:
    """Choices in the order of simple-evals: one permutation of four per row, from one seeded stream."""
    right = str(first(row, ("Correct Answer",), where)).strip()
    choices = [right, *(str(first(row, (f"Incorrect Answer {n}",), where)).strip() for n in (1, 2, 3))]
    order = rng.sample(range(4), 4)
    lines = [f"{letter}) {choices[n]}" for letter, n in zip(LETTERS, order, strict=True)]
    question = "\n".join([str(first(row, ("Question",), where)).strip(), "", *lines])
    return _prompt(benchmark, row, i, question, LETTERS[order.index(0)])


def _ifeval(benchmark: Benchmark, row: Mapping[str, Any], i: int, where: str, rng: random.Random) -> Prompt:
    ids = list(first(row, ("instruction_id_list",), where))
    kwargs = list(first(row, ("kwargs",), where))
    if len(ids) != len(kwargs):
        raise UserError(f"{where}: {len(ids)} instructions, {len(kwargs)} kwargs; expected the same number of both")
    # the Hub's rows hold every argument of every instruction, with null for those that do not apply; 0 is a value
    kwargs = [{k: v for k, v in (kw or {}).items() if v is not None} for kw in kwargs]
    question = str(first(row, ("prompt", "problem"), where))
    return _prompt(benchmark, row, i, question, None, instructions=list(zip(ids, kwargs, strict=True)))


def _healthbench(benchmark: Benchmark, row: Mapping[str, Any], i: int, where: str, rng: random.Random) -> Prompt:
    talk = first(row, ("prompt",), where)
    try:
        messages = tuple(Message(str(m["role"]), str(m["content"])) for m in talk)
        rubrics = [(str(r["criterion"]), float(r["points"]), tuple(r.get("tags") or ())) for r in row["rubrics"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where} is not a row of HealthBench ({type(error).__name__}: {error}); expected prompt and rubrics"
        ) from error
    prompt = _prompt(
        benchmark, row, i, messages[-1].content, None, rubrics=rubrics, example_tags=list(row.get("example_tags") or ())
    )
    return dataclasses.replace(prompt, messages=messages)


def _prompt(
    benchmark: Benchmark, row: Mapping[str, Any], i: int, question: str, answer: str | None, **metadata: Any
) -> Prompt:
    own = next((row[k] for k in ("id", "unique_id", "prompt_id", "ID", "Record ID", "key") if row.get(k)), None)
    own = row.get("problem_idx") if own is None else own
    return Prompt(
        id=str(own) if isinstance(own, str) else f"{benchmark.name}-{i if own is None else own}",
        messages=(Message("user", benchmark.template.replace("{question}", question)),),
        answer=answer,
        task=benchmark.name,
        metadata={"question": question, **metadata},
    )


_MAKERS = {"math": _math, "choice": _choice, "ifeval": _ifeval, "healthbench": _healthbench}
