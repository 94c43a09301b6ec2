"""Values of a run that cannot work, found before minutes are lost or the moment they appear."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ropd_jax.core.batches import TokenSequence
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
from ropd_jax.training.sections import OverlapConfig, RunConfig
from ropd_jax.training.update import check_learning
from ropd_jax.types import UserError


def check_run(cfg: RunConfig) -> None:
    """Raise for values that cannot work, by themselves or together.

    Raises:
        UserError: naming the value, what was expected and the remedy.
    """
    sampling, loss, optim = cfg.sampling, cfg.loss, cfg.optim
    for key, value, known in (
        ("loss.aggregation", loss.aggregation, AGGREGATIONS),
        ("loss.ratio", loss.ratio, RATIOS),
        ("loss.kl_kind", loss.kl_kind, KL_KINDS),
        ("loss.overlong", loss.overlong, OVERLONG),
        ("optim.schedule", optim.schedule, SCHEDULES),
        ("optim.moments", optim.moments, MOMENTS),
        ("optim.remat", optim.remat, tuple(REMAT)),
        ("optim.attention", optim.attention, ("auto", *KERNELS)),
        ("student.dtype", cfg.dtype, ("float32", "bfloat16")),
    ):
        if value not in known:
            raise UserError(f"{key}={value!r}; expected one of {', '.join(known)}")
    check_learning(loss, optim)
    for key, number in (
        ("steps", cfg.steps),
        ("checkpoint.every", cfg.checkpoint.every),
        ("checkpoint.keep", cfg.checkpoint.keep),
        ("eval.every", cfg.eval.every),
        ("sampling.max_tokens", sampling.max_tokens),
        ("sampling.chunk", sampling.chunk),
        ("optim.minibatches", optim.minibatches),
        ("optim.logprob_chunk", optim.logprob_chunk),
        ("eval.prompts_at_once", cfg.eval.prompts_at_once),
    ):
        if number < 1:
            raise UserError(f"{key}={number}; expected at least 1")
    P, m = cfg.prompts_per_step, optim.minibatches
    if P % m:
        raise UserError(f"optim.minibatches={m} does not divide data.prompts_per_step={P}; choose a divisor of {P}")
    if sampling.rollouts < 2:
        raise UserError(f"sampling.rollouts={sampling.rollouts}; a group needs at least 2 to have a baseline")
    if loss.overlong == "shape" and not 0 < loss.overlong_buffer <= sampling.max_tokens:
        raise UserError(
            f"loss.overlong_buffer={loss.overlong_buffer} with loss.overlong='shape'; expected 1 to "
            f"sampling.max_tokens={sampling.max_tokens}, for instance a fifth of it"
        )
    if loss.is_cap and loss.ratio == "sequence":
        raise UserError("loss.is_cap and loss.ratio='sequence' exclude each other; set loss.is_cap=0.0 for GSPO")
    if sampling.resample and jax.process_count() > 1:
        raise UserError(
            f"sampling.resample={sampling.resample} samples as often as the teacher's answers ask for, which "
            "several hosts cannot do in step; set it to 0"
        )
    check_overlap(cfg.overlap, resample=sampling.resample, ratio=loss.ratio)
    for key, amount in (
        ("sampling.resample", sampling.resample),
        ("loss.is_cap", loss.is_cap),
        ("loss.kl_coef", loss.kl_coef),
        ("stream.groups", cfg.overlap.groups),
        ("stream.straggler_timeout_s", cfg.overlap.straggler_timeout_s),
    ):
        if amount < 0:
            raise UserError(f"{key}={amount}; expected 0 (off) or more")
    if sampling.temperature == 0:
        raise UserError("sampling.temperature=0 samples G equal rollouts; expected a number above 0, 1.0 in the paper")


def check_judge(teacher: Mapping[str, Any], judged: int) -> None:
    """The held-out judge must be another model than those whose verdicts become rewards.

    Args:
        teacher: ``cfg.teacher``.
        judged: ``eval.judged``.
    """
    if not teacher["judge"]["model"]:
        return
    if judged < 2:
        raise UserError(f"eval.judged={judged}; expected at least 2 answers to judge")
    where, judge = role_of(teacher, "judge")
    for key in ("rubricator", "verifier", "scorer"):
        other, role = role_of(teacher, key)
        if (other, role.model) == (where, judge.model):
            raise UserError(
                f"teacher.judge is teacher.{key} itself ({where.provider}: {judge.model}); a judge of what the rewards "
                "leave out must be another model"
            )


def check_overlap(how: OverlapConfig, *, resample: int, ratio: str) -> None:
    """Raises UserError for an overlap (``cfg.stream``) that cannot work."""
    if how.staleness not in (0, 1):
        raise UserError(f"stream.staleness={how.staleness}; expected 0 (strictly on-policy) or 1 (one step behind)")
    if how.straggler_timeout_s and (how.deterministic or not how.groups):
        raise UserError(
            f"stream.straggler_timeout_s={how.straggler_timeout_s:g} lets the clock decide which groups a step has; it "
            "needs stream.groups above 0 and stream.deterministic=False"
        )
    stale = "stream.staleness=1" if how.staleness else "stream.straggler_timeout_s" if how.straggler_timeout_s else ""
    if stale and resample:
        raise UserError(f"{stale} and sampling.resample exclude each other; set one of them to 0")
    if stale and ratio == "sequence":
        raise UserError(f"{stale} is corrected token by token, which loss.ratio='sequence' is not; use 'token'")
    if stale and how.cap < 1:
        raise UserError(f"stream.cap={how.cap}; expected at least 1, 2.0 in the released code")


def check_length(prompt_len: int, max_tokens: int, row_len: int, model_cfg: ModelConfig) -> None:
    """Raises UserError when prompt and answer together are longer than the checkpoint was made for.

    Args:
        prompt_len: tokens of the longest prompt.
        max_tokens: ``sampling.max_tokens``. row_len: ``optim.row_len``.
    """
    total = prompt_len + max_tokens
    if total > model_cfg.max_seq_len:
        raise UserError(
            f"prompts of {prompt_len} tokens and sampling.max_tokens={max_tokens} make {total}, but the "
            f"student was made for {model_cfg.max_seq_len}; lower data.max_prompt_tokens or sampling.max_tokens"
        )
    if row_len and row_len < total - 1:
        raise UserError(
            f"optim.row_len={row_len} is too short for prompts of {prompt_len} tokens and "
            f"sampling.max_tokens={max_tokens}; expected at least {total - 1}, or 0 for a row a sequence"
        )


def check_xla_options(text: str) -> None:
    """Raises UserError when the compiler of this machine's platform does not know one of ``optim.xla_options``."""
    options = xla_options(text, jax.default_backend())
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"optim.xla_options={text!r}: {str(error).splitlines()[0]}; remove or correct it") from error


def check_finite(
    metrics: Mapping[str, Any],
    step: int,
    workdir: pathlib.Path,
    rows: Sequence[TokenSequence],
    advantage_PG: np.ndarray,
) -> None:
    """Stop on a loss or gradient that is not finite; the step's sequences are saved for a look.

    Raises:
        FloatingPointError: naming the values and the file with the sequences.
    """
    bad = [k for k in ("update/loss", "update/grad_norm") if k in metrics and not np.isfinite(metrics[k])]
    if not bad:
        return
    path = workdir / f"nonfinite_step_{step:06d}.npz"
    if hosts.index() == 0:
        arrays: dict[str, Any] = {"advantage_PG": advantage_PG}
        arrays |= {f"completion_{i}": s.completion_T for i, s in enumerate(rows)}
        arrays |= {f"old_logp_{i}": s.old_logp_T for i, s in enumerate(rows)}
        np.savez_compressed(path, **arrays)
    raise FloatingPointError(
        f"step {step}: {', '.join(f'{k}={metrics[k]}' for k in bad)}; the step's sequences are in {path}; "
        "lower optim.lr, or look for an extreme old log-prob"
    )
