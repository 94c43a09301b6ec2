"""The server of ``ropd view``: its replies, its access control, and how much it reads."""

from __future__ import annotations

import asyncio
import html.parser
import json
import pathlib
import re

import aiohttp
import pytest

from ropd_jax.cli import view
from ropd_jax.cli.main import main as ropd
from ropd_jax.types import UserError
from ropd_jax.viewer import runs as runs_module
from ropd_jax.viewer import server
from ropd_jax.viewer.index import GroupIndex
from ropd_jax.viewer.runs import FILTERS, GOLD_FILTERS, Query, Run
from tests.hostile.test_corpus import ANSWERS
from tests.hostile.test_markup import OBEYED, TEXTS
from tests.viewer.stored import F, T, write_group

STATIC = pathlib.Path(server.__file__).parent / "static"


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """A request reads everything, however slow the machine is."""
    monkeypatch.setattr(runs_module, "FIRST_S", 600.0)
    monkeypatch.setattr(runs_module, "SLICE_S", 600.0)


@pytest.fixture
def runs(tmp_path):
    """A folder with a run of three steps."""
    run = tmp_path / "a"
    write_group(run, 0)
    write_group(run, 1, ((F, F), (F, F), (F, F)), question="A needle")
    write_group(run, 2, ((F, T), (T, T), (F, F)), finish="length", reference_passed=((F, T),))
    (run / "config.json").write_text('{"steps": 3, "lr": NaN}')
    (run / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n{"step": 2, "reward/mean": null}\n')
    return tmp_path


def fetched(directory, *paths, token="token", **how):
    """(status, headers, body) of each path below the address."""

    async def main():
        found = []
        async with server.running(directory, token="token") as url, aiohttp.ClientSession() as session:
            assert url.startswith("http://127.0.0.1:") and url.endswith("/token/")
            for path in paths:
                async with session.get(url.replace("/token/", f"/{token}/" if token else "/") + path, **how) as reply:
                    found.append((reply.status, reply.headers, await reply.text()))
        return found

    return asyncio.run(main())


def steps(run, **query):
    found = Run(run).groups(Query(**query))
    return [g["step"] for g in found["groups"]]


def test_the_data_of_a_run(runs):
    names, about, metrics, groups, group = fetched(
        runs, "api/runs", "api/runs/a", "api/runs/a/metrics", "api/runs/a/groups?sort=reward", "api/runs/a/groups/0/0"
    )
    assert json.loads(names[2]) == {"runs": ["a"]}
    found = json.loads(about[2])
    assert {k: found[k] for k in ("name", "config", "result", "status")} == {
        "name": "a", "config": {"steps": 3, "lr": None}, "result": None, "status": {}
    }  # fmt: skip
    assert json.loads(metrics[2]) == {"reward/mean": [[1, 2], [0.5, None]]}
    assert [g["step"] for g in json.loads(groups[2])["groups"]] == [1, 2, 0]
    found = json.loads(group[2])
    assert found["row"]["question"] == "What is 2 + 3?" and found["right"] == [True, False, True]
    assert (found["previous"], found["next"], found["reference_scores"]) == (None, [1, 0], [1.0])


def test_filters_sorting_and_pages(runs):
    run = runs / "a"
    assert set(FILTERS) | set(GOLD_FILTERS) == {
        "unscored", "truncated", "zero_variance", "below", "flipped", "unexplored", "suppressed", "punished", "rewarded"
    }  # fmt: skip
    assert steps(run, filters=("unscored",)) == [0]
    assert steps(run, filters=("truncated",)) == [2]
    assert steps(run, filters=("zero_variance",)) == [1]
    assert steps(run, filters=("below",)) == [2]  # the reference scored 3/4, the second answer 1
    assert steps(run, filters=("flipped",)) == []
    assert steps(run, filters=("unexplored",)) == [1]  # only the reference meets its two criteria
    assert steps(run, filters=("suppressed",)) == []
    assert steps(run, filters=("punished",)) == [2]  # the third answer is right and scored 0
    assert steps(run, filters=("rewarded",)) == [2]  # and the second one is wrong and scored 1
    assert steps(run, filters=("unscored", "truncated")) == []
    assert steps(run, sort="spread", descending=True) == [2, 0, 1]
    assert steps(run, step=1) == [1] and steps(run, offset=1, limit=1) == [1]
    assert steps(run, text="NEEDLE") == [1] and steps(run, text="ends WITH 5") == [0, 1, 2]
    assert steps(run, text="verdicts") == []  # a key of the file, not a text
    assert steps(run, text="= 5\nAnswer") == [0, 1, 2]


def test_what_the_total_reward_hides_is_counted_and_told_of_one_group(runs):
    run = runs / "a"
    write_group(run, 3, ((T, F), (F, T), None), reference_passed=((T, T),))
    write_group(run, 4, ((F, T), (F, F), (F, T)), reference_passed=((F, T),))
    write_group(run, 5, ((F, T), (F, F), (F, T)), reference_passed=(None,))
    assert steps(run, filters=("suppressed",)) == [3]  # 1/4 and 3/4: only the first answer meets c1
    assert steps(run, filters=("unexplored",)) == [1, 5]  # the reference of step 4 fails c1, that of step 5 is unjudged
    assert steps(run, sort="unexplored", descending=True)[:2] == [1, 5]
    found = Run(run).groups(Query())
    assert found["counts"] == {name: len(steps(run, filters=(name,))) for name in FILTERS}
    assert [(g["unexplored"], g["suppressed"]) for g in found["groups"][1:4]] == [(2, 0), (0, 0), (0, 1)]
    both = Run(run).groups(Query(filters=("unexplored",)))["counts"]
    assert both["unexplored"] == 2 and both["zero_variance"] == 1 and both["suppressed"] == 0
    three, five = Run(run).group(3, 0), Run(run).group(5, 0)
    assert list(three["unexplored"]) == [False, False] and list(five["unexplored"]) == [True, False]
    assert [None if v is None else list(v) for v in three["suppressed"]] == [[True, False], [False, False], None]


def test_the_switches_that_take_criteria_out_of_the_reward_are_named(runs):
    config = runs / "a" / "config.json"
    for text, wanted in (
        ("{}", []),
        ('{"ropd": "x"}', []),
        ('{"ropd": {"dropout": 0.0, "references_pass": 0.5}}', ["ropd.references_pass"]),
        ('{"ropd": {"dropout": 0.3, "variance_weights": true}}', ["ropd.dropout", "ropd.variance_weights"]),
    ):
        config.write_text(text)
        assert Run(runs / "a").group(0, 0)["hidden_by"] == wanted


def test_a_group_without_a_value_comes_last_in_both_directions(runs):
    write_group(runs / "a", 3, (None, None, None))
    assert steps(runs / "a", sort="reward")[-1] == steps(runs / "a", sort="reward", descending=True)[-1] == 3


@pytest.mark.parametrize(
    "path, status, message",
    [
        ("api/runs/b", 404, "not a run of this folder"),
        ("api/runs/..%2Fa", 404, "not a run of this folder"),
        ("api/runs/a/groups?sort=shoe", 404, "expected one of step, reward"),
        ("api/runs/a/groups?filter=shoe", 404, "expected some of unscored"),
        ("api/runs/a/groups?limit=9999", 404, "limit 1 to 500"),
        ("api/runs/a/groups?offset=x", 404, "must be numbers"),
        ("api/runs/a/groups/7/0", 404, "has no step 7"),
        ("api/runs/a/groups/0/7", 404, "no group 7"),
        ("static/..%2Fserver.py", 404, "Not Found"),
        ("static/server.py", 404, "Not Found"),
    ],
)
def test_what_is_not_there_is_answered_in_one_line(runs, path, status, message):
    [(found, _, body)] = fetched(runs, path)
    assert found == status and message in json.loads(body)["error"]


def test_without_the_token_or_under_another_name_nothing_is_shown(runs):
    for token in ("", "tokeN", "token2"):
        for status, headers, body in fetched(runs, "", "api/runs", "static/app.js", token=token):
            assert status == 403 and "ropd view" in body and "Content-Security-Policy" in headers
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example:80", "[::2]:80"):
        [(status, _, body)] = fetched(runs, "api/runs", headers={"Host": host})
        assert status == 403 and "runs" not in json.loads(body), host
    assert fetched(runs, "api/runs", headers={"Host": "localhost:1234"})[0][0] == 200  # an ssh tunnel


def test_the_token_is_new_each_time(runs):
    async def main():
        urls = []
        for _ in range(2):
            async with server.running(runs) as url:
                urls.append(url.rstrip("/").rpartition("/")[2])
        return urls

    one, other = asyncio.run(main())
    assert one != other and min(len(one), len(other)) >= 32


def test_the_server_changes_nothing_and_takes_no_other_method(runs):
    before = {p: p.read_bytes() for p in runs.rglob("*") if p.is_file()}

    async def main():
        async with server.running(runs, token="t") as url, aiohttp.ClientSession() as session:
            for method in ("POST", "PUT", "DELETE", "PATCH"):
                async with session.request(method, f"{url}api/runs/a") as reply:
                    assert reply.status == 405
            async with session.get(f"{url}api/runs/a/groups?q=needle") as reply:
                assert reply.status == 200

    asyncio.run(main())
    assert {p: p.read_bytes() for p in runs.rglob("*") if p.is_file()} == before


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


def test_the_page_has_no_script_of_its_own_and_needs_no_other_host(runs):
    [(status, headers, body), *files] = fetched(
        runs, "", *(f"static/{p.name}" for p in sorted(STATIC.glob("*.[jc]s*")) if p.name != "bundle.js")
    )
    page = Page(body)
    assert status == 200 and page.tags.count("script") == 1 and "style" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]
    assert (
        "script-src 'self'" in headers["Content-Security-Policy"] and "unsafe" not in headers["Content-Security-Policy"]
    )
    assert len(files) == len(server.STATIC) and all(status == 200 for status, _, _ in files)
    for text in (body, *(text for _, _, text in files)):
        assert set(re.findall(r"https?://[^\"'` ]+", text)) <= {
            "http://www.w3.org/2000/svg", "http://www.w3.org/1998/Math/MathML"
        }  # fmt: skip
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|srcdoc|\beval\(|javascript:", text
        )


