"""docs/providers.md: it matches the table, its commands are parsed, its refusals are tested against a local server."""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
import shlex

import pytest

from ropd_jax.cli.flags import parse
from ropd_jax.cli.preflight import COMMAND
from ropd_jax.teacher import ChatRequest, make_client
from ropd_jax.teacher.build import role_of
from ropd_jax.teacher.clients import providers
from ropd_jax.teacher.clients.parameters import DROPPED, LIMITS
from ropd_jax.types import Message
from tests.teacher.clients.wire import serving

ROOT = pathlib.Path(__file__).parents[3]
EACH = pytest.mark.parametrize("provider", providers.PROVIDERS, ids=lambda p: p.title)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}}


@pytest.fixture(autouse=True)
def account(monkeypatch):
    from google.auth.credentials import AnonymousCredentials

    for provider in providers.PROVIDERS:
        if provider.key:
            monkeypatch.setenv(provider.key, "sk-of-the-service-0001")
    monkeypatch.setattr("google.auth.default", lambda scopes: (AnonymousCredentials(), None))


def configured(provider, monkeypatch):
    """(Endpoint, Role) of the verifier after the section's command line."""
    words = shlex.split(providers.command(provider).replace("\\\n", " ").split("\n")[-1])
    assert words[:4] == ["ropd", "preflight", "--config", "quickstart"]
    monkeypatch.chdir(ROOT)
    teacher = parse(COMMAND, words[2:]).config.teacher
    assert {teacher[r].model for r in ("reference", "rubricator", "verifier")} == {provider.settings["verifier.model"]}
    return role_of(teacher, "verifier")


def test_the_page_is_what_the_table_gives():
    page = (ROOT / "docs" / "providers.md").read_text(encoding="utf-8")
    assert page == providers.page(), "run python -m ropd_jax.teacher.clients.providers > docs/providers.md"


def test_every_provider_that_users_asked_for_has_a_section():
    assert [p.title for p in providers.PROVIDERS] == [
        "OpenAI", "Azure OpenAI", "Gemini", "Vertex AI", "vLLM", "SGLang", "llama.cpp", "Ollama", "LM Studio",
        "OpenRouter", "DeepSeek", "Groq", "Together", "Mistral",
    ]  # fmt: skip


@EACH
def test_the_command_line_leads_to_the_address_of_the_section(provider, monkeypatch):
    endpoint, role = configured(provider, monkeypatch)

    async def main():
        client = make_client(**dataclasses.asdict(endpoint) | {"headers": endpoint.headers})
        try:
            sdk = client.inner.sdk_client
            return str(sdk.base_url if endpoint.provider == "openai" else sdk._api_client._http_options.base_url)
        finally:
            await client.close()

    assert asyncio.run(main()).lower() == provider.address.lower()
    assert role.model == provider.settings["verifier.model"]
    assert bool(role.extra) == ("verifier.extra" in provider.settings)


@EACH
def test_a_server_that_refuses_what_the_section_lists_still_answers(provider, monkeypatch):
    endpoint, role = configured(provider, monkeypatch)
    known = dict(provider.refuses)
    formats = dict(provider.formats)

    def refuse(body):
        there = body.get("generationConfig", body)
        for name, words in known.items():
            if name in there:
                return words
        return formats.get(body.get("response_format", {}).get("type"))

    messages = (Message("user", "Q?"),)
    added = {"reasoning_effort": "high"} if "reasoning_effort" in known else {}  # another user's setting
    extra = added | dict(role.extra)
    request = ChatRequest("verify", messages, role.model, 0.0, 90, SCHEMA, 1, extra)
    how = {k: v for k, v in dataclasses.asdict(endpoint).items() if k not in ("provider", "base_url", "vertexai")}

    async def main():
        async with serving(refuse=refuse) as server:
            replies = await server.chats(endpoint.provider, [request] * 2, **how | {"headers": endpoint.headers})
            return [r.text for r in replies], [s.body for s in server.seen]

    texts, bodies = asyncio.run(main())
    assert texts == ["fine"] * 2
    steps = len(known) + len(formats) * (2 if "json_schema" in formats else 0)  # a bound schema, one without bounds
    assert len(bodies) == 2 + steps  # found only by the first request
    last = bodies[-1].get("generationConfig", bodies[-1])
    assert not known.keys() & last.keys()
    kept = {k: v for k, v in role.extra.items() if k not in known}
    if endpoint.provider == "openai":
        assert kept.items() <= bodies[-1].items()


@EACH
def test_a_section_lists_only_parameters_that_a_run_can_do_without(provider):
    assert {name for name, _ in provider.refuses} <= {*DROPPED, *LIMITS}
    assert provider.limits or provider.notes
