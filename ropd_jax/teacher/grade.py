"""The teacher of a run: references, one rubric a prompt, verdicts, through any ``ChatClient``.

    references(prompt)                        m samples of the teacher's own answer
    induce_rubric(prompt, references, texts)  4..12 weighted criteria from the contrast (Eq. 3)
    verify(prompt, rubric, texts, key=...)    true/false of each criterion for each text (Eq. 4)

An unusable reply is answered with one re-ask that says what was wrong; after a reply that lacks verdicts, only the
answers without one are asked for again. What then has no verdict is unscored with its cause. Every other failure is
raised as a ``TeacherError``; ``ConfigurationError`` must stop the run.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from ropd_jax.teacher import fences, rubricator, templates, verifier
from ropd_jax.teacher import references as reference_role
from ropd_jax.teacher.client import ChatClient, ChatRequest, ConfigurationError, MalformedError, TeacherError
from ropd_jax.teacher.stats import TeacherStats
from ropd_jax.types import Message, Prompt, Rubric, Verdicts

T = TypeVar("T")
REASK_TEMPLATE = "reask.v1"
_QUOTED = 4_000  # characters of an unusable reply that are shown back to its author


@dataclasses.dataclass(frozen=True)
class Role:
    """How one role is asked: the provider's model name, temperature (None: the provider's default), reply limit."""

    model: str = "scripted"
    temperature: float | None = None
    max_output_tokens: int = 4096


class Teacher:
    """References, rubrics and verdicts by one client. All methods run on one event loop.

    Args:
        client: any ``ChatClient``; wrap it in ``RetryingClient`` (``make_client`` does).
        reference, rubric, verify: how each role is asked.
        references_m: samples of the teacher's own answer a prompt.
        seed: of the fences and of the order in which answers are shown.
        stats: counters to write to; share them with the ``RetryingClient`` to see retries.
    """

    def __init__(
        self,
        client: ChatClient,
        *,
        reference: Role | None = None,
        rubric: Role | None = None,
        verify: Role | None = None,
        references_m: int = 4,
        seed: int = 0,
        stats: TeacherStats | None = None,
    ):
        if references_m < 1:
            raise ConfigurationError(f"teacher.references is {references_m}; expected at least 1")
        self.client = client
        self.stats = stats if stats is not None else TeacherStats()
        self.roles = {
            "reference": reference or Role(temperature=0.7, max_output_tokens=8192),
            "rubric": rubric or Role(temperature=0.7, max_output_tokens=8192),
            "verify": verify or Role(temperature=0.0, max_output_tokens=4096),
        }
        self._m = references_m
        self._seed = seed

    @classmethod
    def from_config(cls, cfg: Any, *, seed: int = 0, book: Iterable[tuple[str, str]] | None = None) -> Teacher:
        """The teacher that ``cfg.teacher`` describes (a ConfigDict or plain mapping with all keys of the default).

        Args:
            seed: see the class.
            book: (question, worked solution) pairs for the scripted teacher, in place of ``scripted.book``.

        Raises:
            ConfigurationError: no API key, unknown provider, a book that cannot be read.
        """
        from ropd_jax.teacher.make import make_client

        t = cfg["teacher"]
        stats = TeacherStats()
        client = make_client(
            provider=t["provider"],
            base_url=t["base_url"],
            api_key_env=t["api_key_env"],
            concurrency=t["concurrency"],
            timeout_s=t["timeout_s"],
            attempts=t["attempts"],
            scripted=dict(t["scripted"]) | ({} if book is None else {"book": book}),
            stats=stats,
        )
        roles = {
            name: Role(t[key]["model"], t[key]["temperature"], t[key]["max_output_tokens"])
            for name, key in (("reference", "reference"), ("rubric", "rubricator"), ("verify", "verifier"))
        }
        return cls(client, **roles, references_m=t["references"], seed=seed, stats=stats)

    @property
    def prompt_shas(self) -> dict[str, str]:
        """Content hash of each prompt template in use, by its name."""
        names = (reference_role.TEMPLATE, rubricator.TEMPLATE, verifier.TEMPLATE, REASK_TEMPLATE)
        return {name: templates.prompt_sha(name) for name in names}

    async def references(self, prompt: Prompt) -> tuple[str, ...]:
        """The teacher's own answers to the prompt, in the order of their sample index 0..m-1.

        Samples that failed are left out and counted; equal ones are kept and counted.

        Raises:
            ConfigurationError: at once. TeacherError: the first failure, if no sample came back.
        """
        requests = [
            reference_role.reference_request(prompt.question, **self._how("reference"), sample_index=i, seed=self._seed)
            for i in range(self._m)
        ]
        results = await asyncio.gather(*(self._reference(r) for r in requests), return_exceptions=True)
        failures = [r for r in results if isinstance(r, BaseException)]
        for failure in failures:
            if isinstance(failure, ConfigurationError) or not isinstance(failure, TeacherError):
                raise failure
        texts = tuple(r for r in results if isinstance(r, str))
        if not texts:
            raise failures[0]
        self.stats.duplicate_references += len(texts) - len(set(texts))
        return texts

    async def induce_rubric(self, prompt: Prompt, references: Sequence[str], answers: Sequence[str]) -> Rubric:
        """One rubric for the prompt from the contrast of references and the student's answers (Eq. 3).

        Raises:
            MalformedError: neither the reply nor the answer to the re-ask was a rubric. Other ``TeacherError``.
        """
        request = rubricator.rubric_request(
            prompt.question, references, answers, **self._how("rubric"), seed=self._seed
        )
        return await self._ask(request, rubricator.parse_rubric)

    async def verify(self, prompt: Prompt, rubric: Rubric, answers: Sequence[str], *, key: str) -> Verdicts:
        """Verdicts of all ``answers`` (rollouts and references together), in their own order.

        They are shown shuffled by a hash of (seed, key, text, index) and unlabelled. Answers that the first reply
        left without a verdict are asked for once more, alone.

        Raises:
            TeacherError: the first question gave nothing usable. Later failures only leave answers unscored.
        """
        if not answers:
            return Verdicts((), ())
        order = verifier.shuffled(answers, seed=self._seed, key=key)
        first = await self._verify(prompt, rubric, [answers[i] for i in order])
        passed: list[tuple[bool, ...] | None] = [None] * len(answers)
        causes: list[str | None] = [None] * len(answers)
        for place, index in enumerate(order):
            passed[index], causes[index] = first.passed[place], first.causes[place]
        missing = [i for i in order if passed[i] is None]
        if missing:
            self.stats.count("reasks", "verify")
            try:
                second = await self._verify(prompt, rubric, [answers[i] for i in missing])
            except ConfigurationError:
                raise
            except TeacherError as e:
                second = Verdicts((None,) * len(missing), (e.cause,) * len(missing))
            for place, index in enumerate(missing):
                passed[index], causes[index] = second.passed[place], second.causes[place]
        for cause in causes:
            if cause is not None:
                self.stats.count("unscored", cause)
        return Verdicts(tuple(passed), tuple(causes))

    async def close(self) -> None:
        """Close the client."""
        await self.client.close()

    def state(self) -> dict:
        """JSON-able state for a checkpoint: the counters."""
        return {"version": 1, "stats": self.stats.as_dict()}

    def restore(self, state: dict) -> None:
        """Continue from ``state()``."""
        self.stats.restore(state["stats"])

    def _how(self, role: str) -> dict:
        return dataclasses.asdict(self.roles[role])

    async def _reference(self, request: ChatRequest) -> str:
        text = await self._chat(request)
        try:
            return reference_role.parse_reference(text)
        except MalformedError as e:
            self.stats.count("failures", e.cause)
            raise

    async def _verify(self, prompt: Prompt, rubric: Rubric, shown: Sequence[str]) -> Verdicts:
        request = verifier.verify_request(prompt.question, rubric, shown, **self._how("verify"), seed=self._seed)
        return await self._ask(request, lambda text: verifier.parse_verdicts(text, rubric, len(shown)))

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
