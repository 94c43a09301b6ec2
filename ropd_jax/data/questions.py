"""The questions of a run: training and held-out, disjoint, none over the length limit.

Prompts are tokenized when they are needed (`Questions.tokens_of`). Before the first step only their lengths are
counted: the padded length of all prompts must be known before anything is compiled, and the prompts that are too long
must be known before the rest are permuted. The hosts share the counting: host i of N counts prompts i, i + N, i + 2 N
..., and exchanges its longest length and one bit per prompt. The last `KEPT` tokens stay in memory: all of a small set,
few of a large
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
from ropd_jax.data.mixture import MixtureSource, held_out_of, interleaved, sources_of, split
from ropd_jax.data.packed import Packed, select
from ropd_jax.data.prompts import PromptSet, disjoint, normalise
from ropd_jax.data.reasoning_gym import check_seeds
from ropd_jax.text.tokenizer import Tokenizer
from ropd_jax.types import Prompt, UserError

log = logging.getLogger(__name__)

KEPT = 4_000_000  # tokens of 4 bytes


class Hosts(Protocol):
    """The interface to the hosts of a run; the module `parallel.hosts` is one."""

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
    """Tokens of prompts, computed on first use; the last `KEPT` are kept."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._kept: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
        self._size = 0

    def of(self, prompt: Prompt) -> np.ndarray:
        """int32 [T], with the student's chat template."""
        tokens_T = self._kept.get(prompt.id)
        if tokens_T is None:
            tokens_T = np.asarray(self._tokenizer.apply_chat_template(prompt.messages), np.int32)
            self._kept[prompt.id] = tokens_T
            self._size += len(tokens_T)
            while self._size > KEPT:
                self._size -= len(self._kept.popitem(last=False)[1])
        return tokens_T


