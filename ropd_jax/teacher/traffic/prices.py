"""What tokens cost: ``prices.toml`` and the user's file. A model without a price costs an unknown amount, never 0."""

from __future__ import annotations

import dataclasses
import importlib.resources
import math
import pathlib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ropd_jax.teacher.clients.client import ConfigurationError, Usage

_DATED = r"(-\d{4}-\d{2}-\d{2}|-\d{3})?"  # gpt-4.1-2025-04-14, gemini-2.5-flash-001
_RATES = ("input", "cached", "output")
_ABOUT = ("source", "as_of")


@dataclasses.dataclass(frozen=True)
class Price:
    """US dollars per million tokens of one model.

    Attributes:
        provider, model: whose; ``*`` is any model. ``base_url``: "" for the provider's own address.
        input, cached, output: rates; ``cached`` None: cached input costs what input costs.
        above, long: the rates of requests with more than ``above`` input tokens, or None.
        batch: the share of these rates that batch jobs pay; None is not known.
        source, as_of: where the entry was read, and when.
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
        """Dollars of one call, or of one request of a batch job; None when tokens or share are not known.

        Cached tokens are part of the input, thinking is part of the output (see ``Usage``).
        """
        if batch:
            whole = self.cost(usage)
            return None if whole is None or self.batch is None else whole * self.batch
        if usage.input_tokens is None or usage.output_tokens is None:
            return None
        if self.long is not None and self.above is not None and usage.input_tokens > self.above:
            return self.long.cost(usage)
        cached = min(usage.cached_tokens or 0, usage.input_tokens)
        rate = self.input if self.cached is None else self.cached
        dollars = (usage.input_tokens - cached) * self.input + cached * rate + usage.output_tokens * self.output
        return dollars / 1e6


class Prices:
    """The prices there are; later ones win."""

    def __init__(self, prices: Iterable[Price], *, as_of: str = ""):
        self._prices = list(prices)
        self.as_of = as_of

    @classmethod
    def load(cls, path: str = "") -> Prices:
        """The package's table and, where given, the user's file.

        Raises:
            ConfigurationError: the file cannot be read or is not of the table's form.
        """
        table = importlib.resources.files("ropd_jax.teacher.traffic") / "prices.toml"
        data = tomllib.loads(table.read_text(encoding="utf-8"))
        prices = _parse(data, "prices.toml")
        if path:
            try:
                own = tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8"))
            except OSError as e:
                raise ConfigurationError(f"teacher.prices is {path!r}: {e.strerror}; expected a TOML file") from e
            except ValueError as e:
                raise ConfigurationError(f"teacher.prices is {path!r}, which is not TOML: {e}") from e
            prices += _parse(own, path)
        return cls(prices, as_of=data["as_of"])

    def __iter__(self) -> Iterator[Price]:
        return iter(self._prices)

    def find(self, provider: str, model: str, base_url: str = "") -> Price | None:
        """The price of the model at this address, or None. Dated names (gpt-4.1-2025-04-14) have their model's."""
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
    known = {"provider", "model", "base_url", "long", "batch", *_RATES, *_ABOUT}
    if unknown := entry.keys() - known:
        raise ConfigurationError(f"{where}: {min(unknown)!r} is no key; expected {', '.join(sorted(known))}")
    names = {key: entry.get(key, "" if key == "base_url" else None) for key in ("provider", "model", "base_url")}
    for key, value in names.items():
        if not isinstance(value, str):
            raise ConfigurationError(f"{where}: {key} is {value!r}; expected a text")
    names["base_url"] = names["base_url"].rstrip("/")
    batch = entry.get("batch")
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int | float) or not 0 <= batch <= 1):
        raise ConfigurationError(
            f"{where}: batch is {batch!r}; expected the share of the price that batch jobs pay, 0 to 1"
        )
    about = {key: str(entry.get(key, "")) for key in _ABOUT}
    long, above = entry.get("long"), None
    if long is not None:
        above = long.get("above")
        if not isinstance(above, int):
            raise ConfigurationError(f"{where}: long.above is {above!r}; expected a number of input tokens")
        long = Price(**names, **_rates(long, f"{where}: long"))
    return Price(**names, **_rates(entry, where), above=above, long=long, batch=batch, **about)


def _rates(entry: Mapping[str, Any], where: str) -> dict[str, float | None]:
    rates: dict[str, float | None] = {}
    for key in _RATES:
        value = entry.get(key)
        if value is None and key == "cached":
            rates[key] = None
        elif isinstance(value, bool) or not isinstance(value, int | float) or not (0 <= value < math.inf):
            raise ConfigurationError(f"{where}: {key} is {value!r}; expected dollars per million tokens")
        else:
            rates[key] = float(value)
    return rates
