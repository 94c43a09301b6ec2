"""The config that a run's directory belongs to: kept as ``config.json``, compared at each start."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ropd_jax import configs
from ropd_jax.teacher.clients.endpoint import shown_address
from ropd_jax.types import UserError
from ropd_jax.utils.files import write_atomic
from ropd_jax.utils.paths import AnyPath, as_path

MAY_CHANGE = (  # change nothing that a run computes: one that a budget or failures stopped can go on with other ones
    "teacher.budget.", "teacher.prices", "teacher.concurrency", "teacher.min_concurrency",
    "teacher.requests_per_minute", "teacher.tokens_per_minute", "teacher.timeout_s", "teacher.attempts",
    "teacher.max_wait_s", "teacher.outage_wait_s", "teacher.hedge_after_s", "teacher.order", "teacher.max_failed_frac",
    "teacher.failed_window", "teacher.check", "log.watchdog_s",
    "mesh.", "optim.xla_options",  # the same numbers to rounding, on another slice
)  # fmt: skip


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def stored_config(run: AnyPath) -> ConfigDict:
    """The config of a run's directory, unlocked; keys that it did not have yet are the default's.

    Raises:
        UserError: no run is there, or one of a version with other keys.
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
        raise UserError(f"{path} does not fit this version of ropd_jax ({error}); use the one that made it") from error
    return cfg


def with_new_names(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config with the present names of keys that were renamed since (`configs.RENAMED`).

    An address has no user, password or query: earlier versions stored them.
    """
    new = _without_secrets(stored)
    for old, name in configs.RENAMED.items():
        section, _, key = old.rpartition(".")
        place = functools.reduce(lambda tree, part: tree.get(part, {}), section.split("."), new)
        if key in place:
            value = place.pop(key)
            opposite = name.endswith(configs.OPPOSITE)
            place[name.removesuffix(configs.OPPOSITE).rpartition(".")[2]] = (not value) if opposite else value
    return new


def _without_secrets(tree: Any) -> Any:
    """A copy of JSON values in which every ``base_url`` is as `shown_address` shows it."""
    if isinstance(tree, Mapping):
        return {k: shown_address(v) if k == "base_url" and isinstance(v, str) else _without_secrets(v)
                for k, v in tree.items()}  # fmt: skip
    return [_without_secrets(v) for v in tree] if isinstance(tree, list | tuple) else tree


def claim(workdir: pathlib.Path, config: Mapping[str, Any], *, shown: str | os.PathLike[str] = "") -> None:
    """Make the directory this config's own, or check that it is.

    Args:
        workdir: created when absent.
        config: nested, of JSON values; kept as ``config.json``.
        shown: how the user named the directory, for errors; "" is ``workdir``.

    Keys of ``MAY_CHANGE`` may differ; the new values are kept.

    Raises:
        UserError: the directory belongs to another config (the difference is shown), holds something else, or
            cannot be written.
    """
    path, name = workdir / "config.json", shown or workdir
    new = json.loads(json.dumps(config))
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            old = with_new_names(stored)
        elif any(workdir.iterdir()):
            raise UserError(f"--workdir {name} is not empty and holds no run; choose another directory")
        else:
            write_atomic(path, json.dumps(new, indent=2) + "\n")
            return
    except OSError as error:
        raise UserError(f"--workdir {name}: {error.strerror}; choose a directory that can be written") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); choose another --workdir") from error
    a, b = flatten(old), flatten(new)
    changed = [k for k in sorted(a.keys() | b.keys()) if a.get(k, "absent") != b.get(k, "absent")]
    secret = stored != _without_secrets(stored)  # an earlier version stored the address with a password
    if all(k.startswith(MAY_CHANGE) for k in changed) and (changed or secret):
        write_atomic(path, json.dumps(new, indent=2) + "\n")
    elif changed:
        shown = "; ".join(f"{k}: {a.get(k, 'absent')} there, {b.get(k, 'absent')} now" for k in changed[:6])
        more = f"; and {len(changed) - 6} more" if len(changed) > 6 else ""
        raise UserError(
            f"--workdir {name} belongs to another config ({shown}{more}); choose another --workdir, "
            "or give the config it was started with"
        )
