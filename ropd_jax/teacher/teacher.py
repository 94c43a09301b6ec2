"""The teacher of a run: the four questions of a run, through any ``ChatClient``.

    references(prompt)                        m samples of the teacher's own answer
    induce_rubric(prompt, references, texts)  4..12 weighted criteria from the contrast (Eq. 3)
    verify(prompt, rubric, texts, key=...)    true/false for each criterion and each text (Eq. 4)
    score(prompt, texts, key=..., ...)        one integer for each text, for the methods without criteria

`asking` describes what happens if a reply is unusable or a request exceeds the context. An answer that ends without a
verdict or score is unscored and carries the cause. Every other failure is raised as a ``TeacherError``; a
``ConfigurationError`` must stop the run.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ropd_jax.teacher.asking import REASK_TEMPLATE, Asker
from ropd_jax.teacher.blocking import Blocking
from ropd_jax.teacher.clients.chat import ChatClient, ChatRequest, Purpose
from ropd_jax.teacher.clients.errors import ConfigurationError, MalformedError, TeacherError
from ropd_jax.teacher.panel import Panel
from ropd_jax.teacher.roles import references as reference_role
from ropd_jax.teacher.roles import rubricator, scorer, static_rubric, templates, thinking, verifier
from ropd_jax.teacher.roles.json_reply import token_of
from ropd_jax.teacher.roles.marks import Marks
from ropd_jax.teacher.roles.references import Reference
from ropd_jax.teacher.roles.role import Role
from ropd_jax.teacher.roles.votes import majority
from ropd_jax.teacher.rubric_store import RubricStore
from ropd_jax.teacher.screened import screened_rubric
from ropd_jax.teacher.tape.reference_index import TeacherIndex
from ropd_jax.teacher.tape.store import Tape
from ropd_jax.teacher.traffic.budget import Budget
from ropd_jax.teacher.traffic.stats import TeacherStats
from ropd_jax.types import Prompt, Rubric, Verdicts

T = TypeVar("T")
TEMPLATES = {
    "reference": reference_role.TEMPLATE,
    "rubric": rubricator.TEMPLATE,
    "verify": verifier.TEMPLATE,
    "score": scorer.TEMPLATE,
    "judge": scorer.TEMPLATE,
}
VARIANTS = (  # prompts that methods and ablations select by name
    rubricator.REFERENCES_TEMPLATE,
    static_rubric.TEMPLATE,
    verifier.LABELLED_TEMPLATE,
    *scorer.VARIANTS,
)


class Teacher:
    """References, rubrics, verdicts and scores from one client. All methods run on one event loop.

    The path of one question::

        verify(prompt, rubric, answers)
          | panel.py            a question for each vote of each verifier               <- all votes
          | roles/verifier.py   builds the prompt: answers shuffled, fenced, numbered <- parses the reply, unshuffles
          | asking.py           one re-ask, repeats for missing answers, halves, cuts <- counts unusable replies
          | traffic/router.py   the client of this role (if roles differ in provider)
          | tape/client.py      returns the answer if it is recorded                  <- records it
          | traffic/retries.py  queue, slots, rates, time limit, retries
          | traffic/budget.py   stops at a cap                                        <- counts tokens and dollars
          v clients/*.py        one HTTP request                                      <- text, or a typed error

    Args:
        client: any ``ChatClient``; wrap it in ``LimitedClient`` (``make_client`` does). ``Routes`` joins several.
        reference, rubric, verify, score, judge: model and settings of each role. With n reference roles, sample i comes
            from number i % n. Several verify roles form a panel: each one votes on everything.
        asking: the request form of the verifier, and how much goes into one call; None is the default.
        references_m: number of the teacher's own answers to each prompt.
        max_answer_chars: an answer or reference longer than this is shown with its middle cut out; 0 never cuts.
        screen_criteria: drop criteria that must not count (`roles.screening`), after one re-ask.
        repeat_frac: share of groups that are verified twice, in another order, to measure the criteria's health.
        store: keeps the rubrics that can be reused; None reuses none.
        index: references collected ahead of time; the teacher then never requests any.
        seed: for the fences and the order in which answers are shown.
        stats: counters to write to; share them with the ``LimitedClient`` to count retries.
        budget: the spending, if the client counts it (``MeteredClient``).
        tape, refreshes: the tape of the client, and True if it overwrites entries; see `teacher.sync`.

    Raises:
        ConfigurationError: a number is out of range, or a template lacks a placeholder.
    """

    def __init__(
        self,
        client: ChatClient,
        *,
        reference: Role | Sequence[Role] | None = None,
        rubric: Role | None = None,
        verify: Role | Sequence[Role] | None = None,
        score: Role | None = None,
        judge: Role | None = None,
        asking: verifier.Asking | None = None,
        references_m: int = 4,
        max_answer_chars: int = 0,
        screen_criteria: bool = True,
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
        if not 0.0 <= repeat_frac <= 1.0:
            raise ConfigurationError(f"teacher.health.repeat_frac is {repeat_frac}; expected a share from 0 to 1")
        self.sources = _several(reference) or (Role(temperature=0.7, max_output_tokens=8192),)
        members = _several(verify) or (Role(temperature=0.0, max_output_tokens=4096),)
        self.roles = {
            "reference": self.sources[0],
            "rubric": rubric or Role(temperature=0.7, max_output_tokens=8192),
            "verify": members[0],
            "score": score or Role(temperature=0.0, max_output_tokens=4096),
            "judge": judge or Role(temperature=0.0, max_output_tokens=4096),
        }
        self.asking = asking or verifier.Asking()
        self.stats = stats if stats is not None else TeacherStats()
        self._asker = Asker(client, self.stats, seed=seed, max_answer_chars=max_answer_chars)
        self.panel = Panel(members, self.asking, self._asker, seed=seed)
        self.references_m = references_m
        self.seed = seed
        self.screen_criteria = screen_criteria
        self.repeat_frac = repeat_frac
        self.store = store if store is not None else RubricStore()
        self.index = index
        self.budget = budget
        self.tape, self.refreshes = tape, refreshes
        self._blocking: Blocking | None = None
        self.remote: list[TeacherStats] = []  # the counters of the other hosts at the last sync
        self.synced_upto = (0, 0)  # position on the tape (see `Tape.end`) up to which other hosts have it
        for role in TEMPLATES:  # find a broken template now, not at the first call
            name = self.template_id(role).rpartition("@")[0]
            alone = role == "rubric" and name.startswith(("rubricator_references.", "rubric_static."))
            templates.check("rubric_alone" if alone else role, name)

    @property
    def client(self) -> ChatClient:
        """The client for every request. It can be replaced, for example by an ``ObservedClient`` that wraps it."""
        return self._asker.client

    @client.setter
    def client(self, client: ChatClient) -> None:
        self._asker.client = client

    @property
    def blocking(self) -> Blocking:
        """The same questions as blocking calls, for code that does not await; see `teacher.blocking`."""
        return self.on_own_thread()._blocking  # type: ignore[return-value]  # set by on_own_thread

    def on_own_thread(self) -> Teacher:
        """Moves the client to an event loop on its own thread, and returns the teacher itself. Idempotent.

        After that, the teacher's coroutines can be awaited on any loop, and `blocking` works as well.
        """
        if self._blocking is None:
            self._blocking = Blocking(self)
        return self

    @property
    def waiting_for(self) -> str:
        """What the calls wait for while a server is unreachable (`traffic.outage`); "" if none is."""
        return "; ".join(list(self.stats.waiting_for.values()))

    # ------------------------------------------------------------------------------------------------- templates

    @property
    def prompt_shas(self) -> dict[str, str]:
        """Content hash of each prompt template in use, by its name."""
        ids = (self.template_id(role) for role in (*TEMPLATES, "reask"))
        return {name: sha for name, _, sha in (i.rpartition("@") for i in ids)}

    def template_id(self, role: str, prompt: Prompt | None = None) -> str:
        """Name and content hash of a role's template, ``verifier.v3@3f2a...``; with ``prompt``, its source's."""
        own = REASK_TEMPLATE if role == "reask" else self.roles[role].template or TEMPLATES[role]
        own = (prompt.templates.get(role) if prompt else None) or own
        return f"{own}@{templates.prompt_sha(own)}"

    def check_templates(self, own: Mapping[str, str], where: str) -> None:
        """Raises if a prompt source has its own templates and one of them cannot work.

        Args:
            own: templates by role (``Prompt.templates``).
            where: the source, for the message.

        Raises:
            ConfigurationError: the template does not exist, lacks placeholders, or does not support the form.
        """
        for role, name in own.items():
            alone = role == "rubric" and name.startswith(("rubricator_references.", "rubric_static."))
            try:
                templates.check("rubric_alone" if alone else role, name)
                if role == "verify":
                    self.asking.check(name)
            except ConfigurationError as error:
                raise ConfigurationError(f"{where}: {error}", cause=error.cause) from error

    # ------------------------------------------------------------------------------------------------ references

    def check_tape(self) -> None:
        """Raises ``ConfigurationError`` if there is a tape and it is unusable. Does not create a tape."""
        if self.tape is not None:
            self.tape.check()

    def check_references(self, prompts: Iterable[Prompt]) -> None:
        """Raises ``ConfigurationError`` if there is an index and it lacks references for some prompt."""
        if self.index is not None:
            self.index.check_covers(prompts, self.references_m)

    async def references(self, prompt: Prompt) -> tuple[str, ...]:
        """The texts from ``reference_samples``."""
        return tuple(text for text, _ in await self.reference_samples(prompt))

    async def reference_samples(self, prompt: Prompt, indices: Iterable[int] | None = None) -> tuple[Reference, ...]:
        """The teacher's own answers to the prompt and their models, in the order of the sample index.

        They come from the index if there is one, without the thinking that a file from another program can contain.
        Otherwise, if a reply has no answer (`roles.references`), it is requested again with another seed, at most
        twice. Failed samples are left out and counted. Equal samples are kept and counted.

        Args:
            indices: the wanted samples; None means 0..m-1.

        Raises:
            ConfigurationError: a request cannot work; raised immediately.
            TeacherError: the first failure, if there is no sample.
        """
        results: Sequence[Reference | BaseException]
        if self.index is not None and indices is None:
            results = [
                self._collected(prompt, text, model) for text, model in self.index.references(prompt, self.references_m)
            ]
        else:
            wanted = list(range(self.references_m)) if indices is None else list(indices)
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

    def _collected(self, prompt: Prompt, text: str, model: str) -> Reference | MalformedError:
        try:
            return Reference(thinking.answer_of(text, prompt.question), model)
        except MalformedError as e:
            self.stats.count("failures", e.cause)
            return e

    def reference_request(self, prompt: Prompt, index: int, attempt: int = 0) -> ChatRequest:
        """The request for sample ``index`` of the teacher's own answers to the prompt.

        A later ``attempt`` asks the same model with another seed.
        """
        role = self.sources[index % len(self.sources)]
        sample = index + attempt * reference_role.SEED_STRIDE
        request = reference_role.reference_request(
            prompt.question, **role.wording(), sample_index=sample, seed=self.seed
        )
        return dataclasses.replace(request, extra=role.extra)

    async def _reference(self, prompt: Prompt, index: int) -> Reference:
        for attempt in range(reference_role.MORE_SEEDS + 1):
            try:
                return await self._sample(self.reference_request(prompt, index, attempt))
            except MalformedError as e:
                if e.cause not in reference_role.UNUSABLE or attempt == reference_role.MORE_SEEDS:
                    raise
                self.stats.count("reasks", "reference")
        raise AssertionError("the last attempt returns or raises")

    async def _sample(self, request: ChatRequest) -> Reference:
        text = await self._asker.chat(request)  # with a tape, this raises and counts an unusable reply
        try:
            return Reference(reference_role.parse_reference(text, request.messages[0].content), request.model)
        except MalformedError as e:
            self.stats.unusable.add("reference", str(e), text)
            self.stats.count("failures", e.cause)
            raise

    # --------------------------------------------------------------------------------------------------- rubrics

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
            answers: if empty, the rubric is induced from the references only.
            size: minimum and maximum number of criteria; fewer remain if some must not count (`roles.screening`), at
                least one.

        Raises:
            MalformedError: neither the reply nor the reply to the re-ask was a rubric, or no criterion counts (cause
                ``screened``).
            TeacherError: the call failed.
        """

        async def ask(texts: list[str]) -> Rubric:
            shown = texts[: len(references)], texts[len(references) :]
            how = self._how("rubric", prompt)
            request = rubricator.rubric_request(prompt.question, *shown, **how, seed=self.seed, size=size)
            request = dataclasses.replace(request, extra=self.roles["rubric"].extra)
            token = token_of(request.json_schema)
            return await self._rubric(prompt, request, lambda text: rubricator.parse_rubric(text, size, token))

        return await self._asker.fitting("rubric", [*references, *answers], ask)

    async def static_rubric(self, prompt: Prompt, references: Sequence[str]) -> Rubric:
        """One rubric from only the question and its references, in the categories of RaR (`static_rubric`).

        Raises:
            TeacherError: as `induce_rubric`.
        """

        async def ask(texts: list[str]) -> Rubric:
            how = self._how("rubric")
            own = prompt.templates.get("rubric", "")
            how["template"] = own or (how["template"] if how["template"].startswith("rubric_static.") else "")
            request = static_rubric.request(prompt.question, texts, **how, seed=self.seed)
            request = dataclasses.replace(request, extra=self.roles["rubric"].extra)
            token = token_of(request.json_schema)
            return await self._rubric(prompt, request, lambda text: static_rubric.parse(text, token))

        return await self._asker.fitting("rubric", list(references), ask)

    async def _rubric(self, prompt: Prompt, request: ChatRequest, parse: Callable[[str], Rubric]) -> Rubric:
        if self.screen_criteria:
            return await screened_rubric(self._asker, self.stats, prompt, request, parse)
        return await self.ask(request, parse)

    # --------------------------------------------------------------------------------------- verdicts and scores

    async def verify(
        self,
        prompt: Prompt,
        rubric: Rubric,
        answers: Sequence[str],
        *,
        key: str,
        counted: bool = True,
        look: int = 0,
        authors: Sequence[str] | None = None,
    ) -> Verdicts:
        """Verdicts on all ``answers`` (rollouts and references together), in the order of ``answers``.

        They are shown shuffled by a hash of (seed, key, text, index), in calls of ``asking.answers_per_call`` answers
        and ``asking.criteria_per_call`` criteria, which are sent in parallel. Answers without a verdict in the first
        reply are requested once more, without the others. With several votes, from one verifier or a panel, the
        majority counts (`roles.votes`). An answer that lacks some of its verdicts is unscored.

        Args:
            key: determines the order; the same key shows the same answers in the same order.
            counted: see `Asker.marks`.
            look: 1 for a second look at the same answers, so that it does not get the replies of the first.
            authors: the author of each answer, shown to the verifier; None shows them unlabelled, as in the paper.

        Raises:
            TeacherError: no reply to the first question was usable. Later failures only leave answers unscored.
        """
        found = await self.panel.votes(prompt, rubric, answers, key=key, look=look, authors=authors)
        marks = found[0]
        agreement: tuple[float | None, ...] = ()
        if len(found) > 1:
            marks, agreement = majority(found, min_agreement=self.asking.min_agreement)
        if counted:
            self._asker.count_unscored(marks)
        return Verdicts(*marks, agreement)

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
        """One score for each answer, an integer from ``lowest`` to ``highest``; requested like verdicts.

        Args:
            template: the prompt for this kind of score, unless the role's config names another one.
            references: shown as references together with the answers; they are not scored.
            rubric: the basis of the score as a whole, including its points.
            role: ``score``, or ``judge`` for the held-out judge, which gives no rewards.

        Raises:
            TeacherError: as `verify`.
        """

        async def ask(texts: list[str], indices: Sequence[int], sample_index: int) -> Marks:
            how = self._how(role)
            how["template"] = how["template"] or template
            how["avoid"] = answers
            request = scorer.score_request(
                prompt.question, texts, references=references, rubric=rubric, lowest=lowest, highest=highest, **how,
                seed=self.seed,
            )  # fmt: skip
            extra = self.roles[role].extra
            request = dataclasses.replace(request, purpose=role, sample_index=sample_index, extra=extra)
            token = token_of(request.json_schema)
            return await self.ask(request, lambda text: scorer.parse_scores(text, len(texts), lowest, highest, token))

        return await self._asker.marks(role, answers, ask, key=key)

    async def ask(self, request: ChatRequest, parse: Callable[[str], T]) -> T:
        """Sends any other question to one of the roles; see `Asker.ask`.

        Raises:
            TeacherError: a call failed, or ``parse`` raised ``MalformedError`` twice.
        """
        return await self._asker.ask(request, parse)

    def _how(self, role: str, prompt: Prompt | None = None) -> dict[str, Any]:
        how = self.roles[role].wording()
        own = prompt.templates.get(role) if prompt else None
        return how | ({"template": own} if own else {})

    # ------------------------------------------------------------------------------------------- the run's state

    async def close(self) -> None:
        """Closes the client and writes the spending."""
        await self.client.close()
        if self.budget is not None and self.budget.total().calls:
            self.budget.save()

    def state(self) -> dict:
        """JSON-serializable state of all hosts for a checkpoint: counters, spending and reusable rubrics."""
        stats = self.stats.plus(self.remote).as_dict()
        spent = None if self.budget is None else self.budget.state()
        return {"version": 1, "stats": stats, "store": self.store.state(), "spent": spent}

    def restore(self, state: dict, *, host: int = 0) -> None:
        """Restores ``state()``: everything on host 0, only the rubrics on the other hosts."""
        if "store" in state:  # not in checkpoints of version 0.1
            self.store.restore(state["store"])
        if host:
            return
        self.stats.restore(state["stats"])
        if self.budget is not None and state.get("spent"):
            self.budget.restore(state["spent"])

    def metrics(self, step: int | None = None) -> dict[str, float | None]:
        """The counters and the spending of all hosts; with ``step``, also what that step cost. Unknown is None."""
        spending = {} if self.budget is None else self.budget.as_metrics(step)
        return self.stats.plus(self.remote).as_metrics() | spending


def _several(roles: Role | Sequence[Role] | None) -> tuple[Role, ...]:
    return (roles,) if isinstance(roles, Role) else tuple(roles or ())
