"""The scripted verifier's knowledge and errors: labels first, then its own rules, then noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ropd_jax.teacher.clients.errors import ConfigurationError
from ropd_jax.teacher.labels import read_labels, verdict_rows
from ropd_jax.teacher.roles.kinds import kind_of
from ropd_jax.teacher.scripted import criteria
from ropd_jax.teacher.scripted.noise import Noise
from ropd_jax.teacher.scripted.tasks import uniform
from ropd_jax.types import UserError

LabelRow = tuple[str, str, str, bool, str | None]  # question, answer, criterion, truth, kind


class Truths:
    """Verdicts on any answer.

    Args:
        labels: path of a labels file (`teacher.labels`), or rows from `verdict_rows`; empty means none.
        noise: the errors of verdicts; None means no errors.

    Raises:
        ConfigurationError: the file cannot be read.
    """

    def __init__(self, labels: str | Iterable[LabelRow] = "", noise: Noise | None = None):
        if isinstance(labels, str):
            try:
                labels = verdict_rows(read_labels(labels)) if labels else ()
            except UserError as e:
                raise ConfigurationError(f"teacher.scripted.labels: {e}") from e
        self._labels = {(q.strip(), a.strip(), c.strip()): (truth, kind) for q, a, c, truth, kind in labels}
        self._shares: dict[tuple[str, str], list[bool]] = {}
        for (q, a, _), (truth, _) in self._labels.items():
            self._shares.setdefault((q, a), []).append(truth)
        self._noise = noise

    def rows(
        self, question: str, texts: Sequence[str], answers: Sequence[str], sample_index: int = 0
    ) -> list[list[bool | None]]:
        """For each answer, the verdicts on the criteria ``texts``; None for an unknown criterion."""
        rows = [self._row(question, texts, answer) for answer in answers]
        if self._noise is None:
            return [truths for truths, _ in rows]
        request = str(uniform("request", sample_index, *answers))
        done = []
        for place, (answer, (truths, kinds)) in enumerate(zip(answers, rows, strict=True)):
            able = [k for k, truth in enumerate(truths) if truth is not None]
            noisy = self._noise.apply(
                [bool(truths[k]) for k in able],
                [kinds[k] for k in able],
                criteria=[texts[k] for k in able],
                question=question,
                answer=answer,
                place=place,
                answers=len(answers),
                request=request,
            )
            for k, verdict in zip(able, noisy, strict=True):
                truths[k] = verdict
            done.append(truths)
        return done

    def share(self, question: str, answer: str) -> float | None:
        """The share of the labelled criteria that the answer meets, or None if it has no labels."""
        truths = self._shares.get((question.strip(), answer.strip()))
        return sum(truths) / len(truths) if truths else None

    def _row(self, question: str, texts: Sequence[str], answer: str) -> tuple[list[bool | None], list[str | None]]:
        """The truth and the kind of each criterion, without noise."""
        truths: list[bool | None] = []
        kinds: list[str | None] = []
        for text in texts:
            known = self._labels.get((question.strip(), answer.strip(), text.strip()))
            truths.append(criteria.check(text, answer) if known is None else known[0])
            kinds.append(kind_of("", text) if known is None else known[1])
        return truths, kinds
