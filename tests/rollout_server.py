"""A rollout server on loopback: vLLM's and SGLang's endpoints as they document them, in front of our own sampler.

Its weights are those of ``checkpoint``, then those of each load request. Tests change its replies with ``spoil``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
import tempfile
import threading

import jax
import jax.numpy as jnp
import numpy as np
from aiohttp import web
from safetensors.numpy import load_file, save_file

from ropd_jax.models import transformer
from ropd_jax.models.logprobs import token_logprobs
from ropd_jax.sampling.engine import EngineConfig, sample_groups
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.types import Message, Prompt
from ropd_jax.weights.student import find, load_checkpoint
from tests.loopback import on_own_thread

PROMPT_LEN = 64


class FakeVLLM:
    """One server.

    Attributes:
        calls: (path, body) of each request. loaded: directories that it was requested to load, in order.
        spoil: changes a completion's JSON before it is sent. status: of the next replies, then 200.
        raw: log-probs are those at temperature 1, vLLM's raw_logprobs.
    """

    def __init__(self, checkpoint: str = "tiny", *, key: str = "", model: str = "student"):
        self.base, self.key, self.model = checkpoint, key, model
        self.calls: list[tuple[str, dict]] = []
        self.loaded: list[str] = []
        self.adapters: dict[str, str] = {}
        self.status: list[int] = []
        self.spoil = lambda reply: reply
        self.raw = False
        self.load_is_broken = False  # as of vLLM v0.14: says that it has loaded, and has not
        self._one = threading.Lock()
        self._student, self._params = None, {}

    def params(self, directory: str):
        if directory not in self._params:
            student = load_checkpoint(directory)
            self._student = self._student or student
            self._params = {directory: jax.tree.map(jnp.asarray, student.params)}
        return self._params[directory]

    def complete(self, body: dict) -> dict:
        with self._one:  # one thread compiles and samples at a time
            return self._complete(body)

    def _complete(self, body: dict) -> dict:
        directory = self.adapters.get(body["model"]) or (self.loaded[-1] if self.loaded else self.base)
        if self.load_is_broken:
            directory = self.base
        params, n = self.params(directory), body["n"]
        engine = EngineConfig(
            rollouts=n, prompts=1, prompt_len=PROMPT_LEN, max_tokens=body["max_tokens"],
            stop_ids=() if body.get("ignore_eos") else tuple(body["stop_token_ids"]),
            rule=SamplingRule(body["temperature"]), stop=tuple(body.get("stop", ())),
        )  # fmt: skip
        prompt, tokens = Prompt("p", (Message("user", ""),)), np.asarray(body["prompt"], np.int32)
        student = self._student
        [group] = sample_groups(
            student.cfg, engine, params, student.tokenizer, [prompt], [tokens], seed=body["seed"], step=0
        )
        choices = []
        for i, r in enumerate(group.rollouts):
            ids, logp = r.tokens_T.tolist(), r.logp_T.tolist()
            if self.raw:
                logp = whole_logp(student.cfg, params, tokens, r.tokens_T)
            reason = "length" if r.finish_reason == "length" else "stop"
            logprobs = {"tokens": [f"token_id:{t}" for t in ids], "token_logprobs": logp, "top_logprobs": []}
            choices.append({
                "index": i, "text": r.text, "finish_reason": reason, "stop_reason": None, "logprobs": logprobs,
                "token_ids": ids, "prompt_token_ids": body["prompt"],
            })  # fmt: skip
        return self.spoil({"object": "text_completion", "model": body["model"], "choices": choices})

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**26, middlewares=[self._watch])
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/collective_rpc", self._collective_rpc)
        app.router.add_post("/reset_prefix_cache", self._ok)
        app.router.add_post("/update_weights_from_disk", self._update_weights_from_disk)
        app.router.add_post("/v1/load_lora_adapter", self._load_lora_adapter)
        app.router.add_post("/v1/unload_lora_adapter", self._unload_lora_adapter)
        return app

    @web.middleware
    async def _watch(self, http: web.Request, handler):
        body = json.loads(await http.text() or "{}") if http.method == "POST" else {}
        self.calls.append((http.path, body))
        if self.key and http.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "Unauthorized", "code": 401}}, status=401)
        if self.status and (status := self.status.pop(0)) != 200:
            return web.json_response({"error": {"message": "busy", "code": status}}, status=status)
        return await handler(http)

    async def _ok(self, http):
        return web.Response()

    async def _models(self, http):
        names = [self.model, *self.adapters]
        return web.json_response({"object": "list", "data": [{"id": n, "object": "model"} for n in names]})

    async def _completions(self, http):
        body = await http.json()
        if body["model"] not in (self.model, *self.adapters):
            message = f"The model `{body['model']}` does not exist."
            return web.json_response({"error": {"message": message, "type": "NotFoundError", "code": 404}}, status=404)
        return web.json_response(await asyncio.to_thread(self.complete, body))

    async def _collective_rpc(self, http):
        body = await http.json()
        assert body["method"] == "reload_weights"
        self.loaded.append(body["kwargs"]["weights_path"])
        return web.json_response({"results": [None]})

    async def _update_weights_from_disk(self, http):
        path = (await http.json())["model_path"]
        if not pathlib.Path(path).is_dir():
            return web.json_response({"success": False, "message": "no such directory"}, status=400)
        self.loaded.append(path)
        return web.json_response({"success": True, "message": "Succeeded to update model weights."})

    async def _load_lora_adapter(self, http):
        body = await http.json()
        if body["lora_name"] in self.adapters:
            message = f"The lora adapter '{body['lora_name']}' has already been loaded."
            return web.json_response({"error": {"message": message, "code": 400}}, status=400)
        self.adapters[body["lora_name"]] = await asyncio.to_thread(merged, self.base, body["lora_path"])
        self.loaded.append(body["lora_path"])
        return web.Response(text="Success: LoRA adapter added successfully.")

    async def _unload_lora_adapter(self, http):
        del self.adapters[(await http.json())["lora_name"]]
        return web.Response(text="Success")

    @property
    def completions(self) -> list[dict]:
        """The bodies of all completions but the first call's."""
        return [body for path, body in self.calls if path == "/v1/completions" and "ignore_eos" not in body]


