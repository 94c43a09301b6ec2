"""``ropd export``: directories for transformers; here our own loader reads them back."""

from __future__ import annotations

import json
import pathlib
import random
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from gguf import GGUFWriter
from safetensors.numpy import load_file

from ropd_jax.cli import main as cli
from ropd_jax.models import transformer
from ropd_jax.models.lora import Lora
from ropd_jax.types import Message, UserError
from ropd_jax.weights.families import read_config
from ropd_jax.weights.hf import save_hf
from ropd_jax.weights.student import find, load_checkpoint
from ropd_jax.weights.tokenizer import load_tokenizer
from ropd_jax.workdir import export
from ropd_jax.workdir.checkpoint import Checkpoints, saved_params
from tests.helpers import read_weights
from tests.weights.test_checkpoints import CHECKPOINTS, SECTION, made_adapters
from tests.weights.test_gguf import write
from tests.weights.test_tokenizer import CHAT, TEMPLATE, TEXTS, trained, write_gguf  # noqa: F401

FAMILIES = pathlib.Path(__file__).parents[1] / "golden" / "families"


class State(NamedTuple):
    params: Any
    opt_state: Any


@pytest.fixture
def run(tmp_path):
    """A run of the tiny student with checkpoints after steps 2 and 4: (directory, parameters after each)."""
    first = load_checkpoint("tiny").params
    after = {s: jax.tree.map(lambda x, s=s: (x + np.float32(s)).astype(np.float32), first) for s in (2, 4)}
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=2)
    for step, params in after.items():
        checkpoints.save(step, State(params, {"m": jax.tree.map(np.zeros_like, params)}), {"seconds": 1.0})
    checkpoints.close()
    config = {"student": {"checkpoint": "tiny", "chat_template": ""}, "steps": 4}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    return tmp_path / "run", after


