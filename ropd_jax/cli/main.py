"""``ropd VERB``: the command line.

    ropd train --config experiments/quickstart.py --workdir runs/quickstart --config.optim.lr=3e-4
    ropd serve-teacher --port 8808

A verb's heavy imports stand inside it, so that ``ropd --help`` and every mistake are answered at once. What the user
can mend (``UserError``) is one line on standard error and exit code 2, without a traceback.
"""

from __future__ import annotations

import errno
import importlib
import logging
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from ropd_jax.cli.flags import check_known, config_and_flags, define_config, load_config, override, parse, take
from ropd_jax.cli.help_texts import (
    ANALYZE_HELP,
    DATA_HELP,
    EVAL_HELP,
    EXPORT_HELP,
    GRADE_HELP,
    HELP,
    REJUDGE_HELP,
    SERVE_HELP,
    TABLE_HELP,
    TEACH_HELP,
    TRAIN_HELP,
)
from ropd_jax.types import UserError
from ropd_jax.utils.suggest import near

if TYPE_CHECKING:
    from absl import flags
    from ml_collections import ConfigDict


HELP_FLAGS = ("-h", "--help", "-help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0 done, 2 the user can mend it, 3 the teacher failed too often, 4 a budget is spent, 5 another host of the run is
    gone, 130 stopped by Ctrl-C.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    _set_up_logging()
    try:
        return _dispatch(args)
    except UserError as error:
        sys.stderr.write(f"ropd: error: {error}\n")
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.stderr.write(f"ropd: error: no space left for {error.filename or 'a file'}; free some and run it again\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("ropd: stopped\n")
        return 130


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in (*HELP_FLAGS, "help"):
        sys.stdout.write(HELP)
        return 0 if args else 2
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        raise UserError(f"{verb!r} is no verb; {near(verb, VERBS)} (ropd --help lists them)")
    run, text = VERBS[verb]
    if any(a in HELP_FLAGS for a in rest):
        sys.stdout.write(importlib.import_module(text).HELP if text.startswith("ropd_jax.") else text)
        return 0
    return run(rest)


# ------------------------------------------------------------------------------------------------------ verbs


def _train(args: list[str]) -> int:
    from absl import flags

    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    flags.DEFINE_string("coordinator", "", "", flag_values=values)
    for name in ("num_processes", "process_id"):
        flags.DEFINE_integer(name, None, "", lower_bound=0, flag_values=values)
    args = [re.sub(r"^--(num|process)-(processes|id)\b", r"--\1_\2", a) for a in args]
    config = config_and_flags("train", args, values)
    if not values["workdir"].value:
        raise UserError("--workdir is missing; expected a directory for the run, e.g. --workdir runs/quickstart")

    from ropd_jax.parallel import hosts

    with hosts.joined(*(values[name].value for name in ("coordinator", "num_processes", "process_id"))):
        from ropd_jax import train

        return train.main(config, values["workdir"].value)


def _plan(args: list[str]) -> int:
    from absl import flags

    values = flags.FlagValues()
    flags.DEFINE_string("topology", "", "", flag_values=values)
    flags.DEFINE_bool("search", False, "", flag_values=values)
    flags.DEFINE_bool("json", False, "", flag_values=values)
    flags.DEFINE_float("mean_tokens", 0.0, "", flag_values=values)
    args = [f"--mean_tokens{a.removeprefix('--mean-tokens')}" if a.startswith("--mean-tokens") else a for a in args]
    config = config_and_flags("plan", args, values)
    if not values["topology"].value:
        raise UserError("--topology is missing; expected CHIP:SIZE, e.g. --topology v5e:4x4 (cpu:8 needs no libtpu)")

    from ropd_jax import plan

    plan.prepare(values["topology"].value)

    from ropd_jax.plan import verb

    return verb.run(
        config,
        values["topology"].value,
        as_json=values["json"].value,
        search=values["search"].value,
        mean_tokens=values["mean_tokens"].value,
    )


def _preflight(args: list[str]) -> int:
    from absl import flags

    values = flags.FlagValues()
    flags.DEFINE_string("tape", "", "", flag_values=values)
    flags.DEFINE_bool("calls", True, "", flag_values=values)
    flags.DEFINE_bool("json", False, "", flag_values=values)
    config = config_and_flags("preflight", ["--nocalls" if a == "--no-calls" else a for a in args], values)

    from ropd_jax.plan import preflight

    return preflight.run(config, tape=values["tape"].value, calls=values["calls"].value, as_json=values["json"].value)


def _tape(args: list[str]) -> int:
    from ropd_jax.cli import tape

    return tape.run(args)


def _rejudge(args: list[str]) -> int:
    from absl import flags

    run, rest = _first(args, "which run? expected its directory first, e.g. ropd rejudge runs/quickstart")
    model, rest = take(rest, "verifier")
    if model is not None:
        rest = [*rest, f"--config.teacher.verifier.model={model}"]
    for key in filter(None, map(override, rest)):
        if key != "seed" and not key.startswith("teacher."):
            raise UserError(f"--config.{key} changes nothing of a judgement; expected keys of teacher, or seed")
    values = flags.FlagValues()
    flags.DEFINE_string("steps", "", "", flag_values=values)
    flags.DEFINE_string("rubric", "stored", "", flag_values=values)
    flags.DEFINE_string("out", "", "", flag_values=values)

    from ropd_jax.analysis import rejudge

    define_config("rejudge", rejudge.run_config(run).lock(), rest, values)
    parse(values, "rejudge", rest)
    return rejudge.main(
        values["config"].value,
        run,
        steps=_steps(values["steps"].value),
        rubric=values["rubric"].value,
        out=values["out"].value,
    )


def _first(args: list[str], missing: str = "") -> tuple[str, list[str]]:
    """(the word in front of the flags, the rest); ``missing`` is the error where there is none, "" if that is fine."""
    word, rest = (args[0], args[1:]) if args and not args[0].startswith("-") else ("", args)
    if missing and not word:
        raise UserError(missing)
    return word, rest


def _steps(text: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d*):(\d*)", text)
    if text and not (found and text != ":"):
        raise UserError(f"--steps={text} is no range; expected a:b, a: or :b, e.g. --steps 0:10")
    return (int(found[1] or 0), int(found[2] or sys.maxsize)) if found else None


def _teach(args: list[str]) -> int:
    from absl import flags

    values = flags.FlagValues()
    flags.DEFINE_string("out", "", "", flag_values=values)
    flags.DEFINE_boolean("batch", False, "", flag_values=values)
    flags.DEFINE_float("poll_s", 30.0, "", lower_bound=0.0, flag_values=values)
    config = config_and_flags("teach", args, values)
    if not values["out"].value:
        raise UserError("--out is missing; expected the file of the index, e.g. --out references.jsonl")

    from ropd_jax.cli import collect_references

    return collect_references.main(
        config, values["out"].value, batch=values["batch"].value, poll_s=values["poll_s"].value
    )


def _export(args: list[str]) -> int:
    from absl import flags

    what, rest = _first(
        args, "export what? expected a run or a checkpoint first, e.g. ropd export runs/a --to exported/a"
    )
    values = flags.FlagValues()
    flags.DEFINE_string("to", "", "", flag_values=values)
    flags.DEFINE_integer("step", None, "", lower_bound=0, flag_values=values)
    flags.DEFINE_string("dtype", "", "", flag_values=values)
    flags.DEFINE_boolean("adapter", False, "", flag_values=values)
    parse(values, "export", rest)
    if not values["to"].value:
        raise UserError("--to is missing; expected the directory to write, e.g. --to exported/a")

    from ropd_jax.workdir import export

    return export.main(
        what,
        values["to"].value,
        step=values["step"].value,
        dtype=values["dtype"].value,
        adapter=values["adapter"].value,
    )


def _data(args: list[str]) -> int:
    from absl import flags

    name, rest = _first(args)
    values = flags.FlagValues()
    flags.DEFINE_string("data", "", "", flag_values=values)
    flags.DEFINE_string("prepare", "", "", flag_values=values)
    flags.DEFINE_string("language", "en", "", flag_values=values)
    parse(values, "data", rest)

    from ropd_jax.cli import data

    return data.main(name, **{flag: values[flag].value for flag in values})


def _eval(args: list[str]) -> int:
    from absl import flags

    what, rest = _first(
        args, "which student? expected a run or a checkpoint first, e.g. ropd eval smollm2 --benchmark gsm8k"
    )
    values = flags.FlagValues()
    for name in ("benchmark", "data", "template", "out", "against", "dtype"):
        flags.DEFINE_string(name, "", "", flag_values=values)
    flags.DEFINE_string("pick", "last", "", flag_values=values)
    flags.DEFINE_boolean("thinking", None, "", flag_values=values)
    for name in ("k", "max_tokens", "limit"):
        flags.DEFINE_integer(name, None, "", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("rows", 64, "", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "", lower_bound=0, flag_values=values)
    flags.DEFINE_float("temperature", None, "", lower_bound=0.0, flag_values=values)
    flags.DEFINE_float("top_p", None, "", lower_bound=0.0, upper_bound=1.0, flag_values=values)
    config = _judge_config("eval", rest, values)

    from ropd_jax.evaluation.run import evaluate
    from ropd_jax.workdir.config import Interrupted

    options = {name: values[name].value for name in values if not name.startswith("config")}
    try:
        evaluate(what, **options, teacher=config.teacher).show()
    except Interrupted:
        return 130
    return 0


def _analyze(args: list[str]) -> int:
    from absl import flags

    run, rest = _first(args, "which run? expected its directory first, e.g. ropd analyze runs/quickstart")
    values = flags.FlagValues()
    for name in ("steps", "scores", "teacher", "out"):
        flags.DEFINE_string(name, "", "", flag_values=values)
    flags.DEFINE_integer("top_k", 24, "", lower_bound=0, flag_values=values)
    parse(values, "analyze", rest)
    steps, scores, teacher = _steps(values["steps"].value), values["scores"].value, values["teacher"].value
    if scores and teacher:
        raise UserError("--scores and --teacher exclude each other: --teacher writes a scores file of its own")

    from ropd_jax.analysis import signal_study

    out = values["out"].value or str(pathlib.Path(run) / "analysis")
    if teacher:
        from ropd_jax.analysis import rejudge, teacher_signals

        how = {"steps": steps, "system": rejudge.run_config(run).data.system, "top_k": values["top_k"].value}
        scores = str(teacher_signals.score_run(run, teacher, pathlib.Path(out) / "scores.jsonl", **how))
    return signal_study.main(run, steps=steps, scores=scores, out=out)


def _timeline(args: list[str]) -> int:
    from absl import flags

    run, rest = _first(args, "which run? expected its directory first, e.g. ropd timeline runs/quickstart")
    values = flags.FlagValues()
    for name in ("steps", "out"):
        flags.DEFINE_string(name, "", "", flag_values=values)
    parse(values, "timeline", rest)

    from ropd_jax.analysis import timeline

    return timeline.main(run, steps=_steps(values["steps"].value), out=values["out"].value)


def _costs(topology: str) -> Callable[[str, tuple[str, ...]], str]:
    """(flags of ``ropd train``, runs of other seeds) -> what such a run costs; see `plan.costs`."""
    from ropd_jax import plan
    from ropd_jax.plan.chips import parse_topology

    plan.prepare(f"cpu:{parse_topology(topology).devices}")

    from ropd_jax.plan.costs import cost_of

    return lambda train, like: cost_of(train, like, topology)


def _table(args: list[str]) -> int:
    from absl import flags

    from ropd_jax.analysis import tables
    from ropd_jax.utils.files import write_atomic

    file, rest = _first(args, "which table? expected its file first, e.g. ropd table experiments/table1_blackbox.py")
    values = flags.FlagValues()
    for name, default in (("runs", "runs"), ("evals", "evals"), ("format", "markdown"), ("out", "")):
        flags.DEFINE_string(name, default, "", flag_values=values)
    flags.DEFINE_boolean("costs", False, "", flag_values=values)
    flags.DEFINE_string("topology", "v5e:4x4", "", flag_values=values)
    parse(values, "table", rest)
    cost = _costs(values["topology"].value) if values["costs"].value else None
    spec = tables.load_spec(file)
    table = tables.collect(spec, runs=values["runs"].value, evals=values["evals"].value, cost=cost)
    text = tables.render(table, values["format"].value)
    if values["out"].value:
        write_atomic(values["out"].value, text)
    else:
        sys.stdout.write(text)
    return 0


def _grade(args: list[str]) -> int:
    from absl import flags

    values = flags.FlagValues()
    for name in ("benchmark", "answers", "data", "out", "against"):
        flags.DEFINE_string(name, "", "", flag_values=values)
    flags.DEFINE_integer("workers", 0, "", lower_bound=0, flag_values=values)
    flags.DEFINE_float("timeout_s", 5.0, "", lower_bound=0.1, flag_values=values)
    config = _judge_config("grade", args, values)
    if not values["answers"].value:
        raise UserError("--answers is missing; expected a JSONL file of answers")

    from ropd_jax.evaluation.grade_file import grade_stored

    options = {name: values[name].value for name in values if not name.startswith("config")}
    grade_stored(**options, teacher=config.teacher, seed=config.seed).show()
    return 0


def _judge_config(verb: str, args: list[str], values: flags.FlagValues) -> ConfigDict:
    """Parses the flags; the config (the default one without --config) holds HealthBench's judge, its teacher."""
    from ropd_jax import configs

    spec, rest = take(args, "config")
    config = load_config(spec) if spec else configs.default().lock()
    if spec:
        check_known(config, spec)
    define_config(verb, config, rest, values)
    parse(values, verb, rest)
    if not values["benchmark"].value:
        raise UserError(f"--benchmark is missing; expected one of ropd {verb} --help")
    return values["config"].value


def _serve_teacher(args: list[str]) -> int:
    from absl import flags

    values = flags.FlagValues()
    flags.DEFINE_string("host", "127.0.0.1", "", flag_values=values)
    flags.DEFINE_integer("port", 8808, "", lower_bound=0, upper_bound=65535, flag_values=values)
    flags.DEFINE_string("answer_key", "", "", flag_values=values)
    flags.DEFINE_float("latency_s", 0.0, "", lower_bound=0.0, flag_values=values)
    for name in ("fault_rate", "slip_rate", "wrong_verdict_rate"):
        flags.DEFINE_float(name, 0.0, "", lower_bound=0.0, upper_bound=1.0, flag_values=values)
    parse(values, "serve-teacher", args)
    options = {name: values[name].value for name in values if name not in ("host", "port")}

    from ropd_jax.teacher.scripted import server
    from ropd_jax.teacher.scripted.client import ScriptedClient

    server.serve(ScriptedClient(**options), host=values["host"].value, port=values["port"].value)
    return 0


VERBS: dict[str, tuple[Callable[[list[str]], int], str]] = {  # what runs, and its help or the module whose HELP it is
    "train": (_train, TRAIN_HELP),
    "data": (_data, DATA_HELP),
    "eval": (_eval, EVAL_HELP),
    "grade": (_grade, GRADE_HELP),
    "table": (_table, TABLE_HELP),
    "analyze": (_analyze, ANALYZE_HELP),
    "timeline": (_timeline, "ropd_jax.analysis.timeline"),
    "rejudge": (_rejudge, REJUDGE_HELP),
    "teach": (_teach, TEACH_HELP),
    "plan": (_plan, "ropd_jax.plan"),
    "export": (_export, EXPORT_HELP),
    "preflight": (_preflight, "ropd_jax.plan.preflight"),
    "tape": (_tape, "ropd_jax.cli.tape"),
    "serve-teacher": (_serve_teacher, SERVE_HELP),
}


# ---------------------------------------------------------------------------------------------------- logging


class _Stderr(logging.StreamHandler):
    """Writes to what ``sys.stderr`` is at that moment, so that lines appear above a progress bar, not through it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def _set_up_logging() -> None:
    root = logging.getLogger()
    if not any(isinstance(h, _Stderr) for h in root.handlers):
        root.addHandler(_Stderr())
    root.setLevel(logging.INFO)
    http = ("httpx", "httpx2", "httpcore", "httpcore2", "openai", "google_genai", "aiohttp.access")  # a line a call
    for name in ("absl", "jax", "orbax", "matplotlib", *http):
        logging.getLogger(name).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
