"""``ropd train``: runs the loop."""

from __future__ import annotations

import logging
import shlex
import sys

from ropd_jax.cli.flags import HOSTS, Arguments, Command, Flag

log = logging.getLogger(__name__)


def run(args: Arguments) -> None:
    """Joins the hosts of the run, if there are several, and trains; shows the result."""
    from ropd_jax.parallel import hosts

    stopped: Exception | None = None
    with hosts.joined(args["coordinator"], args["num_processes"], args["process_id"]):
        from ropd_jax.teacher import BudgetError
        from ropd_jax.train import train
        from ropd_jax.training.failure_gate import TooManyFailures
        from ropd_jax.utils.interrupt import Interrupted

        try:
            how = {"fork": args["fork"]} if args["fork"] else {}
            result = train(args.config, args["workdir"], **how)
        except (
            Interrupted,
            TooManyFailures,
            BudgetError,
            FloatingPointError,
        ) as error:  # on all hosts at the same place: they leave in order
            stopped = error
    if isinstance(stopped, FloatingPointError):
        raise stopped
    if stopped is not None:
        log.warning("to resume: the same command with the same --workdir %s", args["workdir"])
        raise stopped
    if result.written:
        sys.stdout.write(f"{result}\n")
        log.info("curves: %s", result.workdir / "curves.png")
        if args.config.log.groups:
            log.info("why each reward: ropd show %s --worst 5", shlex.quote(args["workdir"]))


COMMAND = Command(
    name="train",
    summary="run the loop: sample, judge, update, evaluate, save checkpoints",
    intro="""
        Trains a student: prompts, rollouts, rubric, verdicts, rewards, update, checkpoint, evaluation.

        Run the same command again with the same DIR, and the run resumes from its last checkpoint; a finished run shows
        its result, or continues if --config.steps is larger. Keys that do not change what is computed may differ
        (docs/resume.md); any other difference is shown and refused, and so is a DIR in which another process is
        running. --fork starts a new run from a checkpoint with any config. Ctrl-C or SIGTERM saves a checkpoint and
        prints how to resume; a second Ctrl-C stops at once. docs/launch.md has the exit codes, and scripts that start a
        preempted run again.

        API keys of paid teachers come from the environment (OPENAI_API_KEY, GEMINI_API_KEY), never from a config.
    """,
    run=run,
    config="required",
    flags=(
        Flag(
            "workdir",
            "DIR",
            "Directory of the run: checkpoints, metrics.jsonl, timeline.jsonl, tensorboard/, groups/, curves.png and "
            "result.json. Or a bucket: gs://BUCKET/RUN, s3://BUCKET/RUN (docs/buckets.md).",
            required="a directory for the run, e.g. --workdir runs/quickstart",
        ),
        Flag(
            "fork",
            "RUN[@STEP]",
            "Start a new run from another run's newest checkpoint, or the one after STEP steps, with any config.",
        ),
        *HOSTS,
    ),
    notes="""
        On several hosts, run the same command on each, with a DIR that all of them share. TPU VMs find each other
        without these flags. Ctrl-C or SIGTERM on one host saves a checkpoint and stops all of them.
    """,
    examples=(
        "ropd train --config quickstart --workdir runs/quickstart",
        "ropd train --config quickstart --workdir runs/seed1 --config.seed=1",
        "ropd train --config quickstart --workdir runs/quickstart --config.steps=96",
        "ropd train --config quickstart --fork runs/quickstart@24 --workdir runs/b",
    ),
)
