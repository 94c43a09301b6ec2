"""The program of one process of ``mathpool``: math-verify on pairs of a gold answer and a student's.

    python -m ropd_jax.evaluation.graders.math_worker CPU_SECONDS

One JSON line in, ``{"gold": "1/2", "answer": "0.5"}``, one out: ``{"right": true}``, or ``{"error": "..."}`` where
math-verify itself failed. It sets no alarm: after so many seconds of computing on one pair the system ends the process
(SIGXCPU), in the middle of whatever sympy is doing, and whoever started it starts another.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import resource
import sys

MEMORY = 3 << 30  # bytes of address space; 10^(10^6) must not take the machine with it


class UnreadableGold(Exception):
    """math-verify finds no expression in the gold answer, so that any answer would be "wrong"."""


def verify(gold: str, answer: str) -> bool:
    """Whether math-verify takes the two for equal; the gold one goes first, since it is not symmetric."""
    from math_verify import verify as same

    known = list(_parsed(gold))
    if not known:
        raise UnreadableGold
    return bool(same(known, list(_parsed(answer)), timeout_seconds=None, raise_on_error=True))


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    how = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    return tuple(parse(f"\\boxed{{{text}}}", extraction_config=how, parsing_timeout=None))


def main() -> None:
    """Answers until its input ends."""
    cpu_s = int(sys.argv[1])
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")  # what a library prints must not come between
    os.dup2(2, 1)
    logging.disable(logging.WARNING)  # "timeout is disabled": by intention
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    verify("1", "1")  # imports all there is to import, about a second, before the clock of the first pair runs
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        pair = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        end = int(used.ru_utime + used.ru_stime) + cpu_s + 1
        resource.setrlimit(resource.RLIMIT_CPU, (end, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        try:
            reply = {"right": verify(pair["gold"], pair["answer"])}
        except MemoryError:
            reply = {"error": "memory"}
        except UnreadableGold:
            reply = {"error": "gold"}
        except Exception as error:  # sympy raises whatever it likes; said to the caller, never taken for "wrong"
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        out.write(json.dumps(reply) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
