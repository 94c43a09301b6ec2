"""Sample answers from a student: no config, and no mesh to set up.

    student = ropd.load_student("tiny")
    groups = ropd.sample(student, ["1 + 2 =", "3 + 4 ="], n=4)
    print(groups[0].rollouts[0].text)

`sample` is `engine.sample_groups` with the settings chosen from the prompts and the student.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from ropd_jax.models.config import ModelConfig
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.sampling.engine import EngineConfig, sample_groups
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.text.tokenizer import Tokenizer
from ropd_jax.types import Message, Prompt, RolloutGroup, UserError
from ropd_jax.utils.logs import show_logs

log = logging.getLogger(__name__)

REPORT_EVERY_S = 5.0
PROMPT_STEP = 16  # prompts are padded to a multiple of this many tokens, so few programs are compiled
MOST_TOKENS = 512  # of an answer, if the caller gives no limit

PromptLike = str | Prompt | Sequence[Message | Mapping[str, str]]


class Student(Protocol):
    """The interface of a student, e.g. `ropd_jax.weights.student.Student`."""

    @property
    def cfg(self) -> ModelConfig: ...

    @property
    def params(self) -> dict: ...

    @property
    def tokenizer(self) -> Tokenizer: ...


def sample(
    student: Student,
    prompts: PromptLike | Sequence[PromptLike],
    n: int = 8,
    max_tokens: int | None = None,
    temperature: float = 1.0,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    rows: int = 64,
    dtype: str = "float32",
) -> list[RolloutGroup]:
    """``n`` answers to each prompt, as one `RolloutGroup` per prompt in the order of the prompts.

    The same arguments give the same answers. Weights in host memory are copied to the devices at every call; load the
    student onto a mesh to avoid that (``load_student(name, mesh=make_mesh())``).

    Args:
        student: what `load_student` returns. If its weights are on a mesh, that mesh is used; else one over the
            devices of this host.
        prompts: texts, chats (lists of `Message` or of ``{"role": ..., "content": ...}``) or `Prompt`s. A single prompt
            counts as a list of one.
        n: answers per prompt.
        max_tokens: maximum length of an answer; None is what fits into the student's longest sequence, up to 512.
        temperature: 0 is greedy.
        top_k, top_p: see `SamplingRule`; 0 and 1 keep all tokens.
        stop: texts that end an answer.
        seed: together with the text of a prompt (or the id of a `Prompt`) it fixes the random numbers.
        rows: approximate number of answers that decode side by side.
        dtype: compute dtype.

    Raises:
        UserError: a prompt of a wrong type, settings out of range, or prompt and answer longer than the student's
            longest sequence; or a student whose sizes do not divide over the current mesh.
    """
    show_logs()
    asked = as_prompts(prompts)
    if n < 1 or rows < 1 or seed < 0 or (max_tokens is not None and max_tokens < 1):
        raise UserError(
            f"n={n}, max_tokens={max_tokens}, rows={rows}, seed={seed}; expected positive numbers, a seed of 0 or more"
        )
    if not asked:
        return []
    tokens = [np.asarray(student.tokenizer.apply_chat_template(p.messages), np.int32) for p in asked]
    prompt_len, max_tokens = _lengths(max(map(len, tokens)), max_tokens, student.cfg.max_seq_len)
    mesh = _mesh_of(student)
    shards = mesh.shape["fsdp"]
    side_by_side = min(len(asked), max(1, rows // n))
    engine = EngineConfig(
        rollouts=n,
        prompts=-(-side_by_side // shards) * shards,
        prompt_len=prompt_len,
        max_tokens=max_tokens,
        stop_ids=student.tokenizer.stop_ids,
        rule=SamplingRule(temperature, top_k, top_p),
        dtype=dtype,
        stop=tuple(stop),
    )
    log.info("sampling %d prompts x %d answers of at most %d tokens", len(asked), n, max_tokens)
    begin = reported = time.monotonic()
    found: dict[int, RolloutGroup] = {}
    with jax.set_mesh(mesh):
        params = _placed(student.params, mesh)
        for group in sample_groups(student.cfg, engine, params, student.tokenizer, asked, tokens, seed=seed, step=0):
            found[group.index] = group
            if (now := time.monotonic()) - reported > REPORT_EVERY_S:
                reported = now
                log.info("sampled %d of %d prompts in %.0f s", len(found), len(asked), now - begin)
    log.info("sampled %d prompts in %.1f s", len(found), time.monotonic() - begin)
    return [found[i] for i in range(len(asked))]


def as_prompts(prompts: PromptLike | Sequence[PromptLike]) -> list[Prompt]:
    """Texts, chats or `Prompt`s as `Prompt`s. The id of a text or chat is a hash of it.

    Raises:
        UserError: another type, or an empty chat.
    """
    if isinstance(prompts, (str, Prompt)) or _is_chat(prompts):
        return [_as_prompt(prompts)]
    return [_as_prompt(p) for p in prompts]


def _is_chat(prompts: Sequence[Any]) -> bool:
    return bool(prompts) and isinstance(prompts[0], (Message, Mapping))


def _as_prompt(what: Any) -> Prompt:
    if isinstance(what, Prompt):
        return what
    messages: tuple[Message, ...]
    if isinstance(what, str):
        messages = (Message("user", what),)
    elif isinstance(what, Sequence) and what:
        messages = tuple(map(_as_message, what))
    else:
        raise UserError(f"prompt {what!r}; expected a text, a list of messages or a Prompt")
    text = json.dumps([dataclasses.astuple(m) for m in messages])
    return Prompt(hashlib.sha256(text.encode()).hexdigest()[:16], messages)


def _as_message(what: Any) -> Message:
    if isinstance(what, Message):
        return what
    if isinstance(what, Mapping) and all(isinstance(what.get(key), str) for key in ("role", "content")):
        return Message(what["role"], what["content"])
    raise UserError(f'message {what!r}; expected a Message or {{"role": "user", "content": "..."}}')


def _lengths(longest: int, max_tokens: int | None, limit: int) -> tuple[int, int]:
    """(padded length of the prompts, longest answer), which together fit into ``limit`` tokens.

    A longest prompt of 21 tokens is padded to 32. With a limit of 128 tokens the answer then has up to 96.
    """
    prompt_len = min(-(-longest // PROMPT_STEP) * PROMPT_STEP, max(longest, limit - (max_tokens or 1)))
    room = limit - prompt_len
    if room < (max_tokens or 1):
        raise UserError(
            f"the longest prompt has {longest} tokens and the answer {max_tokens or 1}, more than the {limit} that the "
            f"student supports; give max_tokens={limit - longest} or less"
            if longest < limit
            else f"the longest prompt has {longest} tokens, but the student supports only {limit}; shorten it"
        )
    return prompt_len, max_tokens or min(room, MOST_TOKENS)


def _mesh_of(student: Student) -> jax.sharding.Mesh:
    """The mesh of the weights, else the current mesh, else one over the devices of this host."""
    sharding = getattr(jax.tree.leaves(student.params)[0], "sharding", None)
    if isinstance(sharding, jax.NamedSharding) and isinstance(sharding.mesh, jax.sharding.Mesh):
        return sharding.mesh
    if isinstance(active := jax.sharding.get_mesh(), jax.sharding.Mesh) and not active.empty:
        mesh_lib.check_divides(student.cfg, active)
        return active
    devices = jax.local_devices()
    fsdp, tp = mesh_lib.nearest_meshes(student.cfg, len(devices), len(devices), 1)[0]
    return mesh_lib.make_mesh(fsdp, tp, devices)


def _placed(params: dict, mesh: jax.sharding.Mesh) -> dict:
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if isinstance(sharding, jax.NamedSharding) and sharding.mesh == mesh:
        return params
    return mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
