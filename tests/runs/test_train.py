"""The run: what an update may depend on, whole runs through every provider, and mistakes found before any work."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

from experiments import quickstart
from ropd_jax.core.advantages import group_advantages
from ropd_jax.core.batches import TokenSequence, TrainBatch, make_batch, pack, split_parts
from ropd_jax.methods import load_method
from ropd_jax.models import transformer
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.train import train
from ropd_jax.training.failure_gate import TooManyFailures
from ropd_jax.training.setup import read_config, update_config
from ropd_jax.training.update import State, make_update, update_step
from ropd_jax.types import UserError
from ropd_jax.weights.hf import save_hf
from ropd_jax.weights.student import load_checkpoint
from ropd_jax.workdir.checkpoint import Checkpoints
from ropd_jax.workdir.status import read_status
from tests.helpers import TINY, restore_raw, serving, trees_max_diff

LENGTH = 20


def tiny_config(**changes):
    """The quickstart, reduced to seconds."""
    cfg = quickstart.get_config()
    cfg.mesh.fsdp = 1
    cfg.steps = 2
    cfg.data.size, cfg.data.heldout_size = 200, 32
    cfg.data.prompts_per_step, cfg.sampling.rollouts = 4, 4
    cfg.eval.prompts_at_once, cfg.eval.sampled = 32, False
    cfg.checkpoint.every = 1
    cfg.log.trackers = ()
    for key, value in changes.items():
        cfg.update_from_flattened_dict({key.replace("__", "."): value})
    return cfg.lock()


def finished_params(workdir, step):
    checkpoints = Checkpoints(workdir / "checkpoints", keep=9)
    state, _ = restore_raw(checkpoints, step)
    return state


# ------------------------------------------------------------------------------------------------------- update


def sequences(n, seed=0):
    rng = np.random.default_rng(seed)
    return [
        TokenSequence(
            rng.integers(2, 64, rng.integers(2, 7)).astype(np.int32),
            (c := rng.integers(2, 64, rng.integers(3, 13)).astype(np.int32)),
            rng.normal(-4, 0.1, c.shape).astype(np.float32),
        )
        for _ in range(n)
    ]


def updated(
    rows, advantages, *, microbatch=0, mesh=None, kl_coef=0.0, aggregation="token_mean", row_len=0, model=TINY, **loss
):
    """Parameters and metrics after one SGD step, so that a parameter's change is its gradient."""
    keys = dict(kl_coef=kl_coef, aggregation=aggregation) | loss
    cfg = tiny_config(**{f"loss__{key}": value for key, value in keys.items()})
    params = transformer.init_params(model, 0)
    ref = transformer.init_params(model, 1) if kl_coef else None
    tx = optax.sgd(1.0)
    update = make_update(update_config(cfg), model, load_method("ropd", cfg), tx)
    flat = [np.asarray(x).reshape(-1) for x in advantages]
    if row_len:
        batch = pack(rows, *flat, LENGTH, row_len=row_len, fixed=bool(microbatch))
    else:
        batch = make_batch(rows, *flat, LENGTH)
    batch = split_parts(batch, microbatch, multiple=mesh_lib.parts_of_a_batch(mesh) if mesh else 1)
    if mesh is None:
        state, metrics = update(State(params, tx.init(params)), ref, batch)
    else:
        with jax.set_mesh(mesh):
            params = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
            spec = jax.NamedSharding(mesh, mesh_lib.RULES.spec("ABT"))
            batch = TrainBatch(*(jax.device_put(x, spec) for x in batch))
            state, metrics = update(State(params, tx.init(params)), ref, batch)
    return jax.device_get(state.params), {k: float(v) for k, v in metrics.items()}


def largest_change(params):
    """Of a parameter by the step: 0.10, 0.18 and 0.58 for the three aggregations. Rounding grows with it."""
    return trees_max_diff(params, jax.device_get(transformer.init_params(TINY, 0)))


def some_advantages():
    reward = np.array([[0.1, 0.9, 0.4, np.nan], [0.5, 0.5, 0.5, 0.5]], np.float32)
    return group_advantages(reward, ~np.isnan(reward), normalize_std=False)


def test_unscored_rollout_changes_no_gradient():
    rows, adv = sequences(8), some_advantages()
    other = list(rows)
    other[3] = TokenSequence(rows[3].prompt_T, rows[0].completion_T[::-1].copy(), rows[0].old_logp_T * 0)
    params, metrics = updated(rows, adv)
    params_other, metrics_other = updated(other, adv)
    assert trees_max_diff(params, params_other) == 0.0
    assert metrics == metrics_other


