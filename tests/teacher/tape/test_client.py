"""A client on a tape: its answers in each mode, and stored failures."""

from __future__ import annotations

import asyncio

import pytest

from ropd_jax.teacher import (
    BlockedError,
    ChatReply,
    ConfigurationError,
    MalformedError,
    Tape,
    Teacher,
    TransientError,
    TruncatedError,
    Usage,
)
from ropd_jax.teacher.clients.endpoint import Endpoint
from ropd_jax.teacher.roles.references import SEED_STRIDE
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.teacher.tape.store import body_key, request_body
from tests.teacher.helpers import keyed
from tests.teacher.tape.taping import chat, replaying, request, taped


def test_a_recorded_request_is_asked_once_and_replayed_with_everything_it_had(tape, saying):
    inner = saying("four \ud83d", "five")
    first = chat(taped(tape, inner), request())
    again = chat(taped(tape, inner), request())
    replayed = chat(replaying(tape), request())
    assert (first.text, first.source) == ("four \ud83d", "live")
    assert (again.text, again.source) == (replayed.text, replayed.source) == ("four \ud83d", "tape")
    assert replayed.usage == Usage(10, 5, 2, 1)
    assert len(inner.requests) == 1


def test_refresh_asks_once_more_overwrites_and_then_stays(tape, saying):
    chat(taped(tape, saying("old")), request())
    inner = saying("new", "newer")
    client = taped(tape, inner, "refresh")
    assert [chat(client, request()).text for _ in range(2)] == ["new", "new"]
    assert len(inner.requests) == 1
    assert chat(replaying(tape), request()).text == "new"


def test_two_that_ask_the_same_at_once_get_the_same_reply(tape):
    class Counting:
        n = 0

        async def chat(self, request):
            self.n += 1
            text = str(self.n)
            await asyncio.sleep(0.01 * (3 - self.n))
            return ChatReply(text)

    client = taped(tape, Counting())

    async def both():
        return await asyncio.gather(client.chat(request()), client.chat(request()))

    texts = {r.text for r in asyncio.run(both())}
    assert len(texts) == 1
    assert chat(replaying(tape), request()).text in texts


def test_modes_and_places_that_cannot_work_are_reported(tmp_path, tape):
    from ropd_jax.teacher.tape.client import open_tape

    with pytest.raises(ConfigurationError, match=r"teacher.tape.mode is 'reply'; expected one of record, replay"):
        open_tape("reply", "", tmp_path)
    with pytest.raises(ConfigurationError, match=r"no tape .*tape.sqlite.*teacher.tape.path"):
        open_tape("replay", "", tmp_path / "none")
    assert open_tape("off", "x", tmp_path) is None
    assert open_tape("record", "", None) is None
    (tmp_path / "text.sqlite").write_text("this is no database, and long enough to be looked at " * 20)
    with pytest.raises(ConfigurationError, match=r"text.sqlite.*not a tape"):
        Tape(tmp_path / "text.sqlite").get("k")


def test_a_passing_failure_is_repeated_by_record_and_replayed_in_its_step(tape, saying):
    inner = saying(TransientError("429", cause="rate_limited"), "four")
    client = taped(tape, inner)
    with pytest.raises(TransientError):
        chat(client, request(), step=3)
    assert chat(client, request(), step=9).text == "four"
    replay = replaying(tape)
    with pytest.raises(TransientError) as failed:
        chat(replay, request(), step=3)
    assert failed.value.cause == "rate_limited"
    assert chat(replay, request(), step=9).text == "four"


def test_a_step_that_a_resumed_run_repeats_with_success_replays_with_success(tape, saying):
    client = taped(tape, saying(TransientError("503"), "four"))
    with pytest.raises(TransientError):
        chat(client, request(), step=3)
    assert chat(client, request(), step=3).text == "four"
    assert chat(replaying(tape), request(), step=3).text == "four"


@pytest.mark.parametrize("error", [BlockedError("no"), TruncatedError("cut")])
def test_a_lasting_failure_is_not_paid_for_twice(tape, saying, error):
    inner = saying(error)
    client = taped(tape, inner)
    for step in (1, 2):
        with pytest.raises(type(error)):
            chat(client, request(), step=step)
        with pytest.raises(type(error)):
            chat(replaying(tape), request(), step=step)
    assert len(inner.requests) == 1


def test_configuration_errors_stop_the_run_and_are_not_recorded(tape, saying):
    with pytest.raises(ConfigurationError):
        chat(taped(tape, saying(ConfigurationError("no such model"))), request())
    assert chat(taped(tape, saying("four")), request()).text == "four"
    assert tape.query("SELECT count(*) FROM failures") == [(0,)]


