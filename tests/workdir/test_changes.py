"""What can change between two starts of a run, without a run."""

from __future__ import annotations

import json
import logging

import pytest

from ropd_jax import configs
from ropd_jax.types import Message, Prompt, UserError
from ropd_jax.workdir import contents as contents_lib
from ropd_jax.workdir.changes import compare, flat_defaults
from ropd_jax.workdir.config import check_claim, claim, provenance
from ropd_jax.workdir.contents import content_hash, file_contents, questions_hash
from ropd_jax.workdir.keys import FREE, IDENTITY, KEYS, NUMERICS


def config(**changes):
    cfg = configs.default()
    for key, value in changes.items():
        cfg.update_from_flattened_dict({key.replace("__", "."): value})
    return cfg.to_dict()


def another(value):
    """Another value of the same kind."""
    if isinstance(value, bool) or value is None:
        return not value
    return value + 1 if isinstance(value, int | float) else [*value, "x"] if isinstance(value, list) else f"{value}x"


@pytest.mark.parametrize("kind", [IDENTITY, NUMERICS, FREE])
def test_each_key_is_treated_by_its_class(kind):
    old = flat_defaults() | {"optim.schedule": "constant"}
    names = [k for k, key in KEYS.items() if key.resume == kind and key.kind != "table" and k != "optim.schedule"]
    assert names
    for name in names:
        old["ropd.reliability_weights"] = name != "ropd.reliability_weights"  # a calibration counts only with it
        changes = compare(old, old | {name: another(old[name])}, contents={})
        found = {IDENTITY: changes.refused, NUMERICS: changes.numerics, FREE: changes.free}
        assert {k: len(v) for k, v in found.items()} == {k: int(k == kind) for k in found}, name
        assert changes.keys == (name,)


def test_what_people_change_between_starts_is_free_or_numerics():
    changes = ("checkpoint.every", "checkpoint.keep", "eval.every", "eval.size", "log.groups", "teacher.base_url")
    assert {KEYS[name].resume for name in changes} == {FREE}
    assert {KEYS[n].resume for n in ("optim.microbatch", "optim.remat", "sampling.prompts_at_once")} == {NUMERICS}


def test_a_key_of_a_newer_version_has_its_default_in_an_older_run(tmp_path):
    old = config()
    del old["compile_cache"], old["optim"]["schedule_steps"], old["optim"]["remat"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    claim(tmp_path, config())
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(json.dumps(config()))
    with pytest.raises(UserError, match=r"optim\.moments: float32 there, int8 now"):
        claim(tmp_path, config(optim__moments="int8"))


def test_a_run_of_a_version_with_a_switch_for_tensorboard_continues():
    old = {name: value for name, value in flat_defaults().items() if name != "log.trackers"}
    for value in (True, False):
        changes = compare(old | {"log.tensorboard": value}, flat_defaults(), contents={})
        assert changes.refused == () and changes.keys == ()


def test_a_refusal_is_one_line_that_names_the_fork(tmp_path):
    claim(tmp_path / "run", config())
    with pytest.raises(UserError) as error:
        claim(tmp_path / "run", config(optim__lr=1.0, data__template="a\n{question}"))
    assert "\n" not in str(error.value) and "data.template: {question} there, a {question} now" in str(error.value)
    assert f"--fork {tmp_path / 'run'} --workdir NEW" in str(error.value)


def test_free_and_numerics_changes_are_logged_and_kept(tmp_path, caplog):
    claim(tmp_path, config())
    with caplog.at_level(logging.INFO):
        claim(tmp_path, config(log__watchdog_s=1.0, optim__remat="none"))
    levels = {r.levelname: r.getMessage() for r in caplog.records}
    assert "log.watchdog_s: 900.0 there, 1.0 now" in levels["INFO"] and "results stay the same" in levels["INFO"]
    assert "optim.remat: block there, none now" in levels["WARNING"] and "to rounding" in levels["WARNING"]
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["remat"] == "none"


def test_an_entry_of_a_panel_may_move_to_another_address():
    one = {"teacher.verifier.panel": [{"model": "a", "base_url": "http://x"}, "b"]}
    assert compare(one, {"teacher.verifier.panel": [{"model": "a", "base_url": "http://y"}, "b"]}).keys == ()
    assert compare(one, {"teacher.verifier.panel": [{"model": "c", "base_url": "http://x"}, "b"]}).refused


# -------------------------------------------------------------------------------------------------------- steps


def test_steps_grow_and_shrink_to_what_is_finished():
    old = {"optim.schedule": "constant", "steps": 10}
    assert compare(old, old | {"steps": 20}, done=10).refused == ()
    assert compare(old, old | {"steps": 7}, done=7).refused == ()
    with pytest.raises(UserError, match=r"steps=6, but the run has finished 7; expected at least 7.*--fork RUN@STEP"):
        compare(old, old | {"steps": 6}, done=7)


def test_a_cosine_that_would_move_with_the_steps_is_the_users_choice():
    old = {"optim.schedule": "cosine", "steps": 200}
    with pytest.raises(UserError, match=r"schedule_steps=200 keeps that curve, .*schedule_steps=300 switches") as error:
        compare(old, old | {"steps": 300}, done=200)
    assert "\n" not in str(error.value)
    kept = compare(old, old | {"steps": 300, "optim.schedule_steps": 200}, done=200)
    assert "falls to 0 at step 200: the steps after it train with a learning rate of 0" in kept.notes[0]
    moved = compare(old, old | {"steps": 300, "optim.schedule_steps": 300}, done=200)
    assert "the learning rate jumps at step 200" in moved.notes[0]
    planned = old | {"optim.schedule_steps": 300}
    assert compare(planned, planned | {"steps": 300}, done=200).notes == ()  # the curve was planned for 300


def test_an_extended_run_keeps_the_result_of_the_shorter_one(tmp_path):
    claim(tmp_path, config(steps=2, optim__schedule="constant"))
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    (tmp_path / "result.json").write_text("mine")
    claim(tmp_path, config(steps=4, optim__schedule="constant"))
    assert (tmp_path / "result_step_000002.json").read_text() == "mine" and not (tmp_path / "result.json").exists()


# ------------------------------------------------------------------------------------------------------ contents


def test_a_path_may_change_if_the_content_is_the_same(tmp_path, caplog):
    new = config(data__path="b.jsonl")
    claim(tmp_path, config(data__path="a.jsonl"), contents={"data.path": "1"})
    assert check_claim(tmp_path, new) is not None  # not known yet
    with caplog.at_level(logging.INFO):
        claim(tmp_path, new, contents={"data.path": "1"})
    assert "data.path: a.jsonl there, b.jsonl now, with the same content" in caplog.text
    with pytest.raises(UserError, match=r"data.path: b.jsonl there, c.jsonl now, with other content"):
        claim(tmp_path, config(data__path="c.jsonl"), contents={"data.path": "2"})
    with pytest.raises(
        UserError, match=r"the training questions differ from those at the start of the run \(data.path"
    ):
        claim(tmp_path, new, contents={"data.path": "2"})
    assert provenance(tmp_path)["contents"] == {"data.path": "1"}


def test_an_older_run_without_hashes_keeps_its_paths_and_gets_hashes(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config(data__path="a")))
    with pytest.raises(UserError, match=r"data\.path: a there, b now, and no content is known to compare"):
        claim(tmp_path, config(data__path="b"), contents={"data.path": "1"})
    claim(tmp_path, config(data__path="a"), contents={"data.path": "1"})
    claim(tmp_path, config(data__path="b"), contents={"data.path": "1"})


