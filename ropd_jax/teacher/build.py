"""From ``cfg.teacher`` to a teacher: which model each role uses, and through how many clients.

    role_of, reference_sources     config -> (Endpoint, Role) of each role
    make_client                    Endpoint -> provider client -> MeteredClient -> LimitedClient
    build_teacher                  all roles; roles with the same endpoint share one client and its limits

A role's ``provider``, ``base_url`` and ``api_key_env`` default to the teacher's if "". ``references_from``
names several models for the references::

    references_from = ("gemini-2.5-pro", "gemini-2.5-flash")                       two models of the reference role
    references_from = ({"provider": "openai", "model": "gpt-5"}, {"provider": "gemini", "model": "gemini-2.5-pro"})

Each entry is a model's name or a mapping with the keys of ``teacher.reference`` that differ. Reference i of a prompt
comes from entry i % n. ``verifier.panel`` names several verifiers in the same way; each one judges everything.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ropd_jax.teacher.asking import REASK_TEMPLATE
from ropd_jax.teacher.clients.chat import ChatClient
from ropd_jax.teacher.clients.endpoint import Endpoint, check_address
from ropd_jax.teacher.clients.errors import ConfigurationError
from ropd_jax.teacher.clients.options import checked_extra, checked_headers
from ropd_jax.teacher.roles.role import Role
from ropd_jax.teacher.roles.templates import prompt_sha
from ropd_jax.teacher.roles.verifier import Asking
from ropd_jax.teacher.rubric_store import RubricStore
from ropd_jax.teacher.tape.client import TapedClient, open_tape
from ropd_jax.teacher.tape.reference_index import TeacherIndex, read_index
from ropd_jax.teacher.teacher import TEMPLATES, VARIANTS, Teacher
from ropd_jax.teacher.traffic.budget import Budget, Caps, MeteredClient
from ropd_jax.teacher.traffic.limits import Limits
from ropd_jax.teacher.traffic.prices import Prices
from ropd_jax.teacher.traffic.retries import MOST_TIME, LimitedClient
from ropd_jax.teacher.traffic.router import Routes
from ropd_jax.teacher.traffic.stats import TeacherStats
from ropd_jax.utils.suggest import near

log = logging.getLogger(__name__)

SCRIPTED = "scripted"  # the provider, and its model
PROVIDERS = (SCRIPTED, "gemini", "openai")
ROLE_KEYS = {  # our name -> the config's name
    "reference": "reference",
    "rubric": "rubricator",
    "verify": "verifier",
    "score": "scorer",
    "judge": "judge",
}
_ENDPOINT = ("provider", "base_url", "api_key_env")
_ACCOUNT = ("organization", "project", "location", "vertexai")  # for the teacher's own provider
_LIMITS = (
    "concurrency", "min_concurrency", "requests_per_minute", "tokens_per_minute", "timeout_s", "attempts", "max_wait_s",
    "outage_wait_s", "hedge_after_s", "order",
)  # fmt: skip

Sources = tuple[tuple[Endpoint, Role], ...]  # usually one; for references as many as ``references_from`` names


def build_teacher(
    teacher: Mapping[str, Any],
    *,
    seed: int = 0,
    answer_key: Iterable[tuple[str, str]] | None = None,
    share: float = 1.0,
    host: int = 0,
    workdir: str | os.PathLike[str] | None = None,
    needs: Collection[str] = ("reference", "rubric", "verify"),
) -> Teacher:
    """The teacher that ``cfg.teacher`` describes.

    Args:
        teacher: ``cfg.teacher``, a ConfigDict or a plain mapping with all keys of the default.
        seed: for the fences and the order in which answers are shown.
        answer_key: (question, worked solution) pairs for the scripted teacher, instead of ``scripted.answer_key``.
        share: this host's share of the limits, 1/N with N hosts.
        host: index of this host; each host has its own tape and its own spending file.
        workdir: directory of the tape if ``teacher.tape.path`` is ""; if both are missing, there is no tape.
        needs: the roles that will be used; the others do not need a key.

    Raises:
        ConfigurationError: there is no API key, the provider is unknown, the answer key cannot be read, or there is a
            cap in dollars for a model without a price.
    """
    stats = TeacherStats()
    budget = Budget(
        Caps(**dict(teacher["budget"])),
        Prices.load(teacher["prices"]),
        None if workdir is None else pathlib.Path(workdir) / (f"spent.{host}.json" if host else "spent.json"),
    )
    mode = teacher["tape"]["mode"]
    tape = open_tape(mode, teacher["tape"]["path"], workdir, host=host)
    roles = {name: role_of(teacher, key) for name, key in ROLE_KEYS.items()}
    references = reference_sources(teacher)
    index = open_index(teacher)
    prompts = _prompt_shas({name: role for name, (_, role) in roles.items()})
    make = functools.partial(
        make_client,
        **limit_options(teacher, share=share),
        scripted=dict(teacher["scripted"]) | ({} if answer_key is None else {"answer_key": answer_key}),
        stats=stats,
        budget=budget,
    )
    taped = (
        None
        if tape is None
        else functools.partial(
            TapedClient, tape=tape, mode=mode, prompts=prompts, on_answer=functools.partial(stats.count, "taped")
        )
    )
    panel = panel_sources(teacher)
    asked: dict[str, Sources] = {name: (roles[name],) for name in ("rubric", "score", "judge")} | {"verify": panel}
    if index is None:  # an index answers for the references, so their model needs no key
        asked["reference"] = references
    asked = {name: sources for name, sources in asked.items() if name in needs}
    endpoints = dict.fromkeys(endpoint for sources in asked.values() for endpoint, _ in sources)
    clients = {endpoint: _client(endpoint, make, taped) for endpoint in endpoints}
    if mode != "replay":
        for name, sources in asked.items():
            for endpoint, role in sources:
                budget.require_price(name, endpoint.provider, role.model, endpoint.base_url)
                _check_model(f"teacher.{ROLE_KEYS[name]}", endpoint, role.model)
    return Teacher(
        _joined({name: tuple(clients[endpoint] for endpoint, _ in sources) for name, sources in asked.items()}),
        reference=tuple(role for _, role in references),
        rubric=roles["rubric"][1],
        verify=tuple(role for _, role in panel),
        score=roles["score"][1],
        judge=roles["judge"][1],
        asking=asking_of(teacher),
        references_m=teacher["references"],
        max_answer_chars=teacher["max_answer_chars"],
        screen_criteria=teacher["screen_criteria"],
        repeat_frac=teacher["health"]["repeat_frac"],
        store=RubricStore(teacher["rubric_reuse"], epochs=teacher["rubric_epochs"]),
        index=index,
        seed=seed,
        stats=stats,
        budget=budget,
        tape=tape,
        refreshes=mode == "refresh",
    )


def _check_model(key: str, endpoint: Endpoint, model: str) -> None:
    """Raises if a role still has the scripted model under another provider.

    A custom address can be that of ``ropd serve-teacher``, whose model has this name.
    """
    if model == SCRIPTED and endpoint.provider != SCRIPTED and not endpoint.base_url:
        raise ConfigurationError(
            f"{key}.model is still {model!r}, but its provider is {endpoint.provider!r}, which does not have this "
            f"model; set {key}.model"
        )


def _prompt_shas(roles: Mapping[str, Role]) -> dict[str, str]:
    """Content hash of every prompt template that a run can use, by name; stored with each entry of the tape."""
    own = (role.template or TEMPLATES[name] for name, role in roles.items())
    return {name: prompt_sha(name) for name in (*own, REASK_TEMPLATE, *VARIANTS)}


def _client(
    endpoint: Endpoint, make: Callable[..., ChatClient], taped: Callable[..., TapedClient] | None
) -> ChatClient:
    """The client of one endpoint, with the tape if there is one. A replay never creates the provider's client."""
    make = functools.partial(make, **dataclasses.asdict(endpoint))
    return make() if taped is None else taped(make, provider=endpoint.provider, address=endpoint.address)


