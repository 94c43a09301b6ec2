"""Every command between a fresh clone and the paper's filled tables, run at toy size on this machine.

    make rehearsal                                          all tables, both columns: 68 runs, 196 evaluations
    python -m benchmarks.rehearsal --tables table3_gemma    one table
    python -m benchmarks.rehearsal --rows ROPD              only rows whose label has this text

1. students, data and a scripted teacher behind HTTP are made in PLACE (`benchmarks.rehearsal_world`)
2. ``ropd preflight`` of each shipped config
3. each table is printed; every command in its footnotes is run as printed, with the flags of
   ``experiments/rehearsal.flags`` behind it; again, until no cell is empty: train, then eval
4. the commands of Figures 2 and 3
5. the tables, and a summary of what ran

The configs are the shipped ones; the flags only change sizes and addresses. Finished commands are not repeated, so an
interrupted rehearsal continues. The commands run in this process, one after the other, so that nothing is compiled
twice; each has its own log in PLACE/logs. docs/reproduce.md lists what the rehearsal cannot show.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import re
import shlex
import sys
import time
import traceback
from collections.abc import Iterator, Sequence

from benchmarks import rehearsal_world as world

ROOT = pathlib.Path(__file__).parents[1]
TABLES = ("table1_blackbox", "table2_whitebox", "table3_gemma", "table6_ablation")
COLUMNS = ("paper", "released")
CONFIGS = ("qwen3_4b_math", "qwen3_4b_science", "qwen3_4b_medical", "gemma3_4b_it")
ROUNDS = 4  # a cell needs two: its run, then its evaluation
COMMAND = re.compile(r"ropd (?:train|eval) [^;`]+")
FIGURES = (  # Figure 2: do signals rank right answers above wrong ones? Figure 3: accuracy by samples and by hours
    "ropd analyze runs/qwen3_4b_whitebox_ropd --teacher Qwen/Qwen3-30B-A3B-Instruct-2507",
    "python experiments/figure3_efficiency.py --runs runs --out figure3",
)
SERVER = "http://TEACHER:8000/v1"  # as the footnotes of Table 2 have it
DATA, STATE = "data", "port"
XLA_FLAGS = (  # most of the time is the compiler's, and what it compiles runs a few times on tiny arrays
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


class Flags:
    """The flags of ``experiments/rehearsal.flags``, by section."""

    def __init__(self, path: pathlib.Path, teacher: str):
        self._sections: dict[str, list[str]] = {}
        name = ""
        for line in map(str.strip, path.read_text(encoding="utf-8").splitlines()):
            if line.startswith("["):
                name = line.strip("[]")
            elif line and not line.startswith("#"):
                self._sections.setdefault(name, []).append(line.replace("TEACHER", teacher))
        self._teacher = teacher

    def __getitem__(self, section: str) -> list[str]:
        return self._sections[section]

    def added(self, command: str) -> list[str]:
        """The words of a printed command, followed by the flags that make it small."""
        words = shlex.split(command)
        words = [w.replace(SERVER, self._teacher) for w in words]
        if words[1] in ("train", "preflight"):
            config = words[words.index("--config") + 1]
            words += [*self["train"], *self["judge"], *([] if "released" in config else self["paper"])]
            words += self["curve"] if any("_whitebox_" in w for w in words) else []
        elif words[1] == "eval":
            words += self["eval"] + (self["judge"] if any("teacher." in w for w in words) else [])
        return words


def commands_of(table: str) -> list[str]:
    """The commands in the footnotes of a printed table, each once, in order."""
    notes = [line for line in table.splitlines() if re.match(r"\d+\. ", line)]
    return list(dict.fromkeys(c.strip() for line in notes for c in COMMAND.findall(line)))


@contextlib.contextmanager
def into(log: pathlib.Path) -> Iterator[None]:
    """Redirects everything that is written to standard output and error, by any library, to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for to, fd in zip((1, 2), saved, strict=True):
                os.dup2(fd, to)
                os.close(fd)


class Rehearsal:
    """One rehearsal in the current directory.

    Attributes:
        rows: only rows whose label contains this text are filled.
        ran: (command as printed, exit code, seconds) of each command that was run.
    """

    def __init__(self, flags: Flags, rows: str = ""):
        self.flags, self.rows = flags, rows
        self.ran: list[tuple[str, int, float]] = []
        pathlib.Path("logs").mkdir(exist_ok=True)

    def run(self, command: str, place: str = "") -> int:
        """Runs a printed command, and reports it. Its exit code; 130 if the user stopped it."""
        log = pathlib.Path("logs") / f"{len(list(pathlib.Path('logs').iterdir())):03d}.log"
        log.write_text(f"{command}\n")
        begin, cpu = time.monotonic(), time.process_time()
        with into(log):
            try:
                code = _execute(self.flags.added(command))
            except Exception:
                traceback.print_exc()
                code = 1
        seconds = time.monotonic() - begin
        self.ran.append((command, code, seconds))
        with pathlib.Path("commands.jsonl").open("a", encoding="utf-8") as file:
            own = round(time.process_time() - cpu, 1)
            row = {"command": command, "code": code, "seconds": round(seconds, 1), "cpu_s": own, "log": str(log)}
            file.write(json.dumps(row) + "\n")
        said = "" if not code else f"  EXIT CODE {code}, see {log}: {_last_line(log)}"
        print(f"{place:>9} {seconds:6.1f} s  {command}{said}", flush=True)
        return code

    def fill(self, table: str) -> str:
        """Runs the commands of a table's footnotes until none is left or none works; returns the table."""
        failed: set[str] = set()
        for _ in range(ROUNDS):
            shown = _table(table)
            todo = [c for c in self._chosen(table, shown) if c not in failed]
            for n, command in enumerate(todo, 1):
                code = self.run(command, f"{n}/{len(todo)}")
                if code == 130:
                    raise KeyboardInterrupt
                if code:
                    failed.add(command)
            if not todo:
                break
        return _table(table)

    def _chosen(self, table: str, shown: str) -> list[str]:
        """The commands of the table's footnotes; only those of the selected rows, if any are selected."""
        if not self.rows:
            return commands_of(shown)
        notes = {n for line in shown.splitlines() if line.startswith("| ") and self.rows in line.split("|")[1]
                 for n in re.findall(r"<sup>(\d+)</sup>", line)}  # fmt: skip
        return commands_of("\n".join(line for line in shown.splitlines() if line.partition(".")[0] in notes))


