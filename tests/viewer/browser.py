"""The viewer's page in a real browser: Debian's Chromium (``apt install chromium``), driven by Playwright.

    def test_something(tmp_path, browser):
        with shown(browser, tmp_path) as view:          # serves the folder
            page = view.open("#/run/groups")            # a fresh page, after its first drawing
            expect(page.get_by_role("table")).to_be_visible()
                                                        # leaving fails the test on any of `Watch.faults`

A test that uses `browser` must not call ``asyncio.run``: Playwright holds the event loop of the main thread. The
server of `shown` has its own thread.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import shutil
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from ropd_jax.viewer import server
from tests.loopback import on_own_thread

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "no browser on the PATH; apt install chromium runs the tests of the viewer's page"
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
VIOLATIONS = """addEventListener("securitypolicyviolation", (e) =>
  console.error(`policy: ${e.violatedDirective} blocked ${e.blockedURI} ${e.sample}`))"""
expect.set_options(timeout=20_000)  # milliseconds: a machine that is busy with other tests takes its time
HARMLESS = ("favicon.ico",)  # requested by the browser itself


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the tests of a file; it starts in about a second."""
    if EXECUTABLE is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.getuid() == 0 else []  # root has no user namespace for the sandbox
        chromium = playwright.chromium.launch(executable_path=EXECUTABLE, args=options)
        yield chromium
        chromium.close()


class Watch:
    """Faults of a page.

    Attributes:
        faults: errors on the console, violations of the content security policy, uncaught exceptions, dialogs,
            requests to addresses that are not allowed.
    """

    def __init__(self, context: BrowserContext, allowed: str):
        self.faults: list[str] = []
        self._allowed = allowed
        context.on("console", self._console)
        context.on("weberror", lambda error: self.faults.append(f"uncaught: {error.error}"))
        context.on("dialog", self._dialog)
        context.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type == "error" and not any(name in str(message.location) for name in HARMLESS):
            self.faults.append(f"console: {message.text}")

    def _dialog(self, dialog: Any) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self._allowed, "data:", "blob:", "about:")):
            self.faults.append(f"request to {request.url}")


class View:
    """A viewer in a browser.

    Attributes:
        url: its address, with the token.
        watch: see `Watch`.
        expected: parts of faults that this test provokes.
    """

    def __init__(self, context: BrowserContext, url: str):
        self.url = url
        self.watch = Watch(context, url.partition("#")[0] if url.startswith("file:") else _origin(url))
        self.expected: list[str] = []
        self._context = context

    def open(self, place: str = "") -> Page:
        """A new page at a place such as ``#/run/groups``, after its first drawing."""
        page = self._context.new_page()
        page.goto(f"{self.url}{place}")
        drawn(page)
        return page

    def check(self) -> None:
        """Fails if a page had a fault."""
        unexpected = [f for f in self.watch.faults if not any(part in f for part in self.expected)]
        assert not unexpected, "\n".join(unexpected)


def drawn(page: Page) -> None:
    """Waits for the first drawing of a page that was just opened, or for its error."""
    page.locator("#main > *, #status:not(:empty)").first.wait_for(state="attached")


@contextlib.contextmanager
def shown(
    browser: Browser,
    directory: pathlib.Path | str,
    *,
    viewport: dict[str, int] = WIDE,
    scheme: str = "light",
    **context: Any,
) -> Iterator[View]:
    """A `View` of a folder, or of an address; its pages are checked when the block is left without an error.

    Args:
        directory: a run, a folder of runs, or an address (``file:///...`` of a bundle).
        viewport: size in CSS pixels.
        scheme: "light" or "dark".
        context: further options of Playwright's ``new_context``.
    """
    served = contextlib.nullcontext(directory) if isinstance(directory, str) else serving(directory)
    with served as url:
        opened = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce", **context)
        opened.set_default_timeout(20_000)
        opened.add_init_script(VIOLATIONS)
        view = View(opened, url)
        try:
            yield view
            view.check()
        finally:
            opened.close()


def serving(directory: pathlib.Path, **how: Any) -> contextlib.AbstractContextManager[str]:
    """The server of ``ropd view`` on a thread of its own; gives its address."""
    return on_own_thread(server.running(directory, **how))


def _origin(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/"


def axe(page: Page, *rules: str) -> list[str]:
    """Serious and critical findings of axe on a page, one line each; of all its rules, or of some.

    The debugger's channel evaluates the script, so that the page's policy stays in force.
    """
    found = importlib.util.find_spec("axe_playwright_python")
    assert found and found.origin
    if not page.evaluate("'axe' in window"):
        page.evaluate(pathlib.Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8"))
    only = {"runOnly": {"type": "rule", "values": list(rules)}} if rules else {}
    result = page.evaluate("options => axe.run(options)", {"resultTypes": ["violations"], **only})
    return [
        f"{v['impact']} {v['id']}: {v['help']} at {', '.join(str(n['target']) for n in v['nodes'][:3])}"
        for v in result["violations"]
        if v["impact"] in ("serious", "critical")
    ]
