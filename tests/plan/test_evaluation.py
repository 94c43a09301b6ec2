"""``ropd plan --eval``: how many answers of full length fit at once on a chip, from shapes and from the compiler."""

from __future__ import annotations

import importlib.util
import json

import jax
import pytest

from ropd_jax import configs
from ropd_jax.cli import main as cli
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.plan import evaluation, gpu, measure
from ropd_jax.plan.chips import Chip, Topology
from ropd_jax.plan.shapes import model_config
from ropd_jax.sampling import capacity
from tests.helpers import TINY

GB = 1e9
QWEN = "Qwen/Qwen3-4B"


@pytest.fixture(autouse=True)
def no_compiler(tmp_path, monkeypatch):
    """No libtpu, as on most machines: CPU devices represent the chips, and nothing is compiled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "libtpu" else find(name, *a))
    monkeypatch.setattr(gpu, "_is_there", lambda module: False)


def planned(capsys, *more, code=0):
    args = ["plan", "--config", "experiments/qwen3_4b_math.py", "--eval", "--config.mesh.tp=1", *more]
    assert cli.main([*args, "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert cli.main(args) == code
    return found, " ".join(capsys.readouterr().out.split())


def test_an_answer_of_32k_tokens_takes_a_third_of_a_v5e_chip(capsys):
    found, text = planned(capsys, "--topology=v5e:1x1")
    assert found["setting"]["max_tokens"] == 32_768 and found["setting"]["k"] == 16
    # 36 layers x 8 heads x 128 x keys and values x 2 bytes: 63 pages of 512, rounded up to 64, and a stage
    assert found["row_bytes"] == 36 * 8 * 128 * 2 * 2 * (64 + 1) * 512
    assert found["asked"]["rows"] == 64 and found["asked"]["peak"] > 300 * GB and not found["asked"]["fits"]
    assert found["best"]["parameters"] == pytest.approx(8.05 * GB, rel=0.01)  # bfloat16
    assert found["suggested_rows"] == found["best"]["rows"] == 1 and found["best"]["peak"] < 16 * GB
    assert found["others"] == {"--config.sampling.cache_dtype=int8": 2}
    assert "64 rows do not fit" in text and "Use --rows 1, or no --rows" in text
    assert "With --config.sampling.cache_dtype=int8: --rows 2" in text


def test_rows_that_do_not_fit_end_with_2_and_fewer_are_suggested(capsys):
    found, text = planned(capsys, "--topology=v5e:2x4", "--rows=64", code=2)
    rows = found["suggested_rows"]
    assert found["fits"] is False and 8 <= rows < 64 and rows % 8 == 0
    assert f"Use --rows {rows}" in text
    again, _ = planned(capsys, "--topology=v5e:2x4", f"--rows={rows}")
    assert again["fits"] is True and again["best"]["peak"] == found["best"]["peak"]
    short, _ = planned(capsys, "--topology=v5e:2x4", "--rows=64", "--max_tokens=1024")
    assert short["fits"] is True


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--topology=v5e:1x1", "--max_tokens=40000"], "together exceed the 40960 that Qwen/Qwen3-4B supports"),
        (["--topology=v5e:1x1", "--search"], "belong to the plan of a run"),
        (["--topology=v5e:1x1", "--config.student.dtype=float16"], "student.dtype='float16'"),
        (["--topology=v5e:3x1", "--config.mesh.tp=3"], "num_heads=32 does not divide over tp=3"),
    ],
)
def test_what_cannot_be_planned_is_one_line(capsys, more, message):
    assert cli.main(["plan", "--config", "experiments/qwen3_4b_math.py", "--eval", "--config.mesh.tp=1", *more]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_box_of_gpus_holds_more_rows_and_its_hours_follow_from_the_figures(capsys):
    found, text = planned(capsys, "--topology=gpu:h100x8")
    assert found["mesh"] == {"fsdp": 8, "tp": 1} and found["suggested_rows"] == 64
    weights, rows, tokens = 8 * found["best"]["parameters"], 64, 30 * 16 * 32_768  # whole while decoding
    cache = tokens * (2048 + 32_768 / 2) * 36 * 8 * 128 * 2 * 2 / 8
    seconds = (tokens / rows * weights + cache) / 3.35e12
    assert found["seconds"]["at_least"] == pytest.approx(seconds, rel=0.02) and found["seconds"]["expected"] is None
    assert f"{seconds / 3600:.1f}" in text and "hours of decoding at least." in text
    short, _ = planned(capsys, "--topology=gpu:h100x8", "--mean_tokens=16384", "--problems=15")
    assert short["seconds"]["at_least"] < found["seconds"]["at_least"] / 4


def test_flags_of_an_evaluation_need_eval(capsys):
    assert cli.main(["plan", "--config", "experiments/quickstart.py", "--topology=v5e:1x1", "--rows=4"]) == 2
    assert "--rows belongs to the plan of an evaluation; add --eval" in capsys.readouterr().err


def test_the_plan_is_what_the_evaluation_chooses_and_the_compiler_has_the_last_word(monkeypatch):
    chip = Chip("toy", 1e6, 1e6, 1e9, 1e8, 1e7, 1, "made up")
    monkeypatch.setattr(evaluation, "parse_topology", lambda text: Topology(chip, (2,)))
    monkeypatch.setattr(evaluation, "model_config", lambda name: TINY)
    cfg = configs.default()
    cfg.data.max_prompt_tokens = 16
    said: list[str] = []
    found = evaluation.run(cfg, "toy:2", k=2, max_tokens=48, rows=None, as_json=True, report=said.append)
    best = found["best"]
    assert best["compiled"] and best["fits"] and any("compiled in" in s for s in said)
    t = found["seconds"]
    assert t["expected"] > t["at_least"] > 0  # 30 problems x 2 answers of 48 tokens
    params = evaluation._params(cfg, TINY, mesh := mesh_lib.make_mesh(2, 1, jax.devices()[:2]))
    engine = evaluation.EngineConfig(2, 2, 16, 48, (0,), evaluation.SamplingRule(1.0, 0, 0.95), reserve=True)
    free = 1e6 * (1 - capacity.SPARE) - capacity.device_bytes(params)
    assert best["rows"] <= capacity.most_rows(TINY, engine, mesh, free, 64)
    assert best["peak"] <= 1e6
    with jax.set_mesh(mesh):
        own = capacity.with_rows(engine, best["rows"], 2)
        assert best["cache"] == capacity.cache_bytes(TINY, own)
    assert measure.slice_name(Topology(chip, (2,)), mesh) == "toy:2 as fsdp=2 tp=1"
    assert model_config(QWEN).num_kv_heads == 8
