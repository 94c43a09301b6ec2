"""From names in a config to a client."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ropd_jax.teacher.clients.client import ChatClient, ConfigurationError
from ropd_jax.teacher.traffic.budget import Budget, MeteredClient
from ropd_jax.teacher.traffic.retries import LimitedClient, Limits
from ropd_jax.teacher.traffic.stats import TeacherStats

PROVIDERS = ("scripted", "gemini", "openai")
_LIMITS = (
    "concurrency", "min_concurrency", "requests_per_minute", "tokens_per_minute", "timeout_s", "attempts", "max_wait_s",
    "hedge_after_s", "order",
)  # fmt: skip


def limit_options(teacher: Mapping[str, Any], *, share: float = 1.0) -> dict[str, Any]:
    """The limits that ``cfg.teacher`` sets, as keywords of ``make_client``; ``share`` is 1/N with N hosts."""
    return {name: teacher[name] for name in _LIMITS} | {"share": share}


def make_client(
    *,
    provider: str,
    base_url: str = "",
    api_key_env: str = "",
    scripted: Mapping[str, Any] | None = None,
    stats: TeacherStats | None = None,
    budget: Budget | None = None,
    **limits: Any,
) -> LimitedClient:
    """A provider's client with limits, retries and a time limit around it.

    Args:
        provider: ``scripted``, ``gemini`` or ``openai``.
        base_url: "" for the provider's own address. For ``openai`` it ends in ``/v1``.
        api_key_env: name of the environment variable with the key; "" for the provider's usual one.
        scripted: options of ``ScriptedClient``.
        stats: where retries are counted.
        budget: what counts each try's cost and refuses it at a cap.
        limits: fields of ``Limits`` (concurrency, timeout_s, attempts, ...).

    Raises:
        ConfigurationError: unknown provider, no key, a number out of range.
    """
    if provider not in PROVIDERS:
        near = difflib.get_close_matches(provider, PROVIDERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigurationError(f"teacher.provider is {provider!r}; expected one of {', '.join(PROVIDERS)}{hint}")
    bounds = Limits(**limits)
    if base_url and not base_url.startswith(("http://", "https://")):
        raise ConfigurationError(f"teacher.base_url is {base_url!r}; expected http://... or https://...")
    client: ChatClient
    if provider == "scripted":
        from ropd_jax.teacher.scripted.client import ScriptedClient

        client = ScriptedClient(**(scripted or {}))
    elif provider == "gemini":
        from ropd_jax.teacher.clients.gemini import GeminiClient

        client = GeminiClient(base_url=base_url, api_key_env=api_key_env, timeout_s=bounds.timeout_s)
    else:
        from ropd_jax.teacher.clients.openai import OpenAIClient

        client = OpenAIClient(base_url=base_url, api_key_env=api_key_env, timeout_s=bounds.timeout_s)
    if budget is not None:
        client = MeteredClient(client, budget, provider=provider, base_url=base_url)
    return LimitedClient(client, bounds, stats=stats)