def test_a_malformed_reply_and_its_reask_replay_the_same_way(tape, sum_prompt, sum_answers):
    def first(request, attempt):  # breaks the reply to each JSON request, but not to its re-ask
        asked_again = "could not be used" in request.messages[-1].content
        return "broken_json" if request.json_schema and not asked_again else None

    broken = ScriptedClient(fault=first)

    async def judged(client):
        teacher = Teacher(client, references_m=2)
        references = await teacher.references(sum_prompt)
        rubric = await teacher.induce_rubric(sum_prompt, references, sum_answers)
        verdicts = await teacher.verify(sum_prompt, rubric, [*sum_answers, *references], key="k")
        return verdicts.scores(rubric), teacher.stats

    live, stats = asyncio.run(judged(taped(tape, broken)))
    again, again_stats = asyncio.run(judged(replaying(tape)))
    assert live == again and None not in live
    assert stats.reasks == again_stats.reasks == {"rubric": 1, "verify": 1}
    assert (sum(stats.calls.values()), sum(again_stats.calls.values())) == (6, 0)


def test_a_verifier_without_any_verdict_gets_another_request(tape, sum_prompt, sum_answers, saying):
    scripted = ScriptedClient()
    teacher = Teacher(scripted, references_m=1)
    rubric = asyncio.run(teacher.induce_rubric(sum_prompt, asyncio.run(teacher.references(sum_prompt)), sum_answers))
    inner = saying(keyed(), keyed())
    verdicts = asyncio.run(Teacher(taped(tape, inner)).verify(sum_prompt, rubric, sum_answers, key="k"))
    assert verdicts.causes == ("missing",) * 4
    assert len(inner.requests) == 2  # the second question was not answered by the first one's entry


def test_an_answer_of_another_address_is_used_with_one_warning(tape, saying, caplog):
    there = taped(tape, saying("a", "b", "c"), address="http://one:8000/v1")
    for index in range(3):
        chat(there, request(index=index))
    chat(there, request())
    assert tape.address(body_key(request_body("scripted", request()))) == "http://one:8000/v1" and not caplog.records
    here = taped(tape, saying("never"), address="")
    assert [chat(here, request(index=index)).text for index in range(3)] == ["a", "b", "c"]
    (record,) = caplog.records
    assert "came from http://one:8000/v1, but the config names scripted's own address" in record.getMessage()
    caplog.clear()
    chat(replaying(tape, address="http://two"), request())  # a replay needs no server
    assert not caplog.records


def test_the_address_on_the_tape_has_no_user_no_password_and_no_query(tmp_path):
    tape = Tape(tmp_path / "tape.sqlite")
    where = Endpoint("openai", "http://me:secret@127.0.0.1:9/v1?token=secret")
    client = taped(tape, ScriptedClient(), address=where.address)
    chat(client, request("Calculate 9 + 5 ="))
    assert {e.address for e in tape.entries()} == {"http://127.0.0.1:9/v1"}
    asyncio.run(client.close())
    assert b"secret" not in (tmp_path / "tape.sqlite").read_bytes()


def test_a_recorded_malformed_body_is_asked_again(tape, saying):
    client = taped(tape, saying(MalformedError("half a body"), "four"))
    with pytest.raises(MalformedError):
        chat(client, request())
    assert chat(client, request()).text == "four"


JUNK = ["<think>no end", "", "I'm sorry, but I can't help with that."]


@pytest.mark.parametrize("text", JUNK)
def test_an_unusable_reference_is_recorded_as_a_failure_and_never_as_a_reply(tape, saying, text):
    inner = saying(text)
    client = taped(tape, inner)
    for step in (3, 3, 7):  # a resumed step and a later one do not pay for it again
        with pytest.raises(MalformedError) as live:
            chat(client, request(), step=step)
    key = body_key(request_body("scripted", request()))
    assert tape.get(key) is None and [f.step for f in tape.failures(key)] == [3, 7] and len(inner.requests) == 1
    for step in (3, 7, 9):
        with pytest.raises(MalformedError) as replayed:
            chat(replaying(tape), request(), step=step)
        assert (replayed.value.cause, str(replayed.value)) == (live.value.cause, str(live.value))
    for purpose in ("rubric", "verify"):  # whose parsers have their own rules
        assert chat(taped(tape, saying(text)), request("other", purpose=purpose)).text == text


def test_a_run_with_unusable_references_replays_to_the_same_references(tape, sum_prompt):
    class Fickle(ScriptedClient):
        """Sample 1 is junk with its first seed, sample 2 with every seed."""

        async def chat(self, request):
            number, attempt = request.sample_index % SEED_STRIDE, request.sample_index // SEED_STRIDE
            if number == 2 or (number == 1 and not attempt):
                return ChatReply(JUNK[attempt])
            return await super().chat(request)

    def collected(client):
        teacher = Teacher(client)
        return asyncio.run(teacher.reference_samples(sum_prompt)), teacher.stats.failures, teacher.stats.reasks

    live = collected(taped(tape, Fickle()))
    assert len(live[0]) == 3 and live[1] == {"thinking": 2, "empty": 1, "junk": 1} and live[2] == {"reference": 3}
    assert collected(replaying(tape)) == live
    assert collected(taped(tape, Fickle())) == live  # a resumed run requests nothing again
    assert collected(Fickle())[0] == live[0]  # and without a tape it is the same
    assert not [e for e in tape.entries() if e.reply is not None and e.reply.text in JUNK]
