"""Values of a run that cannot work, found before minutes are lost or the moment they appear."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from ropd_jax.core.losses import AGGREGATIONS, KL_KINDS, RATIOS
from ropd_jax.core.moments import MOMENTS
from ropd_jax.core.optim import SCHEDULES
from ropd_jax.core.rewards import OVERLONG
from ropd_jax.models.attention import KERNELS
from ropd_jax.models.config import ModelConfig
from ropd_jax.models.transformer import REMAT
from ropd_jax.parallel import hosts
from ropd_jax.parallel.xla_options import xla_options
from ropd_jax.teacher.build import role_of
from ropd_jax.types import UserError
from ropd_jax.workdir.config import flatten


def check_config(cfg: ConfigDict) -> None:
    """Values that cannot work, alone or together, found before minutes are lost.

    Raises:
        UserError: naming the value, what was expected and the remedy.
    """
    choices = {
        "loss.aggregation": AGGREGATIONS,
        "loss.ratio": RATIOS,
        "loss.kl_kind": KL_KINDS,
        "loss.overlong": OVERLONG,
        "optim.schedule": SCHEDULES,
        "optim.moments": MOMENTS,
        "optim.remat": tuple(REMAT),
        "optim.attention": ("auto", *KERNELS),
        "student.dtype": ("float32", "bfloat16"),
    }
    flat = flatten(cfg.to_dict())
    for key, known in choices.items():
        if flat[key] not in known:
            raise UserError(f"{key}={flat[key]!r}; expected one of {', '.join(known)}")
    for key in ("steps", "checkpoint.every", "checkpoint.keep", "eval.every", "sampling.max_tokens", "sampling.chunk",
                "optim.minibatches", "optim.logprob_chunk", "eval.prompts_at_once"):  # fmt: skip
        if flat[key] < 1:
            raise UserError(f"{key}={flat[key]}; expected at least 1")
    P, m = cfg.data.prompts_per_step, cfg.optim.minibatches
    if P % m:
        raise UserError(f"optim.minibatches={m} does not divide data.prompts_per_step={P}; choose a divisor of {P}")
    if cfg.sampling.rollouts < 2:
        raise UserError(f"sampling.rollouts={cfg.sampling.rollouts}; a group needs at least 2 to have a baseline")
    buffer = cfg.loss.overlong_buffer
    if cfg.loss.overlong == "shape" and not 0 < buffer <= cfg.sampling.max_tokens:
        raise UserError(
            f"loss.overlong_buffer={buffer} with loss.overlong='shape'; expected 1 to sampling.max_tokens="
            f"{cfg.sampling.max_tokens}, for instance a fifth of it"
        )
    if cfg.loss.is_cap and cfg.loss.ratio == "sequence":
        raise UserError("loss.is_cap and loss.ratio='sequence' exclude each other; set loss.is_cap=0.0 for GSPO")
    if cfg.sampling.resample and jax.process_count() > 1:
        raise UserError(
            f"sampling.resample={cfg.sampling.resample} samples as often as the teacher's answers ask for, which "
            "several hosts cannot do in step; set it to 0"
        )
    check_stream(cfg)
    for key in ("sampling.resample", "loss.is_cap", "loss.kl_coef", "stream.groups", "stream.straggler_timeout_s"):
        if flat[key] < 0:
            raise UserError(f"{key}={flat[key]}; expected 0 (off) or more")
    _check_judge(cfg)
    if cfg.sampling.temperature == 0:
        raise UserError("sampling.temperature=0 samples G equal rollouts; expected a number above 0, 1.0 in the paper")


def _check_judge(cfg: ConfigDict) -> None:
    """The independent judge is none of those whose word becomes a reward."""
    if not cfg.teacher.judge.model:
        return
    if cfg.eval.judged < 2:
        raise UserError(f"eval.judged={cfg.eval.judged}; expected at least 2 answers to judge")
    where, judge = role_of(cfg.teacher, "judge")
    for key in ("rubricator", "verifier", "scorer"):
        other, role = role_of(cfg.teacher, key)
        if (other, role.model) == (where, judge.model):
            raise UserError(
                f"teacher.judge is teacher.{key} itself ({where.provider}: {judge.model}); a judge of what the rewards "
                "leave out must be another model"
            )


def check_stream(cfg: ConfigDict) -> None:
    """Raises UserError for a stream that cannot work."""
    how = cfg.stream
    if how.staleness not in (0, 1):
        raise UserError(f"stream.staleness={how.staleness}; expected 0 (strictly on-policy) or 1 (one step behind)")
    if how.straggler_timeout_s and (how.deterministic or not how.groups):
        raise UserError(
            f"stream.straggler_timeout_s={how.straggler_timeout_s:g} lets the clock decide which groups a step has; it "
            "needs stream.groups above 0 and stream.deterministic=False"
        )
    stale = "stream.staleness=1" if how.staleness else "stream.straggler_timeout_s" if how.straggler_timeout_s else ""
    if stale and cfg.sampling.resample:
        raise UserError(f"{stale} and sampling.resample exclude each other; set one of them to 0")
    if stale and cfg.loss.ratio == "sequence":
        raise UserError(f"{stale} is corrected token by token, which loss.ratio='sequence' is not; take 'token'")
    if stale and how.cap < 1:
        raise UserError(f"stream.cap={how.cap}; expected at least 1, 2.0 in the released code")


def check_length(prompt_len: int, cfg: ConfigDict, model_cfg: ModelConfig) -> None:
    """Raises UserError when prompt and answer together are longer than the checkpoint was made for."""
    total = prompt_len + cfg.sampling.max_tokens
    if total > model_cfg.max_seq_len:
        raise UserError(
            f"prompts of {prompt_len} tokens and sampling.max_tokens={cfg.sampling.max_tokens} make {total}, but the "
            f"student was made for {model_cfg.max_seq_len}; lower data.max_prompt_tokens or sampling.max_tokens"
        )
    if cfg.optim.row_len and cfg.optim.row_len < total - 1:
        raise UserError(
            f"optim.row_len={cfg.optim.row_len} is too short for prompts of {prompt_len} tokens and "
            f"sampling.max_tokens={cfg.sampling.max_tokens}; expected at least {total - 1}, or 0 for a row a sequence"
        )


def check_xla_options(text: str) -> None:
    """Raises UserError when the compiler of this machine's platform does not know one of ``optim.xla_options``."""
    options = xla_options(text, jax.default_backend())
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"optim.xla_options={text!r}: {str(error).splitlines()[0]}; remove or correct it") from error


def check_finite(metrics: dict[str, float], step: int, workdir: pathlib.Path, rows, advantages) -> None:
    """Stop on a loss or gradient that is not finite; the step's sequences are saved for a look."""
    bad = [k for k in ("update/loss", "update/grad_norm") if k in metrics and not np.isfinite(metrics[k])]
    if not bad:
        return
    path = workdir / f"nonfinite_step_{step:06d}.npz"
    if hosts.index() == 0:
        np.savez_compressed(
            path,
            advantage_PG=np.asarray(advantages.advantage_PG),
            **{f"completion_{i}": s.completion_T for i, s in enumerate(rows)},
            **{f"old_logp_{i}": s.old_logp_T for i, s in enumerate(rows)},
        )
    raise FloatingPointError(
        f"step {step}: {', '.join(f'{k}={metrics[k]}' for k in bad)}; the step's sequences are in {path}; "
        "lower optim.lr, or look for an extreme old log-prob"
    )
