"""The update: judged groups -> packed rows -> token losses -> one gradient -> one optimizer step.

There are two ways to compute the same gradient. `make_update` takes a whole mini-batch at once. `make_sums` takes it in
portions, in any order: each adds its numerators and its counts, and the total is divided once, at the end. So the
gradient of the first judged groups is computed while the teacher judges the rest (`ropd_jax.training.accumulate`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ropd_jax.core.advantages import Advantages
from ropd_jax.core.batches import TokenSequence, TrainBatch, make_batch, pack, real_frac, split_parts
from ropd_jax.core.losses import KL_ON, kl_estimate, token_numerators, token_weights
from ropd_jax.core.masked import masked_max, masked_sum
from ropd_jax.core.optim import DECAY_MASKS
from ropd_jax.methods import Extras, Method, Tokens
from ropd_jax.methods.base import START
from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.models.logprobs import token_logprobs
from ropd_jax.models.lora import attach
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.parallel.xla_options import xla_options
from ropd_jax.training.sections import LossConfig, OptimConfig, UpdateConfig
from ropd_jax.training.told import TOLD, divergences, layout_of
from ropd_jax.types import UserError

NO_EXTRAS = Extras()

# (params, rows, their advantages) -> (arrays [A, b, T] of scores by name, laid out like the rows, or the told rows
# [A, b, S] themselves; metrics)
Notes = Callable[[Any, Sequence[TokenSequence], Advantages], tuple[dict[str, Any], dict[str, float]]]


class State(NamedTuple):
    """What a step changes: the student (all of it, or the adapters on a frozen base, see `ropd_jax.models.lora`), its
    optimizer, and what the method itself trains (`Method.setup`)."""

    params: dict
    opt_state: optax.OptState
    method: Any = ()


def logprobs_of(
    cfg: UpdateConfig, model_cfg: ModelConfig, params: Any, batch: TrainBatch
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(logp_BT, entropy_BT, x_BTD): for each target at the sampling temperature; the last hidden states."""
    x_BTD = transformer.hidden(
        model_cfg,
        params,
        batch.tokens_BT,
        batch.positions_BT,
        batch.segments_BT,
        dtype=jnp.dtype(cfg.dtype),
        remat=cfg.optim.remat,
        attention=cfg.optim.attention,
        shared=cfg.optim.shared_prompts,
    )
    logp_BT, entropy_BT = token_logprobs(
        model_cfg,
        params,
        x_BTD,
        batch.targets_BT,
        temperature=cfg.temperature,
        chunk=cfg.optim.logprob_chunk,
        entropy_grad=bool(cfg.loss.entropy_coef),
        wanted_BT=batch.mask_BT,
    )
    return logp_BT, entropy_BT, x_BTD


