"""The verifier: judges every criterion for every answer, true or false (Eq. 4), without knowing the authors.

It does not see the points. Only booleans are taken from its reply: ``final_score`` is never read, and
``Verdicts.scores`` recomputes the weighted pass rate (Eq. 5).

A request is two messages. Only the second one differs between the calls of a group::

    system   the instructions, optionally a few worked examples, the question, the rubric
    user     the answers, then N and K again, and the form of the reply with the actual N, K and ids (`forms`)

A template without ``{{reply}}`` is of the earlier kind: it requests the release's lists in its own words, and its
request is the same, byte for byte, as in earlier versions.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from ropd_jax.teacher.clients.chat import ChatRequest
from ropd_jax.teacher.clients.errors import ConfigurationError
from ropd_jax.teacher.roles import examples as worked
from ropd_jax.teacher.roles import fences, forms, templates
from ropd_jax.teacher.roles.json_reply import list_schema, with_token
from ropd_jax.types import Rubric, Verdicts

TEMPLATE = "verifier.v3"
LABELLED_TEMPLATE = "verifier_labelled.v3"  # names the author of each answer
SCHEMA_VERSION = forms.LISTS_VERSION

VERDICT_SCHEMA = list_schema(  # for the earlier templates: it does not bind the numbers of answers and verdicts
    SCHEMA_VERSION,
    "answers",
    {"answer_index": {"type": "integer"}, "judgement": {"type": "array", "items": {"type": "boolean"}}},
)


@dataclasses.dataclass(frozen=True)
class Asking:
    """How verdicts are requested: ``teacher.verifier.form`` and related keys.

    Attributes:
        form: one of `forms.FORMS`; "" means `forms.DEFAULT`, or ``lists`` for a template without ``{{reply}}``.
        answers_per_call: maximum answers per request; 0 means all. The paper uses 1.
        criteria_per_call: maximum criteria per request; 0 means all.
        examples: number of worked examples in the prompt, half true and half false, about other questions; 0 shows
            none.
        votes: votes per verifier, each with another seed and another order of the answers; an odd number.
        min_agreement: minimum share of votes that must agree, see `roles.votes`.
    """

    form: str = ""
    answers_per_call: int = 0
    criteria_per_call: int = 0
    examples: int = 0
    votes: int = 1
    min_agreement: float = 0.5

    def __post_init__(self):
        if self.form:
            forms.form_named(self.form)
        for name in ("answers_per_call", "criteria_per_call"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ConfigurationError(f"teacher.verifier.{name} is {value!r}; expected 1 or more, or 0 for all")
        worked.check(self.examples)
        if not isinstance(self.votes, int) or isinstance(self.votes, bool) or self.votes < 1 or self.votes % 2 == 0:
            raise ConfigurationError(
                f"teacher.verifier.votes is {self.votes!r}; expected 1, 3, 5, ...: an even number can tie"
            )
        if not 0.5 <= self.min_agreement <= 1.0:
            raise ConfigurationError(
                f"teacher.verifier.min_agreement is {self.min_agreement!r}; expected a share from 0.5 to 1"
            )

    def check(self, template: str) -> None:
        """Raises if the template does not support these settings.

        Raises:
            ConfigurationError: the template has no ``{{reply}}`` and the form is not ``lists``; or it has no
                ``{{examples}}`` and examples are requested.
        """
        if self.form not in ("", "lists") and not templates.has(template, "reply"):
            raise ConfigurationError(
                f"teacher.verifier.form is {self.form!r}, but the prompt template {template!r} has no {{{{reply}}}} to "
                "show this form; put {{reply}} where the template shows the reply, or set teacher.verifier.form=lists"
            )
        if self.examples and not templates.has(template, "examples"):
            raise ConfigurationError(
                f"teacher.verifier.examples is {self.examples}, but the prompt template {template!r} has no "
                "{{examples}}; add it, or set teacher.verifier.examples=0"
            )

    def cut(self, rubric: Rubric) -> list[Rubric]:
        """The rubric in parts of ``criteria_per_call`` criteria."""
        step, k = self.criteria_per_call, len(rubric.criteria)
        if not 0 < step < k:
            return [rubric]
        return [Rubric(rubric.criteria[start : start + step]) for start in range(0, k, step)]


def form_of(template: str, form: str = "") -> forms.Form:
    """The form to request from a template: ``form``, or the template's own if ``form`` is ""."""
    return forms.FORMS[form or (forms.DEFAULT if templates.has(template or TEMPLATE, "reply") else "lists")]


