"""The page in a browser, where one is installed (``apt install chromium``): hostile text stays text, no script runs."""

from __future__ import annotations

import asyncio
import html.parser
import os
import shutil

import pytest

from ropd_jax.types import Criterion, Rubric
from ropd_jax.viewer import server
from tests.viewer.stored import F, T, write_group

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser here; apt install chromium runs this test")
HOSTILE = [
    "<script>document.title = 'PWNED'</script>", "<img src=x onerror=\"document.title='PWNED'\">",
    "</pre></td><h1>PWNED",
    "<a href=\"javascript:document.title='PWNED'\">x</a>", "&lt;b&gt;", "${document.title='PWNED'}",
    "<svg onload=alert(1)>",
]  # fmt: skip
OURS = {
    "html", "head", "meta", "title", "link", "script", "body", "header", "nav", "main", "p", "a", "b", "i", "div", "h1",
    "span", "blockquote", "table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "article", "pre", "form",
    "input",
}  # fmt: skip


class Seen(html.parser.HTMLParser):
    """Tags, attributes and text of a page as the browser holds it."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.text += " ".join(f" {value} " for _, value in attrs)

    def handle_data(self, data):
        self.text += data


async def opened(directory, profile, *places):
    """The page at each place, after its scripts have run."""
    pages = []
    async with server.running(directory) as url:
        for place in places:
            command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000",
                       f"--user-data-dir={profile}", "--dump-dom", f"{url}{place}"]  # fmt: skip
            browser = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
                env={**os.environ, "HOME": str(profile)},
            )  # fmt: skip
            out, _ = await asyncio.wait_for(browser.communicate(), 120)
            pages.append(Seen(out.decode()))
    return pages


def test_hostile_text_is_shown_and_never_run(tmp_path):
    run = tmp_path / "run"
    rubric = Rubric(tuple(Criterion(f"c{i}", text, 1 + i % 5, text) for i, text in enumerate(HOSTILE)))
    row = (T,) * len(HOSTILE)
    others = len(HOSTILE) - 3
    write_group(
        run,
        0,
        (row, (F,) * len(HOSTILE), None, *[row] * others),
        texts=HOSTILE,
        question=HOSTILE[0],
        gold=HOSTILE[1],
        rubric=rubric,
        reference=HOSTILE[2],
        reference_passed=(row,),
        causes=(None, None, HOSTILE[3], *[None] * others),
    )
    (run / "config.json").write_text("{}")
    (run / "result.json").write_text("{}")  # finished: the page asks no more
    group, listed = asyncio.run(opened(run, tmp_path / "profile", "#/run/g/0/0", "#/run/groups"))
    for page, count in ((group, 3), (listed, 0)):
        assert page.tags <= OURS and not {a for a in page.attributes if a.startswith("on")}
        assert "ropd view" in page.text and "PWNED" not in page.text.split("ropd view")[0]
        assert all(page.text.count(text) >= count for text in HOSTILE)
    assert "article" in group.tags and "met" in group.text and f"unscored: {HOSTILE[3]}" in group.text
    assert HOSTILE[0] in listed.text and HOSTILE[3] in listed.text
