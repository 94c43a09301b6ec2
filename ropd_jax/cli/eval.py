"""``ropd eval``: samples a student's answers to a benchmark and grades them."""

from __future__ import annotations

import dataclasses

from ropd_jax.cli.flags import Arguments, Command, Flag
from ropd_jax.cli.grade import AGAINST, BENCHMARK, BENCHMARKS, DATA, shown


def run(args: Arguments) -> int:
    """Samples, grades and prints; 3 if no answer could be graded."""
    from ropd_jax.evaluation.run import evaluate

    return shown(evaluate(args.words[0], **args.values, teacher=args.config.teacher))


COMMAND = Command(
    name="eval",
    summary="sample a student's answers to a benchmark (AIME, GSM8K, IFEval, ...) and grade them",
    intro="""
        Samples k answers to each problem, appends them to OUT/answers.jsonl, grades them (ropd grade) and shows avg@k,
        pass@j and maj@k with 95 % intervals over problems. Run the same command again with the same OUT to continue.
        Without flags it samples as the paper does: k=16, temperature 1.0, top-p 0.95, at most 32,768 tokens.

        RUN|CHECKPOINT is a run's directory; or tiny, smollm2, a .gguf file, a Hugging Face directory.
    """,
    run=run,
    words=("RUN|CHECKPOINT",),
    missing="which student? expected a run or a checkpoint first, e.g. ropd eval smollm2 --benchmark gsm8k",
    config="optional",
    flags=(
        dataclasses.replace(BENCHMARK, required="one of ropd eval --help"),
        DATA,
        Flag("pick", "RULE", "Which checkpoint of a run: last; or heldout, the best on its held-out set.", "last"),
        Flag("k", "N", "Answers per problem, instead of the benchmark's own number.", None, int, low=1),
        Flag("temperature", "X", "Instead of the benchmark's own.", None, float, low=0.0),
        Flag("top_p", "X", "Instead of the benchmark's own.", None, float, low=0.0, high=1.0),
        Flag("max_tokens", "N", "Instead of the benchmark's own.", None, int, low=1),
        Flag("template", "TEXT", "The user message around {question}, instead of the benchmark's own."),
        Flag("limit", "N", "Only the first N problems.", None, int, low=1),
        Flag("rows", "N", "Sequences that are decoded at once.", 64, low=1),
        Flag("dtype", "T", "Of compute and KV cache: float32 or bfloat16; without it the run's, else float32."),
        Flag(
            "thinking",
            "",
            "Mode of the chat template (Qwen3); without it the run's, else the template's own.",
            None,
            bool,
        ),
        Flag("seed", "N", "Seed of the samples.", 0, low=0),
        Flag("out", "DIR", "Default: RUN/eval/BENCHMARK_stepN, or evals/CHECKPOINT/BENCHMARK."),
        AGAINST,
    ),
    notes=BENCHMARKS,
    examples=(
        "ropd eval smollm2 --benchmark gsm8k --data ~/benchmarks --k 4 --max_tokens 256 --limit 200",
        "ropd eval runs/quickstart --k 4 --max_tokens 48 --limit 200 --template '{question}' \\",
        "    --benchmark reasoning_gym:chain_sum,min_terms=4,max_terms=5,min_digits=1,max_digits=1",
    ),
)
