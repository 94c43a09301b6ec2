"""API keys go to one host, and do not occur in anything that a run leaves behind, whatever the server does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import threading

import numpy as np
import pytest
from aiohttp import web

from ropd_jax import configs
from ropd_jax.cli import main as cli
from ropd_jax.teacher import ChatReply, ChatRequest, ConfigurationError, Usage
from ropd_jax.teacher.clients.batch import open_batch
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.teacher.scripted.server import make_app
from ropd_jax.teacher.tape.inspect import export_tape
from ropd_jax.teacher.tape.reference_index import IndexRow, IndexWriter
from ropd_jax.teacher.tape.store import Tape
from ropd_jax.teacher.traffic.budget import Budget
from ropd_jax.training.setup import check_config
from ropd_jax.types import Judgement, Message, Prompt, RolloutGroup, UserError
from ropd_jax.workdir.config import claim, stored_config
from ropd_jax.workdir.groups import GroupsLog

KEY = "sk-find-me-9f27c1d4e0a85b63"
PROVIDERS = ["openai", "gemini"]
KINDS = ["fine", "echo", "fine", "400", "429", "fine", "500", "503", "echo", "html", "form", "refused", "fine",
         "blocked", "cut", "dropped", "slow", "418", "length", "fine"]  # fmt: skip
STOPS = ["401", "403", "404", "redirect"]  # faults that end the run; the others cost one call


class Hostile:
    """A teacher over HTTP whose errors contain the client's key in every field that a client could show."""

    def __init__(self):
        self.kind = ""  # kind of every answer; "" means one kind after the other
        self.seen: dict[str, int] = {}  # answers by kind
        self.keys: set[str] = set()  # that clients sent
        self.elsewhere = 0  # requests that followed a redirect
        self._kinds = itertools.cycle(KINDS)

    async def answer(self, http: web.Request, handler) -> web.StreamResponse:
        if http.path.startswith("/elsewhere"):
            self.elsewhere += 1
            return await handler(http)
        key = http.headers.get("x-goog-api-key") or http.headers.get("Authorization", "").removeprefix("Bearer ")
        self.keys.add(key)
        kind = self.kind or next(self._kinds)
        self.seen[kind] = self.seen.get(kind, 0) + 1
        if kind == "fine":
            return await handler(http)
        if kind.isdecimal():
            inner = {"message": f"key {key} is refused", "code": int(kind), "status": key, "type": key, "param": key}
            headers = {"Retry-After": key, "x-request-id": key}
            return web.json_response({"error": inner}, status=int(kind), reason=f"no {key}", headers=headers)
        if kind == "redirect":
            raise web.HTTPTemporaryRedirect(f"http://localhost:{http.url.port}/elsewhere?key={key}")
        if kind == "html":
            return web.Response(text=f"<html>{key}</html>", status=502, content_type="text/html")
        if kind == "form":
            return web.json_response({"choices": key, "candidates": key, key: key})
        if kind == "cut":
            return web.Response(text=f'{{"choices": ["{key}', content_type="application/json")
        if kind == "dropped":
            assert http.transport is not None
            http.transport.close()
        if kind == "slow":
            await asyncio.sleep(30)
        return web.json_response(self._reply(kind, key, await handler(http)))

    def _reply(self, kind: str, key: str, fine) -> dict:
        body = json.loads(fine.body)
        if "error" in body:
            return body
        reason = {"blocked": "content_filter", "length": "length"}.get(kind, "stop")
        if "choices" in body:
            message = body["choices"][0]["message"]
            message["content"] += f"\nYour key is {key}"
            message["refusal"] = f"not with {key}" if kind == "refused" else None
            body["choices"][0]["finish_reason"] = reason
            return body | {"model": key}
        body["candidates"][0]["content"]["parts"][0]["text"] += f"\nYour key is {key}"
        body["candidates"][0]["finishReason"] = {"content_filter": key, "length": "MAX_TOKENS"}.get(reason, "STOP")
        if kind == "refused":
            body["promptFeedback"] = {"blockReason": key}
        return body | {"modelVersion": key}


@contextlib.contextmanager
def hostile():
    """(the server's root, the `Hostile` teacher), on its own thread."""
    teacher, ready, stop, address = Hostile(), threading.Event(), threading.Event(), []

    @web.middleware
    async def answer(http, handler):
        return await teacher.answer(http, handler)

    async def anything(http):
        return web.json_response({})

    async def serve():
        app = make_app(ScriptedClient())
        app.middlewares.append(answer)
        app.router.add_route("*", "/{path:.*}", anything)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            address.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
            ready.set()
            while not stop.is_set():
                await asyncio.sleep(0.02)
        finally:
            await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(20)
        yield address[0], teacher
    finally:
        stop.set()
        thread.join()


