"""The scripted teacher: a text-level black box without a model, so that the whole system runs on a bare machine.

It receives exactly the messages that a real model would receive, reads question, references and answers from the
prompt's fences, and returns text as a real model would. So prompts, fences, parsing, blinding and failures are
actually exercised.

It is not a language model. It solves chain sums, products, greatest common divisors and linear equations by rule,
writes short texts that follow rules (`scripted.instructions`), and looks up exercises in an *answer key* (questions
with worked solutions, JSONL). Any other question is a ``ConfigurationError``. It writes criteria in a few fixed
wordings and can decide only those. Its score for a whole answer is computed from the same checks (`criteria.quality`)
and rounded to the scale, so it is more regular than a real model's. It never sees a data set's gold answer.

Replies do not depend on state: everything random is a hash of (messages, sample index), so a resumed run gets identical
texts, also over HTTP. Only faults count attempts, so that a retry can succeed.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ropd_jax.teacher.clients.chat import ChatReply, ChatRequest, Usage
from ropd_jax.teacher.clients.errors import BlockedError, ConfigurationError, TeacherError, TruncatedError
from ropd_jax.teacher.clients.http_status import error_for_status
from ropd_jax.teacher.roles import fences, forms, rubricator, scorer, static_rubric
from ropd_jax.teacher.roles.json_reply import TOKEN_KEY
from ropd_jax.teacher.scripted import criteria, instructions, tasks
from ropd_jax.teacher.scripted.bias import Bias, Shown
from ropd_jax.teacher.scripted.noise import Noise
from ropd_jax.teacher.scripted.truths import LabelRow, Truths
from ropd_jax.types import Message

FAULTS: dict[str, tuple[int, str, str]] = {  # kind -> HTTP status, error code, message
    "bad_request": (400, "invalid_request_error", "scripted fault: bad request"),
    "no_schema": (400, "invalid_request_error", "scripted fault: response_format json_schema is not supported"),
    "no_system": (400, "invalid_request_error", "scripted fault: System role not supported"),
    "unsupported": (400, "unsupported_value", "scripted fault: unsupported value for 'temperature'"),
    "context": (400, "context_length_exceeded", "scripted fault: maximum context length exceeded"),
    "unauthorized": (401, "invalid_api_key", "scripted fault: incorrect API key"),
    "forbidden": (403, "", "scripted fault: forbidden"),
    "not_found": (404, "model_not_found", "scripted fault: no such model"),
    "timeout": (408, "", "scripted fault: request timeout"),
    "rate_limited": (429, "rate_limit_exceeded", "scripted fault: too many requests"),
    "quota": (429, "insufficient_quota", "scripted fault: quota exhausted"),
    "server_error": (500, "", "scripted fault: internal error"),
    "unavailable": (503, "", "scripted fault: overloaded"),
}
TEXT_FAULTS = (  # no error status
    "broken_json", "empty", "prose", "truncated", "blocked", "refused", "hang",
    "answer_missing", "verdict_short", "wrong_index",
)  # fmt: skip
RETRY_AFTER_S = 0.05
OWN_SOLUTION = 1_000  # the sample index of its own solution, against which it scores if there are no references
SCALE = re.compile(r"integer from (\d+) to (\d+)")
REPLY_TOKEN = re.compile(rf'"{TOKEN_KEY}": "([0-9a-f]+)"')  # in the example of the reply
SIZE = re.compile(r"Write (\d+) to (\d+) (?:criteria|items)")
POINTS = re.compile(r"^\[-?[\d.]+\] ")
_DRAWN = ("rate_limited", "unavailable", "server_error", "broken_json")
_COUNTED = 10_000  # number of conversations whose attempts are remembered


class ScriptedClient:
    """A ``ChatClient`` without a model. See the module's docstring for what it knows.

    Args:
        answer_key: path of a JSONL file with ``question`` and ``solution``, or such pairs; "" means none.
        latency_s: mean seconds per call; each call takes 0.5 to 1.5 times as long.
        fault_rate: share of attempts that fail as a provider would (429, 500, 503, half a JSON).
        slip_rate: share of reference steps with a wrong result.
        wrong_verdict_rate: share of verdicts that are flipped.
        style: the style of its own solutions, one of ``tasks.STYLES``.
        labels: path of a labels file (`teacher.labels`) whose verdicts the verifier knows, or such rows.
        noise: errors of its verdicts and grades (`scripted.noise`): path of a calibration report, JSON, or a mapping;
            "" means none.
        bias: what its judgements reward besides quality (`scripted.bias`): ``NAME:DOSE,NAME:DOSE``; "" means nothing.
        fault: for tests: (request, attempt number from 0) -> a key of ``FAULTS``, one of ``TEXT_FAULTS``, or None.

    Raises:
        ConfigurationError: a rate is outside 0..1, or the answer key cannot be read.
    """

    def __init__(
        self,
        *,
        answer_key: str | Iterable[tuple[str, str]] = "",
        latency_s: float = 0.0,
        fault_rate: float = 0.0,
        slip_rate: float = 0.0,
        wrong_verdict_rate: float = 0.0,
        style: str = "full",
        labels: str | Iterable[LabelRow] = "",
        noise: str | Mapping[str, Any] = "",
        bias: str = "",
        fault: Callable[[ChatRequest, int], str | None] | None = None,
    ):
        rates = {"fault_rate": fault_rate, "slip_rate": slip_rate, "wrong_verdict_rate": wrong_verdict_rate}
        for name, rate in rates.items():
            if not 0.0 <= rate <= 1.0:
                raise ConfigurationError(f"teacher.scripted.{name} is {rate}; expected a share from 0 to 1")
        if style not in tasks.STYLES:
            expected = ", ".join(tasks.STYLES)
            raise ConfigurationError(f"teacher.scripted.style is {style!r}; expected one of {expected}")
        if latency_s < 0:
            raise ConfigurationError(f"teacher.scripted.latency_s is {latency_s}; expected seconds, 0 or more")
        if isinstance(answer_key, str):
            self._answer_key = tasks.AnswerKey.read(answer_key) if answer_key else tasks.AnswerKey()
        else:
            self._answer_key = tasks.AnswerKey(answer_key)
        self._latency_s = latency_s
        self._fault_rate = fault_rate
        self._slip_rate = slip_rate
        self._wrong_rate = wrong_verdict_rate
        self._style = style
        self._noise = Noise.read(noise)
        self._truths = Truths(labels, self._noise)
        self._bias = Bias.read(bias)
        self._fault = fault
        self._attempts: collections.OrderedDict[str, int] = collections.OrderedDict()

    async def chat(self, request: ChatRequest) -> ChatReply:
        """The scripted reply, or the fault drawn for this attempt."""
        kind = await self.begin(request)
        if kind in FAULTS:
            raise fault_error(kind, request.model)
        reply = self.reply(request)
        if kind in ("blocked", "refused"):
            raise BlockedError("scripted fault: stopped by a safety filter", cause=kind)
        if kind == "truncated" or reply.finish_reason == "length":
            raise TruncatedError(f"scripted: the reply reached max_output_tokens={request.max_output_tokens}; raise it")
        return corrupted(reply, kind)

    async def close(self) -> None:
        """Does nothing."""

    async def begin(self, request: ChatRequest) -> str | None:
        """Waits as long as this call takes, and draws its fault: a kind, or None."""
        if self._latency_s:
            share = 0.5 + tasks.uniform("latency", *_identity(request))
            await asyncio.sleep(self._latency_s * share)
        kind = self._next_fault(request)
        if kind == "hang":
            await asyncio.sleep(3600)
        return kind

    def _next_fault(self, request: ChatRequest) -> str | None:
        """The fault of this attempt, or None. Attempts are counted until one succeeds."""
        if self._fault is None and not self._fault_rate:
            return None
        name = hashlib.sha256(json.dumps(_identity(request)).encode()).hexdigest()
        attempt = self._attempts.pop(name, 0)
        if self._fault is not None:
            kind = self._fault(request, attempt)
        elif tasks.uniform("fault", name, attempt) < self._fault_rate:
            # half of a free text would not be noticed
            drawn = _DRAWN if request.json_schema is not None else _DRAWN[:-1]
            kind = drawn[int(tasks.uniform("kind", name, attempt) * len(drawn))]
        else:
            kind = None
        if kind is not None:
            self._attempts[name] = attempt + 1
            while len(self._attempts) > _COUNTED:
                self._attempts.popitem(last=False)
        return kind

    def reply(self, request: ChatRequest) -> ChatReply:
        """The reply, a pure function of messages and sample index. Four characters count as one token.

        Raises:
            ConfigurationError: it cannot solve the question.
        """
        text = self._answer(request.messages, request.sample_index)
        sent = sum(len(m.content) for m in request.messages)
        usage = Usage(math.ceil(sent / 4), math.ceil(len(text) / 4), 0, 0)
        reason = "stop" if (usage.output_tokens or 0) <= request.max_output_tokens else "length"
        if reason == "length":
            text = text[: 4 * request.max_output_tokens]
        return ChatReply(text, reason, usage, request.model)

    def _answer(self, messages: tuple[Message, ...], sample_index: int) -> str:
        user = [m.content for m in messages if m.role == "user"]
        system = "\n\n".join(m.content for m in messages if m.role == "system")
        # The request: the system message, and the first user message that has fences or follows a system message with
        # some.
        whole = next((t for t in (f"{system}\n\n{text}" for text in user) if fences.token_in(t)), "")
        blocks = fences.parse_blocks(whole)
        by_role = collections.defaultdict(list)
        for label, text in blocks:
            by_role[label.split(" ")[0]].append(text)
        question = by_role["question"][0] if by_role["question"] else (user[-1] if user else "")
        asked = fences.outside(whole)  # the instructions before and after the material
        rubric = json.loads(by_role["rubric"][0]) if by_role["rubric"] else []
        if by_role["criterion"]:
            reply = self._criterion(by_role["criterion"][0], by_role["assistant"])
        elif scorer.SCHEMA_VERSION in asked:
            scale = _numbers(SCALE, asked)
            reply = self._score(question, rubric, by_role["reference"], by_role["answer"], scale)
        elif by_role["rubric"]:
            reply = self._verify(rubric, by_role["answer"], forms.form_shown(asked), question, sample_index)
        elif not (by_role["reference"] or by_role["student"]):
            return self._reference(question, sample_index)
        elif static_rubric.SCHEMA_VERSION in asked:
            rows = self._static(question, _references(user), _numbers(SIZE, asked))
            reply = {"schema_version": static_rubric.SCHEMA_VERSION, "rubrics": rows}
        else:
            reply = self._rubric(question, _references(user), by_role["student"], _numbers(SIZE, asked))
        token = REPLY_TOKEN.search(asked)
        return _json(reply | {TOKEN_KEY: token[1]} if token else reply)

    def _reference(self, question: str, sample_index: int) -> str:
        def slip(step: int) -> int:
            if not self._slip_rate or tasks.uniform("slip", question, sample_index, step) >= self._slip_rate:
                return 0
            wrong = (-10, -2, -1, 1, 2, 10)
            return wrong[int(tasks.uniform("size", question, sample_index, step) * len(wrong))]

        if task := instructions.read(question):
            return instructions.write(task, sample_index, slip)
        worked = tasks.solve(question, self._answer_key, slip)
        if worked is None:
            raise ConfigurationError(
                f"the scripted teacher cannot solve {' '.join(question.split())[:120]!r}; it supports chain sums, "
                "products, gcd, linear equations, texts with checkable rules (data.source='instructions'), "
                "and the exercises in teacher.scripted.answer_key. Give it an "
                "answer key (JSONL with question and solution), or set teacher.provider to 'gemini' or 'openai'",
                cause="unknown_question",
            )
        return tasks.write(worked, sample_index, self._style)

    def _static(self, question: str, references: list[str], size: tuple[int, int]) -> list[dict]:
        """Criteria in RaR's categories."""
        if task := instructions.read(question):
            return criteria.static_rows(instructions.induce(task, (), size[1]))
        return criteria.induce_static(references, *size)

    def _rubric(self, question: str, references: list[str], students: list[str], size: tuple[int, int]) -> dict:
        if task := instructions.read(question):
            rows = instructions.induce(task, students, size[1])
        else:
            rows = criteria.induce(references or students, students, *size)
        total = sum(row["points"] for row in rows)
        return {"schema_version": rubricator.SCHEMA_VERSION, "rubrics": rows, "maximum_score": total}

    def _score(
        self, question: str, rubric: list[dict], references: list[str], answers: list[str], scale: tuple[int, int]
    ) -> dict:
        """Scores for whole answers: by the rubric's categories, else by the references, else by its own solution.

        Its own solution can contain slips, like its references.
        """
        lowest, highest = scale
        labelled = [self._truths.share(question, answer) for answer in answers]
        task = instructions.read(question)
        if not references and not rubric and task is None and None in labelled:
            references = [self._reference(question, OWN_SOLUTION)]
        shares = []
        for answer, known in zip(answers, labelled, strict=True):
            if known is not None:
                share = known
            elif rubric:
                weights = [static_rubric.TENTHS.get(row["category"], 1) for row in rubric]
                held = [bool(criteria.check(row["criterion"], answer)) for row in rubric]
                share = sum(w for w, ok in zip(weights, held, strict=True) if ok) / sum(weights)
            elif task is not None:
                share = instructions.quality(task, answer)
            else:
                share = criteria.quality(answer, references)
            if self._wrong_rate and tasks.uniform("wrong", answer, question) < self._wrong_rate:
                share = 1 - share
            shares.append(share)
        if self._noise is not None and self._noise.grades is not None:
            shares = self._noise.grades.apply(question, answers, shares)
        rows = []
        for place, (answer, share) in enumerate(zip(answers, shares, strict=True)):
            if self._bias:
                share = self._bias.share(Shown(question, answer, place, len(answers)), share)
            rows.append({"answer_index": place + 1, "score": lowest + round(share * (highest - lowest))})
        return {"schema_version": scorer.SCHEMA_VERSION, "answers": rows}

    def _criterion(self, shown: str, turns: list[str]) -> dict:
        """Answers HealthBench's question: does the last answer in a conversation meet one criterion, ``[5] text``?

        It can decide only its own wordings. Any other criterion is not met.
        """
        text = POINTS.sub("", shown)
        met = bool(criteria.check(text, turns[-1] if turns else ""))
        if self._wrong_rate and tasks.uniform("wrong", turns[-1:], text) < self._wrong_rate:
            met = not met
        return {"explanation": "by rule", "criteria_met": met}

    def _verify(
        self, rubric: list[dict], answers: list[str], form: forms.Form, question: str, sample_index: int
    ) -> dict:
        rows = []
        known = self._truths.rows(question, [row["criterion"] for row in rubric], answers, sample_index)
        wordings = [row["criterion"] for row in rubric]
        for place, (answer, held) in enumerate(zip(answers, known, strict=True)):
            if self._bias:
                held = self._bias.verdicts(Shown(question, answer, place, len(answers)), wordings, held)
            verdicts = []
            for row, verdict in zip(rubric, held, strict=True):
                drawn = tasks.uniform("wrong", answer, row["criterion"]) if self._wrong_rate else 1.0
                verdicts.append(not verdict if drawn < self._wrong_rate and verdict is not None else verdict)
            rows.append(verdicts)
        return form.write([row["criterion_id"] for row in rubric], rows, "by rule")


