"""The verifiers of a run: one model, or a panel of several. Each looks at all answers, and casts one vote or more.

members x votes      each a verdict on every criterion of every answer      `Panel.votes`
majority             one verdict of them all                                `roles.votes`
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Sequence

from ropd_jax.teacher.asking import Asker
from ropd_jax.teacher.clients.errors import ConfigurationError
from ropd_jax.teacher.roles import templates, verifier
from ropd_jax.teacher.roles.json_reply import token_of
from ropd_jax.teacher.roles.marks import Marks, beside
from ropd_jax.teacher.roles.role import Role
from ropd_jax.teacher.roles.votes import votes_of
from ropd_jax.types import Prompt, Rubric


class Panel:
    """One or several verifiers, all of which vote on everything.

    Args:
        members: the settings of each.
        asking: the request form, how much goes into one call, and the votes of each member.
        asker: sends the requests.
        seed: for the fences.

    Raises:
        ConfigurationError: a template lacks a placeholder or does not support the form, or a member would cast the same
            vote several times.
    """

    def __init__(self, members: Sequence[Role], asking: verifier.Asking, asker: Asker, *, seed: int):
        self.members, self._asking, self._asker, self._seed = tuple(members), asking, asker, seed
        for member in members:
            template = member.template or verifier.TEMPLATE
            templates.check("verify", template)
            asking.check(template)
            if asking.votes > 1 and member.temperature == 0:
                raise ConfigurationError(
                    f"teacher.verifier.votes is {asking.votes} at temperature 0, at which {member.model!r} gives "
                    "the same vote each time; set teacher.verifier.temperature (for example 0.7), or votes=1"
                )

    async def votes(
        self,
        prompt: Prompt,
        rubric: Rubric,
        answers: Sequence[str],
        *,
        key: str,
        look: int = 0,
        authors: Sequence[str] | None = None,
    ) -> list[Marks]:
        """The marks from each vote of each member, for `roles.votes.majority`.

        The sample index of vote v of member m of n is (2 v) n + m, and (2 v + 1) n + m for answers that are requested
        again. The votes of a second look come after those of the first if the requests would be the same.

        Args:
            key, look, authors: see `Teacher.verify`.

        Raises:
            TeacherError: the first failure, if every vote failed. A ``ConfigurationError`` immediately.
        """
        n, votes = len(self.members), self._asking.votes
        first = 2 * votes * n * look if self._asking.answers_per_call == 1 else 0
        asked = []
        for i in range(votes * n):
            vote, member = divmod(i, n)
            samples = first + 2 * vote * n + member, first + (2 * vote + 1) * n + member
            of_vote = f"{key}/vote{i}" if i else key
            role = self.members[member]
            asked.append(self._look(prompt, rubric, answers, role, key=of_vote, authors=authors, samples=samples))
        return votes_of(await asyncio.gather(*asked, return_exceptions=True), len(answers))

    async def _look(
        self,
        prompt: Prompt,
        rubric: Rubric,
        answers: Sequence[str],
        role: Role,
        *,
        key: str,
        authors: Sequence[str] | None,
        samples: tuple[int, int],
    ) -> Marks:
        """One vote of one verifier on all answers.

        ``samples`` are the sample indices of the first question and of the second, for the answers without a verdict.
        """
        how = role.wording()
        how["template"] = prompt.templates.get("verify") or how["template"]
        form = verifier.form_of(how["template"], self._asking.form).name
        shared = verifier.group_token(prompt.question, rubric, answers, seed=self._seed)

        async def rows(part: Rubric) -> Marks:
            async def ask(texts: list[str], indices: Sequence[int], again: int) -> Marks:
                shown = None if authors is None else [authors[i] for i in indices]
                request = verifier.verify_request(
                    prompt.question, part, texts, **how, seed=self._seed, authors=shown, form=form,
                    examples=self._asking.examples, token=shared,
                )  # fmt: skip
                request = dataclasses.replace(request, sample_index=samples[again], extra=role.extra)
                token = token_of(request.json_schema)
                read = functools.partial(
                    verifier.parse_verdicts, rubric=part, n_answers=len(texts), token=token, form=form
                )
                found = await self._asker.ask(request, read)
                return Marks(found.passed, found.causes)

            most = self._asking.answers_per_call
            return await self._asker.marks("verify", answers, ask, key=key, counted=False, answers_per_call=most)

        return beside(await asyncio.gather(*map(rows, self._asking.cut(rubric)), return_exceptions=True))
