"""Reads answers from a rollout server's reply: token ids with the log-prob of each. No jax.

Three formats contain both; all of them are supported:

    vLLM       choice.token_ids, choice.logprobs.token_logprobs      return_token_ids (vllm-project/vllm#22587)
               choice.logprobs.tokens ["token_id:42", ...]           return_tokens_as_token_ids, in earlier versions
    SGLang     the same, or choice.response_token_ids                return_token_ids (sgl-project/sglang#30917, #38459)
    llama.cpp  choice.logprobs.content [{"id": 42, "logprob": -0.3}]

The text of a reply is never used, because tokenizing it is ambiguous. A reply that lacks something, or that cannot be
an answer of this student, ends the run: the fault affects all replies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ropd_jax.teacher.clients.errors import ConfigurationError, TransientError

ROUNDING = 1e-3  # by which a log-prob can exceed 0
CERTAIN = -30.0  # two equal answers of this log-prob are copies: by chance they occur once in 1e13
_TOKEN = "token_id:"
_TOO_SHORT = {"abort": "aborted", "error": "server_error"}  # finish reasons of answers that are worth a retry


class Answer(NamedTuple):
    """One answer.

    Attributes:
        tokens: the sampled tokens, including the stop token if there is one.
        logp: the log-prob of each, as reported by the server.
        stopped: False if it was cut at the token limit.
    """

    tokens: list[int]
    logp: list[float]
    stopped: bool


class Expected(NamedTuple):
    """Requirements on a reply.

    Attributes:
        n: answers. prompt: the tokens that were sent. vocab: token ids are below it. max_tokens: of an answer.
        stop_ids: tokens that end an answer; ``stop_texts``: whether texts can also end one.
    """

    n: int
    prompt: Sequence[int]
    vocab: int
    max_tokens: int
    stop_ids: Sequence[int]
    stop_texts: bool


def read_answers(reply: object, want: Expected, server: str) -> list[Answer]:
    """The answers of a completion's JSON, in the order of their index.

    Args:
        server: its address, for messages.

    Raises:
        ConfigurationError: with the missing or impossible value, and the remedy.
        TransientError: the server aborted an answer.
    """
    choices = reply.get("choices") if isinstance(reply, Mapping) else None
    if not isinstance(choices, list) or not all(isinstance(c, Mapping) for c in choices):
        raise _wrong(server, "sent a reply without choices", "a completion", "sampling.server.base_url must end in /v1")
    if len(choices) != want.n:
        raise _wrong(
            server, f"sent {len(choices)} answers", f"{want.n}, the request's n",
            "set sampling.server.answers_per_request=1",
        )  # fmt: skip
    places = [c.get("index", i) for i, c in enumerate(choices)]
    if sorted(map(str, places)) != sorted(map(str, range(want.n))):
        raise _wrong(server, f"numbers its answers {places[:8]}", f"0 to {want.n - 1}", "use another server version")
    return [_answer(c, want, server) for _, c in sorted(zip(places, choices, strict=True), key=lambda x: int(x[0]))]


def _answer(choice: Mapping[str, Any], want: Expected, server: str) -> Answer:
    reason = choice.get("finish_reason")
    if reason in _TOO_SHORT:
        raise TransientError(f"{server} ended an answer with {reason!r}", cause=_TOO_SHORT[reason])
    if reason not in ("stop", "length"):
        raise _wrong(
            server, f"ended an answer with {_short(reason)}", "'stop' or 'length'", "use another server version"
        )
    tokens, logp = _tokens_and_logp(choice, server)
    stop_token = next((x for k in ("stop_reason", "matched_stop") if isinstance(x := choice.get(k), int)), None)
    if reason == "stop" and len(logp) == len(tokens) + 1 and stop_token is not None and stop_token in want.stop_ids:
        tokens = [*tokens, stop_token]  # its log-prob is present, only its id is missing
    if len(tokens) != len(logp):
        raise _wrong(
            server, f"sent {len(tokens)} token ids with {len(logp)} log-probs", "one for each",
            "use a version that returns both for every token, including the stop token",
        )  # fmt: skip
    if not tokens:
        raise _wrong(server, "sent an answer without tokens", "at least the stop token", _KEEP_STOP)
    _check_tokens(choice, tokens, want, server)
    _check_logp(logp, server)
    stopped = tokens[-1] in want.stop_ids
    if reason == "stop" and not stopped and not want.stop_texts:
        named = f"; its stop token is {stop_token}" if stop_token is not None else ""
        raise _wrong(
            server, f"ended an answer at token {tokens[-1]}{named}", f"a stop token of the student {want.stop_ids}",
            _KEEP_STOP,
        )  # fmt: skip
    if reason == "length" and len(tokens) < want.max_tokens and not stopped:
        raise _wrong(
            server, f"cut an answer at {len(tokens)} tokens", f"sampling.max_tokens={want.max_tokens}",
            "start it with a longer context (vLLM: --max-model-len)",
        )  # fmt: skip
    return Answer(tokens, logp, reason == "stop")


_KEEP_STOP = (
    "the stop token must be part of the answer and be one of the student's: serve the student's own checkpoint, "
    "and vLLM with --generation-config vllm"
)


def _tokens_and_logp(choice: Mapping[str, Any], server: str) -> tuple[list[int], list[Any]]:
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, Mapping):
        raise _wrong(server, "sent no log-probs", "logprobs, which was requested", "use a server that has them")
    content, logp = logprobs.get("content"), logprobs.get("token_logprobs")
    ids: list[Any]
    if isinstance(content, list) and all(isinstance(c, Mapping) for c in content):
        logp = [c.get("logprob") for c in content]
        ids = [c["id"] if "id" in c else _numbered(c.get("token")) for c in content]
    else:
        ids = [_numbered(t) for t in logprobs.get("tokens") or ()]
    if not isinstance(logp, list):
        raise _wrong(server, "sent no log-probs of tokens", "logprobs.token_logprobs", "use a server that has them")
    own = next((x for k in ("token_ids", "response_token_ids") if isinstance(x := choice.get(k), list)), None)
    ids = ids if own is None else own
    if any(type(i) is not int for i in ids) or (logp and not ids):
        raise _wrong(
            server, "sent no token ids", "token_ids, or tokens as token_id:42",
            "use a version with return_token_ids (vLLM#22587, SGLang#30917)",
        )  # fmt: skip
    return ids, logp


def _numbered(token: object) -> int | None:
    """42 of ``token_id:42``."""
    number = token.removeprefix(_TOKEN) if isinstance(token, str) and token.startswith(_TOKEN) else ""
    return int(number) if number.isascii() and number.isdecimal() and len(number) < 10 else None


def _check_tokens(choice: Mapping[str, Any], tokens: Sequence[int], want: Expected, server: str) -> None:
    if len(tokens) > want.max_tokens:
        raise _wrong(
            server, f"sent an answer of {len(tokens)} tokens", f"at most sampling.max_tokens={want.max_tokens}",
            "use another server version",
        )  # fmt: skip
    if (bad := next((t for t in tokens if not 0 <= t < want.vocab), None)) is not None:
        raise _wrong(server, f"sent token {bad}", f"ids below {want.vocab}, the student's", _SAME_MODEL)
    prompt = choice.get("prompt_token_ids")
    if isinstance(prompt, list) and prompt != list(want.prompt):
        raise _wrong(
            server, f"answered a prompt of {len(prompt)} tokens that differs from the one that was sent", "the same",
            "a proxy or a server option changes prompts: turn it off",
        )  # fmt: skip


_SAME_MODEL = "it serves another model: name the student's with sampling.server.model"


def _check_logp(logp: Sequence[Any], server: str) -> None:
    for x in logp:
        if type(x) not in (int, float) or not math.isfinite(x):
            raise _wrong(
                server, f"sent a log-prob of {_short(x)}", "a finite number",
                "its numbers overflow: check its dtype and its weights",
            )  # fmt: skip
        if x > ROUNDING:
            raise _wrong(
                server, f"sent a log-prob of {x:.4g}", "at most 0", "start vLLM with --logprobs-mode processed_logprobs"
            )


def check_copies(answers: Sequence[Answer], server: str) -> None:
    """Reject answers to one prompt that were drawn with the same random numbers: such a group teaches nothing.

    Raises:
        ConfigurationError: two answers are equal, which is very unlikely by chance.
    """
    seen = set()
    for answer in answers:
        key = tuple(answer.tokens)
        if key in seen and sum(answer.logp) < CERTAIN:
            raise _wrong(
                server, "sent the same answer twice for a prompt", "independent answers",
                "it uses one seed for all n answers, or ignores seeds: set sampling.server.answers_per_request=1",
            )  # fmt: skip
        seen.add(key)


def _wrong(server: str, seen: str, expected: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"the rollout server {server} {seen}; expected {expected}; {remedy}")


def _short(value: object) -> str:
    return " ".join(repr(value).split())[:40]
