"""The page of file formats: what is in the directory of a run, and what is in each file."""

from __future__ import annotations

import importlib
import inspect
import json
import pathlib
from typing import Any

from docs.generator.markdown import code, from_docstring, quoted, table

ROOT = pathlib.Path(__file__).parents[2]
STORED = ROOT / "notebooks" / "mini_run"  # a run that is in the repository

FILES: dict[str, str] = {  # a path below the run's directory, with * for what differs -> what it holds
    "config.json": "the config as it is now, every key",
    "provenance.json": "hashes of the files and questions that the run began with, and the run that it was forked from",
    "metrics.jsonl": "the metrics, line by line with their step",
    "groups/step_*.jsonl": "one line per group of the step: everything that went into its rewards",
    "groups/step_*.tokens.npz": "the log-probability of each sampled token (`log.token_logprobs`)",
    "timeline.jsonl": "one line per span: what was done when",
    "status.json": "what the run is doing now",
    "tape.sqlite": "every reply of the teacher",
    "tape.sqlite-shm": "SQLite's, while the tape is open",
    "tape.sqlite-wal": "SQLite's, while the tape is open",
    "tape.parts/*.sqlite": "in a bucket: the rows of the tape since it was last uploaded whole",
    "spent.json": "what the teacher has cost, by role and step",
    "checkpoints/*": "one directory per saved step",
    "result.json": "the numbers of the finished run",
    "result_step_*.json": "the result of the run before it was extended",
    "curves.png": "reward, held-out accuracy, unscored share, length, entropy, gradient norm",
    "tensorboard/*": "the metrics for TensorBoard (`log.trackers`)",
    "trackers.json": "the id of the run at each tracker",
    "wandb/*": "Weights & Biases in offline mode",
    "mlruns/*": "MLflow without a tracking URI",
    "profile/*": "JAX's profiles (`log.profile_steps`)",
    "rollouts/step_*.jsonl.gz": "answers of a rollout server, until a checkpoint makes them unnecessary",
    "server_weights/*": "weights for a rollout server (`sampling.server.weights_dir`)",
    "eval/*": "results of `ropd eval RUN`",
    "stacks_*.txt": "all stacks, when nothing has moved for `log.watchdog_s`",
    "timeline.json": "what `ropd timeline` writes, a trace for ui.perfetto.dev",
    "timeline.png": "the same as a picture",
    "lock/*.json": "the process that writes here",
    "xla/*": "compiled programs of a run in a bucket",
}
FORMATS = {  # title -> the object whose docstring describes the format
    "groups/step_*.jsonl": "ropd_jax.workdir.groups:group_row",
    "groups/step_*.tokens.npz": "ropd_jax.workdir.token_logprobs",
    "metrics.jsonl": "ropd_jax.workdir.metrics",
    "timeline.jsonl": "ropd_jax.utils.tracing",
    "status.json": "ropd_jax.workdir.status",
    "tape.sqlite": "ropd_jax.teacher.tape.store",
    "spent.json": "ropd_jax.teacher.traffic.budget",
    "checkpoints/*/checksums": "ropd_jax.workdir.checksums",
    "lock/*.json": "ropd_jax.workdir.lock",
    "rollouts/step_*.jsonl.gz": "ropd_jax.training.answers_kept",
}
EXAMPLES = {"groups/step_*.jsonl": "groups/step_000047.jsonl", "metrics.jsonl": "metrics.jsonl"}  # in `STORED`
TEXT, ITEMS, KEYS = 60, 2, 14  # characters of a text, items of a list and keys of an object that an example shows

HEAD = """# Files of a run

What `--workdir` holds. Files for machines are JSON, one object per line if they end in `.jsonl`; a line that was cut by
a crash is ignored when the file is read. `ropd.open_run(DIR)` reads config, result, groups and metrics. A run in a
bucket has the same files ([Runs in buckets](../buckets.md)). [Checkpoints](../checkpoints.md) describes `checkpoints/`.

`groups/`, the tape and the results of evaluations hold texts that were paid for and can be private: they are created
readable by their owner only.
"""


def page() -> str:
    """The page."""
    parts = [HEAD, table(("File", "What it holds"), [(f"`{name}`", _cap(what)) for name, what in FILES.items()])]
    for name, place in FORMATS.items():
        module, _, inner = place.partition(":")
        found: Any = importlib.import_module(module)
        parts += [f"## {quoted(name)}", from_docstring(inspect.getdoc(getattr(found, inner) if inner else found))]
        if name in EXAMPLES:
            parts += ["A shortened line of a stored run:", code(example(STORED / EXAMPLES[name]), "json")]
    return "\n\n".join(parts) + "\n"


def example(path: pathlib.Path) -> str:
    """The longest line of a file of JSON lines, shortened."""
    row = json.loads(max(path.read_text(encoding="utf-8").splitlines(), key=len))
    return json.dumps(_shortened(row), indent=2, ensure_ascii=False)


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= TEXT else f"{value[:TEXT]}..."
    if isinstance(value, list):
        more = [f"... {len(value) - ITEMS} more"] if len(value) > ITEMS else []
        return [*map(_shortened, value[:ITEMS]), *more]
    if isinstance(value, dict):
        more = {"...": f"{len(value) - KEYS} more"} if len(value) > KEYS else {}
        return {key: _shortened(item) for key, item in list(value.items())[:KEYS]} | more
    return round(value, 4) if isinstance(value, float) else value


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]