CONFIG = """
from experiments import quickstart

def get_config():
    cfg = quickstart.get_config()
    cfg.mesh.fsdp, cfg.steps = 1, 2
    cfg.data.size, cfg.data.heldout_size, cfg.data.prompts_per_step, cfg.sampling.rollouts = 200, 8, 4, 4
    cfg.eval.prompts_at_once, cfg.eval.sampled, cfg.checkpoint.every, cfg.log.trackers = 8, False, 1, ()
    cfg.teacher.attempts, cfg.teacher.timeout_s, cfg.teacher.max_failed_frac = 1, 1.0, 1.0
    cfg.teacher.concurrency = 2
    return cfg
"""


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_run_with_every_fault_leaves_no_key(provider, tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.setenv("HOSTILE_KEY", KEY)
    caplog.set_level(logging.DEBUG)  # the SDKs log requests at this level
    (tmp_path / "config.py").write_text(CONFIG)
    run, found = tmp_path / "run", {}
    with hostile() as (root, teacher):
        about = [
            f"--config={tmp_path / 'config.py'}", f"--config.teacher.provider={provider}",
            f"--config.teacher.base_url={root}{'/v1' if provider == 'openai' else ''}",
            "--config.teacher.api_key_env=HOSTILE_KEY",
        ]  # fmt: skip
        for kind in STOPS:
            teacher.kind = kind
            found[kind] = cli.main(["train", *about, f"--workdir={run}"])
            found["preflight " + kind] = cli.main(["preflight", *about])
        teacher.kind = ""
        assert cli.main(["train", *about, f"--workdir={run}"]) == 0
        cli.main(["preflight", *about])
        cli.main(["collect-references", *about, f"--out={tmp_path / 'index.jsonl'}", "--config.data.size=8"])
    assert set(found.values()) == {2} and teacher.keys == {KEY} and teacher.elsewhere == 0
    assert set(teacher.seen) == {*KINDS, *STOPS} and sum(teacher.seen.values()) > 40, teacher.seen

    assert cli.main(["tape", "stats", str(run)]) == 0
    assert cli.main(["tape", "export", str(run), str(tmp_path / "tape.jsonl")]) == 0  # the tape's texts, uncompressed
    out, err = capfd.readouterr()
    texts = {"stdout": out, "stderr": err, "log": caplog.text, **{str(r): repr(vars(r)) for r in caplog.records}}
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    tape = Tape(run / "tape.sqlite", read_only=True)
    failures = tape.query("SELECT message FROM failures")
    tape.close()
    assert len(failures) >= 5 and "<api key>" in str(failures) + (tmp_path / "tape.jsonl").read_text()
    assert len(files) > 10 and len(texts) > 10
    secret = KEY.removeprefix("sk-")
    assert [p for p, data in files.items() if secret.encode() in data] == []
    assert [name for name, text in texts.items() if secret in text] == []


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("call", ["submit", "find", "answers"])
def test_a_batch_client_follows_no_redirect(provider, call, monkeypatch):
    monkeypatch.setenv("HOSTILE_KEY", KEY)
    requests = {"k": ChatRequest("reference", (Message("user", "Q?"),), "m", None, 100)}
    about = {"submit": (requests, "marker"), "find": ("marker",), "answers": ("batches/job", requests)}[call]

    async def run(root):
        batch = open_batch(provider, base_url=root, api_key_env="HOSTILE_KEY")
        try:
            await getattr(batch, call)(*about)
        finally:
            await batch.close()

    with hostile() as (root, teacher):
        teacher.kind = "redirect"
        with pytest.raises(ConfigurationError, match=r"127.0.0.1 redirects to localhost") as e:
            asyncio.run(run(root))
    assert KEY not in str(e.value) and teacher.keys == {KEY} and teacher.elsewhere == 0


def test_a_download_of_batch_results_follows_no_redirect(monkeypatch):
    monkeypatch.setenv("HOSTILE_KEY", KEY)
    followed = []

    async def answer(http):
        if http.path.startswith("/elsewhere"):
            followed.append(http.path)
        if http.path.endswith("/content"):
            raise web.HTTPFound(f"http://localhost:{http.url.port}/elsewhere")
        return web.json_response({"id": "b", "object": "batch", "status": "completed", "output_file_id": "f"})

    async def run():
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        root = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        batch = open_batch("openai", base_url=root, api_key_env="HOSTILE_KEY")
        try:
            await batch.answers("b", {})
        finally:
            await batch.close()
            await runner.cleanup()

    with pytest.raises(ConfigurationError, match=r"127.0.0.1 redirects to localhost"):
        asyncio.run(run())
    assert not followed


def test_a_gemini_batch_that_sends_the_key_back_gives_replies_without_it(monkeypatch):
    monkeypatch.setenv("HOSTILE_KEY", KEY)
    reply = {"candidates": [{"content": {"parts": [{"text": f"four, {KEY}"}]}, "finishReason": "STOP"}]}
    job = {
        "name": "batches/job",
        "metadata": {"state": "BATCH_STATE_SUCCEEDED", "output": {"inlinedResponses": {"inlinedResponses": [
            {"metadata": {"key": "k"}, "response": reply}]}}},
    }  # fmt: skip

    async def answer(http):
        return web.json_response(job)

    async def run():
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        root = f"http://127.0.0.1:{runner.addresses[0][1]}"
        batch = open_batch("gemini", base_url=root, api_key_env="HOSTILE_KEY")
        try:
            return await batch.answers("batches/job", {"k": ChatRequest("reference", (), "m", None, 100)})
        finally:
            await batch.close()
            await runner.cleanup()

    found = asyncio.run(run())
    assert {key: reply.text for key, reply in found.items()} == {"k": "four, <api key>"}


# -------------------------------------------------------------------------------------------------- addresses


def files_in(directory):
    return sorted(p for p in directory.rglob("*") if p.is_file())


@pytest.mark.parametrize("command", ["train", "preflight", "collect-references"])
@pytest.mark.parametrize("key", ["teacher.base_url", "teacher.verifier.base_url"])
def test_an_address_with_a_password_is_refused_before_anything_is_written(command, key, tmp_path, capfd, caplog):
    (tmp_path / "config.py").write_text(CONFIG)
    where = {"train": ["--workdir=run"], "preflight": [], "collect-references": ["--out=index.jsonl"]}[command]
    before = files_in(tmp_path)
    args = [*where, f"--config={tmp_path / 'config.py'}", f"--config.{key}=https://me:s3cret@h/v1?token=s3cret"]
    with contextlib.chdir(tmp_path):
        assert cli.main([command, *args]) == 2
    out, err = capfd.readouterr()
    assert f"{key} has more than an address" in err and "'https://h/v1' without them" in err
    assert "s3cret" not in out + err + caplog.text and files_in(tmp_path) == before


def test_an_address_with_a_password_is_refused_before_hosts_compare_their_configs():
    cfg = configs.default()
    cfg.teacher.references_from = ({"provider": "openai", "base_url": "https://me:s3cret@h/v1"},)
    with pytest.raises(ConfigurationError, match=r"teacher\.reference\.base_url has more than") as e:
        check_config(cfg.lock())
    assert "s3cret" not in str(e.value)


def test_a_run_whose_config_holds_a_password_of_an_earlier_version_continues_without_it(tmp_path, caplog):
    cfg = configs.default().to_dict()
    cfg["teacher"]["base_url"] = "https://me:s3cret@h/v1?token=s3cret"
    cfg["teacher"]["references_from"] = [{"provider": "openai", "base_url": "https://me:s3cret@h/v2"}]
    (tmp_path / "config.json").write_text(json.dumps(cfg))
    stored = stored_config(tmp_path)
    assert stored.teacher.base_url == "https://h/v1" and "s3cret" not in str(stored)

    other = configs.default().to_dict()
    with pytest.raises(UserError, match=r"teacher.references_from: .* there") as e:
        claim(tmp_path, other)
    assert "s3cret" not in str(e.value)

    cfg["teacher"]["base_url"] = "https://elsewhere/v1"
    cfg["teacher"]["references_from"][0]["base_url"] = "https://h/v2"
    with caplog.at_level("INFO"):
        claim(tmp_path, cfg)
    assert "https://h/v1 there, https://elsewhere/v1 now" in caplog.text and "s3cret" not in caplog.text
    assert "s3cret" not in (tmp_path / "config.json").read_text()


# ------------------------------------------------------------------------------------------------ file modes


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def modes(directory):
    return {p.relative_to(directory).as_posix(): oct(p.stat().st_mode & 0o777) for p in directory.rglob("*")}


@pytest.mark.usefixtures("open_umask")
def test_paid_text_can_be_read_by_its_owner_only(tmp_path, monkeypatch):
    created = []  # (name, mode) of each file at the moment it is opened
    real = os.open

    def watch(path, flags, mode=0o777, **how):
        handle = real(path, flags, mode, **how)
        if flags & os.O_CREAT and str(path).startswith(str(tmp_path)):
            created.append((os.path.basename(path), oct(os.fstat(handle).st_mode & 0o777)))
        return handle

    monkeypatch.setattr(os, "open", watch)
    tape = Tape(tmp_path / "tape.sqlite")
    request = ChatRequest("reference", (Message("user", "Q?"),), "m", None, 100)
    tape.put("openai", request, ChatReply("four", usage=Usage(1, 1)))
    (tmp_path / ".tape.jsonl.part").write_text("left by a killed export")
    export_tape(tape, tmp_path / "tape.jsonl")
    (tmp_path / "spent.json").write_text("{}")
    Budget(path=tmp_path / "spent.json").save()
    with IndexWriter(tmp_path / "index.jsonl", fingerprint={"model": "m"}) as writer:
        writer.add(IndexRow("p", "0" * 64, ("four",), {"model": "m"}))
    group = RolloutGroup(Prompt("p", (Message("user", "Q?"),)), np.zeros(1, np.int32), (), 0, 0)
    GroupsLog(tmp_path).write(0, [group], [Judgement((), ())], [()])
    found = modes(tmp_path)
    tape.close()
    private = {"tape.sqlite", "tape.sqlite-wal", "tape.sqlite-shm", "tape.jsonl", "spent.json", "index.jsonl",
               "groups/step_000000.jsonl"}  # fmt: skip
    assert found == dict.fromkeys(private, "0o600") | {"groups": "0o700"}
    assert len(created) >= 4 and {mode for _, mode in created} == {"0o600"}, created
