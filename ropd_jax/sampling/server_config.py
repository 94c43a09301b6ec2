"""The settings of a rollout server: those of the config, and those of one call. `sampling.external` uses them."""

from __future__ import annotations

import dataclasses

from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.teacher.clients.endpoint import check_address
from ropd_jax.types import UserError

OWN, OPENAI = "own", "openai"  # values of ``sampling.engine``
SYNCS = ("vllm", "sglang", "vllm_lora", "none")


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """``cfg.sampling.server``; `configs.default` explains each field."""

    base_url: str
    model: str
    api_key_env: str
    sync: str
    sync_every: int
    weights_dir: str
    answers_per_request: int
    concurrency: int
    timeout_s: float
    attempts: int
    wait_s: float
    max_gap: float

    def __post_init__(self):
        check_address(self.base_url, "sampling.server.base_url")
        if not self.base_url:
            raise UserError(
                "sampling.server.base_url is empty; expected the server's address, http://127.0.0.1:8000/v1"
            )
        if self.sync not in SYNCS:
            raise UserError(
                f"sampling.server.sync={self.sync!r}; expected how the server gets new weights, one of "
                f"{', '.join(SYNCS)} (docs/engine.md)"
            )
        if self.sync == "none" and self.sync_every:
            raise UserError(
                "sampling.server.sync='none' would sample from the initial weights in every step; name how the server "
                "gets new ones, or set sampling.server.sync_every=0 if that is intended"
            )


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings for all answers of a call.

    Attributes:
        n: answers per prompt. max_tokens: of an answer, including the stop token.
        stop_ids, stop: tokens and texts that end an answer.
        vocab: token ids are below it.
    """

    n: int
    max_tokens: int
    rule: SamplingRule
    stop_ids: tuple[int, ...]
    stop: tuple[str, ...]
    vocab: int


def check_rule(rule: SamplingRule) -> None:
    """Raises UserError if the rule leaves tokens out.

    The update needs log-probs of the full distribution at the sampling temperature. A server returns them either
    before temperature, top-k and top-p (vLLM's raw_logprobs) or after all three (processed_logprobs).
    """
    if rule.truncates:
        raise UserError(
            f"sampling.top_k={rule.top_k} and top_p={rule.top_p:g} with sampling.engine='openai': a server's log-probs "
            "then do not belong to the full distribution, which the update needs; expected top_k=0 and top_p=1.0"
        )
