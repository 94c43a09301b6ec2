"""maj@k votes over classes of equal answers, not over spellings: wrong answers are compared like right ones.

    right answers                       one class, because the grader found each equal to the gold answer
    wrong ones, equal by `vote_of`      one class, without algebra (1/2 and 0.5)
    wrong ones that need algebra        compared by the grader, but only if the vote is open

A vote is open if merging spellings could change it: some answers are right, no wrong class has beaten them yet, but all
wrong answers together could. At most `MOST_PAIRS` pairs per problem are compared, starting with the most frequent
answers. An answer that is not merged is a class of its own.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from ropd_jax.data.grader import vote_of

MOST_PAIRS = 120  # per problem; 16 different answers make 120

Pair = tuple[str, str]


def classes(
    problems: Mapping[str, Sequence[int]],
    answers: Sequence[str | None],
    right: Sequence[bool | None],
    equal: Callable[[Sequence[Pair]], Sequence[bool]],
) -> list[str | None]:
    """The class name of each answer; None if there is no answer. Right answers keep their own text.

    Args:
        problems: the positions of each problem's answers.
        answers, right: of each answer; ``right`` is None if it is ungraded.
        equal: whether the two answers of each pair are equal; called once, for the pairs of all problems.
    """
    names = [vote_of(a) for a in answers]
    wanted: dict[str, list[Pair]] = {}
    spelled: dict[tuple[str, str], str] = {}  # (problem, class) -> an answer of that class, as it is spelled
    for problem, places in problems.items():
        wrong = Counter(names[i] for i in places if right[i] is False and names[i] is not None)
        for i in places:
            if right[i] is False:
                spelled.setdefault((problem, names[i] or ""), answers[i] or "")
        rights = sum(right[i] is True for i in places)
        if rights and max(wrong.values(), default=0) <= rights <= wrong.total():
            common = [name for name, _ in wrong.most_common() if name is not None]
            wanted[problem] = list(itertools.islice(itertools.combinations(common, 2), MOST_PAIRS))
    asked = [(problem, a, b) for problem, pairs in wanted.items() for a, b in pairs]
    verdicts = equal([(spelled[problem, a], spelled[problem, b]) for problem, a, b in asked]) if asked else []
    leader: dict[tuple[str, str], str] = {}

    def find(problem: str, name: str) -> str:
        while (problem, name) in leader:
            name = leader[problem, name]
        return name

    for (problem, a, b), same in zip(asked, verdicts, strict=True):
        first, second = find(problem, a), find(problem, b)
        if same and first != second:
            leader[problem, second] = first
    for problem, places in problems.items():
        for i in places:
            if right[i] is False and (name := names[i]) is not None:
                names[i] = find(problem, name)
    return names
