"""``ropd rejudge``: scores the stored rollouts of a run again and shows what would have changed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ropd_jax.cli.flags import STEPS, Arguments, Command, Flag, steps_of
from ropd_jax.types import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

log = logging.getLogger(__name__)


def run(args: Arguments) -> int:
    """Judges again and prints; 3 if the teacher scored nothing."""
    from ropd_jax.analysis import rejudge

    cfg = args.config
    if args["verifier"]:
        cfg.teacher.verifier.model = args["verifier"]
    options = dict(steps=steps_of(args["steps"]), rubric=args["rubric"], out=args["out"])
    found = rejudge.main(args.words[0], cfg.teacher, seed=cfg.seed, **options)
    if found["unscored"]["after"]["rollouts"] < found["rollouts"]:
        return 0
    log.error("none of the %d rollouts could be scored, so nothing is compared", found["rollouts"])
    return 3


def _config_of_run(words: Sequence[str]) -> ConfigDict:
    from ropd_jax.analysis import rejudge

    return rejudge.run_config(words[0])


def _check_key(key: str) -> None:
    if key != "seed" and not key.startswith("teacher."):
        raise UserError(f"--config.{key} does not change a judgement; expected keys of teacher, or seed")


COMMAND = Command(
    name="rejudge",
    summary="score a run's stored rollouts with another verifier, prompt or rubric; show what changes",
    intro="""
        Scores the rollouts in RUN/groups/*.jsonl again, by the run's config with your changes, and shows what would
        have changed: rewards, ranks, signs of advantages, and the agreement of the two verifiers (Cohen's kappa),
        criterion by criterion. References and rubrics are the stored ones. Nothing is written into RUN.
    """,
    run=run,
    words=("RUN",),
    missing="which run? expected its directory first, e.g. ropd rejudge runs/quickstart",
    config="run",
    stored=_config_of_run,
    check_key=_check_key,
    flags=(
        Flag("verifier", "MODEL", "Another model; the same as --config.teacher.verifier.model=MODEL."),
        Flag(
            "rubric",
            "stored|fresh",
            "fresh: induce new rubrics (teacher.rubricator) instead of using the stored ones.",
            "stored",
        ),
        STEPS,
        Flag("out", "FILE", "Write the whole comparison as JSON, including each criterion."),
    ),
    notes="""
        Only keys of teacher, and seed, change a judgement; other keys are refused.
    """,
    examples=(
        "ropd rejudge runs/a --verifier gemini-2.5-pro --config.teacher.verifier.provider=gemini \\",
        "    --steps 0:10",
        "ropd rejudge runs/a --config.teacher.verifier.template=my_verifier.md --out rejudged.json",
    ),
)
