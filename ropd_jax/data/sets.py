"""The published training sets as prompts. Dropped rows are counted by cause.

    dapo_math_17k   without its wrapper prompt; dropped: copies of a row, other languages, questions with two answers,
                    questions of the benchmarks
    gsm8k_train     with worked solutions
    rar_science, rar_medicine   with published rubrics in ``metadata["criteria"]`` (see `RarCriterion`)

``load_set`` also reads the benchmarks, from the same place, to drop their questions. Benchmarks that are not there are
logged: a training set can then contain their questions.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ropd_jax.data.golds import gold_text
from ropd_jax.data.prompts import normalise
from ropd_jax.data.published import BENCHMARKS, TRAINING
from ropd_jax.data.reading import read_source
from ropd_jax.data.rubrics import RarCriterion, rar_criterion, rar_score
from ropd_jax.data.source import Found, check, first
from ropd_jax.types import Message, Prompt, UserError
from ropd_jax.utils.suggest import near

log = logging.getLogger(__name__)

__all__ = ["RarCriterion", "SetOptions", "benchmark_questions", "chosen", "load_set", "rar_criterion", "rar_score"]

MATH_BENCHMARKS = ("aime_2024", "aime_2025", "hmmt_feb_2025", "hmmt_nov_2025", "math_500", "gsm8k")
HEAD = 80  # letters and digits; two questions with the same first 80 are the same question
LANGUAGES = ("en", "zh", "all")

_CHINESE = re.compile("[\u3400-\u9fff]")
_WRAPPER = re.compile(
    r"^Solve the following math problem step by step\..*?\n\n(?P<q>.*?)\s*Remember to put your answer on its own line",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class SetOptions:
    """``data.options`` of a published set.

    Attributes:
        language: ``en``, ``zh`` or ``all``; a question with a Chinese character is Chinese.
        overlap: ``drop`` questions of the benchmarks, or ``keep`` them.
    """

    language: str = "en"
    overlap: str = "drop"

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise UserError(f"data.options.language={self.language!r}; expected {', '.join(LANGUAGES)}")
        if self.overlap not in ("drop", "keep"):
            raise UserError(f"data.options.overlap={self.overlap!r}; expected drop or keep")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> SetOptions:
        known = [f.name for f in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise UserError(f"a published set has no option {name!r}; {near(name, known)}")
        return cls(**options)


@functools.lru_cache(maxsize=4)
def load_set(
    name: str, place: str = "", options: SetOptions = SetOptions()
) -> tuple[tuple[Prompt, ...], Counter, Found]:
    """(prompts, dropped by cause, the `Found`) of a training set.

    Causes: ``copy`` (a repeated row), ``language``, ``conflict`` (a question with different answers, all its
    rows), ``duplicate``, ``in_benchmark``.

    Raises:
        UserError: no such set, no data, or rows of another format.
    """
    if name not in TRAINING:
        raise UserError(f"published set {name!r} is unknown; {near(name, TRAINING)}")
    source = TRAINING[name]
    rows, where = read_source(source, place)
    dropped: Counter[str] = Counter()
    seen: dict[str, Prompt] = {}
    for i, row in enumerate(rows):
        prompt = _MAKERS[name](row, i, f"{where}, row {i + 1}")
        if prompt.id in seen and seen[prompt.id] == prompt:
            dropped["copy"] += 1  # the Hub's DAPO contains every row a hundred times
        elif prompt.id in seen:
            raise UserError(f"{where}: two different rows have the id {prompt.id!r}; give each its own id")
        else:
            seen[prompt.id] = prompt
    found = check(source, list(seen.values()), where)
    prompts = _one_language(list(seen.values()), options.language, dropped)
    prompts = _without_conflicts(prompts, dropped)
    if options.overlap == "drop" and name in ("dapo_math_17k", "gsm8k_train"):
        prompts = without_overlap(prompts, benchmark_questions(place), dropped)
    return tuple(prompts), dropped, found


def chosen(prompts: Sequence[Prompt], size: int | None, seed: int) -> list[Prompt]:
    """``size`` prompts, drawn by a hash of (seed, id); without a size all of them, in their order."""
    if not size:
        return list(prompts)
    return sorted(prompts, key=lambda p: hashlib.sha256(f"{seed}:{p.id}".encode()).digest())[:size]


# ------------------------------------------------------------------------------------------------- what is dropped


def same_key(question: str) -> str:
    """Only the letters and digits, which copies of a question share, however spaces and dollar signs are written.

    Too coarse to tell training questions apart (x+1 and x-1 are equal), but right for excluding benchmark questions.
    """
    return "".join(c for c in unicodedata.normalize("NFKC", question).casefold() if c.isalnum())


def without_overlap(
    prompts: Sequence[Prompt], questions: Mapping[str, Iterable[str]], dropped: Counter[str]
) -> list[Prompt]:
    """The prompts that share neither all letters and digits nor the first 80 of them with any question."""
    whole, heads = set(), set()
    for key in map(same_key, (q for several in questions.values() for q in several)):
        whole.add(key)
        if len(key) >= HEAD:
            heads.add(key[:HEAD])
    kept = []
    for prompt in prompts:
        key = same_key(prompt.question)
        if key in whole or (len(key) >= HEAD and key[:HEAD] in heads):
            dropped["in_benchmark"] += 1
        else:
            kept.append(prompt)
    return kept


def benchmark_questions(place: str) -> dict[str, list[str]]:
    """The questions of each math benchmark found at the place; the others are logged."""
    found: dict[str, list[str]] = {}
    absent = []
    for name in MATH_BENCHMARKS:
        try:
            rows, where = read_source(BENCHMARKS[name], place)
        except UserError:
            absent.append(name)
            continue
        found[name] = [str(first(row, ("problem", "Problem", "question"), where)) for row in rows]
    if absent:
        log.warning("the overlap with %s is unknown, because their rows are not available", ", ".join(absent))
    return found


def _one_language(prompts: list[Prompt], language: str, dropped: Counter[str]) -> list[Prompt]:
    if language == "all":
        return prompts
    kept = [p for p in prompts if bool(_CHINESE.search(p.question)) == (language == "zh")]
    if n := len(prompts) - len(kept):
        dropped["language"] += n
    return kept


def _without_conflicts(prompts: list[Prompt], dropped: Counter[str]) -> list[Prompt]:
    """One prompt per question. A question whose rows have different answers is dropped, as either could be right."""
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(normalise(prompt.question), []).append(prompt)
    kept = []
    for group in groups.values():
        if len({p.answer for p in group}) > 1:
            dropped["conflict"] += len(group)
            continue
        kept.append(group[0])
        if len(group) > 1:
            dropped["duplicate"] += len(group) - 1
    return kept


# ------------------------------------------------------------------------------------------- from a row to a prompt


def _dapo(row: Mapping[str, Any], i: int, where: str) -> Prompt:
    """A row of the Hub (prompt, reward_model.ground_truth, extra_info.index) or of our format (problem, answer)."""
    question = first(row, ("problem", "prompt", "question"), where)
    if isinstance(question, list):
        question = str(question[-1].get("content", ""))
    if wrapped := _WRAPPER.match(question):
        question = wrapped["q"].strip()
    answer = row.get("answer") or (row.get("reward_model") or {}).get("ground_truth") or row.get("solution")
    if answer is None:
        raise UserError(f"{where} has no answer; expected answer, reward_model.ground_truth or solution")
    own = row.get("id") or (row.get("extra_info") or {}).get("index") or f"dapo-{i}"
    return Prompt(str(own), (Message("user", question),), answer=gold_text(answer, where))


def _gsm8k(row: Mapping[str, Any], i: int, where: str) -> Prompt:
    question = str(first(row, ("problem", "question"), where))
    solution = str(row.get("solution") or first(row, ("answer",), where))
    _, mark, answer = solution.rpartition("####")
    if not mark:
        raise UserError(f"{where}: the solution has no '####' before its result; expected a row of GSM8K")
    own = str(row.get("id", f"gsm8k-train-{i}"))
    gold = gold_text(answer.strip().replace(",", ""), where)
    return Prompt(own, (Message("user", question),), answer=gold, solution=solution)


def _rar(row: Mapping[str, Any], i: int, where: str, *, name: str) -> Prompt:
    question = str(first(row, ("question", "prompt", "problem"), where))
    try:
        rubric = [(str(r.get("title", "")), str(r["description"]), int(r["weight"])) for r in row["rubric"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where} is not a row of RaR ({type(error).__name__}: {error}); "
            "expected a rubric with description and weight"
        ) from error
    return Prompt(
        str(row.get("id", f"{name}-{i}")),
        (Message("user", question),),
        solution=str(row.get("reference_answer") or ""),
        metadata={"criteria": tuple(rar_criterion(*r) for r in rubric)},
    )


_MAKERS: dict[str, Callable[[Mapping[str, Any], int, str], Prompt]] = {
    "dapo_math_17k": _dapo,
    "gsm8k_train": _gsm8k,
    "rar_science": functools.partial(_rar, name="rar_science"),
    "rar_medicine": functools.partial(_rar, name="rar_medicine"),
}
