"""A run's groups in a terminal: a list of groups, and one group's matrix of criteria and answers (``ropd show``).

Readable at 80 columns and through a pipe: no line is wider than the console, and outside a terminal there are no
colours. If the output encoding lacks ``✓`` and ``✗``, they are shown as ``+`` and ``-``.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ropd_jax.utils import tables
from ropd_jax.utils.paths import local_run
from ropd_jax.utils.text import plain
from ropd_jax.viewer.index import GroupIndex
from ropd_jax.viewer.summary import Summary, graded, pass_rate, summary

MOST = 300  # maximum characters of a criterion
ANSWER, QUESTION = 140, 1200  # maximum characters of an answer, and of a question
TEXT_COLUMNS = 26  # minimum width of a criterion next to its verdicts
WIDEST = 140
BAR = 6  # columns for the largest advantage


def show(
    run: str,
    *,
    step: int | None = None,
    group: int | None = None,
    worst: int | None = None,
    unscored: bool = False,
    console: Console | None = None,
) -> None:
    """Prints one group, or a list of groups.

    Args:
        step: the step of the group or of the list; None means every step for a list, else the newest.
        group: its place in the step.
        worst: list this many groups with the lowest mean reward.
        unscored: list groups with unscored answers.

    Raises:
        UserError: no such group.
    """
    index = GroupIndex(local_run(run))
    if step is None and not (worst or unscored):
        step = index.newest_step()
    console = console or tables.console(sys.stdout, width=min(shutil.get_terminal_size((80, 24)).columns, WIDEST))
    if group is not None:
        assert step is not None
        _group(console, index.row(step, group))
        return
    if step is not None:
        found = index.step(step)
    else:
        index.newest_step()
        index.refresh()
        found = index.places()
    wanted = [p.summary for p in found if p.summary.unscored or not unscored]
    if worst:
        scored = [s for s in wanted if s.reward is not None]
        wanted = sorted(scored, key=lambda s: (s.reward, s.step, s.group))[:worst]
    where = f"{run}, step {step}" if step is not None else f"{run}, {len(found)} groups"
    what = "groups with unscored answers" if unscored else "groups"
    if not wanted:
        console.print(_line(console, f"{where}: no {'scored ' if worst else ''}{what}"), soft_wrap=True)
        return
    _list(console, wanted, f"{where}: {'lowest rewards among ' if worst else ''}{what}")
    first = wanted[0]
    command = f"ropd show {shlex.quote(run)} --step {first.step} --group {first.group}"
    console.print(_line(console, f"why: {command}"), soft_wrap=True)


def _list(console: Console, groups: Sequence[Summary], title: str) -> None:
    table = Table(box=None, padding=(0, 1, 0, 0), expand=True)
    for name in ("step", "group", "reward", "spread", "ref"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("question", no_wrap=True, overflow="ellipsis" if _unicode(console) else "crop", ratio=1)
    for s in groups:
        numbers = [_number(value) for value in (s.reward, s.spread, s.reference)]
        table.add_row(str(s.step), str(s.group), *numbers, _flags(s), _one_line(console, s.question))
    console.print(_line(console, title), soft_wrap=True)
    console.print(table)


def _flags(s: Summary) -> Text:
    """Short notes about unusual properties of a group: ``2 unscored``, ``flat`` ..."""
    parts = [(f"{s.unscored} unscored", "yellow")] if s.unscored else []
    parts += [(f"{s.truncated} cut", "yellow")] if s.truncated else []
    parts += [("flat", "dim")] if s.zero_variance else []
    parts += [("ref below", "yellow")] if s.below else []
    parts += [("flipped", "yellow")] if s.flipped else []
    text = Text()
    for i, (word, style) in enumerate(parts):
        text.append(f"{', ' if i else ''}{word}", style)
    return text


# ------------------------------------------------------------------------------------------------------ one group


def _group(console: Console, row: Mapping[str, Any]) -> None:
    s = summary(row)
    console.print(_line(console, f"step {s.step}, group {s.group}: {s.prompt_id}"), style="bold")
    console.print()
    console.print(_cut(console, row["question"], QUESTION))
    if row.get("gold_answer") is not None:
        console.print(_line(console, f"gold answer: {_cut(console, str(row['gold_answer']), MOST)}"), style="dim")
    console.print()
    if row["rubric"]:
        for part in _blocks(console, row):
            console.print(part)
        console.print(Text(_legend(console, row), style="dim"))
    else:
        console.print("this group has no rubric of its own")
    console.print()
    _answers(console, row, s)
    for i, answer in enumerate(row["answers"]):
        if answer.get("rubric"):
            console.print(f"\nrubric of answer {i}")
            console.print(_matrix(console, answer["rubric"], [(str(i), answer)]))


def _blocks(console: Console, row: Mapping[str, Any]) -> list[Table]:
    """The matrix, in as many tables as the width requires: answers first, then references."""
    columns = [(str(i), a) for i, a in enumerate(row["answers"])]
    columns += [(f"R{i}", r) for i, r in enumerate(row["references"])]
    room = console.width - TEXT_COLUMNS - 12
    blocks: list[list[tuple[str, Any]]] = [[]]
    used = 0
    for label, item in columns:
        if blocks[-1] and used + len(label) + 1 > room:
            blocks.append([])
            used = 0
        blocks[-1].append((label, item))
        used += len(label) + 1
    rates = _rates(row)
    return [_matrix(console, row["rubric"], block, rates) for block in blocks]


def _matrix(
    console: Console,
    rubric: Sequence[Mapping[str, Any]],
    columns: Sequence[tuple[str, Mapping[str, Any]]],
    rates: Mapping[str, float | None] | None = None,
) -> Table:
    """Criteria as rows, answers as columns; labels of references start with R and have another colour."""
    table = Table(box=None, padding=(0, 1, 0, 0), expand=True)
    table.add_column("pts", justify="right", no_wrap=True)
    table.add_column("criterion", ratio=1, overflow="fold")
    if rates is not None:
        table.add_column("pass", justify="right", no_wrap=True)
    for label, _ in columns:
        style = "cyan" if label.startswith("R") else ""
        table.add_column(Text(label, style), justify="right", no_wrap=True)
    for criterion in rubric:
        name = criterion["id"]
        shown = _one_line(console, f"{name} {criterion['text']}")
        rate = [] if rates is None else [_percent(rates[name])]
        points = f"{criterion.get('weight', criterion['points']):g}"
        table.add_row(points, shown, *rate, *(_mark(console, item["verdicts"], name) for _, item in columns))
    return table


def _rates(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Share of the scored answers that meet each criterion; without references."""
    scored = [a["verdicts"] for a in row["answers"] if a["verdicts"] is not None]
    return {c["id"]: sum(v[c["id"]] for v in scored) / len(scored) if scored else None for c in row["rubric"]}


