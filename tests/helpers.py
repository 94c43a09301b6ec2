"""Small things that several tests need."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np

from ropd_jax.models.config import ModelConfig
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.teacher.tape.store import Tape
from tests.loopback import on_own_thread

CONFIG_FILE = """
from ropd_jax import configs

def get_config(arg=""):
    cfg = configs.default()
    cfg.optim.lr = 1e-4
    cfg.student.checkpoint = arg or "tiny"
    return cfg
"""

TINY = ModelConfig(
    vocab_size=64,
    num_layers=3,
    d_model=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=48,
    rope_theta=1e4,
    norm_eps=1e-5,
    tied=True,
    max_seq_len=128,
)


QUESTION = "State the final answer to the following arithmetic problem: 9 + 5 - 1 + 3 ="


def xla_flags(devices: int) -> str:
    """The tests' XLA_FLAGS (`conftest`) for a process with another number of devices."""
    return re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])


def python(code: str, cwd: pathlib.Path, *flags: str) -> subprocess.CompletedProcess:
    """A script in a process of its own, which must end well; with one device, as on a laptop."""
    env = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[1]), "XLA_FLAGS": xla_flags(1)}
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done


class IdTokenizer:
    """Text is token ids separated by spaces; id 1 stops."""

    stop_ids = (1,)
    pad_id = 0
    vocab_size = TINY.vocab_size

    def encode(self, text):
        return [int(t) for t in text.split()]

    def decode(self, ids):
        return " ".join(map(str, ids))

    def render(self, messages):
        return messages[-1].content

    def apply_chat_template(self, messages):
        return self.encode(self.render(messages))


def local_data():
    """The directory of benchmark files on this machine; skips the test if there is none."""
    import pytest

    place = os.environ.get("ROPD_DATA") or pathlib.Path(__file__).parents[2] / "shared" / "data"
    if not pathlib.Path(place).is_dir():
        pytest.skip("no benchmark files here (their text is not in the repository); ROPD_DATA names their directory")
    return pathlib.Path(place)


def local_rows(name):
    """The rows of a benchmark file on this machine; skips the test if there is none."""
    import pytest

    path = local_data() / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path.name} is not here (its text is not in the repository)")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def tape_keys(path: pathlib.Path) -> set[str]:
    """The keys of all requests on a tape."""
    with contextlib.closing(Tape(path, read_only=True)) as tape:
        return tape.keys()


def trees_max_diff(a, b) -> float:
    import jax

    return max(
        float(np.max(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64))))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def serving(client=None, **options):
    """The scripted teacher (or ``client``) behind HTTP on a separate thread; yields the address, without /v1."""
    from ropd_jax.teacher.scripted.server import running

    return on_own_thread(running(client or ScriptedClient(), **options))


class Asked(ScriptedClient):
    """The scripted teacher; keeps the requests."""

    def __init__(self):
        super().__init__()
        self.requests = []

    async def chat(self, request):
        self.requests.append(request)
        return await super().chat(request)


class FailsAt(ScriptedClient):
    """The scripted teacher, which raises ``error`` at every request of one purpose."""

    def __init__(self, purpose, error):
        super().__init__()
        self.purpose, self.error = purpose, error

    async def chat(self, request):
        if request.purpose == self.purpose:
            raise self.error
        return await super().chat(request)


def read_weights(path, dtype="float32"):
    """(config, parameter tree as numpy arrays) of a checkpoint directory or a GGUF file."""
    from ropd_jax.weights.gguf import GGUFSource
    from ropd_jax.weights.hf import HFSource
    from ropd_jax.weights.tensors import host_tree

    kind = GGUFSource if str(path).endswith(".gguf") else HFSource
    with contextlib.closing(kind(path)) as source:
        return source.cfg, host_tree(source, np.dtype(dtype))


def restore_raw(checkpoints, step):
    """(state, host) of a checkpoint, as trees of host arrays: without a state of that shape, on any devices."""
    import jax
    import orbax.checkpoint as ocp

    directory = checkpoints.directory / str(step)
    tree = ocp.StandardCheckpointHandler().metadata(directory / "state").tree
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        state = reader.restore(directory / "state", args=ocp.args.PyTreeRestore(restore_args=how))
    return state, json.loads((directory / "host" / "metadata").read_text())
