"""The pages of runs, criteria, judges and benchmarks in a browser."""

from __future__ import annotations

import json
import time

import pytest
from playwright.sync_api import expect

from ropd_jax.types import Criterion, Rubric
from ropd_jax.viewer import bundle
from tests.viewer.browser import NARROW, WIDE, axe, shown
from tests.viewer.stored import F, T, write_group
from tests.viewer.test_browser import HOSTILE
from tests.viewer.test_reports import make_folder, result, write

RESULT = "#/a_s0/benchmarks?result=a_s0%2Feval%2Fgsm8k_step6%2Fresult.json"
AGAINST = f"{RESULT}&against=evals%2Ftiny%2Fgsm8k%2Fresult.json"
PLACES = ["#/", "#/a_s0", "#/b", "#/compare?runs=a_s0,a_s1,b", "#/a_s0/criteria", "#/a_s0/judge", "#/a_s0/benchmarks",
          AGAINST]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = make_folder(tmp_path_factory.mktemp("runs"))
    status = {"at": time.time() + 1e6, "state": "running", "done": 6, "steps": 9, "doing": "judged 1/2 groups",
              "still_s": 1.0, "calls": [{"role": "verify", "count": 3, "oldest_s": 42.0}], "spans": []}  # fmt: skip
    (place / "b" / "status.json").write_text(json.dumps(status))
    return place


@pytest.mark.parametrize("viewport, scheme", [(WIDE, "light"), (NARROW, "dark")], ids=["1280", "390"])
def test_axe_finds_nothing_serious_and_nothing_is_too_wide(folder, browser, viewport, scheme):
    with shown(browser, folder, viewport=viewport, scheme=scheme) as view:
        for place in PLACES:
            page = view.open(place)
            expect(page.locator("progress")).to_have_count(0)
            assert axe(page) == [], place
            assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], place
            page.close()


def test_runs_are_chosen_by_check_boxes_and_drawn_as_lines_and_a_band(folder, browser):
    with shown(browser, folder) as view:
        page = view.open()
        for name in ("a_s0", "a_s1", "b"):
            page.get_by_label(f"choose {name}").check()
        page.get_by_role("link", name="compare 3 runs").click()
        expect(page.locator("#main")).to_contain_text("a (2 seeds)")
        assert "runs=a_s0,a_s1,b" in page.url
        expect(page.locator(".config tbody tr")).to_have_count(1)
        expect(page.locator(".config tbody")).to_contain_text("optim.lr")
        expect(page.locator(".plot canvas").first).to_be_visible()
        page.get_by_label("as tables").check()
        first = page.locator(".numbers").first.locator("tbody tr").first
        expect(first).to_contain_text("0.2000 (0.1000–0.3000)")  # mean of two seeds, lowest and highest


def test_a_chart_is_read_zoomed_and_left_by_mouse_and_keyboard(folder, browser):
    with shown(browser, folder) as view:
        page = view.open("#/a_s0")
        plot = page.locator(".plot").first
        expect(plot).to_have_attribute("aria-label", "reward: mean from 0.100 to 0.600")
        box = plot.locator(".u-over").bounding_box()
        page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 40)
        expect(page.locator("figcaption").first).to_contain_text("step 6mean 0.600")
        page.mouse.move(box["x"] + 2, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 42, steps=4)
        page.mouse.up()
        page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 40)
        expect(page.locator("figcaption").first).to_contain_text("step 3")  # steps 1 to 3.5 are left
        assert "groups" not in page.url  # a drag is not a click
        page.mouse.dblclick(box["x"] + 20, box["y"] + 40)
        page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 40)
        expect(page.locator("figcaption").first).to_contain_text("step 6")
        page.wait_for_timeout(600)
        assert "groups" not in page.url  # nor does the first click of a double click lead to the groups
        page.mouse.click(box["x"] + 2, box["y"] + 40)
        expect(page.locator(".groups")).to_be_visible()
        assert page.url.endswith("#/a_s0/groups?step=0")
        page.close()
        page = view.open("#/a_s0")
        page.locator(".plot").first.focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("figcaption").first).to_contain_text("step 1")
        page.keyboard.press("Enter")
        expect(page.locator(".groups")).to_be_visible()
        assert page.url.endswith("#/a_s0/groups?step=0")


