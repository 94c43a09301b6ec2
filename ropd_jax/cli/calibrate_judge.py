"""``ropd calibrate-judge``: how often the verdicts of a run's verifier are wrong, before it gives rewards."""

from __future__ import annotations

import logging

from ropd_jax.cli.flags import Arguments, Command, Flag

log = logging.getLogger(__name__)


def run(args: Arguments) -> int:
    """Asks, writes and prints the report; 4 if the budget was reached before all questions were asked, 3 if a form
    got no verdict at all."""
    from ropd_jax.calibration import report
    from ropd_jax.calibration import run as calibration
    from ropd_jax.workdir.lock import locked

    cfg = args.config
    options = calibration.Options(
        labels=args["labels"],
        part=args["part"],
        limit=args["limit"],
        forms=args["forms"],
        scorer=args["scorer"],
        reorder=args["reorder"],
        probes=args["probes"],
    )
    with locked(args["out"], "--out"):
        reports = calibration.main(cfg.teacher, options, seed=cfg.seed, out=args["out"])
    report.show(reports, args["out"])
    if any(r["stopped"] for r in reports):
        return 4
    if silent := [r["verifier"]["form"] for r in reports if not r["overall"]["n"]]:
        log.error("the verifier gave no verdict that could be used (form %s); the report measures nothing", silent[0])
        return 3
    return 0


COMMAND = Command(
    name="calibrate-judge",
    summary="how often the verifier is wrong: accuracy, kappa, bias and cost on labelled answers",
    intro="""
        Sends labelled answers through the verifier of the config, and compares its verdicts with the truth: accuracy,
        sensitivity, specificity, Cohen's kappa and the AUC of the reward, by kind of criterion and by family of
        question; bias by position, length and style; verdicts that change with the order; calls, tokens, cost and time
        per 1,000 verdicts. --probes adds how much a wrong answer gains from padding, self-praise and the like. The
        report ends with a recommendation. docs/judge.md explains the figures.

        The labels of the package are 42 questions of 6 families with about 1,500 verdicts in each part; the truth of
        each follows from how its answer was built. The answers are recorded on a tape in --out, so the same command
        costs nothing the second time. teacher.budget caps the spending. If a cap is reached, the report covers
        the requests made so far, and the exit code is 4.
    """,
    run=run,
    config="required",
    flags=(
        Flag("labels", "FILE", "Your own labels as JSONL (docs/judge.md), instead of those of the package."),
        Flag("part", "dev|heldout", "The part of the labels: choose a form on dev, report it on heldout.", "dev"),
        Flag("limit", "N", "At most N questions, taken from the families in turn; 0 is all.", 0, low=0),
        Flag("out", "DIR", "Directory of the report, the tape and the spending.", "runs/calibrate-judge"),
        Flag("probes", "", "Also measure what wrong answers gain by looks: two more calls per question.", False),
        Flag("scorer", "", "Also let the scorer score each answer.", False),
        Flag("reorder", "", "Verify each group once, not twice in two orders: half the cost, no flips.", True),
        Flag(
            "forms",
            "LIST",
            "Compare request forms in one table; separated by commas: NAME, NAME/A (A answers per call) or "
            "NAME/A/C (and C criteria per call). The names are those of teacher.verifier.form.",
        ),
    ),
    examples=(
        "ropd calibrate-judge --config quickstart",
        "ropd calibrate-judge --config my_run.py --limit 12 --forms lists,keyed,keyed/1 --out runs/forms",
        "ropd calibrate-judge --config my_run.py --probes",
        "ropd calibrate-judge --config my_run.py --labels mine.jsonl --config.teacher.budget.usd=2",
    ),
)
