"""The batch APIs of OpenAI and Gemini: many requests in one job, answered within a day at half the price.

A job carries a marker that we choose and the provider stores, so a job with a lost id can be found.
`tape.batch_jobs` chooses the requests, keeps the jobs on the tape and waits for them.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from ropd_jax.teacher.clients.chat import ChatReply, ChatRequest, Usage
from ropd_jax.teacher.clients.errors import ConfigurationError, MalformedError, TeacherError, TransientError
from ropd_jax.teacher.clients.gemini import GeminiClient
from ropd_jax.teacher.clients.openai import OpenAIClient

log = logging.getLogger(__name__)
T = TypeVar("T")

Answers = dict[str, ChatReply | TeacherError]  # by the request's key; an error is an unusable answer
BATCH_FAILED = "batch_failed"  # cause if a job failed to answer
NO_KEYS, TORN = "no_keys", "torn"  # causes: answers without a matching request; incomplete results
_METADATA = "ropd_job"  # OpenAI: the metadata field with the marker


class BatchApi(Protocol):
    """One provider's batch API. Every method raises ``TeacherError`` on failure."""

    provider: str

    async def submit(self, requests: Mapping[str, ChatRequest], marker: str) -> str:
        """Submits the requests, by key and all for one model. Returns the job's id."""

    async def find(self, marker: str) -> str | None:
        """The id of the job that carries the marker, or None."""

    async def answers(
        self, job: str, requests: Mapping[str, ChatRequest], *, last_look: bool = False
    ) -> Answers | None:
        """The answers of a finished job, one for each request; None while it runs.

        A request without an answer gets a ``TransientError`` with cause ``batch_failed`` and the provider's message.

        Args:
            last_look: accept torn or incomplete results. Missing requests have no answer.

        Raises:
            MalformedError: the results are torn or incomplete; with cause ``no_keys`` if it is unknown which request
                they answer. ``usage`` is what the job is billed for.
        """

    async def close(self) -> None:
        """Closes the client."""


class OpenAIBatch:
    """Batches of chat completions: upload a JSONL file, start a job on it, download its answers and its errors."""

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
            return batch.id  # inside the block: a web page instead of JSON has no id

    async def find(self, marker: str) -> str | None:
        c = self._client
        with c.typed_failures("batches"):
            async for batch in c.sdk_client.batches.list(limit=100):
                if (batch.metadata or {}).get(_METADATA) == marker:
                    return batch.id
        return None

    async def answers(
        self, job: str, requests: Mapping[str, ChatRequest], *, last_look: bool = False
    ) -> Answers | None:
        c = self._client
        with c.typed_failures(job):
            batch = await c.sdk_client.batches.retrieve(job)
            status = batch.status
            if status not in ("completed", "failed", "expired", "cancelled"):
                return None
            said = [e.message or e.code or "" for e in ((batch.errors.data if batch.errors else None) or [])]
            files = [f for f in (batch.output_file_id, batch.error_file_id) if f]
            contents = [(await c.sdk_client.files.content(file)).content for file in files]
        found: Answers = {}
        rows, torn = _rows(b"\n".join(contents), c.read_batch_line, job)
        for row in rows:
            request, response = requests.get(row.custom_id), row.response
            if request is None:
                continue
            if response is not None and response.status_code == 200:
                body, limit = response.body or {}, request.max_output_tokens
                found[row.custom_id] = _read(c.read_completion, body, request.model, limit)
            else:
                inside = response.body if response is not None else None
                found.setdefault(row.custom_id, failed_answer(job, c.shown(row.error or inside)))
        return _complete(found, requests, job, status, said, torn, whole=status == "completed", last_look=last_look)

    async def close(self) -> None:
        await self._client.close()


