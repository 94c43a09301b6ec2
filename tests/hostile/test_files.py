"""Downloaded files: false sizes, paths outside their directory and endless work are refused with a one-line error."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pickle
import shutil
import struct
import time
import tracemalloc

import numpy as np
import pytest
from gguf import GGUFWriter

from ropd_jax.text import chat
from ropd_jax.types import Message, UserError
from ropd_jax.utils.sandbox import Service
from ropd_jax.weights.gguf import GGUFSource
from ropd_jax.weights.gguf_file import GGUF
from ropd_jax.weights.hf import INDEX, HFSource
from ropd_jax.weights.student import find, open_source
from ropd_jax.weights.tokenizer import load_tokenizer

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "llama_untied"
HUGE = 2**60


def refused(call, *words):
    """Asserts that the call is refused with a one-line error with these words, quickly and without much memory."""
    tracemalloc.start()
    begin = time.monotonic()
    try:
        with pytest.raises(UserError) as error:
            call()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    text = str(error.value)
    assert "\n" not in text and len(text) < 1_000, text
    assert all(word in text for word in words), text
    assert peak < 32 << 20 and time.monotonic() - begin < 10, (peak, text)


# -------------------------------------------------------------------------------------------------- safetensors


def packed(header, data=b"", *, length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


FOUR = bytes(16)
ONE = tensor([4], 0, 16)
SAFETENSORS = {
    "empty": b"",
    "7 bytes": b"1234567",
    "length of 2^63": packed({}, length=2**63),
    "length of 2^64 - 1": packed({}, length=2**64 - 1),
    "length over the file's": packed({"a": ONE}, FOUR, length=10_000),
    "length under the header's": packed({"a": ONE}, FOUR, length=9),
    "not JSON": packed(b"GGUF" + bytes(60)),
    "not UTF-8": packed(b"\xff\xfe{}"),
    "a list": packed([1]),
    "nested 100,000 deep": packed(b"[" * 100_000 + b"]" * 100_000),
    "a number of 5,000 digits": packed(
        b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5_000 + b'], "data_offsets": [0, 1]}}'
    ),
    "a name twice": packed(b'{"a": ' + json.dumps(ONE).encode() + b', "a": ' + json.dumps(ONE).encode() + b"}", FOUR),
    "a key twice": packed(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], "shape": [9]}}', FOUR),
    "behind the end": packed({"a": tensor([8], 0, 32)}, FOUR),
    "begins behind the end": packed({"a": tensor([4], 16, 32)}, FOUR),
    "2^60 rows": packed({"a": tensor([HUGE], 0, 16)}, FOUR),
    "2^60 rows and bytes": packed({"a": tensor([HUGE], 0, 4 * HUGE)}, FOUR),
    "a product over 2^64": packed({"a": tensor([2**40, 2**40], 0, 0)}, FOUR),
    "negative offsets": packed({"a": tensor([4], -16, 0)}, FOUR),
    "negative shape": packed({"a": tensor([-2, -2], 0, 16)}, FOUR),
    "end before begin": packed({"a": tensor([4], 16, 0)}, FOUR),
    "on top of each other": packed({"a": ONE, "b": ONE}, FOUR),
    "half on top of each other": packed({"a": ONE, "b": tensor([4], 8, 24)}, FOUR + FOUR),
    "a gap": packed({"a": ONE, "b": tensor([4], 32, 48)}, FOUR * 3),
    "bytes of nobody": packed({"a": ONE}, FOUR * 2),
    "shape of another size": packed({"a": tensor([3], 0, 16)}, FOUR),
    "true for a number": packed({"a": tensor([True], 0, 4)}, bytes(4)),
    "1.0 for a number": packed({"a": tensor([4.0], 0, 16)}, FOUR),
    "an unknown dtype": packed({"a": tensor([4], 0, 16, "PICKLE")}, FOUR),
    "dtype of a list": packed({"a": tensor([4], 0, 16, ["F32"])}, FOUR),
    "no offsets": packed({"a": {"dtype": "F32", "shape": [4]}}, FOUR),
    "three offsets": packed({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8, 16]}}, FOUR),
    "a null tensor": packed({"a": None}),
    "axes without end": packed({"a": tensor([1] * 100_000, 0, 4)}, bytes(4)),
    "a pickle": pickle.dumps({"a": 1}),
    "a zip": b"PK\x03\x04" + bytes(100),
}


@pytest.fixture
def model(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "m")
    return tmp_path / "m"


def alone(model, content):
    """The model with one weights file with this content."""
    for file in model.glob("*.safetensors*"):
        file.unlink()
    (model / "model.safetensors").write_bytes(content)


def test_a_safetensors_file_that_lies_is_refused_before_anything_is_allocated(model):
    assert len(SAFETENSORS) >= 20
    for content in SAFETENSORS.values():
        alone(model, content)
        refused(lambda: HFSource(model), "model.safetensors", "is not a complete safetensors file", "fetch it again")


def test_a_pipe_and_a_directory_in_place_of_weights_are_refused(model):
    alone(model, b"")
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")
    refused(lambda: HFSource(model), "is not a regular file")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").mkdir()
    refused(lambda: HFSource(model), "is not a regular file")


# ------------------------------------------------------------------------------------------- names of the shards


OUTSIDE = ["../secret.safetensors", "a/../../secret.safetensors", "/etc/secret.safetensors", "sub/x.safetensors",
           "..", ".", "", "..\\secret.safetensors",
           "x\0.safetensors", "./x.safetensors", "//x.safetensors"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE, ids=ascii)
def test_a_shard_outside_the_directory_is_refused(model, name):
    outside = model.parent / "secret.safetensors"
    shutil.copy(next(model.glob("*.safetensors")), outside)
    (model / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    refused(lambda: HFSource(model), INDEX, "expected one in its own directory" if name else "expected")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.pkl", "safetensors", "x.safetensors.pth"])
def test_a_shard_that_is_a_pickle_is_refused_by_its_name(model, name):
    (model / name).write_bytes(pickle.dumps({}))
    (model / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    refused(lambda: HFSource(model), repr(name), "expected *.safetensors (a pickle can run code when it is read)")


@pytest.mark.parametrize("value", [None, 7, ["x"], {"a": 1}, True])
def test_a_shard_name_of_another_type_is_refused(model, value):
    (model / INDEX).write_text(json.dumps({"weight_map": {"a": value}}))
    refused(lambda: HFSource(model), INDEX, "fetch")


def test_a_link_out_of_the_directory_is_refused_and_one_inside_is_read(model):
    shard = sorted(model.glob("*.safetensors"))[0]
    outside = model.parent / "elsewhere.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside)
    refused(lambda: HFSource(model), str(shard), "is a link to", str(outside))
    shard.unlink()
    outside.rename(model / "kept.safetensors")
    shard.symlink_to("kept.safetensors")
    HFSource(model).close()


def test_the_links_of_the_hubs_cache_are_read_and_others_in_it_are_not(model, tmp_path):
    cache = tmp_path / "hub" / "models--a--b"
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for n, file in enumerate(sorted(model.iterdir())):
        file.rename(blobs / f"hash{n}")
        (snapshot / file.name).symlink_to(f"../../blobs/hash{n}")
    HFSource(snapshot).close()
    (tmp_path / "link").symlink_to(snapshot)  # as a user may call it
    HFSource(tmp_path / "link").close()
    shard = sorted(snapshot.glob("*.safetensors"))[0]
    blob = shard.resolve()
    blob.rename(tmp_path / "secret")
    shard.unlink()
    shard.symlink_to(tmp_path / "secret")
    refused(lambda: HFSource(snapshot), "is a link to")


class Executed:
    def __reduce__(self):
        return os.mkdir, ("PWNED",)


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl"])
def test_a_pickle_is_refused_by_its_name_and_never_read(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Executed()))
    refused(lambda: open_source(find(str(tmp_path / name))), name, "is a pickle, which can run code when it is read")
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(GOLDEN / "config.json", only)
    (tmp_path / name).rename(only / name)
    refused(lambda: open_source(only), "has no *.safetensors", name)
    assert not (tmp_path / "PWNED").exists()


def test_the_package_has_no_reader_of_pickles_for_files():
    """``numpy.load`` without ``allow_pickle`` is safe; the pickles of `parallel/hosts` and `data/grader` are ours, and
    those of `data/packed` are in a file without a name, which no other process can open."""
    package = pathlib.Path(chat.__file__).parents[1]
    texts = {p.relative_to(package).as_posix(): p.read_text(encoding="utf-8") for p in package.rglob("*.py")}
    assert {n for n, text in texts.items() if "pickle.load" in text} == {
        "parallel/hosts.py", "data/grader_worker.py", "data/packed.py",
    }  # fmt: skip
    assert not {n for n, text in texts.items() if "torch.load" in text or "allow_pickle=True" in text}


# ---------------------------------------------------------------------------------------------------------- GGUF


def string(text):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf(tensors=(), entries=(), *, n_tensors=None, n_entries=None, data=b"", version=3):
    """A GGUF file: (name, shape, type, offset) of each tensor, (key, type, packed value) of each entry."""
    head = struct.pack("<4sIQQ", b"GGUF", version, len(tensors) if n_tensors is None else n_tensors,
                       len(entries) if n_entries is None else n_entries)  # fmt: skip
    head += b"".join(string(key) + struct.pack("<I", kind) + value for key, kind, value in entries)
    for name, shape, kind, offset in tensors:
        head += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return head + bytes(-len(head) % 32) + data


def array(kind, n, data=b""):
    return struct.pack("<IQ", kind, n) + data


NESTED = array(9, 1) * 50_000 + array(4, 0)
GGUFS = {
    "magic only": b"GGUF",
    "version 9": gguf(version=9),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "2^60 tensors": gguf(n_tensors=HUGE),
    "2^60 entries": gguf(n_entries=HUGE),
    "2^64 - 1 of both": gguf(n_tensors=2**64 - 1, n_entries=2**64 - 1),
    "a key of 2^60 bytes": gguf(n_entries=1)[:24] + struct.pack("<Q", HUGE),
    "a string of 2^64 - 1 bytes": gguf(entries=[("a", 8, struct.pack("<Q", 2**64 - 1))]),
    "an array of 2^60 numbers": gguf(entries=[("a", 9, array(4, HUGE))]),
    "an array of 2^60 strings": gguf(entries=[("a", 9, array(8, HUGE))]),
    "an array of 2^60 arrays": gguf(entries=[("a", 9, array(9, HUGE))]),
    "arrays 50,000 deep": gguf(entries=[("a", 9, NESTED)]),
    "unknown type": gguf(entries=[("a", 99, b"")]),
    "a key twice": gguf(entries=[("a", 4, bytes(4))] * 2),
    "alignment 0": gguf(entries=[("general.alignment", 4, bytes(4))]),
    "alignment 3": gguf(entries=[("general.alignment", 4, struct.pack("<I", 3))]),
    "alignment true": gguf(entries=[("general.alignment", 7, b"\x01")]),
    "alignment of a text": gguf(entries=[("general.alignment", 8, string("32"))]),
    "alignment 2^63": gguf([("a", [4], 0, 0)], [("general.alignment", 10, struct.pack("<Q", 2**63))], data=FOUR * 2),
    "a tensor twice": gguf([("a", [4], 0, 0), ("a", [4], 0, 32)], data=bytes(64)),
    "behind the end": gguf([("a", [64], 0, 0)], data=bytes(64)),
    "offset 2^60": gguf([("a", [4], 0, HUGE)], data=bytes(64)),
    "offset 2^64 - 32": gguf([("a", [4], 0, 2**64 - 32)], data=bytes(64)),
    "2^60 columns": gguf([("a", [HUGE], 0, 0)], data=bytes(64)),
    "a product over 2^64": gguf([("a", [2**40, 2**40], 0, 0)], data=bytes(64)),
    "on top of each other": gguf([("a", [8], 0, 0), ("b", [8], 0, 0)], data=bytes(64)),
    "half on top of each other": gguf([("a", [16], 0, 0), ("b", [8], 0, 32)], data=bytes(96)),
    "not aligned": gguf([("a", [4], 0, 4)], data=bytes(64)),
    "no axes": gguf([("a", [], 0, 0)], data=bytes(64)),
    "100,000 axes": gguf([("a", [1] * 100_000, 0, 0)], data=bytes(64)),
    "no rows": gguf([("a", [4, 0], 0, 0)], data=bytes(64)),
    "half a block": gguf([("a", [33], 8, 0)], data=bytes(64)),
    "unknown GGML type": gguf([("a", [4], 250, 0)], data=bytes(64)),
}


def test_a_gguf_file_that_lies_is_refused_before_anything_is_allocated(tmp_path):
    assert len(GGUFS) >= 20
    file = tmp_path / "m.gguf"
    for content in GGUFS.values():
        file.write_bytes(content)
        refused(lambda: GGUF(file), "m.gguf")


def test_a_gguf_header_is_read_up_to_its_bound_only(tmp_path):
    file = tmp_path / "m.gguf"
    head = gguf(entries=[("a", 9, array(0, 1 << 40))])
    with file.open("wb") as f:  # sparse: it takes no room on the disk
        f.write(head)
        f.truncate(2 << 40)
    refused(lambda: GGUF(file), "its header needs byte 1,099,511,", "expected at most 67,108,864")


def test_what_the_format_allows_is_read(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf([("b", [8], 0, 64), ("a", [4], 0, 0)], data=np.arange(24, dtype=np.float32).tobytes()))
    found = GGUF(file)
    assert found.read("a").tolist() == [0, 1, 2, 3] and found.read("b").tolist() == [*range(16, 24)]


NUMBERS = {
    "block_count": 4, "context_length": 4, "embedding_length": 4, "feed_forward_length": 4, "attention.head_count": 4,
}  # fmt: skip


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [2**32 - 1, 0.5, float("inf"), float("nan"), "7", True, [1, 2], 0])
def test_a_gguf_config_of_any_value_is_a_model_that_does_not_fit(tmp_path, key, value):
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    for name in NUMBERS:
        this = value if name == key else 2 if name == "attention.head_count" else 8
        kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        kinds.get(type(this), writer.add_array)(f"llama.{name}", this)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(lambda: GGUFSource(tmp_path / "m.gguf"))


# -------------------------------------------------------------------------------------- config.json, tokenizers


CONFIGS = [
    {"num_hidden_layers": 10**12}, {"num_hidden_layers": 1e300}, {"hidden_size": 10**299}, {"vocab_size": HUGE},
    {"rope_parameters": [1]}, {"rope_parameters": "x"}, {"rope_scaling": "yarn"}, {"rope_scaling": [1]},
    {"model_type": ["llama"]}, {"model_type": {}}, {"architectures": 7}, {"architectures": {"a": 1}},
    {"hidden_act": ["silu"]}, {"model_type": "gemma3", "text_config": "x"}, {"head_dim": 2**62},
    {"model_type": "gemma2", "layer_types": 7}, {"model_type": "gemma2", "layer_types": [[], {}]},
    {"model_type": "gemma2", "sliding_window_pattern": 0}, {"model_type": "gemma2", "final_logit_softcapping": "x"},
    {"model_type": "qwen3_moe", "num_experts": 10**12, "num_experts_per_tok": 1, "moe_intermediate_size": 2},
]  # fmt: skip


def test_a_config_json_of_any_value_is_refused(model):
    assert len(CONFIGS) >= 20
    config = json.loads((model / "config.json").read_text())
    for changes in CONFIGS:
        (model / "config.json").write_text(json.dumps(config | changes))
        refused(lambda: HFSource(model), str(model))


@pytest.mark.parametrize("name", ["config.json", INDEX, "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"[]", b"{", b'{"a":' * 50_000, b"9" * 5_000, b""])
def test_a_json_file_of_another_form_is_refused(tmp_path, name, content):
    shutil.copytree(GOLDEN, tmp_path / "m")
    shutil.copy(find("tiny") / "tokenizer.json", tmp_path / "m")
    (tmp_path / "m" / name).write_bytes(content)
    read = load_tokenizer if "token" in name else HFSource
    refused(lambda: read(tmp_path / "m"), name)


TOKENIZERS = {
    "tokenizer_config.json": [
        {"chat_template": 7}, {"chat_template": [7]}, {"chat_template": [{"name": "default", "template": 7}]},
        {"chat_template": {"a": 1}}, {"chat_template": "{{ 9**9**9**9 }}" * 10 + "{% if"}, {"chat_template": "{{ x"},
    ],
    "tokenizer.json": ["", [], {}, {"model": 7}, {"model": {"type": "BPE", "vocab": [], "merges": {}}}, "x" * 1000],
    "generation_config.json": [[], "x"],
}  # fmt: skip


def test_a_tokenizer_of_another_form_is_refused(tmp_path):
    for name, values in TOKENIZERS.items():
        for n, value in enumerate(values):
            made = tmp_path / f"{name}{n}"
            shutil.copytree(find("tiny"), made)
            if name == "tokenizer_config.json":
                (made / "chat_template.jinja").unlink()
            (made / name).write_text(json.dumps(value))
            refused(lambda made=made: load_tokenizer(made), str(made))


def test_a_tokenizer_with_code_of_its_own_runs_none_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "import os\nos.mkdir('PWNED')\nclass T: pass\n"
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "evil.py").write_text(code)
    (tmp_path / "m" / "vocab.json").write_text("{}")
    own = {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "T"}
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(own))
    (tmp_path / "m" / "config.json").write_text(
        json.dumps({"model_type": "llama", "auto_map": {"AutoConfig": "evil.T"}})
    )
    with pytest.raises(UserError, match="transformers cannot convert its tokenizer"):
        load_tokenizer(tmp_path / "m")
    assert not (tmp_path / "PWNED").exists()


# ------------------------------------------------------------------------------------------------ chat templates


ENDLESS = [
    "{% for i in range(10**12) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 9**9**9 % 7 + (9**9**9 % 5) * 9**9**9 }}",
    "{{ 'x' * 10**12 }}",
    "{{ 'x' * 2 * 10**7 }}",
    "{{ ['x'] * 10**10 }}",
    "{{ 'x'|center(10**11) }}",
    "{{ 'x'.ljust(10**11) }}",
    "{{ '{:>100000000000}'.format('x') }}",
    "{{ '%0100000000000d' % 1 }}",
    "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ " + "(" * 50_000 + " }}",
    "{% if 1 %}" * 2_000 + "{% endif %}" * 2_000,
    "{{ " + "-" * 20_000 + "1 }}",
]
ESCAPES = [
    "{{ ().__class__.__base__.__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='system') }}",
    "{{ cycler.__init__.__globals__.os.system('touch PWNED') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{{ lipsum.__globals__['os'].popen('touch PWNED').read() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('touch PWNED') }}",
    "{{ joiner.__call__.__globals__ }}",
]
USER = Message("user", "Q")


@pytest.fixture(scope="module", autouse=True)
def child():
    """A child with the minimum time."""
    with pytest.MonkeyPatch.context() as patch:
        how = dict(cpu_s=1, memory=chat.MEMORY, reply_bytes=chat.TEXT_BYTES)
        patch.setattr(chat, "_child", Service("ropd_jax.text.chat_worker", **how))
        yield
        chat._child.close()


def test_a_template_without_an_end_is_refused_in_bounded_time():
    assert len(ENDLESS) + len(ESCAPES) >= 20
    tried = 0
    for template in ENDLESS:
        begin = time.monotonic()
        with contextlib.suppress(UserError):
            text = chat.render(chat.check(template, "w"), [USER], {})
            assert len(text) <= chat.TEXT_BYTES, template
        tried += 1
        assert time.monotonic() - begin < 14 * chat.CPU_S, template
    assert tried == len(ENDLESS) and chat.render("{{ messages[0].content }}", [USER], {}) == "Q"


@pytest.mark.parametrize("template", [ENDLESS[0], ENDLESS[1], ENDLESS[3], "{{ 'x' * 2 * 10**7 }}"])
def test_the_refusal_names_the_bound(template):
    with pytest.raises(UserError, match=r"blocks ranges|takes more than|to a text of more than"):
        chat.render(template, [USER], {})


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_reaches_nothing(template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hostile-0123456789")
    try:
        text = chat.render(template, [USER], {})
    except UserError as error:
        text = str(error)
    assert "root:" not in text and "sk-hostile" not in text and "<module" not in text and "<class" not in text
    assert list(tmp_path.iterdir()) == []


def test_a_long_chat_is_rendered_whole():
    long = Message("user", "é\ud800\n" * 300_000)
    assert chat.render("{{ messages[0].content }}", [long], {}) == long.content


def test_rendering_works_off_the_main_thread_too():
    import threading

    found = []

    def work():
        try:
            chat.render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", [USER], {})
        except UserError as error:
            found.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert len(found) == 1 and "takes more than 2 s" in found[0]
