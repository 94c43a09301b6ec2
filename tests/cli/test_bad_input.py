"""Mistakes in the command or config of a run: a one-line error, exit code 2, no weights read, no files left.

Each row is a mistake and words that the error must contain. All rows can use ``FILES``: empty and broken files, and
directories instead of files.
"""

from __future__ import annotations

import json
import pathlib

import pytest

from ropd_jax.cli import main as cli
from ropd_jax.training import setup
from ropd_jax.weights import load
from ropd_jax.workdir import policy

CONFIG = """
from experiments import quickstart

def get_config(arg=""):
    cfg = quickstart.get_config()
    cfg.mesh.fsdp, cfg.steps, cfg.optim.warmup_steps = 1, 2, 0
    cfg.data.size, cfg.data.heldout_size, cfg.data.prompts_per_step, cfg.sampling.rollouts = 20, 8, 4, 4
    cfg.log.trackers = ()
    exec(arg)
    return cfg
"""
FILES = {
    "empty.jsonl": "",
    "broken.jsonl": '{"question": "1 + 1 ="\n',
    "list.jsonl": "[1, 2]\n",
    "noquestion.jsonl": '{"answer": "2"}\n',
    "one.jsonl": '{"question": "2 + 2 =", "answer": "4"}\n',
    "text.txt": "hello\n",
    "weights.bin": "not a pickle",
    "broken.gguf": "GGUFnot",
    "bad.jinja": "{% for m in messages %}{{ m.content }}",
    "empty.jinja": "",
    "noplace.md": "Write a reference.\n",
    "three.md": "a\n=== user ===\nb\n=== user ===\nc\n",
    "broken.toml": "[[",
    "report.json": "{}",
    "mine.py": "METHOD = 3\n",
    "student/config.json": json.dumps({"model_type": "mamba"}),
    "damaged/config.json": "{",
    "full/notes.txt": "mine",
    "directory/x": "",
}

NUMBERS = [  # key=value, which is out of range, of another kind, or not finite
    "optim.lr=-1e-4", "optim.lr=nan", "optim.lr=inf", "optim.lr=0", "optim.b1=2", "optim.b1=-0.1", "optim.b2=1.0",
    "optim.eps=0", "optim.weight_decay=-1", "optim.clip_norm=0", "optim.clip_norm=-1", "optim.warmup_steps=-1",
    "optim.microbatch=-1", "optim.minibatches=0", "optim.row_len=-8", "optim.logprob_chunk=0",
    "optim.schedule_steps=-1", "seed=-1", "seed=4294967296", "steps=0", "steps=-5", "sampling.rollouts=1",
    "sampling.max_tokens=0", "sampling.temperature=0", "sampling.temperature=-1", "sampling.temperature=nan",
    "sampling.top_p=0", "sampling.top_p=1.5", "sampling.top_k=-1", "sampling.chunk=0", "sampling.prompts_at_once=-1",
    "sampling.resample=-1", "loss.clip_low=-0.2", "loss.clip_high=-0.2", "loss.clip_high=inf", "loss.dual_clip=-1",
    "loss.is_cap=-1", "loss.kl_coef=-0.1", "loss.entropy_coef=nan", "loss.min_scored=1", "loss.overlong_buffer=-1",
    "student.lora.rank=-1", "student.lora.alpha=0", "data.size=-1", "data.seed=-1", "data.prompts_per_step=0",
    "data.max_prompt_tokens=0", "eval.size=-1", "eval.every=0", "eval.prompts_at_once=0", "eval.judged=-1",
    "checkpoint.every=0", "checkpoint.keep=0", "log.watchdog_s=-1", "log.watchdog_s=nan", "stream.groups=-1",
    "stream.staleness=2", "stream.straggler_timeout_s=-1", "stream.cap=0", "mesh.fsdp=-2", "mesh.tp=0",
    "teacher.concurrency=0", "teacher.timeout_s=0", "teacher.timeout_s=inf", "teacher.attempts=0",
    "teacher.max_wait_s=nan", "teacher.requests_per_minute=0", "teacher.max_failed_frac=2", "teacher.failed_window=0",
    "teacher.references=0", "teacher.budget.usd=-1", "teacher.budget.calls=-1", "teacher.max_answer_chars=-1",
    "teacher.verifier.temperature=-1", "teacher.verifier.max_output_tokens=0", "teacher.verifier.min_agreement=0.2",
    "teacher.health.repeat_frac=1.5", "teacher.scripted.fault_rate=-0.1", "teacher.rubric_epochs=0",
    "ropd.least_criteria=0", "ropd.references_pass=2", "ovd.threshold=10", "lopd.beta=1.5", "gad.lr=0", "gad.b1=1",
]  # fmt: skip

