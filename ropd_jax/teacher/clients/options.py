"""Additions to requests from the config: parameters (``extra``) and headers.

    teacher.verifier.extra = {"reasoning_effort": "high"}        merged into the body of that role's requests
    teacher.headers = {"X-Title": "ROPD", "X-Org": "env:MY_ORG"}     sent with every request to the endpoint

``extra`` uses the provider's own names. For ``openai`` they are keys of the request body, including those of any other
server::

    {"reasoning_effort": "high"}                                 OpenAI, Groq, Gemini's OpenAI endpoint
    {"reasoning": {"max_tokens": 2000}}                          OpenRouter
    {"chat_template_kwargs": {"enable_thinking": False}}         vLLM, SGLang, llama.cpp

For ``gemini`` they are fields of ``GenerateContentConfig``::

    {"thinking_config": {"thinking_budget": 1024}}

Both are stored with the run and on the tape, so neither can hold a secret.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ropd_jax.teacher.clients.errors import ConfigurationError

OWNED = {  # parameters that we send -> the key that sets them
    "model": "model", "messages": "template", "contents": "template", "system_instruction": "template",
    "temperature": "temperature", "max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens",
    "max_output_tokens": "max_output_tokens",
}  # fmt: skip
FIXED = {  # parameters that a role depends on, so they cannot be set
    "seed", "n", "candidate_count", "stream", "stream_options", "response_format", "response_schema",
    "response_json_schema", "response_mime_type", "http_options", "should_return_http_response",
}  # fmt: skip
ENV = "env:"
_SECRET_NAME = re.compile(
    r"auth(?!or(?!iz))|api[-_]?key|secret|passw|credential|cookie|bearer|signature|(access|refresh|id|security)[-_]?token|"
    r"^(x-)?token$|(?<!cache)[-_]key$|^key$",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(r"(?i:bearer|basic|token)\s|(sk|pk|gsk|hf|xai|nvapi|ghp)[-_][A-Za-z0-9]|ya29\.|AIza")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OURS = {"host", "content-length", "content-type", "transfer-encoding", "accept-encoding", "connection"}


def checked_extra(extra: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A plain copy of ``extra`` that does not share objects with the config.

    Args:
        where: the config's key of the role, ``teacher.verifier``.

    Raises:
        ConfigurationError: a key is set by another config key or fixed by the role; there is a secret; or a value
            is not JSON.
    """
    key = f"{where}.extra"
    if hasattr(extra, "to_dict"):  # a ConfigDict
        extra = extra.to_dict()
    if not isinstance(extra, Mapping):
        raise ConfigurationError(f"{key} is a {type(extra).__name__}; expected a mapping, {{'top_p': 0.95}}")
    for name in extra:
        if name in OWNED:
            raise ConfigurationError(f"{key} has {name!r}, which {where}.{OWNED[name]} sets; set that instead")
        if name in FIXED:
            raise ConfigurationError(f"{key} has {name!r}, which the role sets itself; omit it")
    for path, value in _leaves(extra):
        name = path.rpartition(".")[2]
        if isinstance(value, str) and (_SECRET_NAME.search(name) or _SECRET_VALUE.match(value)):
            raise ConfigurationError(
                f"{key} has {path!r}, which looks like a secret (not shown), and a config is stored with the run. "
                f"Name the key's environment variable with {where}.api_key_env, or send it as a header, "
                "teacher.headers={'NAME': 'env:VARIABLE'}",
                cause="secret",
            )
    try:
        return json.loads(json.dumps(copy.deepcopy(dict(extra)), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{key} is not JSON ({error}); expected strings, numbers, lists and mappings"
        ) from None


def checked_headers(headers: Mapping[str, Any], key: str) -> tuple[tuple[str, str], ...]:
    """The headers as sorted pairs, with ``env:NAME`` if the value comes from the environment.

    Args:
        key: the config's name of the headers, for messages.

    Raises:
        ConfigurationError: the headers are not names and strings; a secret is written out; or a header is set by HTTP
            itself.
    """
    if hasattr(headers, "to_dict"):
        headers = headers.to_dict()
    pairs = []
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER.fullmatch(name) or not isinstance(value, str):
            raise ConfigurationError(
                f"{key}: invalid header {name!r:.60}; expected names and strings, {{'X-Title': 'ROPD'}}"
            )
        if name.lower() in _OURS:
            raise ConfigurationError(f"{key} has {name!r}, which HTTP sets itself; omit it")
        literal = not value.startswith(ENV)
        if literal and (_SECRET_NAME.search(name) or _SECRET_VALUE.match(value)):
            raise ConfigurationError(
                f"{key} has a value for {name!r} (not shown), which looks like a secret, and a config is stored with "
                f"the run. Put it into an environment variable and use {{{name!r}: 'env:VARIABLE'}}; the API key "
                "itself goes into the variable named by api_key_env",
                cause="secret",
            )
        if literal and not (value.isascii() and value.isprintable()):
            raise ConfigurationError(f"{key}: the value of {name!r} has a character that a header cannot have")
        pairs.append((name, value))
    return tuple(sorted(pairs))


def sent_headers(headers: tuple[tuple[str, str], ...], key: str = "teacher.headers") -> dict[str, str]:
    """The headers with the values of their environment variables filled in.

    Raises:
        ConfigurationError: a variable is not set, or its value is invalid in a header. The value is not shown.
    """
    sent = {}
    for name, value in headers:
        if value.startswith(ENV):
            variable = value.removeprefix(ENV)
            value = os.environ.get(variable, "")
            if not value.strip():
                raise ConfigurationError(
                    f"{key}: {name!r} comes from the environment variable {variable!r:.60}, which is not set; set it, "
                    "or omit the header",
                    cause="missing_key",
                )
            if not (value.isascii() and value.isprintable()) or value != value.strip():
                raise ConfigurationError(
                    f"{key}: the environment variable {variable!r:.60} has a character that a header cannot have (its "
                    "value is not shown); copy it again",
                    cause="unusable_key",
                )
        sent[name] = value
    return sent


def secrets_of(headers: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """The values that come from the environment, which must not appear in messages."""
    return tuple(os.environ.get(v.removeprefix(ENV), "") for _, v in headers if v.startswith(ENV))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All values that are not mappings or lists, with their paths."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, path)
    else:
        yield path, value
