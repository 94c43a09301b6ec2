"""The batch APIs of OpenAI and Gemini on loopback, with jobs that take time, failing requests, and kills."""

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
    """Both batch APIs. A job runs for ``looks`` polls; every request whose number is in ``fails`` fails.

    ``kill`` is (point, process id): the process is killed at this point: upload, create (before the job is
    there), created (after it), look or download. The list does not show a new job for ``late`` polls.
    """

    def __init__(self, *, looks=1, fails=(), blocks=(), kill=None, late=0, broken=None, spoil=None, inline=None):
        self.files, self.jobs, self.looks, self.fails, self.blocks = {}, {}, looks, set(fails), set(blocks)
        self.submitted, self.live, self.kill, self.late, self.lists = [], 0, kill, late, 0
        self.process = None
        self.broken = broken  # (status, message): every job ends this way, without answers
        self.spoil = spoil or (lambda data, n: data)  # of a download and its number: what is sent
        self.inline = inline  # Gemini: the parts of its inline answers, as in an earlier version
        self.torn_lists = set()
        self.downloads, self.polls, self.pages = 0, 0, set()  # pages: polls that get a web page

    async def point(self, name):
        if self.kill == name:
            self.kill = None
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()
            if name in ("upload", "create"):
                raise web.HTTPServiceUnavailable()  # the request was never made

    async def listed(self, request):
        self.lists += 1
        if self.lists in self.torn_lists:
            return web.Response(text="<html>502</html>", content_type="text/html")
        jobs = {} if self.lists <= self.late else self.jobs
        if "limit" in request.query:  # OpenAI; both SDKs may take the same path
            rows = [
                {"id": k, "object": "batch", "status": "validating", "metadata": j["about"]} for k, j in jobs.items()
            ]
            after = request.query.get("after")  # one job per page, so that further pages are requested
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
        for version in ("v1", "v1beta"):  # the SDK chooses which one
            app.router.add_post(f"/{version}/models/{{call}}", self.gemini)
            app.router.add_post(f"/upload/{version}/files", self.gemini_file)
            app.router.add_get(f"/{version}/files/{{id}}:download", self.download)
        app.router.add_get("/v1beta/batches/{id}", self.gemini_look)
        app.router.add_post("/bytes/{id}", self.gemini_bytes)
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
        if (page := self.page()) is not None:
            return page
        job = self.jobs[request.match_info["id"]]
        job["left"] -= 1
        row = {"id": request.match_info["id"], "object": "batch", "status": "in_progress"}
        if job["left"] < 0 and self.broken:
            row |= {"status": self.broken[0], "errors": {"data": [{"code": "x", "message": self.broken[1]}]}}
        elif job["left"] < 0:
            for kind in ("output", "error"):  # failed requests are in their own file
                some = [(i, r) for i, r in enumerate(job["rows"]) if (i in self.fails) == (kind == "error")]
                if some:
                    name = f"{kind}-{row['id']}"
                    self.files[name] = "".join(json.dumps(self.answer(i, r)) + "\n" for i, r in some).encode()
                    row[f"{kind}_file_id"] = name
            row["status"] = "completed"
        return web.json_response(row)

    def page(self):
        """A web page instead of a job's state, at the polls in ``pages``."""
        self.polls += 1
        html = "<html><body>502 Bad Gateway</body></html>"
        return web.Response(text=html, content_type="text/html") if self.polls in self.pages else None

    def answer(self, i, row):
        if i in self.fails:
            body = {"error": {"message": "the model had a problem"}}
            return {"custom_id": row["custom_id"], "response": {"status_code": 500, "body": body}, "error": None}
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
        self.downloads += 1
        return web.Response(body=self.spoil(self.files[request.match_info["id"]], self.downloads))

    async def gemini_file(self, request):
        await self.point("upload")
        assert request.headers["X-Goog-Upload-Protocol"] == "resumable"
        name = f"in-{len(self.files)}"
        self.files[name] = b""
        return web.json_response({}, headers={"X-Goog-Upload-URL": f"{request.url.origin()}/bytes/{name}"})

    async def gemini_bytes(self, request):
        assert request.headers["X-Goog-Upload-Command"] == "upload, finalize"
        name = request.match_info["id"]
        self.files[name] += await request.read()
        return web.json_response({"file": {"name": f"files/{name}"}}, headers={"X-Goog-Upload-Status": "final"})

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
        text = self.files[body["batch"]["inputConfig"]["fileName"].removeprefix("files/")].decode()
        rows = [json.loads(line) for line in text.split("\n") if line]
        job = f"g{len(self.jobs)}"
        about = {"displayName": body["batch"]["displayName"], "state": "BATCH_STATE_PENDING"}
        self.jobs[job] = {"rows": rows, "left": self.looks, "about": about}
        self.submitted += [row["key"] for row in rows]
        await self.point("created")
        return web.json_response(
            {"name": f"batches/{job}", "metadata": {"state": "BATCH_STATE_PENDING", "model": model}}
        )

    async def gemini_look(self, request):
        await self.point("look")
        if (page := self.page()) is not None:
            return page
        name = request.match_info["id"]
        job = self.jobs[name]
        job["left"] -= 1
        row = {"name": f"batches/{name}", "metadata": {"state": "BATCH_STATE_RUNNING"}}
        if job["left"] < 0 and self.broken:
            row |= {"metadata": {"state": f"BATCH_STATE_{self.broken[0].upper()}"}, "done": True,
                    "error": {"code": 3, "message": self.broken[1]}}  # fmt: skip
        elif job["left"] < 0 and self.inline:
            output = {"inlinedResponses": {"inlinedResponses": [self.inline(self, r) for r in job["rows"]]}}
            row["metadata"] = {"state": "BATCH_STATE_SUCCEEDED", "output": output}
        elif job["left"] < 0:
            answers = [
                {"key": r["key"]}
                | ({"error": {"code": 13, "message": "the model had a problem"}} if i in self.fails
                   else {"response": self.generated(r["request"])})
                for i, r in enumerate(job["rows"])
            ]  # fmt: skip
            self.files[f"out-{name}"] = "".join(json.dumps(a) + "\n" for a in answers).encode()
            row["metadata"] = {"state": "BATCH_STATE_SUCCEEDED", "output": {"responsesFile": f"files/out-{name}"}}
        return web.json_response(row)

    def generated(self, body):
        how = body.get("generationConfig") or body["generation_config"]  # of a call, of a line in a batch file
        text = scripted_text(body["contents"][0]["parts"][0]["text"], how["seed"])
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
