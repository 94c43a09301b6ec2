"""Parameters that a server refuses, with the servers' messages: omitted once, remembered, logged."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging

import pytest

from ropd_jax.teacher import ChatRequest, ConfigurationError, RequestError, TransientError
from ropd_jax.teacher.clients.errors import TeacherError
from ropd_jax.teacher.clients.parameters import DROPPED, LIMITS, Parameters
from ropd_jax.types import Message
from tests.teacher.clients.wire import serving, wire

ASKED = ChatRequest(
    "reference", (Message("user", "Q?"),), "m", 0.5, 50, None, 3, {"top_p": 0.9, "reasoning_effort": "high"}
)


def error(message, code="", status=400):
    return status, {"error": {"message": message, "code": code, "type": "invalid_request_error"}}


# Answers of servers, by the refused parameter.
REFUSALS = {
    # Gemini's OpenAI endpoint: Vali-98/ChatterUI#227. The body is a list.
    "gemini seed": ("seed", lambda: (400, [{"error": {"code": 400, "status": "INVALID_ARGUMENT", "message":
        'Invalid JSON payload received. Unknown name "seed": Cannot find field.'}}])),
    # Mistral on Azure: langchain-ai/langchain-azure#82
    "mistral seed": ("seed", lambda: (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"],
        "msg": "Extra inputs are not permitted", "input": 3}]})),
    "mistral seed in message": ("seed", lambda: (422, {"object": "error", "message": {"detail": [
        {"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}})),
    # GPT-5 on Azure: OpenHands#11662, owndev/Open-WebUI-Functions#136
    "azure limit": ("max_tokens", lambda: error(
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "unsupported_parameter")),
    "gpt-5 temperature": ("temperature", lambda: error(
        "Unsupported value: 'temperature' does not support 0.5 with this model. Only the default (1) value is "
        "supported.", "unsupported_value")),
    "o-series top_p": ("top_p", lambda: error(
        "Unsupported parameter: 'top_p' is not supported with this model.", "unsupported_parameter")),
    # A gateway in front: LiteLLM's form
    "gateway": ("temperature", lambda: error(
        "litellm.UnsupportedParamsError: gpt-5 models don't support temperature=0.5. Only temperature=1 is "
        "supported.")),
    "gateway 500": ("seed", lambda: error("seed is not supported by this backend", status=500)),
    # a value that the model does not have: earendil-works/pi#1745 (Groq), CLIProxyAPI#1572 (SGLang), grok2api#814
    "groq effort": ("reasoning_effort", lambda: error("`reasoning_effort` must be one of `none` or `default`")),
    "sglang effort": ("reasoning_effort", lambda: (400, {"object": "error", "message":
        "1 validation error: {'loc': ('body', 'reasoning_effort'), 'msg': \"Input should be 'low' or 'high'\"}"})),
    "xai effort": ("reasoning_effort", lambda: (400, {"code": "invalid-argument", "error":
        "Model m does not support parameter reasoningEffort."})),
    "openai effort": ("reasoning_effort", lambda: error(
        "Unsupported value: 'reasoning_effort' does not support 'high' with this model. Supported values are: "
        "'medium'.", "unsupported_value")),
    "strict": ("top_p", lambda: error("Unrecognized request argument supplied: top_p")),
}  # fmt: skip


def refusing(name, answer):
    return lambda body: answer() if name in body else None


@pytest.mark.parametrize(("name", "answer"), REFUSALS.values(), ids=REFUSALS)
def test_a_refused_parameter_is_left_out_once_and_remembered(name, answer, caplog):
    replies, seen = wire("openai", [ASKED] * 3, refuse=refusing(name, answer))
    assert replies == ["fine"] * 3 and len(seen) == 4
    before, *after = (s.body for s in seen)
    expected = {k: v for k, v in before.items() if k != name}
    if name in LIMITS:
        expected["max_completion_tokens"] = before["max_tokens"]
    assert after == [expected] * 3
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(said) == 1 and f"'m' refuses {name}" in said[0]


def test_several_refusals_one_after_the_other():
    def refuse(body):
        for name in ("seed", "temperature", "reasoning_effort", "max_tokens"):
            if name in body:
                return f"Unsupported parameter: '{name}'"
        return None

    request = dataclasses.replace(ASKED, extra={"reasoning_effort": "high"})
    replies, seen = wire("openai", [request, request], refuse=refuse)
    assert replies == ["fine"] * 2 and len(seen) == 6
    assert set(seen[-1].body) == {"model", "messages", "max_completion_tokens"}


def test_several_refusals_in_one_text_are_taken_one_by_one():
    text = 'Unknown name "seed": Cannot find field.\nUnknown name "top_p": Cannot find field.'
    replies, seen = wire("openai", [ASKED], refuse=lambda b: text if "seed" in b or "top_p" in b else None)
    assert replies == ["fine"] and [sorted({"seed", "top_p"} & set(s.body)) for s in seen] == [
        ["seed", "top_p"], ["top_p"], []]  # fmt: skip


@pytest.mark.parametrize(("first", "then"), [LIMITS, LIMITS[::-1]])
def test_both_names_of_the_limit(first, then):
    async def run():
        answered = []

        async def ask(refused):
            name = next(n for n in (first, then) if n not in refused)
            if name == first:
                raise RequestError(f"Extra inputs are not permitted: {first}")
            answered.append(name)
            return "reply"

        parameters = Parameters()
        assert await parameters.chat(ASKED, first, ask) == "reply" == await parameters.chat(ASKED, first, ask)
        return answered

    assert asyncio.run(run()) == [then, then]


def test_a_server_that_refuses_both_names_of_the_limit_ends_with_its_own_words():
    with pytest.raises(RequestError, match="max_completion_tokens is not supported"):
        wire("openai", [ASKED], refuse=lambda b: f"{next(n for n in LIMITS if n in b)} is not supported")


@pytest.mark.parametrize(
    "message",
    [
        "Unsupported image in: plant a seed",  # the text of a prompt: without the seed the same answer
        "max_tokens is too large: 50. This model supports at most 20 completion tokens",
        "temperature must be at most 0.3",
        "top_p has to be positive",
    ],
)
def test_an_error_that_only_mentions_a_parameter_changes_nothing(message, caplog):
    with pytest.raises(TeacherError, match=message.split(":")[0]):
        wire("openai", [ASKED], refuse=lambda body: message)
    assert not [r for r in caplog.records if "refuses" in r.getMessage()]

    async def later():  # the next request has everything
        async with serving() as server:
            server.refuse = lambda body: message if len(server.seen) < 3 else None
            with contextlib.suppress(TeacherError):
                await server.chats("openai", [ASKED])
            server.refuse = lambda body: None
            await server.chats("openai", [ASKED])
            return server.seen[-1].body

    assert {"seed", "temperature", "top_p", "max_tokens"} <= set(asyncio.run(later()))


def test_a_model_is_remembered_by_its_own_name_and_forgotten_by_no_other():
    def refuse(body):
        return "seed is not supported" if body["model"] == "strict" and "seed" in body else None

    models = ["strict", "m", "strict", "m"]
    _, seen = wire("openai", [dataclasses.replace(ASKED, model=m) for m in models], refuse=refuse)
    assert [(s.body["model"], "seed" in s.body) for s in seen] == [
        ("strict", True), ("strict", False), ("m", True), ("strict", False), ("m", True)]  # fmt: skip


def test_a_temperature_that_is_refused_with_reasoning_stays_without_it():
    def refuse(body):  # GPT-5.2: BerriAI/litellm-docs#1064
        both = "temperature" in body and body.get("reasoning_effort")
        return "Unsupported value: 'temperature' does not support 0.5 with this model." if both else None

    plain = dataclasses.replace(ASKED, extra={})
    high = dataclasses.replace(ASKED, extra={"reasoning_effort": "high"})
    _, seen = wire("openai", [high, plain, high, plain], refuse=refuse)
    assert [("reasoning_effort" in s.body, "temperature" in s.body) for s in seen] == [
        (True, True), (True, False), (False, True), (True, False), (False, True)]  # fmt: skip


def test_many_at_once_learn_it_together_and_say_it_once(caplog):
    requests = [dataclasses.replace(ASKED, sample_index=i) for i in range(8)]
    replies, seen = wire("openai", requests, refuse=refusing("seed", lambda: "seed is not supported"), together=True)
    assert replies == ["fine"] * 8 and len(seen) <= 16
    assert len([r for r in caplog.records if "refuses seed" in r.getMessage()]) == 1


def test_another_parameter_of_extra_stops_the_run_and_is_named():
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    with pytest.raises(ConfigurationError, match="'chat_template_kwargs' comes from the role's extra: remove it"):
        wire("openai", [dataclasses.replace(ASKED, extra=extra)],
             refuse=refusing("chat_template_kwargs", lambda: "Unknown parameter: 'chat_template_kwargs'"))  # fmt: skip


@pytest.mark.parametrize("name", ["provider", "user", "stop", "reasoning"])
def test_a_word_of_an_error_is_no_parameter(name):
    request = dataclasses.replace(ASKED, extra={name: {"a": 1}})
    with pytest.raises(RequestError, match="returned"):
        wire("openai", [request], refuse=lambda body: f"The {name} returned an unknown error")


def test_a_failure_that_passes_teaches_nothing():
    calls = []

    async def ask(refused):
        calls.append(refused)
        raise TransientError("seed is not supported while overloaded", cause="unavailable")

    parameters = Parameters()
    with pytest.raises(TransientError):
        asyncio.run(parameters.chat(ASKED, "max_tokens", ask))
    assert calls == [frozenset()] and parameters.of(ASKED) == frozenset()


def test_a_schema_a_system_message_and_a_parameter_can_all_be_refused():
    def refuse(body):
        if "seed" in body:
            return 'Unknown name "seed"'
        if body["messages"][0]["role"] == "system":
            return "System role not supported"
        return "response_format is not supported" if "response_format" in body else None

    asked = (Message("system", "S"), Message("user", "U"))
    request = dataclasses.replace(ASKED, messages=asked, json_schema={"type": "object"})
    replies, seen = wire("openai", [request] * 2, refuse=refuse)
    last = seen[-1].body
    assert replies == ["fine"] * 2 and last["messages"] == [{"role": "user", "content": "S\n\nU"}]
    assert "response_format" not in last and "seed" not in last and last["top_p"] == 0.9


@pytest.mark.parametrize("name", ["seed", "temperature", "top_p"])
def test_gemini_leaves_out_what_its_model_refuses(name):
    wired = {"top_p": "topP"}.get(name, name)

    def refuse(body):
        return f"{name} is not supported by this model" if wired in body["generationConfig"] else None

    asked = dataclasses.replace(ASKED, extra={"top_p": 0.9})
    replies, seen = wire("gemini", [asked] * 2, refuse=refuse)
    assert replies == ["fine"] * 2 and len(seen) == 3
    first, *later = (s.body["generationConfig"] for s in seen)
    assert later == [{k: v for k, v in first.items() if k != wired}] * 2


def test_only_what_a_run_can_do_without_is_left_out():
    assert set(DROPPED) == {"seed", "temperature", "top_p", "reasoning_effort"}
