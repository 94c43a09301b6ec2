"""Two configs of one run, key by key: can it continue with the second one?

By the classes of `ropd_jax.workdir.keys`, and by two rules:

``steps``           can grow, or shrink to the number of finished steps. With a constant schedule, a run of 100 steps
                    extended to 200 is the run of 200 steps, bit for bit (on CPU, without ``stream.staleness``).
a falling schedule  ends at ``optim.schedule_steps``, or at ``steps`` if that is 0. If its end would move with
                    ``steps``, the user chooses: ``optim.schedule_steps`` of the old end keeps the planned curve;
                    another number switches to another curve at the step where the run continues.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ropd_jax import configs
from ropd_jax.types import UserError
from ropd_jax.workdir.keys import FREE, IDENTITY, NUMERICS, QUESTIONS, key_of

ABSENT = "absent"
RETIRED = ("log.tensorboard",)  # keys of earlier versions that did not affect what a run computes
WARNED = ("method", "teacher.index")  # only a warning: a method's file can be fixed, and an index can grow
ONLY_WITH = {"teacher.calibration": "ropd.reliability_weights"}  # key -> the setting without which it is only recorded
REACHED_BY = (  # keys of a list entry that locate a model or a file but do not identify it (questions are compared)
    *("base_url", "api_key_env", "headers"),
    *("path", "heldout_path"),
)


@dataclasses.dataclass(frozen=True)
class Changes:
    """The differences, as readable texts (``optim.remat: block there, none now``).

    Attributes:
        free, numerics: changes of keys of these classes.
        refused: changes with which the run cannot continue.
        keys: all keys whose values differ.
        notes: further information for the user.
    """

    free: tuple[str, ...] = ()
    numerics: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def compare(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    old_contents: Mapping[str, str] | None = None,
    contents: Mapping[str, str] | None = None,
    done: int = 0,
) -> Changes:
    """The changes between two configs, by key (`flatten`); a missing key has its default value.

    Args:
        old_contents: hashes of the files that the run started with (`contents`).
        contents: hashes of the current files; None before they are read: then keys that depend on them are not refused.
        done: finished steps of the newest checkpoint.

    Raises:
        UserError: fewer steps than are finished, or a schedule whose end would move implicitly.
    """
    defaults, old_contents = flat_defaults(), old_contents or {}
    old = defaults | {name: value for name, value in _plain(old).items() if name not in RETIRED}
    new = defaults | _plain(new)
    names = sorted(k for k in old.keys() | new.keys() if old.get(k, ABSENT) != new.get(k, ABSENT))
    found: dict[str, list[str]] = {kind: [] for kind in (FREE, NUMERICS, IDENTITY)}
    for name in names:
        kind, more = _kind(name, old, new, old_contents, contents)
        if kind:
            found[kind].append(f"{name}: {_shown(old, name)} there, {_shown(new, name)} now{more}")
    notes: list[str] = []
    for name in sorted(old_contents.keys() & (contents or {}).keys() - set(names)):
        if old_contents[name] != (contents or {})[name] and not _only_recorded(name, old, new):
            (notes if name in WARNED else found[IDENTITY]).append(_other_content(name, new.get(name)))
    if "steps" in names and new["steps"] < done:
        raise UserError(
            f"steps={new['steps']}, but the run has finished {done}; expected at least {done}, or start another run "
            "from an earlier checkpoint: --fork RUN@STEP --workdir NEW"
        )
    notes += _schedule(old, new, done)
    if old["steps"] == done < new["steps"] and new["stream.staleness"]:
        notes.append(f"step {done} is sampled by the newest policy, not by the previous one: the run had ended")
    free, numerics, refused = (tuple(found[kind]) for kind in (FREE, NUMERICS, IDENTITY))
    return Changes(free, numerics, refused, tuple(names), tuple(notes))


def _kind(
    name: str,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    old_contents: Mapping[str, str],
    contents: Mapping[str, str] | None,
) -> tuple[str, str]:
    """(class of a change, a remark); the class is "" if it depends on contents that are not read yet."""
    key = key_of(name)
    if key is None or _only_recorded(name, old, new):
        return (IDENTITY if key is None else FREE), ""
    if not key.by_content:
        return key.resume, ""
    if contents is None:
        return "", ""
    was = old_contents.get(name)
    if was is not None and was == contents.get(name):
        return FREE, ", with the same content"
    return IDENTITY, ", with other content" if was else ", and no content is known to compare"


def _only_recorded(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the run only records the key's value, before and after."""
    switch = ONLY_WITH.get(name)
    return switch is not None and not (old[switch] or new[switch])


def flat_defaults() -> dict[str, Any]:
    """The default of every key, after a JSON round trip."""
    return _plain(flatten(configs.default().to_dict()))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _shown(values: Mapping[str, Any], name: str) -> str:
    text = " ".join(str(values.get(name, ABSENT)).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values, where entries of a list of models lack the keys that only locate the model."""
    plain = json.loads(json.dumps(dict(values)))
    for name, value in plain.items():
        if isinstance(value, list):
            plain[name] = [{k: v for k, v in one.items() if k not in REACHED_BY} if isinstance(one, dict) else one
                           for one in value]  # fmt: skip
    return plain


def _other_content(name: str, value: Any) -> str:
    if name in QUESTIONS:
        return f"the {QUESTIONS[name]} questions differ from those at the start of the run ({name}: {value!r})"
    return f"{name}: {value} has different content than at the start of the run"


def _schedule(old: Mapping[str, Any], new: Mapping[str, Any], done: int) -> list[str]:
    """Notes for a schedule whose end moves, or that has ended; raises if the user has not chosen."""
    if new["optim.schedule"] == "constant" or new["optim.schedule"] != old["optim.schedule"]:
        return []
    was, now = (v["optim.schedule_steps"] or v["steps"] for v in (old, new))
    shown = f"optim.schedule={new['optim.schedule']!r}"
    if was != now and not new["optim.schedule_steps"]:
        raise UserError(
            f"steps: {old['steps']} there, {new['steps']} now, but {shown} was planned to fall to 0 at step {was}; "
            f"choose with one key: --config.optim.schedule_steps={was} keeps that curve, "
            f"--config.optim.schedule_steps={now} switches to the curve of {now} steps at step {done}"
        )
    if was != now:
        return [f"{shown} fell to 0 at step {was}, but now at step {now}: the learning rate jumps at step {done}"]
    if new["steps"] > now and new["steps"] != old["steps"]:
        return [f"{shown} falls to 0 at step {now}: the steps after it train with a learning rate of 0"]
    return []
