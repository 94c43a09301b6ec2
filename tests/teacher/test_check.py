"""The first call to each model before weights are loaded: errors, warnings, and when nothing is sent."""

from __future__ import annotations

import dataclasses
import logging
import re

import pytest

from ropd_jax.teacher import ConfigurationError, build_teacher
from ropd_jax.teacher.check import check_models
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.train import train
from ropd_jax.training import setup
from tests.helpers import serving
from tests.runs.test_train import tiny_config

NEEDS = ("reference", "rubric", "verify")
DEAD = "http://127.0.0.1:9/v1"


class Counting(ScriptedClient):
    def __init__(self):
        super().__init__()
        self.requests = []

    def reply(self, request):
        self.requests.append(request)
        return super().reply(request)


def config(**changes):
    return tiny_config(**{f"teacher__{k}": v for k, v in changes.items()}).teacher


def test_each_role_and_model_gets_one_cheap_call(caplog):
    caplog.set_level(logging.INFO)
    client = Counting()
    with serving(client) as address:
        check_models(
            config(provider="openai", base_url=f"{address}/v1", verifier__panel=("a", "b")), (*NEEDS, "score", "judge")
        )
    assert len(client.requests) == 6 and {r.max_output_tokens for r in client.requests} == {64}
    assert sorted(r.model for r in client.requests) == ["", "a", "b", "scripted", "scripted", "scripted"]
    assert [r.levelname for r in caplog.records if r.name == "ropd_jax.teacher.check"] == ["INFO"] * 6


@pytest.mark.parametrize("provider", ["openai", "gemini"])
def test_a_wrong_key_stops_with_the_name_of_the_role(provider, monkeypatch):
    monkeypatch.setenv("MY_KEY", "another-key")
    with serving(api_key="the-key") as address:
        url = address + ("/v1" if provider == "openai" else "")
        with pytest.raises(ConfigurationError, match=r"teacher\.(reference|rubricator|verifier): .*") as e:
            check_models(config(provider=provider, base_url=url, api_key_env="MY_KEY"), NEEDS)
    assert "another-key" not in str(e.value) and e.value.cause == "unauthorized"


def test_a_server_that_cannot_be_reached_is_a_warning_for_each_role(caplog):
    check_models(config(provider="openai", base_url=DEAD), NEEDS)
    warned = [r.getMessage() for r in caplog.records if r.name == "ropd_jax.teacher.check"]
    assert len(warned) == 3 and all("connection" in line for line in warned)


@pytest.mark.parametrize(
    "changes",
    [
        dict(provider="openai", base_url=DEAD, check=False),
        dict(provider="openai", base_url=DEAD, tape__mode="replay"),
        dict(provider="scripted"),
    ],
)
def test_nothing_is_sent_without_need(changes, caplog):
    check_models(config(**changes), NEEDS)
    assert [r for r in caplog.records if r.name == "ropd_jax.teacher.check"] == []


def test_references_of_an_index_need_no_call():
    client = Counting()
    with serving(client) as address:
        check_models(config(provider="openai", base_url=f"{address}/v1", index="refs.jsonl"), NEEDS)
    assert sorted(r.model for r in client.requests) == ["scripted", "scripted"]  # rubricator and verifier


class Babbling(ScriptedClient):
    """A server that computes wrongly."""

    def reply(self, request):
        said = "\x1b[2J000,dlaso\n}00.000 [red]amount" + 9 * " genetics"
        return dataclasses.replace(super().reply(request), text=said)


def test_the_beginning_of_a_reference_is_shown_so_that_nonsense_is_seen(caplog):
    caplog.set_level("INFO")
    with serving(Babbling()) as address:
        check_models(config(provider="openai", base_url=f"{address}/v1"), ("reference",))
    (line,) = [r.getMessage() for r in caplog.records if r.name == "ropd_jax.teacher.check"]
    said = "\\x1b[2J000,dlaso }00.000 [red]amount" + 3 * " genetics"
    assert (
        re.sub(r"\d+\.\d s", "N s", line)[:90] == f'teacher: teacher.reference: scripted answers in N s: "{said}'[:90]
    )
    assert len(line) < 130 and line.endswith('"')


def test_train_checks_before_it_loads_weights_and_writes_nothing(tmp_path, monkeypatch):
    def weights(*args, **options):
        raise MemoryError("the weights")

    monkeypatch.setattr(setup, "load_checkpoint", weights)
    monkeypatch.setenv("OPENAI_API_KEY", "another-key")
    with serving(api_key="the-key") as address:
        url = dict(teacher__provider="openai", teacher__base_url=f"{address}/v1")
        with pytest.raises(ConfigurationError, match=r"^teacher\.(reference|rubricator|verifier): "):
            train(tiny_config(**url), tmp_path / "run")
        with pytest.raises(MemoryError, match="the weights"):
            train(tiny_config(**url, teacher__check=False), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (dict(reference__model="gpt-5", verifier__model="gpt-5"), "teacher.rubricator.model"),
        (dict(reference__model="gpt-5", rubricator__model="gpt-5"), "teacher.verifier.model"),
    ],
)
def test_a_role_that_still_has_the_scripted_model_is_named(changes, key, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with pytest.raises(ConfigurationError, match=f"{key} is still 'scripted'.* provider is 'openai'.*; set {key}"):
        build_teacher(config(provider="openai", **changes))


def test_the_scripted_model_is_allowed_where_it_can_be(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    build_teacher(config(provider="openai", base_url=DEAD))  # ropd serve-teacher
    models = dict(reference__model="a", rubricator__model="b", verifier__model="c")
    build_teacher(config(provider="openai", **models))  # the scorer is not called
    build_teacher(config(verifier__provider="openai", verifier__model="c"))