def make_gradient(cfg: UpdateConfig, model_cfg: ModelConfig, method: Method):
    """The gradient of a batch's loss, to be traced by jit:

        (params, base, ref_params, batch [A, b, T], weight_ABT, extras, grads) -> (loss, sums, gap_max)

    The batch has A parts. Each part's gradient is added in float32 to ``grads``, refs in the shape of ``params``, and
    the activations of only one part exist at a time::

        parts    0         1         2         3              used = 3: part 3 is all padding and is not computed
              [tokens]  [tokens]  [tok....]  [......]
                 |         |         |
        grads +=g0      +=g1      +=g2                        the refs are updated in place, layer by layer

    So the shapes, and the compiled program, are those of the longest possible step, but the time is that of the current
    step. ``sums`` are sums over the batch's tokens of the logged values.
    """
    lora = cfg.lora

    logprobs = functools.partial(logprobs_of, cfg, model_cfg)

    def part_loss(trainable, base, ref_params, part: TrainBatch, weight_BT, notes, shared):
        params = attach(lora, base, trainable)
        logp_BT, entropy_BT, x_BTD = logprobs(params, part)
        ref_logp_BT = None
        if needs_initial(cfg.loss, method):
            ref_logp_BT = jax.lax.stop_gradient(logprobs(ref_params, part)[0])
        if TOLD in notes:
            notes = {**notes, **divergences(cfg, model_cfg, method, params, part, x_BTD, notes[TOLD])}
        tokens = Tokens(part, logp_BT, entropy_BT, ref_logp_BT, notes, shared, model_cfg, params, x_BTD)
        mask_BT, active_BT = part.mask_BT, part.informative_BT
        loss_BT, extra = method.loss(tokens)
        if cfg.loss.terms_on_all:
            loss_BT, active_BT = jnp.where(active_BT, loss_BT, 0.0), mask_BT
        if cfg.loss.kl_coef:
            assert ref_logp_BT is not None
            extra |= {"kl": kl_estimate(logp_BT, ref_logp_BT, cfg.loss.kl_kind)}
            loss_BT += cfg.loss.kl_coef * extra["kl"]
        if cfg.loss.entropy_coef:
            loss_BT -= cfg.loss.entropy_coef * entropy_BT
        loss = masked_sum(weight_BT * loss_BT, active_BT)
        gap_BT = jax.lax.stop_gradient(jnp.abs(logp_BT - tokens.old_logp_BT))  # 0 for text that was not sampled
        sums = {"entropy": masked_sum(entropy_BT, mask_BT), "logp_gap": masked_sum(gap_BT, mask_BT)}
        sums |= {name: masked_sum(x_BT, mask_BT) for name, x_BT in extra.items()}
        gap_max = jnp.maximum(masked_max(gap_BT, mask_BT), 0.0)
        return loss, (sums, gap_max)

    def gradient(params, base, ref_params, batch: TrainBatch, weight_ABT, extras: Extras, grads):
        def part(a):
            return jax.tree.map(
                lambda x_ABT: jax.lax.dynamic_index_in_dim(x_ABT, a, keepdims=False), (batch, weight_ABT, extras.tokens)
            )

        def loss_of(params, a):
            batch, weight_BT, notes = part(a)
            return part_loss(params, base, ref_params, batch, weight_BT, notes, extras.shared)

        def accumulate(a, carry):  # the backward pass adds each layer's gradient into `grads` in place
            loss, pull_back, aux = jax.vjp(lambda params: loss_of(params, a), params, has_aux=True)
            if lora.rank:  # a scan adds gradients in place for all its weights or for none, and the base has none
                jax.tree.map(add_to, grads, pull_back(jnp.ones_like(loss))[0])
            else:
                pull_back.with_refs(grads)(jnp.ones_like(loss))  # type: ignore[attr-defined]  # of jax.vjp's result
            (sums, gap_max), (loss_before, sums_before, gap_max_before) = aux, carry
            loss, sums = jax.tree.map(jnp.add, (loss_before, sums_before), (loss, sums))
            return loss, sums, jnp.maximum(gap_max_before, gap_max)

        loss, aux = jax.eval_shape(loss_of, params, 0)
        nothing = jax.tree.map(lambda x: jnp.zeros((), x.dtype), (loss, *aux))
        return jax.lax.fori_loop(0, parts_used(batch), accumulate, nothing)

    return gradient


def parts_used(batch: TrainBatch) -> jax.Array:
    """int32, how many parts of a batch [A, b, T] are computed: all up to the last one with a token."""
    A = len(batch.tokens_BT)
    return jnp.max(jnp.where(jnp.any(batch.segments_BT, axis=(1, 2)), jnp.arange(1, A + 1, dtype=jnp.int32), 0))


def place_parts(parts: Any, mesh: jax.sharding.Mesh) -> Any:
    """Host arrays [A, b, T, ...] placed on the devices; dimensions after T are not sharded."""
    by_token = jax.NamedSharding(mesh, mesh_lib.RULES.spec("ABT"))
    return jax.tree.map(functools.partial(mesh_lib.place, sharding=by_token), parts)


def make_update(cfg: UpdateConfig, model_cfg: ModelConfig, method: Method, tx: optax.GradientTransformation):
    """The jitted update: (state, ref_params, batch [A, b, T], notes, base) -> (state, metrics).

    The gradient is accumulated over the A parts; the token weights are those of the whole batch, so it equals the
    gradient of one pass over all rows.
    ``ref_params`` is the initial student, or None if no term reads it. ``notes`` are those of `Method.extras`.
    ``base`` is the frozen student to which the state's adapters belong, or None if all parameters are trained.
    The same configs, optimizer and `Method.loss_key` return the same function, so that it is compiled once.
    """
    return _shared(_make_update, cfg, model_cfg, method, tx)


