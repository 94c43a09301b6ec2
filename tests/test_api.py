"""The public names: lazy, documented, and usable from a script, a notebook and a coroutine without any set-up."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import gc
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import types

import jax
import numpy as np
import pytest

import ropd_jax as ropd
from experiments import quickstart
from ropd_jax.core.batches import TokenSequence, make_batch
from ropd_jax.models import transformer
from ropd_jax.models.logprobs import token_logprobs
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.training.by_hand import judge
from tests.helpers import FailsAt, serving, trees_max_diff, xla_flags

ROOT = pathlib.Path(__file__).parents[1]
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
QUESTION = "State the final answer to the following arithmetic problem: 9 + 5 - 1 + 3 ="


def python(code: str, cwd: pathlib.Path, *flags: str) -> subprocess.CompletedProcess:
    """Runs a script in a separate process, which must succeed; with one device, as on a laptop."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": xla_flags(1)}
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done


def tiny_run():
    """The quickstart, reduced to two steps."""
    cfg = quickstart.get_config()
    cfg.mesh.fsdp = 1
    cfg.steps = 2
    cfg.data.size, cfg.data.heldout_size = 200, 32
    cfg.data.prompts_per_step, cfg.sampling.rollouts = 4, 4
    cfg.eval.prompts_at_once, cfg.eval.sampled = 32, False
    cfg.log.trackers = ()
    return cfg


# ------------------------------------------------------------------------------------------------------- the names


def test_the_import_is_lazy(tmp_path):
    code = """
import sys
import ropd_jax
assert not {"jax", "ml_collections", "numpy"} & set(sys.modules), "loaded by import ropd_jax"
assert set(dir(ropd_jax)) == set(ropd_jax.__all__) and "train" in dir(ropd_jax)
ropd_jax.Judgement, ropd_jax.UserError, ropd_jax.Teacher
assert "jax" not in sys.modules, "loaded by a name that does not need it"
"""
    python(code, tmp_path)


