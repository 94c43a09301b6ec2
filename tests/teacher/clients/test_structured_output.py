"""JSON by schema, and by less if a server refuses it."""

from __future__ import annotations

import asyncio
import logging

import pytest
from aiohttp import web

from ropd_jax.teacher import ChatRequest, RequestError, Teacher, TransientError, make_client
from ropd_jax.teacher.clients.structured_output import loosened
from ropd_jax.types import Message

SCHEMA = {"type": "object"}
BOUND = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}, "minItems": 2}}}
LOOSE = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}}


def ask(text="x", model="m", schema=SCHEMA):
    return ChatRequest("rubric", (Message("user", text),), model, json_schema=schema)


async def talk(refused, requests, message="this model does not support response_format {}", status=400, bounds=True):
    """The formats that an OpenAI-style server saw, which refuses those in ``refused``; and the replies.

    Without ``bounds`` it refuses a schema with minItems. A schema without it is seen as ``loose_schema``.
    """
    seen = []

    async def completions(http):
        body = await http.json()
        form = body.get("response_format") or {"type": "text"}
        kind, schema = form["type"], form.get("json_schema", {}).get("schema")
        seen.append((body["model"], "loose_schema" if schema == LOOSE else kind))
        if kind in refused or (not bounds and schema == BOUND):
            return web.json_response({"error": {"message": message.format(kind)}}, status=status)
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
    client = make_client(provider="openai", base_url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1", attempts=1)
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


@pytest.mark.parametrize(
    ("refused", "bounds", "first"),
    [
        ((), True, ["json_schema"]),
        ((), False, ["json_schema", "loose_schema"]),
        (("json_schema",), False, ["json_schema", "loose_schema", "json_object"]),
        (("json_schema", "json_object"), False, ["json_schema", "loose_schema", "json_object", "text"]),
    ],
)
def test_a_refused_bound_is_asked_for_without_it_before_the_schema_is_given_up(refused, bounds, first):
    texts, seen = asyncio.run(talk(refused, [ask("a", schema=BOUND), ask("b", schema=BOUND)], bounds=bounds))
    assert texts == ["{}"] * 2 and [kind for _, kind in seen] == [*first, first[-1]]


@pytest.mark.parametrize(
    ("status", "message", "refusal"),
    [
        (500, "Failed to initialize samplers: failed to parse grammar", True),
        (500, "json_schema is not implemented", True),
        (501, "structured output is not available", True),
        (500, "internal error", False),
        (503, "the grammar worker is overloaded", False),
        (429, "too many requests with a schema", False),
    ],
)
def test_a_server_error_that_names_the_schema_is_a_refusal_and_another_is_not(status, message, refusal):
    if refusal:
        _, seen = asyncio.run(talk(("json_schema",), [ask(), ask()], message, status))
        assert [kind for _, kind in seen] == ["json_schema", "json_object", "json_object"]
    else:
        with pytest.raises(TransientError):
            asyncio.run(talk(("json_schema",), [ask()], message, status))


def test_a_models_own_name_is_no_refusal():
    with pytest.raises(TransientError):
        asyncio.run(talk(("json_schema",), [ask(model="structured-grammar-7b")], "internal error", 500))


def test_loosening_takes_the_bounds_at_any_depth_and_nothing_else():
    numbers = {"anyOf": [{"type": "number", "multipleOf": 2}, {"$ref": "#/$defs/format"}]}
    schema = {
        "type": "object",
        "properties": {
            "pattern": {"type": "string", "pattern": "^c[0-9]+$", "minLength": 1, "maxLength": 9},
            "maximum": {"type": "integer", "minimum": 1, "maximum": 5, "enum": [1, 5]},
            "list": {"type": "array", "items": numbers, "minItems": 4, "maxItems": 12, "uniqueItems": True},
        },
        "$defs": {"format": {"type": "string", "format": "date"}},
        "required": ["pattern", "maximum", "list"],
        "additionalProperties": False,
    }
    assert loosened(schema) == {
        "type": "object",
        "properties": {
            "pattern": {"type": "string"},
            "maximum": {"type": "integer", "enum": [1, 5]},
            "list": {"type": "array", "items": {"anyOf": [{"type": "number"}, {"$ref": "#/$defs/format"}]}},
        },
        "$defs": {"format": {"type": "string"}},
        "required": ["pattern", "maximum", "list"],
        "additionalProperties": False,
    }
    assert loosened(loosened(schema)) == loosened(schema) and "minItems" in schema["properties"]["list"]


def test_gemini_is_sent_the_bound_schema_and_then_the_loose_one(provider_client):
    seen = []

    def fault(request, attempt):
        seen.append(request.json_schema)
        return "no_schema" if request.json_schema == BOUND else None

    async def run():
        async with provider_client("gemini", fault=fault) as client:
            return await client.chat(ask("9 + 5 =", schema=BOUND))

    assert asyncio.run(run()).text.endswith("Answer: 14") and seen == [BOUND, LOOSE]


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
