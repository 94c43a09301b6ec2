"""``ropd eval``: samples a student's answers to a benchmark and grades them."""

from __future__ import annotations

import dataclasses
from typing import Any

from ropd_jax.cli.flags import HOSTS, Arguments, Command, Flag
from ropd_jax.cli.grade import AGAINST, BENCHMARK, BENCHMARKS, DATA, shown
from ropd_jax.types import UserError


def run(args: Arguments) -> int:
    """Joins the hosts, if there are several, and samples; then host 0 grades and shows the result; 3 if no answer
    could be graded."""
    options = _options(args)
    from ropd_jax.parallel import hosts

    joining = [options.pop(flag.name) for flag in HOSTS]
    stopped: Exception | None = None
    with hosts.joined(*joining):
        from ropd_jax.evaluation.run import prepare
        from ropd_jax.utils.interrupt import Interrupted

        evaluation = prepare(args.words[0], **options, teacher=args.config.teacher)
        try:
            evaluation.sample()
        except Interrupted as error:  # on all hosts at the same place: they leave in order
            stopped = error
        first = hosts.index() == 0
    if stopped is not None:
        raise stopped
    if first:
        return shown(evaluation.grade())
    return 0


# ------------------------------------------------------------------------------------------- keys of the config

TAKEN = {  # key of the config -> argument of `evaluation.run.prepare`
    "mesh.fsdp": "fsdp",
    "mesh.tp": "tp",
    "student.dtype": "dtype",
    "student.chat_template": "chat_template",
    "student.enable_thinking": "thinking",
    "sampling.cache_dtype": "cache_dtype",
}
JUDGE = (  # what HealthBench's judge takes: keys, or sections that end with a dot
    "teacher.provider", "teacher.base_url", "teacher.api_key_env", "teacher.organization", "teacher.project",
    "teacher.vertexai", "teacher.location", "teacher.headers", "teacher.concurrency", "teacher.min_concurrency",
    "teacher.requests_per_minute", "teacher.tokens_per_minute", "teacher.timeout_s", "teacher.attempts",
    "teacher.max_wait_s", "teacher.outage_wait_s", "teacher.hedge_after_s", "teacher.order", "teacher.prices",
    "teacher.tape.", "teacher.budget.", "teacher.verifier.provider", "teacher.verifier.base_url",
    "teacher.verifier.api_key_env", "teacher.verifier.headers", "teacher.verifier.model",
    "teacher.verifier.temperature", "teacher.verifier.max_output_tokens", "teacher.verifier.extra",
)  # fmt: skip
INSTEAD = {  # key -> what to write
    "seed": "--seed",
    "student.checkpoint": "the student as the first argument",
    "data.template": "--template",
    "sampling.rollouts": "--k",
    "sampling.max_tokens": "--max_tokens",
    "sampling.temperature": "--temperature",
    "sampling.top_p": "--top_p",
    "sampling.prompts_at_once": "--rows",
}


def _is_judges(key: str) -> bool:
    return any(key == one or (one.endswith(".") and key.startswith(one)) for one in JUDGE)


def _check_key(key: str) -> None:
    """Refuses a key that exists and that an evaluation ignores."""
    from ropd_jax import configs

    if key in TAKEN or _is_judges(key) or key not in configs.leaves(configs.default()):
        return
    if key in INSTEAD:
        raise UserError(f"--config.{key} does not change an evaluation; give {INSTEAD[key]}")
    raise UserError(
        f"--config.{key} does not change an evaluation; expected one of {', '.join(TAKEN)}, or for HealthBench the "
        "keys of teacher that its judge takes"
    )


