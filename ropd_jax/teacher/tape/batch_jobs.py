"""Batch jobs, from the decision to submit to the last answer. Their state is on the tape.

    1. intend     marker, requests and a cost estimate are on the tape before anything is sent
    2. submit     the job carries the marker; the tape stores its id as soon as the provider returns it
    3. poll       until it has finished; a restarted process polls the same jobs
    4. end        the answers, the failures, the job's end and its cost are written in one transaction

A poll that returns a web page or torn results is repeated. Requests that a job failed to answer are sent live later, at
the full price. If a job failed as a whole, this needs the user's consent (`check_unanswered`).

If a process is killed between 1 and 2, it is unknown whether the job exists. The next process searches the provider for
a job with that marker and takes it over. Only if there is none are the requests submitted again. So nothing is paid for
twice. Answers are on the tape like those of live calls, and later requests are answered from it.

Budget caps are checked twice. Before a job is submitted, they are checked with an estimate: one token per four
characters of a request, plus the model's mean output on the tape, or the request's own limit while there is none. Once
a job has finished, the tokens reported by the provider count instead.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import logging
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import cast

from ropd_jax.teacher.clients.batch import BATCH_FAILED, NO_KEYS, TORN, Answers, BatchApi, failed_answer
from ropd_jax.teacher.clients.chat import ChatReply, ChatRequest, Purpose, Usage
from ropd_jax.teacher.clients.endpoint import Endpoint
from ropd_jax.teacher.clients.errors import (
    BlockedError,
    BudgetError,
    ConfigurationError,
    MalformedError,
    TeacherError,
    TransientError,
)
from ropd_jax.teacher.step import NO_STEP
from ropd_jax.teacher.tape.client import is_lasting, refused
from ropd_jax.teacher.tape.store import (
    Tape,
    body_key,
    canonical,
    insert_reply,
    insert_request,
    request_body,
    request_row,
)
from ropd_jax.teacher.traffic.budget import Budget, Spent
from ropd_jax.types import Message, UserError

log = logging.getLogger(__name__)

ROLE = "reference_batch"  # the role of job costs in the budget
INTENDED, RUNNING, ENDED = "intended", "running", "ended"
GRACE_S = 60.0  # the provider's list can lack a job that was submitted more recently
_MAX_REQUESTS = 10_000  # per job; OpenAI accepts 50,000, Gemini is limited by bytes
_MAX_CHARS = {"openai": 100_000_000, "gemini": 100_000_000}  # OpenAI: files up to 200 MB; Gemini: up to 2 GB
TORN_LOOKS = 5  # polls with torn results; after that, readable results count and the rest has failed
MAX_UNANSWERED = 0.1  # share of a job's requests; above it the job has failed, and they are sent live only with consent


@dataclasses.dataclass(frozen=True)
class Source:
    """The requests for one endpoint, and its batch API."""

    endpoint: Endpoint
    api: BatchApi
    requests: Sequence[ChatRequest]


@dataclasses.dataclass(frozen=True)
class Job:
    """A row of the tape's table ``batches``.

    Attributes:
        marker: our name for the job, which the provider stores.
        provider, address: where it was submitted.
        id: the provider's name for the job, "" while it is unknown.
        state: ``INTENDED``, ``RUNNING`` or ``ENDED``.
        keys: the keys of its requests, whose texts are in the table ``requests``.
        spent: an estimate until the job has finished, then the reported spending.
        created: seconds since 1970.
    """

    marker: str
    provider: str
    address: str
    id: str
    state: str
    keys: tuple[str, ...]
    spent: Spent
    created: float


class Ledger:
    """The batch jobs on a tape."""

    def __init__(self, tape: Tape):
        self.tape = tape

    def jobs(self, state: str | None = None) -> list[Job]:
        """All jobs, or those in one state, oldest first."""
        if not self.tape.query("SELECT 1 FROM sqlite_master WHERE name = 'batches'"):
            return []  # a tape of version 1, opened read-only
        rows = self.tape.query("SELECT marker, provider, address, job, state, keys, spent, created FROM batches "
                               "ORDER BY created, marker")  # fmt: skip
        jobs = (
            Job(marker, provider, address, name, at, tuple(json.loads(keys)), Spent(**json.loads(spent)), created)
            for marker, provider, address, name, at, keys, spent, created in rows
        )
        return [job for job in jobs if state in (None, job.state)]

    def spent(self) -> Spent:
        """The cost of all jobs; running jobs count by estimate."""
        total = Spent()
        for job in self.jobs():
            total = total + job.spent
        return total

    def intend(
        self, endpoint: Endpoint, requests: Mapping[str, ChatRequest], spent: Spent, *, prompts: Mapping[str, str]
    ) -> Job:
        """Records that these requests are about to be submitted."""
        keys = tuple(requests)
        job = Job(f"ropd-{uuid.uuid4().hex}", endpoint.provider, endpoint.address, "", INTENDED, keys, spent,
                  time.time())  # fmt: skip
        rows = [request_row(key, r.purpose, request_body(endpoint.provider, r), prompts) for key, r in requests.items()]
        with self.tape.using() as db:
            db.execute("PRAGMA synchronous = FULL")  # it must also survive a power cut
            with db:
                for row in rows:
                    insert_request(db, row)
                values = (job.marker, job.provider, job.address, "", INTENDED, json.dumps(keys))
                db.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*values, _json(spent), job.created))
        return job

    def running(self, job: Job, name: str) -> None:
        """Records the provider's name for the job."""
        self._run("UPDATE batches SET job = ?, state = ? WHERE marker = ?", (name, RUNNING, job.marker))

    def drop(self, job: Job) -> None:
        """Deletes a job that the provider does not have."""
        self._run("DELETE FROM batches WHERE marker = ?", (job.marker,))

    def end(self, job: Job, answers: Answers, spent: Spent) -> None:
        """Writes the answers, the end and the cost in one transaction.

        Blocked answers, requests that the job failed to answer, and answers that the role cannot use
        (`tape.client.refused`) are recorded as failures.
        """
        requests = self.requests(job)
        with self.tape.using() as db, db:
            for key, answer in answers.items():
                unusable = refused(requests[key], answer) if isinstance(answer, ChatReply) and key in requests else None
                if isinstance(answer, ChatReply) and unusable is None:
                    insert_reply(db, key, answer, address=job.address)
                    continue
                error = unusable or cast(TeacherError, answer)
                if unusable is not None or isinstance(error, BlockedError) or error.cause == BATCH_FAILED:
                    _insert_failure(db, key, error)
            values = (ENDED, _json(spent), job.marker)
            db.execute("UPDATE batches SET state = ?, spent = ? WHERE marker = ?", values)

    def unanswered(self, job: Job) -> dict[str, str]:
        """The job's requests without a reply and with a transient failure, by key, with the last failure's message."""
        found = {}
        for key in job.keys:
            failures = self.tape.failures(key)
            if self.tape.get(key) is None and not any(is_lasting(f) for f in failures):
                found[key] = failures[-1].message if failures else "no answer"
        return found

    def requests(self, job: Job) -> dict[str, ChatRequest]:
        """The job's requests by key."""
        entries = {key: self.tape.entry(key) for key in job.keys}
        return {key: _request(cast(Purpose, entry.role), entry.body) for key, entry in entries.items()}

    def mean_output(self, provider: str, model: str) -> float | None:
        """Mean output tokens of the replies on the tape, or None."""
        ((mean,),) = self.tape.query(
            "SELECT avg(output_tokens) FROM requests JOIN replies USING(key) "
            "WHERE role = 'reference' AND provider = ? AND requests.model = ?",
            (provider, model),
        )
        return mean

    def _run(self, sql: str, values: tuple) -> None:
        with self.tape.using() as db, db:
            db.execute(sql, values)


