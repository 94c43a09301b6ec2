"""``ropd plan``: memory, collectives and seconds of a run on a TPU slice, from the compiler."""

from __future__ import annotations

from ropd_jax.cli.flags import Arguments, Command, Flag


def run(args: Arguments) -> int:
    """Compiles and prints; 2 if the config does not fit."""
    from ropd_jax import plan

    plan.prepare(args["topology"])  # before jax is imported

    from ropd_jax.plan import report

    found = report.run(
        args.config,
        args["topology"],
        as_json=args["json"],
        search=args["search"],
        mean_tokens=args["mean_tokens"],
    )
    return 2 if found["fits"] is False else 0


COMMAND = Command(
    name="plan",
    summary="memory, collectives and seconds of a run on a TPU slice; no TPU is needed",
    intro="""
        Compiles the update and the sampler of a config for a slice, on a machine without a TPU. Prints for one device:

          memory      parameters, optimizer, KV cache, temporaries and peak, next to what the chip has
          collectives what the compiled programs exchange
          seconds     a lower bound for a step, from the chip's published figures
          cost        tokens per second, hours, and the teacher's calls and dollars

        If the config does not fit, the plan names the setting to change, and the exit code is 2.
    """,
    run=run,
    config="required",
    flags=(
        Flag(
            "topology",
            "CHIP:SIZE",
            "v4, v5e, v5p, v6e or 7x, e.g. v5e:4x4, v5p:2x2x1, v6e:2x2. cpu:8 is this machine as 8 devices.",
            required="CHIP:SIZE, e.g. --topology v5e:4x4 (cpu:8 needs no libtpu)",
        ),
        Flag("search", "", "Look for the fastest setting that fits: tp, slots, microbatch, remat.", False),
        Flag(
            "mean_tokens",
            "N",
            "Mean length of an answer, for the seconds. Without it, every answer has the maximum length.",
            None,
            float,
        ),
        Flag("json", "", "Print JSON, for programs.", False),
    ),
    notes="""
        Compiling takes a minute or more per program; results are cached in ~/.cache/ropd_jax/plan. TPU topologies need
        libtpu: pip install 'ropd_jax[tpu-aot]'. The student's weights are not needed.
    """,
    examples=(
        "ropd plan --config experiments/qwen3_4b_math.py --topology v5e:4x4",
        "ropd plan --config experiments/qwen3_4b_math.py:thinking --topology v5p:2x2x1 \\",
        "    --search --mean_tokens 3000",
    ),
)
