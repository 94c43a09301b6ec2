"""``ropd analyze``: the signal study of the paper on the stored rollouts of a run."""

from __future__ import annotations

import os

from ropd_jax.cli.flags import STEPS, Arguments, Command, Flag, steps_of
from ropd_jax.types import UserError


def run(args: Arguments) -> None:
    where, steps, scores = args.words[0], steps_of(args["steps"]), args["scores"]
    if scores and args["teacher"]:
        raise UserError("--scores and --teacher cannot be combined: --teacher writes its own scores file; give one")

    from ropd_jax.analysis import signal_study

    out = args["out"] or f"{where.rstrip('/')}/analysis"
    if args["teacher"]:
        from ropd_jax.analysis import rejudge, teacher_signals

        scores = os.fspath(
            teacher_signals.score_run(
                where,
                args["teacher"],
                f"{out}/scores.jsonl",
                steps=steps,
                system=rejudge.run_config(where).data.system,
                top_k=args["top_k"],
            )
        )
    signal_study.main(where, steps=steps, scores=scores, out=out)


COMMAND = Command(
    name="analyze",
    summary="whether a run's rewards agree with correctness: AUC, bad updates, criteria over training",
    intro="""
        The paper's signal study on the rollouts stored in RUN/groups: how often a right answer scores above a wrong one
        (AUC, over all pairs and within groups), how many rollouts are pushed in the wrong direction (bad updates),
        which criteria are met over training, and how the rollouts' verdicts come to agree with the references'. Right
        and wrong are decided by the gold answer.
    """,
    run=run,
    words=("RUN",),
    missing="which run? expected its directory first, e.g. ropd analyze runs/quickstart",
    flags=(
        STEPS,
        Flag(
            "teacher",
            "CHECKPOINT",
            "More signals from this checkpoint, whose weights are loaded: the mean log-prob of each answer, and the "
            "overlap of its K most likely next tokens with those of the run's newest checkpoint before the answer.",
        ),
        Flag("top_k", "K", "K of the overlap; 24 in the paper. 0 leaves the overlap out.", 24, low=0),
        Flag(
            "scores",
            "FILE",
            'More signals from a JSONL file: {"step": 3, "prompt_id": "p", "sample": 0, "teacher_logprob": -0.4}.',
        ),
        Flag("out", "DIR", "Directory for analysis.json and analysis.png. Default: RUN/analysis."),
    ),
    examples=("ropd analyze runs/quickstart",),
)
