"""README.md, docs/ and the pages of the site that are made from the code: nothing in them is out of date.

`benchmarks.docs_commands` really runs the commands; here each is parsed by the flags of its command.
"""

from __future__ import annotations

import ast
import builtins
import fnmatch
import json
import os
import pathlib
import re
import time

import pytest

import ropd_jax
from benchmarks import docs_blocks, docs_commands
from benchmarks.docs_blocks import blocks, pages, ropd_commands
from docs.generator import api, commands, example, files, keys, lab_log, metrics, sources, tree
from docs.generator.markdown import LINK, from_docstring, outside_code, table, two_columns
from ropd_jax import configs
from ropd_jax.cli import main as cli
from ropd_jax.cli.flags import parse
from ropd_jax.train import train
from ropd_jax.types import UserError
from ropd_jax.workdir.keys import KEYS, key_of
from tests.runs.test_train import tiny_config

ROOT = pathlib.Path(__file__).parents[1]
STORED = "notebooks/mini_run"  # a run, for commands that read one
QUICKSTART = "experiments/quickstart.py"
PLACEHOLDERS = ("FILE", "NAME")  # of a config
PACKAGE = sorted((ROOT / "ropd_jax").rglob("*.py"))
FOLDERS = ("experiments", "launch", "notebooks", "benchmarks", "docs", "tests", "ropd_jax")
TEXTS = ("README.md", "SECURITY.md", "CONTRIBUTING.md")
PAGES = pytest.mark.parametrize("page", pages(), ids=lambda p: p.relative_to(ROOT).as_posix())


# ------------------------------------------------------------------------------------------------- written pages


def runnable(words):
    """The words of a command with its placeholders replaced: ``...``, the reader's own config or run."""
    name, *rest = words
    command = cli.COMMANDS[cli.ALIASES.get(name, name)]
    short = "..." in rest
    rest = [word for word in rest if word != "..."]
    for i, word in enumerate(rest):
        at = i if word.startswith("--config=") else i + 1 if word == "--config" else None
        if at is not None:
            file = rest[at].removeprefix("--config=").partition(":")[0]
            if file.startswith("experiments/"):
                assert (ROOT / file).is_file(), f"{file} is not in the repository"
            elif file.isidentifier() and file not in PLACEHOLDERS:
                assert (ROOT / "experiments" / f"{file}.py").is_file(), f"no config {file} comes with the package"
            else:
                rest[at] = rest[at].replace(file, QUICKSTART)
    if command.config == "run" and rest and not rest[0].startswith("-"):
        rest[0] = str(ROOT / STORED)
    for flag in command.all_flags:
        if short and flag.required and not any(w.partition("=")[0] == f"--{flag.name}" for w in rest):
            rest += [f"--{flag.name}", QUICKSTART if flag.name == "config" else "runs/a"]
    return command, rest


