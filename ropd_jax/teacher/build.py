"""From ``cfg.teacher`` to a teacher: who is asked in which role, through how many clients.

A role's ``provider``, ``base_url`` and ``api_key_env`` are the teacher's where they are "". Roles that agree in all
three share one client, and with it one set of limits. ``references_from`` names several models for the references::

    references_from = ("gemini-2.5-pro", "gemini-2.5-flash")                       two models of the reference role
    references_from = ({"provider": "openai", "model": "gpt-5"}, {"provider": "gemini", "model": "gemini-2.5-pro"})

Each entry is a model's name or a mapping of the keys of ``teacher.reference`` that differ; reference i of a prompt
comes from entry i % n.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import pathlib
import urllib.parse
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ropd_jax.teacher.clients.client import ChatClient, ConfigurationError
from ropd_jax.teacher.roles.templates import prompt_sha
from ropd_jax.teacher.rubric_store import RubricStore
from ropd_jax.teacher.tape.client import TapedClient, open_tape
from ropd_jax.teacher.tape.reference_index import TeacherIndex, read_index
from ropd_jax.teacher.traffic.budget import Budget, Caps
from ropd_jax.teacher.traffic.prices import Prices
from ropd_jax.teacher.traffic.stats import TeacherStats

if TYPE_CHECKING:
    from ropd_jax.teacher.teacher import Role, Teacher

log = logging.getLogger(__name__)

ROLE_KEYS = {  # our name -> the config's
    "reference": "reference",
    "rubric": "rubricator",
    "verify": "verifier",
    "score": "scorer",
    "judge": "judge",
}
_ENDPOINT = ("provider", "base_url", "api_key_env")


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Whom a role asks."""

    provider: str
    base_url: str = ""
    api_key_env: str = ""

    @property
    def address(self) -> str:
        """``base_url`` without what may be secret in it (user, password, query)."""
        parts = urllib.parse.urlsplit(self.base_url)
        return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def build_teacher(
    cls: type[Teacher],
    teacher: Mapping[str, Any],
    *,
    seed: int = 0,
    answer_key: Iterable[tuple[str, str]] | None = None,
    share: float = 1.0,
    host: int = 0,
    workdir: str | os.PathLike[str] | None = None,
    needs: Collection[str] = ("reference", "rubric", "verify"),
) -> Teacher:
    """The teacher of ``cfg.teacher``; see ``Teacher.from_config``."""
    from ropd_jax.teacher.make import limit_options, make_client
    from ropd_jax.teacher.teacher import REASK_TEMPLATE, TEMPLATES, VARIANTS

    stats, clients = TeacherStats(), {}
    budget = Budget(
        Caps(**dict(teacher["budget"])),
        Prices.load(teacher["prices"]),
        None if workdir is None else pathlib.Path(workdir) / (f"spent.{host}.json" if host else "spent.json"),
    )
    mode = teacher["tape"]["mode"]
    tape = open_tape(mode, teacher["tape"]["path"], workdir, host=host)
    roles = {name: role_of(teacher, key) for name, key in ROLE_KEYS.items()}
    sources = reference_sources(teacher)
    index = open_index(teacher)
    prompts = {(t := role.template or TEMPLATES[name]): prompt_sha(t) for name, (_, role) in roles.items()}
    prompts |= {name: prompt_sha(name) for name in (REASK_TEMPLATE, *VARIANTS)}

    noted = functools.partial(stats.count, "taped")

    def client_of(endpoint: Endpoint) -> ChatClient:
        make = functools.partial(
            make_client,
            **dataclasses.asdict(endpoint),
            **limit_options(teacher, share=share),
            scripted=dict(teacher["scripted"]) | ({} if answer_key is None else {"answer_key": answer_key}),
            stats=stats,
            budget=budget,
        )
        if endpoint not in clients:
            where = dict(provider=endpoint.provider, address=endpoint.address)
            taped = functools.partial(TapedClient, make, mode=mode, **where, prompts=prompts, noted=noted)
            clients[endpoint] = make() if tape is None else taped(tape)
        return clients[endpoint]

    asked = {name: (roles[name],) for name in ("rubric", "verify", "score", "judge")} | {"reference": sources}
    if index is not None:  # nobody is asked for references, and nobody's key is needed
        del asked["reference"]
    asked = {name: several for name, several in asked.items() if name in needs}
    routes = {name: tuple(client_of(endpoint) for endpoint, _ in several) for name, several in asked.items()}
    for name, several in asked.items() if mode != "replay" else ():
        for endpoint, role in several:
            budget.require_price(name, endpoint.provider, role.model, endpoint.base_url)
    return cls(
        _one_of(routes),
        reference=tuple(role for _, role in sources),
        rubric=roles["rubric"][1],
        verify=roles["verify"][1],
        score=roles["score"][1],
        judge=roles["judge"][1],
        references_m=teacher["references"],
        max_answer_chars=teacher["max_answer_chars"],
        repeat_frac=teacher["health"]["repeat_frac"],
        store=RubricStore(teacher["rubric_reuse"], epochs=teacher["rubric_epochs"]),
        index=index,
        seed=seed,
        stats=stats,
        budget=budget,
        tape=tape,
        refreshes=mode == "refresh",
    )


