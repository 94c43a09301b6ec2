"""``ropd show``: why each answer got its reward, in the terminal."""

from __future__ import annotations

from ropd_jax.cli.flags import Arguments, Command, Flag
from ropd_jax.types import UserError


def run(args: Arguments) -> None:
    from ropd_jax.viewer import terminal

    step, group, worst = args["step"], args["group"], args["worst"]
    if args["criteria"]:
        if group is not None or step is not None or worst or args["unscored"]:
            raise UserError("--criteria is about the whole run; leave --step, --group, --worst and --unscored out")
        from ropd_jax.viewer import criteria

        criteria.show(args.words[0])
        return
    if group is not None and (worst or args["unscored"]):
        raise UserError(f"--group {group} shows one group and --worst and --unscored list groups; give one of them")
    terminal.show(args.words[0], step=step, group=group, worst=worst, unscored=args["unscored"])


COMMAND = Command(
    name="show",
    summary="why each answer got its reward: a group's criteria x answers, in the terminal",
    intro="""
        Prints one group of a run: the question, the matrix of criteria and answers with points and pass rates, the
        references (R0, R1, ...) in the same matrix, and each answer in short with its reward and advantage. If the gold
        answer is a number or a choice, each answer is marked right or wrong.

        Without --group it prints a list of groups: those of one step, or with --worst or --unscored those of the whole
        run.

          spread      largest minus smallest reward
          ref         mean weighted pass rate of the references
          cut         answers cut at the token limit
          flat        all rewards are equal
          ref below   a reference scored lower than an answer
          flipped     a verdict changed in the second look
    """,
    run=run,
    words=("RUN",),
    missing="which run? expected its directory first, e.g. ropd show runs/quickstart",
    flags=(
        Flag("step", "N", "The step; by default the newest one that has groups.", None, int, low=0),
        Flag("group", "N", "The group's place in the step, from 0.", None, int, low=0),
        Flag("worst", "N", "List the N groups with the lowest mean reward.", None, int, low=1),
        Flag(
            "criteria",
            "",
            "List the criteria of the whole run by wording: early and late pass rate, and which were learned.",
            False,
        ),
        Flag("unscored", "", "List the groups with answers that the teacher left unscored.", False),
    ),
    examples=(
        "ropd show runs/quickstart --step 12 --group 0",
        "ropd show runs/quickstart --worst 5",
        "ropd show runs/quickstart --unscored",
        "ropd show runs/quickstart --criteria",
    ),
)