def test_a_calibration_that_is_only_recorded_may_come_later():
    assert compare({}, {"teacher.calibration": "report.json"}, contents={"teacher.calibration": "1"}).refused == ()


def test_a_corrected_method_file_is_a_warning(tmp_path, caplog):
    claim(tmp_path, config(method="m.py"), contents={"method": "1"})
    claim(tmp_path, config(method="m.py"), contents={"method": "2"})
    assert "method: m.py has different content than at the start of the run" in caplog.text


def test_a_large_file_is_known_by_its_size_its_ends_and_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(contents_lib, "WHOLE", 1 << 20)
    path, block = tmp_path / "w", bytes(range(256)) * 4096
    path.write_bytes(block * 10)
    first = content_hash(path)
    for at in (0, (10 << 20) - 1):
        changed = bytearray(block * 10)
        changed[at] ^= 1
        path.write_bytes(changed)
        assert content_hash(path) != first
    path.write_bytes(block[:-1] * 10 + b"x" * 10)  # of the same size; everything between the ends has moved
    assert content_hash(path) != first
    path.write_bytes(block * 10 + b"x")
    assert content_hash(path) != first


def test_a_checkpoint_is_known_by_its_files_wherever_it_is(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"12")
        (tmp_path / name / "notes.md").write_text(name)  # not part of the checkpoint
    found = [file_contents({"student.checkpoint": str(tmp_path / n)}, weights=True) for n in ("a", "b")]
    assert found[0] == found[1] and list(found[0]) == ["student.checkpoint"]
    (tmp_path / "b" / "model.safetensors").write_bytes(b"13")
    assert file_contents({"student.checkpoint": str(tmp_path / "b")}, weights=True) != found[0]


def test_names_and_json_are_not_files():
    values = flat_defaults() | {"teacher.scripted.noise": json.dumps({"a": "x" * 500}), "method": "ropd"}
    assert list(file_contents(values, weights=True)) == ["student.checkpoint"]
    assert file_contents({"student.checkpoint": "Qwen/Qwen3-4B"}, weights=False) == {}


def test_questions_are_known_by_what_is_asked_in_which_order():
    a, b = (Prompt(str(i), (Message("user", f"{i} + 1 ="),), answer=str(i + 1)) for i in range(2))
    assert questions_hash([a, b]) == questions_hash([a, b]) != questions_hash([b, a])
    assert questions_hash([a]) != questions_hash([Prompt("0", a.messages, answer="7")])