def role_of(teacher: Mapping[str, Any], key: str, changes: Mapping[str, Any] | None = None) -> tuple[Endpoint, Role]:
    """Whom a role asks, and how. ``key`` is the config's name of it."""
    from ropd_jax.teacher.teacher import Role

    row = dict(teacher[key]) | dict(changes or {})
    endpoint = Endpoint(*(row[k] or teacher[k] for k in _ENDPOINT))
    if row["provider"] and row["provider"] != teacher["provider"]:  # another provider has another address and key
        endpoint = Endpoint(row["provider"], row["base_url"], row["api_key_env"])
    return endpoint, Role(row["model"], row["temperature"], row["max_output_tokens"], row["template"])


def reference_sources(teacher: Mapping[str, Any]) -> tuple[tuple[Endpoint, Role], ...]:
    """Who writes the references: ``references_from``, or the reference role alone.

    Raises:
        ConfigurationError: an entry that is neither a name nor a mapping of the role's keys.
    """
    entries = teacher["references_from"] or ({},)
    known = set(teacher["reference"])
    sources = []
    for n, entry in enumerate(entries, 1):
        changes = {"model": entry} if isinstance(entry, str) else entry
        if not isinstance(changes, Mapping) or (unknown := sorted(set(changes) - known)):
            what = f"has unknown keys {', '.join(unknown)}" if isinstance(changes, Mapping) else f"is {entry!r:.60}"
            raise ConfigurationError(
                f"teacher.references_from: entry {n} {what}; expected a model's name or a mapping with some of "
                f"{', '.join(sorted(known))}"
            )
        sources.append(role_of(teacher, "reference", changes))
    if len(sources) > teacher["references"]:
        raise ConfigurationError(
            f"teacher.references_from names {len(sources)} models for teacher.references={teacher['references']} "
            f"references; raise teacher.references to at least {len(sources)}"
        )
    return tuple(sources)


def providers(teacher: Mapping[str, Any], needs: Collection[str] = tuple(ROLE_KEYS)) -> set[str]:
    """The providers of the roles that will be asked."""
    roles = [role_of(teacher, ROLE_KEYS[name]) for name in needs if name != "reference"]
    sources = reference_sources(teacher) if "reference" in needs and not teacher["index"] else ()
    return {endpoint.provider for endpoint, _ in (*roles, *sources)}


def open_index(teacher: Mapping[str, Any]) -> TeacherIndex | None:
    """The index that ``teacher.index`` names, or None. Says which teachers wrote it."""
    if not teacher["index"]:
        return None
    index = read_index(teacher["index"])
    models = sorted({str(row.fingerprint.get("model", "unknown")) for row in index})
    log.info("references of %d prompts from %s, by %s", len(index), index.name, ", ".join(models) or "nobody")
    return index


def _one_of(routes: Mapping[str, tuple[ChatClient, ...]]) -> ChatClient:
    from ropd_jax.teacher.traffic.router import Routes

    distinct = {id(c): c for several in routes.values() for c in several}
    return next(iter(distinct.values())) if len(distinct) == 1 else Routes(routes)
