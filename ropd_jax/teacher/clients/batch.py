"""The batch APIs of OpenAI and Gemini: many requests in one job, answered within a day, for half the price.

A job carries a marker that we choose and the provider stores, so that a job whose id was lost can be found.
`tape.batch_jobs` chooses the requests, keeps the jobs on the tape and waits for them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ropd_jax.teacher.clients.chat import ChatReply, ChatRequest
from ropd_jax.teacher.clients.errors import ConfigurationError, MalformedError, TeacherError
from ropd_jax.teacher.clients.gemini import GeminiClient
from ropd_jax.teacher.clients.openai import OpenAIClient

if TYPE_CHECKING:
    from google.genai.types import InlinedRequestDict

log = logging.getLogger(__name__)

Answers = dict[str, ChatReply | TeacherError]  # by the request's key; an error is an unusable answer
_METADATA = "ropd_job"  # OpenAI: the metadata that holds the marker


class BatchApi(Protocol):
    """One provider's batch API. Every method raises ``TeacherError`` on failure."""

    provider: str

    async def submit(self, requests: Mapping[str, ChatRequest], marker: str) -> str:
        """Submit the requests, all of one model, by their keys; returns the job's id."""

    async def find(self, marker: str) -> str | None:
        """The id of the job that carries the marker, or None."""

    async def answers(self, job: str, requests: Mapping[str, ChatRequest]) -> Answers | None:
        """The answers of an ended job by key, without the requests that it failed; None while it runs."""

    async def close(self) -> None:
        """Close the client."""


class OpenAIBatch:
    """Batches of chat completions: upload a JSONL file, start a job on it, download a JSONL file."""

    provider = "openai"

    def __init__(self, client: OpenAIClient):
        self._client = client

    async def submit(self, requests: Mapping[str, ChatRequest], marker: str) -> str:
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
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={_METADATA: marker},
            )
        return batch.id

    async def find(self, marker: str) -> str | None:
        c = self._client
        with c.typed_failures("batches"):
            async for batch in c.sdk_client.batches.list(limit=100):
                if (batch.metadata or {}).get(_METADATA) == marker:
                    return batch.id
        return None

    async def answers(self, job: str, requests: Mapping[str, ChatRequest]) -> Answers | None:
        c = self._client
        with c.typed_failures(job):
            batch = await c.sdk_client.batches.retrieve(job)
            if batch.status not in ("completed", "failed", "expired", "cancelled"):
                return None
            if not batch.output_file_id:
                log.warning("batch %s ended as %s without answers", job, batch.status)
                return {}
            content = await c.sdk_client.files.content(batch.output_file_id)
        found: Answers = {}
        for line in content.content.split(b"\n"):
            if not line.strip():
                continue
            try:
                row = c.read_batch_line(line)
            except MalformedError as error:
                log.warning("batch %s: a line is left out: %s", job, error)
                continue
            request = requests.get(row.custom_id)
            if request is None or row.response is None or row.response.status_code != 200:
                continue
            body, limit = row.response.body or {}, request.max_output_tokens
            found[row.custom_id] = _read(c.read_completion, body, request.model, limit)
        return found

    async def close(self) -> None:
        await self._client.close()


class GeminiBatch:
    """Batches of generateContent with inline requests and answers; one model per job."""

    provider = "gemini"

    def __init__(self, client: GeminiClient):
        self._client = client

    async def submit(self, requests: Mapping[str, ChatRequest], marker: str) -> str:
        c = self._client
        rows: list[InlinedRequestDict] = []
        for key, request in requests.items():
            contents, config = c.content(request, "text")
            rows.append({"contents": contents, "config": config, "metadata": {"key": key}})
        model = next(iter(requests.values())).model
        with c.typed_failures(model):
            job = await c.sdk_client.aio.batches.create(model=model, src=rows, config={"display_name": marker})
        return job.name or ""

    async def find(self, marker: str) -> str | None:
        c = self._client
        with c.typed_failures("batches"):
            async for job in await c.sdk_client.aio.batches.list(config={"page_size": 100}):
                if job.display_name == marker:
                    return job.name
        return None

    async def answers(self, job: str, requests: Mapping[str, ChatRequest]) -> Answers | None:
        c = self._client
        with c.typed_failures(job):
            batch = await c.sdk_client.aio.batches.get(name=job)
        if not batch.done:
            return None
        rows = (batch.dest.inlined_responses if batch.dest else None) or []
        if not rows:
            log.warning("batch %s ended as %s without answers", job, batch.state)
        found: Answers = {}
        for row in rows:
            key = (row.metadata or {}).get("key", "")
            request = requests.get(key)
            if row.response is None or request is None:
                continue
            found[key] = _read(c.read_response, row.response, request.model, request.max_output_tokens)
        return found

    async def close(self) -> None:
        await self._client.close()


def open_batch(
    provider: str,
    *,
    base_url: str = "",
    api_key_env: str = "",
    organization: str = "",
    project: str = "",
    location: str = "",
    vertexai: bool = False,
    headers: tuple[tuple[str, str], ...] = (),
    timeout_s: float = 120.0,
) -> BatchApi:
    """The batch API of a provider; the arguments are the fields of ``Endpoint``.

    Raises:
        ConfigurationError: the provider has no batch API, or there is no key.
    """
    how: dict[str, Any] = {"base_url": base_url, "api_key_env": api_key_env, "timeout_s": timeout_s, "headers": headers}
    if provider == "openai":
        return OpenAIBatch(OpenAIClient(**how, organization=organization, project=project))
    if provider == "gemini" and vertexai:
        raise ConfigurationError("batches of Vertex AI need a bucket, which is not supported; leave out --batch")
    if provider == "gemini":
        return GeminiBatch(GeminiClient(**how))
    raise ConfigurationError(
        f"the {provider} teacher has no batch API; expected openai or gemini, or leave out --batch"
    )


def _read(reader: Callable[..., ChatReply], *about) -> ChatReply | TeacherError:
    """The reply, or the error that makes it unusable (blocked, truncated, malformed)."""
    try:
        return reader(*about)
    except TeacherError as error:
        return error