async def run_jobs(
    sources: Sequence[Source],
    tape: Tape,
    budget: Budget,
    *,
    prompts: Mapping[str, str] | None = None,
    poll_s: float = 30.0,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    grace_s: float = GRACE_S,
    live_fallback: bool = False,
) -> BudgetError | None:
    """Submits the requests that are not answered and not part of a job, and waits until all jobs have finished.

    Args:
        prompts: the templates' content hashes, for the tape.
        poll_s: seconds between two polls.
        grace_s: seconds after which a job that the provider does not list is assumed not to exist.
        live_fallback: requests that failed jobs did not answer will be sent live.

    Returns:
        An error if a cap did not leave room for some requests; None if all were submitted.

    Raises:
        UserError, ConfigurationError: a submission failed. A poll with a transient failure is repeated.
        UserError: a job failed, see `check_unanswered`; or its answers cannot be matched to requests.
    """
    ledger = Ledger(tape)
    budget.set_spent(ROLE, ledger.spent())
    apis = {(s.endpoint.provider, s.endpoint.address): s for s in sources}
    await _settle(ledger, apis, poll_s=poll_s, sleep=sleep, grace_s=grace_s)
    # also of finished jobs: their unanswered requests are sent live
    held = {key for job in ledger.jobs() for key in job.keys}
    todo = [(s, chunk) for s in sources for chunk in _chunks(_open(s, tape, held), _MAX_CHARS[s.endpoint.provider])]
    torn: Counter[str] = Counter()  # polls with torn results, by job
    while True:
        stopped = await _submit(todo, ledger, budget, prompts or {})
        running = [job for job in ledger.jobs(RUNNING) if (job.provider, job.address) in apis]
        if not running:
            check_unanswered(ledger, sources, live_fallback=live_fallback)
            return stopped
        look = functools.partial(_look, ledger, budget=budget, poll_s=poll_s, torn=torn, live_fallback=live_fallback)
        ended = [await look(apis[job.provider, job.address], job) for job in running]
        if not all(ended):
            log.info("%d of %d batches are running, for up to a day. You can stop; run the same command to continue",
                     len(ended) - sum(ended), len(ledger.jobs()))  # fmt: skip
            await sleep(poll_s)


