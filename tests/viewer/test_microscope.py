"""The page of one group in a browser: rendered texts, differences, tinted tokens, notes, requests, keys."""

from __future__ import annotations

import concurrent.futures
import json
import random

import numpy as np
import pytest
from playwright.sync_api import expect

from ropd_jax.teacher import Tape
from ropd_jax.types import Criterion, Judgement, Message, Prompt, Rollout, RolloutGroup, Rubric
from ropd_jax.viewer import bundle
from ropd_jax.workdir.groups import GroupsLog
from tests.hostile.test_corpus import ANSWERS
from tests.hostile.test_markup import OBEYED, TEXTS
from tests.viewer import test_calls
from tests.viewer.browser import NARROW, axe, shown
from tests.viewer.stored import F, T, write_group
from tests.viewer.test_browser import ACTIVE, HOSTILE

MATH = r"""**Now** let $x^2 + y_1$ be as above. It costs $5 and $6.

\[
  \frac{a}{b}
+ c
\]

7. seven
8. broken: $\frac{1}{$ and \(\unknown\)"""
ALLOWED = {
    "div", "p", "strong", "em", "s", "code", "pre", "ul", "ol", "li", "blockquote", "hr", "br", "table", "thead",
    "tbody", "tr", "th", "td", "span",
}  # fmt: skip


def finished(run):
    (run / "config.json").write_text("{}")
    (run / "result.json").write_text("{}")
    return run


@pytest.fixture
def run(tmp_path):
    """A run with two groups: one with Markdown and LaTeX, one plain."""
    rubric = Rubric((Criterion("c1", "Names $x^2$.", 1, "Step"), Criterion("c2", "Ends with 5.", 3, "Final")))
    write_group(tmp_path, 0, rubric=rubric, texts=(MATH, "2 + 3 = 6\nAnswer: 6", "Answer: 5"), question="Is $x > 1$?")
    write_group(tmp_path, 1)
    return finished(tmp_path)


def address(page):
    return page.evaluate("location.hash")


def body(page, label):
    return page.locator(f"#{label} .body")


def test_markdown_and_latex_are_drawn_and_their_source_is_one_key_away(run, browser):
    with shown(browser, run) as view:
        page = view.open(f"#/{run.name}/g/0/0")
        answer = body(page, "answer-0")
        expect(answer.locator("math")).to_have_count(2)
        expect(answer.locator("strong")).to_have_text("Now")
        expect(answer.locator(".display mfrac")).to_have_count(1)
        expect(answer).to_contain_text("It costs $5 and $6.")
        assert [li.get_attribute("value") for li in answer.locator("li").all()] == ["7", "8"]
        assert answer.locator(".tex").all_inner_texts() == [r"$\frac{1}{$", r"\(\unknown\)"]
        expect(page.locator("blockquote math")).to_have_count(1)
        expect(page.locator(".criterion math")).to_have_count(1)
        page.keyboard.press("s")
        expect(answer.locator("pre")).to_be_visible()
        assert answer.locator("pre").evaluate("e => e.textContent") == MATH
        assert address(page) == f"#/{run.name}/g/0/0?show=source"
        page.reload()
        expect(answer.locator("pre")).to_be_visible()
        page.get_by_role("link", name="next").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("step 1")
        assert address(page) == f"#/{run.name}/g/1/0?show=source"


