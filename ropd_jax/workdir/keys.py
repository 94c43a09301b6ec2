"""Every key of a config in one table: its values, and whether a run can continue after it was changed.

    identity   part of what the run computes: a run continues only with the same value. ``ropd train --fork`` starts a
               new run from its checkpoint with any other
    numerics   the same computation, to rounding: a run continues, with one line in the log
    free       requests, samples and updates do not depend on it: a run continues

``steps`` and ``optim.schedule_steps`` are free within the rules of `ropd_jax.workdir.changes`. A key that names a file,
a checkpoint or questions is identity *by content*: another path with the same content is not a change, and the same
path with other content is (`ropd_jax.workdir.contents`). docs/resume.md shows this table; a test keeps it complete.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from ropd_jax import configs
from ropd_jax.types import UserError

IDENTITY, NUMERICS, FREE = "identity", "numerics", "free"
INT32, INT64 = 2**31 - 1, 2**63 - 1  # bounds that errors do not show
QUESTIONS = {"data.path": "training", "data.heldout_path": "held-out"}  # compared by the questions themselves


@dataclasses.dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        kind: of its value: flag, whole, number, text, list (a tuple or a list), table (a section that takes any keys).
        low, high: bounds of a number, both allowed unless ``above`` or ``below`` is set; None for no bound.
        optional: None is a value.
        why: the reason for a bound, or a usual value, for the error.
        resume: identity, numerics or free.
        by_content: compare the content that the value names instead of the value.
    """

    kind: str
    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False
    optional: bool = False
    why: str = ""
    resume: str = IDENTITY
    by_content: bool = False

    @property
    def expected(self) -> str:
        """``a number above 0``, in words."""
        kinds = {"flag": "true or false", "whole": "a whole number", "number": "a number", "text": "a text",
                 "list": "a tuple, e.g. ('a', 'b')", "table": "a section"}  # fmt: skip
        words = kinds[self.kind]
        low, high = (f"{x:g}" if isinstance(x, float) else str(x) for x in (self.low, self.high))
        if self.high is not None and self.high not in (INT32, INT64):
            words += f" above {low}" if self.above else f" from {low}"
            words += f", below {high}" if self.below else f" to {high}" if not self.above else f" and at most {high}"
        elif self.low is not None:
            words += f" above {low}" if self.above else f", {low} or more"
        return words + (", or None" if self.optional else "") + (f" ({self.why})" if self.why else "")

    def takes(self, value: Any) -> bool:
        """Whether this is a value of the key: of its kind (a bool is not a number), finite and within the bounds."""
        if value is None:
            return self.optional
        if self.kind in ("whole", "number"):
            of_kind = numbers.Integral if self.kind == "whole" else numbers.Real
            if isinstance(value, bool) or not isinstance(value, of_kind) or not math.isfinite(value):
                return False
            n: Any = value
            low = self.low is None or (n > self.low if self.above else n >= self.low)
            return low and (self.high is None or (n < self.high if self.below else n <= self.high))
        if self.kind == "text":
            return isinstance(value, str) and "\0" not in value
        kinds = {"flag": bool, "list": list | tuple | str, "table": Mapping | ConfigDict}
        return isinstance(value, kinds[self.kind])


def _identity(key: Key) -> Key:
    return key


def _numerics(key: Key) -> Key:
    return dataclasses.replace(key, resume=NUMERICS)


def _free(key: Key) -> Key:
    return dataclasses.replace(key, resume=FREE, by_content=False)


def _whole(low: int, high: int = INT32, why: str = "") -> Key:
    return Key("whole", low, high, why=why)


def _least(low: float, why: str = "") -> Key:
    return Key("number", low, why=why)


def _above(low: float, why: str = "") -> Key:
    return Key("number", low, above=True, why=why)


def _between(low: float, high: float, *, above: bool = False, below: bool = False, why: str = "") -> Key:
    return Key("number", low, high, above, below, why=why)