def test_equal_rewards_give_the_gradient_of_the_kl_alone_unless_it_is_on_informative_groups():
    rows, start = sequences(8), jax.device_get(transformer.init_params(TINY, 0))
    equal = group_advantages(np.full((2, 4), 0.5, np.float32), np.ones((2, 4), bool), normalize_std=True)
    skipped, metrics = updated(rows, equal, kl_coef=0.1, kl_on="informative")
    assert trees_max_diff(skipped, start) == 0.0
    assert metrics["update/grad_norm"] == 0.0 and metrics["update/kl"] > 0
    leashed, metrics = updated(rows, equal, kl_coef=0.1)
    assert metrics["update/loss"] == pytest.approx(0.1 * metrics["update/kl"], rel=1e-5)
    assert trees_max_diff(leashed, start) > 1e-3


def test_kl_on_chooses_the_tokens_of_the_terms_and_not_the_divisor():
    rows, adv = sequences(8), some_advantages()  # the second group's rewards are equal
    _, m_off = updated(rows, adv)
    valid, m_valid = updated(rows, adv, kl_coef=0.1)
    some, m_some = updated(rows, adv, kl_coef=0.1, kl_on="informative")
    assert m_valid["update/loss"] - m_off["update/loss"] == pytest.approx(0.1 * m_valid["update/kl"], rel=1e-3)
    other = m_valid["update/loss"] - m_some["update/loss"]  # what the second group's tokens add, over all tokens
    assert 0.1 < other / (0.1 * m_valid["update/kl"]) < 0.9 and m_some["update/kl"] == m_valid["update/kl"]
    assert trees_max_diff(valid, some) > 1e-4


@pytest.mark.parametrize(("kl_on", "updates"), [("valid", 1), ("informative", 0)])
def test_a_step_of_equal_rewards_is_updated_only_if_its_kl_has_a_gradient(kl_on, updates):
    rows = sequences(8)
    equal = group_advantages(np.full((2, 4), 0.5, np.float32), np.ones((2, 4), bool), normalize_std=True)
    how = read_config(tiny_config(loss__kl_coef=0.1, loss__kl_on=kl_on, data__prompts_per_step=2))
    calls = []

    def update(state, *_):
        return calls.append(state) or (state, {})

    mesh = mesh_lib.make_mesh(1, 1, jax.devices()[:1])
    method = load_method("ropd", tiny_config())
    _, metrics = update_step(update, State({}, ()), None, rows, equal, method, mesh, how.optim, how.loss, LENGTH)
    assert len(calls) == metrics["update/count"] == updates


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean", "seq_mean_token_sum"])
def test_accumulated_gradient_is_the_gradient_of_the_whole_batch(aggregation):
    rows, adv = sequences(8), some_advantages()
    whole, m_whole = updated(rows, adv, aggregation=aggregation, kl_coef=0.1)
    for microbatch in (2, 3):
        parts, m_parts = updated(rows, adv, microbatch=microbatch, aggregation=aggregation, kl_coef=0.1)
        assert trees_max_diff(whole, parts) < 1e-5 * largest_change(whole)
        assert {k: pytest.approx(v, abs=1e-5) for k, v in m_whole.items()} == m_parts


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean", "seq_mean_token_sum"])
@pytest.mark.parametrize("microbatch", [0, 1, 2])
def test_packed_update_equals_unpacked(aggregation, microbatch):
    rows, adv = sequences(8), some_advantages()
    whole, m_whole = updated(rows, adv, aggregation=aggregation, kl_coef=0.1)
    packed, m_packed = updated(rows, adv, aggregation=aggregation, kl_coef=0.1, row_len=40, microbatch=microbatch)
    assert trees_max_diff(whole, packed) < 1e-5 * largest_change(whole)
    assert {k: pytest.approx(v, abs=1e-5) for k, v in m_whole.items()} == m_packed


def test_packed_update_on_a_mesh_equals_unpacked_on_one_device():
    rows, adv = sequences(16), group_advantages(np.eye(4, dtype=np.float32), np.ones((4, 4), bool), normalize_std=True)
    plain, m_plain = updated(rows, adv)
    packed, m_packed = updated(rows, adv, mesh=mesh_lib.make_mesh(2, 2), row_len=40, microbatch=2)
    assert trees_max_diff(plain, packed) < 1e-6
    assert {k: pytest.approx(v, abs=1e-5) for k, v in m_plain.items()} == m_packed