def group_token(question: str, rubric: Rubric, answers: Sequence[str], *, seed: int = 0) -> str:
    """The token for all calls about these answers: it depends on seed, question and rubric (see `fences`)."""
    return fences.make_token(seed, [question, _shown(rubric)], avoid=answers)


def verify_request(
    question: str,
    rubric: Rubric,
    answers: Sequence[str],
    *,
    model: str,
    temperature: float | None,
    max_output_tokens: int,
    seed: int = 0,
    template: str = "",
    authors: Sequence[str] | None = None,
    form: str = "",
    examples: int = 0,
    token: str = "",
) -> ChatRequest:
    """The request to verify ``answers``, numbered from 1 in the given order. It does not contain points or categories.

    Args:
        authors: the author of each answer, shown to the verifier; None shows none, as in the paper.
        form, examples: see `Asking`.
        token: `group_token` of the whole group, if this is one of several calls; "" makes it from these answers.

    Raises:
        ConfigurationError: see `Asking.check`.
    """
    template = template or (TEMPLATE if authors is None else LABELLED_TEMPLATE)
    Asking(form=form, examples=examples).check(template)
    ids = forms.ids_of(rubric)
    if templates.has(template, "reply"):
        shown = _shown(rubric)
        token = token or fences.make_token(seed, [question, shown], avoid=answers)
        chosen = form_of(template, form)
        reply = chosen.example(ids, len(answers), token)
        schema = chosen.bound(ids, len(answers), token)
    else:
        shown = _dumped([c.id for c in rubric.criteria], rubric)
        token = fences.make_token(seed, [question, shown, *answers])
        reply = ""
        schema = with_token(VERDICT_SCHEMA, templates.reply_token(template, token))
    messages = templates.messages(
        template,
        token=token,
        reply_token=token,
        reply=reply,
        examples=worked.shown(examples),
        authors=_written_by(authors or ()),
        question=fences.block("question", question, token),
        rubric=fences.block("rubric", shown, token),
        answers=fences.render(answers, token),
        n_criteria=str(len(rubric.criteria)),
        n_answers=str(len(answers)),
    )
    return ChatRequest("verify", messages, model, temperature, max_output_tokens, schema)


def parse_verdicts(text: str, rubric: Rubric, n_answers: int, token: str = "", form: str = "lists") -> Verdicts:
    """The verdicts in a verifier's reply, for ``n_answers`` answers numbered from 1.

    Only an answer without a readable verdict is unscored: cause ``missing`` (not in the reply), ``malformed`` (not
    allowed by the form's schema), ``duplicate`` (two different judgements).

    Args:
        token: the token that the object must have, see `json_reply`.
        form: one of `forms.FORMS`.

    Raises:
        MalformedError: the whole reply is unusable, for example because of an answer outside 1..n_answers: then no
            number can be trusted. The message describes the problem.
    """
    return Verdicts(*forms.form_named(form).read(text, forms.ids_of(rubric), n_answers, token))


def _shown(rubric: Rubric) -> str:
    return _dumped(forms.ids_of(rubric), rubric)


def _dumped(ids: Sequence[str], rubric: Rubric) -> str:
    rows = [{"criterion_id": i, "criterion": c.text} for i, c in zip(ids, rubric.criteria, strict=True)]
    return json.dumps(rows, ensure_ascii=False)


def _written_by(authors: Sequence[str]) -> str:
    """The numbers of each author's answers: ``The teacher wrote 2, 3. The student wrote 1, 4.``"""
    numbers: dict[str, list[str]] = {}
    for number, author in enumerate(authors, 1):
        numbers.setdefault(author, []).append(str(number))
    return " ".join(f"The {author} wrote {', '.join(own)}." for author, own in sorted(numbers.items()))
