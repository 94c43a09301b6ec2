"""The static copy of the page: it opens from the file system, and contains only what it should."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from ropd_jax.cli.main import main as ropd
from ropd_jax.types import Criterion, Rubric, UserError
from ropd_jax.viewer import bundle, server
from ropd_jax.viewer.runs import FILTERS, GOLD_FILTERS, SORTS, Query, Run
from ropd_jax.viewer.scripts import one_script
from tests.viewer.browser import shown
from tests.viewer.stored import F, T, write_group

HOSTILE = "</script><script>document.title='PWNED'</script>\u2028 __proto__"


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "a b"
    write_group(run, 0, question=HOSTILE)
    write_group(run, 1, ((F, F), (F, F), (F, F)), question="A needle")
    write_group(run, 2, ((F, T), (T, T), (F, F)), finish="length", reference_passed=((F, T),))
    write_group(run, 3, (None, None, None), texts=("x", "y", HOSTILE))
    (run / "config.json").write_text('{"steps": 4, "method": "ropd"}')
    (run / "metrics.jsonl").write_text(
        '{"step": 1, "reward/mean": 0.5, "__proto__": 1}\n{"step": 2, "reward/mean": 1}\n'
    )
    return run


def listed(page):
    return [int(text) for text in page.locator(".list tbody tr td:first-child").all_inner_texts()]


def test_it_opens_from_the_file_system_and_filters_sorts_and_searches_as_the_server_does(run, tmp_path, browser):
    out = tmp_path / "out"
    about = bundle.make(run, out)
    assert about["groups"] == 4 and about["missing"] == []
    unsafe = r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|srcdoc|\beval\(|javascript:"
    assert not re.search(unsafe, (out / "static" / "bundle.js").read_text())
    served = Run(run)
    with shown(browser, (out / "index.html").as_uri()) as view:
        view.watch._allowed = out.as_uri()
        page = view.open("#/")
        expect(page.locator("#main")).to_contain_text("reward")
        page = view.open("#/a%20b/groups")
        for name in (*FILTERS, *GOLD_FILTERS):
            page.goto(f"{view.url}#/a%20b/groups?filter={name}")
            wanted = [g["step"] for g in served.groups(Query(filters=(name,)))["groups"]]
            expect(page.locator(".chip.on[href$='groups'], .chip.on[href*='groups?']")).to_have_count(1)
            expect(page.locator(".list tbody tr")).to_have_count(len(wanted))
            assert listed(page) == wanted, name
            if name in FILTERS:
                expect(page.locator(".chip.on .count")).to_have_text(str(len(wanted)))
        for name in SORTS:
            for down in (False, True):
                page.goto(f"{view.url}#/a%20b/groups?sort={name}{'&desc=1' * down}")
                expect(page.locator(f"[aria-sort={'descending' if down else 'ascending'}] a")).to_have_count(1)
                expect(page.locator(".list tbody tr")).to_have_count(4)
                page.wait_for_timeout(100)
                assert listed(page) == [g["step"] for g in served.groups(Query(sort=name, descending=down))["groups"]]
        page.goto(f"{view.url}#/a%20b/groups?q=NEEDLE")
        expect(page.locator(".list tbody tr")).to_have_count(1)
        assert listed(page) == [1]
        page.locator(".list tbody a").first.click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("step 1")
        page.keyboard.press("ArrowLeft")
        expect(page.locator("blockquote")).to_contain_text("</script>")
        assert "PWNED" not in page.title()
        page.goto(f"{view.url}#/a%20b/g/9/9")
        view.expected = ["ERR_FILE_NOT_FOUND"]
        expect(page.locator("#status")).to_contain_text("not part of the bundle")


def test_what_a_reference_passes_is_not_told_by_the_unexplored_criteria(run, tmp_path):
    def unexplored(*without):
        bundle.make(run, tmp_path / "out", bundle.Choice(without=frozenset(without)))
        return _reply(tmp_path / "out", "api/runs/a%20b/groups/1/0")["unexplored"]

    assert unexplored() == unexplored("texts") == [True, True] and unexplored("references") == []


def _reply(out, path):
    text = (out / "data" / f"{bundle.file_name(path)}.js").read_text()
    return json.loads(json.loads(re.fullmatch(r"ropdBundle\.put\(\"[^\"]*\", (.*)\);\n", text)[1]))


@pytest.mark.parametrize("part", bundle.PARTS)
def test_what_is_left_out_is_in_no_file(tmp_path, part):
    secrets = {"references": "SECRETREFERENCE", "prompts": "SECRETQUESTION", "texts": "SECRETANSWER",
               "criteria": "SECRETCRITERION"}  # fmt: skip
    run, out = tmp_path / "run", tmp_path / "out"
    rubric = Rubric((Criterion("c1", secrets["criteria"], 1, "SECRETCRITERION"), Criterion("c2", "Ends.", 3, "F")))
    write_group(run, 0, texts=(secrets["texts"], "b", "c"), question=secrets["prompts"], gold="SECRETQUESTION gold",
                rubric=rubric, reference=secrets["references"])  # fmt: skip
    (run / "config.json").write_text("{}")
    (run / "groups" / "step_000000.jsonl").write_text(
        (run / "groups" / "step_000000.jsonl").read_text().replace("sum-0-0", "SECRETQUESTION id")
    )
    bundle.make(run, out, bundle.Choice(without=frozenset({part})))
    held = "".join(p.read_text(encoding="utf-8") for p in sorted(out.rglob("*")) if p.is_file())
    for name, secret in secrets.items():
        assert (secret in held) == (name != part), name
    assert json.loads((out / "bundle.json").read_text())["without"] == [part]


def test_a_choice_of_groups_has_its_own_neighbours(run, tmp_path):
    out = tmp_path / "out"
    assert ropd(["view", str(run), "--bundle", str(out), "--groups", "worst:2"]) == 0

    def reply(path):
        return _reply(out, path)

    assert [g["step"] for g in reply("api/runs/a%20b/groups")["groups"]] == [1, 2]
    assert reply("api/runs/a%20b/groups/1/0")["previous"] is None
    assert reply("api/runs/a%20b/groups/1/0")["next"] == [2, 0]
    assert ropd(["view", str(run), "--bundle", str(out), "--steps", "3:"]) == 0
    assert [g["step"] for g in reply("api/runs/a%20b/groups")["groups"]] == [3]
    assert not (out / "data" / f"{bundle.file_name('api/runs/a%20b/groups/1/0')}.js").exists()
    assert ropd(["view", str(run), "--bundle", str(out), "--steps", "8:"]) == 2
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_nothing_of_the_users_is_replaced(run, tmp_path):
    for name, text in (("notes.txt", "mine"), ("bundle.json", "{}"), ("bundle.json", '{"made_by": "ropd view"}')):
        out = tmp_path / f"{name}{len(text)}"
        out.mkdir()
        (out / name).write_text(text)
        (out / "other").write_text("mine")
        with pytest.raises(UserError, match="is not a bundle"):
            bundle.make(run, out)
        assert (out / name).read_text() == text and (out / "other").read_text() == "mine"
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UserError, match="is not a bundle"):
        bundle.make(run, file)
    with pytest.raises(UserError, match="folder of runs"):
        bundle.make(tmp_path, tmp_path / "new")
    assert ropd(["view", str(run), "--bundle", str(tmp_path / "x"), "--without", "shoes"]) == 2
    assert ropd(["view", str(run), "--without", "texts"]) == 2
    assert not (tmp_path / "x").exists()


def test_a_bundle_that_fails_leaves_the_earlier_one(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    bundle.make(run, out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    monkeypatch.setattr(bundle, "_page", lambda place: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bundle.make(run, out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_every_route_of_a_run_is_in_a_bundle(run):
    parts = [tuple(re.findall(r"\{(\w+)\}", r)) for r in bundle._routes(server.make_app(run, "t"))]
    assert len(parts) >= 3 and set(parts) <= bundle.EXPAND.keys()
    assert bundle.REDACT.keys() <= set(bundle._routes(server.make_app(run, "t")))


def test_the_forms_of_import_and_export_that_the_script_knows():
    files = {
        "a.js": 'import { x, y as z } from "./b.js";\nimport d from "./v/c.js";\nimport * as all from "./b.js";\n'
        'import "./b.js";\nexport const top = 1;\nexport async function f() {}\n',
        "b.js": "const x = 1;\nexport class y {}\nexport { x };\n",
        "v/c.js": 'export { q as default };\nfunction q() { return "import x"; }\n/*! ours\n*/\n'
        "/*\nexport function gone() {}\n*/\n",
    }
    script = one_script("a.js", files.__getitem__)
    assert script.index('M["b.js"] =') < script.index('M["a.js"] =') and script.count('M["b.js"] =') == 1
    for line in ('const { x, y: z } = M["b.js"];', 'const { default: d } = M["v/c.js"];', 'const all = M["b.js"];',
                 "return { default: q };", "return { top: top, f: f };"):  # fmt: skip
        assert line in script
    assert "gone" not in script and "/*! ours" in script
    for text in ('import("./b.js");', "export let { a } = b;", "import.meta.url;", 'import x, { y } from "./b.js";'):
        with pytest.raises(ValueError, match=r"bad\.js"):
            one_script("bad.js", lambda name, text=text: {**files, "bad.js": text}[name])
    with pytest.raises(ValueError, match="each other"):
        one_script("a.js", {"a.js": 'import "./b.js";', "b.js": 'import "./a.js";'}.__getitem__)