def test_an_update_of_rows_that_are_split_over_cp_equals_that_of_whole_rows():
    rows, adv = sequences(8), some_advantages()
    params, metrics = updated(rows, adv, kl_coef=0.1)
    mesh = mesh_lib.make_mesh(2, 2, cp=2)
    packed, m_packed = updated(rows, adv, kl_coef=0.1, mesh=mesh, row_len=40, microbatch=2)
    assert trees_max_diff(params, packed) < 1e-4 * largest_change(params)
    for key, value in metrics.items():
        assert m_packed[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_an_update_of_experts_that_are_split_over_ep_equals_that_of_whole_ones():
    rows, adv = sequences(8), some_advantages()
    model = dataclasses.replace(TINY, num_layers=1, num_experts=4, experts_per_token=2)
    start = jax.device_get(transformer.init_params(model, 0))
    params, metrics = updated(rows, adv, model=model)
    mesh = mesh_lib.make_mesh(2, 1, jax.devices()[:4], ep=2)
    split, m_split = updated(rows, adv, model=model, mesh=mesh)
    assert trees_max_diff(params, split) < 1e-4 * trees_max_diff(params, start)
    for key, value in metrics.items():
        assert m_split[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_sharded_update_equals_unsharded():
    rows, adv = sequences(8), some_advantages()
    plain, m_plain = updated(rows, adv)
    sharded, m_sharded = updated(rows, adv, mesh=mesh_lib.make_mesh(4, 2))
    assert trees_max_diff(plain, sharded) < 1e-6
    assert {k: pytest.approx(v, abs=1e-5) for k, v in m_plain.items()} == m_sharded


def test_first_update_is_on_policy_with_top_p_too_and_the_run_says_what_is_left_out(tmp_path, caplog):
    train(tiny_config(steps=1, sampling__top_p=0.7, sampling__temperature=1.2), tmp_path / "run")
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    assert row["update/logp_gap_max"] < 1e-4 and row["update/clip_frac"] == 0
    assert 0.005 < row["sample/cut_mass"] < 0.3
    assert "top_p=0.7 leave tokens out, which the update does not correct" in caplog.text


# ----------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def scripted_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("scripted") / "run"
    train(tiny_config(), workdir)
    return workdir


def groups_of(workdir):
    return [
        json.loads(line)
        for path in sorted((workdir / "groups").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def test_a_run_leaves_what_it_did_last(scripted_run):
    status = read_status(scripted_run)
    assert (status["state"], status["done"], status["steps"], status["calls"]) == ("ended", 2, 2, [])


def test_result_and_files_of_a_run(scripted_run):
    result = json.loads((scripted_run / "result.json").read_text())
    wanted = {"accuracy_before", "accuracy_after", "heldout_n", "steps", "seconds", "groups_total", "groups_unscored"}
    assert wanted | {"seed"} <= result.keys()
    assert (result["heldout_n"], result["steps"], result["groups_total"], result["groups_unscored"]) == (32, 2, 8, 0)
    assert (scripted_run / "curves.png").stat().st_size > 10_000
    groups = groups_of(scripted_run)
    assert len(groups) == 8
    for group in groups:
        points = {c["id"]: c["points"] for c in group["rubric"]}
        rewards = [a["reward"] for a in group["answers"]]
        for a in group["answers"]:  # the reward is recomputed from the booleans
            assert a["reward"] == pytest.approx(
                sum(points[k] for k, v in a["verdicts"].items() if v) / sum(points.values())
            )
            assert a["advantage"] == pytest.approx(a["reward"] - np.mean(rewards), abs=1e-6)


@pytest.mark.parametrize("provider", ["openai", "gemini"])
def test_the_same_run_over_http_gives_the_same_rewards_digit_for_digit(provider, scripted_run, tmp_path, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "not-a-real-key")
    with serving() as address:
        url = address + ("/v1" if provider == "openai" else "")
        cfg = tiny_config(teacher__provider=provider, teacher__base_url=url)
        train(cfg, tmp_path / "run")
    stored = [groups_of(w) for w in (scripted_run, tmp_path / "run")]
    for group in (g for groups in stored for g in groups):
        group.pop("calls")  # keys of the requests, which name the provider's model
    assert stored[0] == stored[1]
    final = [finished_params(w, 2) for w in (scripted_run, tmp_path / "run")]
    assert trees_max_diff(*final) == 0.0


def test_a_teacher_that_fails_costs_scores_but_never_gives_zeros(tmp_path):
    cfg = tiny_config(teacher__scripted__fault_rate=0.25, teacher__attempts=1, steps=1)
    train(cfg, tmp_path / "run")
    groups = groups_of(tmp_path / "run")
    unscored = [a for g in groups for a in g["answers"] if a["unscored"]]
    assert 0 < len(unscored) < 16
    for a in unscored:
        assert a["reward"] is None and a["advantage"] is None and a["verdicts"] is None
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    assert row["teacher/unscored_frac"] == pytest.approx(len(unscored) / 16)
    assert sum(v for k, v in row.items() if k.startswith("reward/unscored_")) == len(unscored)
    scored = [a["reward"] for g in groups for a in g["answers"] if not a["unscored"]]
    assert row["reward/mean"] == pytest.approx(np.mean(scored))


def test_a_step_without_any_verdict_leaves_the_student_alone(tmp_path):
    cfg = tiny_config(teacher__scripted__fault_rate=1.0, teacher__attempts=1, steps=1)
    with pytest.raises(TooManyFailures, match="none of the run's 4 groups could be scored"):
        train(cfg, tmp_path / "run")
    params = finished_params(tmp_path / "run", 1)["params"]
    assert trees_max_diff(params, load_checkpoint("tiny").params) == 0.0
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_packed_run_learns_what_an_unpacked_one_does(scripted_run, tmp_path):
    train(tiny_config(optim__row_len=128, optim__microbatch=2), tmp_path / "run")
    runs = (scripted_run, tmp_path / "run")
    one, other = (json.loads((run / "metrics.jsonl").read_text().splitlines()[1]) for run in runs)  # the first step
    for key in ("update/loss", "update/entropy", "update/grad_norm", "update/tokens"):
        assert other[key] == pytest.approx(one[key], abs=1e-5)
    assert other["update/real_frac"] > one["update/real_frac"]
    assert trees_max_diff(*(finished_params(run, 1)["params"] for run in runs)) < 1e-5


def test_sft_and_control_run_on_the_same_loop(tmp_path):
    for method in ("sft", "permuted"):
        train(tiny_config(method=method, steps=1, optim__row_len=64), tmp_path / method)
        assert json.loads((tmp_path / method / "result.json").read_text())["method"] == method


@pytest.fixture(scope="module")
def divides(tmp_path_factory):
    """A checkpoint with the tiny student's tokenizer whose sizes divide over tp=2."""
    return saved(tmp_path_factory.mktemp("divides"))


def saved(path, **sizes):
    cfg = dataclasses.replace(TINY, vocab_size=104, num_layers=2, **sizes)
    save_hf(path, cfg, jax.device_get(transformer.init_params(cfg, 0)), eos_token_id=1)
    load_checkpoint("tiny").tokenizer.save(path)
    return path


def test_a_run_whose_sampler_has_a_mesh_of_its_own_is_the_run_on_one_mesh(divides, tmp_path):
    meshes = {"one": {"mesh__fsdp": 2}, "two": {"mesh__fsdp": -1, "mesh__update_fsdp": 2, "mesh__sample_tp": 2}}
    meshes["two"]["mesh__sample_fsdp"] = 1
    shared = dict(student__checkpoint=str(divides), sampling__max_tokens=12, log__token_logprobs="before_after")
    shared |= dict(stream__groups=2, stream__staleness=1, loss__is_cap=2.0)
    rows = {}
    for name, sizes in meshes.items():
        cfg = tiny_config(**shared, **sizes, steps=2)
        train(cfg, tmp_path / name)
        rows[name] = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows["one"]] == [r["step"] for r in rows["two"]]
    for one, two in zip(rows["one"], rows["two"], strict=True):
        for key in [k for k in one if k.startswith(("update/", "eval/", "rewards/", "sample/")) and k in two]:
            if isinstance(one[key], float) and not key.endswith("_per_s"):
                assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-5), key
    last = [finished_params(tmp_path / name, 2)["params"] for name in meshes]
    assert trees_max_diff(*last) < 1e-5


def test_a_sampler_on_its_own_mesh_needs_its_own_weights(divides, tmp_path):
    sizes = dict(mesh__fsdp=2, mesh__sample_fsdp=1, mesh__sample_tp=2, sampling__copy_weights=False)
    with pytest.raises(UserError, match=r"copy_weights=False: the sampler's mesh \(fsdp=1 tp=2\) is not the update's"):
        train(tiny_config(student__checkpoint=str(divides), **sizes), tmp_path / "run")


@pytest.fixture(scope="module")
def one_head(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("one_head"), num_kv_heads=1)


@pytest.mark.parametrize(
    ("sizes", "remedy"),
    [
        (dict(mesh__fsdp=2, mesh__tp=2), "mesh.tp=1"),
        (dict(mesh__fsdp=2, mesh__tp=2, mesh__update_fsdp=4, mesh__update_tp=1), "mesh.tp=1"),
        (dict(mesh__fsdp=4, mesh__sample_fsdp=2, mesh__sample_tp=2), "mesh.sample_tp=1"),
        (dict(mesh__update_fsdp=2, mesh__update_tp=2, mesh__sample_fsdp=4, mesh__sample_tp=1), "mesh.update_tp=1"),
    ],
)
def test_one_key_value_head_over_two_devices_is_refused_with_the_key_to_change(sizes, remedy, one_head, tmp_path):
    with pytest.raises(UserError, match=rf"num_kv_heads=1 does not divide over tp=2; .* --config.{remedy}$"):
        train(tiny_config(student__checkpoint=str(one_head), **sizes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_hugging_face_directory_trains(tmp_path):
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(["<|im_end|>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_end|>"])
    model = dataclasses.replace(TINY, vocab_size=len(vocab), tied=False)
    save_hf(tmp_path / "student", model, jax.device_get(transformer.init_params(model, 0)))
    tokenizer.save(str(tmp_path / "student" / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    (tmp_path / "student" / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "chat_template": template})
    )
    cfg = tiny_config(
        student__checkpoint=str(tmp_path / "student"), steps=1, sampling__max_tokens=16, data__max_prompt_tokens=100
    )
    train(cfg, tmp_path / "run")
    before = load_checkpoint(str(tmp_path / "student")).params
    after = finished_params(tmp_path / "run", 1)["params"]
    groups = groups_of(tmp_path / "run")
    assert len(groups) == 4 and all(a["reward"] is not None for g in groups for a in g["answers"])
    assert jax.tree.map(np.shape, before) == jax.tree.map(np.shape, after)


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(teacher__provider="openai"), r"OPENAI_API_KEY"),
        (dict(teacher__provider="gemini"), r"GEMINI_API_KEY"),
        (dict(teacher__provider="oracle"), r"oracle.*unknown; known: gemini, openai, scripted"),
        (dict(method="ropdd"), r"ropdd.*cort, cripo, evolving, exopd, .*, ropd, ruler, sft, t_judge"),
        (dict(student__checkpoint="/nowhere"), r"/nowhere.*does not exist"),
        (
            dict(data__max_prompt_tokens=3),
            r"all 32 held-out prompts are longer than data.max_prompt_tokens=3|all .* training",
        ),
        (dict(data__prompts_per_step=500), r"500"),
        (dict(optim__minibatches=3), r"optim.minibatches=3"),
        (dict(sampling__temperature=0.0), r"temperature=0"),
        (dict(sampling__max_tokens=10_000), r"10016.*128|128.*10016"),
        (dict(loss__aggregation="mean"), r"loss.aggregation='mean'.*token_mean"),
        (dict(optim__schedule="linear"), r"optim.schedule='linear'.*cosine"),
        (dict(optim__row_len=62), r"optim.row_len=62 is too short.*at least 63"),
        (dict(mesh__tp=3), r"tp=3"),
        (dict(student__dtype="float17"), r"float17"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_trace(changes, words, tmp_path):
    with pytest.raises(UserError, match=words) as error:
        train(tiny_config(**changes), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_workdir_of_another_config_is_refused_and_kept(scripted_run):
    before = (scripted_run / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"optim.lr: 0.0001 there, 0.5 now"):
        train(tiny_config(optim__lr=0.5), scripted_run)
    assert (scripted_run / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_returns_its_result_and_is_not_repeated(scripted_run):
    before = (scripted_run / "metrics.jsonl").read_bytes()
    result = train(tiny_config(), scripted_run)
    assert "held-out accuracy" in str(result) and result.values == json.loads(
        (scripted_run / "result.json").read_text()
    )
    assert (scripted_run / "metrics.jsonl").read_bytes() == before


def test_full_disk_is_said_in_one_line(tmp_path, monkeypatch):
    def full(*args, **kw):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)
    monkeypatch.setenv("ROPD_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"cannot write .*checkpoints .No space left"):
        train(tiny_config(steps=1), tmp_path / "run")
