"""Divergence of the policy from itself told another prompt, inside the update (`Method.divergence`).

The told hidden states are computed in the update's own loop, part by part, without a gradient; then both are multiplied
with the output table, chunk by chunk::

    part a   rows of the batch  ->  hidden [b, T, D]  -+
                                                       +-> logits [b, chunk, V], twice  ->  divergence [b, T]
             told rows          ->  hidden [b, S, D]  -+   at the positions of the completions

Why not a pass of its own, as for log-probs (`training.scoring`): it would have to store, for every token of the batch,
D numbers or k log-probs with their ids, and move them from its rows to those of the update. For 1,024 answers of 8,192
tokens and D = 2,560 in bfloat16 that is 43 GB. Here the told hidden states of one part exist, and they are exact for
every k: the parameters of an update do not change before its end. The price is that rows and told rows hold the same
sequences (`core.told`), so packed rows can be less full.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ropd_jax.core.advantages import Advantages
from ropd_jax.core.batches import TokenSequence, TrainBatch, split_parts
from ropd_jax.core.told import ToldLayout, ToldRows, told_layout
from ropd_jax.methods import Method
from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.models.divergence import take_positions, told_divergence
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.training.sections import OptimConfig, UpdateConfig

TOLD = "told"  # name of the told rows among the arrays of a batch


def layout_of(method: Method, mesh: jax.sharding.Mesh, optim: OptimConfig, length: int) -> ToldLayout | None:
    """The layout of an update's rows and told rows; None if the method compares no distributions.

    Args:
        length: most tokens of a sequence of the update.
    """
    if method.divergence is None:
        return None
    return told_layout(
        method.contexts, length=length, context=method.divergence.context,
        row_len=mesh_lib.whole_parts(optim.row_len or length - 1, mesh), packed=bool(optim.row_len),
        multiple=mesh_lib.whole_parts(1, mesh),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ToldDistributions:
    """Gives an update its told rows. Nothing is computed, so no collective is needed.

    Attributes:
        microbatch: rows of a part, 0 for all. multiple: number of shards of a batch.
    """

    layout: ToldLayout
    microbatch: int
    multiple: int

    def __call__(
        self, params: Any, rows: Sequence[TokenSequence], advantages_B: Advantages
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """(`ToldRows` [A, b, ...] by context under `TOLD`, for the batch that `update.step_parts` makes of these rows;
        metrics). The arguments are those of `scoring.Told`."""
        most = self.layout.most
        known = {
            name: [name in row.told and len(row.told[name]) + len(row.completion_T) <= most for row in rows]
            for name in self.layout.names
        }
        return {TOLD: self.parts(rows)}, told_metrics(rows, known)

    def parts(self, rows: Sequence[TokenSequence]) -> dict[str, ToldRows]:
        """The told rows [A, b, ...] by context; their shapes depend on the number of rows only."""
        told = self.layout.rows(rows)
        return {name: split_parts(one, self.microbatch, multiple=self.multiple) for name, one in told.items()}


def distributions_of(
    method: Method, mesh: jax.sharding.Mesh, optim: OptimConfig, length: int
) -> ToldDistributions | None:
    """None if the method compares no distributions."""
    layout = layout_of(method, mesh, optim, length)
    if layout is None:
        return None
    return ToldDistributions(layout, optim.microbatch, mesh_lib.parts_of_a_batch(mesh))


def divergences(
    cfg: UpdateConfig,
    model_cfg: ModelConfig,
    method: Method,
    params: Any,
    part: TrainBatch,
    x_BTD: jax.Array,
    told: Mapping[str, ToldRows],
) -> dict[str, jax.Array]:
    """What `Tokens.divergence` reads: per context the divergence of each token, and where it is known.

    Args:
        params: the policy; the gradient flows through ``x_BTD`` and its output table.
        x_BTD: its hidden states before the final norm.
        told: the told rows of this part.
    """
    how, found = method.divergence, {}
    assert how is not None
    teacher = jax.tree.map(jax.lax.stop_gradient, params)
    for name, rows in told.items():
        told_x_BSD = transformer.hidden(
            model_cfg, teacher, rows.tokens_BS, rows.positions_BS, rows.segments_BS, dtype=jnp.dtype(cfg.dtype),
            attention=cfg.optim.attention,
        )  # fmt: skip
        at_BT = mesh_lib.constrain(jnp.maximum(rows.at_BT, 0), "BS")
        known_BT = part.mask_BT & (rows.at_BT >= 0)
        found[f"divergence/{name}"] = told_divergence(
            model_cfg, params, x_BTD, take_positions(mesh_lib.constrain(told_x_BSD, "BSD"), at_BT), beta=how.beta,
            top_k=how.top_k, temperature=cfg.temperature, chunk=cfg.optim.logprob_chunk, wanted_BT=known_BT,
        )  # fmt: skip
        found[f"known/{name}"] = known_BT
    return found


def told_metrics(rows: Sequence[TokenSequence], known: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    """``context/NAME_frac``: the share of rows with a completion that were scored under the context, and
    ``context/too_long_frac``: of those that were told something, the share that was too long.

    Args:
        known: whether each row was scored, by context.
    """
    full = [i for i, row in enumerate(rows) if len(row.completion_T)]
    metrics = {f"context/{name}_frac": float(np.mean([each[i] for i in full])) for name, each in known.items() if full}
    missed = [not known[name][i] for name in known for i in full if name in rows[i].told]
    return metrics | ({"context/too_long_frac": float(np.mean(missed))} if missed else {})
