"""``ropd plan``: memory, collectives and seconds of a run on a TPU slice, from the compiler."""

from __future__ import annotations

from ropd_jax.cli.flags import Arguments, Command, Flag
from ropd_jax.types import UserError

EVAL = "an evaluation (ropd eval)"


def run(args: Arguments) -> int:
    """Compiles and prints; 2 if the config does not fit."""
    from ropd_jax import plan

    only = [name for name in ("k", "max_tokens", "rows", "problems") if args[name] is not None]
    if only and not args["eval"]:
        raise UserError(f"--{only[0]} belongs to the plan of an evaluation; add --eval")
    if args["eval"] and (args["search"] or args["ladder"]):
        raise UserError("--search and --ladder belong to the plan of a run; leave them out, or --eval")
    plan.prepare(args["topology"], shapes=args["eval"])  # before jax is imported

    from ropd_jax.plan import report

    if args["eval"]:
        from ropd_jax.plan import evaluation

        how = {"k": args["k"] or 16, "max_tokens": args["max_tokens"] or 32_768, "rows": args["rows"]}
        how |= {"problems": args["problems"] or evaluation.PROBLEMS, "mean_tokens": args["mean_tokens"]}
        with report.progress() as progress:
            planned = evaluation.run(args.config, args["topology"], **how, as_json=args["json"], report=progress)
        return 2 if planned["fits"] is False else 0

    found = report.run(
        args.config,
        args["topology"],
        as_json=args["json"],
        search=args["search"],
        mean_tokens=args["mean_tokens"],
        ladder=args["ladder"],
    )
    return 2 if found["fits"] is False else 0


COMMAND = Command(
    name="plan",
    summary="memory, collectives and seconds of a run on a TPU slice or a GPU box; neither is needed",
    intro="""
        Compiles the update and the sampler of a config for a slice or a box of GPUs, on a machine without any. Prints
        for one device:

          memory      parameters, optimizer, KV cache, temporaries and peak, next to what the chip has
          collectives what the compiled programs exchange
          seconds     a lower bound for a step, from the chip's published figures, and an expected
                      time, from the compiler's cycles (of a GPU from its roofline)
          programs    those of decoding, whose rows halve in the tail of a step
          cost        tokens per second, hours, and the teacher's calls and dollars

        If the config does not fit, the plan names the setting to change, and the exit code is 2.

        --eval plans an evaluation instead: how many answers of full length fit at once, which --rows to give, and how
        long decoding takes.
    """,
    run=run,
    config="required",
    flags=(
        Flag(
            "topology",
            "CHIP:SIZE",
            "v4, v5e, v5p, v6e or 7x, e.g. v5e:4x4, v5p:2x2x1; a100, h100, h200, b200 or 4090, 1 to 8 of them, e.g. "
            "gpu:h100x8. cpu:8 is this machine as 8 devices.",
            required="CHIP:SIZE, e.g. --topology v5e:4x4 or gpu:h100x8 (cpu:8 needs no compiler)",
        ),
        Flag("search", "", "Look for the fastest setting that fits: tp, slots, microbatch, remat.", False),
        Flag(
            "mean_tokens",
            "N",
            "Mean length of an answer, for the seconds. Default: every answer has the maximum length.",
            None,
            float,
        ),
        Flag("ladder", "", "Also compile decoding with fewer rows, as it runs in the tail of a step.", False),
        Flag("json", "", "Print JSON, for programs.", False),
        Flag("eval", "", "Plan ropd eval of the config's student.", False, section=EVAL),
        Flag("k", "N", "Answers per problem. Default: 16.", None, int, low=1, section=EVAL),
        Flag("max_tokens", "N", "Maximum length of an answer. Default: 32,768.", None, int, low=1, section=EVAL),
        Flag("problems", "N", "Number of problems, for the seconds. Default: 30.", None, int, low=1, section=EVAL),
        Flag("rows", "N", "Answers decoded at once. Default: as ropd eval chooses.", None, int, low=1, section=EVAL),
    ),
    notes="""
        Compiling takes a minute or more per program; results are cached in ~/.cache/ropd_jax/plan. TPU topologies need
        libtpu: pip install 'ropd_jax[tpu-aot]'; GPUs need XLA's GPU compiler, in a separate .venv: pip install
        'ropd_jax[gpu-aot]'. The student's weights are not needed.
    """,
    examples=(
        "ropd plan --config qwen3_4b_math --topology v5e:4x4",
        "ropd plan --config qwen3_4b_math --topology gpu:h100x8 --mean_tokens 3600",
        "ropd plan --config qwen3_4b_math:thinking --topology v5p:2x2x1 \\",
        "    --search --mean_tokens 3000",
        "ropd plan --config qwen3_4b_math --topology v5e:2x2 --eval --max_tokens 32768",
    ),
)
