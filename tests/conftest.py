"""The set-up of every test: 8 CPU devices, strict promotion, one cache of compiled programs, not too many at once.

It is set in the environment, before anything imports jax: tests without jax (the teacher's) do not import it, and
processes that tests start inherit it.
"""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# Programs are compiled once and run a few times on tiny arrays here, so what counts is the compiler's time and not the
# speed of its code: half of the CPU time of the tests of models. The passes of XLA (fusion, sharding) run as always.
FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {' '.join(FLAGS)}".strip()
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"ropd_jax_xla_{os.getuid()}"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ["MPLBACKEND"] = "agg"
KEYS = ("OPENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY", "HF_TOKEN")
for name in (*KEYS, "OPENAI_BASE_URL", "GOOGLE_GEMINI_BASE_URL"):
    os.environ.pop(name, None)  # no test may reach a paid service
os.environ["HF_HUB_OFFLINE"] = "1"

MAPPINGS = 15_000  # of memory; Linux allows a process 65,530, and XLA aborts where a program gets none


SLOW = (  # whole runs, several processes, big compilations: left out by `make test-fast`
    "runs/", "hostile/", "parallel/test_hosts.py", "test_notebooks.py", "test_api.py", "methods/test_gad.py",
    "methods/test_whitebox.py", "methods/test_switches.py", "sampling/", "training/test_accumulate.py",
    "training/test_update.py", "training/test_heldout_judge.py", "training/test_failure_gate.py", "plan/",
    "weights/test_families.py", "weights/test_load.py", "models/", "evaluation/test_run.py",
    "evaluation/graders/test_math.py", "evaluation/test_grade_file.py", "analysis/test_teacher_signals.py",
    "workdir/test_place.py", "workdir/test_full_disk.py", "utils/test_buckets.py",
    "workdir/test_export.py", "workdir/test_one_run.py", "training/test_by_hand.py", "teacher/test_blocking.py",
    "workdir/test_checkpoint.py", "workdir/test_policy.py",
    "teacher/test_collect_references.py", "teacher/tape/", "teacher/traffic/test_storm.py",
    "teacher/traffic/test_admission.py", "core/test_moments.py", "core/test_losses.py",
    "launch/", "workdir/test_lock.py", "workdir/test_trackers.py", "viewer/test_browser.py", "viewer/test_bundle.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    here = pathlib.Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(SLOW):
            item.add_marker("slow")


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """After a file of tests, drops the compiled programs if the process holds many of them."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and len(maps.read_bytes().splitlines()) > MAPPINGS:
        sys.modules["jax"].clear_caches()


@pytest.fixture(autouse=True, scope="session")
def busy_machine():
    """Gives sandboxed children time on a busy machine; their limits of computing stay as they are."""
    from ropd_jax.utils import sandbox

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "_START_S", 3_600.0)
        patch.setattr(sandbox, "_WALL", 3_600)
        yield


@pytest.fixture
def sum_prompt():
    """A question that the scripted teacher can solve."""
    from ropd_jax.types import Message, Prompt

    text = "State the final answer to the following arithmetic problem: 9 + 5 - 1 + 3 ="
    return Prompt("sum-1", (Message("user", text),), answer="16")


@pytest.fixture
def sum_answers():
    """Four answers to it: right with all steps, right with one, wrong without steps, wrong with a slip."""
    full = "9 + 5 = 14\n14 - 1 = 13\n13 + 3 = 16\nAnswer: 16"
    return [full, "9 + 5 = 14\nAnswer: 16", "Answer: 17", "9 + 5 = 15\n15 - 1 = 14\n14 + 3 = 17\nAnswer: 17"]
