"""The questions of a run: training and held-out, disjoint, none longer than the limit.

Prompts are tokenized when they are needed (`Questions.tokens_of`). Before the first step only their lengths are
counted, because the padded length of all prompts must be known before anything is compiled, and which are too long
before the prompts are permuted. The hosts share that: host i of N counts prompts i, i + N, i + 2 N ..., and exchanges
its longest and one bit per prompt. Of the tokens, the last `KEPT` stay in memory: all of a small set, few of a large
one.
"""

from __future__ import annotations

import collections
import logging
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from ml_collections import ConfigDict

from ropd_jax.data.load import OVER_SIZE, load_prompts
from ropd_jax.data.packed import Packed, select
from ropd_jax.data.prompts import PromptSet, disjoint
from ropd_jax.data.reasoning_gym import check_seeds
from ropd_jax.text.tokenizer import Tokenizer
from ropd_jax.types import Prompt, UserError

log = logging.getLogger(__name__)

KEPT = 4_000_000  # tokens, of 4 bytes


class Hosts(Protocol):
    """What is needed of the hosts of a run; the module `parallel.hosts` is one."""

    def count(self) -> int: ...

    def index(self) -> int: ...

    def exchange(self, value: Any) -> list[Any]: ...

    def check_same(self, what: str, value: Callable[[], Iterable[tuple[str, Any]]]) -> None: ...


class _Alone:
    """One host."""

    def count(self) -> int:
        return 1

    def index(self) -> int:
        return 0

    def exchange(self, value: Any) -> list[Any]:
        return [value]

    def check_same(self, what: str, value: Callable[[], Iterable[tuple[str, Any]]]) -> None:
        pass