def fault_error(kind: str, model: str) -> TeacherError:
    """The typed failure that a provider's client raises for an HTTP fault."""
    status, code, message = FAULTS[kind]
    after = RETRY_AFTER_S if status == 429 else None
    return error_for_status(status, message, provider="scripted", model=model, code=code, retry_after=after)


def corrupted(reply: ChatReply, kind: str | None) -> ChatReply:
    """The reply with its text corrupted according to ``kind``."""
    if kind == "broken_json":
        return ChatReply(reply.text[: len(reply.text) // 2], reply.finish_reason, reply.usage, reply.model)
    if kind == "empty":
        return ChatReply("", reply.finish_reason, reply.usage, reply.model)
    if kind == "prose":
        return ChatReply("All of them look fine to me.", reply.finish_reason, reply.usage, reply.model)
    if kind in ("answer_missing", "verdict_short", "wrong_index") and '"answers"' in reply.text:
        body = json.loads(reply.text)
        rows = body["answers"]
        if isinstance(rows, dict):
            body["answers"] = _corrupted_keys(rows, kind)
        elif kind == "answer_missing":
            rows.pop(len(rows) // 2)
        elif kind == "verdict_short":
            rows[-1]["judgement"].pop()
        else:
            rows[0]["answer_index"] = len(rows) + 1
        return ChatReply(_json(body), reply.finish_reason, reply.usage, reply.model)
    return reply


def _corrupted_keys(rows: dict[str, dict], kind: str) -> dict[str, dict]:
    """Entries by answer: without the middle one, with one verdict less in the last, or with an unknown number."""
    names = list(rows)
    if kind == "answer_missing":
        del rows[names[len(names) // 2]]
    elif kind == "verdict_short":
        last = rows[names[-1]]
        last.get("verdicts", last).popitem()
    else:
        return {str(len(names) + 1): rows[names[0]]} | {name: rows[name] for name in names[1:]}
    return rows


def _numbers(pattern: re.Pattern[str], asked: str) -> tuple[int, int]:
    """The two numbers in the request, or the rubricator's bounds if the template has none."""
    found = pattern.search(asked)
    if found:
        return int(found[1]), int(found[2])
    return rubricator.MIN_CRITERIA, rubricator.MAX_CRITERIA


def _references(user: list[str]) -> list[str]:
    """The references in the first message that shows some, each as often as it was given."""
    return next((found for text in user if (found := rubricator.read_references(text))), [])


def _identity(request: ChatRequest) -> list:
    return [[m.role, m.content] for m in request.messages] + [request.sample_index]


def _json(value: dict) -> str:
    return json.dumps(value, ensure_ascii=False)
