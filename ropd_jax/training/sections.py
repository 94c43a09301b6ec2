"""A run's config as frozen sections. `training.setup` reads the config once; functions below it take sections.

Each section has the fields of one section of ``configs.default()``, with the same names and meanings; the comments
there explain them. `RunConfig` holds all sections; only `training.setup` and ``train.py`` use it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, TypeVar

from ropd_jax.core.optim import make_optimizer
from ropd_jax.models.lora import Lora

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """``cfg.sampling``: the student's answers. Its section ``server`` is `sampling.server_config.ServerConfig`."""

    rollouts: int
    max_tokens: int
    temperature: float
    resample: int
    chunk: int
    engine: str


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """``cfg.loss``, except what belongs to the method (clips and advantages)."""

    aggregation: str
    ratio: str
    is_cap: float
    is_clip: bool
    kl_coef: float
    kl_kind: str
    kl_on: str
    entropy_coef: float
    overlong: str
    overlong_buffer: int
    min_scored: int
    dual_clip: float

    @property
    def terms_on_all(self) -> bool:
        """Whether groups of equal rewards have a gradient as well, from the KL and entropy terms."""
        return self.kl_on == "valid" and bool(self.kl_coef or self.entropy_coef)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """``cfg.optim``: the optimizer, and how an update is split, laid out and compiled."""

    lr: float
    schedule: str
    schedule_steps: int
    warmup_steps: int
    b1: float
    b2: float
    eps: float
    weight_decay: float
    decay_mask: str
    clip_norm: float
    moments: str
    minibatches: int
    row_len: int
    shared_prompts: bool
    microbatch: int
    remat: str
    attention: str
    logprob_chunk: int
    xla_options: str

    @functools.lru_cache(maxsize=16)  # noqa: B019  # few and small; one object per setting, so that programs are shared
    def make(self, steps: int):
        """The optax transformation; its schedule spans all updates of ``schedule_steps`` steps, or else ``steps``."""
        return make_optimizer(
            lr=self.lr,
            schedule=self.schedule,
            warmup_steps=self.warmup_steps,
            total_steps=(self.schedule_steps or steps) * self.minibatches,
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            decay_mask=self.decay_mask,
            clip_norm=self.clip_norm,
            moments=self.moments,
        )


@dataclasses.dataclass(frozen=True)
class OverlapConfig:
    """``cfg.stream``: what overlaps with what."""

    groups: int
    deterministic: bool
    staleness: int
    straggler_timeout_s: float
    cap: float


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """``cfg.checkpoint``."""

    every: int
    keep: int
    keep_best: int
    best_by: str


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """``cfg.eval``: evaluation during the run, on held-out data and on benchmarks."""

    every: int
    size: int
    prompts_at_once: int
    judged: int
    sampled: bool
    benchmarks: tuple[str, ...]
    benchmarks_every: int
    benchmarks_k: int
    benchmarks_limit: int
    benchmarks_data: str

    @property
    def benchmark_steps(self) -> int:
        """Number of steps between evaluations on ``benchmarks``."""
        return self.benchmarks_every or self.every


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """``cfg.log``."""

    groups: bool
    token_logprobs: str
    trackers: tuple[str, ...]
    profile_steps: str
    watchdog_s: float


@dataclasses.dataclass(frozen=True)
class UpdateConfig:
    """Everything that the compiled update depends on.

    Attributes:
        dtype: in which the student computes.
        lora: the adapters; rank 0 trains all weights.
        temperature: the sampling temperature, at which log-probs are taken.
        max_tokens: maximum length of an answer, the divisor of Dr. GRPO.
    """

    dtype: str
    lora: Lora
    temperature: float
    max_tokens: int
    loss: LossConfig
    optim: OptimConfig


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The whole config, frozen.

    Attributes:
        prompts_per_step: P.
        max_failed_frac, failed_window: see `training.failure_gate`.
        exact_weight: weight of the exact grade in a reward.
        context_tokens: the maximum number of tokens that another context adds to a prompt (`training.scoring`).
    """

    seed: int
    steps: int
    prompts_per_step: int
    max_failed_frac: float
    failed_window: int
    exact_weight: float
    context_tokens: int
    dtype: str
    lora: Lora
    sampling: SamplingConfig
    loss: LossConfig
    optim: OptimConfig
    overlap: OverlapConfig
    checkpoint: CheckpointConfig
    eval: EvalConfig
    log: LogConfig

    @property
    def update(self) -> UpdateConfig:
        """The part that the update depends on."""
        temperature = self.sampling.temperature or 1.0
        return UpdateConfig(self.dtype, self.lora, temperature, self.sampling.max_tokens, self.loss, self.optim)


def section(kind: type[T], values: Mapping[str, Any]) -> T:
    """A section of this kind, with the values of the same names; other values are ignored."""
    return kind(**{f.name: values[f.name] for f in dataclasses.fields(kind)})  # type: ignore[arg-type]