def names(path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", sorted(p.name for p in FAMILIES.iterdir()))
def test_import_then_export_is_bit_identical_for_every_family(tmp_path, name):
    assert cli.main(["export", str(FAMILIES / name), "--to", str(tmp_path / "out")]) == 0
    ours, theirs = (load_file(p / "model.safetensors") for p in (tmp_path / "out", FAMILIES / name))
    assert ours.keys() == theirs.keys() and all(ours[k].tobytes() == theirs[k].tobytes() for k in ours)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(
        (FAMILIES / name / "config.json").read_text()
    )
    assert names(tmp_path / "out") == ["config.json", "generation_config.json", "model.safetensors"]


def test_a_checkpoint_keeps_its_dtype_and_may_be_given_another(tmp_path):
    cfg, params = read_weights(FAMILIES / "qwen2")
    save_hf(tmp_path / "bf16", cfg, params, dtype="bfloat16")
    export.export(str(tmp_path / "bf16"), str(tmp_path / "a"))
    export.export(str(tmp_path / "bf16"), str(tmp_path / "b"), dtype="float32")
    same, wide, stored = (load_file(tmp_path / x / "model.safetensors") for x in ("a", "b", "bf16"))
    assert all(same[k].dtype == stored[k].dtype and same[k].tobytes() == stored[k].tobytes() for k in stored)
    assert all(wide[k].dtype == np.float32 and (wide[k] == stored[k].astype(np.float32)).all() for k in stored)
    dtypes = [json.loads((tmp_path / x / "config.json").read_text())["torch_dtype"] for x in ("a", "b")]
    assert dtypes == ["bfloat16", "float32"]


def test_a_run_gives_the_weights_of_the_step_and_the_files_of_its_checkpoint(run, tmp_path):
    path, after = run
    export.export(str(path), str(tmp_path / "newest"))
    export.export(str(path), str(tmp_path / "second"), step=2)
    for name, step in (("newest", 4), ("second", 2)):
        loaded = load_checkpoint(str(tmp_path / name))
        assert_same(loaded.params, after[step])
        assert loaded.tokenizer.encode("1+2=3") == load_checkpoint("tiny").tokenizer.encode("1+2=3")
    assert read_config(tmp_path / "newest") == read_config(find("tiny"))
    assert names(tmp_path) == ["newest", "run", "second"]  # nothing partially written is left


def test_an_exported_run_of_the_tiny_student_loads_in_transformers_with_its_tokenizer(run, tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    export.export(str(run[0]), str(tmp_path / "out"))
    theirs, ours = AutoTokenizer.from_pretrained(str(tmp_path / "out")), load_tokenizer(tmp_path / "out")
    assert AutoConfig.from_pretrained(str(tmp_path / "out")).model_type == "llama"
    assert (len(theirs), theirs.eos_token_id, theirs.pad_token_id) == (ours.vocab_size, ours.stop_ids[0], ours.pad_id)
    rng = random.Random(0)
    pieces = [ours.decode([i]) for i in range(2, ours.vocab_size)]
    for _ in range(200):
        text = "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 40)))
        ids = theirs.encode(text, add_special_tokens=False)
        assert ids == theirs(text)["input_ids"] == ours.encode(text)
        assert theirs.decode(ids) == ours.decode(ids) == text
        assert theirs.decode([*ids, 1], skip_special_tokens=True) == text
    chat = [{"role": "user", "content": "State the final answer to the following arithmetic problem: 1 + 2 =\n"}]
    ids = theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ids == ours.apply_chat_template([Message("user", chat[0]["content"])])
    text = theirs.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == ours.render([Message("user", chat[0]["content"])])
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": 1, "pad_token_id": 0}


def test_what_cannot_be_exported_is_named_and_nothing_is_written(run, tmp_path, capsys):
    path, _ = run
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    there = names(tmp_path)
    for args, said in (
        (["export"], "export what? expected a run or a checkpoint first"),
        (["export", str(path)], "--to is missing"),
        (["export", str(path), "--to", str(tmp_path / "full")], "exists and is not empty; choose another"),
        (["export", str(path), "--to", str(tmp_path / "o"), "--step", "3"], "no checkpoint after step 3; there are th"),
        (["export", "tiny", "--to", str(tmp_path / "o"), "--step", "3"], "but tiny is not a run; remove it"),
        (["export", "tiny", "--to", str(tmp_path / "o"), "--dtype", "int8"], "--dtype=int8 cannot be stored; expected"),
        (["export", str(tmp_path / "no"), "--to", str(tmp_path / "o")], "does not exist; expected tiny, smollm2"),
    ):
        assert cli.main(args) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert names(tmp_path) == there


def test_a_run_of_other_parameters_is_refused(run, tmp_path):
    path, _ = run
    config = {"student": {"checkpoint": str(FAMILIES / "qwen2"), "chat_template": ""}}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"parameters: .* is of shape|missing"):
        export.export(str(path), str(tmp_path / "out"))
    assert names(tmp_path) == ["run"]
    more = transformer.param_shapes(read_config(find("tiny")))
    more["head"] = {"table_VD": more["embed"]["table_VD"]}
    with pytest.raises(UserError, match=r"parameters: head\.table_VD is missing, expected shape \(104, 96\)"):
        saved_params(path / "checkpoints", None, more)


def test_a_failed_export_leaves_nothing(run, tmp_path, monkeypatch):
    def fail(tensors, file, metadata=None):
        pathlib.Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ropd_jax.weights.hf.save_file", fail)
    with pytest.raises(UserError, match="No space left on device"):
        export.export(str(run[0]), str(tmp_path / "out"))
    assert names(tmp_path) == ["run"]


def test_a_gguf_file_becomes_a_directory_with_the_same_weights_and_tokenizer(tmp_path, trained, monkeypatch):  # noqa: F811
    metadata: dict = {}
    write_gguf(tmp_path / "t.gguf", trained, **{"ggml.pre": "qwen2", "ggml.bos_token_id": ...})
    from ropd_jax.weights.gguf_file import GGUF

    metadata = {k: v for k, v in GGUF(tmp_path / "t.gguf").metadata.items() if k.startswith("tokenizer.")}
    header = GGUFWriter.write_header_to_file

    def with_tokenizer(writer, *args, **kwargs):
        kinds = {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}
        for key, value in metadata.items():
            kinds[type(value)](key, value)
        return header(writer, *args, **kwargs)

    monkeypatch.setattr(GGUFWriter, "write_header_to_file", with_tokenizer)
    cfg, params = write(tmp_path / "m.gguf", "families/qwen3", arch="qwen3")
    export.export(str(tmp_path / "m.gguf"), str(tmp_path / "out"))
    cfg2, loaded = read_weights(tmp_path / "out")
    assert_same(loaded, params)
    assert cfg2.qk_norm and cfg2.rope_theta == cfg.rope_theta
    ours, again = load_tokenizer(tmp_path / "m.gguf"), load_tokenizer(tmp_path / "out")
    assert [again.encode(t) for t in TEXTS] == [ours.encode(t) for t in TEXTS]
    assert again.render(CHAT) == ours.render(CHAT) == again.render([Message(m.role, m.content) for m in CHAT])
    assert (again.stop_ids, again.pad_id, again.template) == (ours.stop_ids, ours.pad_id, TEMPLATE)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


@pytest.mark.parametrize("base_dtype", ["float32", "int8"])
def test_a_run_with_adapters_is_merged_or_written_as_peft_does(tmp_path, base_dtype):
    from ropd_jax.models import lora as lora_lib

    student, section = (
        load_checkpoint("tiny"),
        {"rank": 2, "alpha": 6.0, "targets": ["attn.*"], "base_dtype": base_dtype},
    )
    lora = lora_lib.Lora.from_config(section)
    adapters = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1), lora_lib.init_adapters(student.cfg, lora, 0))
    path = tmp_path / "run"
    checkpoints = Checkpoints(path / "checkpoints", keep=2)
    checkpoints.save(3, State(adapters, {"m": np.zeros(2)}), {})
    checkpoints.close()
    config = {"student": {"checkpoint": "tiny", "chat_template": "", "lora": section}}
    (path / "config.json").write_text(json.dumps(config))
    assert cli.main(["export", str(path), "--to", str(tmp_path / "merged")]) == 0
    _, merged = read_weights(tmp_path / "merged")
    base = lora_lib.freeze(load_checkpoint("tiny", dtype=lora.load_dtype).params, base_dtype)
    assert_same(merged, jax.device_get(lora_lib.merge(lora, base, adapters)))
    q = np.asarray(lora_lib.thaw(base)["layers"]["attn"]["q_DNH"])
    a, b = (adapters["layers"]["attn"]["q_DNH"][k] for k in ("a_DR", "b_RNH"))
    np.testing.assert_allclose(
        merged["layers"]["attn"]["q_DNH"], q + 3.0 * np.einsum("ldr,lrnh->ldnh", a, b), atol=1e-6
    )
    assert cli.main(["export", str(path), "--to", str(tmp_path / "peft"), "--adapter"]) == 0
    assert names(tmp_path / "peft") == ["adapter_config.json", "adapter_model.safetensors"]
    stored = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert len(stored) == student.cfg.num_layers * 4 * 2
    np.testing.assert_array_equal(stored["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"], a[1].T)
    said = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["target_modules"]) == (2, 6.0, ["q_proj", "k_proj", "v_proj", "o_proj"])


