"""Rows of Parquet files are those of JSONL; unreadable files give a one-line error."""

from __future__ import annotations

import json
import sys

import pytest

from ropd_jax.data.grader import grade
from ropd_jax.data.load import load_prompts
from ropd_jax.types import UserError

ROWS = [
    {"prompt": [{"role": "user", "content": "What is 2 + 2?"}], "reward_model": {"ground_truth": "4"},
     "extra_info": {"split": "train", "index": 7}, "data_source": "gsm8k", "rubric": None},
    {"prompt": [{"role": "user", "content": "Why?"}], "reward_model": None, "extra_info": None, "data_source": None,
     "rubric": [{"criterion": "Says why.", "points": 2}]},
]  # fmt: skip


def test_the_rows_of_both_forms_are_the_same_prompts(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n" for row in ROWS)
    )
    found, same = (load_prompts(source="jsonl", path=str(tmp_path / f"a.{end}")) for end in ("parquet", "jsonl"))
    assert found.prompts == same.prompts and [p.id for p in found] == ["gsm8k-train-7", "a-2"]
    assert [p.metadata.get("criteria") for p in found] == [p.metadata.get("criteria") for p in same]
    assert grade(found[0], "Answer: 4") is True


def test_what_cannot_be_read_is_said_in_one_line(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    for name in ("bad.parquet", "none.parquet"):
        with pytest.raises(UserError, match=f"{name}.*expected a Parquet file"):
            load_prompts(source="jsonl", path=str(tmp_path / name))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"bad.parquet needs pyarrow: pip install pyarrow"):
        load_prompts(source="jsonl", path=str(tmp_path / "bad.parquet"))
