"""Batch APIs, through the real SDKs against a local server: jobs on the tape, kills at every point, caps."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys

import pytest
from aiohttp import web

from experiments import quickstart
from ropd_jax.cli import collect_references
from ropd_jax.cli import main as cli
from ropd_jax.teacher import Budget, BudgetError, Caps, ChatReply, ChatRequest, ConfigurationError, Tape, TapedClient
from ropd_jax.teacher.clients.batch import open_batch
from ropd_jax.teacher.clients.endpoint import Endpoint
from ropd_jax.teacher.collect_references import EXTRA
from ropd_jax.teacher.tape.batch_jobs import ENDED, INTENDED, ROLE, RUNNING, Ledger, Source, run_jobs
from ropd_jax.teacher.tape.store import body_key, request_body
from ropd_jax.types import Message, UserError
from tests.teacher.tape.batch_server import Server, scripted_text, serving


def requests(n, model="gpt-4.1"):
    text = "Calculate 9 + 5 - {} ="
    return [
        ChatRequest("reference", (Message("user", text.format(i)),), model, 0.7, 100, None, i % 3) for i in range(n)
    ]


def key(provider, request):
    return body_key(request_body(provider, request))


def texts(tape, provider, several):
    """The text on the tape, by the request's number."""
    replies = {i: tape.get(key(provider, r)) for i, r in enumerate(several)}
    return {i: reply.text for i, reply in replies.items() if reply is not None}


def expected(several):
    return {i: scripted_text(r.messages[0].content, r.sample_index) for i, r in enumerate(several)}


@pytest.fixture
def tape(tmp_path):
    with contextlib.closing(Tape(tmp_path / "tape.sqlite")) as tape:
        yield tape


def run(provider, server, several, tape, *, budget=None, **options):
    """``run_jobs`` against the server, in this process. The prices of the provider's own address apply."""

    async def main():
        async with serving(server) as root:
            return await at(provider, root, several, tape, budget=budget, **options)

    return asyncio.run(main())


async def at(provider, root, several, tape, *, budget=None, **options):
    api = open_batch(provider, base_url=root + "/v1" if provider == "openai" else root)
    try:
        source = Source(Endpoint(provider), api, several)
        how = dict(poll_s=0.01, grace_s=0.0, live_fallback=True) | options
        return await run_jobs([source], tape, budget or Budget(), **how)
    finally:
        await api.close()


# ------------------------------------------------------------------------------------------- jobs and answers

PROVIDERS = pytest.mark.parametrize("provider", ["openai", "gemini"])


@PROVIDERS
def test_answers_come_home_to_their_requests_and_onto_the_tape(provider, tape, saying):
    server, several = Server(looks=2), [*requests(7), *requests(2, "other")]
    assert run(provider, server, several, tape) is None
    assert texts(tape, provider, several) == expected(several)
    assert len(server.jobs) == 2  # one per model
    assert [(j.provider, j.state) for j in Ledger(tape).jobs()] == [(provider, ENDED)] * 2
    client = TapedClient(lambda: saying(), tape, mode="record", provider=provider)  # sends nothing
    reply = asyncio.run(client.chat(several[3]))
    assert (reply.text, reply.source) == (expected(several)[3], "tape")
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (3, 4)


@PROVIDERS
def test_what_a_job_fails_to_answer_is_not_there_and_not_submitted_again(provider, tape):
    several, server = requests(5), Server(fails={1, 3})
    for _ in range(2):
        run(provider, server, several, tape)
        assert set(texts(tape, provider, several)) == {0, 2, 4}
    assert len(server.submitted) == 5


@PROVIDERS
def test_a_blocked_answer_is_kept_as_the_failure_it_is_and_paid_for(provider, tape):
    several, budget = requests(4), Budget()
    run(provider, Server(blocks={several[2].messages[0].content}), several, tape, budget=budget)
    assert set(texts(tape, provider, several)) == {0, 1, 3}
    assert [f.cause for f in tape.failures(key(provider, several[2]))] == ["blocked"]
    assert (budget.roles[ROLE].calls, budget.roles[ROLE].tokens) == (4, 4 * 7)


def test_an_unusable_answer_of_a_job_is_a_failure_on_the_tape(tape):
    several = {key("openai", r): r for r in requests(3)}
    ledger, (good, bad, _) = Ledger(tape), several
    job = ledger.intend(Endpoint("openai"), several, Budget().total(), prompts={})
    ledger.end(job, {good: ChatReply("9 + 5 = 14"), bad: ChatReply("<think>no end")}, Budget().total())
    assert tape.get(good).text == "9 + 5 = 14" and tape.get(bad) is None
    assert [f.cause for f in tape.failures(bad)] == ["thinking"]


