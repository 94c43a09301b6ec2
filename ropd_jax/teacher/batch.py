"""The batch APIs of OpenAI and Gemini: many requests handed in at once, answered within a day, for half the price.

    1. submit     the requests that no known job holds, in chunks; each job's id is on the disk before the next chunk
    2. poll       until every job has ended; a process that is stopped and started again goes on polling the same jobs
    3. answers    a reply by request; what a job failed to answer is simply not there, and is asked live

``Prefetched`` puts the answers in front of a client, so that whoever asks does not know where they come from.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from ropd_jax.teacher.client import (
    ChatClient,
    ChatReply,
    ChatRequest,
    ConfigurationError,
    TeacherError,
    TransientError,
)
from ropd_jax.teacher.gemini import GeminiClient
from ropd_jax.teacher.openai import OpenAIClient

log = logging.getLogger(__name__)

Replies = dict[str, ChatReply]
_MAX_REQUESTS = 10_000  # of one job; OpenAI takes 50,000, Gemini is bounded by bytes
_MAX_CHARS = {"openai": 100_000_000, "gemini": 12_000_000}  # OpenAI: files of 200 MB; Gemini: 20 MB inline


def request_key(request: ChatRequest) -> str:
    """32 hex digits that name a request: everything that is on the wire."""
    body = dataclasses.asdict(request)
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32]


class BatchApi(Protocol):
    """One provider's batch API. Failures are ``TeacherError``, as everywhere."""

    provider: str

    async def submit(self, requests: Mapping[str, ChatRequest]) -> str:
        """Hand in the requests by their keys; returns the job's id."""

    async def answers(self, job: str, requests: Mapping[str, ChatRequest]) -> Replies | None:
        """The replies of an ended job to ``requests``, by key, without those that failed; None while it runs."""

    async def close(self) -> None: ...