def test_hostile_text_reaches_the_page_as_it_is(tmp_path):
    texts = list(dict.fromkeys([*TEXTS, *OBEYED, *ANSWERS[::11]]))
    (tmp_path / "config.json").write_text("{}")
    for i, text in enumerate(texts):
        write_group(tmp_path, i, ((T, F),), texts=(text,), question=f"q {text}", gold=text, reference=text)
    run = Run(tmp_path)
    for i, text in enumerate(texts):
        row = json.loads(server._json(run.group(i, 0)))["row"]
        assert (row["answers"][0]["text"], row["question"]) == (text, f"q {text}"), ascii(text)
    assert all(i in steps(tmp_path, text=text, limit=500) for i, text in enumerate(TEXTS[:8]))


def test_a_request_answers_with_what_it_has_and_the_next_one_continues(runs, monkeypatch):
    monkeypatch.setattr(runs_module, "FIRST_S", 0.0)
    monkeypatch.setattr(runs_module, "SLICE_S", 0.0)
    run = Run(runs / "a")
    found = [run.groups(Query()) for _ in range(3)]
    assert [(f["read"], f["of"], f["total"]) for f in found] == [(1, 3, 1), (2, 3, 2), (3, 3, 3)]
    assert run.groups(Query(filters=("punished",)))["graded"][1] == 3