def whole_logp(cfg, params, prompt_T, completion_T) -> list[float]:
    """Log-probs of a completion at temperature 1."""
    tokens_BT = np.concatenate([prompt_T, completion_T])[None].astype(np.int32)
    positions_BT = np.arange(tokens_BT.shape[1], dtype=np.int32)[None]
    ones_BT = np.ones_like(tokens_BT)
    x_BTD, _ = transformer.hidden(
        cfg, params, tokens_BT, positions_BT, ones_BT, dtype=jnp.dtype("float32"), keep_kv=True
    )
    logp_BT, _ = token_logprobs(cfg, params, x_BTD[:, :-1], tokens_BT[:, 1:], temperature=1.0, chunk=128)
    return np.asarray(logp_BT)[0, len(prompt_T) - 1 :].tolist()


def merged(base: str, adapter: str) -> str:
    """A directory with the base's weights, a PEFT adapter merged into them: W + alpha / r * B A."""
    place, source = pathlib.Path(tempfile.mkdtemp()), find(base)
    config = json.loads((pathlib.Path(adapter) / "adapter_config.json").read_text())
    tensors, own = load_file(source / "model.safetensors"), load_file(f"{adapter}/adapter_model.safetensors")
    for name in [n for n in own if n.endswith(".lora_A.weight")]:
        full = name.removesuffix(".lora_A.weight")
        delta = own[f"{full}.lora_B.weight"].astype(np.float32) @ own[name].astype(np.float32)
        weight = full.removeprefix("base_model.model.") + ".weight"
        tensors[weight] = tensors[weight].astype(np.float32) + config["lora_alpha"] / config["r"] * delta
    for file in source.iterdir():
        if file.suffix == ".json" or file.suffix == ".jinja":
            (place / file.name).write_bytes(file.read_bytes())
    save_file({n: np.ascontiguousarray(t, np.float32) for n, t in tensors.items()}, place / "model.safetensors")
    return str(place)


def serving(server: FakeVLLM, port: int = 0):
    """The server on a separate thread; yields its address with /v1."""
    return on_own_thread(_running(server, port))


@contextlib.asynccontextmanager
async def _running(server: FakeVLLM, port: int):
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()
