"""The config that a run's directory belongs to: stored as ``config.json`` and compared at each start (`changes`)."""

from __future__ import annotations

import functools
import json
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ropd_jax import configs
from ropd_jax.teacher.clients.endpoint import shown_address
from ropd_jax.types import UserError
from ropd_jax.utils.files import read_json, write_atomic
from ropd_jax.utils.paths import AnyPath, as_path, is_url
from ropd_jax.workdir import lock
from ropd_jax.workdir.changes import Changes, compare, flatten
from ropd_jax.workdir.kept import kept_steps

log = logging.getLogger(__name__)

CONFIG, PROVENANCE, RESULT = "config.json", "provenance.json", "result.json"
IGNORED = ("xla", lock.FOLDER)  # compile cache of a workdir in a bucket, and the lock; hidden files are ignored as well


def stored_config(run: AnyPath) -> ConfigDict:
    """The config of a run's directory, unlocked; missing keys get their defaults.

    Raises:
        UserError: no run is there, or its version has other keys.
    """
    path = as_path(run) / "config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); expected the directory of a run") from error
    cfg = configs.default()
    try:
        cfg.update(with_new_names(stored))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} does not fit this version of ropd_jax ({error}); use its own version") from error
    return cfg


def with_new_names(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config with the current names of renamed keys (`configs.RENAMED`), and with the behaviour of earlier
    versions for keys that they did not have (`configs.EARLIER`).

    User, password and query are removed from addresses, because earlier versions stored them.
    """
    new = _without_secrets(stored)
    for old, name in configs.RENAMED.items():
        section, _, key = old.rpartition(".")
        place = functools.reduce(lambda tree, part: tree.get(part, {}), section.split("."), new)
        if key in place:
            value = place.pop(key)
            opposite = name.endswith(configs.OPPOSITE)
            place[name.removesuffix(configs.OPPOSITE).rpartition(".")[2]] = (not value) if opposite else value
    values = flatten(new)
    for key, (value, matter) in configs.EARLIER.items():
        section, _, last = key.rpartition(".")
        if key not in values and any(values.get(name) for name in matter):
            new[section][last] = value
    return new


def _without_secrets(tree: Any) -> Any:
    """A copy of JSON values in which every ``base_url`` is as `shown_address` shows it."""
    if isinstance(tree, Mapping):
        return {k: shown_address(v) if k == "base_url" and isinstance(v, str) else _without_secrets(v)
                for k, v in tree.items()}  # fmt: skip
    return [_without_secrets(v) for v in tree] if isinstance(tree, list | tuple) else tree


def is_finished(workdir: pathlib.Path, steps: int, *, home: AnyPath | None = None) -> bool:
    """Whether the run in the directory has a result after ``steps`` steps; ``home`` as in `check_claim`."""
    return (workdir / RESULT).exists() and kept_steps(home or workdir)[-1:] == [steps]


def provenance(workdir: AnyPath) -> dict[str, Any]:
    """The origin of a run: ``contents``, hashes of the files it started with, and ``forked_from``; {} if unknown."""
    path = as_path(workdir) / PROVENANCE
    return read_json(path) if path.exists() else {}


def check_claim(
    workdir: pathlib.Path,
    config: Mapping[str, Any],
    contents: Mapping[str, str] | None = None,
    *,
    home: AnyPath | None = None,
) -> Changes | None:
    """Check whether a run of this config can use the directory; nothing is written.

    Args:
        workdir: the local directory of the run's files.
        config: nested JSON values.
        contents: hashes of its files (`workdir.contents`); None if they have not been read yet.
        home: the directory or bucket that the user named, with the checkpoints (`workdir.place`); None is ``workdir``.

    Returns:
        the differences from the config of the existing run; None if there is no run.

    Raises:
        UserError: the directory belongs to another config (the message shows the difference), holds something else, or
            is not writable.
    """
    path, name = workdir / CONFIG, home or workdir
    try:
        if not path.exists():
            if not is_url(name):
                _check_free(workdir)
            return None
        stored = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--workdir {name}: {error.strerror}; choose a directory that can be written") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); choose another --workdir") from error
    if not isinstance(stored, dict):
        raise UserError(f"{path} holds a {type(stored).__name__}; expected a JSON object; choose another --workdir")
    changes = compare(
        flatten(with_new_names(stored)),
        flatten(config),
        old_contents=provenance(workdir).get("contents"),
        contents=contents,
        done=max(kept_steps(name), default=0),
    )
    if refused := changes.refused:
        more = f"; and {len(refused) - 6} more" if len(refused) > 6 else ""
        raise UserError(
            f"--workdir {name} belongs to another config ({'; '.join(refused[:6])}{more}); give the config it was "
            f"started with, or start a new run from its checkpoint: --fork {name} --workdir NEW"
        )
    return changes


def _check_free(workdir: pathlib.Path) -> None:
    """Raise unless the directory is empty, or can be made. Reads only permissions: a test file would be a trace."""
    there = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not there.is_dir():
        raise UserError(f"--workdir {workdir}: {there} is a file; expected a directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--workdir {workdir}: {there} cannot be written; choose a directory that can be written")
    if there == workdir and any(not p.name.startswith(".") and p.name not in IGNORED for p in workdir.iterdir()):
        raise UserError(f"--workdir {workdir} is not empty and holds no run; choose another directory")


def claim(
    workdir: pathlib.Path,
    config: Mapping[str, Any],
    *,
    contents: Mapping[str, str] | None = None,
    forked_from: Mapping[str, Any] | None = None,
    home: AnyPath | None = None,
) -> None:
    """Assign the directory to this config, or check that it belongs to it, and log changes.

    The new config is stored as ``config.json``, the hashes of its files and its origin as ``provenance.json``. If a
    finished run is extended, its result is renamed to ``result_step_000048.json``.

    Args:
        workdir: created if missing.
        config, contents, home: see `check_claim`.
        forked_from: the run and step that a new run starts from.

    Raises:
        UserError: see `check_claim`.
    """
    changes = check_claim(workdir, config, contents, home=home)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if changes is not None:
            _log(changes)
            if "steps" in changes.keys:
                _set_result_aside(workdir, max(kept_steps(home or workdir), default=0))
        _write(workdir / CONFIG, json.loads(json.dumps(config)))
        origin = provenance(workdir)
        now = {"contents": {**origin.get("contents", {}), **(contents or {})}}
        if forked := origin.get("forked_from", forked_from):
            now["forked_from"] = dict(forked)
        if contents is not None or forked:
            _write(workdir / PROVENANCE, now)
    except OSError as error:
        raise UserError(
            f"--workdir {home or workdir}: {error.strerror}; choose a directory that can be written"
        ) from error


def _write(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text)


def _log(changes: Changes) -> None:
    if changes.free:
        log.info("the config has changed; the run's results stay the same: %s", "; ".join(changes.free))
    if changes.numerics:
        log.warning("the config has changed; from here on the run is the same up to rounding: %s",
                    "; ".join(changes.numerics))  # fmt: skip
    for note in changes.notes:
        log.warning("%s", note)


def _set_result_aside(workdir: pathlib.Path, done: int) -> None:
    if (workdir / RESULT).exists():
        os.replace(workdir / RESULT, workdir / f"result_step_{done:06d}.json")