WORDS = [  # overrides of the config, and words that the error must contain
    (["loss.aggregation=mean"], ["loss.aggregation='mean'", "token_mean"]),
    (["loss.ratio=group"], ["loss.ratio='group'", "sequence"]),
    (["loss.kl_kind=k4"], ["loss.kl_kind='k4'", "k3"]),
    (["loss.overlong=drop"], ["loss.overlong='drop'", "shape"]),
    (["loss.overlong=shape"], ["loss.overlong_buffer=0", "sampling.max_tokens"]),
    (["loss.dual_clip=0.5"], ["loss.dual_clip=0.5", "more than 1"]),
    (["loss.min_scored=5"], ["loss.min_scored=5", "sampling.rollouts=4", "2 to 4"]),
    (["optim.schedule=linear"], ["optim.schedule='linear'", "cosine"]),
    (["optim.schedule=cosine", "optim.warmup_steps=3"], ["optim.warmup_steps=3", "at most 2"]),
    (["optim.moments=int4"], ["optim.moments='int4'", "int8"]),
    (["optim.remat=all"], ["optim.remat='all'", "block"]),
    (["optim.attention=fast"], ["optim.attention='fast'", "auto"]),
    (["optim.minibatches=3"], ["optim.minibatches=3", "divisor of 4"]),
    (["optim.row_len=8"], ["optim.row_len=8", "too short"]),
    (["optim.xla_options=fast"], ["optim.xla_options", "'fast'"]),
    (["student.dtype=float17"], ["student.dtype='float17'", "bfloat16"]),
    (["student.lora.rank=4096"], ["student.lora.rank=4096", "width 96"]),
    (["student.lora.rank=4", "student.lora.targets=('mlpp',)"], ["'mlpp' matches no weight"]),
    (["student.lora.base_dtype=int8"], ["student.lora.base_dtype='int8'", "student.lora.rank"]),
    (["student.checkpoint="], ["student.checkpoint is empty"]),
    (["student.checkpoint=./nowhere"], ["./nowhere", "does not exist"]),
    (["student.checkpoint=directory"], ["no config.json"]),
    (["student.checkpoint=student"], ["model_type='mamba'"]),
    (["student.checkpoint=damaged"], ["cannot be read as JSON"]),
    (["student.checkpoint=text.txt"], ["text.txt"]),
    (["student.checkpoint=weights.bin"], ["pickle"]),
    (["student.checkpoint=broken.gguf"], ["broken.gguf"]),
    (["student.chat_template=nowhere.jinja"], ["nowhere.jinja", "cannot be read"]),
    (["student.chat_template=directory"], ["student.chat_template='directory'", "cannot be read"]),
    (["student.chat_template=empty.jinja"], ["is empty"]),
    (["student.chat_template=bad.jinja"], ["bad.jinja", "not a Jinja chat template"]),
    (["sampling.cache_dtype=float8"], ["sampling.cache_dtype='float8'", "int8"]),
    (["sampling.stop=('',)"], ["sampling.stop contains an empty text"]),
    (["sampling.max_tokens=10_000"], ["sampling.max_tokens=10000", "128"]),
    (["data.source=jsonnl"], ["jsonnl", "reasoning_gym, instructions, jsonl or published"]),
    (["data.task=chain_sums"], ["chain_sums", "chain_sum"]),
    (["data.options={'min_termss': 4}"], ["min_termss", "min_terms"]),
    (["data.template=Solve {questoin}"], ["data.template", "{question}"]),
    (["data.size=0"], ["data.size=0"]),
    (["data.max_prompt_tokens=3"], ["data.max_prompt_tokens=3"]),
    (["data.prompts_per_step=500"], ["500"]),
    (["data.heldout_seed=10_000_005"], ["share items"]),
    (["data.source=jsonl"], ["data.path", "data.source='jsonl'"]),
    (["data.source=jsonl", "data.path=nowhere.jsonl", "data.heldout_path=one.jsonl"], ["nowhere.jsonl"]),
    (["data.source=jsonl", "data.path=one.jsonl", "data.heldout_path=nowhere.jsonl"], ["nowhere.jsonl"]),
    (["data.source=jsonl", "data.path=none*.jsonl", "data.heldout_path=one.jsonl"], ["no file matches"]),
    (["data.source=jsonl", "data.path=directory", "data.heldout_path=one.jsonl"], ["directory"]),
    (["data.source=jsonl", "data.path=empty.jsonl", "data.heldout_path=one.jsonl"], ["empty.jsonl", "no prompt left"]),
    (["data.source=jsonl", "data.path=broken.jsonl", "data.heldout_path=one.jsonl"], ["broken.jsonl:1: not JSON"]),
    (["data.source=jsonl", "data.path=list.jsonl", "data.heldout_path=one.jsonl"], ["list.jsonl:1"]),
    (["data.source=jsonl", "data.path=noquestion.jsonl", "data.heldout_path=one.jsonl"], ["noquestion.jsonl:1"]),
    (["data.source=jsonl", "data.path=one.jsonl", "data.heldout_path=one.jsonl"], ["in the held-out set too"]),
    (["data.source=published", "data.options={}", "data.task=dapo", "data.path=directory"], ["dapo", "dapo_math_17k"]),
    (["method=ropdd"], ["ropdd", "t_judge"]),
    (["method=nowhere.py"], ["nowhere.py"]),
    (["method=mine.py"], ["mine.py", "METHOD"]),
    (["method=lopd"], ["lopd.checkpoint"]),
    (["method=lopd", "lopd.checkpoint=./nowhere"], ["lopd.checkpoint='./nowhere'", "does not exist"]),
    (["method=lopd", "lopd.checkpoint=tiny", "lopd.dtype=int3"], ["lopd.dtype='int3'"]),
    (["ropd.rubric_per=answer"], ["ropd.rubric_per='answer'"]),
    (["ropd.least_criteria=13"], ["ropd.least_criteria=13", "most_criteria"]),
    (["mesh.tp=3"], ["tp=3"]),
    (["mesh.fsdp=64"], ["64 devices"]),
    (["stream.straggler_timeout_s=1"], ["stream.straggler_timeout_s=1", "stream.groups"]),
    (["stream.staleness=1", "sampling.resample=1"], ["stream.staleness=1", "sampling.resample"]),
    (["teacher.provider=openia"], ["openia", "openai"]),
    (["teacher.provider=openai"], ["OPENAI_API_KEY"]),
    (["teacher.provider=gemini"], ["GEMINI_API_KEY"]),
    (["teacher.provider=openai", "teacher.base_url=http://me:secret@host/v1"], ["base_url"]),
    (["teacher.min_concurrency=65"], ["teacher.min_concurrency=65", "teacher.concurrency=64"]),
    (["teacher.order=fastest"], ["teacher.order", "longest_first"]),
    (["teacher.rubric_reuse=always"], ["teacher.rubric_reuse", "fresh"]),
    (["teacher.verifier.form=table"], ["table", "keyed"]),
    (["teacher.verifier.votes=2"], ["teacher.verifier.votes", "3"]),
    (["teacher.verifier.examples=3"], ["examples"]),
    (["teacher.verifier.template=verifier.v33"], ["verifier.v33", "verifier.v3"]),
    (["teacher.rubricator.template=nowhere.md"], ["nowhere.md"]),
    (["teacher.reference.template=noplace.md"], ["noplace.md", "question"]),
    (["teacher.reference.template=three.md"], ["three.md", "3 messages"]),
    (["teacher.references_from=({'modell': 'x'},)"], ["modell"]),
    (["teacher.references_from=('a', 'b', 'c', 'd', 'e')"], ["teacher.references=4"]),
    (["teacher.tape.mode=recrod"], ["recrod", "record"]),
    (["teacher.tape.mode=replay"], ["there is no tape"]),
    (["teacher.tape.path=directory"], ["directory"]),
    (["teacher.tape.path=text.txt"], ["text.txt"]),
    (["teacher.tape.path=text.txt/tape.sqlite"], ["text.txt", "cannot create a file"]),
    (["teacher.index=nowhere.jsonl"], ["nowhere.jsonl"]),
    (["teacher.index=broken.jsonl"], ["broken.jsonl"]),
    (["teacher.calibration=nowhere.json"], ["nowhere.json"]),
    (["teacher.calibration=report.json"], ["report.json", "schema_version"]),
    (["teacher.prices=nowhere.toml"], ["nowhere.toml"]),
    (["teacher.prices=broken.toml"], ["broken.toml"]),
    (["teacher.scripted.style=poem"], ["poem", "prose"]),
    (["teacher.scripted.answer_key=nowhere.jsonl"], ["nowhere.jsonl"]),
    (["teacher.scripted.noise=nowhere.json"], ["nowhere.json"]),
    (["teacher.scripted.labels=nowhere.jsonl"], ["nowhere.jsonl"]),
    (["optim.lrr=1"], ["optim.lr"]),
    (["optm.lr=1"], ["optim.lr"]),
    (["steps=1.5"], ["steps", "whole number"]),
    (["steps=many"], ["steps", "whole number"]),
    (["log.groups=maybe"], ["log.groups", "true or false"]),
]  # fmt: skip

