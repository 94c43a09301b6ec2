"""On-policy distillation from a white-box teacher (LOPD): it uses the teacher's logits on the student's own rollouts.

There are two forms (``lopd.mode``); the paper does not say which one its Table 2 used:

- ``sampled`` (Thinking Machines): the advantage of a token is -(log pi_S - log pi_T), with the student's log-prob from
  sampling, and the policy loss of ``cfg.loss`` uses it. The teacher sends only one log-prob per token.
- ``full`` (GKD, arXiv 2306.13649): the loss is the divergence over the whole vocabulary: the reverse KL with
  ``lopd.beta`` 1, the forward KL with 0, the generalised JSD in between. No gradient flows through the sampling. The
  teacher sends hidden states instead of logits: both logits exist for ``optim.logprob_chunk`` positions at a time.

The teacher is any checkpoint that this package can load. It is frozen, and is on its own mesh (``lopd.fsdp``,
``lopd.tp``) or the student's. Its tokenizer must equal the student's.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ropd_jax.core.advantages import Advantages
from ropd_jax.methods.base import ExtraMemory, ExtraProgram, Extras, Method
from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.models.divergence import normed_hidden, vocabulary_divergence
from ropd_jax.models.logprobs import token_logprobs
from ropd_jax.parallel import hosts
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.types import Judgement, RolloutGroup, UserError
from ropd_jax.weights.student import Student, load_checkpoint, outline

MODES = ("sampled", "full")
PROBE = "Let x = 12.5; then 3x + 7 = 44.5.\n\nÜber  20 %? <think>ok</think>\tAnswer: \\boxed{1,000}"


class LOPD(Method):
    by_group = True
    takes_exact = False

    def __post_init__(self):
        how = self.cfg.lopd
        if how.mode not in MODES:
            raise UserError(f"lopd.mode={how.mode!r}; expected one of {', '.join(MODES)}")
        if how.dtype not in ("float32", "bfloat16"):
            raise UserError(f"lopd.dtype={how.dtype!r}; expected float32 or bfloat16")
        if not 0.0 <= how.beta <= 1.0:
            raise UserError(f"lopd.beta={how.beta}; expected 0 (forward KL) to 1 (reverse KL)")
        if not how.checkpoint:
            raise UserError(
                f"method={self.cfg.method} needs a white-box teacher; set lopd.checkpoint to a directory, a .gguf file "
                "or a Hub id"
            )

    @property
    def asks(self):
        return {}

    async def judge(self, teacher, group: RolloutGroup) -> Judgement:
        n = len(group.rollouts)
        return Judgement(rewards=(1.0,) * n, causes=(None,) * n)  # every rollout is trained on

    def advantages(self, reward_PG, valid_PG, step):
        return Advantages(jnp.asarray(valid_PG).astype(jnp.float32), jnp.asarray(valid_PG), jnp.asarray(valid_PG))

    def check_student(self, student, mesh):
        mesh_lib.check_whole_rows(mesh, "the divergence from a white-box teacher")
        how = self.cfg.lopd
        teacher = outline(how.checkpoint, key="lopd.checkpoint")
        check_tokenizers(student, teacher)
        own = mesh_lib.make_mesh(how.fsdp, how.tp) if how.fsdp else mesh
        mesh_lib.check_divides(teacher.cfg, own, keys=self._mesh_keys)
        if how.fsdp and hosts.count() > 1:
            raise UserError(
                f"lopd.fsdp={how.fsdp} gives the white-box teacher its own mesh, which works on one host only; "
                "set lopd.fsdp=0: the student's mesh"
            )

    @property
    def _mesh_keys(self):
        """The keys of the sizes of the white-box teacher's mesh."""
        return ("lopd.fsdp", "lopd.tp") if self.cfg.lopd.fsdp else ("mesh.fsdp", "mesh.tp")

    def setup(self, student, mesh):
        how = self.cfg.lopd
        self.student_mesh = mesh
        self.mesh = mesh_lib.make_mesh(how.fsdp, how.tp) if how.fsdp else mesh
        self.teacher = load_checkpoint(how.checkpoint, mesh=self.mesh, dtype=how.dtype, key="lopd.checkpoint")
        self._prepare(student.cfg, self.teacher.cfg)
        self.table: Any = ()
        if how.mode == "full":
            table_VD = self.teacher.params["embed" if self.teacher_cfg.tied else "head"]["table_VD"]
            self.table = {"table_VD": mesh_lib.place(table_VD, self.named("VD"))}
        return ()

    def extra_memory(self, model, batch, prompt_len, read):
        how, self.student_mesh = self.cfg.lopd, batch.tokens_BT.sharding.mesh
        devices = list(self.student_mesh.devices.flat)
        self.mesh = mesh_lib.make_mesh(how.fsdp, how.tp, devices) if how.fsdp else self.student_mesh
        self._prepare(model, read(how.checkpoint))
        mesh_lib.check_divides(self.teacher_cfg, self.mesh, keys=self._mesh_keys)
        weights = transformer.param_shapes(self.teacher_cfg)
        weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(how.dtype)), weights)
        params = mesh_lib.shapes(weights, self.mesh)
        A, b, T = batch.tokens_BT.shape
        b = -(-b // self.mesh.shape["fsdp"]) * self.mesh.shape["fsdp"]
        named = jax.NamedSharding(self.mesh, mesh_lib.RULES.spec("BT"))
        row = jax.ShapeDtypeStruct((b, T), jnp.int32, sharding=named)

        def lower():
            with jax.set_mesh(self.mesh):
                return self.forward.lower(params, *[row] * 4)

        calls = A * self.cfg.optim.minibatches
        return ExtraMemory(
            params, (ExtraProgram("white-box teacher", lower, self.teacher_cfg, calls, 1, b * T, T, trains=False),)
        )

    def _prepare(self, student_cfg: ModelConfig, teacher_cfg: ModelConfig) -> None:
        how, self.teacher_cfg = self.cfg.lopd, teacher_cfg
        if how.mode == "full" and student_cfg.vocab_size != teacher_cfg.vocab_size:
            raise UserError(
                f"lopd.mode='full' compares whole vocabularies: the student's has {student_cfg.vocab_size} rows, "
                f"that of {how.checkpoint} {teacher_cfg.vocab_size}; set lopd.mode='sampled'"
            )
        cfg, full, attention = teacher_cfg, how.mode == "full", self.cfg.optim.attention
        temperature, chunk = self.cfg.sampling.temperature or 1.0, self.cfg.optim.logprob_chunk

        @jax.jit
        def forward(params, tokens_BT, targets_BT, positions_BT, segments_BT):
            x_BTD = transformer.hidden(
                cfg, params, tokens_BT, positions_BT, segments_BT, dtype=jnp.dtype(how.dtype), attention=attention
            )
            if full:
                return normed_hidden(cfg, params, x_BTD)
            return token_logprobs(cfg, params, x_BTD, targets_BT, temperature=temperature, chunk=chunk)[0]

        self.forward = forward

    def named(self, dims: str) -> jax.NamedSharding:
        return jax.NamedSharding(self.student_mesh, mesh_lib.RULES.spec(dims))

    def extras(self, trained, batch):
        """The teacher's log-probs of the targets, or its hidden states; a part without tokens is not computed."""
        rows = -len(batch.tokens_BT[0]) % self.mesh.shape["fsdp"]  # so that the parts divide over the teacher's mesh
        by_row = jax.NamedSharding(self.mesh, mesh_lib.RULES.spec("BT"))
        per_part, nothing = [], None
        for a in range(len(batch.tokens_BT)):
            part = [np.pad(x[a], ((0, rows), (0, 0))) for x in
                    (batch.tokens_BT, batch.targets_BT, batch.positions_BT, batch.segments_BT)]  # fmt: skip
            if nothing is not None and not part[3].any():
                per_part.append(nothing)
                continue
            with jax.set_mesh(self.mesh):
                found = self.forward(self.teacher.params, *(mesh_lib.place(x, by_row) for x in part))
            if rows:
                found = mesh_lib.place(found, jax.NamedSharding(self.student_mesh, jax.P()))[:-rows]
            per_part.append(mesh_lib.place(found, self.named("BT")))
            nothing = jnp.zeros_like(per_part[-1]) if nothing is None else nothing
        return Extras({"teacher": jnp.stack(per_part)}, self.table)

    def abstract_extras(self, batch):
        named, shape = batch.tokens_BT.sharding, batch.tokens_BT.shape
        if self.cfg.lopd.mode == "sampled":
            return Extras({"teacher": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=named)})
        cfg = self.teacher_cfg
        table = jax.NamedSharding(named.mesh, mesh_lib.RULES.spec("VD"))
        return Extras(
            {"teacher": jax.ShapeDtypeStruct((*shape, cfg.d_model), jnp.dtype(self.cfg.lopd.dtype), sharding=named)},
            {"table_VD": jax.ShapeDtypeStruct((cfg.vocab_size, cfg.d_model), self.cfg.lopd.dtype, sharding=table)},
        )

    def loss(self, tokens):
        if self.cfg.lopd.mode == "sampled":
            advantage_BT = jnp.where(tokens.batch.mask_BT, self.token_advantage(tokens), 0.0)
            loss_BT, metrics = self.surrogate(tokens, advantage_BT)
            return loss_BT, metrics | {"teacher_gap": -advantage_BT}
        table_VD = mesh_lib.RULES.gather(tokens.shared)["table_VD"]
        loss_BT = vocabulary_divergence(
            tokens.cfg,
            tokens.params,
            tokens.x_BTD,
            self.teacher_cfg,
            table_VD,
            tokens.extras["teacher"],
            beta=self.cfg.lopd.beta,
            temperature=self.cfg.sampling.temperature or 1.0,
            chunk=self.cfg.optim.logprob_chunk,
        )
        return loss_BT, {"divergence": loss_BT}

    def token_advantage(self, tokens) -> jax.Array:
        """-(log pi_S - log pi_T) of each sampled token, without a gradient."""
        return tokens.extras["teacher"] - tokens.old_logp_BT