def check_unanswered(ledger: Ledger, sources: Sequence[Source], *, live_fallback: bool) -> None:
    """Raises before the requests of failed jobs are sent live at the full price, unless the user agreed.

    A job has failed if more than ``MAX_UNANSWERED`` of its requests have no answer. Only currently needed requests
    count: after a change of the config, its new requests go into a new job.

    Raises:
        UserError: the message has the number, the provider's message and the remedy.
    """
    asked = {body_key(request_body(s.endpoint.provider, r)) for s in sources for r in s.requests}
    lost: dict[str, str] = {}
    for job in ledger.jobs(ENDED):
        unanswered = {key: why for key, why in ledger.unanswered(job).items() if key in asked}
        if len(unanswered) > MAX_UNANSWERED * len(job.keys):
            lost |= unanswered
    if not lost:
        return
    reasons = "; ".join(f"{n} x {why[:300]}" for why, n in Counter(lost.values()).most_common(3))
    if live_fallback:
        log.warning("%d requests of failed batches are sent live, at the full price: %s", len(lost), reasons)
        return
    raise UserError(
        f"batches failed to answer {len(lost)} requests ({reasons}). Live calls cost the full price, so nothing is "
        "bought yet: add --live-fallback to send them live, or change what the provider reports; existing answers "
        "stay on the tape"
    )


async def _settle(
    ledger: Ledger,
    apis: Mapping[tuple[str, str], Source],
    *,
    poll_s: float,
    sleep: Callable[[float], Awaitable[None]],
    grace_s: float,
) -> None:
    """Finds out whether the jobs that were about to be submitted when the last process ended exist."""
    for job in ledger.jobs(INTENDED):
        source = apis.get((job.provider, job.address))
        if source is None:
            log.warning("batch %s was submitted to another address, or not at all; leaving it unchanged", job.marker)
            continue
        while True:
            try:
                name = await source.api.find(job.marker)
            except (TransientError, MalformedError) as error:  # malformed: a web page
                log.info("the list of batches: %s; next attempt in %g s", error.cause, poll_s)
                name = ""
            if name:
                ledger.running(job, name)
                log.info("batch %s was submitted before its name was recorded: taken over", name)
                break
            # None: the list was read and does not have the marker. "": the list could not be read, so this is unknown.
            if name is None and time.time() - job.created > grace_s:
                ledger.drop(job)
                break
            await sleep(min(poll_s, 5.0))


async def _submit(
    todo: list[tuple[Source, dict[str, ChatRequest]]], ledger: Ledger, budget: Budget, prompts: Mapping[str, str]
) -> BudgetError | None:
    """Submits as many requests from the front of ``todo`` as the caps allow. Returns an error if some are left."""
    while todo:
        source, chunk = todo[0]
        estimates = _estimates(source, chunk, ledger, budget)
        n = budget.room(estimates)
        if not n:
            return budget.no_room(sum(len(c) for _, c in todo), estimates[0])
        part = dict(list(chunk.items())[:n])
        total = Spent()
        for estimate in estimates[:n]:
            total = total + estimate
        job = ledger.intend(source.endpoint, part, total, prompts=prompts)
        try:
            name = await source.api.submit(part, job.marker)
        except (TransientError, MalformedError) as error:  # the job stays INTENDED, and `_settle` looks for it
            raise UserError(
                f"{error}. It is unknown whether the provider has the batch job; run the same command to find out"
            ) from error
        except TeacherError as error:
            ledger.drop(job)  # refused: the job does not exist
            raise error if isinstance(error, ConfigurationError) else UserError(str(error)) from error
        ledger.running(job, name)
        budget.set_spent(ROLE, ledger.spent())
        log.info("batch %s: %d requests submitted to %s", name, n, job.provider)
        rest = dict(list(chunk.items())[n:])
        todo[:1] = [(source, rest)] if rest else []
    return None