def test_what_the_rewards_hide_is_drawn_next_to_them_where_it_is_logged(tmp_path, browser):
    write_group(tmp_path, 0, ((T, F), (F, F), None), reference_passed=((T, T),))
    row = {"reward/mean": 0.5, "reward/all_criteria_mean": 0.4, "gold/reward_mean": 0.3, "gold/quality_mean": 0.2,
           "health/unexplored_frac": 0.25, "health/suppressed_frac": 0.125, "update/told_gap": -4.5}  # fmt: skip
    (tmp_path / "config.json").write_text("{}")
    write(tmp_path / "result.json", {"note": "done"})
    for logged, wanted in (
        (row, [
            "reward: mean from 0.500 to 0.500, all criteria from 0.400 to 0.400, gold reward from 0.300 to 0.300, "
            "gold quality from 0.200 to 0.200",
            "what the total reward hides: unexplored_frac from 0.250 to 0.250, suppressed_frac from 0.125 to 0.125",
            "told gap, nats per token: told_gap from -4.500 to -4.500",
        ]),
        ({"reward/mean": 0.5}, ["reward: mean from 0.500 to 0.500"]),
    ):  # fmt: skip
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": s, **logged}) + "\n" for s in (1, 2)))
        with shown(browser, tmp_path) as view:
            page = view.open(f"#/{tmp_path.name}")
            expect(page.locator(".plot")).to_have_count(len(wanted))
            assert page.locator(".plot").evaluate_all("all => all.map((e) => e.getAttribute('aria-label'))") == wanted
    with shown(browser, tmp_path) as view:
        page = view.open(f"#/{tmp_path.name}/criteria")
        cells = page.locator(".clusters").first.locator("tbody tr").first.locator("td")
        expect(cells.nth(7)).to_have_text("50%")
        expect(cells.nth(8)).to_have_text("0%")


def test_the_page_of_a_run_that_trains_says_what_it_waits_for_and_gets_new_steps(folder, browser):
    with shown(browser, folder) as view:
        page = view.open("#/b")
        said = "step 7 of 9 · judged 1/2 groups · 3 verify calls in flight, the oldest 42 s"
        expect(page.locator(".doing")).to_have_text(said)
        expect(page.locator(".warn").first).to_contain_text("drift alarm at step 5")
        expect(page.locator("tfoot")).to_contain_text("$0.06")
        expect(page.get_by_text("answers without a reward: malformed 12")).to_be_visible()
        expect(page.locator("figcaption", has_text="unscored answers by cause")).to_contain_text("malformed")
        with open(folder / "b" / "metrics.jsonl", "a") as log:
            log.write('{"step": 7, "reward/mean": 0.75}\n')
        expect(page.locator(".plot").first).to_have_attribute("aria-label", "reward: mean from 0.100 to 0.750",
                                                              timeout=30_000)  # fmt: skip