def check_tokenizers(student: Student, teacher: Student) -> None:
    """Raise UserError where the two tokenizers differ: in the number of ids, in one id's text, or in how they cut."""
    mine, others = student.tokenizer, teacher.tokenizer
    remedy = "a white-box teacher must read the student's tokens: choose one of its family, or a text teacher"
    for i in range(min(mine.vocab_size, others.vocab_size)):
        a, b = mine.decode([i]), others.decode([i])
        if a != b:
            raise UserError(f"the tokenizers differ: id {i} is {a!r} for the student, {b!r} for the teacher; {remedy}")
    if mine.vocab_size > others.vocab_size:
        i = others.vocab_size
        raise UserError(
            f"the tokenizers differ: the student has {mine.vocab_size} ids, the teacher {others.vocab_size}; id {i} "
            f"({mine.decode([i])!r}) is not the teacher's; {remedy}"
        )
    for text in (PROBE, "Answer: 12"):
        try:
            ours, theirs = list(mine.encode(text)), list(others.encode(text))
        except UserError:  # characters that a tiny tokenizer lacks
            continue
        if ours != theirs:
            same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False))
            at = sum(1 for _ in same)
            raise UserError(
                f"the tokenizers differ: the first {at} tokens of {text!r} are equal, then the student's are "
                f"{ours[at : at + 3]}, the teacher's {theirs[at : at + 3]}; {remedy}"
            )


METHOD = LOPD
