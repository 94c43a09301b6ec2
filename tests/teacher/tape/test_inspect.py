"""Looking at a tape: misses explained, export and import, statistics."""

from __future__ import annotations

import asyncio

import pytest

from ropd_jax.teacher import BlockedError, ConfigurationError, Tape, TapedClient, Teacher, TransientError
from ropd_jax.teacher.clients.endpoint import Endpoint
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.teacher.tape.batch_jobs import Ledger
from ropd_jax.teacher.tape.inspect import export_tape, import_tape, tape_stats
from ropd_jax.teacher.tape.store import body_key, request_body
from ropd_jax.teacher.traffic.budget import Spent
from tests.teacher.tape.taping import chat, replaying, request, taped


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "n"}, r"model: 'm' there, 'n' here"),
        ({"temperature": 0.2}, r"temperature: 0.7 there, 0.2 here"),
        ({"limit": 7}, r"max_output_tokens: 100 there, 7 here"),
        ({"index": 3}, r"sample_index: 0 there, 3 here"),
        ({"schema": {"type": "object"}}, r"json_schema"),
        ({"text": "What is 2 + 3?"}, r"messages\[0\] from character 12: '.*2\?' there, '.*3\?' here"),
        ({"purpose": "verify", "text": "x"}, r"it has no verify requests"),
        ({"purpose": "verify", "model": "n"}, r"role: reference there, verify here; model"),
    ],
)
def test_a_miss_names_the_differences_from_the_nearest_entry(tape, saying, change, words):
    chat(taped(tape, saying("four", "one")), request())
    chat(taped(tape, saying("one")), request("Something else entirely", model="o"))
    with pytest.raises(ConfigurationError, match=words) as error:
        chat(replaying(tape), request(**change))
    assert error.value.cause == "tape_miss" and "\n" not in str(error.value)


def test_a_miss_looks_past_the_fences_token(tape, sum_prompt, sum_answers):
    async def verified(client, answers):
        teacher = Teacher(client, references_m=1)
        rubric = await teacher.induce_rubric(sum_prompt, await teacher.references(sum_prompt), sum_answers)
        await teacher.verify(sum_prompt, rubric, answers, key="k")

    asyncio.run(verified(taped(tape, ScriptedClient()), sum_answers[:1]))
    with pytest.raises(
        ConfigurationError, match=r"messages\[1\] from character \d+: '.*16.*' there, '.*17.*' here"
    ) as e:
        asyncio.run(verified(replaying(tape), [sum_answers[0].replace("Answer: 16", "Answer: 17")]))
    assert "json_schema" not in str(e.value)


def test_a_replay_of_what_a_batch_never_answered_is_reported(tape):
    (asked,) = rows = {body_key(request_body("openai", request())): request()}
    assert Ledger(tape).intend(Endpoint("openai"), rows, Spent(calls=1), prompts={}).keys == (asked,)
    client = TapedClient(lambda: None, tape, mode="replay", provider="openai")
    with pytest.raises(ConfigurationError, match="submitted in a batch job whose answer is not on the tape"):
        chat(client, request())


def filled(tape, saying):
    inner = saying("four \udc80 \u2028", BlockedError("no \ud800"), TransientError("503", cause="unavailable"), "ok")
    client = taped(tape, inner, prompts={"reference.v1": "abc"}, address="http://one")
    chat(client, request("a \ud800 b"), step=1)
    for index in (1, 2):
        with pytest.raises((BlockedError, TransientError)):
            chat(client, request(index=index), step=2)
    chat(client, request("v", purpose="verify", schema={"type": "object"}))


def test_export_then_import_is_lossless(tape, tmp_path, saying):
    filled(tape, saying)
    assert export_tape(tape, tmp_path / "a.jsonl") == 4
    other = Tape(tmp_path / "other.sqlite")
    assert import_tape(other, tmp_path / "a.jsonl") == (4, 0)
    assert import_tape(other, tmp_path / "a.jsonl") == (0, 4)
    export_tape(other, tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert list(other.entries()) == list(tape.entries())
    assert next(iter(other.entries())).prompts == {"reference.v1": "abc"}
    assert chat(replaying(other), request("a \ud800 b"), step=1).text == "four \udc80 \u2028"
    other.close()


def test_import_refuses_what_was_changed(tape, tmp_path, saying):
    filled(tape, saying)
    export_tape(tape, tmp_path / "a.jsonl")
    text = (tmp_path / "a.jsonl").read_text().replace('"max_output_tokens": 100', '"max_output_tokens": 99')
    (tmp_path / "a.jsonl").write_text(text)
    other = Tape(tmp_path / "other.sqlite")
    with pytest.raises(ConfigurationError, match=r"a.jsonl:2: the request does not match its key"):
        import_tape(other, tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(ConfigurationError, match="does not start with"):
        import_tape(other, tmp_path / "b.jsonl")
    other.close()


def test_stats_count_by_role_and_model(tape, saying):
    filled(tape, saying)
    rows = {r["role"]: r for r in tape_stats(tape)}
    assert (rows["reference"]["replies"], rows["verify"]["replies"]) == (1, 1)
    assert rows["reference"]["failures"] == {"blocked": 1, "unavailable": 1}
    assert (rows["verify"]["input_tokens"], rows["verify"]["output_tokens_mean"]) == (10, 5)
    assert rows["verify"]["latency_s_mean"] is None