def test_a_cluster_leads_to_its_groups(folder, browser):
    with shown(browser, folder) as view:
        page = view.open("#/a_s0/criteria")
        expect(page.locator(".doing")).to_contain_text("1 learned, 0 lost of 2 kinds")
        page.get_by_role("link", name="change").click()
        expect(page.locator("[aria-sort=descending]")).to_contain_text("change")
        page.locator(".small").get_by_role("link", name="Final").click()
        expect(page.locator(".clusters").last.locator("tbody tr")).to_have_count(1)
        page.get_by_role("link", name="Ends with 5.").click()
        expect(page.locator("blockquote")).to_have_text("Ends with 5.")
        page.get_by_role("link", name="step 5 group 0", exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("step 5, group 0")


def test_each_filter_of_a_benchmark_and_the_answers_to_a_problem(folder, browser):
    wanted = {"right": ["p0", "p3", "left"], "partly": ["p1"], "wrong": ["p2"], "ungraded": [], "better": ["p0", "p3"],
              "worse": ["p2"]}  # fmt: skip
    with shown(browser, folder) as view:
        page = view.open("#/a_s0/benchmarks")
        page.get_by_role("link", name="GSM8K").first.click()
        page.get_by_label("compare with").select_option("evals/tiny/gsm8k/result.json")
        expect(page.locator("#main")).to_contain_text("paired over 4 problems: 2 better, 1 worse · sign test p = 1.000")
        for name, problems in wanted.items():
            page.locator(f".chip[href*='filter={name}']").click()
            expect(page.locator(".problems button")).to_have_text(problems)
        page.locator(".chip[href*='filter=partly']").click()
        page.get_by_role("button", name="p1").click()
        expect(page.locator(".opened")).to_have_text("<b>five</b> (cut)")  # as text


def test_the_judge_page_shows_foreign_text_as_text_and_leads_to_the_cell(folder, browser):
    with shown(browser, folder) as view:
        page = view.open("#/a_s0/judge")
        main = page.locator("#main")
        expect(main).to_contain_text("calibration of <b>judge</b>")
        expect(main).to_contain_text("Do <i>not</i>.")
        expect(main).to_contain_text("<b>adds</b>")
        expect(main).to_contain_text("0.50 [0.40, 0.60]")
        page.get_by_role("link", name="step 1 group 0").first.click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("step 1, group 0")


def test_a_bundle_has_the_charts_and_the_criteria(folder, tmp_path, browser):
    bundle.make(folder / "a_s0", tmp_path / "out")
    with shown(browser, (tmp_path / "out" / "index.html").as_uri()) as view:
        view.watch._allowed = (tmp_path / "out").as_uri()
        page = view.open("#/a_s0")
        expect(page.locator(".plot canvas").first).to_be_visible()
        page = view.open("#/a_s0/criteria")
        page.get_by_role("link", name="Ends with 5.").click()
        expect(page.locator("blockquote")).to_have_text("Ends with 5.")
        page = view.open("#/a_s0/benchmarks")
        expect(page.get_by_role("link", name="GSM8K")).to_be_visible()


def test_hostile_texts_of_criteria_reports_and_configs_stay_texts(tmp_path, browser):
    run = tmp_path / "run"
    rubric = Rubric(tuple(Criterion(f"c{i}", text, 1 + i % 5, text) for i, text in enumerate(HOSTILE)))
    for step in range(3):
        write_group(run, step, ((T,) * len(HOSTILE), (F,) * len(HOSTILE), None), rubric=rubric,
                    reference_passed=((T,) * len(HOSTILE),))  # fmt: skip
    write(run / "config.json", {"method": HOSTILE[0], "data": {"path": HOSTILE[1]}})
    write(run / "result.json", {"note": HOSTILE[2]})
    write(run / "status.json", {"at": 1.0, "doing": HOSTILE[3]})
    name = "a<b>'\"&.json"
    problems = dict.fromkeys(HOSTILE, 0.5)
    write(run / name, result(problems, title=HOSTILE[0], metric=HOSTILE[1], wrong={HOSTILE[3]: 1}))
    with shown(browser, tmp_path) as view:
        expected = {"#/": HOSTILE[:1], "#/run": HOSTILE[:3], "#/run/criteria": HOSTILE, "#/run/benchmarks": HOSTILE[:2]}
        for place, texts in expected.items():
            page = view.open(place)
            expect(page.locator("progress")).to_have_count(0)
            held = page.evaluate("document.documentElement.textContent")
            assert all(text in held or json.dumps(text)[1:-1] in held for text in texts), place
            if place == "#/run/benchmarks":
                page.get_by_role("link", name=HOSTILE[0]).click()
                expect(page.locator(".problems button")).to_have_text(HOSTILE)
                page.locator(".problems button").first.click()
                expect(page.locator(".opened")).to_contain_text("not stored")
            if place == "#/run/criteria":
                page.locator(".clusters").last.locator("tbody a").first.click()
                expect(page.locator("blockquote")).to_have_count(1)
            assert page.locator("script").count() == 1 and "PWNED" not in page.title()
            page.close()


def test_a_run_without_anything_says_what_would_be_there(tmp_path, browser):
    write_group(tmp_path, 0)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "result.json").write_text("{}")
    name = tmp_path.name
    with shown(browser, tmp_path) as view:
        for place, text in ((f"#/{name}/judge", "ropd calibrate-judge"), (f"#/{name}/benchmarks", "ropd eval"),
                            (f"#/{name}/criteria", "too few steps"), (f"#/{name}", "no metrics yet")):  # fmt: skip
            page = view.open(place)
            expect(page.locator("#main")).to_contain_text(text)
            page.close()
