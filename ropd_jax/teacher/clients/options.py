"""What a config adds to the requests: further parameters (``extra``), headers, and where an account lives.

    teacher.verifier.extra = {"reasoning_effort": "high"}        merged into the body of that role's requests
    teacher.headers = {"X-Title": "ROPD", "X-Org": "env:MY_ORG"}     sent with every request to the endpoint

``extra`` has the provider's own names. For ``openai`` they are keys of the request's body, any server's own ones
included::

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

OWNED = {  # what we send ourselves -> what sets it
    "model": "model", "messages": "template", "contents": "template", "system_instruction": "template",
    "temperature": "temperature", "max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens",
    "max_output_tokens": "max_output_tokens",
}  # fmt: skip
FIXED = {  # what a role depends on, so that nobody can set it
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
    """A plain copy of ``extra`` that shares nothing with the config.

    Args:
        where: the config's key of the role, ``teacher.verifier``.

    Raises:
        ConfigurationError: a key that another key of the config sets or that a role depends on; a secret; a value that
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
            raise ConfigurationError(f"{key} has {name!r}, which the role sets itself; leave it out")
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
        raise ConfigurationError(f"{key} is not JSON ({error}); expected texts, numbers, lists and mappings") from None


def checked_headers(headers: Mapping[str, Any], key: str) -> tuple[tuple[str, str], ...]:
    """The headers as sorted pairs, with ``env:NAME`` where the value comes from the environment.

    Args:
        key: the config's name of the headers, for messages.

    Raises:
        ConfigurationError: not names and texts; a secret that is written out; a header that HTTP itself needs.
    """
    if hasattr(headers, "to_dict"):
        headers = headers.to_dict()
    pairs = []
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER.fullmatch(name) or not isinstance(value, str):
            raise ConfigurationError(f"{key}: {name!r:.60} is not a header with a text; expected {{'X-Title': 'ROPD'}}")
        if name.lower() in _OURS:
            raise ConfigurationError(f"{key} has {name!r}, which HTTP sets itself; leave it out")
        literal = not value.startswith(ENV)
        if literal and (_SECRET_NAME.search(name) or _SECRET_VALUE.match(value)):
            raise ConfigurationError(
                f"{key} has a value for {name!r} (not shown), which looks like a secret, and a config is stored with "
                f"the run. Put it into an environment variable and write {{{name!r}: 'env:VARIABLE'}}; the API key "
                "itself is named with api_key_env",
                cause="secret",
            )
        if literal and not (value.isascii() and value.isprintable()):
            raise ConfigurationError(f"{key}: the value of {name!r} has a character that a header cannot have")
        pairs.append((name, value))
    return tuple(sorted(pairs))


def sent_headers(headers: tuple[tuple[str, str], ...], key: str = "teacher.headers") -> dict[str, str]:
    """The headers with the values of their environment variables.

    Raises:
        ConfigurationError: a variable that is not set, or whose value a header cannot have. The value is not shown.
    """
    sent = {}
    for name, value in headers:
        if value.startswith(ENV):
            variable = value.removeprefix(ENV)
            value = os.environ.get(variable, "")
            if not value.strip():
                raise ConfigurationError(
                    f"{key}: {name!r} comes from the environment variable {variable!r:.60}, which is not set; set it, "
                    "or leave the header out",
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
    """The values that come from the environment, which no message may show."""
    return tuple(os.environ.get(v.removeprefix(ENV), "") for _, v in headers if v.startswith(ENV))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not a mapping or a list, with its path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, path)
    else:
        yield path, value