def _mark(console: Console, verdicts: Mapping[str, bool] | None, name: str) -> Text:
    met, unmet, none = _marks(console)
    if verdicts is None:
        return Text(none, "yellow")
    return Text(met, "green") if verdicts[name] else Text(unmet, "red")


def _marks(console: Console) -> tuple[str, str, str]:
    return ("✓", "✗", "·") if _unicode(console) else ("+", "-", ".")


def _legend(console: Console, row: Mapping[str, Any]) -> str:
    met, unmet, none = _marks(console)
    references = ", R0 ... references" if row["references"] else ""
    return f"{met} met, {unmet} not met, {none} unscored; pass: of the scored answers{references}"


def _answers(console: Console, row: Mapping[str, Any], s: Summary) -> None:
    """Reward, advantage with a bar, and the text of each answer and reference in short."""
    right = graded(row).right
    pushes = [a["advantage"] for a in row["answers"] if a["advantage"] is not None]
    largest = max(map(abs, pushes), default=0.0)
    table = Table(box=None, padding=(0, 1, 0, 0), expand=True)
    for name in ("", "reward", "adv"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, min_width=BAR)
    if any(ok is not None for ok in right):
        table.add_column("gold", no_wrap=True)
    table.add_column("answer", ratio=1, overflow="fold")
    for i, answer in enumerate(row["answers"]):
        gold = [{True: "right", False: "wrong", None: ""}[right[i]]] if any(ok is not None for ok in right) else []
        note = f"[cut at {answer['tokens']} tokens] " if answer["finish_reason"] == "length" else ""
        note += f"[unscored: {answer['unscored']}] " if answer["unscored"] is not None else ""
        note += f"[score {answer['score']}] " if answer.get("score") is not None else ""
        if answer.get("exact") is not None:  # the two parts of the reward
            note += f"[{_number(answer['method_reward'])} of the rubric, {float(answer['exact']):g} exact] "
        text = Text(_one_line(console, note) + " " * bool(note), "yellow") + Text(
            _one_line(console, answer["text"], ANSWER)
        )
        bar = _bar(console, answer["advantage"], largest)
        table.add_row(str(i), _number(answer["reward"]), _number(answer["advantage"], "+.2f"), bar, *gold, text)
    for i, reference in enumerate(row["references"]):
        rate = _number(pass_rate(row["rubric"], reference["verdicts"]))
        blank = [""] * (len(table.columns) - 3)
        table.add_row(Text(f"R{i}", "cyan"), rate, *blank, _one_line(console, reference["text"], ANSWER))
    console.print(table)
    rewards = f"mean reward {_number(s.reward)}, spread {_number(s.spread)}, references {_number(s.reference)}"
    console.print(Text(rewards, "dim"))


def _bar(console: Console, advantage: float | None, largest: float) -> Text:
    if not advantage or not largest:
        return Text("")
    block = "█" if _unicode(console) else "#"
    return Text(block * max(1, round(BAR * abs(advantage) / largest)), "green" if advantage > 0 else "red")


# ------------------------------------------------------------------------------------------------------- texts


def _number(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else f"{value:{form}}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _unicode(console: Console) -> bool:
    return console.encoding.lower().replace("-", "").startswith("utf")


def _line(console: Console, text: str) -> str:
    """The text, with characters that the output encoding lacks shown by their numbers."""
    return plain(text).encode(console.encoding, "backslashreplace").decode(console.encoding)


def _one_line(console: Console, text: Any, most: int = MOST) -> str:
    return " ".join(_cut(console, " ".join(str(text).split()), most).split())


def _cut(console: Console, text: str, most: int) -> str:
    """Beginning and end of a long text, because an answer states its result at the end."""
    if len(text) > most:
        text = f"{text[: most // 2].rstrip()} [...] {text[-(most // 2) :].lstrip()}"
    return _line(console, text.replace("\t", "    "))