@PAGES
def test_every_ropd_command_is_parsed_by_its_flags(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    wrong = []
    for line, words in ropd_commands(page):
        name = words[0] if words else ""
        if name in ("--help", "--version", "help") or any(w in cli.HELP_FLAGS for w in words):
            continue
        if cli.ALIASES.get(name, name) not in cli.COMMANDS:
            wrong.append(f"{page.name}:{line}: ropd has no command {name!r}")
            continue
        try:
            parse(*runnable(words))
        except UserError as error:
            wrong.append(f"{page.name}:{line}: ropd {' '.join(words)}\n    {error}")
    assert not wrong, "\n".join(wrong)


@PAGES
def test_paths_targets_modules_and_extras_of_commands_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = set(re.findall(r'^    "([\w-]+)": ', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE))
    wrong = []
    for block in blocks(page):
        if block.language != "shell":
            continue
        for word in re.findall(r"[^\s=\"']+", block.text):
            file = word.partition(":")[0].rstrip(",;)")
            if file.partition("/")[0] in FOLDERS and "/" in file and not re.search(r"[*{<]|\.\.\.", file):
                wrong += [] if (ROOT / file).exists() else [f"{block.name}: {file} is not in the repository"]
        for target in re.findall(r"(?m)(?:^|&& )make ((?:[a-z][\w-]* ?)+)", block.text):
            for name in target.split():
                found = re.search(rf"(?m)^[\w \-]*\b{re.escape(name)}\b[\w \-]*:", makefile)
                wrong += [] if found else [f"{block.name}: the Makefile has no target {name}"]
        for module in re.findall(r"python[\d.]* -m (benchmarks\.\w+)", block.text):
            file = f"{module.replace('.', '/')}.py"
            wrong += [] if (ROOT / file).is_file() else [f"{block.name}: there is no {module}"]
        for listed in re.findall(r"(?:\.|ropd[_-]jax)\[([\w,-]+)\]", block.text):
            wrong += [f"{block.name}: setup.py has no extra {e}" for e in listed.split(",") if e not in extras]
    assert not wrong, "\n".join(wrong)


@PAGES
def test_every_path_that_is_named_exists(page):
    """Also in prose. NAME is a placeholder, and results/ is written by commands."""
    wrong = []
    for word in re.findall(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w./*{{}}-]*", page.read_text(encoding="utf-8")):
        path = word.rstrip(".")
        if not re.search(r"[*{]|\.\.\.|NAME|/results/", path) and not (ROOT / path).exists():
            wrong.append(path)
    assert not wrong, f"{page.name}: {', '.join(wrong)}"


@PAGES
def test_every_config_key_that_is_named_exists(page):
    text = page.read_text(encoding="utf-8")
    sections = set(configs.default())
    named = re.findall(r"--config\.([a-z_][\w.]*)", text)
    for word in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:=[^`]*)?`", text):
        room, _, name = word.partition(".")
        if (room == "ropd" and name in ropd_jax.__all__) or (room == "teacher" and hasattr(ropd_jax.Teacher, name)):
            continue
        if room in sections and not re.search(r"\.(py|md|json|jsonl|sqlite|npz|toml)$", word):
            named.append(word)
    unknown = []
    for name in named:
        is_section = isinstance(configs.lookup(configs.default(), name), configs.ConfigDict)
        if key_of(name.rstrip(".")) is None and not is_section and name not in ("a.b", "KEY"):
            unknown.append(name)
    assert not unknown, f"{page.name}: {', '.join(sorted(set(unknown)))}"


@PAGES
def test_python_blocks_are_python_with_public_names_and_known_keys(page):
    earlier = {"cfg", "configs", "ropd", "ropd_jax"}
    for block in blocks(page):
        if block.language != "python":
            continue
        module = ast.parse(block.text, block.name)
        for node in ast.walk(module):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("ropd", "ropd_jax"):
                assert node.attr in ropd_jax.__all__, f"{block.name}: ropd.{node.attr} is not public"
            if isinstance(node, ast.ImportFrom) and node.module == "ropd_jax":
                missing = [a.name for a in node.names if a.name not in ropd_jax.__all__ and a.name != "configs"]
                assert not missing, f"{block.name}: ropd_jax has no public {missing}"
            if isinstance(node, ast.Assign) and (key := ast.unparse(node.targets[0])).startswith("cfg."):
                assert key_of(key.removeprefix("cfg.")) is not None, f"{block.name}: the config has no {key}"
        stored = {n.id for n in ast.walk(module) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        stored |= {
            n.name for n in ast.walk(module) if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        }
        stored |= {a.arg for n in ast.walk(module) if isinstance(n, ast.arguments) for a in n.args}
        stored |= {(a.asname or a.name) for n in ast.walk(module) if isinstance(n, ast.Import | ast.ImportFrom)
                   for a in n.names}  # fmt: skip
        earlier |= stored
        used = {n.id for n in ast.walk(module) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        assert used <= earlier | set(dir(builtins)), (
            f"{block.name}: {used - earlier - set(dir(builtins))} comes from nowhere"
        )


@PAGES
def test_every_block_that_changes_only_the_config_runs(page):
    for block in blocks(page):
        if block.language == "python" and all(
            line.startswith(("cfg.", "#")) for line in block.text.splitlines() if line
        ):
            exec(compile(block.text, block.name, "exec"), {"cfg": configs.default()})


@pytest.mark.parametrize("name", [*TEXTS, *(p.relative_to(ROOT).as_posix() for p in pages()[1:])])
def test_links_lead_to_files_and_headings(name):
    wrong = []

    def check(part):
        for found in LINK.finditer(re.sub(r"`[^`\n]*`", "", part)):
            target, _, anchor = found["target"].partition("#")
            if "://" in found["target"] or target.startswith(("mailto:", "data:")):
                continue
            place = (ROOT / name).parent / target if target else ROOT / name
            if not place.exists():
                wrong.append(found["target"])
            elif anchor and place.suffix == ".md" and anchor not in anchors(place):
                wrong.append(f"{found['target']} (no such heading)")
        return part

    outside_code((ROOT / name).read_text(encoding="utf-8"), check)
    assert not wrong, f"{name}: {', '.join(wrong)}"


def anchors(path):
    """The anchors of a page's headings, as GitHub and the site make them."""
    heads = re.findall(r"(?m)^#+ (.+?)$", path.read_text(encoding="utf-8"))
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head).replace("`", "") for head in heads]
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in plain}


def test_the_navigation_has_every_page_and_no_other():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = set(re.findall(r": (\S+\.md)$", nav, re.MULTILINE))
    written = {p.relative_to(tree.DOCS).as_posix() for p in tree.written_pages()}
    made = {*tree.GENERATED, *(sources.PLACES[name] for name in tree.COPIED), "results/index.md"}
    assert listed == written | made


# ----------------------------------------------------------------------------------------------- generated pages


def test_the_page_of_keys_has_each_key_once_and_says_what_it_is():
    page = keys.page()
    assert sorted(re.findall(r'<code id="([\w.]+)">', page)) == sorted(KEYS)
    said = keys.comments()
    assert said["teacher.timeout_s"].startswith("of one attempt")
    assert said["ROLE.extra"].startswith("added to the request")
    assert "the step waits this long, then the run stops" in said["teacher.outage_wait_s"]  # a comment inside brackets


def test_the_papers_values_are_those_of_its_config():
    paper = configs.paper_run("paper")
    assert {name: value for name, (value, _) in keys.PAPER.items()} == {n: configs.lookup(paper, n) for n in keys.PAPER}


def test_the_page_of_commands_has_each_command_and_flag():
    page = commands.page()
    for name, command in cli.COMMANDS.items():
        part = page.partition(f"{{ #ropd-{name} }}")[2].partition("\n## ")[0]
        assert all(f"`{flag.shown}`" in part for flag in command.all_flags), name
    assert "| 130 | stopped by Ctrl-C or SIGTERM |" in page


def test_the_page_of_names_has_each_public_name():
    page = api.page()
    assert sorted(re.findall(r'<a id="(\w+)">', page)) == sorted(ropd_jax._HOME)


def names_in_the_code():
    """Every ``room/name`` that the package writes as a literal; a computed part is ``X``."""
    found = set()
    for path in PACKAGE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.add("".join(str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    rooms = "|".join(metrics.rooms())
    return {name for name in found if re.fullmatch(rf"(?:{rooms})/[A-Za-z_0-9]+", name)}


def is_listed(name):
    return any(metrics.pattern(row).fullmatch(name) for row in metrics.names())


def test_the_page_of_metrics_has_every_name_that_the_code_writes():
    written = names_in_the_code()
    assert {"reward/mean", "update/grad_norm", "eval/X_low", "gold/X_mean"} <= written
    computed = ("teacher/X_X", "health/X")  # from `TeacherStats` and from `ropd_jax.teacher.health`, which are shown
    beginnings = ("reward/unscored_", "teacher/cost_usd_")  # of names, in comparisons
    wanted = {name for name in written if not name.endswith("/X")} - {*computed, *beginnings}
    assert not [name for name in wanted if not is_listed(name.replace("X", "reward"))]


def test_the_page_of_metrics_has_what_methods_add_to_the_update():
    added = set()
    for path in (ROOT / "ropd_jax" / "methods").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):  # a loss returns (loss_BT, metrics)
                pairs = [
                    n.value
                    for n in ast.walk(node)
                    if isinstance(n, ast.Return) and isinstance(n.value, ast.Tuple) and n.value.elts
                ]
                dicts = [d for pair in pairs for d in ast.walk(pair.elts[-1]) if isinstance(d, ast.Dict)]
                added |= {k.value for d in dicts for k in d.keys if isinstance(k, ast.Constant)}
    assert {"clip_frac", "told_gap", "teacher_gap"} <= added
    assert not [name for name in added if not is_listed(f"update/{name}")]


def test_the_page_of_metrics_has_no_name_that_is_gone():
    text = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE)
    parts = {row: max(re.split(r"[A-Z]+", row.partition("/")[2]), key=len) for row in metrics.names()}
    assert not [row for row, part in parts.items() if part and not re.search(rf"\b{part.strip('_')}", text)]


def test_the_page_of_metrics_has_every_name_of_a_stored_run():
    rows = [json.loads(line) for line in (ROOT / STORED / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    names = {name for row in rows for name in row} - {"step"}
    assert len(names) > 50 and not [name for name in names if not is_listed(name)]


def test_counters_of_the_teacher_and_health_are_explained_by_the_code():
    found = metrics.rooms()
    assert found["teacher"][1]["reasks"].startswith("second requests") and "calls" in found["teacher"][1]
    assert found["health"][1]["suppressed_frac"].endswith("what they did well is not taught")


@pytest.mark.slow
def test_a_run_writes_no_metric_and_no_file_that_the_pages_lack(tmp_path):
    run = tmp_path / "run"
    train(tiny_config(steps=1, log__trackers=("tensorboard",), teacher__health__repeat_frac=0.5), run)
    names = {name for line in (run / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)} - {"step"}
    assert {"reward/mean", "health/flip_frac", "time/step_s"} <= names
    assert not [name for name in names if not is_listed(name)]
    written = [p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()]
    assert {"config.json", "metrics.jsonl", "tape.sqlite", "result.json"} <= set(written)
    assert not [name for name in written if not any(fnmatch.fnmatch(name, row) for row in files.FILES)]


def test_files_of_a_stored_run_are_on_the_page_of_files():
    page = files.page()
    written = [p.relative_to(ROOT / STORED).as_posix() for p in (ROOT / STORED).rglob("*") if p.is_file()]
    assert written and not [name for name in written if not any(fnmatch.fnmatch(name, row) for row in files.FILES)]
    assert "pass_rate" not in page and '"advantage"' in page and '"criterion"' not in page


def test_the_lab_log_is_split_without_a_loss():
    text = lab_log.LOG.read_text(encoding="utf-8")
    found = lab_log.pages(text)
    log = lab_log.entries(text)
    assert len(log) == len(re.findall(r"(?m)^## \d{4}-", text)) > 50
    months = "".join(page for name, page in found.items() if name != "index.md")
    assert all(entry.body in months and f"{{ #{entry.anchor} }}" in months for entry in log)
    assert found["index.md"].count("\n| [") == len(log)
    assert sum(bool(entry.command) for entry in log) > len(log) / 2


def test_an_entry_of_the_lab_log_has_its_first_command_and_figure():
    body = "    make storm   # a minute\n\n2-core, shared; 3 GB.\n\n- 10,000 groups, 0 lost. More [later](x.md)."
    (entry,) = lab_log.entries(f"# Log\n\n## 2026-01-02 · Storm, `twice`\n\n{body}\n")
    assert (entry.command, entry.figure) == ("make storm", "10,000 groups, 0 lost.")
    assert (entry.date, entry.anchor) == ("2026-01-02", "2026-01-02--storm-twice")


def test_links_of_a_page_become_links_of_the_site():
    linked = set()
    text = "[a](../ropd_jax/configs.py) [b](../ropd_jax/train.py#L1) [c](update.md#meshes) ![d](x/y.png) [e](https://a.b)\n"
    turned = tree._turned(text + "```\n[f](../README.md)\n```\n", "methods.md", "docs/methods.md", linked)
    assert "[a](reference/config.md) [b](source/ropd_jax/train.py.md#L1) [c](update.md#meshes)" in turned
    assert "![d](x/y.png) [e](https://a.b)" in turned and "[f](../README.md)" in turned
    assert linked == {"ropd_jax/configs.py", "ropd_jax/train.py"} - {"ropd_jax/configs.py"}
    text = "[a](docs/api.md) [b](notebooks) [c](CHANGELOG.md)"
    assert tree._turned(text, "project/contributing.md", "CONTRIBUTING.md", linked) == (
        "[a](../api.md) [b](../source/notebooks/index.md) [c](changelog.md)"
    )


def test_one_group_is_shown_in_place_of_its_mark():
    shown = example.insert(f"before\n\n{example.MARK}\n\nafter")
    assert example.MARK not in shown and shown.count("✓") > 10 and "| 0 |" in shown
    assert example.insert("nothing here") == "nothing here"


def test_markdown_of_docstrings_and_tables():
    text = "Two words::\n\n    a   b\n\nThen ``x`` and `y`.\n    inside\nafter"
    assert (
        from_docstring(text)
        == "Two words:\n\n```text\na   b\n```\n\nThen `x` and `y`.\n\n```text\ninside\n```\n\nafter"
    )
    assert table(("a", "b"), [("x | y", "`p|q`")]) == "| a | b |\n|---|---|\n| x \\| y | `p|q` |"
    assert two_columns("Rows:\n\n    one   what it is,\n          and more\n    two   else\n\nEnd.") == {
        "one": "what it is, and more", "two": "else",
    }  # fmt: skip


def test_a_directive_keeps_one_block_or_a_whole_page_from_being_run(tmp_path, monkeypatch):
    monkeypatch.setattr(docs_blocks, "ROOT", tmp_path)
    page = tmp_path / "a.md"
    page.write_text(
        "<!-- not run: first -->\n```bash\na\n```\n\n```\nmake x\n```\n\n  ```python\n  b = 1\n  ```\n```\nout\n```\n"
    )
    found = [(b.line, b.language, b.text, b.why_not) for b in docs_blocks.blocks(page)]
    assert found == [
        (3, "shell", "a", "first"),
        (7, "shell", "make x", ""),
        (11, "python", "b = 1", ""),
        (14, "", "out", ""),
    ]
    page.write_text("<!-- not run on this page: keys -->\n\n<!-- not run: own -->\n```sh\na\n```\n\n```sh\nb\n```\n")
    assert [b.why_not for b in docs_blocks.blocks(page)] == ["own", "keys"]


def test_a_block_with_a_title_is_saved_for_the_commands_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(docs_blocks, "ROOT", tmp_path)
    page = tmp_path / "a.md"
    page.write_text(
        '  ```json title="in/rows.jsonl"\n  {"a": 1}\n  ```\n\n```python title="x.py"\nprint(7)\n```\n\n'
        "```bash\ncat in/rows.jsonl && python x.py\n```\n\n```json\n{}\n```\n"
    )
    rows, code, command, output = docs_blocks.blocks(page)
    assert (rows.file, code.file, command.file, output.file) == ("in/rows.jsonl", "x.py", "", "")
    assert [b.is_command for b in (rows, code, command, output)] == [True, True, True, False]
    assert [docs_commands._run(block, tmp_path, "") for block in (rows, code)] == [(0, "")] * 2
    assert docs_commands._run(command, tmp_path, "") == (0, '{"a": 1}\n7\n')


def test_commands_of_a_block_are_found_whole(tmp_path):
    page = tmp_path / "a.md"
    lines = [
        "```",
        "X=1 .venv/bin/ropd train --a \\",
        "  --b='c",
        "  d' && ropd show RUN   # why",
        "ropd view RUN     in the browser",
        "ropd plan      --config F     fits?",
        "```",
        "    ropd tape a; ropd tape b | less",
        "ropd not here",
    ]
    page.write_text("\n".join(lines))
    assert list(docs_blocks.ropd_commands(page)) == [
        (2, ["train", "--a", "--b=c d"]), (2, ["show", "RUN"]), (5, ["view", "RUN"]), (6, ["plan", "--config", "F"]),
        (8, ["tape", "a"]), (8, ["tape", "b"]),
    ]  # fmt: skip


def test_a_failing_block_is_reported_and_ends_what_it_started(tmp_path):
    block = docs_blocks.Block("a.md", 1, "shell", "sleep 60 &\necho $!\nfalse\necho not here", "")
    code, output = docs_commands._run(block, tmp_path, "")
    assert code == 1 and output.strip().isdecimal()

    def gone():
        try:
            return os.kill(int(output), 0)
        except ProcessLookupError:
            return True

    assert any(gone() or time.sleep(0.05) for _ in range(100))
