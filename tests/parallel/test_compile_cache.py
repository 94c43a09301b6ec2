"""The cache of compiled programs: where it is, what it survives, and what a second start saves."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ropd_jax.analysis.timeline import compiled
from ropd_jax.parallel import compile_cache
from ropd_jax.parallel.compile_cache import Programs, cache_dir
from ropd_jax.utils.tracing import Span

PROGRAM = """
import json, logging, os, sys
logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stdout)
import jax, jax.numpy as jnp
from ropd_jax.parallel import compile_cache
compile_cache.WORTH_S = 0.0
compile_cache.keep_programs("runs/a", on=len(sys.argv) < 2)
for n in range(2):
    jax.jit(lambda x: jnp.tanh(x @ x.T + n).sum())(jnp.ones((8 + n, 4)))
found = compile_cache.programs()
print(json.dumps({"loaded": found.loaded, "compiled": found.compiled, "saved_s": found.saved_s,
                  "dir": jax.config.jax_compilation_cache_dir}))
"""


def start(tmp_path, *args, **environment):
    """Runs a process with its own home directory; returns (its last line, the lines before)."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT", "XDG_"))}
    env |= {"HOME": str(tmp_path / "home"), "JAX_NUMPY_DTYPE_PROMOTION": "standard"} | environment
    out = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM, *args], env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    *lines, last = out.stdout.splitlines()
    return json.loads(last), lines


def test_the_second_start_loads_what_the_first_compiled_and_a_damaged_entry_is_replaced(tmp_path):
    first, _ = start(tmp_path)
    place = tmp_path / "home" / ".cache" / "ropd_jax" / "xla"
    assert first["dir"] == str(place) and first["loaded"] == 0 and first["compiled"] >= 2
    assert place.stat().st_mode & 0o077 == 0 and not list(place.glob(".*"))  # private, and nothing partially written
    entries = sorted(place.glob("*-cache"))
    whole = entries[0].read_bytes()
    entries[0].write_bytes(whole[: len(whole) // 2])  # as a process leaves it that is killed while JAX itself writes
    second, lines = start(tmp_path)
    assert (second["loaded"], second["compiled"]) == (first["compiled"] - 1, 1) and second["saved_s"] > 0
    assert lines == [] and len(entries[0].read_bytes()) > len(whole) // 2


@pytest.mark.parametrize(
    ("environment", "args", "place"),
    [
        ({"XDG_CACHE_HOME": "{tmp}/xdg"}, (), "{tmp}/xdg/ropd_jax/xla"),
        ({"JAX_COMPILATION_CACHE_DIR": "{tmp}/mine"}, (), "{tmp}/mine"),
        ({}, ("off",), None),
    ],
    ids=["xdg", "own", "off"],
)
def test_where_programs_are_kept(tmp_path, environment, args, place):
    found, lines = start(tmp_path, *args, **{k: v.format(tmp=tmp_path) for k, v in environment.items()})
    assert found["dir"] == (place and place.format(tmp=tmp_path)) and lines == []
    assert not (tmp_path / "home").exists()  # nothing in the user's home


def test_a_directory_that_cannot_be_written_is_one_warning(tmp_path):
    (tmp_path / "file").write_text("")
    found, lines = start(tmp_path, XDG_CACHE_HOME=str(tmp_path / "file"))
    assert found["dir"] is None and found["compiled"] >= 2
    assert len(lines) == 1 and lines[0].startswith("WARNING compiled programs are not kept: ")
    how = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    own, lines = start(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "file"), **how)
    assert own["compiled"] >= 2 and len(lines) == 1


def test_a_bucket_that_cannot_be_used_is_one_warning(tmp_path):
    pytest.importorskip("s3fs")
    how = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    how |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_MAX_ATTEMPTS": "1"}
    found, lines = start(tmp_path, JAX_COMPILATION_CACHE_DIR="s3://bucket/xla", **how)
    assert found["compiled"] >= 2
    assert len(lines) == 1 and lines[0].startswith("WARNING compiled programs are not kept: s3://bucket/xla (")


def test_a_directory_of_others_is_not_used(tmp_path):
    place = tmp_path / "xla"
    place.mkdir()
    place.chmod(0o777)
    assert "can be written by others" in compile_cache._unusable(place)
    place.chmod(0o700)
    assert compile_cache._unusable(place) == ""


def test_a_workdir_in_a_bucket_holds_its_own(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_dir("gs://bucket/runs/a/") == "gs://bucket/runs/a/xla"
    assert cache_dir("runs/a") == "/cache/ropd_jax/xla"


def test_the_oldest_entries_go_when_the_directory_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_cache, "MOST_BYTES", 25)
    for i in range(4):
        (tmp_path / f"{i}-cache").write_bytes(b"x" * 10)
        (tmp_path / f"{i}-seconds").write_text("1.0")
        os.utime(tmp_path / f"{i}-cache", (i, i))
    compile_cache._trim(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2-cache", "2-seconds", "3-cache", "3-seconds"]


def test_programs_are_counted_and_shown():
    found = Programs(5, 12, 3.0, 0.5, 9.5).since(Programs(1, 2, 1.0, 0.1, 1.5))
    assert str(found) == "4 programs compiled in 2.0 s, 10 loaded from the cache in 0.4 s, which saved 8.0 s"
    assert str(Programs(4, 0, 2.0)) == "4 programs compiled in 2.0 s, 0 loaded from the cache"
    spans = [
        Span("compile", 0, 2.5, cached=False),
        Span("compile", 3, 3.1, cached=True, saved_s=4.0),
        Span("step", 0, 9),
    ]
    assert compiled(spans) == "compile cache: 1 programs loaded, 4.0 s saved; 1 compiled in 2.5 s"
    assert compiled(spans[2:]) == ""
