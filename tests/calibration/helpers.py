"""Small labelled questions, and verdicts on them."""

from __future__ import annotations

from ropd_jax.calibration.bias import Look, Said
from ropd_jax.teacher.labels import LabelledAnswer, LabelledCriterion, LabelledQuestion


def question(truths, *, id="q", kinds=None, correct=None, likes=None, lengths=None, points=None):
    """``truths``: one row per answer; ``likes``: index -> (index, how it differs)."""
    n, likes = len(truths[0]), likes or {}
    criteria = tuple(
        LabelledCriterion(f"c{k}", f"Criterion {k}.", "", kinds[k] if kinds else "method", points[k] if points else 1)
        for k in range(n)
    )
    answers = tuple(
        LabelledAnswer(
            f"a{i}",
            "x" * (lengths[i] if lengths else 10 + i),
            "made",
            correct[i] if correct else None,
            tuple(row),
            *((f"a{likes[i][0]}", likes[i][1]) if i in likes else ("", "")),
        )
        for i, row in enumerate(truths)
    )
    return LabelledQuestion(id, f"Question {id}?", criteria, answers, "family")


def look(rows, places=None, causes=None):
    n = len(rows)
    places = places or [i / max(n - 1, 1) for i in range(n)]
    causes = causes or [None if row is not None else "missing" for row in rows]
    return Look(tuple(None if row is None else tuple(row) for row in rows), tuple(causes), tuple(places))


def said(truths, rows, again=None, *, places=None, again_places=None, scores=None, **more):
    second = None if again is None else look(again, again_places)
    return Said(question(truths, **more), look(rows, places), second, scores)
