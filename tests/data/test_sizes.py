"""data.size and data.heldout_size: 0 or None is all, what is left out is counted, and held-out data can be absent."""

from __future__ import annotations

import json
import logging

import pytest

from ropd_jax import configs
from ropd_jax.data.load import load_prompts
from ropd_jax.data.questions import load_questions
from ropd_jax.train import train
from ropd_jax.training.setup import check_config
from ropd_jax.types import UserError
from tests.helpers import IdTokenizer
from tests.runs.test_train import tiny_config


def rows(path, n, first=10):
    path.write_text("".join(json.dumps({"question": str(first + i), "answer": i}) + "\n" for i in range(n)))
    return str(path)


def section(tmp_path, **changes):
    cfg = configs.default().data
    cfg.source, cfg.task = "jsonl", ""
    cfg.path, cfg.heldout_path = rows(tmp_path / "train.jsonl", 40), rows(tmp_path / "held.jsonl", 9, first=70)
    cfg.update(changes)
    return cfg


@pytest.mark.parametrize(("size", "kept"), [(0, 40), (None, 40), (39, 39), (1, 1), (99, 40)])
def test_0_and_none_take_all_of_a_file_and_what_another_size_leaves_out_is_counted(tmp_path, size, kept):
    got = load_prompts(source="jsonl", path=rows(tmp_path / "a.jsonl", 40), size=size)
    assert len(got) == kept
    assert got.dropped == ({"over_size": 40 - kept} if kept < 40 else {})


def test_the_log_says_what_a_size_leaves_out_and_how_to_take_all(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    train, held = load_questions(section(tmp_path, size=30, heldout_size=0), IdTokenizer())
    assert (len(train.prompts), len(held.prompts)) == (30, 9)
    assert train.dropped == {"over_size": 10} and held.dropped == {}
    assert caplog.messages == ["data.size=30 leaves 10 training prompts out; 0 keeps all"]


@pytest.mark.parametrize("change", [{"heldout_path": ""}, {"heldout": False}])
def test_questions_without_held_out_data_are_said_to_be_so(tmp_path, caplog, change):
    caplog.set_level(logging.WARNING)
    train, held = load_questions(section(tmp_path, **change), IdTokenizer())
    assert (len(train.prompts), len(held.prompts), held.longest) == (40, 0, 0)
    assert len(caplog.messages) == 1 and "no held-out data" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.size": 0}, "data.size=0 means a whole set, but reasoning_gym is endless"),
        ({"data.size": None}, "data.size=None means a whole set"),
        ({"data.heldout_size": 0}, "1 or more; data.heldout=False is a run without held-out data"),
        ({"data.source": "published", "data.heldout_size": 0}, "leaves nothing to train on"),
        ({"data.heldout": False, "checkpoint.keep_best": 1}, "needs held-out data, but data.heldout=False"),
        ({"data.source": "jsonl"}, "data.path is empty"),
    ],
)
def test_a_size_that_cannot_be_meant_is_refused(changes, message):
    cfg = configs.default()
    for key, value in changes.items():
        configs.change(cfg, key, value)
    with pytest.raises(UserError, match=message):
        check_config(cfg)


@pytest.mark.parametrize(
    "changes",
    [
        {"data.heldout": False, "data.heldout_size": 0},
        {"data.source": "jsonl", "data.path": "rows.jsonl", "data.size": None, "data.heldout_size": 0},
        {"data.source": "published", "data.size": 0},
    ],
)
def test_sizes_that_mean_all_are_accepted(changes):
    cfg = configs.default()
    for key, value in changes.items():
        configs.change(cfg, key, value)
    check_config(cfg)


def test_a_run_without_held_out_data_works_and_says_so(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    cfg = tiny_config(steps=2, data__heldout=False, eval__every=1)
    result = train(cfg, tmp_path / "run")
    assert result.values["heldout_n"] == 0 and result.accuracy_after is None
    assert "accuracy_before" not in result.values
    assert any("no held-out data (data.heldout=False)" in m for m in caplog.messages)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not any(key.startswith("eval/") for row in steps for key in row)
    again = train(cfg, tmp_path / "run")  # finished: it is read back
    assert again.values == result.values
