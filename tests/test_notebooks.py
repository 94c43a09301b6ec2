"""Every notebook runs from its first cell to its last, its claims hold, and it is committed executed and clean.

``python tests/test_notebooks.py [NAME ...]`` executes them and writes them back clean; then look at the difference.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import sys
import types

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

# Facts of a notebook, computed by the kernel after its last cell; bool or float by name.
FACTS = {
    "01_one_step": """
import json

print(json.dumps({
    "rewards_differ": len(set(judgement.rewards)) > 1,
    "verdicts_equal": passed == [*judgement.passed, *judgement.reference_passed],
    "reward_error": float(np.abs(reward_G - np.array(judgement.rewards)).max()),
    "centred_error": float(np.abs(centred_by_hand - np.asarray(centred)).max()),
    "divided_error": float(np.abs(centred_by_hand / reward_G.std(ddof=1) - np.asarray(divided)).max()),
    "unscored_out": not bool(unscored.valid_PG[0][reward_G.argmax()]),
    "logp_gap": float(gap_BT[batch.mask_BT].max()),
    "loss_error": abs(loss_by_hand - loss_before) + abs(float(metrics["update/loss"]) - loss_before),
    "clipped_loss_error": abs(float(after_by_hand) - loss_after),
    "loss_fell_by": loss_before - loss_after,
    "above_over_below": float(change_G[advantage_G > 0].mean() - change_G[advantage_G < 0].mean()),
    "reference_score": float(min(v_BC[G:] @ w_C / w_C.sum())),
}))
""",
    "02_add_a_method": """
import dataclasses
import json

full = "9 + 5 = 14\\n14 - 1 = 13\\n13 + 3 = 16\\nAnswer: 16"
rollouts = tuple(
    dataclasses.replace(groups[0].rollouts[0], text=text) for text in (full, "Answer: 15", "I do not know")
)
three = dataclasses.replace(groups[0], rollouts=rollouts)
judged = ropd.judge(ropd.make_teacher(config), [three], method=str(path))[0]

print(json.dumps({
    "lines": len(lines),
    "judged": list(judged.rewards),
    "asked": calls,
    "steps": len(rewards),
    "last_over_first": sum(rewards[-3:]) / 3 - sum(rewards[:3]) / 3,
    "method": result["method"],
    "same_by_file": judged_by_file.rewards == judgement.rewards,
    "unscored": result["groups_unscored"],
}))
""",
    "03_signal_alignment": """
import json

print(json.dumps({
    "rollouts": len(rollouts.right),
    "auc_error": abs(float(worked_out) - study["signals"][REWARD]["auc"]),
    "auc": study["signals"][REWARD]["auc"],
    "in_group": {name: auc_in_group(values, right, rollouts.group) for name, values in table.items()},
    "bad_updates": {name: bad_update(values, right, rollouts.group) for name, values in table.items()},
    "agreement_rose": study["criteria"][-1]["agreement"] > study["criteria"][0]["agreement"],
    "gold_known": None not in rollouts.right,
}))
""",
    "04_look_at_a_run": """
import json