def test_adapter_of_a_run_without_adapters_is_refused(run, tmp_path):
    for what in (str(run[0]), "tiny"):
        with pytest.raises(UserError, match="is not a run with adapters"):
            export.export(what, str(tmp_path / "out"), adapter=True)
    assert not (tmp_path / "out").exists()


def test_adapters_of_a_multimodal_student_are_named_for_its_text_part(tmp_path):
    path = CHECKPOINTS / "gemma3_pictures"
    cfg, lora = read_config(path), Lora.from_config(SECTION)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    checkpoints.save(1, State(made_adapters(cfg, lora), {"m": np.zeros(2)}), {})
    checkpoints.close()
    student = {"checkpoint": str(path), "chat_template": "", "lora": SECTION}
    (tmp_path / "run" / "config.json").write_text(json.dumps({"student": student}))
    export.export(str(tmp_path / "run"), str(tmp_path / "peft"), adapter=True)
    stored = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert sorted(stored) == json.loads((path / "peft.json").read_text())
    said = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert said["target_modules"] == r"model\.language_model\..*\.(q_proj|k_proj|v_proj|o_proj|up_proj)"


@pytest.mark.parametrize("name, tied", [("llama_own_head", False), ("llama_only_head", True)])
def test_an_exported_config_agrees_with_the_tables_that_were_written(tmp_path, name, tied):
    export.export(str(CHECKPOINTS / name), str(tmp_path / "out"))
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert raw["tie_word_embeddings"] == tied and ("lm_head.weight" in tensors) == (not tied)
    assert_same(read_weights(tmp_path / "out")[1], read_weights(CHECKPOINTS / name)[1])
