"""Which criteria the student learns: the rubrics of a run, clustered by category and wording. Imports no jax.

    1. read      every criterion of every stored group: which answers pass it, its points, verdicts that flipped
    2. cluster   criteria of one category with similar wordings; numbers and quoted texts are ignored
    3. measure   for each cluster the pass rate early and late in the run, with the interval of the change

**Wording.** ``Contains the line "2 + 6 = 8" exactly once.`` and ``Contains the line "8 + 4 = 12" exactly once.`` are
the same wording: quoted texts, formulas and numbers are replaced by marks, letter case and plural ``s`` are dropped.
Wordings are vectors of their words, weighted by rarity (TF-IDF). The most frequent wording leads the first cluster.
Each further one, in order of frequency, joins the nearest leader if their cosine is at least `ALIKE`, and otherwise
leads its own cluster. Equal runs give equal clusters. Beyond `MOST` leaders in a category, the rest is one cluster.

**Learned.** ``early`` and ``late`` are the pass rates in the first and the last third of the stored steps: means over
groups of the share of scored answers that pass. The answers of a group are not independent, so the interval of the
change is over groups (Welch's t), after one passing and one failing group were added to either side (as Agresti and
Caffo do), which keeps it honest if few groups all agree. A cluster is *learned* if its whole 95 % interval is above 0
and *lost* if it is below 0. Of clusters that do not change, 5 % are called one of the two.

A rubric is written for the student's behaviour at its step. A constant pass rate can therefore mean that the criteria
grew with the student: compare ``discriminates`` and held-out measures before you call it a failure.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ropd_jax.analysis.missed import missed
from ropd_jax.types import UserError
from ropd_jax.utils.paths import AnyPath, local_run

ALIKE = 0.6  # minimum cosine of two wordings in one cluster
MOST = 1_000  # maximum number of leaders in a category
BINS = 12  # points of a sparkline
LEAST = 5  # minimum number of groups on either side for a change to be reported


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """A criterion of one group.

    Attributes:
        step, group, id: its location.
        points: its effective weight.
        scored, passed: answers with a verdict, and those that pass.
        references, references_passed: the same for references.
        looks, flips: verdicts that were given twice, and those that changed.
        unexplored: whether a reference passes and no scored answer does; None if unknown.
        suppressed: number of answers that pass it but whose reward does not teach it (`analysis.missed`), or None.
    """

    step: int
    group: int
    id: str
    category: str
    text: str
    points: float
    scored: int
    passed: int
    references: int
    references_passed: int
    looks: int
    flips: int
    unexplored: bool | None = None
    suppressed: int | None = None

    @property
    def rate(self) -> float | None:
        return self.passed / self.scored if self.scored else None

    @property
    def discriminates(self) -> bool | None:
        """Whether some scored answer passes and another one fails; None with fewer than two."""
        return 0 < self.passed < self.scored if self.scored > 1 else None


def seen_in(row: Mapping[str, Any]) -> list[Seen]:
    """The criteria of a line of ``groups/*.jsonl``; including rubrics for single answers.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: the line is not a group.
    """
    answers, references = row["answers"], row["references"]
    shared = [a for a in answers if "rubric" not in a]
    found = [_seen(row, c, shared, references) for c in row["rubric"]]
    hidden = missed(row)
    if hidden.unexplored:
        rows = [verdicts for verdicts in hidden.suppressed if verdicts is not None]
        found = [
            dataclasses.replace(one, unexplored=hidden.unexplored[k], suppressed=sum(bool(v[k]) for v in rows))
            for k, one in enumerate(found)
        ]
    for answer in answers:
        found += [_seen(row, c, [answer], ()) for c in answer.get("rubric", ())]
    return found


def _seen(row: Mapping[str, Any], criterion: Mapping[str, Any], answers: Sequence[Any], references: Sequence[Any]):
    name = criterion["id"]
    own = [bool(a["verdicts"][name]) for a in answers if a["verdicts"] is not None]
    theirs = [bool(r["verdicts"][name]) for r in references if r["verdicts"] is not None]
    twice = [
        item["again"][name] != item["verdicts"][name]
        for item in (*answers, *references)
        if item.get("again") is not None and item["verdicts"] is not None
    ]
    return Seen(
        int(row["step"]),
        int(row["group"]),
        str(name),
        " ".join(str(criterion["category"]).split()),
        str(criterion["text"]),
        float(criterion.get("weight", criterion["points"])),
        len(own),
        sum(own),
        len(theirs),
        sum(theirs),
        len(twice),
        sum(twice),
    )


def read_file(path: pathlib.Path) -> list[Seen]:
    """The criteria of a file of groups; lines that are not groups are left out."""
    found: list[Seen] = []
    with open(path, "rb") as lines:
        for line in lines:
            if line.strip():
                try:
                    found += seen_in(json.loads(line))
                except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
                    continue
    return found


def read_run(run: AnyPath, progress: Callable[[int, int], None] = lambda read, of: None) -> list[Seen]:
    """The criteria of every stored group of a run.

    Args:
        progress: called with the number of files read, and their total.

    Raises:
        UserError: no groups.
    """
    directory = local_run(run) / "groups"
    files = sorted(directory.glob("step_*.jsonl"))
    if not files:
        raise UserError(f"{directory} holds no groups; expected the directory of a run with log.groups=True")
    found: list[Seen] = []
    for n, path in enumerate(files, 1):
        found += read_file(path)
        progress(n, len(files))
    return found


# -------------------------------------------------------------------------------------------------------- wordings

_QUOTED = re.compile(
    r"\"[^\"\n]*\"|“[^”\n]*”|„[^“”\n]*[“”]|«[^»\n]*»|「[^」\n]*」|`[^`\n]*`|(?<!\w)'[^'\n]*'(?!\w)"
    r"|\$\$[^$]*\$\$|\$[^$\n]*\$|\\\([^\n]*?\\\)|\\\[[^\n]*?\\\]"
)
_NUMBER = re.compile(r"[+\-−]?\d+(?:[.,:/]\d+)*%?")
_WORD = re.compile(r"[§#]|[぀-ヿ㐀-鿿가-힯]+|[^\W\d_぀-ヿ㐀-鿿가-힯]+")
_WIDE = re.compile(r"[぀-ヿ㐀-鿿가-힯]")


def wording(text: str) -> str:
    """The text without what is specific to a question: quoted texts and formulas are §, numbers are #.

    >>> wording('Contains the lines "2 + 6 = 8" and 12.')
    'contain the line § and #'
    """
    words = []
    for word in _WORD.findall(_NUMBER.sub("#", _QUOTED.sub("§", text.casefold()))):
        if _WIDE.match(word):  # no spaces between words: pairs of characters
            words += [word[i : i + 2] for i in range(max(1, len(word) - 1))]
        else:
            plural = len(word) > 3 and word.endswith("s") and not word.endswith("ss")
            words.append(word[:-1] if plural else word)
    return " ".join(words)


def cluster(seen: Sequence[Seen]) -> list[list[int]]:
    """Clusters of criteria, as indices into ``seen``: the most frequent wording first, the largest cluster first."""
    known: dict[str, str] = {}
    wordings: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, one in enumerate(seen):
        if one.text not in known:
            known[one.text] = wording(one.text)
        wordings[one.category.casefold()][known[one.text]].append(i)
    found = []
    for own in wordings.values():
        ordered = sorted(own, key=lambda w: (-len(own[w]), w))
        labels = _leaders(ordered)
        members: defaultdict[int, list[int]] = defaultdict(list)
        for w, label in zip(ordered, labels, strict=True):
            members[label] += own[w]
        found += list(members.values())
    return sorted(found, key=lambda c: (-len(c), seen[c[0]].category, seen[c[0]].text))


def _leaders(wordings: Sequence[str]) -> list[int]:
    """The cluster of each wording; they are given in the order in which they can lead."""
    counts = [Counter(text.split()) for text in wordings]
    frequency = Counter(word for c in counts for word in c)
    idf = {word: math.log((1 + len(wordings)) / (1 + n)) + 1 for word, n in frequency.items()}
    rows = {word: i for i, word in enumerate(w for w, n in frequency.items() if n > 1)}  # the others match nothing
    most = min(MOST, len(wordings))
    leaders = np.zeros((len(rows), min(most, 64)), np.float32)  # a row per word, a column per leader
    labels, n = [], 0
    for count in counts:
        weights = {word: (1 + math.log(k)) * idf[word] for word, k in count.items()}
        length = math.sqrt(sum(w * w for w in weights.values())) or 1.0
        known = [word for word in weights if word in rows]
        at = [rows[word] for word in known]
        vector = np.array([weights[word] / length for word in known], np.float32)
        if n and at:
            cosine = vector @ leaders[at, :n]
            best = int(cosine.argmax())
            if cosine[best] >= ALIKE:
                labels.append(best)
                continue
        if n == most:
            labels.append(MOST)
            continue
        if n == leaders.shape[1]:
            leaders = np.pad(leaders, ((0, 0), (0, min(n, most - n))))
        leaders[at, n] = vector
        labels.append(n)
        n += 1
    return labels


# --------------------------------------------------------------------------------------------------------- numbers


@dataclasses.dataclass(frozen=True)
class Thirds:
    """The steps before ``early`` are the first third of the stored steps, those from ``late`` on the last one."""

    early: int
    late: int

    @classmethod
    def of(cls, seen: Iterable[Seen]) -> Thirds | None:
        """None if there are fewer than three steps."""
        steps = sorted({s.step for s in seen})
        n = len(steps) // 3
        return cls(steps[n], steps[-n]) if n else None


def measure(seen: Sequence[Seen]) -> dict[str, Any]:
    """Clusters and categories with their numbers, as plain data; unknown values are None.

    Returns:
        ``criteria``, ``groups``, ``steps`` (first, last), ``early`` (first, last step), ``late`` in the same form;
        ``clusters`` (see `_numbers`, with ``id``, ``category``, ``text``, ``wordings``, ``members``),
        ``categories`` and ``all`` (the paper's Table 5), ``learned``, ``lost``, ``judged`` (numbers of clusters; judged
        are those with enough groups, as in the paper's Table A3).
    """
    thirds = Thirds.of(seen)
    steps = sorted({s.step for s in seen})
    edges = _edges(steps)
    clusters = []
    for places in cluster(seen):
        own = [seen[i] for i in places]
        texts = Counter(s.text for s in own)
        text = min(texts, key=lambda t: (-texts[t], t))
        names = Counter(s.category for s in own)
        category = min(names, key=lambda t: (-names[t], t))
        lead = f"{category.casefold()}\n{wording(own[0].text)}"
        clusters.append(
            {
                "id": hashlib.sha256(lead.encode("utf-8", "replace")).hexdigest()[:10],
                "category": category,
                "text": text,
                "wordings": len(texts),
                **_numbers(own, thirds, edges),
                "members": places,
            }
        )
    categories: defaultdict[str, list[Seen]] = defaultdict(list)
    for s in seen:
        categories[s.category.casefold()].append(s)
    judged = [c for c in clusters if c["change"] is not None]
    early = [s for s in steps if thirds and s < thirds.early]
    late = [s for s in steps if thirds and s >= thirds.late]
    return {
        "criteria": len(seen),
        "groups": len({(s.step, s.group) for s in seen}),
        "steps": [steps[0], steps[-1]] if steps else None,
        "early": [early[0], early[-1]] if early else None,
        "late": [late[0], late[-1]] if late else None,
        "all": _numbers(seen, thirds, edges),
        "categories": [
            {"category": own[0].category, **_numbers(own, thirds, edges)}
            for own in sorted(categories.values(), key=lambda own: (-len(own), own[0].category))
        ],
        "clusters": clusters,
        "learned": sum(c["verdict"] == "learned" for c in clusters),
        "lost": sum(c["verdict"] == "lost" for c in clusters),
        "judged": len(judged),
    }


def _numbers(own: Sequence[Seen], thirds: Thirds | None, edges: Sequence[float]) -> dict[str, Any]:
    """Numbers of some criteria: ``count``, ``points`` (mean), ``rate``, ``references`` (their pass rate),
    ``discriminates``, ``flips`` (None without a second verification), ``unexplored`` (share of the criteria),
    ``suppressed`` (share of the passing answers), ``early``, ``late``, ``change`` with ``low`` and ``high``,
    ``verdict`` (learned, lost or ""), and ``spark``, the pass rate along the run."""
    by_group = _by_group(own)
    rates = [r for _, r in by_group]
    early = [r for step, r in by_group if thirds and step < thirds.early]
    late = [r for step, r in by_group if thirds and step >= thirds.late]
    change = change_of(early, late)
    separate = [d for s in own if (d := s.discriminates) is not None]
    unexplored = [s.unexplored for s in own if s.unexplored is not None]
    compared = [s for s in own if s.suppressed is not None]
    passed = sum(s.passed for s in compared)
    looks, references = sum(s.looks for s in own), sum(s.references for s in own)
    bins: list[list[float]] = [[] for _ in edges[1:]]
    for step, rate in by_group:
        at = int(np.searchsorted(edges, step, side="right")) - 1
        bins[min(at, len(bins) - 1)].append(rate)
    return {
        "count": len(own),
        "points": _mean([s.points for s in own]),
        "rate": _mean(rates),
        "references": sum(s.references_passed for s in own) / references if references else None,
        "discriminates": _mean(separate),
        "flips": sum(s.flips for s in own) / looks if looks else None,
        "unexplored": _mean(unexplored),
        "suppressed": sum(s.suppressed or 0 for s in compared) / passed if passed else None,
        "early": _mean(early),
        "late": _mean(late),
        "change": None if change is None else change[0],
        "low": None if change is None else change[1],
        "high": None if change is None else change[2],
        "verdict": "" if change is None else "learned" if change[1] > 0 else "lost" if change[2] < 0 else "",
        "spark": [_mean(b) for b in bins],
    }


def _by_group(own: Sequence[Seen]) -> list[tuple[int, float]]:
    """(step, mean pass rate) of each group with a scored answer."""
    found: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
    for s in own:
        if s.scored:
            found[s.step, s.group].append(s.passed / s.scored)
    return [(step, sum(r) / len(r)) for (step, _), r in sorted(found.items())]


def change_of(early: Sequence[float], late: Sequence[float]) -> tuple[float, float, float] | None:
    """(late minus early, 95 % interval); None with fewer than `LEAST` groups on either side. See the module."""
    if min(len(early), len(late)) < LEAST:
        return None
    from scipy.special import stdtrit  # slow to import, and the viewer starts without it

    a, b = np.array([*early, 0.0, 1.0]), np.array([*late, 0.0, 1.0])
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = float(stdtrit(df, 0.975)) * math.sqrt(va + vb)
    middle = float(b.mean() - a.mean())
    return float(np.mean(late) - np.mean(early)), max(middle - half, -1.0), min(middle + half, 1.0)


def _edges(steps: Sequence[int]) -> list[float]:
    if not steps:
        return [0.0, 1.0]
    n = min(BINS, len(steps))
    return [steps[0] + (steps[-1] + 1 - steps[0]) * i / n for i in range(n + 1)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