print(json.dumps({
    "rollouts": len(table),
    "disagreements": disagreements.disagreement.value_counts().to_dict(),
    "bare": float((table[table.disagreement == "right, pushed down"].working == "none").mean()),
    "final_of_wrong": float(rates.loc["wrong, pushed up", "Final result"]),
    "final_of_right": float(rates.loc["right, pushed down", "Final result"]),
    "strongest_wrong": float((table.reward - baseline)[~table.right].max()),
    "strongest_right": float((table.reward - baseline)[table.right].max()),
    "share_is_of": share.to_numpy().sum() * len(table) / table.step.nunique(),
    "drawn": sum(len(points.get_offsets()) for points in right.collections),
}))
""",
}


@pytest.fixture
def jupyter(tmp_path, monkeypatch):
    """This environment's own kernel, without the user's settings."""
    monkeypatch.setenv("JUPYTER_PATH", str(pathlib.Path(sys.prefix) / "share" / "jupyter"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


def execute(path: pathlib.Path, folder: pathlib.Path) -> nbformat.NotebookNode:
    """The executed notebook, with the cell of its facts at its end; raises CellExecutionError at the first error."""
    notebook = nbformat.read(path, as_version=4)
    if facts := FACTS.get(path.stem):
        notebook.cells.append(nbformat.v4.new_code_cell(facts))
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}  # figures inline, as a reader has them
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", record_timing=False, resources=where)
    return client.execute(env=env)


def refresh(path: pathlib.Path) -> None:
    """Execute a notebook and write it back without its facts, versions, log lines and names of figure objects."""
    notebook = execute(path, path.parent)
    notebook.cells = notebook.cells[:-1] if path.stem in FACTS else notebook.cells
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    for output in outputs(notebook):
        if "image/png" in output.get("data", {}):
            output.data.pop("text/plain", None)
    nbformat.write(notebook, path)


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """The text that each code cell printed; the cell of the facts is left out."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source not in FACTS.values()]
    return ["".join(o.text for o in cell.outputs if o.get("name") == "stdout") for cell in code]


def check_printed(executed: nbformat.NotebookNode, path: pathlib.Path) -> None:
    """What is printed is what is committed: equal words, and numbers that another processor can round otherwise."""
    number = r"\d+(?:\.\d+)?"
    committed = printed(nbformat.read(path, as_version=4))
    for now, then in zip(printed(executed), committed, strict=True):
        assert re.sub(rf" *{number}", "#", now) == re.sub(rf" *{number}", "#", then)
        numbers = [[float(x) for x in re.findall(number, text)] for text in (now, then)]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.02), f"{now}\n{then}"


def check_log(notebook: nbformat.NotebookNode, progress: str) -> None:
    """Progress reaches the reader, no warning does."""
    shown = "".join(o.text for o in outputs(notebook) if o.output_type == "stream" and o.name == "stderr")
    assert progress in shown and not re.search("warning|error|traceback", shown, re.IGNORECASE), shown


def outputs(notebook: nbformat.NotebookNode):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def test_there_are_notebooks_and_each_states_its_facts():
    assert {path.stem for path in NOTEBOOKS} == set(FACTS)


@pytest.mark.slow
def test_one_step_runs_and_its_numbers_hold(tmp_path, jupyter):
    path = next(p for p in NOTEBOOKS if p.stem == "01_one_step")
    notebook = execute(path, tmp_path)
    check_log(notebook, "sampled 8 prompts")
    check_printed(notebook, path)
    facts = json.loads(notebook.cells[-1].outputs[0].text)

    assert facts["rewards_differ"]
    assert facts["verdicts_equal"]
    assert facts["reward_error"] < 1e-12
    assert facts["centred_error"] < 1e-6
    assert facts["divided_error"] < 1e-4
    assert facts["unscored_out"]
    assert facts["logp_gap"] < 1e-4
    assert facts["loss_error"] < 1e-5
    assert facts["clipped_loss_error"] < 1e-5
    assert facts["loss_fell_by"] > 0
    assert facts["above_over_below"] > 0.01
    assert facts["reference_score"] == 1.0


@pytest.mark.slow
def test_a_method_of_thirty_lines_runs_and_asks_only_for_references(tmp_path, jupyter):
    path = next(p for p in NOTEBOOKS if p.stem == "02_add_a_method")
    notebook = execute(path, tmp_path)
    check_log(notebook, "step 12/12  reward")
    check_printed(notebook, path)
    facts = json.loads(notebook.cells[-1].outputs[0].text)

    assert facts["lines"] <= 30
    assert facts["judged"][1:] == [0.0, 0.0] and facts["judged"][0] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert facts["steps"] == 12 and facts["unscored"] == 0
    assert facts["asked"] == {"teacher/calls_reference": 12 * 8 * 4}
    assert facts["method"].endswith("Agree") and facts["same_by_file"]
    assert facts["last_over_first"] > -0.2


