"""``ropd export``: a run's student as a Hugging Face directory."""

from __future__ import annotations

from ropd_jax.cli.flags import Arguments, Command, Flag


def run(args: Arguments) -> None:
    from ropd_jax.workdir.export import export

    export(
        args.words[0], args["to"], step=args["step"], dtype=args["dtype"], adapter=args["adapter"]
    )  # fmt: skip


COMMAND = Command(
    name="export",
    summary="write a run's student as a Hugging Face directory that transformers and vLLM load",
    intro="""
        Writes DIR as a Hugging Face directory: config.json, model.safetensors (above 5 GB in shards with an index),
        tokenizer, chat template and generation_config.json. transformers and vLLM load it, and so does
        student.checkpoint of another run. A DIR that is not empty is refused; a command that was stopped leaves no DIR.

        CHECKPOINT is whatever student.checkpoint can be: smollm2, a .gguf file, a Hugging Face directory.
    """,
    run=run,
    words=("RUN|CHECKPOINT",),
    missing="export what? expected a run or a checkpoint first, e.g. ropd export runs/a --to exported/a",
    flags=(
        Flag("to", "DIR", "The directory to write.", required="the directory to write, e.g. --to exported/a"),
        Flag("step", "N", "The run's checkpoint after N steps. Default: the newest.", None, int, low=0),
        Flag(
            "dtype",
            "T",
            "float32, bfloat16 or float16. Default: float32 for a run, as it was trained; a checkpoint's own type "
            "(float32 for a GGUF file, which is dequantized).",
        ),
        Flag(
            "adapter",
            "",
            "For a run with student.lora.rank above 0: write only the adapters, as PEFT does (adapter_config.json, "
            "adapter_model.safetensors). Default: merge them into the weights.",
            False,
        ),
    ),
    examples=(
        "ropd export runs/quickstart --to exported/quickstart",
        "ropd export smollm2 --to exported/smollm2",
    ),
)
