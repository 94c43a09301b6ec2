"""``ropd grade``: grades stored answers to a benchmark."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ropd_jax.cli.flags import Arguments, Command, Flag

if TYPE_CHECKING:
    from ropd_jax.evaluation.results import EvalResult

log = logging.getLogger(__name__)

BENCHMARK = Flag("benchmark", "B", "Name of the benchmark, see below.", required="one of ropd grade --help")
DATA = Flag(
    "data", "DIR", "A directory with BENCHMARK.jsonl. Default: $ROPD_DATA, else the Hub (pip install datasets)."
)
AGAINST = Flag("against", "RESULT", "An earlier result.json: shows the paired difference with its interval.")
BENCHMARKS = """
    benchmarks
      aime_2024 aime_2025 hmmt_feb_2025 hmmt_nov_2025 math_500 gsm8k gpqa_diamond ifeval
      healthbench healthbench_hard healthbench_consensus instructions
      reasoning_gym:TASK[,key=value,...]

    HealthBench is judged by a model; its keys are --config.teacher.provider, --config.teacher.verifier.model,
    --config.teacher.budget.usd and so on.
"""


def run(args: Arguments) -> int:
    """Grades and prints; 3 if no answer could be graded."""
    from ropd_jax.evaluation.grade_file import grade_stored

    return shown(grade_stored(**args.values, teacher=args.config.teacher, seed=args.config.seed))


def shown(result: EvalResult) -> int:
    """Prints a result; the exit code is 3 if it is the grade of nothing."""
    result.show()
    if result.data["ungraded"]["answers"] < result.data["answers"]:
        return 0
    log.error("none of the %d answers could be graded, so there is no value", result.data["answers"])
    return 3


COMMAND = Command(
    name="grade",
    summary="grade stored answers to a benchmark (AIME, GPQA, HealthBench, IFEval, ...), without a model",
    intro="""
        Grades stored answers, one JSON object per line and k lines per problem:

          {"id": "...", "response": "...", "finish_reason": "length"}

        finish_reason is optional; "length" marks a truncated answer. Shows avg@k, pass@j and maj@k with 95 % intervals
        over problems, and how many answers are ungraded or truncated. No model is loaded.
    """,
    run=run,
    config="optional",
    flags=(
        BENCHMARK,
        Flag("answers", "FILE", "The answers, JSONL.", required="a JSONL file of answers"),
        DATA,
        Flag("out", "FILE", "Write the result as JSON, including each problem's value."),
        AGAINST,
        Flag(
            "timeout_s",
            "S",
            "Seconds of computing per math answer. An answer that takes longer is ungraded, never wrong.",
            5.0,
            low=0.1,
        ),
        Flag("workers", "N", "Processes of the math grader; 0 is one per core.", 0, low=0),
    ),
    notes=BENCHMARKS,
    examples=(
        "ropd grade --benchmark gsm8k --answers answers.jsonl --data ~/benchmarks --out gsm8k.json",
        "ropd grade --benchmark healthbench_hard --answers a.jsonl --out hard.json \\",
        "    --config.teacher.provider=openai --config.teacher.verifier.model=gpt-4.1-2025-04-14",
    ),
)