class Tokens:
    """Tokens of prompts, made when they are asked; the last `KEPT` are kept."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._kept: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
        self._size = 0

    def of(self, prompt: Prompt) -> np.ndarray:
        """int32 [T], by the chat template of the student."""
        tokens_T = self._kept.get(prompt.id)
        if tokens_T is None:
            tokens_T = np.asarray(self._tokenizer.apply_chat_template(prompt.messages), np.int32)
            self._kept[prompt.id] = tokens_T
            self._size += len(tokens_T)
            while self._size > KEPT:
                self._size -= len(self._kept.popitem(last=False)[1])
        return tokens_T


class Questions(NamedTuple):
    """Prompts, none longer than the limit.

    Attributes:
        prompts: in the order of their source.
        dropped: how many were left out, by cause.
        longest: tokens of the longest one.
        tokens: of these prompts.
    """

    prompts: Sequence[Prompt]
    dropped: Mapping[str, int]
    longest: int
    tokens: Tokens

    def tokens_of(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """The tokens of some of the prompts, int32 [T] each."""
        return [self.tokens.of(p) for p in prompts]

    def find(self, ids: Collection[str]) -> dict[str, Prompt]:
        """The prompts with these ids."""
        wanted = set(ids)
        return {p.id: p for p in self.prompts if p.id in wanted} if wanted else {}


def load_questions(data: ConfigDict, tokenizer: Tokenizer, hosts: Hosts | None = None) -> tuple[Questions, Questions]:
    """(training, held-out) questions, disjoint, with the lengths that the student's chat template gives them.

    Args:
        data: the section ``data`` of a config. Without held-out data (``data.heldout=False``, or JSONL without a
            ``heldout_path``) the second has no prompts, and the log says so.
        hosts: the hosts that share the work; each must call it. None: this process only.

    Raises:
        UserError: seeds that share items, an empty set, every prompt over ``data.max_prompt_tokens``, or hosts that
            have read different questions.
    """
    hosts = hosts or _Alone()
    common = dict(
        source=data.source, task=data.task, options=data.options.to_dict(), template=data.template, system=data.system
    )
    limit = data.max_prompt_tokens
    if why := no_heldout(data):
        log.warning(
            "no held-out data (%s): the run measures no accuracy and watches for no drift of the reward; result.json "
            "has heldout_n 0",
            why,
        )
        train = load_prompts(**common, path=data.path, size=data.size, seed=data.seed, keep=Packed)
        return _measured(train, tokenizer, limit, "training", hosts, data.size), Questions((), {}, 0, Tokens(tokenizer))
    if data.source == "reasoning_gym":
        check_seeds(
            train_seed=data.seed,
            train_size=data.size,
            heldout_seed=data.heldout_seed,
            heldout_size=data.heldout_size,
        )
    # a published set without a held-out path is drawn from twice, by two seeds; `disjoint` removes what both drew
    held_path = data.heldout_path or (data.path if data.source == "published" else "")
    held = load_prompts(**common, path=held_path, size=data.heldout_size, seed=data.heldout_seed, keep=Packed)
    train = disjoint(load_prompts(**common, path=data.path, size=data.size, seed=data.seed, keep=Packed), held)
    return (
        _measured(train, tokenizer, limit, "training", hosts, data.size),
        _measured(held, tokenizer, limit, "held-out", hosts, data.heldout_size),
    )


def no_heldout(data: Mapping[str, Any]) -> str:
    """Why a run with this section ``data`` has no held-out data; "" if it has."""
    if not data["heldout"]:
        return "data.heldout=False"
    return "data.heldout_path is empty" if data["source"] == "jsonl" and not data["heldout_path"] else ""


def _measured(
    found: PromptSet, tokenizer: Tokenizer, limit: int, name: str, hosts: Hosts, size: int | None
) -> Questions:
    hosts.check_same(f"a {name} prompt", lambda: _texts(found))
    tokens = Tokens(tokenizer)
    longest, long_N = _count(found, tokens, limit, name, hosts)
    kept = select(found.prompts, np.flatnonzero(~long_N).tolist())
    dropped = dict(found.dropped)
    if too_long := int(long_N.sum()):
        dropped["too_long"] = too_long
    log.info("%s prompts: %d; dropped: %s", name, len(kept), dropped or "none")
    if left := dropped.get(OVER_SIZE):
        key = "data.size" if name == "training" else "data.heldout_size"
        log.warning("%s=%s leaves %d %s prompts out; 0 takes all", key, size, left, name)
    return Questions(kept, dropped, longest, tokens)


def _texts(prompts: Iterable[Prompt]) -> Iterator[tuple[str, str]]:
    """What the hosts must agree on, by the prompt's id: place, chat and gold answer."""
    for i, p in enumerate(prompts):
        chat = "\0".join(f"{m.role}\0{m.content}" for m in p.messages)
        yield p.id, f"{chat}\0{p.answer}\0{p.solution} (prompt {i})"


def _count(prompts: PromptSet, tokens: Tokens, limit: int, name: str, hosts: Hosts) -> tuple[int, np.ndarray]:
    """(tokens of the longest prompt within the limit, which prompts are beyond it, bool [N])."""
    problem, longest, shortest, long = "", 0, np.inf, []
    try:
        for i in range(hosts.index(), len(prompts), hosts.count()):
            length = len(tokens.of(prompts[i]))
            shortest = min(shortest, length)
            longest = longest if length > limit else max(longest, length)
            long.append(length > limit)
    except UserError as error:  # a character in no token, a template that refuses the chat: all hosts end with it
        problem = str(error)
    bits = zlib.compress(np.packbits(np.asarray(long, bool)).tobytes())
    found = hosts.exchange((problem, longest, shortest, bits))
    if problems := [p for p, *_ in found if p]:
        raise UserError(problems[0])
    long_N = np.zeros(len(prompts), bool)
    for host, (*_, bits) in enumerate(found):
        share = long_N[host :: len(found)]
        share[:] = np.unpackbits(np.frombuffer(zlib.decompress(bits), np.uint8), count=len(share))
    if long_N.all():
        raise UserError(
            f"all {len(prompts)} {name} prompts are longer than data.max_prompt_tokens={limit} "
            f"(the shortest has {min(s for _, _, s, _ in found)} tokens); raise it"
        )
    return max(longest for _, longest, *_ in found), long_N
