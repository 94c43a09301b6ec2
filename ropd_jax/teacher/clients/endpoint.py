"""Where a request goes, and with which key. Keys come from the environment and never reach a log, tape or error."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import unicodedata
import urllib.parse
from collections.abc import Sequence

from ropd_jax.teacher.clients.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A provider, its address, the environment variable of its key, and the account; "" means the default.

    Roles with equal endpoints share one client.

    Attributes:
        organization, project: OpenAI's account; ``project`` is also used for Vertex AI.
        location: Vertex AI's location.
        vertexai: use Gemini through Vertex AI.
        headers: sent with every request, as `options.checked_headers` returns them.
    """

    provider: str
    base_url: str = ""
    api_key_env: str = ""
    organization: str = ""
    project: str = ""
    location: str = ""
    vertexai: bool = False
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def address(self) -> str:
        """The address in the form in which it is shown and stored, see `shown_address`."""
        return shown_address(self.base_url)


def shown_address(base_url: str) -> str:
    """``base_url`` without the parts that can be secret: user, password, query and fragment.

    Every message, table and file that shows or stores an address uses this form. If it is unclear where the secret
    part ends, the whole address is omitted.

    >>> shown_address("https://me:pw@h:1/v1?key=s"), shown_address("https://me:p@w@h"), shown_address("")
    ('https://h:1/v1', 'https://...', '')
    """
    found = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", base_url)
    scheme = found[0] if found else ""
    rest = re.fullmatch(r"(?:[^@?#/]*@)?([^@?#]*)(?:[?#][^@]*)?", base_url[len(scheme) :])
    return scheme + (rest[1] if rest else "...")


def check_address(base_url: str, key: str = "teacher.base_url") -> None:
    """Raises if an address has more than scheme, host, port and path.

    A user, a password or a query can be a secret, and the config is stored with the run. So they never enter it: a
    secret is read from the environment and sent in the header that the provider's SDK sets.

    Args:
        base_url: "" means the provider's own address.
        key: the config's name of the address, for the message.

    Raises:
        ConfigurationError: the message has one line and omits the secret parts.
    """
    if not base_url:
        return
    shown = shown_address(base_url)
    if re.search("[@?#]", base_url):
        raise ConfigurationError(
            f"{key} has more than an address: a user, a password, a query or a fragment (not shown, because they can "
            f"be secret). Expected {shown!r} without them; put the API key into an environment variable and name this "
            f"variable with {key.replace('base_url', 'api_key_env')}",
            cause="address",
        )
    try:
        parts = urllib.parse.urlsplit(base_url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # one bracket too many, a port that is not a number
        fits = False
    if not fits or not base_url.isascii() or not base_url.isprintable() or " " in base_url:
        raise ConfigurationError(
            f"{key} is {shown!r}; expected http://... or https://..., with a host, optionally a port from 1 to 65535, "
            "and only ASCII characters",
            cause="address",
        )


def sdk_address(base_url: str, variable: str) -> str | None:
    """The address for a provider's SDK; None means the provider's own.

    Args:
        variable: the environment variable that the SDK would use instead of the provider's own address.

    Raises:
        ConfigurationError: the address contains secrets or cannot be read; or the variable would send the key and the
            prompts to an address that is not in the config.
    """
    check_address(base_url)
    if not base_url and (other := os.environ.get(variable, "")):
        raise ConfigurationError(
            f"the environment variable {variable} is set to {shown_address(other)!r} and teacher.base_url is empty, "
            f"so the API key and the prompts would go to an address that the config does not name; set "
            f"teacher.base_url to the address you mean, or unset {variable}",
            cause="address",
        )
    return base_url or None


def is_loopback(base_url: str) -> bool:
    """True if the address is this machine, for which no key is needed."""
    return (urllib.parse.urlsplit(base_url).hostname or "") in ("localhost", "127.0.0.1", "::1")


def api_key(provider: str, names: Sequence[str], *, named: str = "", base_url: str = "") -> str:
    """The key from the environment: from ``named`` if the config names a variable, else from the first of ``names``.

    A server on loopback does not need a key: if the config names no variable and none of ``names`` is set, "local" is
    sent.

    Raises:
        ConfigurationError: the variable is not set, or its value cannot be a key. The message names the variable and
            the remedy, and never contains a key.
    """
    tried = (named,) if named else tuple(names)
    for name in tried:
        if key := read_key(name, "teacher.api_key_env"):
            return key
    if not named and is_loopback(base_url):
        return "local"
    raise ConfigurationError(
        f"no API key for the {provider} teacher: the environment variable {' or '.join(tried)} is not set. Set it "
        f"(export {tried[0]}=...), name another variable with teacher.api_key_env, or use teacher.provider='scripted'.",
        cause="missing_key",
    )


def read_key(name: str, option: str) -> str:
    """The key in the environment variable ``name``; "" if the variable is unset or blank.

    Args:
        option: the config's key or the flag that names the variable, for messages.

    Raises:
        ConfigurationError: ``name`` is not a valid variable name, or the value has a character that a key cannot have.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ConfigurationError(
            f"{option} is not the name of an environment variable (its value is not shown, in case it is the key "
            "itself); expected a name such as OPENAI_API_KEY. Keys belong in the environment, never in a config.",
            cause="missing_key",
        )
    key = os.environ.get(name, "")
    if not key.strip():
        return ""
    if problem := _problem(key):
        raise ConfigurationError(
            f"the API key in the environment variable {name} has {problem} (the key is not shown); expected printable "
            f"ASCII characters without spaces. Copy the key again, or remove that character, and set {name}.",
            cause="unusable_key",
        )
    return key


def _problem(key: str) -> str:
    """The reason why a key is unusable in an HTTP header; "" if it is usable."""
    bad = next((c for c in key if not "!" <= c <= "~"), "")
    if any(c in key for c in "\r\n"):
        return "a line break, as keys from files often have"
    if key[0].isspace() or key[-1].isspace():
        return f"a space at its {'start' if key[0].isspace() else 'end'}"
    if key[0] in "\"'" or key[-1] in "\"'":
        return "a quotation mark at its start or end"
    if not bad:
        return ""
    code = f"U+{ord(bad):04X}"
    if bad == "\ufeff":
        return f"a byte order mark ({code})"
    if bad in "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb":
        return f"a typographic quotation mark ({code})"
    if bad.isspace():
        return f"a space inside ({code})"
    if 0xDC80 <= ord(bad) <= 0xDCFF:  # Python's decoding of such a byte in the environment
        return "a byte that is not UTF-8"
    if unicodedata.category(bad) in ("Cc", "Cf"):
        return f"an invisible character ({code})"
    return f"a character that is not ASCII ({code})"


def redact(text: str, key: str) -> str:
    """The text without the key."""
    return text.replace(key, "<api key>") if key and key != "local" else text


def said_by(error: object, key: str) -> str:
    """The message of an error that a service sends as text or JSON, on one line, without the key."""
    while isinstance(error, dict) and isinstance(error.get("error"), dict):
        error = error["error"]
    if isinstance(error, dict):
        words = (str(error[name]) for name in ("message", "code", "status") if error.get(name))
        error = next(words, json.dumps(error)[:300] if error else "")
    return " ".join(redact(str(error or ""), key).split())[:300]