def _joined(routes: Mapping[str, tuple[ChatClient, ...]]) -> ChatClient:
    """The only client if all roles share one, else a ``Routes``."""
    distinct = {id(c): c for several in routes.values() for c in several}
    return next(iter(distinct.values())) if len(distinct) == 1 else Routes(routes)


# ------------------------------------------------------------------------------------------------------- clients


def limit_options(teacher: Mapping[str, Any], *, share: float = 1.0) -> dict[str, Any]:
    """The limits that ``cfg.teacher`` sets, as keywords of ``make_client``; ``share`` is 1/N with N hosts."""
    return {name: teacher[name] for name in _LIMITS} | {"share": share}


def make_client(
    *,
    provider: str,
    base_url: str = "",
    api_key_env: str = "",
    organization: str = "",
    project: str = "",
    location: str = "",
    vertexai: bool = False,
    headers: tuple[tuple[str, str], ...] = (),
    scripted: Mapping[str, Any] | None = None,
    stats: TeacherStats | None = None,
    budget: Budget | None = None,
    **limits: Any,
) -> LimitedClient:
    """A provider's client wrapped with limits, retries and a time limit.

    Args:
        provider: ``scripted``, ``gemini`` or ``openai``.
        base_url: "" means the provider's own address. For ``openai`` it ends in ``/v1``.
        api_key_env: name of the environment variable with the key; "" means the provider's usual one.
        organization, project, location, vertexai, headers: see `Endpoint`.
        scripted: options for ``ScriptedClient``.
        stats: where retries are counted.
        budget: counts the cost of each attempt and blocks it at a cap.
        limits: fields of ``Limits`` (concurrency, timeout_s, attempts, ...).

    Raises:
        ConfigurationError: the provider is unknown, there is no key, or a number is out of range.
    """
    if provider not in PROVIDERS:
        raise ConfigurationError(f"teacher.provider is {provider!r}, which is unknown; {near(provider, PROVIDERS)}")
    bounds = Limits(**limits)
    longest_s = MOST_TIME * bounds.timeout_s  # for one HTTP exchange; ``LimitedClient`` limits an attempt
    check_address(base_url)
    client: ChatClient
    if provider == "scripted":  # imported here: an SDK takes a second to load, and a run needs at most one
        from ropd_jax.teacher.scripted.client import ScriptedClient

        client = ScriptedClient(**(scripted or {}))
        bounds = dataclasses.replace(bounds, outage_wait_s=0.0)  # it has no server that can be down
    elif provider == "gemini":
        from ropd_jax.teacher.clients.gemini import GeminiClient

        client = GeminiClient(
            base_url=base_url, api_key_env=api_key_env, timeout_s=longest_s, headers=headers, vertexai=vertexai,
            project=project, location=location,
        )  # fmt: skip
    else:
        from ropd_jax.teacher.clients.openai import OpenAIClient

        client = OpenAIClient(
            base_url=base_url, api_key_env=api_key_env, timeout_s=longest_s, headers=headers,
            organization=organization, project=project,
        )  # fmt: skip
    if budget is not None:
        client = MeteredClient(client, budget, provider=provider, base_url=base_url)
    return LimitedClient(client, bounds, stats=stats)


