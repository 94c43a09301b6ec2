"""How a question is asked: split into calls, re-asked once, repeated for missing marks, halved, with texts cut.

What can happen to a question, and how it is handled::

    reply cannot be parsed        ask again once, quoting the reply and what was wrong     `Asker.ask`
    many answers                  ask in calls of at most ``answers_per_call``, together   `Asker.marks`
    some answers have no mark     ask again for those answers only                         `Asker.marks`
    request over the context      several answers: ask for each half                       `Asker.marks`
                                  one answer or a rubric: cut the middle out of the text   `Asker.fitting`
    anything else                 raised as a ``TeacherError``, counted by its cause

The first unparsable reply of each role is logged with its beginning. If the last reply refuses in plain
words, the cause is ``refused``.

Waiting and repeating failed calls is the job of `traffic.retries`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from ropd_jax.teacher.clients.chat import ChatClient, ChatRequest, Purpose
from ropd_jax.teacher.clients.errors import ConfigurationError, ContextError, MalformedError, TeacherError
from ropd_jax.teacher.roles import fences, templates
from ropd_jax.teacher.roles.marks import Marks, joined, shuffled
from ropd_jax.teacher.roles.references import refuses
from ropd_jax.teacher.traffic.stats import TeacherStats
from ropd_jax.teacher.traffic.unusable import beginning
from ropd_jax.types import Message

log = logging.getLogger(__name__)

T = TypeVar("T")
AskMarks = Callable[[list[str], Sequence[int], int], Awaitable[Marks]]  # (texts, their indices, sample index)
REASK_TEMPLATE = "reask.v1"
_QUOTED = 4_000  # characters of an unusable reply quoted in the re-ask
_REFUSAL_SHOWN = 200  # characters of a refusal shown in the error


class Asker:
    """Sends questions to a client; see the module's docstring.

    Args:
        client: makes the calls. It can be replaced between two questions.
        stats: where calls, re-asks, failures, cuts and unscored answers are counted.
        seed: for the order in which answers are shown.
        max_answer_chars: a text longer than this is shown with its middle cut out; 0 never cuts.

    Raises:
        ConfigurationError: ``max_answer_chars`` is too small to show anything.
    """

    def __init__(self, client: ChatClient, stats: TeacherStats, *, seed: int, max_answer_chars: int):
        if max_answer_chars and max_answer_chars < fences.MIN_CUT:
            raise ConfigurationError(
                f"teacher.max_answer_chars is {max_answer_chars}; expected at least {fences.MIN_CUT}, or 0 for no cut"
            )
        self.client = client
        self._stats = stats
        self._seed = seed
        self._max_chars = max_answer_chars

    async def chat(self, request: ChatRequest) -> str:
        """The text of one reply. Counts calls and failures.

        Raises:
            TeacherError: as the client does.
        """
        try:
            reply = await self.client.chat(request)
        except TeacherError as e:
            self._stats.count("failures", e.cause)
            self._stats.unusable.add(request.purpose, str(e))
            raise
        self._stats.called(request.purpose, reply)
        return reply.text

    async def ask(self, request: ChatRequest, parse: Callable[[str], T]) -> T:
        """The result of ``parse`` for the reply, or for the reply to one re-ask.

        The re-ask continues the conversation::

            (the request)
            assistant  (the unusable reply, at most 4,000 characters)
            user       (reask.v1 with the message of the ``MalformedError``)

        Raises:
            TeacherError: a call failed, or ``parse`` raised ``MalformedError`` twice; its cause is ``refused`` if the
                second reply is a refusal.
        """
        text = await self.chat(request)
        try:
            return parse(text)
        except MalformedError as e:
            problem, cause = str(e), e.cause
        self._note(request, problem, text, cause)
        self._stats.count("reasks", request.purpose)
        token = fences.token_in("\n".join(m.content for m in request.messages))  # the reply can quote an answer
        reask = Message("user", templates.fill(REASK_TEMPLATE, problem=fences.visible(problem, token)))
        quoted = (Message("assistant", fences.visible(text[:_QUOTED], token)),) if text.strip() else ()
        text = await self.chat(dataclasses.replace(request, messages=(*request.messages, *quoted, reask)))
        try:
            return parse(text)
        except MalformedError as e:
            error = e
        if error.cause == MalformedError.default_cause and refuses(text):
            said = " ".join(text.split())[:_REFUSAL_SHOWN]
            error = MalformedError(f"the model refused: {said!r}", cause="refused")
        self._note(request, str(error), text, error.cause)
        self._stats.count("failures", error.cause)
        raise error

    def _note(self, request: ChatRequest, problem: str, text: str, cause: str) -> None:
        """Adds an unusable reply to the table of failures, and logs the first one of each role."""
        if cause == "screened":  # the reply is usable, and such criteria are counted separately
            return
        if self._stats.unusable.add(request.purpose, problem, text):
            log.warning(
                "teacher: %s, model %s: a reply is unusable: %s. It begins: %s",
                request.purpose, request.model, problem, beginning(text) or "(empty)",
            )  # fmt: skip

    async def marks(
        self,
        purpose: Purpose,
        answers: Sequence[str],
        ask: AskMarks,
        *,
        key: str,
        counted: bool = True,
        answers_per_call: int = 0,
    ) -> Marks:
        """Marks of all answers, in the order of ``answers``. ``ask(texts, indices, sample_index)`` sends one question.

        Answers a b c d are shown as c a d b, and the first reply lacks a and b::

            ask([c, a, d, b], [2, 0, 3, 1], 0)  ->  c: 7  a: -  d: 4  b: -
            ask([a, b], [0, 1], 1)              ->  a: 5  b: -
            result                                  5, None (cause "missing"), 7, 4

        With 2 answers per call the first question is ``ask([c, a], [2, 0], 0)`` and ``ask([d, b], [3, 1], 0)``.

        Args:
            key: determines the order, together with the seed.
            counted: if False, no answer is counted as unscored, because a second look at a group leaves none unscored.
            answers_per_call: maximum answers per question; 0 means all.

        Raises:
            TeacherError: no reply to the first question was usable. Later failures only leave answers unscored.
        """
        if not answers:
            return Marks((), ())
        order = shuffled(answers, seed=self._seed, key=key)
        first = await self._in_calls(purpose, answers, order, ask, 0, answers_per_call)
        values: list[Any] = [None] * len(answers)
        causes: list[str | None] = [None] * len(answers)
        for place, index in enumerate(order):
            values[index], causes[index] = first.values[place], first.causes[place]
        missing = [i for i in order if values[i] is None]
        if missing:
            self._stats.count("reasks", purpose)
            try:
                # Sample index 1: if no answer got a mark, the texts are the same as in the first question, and a tape
                # would answer an identical request with the same reply.
                second = await self._in_calls(purpose, answers, missing, ask, 1, answers_per_call)
            except ConfigurationError:
                raise
            except TeacherError as e:
                second = Marks((None,) * len(missing), (e.cause,) * len(missing))
            for place, index in enumerate(missing):
                values[index], causes[index] = second.values[place], second.causes[place]
        found = Marks(tuple(values), tuple(causes))
        if counted:
            self.count_unscored(found)
        return found

    def count_unscored(self, marks: Marks) -> None:
        """Counts the answers without a mark by cause."""
        for cause in marks.causes:
            if cause is not None:
                self._stats.count("unscored", cause)

    async def fitting(self, purpose: str, texts: Sequence[str], ask: Callable[[list[str]], Awaitable[T]]) -> T:
        """Calls ``ask`` with the texts; while they exceed the context, halves the allowed length and cuts them to it.

        Raises:
            ContextError: the texts do not fit even if each is cut to ``fences.MIN_CUT`` characters.
        """
        limit = self._max_chars
        while True:
            try:
                return await ask(self._cut(purpose, texts, limit))
            except ContextError:
                longest = max((len(t) for t in texts), default=0)
                limit = (min(limit, longest) if limit else longest) // 2
                if limit < fences.MIN_CUT:
                    raise
                self._stats.count("reasks", purpose)

    async def _in_calls(
        self, purpose: Purpose, answers: Sequence[str], indices: Sequence[int], ask: AskMarks, sample: int, most: int
    ) -> Marks:
        """``ask`` for the answers at ``indices``, at most ``most`` per call (0: all), with all calls in parallel."""
        step = most or len(indices)
        calls = [indices[start : start + step] for start in range(0, len(indices), step)]
        return await self._together(calls, purpose, answers, ask, sample)

    async def _together(
        self, parts: Sequence[Sequence[int]], purpose: Purpose, answers: Sequence[str], ask: AskMarks, sample: int
    ) -> Marks:
        asked = (self._in_parts(purpose, answers, part, ask, sample) for part in parts)
        if len(parts) == 1:
            return await next(asked)
        results = await asyncio.gather(*asked, return_exceptions=True)
        return joined([len(part) for part in parts], results)

    async def _in_parts(
        self, purpose: Purpose, answers: Sequence[str], indices: Sequence[int], ask: AskMarks, sample_index: int
    ) -> Marks:
        """``ask`` for the answers at ``indices``; over the context, for each half, or one answer cut."""
        texts = [answers[i] for i in indices]
        if len(texts) == 1:
            return await self.fitting(purpose, texts, lambda shown: ask(shown, indices, sample_index))
        try:
            return await ask(self._cut(purpose, texts, self._max_chars), indices, sample_index)
        except ContextError:
            self._stats.count("reasks", purpose)
        middle = len(indices) // 2
        return await self._together((indices[:middle], indices[middle:]), purpose, answers, ask, sample_index)

    def _cut(self, purpose: str, texts: Sequence[str], limit: int) -> list[str]:
        if not limit:
            return list(texts)
        for text in texts:
            if len(text) > limit:
                self._stats.count("cut", purpose)
        return [fences.cut_middle(text, limit) for text in texts]
