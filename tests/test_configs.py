"""Reading a config in Python: overrides in both forms, and mistakes that name what to write."""

from __future__ import annotations

import pathlib

import pytest

from ropd_jax import configs
from ropd_jax.configs import RENAMED, default, leaves, load_config
from ropd_jax.types import UserError
from tests.helpers import CONFIG_FILE


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "quick.py"
    path.write_text(CONFIG_FILE)
    return path


def test_overrides_in_both_forms(file):
    cfg = load_config(file, steps=3, optim__lr=1e-3, **{"data.size": 7})
    assert (cfg.steps, cfg.optim.lr, cfg.data.size) == (3, 1e-3, 7)
    assert cfg.is_locked and cfg.student.checkpoint == "tiny"


def test_the_part_after_the_colon_goes_to_get_config(file):
    assert load_config(f"{file}:smollm2").student.checkpoint == "smollm2"


def test_a_key_keeps_its_type(file):
    cfg = load_config(file, optim__lr=1, data__options={"min_terms": 4}, sampling__stop=("a",))
    assert cfg.optim.lr == 1.0 and type(cfg.optim.lr) is float
    assert cfg.data.options.to_dict() == {"min_terms": 4} and cfg.sampling.stop == ("a",)
    cfg = load_config(file, student__enable_thinking=True, teacher__requests_per_minute=60.0)
    assert cfg.student.enable_thinking is True and cfg.teacher.requests_per_minute == 60.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optm__lr": 1}, "the config has no key 'optm.lr'; did you mean gad.lr or optim.lr?"),
        ({"optim.l_r": 1}, "the config has no key 'optim.l_r'; did you mean optim.lr"),
        ({"optim": 1}, "optim is a section; expected one of its keys: attention, b1"),
        ({"steps": "many"}, r"steps='many': expected a whole number \(steps is 531 in the file\)"),
        ({"optim.lr": "x"}, r"optim.lr='x': expected a number \(optim.lr is 0.0001 in the file\)"),
        ({"ropd__told": True}, "'ropd.told'; it was renamed: write ropd.blind, with the opposite value"),
        ({"stream.carry_after_s": 1.0}, "renamed: write stream.straggler_timeout_s"),
        ({"teacher__scripted__book": "x"}, "renamed: write teacher.scripted.answer_key"),
    ],
)
def test_a_wrong_override_names_what_to_write(file, changes, message):
    with pytest.raises(UserError, match=message) as e:
        load_config(file, **changes)
    assert "\n" not in str(e.value)


def test_a_file_that_sets_a_renamed_key_names_the_new_one(file):
    file.write_text(CONFIG_FILE.replace("optim.lr", "stream.carry_after_s"))
    with pytest.raises(UserError, match=r"sets stream\.carry_after_s, .*write stream\.straggler_timeout_s"):
        load_config(file)


def test_every_renamed_key_is_gone_and_its_new_one_exists():
    known = set(leaves(default()))
    for old, new in RENAMED.items():
        assert old not in known and new.split(",")[0] in known


def test_a_file_can_hold_a_dataclass(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses\nfrom ropd_jax import configs\n\n"
        "@dataclasses.dataclass\nclass Sizes:\n    steps: int = 5\n\n"
        "def get_config():\n    cfg = configs.default()\n    cfg.steps = Sizes().steps\n    return cfg\n"
    )
    assert load_config(path).steps == 5


def test_an_error_inside_get_config_names_the_line_also_by_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("a.py").write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises(UserError, match=r"^a\.py:2: ZeroDivisionError: division by zero$"):
        load_config("a.py")


def test_words_choose_one_of_each_tuple():
    assert configs.choose("d,b", ("a", "b"), ("c", "d")) == ("b", "d")