# --------------------------------------------------------------------------------------------------------- roles


def role_of(teacher: Mapping[str, Any], key: str, changes: Mapping[str, Any] | None = None) -> tuple[Endpoint, Role]:
    """Where a role's requests go, and with which settings. ``key`` is the config's name of the role.

    Raises:
        ConfigurationError: an address contains a user, a password or a query, or cannot be read; or there is a secret
            in the headers or in ``extra``.
    """
    own, changes = dict(teacher[key]), dict(changes or {})
    if changes.get("provider", own["provider"]) != own["provider"]:
        own["extra"] = {}  # another provider's parameters have other names
    row = {"headers": {}, "extra": {}} | own | changes  # missing in configs of earlier versions
    check_address(teacher["base_url"])
    check_address(row["base_url"], f"teacher.{key}.base_url")
    headers = checked_headers(row["headers"], f"teacher.{key}.headers")
    if row["provider"] and row["provider"] != teacher["provider"]:  # another provider: other address and account
        endpoint = Endpoint(row["provider"], row["base_url"], row["api_key_env"], headers=headers)
    else:
        headers = headers or checked_headers(teacher.get("headers", {}), "teacher.headers")
        account = {k: teacher[k] for k in _ACCOUNT if k in teacher}  # missing in configs of earlier versions
        address = {k: row[k] or teacher[k] for k in _ENDPOINT}  # "" inherits
        endpoint = Endpoint(**address | account, headers=headers)
    extra = checked_extra(row["extra"], f"teacher.{key}")
    return endpoint, Role(row["model"], row["temperature"], row["max_output_tokens"], row["template"], extra)