class OpenAIBatch:
    """Batches of chat completions: a JSONL file goes up, a job works on it, a JSONL file comes down."""

    provider = "openai"

    def __init__(self, client: OpenAIClient):
        self._client = client

    async def submit(self, requests: Mapping[str, ChatRequest]) -> str:
        c = self._client
        rows = (
            {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": c.parameters(r, "text")}
            for key, r in requests.items()
        )
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        model = next(iter(requests.values())).model
        with c.typed_failures(model):
            file = await c.sdk_client.files.create(file=("requests.jsonl", data), purpose="batch")
            batch = await c.sdk_client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        return batch.id

    async def answers(self, job: str, requests: Mapping[str, ChatRequest]) -> Replies | None:
        c = self._client
        with c.typed_failures(job):
            batch = await c.sdk_client.batches.retrieve(job)
            if batch.status not in ("completed", "failed", "expired", "cancelled"):
                return None
            if not batch.output_file_id:
                log.warning("batch %s ended as %s without answers", job, batch.status)
                return {}
            content = await c.sdk_client.files.content(batch.output_file_id)
        found: Replies = {}
        for line in content.content.decode("utf-8").split("\n"):
            if line.strip():
                row = json.loads(line)
                response, request = row.get("response") or {}, requests.get(row.get("custom_id"))
                if response.get("status_code") != 200 or request is None:
                    continue
                with _usable():
                    body, limit = response.get("body") or {}, request.max_output_tokens
                    found[row["custom_id"]] = c.read_completion(body, request.model, limit)
        return found

    async def close(self) -> None:
        await self._client.close()


class GeminiBatch:
    """Batches of generateContent with inline requests and answers; one model a job."""

    provider = "gemini"

    def __init__(self, client: GeminiClient):
        self._client = client

    async def submit(self, requests: Mapping[str, ChatRequest]) -> str:
        c = self._client
        rows = []
        for key, request in requests.items():
            contents, config = c.content(request, "text")
            rows.append({"contents": contents, "config": config, "metadata": {"key": key}})
        model = next(iter(requests.values())).model
        with c.typed_failures(model):
            job = await c.sdk_client.aio.batches.create(model=model, src=rows)
        return job.name or ""

    async def answers(self, job: str, requests: Mapping[str, ChatRequest]) -> Replies | None:
        c = self._client
        with c.typed_failures(job):
            batch = await c.sdk_client.aio.batches.get(name=job)
        if not batch.done:
            return None
        rows = (batch.dest.inlined_responses if batch.dest else None) or []
        if not rows:
            log.warning("batch %s ended as %s without answers", job, batch.state)
        found: Replies = {}
        for row in rows:
            key = (row.metadata or {}).get("key", "")
            request = requests.get(key)
            if row.response is None or request is None:
                continue
            with _usable():
                found[key] = c.read_response(row.response, request.model, request.max_output_tokens)
        return found

    async def close(self) -> None:
        await self._client.close()


def open_batch(provider: str, *, base_url: str = "", api_key_env: str = "", timeout_s: float = 120.0) -> BatchApi:
    """The batch API of a provider.

    Raises:
        ConfigurationError: the provider has none, or no key.
    """
    options = dict(base_url=base_url, api_key_env=api_key_env, timeout_s=timeout_s)
    if provider == "openai":
        return OpenAIBatch(OpenAIClient(**options))
    if provider == "gemini":
        return GeminiBatch(GeminiClient(**options))
    raise ConfigurationError(
        f"the {provider} teacher has no batch API; expected openai or gemini, or leave out --batch"
    )


class Jobs:
    """The jobs handed in, in a JSON file that appears whole or not at all.

    Each job is ``{"id", "source", "keys"}``: the provider's id, which of the sources it asks, its requests' keys.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        try:
            self.jobs: list[dict[str, Any]] = json.loads(self.path.read_text()) if self.path.exists() else []
        except ValueError as error:
            raise ConfigurationError(f"{self.path} is not JSON ({error}); delete it to hand in new jobs") from error

    def add(self, job: str, source: int, keys: Sequence[str]) -> None:
        """Note a job on the disk."""
        self.jobs.append({"id": job, "source": source, "keys": list(keys)})
        part = self.path.with_name(self.path.name + ".part")
        with open(part, "w", encoding="utf-8") as f:
            f.write(json.dumps(self.jobs, indent=1))
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, self.path)

    def keys(self) -> set[str]:
        """The requests that some job holds."""
        return {key for job in self.jobs for key in job["keys"]}

    def forget(self) -> None:
        """Delete the file: all is collected."""
        self.path.unlink(missing_ok=True)
        self.jobs = []


async def run_jobs(
    apis: Sequence[BatchApi],
    requests: Sequence[Sequence[ChatRequest]],
    jobs: Jobs,
    *,
    poll_s: float = 30.0,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Replies:
    """Hand in what no job holds yet and poll until all jobs have ended.

    Args:
        apis: one for each source; requests: those that each is asked, in the same order.

    Raises:
        ConfigurationError, or the failure of a submission. A poll that fails for a passing cause is repeated.
    """
    held = jobs.keys()
    by_key = {request_key(r): r for several in requests for r in several}
    for source, (api, several) in enumerate(zip(apis, requests, strict=True)):
        for chunk in _chunks({k: r for r in several if (k := request_key(r)) not in held}, _MAX_CHARS[api.provider]):
            job = await api.submit(chunk)
            jobs.add(job, source, list(chunk))
            log.info("batch %s: %d requests handed in to %s", job, len(chunk), api.provider)
    found: Replies = {}
    waiting = list(jobs.jobs)
    while waiting:
        still = []
        for job in waiting:
            try:
                answers = await apis[job["source"]].answers(job["id"], by_key)
            except TransientError as error:
                log.info("batch %s: %s; asked again in %g s", job["id"], error.cause, poll_s)
                answers = None
            if answers is None:
                still.append(job)
                continue
            found |= answers
            log.info("batch %s: %d of %d requests answered", job["id"], len(answers), len(job["keys"]))
        if still:
            log.info("%d of %d batches are running; it may take a day. Stop at will: the same command goes on",
                     len(still), len(jobs.jobs))  # fmt: skip
            await sleep(poll_s)
        waiting = still
    return found


def _chunks(requests: Mapping[str, ChatRequest], max_chars: int) -> Iterator[dict[str, ChatRequest]]:
    """Jobs of one model each, within the provider's bounds."""
    for model in dict.fromkeys(r.model for r in requests.values()):
        chunk: dict[str, ChatRequest] = {}
        size = 0
        for key, request in requests.items():
            if request.model != model:
                continue
            chars = 500 + sum(len(m.content) for m in request.messages)
            if chunk and (len(chunk) >= _MAX_REQUESTS or size + chars > max_chars):
                yield chunk
                chunk, size = {}, 0
            chunk[key] = request
            size += chars
        if chunk:
            yield chunk


class Prefetched:
    """A ``ChatClient`` that answers what a batch has answered, once each, and asks its client for the rest."""

    def __init__(self, client: ChatClient, replies: Replies):
        self._client = client
        self._replies = dict(replies)

    async def chat(self, request: ChatRequest) -> ChatReply:
        reply = self._replies.pop(request_key(request), None)
        return reply if reply is not None else await self._client.chat(request)

    async def close(self) -> None:
        await self._client.close()


@contextlib.contextmanager
def _usable() -> Iterator[None]:
    """Leaves out a reply that cannot be used (blocked, truncated, malformed): it is then asked for live."""
    try:
        yield
    except TeacherError as error:
        log.info("batch: an answer cannot be used (%s)", error.cause)
