"""One cheap call to each model that a run will ask, before the run loads weights (``teacher.check``).

    wrong key, unknown model, wrong address   a ConfigurationError that names the role; each later call would fail too
    anything else that fails                  a warning: the run has retries, and the server may be back by then

The calls are neither on the tape nor in the run's counts and costs, so they change no number of a run.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ropd_jax.teacher.build import (
    ROLE_KEYS,
    Sources,
    limit_options,
    make_client,
    panel_sources,
    reference_sources,
    role_of,
)
from ropd_jax.teacher.clients.chat import ChatRequest
from ropd_jax.teacher.clients.endpoint import Endpoint
from ropd_jax.teacher.clients.errors import ConfigurationError, TeacherError, TruncatedError
from ropd_jax.teacher.roles import references as reference_role
from ropd_jax.teacher.roles import rubricator, scorer, verifier
from ropd_jax.teacher.roles.role import Role
from ropd_jax.teacher.traffic.event_loop import TeacherLoop
from ropd_jax.types import Criterion, Rubric

log = logging.getLogger(__name__)
_TOKENS = 64  # output limit of a check
_LONGEST_S = 30.0
_QUESTION, _ANSWER = "What is 1 + 1 =", "1 + 1 = 2\nAnswer: 2"
_RUBRIC = Rubric(tuple(Criterion(f"c{n}", f"States that the total is {n}.", 1) for n in range(1, 5)))


def check_models(teacher: Mapping[str, Any], needs: Collection[str]) -> None:
    """One call for each role and model of ``needs``, all at once. Roles of the scripted provider are left out.

    Args:
        teacher: ``cfg.teacher``. With ``check`` False, or a tape in mode ``replay``, nothing is sent.

    Raises:
        ConfigurationError: a key, a model or an address that cannot work.
    """
    if not teacher["check"] or teacher["tape"]["mode"] == "replay":
        return
    asked = [
        (name, endpoint, role)
        for name in needs
        for endpoint, role in _sources(teacher, name)
        if endpoint.provider != "scripted"
    ]
    if not asked:
        return
    with TeacherLoop() as loop:  # a notebook's own loop is running
        loop.submit(_check_all(teacher, asked)).result()


def _sources(teacher: Mapping[str, Any], name: str) -> Sources:
    if name == "reference":
        return () if teacher["index"] else reference_sources(teacher)
    return panel_sources(teacher) if name == "verify" else (role_of(teacher, ROLE_KEYS[name]),)


async def _check_all(teacher: Mapping[str, Any], asked: Sequence[tuple[str, Endpoint, Role]]) -> None:
    results = await asyncio.gather(*(_check(teacher, *one) for one in asked), return_exceptions=True)
    for failed in results:
        if isinstance(failed, BaseException):
            raise failed


async def _check(teacher: Mapping[str, Any], name: str, endpoint: Endpoint, role: Role) -> None:
    key = f"teacher.{ROLE_KEYS[name]}"
    limits = limit_options(teacher)
    limits["timeout_s"] = min(_LONGEST_S, limits["timeout_s"])
    client, begin = None, time.monotonic()
    try:
        client = make_client(**dataclasses.asdict(endpoint), **limits)
        async with asyncio.timeout(limits["timeout_s"]):
            request = dataclasses.replace(_request(name, role), extra=role.extra)
            await client.inner.chat(request)  # one attempt, without retries
    except TruncatedError:
        pass  # it answers; the limit of a check is low
    except ConfigurationError as e:
        raise type(e)(f"{key}: {e}", cause=e.cause) from e
    except TimeoutError:
        log.warning("teacher: %s: %s did not answer a first call in %g s", key, role.model, limits["timeout_s"])
        return
    except TeacherError as e:
        log.warning("teacher: %s: %s failed at a first call (%s): %s", key, role.model, e.cause, e)
        return
    finally:
        if client is not None:
            await client.close()
    log.info("teacher: %s: %s answers, %.1f s", key, role.model, time.monotonic() - begin)


def _request(name: str, role: Role) -> ChatRequest:
    """A small request of this role, as a run sends it."""
    how = role.wording() | {"max_output_tokens": _TOKENS}
    if name == "reference":
        return reference_role.reference_request(_QUESTION, **how, sample_index=0)
    if name == "rubric":
        return rubricator.rubric_request(_QUESTION, [_ANSWER], [_ANSWER], **how)
    if name == "verify":
        return verifier.verify_request(_QUESTION, _RUBRIC, [_ANSWER], **how)
    request = scorer.score_request(_QUESTION, [_ANSWER], lowest=1, highest=10, **how)
    return dataclasses.replace(request, purpose=name)  # type: ignore[arg-type]  # score or judge
