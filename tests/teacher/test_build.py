"""From a config to a teacher: a provider for each role, references from several models in one group."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from ropd_jax import configs
from ropd_jax.teacher import ConfigurationError, build_teacher, make_client
from ropd_jax.teacher.build import providers, reference_sources, role_of
from ropd_jax.teacher.clients.endpoint import Endpoint
from ropd_jax.teacher.judge_group import judge
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.teacher.scripted.server import running


class Noting(ScriptedClient):
    """A scripted teacher that records the requested models."""

    def __init__(self):
        super().__init__()
        self.models: list[str] = []

    def reply(self, request):
        self.models.append(request.model)
        return super().reply(request)


def config(**changes):
    cfg = configs.default()
    cfg.update_from_flattened_dict({"teacher." + k.replace("__", "."): v for k, v in changes.items()})
    return cfg


def judged(cfg, prompt, answers):
    """One group through two real HTTP servers: the models requested from each, and the judgement."""

    async def run():
        async with contextlib.AsyncExitStack() as stack:
            left, right = Noting(), Noting()
            roots = [await stack.enter_async_context(running(c, api_key=k)) for c, k in ((left, "LK"), (right, "RK"))]
            teacher = build_teacher(cfg(*roots).teacher)
            try:
                return left.models, right.models, await judge(teacher, prompt, answers, step=0)
            finally:
                await teacher.close()

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv("LEFT_KEY", "LK")
    monkeypatch.setenv("RIGHT_KEY", "RK")


def test_rubricator_and_verifier_of_different_providers_and_references_of_both(sum_prompt, sum_answers):
    def cfg(left, right):
        gemini = {"provider": "gemini", "base_url": right, "api_key_env": "RIGHT_KEY", "model": "g-ref"}
        return config(
            provider="openai", base_url=left + "/v1", api_key_env="LEFT_KEY",
            reference__model="o-ref", rubricator__model="o-rub", references=5, references_from=("o-ref", gemini),
            verifier__provider="gemini", verifier__base_url=right, verifier__api_key_env="RIGHT_KEY",
            verifier__model="g-ver",
        )  # fmt: skip

    left, right, judgement = judged(cfg, sum_prompt, sum_answers)
    assert sorted(left) == ["o-ref"] * 3 + ["o-rub"] and sorted(right) == ["g-ref"] * 2 + ["g-ver"]
    assert judgement.reference_models == ("o-ref", "g-ref", "o-ref", "g-ref", "o-ref")
    assert judgement.lineage.model == "o-rub" and None not in judgement.rewards


def test_the_rewards_are_those_of_one_teacher(sum_prompt, sum_answers):
    def two(left, right):
        return config(
            provider="openai", base_url=left + "/v1", api_key_env="LEFT_KEY",
            verifier__base_url=right + "/v1", verifier__api_key_env="RIGHT_KEY",
        )  # fmt: skip

    left, right, judgement = judged(two, sum_prompt, sum_answers)
    assert (len(left), len(right)) == (5, 1)
    one = asyncio.run(judge(build_teacher(config().teacher), sum_prompt, sum_answers, step=0))
    assert judgement == one


def test_roles_that_agree_share_one_client():
    assert not hasattr(build_teacher(config().teacher).client, "client_of")
    cfg = config(references_from=("a", "b"), references=2)
    teacher = build_teacher(cfg.teacher)
    assert not hasattr(teacher.client, "client_of") and [r.model for r in teacher.sources] == ["a", "b"]


def test_a_role_inherits_the_address_unless_it_has_another_provider():
    cfg = config(provider="openai", base_url="http://x/v1", api_key_env="K", verifier__model="v")
    assert role_of(cfg.teacher, "verifier")[0] == Endpoint("openai", "http://x/v1", "K")
    cfg.teacher.verifier.base_url = "http://y/v1"
    assert role_of(cfg.teacher, "verifier")[0] == Endpoint("openai", "http://y/v1", "K")
    cfg = config(provider="openai", base_url="http://x/v1", api_key_env="K", verifier__provider="gemini")
    assert role_of(cfg.teacher, "verifier")[0] == Endpoint("gemini", "", "")
    assert providers(cfg.teacher) == {"openai", "gemini"}


def test_an_entry_changes_keys_of_the_reference_role():
    cfg = config(references_from=("a", {"model": "b", "temperature": 1.0, "max_output_tokens": 9}))
    (_, a), (_, b) = reference_sources(cfg.teacher)
    assert (a.model, a.temperature, a.max_output_tokens) == ("a", 0.7, 8192)
    assert (b.model, b.temperature, b.max_output_tokens) == ("b", 1.0, 9)


@pytest.mark.parametrize(
    "entries, message",
    [
        (("a", {"modle": "b"}), "entry 2 has unknown keys modle; expected"),
        ((3,), "entry 1 is 3; expected a model's name"),
        (("a", "b", "c", "d", "e"), "names 5 models, but teacher.references=4 is smaller"),
    ],
)
def test_a_wrong_entry_is_reported(entries, message):
    with pytest.raises(ConfigurationError, match=message):
        build_teacher(config(references_from=entries).teacher)


def test_an_unknown_provider_names_the_near_one():
    with pytest.raises(ConfigurationError, match=r"'gemni'.*did you mean gemini\?"):
        make_client(provider="gemni")


@pytest.mark.parametrize("options", [dict(concurrency=0), dict(attempts=0), dict(timeout_s=0), dict(base_url="host:1")])
def test_numbers_out_of_range_are_named(options):
    with pytest.raises(ConfigurationError, match=f"teacher.{next(iter(options))} is"):
        make_client(provider="scripted", **options)


def test_build_teacher_has_the_roles_of_the_config():
    cfg = configs.default()
    cfg.teacher.update(
        concurrency=2, min_concurrency=1, tokens_per_minute=30.0, max_wait_s=9.0, max_answer_chars=500, references=3
    )
    for key in ("reference", "rubricator", "verifier"):
        cfg.teacher[key].update(model="m", temperature=0.5, max_output_tokens=7)
    cfg.teacher.rubricator.model = "r"
    with cfg.unlocked(), cfg.ignore_type():
        cfg.teacher.verifier.temperature = None
    teacher = build_teacher(cfg.teacher, seed=4)
    assert [teacher.roles[r].model for r in ("reference", "rubric", "verify")] == ["m", "r", "m"]
    limits = teacher.client.limits
    assert limits.slots == (1, 2) and limits.tokens_per_minute == 30.0 and limits.max_wait_s == 9.0
    assert teacher.roles["verify"].temperature is None and teacher.roles["reference"].max_output_tokens == 7
