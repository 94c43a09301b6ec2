"""Whole runs whose rollouts come from a server: they train, are resumed without sampling twice, and end where the
server's weights are not the student's."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.sampling.engine import EngineConfig, sample_groups
from ropd_jax.sampling.external import RolloutServer
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.sampling.server_config import Settings
from ropd_jax.train import train
from ropd_jax.training.served import rollout_of
from ropd_jax.training.setup import check_config
from ropd_jax.types import Message, Prompt, UserError
from ropd_jax.weights.student import load_checkpoint
from tests.helpers import trees_max_diff
from tests.rollout_server import PROMPT_LEN, FakeVLLM, serving
from tests.runs.test_train import finished_params, tiny_config
from tests.sampling.test_external import config as client_config


def config(url="http://127.0.0.1:9/v1", **changes):
    how = dict(
        sampling__engine="openai", sampling__server__base_url=url, sampling__server__sync="vllm",
        sampling__server__wait_s=0.0, data__heldout=False, optim__lr=1e-3, optim__warmup_steps=0, steps=3,
    )  # fmt: skip
    return tiny_config(**(how | changes))


def steps_of(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "update/loss" in row]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir, server = tmp_path_factory.mktemp("served") / "run", FakeVLLM()
    with serving(server) as url:
        train(config(url), workdir)
    return workdir, server


def test_each_step_is_sampled_by_the_newest_weights(whole):
    workdir, server = whole
    assert len(server.completions) == 3 * 4 and len(server.loaded) == 3 == len(set(server.loaded))
    assert all(row["update/logp_gap_max"] < 1e-4 for row in steps_of(workdir))  # weights of a step before: 1e-2
    assert not (workdir / "server_weights").exists() and not list((workdir / "rollouts").iterdir())


def test_the_update_corrects_for_the_other_engine(whole):
    assert all("update/capped_frac" in row and "update/clip_frac" not in row for row in steps_of(whole[0]))


class Dies(FakeVLLM):
    """Answers this many prompts, and nothing after that."""

    def __init__(self, after):
        super().__init__()
        self.after, self.answered = after, []

    def complete(self, body):
        with self._one:
            if "ignore_eos" not in body:  # that is the first call
                if len(self.answered) == self.after:
                    return {"choices": []}
                self.answered.append(body["prompt"])
            return self._complete(body)


def test_a_killed_step_is_resumed_with_the_answers_that_it_had(whole, tmp_path):
    workdir, first, second = tmp_path / "run", Dies(after=6), FakeVLLM()
    with serving(first) as url, pytest.raises(UserError, match="sent 0 answers"):
        train(config(url, sampling__server__concurrency=1), workdir)
    assert (workdir / "rollouts" / "step_000001.jsonl.gz").exists()
    with serving(second) as url:
        train(config(url), workdir)
    again = [b["prompt"] for b in second.completions]
    assert len(again) == 2 + 4 and not any(p in again for p in first.answered[4:])
    assert trees_max_diff(finished_params(workdir, 3), finished_params(whole[0], 3)) == 0.0


def test_a_server_that_keeps_its_old_weights_is_found_at_the_next_step(tmp_path):
    server = FakeVLLM()
    server.load_is_broken = True
    cfg = dict(optim__lr=1e-2, sampling__server__max_gap=0.01)
    with serving(server) as url, pytest.raises(UserError, match=r"differ from the trainer's by .* after 1 updates"):
        train(config(url, **cfg), tmp_path / "run")
    assert len(steps_of(tmp_path / "run")) == 1
    shutil.rmtree(tmp_path / "run")


def test_log_probs_before_the_temperature_are_named(tmp_path):
    server = FakeVLLM()
    server.raw = True
    cfg = dict(sampling__temperature=0.5, sampling__server__max_gap=0.02)
    with serving(server) as url, pytest.raises(UserError, match=r"log-probs at temperature 1, .*processed_logprobs"):
        train(config(url, **cfg), tmp_path / "run")


def test_adapters_travel_as_adapters(tmp_path):
    server = FakeVLLM()
    lora = dict(student__lora__rank=4, student__lora__alpha=8.0, sampling__server__sync="vllm_lora", steps=2)
    with serving(server) as url:
        train(config(url, **lora), tmp_path / "run")
    rows = steps_of(tmp_path / "run")
    assert len(rows) == 2 and all(row["update/logp_gap_max"] < 1e-4 for row in rows)
    assert len(server.loaded) == 2 and len({b["model"] for b in server.completions}) == 2


def test_merged_adapters_are_the_policy_and_held_out_answers_are_of_the_newest(tmp_path):
    server = FakeVLLM()
    changes = dict(
        student__lora__rank=4, student__lora__alpha=8.0, sampling__server__sync="sglang", steps=2, data__heldout=True,
        sampling__server__sync_every=2, data__heldout_size=4,
    )  # fmt: skip
    with serving(server) as url:
        train(config(url, **changes), tmp_path / "run")
    assert [path.partition("step_")[2][:6] for path in server.loaded] == ["000000", "000002"]  # before, and after
    one, two = steps_of(tmp_path / "run")
    assert one["update/logp_gap_max"] < 1e-4 < two["update/logp_gap_max"]  # step 1 is one update behind


def test_a_rollout_has_the_fields_of_our_own_samplers(tmp_path):
    student, prompt_T = load_checkpoint("tiny"), np.asarray([5, 9, 12], np.int32)
    stop = (student.tokenizer.decode([7]),)
    engine = EngineConfig(
        rollouts=4, prompts=1, prompt_len=PROMPT_LEN, max_tokens=12, stop_ids=student.tokenizer.stop_ids,
        rule=SamplingRule(), stop=stop,
    )  # fmt: skip
    server = FakeVLLM()
    with serving(server) as url:
        client = RolloutServer(client_config(url))
        client.check([5], student.cfg.vocab_size)
        want = Settings(4, 12, engine.rule, engine.stop_ids, stop, student.cfg.vocab_size)
        [(_, answers)] = client.groups(want, [prompt_T], ["a"], seed=0, step=0, check=lambda: None)
        client.close()
    theirs = [rollout_of(student.tokenizer, engine, prompt_T, a) for a in answers]
    params, prompts = jax.tree.map(jnp.asarray, student.params), [Prompt("p", (Message("user", ""),))]
    seed = server.completions[0]["seed"]
    [group] = sample_groups(student.cfg, engine, params, student.tokenizer, prompts, [prompt_T], seed=seed, step=0)
    for a, b in zip(theirs, group.rollouts, strict=True):
        assert (a.text, a.finish_reason, a.opened, a.drawn_logp_T) == (b.text, b.finish_reason, b.opened, None)
        assert np.array_equal(a.tokens_T, b.tokens_T) and a.tokens_T.dtype == np.int32
        np.testing.assert_allclose(a.logp_T, b.logp_T, atol=1e-5)
    assert {r.finish_reason for r in theirs} <= {"stop", "length"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(sampling__engine="vllm"), "sampling.engine='vllm'; expected own or openai"),
        (dict(sampling__server__sync=""), "sampling.server.sync=''"),
        (dict(sampling__server__sync="vllm_lora"), "student.lora.rank is 0"),
        (dict(sampling__server__sync="none"), "set sampling.server.sync_every=0"),
        (
            dict(sampling__server__sync="none", sampling__server__sync_every=0, data__heldout=True),
            "set data.heldout=False",
        ),
        (dict(sampling__top_k=5), "expected top_k=0"),
        (dict(loss__ratio="sequence"), "needs importance weights per token"),
        (dict(stream__cap=0.5), "stream.cap=0.5; expected at least 1"),
    ],
)
def test_a_config_that_cannot_work_is_refused_before_anything_is_loaded(changes, message):
    with pytest.raises(UserError) as error:
        check_config(config(**changes))
    assert message in str(error.value)


def test_our_own_sampler_needs_no_server():
    check_config(tiny_config(sampling__server__sync="no such thing"))