def test_only_the_file_of_a_group_is_read(runs, monkeypatch):
    read = []
    original = GroupIndex.step
    monkeypatch.setattr(GroupIndex, "step", lambda self, step: read.append(step) or original(self, step))
    index = GroupIndex(runs / "a")
    assert index.row(1, 0)["question"] == "A needle"
    assert read == [1] and index.progress[0] == 1


def test_a_group_that_its_step_deferred_opens_and_has_its_neighbours(tmp_path):
    for step in (0, 1):
        write_group(tmp_path, step, index=0, question=f"step {step}")
    path = write_group(tmp_path, 0, index=1, question="deferred")
    first, late = path.read_text().splitlines()
    path.write_text(first + "\n")
    later = tmp_path / "groups" / "step_000001.jsonl"
    later.write_text(later.read_text() + late + "\n")
    run = Run(tmp_path)
    shown = [(0, 0), (0, 1), (1, 0)]
    for i, (step, group) in enumerate(shown):
        found = run.group(step, group)
        assert (found["row"]["step"], found["row"]["group"]) == (step, group)
        assert found["previous"] == (shown[i - 1] if i else None)
        assert found["next"] == (shown[i + 1] if i < 2 else None)
    assert run.group(0, 1)["row"]["question"] == "deferred"


def test_a_file_is_read_again_only_if_it_has_changed(runs, monkeypatch):
    from ropd_jax.viewer import index as module

    read = []
    original = module._read
    monkeypatch.setattr(module, "_read", lambda path, stat: read.append(path.name) or original(path, stat))
    index = GroupIndex(runs / "a")
    assert not index.refresh(seconds=0) and index.progress == (1, 3)
    assert index.refresh() and len(read) == 3
    assert index.refresh() and len(read) == 3
    write_group(runs / "a", 1, index=1)
    write_group(runs / "a", 3)
    (runs / "a" / "groups" / "step_000000.jsonl").unlink()
    assert index.refresh() and read[3:] == ["step_000001.jsonl", "step_000003.jsonl"]
    assert [(p.summary.step, p.summary.group) for p in index.places()] == [(1, 0), (1, 1), (2, 0), (3, 0)]


