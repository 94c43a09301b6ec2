"""ROPD with the advantage of an answer distributed over its tokens by how much the rubric favours each of them.

After CoRT (arXiv 2607.25659): the same answer is scored under a prompt with the rubric and under a matched prompt
without its criteria. The contrast of the two log-probs, bounded and normalised within the response, gives token weights
that redistribute the GRPO advantage. Here, for the tokens t of one answer:

    c_t = clip(log pi(y_t | x, rubric, y_<t) - log pi(y_t | x, no criteria, y_<t), -b, b)      b = ``cort.bound``
    w_t = exp(c_t) / mean_s exp(c_s)
    A_t = w_t A

So the weights of an answer have mean 1 and are between e^-2b and e^2b, and a uniform contrast gives GRPO. The abstract
does not give the form of the bound and of the weights, nor the weights for each sign of A; those here are assumptions.
An answer that is not scored under both prompts keeps its advantage unchanged.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from ropd_jax.core.losses import segment_mean
from ropd_jax.methods.conditioning import FREE, MEETS, told
from ropd_jax.methods.ropd import ROPD


class CoRT(ROPD):
    @property
    def contexts(self):
        return ("rubric", "free")

    def sequences(self, group, judgement, tokenizer):
        rows = super().sequences(group, judgement, tokenizer)
        if judgement.rubric is None:
            return rows
        prompts = {
            "rubric": told(tokenizer, group.prompt, MEETS, judgement.rubric.criteria),
            "free": told(tokenizer, group.prompt, FREE),
        }
        return [dataclasses.replace(row, told=prompts) for row in rows]

    def loss(self, tokens):
        weight_BT = self.weights(tokens)
        loss_BT, metrics = self.surrogate(tokens, weight_BT * tokens.batch.advantage_BT)
        return loss_BT, metrics | {"token_weight_spread": jnp.abs(weight_BT - 1.0)}

    def weights(self, tokens):
        """Token weights with the mean 1 in each answer; 1 where the contrast is not known."""
        batch, bound = tokens.batch, self.cfg.cort.bound
        with_BT, known_BT = tokens.told("rubric")
        without_BT, also_BT = tokens.told("free")
        known_BT &= also_BT
        weight_BT = jnp.exp(jnp.clip(with_BT - without_BT, -bound, bound))
        mean_BT = segment_mean(weight_BT, batch.mask_BT & known_BT, batch.segments_BT)
        return jnp.where(known_BT, weight_BT / jnp.where(known_BT, mean_BT, 1.0), 1.0)


METHOD = CoRT
