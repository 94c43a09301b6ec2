"""Keys come from the environment, and addresses hold no secret."""

from __future__ import annotations

import pytest

from ropd_jax.teacher import ConfigurationError, make_client
from ropd_jax.teacher.clients.endpoint import Endpoint
from ropd_jax.types import UserError

KEY = "sk-very-secret-0123456789"


@pytest.mark.parametrize(
    "provider, words",
    [("openai", "OPENAI_API_KEY"), ("gemini", "GEMINI_API_KEY or GOOGLE_API_KEY")],
)
def test_a_missing_key_is_one_line_that_names_variable_and_remedy(provider, words):
    with pytest.raises(ConfigurationError, match=f"environment variable {words} is not set. Set it") as e:
        make_client(provider=provider)
    assert isinstance(e.value, UserError) and "\n" not in str(e.value) and "scripted" in str(e.value)
    with pytest.raises(ConfigurationError, match="MY_KEY is not set"):
        make_client(provider=provider, api_key_env="MY_KEY", base_url="http://localhost:1/v1")


def test_a_key_written_into_the_config_is_refused_and_not_shown():
    with pytest.raises(ConfigurationError, match="not the name of an environment variable") as e:
        make_client(provider="openai", api_key_env=KEY)
    assert KEY not in str(e.value)


def test_an_address_holds_no_secret():
    assert Endpoint("openai", "https://me:pw@h:1/v1?key=s").address == "https://h:1/v1"
