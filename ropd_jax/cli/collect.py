"""``ropd collect-references``: the teacher's references of all training prompts, collected before a run."""

from __future__ import annotations

from ropd_jax.cli.flags import Arguments, Command, Flag


def run(args: Arguments) -> int | None:
    from ropd_jax.cli import collect_references

    return collect_references.main(args.config, args["out"], batch=args["batch"], poll_s=args["poll_s"])


COMMAND = Command(
    name="collect-references",
    summary="collect the teacher's references of all training prompts before a run",
    intro="""
        Requests teacher.references answers to each training prompt of the config and writes them to FILE, one line per
        prompt (JSONL, the official ropd.teacher_index.v2). Run the same command again with the same FILE to continue,
        also after a kill. If two answers to a prompt are equal, another one is requested, a limited number of times.
    """,
    run=run,
    config="required",
    flags=(
        Flag("out", "FILE", "File of the references.", required="the file of the index, e.g. --out references.jsonl"),
        Flag(
            "batch",
            "",
            "Use the batch API of OpenAI or Gemini: half the price, up to a day. The jobs are on the tape "
            "(FILE.teacher/tape.sqlite); if the command was stopped, it continues to poll the same jobs.",
            False,
        ),
        Flag("poll_s", "S", "Seconds between two polls of the jobs.", 30.0, low=0.0),
    ),
    examples=(
        "ropd collect-references --config experiments/quickstart.py --out references.jsonl",
        "ropd train --config experiments/quickstart.py --config.teacher.index=references.jsonl \\",
        "    --workdir runs/b",
    ),
)
