"""Batches that go wrong: failed jobs, torn results, web pages, answers without keys. Nothing is lost or paid twice."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json

import pytest

from experiments import quickstart
from ropd_jax.cli import collect_references
from ropd_jax.teacher import Budget, ChatRequest, Tape
from ropd_jax.teacher.clients.batch import open_batch
from ropd_jax.teacher.clients.endpoint import Endpoint
from ropd_jax.teacher.tape.batch_jobs import ENDED, ROLE, RUNNING, TORN_LOOKS, Ledger, Source, run_jobs
from ropd_jax.teacher.tape.store import body_key, request_body
from ropd_jax.types import Message, UserError
from tests.teacher.tape.batch_server import Server, serving

PROVIDERS = pytest.mark.parametrize("provider", ["openai", "gemini"])
BROKEN = ("failed", "Unsupported value: 'temperature' does not support 0.7")


def requests(n, **changes):
    asked = ChatRequest("reference", (Message("user", "x"),), "m", 0.7, 100)
    texts = (f"Calculate 9 + 5 - {i} =" for i in range(n))
    return [dataclasses.replace(asked, messages=(Message("user", t),), **changes) for t in texts]


@pytest.fixture
def tape(tmp_path):
    with contextlib.closing(Tape(tmp_path / "tape.sqlite")) as tape:
        yield tape


def run(provider, server, several, tape, *, budget=None, **options):
    async def main():
        async with serving(server) as root:
            api = open_batch(provider, base_url=root + "/v1" if provider == "openai" else root)
            try:
                source = Source(Endpoint(provider), api, several)
                how = dict(poll_s=0.01, grace_s=0.0) | options
                return await run_jobs([source], tape, budget or Budget(), **how)
            finally:
                await api.close()

    return asyncio.run(main())


def answered(tape, provider, several):
    return [i for i, r in enumerate(several) if tape.get(body_key(request_body(provider, r))) is not None]


# ---------------------------------------------------------------------------------------------------- failed jobs


@PROVIDERS
def test_a_failed_job_shows_why_and_nothing_is_bought_live(provider, tape, caplog):
    several = requests(5)
    for _ in range(2):  # the second time from the tape
        with pytest.raises(UserError, match=r"failed to answer 5 requests \(5 x batch .* ended as failed: Unsupported "
                                            r"value: 'temperature'.*--live-fallback") as e:  # fmt: skip
            run(provider, Server(looks=1, broken=BROKEN), several, tape)
        assert "\n" not in str(e.value)
    assert [j.state for j in Ledger(tape).jobs()] == [ENDED]
    failures = tape.failures(body_key(request_body(provider, several[0])))
    assert [f.cause for f in failures] == ["batch_failed"] and "temperature" in failures[0].message
    assert run(provider, Server(), several, tape, live_fallback=True) is None
    assert any("sent live, at the full price" in r.getMessage() for r in caplog.records)


@PROVIDERS
def test_after_a_change_of_the_config_the_new_requests_go_into_a_new_job(provider, tape):
    with pytest.raises(UserError):
        run(provider, Server(broken=BROKEN), requests(4), tape)
    mended, server = requests(4, temperature=1.0), Server()
    assert run(provider, server, mended, tape) is None
    assert len(server.submitted) == 4 and answered(tape, provider, mended) == [0, 1, 2, 3]


@PROVIDERS
def test_a_few_failed_requests_are_no_failed_job(provider, tape):
    several = requests(20)
    assert run(provider, Server(fails={3, 7}), several, tape) is None
    assert answered(tape, provider, several) == [i for i in range(20) if i not in (3, 7)]
    failure = tape.failures(body_key(request_body(provider, several[3])))[0]
    assert failure.cause == "batch_failed" and "the model had a problem" in failure.message


@PROVIDERS
def test_more_than_a_tenth_is(provider, tape):
    with pytest.raises(UserError, match=r"failed to answer 3 requests .3 x batch .*the model had a problem"):
        run(provider, Server(fails={3, 7, 11}), requests(20), tape)


def test_collecting_stops_at_a_failed_job_and_goes_on_live_if_asked_to(tmp_path):
    def config(root):
        cfg = quickstart.get_config()
        cfg.data.size, cfg.data.heldout_size, cfg.data.prompts_per_step = 4, 4, 4
        cfg.teacher.provider, cfg.teacher.base_url, cfg.teacher.references = "openai", root + "/v1", 1
        return cfg.lock()

    server, out = Server(looks=0, broken=BROKEN), tmp_path / "x.jsonl"

    async def main():
        async with serving(server) as root:
            how = {"batch": True, "poll_s": 0.01}
            with pytest.raises(UserError, match="--live-fallback"):
                await asyncio.to_thread(collect_references.collect, config(root), out, **how)
            before = server.live
            await asyncio.to_thread(collect_references.collect, config(root), out, **how, live_fallback=True)
            return before, server.live

    before, after = asyncio.run(main())
    assert before == 0 and after == len(out.read_text().splitlines()) == len(server.submitted) > 0


# ---------------------------------------------------------------------------------------------------- torn results


def mid_line(data, n):
    return data[:-40] if n < 3 else data


def between_lines(data, n):
    return data[: data.rindex(b"\n", 0, -1) + 1] if n < 3 else data


def page(data, n):
    return b"<html>\n<body>502 Bad Gateway</body>\n</html>\n" if n < 3 else data


def nothing(data, n):
    return b"" if n < 3 else data


@PROVIDERS
@pytest.mark.parametrize("spoil", [mid_line, between_lines, page, nothing])
def test_torn_results_are_fetched_again(provider, spoil, tape):
    server, several, budget = Server(looks=0, spoil=spoil), requests(6), Budget()
    assert run(provider, server, several, tape, budget=budget) is None
    assert answered(tape, provider, several) == list(range(6)) and server.downloads == 3
    assert (budget.roles[ROLE].calls, budget.roles[ROLE].tokens) == (6, 6 * 7)


@PROVIDERS
def test_results_that_stay_torn_give_what_can_be_read(provider, tape):
    server, several = Server(looks=0, spoil=lambda data, n: data[:-40]), requests(20)
    assert run(provider, server, several, tape) is None
    assert answered(tape, provider, several) == list(range(19)) and server.downloads == TORN_LOOKS + 1
    assert [j.state for j in Ledger(tape).jobs()] == [ENDED]


@PROVIDERS
def test_a_web_page_at_a_poll_is_no_answer(provider, tape):
    server, several = Server(looks=1), requests(3)
    server.pages = {1, 2, 4}
    assert run(provider, server, several, tape) is None
    assert answered(tape, provider, several) == [0, 1, 2] and server.polls == 5 and len(server.submitted) == 3


@PROVIDERS
def test_a_web_page_in_place_of_the_list_proves_nothing(provider, tape):
    """A job with a lost id is searched for until the list can be read, and is not submitted again."""
    server, several = Server(looks=0), requests(3)
    rows = {body_key(request_body(provider, r)): r for r in several}
    lost = Ledger(tape).intend(Endpoint(provider), rows, Budget().total(), prompts={})
    server.torn_lists = {1, 2}

    async def main():
        async with serving(server) as root:
            api = open_batch(provider, base_url=root + "/v1" if provider == "openai" else root)
            try:
                await api.submit(rows, lost.marker)
                await run_jobs([Source(Endpoint(provider), api, several)], tape, Budget(), poll_s=0.01, grace_s=0.0)
            finally:
                await api.close()

    asyncio.run(main())
    assert len(server.submitted) == 3 and answered(tape, provider, several) == [0, 1, 2]


# ------------------------------------------------------------------------- answers of Gemini without their keys


def inline_job(tape, server, several):
    """A job as an earlier version submitted it, with its requests inside."""
    rows = {body_key(request_body("gemini", r)): r for r in several}
    ledger = Ledger(tape)
    job = ledger.intend(Endpoint("gemini"), rows, Budget().total(), prompts={})
    ledger.running(job, "batches/g0")
    server.jobs["g0"] = {"left": 0, "rows": [
        {"key": k, "request": {"contents": [{"parts": [{"text": r.messages[0].content}]}],
                               "generation_config": {"seed": 0}}} for k, r in rows.items()]}  # fmt: skip
    return list(rows)


def test_answers_inside_a_job_find_home_by_their_metadata_in_any_order(tape):
    several = requests(4)
    server = Server(inline=lambda s, r: {"metadata": {"key": r["key"]}, "response": s.generated(r["request"])})
    inline_job(tape, server, several)
    server.jobs["g0"]["rows"].reverse()
    assert run("gemini", server, several, tape) is None
    keys = [body_key(request_body("gemini", r)) for r in several]
    assert [tape.get(k).text.split("\n")[-1] for k in keys] == [f"Answer: {14 - i}" for i in range(4)]
    assert server.submitted == []


def test_answers_without_metadata_stop_loudly_and_are_neither_guessed_nor_bought_again(tape):
    several = requests(4)
    server = Server(inline=lambda s, r: {"response": s.generated(r["request"])})
    inline_job(tape, server, several)
    for _ in range(2):
        with pytest.raises(UserError, match=r"4 answers of batch batches/g0 have no key.*paid for.*--live-fallback"):
            run("gemini", server, several, tape)
        server.jobs["g0"]["left"] = 0
    assert answered(tape, "gemini", several) == [] and server.submitted == [] and server.live == 0
    assert [j.state for j in Ledger(tape).jobs()] == [RUNNING]
    budget = Budget()
    assert run("gemini", server, several, tape, budget=budget, live_fallback=True) is None
    assert [j.state for j in Ledger(tape).jobs()] == [ENDED]
    assert (budget.roles[ROLE].calls, budget.roles[ROLE].tokens) == (4, 4 * 7)  # the paid cost is booked


def test_one_answer_without_metadata_among_others_is_not_dropped_either(tape):
    several = requests(4)
    server = Server(inline=lambda s, r: {"metadata": {"key": r["key"]}, "response": s.generated(r["request"])}
                    if r["key"] != last else {"response": s.generated(r["request"])})  # fmt: skip
    last = inline_job(tape, server, several)[-1]
    with pytest.raises(UserError, match="1 answers of batch"):
        run("gemini", server, several, tape)


# ------------------------------------------------------------------------------------------------------ requests


def test_a_line_of_geminis_file_has_all_of_the_request():
    extra = {"top_p": 0.5, "thinking_config": {"thinking_budget": 9}, "safety_settings": [
        {"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]}  # fmt: skip
    asked = (Message("system", "S"), Message("user", "a\ud800"), Message("assistant", "b"), Message("user", "c"))
    request = ChatRequest("reference", asked, "m", 0.7, 100, None, 3, extra)

    async def main():
        api = open_batch("gemini", base_url="http://127.0.0.1:9")
        try:
            return json.loads(json.dumps(api._client.batch_request(request)))
        finally:
            await api.close()

    line = asyncio.run(main())
    assert [(c["role"], c["parts"][0]["text"]) for c in line["contents"]] == [
        ("user", "a\ud800"), ("model", "b"), ("user", "c")]  # fmt: skip
    assert line["system_instruction"] == {"parts": [{"text": "S"}]}
    assert line["safety_settings"] == extra["safety_settings"]
    assert line["generation_config"] == {
        "temperature": 0.7, "max_output_tokens": 100, "seed": 3, "top_p": 0.5, "thinking_config": {"thinking_budget": 9}
    }  # fmt: skip


@PROVIDERS
def test_extra_goes_into_a_job_and_comes_back_from_the_tape(provider, tape):
    several, server = requests(2, extra={"top_p": 0.5}), Server()
    assert run(provider, server, several, tape) is None
    assert answered(tape, provider, several) == [0, 1]
    (job,) = Ledger(tape).jobs()
    assert [dict(r.extra) for r in Ledger(tape).requests(job).values()] == [{"top_p": 0.5}] * 2
    (row, _) = next(iter(server.jobs.values()))["rows"]
    assert (row["body"] if provider == "openai" else row["request"]["generation_config"])["top_p"] == 0.5
