"""What the teachers of several hosts tell each other at the end of a step.

    said = hosts.exchange(together.news(teacher, ids))
    together.learn(teacher, host, said)

Each host asks about its own groups. Afterwards every host knows what all have spent (for the budget and the metrics),
every rubric that may be used again, and every answer: each tape is whole, so that another host, or another number of
hosts, asks nothing twice. Host 0 keeps the books between two starts: it takes over what other hosts left behind.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ropd_jax.teacher.clients.client import ConfigurationError
from ropd_jax.teacher.tape.store import Entry, Tape
from ropd_jax.teacher.traffic.budget import Spent
from ropd_jax.teacher.traffic.stats import TeacherStats

if TYPE_CHECKING:
    from ropd_jax.teacher.teacher import Teacher

log = logging.getLogger(__name__)
PIECE = 1 << 20  # bytes of tape entries, about, that are told at once when a tape catches up


@dataclasses.dataclass(frozen=True)
class News:
    """What one host tells.

    Attributes:
        stats, spent: its own counters and spending since the start, see `TeacherStats.as_dict`, `Budget.own`.
        steps: what it spent in the last steps.
        store: `RubricStore.news` of the prompts that the step judged.
        entries: what its tape has got since the last time.
    """

    stats: dict
    spent: dict[str, Spent]
    steps: dict[int, Spent]
    store: dict
    entries: Sequence[Entry]


def news(teacher: Teacher, prompt_ids: Iterable[str]) -> News:
    """What this host has to tell."""
    budget = teacher.budget
    entries, teacher.told = ((), teacher.told) if _alone(teacher.tape) else teacher.tape.since(teacher.told)
    return News(
        teacher.stats.as_dict(),
        {} if budget is None else dict(budget.roles),
        {} if budget is None else dict(budget.steps),
        teacher.store.news(prompt_ids),
        entries,
    )


def learn(teacher: Teacher, host: int, said: Sequence[News]) -> None:
    """Take in what all hosts told; ``said[host]`` is this one's own."""
    others = [n for i, n in enumerate(said) if i != host]
    teacher.elsewhere = [TeacherStats(**n.stats) for n in others]
    if teacher.budget is not None:
        teacher.budget.met([n.spent for n in others], [n.steps for n in others])
    for n in others:
        teacher.store.learn(n.store)
        for entry in n.entries:
            teacher.tape.add(entry)
    if not _alone(teacher.tape):
        teacher.told = teacher.tape.end()  # what was learned just now is known to all


def start(teacher: Teacher, host: int, exchange: Callable[[Any], list]) -> None:
    """Before the first question: host 0 takes over what others left behind, then every tape gets what it lacks.

    Args:
        exchange: the same value from each host, by host; all hosts call it equally often.

    Raises:
        ConfigurationError: ``tape.mode=refresh`` with several hosts.
    """
    hosts = len(exchange(None))  # everybody has read what is left of an earlier run
    budget, tape = teacher.budget, teacher.tape
    if teacher.refreshes and hosts > 1:
        raise ConfigurationError("teacher.tape.mode='refresh' works on one host only; expected record, replay or off")
    if host == 0:
        if budget is not None:
            budget.absorb()
        if not _alone(tape):
            _absorb(tape)
    elif budget is not None:
        budget.forget()
    exchange(None)
    if hosts == 1 or _alone(tape):
        return
    known = exchange(tape.keys())
    lacking = sorted(known[0] - set.intersection(*known))
    if lacking and host == 0:
        log.info("%d answers of the tape are sent to the other hosts", len(lacking))
    while exchange(bool(lacking))[0]:
        piece: list[Entry] = []
        size = 0
        while host == 0 and lacking and size < PIECE:
            piece.append(tape.entry(lacking.pop()))
            size += len(json.dumps(piece[-1].body))
        received = exchange(piece)[0]
        for entry in received if host else ():
            tape.add(entry)
        if host:
            lacking = []
    teacher.told = tape.end()


def _alone(tape: Tape | None) -> bool:
    return tape is None or tape.read_only


def _absorb(tape: Tape) -> None:
    """Copies what tapes of other hosts (``tape.1.sqlite`` beside ``tape.sqlite``) have and this one lacks."""
    paths = sorted(tape.path.parent.glob(f"{tape.path.stem}.*{tape.path.suffix}"))
    for path in (p for p in paths if p.stem.removeprefix(f"{tape.path.stem}.").isdigit()):
        other = Tape(path, read_only=True)
        missing = other.keys() - tape.keys()
        for key in missing:
            tape.add(other.entry(key))
        other.close()
        if missing:
            log.info("took over %d answers from %s", len(missing), path.name)