def done() -> set[str]:
    """Commands that have worked in this or an earlier rehearsal of this place."""
    file = pathlib.Path("commands.jsonl")
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines()) if file.exists() else ()
    return {row["command"] for row in rows if not row["code"]}


def _execute(words: Sequence[str]) -> int:
    if words[0] == "python":
        sys.argv = list(words[1:])
        import runpy

        runpy.run_path(words[1], run_name="__main__")
        return 0
    from ropd_jax.cli.main import main as ropd

    return ropd(list(words[1:]))


def _table(spec: str) -> str:
    from ropd_jax.analysis import tables

    return tables.render(tables.collect(tables.load_spec(spec)), "markdown")


def _last_line(log: pathlib.Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def empty_cells(table: str, label: str = "") -> int:
    """Number of cells without our value that a command can fill, in the rows whose label contains ``label``."""
    lines = [line.split("|") for line in table.splitlines() if line.startswith("| ")][1:]
    rows = [line[2:-1] for line in lines if label in line[1]]
    notes = [line for line in table.splitlines() if re.match(r"\d+\. ", line)]
    unfillable = {n.partition(".")[0] for n in notes if not COMMAND.search(n)}
    return sum(
        cell.strip().startswith("–") and not unfillable & set(re.findall(r"<sup>(\d+)</sup>", cell))
        for cells in rows
        for cell in cells
    )


def prepare(place: pathlib.Path) -> None:
    """Makes PLACE with data, students and a link to ``experiments``, and changes to it."""
    place.mkdir(parents=True, exist_ok=True)
    os.chdir(place)
    link = pathlib.Path("experiments")
    if not link.is_symlink():
        link.symlink_to(ROOT / "experiments")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path("xla").resolve()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {' '.join(XLA_FLAGS)}".strip()
    world.make_data(pathlib.Path(DATA))
    world.make_students(pathlib.Path(), world.texts_of(pathlib.Path(DATA)))
    os.environ |= {"ROPD_DATA": DATA, "OPENAI_API_KEY": "rehearsal", "HF_HUB_OFFLINE": "1"}


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every cell is filled and every command worked, 1 if not, 130 if it was stopped."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--place", default="runs/rehearsal")
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--columns", default=",".join(COLUMNS))
    parser.add_argument("--rows", default="", help="only rows whose label contains this text")
    parser.add_argument("--no-figures", action="store_true")
    args = parser.parse_args(argv)
    prepare(pathlib.Path(args.place).resolve())
    begin, tables = time.monotonic(), {}
    with world.serving(pathlib.Path(DATA) / "answer_key.jsonl", pathlib.Path(STATE)) as teacher:
        rehearsal = Rehearsal(Flags(ROOT / "experiments" / "rehearsal.flags", teacher), args.rows)
        try:
            for name in CONFIGS:
                command = f"ropd preflight --config experiments/{name}.py"
                if command not in done():
                    rehearsal.run(command, "preflight")
            for name in args.tables.split(","):
                for column in args.columns.split(","):
                    spec = f"experiments/{name}.py:{column}"
                    print(f"\n{spec}", flush=True)
                    tables[spec] = rehearsal.fill(spec)
            if not args.no_figures:
                print("\nfigures", flush=True)
                for command in FIGURES:
                    rehearsal.run(command, "figure")
        except KeyboardInterrupt:
            print("stopped; run the same command to continue")
            return 130
    return _summary(rehearsal, tables, time.monotonic() - begin)


def _summary(rehearsal: Rehearsal, tables: dict[str, str], seconds: float) -> int:
    for spec, table in tables.items():
        print(f"\n{table}")
        pathlib.Path(f"{spec.partition('/')[2].replace('.py:', '_')}.md").write_text(table, encoding="utf-8")
    kinds = [command.split()[1] for command, _, _ in rehearsal.ran]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    failed = [command for command, code, _ in rehearsal.ran if code]
    empty = {spec: n for spec, table in tables.items() if (n := empty_cells(table, rehearsal.rows))}
    print(f"ran {len(rehearsal.ran)} commands ({counts or 'none'}) in {seconds / 60:.1f} minutes; {len(failed)} failed")
    for command in failed:
        print(f"failed: {command}")
    for spec, n in empty.items():
        print(f"{n} empty cells: {spec}")
    if not failed and not empty:
        rows = f"the rows with {rehearsal.rows!r} in " if rehearsal.rows else ""
        print(f"every cell of {rows}{len(tables)} tables is filled; what this does not show: docs/reproduce.md")
    return 1 if failed or empty else 0


if __name__ == "__main__":
    sys.exit(main())
