"""The batch APIs of OpenAI and Gemini on loopback, with jobs that take a while, requests that fail, and kills."""

from __future__ import annotations

import contextlib
import json
import signal

from aiohttp import web

from ropd_jax.teacher import ChatRequest
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.types import Message

SCRIPTED = ScriptedClient()


def scripted_text(content, sample):
    return SCRIPTED.reply(ChatRequest("reference", (Message("user", content),), "m", sample_index=sample)).text


class Server:
    """Both batch APIs. A job runs for ``looks`` looks at it; every request whose number is in ``fails`` fails.

    ``kill`` is (point, process id): the process is killed at this point, which is upload, create (before the job is
    there), created (after it), look or download. ``late`` looks at the list do not show a job that is there.
    """

    def __init__(self, *, looks=1, fails=(), blocks=(), kill=None, late=0):
        self.files, self.jobs, self.looks, self.fails, self.blocks = {}, {}, looks, set(fails), set(blocks)
        self.submitted, self.live, self.kill, self.late, self.lists = [], 0, kill, late, 0
        self.process = None

    async def point(self, name):
        if self.kill == name:
            self.kill = None
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()
            if name in ("upload", "create"):
                raise web.HTTPServiceUnavailable()  # the request never came to be

    async def listed(self, request):
        self.lists += 1
        jobs = {} if self.lists <= self.late else self.jobs
        if "limit" in request.query:  # OpenAI; both SDKs may take the same path
            rows = [
                {"id": k, "object": "batch", "status": "validating", "metadata": j["about"]} for k, j in jobs.items()
            ]
            after = request.query.get("after")  # a page holds one, so that the others are asked for
            rows = rows[[r["id"] for r in rows].index(after) + 1 if after else 0 :]
            return web.json_response({"object": "list", "data": rows[:1], "has_more": len(rows) > 1})
        rows = [{"name": f"batches/{k}", "metadata": j["about"]} for k, j in jobs.items()]
        first = int(request.query.get("pageToken") or 0)
        more = {"nextPageToken": str(first + 1)} if first + 1 < len(rows) else {}
        return web.json_response({"operations": rows[first : first + 1]} | more)

    def app(self):
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/files", self.upload)
        app.router.add_post("/v1/batches", self.create)
        app.router.add_get("/v1/batches", self.listed)
        app.router.add_get("/v1beta/batches", self.listed)
        app.router.add_get("/v1/batches/{id}", self.look)
        app.router.add_get("/v1/files/{id}/content", self.download)
        app.router.add_post("/v1/chat/completions", self.chat)
        for version in ("v1", "v1beta"):  # which one the SDK takes is its own affair
            app.router.add_post(f"/{version}/models/{{call}}", self.gemini)
        app.router.add_get("/v1beta/batches/{id}", self.gemini_look)
        return app

    async def upload(self, request):
        form = await request.post()
        await self.point("upload")
        assert form["purpose"] == "batch"
        name = f"file-{len(self.files)}"
        self.files[name] = form["file"].file.read()
        return web.json_response({"id": name, "object": "file", "purpose": "batch"})

    async def create(self, request):
        body = await request.json()
        await self.point("create")
        assert (body["endpoint"], body["completion_window"]) == ("/v1/chat/completions", "24h")
        rows = [json.loads(line) for line in self.files[body["input_file_id"]].decode().split("\n") if line]
        job = f"batch_{len(self.jobs)}"
        self.jobs[job] = {"rows": rows, "left": self.looks, "about": body["metadata"]}
        self.submitted += [row["custom_id"] for row in rows]
        await self.point("created")
        return web.json_response({"id": job, "object": "batch", "status": "validating"})

    async def look(self, request):
        if request.match_info["id"].startswith("g"):
            return await self.gemini_look(request)
        await self.point("look")
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
        message, blocked = {"role": "assistant", "content": text}, body["messages"][0]["content"] in self.blocks
        return {
            "id": "c", "object": "chat.completion", "model": body["model"], "created": 0,
            "choices": [{"index": 0, "message": message,
                         "finish_reason": "content_filter" if blocked else "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
        }  # fmt: skip

    async def download(self, request):
        await self.point("download")
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
        await self.point("create")
        rows = body["batch"]["inputConfig"]["requests"]["requests"]
        job = f"g{len(self.jobs)}"
        about = {"displayName": body["batch"]["displayName"], "state": "BATCH_STATE_PENDING"}
        self.jobs[job] = {"rows": rows, "left": self.looks, "about": about}
        self.submitted += [row["metadata"]["key"] for row in rows]
        await self.point("created")
        return web.json_response(
            {"name": f"batches/{job}", "metadata": {"state": "BATCH_STATE_PENDING", "model": model}}
        )

    async def gemini_look(self, request):
        await self.point("look")
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
        blocked = body["contents"][0]["parts"][0]["text"] in self.blocks
        part = {"content": {"role": "model", "parts": [{"text": text}]},
                "finishReason": "SAFETY" if blocked else "STOP"}  # fmt: skip
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
