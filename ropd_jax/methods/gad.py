"""Generative adversarial distillation (GAD, arXiv 2511.10643): the reward is a discriminator that learns too.

D is a sequence scalar: the student's own network at the start, with a linear head on the last token in place of the
vocabulary. It is trained by Bradley-Terry, L_D = -log sigma(D(y_T) - D(y_S)), on every pair of a teacher's reference
and a rollout of the same prompt; the student maximises D(y_S) with GRPO.

1. warm-up, ``gad.warmup_steps`` steps: the student learns from the references by cross-entropy, D from its samples.
2. after it both are updated in every step: rewards are those of D before its update.

The head starts at 0, so D scores all answers equally before its first update. The checkpoint has D and its optimizer.
D's scores have no fixed scale: only differences within a group count.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ropd_jax.core.advantages import Advantages
from ropd_jax.core.batches import TokenSequence
from ropd_jax.core.optim import make_optimizer
from ropd_jax.methods.base import ExtraMemory, ExtraProgram, Method
from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.models.divergence import normed_hidden
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.teacher import TeacherError
from ropd_jax.teacher.judge_group import unscored
from ropd_jax.types import Array, Judgement, RolloutGroup, UserError


class Discriminator(NamedTuple):
    """``params``: ``body`` (a transformer's) and ``head_D``."""

    params: dict
    opt_state: optax.OptState


class Texts(NamedTuple):
    """Answers to score, prompt by prompt: of each prompt K = G + m rows, rollouts first.

    Attributes:
        tokens_BT: int32, prompt and answer side by side, padded on the right.
        length_B: int32, tokens of a row; 0 where there is no answer.
    """

    tokens_BT: Array
    length_B: Array


def scores(cfg: ModelConfig, params: dict, texts: Texts, *, dtype: str = "float32", **kernel: Any) -> jax.Array:
    """D of each row, float32: the head on the hidden state, after the final norm, of the row's last token.

    ``kernel`` is ``remat`` and ``attention`` of `transformer.hidden`.
    """
    B, T = texts.tokens_BT.shape
    at_T = jnp.arange(T, dtype=jnp.int32)[None]
    positions_BT = mesh_lib.constrain(jnp.broadcast_to(at_T, (B, T)), "BT")
    real_BT = (positions_BT < texts.length_B[:, None]).astype(jnp.int32)
    x_BTD = transformer.hidden(
        cfg, params["body"], texts.tokens_BT, positions_BT, real_BT, dtype=jnp.dtype(dtype), **kernel
    )
    x_BTD = normed_hidden(cfg, params["body"], x_BTD).astype(jnp.float32)
    last_BT = positions_BT == texts.length_B[:, None] - 1
    x_BD = jnp.sum(jnp.where(last_BT[..., None], x_BTD, 0.0), axis=1)
    head_D = mesh_lib.RULES.gather({"head_D": params["head_D"]})["head_D"]
    return jnp.einsum("BD,D->B", x_BD, head_D)


def pair_loss(score_B: jax.Array, length_B: jax.Array, rollouts: int, per_prompt: int):
    """(sum of -log sigma(D(y_T) - D(y_S)), how many D ranks right, how many pairs), over the pairs of each prompt."""
    score_PK, real_PK = (
        mesh_lib.constrain(x, "P").reshape(-1, per_prompt) for x in (score_B, length_B > 0)
    )  # pairs are few: every device has them all
    margin_PGM = score_PK[:, None, rollouts:] - score_PK[:, :rollouts, None]
    both_PGM = real_PK[:, None, rollouts:] & real_PK[:, :rollouts, None]
    loss = jnp.sum(jnp.where(both_PGM, jax.nn.softplus(-margin_PGM), 0.0))
    return loss, jnp.sum(both_PGM & (margin_PGM > 0)), jnp.sum(both_PGM)


class GAD(Method):
    takes_exact = False

    def __post_init__(self):
        if self.cfg.sampling.resample:
            raise UserError("sampling.resample needs rewards before the update of D; set it to 0 with method=gad")
        if self.cfg.gad.warmup_steps < 0:
            raise UserError(f"gad.warmup_steps={self.cfg.gad.warmup_steps}; expected 0 or more")

    @property
    def asks(self):
        return {"reference": 1}

    @property
    def teaches_text(self):
        return self.cfg.gad.warmup_steps > 0

    def warming(self, step: int) -> bool:
        return step < self.cfg.gad.warmup_steps

    def check_student(self, student, mesh):
        mesh_lib.check_whole_rows(mesh, "GAD's discriminator")

    def setup(self, student, mesh):
        self._prepare(student.cfg, mesh)
        body = jax.tree.map(lambda x: jnp.array(x, jnp.float32), student.params)
        params = {"body": body, "head_D": jnp.zeros((student.cfg.d_model,), jnp.float32)}
        params = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
        return Discriminator(params, jax.jit(self.tx.init)(params))

    def extra_memory(self, model, batch, prompt_len, read):
        mesh = batch.tokens_BT.sharding.mesh
        self._prepare(model, mesh)
        params = {
            "body": transformer.param_shapes(model),
            "head_D": jax.ShapeDtypeStruct((model.d_model,), jnp.float32),
        }
        params = mesh_lib.shapes(params, mesh)
        d = Discriminator(params, jax.eval_shape(jax.jit(self.tx.init), params))
        rows, T = self._rows(self.cfg.data.prompts_per_step), prompt_len + self.cfg.sampling.max_tokens
        texts = Texts(
            jax.ShapeDtypeStruct((*rows, T), jnp.int32, sharding=self._named("ABT")),
            jax.ShapeDtypeStruct(rows, jnp.int32, sharding=self._named("AB")),
        )
        A, b = rows
        step = ExtraProgram("discriminator", lambda: self.learn.lower(d, texts), model, 1, A, A * b * T, T, trains=True)
        return ExtraMemory(d, (step,))

    def _prepare(self, model: ModelConfig, mesh) -> None:
        how, self.model, self.mesh = self.cfg.gad, model, mesh
        self.tx = make_optimizer(
            lr=how.lr, schedule="constant", warmup_steps=0, total_steps=1, b1=how.b1, b2=how.b2, eps=1e-8,
            weight_decay=0.0, clip_norm=how.clip_norm,
        )  # fmt: skip
        self.learn = self._make_learn()

    def _make_learn(self):
        G, K = self.cfg.sampling.rollouts, self.cfg.sampling.rollouts + self.cfg.teacher.references

        def part(params, texts: Texts):
            kernel = dict(remat=self.cfg.optim.remat, attention=self.cfg.optim.attention)
            score_B = scores(self.model, params, texts, dtype=self.cfg.student.dtype, **kernel)
            loss, right, pairs = pair_loss(score_B, texts.length_B, G, K)
            return loss, (score_B, right, pairs)

        @functools.partial(jax.jit, donate_argnums=(0,))
        def learn(d: Discriminator, texts: Texts):
            """Scores [A, b] of D as it is, and D after one update on all pairs; ``texts`` is [A, b, T]."""

            def accumulate(grads, texts):
                (loss, aux), g = jax.value_and_grad(part, has_aux=True)(d.params, texts)
                return jax.tree.map(jnp.add, grads, g), (loss, *aux)

            nothing = jax.tree.map(jnp.zeros_like, d.params)
            grads, (loss_A, score_AB, right_A, pairs_A) = jax.lax.scan(accumulate, nothing, texts)
            pairs = jnp.maximum(jnp.sum(pairs_A), 1).astype(jnp.float32)
            grads = jax.tree.map(lambda g: g / pairs, grads)
            updates, opt_state = self.tx.update(grads, d.opt_state, d.params)
            metrics = {"gad/loss": jnp.sum(loss_A) / pairs, "gad/grad_norm": optax.tree.norm(grads)}
            metrics |= {"gad/pairs_right_frac": jnp.sum(right_A).astype(jnp.float32) / pairs}
            return score_AB, Discriminator(optax.apply_updates(d.params, updates), opt_state), metrics

        return learn

    async def judge(self, teacher, group: RolloutGroup) -> Judgement:
        """The references; rewards come from D once the step is complete (`revise`)."""
        n = len(group.rollouts)
        try:
            references = await teacher.references(group.prompt)
        except TeacherError as error:
            return unscored(error, n)
        return Judgement(rewards=(None,) * n, causes=(None,) * n, references=references)

    def revise(self, trained: Any, groups, judgements, tokenizer):
        G, n = self.cfg.sampling.rollouts, len(groups)
        score_AB, trained, metrics = self.learn(trained, self._texts(groups, judgements, tokenizer))
        score_PK = mesh_lib.fetch(score_AB)[0].reshape(-1, G + self.cfg.teacher.references)[:n]
        metrics = {k: float(v) for k, v in metrics.items()}
        revised = []
        for group, j, score_K in zip(groups, judgements, score_PK, strict=True):
            if not j.references:
                revised.append(j)
            elif self.warming(group.step):
                m = min(len(j.references), G)
                rewards, causes = (1.0,) * m + (None,) * (G - m), (None,) * m + ("warmup",) * (G - m)
                revised.append(dataclasses.replace(j, rewards=rewards, causes=causes))
            else:
                revised.append(dataclasses.replace(j, rewards=tuple(float(s) for s in score_K[:G])))
        return trained, revised, metrics

    def _texts(self, groups, judgements, tokenizer) -> Texts:
        """All answers of the step, [A, b, T]; a prompt without references has no rows. b divides over the mesh."""
        K, m = self._per_prompt, self.cfg.teacher.references
        T = -(-max(len(g.prompt_tokens_T) for g in groups) // 16) * 16 + self.cfg.sampling.max_tokens
        A, b = self._rows(len(groups))
        tokens_BT, length_B = np.zeros((A * b, T), np.int32), np.zeros((A * b,), np.int32)
        for p, (group, j) in enumerate(zip(groups, judgements, strict=True)):
            answers = [r.tokens_T for r in group.rollouts] + [encoded(tokenizer, text) for text in j.references[:m]]
            for k, answer_T in enumerate(answers if j.references else ()):
                row = np.concatenate([group.prompt_tokens_T, answer_T])[:T]
                tokens_BT[p * K + k, : len(row)], length_B[p * K + k] = row, len(row)
        return Texts(
            mesh_lib.place(tokens_BT.reshape(A, b, T), self._named("ABT")),
            mesh_lib.place(length_B.reshape(A, b), self._named("AB")),
        )

    @property
    def _per_prompt(self) -> int:
        return self.cfg.sampling.rollouts + self.cfg.teacher.references

    def _rows(self, prompts: int) -> tuple[int, int]:
        """(A, b): parts of the step's texts, and rows of one; the rows of a prompt stay together."""
        microbatch, shards = self.cfg.optim.microbatch, self.mesh.shape["fsdp"]
        at_once = max(microbatch // self._per_prompt, 1) if microbatch else prompts
        at_once = -(-at_once // shards) * shards
        return -(-prompts // at_once), at_once * self._per_prompt

    def _named(self, dims: str) -> jax.NamedSharding:
        return jax.NamedSharding(self.mesh, mesh_lib.RULES.spec(dims))

    def advantages(self, reward_PG, valid_PG, step):
        if self.warming(step):  # advantage 1 and ratio 1: the policy gradient is that of cross-entropy
            valid_PG = jnp.asarray(valid_PG)
            return Advantages(valid_PG.astype(jnp.float32), valid_PG, valid_PG)
        return super().advantages(reward_PG, valid_PG, step)

    def sequences(self, group, judgement, tokenizer):
        if not self.warming(group.step):
            return super().sequences(group, judgement, tokenizer)
        rows = [encoded(tokenizer, text) for text in judgement.references[: self.sequences_per_prompt]]
        rows += [np.zeros((0,), np.int32)] * (self.sequences_per_prompt - len(rows))
        return [TokenSequence(group.prompt_tokens_T, row, np.full(row.shape, np.nan, np.float32)) for row in rows]


def encoded(tokenizer, text: str) -> np.ndarray:
    """An answer's tokens with the stop token that ends it."""
    return np.asarray([*tokenizer.encode(text), tokenizer.stop_ids[0]], np.int32)


METHOD = GAD