@pytest.mark.parametrize("line", ["{", "[]", "null", '{"step": 0}', '{"a": ' * 5000, "\\xff", '"x"'])
def test_a_line_that_is_no_group_is_counted_and_left_out(runs, line):
    path = runs / "a" / "groups" / "step_000000.jsonl"
    path.write_text(f"{line}\n{path.read_text()}")
    found = Run(runs / "a").groups(Query())
    assert (found["unreadable"], found["total"]) == (1, 3)


def test_a_folder_without_runs_and_a_taken_port_are_one_line(tmp_path, runs):
    with pytest.raises(UserError, match="holds no runs"):
        server.make_app(tmp_path / "none", "t")

    async def twice():
        async with server.running(runs) as url, server.running(runs, port=int(url.split(":")[2].split("/")[0])):
            pass

    with pytest.raises(UserError, match="expected a free --port"):
        asyncio.run(twice())


def test_the_command_prints_the_address_and_in_an_ssh_session_how_to_reach_it(runs, monkeypatch, capsys):
    monkeypatch.setattr(server, "serve", lambda directory, *, port, told: told("http://127.0.0.1:8810/abc/"))
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert ropd(["view", str(runs), "--port", "8810"]) == 0
    assert capsys.readouterr().out == "http://127.0.0.1:8810/abc/\nStop it with Ctrl-C.\n"
    monkeypatch.setenv("SSH_CONNECTION", "1.2.3.4 5 6.7.8.9 22")
    view._tell("http://127.0.0.1:8810/abc/")
    assert re.search(r"ssh -L 8810:127\.0\.0\.1:8810 \S+@\S+\n$", capsys.readouterr().out)
    assert ropd(["view", "gs://bucket/runs"]) == 2
    assert "must be a local path" in capsys.readouterr().err