def _none_or(key: Key) -> Key:
    return dataclasses.replace(key, optional=True)


FLAG, TEXT, LIST, TABLE = Key("flag"), Key("text"), Key("list"), Key("table")
SHARE = _between(0, 1)
CONTENT = Key("text", by_content=True)
OFF = "0 is off"
ALL = "0 is all"
SEED = _whole(0, INT64)

_ROLE: dict[str, Key] = {  # of teacher.reference and the other roles
    "provider": _identity(TEXT),
    "base_url": _free(TEXT),
    "api_key_env": _free(TEXT),
    "headers": _free(TABLE),
    "model": _identity(TEXT),
    "template": CONTENT,
    "temperature": _none_or(_least(0, "None is the provider's own")),
    "max_output_tokens": _whole(1),
    "extra": _identity(TABLE),
}
ROLES = ("reference", "rubricator", "verifier", "scorer", "judge")
_ROLES = {f"teacher.{role}.{name}": key for role in ROLES[:-1] for name, key in _ROLE.items()}
_JUDGE = {f"teacher.judge.{name}": _free(key) for name, key in _ROLE.items()}  # it does not affect rewards

KEYS: dict[str, Key] = {
    "seed": _whole(0, 2**32 - 1),
    "steps": _free(_whole(1)),
    "method": CONTENT,
    "compile_cache": _free(FLAG),
    "student.checkpoint": CONTENT,
    "student.dtype": _identity(TEXT),
    "student.chat_template": CONTENT,
    "student.enable_thinking": _none_or(FLAG),
    "student.lora.rank": _whole(0, why="0 is full fine-tuning; adapters have 4 to 64"),
    "student.lora.alpha": _above(0, "e.g. the rank or twice it"),
    "student.lora.targets": _identity(LIST),
    "student.lora.base_dtype": _identity(TEXT),
    "data.source": _identity(TEXT),
    "data.task": _identity(TEXT),
    "data.options": _identity(TABLE),
    "data.path": CONTENT,
    "data.heldout_path": CONTENT,
    "data.seed": SEED,
    "data.heldout_seed": SEED,
    "data.heldout": FLAG,
    "data.size": _none_or(_whole(0, why=ALL)),
    "data.heldout_size": _none_or(_whole(0, why=ALL)),
    "data.sources": _identity(LIST),
    "data.heldout_from": _identity(TEXT),
    "data.curriculum": _least(0, f"{OFF}; else above 1, e.g. 4"),
    "data.template": _identity(TEXT),
    "data.system": _identity(TEXT),
    "data.prompts_per_step": _whole(1),
    "data.max_prompt_tokens": _whole(1),
    "sampling.rollouts": _whole(2, why="a group needs at least 2 to have a baseline"),
    "sampling.max_tokens": _whole(1),
    "sampling.temperature": _above(0, "at 0 the rollouts of a group are equal; 1.0 in the paper"),
    "sampling.top_k": _whole(0, why=ALL),
    "sampling.top_p": _between(0, 1, above=True, why="1 keeps all"),
    "sampling.prompts_at_once": _numerics(_whole(0, why=ALL)),
    "sampling.resample": _whole(0, why=OFF),
    "sampling.chunk": _numerics(_whole(1)),
    "sampling.cache_dtype": _identity(TEXT),
    "sampling.pool": _numerics(_between(0, 1, above=True, why="1 is room for all rows at full length")),
    "sampling.attention": _numerics(TEXT),
    "sampling.copy_weights": _numerics(FLAG),
    "sampling.stop": _identity(LIST),
    "sampling.engine": _identity(TEXT),
    "sampling.server.base_url": _free(TEXT),
    "sampling.server.model": _free(TEXT),
    "sampling.server.api_key_env": _free(TEXT),
    "sampling.server.sync": _free(TEXT),
    "sampling.server.sync_every": _whole(0, why="0 is never"),
    "sampling.server.weights_dir": _free(TEXT),
    "sampling.server.answers_per_request": _numerics(_whole(0, why=ALL)),
    "sampling.server.concurrency": _free(_whole(1)),
    "sampling.server.timeout_s": _free(_above(0)),
    "sampling.server.attempts": _free(_whole(1)),
    "sampling.server.wait_s": _free(_least(0)),
    "sampling.server.max_gap": _free(_least(0, OFF)),
    "teacher.provider": _identity(TEXT),
    "teacher.base_url": _free(TEXT),
    "teacher.api_key_env": _free(TEXT),
    "teacher.organization": _free(TEXT),
    "teacher.project": _free(TEXT),
    "teacher.vertexai": _free(FLAG),
    "teacher.location": _free(TEXT),
    "teacher.headers": _free(TABLE),
    "teacher.concurrency": _free(_whole(1)),
    "teacher.min_concurrency": _free(_whole(1)),
    "teacher.requests_per_minute": _free(_none_or(_above(0, "None: no bound"))),
    "teacher.tokens_per_minute": _free(_none_or(_above(0, "None: no bound"))),
    "teacher.timeout_s": _free(_above(0)),
    "teacher.attempts": _free(_whole(1)),
    "teacher.max_wait_s": _free(_above(0)),
    "teacher.outage_wait_s": _free(_least(0, OFF)),
    "teacher.hedge_after_s": _free(_least(0, OFF)),
    "teacher.order": _free(TEXT),
    "teacher.max_answer_chars": _whole(0, why="0 never cuts"),
    "teacher.max_failed_frac": _free(SHARE),
    "teacher.failed_window": _free(_whole(1)),
    "teacher.check": _free(FLAG),
    "teacher.references": _whole(1),
    "teacher.references_from": _identity(LIST),
    "teacher.index": CONTENT,
    **_ROLES,
    "teacher.verifier.form": _identity(TEXT),
    "teacher.verifier.answers_per_call": _whole(0, why=ALL),
    "teacher.verifier.criteria_per_call": _whole(0, why=ALL),
    "teacher.verifier.examples": _whole(0, 8, why="an even number"),
    "teacher.verifier.votes": _whole(1, why="an odd number: an even one can tie"),
    "teacher.verifier.panel": _identity(LIST),
    "teacher.verifier.min_agreement": _between(0.5, 1),
    **_JUDGE,
    "teacher.tape.mode": _free(TEXT),
    "teacher.tape.path": _free(TEXT),
    "teacher.calibration": CONTENT,
    "teacher.prices": _free(TEXT),
    "teacher.budget.usd": _free(_least(0, "0: no cap")),
    "teacher.budget.tokens": _free(_whole(0, INT64, "0: no cap")),
    "teacher.budget.calls": _free(_whole(0, INT64, "0: no cap")),
    "teacher.screen_criteria": _identity(FLAG),
    "teacher.rubric_reuse": _identity(TEXT),
    "teacher.rubric_epochs": _whole(1),
    "teacher.health.repeat_frac": SHARE,
    "teacher.scripted.answer_key": CONTENT,
    "teacher.scripted.latency_s": _free(_least(0)),
    "teacher.scripted.fault_rate": SHARE,
    "teacher.scripted.slip_rate": SHARE,
    "teacher.scripted.wrong_verdict_rate": SHARE,
    "teacher.scripted.noise": CONTENT,
    "teacher.scripted.bias": _identity(TEXT),
    "teacher.scripted.labels": CONTENT,
    "teacher.scripted.style": _identity(TEXT),
    "rewards.exact_weight": _between(0, 1, below=True, why="0 is off; method=rlvr is 1"),
    "ropd.rubrics": _identity(TEXT),
    "ropd.rubric_per": _identity(TEXT),
    "ropd.blind": _identity(FLAG),
    "ropd.see_rollouts": _identity(FLAG),
    "ropd.pool_references": _identity(FLAG),
    "ropd.least_criteria": _whole(1),
    "ropd.most_criteria": _whole(1),
    "ropd.variance_weights": _identity(FLAG),
    "ropd.reliability_weights": _identity(FLAG),
    "ropd.dropout": _between(0, 1, below=True, why="0 is off"),
    "ropd.advantage": _identity(TEXT),
    "ropd.references_pass": SHARE,
    "context.max_tokens": _whole(1),
    "rgsd.mode": _identity(TEXT),
    "rgsd.beta": _between(0, 1, why="0 is the forward KL, 1 the reverse KL"),
    "rgsd.top_k": _whole(1),
    "rcsd.criteria": _whole(1),
    "cort.bound": _above(0, why="0 would be method=ropd"),
    "cripo.beta": _least(0),
    "cripo.warmup_steps": _whole(0),
    "cripo.margin": _least(0),
    "evolving.active": _whole(1),
    "evolving.new": _whole(1),
    "t_judge.references": _identity(FLAG),
    "ovd.mode": _identity(TEXT),
    "ovd.threshold": _whole(0, 9),
    "rar.rubrics": _identity(TEXT),
    "rar.mode": _identity(TEXT),
    "lopd.checkpoint": CONTENT,
    "lopd.mode": _identity(TEXT),
    "lopd.beta": _between(0, 1, why="0 is the forward KL, 1 the reverse KL"),
    "lopd.dtype": _identity(TEXT),
    "lopd.fsdp": _numerics(_whole(-1, why="0 is the student's mesh")),
    "lopd.tp": _numerics(_whole(1)),
    "exopd.scale": _least(0, "1 is lopd"),
    "gad.warmup_steps": _whole(0),
    "gad.lr": _above(0),
    "gad.b1": _between(0, 1, below=True),
    "gad.b2": _between(0, 1, below=True),
    "gad.clip_norm": _above(0, "1e9 never clips"),
    "loss.normalize_std": _identity(FLAG),
    "loss.aggregation": _identity(TEXT),
    "loss.clip_low": _least(0, "0.2 in the paper"),
    "loss.clip_high": _least(0, "0.28 in the paper"),
    "loss.dual_clip": _least(0, f"{OFF}; else above 1, 3.0 in the released code"),
    "loss.ratio": _identity(TEXT),
    "loss.is_cap": _least(0, OFF),
    "loss.is_clip": _identity(FLAG),
    "loss.kl_coef": _least(0, OFF),
    "loss.kl_kind": _identity(TEXT),
    "loss.kl_on": _identity(TEXT),
    "loss.entropy_coef": _least(0, OFF),
    "loss.overlong": _identity(TEXT),
    "loss.overlong_buffer": _whole(0),
    "loss.min_scored": _whole(2, why="a baseline needs 2"),
    "optim.lr": _above(0),
    "optim.schedule": _identity(TEXT),
    "optim.schedule_steps": _free(_whole(0, why="0 is steps")),
    "optim.warmup_steps": _whole(0),
    "optim.b1": _between(0, 1, below=True),
    "optim.b2": _between(0, 1, below=True),
    "optim.eps": _above(0),
    "optim.weight_decay": _least(0),
    "optim.decay_mask": _identity(TEXT),
    "optim.clip_norm": _above(0, "1e9 never clips"),
    "optim.moments": _identity(TEXT),
    "optim.minibatches": _whole(1),
    "optim.row_len": _numerics(_whole(0, why="0 is a row for each sequence")),
    "optim.shared_prompts": _numerics(FLAG),
    "optim.microbatch": _numerics(_whole(0, why=ALL)),
    "optim.remat": _numerics(TEXT),
    "optim.attention": _numerics(TEXT),
    "optim.logprob_chunk": _numerics(_whole(1)),
    "optim.xla_options": _numerics(TEXT),
    "stream.groups": _numerics(_whole(0, why=OFF)),
    "stream.deterministic": _numerics(FLAG),
    "stream.staleness": _whole(0, 1, "0 is strictly on-policy, 1 is one step behind"),
    "stream.straggler_timeout_s": _least(0, OFF),
    "stream.cap": _above(0),
    "mesh.fsdp": _numerics(_whole(-1, why="-1 takes the devices that tp leaves")),
    "mesh.tp": _numerics(_whole(1)),
    "mesh.update_fsdp": _numerics(_whole(-1, why="0 is mesh.fsdp")),
    "mesh.update_tp": _numerics(_whole(0, why="0 is mesh.tp")),
    "mesh.sample_fsdp": _numerics(_whole(-1, why="0 is mesh.fsdp")),
    "mesh.sample_tp": _numerics(_whole(0, why="0 is mesh.tp")),
    "mesh.ep": _numerics(_whole(1)),
    "mesh.cp": _numerics(_whole(1)),
    "checkpoint.every": _free(_whole(1)),
    "checkpoint.keep": _free(_whole(1)),
    "checkpoint.keep_best": _free(_whole(0, why=OFF)),
    "checkpoint.best_by": _free(TEXT),
    "eval.every": _free(_whole(1)),
    "eval.size": _free(_whole(0, why=ALL)),
    "eval.prompts_at_once": _free(_whole(1)),
    "eval.judged": _free(_whole(0)),
    "eval.sampled": _free(FLAG),
    "eval.benchmarks": _free(LIST),
    "eval.benchmarks_every": _free(_whole(0, why="0 is eval.every")),
    "eval.benchmarks_k": _free(_whole(1)),
    "eval.benchmarks_limit": _free(_whole(0, why=ALL)),
    "eval.benchmarks_data": _free(TEXT),
    "log.groups": _free(FLAG),
    "log.token_logprobs": _free(Key("text", why="off, on, or before_after with a second pass")),
    "log.trackers": _free(LIST),
    "log.profile_steps": _free(TEXT),
    "log.watchdog_s": _free(_least(0, OFF)),
}


