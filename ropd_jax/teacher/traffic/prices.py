"""Token prices: ``prices.toml`` and the user's file. A model without a price costs an unknown amount, never 0."""

from __future__ import annotations

import dataclasses
import importlib.resources
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ropd_jax.teacher.clients.chat import Usage
from ropd_jax.teacher.clients.errors import ConfigurationError
from ropd_jax.utils.paths import local_file

_DATED = r"(-\d{4}-\d{2}-\d{2}|-\d{3})?"  # gpt-4.1-2025-04-14, gemini-2.5-flash-001
_KEYS = {
    "provider", "model", "base_url", "input", "cached", "output", "long", "batch", "source", "as_of",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Price:
    """US dollars per million tokens of one model.

    Attributes:
        provider, model: the provider and model of this price; model ``*`` matches any model.
        base_url: "" means the provider's own address.
        input, cached, output: rates. If ``cached`` is None, cached input costs as much as input.
        above, long: the rates for requests with more than ``above`` input tokens, or None.
        batch: the share of these rates that batch jobs pay; None means unknown.
        source, as_of: the source of the entry and its date.
    """

    provider: str
    model: str
    base_url: str
    input: float
    output: float
    cached: float | None = None
    above: int | None = None
    long: Price | None = None
    batch: float | None = None
    source: str = ""
    as_of: str = ""

    def cost(self, usage: Usage, *, batch: bool = False) -> float | None:
        """Dollars for one call, or for one request in a batch job; None if tokens or share are unknown.

        Cached tokens are part of the input, thinking is part of the output (see ``Usage``).
        """
        if batch:
            live = self.cost(usage)
            return None if live is None or self.batch is None else live * self.batch
        if usage.input_tokens is None or usage.output_tokens is None:
            return None
        if self.long is not None and self.above is not None and usage.input_tokens > self.above:
            return self.long.cost(usage)
        cached = min(usage.cached_tokens or 0, usage.input_tokens)
        rate = self.input if self.cached is None else self.cached
        dollars = (usage.input_tokens - cached) * self.input + cached * rate + usage.output_tokens * self.output
        return dollars / 1e6


class Prices:
    """A list of prices. If several match a model, the last one applies."""

    def __init__(self, prices: Iterable[Price], *, as_of: str = ""):
        self._prices = list(prices)
        self.as_of = as_of

    @classmethod
    def load(cls, path: str = "") -> Prices:
        """The package's table and the user's file, if there is one.

        Raises:
            ConfigurationError: the file cannot be read or does not have the table's form.
        """
        table = importlib.resources.files("ropd_jax.teacher.traffic") / "prices.toml"
        data = tomllib.loads(table.read_text(encoding="utf-8"))
        prices = _parse(data, "prices.toml")
        if path:
            try:
                own = tomllib.loads(local_file(path, "teacher.prices").read_text(encoding="utf-8"))
            except OSError as e:
                raise ConfigurationError(f"teacher.prices is {path!r}: {e.strerror}; expected a TOML file") from e
            except ValueError as e:
                raise ConfigurationError(f"teacher.prices is {path!r}, which is not TOML: {e}") from e
            prices += _parse(own, path)
        return cls(prices, as_of=data["as_of"])

    def __iter__(self) -> Iterator[Price]:
        return iter(self._prices)

    def find(self, provider: str, model: str, base_url: str = "") -> Price | None:
        """The price of the model at this address, or None. A dated name (gpt-4.1-2025-04-14) has its model's price."""
        name = model.removeprefix("models/")
        for price in reversed(self._prices):
            if price.provider != provider or (price.base_url != base_url.rstrip("/") and provider != "scripted"):
                continue
            if price.model == "*" or re.fullmatch(re.escape(price.model) + _DATED, name):
                return price
        return None


def _parse(data: Mapping[str, Any], path: str) -> list[Price]:
    entries = data.get("price")
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise ConfigurationError(
            f"{path!r} has no [[price]] tables; expected provider, model, input and output in each"
        )
    return [_price(entry, f"{path}: price of {entry.get('model')!r}") for entry in entries]


def _price(entry: Mapping[str, Any], where: str) -> Price:
    if unknown := entry.keys() - _KEYS:
        raise ConfigurationError(f"{where}: {min(unknown)!r} is not a key; expected {', '.join(sorted(_KEYS))}")
    names = {key: entry.get(key, "" if key == "base_url" else None) for key in ("provider", "model", "base_url")}
    for key, value in names.items():
        if not isinstance(value, str):
            raise ConfigurationError(f"{where}: {key} is {value!r}; expected a string")
    provider, model, base_url = names["provider"], names["model"], names["base_url"].rstrip("/")
    batch = entry.get("batch")
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int | float) or not 0 <= batch <= 1):
        raise ConfigurationError(
            f"{where}: batch is {batch!r}; expected the share of the price that batch jobs pay, 0 to 1"
        )
    price = Price(
        provider,
        model,
        base_url,
        input=_rate(entry, "input", where),
        cached=None if entry.get("cached") is None else _rate(entry, "cached", where),
        output=_rate(entry, "output", where),
        batch=batch,
        source=str(entry.get("source", "")),
        as_of=str(entry.get("as_of", "")),
    )
    if (long := entry.get("long")) is None:
        return price
    above = long.get("above")
    if not isinstance(above, int):
        raise ConfigurationError(f"{where}: long.above is {above!r}; expected a number of input tokens")
    long_price = Price(
        provider,
        model,
        base_url,
        input=_rate(long, "input", f"{where}: long"),
        cached=None if long.get("cached") is None else _rate(long, "cached", f"{where}: long"),
        output=_rate(long, "output", f"{where}: long"),
    )
    return dataclasses.replace(price, above=above, long=long_price)


def _rate(entry: Mapping[str, Any], key: str, where: str) -> float:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not (0 <= value < math.inf):
        raise ConfigurationError(f"{where}: {key} is {value!r}; expected dollars per million tokens")
    return float(value)
