"""The client of a rollout server: its requests, its retries, and what ends a run. The server has no model here."""

from __future__ import annotations

import time

import pytest

from ropd_jax.sampling.external import RolloutServer
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.sampling.server_config import ServerConfig, Settings, check_rule
from ropd_jax.teacher import ConfigurationError, OutageError
from ropd_jax.types import UserError
from tests.rollout_server import FakeVLLM, serving

WANT = Settings(n=4, max_tokens=3, rule=SamplingRule(), stop_ids=(1,), stop=(), vocab=64)


def config(url="http://127.0.0.1:9/v1", **changes):
    how = dict(
        base_url=url, model="", api_key_env="", sync="vllm", sync_every=1, weights_dir="", answers_per_request=0,
        concurrency=8, timeout_s=20.0, attempts=3, wait_s=0.0, max_gap=0.1,
    )  # fmt: skip
    return ServerConfig(**(how | changes))


class Counting(FakeVLLM):
    """Answers with tokens that are a function of the request, instead of a model's."""

    def complete(self, body):
        choices = []
        for i in range(body["n"]):
            ids = [2 + body["prompt"][0], 3 + (body["seed"] + i) % 60, 1][: body["max_tokens"]]
            logprobs = {"tokens": [f"token_id:{t}" for t in ids], "token_logprobs": [-12.0] * len(ids)}
            reason = "stop" if ids[-1] == 1 else "length"
            choices.append({"index": i, "finish_reason": reason, "logprobs": logprobs, "token_ids": ids})
        return self.spoil({"choices": choices})


async def at_once(_):
    """A wait between two attempts."""


def groups(client, prompts=((5, 6), (7, 8)), ids=("a", "b"), seed=0, step=0, check=lambda: None, want=WANT):
    return dict(client.groups(want, prompts, ids, seed=seed, step=step, check=check))


@pytest.fixture
def server():
    return Counting()


@pytest.fixture
def opened():
    """Clients that are closed when the test ends."""
    clients = []

    def open_client(url, **changes):
        clients.append(RolloutServer(config(url, **changes), sleep=at_once))
        return clients[-1]

    yield open_client
    for client in clients:
        client.close()


def test_a_request_leaves_nothing_to_the_servers_defaults(server, opened):
    with serving(server) as url:
        client = opened(url)
        client.check([5], 64)
        found = groups(client)
    assert [a.tokens[0] for a in found[0]] == [7] * 4 and [a.tokens[0] for a in found[1]] == [9] * 4
    one, two = sorted(server.completions, key=lambda b: b["prompt"])
    assert one["prompt"] == [5, 6] and two["prompt"] == [7, 8] and one["seed"] != two["seed"]
    del one["prompt"], one["seed"]
    assert one == {
        "model": "student", "n": 4, "max_tokens": 3, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0,
        "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "logprobs": 1,
        "return_token_ids": True, "return_tokens_as_token_ids": True, "skip_special_tokens": False,
        "stop_token_ids": [1],
    }  # fmt: skip


def test_seeds_follow_from_seed_step_and_prompt_alone(server, opened):
    with serving(server) as url:
        client = opened(url)
        client.check([5], 64)
        first, again = groups(client), groups(client)
        other_step, other_seed = groups(client, step=1), groups(client, seed=1)
        twice = groups(client, prompts=[(5, 6), (5, 6)], ids=("a", "a"))
    assert first == again
    assert all(first != x for x in (other_step, other_seed)) and twice[0] == first[0] != twice[1]


def test_answers_can_be_asked_for_one_by_one(server, opened):
    with serving(server) as url:
        client = opened(url, answers_per_request=3)
        client.check([5], 64)
        found = groups(client, prompts=[(5, 6)], ids=("a",))
    assert sorted(b["n"] for b in server.completions) == [1, 3] and len(found[0]) == 4
    assert len({b["seed"] for b in server.completions}) == 2


def test_failures_are_repeated_and_then_end_the_run(server, opened):
    with serving(server) as url:
        client = opened(url)
        client.check([5], 64)
        server.status = [500, 429]
        assert len(groups(client, prompts=[(5, 6)], ids=("a",))[0]) == 4
        server.status = [500, 500, 500]
        with pytest.raises(ConfigurationError, match=r"failed 3 times \(sampling.server.attempts=3\)"):
            groups(client, prompts=[(5, 6)], ids=("a",))


def test_a_server_that_is_away_is_waited_for_and_told_its_weights_again(server, opened, tmp_path):
    with serving(server) as url:
        client = opened(url, wait_s=60.0)
        client.check([5], 64)
        client.load(str(tmp_path), 3)
        server.status = [503]
        assert len(groups(client, prompts=[(5, 6)], ids=("a",))[0]) == 4
    assert server.loaded == [str(tmp_path)] * 2
    paths = [path for path, _ in server.calls]
    assert paths[-3:] == ["/collective_rpc", "/reset_prefix_cache", "/v1/completions"]