@PROVIDERS
def test_a_restart_polls_the_same_jobs_and_submits_only_what_is_new(provider, tape):
    class Stopped(Exception):
        pass

    async def stop(seconds):
        raise Stopped

    server = Server(looks=3)
    with pytest.raises(Stopped):
        run(provider, server, requests(4), tape, sleep=stop)
    assert len(server.submitted) == 4 and [j.state for j in Ledger(tape).jobs()] == [RUNNING]
    run(provider, server, requests(6), tape)
    assert len(texts(tape, provider, requests(6))) == 6
    assert len(server.submitted) == len(set(server.submitted)) == 6


@PROVIDERS
def test_a_server_that_is_away_for_a_while_is_asked_again(provider, tape, unused_port):
    several, root = requests(3), f"http://127.0.0.1:{unused_port}"
    server, slept = Server(looks=0), []
    job = Ledger(tape).intend(Endpoint(provider), {key(provider, r): r for r in several}, Budget().total(), prompts={})
    Ledger(tape).running(job, "batch_0" if provider == "openai" else "batches/g0")
    call = {
        "body": {"model": "m", "seed": 0, "messages": [{"content": "9 + 5 ="}]},
        "request": {"contents": [{"parts": [{"text": "9 + 5 ="}]}], "generation_config": {"seed": 0}},
    }
    rows = [{"custom_id": k, "key": k} | call for k in job.keys]
    server.jobs["batch_0" if provider == "openai" else "g0"] = {"rows": rows, "left": 0}

    async def main():
        runner = web.AppRunner(server.app())
        await runner.setup()

        async def sleep(seconds):
            slept.append(seconds)
            if len(slept) == 2:
                await web.TCPSite(runner, "127.0.0.1", unused_port).start()

        try:
            return await at(provider, root, several, tape, poll_s=7.0, sleep=sleep)
        finally:
            await runner.cleanup()

    assert asyncio.run(main()) is None and slept == [7.0, 7.0]
    assert [j.state for j in Ledger(tape).jobs()] == [ENDED]


# ------------------------------------------------------------------------------------------------------- kills

CHILD = """
import asyncio, json, sys
from ropd_jax.teacher import Budget, ChatRequest, Tape
from ropd_jax.teacher.clients.batch import open_batch
from ropd_jax.teacher.tape.batch_jobs import Source, run_jobs
from ropd_jax.teacher.clients.endpoint import Endpoint
from ropd_jax.types import Message
provider, root, tape, texts = sys.argv[1:]
several = [ChatRequest("reference", (Message("user", t),), "gpt-4.1", 0.7, 100, None, i % 3)
           for i, t in enumerate(json.loads(texts))]
api = open_batch(provider, base_url=root + "/v1" if provider == "openai" else root)
asyncio.run(run_jobs([Source(Endpoint(provider), api, several)], Tape(tape), Budget(), poll_s=0.01))
"""
POINTS = {
    "openai": ("upload", "create", "created", "look", "download"),
    "gemini": ("upload", "create", "created", "look", "download"),
}


@pytest.mark.parametrize(("provider", "point"), [(p, point) for p, points in POINTS.items() for point in points])
def test_a_kill_at_any_point_pays_for_nothing_twice(provider, point, tape, tmp_path):
    server, several, budget = Server(looks=1, kill=point), requests(5), Budget()

    async def main():
        async with serving(server) as root:
            prompts = json.dumps([r.messages[0].content for r in several])
            command = (sys.executable, "-c", CHILD, provider, root, str(tape.path), prompts)
            server.process = await asyncio.create_subprocess_exec(*command)
            assert await server.process.wait() == -signal.SIGKILL
            before = len(server.jobs)
            states = [j.state for j in Ledger(tape).jobs()]
            assert await at(provider, root, several, tape, budget=budget) is None
            return before, states

    before, states = asyncio.run(main())
    assert before == (0 if point in ("upload", "create") else 1)
    assert states == [RUNNING if point in ("look", "download") else INTENDED]
    assert len(server.jobs) == 1 and len(server.submitted) == 5
    assert texts(tape, provider, several) == expected(several)
    assert (budget.roles[ROLE].calls, budget.roles[ROLE].tokens) == (5, 5 * 7)


