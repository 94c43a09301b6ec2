"""``ropd COMMAND``: the command line.

    ropd train --config quickstart --workdir runs/quickstart --config.optim.lr=3e-4
    ropd serve-teacher --port 8808

Each command is a file of this folder. Its heavy imports are inside its functions, so that ``ropd --help`` and every
mistake are answered at once. This file finds the command and turns exceptions into exit codes; nothing below `cli`
knows exit codes.
"""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Sequence

import ropd_jax
from ropd_jax.cli import (
    analyze,
    calibrate_judge,
    collect_references,
    configs,
    data,
    eval,
    export,
    grade,
    init,
    plan,
    preflight,
    rejudge,
    rubrics,
    serve_teacher,
    show,
    table,
    tape,
    timeline,
    train,
    view,
)
from ropd_jax.cli.flags import Command, parse
from ropd_jax.cli.help import columns, help_text, paragraphs
from ropd_jax.types import UserError
from ropd_jax.utils.logs import show_all_logs
from ropd_jax.utils.suggest import near
from ropd_jax.utils.text import plain

log = logging.getLogger(__name__)

GROUPS: dict[str, tuple[Command, ...]] = {
    "before a run": (
        configs.COMMAND,
        init.COMMAND,
        data.COMMAND,
        preflight.COMMAND,
        plan.COMMAND,
        calibrate_judge.COMMAND,
        collect_references.COMMAND,
    ),
    "the run": (train.COMMAND,),
    "evaluate": (eval.COMMAND, grade.COMMAND, table.COMMAND),
    "after a run": (
        view.COMMAND,
        show.COMMAND,
        analyze.COMMAND,
        timeline.COMMAND,
        rejudge.COMMAND,
        rubrics.COMMAND,
        export.COMMAND,
    ),
    "teacher": (tape.COMMAND, serve_teacher.COMMAND),
}
COMMANDS = {command.name: command for commands in GROUPS.values() for command in commands}
ALIASES = {"teach": "collect-references"}  # earlier name -> name; both work in this version
HELP_FLAGS = ("-h", "--help", "-help")

EXIT_CODES = {  # (module, class) -> exit code, the first that fits. The module is loaded if its exception was raised
    ("ropd_jax.training.failure_gate", "TooManyFailures"): 3,
    ("ropd_jax.teacher", "BudgetError"): 4,
    ("builtins", "FloatingPointError"): 6,
    ("ropd_jax.utils.interrupt", "Interrupted"): 130,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    ==== ==========================================================
    0    done
    2    an error that the user can fix (`UserError`, a full disk), or a check that failed
    3    the teacher failed too often, or on everything (`TooManyFailures`)
    4    a budget is spent (`BudgetError`)
    5    another host of the run is lost (`parallel.hosts` exits)
    6    a loss or the student became NaN (`FloatingPointError`)
    130  stopped by Ctrl-C or SIGTERM
    ==== ==========================================================
    """
    args = list(sys.argv[1:] if argv is None else argv)
    show_all_logs()
    try:
        code = _dispatch(args)
        sys.stdout.flush()  # output that cannot be written is an error
        return code
    except KeyboardInterrupt:
        sys.stderr.write("ropd: stopped\n")
        return 130
    except Exception as error:
        return _exit_code(error)


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in HELP_FLAGS or args == ["help"]:
        sys.stdout.write(overview())
        return 0 if args else 2
    if args[0] == "--version":
        sys.stdout.write(f"ropd {ropd_jax.__version__}\n")
        return 0
    wants_help = args[0] == "help" or any(a in HELP_FLAGS for a in args[1:])
    name, rest = (args[1], args[2:]) if args[0] == "help" else (args[0], args[1:])
    if name in ALIASES:
        log.warning("ropd %s is now ropd %s; the old name works in this version only", name, ALIASES[name])
        name = ALIASES[name]
    if name.replace("_", "-") not in COMMANDS:
        raise UserError(f"{name!r} is not a command; {near(name, [*COMMANDS, *ALIASES])} (ropd --help lists them)")
    command = COMMANDS[name.replace("_", "-")]
    if wants_help:
        sys.stdout.write(help_text(command))
        return 0
    return command.run(parse(command, rest)) or 0


def _exit_code(error: Exception) -> int:
    """Reports an error in one line and returns its exit code; raises what is a bug of ours."""
    for (module, name), code in EXIT_CODES.items():
        # Looked up, not imported: importing would load jax just to report a misspelt flag.
        if module in sys.modules and isinstance(error, getattr(sys.modules[module], name)):
            if str(error):  # an interrupted evaluation has already reported how to continue
                log.error("stopped: %s", error)
            return code
    if isinstance(error, UserError):
        sys.stderr.write(f"ropd: error: {plain(str(error))}\n")
        return 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        sys.stderr.write(f"ropd: error: no space left for {error.filename or 'a file'}; free some and run it again\n")
        return 2
    raise error


def overview() -> str:
    """``ropd --help``: all commands by group, from the same table that runs them."""
    intro = """
        Rubric-based on-policy distillation: a student (JAX) learns from a teacher that is only text. For each question
        the student samples a group of answers. The teacher writes references and, from the contrast, a rubric of
        weighted yes/no criteria, and checks every answer against it. The weighted pass rate is the reward.
    """
    rows = {title: [(c.name, c.summary) for c in commands] for title, commands in GROUPS.items()}
    width = max(len(name) for name in COMMANDS)
    parts = ["usage: ropd COMMAND [flags]", paragraphs(intro)]
    for title, group in rows.items():
        padded = [(f"{name:<{width}}", summary) for name, summary in group]
        parts.append("\n".join([title, *columns(padded)]))
    parts.append(
        "start here\n"
        "  ropd train --config quickstart --workdir runs/quickstart   1-2 minutes on 2 cores\n"
        "  ropd show runs/quickstart --step 0 --group 0               why each reward\n"
        "  open runs/quickstart/curves.png                            reward, accuracy, length"
    )
    parts.append(
        "change a setting\n"
        "  ropd train --config quickstart --workdir runs/b --config.seed=1\n"
        "  ropd configs --keys sampling                               explains the keys of the sampler"
    )
    parts.append("ropd help COMMAND, or ropd COMMAND --help, explains a command. ropd --version prints the version.")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
