"""Syncs the teachers of several hosts at the end of a step.

    deltas = hosts.exchange(sync.delta(teacher, prompt_ids))     every host gets the delta of every host
    sync.merge(teacher, host, deltas)

Each host sends requests only for its own groups. After a sync, every host knows the spending of all hosts (for the
budget and the metrics), every reusable rubric and every answer. So each tape is complete, and no question is paid for
twice if a run is resumed on other hosts or on another number of hosts.

Two hosts, one step::

    host 0    tape +a        delta {a}      merge {b, c}    tape a b c
    host 1    tape +b +c     delta {b, c}   merge {a}       tape a b c

Between two starts of a run, host 0 has all records: at a start it takes over what other hosts left behind (`start`).
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ropd_jax.teacher.clients.errors import ConfigurationError
from ropd_jax.teacher.tape.store import Entry, Tape
from ropd_jax.teacher.traffic.budget import Spent
from ropd_jax.teacher.traffic.stats import TeacherStats

if TYPE_CHECKING:
    from ropd_jax.teacher.teacher import Teacher

log = logging.getLogger(__name__)
PIECE = 1 << 20  # approximate bytes of tape entries per exchange while a tape catches up


@dataclasses.dataclass(frozen=True)
class Delta:
    """The data of one host that is new to the others.

    Attributes:
        stats, spent: its own counters and spending since the start, see `TeacherStats.as_dict` and `Budget.roles`.
        steps: its spending in each of the latest steps.
        store: `RubricStore.delta` for the prompts judged in the step.
        entries: the entries of its tape since the last sync.
    """

    stats: dict
    spent: dict[str, Spent]
    steps: dict[int, Spent]
    store: dict
    entries: Sequence[Entry]


def delta(teacher: Teacher, prompt_ids: Iterable[str]) -> Delta:
    """This host's delta. Marks its tape as synced up to here."""
    budget, tape = teacher.budget, _written(teacher.tape)
    entries: Sequence[Entry] = ()
    if tape is not None:
        entries, teacher.synced_upto = tape.since(teacher.synced_upto)
    return Delta(
        teacher.stats.as_dict(),
        {} if budget is None else dict(budget.roles),
        {} if budget is None else dict(budget.steps),
        teacher.store.delta(prompt_ids),
        entries,
    )


def merge(teacher: Teacher, host: int, deltas: Sequence[Delta]) -> None:
    """Merges the deltas of all hosts; ``deltas[host]`` is this host's own."""
    others = [d for i, d in enumerate(deltas) if i != host]
    tape = _written(teacher.tape)
    teacher.remote = [TeacherStats(**d.stats) for d in others]
    if teacher.budget is not None:
        teacher.budget.merge([d.spent for d in others], [d.steps for d in others])
    for d in others:
        teacher.store.merge(d.store)
    if tape is not None:
        for d in others:
            for entry in d.entries:
                tape.add(entry)
        teacher.synced_upto = tape.end()  # every host has the entries that were just added


def start(teacher: Teacher, host: int, exchange: Callable[[Any], list]) -> None:
    """Called before the first question: host 0 takes over what others left behind, then every tape gets what it lacks.

    Args:
        exchange: collective: all hosts call it the same number of times; returns the value of each host, by host.

    Raises:
        ConfigurationError: ``tape.mode=refresh`` with several hosts.
    """
    hosts = len(exchange(None))  # a barrier: every host has read what an earlier run left behind
    budget, tape = teacher.budget, _written(teacher.tape)
    if teacher.refreshes and hosts > 1:
        raise ConfigurationError("teacher.tape.mode='refresh' works on one host only; expected record, replay or off")
    if host == 0:
        if budget is not None:
            budget.absorb()
        if tape is not None:
            _absorb(tape)
    elif budget is not None:
        budget.forget()
    exchange(None)  # a barrier: host 0 has taken over everything
    if hosts > 1 and tape is not None:
        _send_lacking(tape, host, exchange)
        teacher.synced_upto = tape.end()


def _send_lacking(tape: Tape, host: int, exchange: Callable[[Any], list]) -> None:
    """Host 0 sends the entries that some tape lacks, about ``PIECE`` bytes at a time. Collective."""
    known = exchange(tape.keys())
    lacking = sorted(known[0] - set.intersection(*known))
    if lacking and host == 0:
        log.info("sending %d answers from the tape to the other hosts", len(lacking))
    while exchange(bool(lacking))[0]:  # only host 0 knows when nothing is left
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


def _written(tape: Tape | None) -> Tape | None:
    """The tape if this run writes to it. A read-only tape, for a replay, needs no sync."""
    return None if tape is None or tape.read_only else tape


def _absorb(tape: Tape) -> None:
    """Copies missing entries from the tapes of other hosts (``tape.1.sqlite`` next to it)."""
    paths = sorted(tape.path.parent.glob(f"{tape.path.stem}.*{tape.path.suffix}"))
    for path in (p for p in paths if p.stem.removeprefix(f"{tape.path.stem}.").isdigit()):
        other = Tape(path, read_only=True)
        missing = other.keys() - tape.keys()
        for key in missing:
            tape.add(other.entry(key))
        other.close()
        if missing:
            log.info("copied %d answers from %s", len(missing), path.name)