def _make_update(cfg: UpdateConfig, model_cfg: ModelConfig, method: Method, tx: optax.GradientTransformation):
    gradient = make_gradient(cfg, model_cfg, method)

    @functools.partial(jax.jit, donate_argnums=(0,), compiler_options=compiler_options(cfg))
    def update(state: State, ref_params, batch: TrainBatch, extras: Extras = NO_EXTRAS, base=None):
        weight_ABT = token_weights(batch.mask_BT, cfg.loss.aggregation, batch.length_BT, max_tokens=cfg.max_tokens)
        grads = jax.tree.map(lambda p: jax.new_ref(jnp.zeros_like(p, jnp.float32)), state.params)
        loss, sums, gap_max = gradient(state.params, base, ref_params, batch, weight_ABT, extras, grads)
        grads = jax.tree.map(jax.freeze, grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        tokens = jnp.maximum(jnp.sum(batch.mask_BT), 1).astype(jnp.float32)
        metrics = {f"update/{name}": x / tokens for name, x in sums.items()}
        metrics |= {
            "update/loss": loss,
            "update/logp_gap_max": gap_max,
            "update/grad_norm": optax.tree.norm(grads),
            "update/tokens": tokens,
        }
        return State(params, opt_state, state.method), metrics

    return update


class Portions(NamedTuple):
    """An update whose batch comes in portions: jitted programs, and `apply`.

    Attributes:
        zeros: params -> grads.
        add: (grads, params, ref_params, batch [A, b, T], notes, base) -> (grads, counted): the sum so far plus this
            portion's numerators. ``counted`` are its sums and counts, to be added up: ``loss``, ``tokens`` and
            ``weight`` (tokens, or sequences, see `token_numerators`) and the logged ones; for ``gap_max`` take the
            maximum. ``grads`` is donated.
        step: (params, opt_state, trained, grads, weight) -> (state, norm of the gradient): divides by the total weight
            and takes the optimizer step; parameters and optimizer state are donated.
    """

    zeros: Any
    add: Any
    step: Any

    def apply(self, state: State, grads, weight: float) -> tuple[State, jax.Array]:
        """(state, norm of the gradient) after `step`; ``weight`` is the sum over all portions."""
        return self.step(*state, grads, jnp.float32(max(weight, 1.0)))


def make_portions(
    cfg: UpdateConfig, model_cfg: ModelConfig, method: Method, tx: optax.GradientTransformation
) -> Portions:
    """Like `make_update`, in portions."""
    return _shared(_make_portions, cfg, model_cfg, method, tx)


def _make_portions(
    cfg: UpdateConfig, model_cfg: ModelConfig, method: Method, tx: optax.GradientTransformation
) -> Portions:
    gradient, options = make_gradient(cfg, model_cfg, method), compiler_options(cfg)

    @functools.partial(jax.jit, donate_argnums=(0,), compiler_options=options)
    def add(grads, params, ref_params, batch: TrainBatch, extras: Extras = NO_EXTRAS, base=None):
        weight_ABT, count = token_numerators(
            batch.mask_BT, cfg.loss.aggregation, batch.length_BT, max_tokens=cfg.max_tokens
        )
        refs = jax.tree.map(jax.new_ref, grads)
        loss, sums, gap_max = gradient(params, base, ref_params, batch, weight_ABT, extras, refs)
        tokens = jnp.sum(batch.mask_BT).astype(jnp.float32)
        return jax.tree.map(jax.freeze, refs), sums | dict(loss=loss, gap_max=gap_max, tokens=tokens, weight=count)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2), compiler_options=options)
    def step(params, opt_state, trained, grads, weight):
        grads = jax.tree.map(lambda g: g / weight, grads)
        updates, opt_state = tx.update(grads, opt_state, params)
        return State(optax.apply_updates(params, updates), opt_state, trained), optax.tree.norm(grads)

    zeros = jax.jit(lambda params: jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params))
    return Portions(zeros, add, step)


class _ByLoss(NamedTuple):
    """A method, compared by its `Method.loss_key`."""

    key: Hashable
    method: Method

    def __eq__(self, other):
        return self.key == other.key

    def __hash__(self):
        return hash(self.key)


def _shared(make: Callable, cfg: UpdateConfig, model_cfg: ModelConfig, method: Method, tx) -> Any:
    """``make(cfg, model_cfg, method, tx)``, cached for methods with the same loss."""
    if method.loss_key is None:
        return make(cfg, model_cfg, method, tx)
    return _made(make, cfg, model_cfg, _ByLoss(method.loss_key, method), tx)


@functools.lru_cache(maxsize=8)
def _made(make: Callable, cfg: UpdateConfig, model_cfg: ModelConfig, by_loss: _ByLoss, tx) -> Any:
    return make(cfg, model_cfg, by_loss.method, tx)


def compiler_options(cfg: UpdateConfig) -> dict[str, str]:
    """``optim.xla_options`` for the platform of the mesh."""
    return xla_options(cfg.optim.xla_options, mesh_lib.platform())


def add_to(ref, x: jax.Array) -> None:
    ref[...] += x.astype(jnp.float32)


def needs_initial(loss: LossConfig, method: Method) -> bool:
    """Whether an update needs the parameters of the initial student."""
    return bool(loss.kl_coef) or method.needs_initial


