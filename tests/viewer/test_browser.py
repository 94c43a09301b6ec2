"""The page in a browser: every page, every filter, a run that trains, and hostile texts that are shown as text."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from ropd_jax.types import Criterion, Rubric
from ropd_jax.viewer.runs import FILTERS, GOLD_FILTERS
from tests.hostile.test_corpus import ANSWERS
from tests.hostile.test_markup import OBEYED, TEXTS
from tests.viewer.browser import NARROW, WIDE, axe, shown
from tests.viewer.stored import F, T, write_group

HOSTILE = [
    "<script>document.title = 'PWNED'</script>", "<img src=x onerror=\"document.title='PWNED'\">",
    "</pre></td><h1>PWNED",
    "<a href=\"javascript:document.title='PWNED'\">x</a>", "&lt;b&gt;", "${document.title='PWNED'}",
    "<svg onload=alert(1)>", "</script><script>alert(1)</script>", "$\\href{javascript:alert(1)}{x}$",
    "[x](javascript:alert(1))", "![x](http://evil.example/x.png)", "<style>body { display: none }</style>",
]  # fmt: skip
ACTIVE = "script, iframe, object, embed, base, form[action], [onerror], [onload], [onclick], [href^='javascript']"


@pytest.fixture
def runs(tmp_path):
    """A folder with two runs; the first one has a group for each filter but "flipped"."""
    run = tmp_path / "a"
    write_group(run, 0)
    write_group(run, 1, ((F, F), (F, F), (F, F)), question="A needle")
    write_group(run, 2, ((F, T), (T, T), (F, F)), finish="length", reference_passed=((F, T),))
    (run / "config.json").write_text('{"steps": 3, "method": "ropd"}')
    rows = [
        {"step": s, "reward/mean": s / 8, "reward/reference_mean": 0.9, "update/entropy": 1 / s} for s in range(1, 9)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text("{}")
    return tmp_path


def listed(page):
    """The steps that the table of groups shows."""
    return [int(text) for text in page.locator(".list tbody tr td:first-child").all_inner_texts()]


def test_the_runs_of_a_folder_lead_to_each_other(runs, browser):
    with shown(browser, runs) as view:
        page = view.open()
        page.get_by_role("link", name="a", exact=True).click()
        expect(page.locator("#main")).to_contain_text("reward")
        expect(page).to_have_title(re.compile("^a"))
        page.get_by_role("link", name="groups", exact=True).click()
        expect(page.locator("#main")).to_contain_text("3 groups")


def test_each_filter_shows_its_groups(runs, browser):
    wanted = {"unscored": [0], "truncated": [2], "zero_variance": [1], "below": [2], "flipped": [], "unexplored": [1],
              "suppressed": [], "punished": [2], "rewarded": [2]}  # fmt: skip
    assert wanted.keys() == {*FILTERS, *GOLD_FILTERS}
    with shown(browser, runs) as view:
        page = view.open("#/a/groups")
        for name, steps in wanted.items():
            expect(page.locator(".list tbody tr")).to_have_count(3)
            chip = page.locator(f".chip[href*='filter={name}']")
            expect(chip.locator(".count")).to_have_text([str(len(steps))] if name in FILTERS else [])
            chip.click()
            expect(page.locator(".list tbody tr")).to_have_count(len(steps))
            assert listed(page) == steps, name
            page.locator(".chip.on").click()


def test_sorting_search_and_the_keyboard(runs, browser):
    with shown(browser, runs) as view:
        page = view.open("#/a/groups")
        page.get_by_role("link", name=re.compile("^reward")).click()
        expect(page.locator("[aria-sort=ascending]")).to_contain_text("reward")
        assert listed(page) == [1, 2, 0]
        page.get_by_role("searchbox").fill("NEEDLE")
        page.keyboard.press("Enter")
        expect(page.locator(".list tbody tr")).to_have_count(1)
        assert listed(page) == [1]
        page.locator(".list tbody a").first.click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("step 1")
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("heading", level=1)).to_contain_text("step 2")
        page.keyboard.press("k")
        expect(page.get_by_role("heading", level=1)).to_contain_text("step 1")
        page.keyboard.press("ArrowLeft")
        expect(page.get_by_role("heading", level=1)).to_contain_text("step 0")


def test_a_run_that_trains_shows_its_new_groups_by_itself(runs, browser):
    with shown(browser, runs) as view:
        page = view.open("#/a/groups")
        expect(page.locator(".list tbody tr")).to_have_count(3)
        write_group(runs / "a", 3)
        expect(page.locator(".list tbody tr")).to_have_count(4, timeout=30_000)


def test_hostile_text_is_shown_and_never_run(tmp_path, browser):
    texts = list(dict.fromkeys([*HOSTILE, *TEXTS, *OBEYED, *ANSWERS[::9]]))
    rubric = Rubric(tuple(Criterion(f"c{i}", text, 1 + i % 5, text) for i, text in enumerate(HOSTILE)))
    row = (T,) * len(HOSTILE)
    run = tmp_path / "run"
    for step in range(0, len(texts), 40):
        part = texts[step : step + 40]
        passed = (None, *[row] * (len(part) - 1))
        causes = (HOSTILE[3], *[None] * (len(part) - 1))
        write_group(run, step, passed, texts=part, question=HOSTILE[0], gold=HOSTILE[1], rubric=rubric,
                    reference=HOSTILE[2], reference_passed=(row,), causes=causes)  # fmt: skip
    (run / "config.json").write_text("{}")
    (run / "result.json").write_text("{}")
    with shown(browser, run) as view:
        for step in range(0, len(texts), 40):
            page = view.open(f"#/run/g/{step}/0?show=source")
            expect(page.locator("#main")).to_contain_text(HOSTILE[0])
            assert page.locator(ACTIVE).count() == 1  # the page's own script
            assert "PWNED" not in page.title()
            held = page.evaluate("document.documentElement.textContent")
            for text in texts[step : step + 40] if step else [*HOSTILE, *texts[:40]]:
                if step or text in HOSTILE:
                    assert _plain(text) in _plain(held), ascii(text)
            page.close()
        page = view.open("#/run/groups")
        expect(page.locator(".question").first).to_contain_text(HOSTILE[0])
        assert page.locator(ACTIVE).count() == 1
        assert "PWNED" not in page.title()


def _plain(text):
    """A text without what HTML itself changes in any text: lone surrogates, NUL, line ends."""
    return re.sub(r"[\x00\ud800-\udfff\ufffd]", "", text).replace("\r\n", "\n").replace("\r", "\n")


PLACES = ["#/", "#/a", "#/a/groups", "#/a/groups?filter=punished", "#/a/g/2/0", "#/a/g/1/0"]


@pytest.mark.parametrize("place", PLACES)
def test_axe_finds_nothing_serious_and_no_page_is_wider_than_its_window(runs, browser, place):
    with shown(browser, runs) as view:
        page = view.open(place)
        for viewport in (WIDE, NARROW):
            page.set_viewport_size(viewport)
            page.emulate_media(color_scheme="light")
            assert axe(page) == []
            page.emulate_media(color_scheme="dark")
            assert axe(page, "color-contrast") == []
            assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_what_a_page_must_not_do_is_seen(runs, browser):
    with shown(browser, runs) as view:
        view.expected = [
            "Content Security Policy",
            "policy: ",
            "uncaught: ",
            "dialog: ",
            "request to ",
            "Failed to load",
        ]
        page = view.open()
        page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'x'}))")
        page.evaluate("setTimeout(() => { throw new Error('by itself') })")
        page.evaluate("setTimeout(() => alert('hello'))")
        page.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://evil.example/x.png'}))")
        page.wait_for_timeout(300)
        for part in view.expected[:4]:
            assert any(part in fault for fault in view.watch.faults), (part, view.watch.faults)