@PROVIDERS
def test_a_job_that_is_listed_late_is_taken_over_and_one_that_is_never_listed_is_submitted_again(provider, tape):
    server, several = Server(looks=0, late=3), requests(3)
    rows = {key(provider, r): r for r in several}
    lost = Ledger(tape).intend(Endpoint(provider), rows, Budget().total(), prompts={})

    async def main():
        async with serving(server) as root:
            api = open_batch(provider, base_url=root + "/v1" if provider == "openai" else root)
            await api.submit(requests_of_another := {key(provider, r): r for r in requests(2, "other")}, "ropd-other")
            await api.submit(rows, lost.marker)
            await api.close()
            await at(provider, root, several, tape, grace_s=60.0)
            assert len(server.submitted) == 3 + len(requests_of_another) and texts(tape, provider, several)
            gone = Ledger(tape).intend(Endpoint(provider), {"0" * 64: several[0]}, Budget().total(), prompts={})
            await at(provider, root, several, tape)
            assert gone.marker not in [j.marker for j in Ledger(tape).jobs()]

    asyncio.run(main())


def test_a_refused_job_leaves_nothing_and_one_with_an_unknown_fate_its_record(tape, unused_port):
    async def refuse(request):
        return web.json_response({"error": {"message": "no", "code": "x"}}, status=400)

    async def main(root):
        with pytest.raises(UserError, match="run the same command to find out" if root else "answered 400"):
            await at("openai", root or refusing, requests(2), tape)
        return [j.state for j in Ledger(tape).jobs()]

    async def both():
        nonlocal refusing
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", refuse)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        refusing = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            assert await main("") == []
        finally:
            await runner.cleanup()
        assert await main(f"http://127.0.0.1:{unused_port}") == [INTENDED]

    refusing = ""
    asyncio.run(both())


# -------------------------------------------------------------------------------------------------------- caps


@PROVIDERS
def test_a_batch_costs_half_the_price_and_only_once(provider, tape):
    model = {"openai": "gpt-4.1", "gemini": "gemini-2.5-pro"}[provider]
    several, half = requests(4, model), 0.5 * Budget().prices.find(provider, model).output
    for _ in range(2):  # reading the tape again adds nothing
        budget = Budget()
        run(provider, Server(looks=0), several, tape, budget=budget)
        rates = budget.prices.find(provider, model)
        assert budget.total().usd == pytest.approx(4 * (3 * rates.input / 2 + 4 * half) / 1e6)
        assert budget.as_metrics()[f"teacher/cost_usd_{ROLE}"] == budget.total().usd


def test_the_jobs_are_in_the_stats_of_the_tape(tape, capsys):
    run("openai", Server(looks=0), requests(3), tape)
    rows = {"0" * 64: requests(1)[0]}
    Ledger(tape).intend(Endpoint("gemini"), rows, Budget().total(), prompts={})
    tape.close()
    assert cli.main(["tape", "stats", str(tape.path), "--json"]) == 0
    jobs = json.loads(capsys.readouterr().out)["batches"]
    usd = 3 * (3 * 1.0 + 4 * 4.0) / 1e6
    assert jobs == [
        {"id": "batch_0", "provider": "openai", "state": ENDED, "requests": 3, "usd": pytest.approx(usd)},
        {"id": "", "provider": "gemini", "state": INTENDED, "requests": 1, "usd": 0.0},
    ]
    assert cli.main(["tape", "stats", str(tape.path)]) == 0
    shown = capsys.readouterr().out
    assert "batch job batch_0 of openai: ended, 3 requests, $5.7e-05" in shown
    assert "batch job (id not known) of gemini: intended, 1 requests" in shown


def test_a_model_without_a_price_for_batches_costs_an_unknown_amount(tape):
    budget = Budget()
    run("openai", Server(looks=0), requests(2, "somebody's"), tape, budget=budget)
    assert budget.total().cost_usd is None and budget.total().tokens == 14
    with pytest.raises(ConfigurationError, match="no price of batch jobs is known for reference's model"):
        Budget(Caps(usd=1.0)).require_price("reference", "openai", "somebody's", "", batch=True)


@pytest.mark.parametrize(
    ("caps", "first", "second"),
    [
        (Caps(calls=4), 4, 0),  # the actual number of calls is the estimate
        (Caps(tokens=240), 2, 8),  # 105 each by estimate, 7 in fact: then all others fit
        (Caps(tokens=100), 0, 0),
        (Caps(usd=2 * (5 * 1.0 + 100 * 4.0) / 1e6 + 1e-9), 2, 8),
    ],
)
def test_a_cap_holds_by_estimate_before_and_by_the_real_usage_after(caps, first, second, tape):
    server, budget = Server(looks=0), Budget(caps)
    stopped = run("openai", server, requests(10), tape, budget=budget)
    sizes = [len(j["rows"]) for j in server.jobs.values()]
    assert sizes == [n for n in (first, second) if n]
    assert (stopped is None) == (sum(sizes) == 10)
    if stopped is not None:
        assert f"{10 - first} are not submitted" in str(stopped)
    assert budget.total().tokens == 7 * sum(sizes) and budget.total().calls == sum(sizes)


