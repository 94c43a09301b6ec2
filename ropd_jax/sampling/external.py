"""Rollouts by a server: vLLM, SGLang or another engine with OpenAI's completions API, token ids and log-probs.

    check     once, before weights are loaded: the server answers, with token ids and log-probs
    load      the server loads weights from a directory that it can read
    groups    G answers to each prompt; all prompts are in flight, and each is yielded when it is finished

Prompts are sent as token ids, and answers are received as token ids (`server_reply`): no text is ever tokenized again.
``load`` is one of

    vllm       POST /collective_rpc {"method": "reload_weights", "kwargs": {"weights_path": DIR}}, then
               POST /reset_prefix_cache: both need VLLM_SERVER_DEV_MODE=1 (docs.vllm.ai, "Layerwise (Re)loading",
               v0.18 to v0.32; v0.14 could serve the old weights after it, vllm-project/vllm#32718)
    sglang     POST /update_weights_from_disk {"model_path": DIR}, which flushes the cache ("SGLang for RL Systems",
               docs.sglang.io, September 2026)
    vllm_lora  POST /v1/load_lora_adapter {"lora_name", "lora_path"} with a new name for each version, then
               /v1/unload_lora_adapter for the last one (vllm serve --enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=1).
               A reused name can find stale blocks in the prefix cache (vllm-project/vllm#42125), or be read from disk
               at each step (NovaSky-AI/SkyRL#1606)

Every failure is retried or ends the run; none becomes an answer. While the server is unreachable the run waits. Since
it may come back with other weights, it must load the current ones before any other request is sent.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import hashlib
import importlib
import json
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ropd_jax.sampling.rules import SamplingRule, distinct
from ropd_jax.sampling.server_config import ServerConfig, Settings
from ropd_jax.sampling.server_reply import Answer, Expected, check_copies, read_answers
from ropd_jax.teacher import ConfigurationError, MalformedError, OutageError, TeacherError, TeacherLoop, TransientError
from ropd_jax.teacher.clients.bounded_http import HttpFailure, bounded_client
from ropd_jax.teacher.clients.endpoint import read_key, redact, shown_address
from ropd_jax.teacher.clients.environment import is_direct, unreachable
from ropd_jax.teacher.clients.failure_body import read_failure
from ropd_jax.teacher.clients.http_status import failure_of
from ropd_jax.utils import tracing
from ropd_jax.utils.every import Every
from ropd_jax.utils.text import clock

log = logging.getLogger(__name__)
T = TypeVar("T")

POLL_S = 0.2  # between two checks for a stop signal while the server works
_AWAY = ("connection", "unavailable")  # causes of failures that suggest an unreachable server
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0
_CHECK_S = 60.0  # timeout of the first call, whose answer has two tokens
_REPORT_EVERY_S = 15.0
_SEEDS = 2**31 - 2**16  # servers add the index of the answer, and some accept only 31 bits


class RolloutServer:
    """A client of one rollout server. Its calls block, and must come from a single thread.

    Args:
        how: addresses and limits.
        sleep: waits between attempts.

    Raises:
        ConfigurationError: the address contains secrets, or the variable has no key.
    """

    def __init__(self, how: ServerConfig, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep):
        self._how, self._sleep = how, sleep
        self._key = _key(how.api_key_env)
        self.shown = shown_address(how.base_url)
        self._base = how.base_url.rstrip("/")
        self._root = self._base.removesuffix("/v1")
        self._model = how.model
        self._http: Any = None
        self._loop: TeacherLoop | None = None
        self._slots: asyncio.Semaphore | None = None
        self._one_loads: asyncio.Lock | None = None
        self._run = secrets.token_hex(3)  # part of adapter names, which are unique to this process
        self._adapter = ""
        self._loaded: tuple[str, int] | None = None  # directory and version
        self._may_have_restarted = False
        self._flying: set[concurrent.futures.Future] = set()
        self._said = Every(_REPORT_EVERY_S)

    # --- what a run calls

    def check(self, prompt: Sequence[int], vocab: int) -> None:
        """Request two tokens after a prompt, to check address, key, model, token ids and log-probs.

        Raises:
            ConfigurationError: one of these fails, or the server is unreachable.
        """
        rule = SamplingRule()
        want = Settings(n=1, max_tokens=2, rule=rule, stop_ids=(), stop=(), vocab=vocab)

        async def once() -> None:
            await self._find_model()
            body = self._body(prompt, want, n=1, seed=0) | {"ignore_eos": True}
            reply = await self._post(f"{self._base}/completions", body, _CHECK_S)
            read_answers(reply, Expected(1, prompt, vocab, 2, (), True), self.shown)

        try:
            self._submit(once()).result()
        except ConfigurationError:
            self.close()
            raise
        except TransientError as error:
            self.close()
            raise ConfigurationError(f"sampling.server: {error}; start the server first", cause=error.cause) from None

    def load(self, directory: str, version: int) -> None:
        """Make the server sample from the weights in ``directory``; no request must be in flight (`settle`).

        Args:
            version: number of updates applied to them.

        Raises:
            ConfigurationError: the server refuses, or is unreachable for ``wait_s``.
        """
        self._loaded, self._may_have_restarted = (directory, version), True
        self._submit(self._persist(self._reload)).result()

    def settle(self, check: Callable[[], None]) -> None:
        """Wait until no answer is being generated; ``check`` is called meanwhile, and can end the wait by raising."""
        while self._flying and concurrent.futures.wait(self._flying, POLL_S).not_done:
            check()
        self._flying.clear()

    def groups(
        self,
        want: Settings,
        prompts: Sequence[np.ndarray | Sequence[int]],
        ids: Sequence[str],
        *,
        seed: int,
        step: int,
        check: Callable[[], None],
    ) -> Iterator[tuple[int, list[Answer]]]:
        """Yield (index of the prompt, its answers) as they are finished. All prompts are sent at once.

        Args:
            prompts: token ids. ids: of the prompts; with seed and step they seed the random numbers.
            check: called every `POLL_S` while the server works; it can stop the sampling by raising.

        Raises:
            ConfigurationError: see `server_reply.read_answers`; or the server refuses a request, or is unreachable.
        """
        names = distinct(ids)
        asked = {
            self._submit(self._group(np.asarray(prompt).tolist(), want, f"{seed}/{step}/{name}")): index
            for index, (prompt, name) in enumerate(zip(prompts, names, strict=True))
        }
        self._flying |= asked.keys()
        try:
            while asked:
                done, _ = concurrent.futures.wait(asked, POLL_S, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in sorted(done, key=lambda f: (f.exception() is not None, asked[f])):  # failures last
                    self._flying.discard(future)
                    yield asked.pop(future), future.result()
                check()
        finally:
            for future in asked:
                future.cancel()
            self._flying -= asked.keys()

    def close(self) -> None:
        """Cancel requests in flight and close connections. Idempotent."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    # --- on the event loop

    def _submit(self, coroutine) -> concurrent.futures.Future:
        if self._loop is None:
            self._loop = TeacherLoop()
            self._loop.on_close(self._close_http)
        return self._loop.submit(coroutine)

    async def _close_http(self) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def _group(self, prompt: list[int], want: Settings, name: str) -> list[Answer]:
        most = self._how.answers_per_request or want.n
        sizes = [min(most, want.n - begin) for begin in range(0, want.n, most)]
        sends = [functools.partial(self._answers, prompt, want, n, _seed(f"{name}/{i}")) for i, n in enumerate(sizes)]
        tries = [self._persist(send) for send in sends]
        found = [answer for part in await asyncio.gather(*tries) for answer in part]
        if want.rule.temperature:
            check_copies(found, self.shown)
        return found

    async def _answers(self, prompt: list[int], want: Settings, n: int, seed: int) -> list[Answer]:
        if self._slots is None:
            self._slots = asyncio.Semaphore(self._how.concurrency)
        async with self._slots:
            body = self._body(prompt, want, n=n, seed=seed)
            reply = await self._post(f"{self._base}/completions", body, self._how.timeout_s)
        expected = Expected(n, prompt, want.vocab, want.max_tokens, want.stop_ids, bool(want.stop))
        return read_answers(reply, expected, self.shown)

    def _body(self, prompt: Sequence[int], want: Settings, *, n: int, seed: int) -> dict[str, Any]:
        """A completion request. It sets every parameter, so that none is left to server defaults (vLLM and SGLang take
        those of generation_config.json). All servers read ``top_k=-1`` as all tokens."""
        body = {
            "model": self._adapter or self._model,
            "prompt": list(prompt),
            "n": n,
            "seed": seed,
            "max_tokens": want.max_tokens,
            "temperature": want.rule.temperature,
            "top_p": want.rule.top_p,
            "top_k": want.rule.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logprobs": 1,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "skip_special_tokens": False,
            "stop_token_ids": list(want.stop_ids),
        }
        return body | ({"stop": list(want.stop)} if want.stop else {})

    async def _persist(self, send: Callable[[], Awaitable[T]]) -> T:
        """The result of ``send``, with as many attempts as the config allows.

        Raises:
            ConfigurationError: the failure of the last attempt. OutageError: the server is unreachable for ``wait_s``.
        """
        how, failed, since = self._how, 0, None
        while True:
            try:
                if self._may_have_restarted:
                    await self._reload()
                return await send()
            except TransientError as error:
                failed += 1
                now = time.monotonic()
                if error.cause in _AWAY:
                    self._may_have_restarted = True
                    since = now if since is None else since
                    if now - since >= how.wait_s:
                        raise OutageError(
                            f"the rollout server {self.shown} has been unreachable for {clock(now - since)} "
                            f"(sampling.server.wait_s={how.wait_s:g}). The last error: {error}. Nothing is lost: the "
                            "same command continues when the server is back"
                        ) from None
                elif failed >= how.attempts:
                    raise ConfigurationError(
                        f"the rollout server failed {failed} times (sampling.server.attempts={how.attempts}): {error}",
                        cause=error.cause,
                    ) from None
                if self._said():
                    log.warning("rollout server: %s; retrying", error)
                tracing.moved()  # waiting is expected
                wait_s = min(_FIRST_WAIT_S * 2 ** min(failed - 1, 10), _LONGEST_WAIT_S) * random.uniform(0.5, 1.0)
                await self._sleep(min(error.retry_after or wait_s, 2 * _LONGEST_WAIT_S))

    async def _reload(self) -> None:
        """Reload the current weights if the server might have others."""
        if self._one_loads is None:
            self._one_loads = asyncio.Lock()
        async with self._one_loads:
            if not self._may_have_restarted:
                return
            if self._loaded is not None:
                await self._tell(*self._loaded)
            self._may_have_restarted = False

    async def _tell(self, directory: str, version: int) -> None:
        timeout_s = self._how.timeout_s
        if self._how.sync == "sglang":
            reply = await self._post(f"{self._root}/update_weights_from_disk", {"model_path": directory}, timeout_s)
            if not isinstance(reply, Mapping) or reply.get("success") is not True:
                said = redact(json.dumps(reply), self._key)[:200]
                raise ConfigurationError(f"the rollout server {self.shown} did not load {directory}: {said}")
        elif self._how.sync == "vllm_lora":
            name = f"ropd-{self._run}-{version}"
            with contextlib.suppress(_AlreadyThere):
                adapter = {"lora_name": name, "lora_path": directory}
                await self._post(f"{self._base}/load_lora_adapter", adapter, timeout_s, is_json=False)
            before, self._adapter = self._adapter, name
            if before and before != name:
                with contextlib.suppress(TeacherError):  # a restarted server does not know it
                    await self._post(f"{self._base}/unload_lora_adapter", {"lora_name": before}, timeout_s,
                                     is_json=False)  # fmt: skip
        else:
            body = {"method": "reload_weights", "kwargs": {"weights_path": directory}}
            await self._post(f"{self._root}/collective_rpc", body, timeout_s, is_json=False)
            await self._post(f"{self._root}/reset_prefix_cache", {}, timeout_s, is_json=False)

    async def _find_model(self) -> None:
        """Determine the model name for requests, which the server must list."""
        reply = await self._get(f"{self._base}/models")
        rows = reply.get("data") if isinstance(reply, Mapping) else None
        names = [str(r["id"]) for r in rows if isinstance(r, Mapping) and "id" in r] if isinstance(rows, list) else []
        shown = ", ".join(names[:8]) or "none"
        if not self._model and len(names) == 1:
            self._model = names[0]
        elif self._model not in names:
            raise ConfigurationError(
                f"sampling.server.model={self._model!r}; expected one of the models of {self.shown}: {shown}",
                cause="not_found",
            )

    # --- HTTP

    async def _get(self, url: str) -> Any:
        return _json(await self._exchange("GET", url, None, _CHECK_S), self.shown)

    async def _post(self, url: str, body: Mapping[str, Any], timeout_s: float, *, is_json: bool = True) -> Any:
        content = await self._exchange("POST", url, body, timeout_s)
        return _json(content, self.shown) if is_json else None

    async def _exchange(self, method: str, url: str, body: Mapping[str, Any] | None, timeout_s: float) -> bytes:
        """The body of a response.

        Raises:
            ConfigurationError: for permanent failures. TransientError: for temporary ones.
        """
        client = _sdk_client()
        library = importlib.import_module(client.__module__.partition(".")[0])
        if self._http is None:
            limits = library.Limits(max_connections=self._how.concurrency + 2)
            trust = not is_direct(self._how.base_url)
            self._http = bounded_client(client, "sampling.server", trust_env=trust, limits=limits)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._http.request(
                    method, url, json=body, headers=headers, timeout=library.Timeout(timeout_s, connect=30.0)
                )
                return response.content
        except HttpFailure as failure:
            raise self._refusal(failure, url) from None
        except library.ConnectTimeout:
            raise TransientError(f"{self.shown} does not answer", cause="connection") from None
        except (TimeoutError, library.TimeoutException):
            said = f"{self.shown}: no answer of {self._path(url)} in {timeout_s:g} s (sampling.server.timeout_s)"
            raise TransientError(said, cause="timeout") from None
        except library.HTTPError as error:
            raise unreachable(error, "sampling.server", self.shown) from None
        except MalformedError as error:  # raised by the bounded client, for example on a redirect
            raise ConfigurationError(redact(str(error), self._key)) from None

    def _path(self, url: str) -> str:
        return url.removeprefix(self._root)

    def _refusal(self, failure: HttpFailure, url: str) -> TeacherError:
        path, said = self._path(url), read_failure(failure.body, self._key).message
        said = " ".join(said.split())[:400] or "no message"
        asks, model = path == "/v1/completions", self._adapter or self._model
        found = failure_of(
            failure.status, failure.headers, failure.body, provider=self.shown, model=model, key=self._key
        )
        if isinstance(found, TransientError):
            return found
        if path == "/v1/load_lora_adapter" and "already" in said:
            return _AlreadyThere(said)
        if failure.status == 404 and asks and self._adapter:
            return TransientError(f"{self.shown} has lost the adapter {model}", cause="unavailable")
        if failure.status in (401, 403):
            return ConfigurationError(
                f"the rollout server {self.shown} rejects the key: {said}; name the environment variable that has it "
                "with sampling.server.api_key_env",
                cause="unauthorized",
            )
        if failure.status in (404, 405) and not (asks and model in said):
            remedy = _ENABLED[self._how.sync]
            if path in ("/v1/models", "/v1/completions") or self._root == self._base:
                remedy = "sampling.server.base_url must be the server's address with /v1 at its end"
            return ConfigurationError(
                f"the rollout server {self.shown} has no {path}; {remedy} (docs/engine.md)", cause="not_found"
            )
        return ConfigurationError(f"the rollout server {self.shown} refused {path} ({failure.status}): {said}")


_ENABLED = {
    "vllm": "start vLLM with VLLM_SERVER_DEV_MODE=1 in its environment",
    "sglang": "expected SGLang, or another value of sampling.server.sync",
    "vllm_lora": "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
    "none": "use a server that supports it",
}


def _sdk_client() -> type:
    """The ``AsyncClient`` of the openai SDK's HTTP library: httpx, or a later one like it."""
    import openai

    return next(c for c in openai.DefaultAsyncHttpxClient.__mro__ if c.__name__ == "AsyncClient")


class _AlreadyThere(ConfigurationError):
    """The adapter is already loaded."""


def _key(variable: str) -> str:
    """The server's key; "" if the config names no variable. Keys of other services are never sent."""
    if not variable:
        return ""
    if key := read_key(variable, "sampling.server.api_key_env"):
        return key
    raise ConfigurationError(
        f"the environment variable {variable} of sampling.server.api_key_env is not set; set it to the server's key, "
        "or leave sampling.server.api_key_env empty if it needs none",
        cause="missing_key",
    )


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % _SEEDS


def _json(content: bytes, server: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise TransientError(f"the rollout server {server} sent a body that is not JSON", cause="malformed") from None
