"""What cannot be had as asked for: JSON by schema where the server knows none, answers over the context or too long."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from aiohttp import web

from ropd_jax.teacher import (
    ChatReply,
    ChatRequest,
    ConfigurationError,
    ContextError,
    RequestError,
    Teacher,
    TransientError,
    make_client,
)
from ropd_jax.teacher.roles import fences
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.types import Criterion, Message, Prompt, Rubric

SCHEMA = {"type": "object"}
RUBRIC = Rubric(tuple(Criterion(f"c{n}", f"criterion {n}", p) for n, p in enumerate((5, 4, 2, 1), 1)))
PROMPT = Prompt("p1", (Message("user", "Q?"),))


def ask(text="x", model="m", schema=SCHEMA):
    return ChatRequest("rubric", (Message("user", text),), model, json_schema=schema)


# ---------------------------------------------------------------------------------------------- structured output


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


# ---------------------------------------------------------------------------------------- context and long answers


class Narrow:
    """A verifier and rubricator with a context of ``limit`` characters of answers; passes what contains "good"."""

    def __init__(self, limit, failure=None):
        self.limit, self.failure, self.shown = limit, failure, []

    async def chat(self, request):
        texts = [text for label, text in fences.parse_blocks(request.messages[0].content)
                 if label.split(" ")[0] in ("answer", "student", "reference")]  # fmt: skip
        self.shown.append(texts)
        if sum(map(len, texts)) > self.limit:
            raise ContextError("too long")
        if self.failure is not None and any("poison" in text for text in texts):
            raise self.failure
        if request.purpose == "rubric":
            rows = [{"criterion_id": f"c{i}", "category": "x", "criterion": f"k{i}", "points": 1} for i in range(1, 5)]
            return ChatReply(json.dumps({"schema_version": "ropd.rubric.v1", "rubrics": rows, "maximum_score": 4}))
        rows = [{"answer_index": i, "judgement": ["good" in t] * 4} for i, t in enumerate(texts, 1)]
        return ChatReply(json.dumps({"schema_version": "ropd.batch_verifier.v2", "answers": rows}))

    async def close(self):
        pass


def verify(client, answers, **options):
    teacher = Teacher(client, **options)
    return asyncio.run(teacher.verify(PROMPT, RUBRIC, answers, key="k")), teacher.stats


def test_answers_over_the_context_are_verified_in_parts():
    answers = [f"{'good' if i % 3 else 'bad'} answer {i} " + "x" * 100 for i in range(12)]
    client = Narrow(400)
    result, stats = verify(client, answers)
    assert result.passed == tuple(("good" in a,) * 4 for a in answers) and result.causes == (None,) * 12
    assert [len(texts) for texts in client.shown] == [12, 6, 6, 3, 3, 3, 3]
    assert stats.cut == {}


def test_an_answer_that_alone_is_over_the_context_is_cut_in_the_middle_and_counted():
    answers = ["good " + "x" * 3000, "good short", "bad short"]
    client = Narrow(1000)
    result, stats = verify(client, answers)
    assert result.passed == ((True,) * 4, (True,) * 4, (False,) * 4)
    assert "characters cut ...]" in next(t[0] for t in client.shown if len(t) == 1 and 500 < len(t[0]) <= 1000)
    assert stats.cut == {"verify": 2}  # to 1,502 characters, then to 751


def test_a_part_that_fails_leaves_only_its_own_answers_unscored():
    answers = ["good " + "x" * 90, "good " + "y" * 90, "poison " + "x" * 90, "good " + "z" * 90]
    result, _ = verify(Narrow(200, TransientError("x", cause="timeout")), answers)
    # the half with the poison fails, is asked for again, and splits no further
    assert result.causes[2] == "timeout" and result.passed[2] is None
    assert sum(p is not None for p in result.passed) >= 2 and None in result.causes
    with pytest.raises(ConfigurationError):
        verify(Narrow(200, ConfigurationError("key")), answers)


def test_no_cut_helps_a_model_whose_context_is_full_without_any_answer():
    client = Narrow(-1)
    with pytest.raises(ContextError):
        verify(client, ["a" * 5000, "b"])
    assert len(client.shown) < 12


def test_a_rubric_over_the_context_is_induced_from_cut_answers():
    client = Narrow(1500)
    teacher = Teacher(client)
    rubric = asyncio.run(teacher.induce_rubric(PROMPT, ["r" * 900, "r"], ["a" * 900, "b" * 10]))
    assert len(rubric.criteria) == 4
    first, second = client.shown
    assert sum(map(len, first)) == 1811
    assert second[0].startswith("rrr") and second[0].endswith("rrr") and second[3] == "b" * 10
    assert teacher.stats.cut == {"rubric": 2}


def test_an_over_long_answer_is_cut_before_it_is_sent():
    client = Narrow(10**9)
    result, stats = verify(client, ["good" + "x" * 9996, "bad"], max_answer_chars=1000)
    shown = max(client.shown[0], key=len)
    assert 990 <= len(shown) <= 1000 and shown.startswith("good") and "\n[... 9" in shown
    assert stats.cut == {"verify": 1} and result.passed == ((True,) * 4, (False,) * 4)
    assert stats.as_metrics()["teacher/cut_verify"] == 1.0


def test_cutting_keeps_start_and_end_and_says_how_much_is_missing():
    text = "".join(chr(97 + i % 26) for i in range(10_000))
    for limit in (fences.MIN_CUT, 101, 999, 9_999):
        cut = fences.cut_middle(text, limit)
        head, mark, tail = cut.split("\n")
        missing = int(mark.split()[1])
        assert len(cut) <= limit and text.startswith(head) and text.endswith(tail)
        assert len(head) + len(tail) + missing == 10_000 and abs(len(head) - len(tail)) <= 1
    assert fences.cut_middle(text, 10_000) is text


def test_a_bound_too_small_to_show_anything_is_refused():
    with pytest.raises(ConfigurationError, match=r"teacher\.max_answer_chars is 50; expected at least 100"):
        Teacher(ScriptedClient(), max_answer_chars=50)
