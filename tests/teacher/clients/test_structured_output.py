"""JSON by schema, and by less where a server refuses it."""

from __future__ import annotations

import asyncio
import logging

import pytest
from aiohttp import web

from ropd_jax.teacher import ChatRequest, RequestError, Teacher, make_client
from ropd_jax.types import Message

SCHEMA = {"type": "object"}


def ask(text="x", model="m", schema=SCHEMA):
    return ChatRequest("rubric", (Message("user", text),), model, json_schema=schema)


async def talk(refused, requests, message="this model does not support response_format {}"):
    """The formats that an OpenAI-style server saw, which refuses those of ``refused``; and the replies."""
    seen = []

    async def completions(http):
        body = await http.json()
        kind = (body.get("response_format") or {"type": "text"})["type"]
        seen.append((body["model"], kind))
        if kind in refused:
            return web.json_response({"error": {"message": message.format(kind)}}, status=400)
        text = {"role": "assistant", "content": "{}"}
        choice = {"index": 0, "message": text, "finish_reason": "stop"}
        return web.json_response(
            {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        )

    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = make_client(provider="openai", base_url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
    try:
        return [(await client.chat(r)).text for r in requests], seen
    finally:
        await client.close()
        await runner.cleanup()


@pytest.mark.parametrize(
    "refused, first, later",
    [
        ((), ["json_schema"], "json_schema"),
        (("json_schema",), ["json_schema", "json_object"], "json_object"),
        (("json_schema", "json_object"), ["json_schema", "json_object", "text"], "text"),
    ],
)
def test_a_refused_schema_falls_back_once_and_is_remembered(refused, first, later, caplog):
    texts, seen = asyncio.run(talk(refused, [ask("a"), ask("b"), ask("c")]))
    assert texts == ["{}"] * 3
    assert [kind for _, kind in seen] == [*first, later, later]
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING and "refuses" in r.getMessage()]
    assert len(warnings) == len(refused)


def test_what_one_model_refuses_another_is_still_asked_for():
    _, seen = asyncio.run(talk(("json_schema",), [ask(model="a"), ask(model="b")]))
    assert seen == [("a", "json_schema"), ("a", "json_object"), ("b", "json_schema"), ("b", "json_object")]


def test_free_text_is_never_asked_for_as_json():
    _, seen = asyncio.run(talk((), [ask(schema=None)]))
    assert seen == [("m", "text")]


def test_a_refusal_of_something_else_is_no_reason_to_fall_back():
    with pytest.raises(RequestError, match="bad messages"):
        asyncio.run(talk(("json_schema",), [ask()], message="bad messages"))


@pytest.mark.parametrize("provider", ["openai", "gemini"])
def test_rewards_are_the_same_without_a_schema(provider_client, provider, sum_prompt, sum_answers):
    async def run(fault):
        async with provider_client(provider, fault=fault) as client:
            teacher = Teacher(client)
            rubric = await teacher.induce_rubric(sum_prompt, sum_answers[:1], sum_answers)
            return (await teacher.verify(sum_prompt, rubric, sum_answers, key="k")).scores(rubric)

    plain = asyncio.run(run(None))
    assert asyncio.run(run(lambda r, attempt: "no_schema" if r.json_schema else None)) == plain
    assert None not in plain
