"""The table of keys: complete, shown in the docs, and strict about kinds and bounds."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from ropd_jax import configs
from ropd_jax.types import UserError
from ropd_jax.workdir.keys import FREE, IDENTITY, KEYS, NUMERICS, check_values, key_of, table_rows

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "resume.md"


def test_every_key_of_the_default_config_is_in_the_table_and_no_other():
    assert set(configs.leaves(configs.default())) == set(KEYS)


def test_every_number_has_bounds_and_every_key_a_class_and_the_kind_of_its_default():
    kinds = {bool: "flag", int: "whole", float: "number", str: "text", tuple: "list", configs.ConfigDict: "table"}
    for name, key in KEYS.items():
        value = configs.lookup(configs.default(), name)
        assert key.resume in (IDENTITY, NUMERICS, FREE), name
        assert value is None or key.kind == kinds[type(value)], name
        if key.kind in ("whole", "number"):
            assert key.low is not None and (key.kind == "number" or key.high is not None), name
        assert not key.by_content or key.resume == IDENTITY, name


def test_the_default_config_is_within_its_own_bounds():
    check_values(configs.default())


def test_the_docs_show_the_table():
    wanted = [f"| `{name}` | `{default}` | {values} | {kind} |" for name, default, values, kind in table_rows()]
    shown = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    text = "docs/resume.md lacks this table; write it with: python -m tests.workdir.test_keys"
    assert [line for line in shown if line.count("|") == 5] == wanted, text


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("steps", [1, np.int32(3)], [0, True, 1.0, "1", None, 2**31]),
        ("optim.lr", [1, 1e-9, np.float32(1e-3)], [0, -1.0, float("nan"), float("inf"), True, None, "1"]),
        ("optim.b1", [0, 0.999], [1, 1.0, -0.1]),
        ("sampling.top_p", [1, 0.5], [0, 1.01]),
        ("student.enable_thinking", [None, True], [0, 1, "yes"]),
        ("teacher.requests_per_minute", [None, 0.5], [0, float("inf")]),
        ("log.groups", [True], [1, None]),
        ("data.path", ["", "a"], [None, 3, "a\0b"]),
        ("sampling.stop", [(), ["a"]], [None, 3]),
        ("data.options", [{}, configs.ConfigDict({"a": 1})], [None, ()]),
    ],
)
def test_what_a_key_takes(key, good, bad):
    assert [KEYS[key].takes(x) for x in good] == [True] * len(good)
    assert [KEYS[key].takes(x) for x in bad] == [False] * len(bad)


def test_an_error_names_key_value_expectation_and_remedy():
    cfg = configs.default()
    cfg.optim.lr = -1e-4
    with pytest.raises(UserError) as error:
        check_values(cfg)
    assert str(error.value) == "optim.lr=-0.0001; expected a number above 0; write --config.optim.lr=1e-06, for example"


def test_a_key_inside_a_section_of_any_keys_has_the_class_of_the_section():
    assert key_of("data.options.min_terms") is KEYS["data.options"]
    assert key_of("teacher.headers.X-Title").resume == FREE and key_of("teacher.judge.model").resume == FREE
    assert key_of("optim.none") is None


def write_docs() -> None:
    """Writes the table into the docs."""
    head, mark, _ = DOCS.read_text().partition("| key | default | values | class |\n")
    rows = [f"| `{name}` | `{default}` | {values} | {kind} |" for name, default, values, kind in table_rows()]
    DOCS.write_text(head + mark + "|---|---|---|---|\n" + "\n".join(rows) + "\n")


if __name__ == "__main__":
    write_docs()