def test_an_outage_ends_the_run_after_the_wait(opened):
    client = opened("http://127.0.0.1:9/v1", wait_s=0.0)
    with pytest.raises(OutageError, match=r"127.0.0.1:9/v1 has been unreachable for 0 s .*sampling.server.wait_s=0"):
        groups(client)
    with pytest.raises(ConfigurationError, match="nothing listens on this port; start the server first"):
        client.check([5], 64)


def test_the_model_must_be_one_that_the_server_lists(server, opened):
    with serving(server) as url:
        with pytest.raises(ConfigurationError, match=r"sampling.server.model='other'; expected one of .*: student"):
            opened(url, model="other").check([5], 64)
        server.adapters["another"] = ""
        with pytest.raises(ConfigurationError, match=r"sampling.server.model=''; expected one of .*: student, another"):
            opened(url).check([5], 64)


@pytest.mark.parametrize(("sync", "path"), [("vllm", "/collective_rpc"), ("sglang", "/update_weights_from_disk")])
def test_weights_are_loaded_by_their_path(server, opened, tmp_path, sync, path):
    with serving(server) as url:
        client = opened(url, sync=sync)
        client.load(str(tmp_path), 1)
        assert server.loaded == [str(tmp_path)] and server.calls[0][0] == path
        if sync == "sglang":
            with pytest.raises(ConfigurationError, match="no such directory"):
                client.load(str(tmp_path / "none"), 2)


def test_a_server_without_the_endpoint_names_how_it_is_enabled(opened, tmp_path):
    with serving(Counting(), port=0) as url:
        with pytest.raises(ConfigurationError, match=r"has no /x/collective_rpc|no /collective_rpc; start vLLM"):
            opened(url.replace("/v1", "/x/v1")).load(str(tmp_path), 1)
        with pytest.raises(ConfigurationError, match="with /v1 at its end"):
            opened(url.removesuffix("/v1")).check([5], 64)


def test_adapters_get_a_name_of_their_own_and_the_one_before_goes(server, opened, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.rollout_server.merged", lambda base, path: path)
    with serving(server) as url:
        client = opened(url, sync="vllm_lora", wait_s=60.0)
        client.check([5], 64)
        client.load(str(tmp_path), 1)
        [first] = server.adapters
        client.load(str(tmp_path), 2)
        [second] = server.adapters
        groups(client)
        server.adapters.clear()  # it has restarted
        groups(client, step=1)
    assert first != second and {b["model"] for b in server.completions} == {second}
    assert list(server.adapters) == [second]


def test_the_key_comes_from_the_named_variable_and_no_other(opened, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")
    with serving(Counting(key="right")) as url:
        with pytest.raises(ConfigurationError, match="rejects the key") as refused:
            opened(url).check([5], 64)
        monkeypatch.setenv("ROLLOUT_KEY", "right")
        opened(url, api_key_env="ROLLOUT_KEY").check([5], 64)
    assert "sk-of" not in str(refused.value)
    monkeypatch.delenv("ROLLOUT_KEY")
    with pytest.raises(ConfigurationError, match=r"ROLLOUT_KEY of sampling.server.api_key_env is not set"):
        opened(url, api_key_env="ROLLOUT_KEY")


def test_a_request_to_stop_ends_the_sampling_and_cancels_what_is_in_flight(server, opened):
    class Stop(Exception):
        pass

    def check():
        raise Stop

    server.spoil = lambda reply: time.sleep(0.5) or reply
    with serving(server) as url:
        client = opened(url)
        client.check([5], 64)
        with pytest.raises(Stop):
            groups(client, check=check)
        client.settle(lambda: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(sync="push"), "sampling.server.sync='push'; expected how the server gets new weights"),
        (dict(sync=""), "one of vllm, sglang, vllm_lora, none"),
        (dict(sync="none"), "set sampling.server.sync_every=0 if that is intended"),
        (dict(url=""), "sampling.server.base_url is empty"),
        (dict(url="http://me:secret@h/v1"), "sampling.server.base_url has more than an address"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(UserError) as error:
        config(**changes)
    assert message in str(error.value) and "secret@" not in str(error.value)


def test_a_rule_that_leaves_tokens_out_is_refused():
    check_rule(SamplingRule(0.7))
    for rule in (SamplingRule(1.0, 20), SamplingRule(1.0, 0, 0.9)):
        with pytest.raises(UserError, match=r"expected top_k=0 and top_p=1.0"):
            check_rule(rule)
