"""Keys come from the environment, and addresses do not contain secrets."""

from __future__ import annotations

import pytest

from ropd_jax import configs
from ropd_jax.teacher import ConfigurationError, build_teacher, make_client
from ropd_jax.teacher.clients.batch import open_batch
from ropd_jax.teacher.clients.endpoint import Endpoint, shown_address
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


SECRETS = [
    "https://me:x7y9q@h:1/v1",
    "https://x7y9q@h/v1",
    "https://h/v1?key=x7y9q",
    "https://h/v1#x7y9q",
    "https://me:x7@y9q@h/v1",
    "https://me:x/x7y9q@h/v1",
    "https://me:x?x7y9q@h/v1",
    "https://h/v1?key=x@x7y9q",
    "me:x7y9q@h/v1",
    "h/v1?key=x7y9q",
]


@pytest.mark.parametrize("address", SECRETS)
def test_a_shown_address_has_no_secret(address):
    shown = shown_address(address)
    assert "x7" not in shown and "y9q" not in shown and "me" not in shown


@pytest.mark.parametrize("address", SECRETS)
@pytest.mark.parametrize("provider", ["openai", "gemini", "scripted"])
def test_an_address_with_a_secret_is_refused_in_one_line_without_it(provider, address, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    makers = [lambda: make_client(provider=provider, base_url=address)]
    if provider != "scripted":
        makers.append(lambda: open_batch(provider, base_url=address))
    for key in ("teacher", "teacher.verifier", "teacher.judge"):
        cfg = configs.default()
        cfg.teacher.provider = provider
        cfg.update_from_flattened_dict({f"{key}.base_url": address})
        makers.append(lambda cfg=cfg: build_teacher(cfg.teacher))
    for make in makers:
        with pytest.raises(ConfigurationError, match=r"teacher\..*base_url has more than.*api_key_env") as e:
            make()
        assert not any(part in str(e.value) for part in ("x7", "y9q", "\n"))


@pytest.mark.parametrize(
    "address", ["http://[::1/v1", "http://h:port/v1", "http:///v1", "http://h\u200b/v1", "http://h /v1", "ftp://h/v1"]
)
def test_an_address_that_cannot_be_read_is_one_line(address):
    for provider in ("openai", "gemini"):
        with pytest.raises(ConfigurationError, match=r"teacher\.base_url is .*; expected http://"):
            make_client(provider=provider, base_url=address)


@pytest.mark.parametrize("provider, variable", [("openai", "OPENAI_BASE_URL"), ("gemini", "GOOGLE_GEMINI_BASE_URL")])
def test_no_variable_sends_the_key_to_an_address_that_the_config_does_not_name(provider, variable, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv(variable, "http://me:x7y9q@elsewhere/v1")
    for make in (make_client, lambda provider, **how: open_batch(provider, **how)):
        with pytest.raises(ConfigurationError, match=f"{variable} is set to 'http://elsewhere/v1'.*unset") as e:
            make(provider=provider, api_key_env="MY_KEY")
        assert "x7y9q" not in str(e.value)
        make(provider=provider, api_key_env="MY_KEY", base_url="http://localhost:1/v1")  # the config names it


BAD_KEYS = {
    KEY + "\n": "a line break",
    KEY + "\r\n": "a line break",
    KEY[:9] + "\n" + KEY[9:]: "a line break",
    KEY + " ": "a space at its end",
    " " + KEY: "a space at its start",
    "\u00a0" + KEY: "a space at its start",
    KEY[:9] + " " + KEY[9:]: r"a space inside \(U\+0020\)",
    KEY[:9] + "\u200b" + KEY[9:]: r"an invisible character \(U\+200B\)",
    KEY + "\u2060": r"an invisible character \(U\+2060\)",
    KEY + "\x07": r"an invisible character \(U\+0007\)",
    "\ufeff" + KEY: r"a byte order mark \(U\+FEFF\)",
    f"\u201c{KEY}\u201d": r"a typographic quotation mark \(U\+201C\)",
    f"{KEY}\u2019": r"a typographic quotation mark \(U\+2019\)",
    f'"{KEY}"': "a quotation mark at its start or end",
    f"'{KEY}'": "a quotation mark at its start or end",
    KEY + "\u0435": r"a character that is not ASCII \(U\+0435\)",
    KEY + "\udcff": "a byte that is not UTF-8",
}


@pytest.mark.parametrize("key", BAD_KEYS, ids=BAD_KEYS.values())
@pytest.mark.parametrize("provider, variable", [("openai", "OPENAI_API_KEY"), ("gemini", "GOOGLE_API_KEY")])
def test_a_key_that_cannot_be_one_is_named_and_not_shown(provider, variable, key, monkeypatch):
    monkeypatch.setenv(variable, key)
    for make in (make_client, lambda provider: open_batch(provider)):
        with pytest.raises(ConfigurationError, match=f"variable {variable} has {BAD_KEYS[key]}.*Copy the key") as e:
            make(provider=provider)
        assert not any(part in str(e.value) for part in (KEY[:9], KEY[9:])) and "\n" not in str(e.value)


def test_a_blank_variable_is_not_set(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " \n")
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY is not set"):
        make_client(provider="openai")
