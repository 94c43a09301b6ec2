"""The tape: what it answers in each mode, that it keeps failures and secrets right, survives kills, and travels."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import zlib

import pytest
from aiohttp import web

from ropd_jax.configs import default
from ropd_jax.teacher import (
    BlockedError,
    ChatReply,
    ChatRequest,
    ConfigurationError,
    MalformedError,
    Tape,
    TapedClient,
    Teacher,
    TransientError,
    TruncatedError,
    Usage,
    at_step,
    build_teacher,
    make_client,
)
from ropd_jax.teacher.clients.endpoint import Endpoint
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.teacher.tape.batch_jobs import Ledger
from ropd_jax.teacher.tape.inspect import export_tape, import_tape, tape_stats
from ropd_jax.teacher.tape.store import body_key, request_body
from ropd_jax.teacher.traffic.budget import Spent
from ropd_jax.types import Message

TEXT = "What is 2 + 2?"


def request(text=TEXT, *, purpose="reference", model="m", temperature=0.7, limit=100, schema=None, index=0):
    return ChatRequest(purpose, (Message("user", text),), model, temperature, limit, schema, index)


@pytest.fixture
def tape(tmp_path):
    tape = Tape(tmp_path / "tape.sqlite")
    yield tape
    tape.close()


def taped(tape, client, mode="record", **more):
    return TapedClient(lambda: client, tape, mode=mode, provider="scripted", **more)


def replaying(tape, **more):
    def no_client():
        raise AssertionError("a replay made a client")

    return TapedClient(no_client, tape, mode="replay", provider="scripted", **more)


def chat(client, what, step=None):
    return asyncio.run(client.chat(what) if step is None else at_step(step, client.chat(what)))


# ------------------------------------------------------------------------------------------------------- modes


def test_a_recorded_request_is_asked_once_and_replayed_with_everything_it_had(tape, saying):
    inner = saying("four \ud83d", "five")
    first = chat(taped(tape, inner), request())
    again = chat(taped(tape, inner), request())
    replayed = chat(replaying(tape), request())
    assert (first.text, first.source) == ("four \ud83d", "live")
    assert (again.text, again.source) == (replayed.text, replayed.source) == ("four \ud83d", "tape")
    assert replayed.usage == Usage(10, 5, 2, 1)
    assert len(inner.requests) == 1


def test_the_key_is_made_of_all_that_is_sent_and_nothing_else():
    base = body_key(request_body("openai", request()))
    others = [
        body_key(request_body("gemini", request())),
        *(
            body_key(request_body("openai", request(**change)))
            for change in (
                {"model": "n"},
                {"temperature": 0.0},
                {"temperature": None},
                {"limit": 101},
                {"schema": {"type": "object"}},
                {"index": 1},
                {"text": TEXT + " "},
            )
        ),
    ]
    assert len({base, *others}) == 9
    assert body_key(request_body("openai", request(purpose="verify"))) == base
    assert body_key(request_body("openai", request(temperature=0))) == body_key(
        request_body("openai", request(temperature=0.0))
    )


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


def test_making_a_tape_leaves_no_trace_until_it_is_used(tmp_path):
    taped(Tape(tmp_path / "sub" / "tape.sqlite"), None)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- failures


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
    broken = ScriptedClient(fault=lambda r, attempt: "broken_json" if len(r.messages) == 1 and r.json_schema else None)

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
    empty = json.dumps({"schema_version": "ropd.verdicts.v1", "answers": []})
    inner = saying(empty, empty)
    from ropd_jax.teacher.roles import verifier

    inner.replies = [empty.replace("ropd.verdicts.v1", verifier.SCHEMA_VERSION)] * 2
    verdicts = asyncio.run(Teacher(taped(tape, inner)).verify(sum_prompt, rubric, sum_answers, key="k"))
    assert verdicts.causes == ("missing",) * 4
    assert len(inner.requests) == 2  # the second question was not answered by the first one's entry


# -------------------------------------------------------------------------------------------------------- miss


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "n"}, r"model: 'm' there, 'n' here"),
        ({"temperature": 0.2}, r"temperature: 0.7 there, 0.2 here"),
        ({"limit": 7}, r"max_output_tokens: 100 there, 7 here"),
        ({"index": 3}, r"sample_index: 0 there, 3 here"),
        ({"schema": {"type": "object"}}, r"json_schema"),
        ({"text": "What is 2 + 3?"}, r"messages\[0\] from character 12: '.*2\?' there, '.*3\?' here"),
        ({"purpose": "verify", "text": "x"}, r"it holds no verify requests"),
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
    with pytest.raises(ConfigurationError, match=r"messages\[0\] from character \d+: '.*16.*' there, '.*17.*' here"):
        asyncio.run(verified(replaying(tape), [sum_answers[0].replace("Answer: 16", "Answer: 17")]))


# ------------------------------------------------------------------------------------------------------ secrets


def test_no_key_and_no_header_enters_the_tape(tape, tmp_path, monkeypatch):
    secret = "sk-very-secret-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    headers = []

    async def answer(http):
        headers.append(http.headers["Authorization"])
        return web.json_response({"error": {"message": f"key {secret} is over its limit"}}, status=429)

    async def run():
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        client = TapedClient(
            lambda: make_client(provider="openai", base_url=url, attempts=1), tape, mode="record", provider="openai"
        )
        try:
            with pytest.raises(TransientError):
                await client.chat(request())
        finally:
            await client.close()
            await runner.cleanup()

    asyncio.run(run())
    assert secret in headers[0]
    export_tape(tape, tmp_path / "out.jsonl")
    tape.close()
    everything = (tmp_path / "tape.sqlite").read_bytes() + (tmp_path / "out.jsonl").read_bytes()
    assert b"over its limit" in everything
    for word in (secret, "Authorization", "Bearer"):
        assert word.encode() not in everything


# ------------------------------------------------------------------------------------------------ the address


def test_an_answer_of_another_address_is_used_with_one_warning(tape, saying, caplog):
    there = taped(tape, saying("a", "b", "c"), address="http://one:8000/v1")
    for index in range(3):
        chat(there, request(index=index))
    chat(there, request())
    assert tape.address(body_key(request_body("scripted", request()))) == "http://one:8000/v1" and not caplog.records
    here = taped(tape, saying("never"), address="")
    assert [chat(here, request(index=index)).text for index in range(3)] == ["a", "b", "c"]
    (record,) = caplog.records
    assert "came from http://one:8000/v1, and the config names scripted's own address" in record.getMessage()
    caplog.clear()
    chat(replaying(tape, address="http://two"), request())  # a replay needs no server
    assert not caplog.records


def test_the_address_on_the_tape_has_no_user_no_password_and_no_query(tmp_path):
    cfg = default()
    cfg.teacher.base_url = "http://me:secret@127.0.0.1:9/v1?token=secret"
    teacher = build_teacher(cfg.teacher, workdir=tmp_path)
    teacher.client.inner = ScriptedClient()
    chat(teacher.client, request("Calculate 9 + 5 ="))
    assert {e.address for e in teacher.client.tape.entries()} == {"http://127.0.0.1:9/v1"}
    asyncio.run(teacher.close())
    assert b"secret" not in (tmp_path / "tape.sqlite").read_bytes()


def test_a_tape_of_version_1_is_read_and_grows(tape, saying, tmp_path):
    chat(taped(tape, saying("old")), request())
    tape.close()
    with contextlib.closing(sqlite3.connect(tape.path)) as db, db:
        db.execute("ALTER TABLE replies DROP COLUMN address")
        db.execute("DROP TABLE batches")
        db.execute("PRAGMA user_version = 1")
    with contextlib.closing(Tape(tape.path, read_only=True)) as old:
        assert chat(replaying(old), request()).text == "old" and [e.address for e in old.entries()] == [None]
    client = taped(tape, saying("new"), address="http://one")
    assert (chat(client, request()).text, chat(client, request(index=1)).text) == ("old", "new")
    assert sorted(str(e.address) for e in tape.entries()) == ["None", "http://one"] and Ledger(tape).jobs() == []


def test_a_replay_of_what_a_batch_never_answered_is_reported(tape):
    (asked,) = rows = {body_key(request_body("openai", request())): request()}
    assert Ledger(tape).intend(Endpoint("openai"), rows, Spent(calls=1), prompts={}).keys == (asked,)
    client = TapedClient(lambda: None, tape, mode="replay", provider="openai")
    with pytest.raises(ConfigurationError, match="submitted with a batch job whose answer is not on the tape"):
        chat(client, request())


# ---------------------------------------------------------------------------------------------- export, import


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
    with pytest.raises(ConfigurationError, match=r"a.jsonl:2: the request does not hash to its key"):
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


def test_texts_are_compressed_and_survive_it(tape, saying):
    long = "the same step again\n" * 20_000
    chat(taped(tape, saying(long)), request(long))
    assert chat(replaying(tape), request(long)).text == long
    assert tape.query("SELECT length(body) FROM requests")[0][0] < len(long) / 50
    body = tape.query("SELECT body FROM requests")[0][0]
    assert json.loads(zlib.decompress(body))["messages"] == [["user", long]]


# ------------------------------------------------------------------------------------------ processes and kills

WRITER = """
import asyncio, sys
from ropd_jax.teacher import ChatReply, ChatRequest, Tape, TapedClient
from ropd_jax.types import Message

