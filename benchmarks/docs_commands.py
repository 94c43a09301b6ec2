"""Runs the commands of README.md and docs/ in a temporary copy of the repository.

    make docs-commands                          # every block that is not marked; half an hour on two idle cores
    python -m benchmarks.docs_commands README.md docs/start/laptop.md

The blocks of one page run in order, and all pages share the copy. ``make quickstart`` comes first if a block uses
``runs/quickstart``. Shell blocks run with ``bash -e``. Their ``ropd`` and `.venv/bin/ropd` use the package of the copy
and the installed packages of this interpreter. The Python blocks of a page share their variables; ``ropd``, ``configs``
and ``cfg``, the default config, are defined from the start. A block with a title is saved as a file. A block that is
marked ``<!-- not run: REASON -->`` is counted with its reason (`benchmarks.docs_blocks`).
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from benchmarks.docs_blocks import ROOT, Block, blocks, pages

LIMIT_S = 1800  # of one block, on a busy machine
PRELUDE = """import ropd_jax
import ropd_jax as ropd
from ropd_jax import configs
cfg = configs.default()
"""
NO_KEYS = ("OPENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY", "HF_TOKEN")


def main(names: list[str]) -> int:
    known = {p.relative_to(ROOT).as_posix(): p for p in pages()}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(
            f"page {', '.join(unknown)} does not exist; expected paths such as README.md or docs/start/laptop.md"
        )
    wanted = [known[name] for name in names] if names else list(known.values())
    reasons: collections.Counter[str] = collections.Counter()
    failed: list[str] = []
    done = 0
    with tempfile.TemporaryDirectory(prefix="ropd-docs-") as place:
        copy = _copy(pathlib.Path(place) / "ropd_jax")
        found = [block for page in wanted for block in blocks(page) if block.is_command]
        reasons.update(block.why_not for block in found if block.why_not)
        found = [block for block in found if not block.why_not]
        if any("runs/quickstart" in block.text for block in found):
            found.insert(0, Block("make quickstart", 1, "shell", "make quickstart", ""))
        for _, group in itertools.groupby(found, key=lambda block: block.page):
            earlier = ""  # the Python of the page so far
            for block in group:
                begin = time.monotonic()
                code, output = _run(block, copy, earlier)
                earlier += f"\n{block.text}" if block.language == "python" and not block.file else ""
                done += 1
                sys.stdout.write(f"{'ok  ' if code == 0 else 'FAIL'} {time.monotonic() - begin:6.1f} s  {block.name}\n")
                if code:
                    failed.append(block.name)
                    sys.stdout.write("".join(f"    {line}\n" for line in output.splitlines()[-25:]))
                sys.stdout.flush()
    for reason, n in reasons.most_common():
        sys.stdout.write(f"not run {n:3d}: {reason}\n")
    sys.stdout.write(f"{done} blocks run, {len(failed)} failed, {sum(reasons.values())} not run\n")
    return 1 if failed else 0


def _copy(place: pathlib.Path) -> pathlib.Path:
    """The tracked files with their times, and a .venv whose ``ropd`` is the package of the copy."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    place.mkdir(parents=True)
    subprocess.run(
        ["cp", "--parents", "--preserve=timestamps", *filter(None, names.split("\0")), place], cwd=ROOT, check=True
    )
    venv = place / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    installed = [p for p in sys.path if p.endswith("site-packages")]
    (venv / "lib" / version / "site-packages" / "installed.pth").write_text("\n".join([str(place), *installed]) + "\n")
    ropd = venv / "bin" / "ropd"
    ropd.write_text(f"#!{venv}/bin/python\nimport sys\n\nfrom ropd_jax.cli.main import main\n\nsys.exit(main())\n")
    ropd.chmod(0o755)
    for stamp in ("core", "dev"):  # make then installs nothing
        (venv / f"{stamp}.stamp").touch()
    return place


def _run(block: Block, copy: pathlib.Path, earlier: str) -> tuple[int, str]:
    """(exit code, output) of one block; its background processes end with it. A block with a title is only saved."""
    if block.file:
        place = copy / block.file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{block.text}\n", encoding="utf-8")
        return 0, ""
    env = {k: v for k, v in os.environ.items() if k not in NO_KEYS} | {"PYTHONPATH": str(copy), "MPLBACKEND": "agg"}
    env["PATH"] = f"{copy}/.venv/bin:{env['PATH']}"
    if block.language == "python":
        file = copy / ".block.py"
        file.write_text(f"{PRELUDE}{earlier}\n{block.text}\n", encoding="utf-8")
        command = [str(copy / ".venv" / "bin" / "python"), str(file)]
    else:
        command = ["bash", "-euo", "pipefail", "-c", block.text]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        child = subprocess.Popen(
            command, cwd=copy, env=env, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = child.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            code = 124
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        output.seek(0)
        return code, output.read()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
