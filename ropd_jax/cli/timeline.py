"""``ropd timeline``: what a run did when, as a Gantt chart."""

from __future__ import annotations

from ropd_jax.cli.flags import STEPS, Arguments, Command, Flag, steps_of


def run(args: Arguments) -> None:
    from ropd_jax.analysis import timeline

    timeline.main(args.words[0], steps=steps_of(args["steps"]), out=args["out"])


COMMAND = Command(
    name="timeline",
    summary="a Gantt chart of what a run did when, and one line about what it waits for",
    intro="""
        Prints in one line what the run waits for, and draws the steps as a Gantt chart: what the run itself does
        (sample, prefill, update, evaluate, checkpoint, idle) above what the teacher does for each group (reference,
        rubric, verify). The bar of a call begins when it is requested; it includes the wait for a free slot.

        Without --steps the line covers all steps and the chart the last three. --steps 1: leaves out the step that
        compiles. timeline.json is a trace of the chosen steps in
        Chrome's format: open it at https://ui.perfetto.dev, which reads it on your machine and sends it nowhere.
    """,
    run=run,
    words=("RUN",),
    missing="which run? expected its directory first, e.g. ropd timeline runs/quickstart",
    flags=(STEPS, Flag("out", "DIR", "Directory for timeline.png and timeline.json. Default: RUN.")),
    examples=("ropd timeline runs/quickstart", "ropd timeline runs/quickstart --steps 10:12 --out /tmp"),
)
