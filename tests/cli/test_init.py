"""``ropd init``: the package's files in the user's directory."""

from __future__ import annotations

import os
import pathlib

from ropd_jax.cli import main as cli
from ropd_jax.configs import load_config
from ropd_jax.utils import shipped


def everything() -> set[pathlib.Path]:
    return {pathlib.Path(name) / path for name in shipped.FOLDERS for path in shipped.files(name)}


def test_every_file_is_copied_and_works_there(tmp_path, capsys, monkeypatch):
    target = tmp_path / "my work"
    assert cli.main(["init", str(target)]) == 0
    written = {path.relative_to(target) for path in target.rglob("*") if path.is_file()}
    assert written == everything()
    assert {"experiments/quickstart.py", "notebooks/01_one_step.ipynb", "launch/slurm.sh"} < {str(p) for p in written}
    assert os.access(target / "launch" / "slurm.sh", os.X_OK)
    assert not os.access(target / "launch" / "gke.yaml", os.X_OK)
    out = capsys.readouterr().out
    assert out.startswith(f"wrote: {len(written)} files in {target}\n") and f"cd '{target}'" in out

    monkeypatch.chdir(target)
    assert load_config("experiments/mini.py:method=sft").to_dict() == load_config("mini:method=sft").to_dict()


def test_the_next_commands_enter_a_directory_only_if_it_is_another(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "."]) == 0
    assert "next\n  ropd train --config" in capsys.readouterr().out
    assert cli.main(["init", "here"]) == 0
    assert "next\n  cd here\n  ropd train --config" in capsys.readouterr().out


def test_what_exists_is_kept(tmp_path, capsys):
    own = tmp_path / "experiments" / "quickstart.py"
    own.parent.mkdir()
    own.write_text("mine")
    assert cli.main(["init", str(tmp_path)]) == 0
    assert own.read_text() == "mine"
    out = capsys.readouterr().out
    assert f"wrote: {len(everything()) - 1} files" in out
    assert f"kept, because they exist: 1 files in {tmp_path}\n  experiments/  quickstart.py\n" in out

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert cli.main(["init", str(tmp_path)]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert "wrote" not in capsys.readouterr().out


def test_a_link_that_leads_nowhere_is_not_written_through(tmp_path):
    target = tmp_path / "here"
    (target / "launch").mkdir(parents=True)
    (target / "launch" / "slurm.sh").symlink_to(tmp_path / "elsewhere")
    assert cli.main(["init", str(target)]) == 0
    assert not (tmp_path / "elsewhere").exists()


def test_mistakes_are_one_line(tmp_path, error_of):
    (tmp_path / "experiments").write_text("a file")
    assert "is a file, and ropd init needs a directory there" in error_of("init", str(tmp_path))
    assert "gs://bucket/x is a URL" in error_of("init", "gs://bucket/x")
    assert "which directory? expected it first" in error_of("init")
