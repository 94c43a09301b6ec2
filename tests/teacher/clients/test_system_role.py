"""A model that refuses a system message gets its text before the user's."""

from __future__ import annotations

import asyncio
import logging

import pytest

from ropd_jax.teacher import ChatRequest, RequestError, Teacher
from ropd_jax.teacher.clients.errors import TransientError
from ropd_jax.teacher.clients.system_role import SystemRole
from ropd_jax.types import Message

ASKED = (Message("system", "Be brief."), Message("user", "9 + 5 ="))


def without_system(request, attempt):
    return "no_system" if request.messages[0].role == "system" else None


@pytest.mark.parametrize("provider", ["openai", "gemini"])
def test_a_refused_system_message_goes_before_the_users_and_is_remembered(provider_client, provider, caplog):
    seen = []

    def fault(request, attempt):
        seen.append((request.model, [m.role for m in request.messages], request.messages[0].content))
        return without_system(request, attempt)

    async def run():
        async with provider_client(provider, fault=fault) as client:
            for n in range(2):
                assert (await client.chat(ChatRequest("verify", ASKED, "a", sample_index=n))).text
            await client.chat(ChatRequest("verify", ASKED[1:], "b"))

    asyncio.run(run())
    joined = ("a", ["user"], "Be brief.\n\n9 + 5 =")
    assert seen == [("a", ["system", "user"], "Be brief."), joined, joined, ("b", ["user"], "9 + 5 =")]
    assert (
        sum("refuses a system message" in r.getMessage() for r in caplog.records if r.levelno == logging.WARNING) == 1
    )


@pytest.mark.parametrize("provider", ["openai", "gemini"])
def test_the_verdicts_of_a_group_are_the_same_without_a_system_message(
    provider_client, provider, sum_prompt, sum_answers
):
    async def run(fault):
        async with provider_client(provider, fault=fault) as client:
            teacher = Teacher(client)
            rubric = await teacher.induce_rubric(sum_prompt, sum_answers[:1], sum_answers)
            return await teacher.verify(sum_prompt, rubric, sum_answers, key="k")

    assert asyncio.run(run(without_system)) == asyncio.run(run(None))


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (RequestError("openai answered 400 for model 'm': System role not supported"), True),
        (RequestError("Conversation roles must alternate user/assistant/user/assistant/..."), True),
        (RequestError("Developer instruction is not enabled for models/gemma-3-27b-it"), True),
        (TransientError("openai answered 500: System role not supported", cause="server_error"), True),
        (TransientError("System role not supported", cause="rate_limited"), False),
        (RequestError("the system is down"), False),
        (RequestError("openai answered 400 for model 'system role not here': bad"), False),
    ],
)
def test_only_an_error_that_names_the_role_is_such_a_refusal(error, refused):
    model = "system role not here" if "not here" in str(error) else "m"
    asked = []

    async def ask(request):
        asked.append([m.role for m in request.messages])
        if len(asked) == 1:
            raise error
        return "reply"

    chat = SystemRole().chat(ChatRequest("verify", ASKED, model), ask)
    if refused:
        assert asyncio.run(chat) == "reply" and asked == [["system", "user"], ["user"]]
    else:
        with pytest.raises(type(error)):
            asyncio.run(chat)


def test_requests_that_are_refused_at_the_same_time_are_all_repeated():
    role = SystemRole()

    async def ask(request):
        await asyncio.sleep(0)
        if request.messages[0].role == "system":
            raise RequestError("System role not supported")
        return request.messages[0].content

    async def run():
        return await asyncio.gather(*(role.chat(ChatRequest("verify", ASKED, "m"), ask) for _ in range(3)))

    assert asyncio.run(run()) == ["Be brief.\n\n9 + 5 ="] * 3