def check_learning(loss: LossConfig, optim: OptimConfig) -> None:
    """Raises UserError for an unknown ``loss.kl_on`` or ``optim.decay_mask``."""
    for key, value, known in (
        ("loss.kl_on", loss.kl_on, KL_ON),
        ("optim.decay_mask", optim.decay_mask, DECAY_MASKS),
    ):
        if value not in known:
            raise UserError(f"{key}={value!r}; expected one of {', '.join(known)}")


def has_gradient(batch: TrainBatch, loss: LossConfig) -> bool:
    """Whether any token has a gradient; without, AdamW would still move by its momentum. ``batch`` is on the host."""
    return bool((batch.mask_BT if loss.terms_on_all else batch.informative_BT).any())


def update_step(
    update: Callable,
    state: State,
    ref_params: Any,
    rows: Sequence[TokenSequence],
    advantages: Advantages,
    method: Method,
    mesh: jax.sharding.Mesh,
    optim: OptimConfig,
    loss: LossConfig,
    length: int,
    *,
    told: Notes | None = None,
    start: Callable[[Any, TrainBatch], jax.Array] | None = None,
) -> tuple[State, dict[str, float]]:
    """Split the step into its mini-batches (by prompt) and update on each; those without a gradient are skipped.

    Args:
        rows: the step's sequences; packed into rows of ``optim.row_len`` if that is set. Their number does not depend
            on the lengths of the texts that the teacher wrote (`Method.teaches_text`).
        length: maximum number of tokens in a sequence.
        told: scores the rows under the method's other prompts, with the policy of each mini-batch.
        start: (parameters, batch) -> its `Tokens.start_logp_BT`, for all mini-batches before the first update; None
            if the loss does not read it.
    """
    per_prompt = advantages.advantage_PG.shape[1]
    flat_B = [np.asarray(x).reshape(-1) for x in advantages]
    everything: list[dict[str, float]] = []
    batches: list[tuple[TrainBatch, list[TokenSequence], Advantages]] = []
    for part in np.array_split(np.arange(len(rows)).reshape(-1, per_prompt), optim.minibatches):
        at = part.reshape(-1).tolist()
        own, advantages_B = [rows[i] for i in at], Advantages(*(x[at] for x in flat_B))
        batch = step_parts(own, advantages_B, method, mesh, optim, length)
        if has_gradient(batch, loss):
            batches.append((batch, own, advantages_B))
    starts = [start(state.params, batch) if start else None for batch, _, _ in batches]
    for (batch, own, advantages_B), start_logp_ABT in zip(batches, starts, strict=True):
        notes, known = told(state.params, own, advantages_B) if told else ({}, {})
        placed, extras = on_mesh(batch, method, state.method, mesh, notes)
        if start_logp_ABT is not None:
            extras = Extras({**extras.tokens, START: start_logp_ABT}, extras.shared)
        state, metrics = update(state, ref_params, placed, extras)
        everything.append({k: float(v) for k, v in metrics.items()} | {"update/real_frac": real_frac(batch)} | known)
    return state, means_of(everything) | {"update/count": len(everything)}


def means_of(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the mappings that have it."""
    names = dict.fromkeys(k for m in metrics for k in m)
    return {k: float(np.mean([m[k] for m in metrics if k in m])) for k in names}


def on_mesh(
    batch: TrainBatch, method: Method, trained: Any, mesh: jax.sharding.Mesh, notes: Mapping[str, Any] = {}
) -> tuple[TrainBatch, Extras]:
    """The batch and the method's extras for it, including ``notes`` [A, b, T] by name, on the devices."""
    extras = method.extras(trained, batch)
    placed, tokens = place_parts((batch, {**extras.tokens, **notes}), mesh)
    return placed, Extras(tokens, extras.shared)


def step_parts(
    sequences: Sequence[TokenSequence],
    advantages_B: Advantages,
    method: Method,
    mesh: jax.sharding.Mesh,
    optim: OptimConfig,
    length: int,
) -> TrainBatch:
    """One mini-batch as the host arrays [A, b, T] of an update; see `update_step`.

    Args:
        advantages_B: one per sequence.
    """
    row_len = mesh_lib.whole_parts(optim.row_len or length - 1, mesh)
    if layout := layout_of(method, mesh, optim, length):
        batch = make_batch(sequences, *advantages_B, length, places=layout.places(sequences), row_len=row_len)
    elif optim.row_len:  # the number of parts is fixed, because unneeded ones are not computed
        fixed = method.teaches_text or bool(optim.microbatch)
        batch = pack(sequences, *advantages_B, length, row_len=row_len, fixed=fixed, shared=optim.shared_prompts)
    else:
        batch = make_batch(sequences, *advantages_B, length, row_len=row_len)
    return split_parts(batch, optim.microbatch, multiple=mesh_lib.parts_of_a_batch(mesh))