def test_hostile_texts_are_rendered_without_a_loss_and_without_an_element_of_their_own(tmp_path, browser):
    texts = list(dict.fromkeys([*HOSTILE, *TEXTS, *OBEYED, *ANSWERS[::30]]))
    walls = ["$" * 8000, "\\(" * 6000, "\\[\n" * 4000, "> " * 6000, "*a " * 5000, "[" * 9000, "`" * 9000 + "a",
             "$$\n" * 3001, "\\frac{" * 600 + "$", "$" + "\\sqrt{" * 500 + "x" + "}" * 500 + "$", "- " * 4000,
             "| a " * 3000]  # fmt: skip
    texts += [*walls, "> " * 200 + "deep", "[a]: http://x 'lost'", "```lang lost\ncode", "&amp; &#65;", "a\n=\nb"]
    for step in range(0, len(texts), 40):
        part = texts[step : step + 40]
        write_group(tmp_path, step, ((T, F),) * len(part), texts=part, question=part[0])
    finished(tmp_path)
    letters = """(cards) => cards.map((card) => {
      const body = card.querySelector(".body"), drawn = body.querySelector(".rendered");
      return [Boolean(body.querySelector("math")), body.textContent.replace(/[^\\p{L}\\p{N}]/gu, ""),
              [...(drawn ? drawn.querySelectorAll("*:not(math, math *)") : [])].map((e) => e.localName)];
    })"""
    with shown(browser, tmp_path) as view:
        for step in range(0, len(texts), 40):
            page = view.open(f"#/{tmp_path.name}/g/{step}/0")
            expect(page.locator("article").last.locator(".rendered")).to_be_visible(timeout=60_000)
            assert page.locator(ACTIVE).count() == 1 and page.locator("main a[href]:not([href^='#'])").count() == 0
            kept = page.evaluate(
                "(texts) => texts.map((t) => t.replace(/[^\\p{L}\\p{N}]/gu, ''))", texts[step : step + 40]
            )
            for (math, seen, tags), wanted in zip(page.locator("article").evaluate_all(letters), kept, strict=False):
                assert set(tags) <= ALLOWED
                assert math or wanted in seen, ascii(wanted[:200])
            page.close()


def test_a_diff_gives_both_texts_back_and_is_quick_on_long_ones(run, browser):
    chance = random.Random(0)

    def text(n, words):
        return "".join(f"w{chance.randrange(words)}" + chance.choice(" .\n") for _ in range(n))

    pairs = [
        ("", ""),
        ("a", ""),
        ("", "b"),
        ("2 + 3 = 5", "2 + 3 = 6"),
        *((text(60, 9), text(60, 9)) for _ in range(40)),
    ]
    pairs += [(text(6000, k), text(6000, k)) for k in (5, 50, 500)] + [("a " * 15_000, "b " * 15_000)]
    check = """async (pairs) => {
      const { diff, shared } = await import(new URL("static/diff.js", document.baseURI));
      return pairs.map(([own, other]) => {
        const pieces = diff(own, other), kinds = (k) => pieces.filter((p) => p[0] !== k).map((p) => p[1]).join("");
        return [kinds("missing") === own, kinds("own") === other, shared(pieces)];
      });
    }"""
    with shown(browser, run) as view:
        found = view.open().evaluate(check, pairs)
    assert all(own and other and 0 <= share <= 1 for own, other, share in found)
    assert found[0][2] == 1 and found[1][2] == 0 and found[3][2] == pytest.approx(2 / 3)


def test_differences_to_a_chosen_text_are_marked(run, browser):
    with shown(browser, run) as view:
        page = view.open(f"#/{run.name}/g/1/0?show=differences")
        expect(body(page, "answer-1").locator("ins").first).to_be_visible()
        assert "6" in body(page, "answer-1").locator("ins").all_inner_texts()[-1]
        page.get_by_label("from").select_option("0")
        expect(body(page, "answer-0").locator("ins")).to_have_count(0)
        assert body(page, "answer-1").locator("ins").all_inner_texts() == ["6", "6"]
        assert body(page, "answer-1").locator("del").all_inner_texts() == ["5", "5"]
        assert address(page) == f"#/{run.name}/g/1/0?show=differences&to=0"
        page.keyboard.press("d")
        assert address(page).endswith("to=1")


def test_tokens_are_tinted_where_they_stand(tmp_path, browser):
    text, sizes = "häß 5\nAnswer", [1, 1, 1, 2, 2, 1, 6, 0]  # the second token ends inside a character
    logp = np.log([0.99, 0.4, 0.9, 0.2, 0.99, 0.99, 0.001, 0.9]).astype(np.float32)
    change = np.array([0, 0, 0, 0.2, 0, 0, -0.5, 0], np.float32)
    rollouts = tuple(Rollout(np.arange(8, dtype=np.int32), logp, t, "stop") for t in (text, "other sizes"))
    group = RolloutGroup(Prompt("p", (Message("user", "q"),)), np.zeros(1, np.int32), rollouts, 0, 0)
    log = GroupsLog(tmp_path, token_logprobs="before_after", token_bytes_V=np.array(sizes))
    log.write(0, [group], [Judgement((1.0, 0.0), (None, None))], [[0.5, -0.5]], [[change, change]])
    finished(tmp_path)
    with shown(browser, tmp_path) as view:
        page = view.open(f"#/{tmp_path.name}/g/0/0?show=logp")
        tokens = body(page, "answer-0").locator(".tokens")
        expect(tokens).to_be_visible()
        assert tokens.evaluate("e => e.textContent") == text
        assert body(page, "answer-1").locator("pre").evaluate("e => e.textContent") == "other sizes"
        assert tokens.locator("i").all_inner_texts() == ["ä", "ß", "Answer"]
        assert "p = 0.0010" in tokens.locator("i").last.get_attribute("title")
        page.keyboard.press("l")
        expect(tokens.locator(".m5")).to_have_text("Answer")
        expect(tokens.locator(".p4")).to_have_count(1)


