"""Batch APIs, through the real SDKs against a local server: one job, half-failed jobs, a restart in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re

import pytest
from aiohttp import web

from experiments import quickstart
from ropd_jax import cli, teach
from ropd_jax.teacher import ChatReply, ChatRequest, ConfigurationError
from ropd_jax.teacher.batch import Jobs, Prefetched, open_batch, request_key, run_jobs
from ropd_jax.teacher.scripted import ScriptedClient
from ropd_jax.types import Message, UserError

SCRIPTED = ScriptedClient()


def scripted_text(content, sample):
    return SCRIPTED.reply(ChatRequest("reference", (Message("user", content),), "m", sample_index=sample)).text


class Server:
    """Both batch APIs. A job runs for ``looks`` looks at it; every request whose number is in ``fails`` fails."""

    def __init__(self, *, looks=1, fails=()):
        self.files, self.jobs, self.looks, self.fails = {}, {}, looks, set(fails)
        self.submitted, self.live = [], 0

    def app(self):
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/files", self.upload)
        app.router.add_post("/v1/batches", self.create)
        app.router.add_get("/v1/batches/{id}", self.look)
        app.router.add_get("/v1/files/{id}/content", self.download)
        app.router.add_post("/v1/chat/completions", self.chat)
        for version in ("v1", "v1beta"):  # which one the SDK takes is its own affair
            app.router.add_post(f"/{version}/models/{{call}}", self.gemini)
        app.router.add_get("/v1beta/batches/{id}", self.gemini_look)
        return app

    async def upload(self, request):
        form = await request.post()
        assert form["purpose"] == "batch"
        name = f"file-{len(self.files)}"
        self.files[name] = form["file"].file.read()
        return web.json_response({"id": name, "object": "file", "purpose": "batch"})

    async def create(self, request):
        body = await request.json()
        assert (body["endpoint"], body["completion_window"]) == ("/v1/chat/completions", "24h")
        rows = [json.loads(line) for line in self.files[body["input_file_id"]].decode().split("\n") if line]
        job = f"batch_{len(self.jobs)}"
        self.jobs[job] = {"rows": rows, "left": self.looks}
        self.submitted += [row["custom_id"] for row in rows]
        return web.json_response({"id": job, "object": "batch", "status": "validating"})

    async def look(self, request):
        if request.match_info["id"].startswith("g"):
            return await self.gemini_look(request)
        job = self.jobs[request.match_info["id"]]
        job["left"] -= 1
        row = {"id": request.match_info["id"], "object": "batch", "status": "in_progress"}
        if job["left"] < 0:
            name = f"out-{row['id']}"
            self.files[name] = "".join(json.dumps(self.answer(i, r)) + "\n" for i, r in enumerate(job["rows"])).encode()
            row |= {"status": "completed", "output_file_id": name}
        return web.json_response(row)

    def answer(self, i, row):
        if i in self.fails:
            return {"custom_id": row["custom_id"], "response": {"status_code": 500, "body": {}}, "error": None}
        return {"custom_id": row["custom_id"], "response": {"status_code": 200, "body": self.completion(row["body"])}}

    def completion(self, body):
        text = scripted_text(body["messages"][0]["content"], body["seed"])
        message = {"role": "assistant", "content": text}
        return {
            "id": "c", "object": "chat.completion", "model": body["model"], "created": 0,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
        }  # fmt: skip

    async def download(self, request):
        return web.Response(body=self.files[request.match_info["id"]])

    async def chat(self, request):
        self.live += 1
        return web.json_response(self.completion(await request.json()))

    async def gemini(self, request):
        model, _, call = request.match_info["call"].partition(":")
        body = await request.json()
        if call == "generateContent":
            self.live += 1
            return web.json_response(self.generated(body))
        assert call == "batchGenerateContent", call
        rows = body["batch"]["inputConfig"]["requests"]["requests"]
        job = f"g{len(self.jobs)}"
        self.jobs[job] = {"rows": rows, "left": self.looks}
        self.submitted += [row["metadata"]["key"] for row in rows]
        return web.json_response(
            {"name": f"batches/{job}", "metadata": {"state": "BATCH_STATE_PENDING", "model": model}}
        )

    async def gemini_look(self, request):
        job = self.jobs[request.match_info["id"]]
        job["left"] -= 1
        row = {"name": f"batches/{request.match_info['id']}", "metadata": {"state": "BATCH_STATE_RUNNING"}}
        if job["left"] < 0:
            answers = [
                {"metadata": r["metadata"]}
                | ({"error": {"code": 13}} if i in self.fails else {"response": self.generated(r["request"])})
                for i, r in enumerate(job["rows"])
            ]
            row["metadata"] = {
                "state": "BATCH_STATE_SUCCEEDED",
                "output": {"inlinedResponses": {"inlinedResponses": answers}},
            }
        return web.json_response(row)

    def generated(self, body):
        text = scripted_text(body["contents"][0]["parts"][0]["text"], body["generationConfig"]["seed"])
        part = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP"}
        return {"candidates": [part], "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4}}


@contextlib.asynccontextmanager
async def serving(server):
    runner = web.AppRunner(server.app())
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def requests(n, model="m"):
    text = "Calculate 9 + 5 - {} ="
    return [
        ChatRequest("reference", (Message("user", text.format(i)),), model, 0.7, 100, None, i % 3) for i in range(n)
    ]


def run(provider, server, several, path, **options):
    async def main():
        async with serving(server) as root:
            api = open_batch(provider, base_url=root + "/v1" if provider == "openai" else root)
            try:
                return await run_jobs([api], [several], Jobs(path), poll_s=0.01, **options)
            finally:
                await api.close()

    return asyncio.run(main())


@pytest.mark.parametrize("provider", ["openai", "gemini"])
def test_answers_come_home_to_their_requests(provider, tmp_path):
    server, several = Server(looks=2), [*requests(7), *requests(2, "other")]
    found = run(provider, server, several, tmp_path / "jobs.json")
    assert {k: r.text for k, r in found.items()} == {
        request_key(r): scripted_text(r.messages[0].content, r.sample_index) for r in several
    }
    assert len(server.jobs) == 2  # one a model
    usage = next(iter(found.values())).usage
    assert (usage.input_tokens, usage.output_tokens) == (3, 4)


@pytest.mark.parametrize("provider", ["openai", "gemini"])
def test_what_a_job_fails_to_answer_is_not_there(provider, tmp_path):
    several = requests(5)
    found = run(provider, Server(fails={1, 3}), several, tmp_path / "jobs.json")
    assert set(found) == {request_key(several[i]) for i in (0, 2, 4)}


@pytest.mark.parametrize("provider", ["openai", "gemini"])
def test_a_restart_polls_the_same_jobs_and_hands_in_only_what_is_new(provider, tmp_path):
    class Stopped(Exception):
        pass

    async def stop(seconds):
        raise Stopped

    server = Server(looks=3)
    with pytest.raises(Stopped):
        run(provider, server, requests(4), tmp_path / "jobs.json", sleep=stop)
    assert len(server.submitted) == 4 and len(Jobs(tmp_path / "jobs.json").jobs) == 1
    found = run(provider, server, requests(6), tmp_path / "jobs.json")
    assert len(found) == 6 and len(server.submitted) == len(set(server.submitted)) == 6


@pytest.mark.parametrize("provider", ["openai", "gemini"])
def test_a_server_that_is_away_for_a_while_is_asked_again(provider, tmp_path, unused_port):
    port, several = unused_port, requests(3)
    root = f"http://127.0.0.1:{port}"
    server, slept = Server(looks=0), []

    async def main():
        api = open_batch(provider, base_url=root + "/v1" if provider == "openai" else root)
        runner = web.AppRunner(server.app())
        await runner.setup()
        jobs = Jobs(tmp_path / "jobs.json")
        server.jobs["batch_0" if provider == "openai" else "g0"] = {"rows": [], "left": 0}

        async def sleep(seconds):
            slept.append(seconds)
            if len(slept) == 2:
                await web.TCPSite(runner, "127.0.0.1", port).start()

        jobs.add("batch_0" if provider == "openai" else "batches/g0", 0, [request_key(r) for r in several])
        try:
            return await run_jobs([api], [several], jobs, poll_s=7.0, sleep=sleep)
        finally:
            await api.close()
            await runner.cleanup()

    assert asyncio.run(main()) == {} and slept == [7.0, 7.0]


def test_a_provider_without_a_batch_api_is_said():
    with pytest.raises(ConfigurationError, match="the scripted teacher has no batch API; expected openai or gemini"):
        open_batch("scripted")


def test_a_prefetched_answer_is_used_once(saying):
    (request,) = requests(1)
    client = Prefetched(saying("live"), {request_key(request): ChatReply("from the batch")})
    assert [asyncio.run(client.chat(request)).text for _ in range(2)] == ["from the batch", "live"]


@pytest.mark.parametrize("provider", ["openai", "gemini"])
def test_teach_by_batch_writes_what_teach_writes_live(provider, tmp_path, monkeypatch):
    def config(root=""):
        cfg = quickstart.get_config()
        cfg.data.size, cfg.data.heldout_size, cfg.data.prompts_per_step = 12, 4, 4
        if root:
            cfg.teacher.provider = provider
            cfg.teacher.base_url = root + "/v1" if provider == "openai" else root
        return cfg.lock()

    teach.main(config(), tmp_path / "live.jsonl")
    server, out = Server(looks=1, fails={5}), tmp_path / "batch.jsonl"

    async def main():
        async with serving(server) as root:
            await asyncio.to_thread(teach.main, config(root), out, batch=True, poll_s=0.01)

    asyncio.run(main())

    def answers(path):
        return {r["uid"]: r["teacher_answers"] for r in map(json.loads, path.read_text().split("\n")[:-1])}

    assert answers(out) == answers(tmp_path / "live.jsonl")
    n = len(answers(out))
    assert len(server.submitted) == 4 * n
    assert server.live == 1 + n * teach.EXTRA * 3  # the failed one, and the equal ones of a scripted sum
    assert not (tmp_path / "batch.jsonl.jobs.json").exists()


def test_caps_are_not_promised_where_they_do_not_hold(tmp_path):
    cfg = quickstart.get_config()
    cfg.data.size, cfg.data.heldout_size, cfg.teacher.budget.calls = 12, 4, 5
    with pytest.raises(UserError, match=re.escape("teacher.budget caps are not enforced through batch jobs")):
        teach.main(cfg.lock(), tmp_path / "x.jsonl", batch=True)


def test_the_flag_is_there(capsys):
    assert cli.main(["teach", "--help"]) == 0
    assert "--batch" in capsys.readouterr().out
