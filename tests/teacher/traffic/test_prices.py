"""Prices: cached and long requests, batches, dated names, the user's file."""

from __future__ import annotations

import re

import pytest

from ropd_jax.teacher import ConfigurationError, Prices, Usage
from ropd_jax.teacher.traffic.prices import Price

OWN = """
[[price]]
provider = "openai"
model = "mine"
base_url = "http://127.0.0.1:8000/v1/"
input = 1.0
output = 10.0

[[price]]
provider = "openai"
model = "gpt-4.1"
input = 4.0
output = 16.0
"""


def test_cached_tokens_are_a_part_of_the_input_and_thinking_of_the_output():
    price = Prices.load().find("openai", "gpt-4.1")
    assert price.cost(Usage(1_000_000, 0)) == pytest.approx(2.0)
    assert price.cost(Usage(1_000_000, 0, cached_tokens=400_000)) == pytest.approx(0.6 * 2.0 + 0.4 * 0.5)
    assert price.cost(Usage(0, 1_000_000, thought_tokens=900_000)) == pytest.approx(8.0)  # not billed twice


def test_long_requests_have_the_long_price_from_the_first_token():
    price = Prices.load().find("gemini", "gemini-2.5-pro")
    assert price.cost(Usage(200_000, 1_000)) == pytest.approx(0.2 * 1.25 + 0.001 * 10)
    assert price.cost(Usage(200_001, 1_000)) == pytest.approx(0.200001 * 2.5 + 0.001 * 15)


@pytest.mark.parametrize(
    ("provider", "model", "base_url", "found"),
    [
        ("openai", "gpt-4.1", "", True),
        ("openai", "gpt-4.1-2025-04-14", "", True),
        ("openai", "gpt-4.1-nano", "", False),
        ("openai", "gpt-4", "", False),
        ("openai", "gpt-4.1", "http://127.0.0.1:8000/v1", False),  # another server's price is not OpenAI's
        ("gemini", "models/gemini-2.5-flash-001", "", True),
        ("scripted", "scripted", "", True),
    ],
)
def test_a_price_belongs_to_one_model_at_one_address(provider, model, base_url, found):
    assert (Prices.load().find(provider, model, base_url) is not None) == found


def test_every_shipped_price_has_a_source_and_a_date():
    prices = list(Prices.load())
    assert len(prices) >= 11
    for price in prices:
        assert re.fullmatch(r"20\d\d-\d\d", price.as_of), price
        assert price.source.startswith("https://") or price.provider == "scripted", price


def test_a_batch_pays_its_share_and_an_unknown_one_where_none_is_known():
    usage = Usage(1_000_000, 100_000)
    assert Prices.load().find("openai", "gpt-4.1").cost(usage, batch=True) == pytest.approx(0.5 * 2.8)
    long = Prices.load().find("gemini", "gemini-2.5-pro")
    assert long.cost(usage, batch=True) == pytest.approx(0.5 * (2.5 + 1.5))
    assert Price("openai", "m", "", 1.0, 2.0).cost(usage, batch=True) is None


def test_own_prices_add_to_the_table_and_win(tmp_path):
    (tmp_path / "own.toml").write_text(OWN)
    prices = Prices.load(str(tmp_path / "own.toml"))
    assert prices.find("openai", "gpt-4.1").input == 4.0
    assert prices.find("openai", "mine", "http://127.0.0.1:8000/v1").output == 10.0
    assert prices.find("openai", "mine") is None
    assert prices.find("gemini", "gemini-2.5-flash").input == 0.30


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[price]]\nprovider='a'\nmodel='b'\ninput=-1\noutput=1", "input is -1"),
        ("[[price]]\nprovider='a'\nmodel='b'\noutput=1", "input is None"),
        ("[[price]]\nprovider='a'\nmodel='b'\ninput=1\noutput=1\nthinking=2", "'thinking' is not a key"),
        ("[[price]]\nprovider='a'\nmodel='b'\ninput=1\noutput=1\nbatch=50", "batch is 50"),
        ("x = 1", "no .*price.* tables"),
        ("[[", "not TOML"),
    ],
)
def test_a_wrong_price_file_is_refused(tmp_path, text, words):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        Prices.load(str(tmp_path / "own.toml"))