def test_signal_alignment_runs_and_its_numbers_hold(tmp_path, jupyter):
    path = next(p for p in NOTEBOOKS if p.stem == "03_signal_alignment")
    notebook = execute(path, path.parent)
    check_printed(notebook, path)
    assert not [o for o in outputs(notebook) if o.output_type == "stream" and o.name == "stderr"]
    facts = json.loads(notebook.cells[-1].outputs[0].text)

    assert facts["rollouts"] == 768 and facts["gold_known"]
    assert facts["auc_error"] < 1e-12
    assert facts["auc"] > 0.98
    rubric, length, permuted = facts["in_group"].values()
    assert rubric > 0.98 > length > 0.7 and abs(permuted - 0.5) < 0.05
    assert [round(x, 2) for x in facts["bad_updates"].values()] == [0.08, 0.27, 0.39]
    assert facts["agreement_rose"]


def test_looking_at_a_run_finds_the_disagreements(tmp_path, jupyter):
    path = next(p for p in NOTEBOOKS if p.stem == "04_look_at_a_run")
    notebook = execute(path, path.parent)
    check_printed(notebook, path)
    assert not [o for o in outputs(notebook) if o.output_type == "stream" and o.name == "stderr"]
    facts = json.loads(notebook.cells[-1].outputs[0].text)

    assert facts["rollouts"] == facts["drawn"] == 768
    assert facts["disagreements"] == {"right, pushed down": 44, "wrong, pushed up": 11}
    assert facts["bare"] == 0.5 and facts["final_of_wrong"] == 0.0 and facts["final_of_right"] > 0.95
    assert facts["strongest_wrong"] < 0.2 and facts["strongest_right"] > 0.75
    assert facts["share_is_of"] == pytest.approx(55)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_first_cell_installs_in_colab_and_does_nothing_elsewhere(path, monkeypatch):
    first, setup = nbformat.read(path, as_version=4).cells[:2]
    assert (
        first.cell_type == "markdown" and "(https://colab.research.google.com/assets/colab-badge.svg)" in first.source
    )
    code = TransformerManager().transform_cell(setup.source)

    calls = []
    shell = types.SimpleNamespace(
        run_line_magic=lambda name, line: calls.append(f"%{name} {line}"), system=lambda line: calls.append(f"!{line}")
    )
    monkeypatch.setitem(sys.modules, "google.colab", None)
    exec(code, {"get_ipython": lambda: shell})
    assert calls == [] and setup.outputs == []

    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    exec(code, {"get_ipython": lambda: shell})
    assert calls == ['%pip install --quiet "ropd_jax[notebooks]"', "!ropd init .", "%cd notebooks"]


def test_one_step_needs_few_imports():
    notebook = nbformat.read(next(p for p in NOTEBOOKS if p.stem == "01_one_step"), as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"][1:]  # without the cell for Colab
    lines = [line for cell in code for line in cell.source.splitlines()]
    imports = [line for line in lines if re.match(r"\s*(import|from)\s", line)]
    assert 1 <= len(imports) <= 6, imports


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_committed_executed_and_without_traces_of_a_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}
    assert not [cell.id for cell in notebook.cells if cell.metadata]
    for output in outputs(notebook):
        assert output.output_type != "error"
        text = json.dumps({k: v for k, v in output.get("data", {}).items() if k != "image/png"}) + output.get(
            "text", ""
        )
        assert not re.search(r"/home/|/root/|/tmp/|/Users/|site-packages|0x[0-9a-f]{6,}", text), text
        assert output.get("text", "").count("\n") <= 40, "more than a screen"


if __name__ == "__main__":
    for notebook_path in NOTEBOOKS:
        if not sys.argv[1:] or notebook_path.stem in sys.argv[1:]:
            refresh(notebook_path)
