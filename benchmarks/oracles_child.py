"""Runs the outside packages of `benchmarks.oracles` in their own interpreter, one JSON object per line in and out.

    python benchmarks/oracles_child.py grade  < items     autorubric: verdicts on answers, one call per criterion
    python benchmarks/oracles_child.py twins  < items     rubric-reward-lens: the texts of its probes
    python benchmarks/oracles_child.py cases              reward-doctor: outputs and whether each is right

It imports nothing of this project, so that the interpreter needs only these packages. A reply line has the key of its
input line. A package that is missing ends the process with exit code 3 and its name on stderr.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

MISSING = 3  # exit code


def grade(items: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Verdicts of Autorubric's ``CriterionGrader`` with its default prompt, at temperature 0 and one call at a time."""
    from autorubric import LLMConfig, Rubric
    from autorubric.graders import CriterionGrader

    first = next(items)
    config = LLMConfig(
        model=f"openai/{first['model']}",
        api_base=first["address"],
        api_key="none",
        temperature=0.0,
        timeout=first["timeout_s"],
        max_tokens=first["max_tokens"],
        max_parallel_requests=1,
        max_retries=1,
    )
    grader = CriterionGrader(judge_model_config=config, llm_calls=first["llm_calls"], seed=0)
    for item in items:
        rubric = Rubric.from_dict([{"weight": c["points"], "requirement": c["text"]} for c in item["criteria"]])
        started = time.monotonic()
        result = asyncio.run(rubric.grade(item["answer"], grader=grader, query=item["question"]))
        usage = result.token_usage
        votes = [row.votes[0] for row in result.report or ()]
        failed = [None] * len(item["criteria"])
        yield {
            "key": item["key"],
            "verdicts": [
                None if vote.error or vote.verdict.name not in ("MET", "UNMET") else vote.verdict.name == "MET"
                for vote in votes
            ]
            or failed,
            "causes": ["failed" if vote.error else vote.verdict.name.lower() for vote in votes]
            or ["failed"] * len(failed),
            "calls": 1 if first["llm_calls"] == "per_item" else len(votes),
            "input_tokens": usage.prompt_tokens if usage else None,
            "output_tokens": usage.completion_tokens if usage else None,
            "seconds": time.monotonic() - started,
        }


def twins(items: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The texts that rubric-reward-lens makes from an answer: its four probes and its degradation ladder."""
    from rubric_reward_lens.models import Response, Rubric
    from rubric_reward_lens.probes import HACK_PROBES, degradation_ladder

    for item in items:
        criteria = [{"id": c["id"], "text": c["text"], "weight": c["points"]} for c in item["criteria"]]
        rubric, response = Rubric.from_dict({"criteria": criteria}), Response(item["key"], item["answer"])
        yield {
            "key": item["key"],
            "probes": {probe.name: probe.apply(response, rubric).text for probe in HACK_PROBES},
            "ladder": [rung.text for rung in degradation_ladder(response)],
        }


def cases(items: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """reward-doctor's corpus, with the cases that it calls contested."""
    from reward_doctor.corpus import ALL_CASES

    for case in ALL_CASES:
        yield {
            "key": case.id,
            "kind": case.attack or case.category,
            "gold": case.reference,
            "question": case.prompt,
            "output": case.completion,
            "right": case.expect,
            "contested": "contested" in case.tags,
        }


def main() -> int:
    make = {"grade": grade, "twins": twins, "cases": cases}[sys.argv[1]]
    rows = iter([json.loads(line) for line in sys.stdin])  # all of them first: the parent writes, then reads
    try:
        for row in make(rows):
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
    except ModuleNotFoundError as error:
        sys.stderr.write(f"{error.name}\n")
        return MISSING
    return 0


if __name__ == "__main__":
    sys.exit(main())
