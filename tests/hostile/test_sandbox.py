"""Limits of a sandboxed child, even if text is executed in it."""

from __future__ import annotations

import os
import pathlib
import time

import pytest

from ropd_jax.utils import sandbox

KEY = "sk-hostile-0123456789"
PRISONER = "tests.hostile.prisoner"


@pytest.fixture(scope="module")
def service():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)
        found = sandbox.Service(PRISONER, cpu_s=1)
        assert found.ask({"code": "out = 1 + 1"}) == {"out": 2}
        yield found
        found.close()


def run(service, code):
    return service.ask({"code": code})


def test_it_inherits_no_environment_and_no_open_file(service, tmp_path):
    with open(tmp_path / "secret", "w") as secret:
        os.set_inheritable(secret.fileno(), True)
        child = sandbox.Child(PRISONER, cpu_s=1)
        try:
            assert pathlib.Path(f"/proc/{child.pid}/environ").read_bytes() == b""
            links = [os.readlink(f) for f in pathlib.Path(f"/proc/{child.pid}/fd").iterdir()]
            assert str(tmp_path / "secret") not in links
            assert sorted(link.split(":")[0] for link in links) == ["/dev/null", "/dev/null", "pipe", "pipe"]
            assert os.readlink(f"/proc/{child.pid}/cwd") == "/"
        finally:
            child.close()


def test_its_limits_are_set(service):
    code = (
        "import resource as r; "
        "out = {n: r.getrlimit(getattr(r, 'RLIMIT_' + n))[1] for n in ('CORE', 'FSIZE', 'NOFILE', 'NPROC', 'AS')}"
    )
    assert run(service, code)["out"] == {"CORE": 0, "FSIZE": 0, "NOFILE": 32, "NPROC": 0, "AS": sandbox.MEMORY}


FORBIDDEN = {
    "system": "import os; os.system('echo $OPENAI_API_KEY > {file}')",
    "popen": "import os; os.popen('echo x > {file}').read()",
    "subprocess": "import subprocess; subprocess.run(['touch', '{file}'])",
    "fork": "import os; os.fork()",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: break",
    "spawn": "import os; os.posix_spawn('/bin/true', ['true'], {{}})",
    "exec": "import os; os.execv('/bin/true', ['true'])",
    "write": "open('{file}', 'w').write('x')",
    "append, quietly": "try: open('{file}', 'a')\nexcept Exception: out = 'as if nothing had been'",
    "os.open": "import os; os.open('{file}', os.O_CREAT | os.O_WRONLY)",
    "mkdir": "import os; os.mkdir('{file}')",
    "remove": "import os; os.remove('{other}')",
    "read": "out = open('{other}').read()",
    "read by a detour": "import sys; out = open(sys.prefix + '/../' * 20 + '{other}').read()",
    "the parent's keys": "import os; out = open(f'/proc/{{os.getppid()}}/environ').read()",
    "list": "import os; out = os.listdir('/etc')",
    "socket": "import socket; socket.create_connection(('127.0.0.1', 9))",
    "kill": "import os; os.kill(os.getppid(), 9)",
    "ctypes": "import ctypes; ctypes.CDLL(None).system(b'touch {file}')",
    "limits": "import resource as r; r.setrlimit(r.RLIMIT_CPU, (r.RLIM_INFINITY, r.RLIM_INFINITY))",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_it_cannot_do_is_refused_and_it_answers_the_next(service, tmp_path, name):
    (tmp_path / "other").write_text("a file of ours")
    reply = run(service, FORBIDDEN[name].format(file=tmp_path / "file", other=tmp_path / "other"))
    assert reply == {"error": "forbidden"}
    assert not (tmp_path / "file").exists() and (tmp_path / "other").exists()
    assert run(service, "out = 3")["out"] == 3


FORGE = """
import os
for fd in range(3, 12):
    try: os.write(fd, b'{}\\n')
    except OSError: pass
"""


def test_python_s_own_files_can_still_be_imported(service):
    code = "import os, sys, colorsys; out = len([os.listdir(p) for p in sys.path if os.path.isdir(p)]) > 2"
    assert run(service, code) == {"out": True}


BOUNDED = {
    "time": ("while True: pass", "timeout"),
    "a power": ("9**9**9**9", "timeout memory MemoryError OverflowError"),
    "memory": ("x = b'x' * (8 << 30)", "memory"),
    "a reply of 1 MB": ("out = 'x' * (1 << 20)", "crashed"),
    "its end": ("import os; os._exit(0)", "crashed"),
    "a segmentation fault": ("import os, signal; signal.raise_signal(signal.SIGSEGV)", "crashed"),
    "a reply that is not JSON": ("out = {1, 2}", "TypeError"),
    "a forged reply": (
        "import os\nfor fd in range(3, 12):\n    try: os.write(fd, b'7\\n')\n    except OSError: pass",
        "crashed",
    ),
    "exit()": ("raise SystemExit", "SystemExit: "),
    "deep recursion": ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
    "deep brackets": ("eval('(' * 5000)", "SyntaxError MemoryError memory"),
    "an error without a text": ("raise ValueError(10 ** 5000)", "ValueError"),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_what_does_not_end_well_is_an_error_in_bounded_time(service, name):
    code, errors = BOUNDED[name]
    begin = time.monotonic()
    error = run(service, code)["error"]
    assert error in (errors, *errors.split()) or error.split(":")[0] in errors.split()
    assert time.monotonic() - begin < 40
    assert run(service, "out = 4")["out"] == 4  # the child lives, or another has taken its place


def test_what_it_prints_reaches_nobody_and_blocks_nothing(service, capfd):
    assert run(service, "import sys\nprint('x' * (5 << 20)); print('y', file=sys.stderr); out = 5")["out"] == 5
    assert capfd.readouterr() == ("", "")


def test_a_forged_reply_is_not_taken_for_the_next_one(service):
    """Text executed in the child can lie about itself, so no grader executes any; it cannot lie about others."""
    forged = '["x", {"out": 0}]'
    for _ in range(3):
        run(service, FORGE.replace("{}", forged))
        assert run(service, "out = 6") in ({"out": 6}, {"error": "crashed"})


def test_a_child_that_died_between_two_requests_is_replaced(service):
    pid = run(service, "import os; out = os.getpid()")["out"]
    os.kill(pid, 9)
    while (
        pathlib.Path(f"/proc/{pid}/stat").exists() and pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    ):
        time.sleep(0.01)
    assert run(service, "out = 7")["out"] == 7


def test_a_module_that_does_not_import_is_reported():
    with pytest.raises(sandbox.StartError, match=r"No module named .tests\.hostile\.absent"):
        sandbox.Service("tests.hostile.absent", cpu_s=1).ask({})