def test_every_name_resolves_and_is_documented():
    documented = set(re.findall(r"^\| `(\w+)", API, re.MULTILINE)) | {"__version__"}
    assert documented == set(ropd.__all__)
    assert "`__version__`" in API
    for name in ropd.__all__:
        assert getattr(ropd, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ropd_jax' has no attribute 'trian'"):
        ropd.trian  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'trian'"):
        exec("from ropd_jax import trian")


@pytest.mark.parametrize("first", ["import ropd_jax.train", "from ropd_jax import train"])
def test_train_is_callable_whatever_was_imported_first(tmp_path, first):
    code = f"""
import ropd_jax
{first}
import ropd_jax.train
from ropd_jax import train
for function in (ropd_jax.train, train):
    try:
        function(ropd_jax.default_config(), "run", method="no_such_method")
    except ropd_jax.UserError as error:
        assert "no_such_method" in str(error)
    else:
        raise SystemExit("not called")
"""
    python(code, tmp_path)


# --------------------------------------------------------------------------------------------------- the whole page


def test_the_script_of_the_page_runs_without_a_warning(tmp_path):
    script = re.findall(r"```python\n(.*?)```", API, re.DOTALL)[0]
    lines = [line for line in script.splitlines() if line.strip()]
    assert len(lines) <= 15 and len([line for line in lines if line.startswith(("import", "from"))]) == 1
    done = python(script, tmp_path, "-W", "error")
    rewards = [float(line.split()[0]) for line in done.stdout.splitlines() if re.match(r"[01]\.\d+ '", line)]
    assert len(rewards) == 8 and len(set(rewards)) > 1
    assert float(re.search("norm (.*)", done.stdout)[1]) > 0
    assert "warn" not in done.stderr.lower() and "Traceback" not in done.stderr
    assert "sampled 1 prompts" in done.stderr


# ------------------------------------------------------------------------------------------------------- by hand


@pytest.fixture(scope="module")
def student():
    return ropd.load_student("tiny")


@pytest.fixture
def teacher():
    made = ropd.make_teacher(ropd.default_config())
    yield made
    made.blocking.close()


@pytest.fixture(scope="module")
def groups(student):
    return ropd.sample(student, [QUESTION, QUESTION.replace("9", "8")], n=6, max_tokens=48)


@pytest.fixture(scope="module")
def judgements(groups):
    made = ropd.make_teacher(ropd.default_config())
    with made.blocking:
        return ropd.judge(made, groups)


def test_judge_in_a_script(teacher, groups, judgements):
    assert [len(j.rewards) for j in judgements] == [6, 6]
    for group, judgement in zip(groups, judgements, strict=True):
        for rollout, reward, passed in zip(group.rollouts, judgement.rewards, judgement.passed, strict=True):
            assert reward == judgement.rubric.score(passed)
            right = "14 - 1 = 13\n13 + 3 = 16\nAnswer: 16" in rollout.text and group.prompt.question == QUESTION
            assert not right or reward == 1.0
    assert ropd.judge(teacher, []) == []


def test_judge_and_a_coroutine_of_the_teacher_in_a_loop_that_runs(teacher, groups, judgements):
    async def main():
        waiting = asyncio.create_task(teacher.references(groups[0].prompt))
        await asyncio.sleep(0)  # the request is out
        found = ropd.judge(teacher, groups)  # a plain call, as in a cell of a notebook
        return found, await waiting, await teacher.references(groups[1].prompt)

    found, first, second = asyncio.run(main())
    assert [j.rewards for j in found] == [j.rewards for j in judgements]
    assert (first, second) == (found[0].references, found[1].references)
    assert teacher.blocking.references(groups[0].prompt) == first  # and in a script again


def test_judge_takes_a_class_and_its_settings(teacher, groups):
    class Share(ropd.Method):
        async def judge(self, teacher, group):
            n = len(group.rollouts)
            return ropd.Judgement((self.cfg.loss.clip_low,) * n, (None,) * n)

    cfg = ropd.default_config()
    cfg.loss.clip_low = 0.125
    assert [j.rewards for j in ropd.judge(teacher, groups, Share, cfg=cfg)] == [(0.125,) * 6] * 2
    assert [j.rewards for j in ropd.judge(teacher, groups, Share(cfg))] == [(0.125,) * 6] * 2
    assert cfg.sampling.rollouts == ropd.default_config().sampling.rollouts  # the config of the caller stays as it is
    with pytest.raises(ropd.UserError, match="method='nope' is not known; expected one of cort"):
        ropd.judge(teacher, groups, "nope")
    short = dataclasses.replace(groups[0], rollouts=groups[0].rollouts[:2])
    with pytest.raises(ropd.UserError, match=r"groups of \[2, 6\] rollouts; expected"):
        ropd.judge(teacher, [short, groups[1]])


def test_a_failure_of_the_teacher_is_unscored_and_a_wrong_set_up_is_raised(groups):
    from ropd_jax.teacher import ConfigurationError, Teacher, TransientError

    silent = Teacher(FailsAt("rubric", TransientError("HTTP 503")))
    with silent.blocking:
        judgement, _ = ropd.judge(silent, groups)
        assert judgement.rewards == (None,) * 6 and judgement.causes == ("transient",) * 6
    broken = Teacher(FailsAt("reference", ConfigurationError("no key")))
    with broken.blocking, pytest.raises(ropd.UserError, match="no key"):
        ropd.judge(broken, groups)


def test_ctrl_c_in_judge_cancels_the_requests(teacher, groups, monkeypatch):
    class Waits(ropd.Method):
        async def judge(self, teacher, group):
            try:
                await asyncio.sleep(60)
            finally:
                ended.release()

    def interrupt(futures):
        started.append(len(futures))
        raise KeyboardInterrupt

    started, ended = [], threading.Semaphore(0)
    monkeypatch.setattr(concurrent.futures, "as_completed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        judge(teacher, groups, Waits)
    assert started == [2]
    teacher.blocking.close()  # ends what is left of them


# ------------------------------------------------------------------------------------------------------- update


def mean_logp(student, group):
    """Mean log-prob per token of each rollout of a group under a student."""
    rows = [TokenSequence(group.prompt_tokens_T, r.tokens_T, r.logp_T) for r in group.rollouts]
    ones = np.ones(len(rows), np.float32)
    batch = make_batch(rows, ones, ones > 0, ones > 0, 64)
    x_BTD = transformer.hidden(student.cfg, student.params, batch.tokens_BT, batch.positions_BT, batch.segments_BT)
    logp_BT = token_logprobs(student.cfg, student.params, x_BTD, batch.targets_BT)[0]
    return np.where(batch.mask_BT, logp_BT, 0).sum(1) / batch.mask_BT.sum(1)


def judged(groups, rewards):
    return [ropd.Judgement(rewards, tuple("malformed" if r is None else None for r in rewards)) for _ in groups]


def test_update_moves_log_probs_as_the_advantages_say(student, groups, judgements):
    rewards = np.array(judgements[0].rewards)
    advantage_G = (rewards - rewards.mean()) / rewards.std(ddof=1)
    before, logp_G = jax.tree.map(np.array, student.params), mean_logp(student, groups[0])
    for sign in (1, -1):
        trained, metrics = ropd.update(student, groups[:1], judged(groups[:1], tuple(sign * rewards)), lr=1e-4)
        change_G = sign * (mean_logp(trained, groups[0]) - logp_G)
        assert change_G @ advantage_G > 0.05
        assert change_G[advantage_G > 0].mean() - change_G[advantage_G < 0].mean() > 0.02
        assert metrics["update/grad_norm"] > 0 and abs(metrics["update/logp_gap"]) < 1e-4
        jax.tree.map(np.testing.assert_array_equal, before, student.params)


@pytest.fixture
def compiled():
    """Names of the functions that jax traces, one for each time."""
    names = []

    def listen(event, seconds, fun_name="", **_):
        if "jaxpr_trace" in event:
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_second_update_compiles_nothing_unless_its_loss_is_another(student, groups, judgements, compiled):
    def updates(**changes):
        compiled.clear()
        cfg = ropd.default_config()
        cfg.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
        trained, _ = ropd.update(student, groups, judgements, cfg=cfg, lr=3e-4)
        return trained, compiled.count("update")

    first, _ = updates()
    second, n = updates()
    assert n == 0 and trees_max_diff(first.params, second.params) == 0.0
    third, n = updates(loss__clip_low=0.1, loss__entropy_coef=0.5)
    assert n == 1 and trees_max_diff(first.params, third.params) > 0.0


def test_the_weights_of_an_updated_student_are_where_those_of_the_given_one_are(student, groups):
    rewards = judged(groups, (1.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    on_host, _ = ropd.update(student, groups, rewards, lr=1e-4)
    mesh = mesh_lib.make_mesh(2, 1, jax.devices()[:2])
    sharded = ropd.load_student("tiny", mesh=mesh)
    before = jax.device_get(sharded.params)
    on_mesh, _ = ropd.update(sharded, groups, rewards, lr=1e-4)
    assert {type(x) for x in jax.tree.leaves(on_host.params)} == {np.ndarray}
    assert [x.sharding for x in jax.tree.leaves(on_mesh.params)] == [
        x.sharding for x in jax.tree.leaves(sharded.params)
    ]
    assert trees_max_diff(on_host.params, jax.device_get(on_mesh.params)) == 0.0
    assert trees_max_diff(before, jax.device_get(sharded.params)) == 0.0  # not given away


def test_update_takes_loss_and_optimizer_from_a_config(student, groups):
    cfg = ropd.default_config()
    cfg.loss.normalize_std, cfg.loss.aggregation, cfg.loss.kl_coef = False, "token_mean", 0.1
    cfg.optim.lr = 0.0
    rewards = (1.0, 0.0, 0.0, 0.0, None, 0.0)
    trained, metrics = ropd.update(student, groups[:1], judged(groups[:1], rewards), cfg=cfg.lock())
    jax.tree.map(np.testing.assert_array_equal, student.params, jax.device_get(trained.params))
    length_G = np.array([len(r.tokens_T) for r in groups[0].rollouts])
    scored_G = np.array([r is not None for r in rewards])
    advantage_G = np.array([0.0 if r is None else r - 0.2 for r in rewards])
    assert metrics["update/tokens"] == length_G[scored_G].sum()
    assert metrics["update/loss"] == pytest.approx(-(advantage_G * length_G).sum() / length_G[scored_G].sum(), abs=1e-5)


def test_update_refuses_what_it_cannot_learn_from(student, groups, judgements):
    with pytest.raises(ropd.UserError, match="2 groups, 1 judgements; expected one judgement for each group"):
        ropd.update(student, groups, judgements[:1])
    for rewards in ((0.5,) * 6, (None,) * 6):
        with pytest.raises(ropd.UserError, match="no group has a gradient"):
            ropd.update(student, groups, judged(groups, rewards))
    with pytest.raises(ropd.UserError, match=r"groups of \[\] rollouts; expected at least one group"):
        ropd.update(student, [], [])


# ----------------------------------------------------------------------------------------------- the teacher's thread


def threads():
    return [t for t in threading.enumerate() if t.name == "teacher-loop"]


def test_a_teacher_that_nothing_refers_to_closes_its_thread():
    gc.collect()
    before = len(threads())
    teacher = ropd.make_teacher(ropd.default_config())
    assert teacher.blocking.references(QUESTION) and len(threads()) == before + 1
    del teacher
    gc.collect()
    assert len(threads()) == before


def test_a_teacher_that_becomes_garbage_on_its_own_thread_does_not_wait_for_itself():
    gc.collect()
    before = threads()
    held = [ropd.make_teacher(ropd.default_config())]
    loop = held[0].blocking._loop
    (thread,) = set(threads()) - set(before)

    async def drop():
        held.clear()
        gc.collect()

    loop.submit(drop()).result(5)
    thread.join(5)
    assert not thread.is_alive()


def test_close_twice_and_with_a_client_around_the_client():
    class Counts:
        def __init__(self, inner):
            self.inner, self.requests, self.closed = inner, 0, 0

        async def chat(self, request):
            self.requests += 1
            return await self.inner.chat(request)

        async def close(self):
            self.closed += 1
            await self.inner.close()

    teacher = ropd.make_teacher(ropd.default_config())
    teacher.client = counts = Counts(teacher.client)
    with teacher.blocking as blocking:
        assert len(blocking.references(QUESTION)) == counts.requests == 4
    blocking.close()
    assert counts.closed == 1
    with pytest.raises(RuntimeError, match="closed"):
        blocking.references(QUESTION)


@pytest.mark.parametrize("end", ["", "teacher.blocking.close()", "del teacher"])
def test_a_teacher_over_http_ends_without_noise(tmp_path, end):
    code = """
import ropd_jax as ropd
cfg = ropd.default_config()
cfg.teacher.provider, cfg.teacher.base_url = "openai", "{url}/v1"
teacher = ropd.make_teacher(cfg)
print(len(teacher.blocking.references("{question}")))
{end}
"""
    with serving() as url:
        done = python(code.format(url=url, end=end, question=QUESTION), tmp_path, "-W", "error", "-X", "dev")
    assert done.stdout.split() == ["4"]
    assert not re.search("Unclosed|Traceback|Warning|never awaited|Exception", done.stderr), done.stderr


# ------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(directory, result) of a run of two steps, with a class as its method."""
    where = tmp_path_factory.mktemp("api") / "run"
    return where, ropd.train(tiny_run(), where, method=Length)


class Length(ropd.Method):
    """Short answers are better; the last rollout is never scored."""

    asks = types.MappingProxyType({})

    async def judge(self, teacher, group):
        rewards = tuple(1 / len(r.tokens_T) for r in group.rollouts[:-1])
        return ropd.Judgement((*rewards, None), (*(None for _ in rewards), "malformed"))


def test_train_takes_a_class(finished):
    where, result = finished
    assert result.workdir == where and result["steps"] == 2
    assert json.loads((where / "config.json").read_text())["method"].endswith(".Length")
    assert "optimizer steps" in str(result)
    assert ropd.train(tiny_run(), where, method=Length).values == result.values  # a finished run returns at once


def test_a_finished_run_is_read_back(finished, student):
    where, result = finished
    run = ropd.open_run(str(where))
    assert run.config.sampling.rollouts == 4 and run.config.data.prompts_per_step == 4
    assert run.result.values == json.loads(json.dumps(result.values))
    assert [g.step for g in run.groups()] == [0] * 4 + [1] * 4
    (group, *_) = run.groups(steps=(1, 2))
    assert group.step == 1 and group.judgement.rewards[-1] is None and group.judgement.causes[-1] == "malformed"
    assert group.judgement.rewards[0] > 0 and group.prompt.answer is not None
    steps, values = run.metrics()["reward/mean"]
    assert steps == [1, 2] and values[0] == pytest.approx(
        np.mean([r for g in run.groups(steps=(0, 1)) for r in g.judgement.rewards[:-1]]), rel=1e-5
    )
    trained, initial = run.student(), run.student(step=0)
    jax.tree.map(np.testing.assert_array_equal, initial.params, student.params)
    changed = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), trained.params, initial.params)
    assert max(jax.tree.leaves(changed)) > 0
    with pytest.raises(ropd.UserError, match=r"has no config.json; expected the directory of a run"):
        ropd.open_run(where / "groups")
    with pytest.raises(ropd.UserError, match="no checkpoint after step 7"):
        run.student(step=7)


class Frame:
    """The few calls of pandas that the tables make, on plain Python."""

    def __init__(self, data):
        self.data, self.types, self.name, self.sorted = data, {}, None, False

    def sort_index(self):
        self.sorted = True
        return self

    def rename_axis(self, name):
        self.name = name
        return self

    def astype(self, types):
        self.types = types
        return self


def test_tables_for_pandas(finished, monkeypatch):
    run = ropd.open_run(finished[0])
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=Frame))
    table = run.groups_frame()
    assert len(table.data) == 2 * 4 * 4 and table.types == {"reward": float, "advantage": float}
    first, last = table.data[0], table.data[3]
    assert (first["step"], first["rollout"], last["rollout"]) == (0, 0, 3)
    assert first["reward"] > 0 and last["reward"] is None and last["unscored"] == "malformed"
    assert set(first) == {"step", "prompt_id", "rollout", "question", "gold_answer", "answer", "reward", "advantage",
                          "unscored"}  # fmt: skip
    assert len(run.groups_frame(steps=(1, 2)).data) == 16
    metrics = run.metrics_frame()
    assert metrics.sorted and metrics.name == "step" and set(metrics.data["reward/mean"]) == {1, 2}
    monkeypatch.setitem(sys.modules, "pandas", None)
    for table in (run.groups_frame, run.metrics_frame):
        with pytest.raises(ropd.UserError, match=r"this table needs pandas: pip install 'ropd_jax\[notebooks\]'"):
            table()