IN_FILE = [  # Python of a config file, which no flag can say
    ("cfg.steps = True", ["steps=True", "whole number"]),
    ("cfg.optim.lr = None", ["optim.lr=None", "number above 0"]),
    ("cfg.seed = 1.5", ["config.py:"]),
    ("cfg.optim = 3", ["config.py:"]),
    ("cfg.log.groups = None", ["log.groups=None", "true or false"]),
    ("cfg.student.checkpoint = None", ["student.checkpoint=None"]),
    ("cfg.student.chat_template = 'a\\0b'", ["student.chat_template"]),
    ("del cfg.optim['lr']", ["the config has no optim.lr", "default()"]),
    ("cfg.teacher.verifier.temperature = float('nan')", ["teacher.verifier.temperature=nan"]),
]

ARGS = [  # whole command lines; C is the config file
    (["--config", "C", "--config", "C", "--workdir", "new"], ["--config is given 2 times"]),
    (["--config=C", "--workdir=new", "--config=C"], ["--config is given 2 times"]),
    (["--config", "C", "--workdir", "new", "--workdir", "b"], ["--workdir is given 2 times (new, b)"]),
    (["--config", "C"], ["--workdir is missing"]),
    (["--config", "C", "--workdir", "text.txt"], ["text.txt", "is a file"]),
    (["--config", "C", "--workdir", "text.txt/run"], ["text.txt is a file"]),
    (["--config", "C", "--workdir", "full"], ["is not empty and holds no run"]),
    (["--config", "C", "--workdir", "new", "--fork", "nowhere"], ["--fork nowhere", "holds no run"]),
    (["--config", "C", "--workdir", "new", "--fork", "full"], ["--fork full", "holds no run"]),
    (["--config", "C", "--workdir", "new", "--forks", "full"], ["--fork"]),
    (["--config", "directory", "--workdir", "new"], ["directory"]),
    (["--config", "empty.jsonl", "--workdir", "new"], ["empty.jsonl"]),
]


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs ``ropd train ARGS`` in a directory with `FILES`; returns the line. Whatever reads a weight is counted."""
    loaded = []
    for module, name in ((setup, "load_checkpoint"), (load, "stream"), (policy, "load_student")):
        monkeypatch.setattr(module, name, lambda *args, **how: loaded.append(args))
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parents[2]))
    before = sorted(tmp_path.rglob("*"))

    def run(*args: str) -> str:
        assert cli.main(["train", *(arg.replace("C", str(config), 1) if arg in ("C", "--config=C") else arg
                                    for arg in args)]) == 2  # fmt: skip
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if " prompts: " not in line]  # what was read before the mistake
        assert out == "" and len(lines) == 1 and lines[0].startswith("ropd: error: "), err
        assert loaded == []
        assert [p for p in sorted(tmp_path.rglob("*")) if "__pycache__" not in p.parts] == before
        return lines[0]

    return run


def has(line: str, words: list[str]) -> None:
    for word in words:
        assert word in line


@pytest.mark.parametrize("change", NUMBERS)
def test_a_number_that_no_run_can_have(refused, change):
    key, _, value = change.partition("=")
    line = refused("--config", "C", "--workdir", "new", f"--config.{key}={value}")
    assert f"{key}=" in line and "expected " in line and f"--config.{key}=" in line  # key, expected, remedy


@pytest.mark.parametrize(("changes", "words"), WORDS, ids=lambda x: ",".join(x)[:60])
def test_a_value_or_a_file_that_cannot_work(refused, changes, words):
    has(refused("--config", "C", "--workdir", "new", *(f"--config.{change}" for change in changes)), words)


@pytest.mark.parametrize(("code", "words"), IN_FILE, ids=lambda x: str(x)[:40])
def test_a_value_that_only_a_config_file_can_set(refused, code, words, tmp_path):
    has(refused("--config", f"{tmp_path}/config.py:{code}", "--workdir", "new"), words)


@pytest.mark.parametrize(("args", "words"), ARGS, ids=lambda x: " ".join(x)[:60])
def test_a_command_line_that_cannot_work(refused, args, words):
    has(refused(*args), words)