def _options(args: Arguments) -> dict[str, Any]:
    """Arguments of `prepare`: the flags, and the keys of the config that were given.

    With ``--config FILE`` a key is given if the file sets it to something else than the default; without, or for the
    run's own value, it is left to the student.

    Raises:
        UserError: a flag and a key that contradict each other, or keys of a judge for a benchmark without one.
    """
    from ropd_jax import configs
    from ropd_jax.evaluation.benchmarks import benchmark_of

    options, default = dict(args.values), configs.default()
    for key, name in TAKEN.items():
        value = configs.lookup(args.config, key)
        if key not in args.overrides and value == configs.lookup(default, key):
            continue
        if options.get(name) not in (None, "", value):
            raise UserError(f"--{name}={options[name]} and --config.{key}={value} differ; give one of them")
        options[name] = value
    judged = benchmark_of(args["benchmark"]).grader == "healthbench"
    if not judged and (keys := [key for key in args.overrides if key.startswith("teacher.")]):
        raise UserError(
            f"--config.{keys[0]} does not change an evaluation of {args['benchmark']}, which no model judges; "
            "leave it out"
        )
    return options


NOTES = f"""
    These keys of the config are taken from --config FILE or --config.KEY=VALUE, and come before those of a run:
    {", ".join(TAKEN)}.

    On several hosts, run the same command on each. Host 0 writes OUT and grades. TPU VMs find each other without flags.
{BENCHMARKS}"""
COMMAND = Command(
    name="eval",
    summary="sample a student's answers to a benchmark (AIME, GSM8K, IFEval, ...) and grade them",
    intro="""
        Samples k answers to each problem, appends each to OUT/answers.jsonl when it has ended, grades them (ropd grade)
        and shows avg@k, pass@j and maj@k with 95 % intervals over problems. Run the same command again with the same
        OUT to continue. Without flags it samples as the paper does: k=16, temperature 1.0, top-p 0.95, at most 32,768
        tokens. ropd plan --eval computes beforehand how many such answers fit on a chip.

        RUN|CHECKPOINT is a run's directory; or tiny, smollm2, a .gguf file, a Hugging Face directory.
    """,
    run=run,
    words=("RUN|CHECKPOINT",),
    missing="which student? expected a run or a checkpoint first, e.g. ropd eval smollm2 --benchmark gsm8k",
    config="optional",
    check_key=_check_key,
    flags=(
        dataclasses.replace(BENCHMARK, required="one of ropd eval --help"),
        DATA,
        Flag("pick", "RULE", "Which checkpoint of a run: last; or heldout, the best on its held-out set.", "last"),
        Flag("k", "N", "Answers per problem, instead of the benchmark's own number.", None, int, low=1),
        Flag("temperature", "X", "Sampling temperature, instead of the benchmark's own.", None, float, low=0.0),
        Flag("top_p", "X", "Top-p, instead of the benchmark's own.", None, float, low=0.0, high=1.0),
        Flag("max_tokens", "N", "Maximum length of an answer, instead of the benchmark's own.", None, int, low=1),
        Flag("template", "TEXT", "The user message around {question}, instead of the benchmark's own."),
        Flag("limit", "N", "Only the first N problems.", None, int, low=1),
        Flag(
            "rows",
            "N",
            "Maximum number of answers decoded at once. Default: 64, or as many as fit into the devices' memory.",
            None,
            int,
            low=1,
        ),
        Flag("dtype", "T", "Type of compute and KV cache: float32 or bfloat16. Default: the run's, else float32."),
        Flag(
            "thinking",
            "",
            "Thinking mode of the chat template (Qwen3). Default: the run's, else the template's.",
            None,
            bool,
        ),
        Flag("seed", "N", "Seed of the samples.", 0, low=0),
        Flag("out", "DIR", "Output directory. Default: RUN/eval/BENCHMARK_stepN, or evals/CHECKPOINT/BENCHMARK."),
        AGAINST,
        *HOSTS,
    ),
    notes=NOTES,
    examples=(
        "ropd eval smollm2 --benchmark gsm8k --data ~/benchmarks --k 4 --max_tokens 256 --limit 200",
        "ropd eval runs/math --benchmark aime_2025 --config.mesh.tp=4 --config.sampling.cache_dtype=int8",
        "ropd eval runs/quickstart --k 4 --max_tokens 48 --limit 200 --template '{question}' \\",
        "    --benchmark reasoning_gym:chain_sum,min_terms=4,max_terms=5,min_digits=1,max_digits=1",
    ),
)
