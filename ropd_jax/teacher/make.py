"""From names in a config to a client."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ropd_jax.teacher.client import ChatClient, ConfigurationError
from ropd_jax.teacher.retry import RetryingClient
from ropd_jax.teacher.stats import TeacherStats

PROVIDERS = ("scripted", "gemini", "openai")


def make_client(
    *,
    provider: str,
    base_url: str = "",
    api_key_env: str = "",
    concurrency: int = 16,
    timeout_s: float = 120.0,
    attempts: int = 5,
    first_wait_s: float = 1.0,
    max_wait_s: float = 60.0,
    scripted: Mapping[str, Any] | None = None,
    stats: TeacherStats | None = None,
) -> RetryingClient:
    """A provider's client with retries, a time limit and ``concurrency`` slots around it.

    Args:
        provider: ``scripted``, ``gemini`` or ``openai``.
        base_url: "" for the provider's own address. For ``openai`` it ends in ``/v1``.
        api_key_env: name of the environment variable with the key; "" for the provider's usual one.
        scripted: options of ``ScriptedClient``.
        stats: where retries are counted.

    Raises:
        ConfigurationError: unknown provider, no key, a number out of range.
    """
    if provider not in PROVIDERS:
        near = difflib.get_close_matches(provider, PROVIDERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigurationError(f"teacher.provider is {provider!r}; expected one of {', '.join(PROVIDERS)}{hint}")
    for name, value, least in (("concurrency", concurrency, 1), ("attempts", attempts, 1)):
        if value < least:
            raise ConfigurationError(f"teacher.{name} is {value}; expected at least {least}")
    if timeout_s <= 0:
        raise ConfigurationError(f"teacher.timeout_s is {timeout_s}; expected seconds above 0")
    if base_url and not base_url.startswith(("http://", "https://")):
        raise ConfigurationError(f"teacher.base_url is {base_url!r}; expected http://... or https://...")
    client: ChatClient
    if provider == "scripted":
        from ropd_jax.teacher.scripted import ScriptedClient

        client = ScriptedClient(**(scripted or {}))
    elif provider == "gemini":
        from ropd_jax.teacher.gemini import GeminiClient

        client = GeminiClient(base_url=base_url, api_key_env=api_key_env, timeout_s=timeout_s)
    else:
        from ropd_jax.teacher.openai import OpenAIClient

        client = OpenAIClient(base_url=base_url, api_key_env=api_key_env, timeout_s=timeout_s)
    return RetryingClient(
        client,
        concurrency=concurrency,
        timeout_s=timeout_s,
        attempts=attempts,
        first_wait_s=first_wait_s,
        max_wait_s=max_wait_s,
        stats=stats,
    )