class Questions(NamedTuple):
    """Prompts, none over the length limit.

    Attributes:
        prompts: in the order of their source.
        dropped: the number of prompts left out, by cause.
        longest: tokens of the longest prompt.
        tokens: the tokens of these prompts.
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
    """(training, held-out) questions, disjoint, with their lengths under the student's chat template.

    Args:
        data: the section ``data`` of a config. Without held-out data (``data.heldout=False``, or JSONL without a
            ``heldout_path``) the second is empty, which is logged.
        hosts: the hosts that share the work; each must call it. None: this process only.

    Raises:
        UserError: seeds that share items, an empty set, every prompt over ``data.max_prompt_tokens``, or hosts that
            read different questions.
    """
    hosts = hosts or _Alone()
    sources = sources_of(data)
    limit = data.max_prompt_tokens
    if why := no_heldout(data):
        log.warning(
            "no held-out data (%s): the run measures no accuracy and cannot detect drift of the reward; result.json "
            "has heldout_n 0",
            why,
        )
        train, held = training_prompts(data), PromptSet(())
    else:
        held = _held_out(data, sources)
        train = disjoint(training_prompts(data), held)
    trained = _measured(train, tokenizer, limit, "training", hosts, data.size)
    if not held:
        return trained, Questions((), {}, 0, Tokens(tokenizer))
    return trained, _measured(held, tokenizer, limit, "held-out", hosts, data.heldout_size)


def training_prompts(data: Mapping[str, Any]) -> PromptSet:
    """The training prompts of a section ``data``, including held-out ones; a question in two sources belongs to the
    first one.

    Raises:
        UserError: see `load_prompts`.
    """
    return _joined([_of_source(s, s.data["path"], s.data["size"], s.data["seed"]) for s in sources_of(data)])


def _held_out(data: Mapping[str, Any], sources: Sequence[MixtureSource]) -> PromptSet:
    """The held-out prompts: of each source in proportion to its share, ordered so that every prefix has the same
    proportions; or of one source (``data.heldout_from``)."""
    total, held = data["heldout_size"], held_out_of(data, sources)
    sizes = split(total, [s.share for s in held]) if total else [total] * len(held)
    for s, size in zip(held, sizes, strict=True):
        if s.data["source"] == "reasoning_gym":
            check_seeds(
                train_seed=s.data["seed"],
                train_size=s.data["size"],
                heldout_seed=s.data["heldout_seed"],
                heldout_size=size,
            )
    parts = [
        _of_source(s, s.held_path, size, s.data["heldout_seed"])
        for s, size in zip(held, sizes, strict=True)
        if size or not total
    ]
    return _joined(parts, mixed=True)


def _of_source(source: MixtureSource, path: str, size: int | None, seed: int) -> PromptSet:
    d = source.data
    return load_prompts(
        source=d["source"], task=d["task"], path=path, size=size, seed=seed, options=dict(d["options"]),
        template=d["template"], system=d["system"], keep=lambda found: Packed(map(source.mark, found)),
    )  # fmt: skip


def _joined(parts: Sequence[PromptSet], *, mixed: bool = False) -> PromptSet:
    """The prompts of several sources, one after the other or ``mixed``, without repeated questions."""
    if len(parts) == 1:
        return parts[0]
    dropped = collections.Counter[str]()
    for part in parts:
        dropped.update(part.dropped)
    seen: set[str] = set()
    places: list[list[int]] = []
    for part in parts:
        places.append([])
        for i, prompt in enumerate(part):
            key = normalise(prompt.metadata.get("question", prompt.question))
            if key in seen:
                dropped["duplicate"] += 1
            else:
                seen.add(key)
                places[-1].append(i)
    if mixed:
        order = interleaved([len(own) for own in places])
        chosen = (parts[s][places[s][i]] for s, i in order)
    else:
        chosen = (part[i] for part, own in zip(parts, places, strict=True) for i in own)
    return PromptSet(Packed(chosen), dict(dropped))


def no_heldout(data: Mapping[str, Any]) -> str:
    """Why a run with this section ``data`` has no held-out data; "" if it has some."""
    if not data["heldout"]:
        return "data.heldout=False"
    sources = sources_of(data)
    if held_out_of(data, sources):
        return ""
    return "no source has a heldout_path" if len(sources) > 1 else "data.heldout_path is empty"


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
    log.info("%s prompts: %d%s; dropped: %s", name, len(kept), _by_source(kept), dropped or "none")
    if left := dropped.get(OVER_SIZE):
        key = "data.size" if name == "training" else "data.heldout_size"
        log.warning("%s=%s leaves %d %s prompts out; 0 keeps all", key, size, left, name)
    return Questions(kept, dropped, longest, tokens)


def _by_source(prompts: Sequence[Prompt]) -> str:
    """`` (gsm8k 900, math 100)``; "" for one source."""
    counts = collections.Counter(p.source for p in prompts)
    return "" if set(counts) <= {""} else f" ({', '.join(f'{name} {n}' for name, n in counts.items())})"


def _texts(prompts: Iterable[Prompt]) -> Iterator[tuple[str, str]]:
    """The values that must be equal on all hosts, by prompt id: place, chat and gold answer."""
    for i, p in enumerate(prompts):
        chat = "\0".join(f"{m.role}\0{m.content}" for m in p.messages)
        yield p.id, f"{chat}\0{p.answer}\0{p.solution} (prompt {i})"


def _count(prompts: PromptSet, tokens: Tokens, limit: int, name: str, hosts: Hosts) -> tuple[int, np.ndarray]:
    """(tokens of the longest prompt within the limit, which prompts exceed it, bool [N])."""
    problem, longest, shortest, long = "", 0, np.inf, []
    try:
        for i in range(hosts.index(), len(prompts), hosts.count()):
            length = len(tokens.of(prompts[i]))
            shortest = min(shortest, length)
            longest = longest if length > limit else max(longest, length)
            long.append(length > limit)
    except UserError as error:  # a character without a token, a template that rejects the chat: raised on all hosts
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
