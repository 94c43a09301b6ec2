"""Unusable replies by role: the count of each reason, and the beginning of such a reply.

    role    unusable  times  commonest reason
    rubric        15     12  3 criteria; expected 4 to 12
                             a reply begins: {"schema_version": "ropd.rubric.v1", "rubrics": [{"criterion_id": "c1", ...

For display only: it is not part of a checkpoint, and it counts since the process started, on this host.
"""

from __future__ import annotations

import collections
import re

from ropd_jax.utils.text import plain

_SHOWN = 160  # characters of a reply, and of a reason
_KINDS = 50  # different reasons kept per role; further ones are counted together


class Unusable:
    """Failed calls and unusable replies. Written on the teacher's loop, read anywhere."""

    def __init__(self) -> None:
        self._times: dict[str, collections.Counter[str]] = {}
        self._with_reply: set[str] = set()
        self._examples: dict[tuple[str, str], tuple[str, str]] = {}  # (role, kind) -> (message, beginning of the reply)

    def add(self, role: str, message: str, reply: str | None = None) -> bool:
        """Counts one. ``reply`` is the model's text. Returns True if it is the role's first unusable reply.

        ``reply`` is None for a failed call without a reply.
        """
        times = self._times.setdefault(role, collections.Counter())
        first = reply is not None and role not in self._with_reply
        if reply is not None:
            self._with_reply.add(role)
        kind = kind_of(message)
        if kind not in times and len(times) >= _KINDS:
            kind = "others"
        times[kind] += 1
        self._examples.setdefault((role, kind), (message, beginning(reply or "")))
        return first

    def table(self) -> str:
        """The roles with their most common reason and a sample, most frequent first; "" if nothing failed."""
        if not self._times:
            return ""
        roles = sorted(self._times, key=lambda role: -self._times[role].total())
        width = max([len("role"), *map(len, roles)])
        lines = [f"  {'role':<{width}}  unusable  times  commonest reason"]
        for role in roles:
            kind, times = self._times[role].most_common(1)[0]
            message, begins = self._examples[role, kind]
            total = self._times[role].total()
            lines.append(f"  {role:<{width}}  {total:>8}  {times:>5}  {beginning(message)}")
            if begins:
                lines.append(f"  {'':<{width}}  {'':>8}  {'':>5}  a reply begins: {begins}")
        return "\n".join(lines)


def kind_of(message: str) -> str:
    """The common part of equal problems: without numbers, quoted text and hints after a semicolon.

    >>> kind_of("answer_index is 7; expected 1 to 4"), kind_of("points is 'five' (line 3)")
    ('answer_index is #', 'points is # (line #)')
    """
    return re.sub(r"'[^']*'|\"[^\"]*\"|[0-9a-f]{12}|\d+", "#", message.partition(";")[0])[:_SHOWN]


def beginning(text: str) -> str:
    """The first characters of foreign text, on one line that a terminal shows unchanged."""
    shown = plain(text[:_SHOWN].strip()).replace("\n", "\\n").replace("\t", "\\t")
    return shown + ("..." if len(text.strip()) > _SHOWN else "")
