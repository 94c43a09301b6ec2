"""One cheap call to each model that a run will use, before the run loads weights (``teacher.check``).

    wrong key, unknown model, wrong address   a ConfigurationError that names the role: every later call would fail too
    any other failure                         a warning: the run has retries, and the server may be back by then

The calls are not on the tape and not in the run's counts and costs, so they do not change any of a run's numbers.
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
from ropd_jax.teacher.clients.errors import ConfigurationError, TeacherError, TransientError, TruncatedError
from ropd_jax.teacher.roles import references as reference_role
from ropd_jax.teacher.roles import rubricator, scorer, verifier
from ropd_jax.teacher.roles.role import Role
from ropd_jax.teacher.traffic.event_loop import TeacherLoop
from ropd_jax.types import Criterion, Rubric
from ropd_jax.utils.text import plain

log = logging.getLogger(__name__)
_TOKENS = 64  # output limit of a check
_SHOWN = 60  # characters of a reply
_LONGEST_S = 30.0
_QUESTION, _ANSWER = "What is 1 + 1 =", "1 + 1 = 2\nAnswer: 2"
_RUBRIC = Rubric(tuple(Criterion(f"c{n}", f"States that the total is {n}.", 1) for n in range(1, 5)))


Asked = tuple[str, Endpoint, Role]  # name of the role, its endpoint and its model


@dataclasses.dataclass(frozen=True)
class Check:
    """One cheap call.

    Attributes:
        seconds: its duration.
        usd: its dollars, if they are counted.
        said: the beginning of a reference, which is free text: a server that computes wrongly shows here.
    """

    role: str
    provider: str
    model: str
    seconds: float
    error: TeacherError | None
    usd: float | None = None
    said: str = ""

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def message(self) -> str:
        """``answers in 0.4 s: "1 + 1 = 2"``, or the cause and message of the error."""
        if self.error is not None:
            return f"{self.error.cause}: {self.error}"
        return f"answers in {self.seconds:.1f} s" + (f': "{self.said}"' if self.said else "")


def check_models(teacher: Mapping[str, Any], needs: Collection[str]) -> None:
    """Makes one call for each role and model of ``needs``, all in parallel. Scripted roles are left out.

    Args:
        teacher: ``cfg.teacher``. If ``check`` is False or the tape is in mode ``replay``, nothing is sent.

    Raises:
        ConfigurationError: a key, a model or an address cannot work.
    """
    if not teacher["check"] or teacher["tape"]["mode"] == "replay":
        return
    asked = [one for one in asked_of(teacher, needs) if one[1].provider != "scripted"]
    if not asked:
        return
    with TeacherLoop() as loop:  # a notebook's own loop is already running
        found = loop.submit(_check_all(teacher, asked)).result()
    for check in found:
        key = f"teacher.{ROLE_KEYS[check.role]}"
        if isinstance(check.error, ConfigurationError):
            raise type(check.error)(f"{key}: {check.error}", cause=check.error.cause) from check.error
        if check.error is not None:
            log.warning("teacher: %s: %s failed on the first call (%s)", key, check.model, check.message)
        else:
            log.info("teacher: %s: %s %s", key, check.model, check.message)


async def _check_all(teacher: Mapping[str, Any], asked: Sequence[Asked]) -> list[Check]:
    calls = (first_call(teacher, name, endpoint, role, _request(name, role)) for name, endpoint, role in asked)
    return await asyncio.gather(*calls)


def asked_of(teacher: Mapping[str, Any], needs: Collection[str]) -> list[Asked]:
    """Each role in ``needs`` with each of its models, except references that were collected ahead of time."""
    asked: list[Asked] = []
    for name in needs:
        if name == "reference":
            sources = () if teacher["index"] else reference_sources(teacher)
        else:
            sources = sources_of(teacher, name)
        asked += [(name, endpoint, role) for endpoint, role in sources]
    return asked


def sources_of(teacher: Mapping[str, Any], name: str) -> Sources:
    """The sources of a role other than ``reference``: one endpoint and model, or the whole panel of verifiers."""
    return panel_sources(teacher) if name == "verify" else (role_of(teacher, ROLE_KEYS[name]),)


async def first_call(
    teacher: Mapping[str, Any], name: str, endpoint: Endpoint, role: Role, request: ChatRequest, **client_options: Any
) -> Check:
    """One call to one model, without retries. A reply truncated at the 64-token limit counts as success.

    Args:
        request: the role's own; its output limit is lowered.
        client_options: for `make_client`.
    """
    limits = limit_options(teacher)
    limits["timeout_s"] = min(_LONGEST_S, limits["timeout_s"])
    error: TeacherError | None = None
    client, said, begin = None, "", time.monotonic()
    try:
        client = make_client(**dataclasses.asdict(endpoint), **limits, **client_options)
        async with asyncio.timeout(limits["timeout_s"]):
            small = dataclasses.replace(request, max_output_tokens=_TOKENS, extra=role.extra)
            reply = await client.inner.chat(small)
        if name == "reference":
            said = plain(" ".join(reply.text.split())[:_SHOWN])
    except TruncatedError:
        pass
    except TimeoutError:
        error = TransientError(f"no answer in {limits['timeout_s']:g} s", cause="timeout")
    except TeacherError as e:
        error = e
    finally:
        if client is not None:
            await client.close()
    return Check(name, endpoint.provider, role.model, time.monotonic() - begin, error, said=said)


def _request(name: str, role: Role) -> ChatRequest:
    """A small request for this role, as a run would send it."""
    how = role.wording()
    if name == "reference":
        return reference_role.reference_request(_QUESTION, **how, sample_index=0)
    if name == "rubric":
        return rubricator.rubric_request(_QUESTION, [_ANSWER], [_ANSWER], **how)
    if name == "verify":
        return verifier.verify_request(_QUESTION, _RUBRIC, [_ANSWER], **how)
    request = scorer.score_request(_QUESTION, [_ANSWER], lowest=1, highest=10, **how)
    return dataclasses.replace(request, purpose=name)  # type: ignore[arg-type]  # score or judge