async def _look(
    ledger: Ledger,
    source: Source,
    job: Job,
    *,
    budget: Budget,
    poll_s: float,
    torn: Counter[str],
    live_fallback: bool,
) -> bool:
    """True if the job has finished. Its answers and failures are then on the tape.

    Raises:
        UserError: its answers have no keys.
    """
    requests = ledger.requests(job)
    spent = Spent(calls=len(job.keys))
    try:
        answers = await source.api.answers(job.id, requests, last_look=torn[job.id] >= TORN_LOOKS)
    except (TransientError, MalformedError) as error:
        if error.cause != NO_KEYS:
            torn[job.id] += error.cause == TORN
            log.info("batch %s: %s; next attempt in %g s", job.id, error, poll_s)
            return False
        if not live_fallback:
            raise UserError(
                f"{error}. They are paid for, and nothing is bought again yet: download them from the provider's "
                "console, or add --live-fallback to send this whole job live, at the full price"
            ) from error
        answers = {key: failed_answer(job.id, "its answers have no keys") for key in requests}
        _book(spent, error.usage, next(iter(requests.values())).model, source, budget)
    if answers is None:
        return False
    for key, answer in answers.items():  # an unusable answer can also be billed
        _book(spent, answer.usage, requests[key].model, source, budget)
    ledger.end(job, answers, spent)
    budget.set_spent(ROLE, ledger.spent())
    good = sum(isinstance(a, ChatReply) for a in answers.values())
    log.info("batch %s: %d of %d requests answered", job.id, good, len(job.keys))
    failed = Counter(str(a) for a in answers.values() if isinstance(a, TransientError))
    for why, n in failed.most_common(3):
        log.warning("%s (%d of %d requests)", why, n, len(job.keys))
    return True


def _book(spent: Spent, usage: Usage | None, model: str, source: Source, budget: Budget) -> None:
    """Adds the usage reported by the provider, at the batch price."""
    if usage is not None:
        price = budget.prices.find(source.endpoint.provider, model, source.endpoint.base_url)
        spent.add(usage, None if price is None else price.cost(usage, batch=True))


def _estimates(source: Source, chunk: Mapping[str, ChatRequest], ledger: Ledger, budget: Budget) -> list[Spent]:
    endpoint, estimates = source.endpoint, []
    model = next(iter(chunk.values())).model
    price = budget.prices.find(endpoint.provider, model, endpoint.base_url)
    mean = ledger.mean_output(endpoint.provider, model)
    for request in chunk.values():
        output = request.max_output_tokens if mean is None else round(mean)
        usage = Usage(sum(len(m.content) for m in request.messages) // 4, output)
        spent = Spent(calls=1)
        spent.add(usage, None if price is None else price.cost(usage, batch=True))
        estimates.append(spent)
    return estimates


def _open(source: Source, tape: Tape, held: set[str]) -> dict[str, ChatRequest]:
    """The requests that are unanswered and were never part of a job."""
    keyed = {body_key(request_body(source.endpoint.provider, r)): r for r in source.requests}

    def is_open(key: str) -> bool:
        failed = any(is_lasting(f) for f in tape.failures(key))
        return key not in held and not failed and tape.get(key) is None

    return {key: request for key, request in keyed.items() if is_open(key)}


def _chunks(requests: Mapping[str, ChatRequest], max_chars: int) -> Iterator[dict[str, ChatRequest]]:
    """The requests, split into jobs of one model each, within the provider's limits."""
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


def _request(purpose: Purpose, body: Mapping) -> ChatRequest:
    """The request from a body on the tape."""
    messages = tuple(Message(*m) for m in body["messages"])
    how = (body["model"], body["temperature"], body["max_output_tokens"], body["json_schema"], body["sample_index"])
    return ChatRequest(purpose, messages, *how, extra=body.get("extra", {}))


def _json(spent: Spent) -> str:
    return canonical(dataclasses.asdict(spent)).decode()


def _insert_failure(db: sqlite3.Connection, key: str, error: TeacherError) -> None:
    values = (key, NO_STEP, type(error).__name__, error.cause, str(error), time.time())
    db.execute("INSERT OR IGNORE INTO failures VALUES (?, ?, ?, ?, ?, ?)", values)