def key_of(name: str) -> Key | None:
    """The row of a key, also of one inside a section that takes any keys; None for a key that this version lacks."""
    if name in KEYS:
        return KEYS[name]
    parts = name.split(".")
    sections = (".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))
    return next((KEYS[s] for s in sections if s in KEYS and KEYS[s].kind == "table"), None)


def check_values(cfg: ConfigDict) -> None:
    """Reject invalid values: of another kind, not finite, or out of bounds.

    Raises:
        UserError: the key, its value, what was expected and how to write it.
    """
    default = configs.default()
    for name, key in KEYS.items():
        section, _, last = name.rpartition(".")
        place = configs.lookup(cfg, section) if section else cfg
        if not hasattr(place, "keys") or last not in place:
            raise UserError(f"the config has no {name}; expected every key: start from ropd_jax.configs.default()")
        if not key.takes(place[last]):
            remedy = f"write --config.{name}={_shown(configs.lookup(default, name))}, for example"
            raise UserError(f"{name}={_quoted(place[last])}; expected {key.expected}; {remedy}")


def _quoted(value: Any) -> str:
    shown = repr(value.to_dict() if isinstance(value, ConfigDict) else value)
    return " ".join((shown if len(shown) <= 80 else f"{shown[:77]}...").split())


def _shown(value: Any) -> str:
    return str(value) if not isinstance(value, ConfigDict | tuple) else f'"{value}"'


def table_rows() -> Iterator[tuple[str, str, str, str]]:
    """(key, default, values, class) of each row, as docs/resume.md shows them."""
    default = configs.default()
    for name, key in KEYS.items():
        value = configs.lookup(default, name)
        value = "{}" if isinstance(value, ConfigDict) else repr(value)
        yield name, value, key.expected, key.resume + (" (by content)" if key.by_content else "")