class Echo:
    async def chat(self, request):
        return ChatReply(request.messages[0].content[:40] * 50)

async def main(path, start):
    client = TapedClient(Echo, Tape(path), mode="record", provider="scripted")
    async def one(i):
        await client.chat(ChatRequest("reference", (Message("user", f"{i} " * 2000),), "m", sample_index=i))
        sys.stdout.write(f"{i}\\n"); sys.stdout.flush()
    for i in range(start, 10**6, 4):
        await asyncio.gather(*(one(i + k) for k in range(4)))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def test_a_killed_recorder_loses_only_what_was_in_flight(tmp_path):
    path, said, start = tmp_path / "tape.sqlite", set(), 0
    for round_ in range(10):
        command = [sys.executable, "-c", WRITER, str(path), str(start)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(1 + 7 * round_)]
            os.kill(process.pid, signal.SIGKILL)
            lines += process.stdout.readlines()
        said |= {int(x) for x in lines if x.endswith("\n")}
        start = max(said) + 1
        tape = Tape(path, read_only=True)
        assert tape.query("PRAGMA integrity_check") == [("ok",)]
        held = {i for (i,) in tape.query("SELECT sample_index FROM requests JOIN replies USING(key)")}
        tape.close()
        assert said <= held  # what was answered is there
        assert len(held) - len(said) <= 4 * (round_ + 1)  # and what was not said was in flight


def test_another_process_reads_while_one_writes_and_a_read_only_place_will_do(tape, tmp_path, saying):
    chat(taped(tape, saying("four")), request())
    code = "import sys; from ropd_jax.teacher import Tape; t = Tape(sys.argv[1], read_only=True); " \
           "print(t.query('SELECT count(*) FROM replies')[0][0])"  # fmt: skip
    out = subprocess.run([sys.executable, "-c", code, str(tape.path)], capture_output=True, text=True, check=True)
    assert out.stdout == "1\n"
    chat(taped(tape, saying("five")), request(index=1))
    reader = Tape(tape.path, read_only=True)
    assert reader.query("SELECT count(*) FROM replies") == [(2,)]
    reader.close()


def test_a_recorded_malformed_body_is_asked_again(tape, saying):
    client = taped(tape, saying(MalformedError("half a body"), "four"))
    with pytest.raises(MalformedError):
        chat(client, request())
    assert chat(client, request()).text == "four"
