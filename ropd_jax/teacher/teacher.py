"""The teacher of a run: references, one rubric a prompt, verdicts, through any ``ChatClient``.

    references(prompt)                        m samples of the teacher's own answer
    induce_rubric(prompt, references, texts)  4..12 weighted criteria from the contrast (Eq. 3)
    verify(prompt, rubric, texts, key=...)    true/false of each criterion for each text (Eq. 4)
    score(prompt, texts, key=..., ...)        one grade for each text, for the methods that want no criteria

An unusable reply is answered with one re-ask that says what was wrong; after a reply that lacks verdicts, only the
answers without one are asked for again. What is over the model's context is asked for in parts, and an answer that is
too long alone is shown with its middle cut out, visibly. What then has no verdict is unscored with its cause. Every
other failure is raised as a ``TeacherError``; ``ConfigurationError`` must stop the run.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

from ropd_jax.teacher.clients.client import (
    ChatClient,
    ChatRequest,
    ConfigurationError,
    ContextError,
    MalformedError,
    Purpose,
    TeacherError,
)
from ropd_jax.teacher.roles import fences, rubricator, scorer, static_rubric, templates, verifier
from ropd_jax.teacher.roles import references as reference_role
from ropd_jax.teacher.roles.references import Reference
from ropd_jax.teacher.roles.verifier import Marks
from ropd_jax.teacher.rubric_store import RubricStore
from ropd_jax.teacher.tape.reference_index import TeacherIndex
from ropd_jax.teacher.tape.store import Tape
from ropd_jax.teacher.traffic.budget import Budget
from ropd_jax.teacher.traffic.stats import TeacherStats
from ropd_jax.types import Message, Prompt, Rubric, Verdicts

T = TypeVar("T")
TEMPLATES = {
    "reference": reference_role.TEMPLATE,
    "rubric": rubricator.TEMPLATE,
    "verify": verifier.TEMPLATE,
    "score": scorer.TEMPLATE,
    "judge": scorer.TEMPLATE,
}
REASK_TEMPLATE = "reask.v1"
VARIANTS = (  # asked for by name, by methods and ablations
    rubricator.ALONE_TEMPLATE,
    static_rubric.TEMPLATE,
    verifier.TOLD_TEMPLATE,
    *scorer.VARIANTS,
)
_QUOTED = 4_000  # characters of an unusable reply that are shown back to its author


@dataclasses.dataclass(frozen=True)
class Role:
    """How one role is asked: the provider's model name, temperature (None: the provider's default), reply limit.

    ``template`` is a prompt's name in ``prompts/`` or the path of a .md file; "" is the role's own.
    """

    model: str = "scripted"
    temperature: float | None = None
    max_output_tokens: int = 4096
    template: str = ""


class Teacher:
    """References, rubrics and verdicts by one client. All methods run on one event loop.

    Args:
        client: any ``ChatClient``; wrap it in ``LimitedClient`` (``make_client`` does). ``Routes`` joins several.
        reference, rubric, verify, score, judge: how each is asked. Of several references, number i % n gives sample i.
        references_m: samples of the teacher's own answer a prompt.
        max_answer_chars: an answer or reference longer than this is shown with its middle cut out; 0 never.
        repeat_frac: share of groups that are verified twice, with another order, for the health of the criteria.
        store: the rubrics that may be used again; None uses none again.
        index: references asked for ahead of time; they are then asked of nobody.
        seed: of the fences and of the order in which answers are shown.
        stats: counters to write to; share them with the ``LimitedClient`` to see retries.
        budget: the spending, if the client counts it (``MeteredClient``).
        tape, refreshes: what the client records on, and whether it overwrites; see `teacher.together`.
    """

    def __init__(
        self,
        client: ChatClient,
        *,
        reference: Role | Sequence[Role] | None = None,
        rubric: Role | None = None,
        verify: Role | None = None,
        score: Role | None = None,
        judge: Role | None = None,
        references_m: int = 4,
        max_answer_chars: int = 0,
        repeat_frac: float = 0.0,
        store: RubricStore | None = None,
        index: TeacherIndex | None = None,
        seed: int = 0,
        stats: TeacherStats | None = None,
        budget: Budget | None = None,
        tape: Tape | None = None,
        refreshes: bool = False,
    ):
        if references_m < 1:
            raise ConfigurationError(f"teacher.references is {references_m}; expected at least 1")
        self.client = client
        self.stats = stats if stats is not None else TeacherStats()
        self.budget = budget
        self.tape, self.refreshes = tape, refreshes
        self.elsewhere: list[TeacherStats] = []  # the counters of the other hosts, at the last meeting
        self.told = (0, 0)  # up to here the others know the tape
        if not 0.0 <= repeat_frac <= 1.0:
            raise ConfigurationError(f"teacher.health.repeat_frac is {repeat_frac}; expected a share from 0 to 1")
        sources = (reference,) if isinstance(reference, Role) else tuple(reference or ())
        self.sources = sources or (Role(temperature=0.7, max_output_tokens=8192),)
        self.roles = {
            "reference": self.sources[0],
            "rubric": rubric or Role(temperature=0.7, max_output_tokens=8192),
            "verify": verify or Role(temperature=0.0, max_output_tokens=4096),
            "score": score or Role(temperature=0.0, max_output_tokens=4096),
            "judge": judge or Role(temperature=0.0, max_output_tokens=4096),
        }
        if max_answer_chars and max_answer_chars < fences.MIN_CUT:
            raise ConfigurationError(
                f"teacher.max_answer_chars is {max_answer_chars}; expected at least {fences.MIN_CUT}, or 0 for no cut"
            )
        self._m = references_m
        self._max_chars = max_answer_chars
        self._seed = self.seed = seed
        self.repeat_frac = repeat_frac
        self.store = store if store is not None else RubricStore()
        self.index = index
        for role in TEMPLATES:  # a template that cannot work is found now, not at the first call
            templates.check(role, self.template_id(role).rpartition("@")[0])

    @classmethod
    def from_config(
        cls,
        cfg: Any,
        *,
        seed: int = 0,
        answer_key: Iterable[tuple[str, str]] | None = None,
        share: float = 1.0,
        host: int = 0,
        workdir: str | os.PathLike[str] | None = None,
        needs: Collection[str] = ("reference", "rubric", "verify"),
    ) -> Teacher:
        """The teacher that ``cfg.teacher`` describes (a ConfigDict or plain mapping with all keys of the default).

        Args:
            seed: see the class.
            answer_key: (question, worked solution) pairs for the scripted teacher, in place of ``scripted.answer_key``.
            share: this host's part of the limits, 1/N with N hosts.
            host: which of them it is; each has a tape and a file of its spending.
            workdir: where the tape lies if ``teacher.tape.path`` is ""; without both there is none.
            needs: the roles that will be asked; the others need no key.

        Raises:
            ConfigurationError: no API key, unknown provider, an answer key that cannot be read.
        """
        from ropd_jax.teacher.build import build_teacher

        how = dict(seed=seed, answer_key=answer_key, share=share, host=host, workdir=workdir, needs=needs)
        return build_teacher(cls, cfg["teacher"], **how)

    @property
    def prompt_shas(self) -> dict[str, str]:
        """Content hash of each prompt template in use, by its name."""
        return dict(self.template_id(role).rsplit("@", 1) for role in (*TEMPLATES, "reask"))

    def template_id(self, role: str) -> str:
        """Name and content hash of a role's prompt, ``verifier.v1@3f2a...``."""
        own = REASK_TEMPLATE if role == "reask" else self.roles[role].template or TEMPLATES[role]
        return f"{own}@{templates.prompt_sha(own)}"

    def check_references(self, prompts: Iterable[Prompt]) -> None:
        """Raise ``ConfigurationError`` if the index lacks references of some prompt; no index lacks nothing."""
        if self.index is not None:
            self.index.check_covers(prompts, self._m)

    async def references(self, prompt: Prompt) -> tuple[str, ...]:
        """The texts of ``reference_samples``."""
        return tuple(text for text, _ in await self.reference_samples(prompt))

    async def reference_samples(self, prompt: Prompt, indices: Iterable[int] | None = None) -> tuple[Reference, ...]:
        """The teacher's own answers to the prompt with the model of each, in the order of their sample index.

        From the index where there is one. Else samples that failed are left out and counted; equal ones are kept and
        counted.

        Args:
            indices: the samples that are wanted; None is 0..m-1.

        Raises:
            ConfigurationError: at once. TeacherError: the first failure, if no sample came back.
        """
        if self.index is not None and indices is None:
            return self.index.references(prompt, self._m)
        wanted = list(range(self._m)) if indices is None else list(indices)
        results = await asyncio.gather(*(self._reference(prompt, i) for i in wanted), return_exceptions=True)
        failures = [r for r in results if isinstance(r, BaseException)]
        for failure in failures:
            if isinstance(failure, ConfigurationError) or not isinstance(failure, TeacherError):
                raise failure
        samples = tuple(r for r in results if isinstance(r, Reference))
        if not samples:
            raise failures[0]
        self.stats.duplicate_references += len(samples) - len({r.text for r in samples})
        return samples

    async def induce_rubric(
        self,
        prompt: Prompt,
        references: Sequence[str],
        answers: Sequence[str],
        *,
        size: tuple[int, int] = (rubricator.MIN_CRITERIA, rubricator.MAX_CRITERIA),
    ) -> Rubric:
        """One rubric for the prompt from the contrast of references and the student's answers (Eq. 3).

        Args:
            answers: none of them asks for a rubric from the references alone.
            size: fewest and most criteria.

        Raises:
            MalformedError: neither the reply nor the answer to the re-ask was a rubric. Other ``TeacherError``.
        """

        async def ask(texts: list[str]) -> Rubric:
            shown = texts[: len(references)], texts[len(references) :]
            request = rubricator.rubric_request(
                prompt.question, *shown, **self._how("rubric"), seed=self._seed, size=size
            )
            return await self._ask(request, lambda text: rubricator.parse_rubric(text, size))

        return await self._fitting("rubric", [*references, *answers], ask)

    async def static_rubric(self, prompt: Prompt, references: Sequence[str]) -> Rubric:
        """One rubric from the question and its references alone, in the categories of RaR (`static_rubric`).

        Raises:
            as `induce_rubric`.
        """

        async def ask(texts: list[str]) -> Rubric:
            how = self._how("rubric") | {"template": ""}
            request = static_rubric.request(prompt.question, texts, **how, seed=self._seed)
            return await self._ask(request, static_rubric.parse)

        return await self._fitting("rubric", list(references), ask)

    async def verify(
        self,
        prompt: Prompt,
        rubric: Rubric,
        answers: Sequence[str],
        *,
        key: str,
        counted: bool = True,
        authors: Sequence[str] | None = None,
    ) -> Verdicts:
        """Verdicts of all ``answers`` (rollouts and references together), in their own order.

        They are shown shuffled by a hash of (seed, key, text, index), and unlabelled unless ``authors`` says who wrote
        each. Answers that the first reply left without a verdict are asked for once more, alone.

        Raises:
            TeacherError: the first question gave nothing usable. Later failures only leave answers unscored.
        """

        async def ask(texts: list[str], places: Sequence[int], sample_index: int) -> Marks:
            wrote = None if authors is None else [authors[i] for i in places]
            request = verifier.verify_request(
                prompt.question, rubric, texts, **self._how("verify"), seed=self._seed, authors=wrote
            )
            request = dataclasses.replace(request, sample_index=sample_index)
            found = await self._ask(request, lambda text: verifier.parse_verdicts(text, rubric, len(texts)))
            return Marks(found.passed, found.causes)

        return Verdicts(*await self._marks("verify", answers, ask, key=key, counted=counted))

    async def score(
        self,
        prompt: Prompt,
        answers: Sequence[str],
        *,
        key: str,
        lowest: int,
        highest: int,
        template: str,
        references: Sequence[str] = (),
        rubric: Rubric | None = None,
        role: Purpose = "score",
    ) -> Marks:
        """One grade, an integer from ``lowest`` to ``highest``, for each answer; asked for as verdicts are.

        Args:
            template: the prompt of this kind of grade, unless the role names one of the user's.
            references: shown beside the answers, as references; not graded.
            rubric: what the grade is to be based on as a whole, its points included.
            role: who is asked: the scorer, or the ``judge`` from whom no reward comes.

        Raises:
            as `verify`.
        """

        async def ask(texts: list[str], places: Sequence[int], sample_index: int) -> Marks:
            how = self._how(role)
            how["template"] = how["template"] or template
            request = scorer.score_request(
                prompt.question, texts, references=references, rubric=rubric, lowest=lowest, highest=highest, **how,
                seed=self._seed,
            )  # fmt: skip
            request = dataclasses.replace(request, purpose=role, sample_index=sample_index)
            return await self._ask(request, lambda text: scorer.parse_scores(text, len(texts), lowest, highest))

        return await self._marks(role, answers, ask, key=key)

    async def _marks(
        self,
        purpose: Purpose,
        answers: Sequence[str],
        ask: Callable[[list[str], Sequence[int], int], Awaitable[Marks]],
        *,
        key: str,
        counted: bool = True,
    ) -> Marks:
        """Marks of all answers by ``ask(texts, their places, sample index)``; who is left without one is asked again.

        ``counted`` False counts nobody as unscored: a second look leaves no answer so.
        """
        if not answers:
            return Marks((), ())
        order = verifier.shuffled(answers, seed=self._seed, key=key)
        first = await self._in_parts(purpose, answers, order, ask, 0)
        values: list[Any] = [None] * len(answers)
        causes: list[str | None] = [None] * len(answers)
        for place, index in enumerate(order):
            values[index], causes[index] = first.values[place], first.causes[place]
        missing = [i for i in order if values[i] is None]
        if missing:
            self.stats.count("reasks", purpose)
            try:
                second = await self._in_parts(purpose, answers, missing, ask, 1)
            except ConfigurationError:
                raise
            except TeacherError as e:
                second = Marks((None,) * len(missing), (e.cause,) * len(missing))
            for place, index in enumerate(missing):
                values[index], causes[index] = second.values[place], second.causes[place]
        for cause in causes:
            if cause is not None and counted:
                self.stats.count("unscored", cause)
        return Marks(tuple(values), tuple(causes))

    async def _in_parts(self, purpose: Purpose, answers: Sequence[str], places: Sequence[int], ask, sample_index: int):
        """``ask`` for some answers; over the context, for each half alone, and for one answer with its middle cut.

        ``sample_index`` 1 makes the second question another request, where no answer had a mark in the first.
        """
        texts = [answers[i] for i in places]
        if len(texts) == 1:
            return await self._fitting(purpose, texts, lambda shown: ask(shown, places, sample_index))
        try:
            return await ask(self._cut(purpose, texts, self._max_chars), places, sample_index)
        except ContextError:
            self.stats.count("reasks", purpose)
        middle = len(places) // 2
        parts = (places[:middle], places[middle:])
        asked = (self._in_parts(purpose, answers, part, ask, sample_index) for part in parts)
        results = await asyncio.gather(*asked, return_exceptions=True)
        return verifier.joined([len(part) for part in parts], results)

    async def ask(self, request: ChatRequest, parse: Callable[[str], T]) -> T:
        """Any other question to one of the roles: what ``parse`` makes of the reply, after one re-ask if need be.

        Raises:
            TeacherError: the call failed, or ``parse`` raised ``MalformedError`` twice.
        """
        return await self._ask(request, parse)

    async def close(self) -> None:
        """Close the client."""
        await self.client.close()
        if self.budget is not None and self.budget.total().calls:
            self.budget.save()

    def state(self) -> dict:
        """JSON-able state for a checkpoint: the counters, the spending and the rubrics that may be used again.

        Of several hosts together; see `restore`.
        """
        stats = self.stats.plus(self.elsewhere).as_dict()
        spent = None if self.budget is None else self.budget.state()
        return {"version": 1, "stats": stats, "store": self.store.state(), "spent": spent}

    def restore(self, state: dict, *, host: int = 0) -> None:
        """Continue from ``state()``: host 0 with all that was counted, the others with the rubrics."""
        if "store" in state:  # not in checkpoints of version 0.1
            self.store.restore(state["store"])
        if host:
            return
        self.stats.restore(state["stats"])
        if self.budget is not None and state.get("spent"):
            self.budget.restore(state["spent"])

    def metrics(self, step: int | None = None) -> dict[str, float | None]:
        """The counters and the spending; with ``step``, what that step cost. Unknown is None."""
        spending = {} if self.budget is None else self.budget.as_metrics(step)
        return self.stats.plus(self.elsewhere).as_metrics() | spending

    def _how(self, role: str, sample_index: int = 0) -> dict:
        how = self.sources[sample_index % len(self.sources)] if role == "reference" else self.roles[role]
        return dataclasses.asdict(how)

    def reference_request(self, prompt: Prompt, index: int) -> ChatRequest:
        """The request for sample ``index`` of the teacher's own answers to the prompt."""
        how = self._how("reference", index)
        return reference_role.reference_request(prompt.question, **how, sample_index=index, seed=self._seed)

    async def _reference(self, prompt: Prompt, index: int) -> Reference:
        request = self.reference_request(prompt, index)
        text = await self._chat(request)
        try:
            return Reference(reference_role.parse_reference(text), request.model)
        except MalformedError as e:
            self.stats.count("failures", e.cause)
            raise

    async def _fitting(self, purpose: str, texts: Sequence[str], ask: Callable[[list[str]], Awaitable[T]]) -> T:
        """Ask with the texts; while they are over the context, with the middle of the longest ones cut out."""
        limit = self._max_chars
        while True:
            try:
                return await ask(self._cut(purpose, texts, limit))
            except ContextError:
                longest = max((len(t) for t in texts), default=0)
                limit = (min(limit, longest) if limit else longest) // 2
                if limit < fences.MIN_CUT:
                    raise
                self.stats.count("reasks", purpose)

    def _cut(self, purpose: str, texts: Sequence[str], limit: int) -> list[str]:
        if limit:
            for text in texts:
                if len(text) > limit:
                    self.stats.count("cut", purpose)
            return [fences.cut_middle(text, limit) for text in texts]
        return list(texts)

    async def _ask(self, request: ChatRequest, parse: Callable[[str], T]) -> T:
        """Chat and parse; after an unusable reply once more, with what was wrong."""
        text = await self._chat(request)
        try:
            return parse(text)
        except MalformedError as e:
            problem = str(e)
        self.stats.count("reasks", request.purpose)
        again = Message("user", templates.fill(REASK_TEMPLATE, problem=problem))
        said = (Message("assistant", fences.without_surrogates(text[:_QUOTED])),) if text.strip() else ()
        text = await self._chat(dataclasses.replace(request, messages=(*request.messages, *said, again)))
        try:
            return parse(text)
        except MalformedError as e:
            self.stats.count("failures", e.cause)
            raise

    async def _chat(self, request: ChatRequest) -> str:
        try:
            reply = await self.client.chat(request)
        except TeacherError as e:
            self.stats.count("failures", e.cause)
            raise
        self.stats.called(request.purpose, reply)
        return reply.text