class GeminiBatch:
    """Batches of generateContent: upload a JSONL file, start a job on it, download a JSONL file; one model per job.

    Each line has our key. A job with inline requests would send less, but its answers come in any order and often
    without their metadata (googleapis/python-genai#1909, #2008), so they cannot be matched to requests.
    """

    provider = "gemini"

    def __init__(self, client: GeminiClient):
        self._client = client

    async def submit(self, requests: Mapping[str, ChatRequest], marker: str) -> str:
        c = self._client
        lines = (json.dumps({"key": key, "request": c.batch_request(r)}) + "\n" for key, r in requests.items())
        data = io.BytesIO("".join(lines).encode())
        model = next(iter(requests.values())).model
        with c.typed_failures(model):
            about: Any = {"mime_type": "jsonl", "display_name": marker}
            file = await c.sdk_client.aio.files.upload(file=data, config=about)
            job = await c.sdk_client.aio.batches.create(
                model=model, src=file.name or "", config={"display_name": marker}
            )
        if not job.name:
            raise MalformedError("gemini started a batch job without a name")
        return job.name

    async def find(self, marker: str) -> str | None:
        c = self._client
        with c.typed_failures("batches"):
            async for job in await c.sdk_client.aio.batches.list(config={"page_size": 100}):
                if job.display_name == marker:
                    return job.name
        return None

    async def answers(
        self, job: str, requests: Mapping[str, ChatRequest], *, last_look: bool = False
    ) -> Answers | None:
        c = self._client
        with c.typed_failures(job):
            batch = await c.sdk_client.aio.batches.get(name=job)
            if not batch.done:
                return None
            name = batch.dest.file_name if batch.dest else None
            content = b"" if name is None else await c.sdk_client.aio.files.download(file=name)
        status = "unknown" if batch.state is None else str(batch.state.value).removeprefix("JOB_STATE_").lower()
        whole = status == "succeeded"
        said = [] if whole else [await c.job_error(job)]
        found: Answers = {}
        rows, torn = _rows(content, c.read_batch_line, job)
        for row in rows:
            request = requests.get(row.key)
            if request is None:
                continue
            if row.response is not None:
                found[row.key] = _read(c.read_completion, row.response, request.model, request.max_output_tokens)
            else:
                found.setdefault(row.key, failed_answer(job, c.shown(row.error)))
        inline = (batch.dest.inlined_responses if batch.dest else None) or []
        found |= self._inline(job, inline, requests)
        return _complete(found, requests, job, status, said, torn, whole=whole, last_look=last_look)

    def _inline(self, job: str, rows: Sequence[Any], requests: Mapping[str, ChatRequest]) -> Answers:
        """The answers of a job with inline requests, as submitted by an earlier version."""
        c = self._client
        found: Answers = {}
        nameless = 0
        billed = Usage()
        for row in rows:
            key = (row.metadata or {}).get("key", "")
            request = requests.get(key)
            if row.response is None and request is not None:
                found[key] = failed_answer(job, c.shown(row.error.message if row.error else None))
            elif row.response is not None:
                answer = _read(c.read_response, row.response, "", 0) if request is None else _read(
                    c.read_response, row.response, request.model, request.max_output_tokens
                )  # fmt: skip
                billed = _sum(billed, answer.usage)
                if request is not None:
                    found[key] = answer
                elif not key:
                    nameless += 1
        if nameless:
            raise MalformedError(
                f"gemini: {nameless} answers of batch {job} have no key, so they cannot be matched to requests",
                cause=NO_KEYS,
                usage=billed,
            )
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
        ConfigurationError: the provider does not have a batch API, or there is no key.
    """
    how: dict[str, Any] = {"base_url": base_url, "api_key_env": api_key_env, "timeout_s": timeout_s, "headers": headers}
    if provider == "openai":
        return OpenAIBatch(OpenAIClient(**how, organization=organization, project=project))
    if provider == "gemini" and vertexai:
        raise ConfigurationError("batches of Vertex AI need a bucket, which is not supported; omit --batch")
    if provider == "gemini":
        return GeminiBatch(GeminiClient(**how))
    raise ConfigurationError(
        f"the {provider} teacher does not have a batch API; expected openai or gemini, or omit --batch"
    )


def _rows(content: bytes, read: Callable[[bytes], T], job: str) -> tuple[list[T], int]:
    """The lines of a job's results, and the number of unreadable lines, which are logged."""
    rows, torn = [], 0
    for line in filter(bytes.strip, content.split(b"\n")):
        try:
            rows.append(read(line))
        except MalformedError as error:
            torn += 1
            log.warning("batch %s: unreadable line: %s", job, error)
    return rows, torn


def _read(reader: Callable[..., ChatReply], *about) -> ChatReply | TeacherError:
    """The reply, or the error that makes it unusable (blocked, truncated, malformed)."""
    try:
        return reader(*about)
    except TeacherError as error:
        return error


def failed_answer(job: str, said: str) -> TransientError:
    """The error for a request that a job failed to answer. A later attempt can succeed."""
    return TransientError(f"batch {job}: {said or 'no answer, and no reason given'}", cause=BATCH_FAILED)


def _complete(
    found: Answers,
    requests: Mapping[str, ChatRequest],
    job: str,
    status: str,
    said: Sequence[str],
    torn: int,
    *,
    whole: bool,
    last_look: bool,
) -> Answers:
    """The answers, with an error for each request without one.

    Args:
        torn: number of unreadable lines.
        whole: the job reports that it has answered everything.

    Raises:
        MalformedError: something is torn or missing, and this is not the last look.
    """
    lacking = [key for key in requests if key not in found]
    if not last_look and (torn or (whole and lacking)):
        raise MalformedError(
            f"batch {job}: {len(lacking)} of {len(requests)} answers are not in its results ({torn} torn lines)",
            cause=TORN,
        )
    why = "; ".join(dict.fromkeys(s for s in said if s)) or ("its results lack it" if whole else "")
    for key in lacking:
        found[key] = failed_answer(job, f"it ended as {status}" + (f": {why[:500]}" if why else ""))
    return found


def _sum(one: Usage, other: Usage | None) -> Usage:
    if other is None:
        return one
    pairs = zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True)
    return Usage(*(None if a is None and b is None else (a or 0) + (b or 0) for a, b in pairs))