def test_tables_with_pandas(finished):
    pytest.importorskip("pandas")
    run = ropd.open_run(finished[0])
    table = run.groups_frame()
    assert table.reward.isna().sum() == 8 and table[table.step == 0].reward.count() == 12
    assert list(run.metrics_frame()["reward/mean"].dropna().index) == [1, 2]


# ------------------------------------------------------------------------------------------------------- log lines

STEPS = """
import sys
sys.path.insert(0, {root!r})
import ropd_jax as ropd
from tests.test_api import Length, tiny_run
ropd.train(tiny_run(), "run", method=Length)
"""
SET_UP = "logging.basicConfig(level=logging.INFO, format='mine %(message)s')"
SAMPLE = """
import logging
{before}
import ropd_jax as ropd
from ropd_jax import train  # Orbax comes with it
{after}
ropd.sample(ropd.load_student("tiny"), "1 + 2 =", n=1, max_tokens=2)
ropd.evaluate("tiny", "reasoning_gym:chain_sum", k=1, limit=4, max_tokens=2, template="{{question}}", out=None)
"""


@pytest.mark.slow
def test_a_run_shows_each_step_once_without_any_set_up(tmp_path):
    done = python(STEPS.format(root=str(ROOT)), tmp_path)
    for step in (1, 2):
        shown = [line for line in done.stderr.splitlines() if f"step {step}/2  reward" in line]
        assert len(shown) == 1 and shown[0].startswith(f"step {step}/2"), done.stderr
    assert not re.search("^(INFO|WARNING):", done.stderr, re.MULTILINE), done.stderr


@pytest.mark.parametrize(("before", "after"), [(SET_UP, ""), ("", SET_UP)])
def test_a_program_that_sets_up_logging_gets_each_line_once(tmp_path, before, after):
    done = python(SAMPLE.format(before=before, after=after), tmp_path)
    for text in ("sampled 1 prompts", "answered 4 of 4"):
        shown = [line for line in done.stderr.splitlines() if text in line]
        assert len(shown) == 1 and shown[0].startswith(f"mine {text}"), done.stderr
