"""``ropd preflight``: calls, tokens, dollars and hours of a run before anything is spent."""

from __future__ import annotations

from ropd_jax.cli.flags import Arguments, Command, Flag


def run(args: Arguments) -> int:
    """Plans, checks and prints; 2 if a check failed."""
    from ropd_jax.plan import preflight
    from ropd_jax.workdir.place import stored_tape

    tape = stored_tape(args["tape"], "--tape") if args["tape"] else None
    checks = preflight.run(args.config, tape=tape, calls=args["calls"], as_json=args["json"])
    return 0 if all(check.ok for check in checks) else 2


COMMAND = Command(
    name="preflight",
    summary="calls, tokens, dollars and hours of a run before anything is spent; checks keys and models",
    intro="""
        Prints calls, tokens, dollars and hours for each role of the teacher, and checks the key, the address and the
        model of each with one cheap call. The exit code is 2 if a check fails.
    """,
    run=run,
    config="required",
    flags=(
        Flag(
            "tape",
            "TAPE",
            "A tape.sqlite, or the directory of a run that has one. Its mean tokens and seconds give the estimate. "
            "Default: only upper bounds.",
        ),
        Flag("calls", "", "Send nothing.", True),
        Flag("json", "", "Print JSON, for programs.", False),
    ),
    examples=("ropd preflight --config quickstart --tape runs/quickstart",),
)