def test_a_run_that_stored_no_log_probs_says_so(run, browser):
    for file in (run / "groups").glob("*.npz"):
        file.unlink()
    with shown(browser, run) as view:
        page = view.open(f"#/{run.name}/g/1/0?show=logp")
        expect(page.locator(".texts")).to_contain_text("were not stored")
        expect(body(page, "answer-0").locator("pre")).to_be_visible()


@pytest.fixture
def judged(tmp_path):
    """A run of one group with its tape; the judging needs an event loop, and Playwright holds that of this thread."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        row = thread.submit(test_calls.judged, tmp_path).result()
    finished(tmp_path)
    return tmp_path, row


def test_a_verdict_gives_its_reason_to_pointer_keyboard_and_touch(judged, browser):
    run, row = judged
    with shown(browser, run) as view:
        page = view.open(f"#/{run.name}/g/0/0?show=source")
        note = page.locator(".note")
        expect(note).to_be_hidden()
        page.locator(".cell").nth(1).hover()
        expect(note).to_contain_text("answer 1 · c1")
        expect(note.locator("q")).not_to_have_count(0)
        page.mouse.move(0, 0)
        expect(note).to_be_hidden()
        page.keyboard.press("m")
        expect(note).to_contain_text("answer 0 · c1")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.mouse.move(0, 0)
        expect(note).to_contain_text(f"answer 1 · {row['rubric'][1]['id']}")
        expect(note).to_contain_text(row["rubric"][1]["text"])
        assert address(page).endswith("/g/0/0?show=source")  # the arrows stayed in the matrix
        note.get_by_role("button", name="reply").first.click()
        expect(page.locator(".call[open] .message").last).to_contain_text("ropd.verdicts.v1")
    with shown(browser, run, viewport=NARROW, has_touch=True) as view:
        page = view.open(f"#/{run.name}/g/0/0")
        page.locator(".cell").nth(2).tap()
        expect(page.locator(".note")).to_contain_text("answer 2 · c1")
        page.get_by_role("button", name="close the note").tap()
        expect(page.locator(".note")).to_be_hidden()


def test_each_request_opens_to_its_exact_messages_and_reply(judged, browser):
    run, row = judged
    with shown(browser, run) as view:
        page = view.open(f"#/{run.name}/g/0/0")
        expect(page.locator(".calls > summary")).to_contain_text(f"{len(row['calls'])} requests")
        page.keyboard.press("r")
        expect(page.locator(".call")).to_have_count(len(row["calls"]))
        for role, key in row["calls"]:
            page.locator(f"#call-{key} > summary").click()
            expect(page.locator(f"#call-{key} .message").first).to_be_visible()
            seen = page.locator(f"#call-{key} .message pre").evaluate_all("all => all.map((e) => e.textContent)")
            tape = Tape(run / "tape.sqlite", read_only=True, fleeting=True)
            entry = tape.entry(key)
            tape.close()
            assert seen == [*(text for _, text in entry.body["messages"]), entry.reply.text], role
        assert page.locator(ACTIVE).count() == 1


def test_a_bundle_holds_the_requests_and_the_tokens(judged, tmp_path_factory, browser):
    run, row = judged
    out = tmp_path_factory.mktemp("sent") / "bundle"
    bundle.make(run, out)
    with shown(browser, f"{out.as_uri()}/") as view:
        page = view.open(f"index.html#/{run.name}/g/0/0")
        expect(page.locator("#answer-0 .rendered")).to_be_visible()
        page.keyboard.press("r")
        expect(page.locator(".call")).to_have_count(len(row["calls"]))
        page.locator(".call > summary").last.click()
        expect(page.locator(".call[open] .message").last).to_contain_text("ropd.verdicts.v1")
        page.keyboard.press("l")
        expect(page.locator(".texts")).to_contain_text("were not stored")


def test_a_run_without_a_tape_says_so_and_the_keys_are_listed(run, browser):
    with shown(browser, run) as view:
        page = view.open(f"#/{run.name}/g/0/0")
        page.keyboard.press("r")
        expect(page.locator(".calls")).to_contain_text("there is no tape here")
        page.keyboard.press("?")
        expect(page.get_by_role("dialog")).to_contain_text("next group")
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_narrow_screen_shows_each_criterion_above_its_verdicts(tmp_path, browser):
    write_group(tmp_path, 0, ((T, F),) * 15, texts=("Answer: 5",) * 15)
    finished(tmp_path)
    with shown(browser, tmp_path, viewport=NARROW) as view:
        page = view.open(f"#/{tmp_path.name}/g/0/0")
        expect(page.locator(".cell")).to_have_count(32)
        wide = page.evaluate("[document.documentElement.scrollWidth, document.querySelector('.scroll').scrollWidth]")
        assert max(wide) <= NARROW["width"]
        words, last = (
            page.locator(".criterion .text").first.bounding_box(),
            page.locator(".cell").nth(15).bounding_box(),
        )
        assert words["y"] + words["height"] <= last["y"] and last["x"] + last["width"] <= NARROW["width"]


def test_what_the_total_reward_hides_is_marked_and_explained(tmp_path, browser):
    rubric = Rubric(tuple(Criterion(f"c{k}", f"Does {k}.", 1 + k, "Step") for k in range(3)))
    path = write_group(tmp_path, 0, ((T, F, F), (F, T, F), None), rubric=rubric, reference_passed=((T, F, T),))
    row = json.loads(path.read_text())
    for criterion, weight in zip(row["rubric"], (1.0, 0.0, 3.0), strict=True):
        criterion["weight"] = weight
    row["answers"][1]["reward"], row["answers"][0]["reward"] = 0.5, 0.25
    path.write_text(json.dumps(row) + "\n")
    finished(tmp_path)
    (tmp_path / "config.json").write_text('{"ropd": {"dropout": 0.5}}')
    with shown(browser, tmp_path) as view:
        page = view.open(f"#/{tmp_path.name}/g/0/0")
        expect(page.locator("tbody tr")).to_have_count(3)
        tags = page.locator("tbody tr").evaluate_all(
            "rows => rows.map((r) => r.querySelector('.tag')?.textContent ?? '')"
        )
        assert tags == ["", "hidden", "unexplored"]
        expect(page.locator("tbody tr").nth(1).locator("s")).to_have_text("2")  # its points, which were not used
        expect(page.locator(".cell.suppressed")).to_have_count(1)
        cell = page.get_by_role("gridcell", name="answer 0, c0: met, suppressed")
        note = page.locator(".note")
        cell.hover()
        expect(note).to_contain_text("its reward is not above the group's mean")
        page.locator(".tag.hidden").first.hover()
        expect(note).to_contain_text("its weight is 0 (ropd.dropout)")
        page.mouse.move(0, 0)
        expect(note).to_be_hidden()
        page.keyboard.press("m")
        expect(note).to_contain_text("suppressed")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        expect(note).to_contain_text("no scored answer does")
        expect(page.locator(".signs dt")).to_have_text(["unexplored", "✓", "hidden"])
        page.locator(".tag.unexplored").first.click()
        expect(page.locator(".note.kept")).to_contain_text("Does 2.")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert axe(page) == []


def test_a_group_that_hides_nothing_has_no_signs(run, browser):
    with shown(browser, run) as view:
        page = view.open(f"#/{run.name}/g/1/0")
        expect(page.locator(".cell").first).to_be_visible()
        expect(page.locator(".tag, .suppressed, .signs, .uncounted")).to_have_count(0)


def test_both_parts_of_a_reward_are_shown(run, browser):
    path = run / "groups" / "step_000001.jsonl"
    row = json.loads(path.read_text())
    row["answers"][0] |= {"exact": True, "method_reward": 0.25}
    path.write_text(json.dumps(row) + "\n")
    with shown(browser, run) as view:
        page = view.open(f"#/{run.name}/g/1/0")
        expect(page.locator("#answer-0 header")).to_contain_text("exact right · rubric 0.25")
