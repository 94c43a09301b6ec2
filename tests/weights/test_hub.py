"""Hub ids: from the cache, from a server, and a one-line error for every failure."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from ropd_jax.types import UserError
from ropd_jax.weights import hub, student
from tests.helpers import read_weights
from tests.loopback import http_serving

TINY = pathlib.Path(student.__file__).parents[1] / "assets" / "quickstart_student"
COMMIT, TOKEN = "c" * 40, "hf_secretsecretsecret"


def test_names_that_can_be_repositories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert hub.is_id("Qwen/Qwen3-4B") and hub.is_id("Qwen/Qwen3-4B@main") and hub.is_id("google/gemma-3-4b-it")
    for name in ("Qwen3-4B", "./Qwen/Qwen3", "/a/b", "~/a/b", "a/b/c", "runs/a", "a b/c"):  # runs/ is a folder here
        assert not hub.is_id(name), name


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with org/tiny, and no network."""
    from huggingface_hub import constants

    repo = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(TINY, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return repo


def test_a_checkpoint_in_the_cache_is_loaded_without_a_net(cache):
    loaded = student.load_checkpoint("org/tiny")
    np.testing.assert_array_equal(loaded.params["embed"]["table_VD"], read_weights(TINY)[1]["embed"]["table_VD"])
    assert student.find(f"org/tiny@{COMMIT}") == cache / "snapshots" / COMMIT


def test_what_is_not_in_the_cache_and_may_not_be_fetched_is_named(cache):
    with pytest.raises(
        UserError, match=r"'org/other' is not a local file or directory and not.*HF_HUB_OFFLINE.*hf download"
    ):
        student.find("org/other")


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the Hub's API that a download needs; records the requests."""

    files: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        self.asked.append(f"{self.command} {path} {self.headers.get('Authorization')}")
        if path.startswith("/api/models/org/gated"):
            return self.answer(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        if path.endswith("/revision/nope"):
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if path.startswith("/api/models/org/tiny/revision/"):
            names = [{"rfilename": n} for n in self.files]
            return self.answer(200, json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": names}).encode())
        if path.startswith("/api/models/org/tiny/tree/"):
            rows = [
                {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                for n, b in self.files.items()
            ]
            return self.answer(200, json.dumps(rows).encode())
        name = path.removeprefix(f"/org/tiny/resolve/{COMMIT}/")
        if name in self.files:
            etag = f'"{hashlib.sha1(self.files[name]).hexdigest()}"'
            return self.answer(200, self.files[name], {"ETag": etag, "X-Repo-Commit": COMMIT})
        return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for key, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving():
    Hub.files = {p.name: p.read_bytes() for p in TINY.iterdir()} | {
        "pytorch_model.bin": b"pickle",
        "old/model.safetensors": b"",
    }
    Hub.asked = []
    with http_serving(Hub) as url:
        yield url


SCRIPT = """
import sys
from ropd_jax.weights import hub
from ropd_jax.types import UserError
for name in sys.argv[1:]:
    try:
        print(hub.fetch(name))
    except UserError as e:
        print("UserError:", e)
"""


def test_a_server_is_asked_for_the_safetensors_and_never_for_pickles_and_errors_say_what_to_do(tmp_path):
    with serving() as url:
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        env |= {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        names = ["org/tiny", "org/gated", "org/missing", "org/tiny@nope"]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *names], env=env, capture_output=True, text=True, timeout=120, check=True
        )
        down = env | {"HF_ENDPOINT": "http://127.0.0.1:9"}  # where no server is listening
        after = subprocess.run(
            [sys.executable, "-c", SCRIPT, "org/tiny", "org/other"],
            env=down,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    again, unreachable = after.stdout.strip().splitlines()
    assert again == done.stdout.splitlines()[0]  # the cache is enough
    assert "is not in the cache" in unreachable and "http://127.0.0.1:9 cannot be reached" in unreachable
    place, gated, missing, revision = done.stdout.strip().splitlines()
    assert sorted(p.name for p in pathlib.Path(place).iterdir()) == sorted(p.name for p in TINY.iterdir())
    assert (pathlib.Path(place) / "model.safetensors").read_bytes() == (TINY / "model.safetensors").read_bytes()
    assert place.startswith(str(tmp_path))
    assert "is gated: accept its terms at" in gated and "HF_TOKEN" in gated
    assert "has no such repository, or it is private; check the name, or set HF_TOKEN" in missing
    assert "org/tiny has no revision 'nope'" in revision
    assert TOKEN not in done.stdout + done.stderr
    assert any(f"Bearer {TOKEN}" in line for line in Hub.asked)  # but the server got it
    assert not [line for line in Hub.asked if ".bin" in line or "/old/" in line]