def asking_of(teacher: Mapping[str, Any]) -> Asking:
    """How verdicts are requested. A key missing in an older config has its default value.

    Raises:
        ConfigurationError: the form is unknown, or a number is out of range.
    """
    row = teacher["verifier"]
    return Asking(**{field.name: row[field.name] for field in dataclasses.fields(Asking) if field.name in row})


def check_addresses(teacher: Mapping[str, Any]) -> None:
    """Raises if an address in ``cfg.teacher`` has a secret, before the config is stored or compared across hosts.

    Raises:
        ConfigurationError: as `role_of`, `reference_sources` and `panel_sources`.
    """
    for key in ROLE_KEYS.values():
        role_of(teacher, key)
    reference_sources(teacher)
    panel_sources(teacher)


def reference_sources(teacher: Mapping[str, Any]) -> Sources:
    """The models that write the references: those in ``references_from``, or else the reference role's model.

    Raises:
        ConfigurationError: an entry is neither a name nor a mapping of the role's keys, or there are more models than
            references.
    """
    sources = _sources(teacher, "reference", teacher["references_from"], "teacher.references_from")
    if len(sources) > teacher["references"]:
        raise ConfigurationError(
            f"teacher.references_from names {len(sources)} models, but teacher.references={teacher['references']} "
            f"is smaller; raise teacher.references to at least {len(sources)}"
        )
    return sources


def panel_sources(teacher: Mapping[str, Any]) -> Sources:
    """The verifiers: those in ``teacher.verifier.panel``, or else the verifier role's model.

    Raises:
        ConfigurationError: an entry is neither a name nor a mapping of a role's keys, or is listed twice.
    """
    option = "teacher.verifier.panel"
    sources = _sources(teacher, "verifier", teacher["verifier"].get("panel", ()), option)
    if len(set(sources)) < len(sources):
        raise ConfigurationError(f"{option} lists a verifier twice; expected different ones, or teacher.verifier.votes")
    return sources


def _sources(teacher: Mapping[str, Any], key: str, entries: Iterable[Any], option: str) -> Sources:
    """One (Endpoint, Role) for each entry of ``option``; without entries, one for the role ``key``."""
    known = set(teacher["reference"])  # the keys that every role has
    sources = []
    for n, entry in enumerate(entries or ({},), 1):
        changes = {"model": entry} if isinstance(entry, str) else entry
        if not isinstance(changes, Mapping) or (unknown := sorted(set(changes) - known)):
            what = f"has unknown keys {', '.join(unknown)}" if isinstance(changes, Mapping) else f"is {entry!r:.60}"
            expected = ", ".join(sorted(known))
            raise ConfigurationError(
                f"{option}: entry {n} {what}; expected a model's name or a mapping with some of {expected}"
            )
        sources.append(role_of(teacher, key, changes))
    return tuple(sources)


def providers(teacher: Mapping[str, Any], needs: Collection[str] = tuple(ROLE_KEYS)) -> set[str]:
    """The providers of the roles that will be used."""
    sources = [role_of(teacher, ROLE_KEYS[name]) for name in needs if name not in ("reference", "verify")]
    sources += reference_sources(teacher) if "reference" in needs and not teacher["index"] else ()
    sources += panel_sources(teacher) if "verify" in needs else ()
    return {endpoint.provider for endpoint, _ in sources}


def open_index(teacher: Mapping[str, Any]) -> TeacherIndex | None:
    """The index that ``teacher.index`` names, or None. Logs which models wrote it."""
    if not teacher["index"]:
        return None
    index = read_index(teacher["index"])
    models = sorted({str(row.fingerprint.get("model", "unknown")) for row in index})
    log.info("references for %d prompts from %s, by %s", len(index), index.name, ", ".join(models) or "no model")
    return index
