"""Where a request goes and with which key. Keys come from the environment and reach no log, tape or error text."""

from __future__ import annotations

import dataclasses
import os
import re
import urllib.parse
from collections.abc import Sequence

from ropd_jax.teacher.clients.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A provider, its address and the environment variable of its key; "" is the provider's own.

    Roles with equal endpoints share one client.
    """

    provider: str
    base_url: str = ""
    api_key_env: str = ""

    @property
    def address(self) -> str:
        """``base_url`` without the parts that can be secret (user, password, query)."""
        parts = urllib.parse.urlsplit(self.base_url)
        return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def is_loopback(base_url: str) -> bool:
    """Whether the address is this machine, where no key is needed."""
    return (urllib.parse.urlsplit(base_url).hostname or "") in ("localhost", "127.0.0.1", "::1")


def api_key(provider: str, names: Sequence[str], *, named: str = "", base_url: str = "") -> str:
    """The key from the environment: from ``named`` if the config names a variable, else from the first of ``names``.

    A server on loopback needs no key: "local" is sent if the config names no variable and none of ``names`` is set.

    Raises:
        ConfigurationError: the variable is not set. The message names it and the remedy, and never contains a key.
    """
    if named and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", named):
        raise ConfigurationError(
            "teacher.api_key_env is not the name of an environment variable (its value is not shown, in case it is "
            f"the key itself); expected a name such as {names[0]}. Keys belong in the environment, never in a config.",
            cause="missing_key",
        )
    tried = (named,) if named else tuple(names)
    for name in tried:
        if key := os.environ.get(name, "").strip():
            return key
    if not named and is_loopback(base_url):
        return "local"
    raise ConfigurationError(
        f"no API key for the {provider} teacher: the environment variable {' or '.join(tried)} is not set. Set it "
        f"(export {tried[0]}=...), name another one with teacher.api_key_env, or use teacher.provider='scripted'.",
        cause="missing_key",
    )


def redact(text: str, key: str) -> str:
    """The text without the key."""
    return text.replace(key, "<api key>") if key and key != "local" else text
