"""Every published set by name: the paper's benchmarks, and the sets that it trains on.

Hub ids, splits and row counts are from the sets' cards in May 2026. A set has a hash if all of it was available to us.
This package contains none of their text.
"""

from __future__ import annotations

from ropd_jax.data.source import Source

MATHARENA = "CC BY-NC-SA 4.0"
_SIMPLE_EVALS = "https://openaipublic.blob.core.windows.net/simple-evals/healthbench/"
_GSM8K = "https://github.com/openai/grade-school-math"
NO_LICENCE = "none on the card"


def _healthbench(title: str, name: str, file: str, rows: int) -> Source:
    return Source(
        title,
        (f"{name}.jsonl", file),
        hub="openai/healthbench",
        hub_file=file,
        split="train",  # the name that datasets gives to the rows of a single file
        url=_SIMPLE_EVALS + file,
        licence="MIT; carries a canary",
        rows=rows,
    )


BENCHMARKS: dict[str, Source] = {
    "aime_2024": Source(
        "AIME24", ("aime_2024.jsonl",), hub="HuggingFaceH4/aime_2024", split="train", rows=30,
        sha="17a4183f0b5ba567", licence="none stated; text (c) MAA",
    ),
    "aime_2025": Source(
        "AIME25", ("aime_2025.jsonl",), hub="MathArena/aime_2025", split="train", rows=30, licence=MATHARENA,
    ),
    "hmmt_feb_2025": Source(
        "HMMT Feb25", ("hmmt_feb_2025.jsonl",), hub="MathArena/hmmt_feb_2025", split="train", rows=30,
        sha="59c75c2cb442576b", licence=MATHARENA,
    ),
    "hmmt_nov_2025": Source(
        "HMMT Nov25", ("hmmt_nov_2025.jsonl",), hub="MathArena/hmmt_nov_2025", split="train", rows=30,
        licence=MATHARENA,
    ),
    "math_500": Source(
        "MATH-500", ("math_500.jsonl",), hub="HuggingFaceH4/MATH-500", split="test", rows=500,
        sha="7156baeddb14a114", licence="MIT",
    ),
    "gsm8k": Source(
        "GSM8K", ("gsm8k_test.jsonl",), hub="openai/gsm8k", config="main", split="test", rows=1_319,
        sha="5d3c728f94f90095", licence="MIT", url=_GSM8K,
    ),
    "gpqa_diamond": Source(
        "GPQA-D", ("gpqa_diamond.jsonl",), hub="Idavidrein/gpqa", config="gpqa_diamond", split="train", rows=198,
        licence="CC BY 4.0, gated; its authors ask not to publish it as plain text",
    ),
    "healthbench": _healthbench("HealthBench", "healthbench", "2025-05-07-06-14-12_oss_eval.jsonl", 5_000),
    "healthbench_hard": _healthbench("HealthBench Hard", "healthbench_hard", "hard_2025-05-08-21-00-10.jsonl", 1_000),
    "healthbench_consensus": _healthbench(
        "HealthBench Consensus", "healthbench_consensus", "consensus_2025-05-09-20-00-46.jsonl", 3_671
    ),
    "ifeval": Source(
        "IFEval", ("ifeval.jsonl",), hub="google/IFEval", split="train", rows=541,
        sha="2982049e331e0b2c", licence="Apache-2.0",
        url="https://github.com/google-research/google-research/tree/master/instruction_following_eval",
    ),
}  # fmt: skip

TRAINING: dict[str, Source] = {
    "dapo_math_17k": Source(
        "DAPO-Math-17k", ("dapo_math_17k.jsonl", "dapo_math_17k_part*.jsonl"), hub="BytedTsinghua-SIA/DAPO-Math-17k",
        split="train", rows=17_917, sha="a0b9ddb7138c266d", licence="Apache-2.0",
    ),
    "gsm8k_train": Source(
        "GSM8K train", ("gsm8k_train.jsonl", "gsm8k_train_part*.jsonl"), hub="openai/gsm8k", config="main",
        split="train", rows=7_473, licence="MIT", url=_GSM8K,
    ),
    "rar_science": Source(
        "RaR-Science", ("rar_science.jsonl",), hub="ScaleAI/RaR-Science", split="train", rows=18_333,
        licence=NO_LICENCE,
    ),
    "rar_medicine": Source(
        "RaR-Medicine", ("rar_medicine.jsonl",), hub="ScaleAI/RaR-Medicine", split="train", rows=17_926,
        licence=NO_LICENCE,
    ),
}  # fmt: skip

PUBLISHED: dict[str, Source] = {**BENCHMARKS, **TRAINING}