def test_jobs_that_run_count_at_their_estimate(tape):
    several = requests(6)
    rows = {key("openai", r): r for r in several[:4]}
    server, budget = Server(looks=3), Budget(Caps(calls=5))
    one = Ledger(tape).intend(Endpoint("openai"), rows, Budget().total() + budget_of(4), prompts={})
    Ledger(tape).running(one, "batch_0")
    body = {"model": "m", "seed": 0, "messages": [{"role": "user", "content": "Calculate 9 + 5 - 1 ="}]}
    server.jobs["batch_0"] = {"rows": [{"custom_id": k, "body": body} for k in rows], "left": 3, "about": {}}
    stopped = run("openai", server, several, tape, budget=budget)
    assert len(server.submitted) == 1 and "1 are not submitted" in str(stopped)


def budget_of(calls):
    budget = Budget()
    for _ in range(calls):
        budget.begin("reference")
    return budget.total()


# --------------------------------------------------------------------------------------------------- the verb


def test_a_provider_without_a_batch_api_is_reported():
    with pytest.raises(
        ConfigurationError, match="the scripted teacher does not have a batch API; expected openai or gemini"
    ):
        open_batch("scripted")


@PROVIDERS
def test_collecting_by_batch_writes_what_collecting_live_writes(provider, tmp_path, monkeypatch):
    def config(root=""):
        cfg = quickstart.get_config()
        cfg.data.size, cfg.data.heldout_size, cfg.data.prompts_per_step = 12, 4, 4
        if root:
            cfg.teacher.provider = provider
            cfg.teacher.base_url = root + "/v1" if provider == "openai" else root
        return cfg.lock()

    collect_references.collect(config(), tmp_path / "live.jsonl")
    server, out = Server(looks=1, fails={5}), tmp_path / "batch.jsonl"

    async def main():
        async with serving(server) as root:
            await asyncio.to_thread(collect_references.collect, config(root), out, batch=True, poll_s=0.01)

    asyncio.run(main())

    def answers(path):
        return {r["uid"]: r["teacher_answers"] for r in map(json.loads, path.read_text().split("\n")[:-1])}

    assert answers(out) == answers(tmp_path / "live.jsonl")
    n = len(answers(out))
    assert len(server.submitted) == 4 * n
    assert server.live == 1 + n * EXTRA * 3  # the failed one, and the equal ones of a scripted sum
    with contextlib.closing(Tape(tmp_path / "batch.jsonl.teacher" / "tape.sqlite", read_only=True)) as tape:
        assert [(j.state, len(j.keys)) for j in Ledger(tape).jobs()] == [(ENDED, 4 * n)]
        assert tape.query("SELECT count(*) FROM replies") == [(4 * n + n * EXTRA * 3,)]
    spent = json.loads((tmp_path / "batch.jsonl.teacher" / "spent.json").read_text())
    assert spent[ROLE]["calls"] == 4 * n and spent["reference"]["calls"] == server.live


def test_collecting_at_a_cap_writes_what_was_bought_and_raises(tmp_path):
    def config(root, calls):
        cfg = quickstart.get_config()
        cfg.data.size, cfg.data.heldout_size, cfg.data.prompts_per_step = 12, 4, 4
        cfg.teacher.provider, cfg.teacher.base_url, cfg.teacher.budget.calls = "openai", root + "/v1", calls
        return cfg.lock()

    server, out = Server(looks=0), tmp_path / "x.jsonl"

    async def main():
        async with serving(server) as root:
            how = {"batch": True, "poll_s": 0.01}
            with pytest.raises(BudgetError):
                await asyncio.to_thread(collect_references.collect, config(root, 13), out, **how)
            at_the_cap = len(server.submitted)
            await asyncio.to_thread(collect_references.collect, config(root, 1_000), out, **how)
            return [at_the_cap, len(server.submitted)]

    submitted = asyncio.run(main())
    n = len(out.read_text().splitlines())
    assert submitted == [13, 4 * n] and len(set(server.submitted)) == 4 * n


def test_a_batch_needs_a_tape_that_is_written(tmp_path):
    cfg = quickstart.get_config()
    cfg.data.size, cfg.data.heldout_size, cfg.teacher.tape.mode = 12, 4, "off"
    with pytest.raises(UserError, match=r"--batch keeps its jobs on the tape; expected teacher\.tape\.mode=record"):
        collect_references.collect(cfg.lock(), tmp_path / "x.jsonl", batch=True)


def test_the_flag_is_there(capsys):
    assert cli.main(["teach", "--help"]) == 0
    assert "--batch" in capsys.readouterr().out
