"""Pictures of the viewer for the documentation: ``make screenshots``.

    python -m benchmarks.screenshots [RUN or folder of runs]      default: notebooks/mini_run

Writes docs/viewer/NAME-light.png, -dark.png and -narrow.png for each line of `PAGES`, and docs/viewer/walk.webp, an
animation of `WALK`. A page that this version of the viewer does not have is reported and left out.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import io
import pathlib
import queue
import shutil
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from ropd_jax.viewer import server
from ropd_jax.viewer.index import GroupIndex
from ropd_jax.viewer.runs import runs_in

OUT = pathlib.Path("docs/viewer")
WIDE, NARROW = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
COLOURS = 96  # of a picture's palette
WALK_WIDTH, WALK_COLOURS, WALK_BYTES = 960, 64, 1_500_000


@dataclasses.dataclass(frozen=True)
class Shot:
    """A page: its place below the run (``{step}``, ``{group}`` are a group worth a look), what must be there, and what
    is done before the picture."""

    name: str
    place: str
    wanted: str
    action: Callable[[Any], None] = lambda page: None


def hover(selector: str) -> Callable[[Any], None]:
    """An action: points at the middle of the first visible element of this kind, even if it is covered."""

    def action(page: Any) -> None:
        found = page.locator(selector)
        box = found.first.bounding_box() if found.count() else None
        if box:
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    return action


PAGES = (
    Shot("run", "", "figure", hover("figure .u-over, figure svg")),
    Shot("groups", "/groups", ".list tbody tr"),
    Shot("group", "/g/{step}/{group}", "article", hover(".matrix tbody td.col")),
    Shot("criteria", "/criteria", "main table"),
    Shot("judge", "/judge", "main table"),
    Shot("benchmarks", "/benchmarks", "main table"),
)
WALK = (  # (milliseconds shown, place or None to stay, action)
    (1600, "", lambda page: None),
    (1400, None, hover("figure .u-over, figure svg")),
    (1600, "/groups", lambda page: None),
    (1600, "/groups?sort=reward", lambda page: None),
    (2200, "/g/{step}/{group}", lambda page: None),
    (1600, None, hover(".matrix tbody td.col")),
    (2000, None, lambda page: page.locator("article").first.scroll_into_view_if_needed()),
    (1600, None, lambda page: page.keyboard.press("j")),
)


@contextmanager
def serving(directory: pathlib.Path) -> Iterator[str]:
    """The viewer's server in a thread; yields its address."""
    told: queue.Queue[str] = queue.Queue()
    loop, done = asyncio.new_event_loop(), asyncio.Event()

    async def work() -> None:
        async with server.running(directory) as url:
            told.put(url)
            await done.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(work()))
    thread.start()
    try:
        yield told.get(timeout=60)
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()


def worth_a_look(run: pathlib.Path) -> tuple[int, int]:
    """(step, group) of the group with the largest spread of rewards among those with a rubric and unequal verdicts."""
    index = GroupIndex(run)
    index.refresh()
    found = [p.summary for p in index.places()]
    best = max(found, key=lambda s: (bool(s.criteria), s.unscored == 0, s.spread or 0.0, -s.criteria))
    return best.step, best.group


def save(data: bytes, path: pathlib.Path) -> None:
    """A picture with a palette: a third of the bytes."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def settled(page: Any, wanted: str) -> bool:
    """True if the page shows the wanted element within a few seconds; waits until its figures are drawn."""
    from playwright.sync_api import TimeoutError as Late

    try:
        page.locator(wanted).first.wait_for(timeout=5_000)
    except Late:
        return False
    page.wait_for_timeout(500)
    return True


def pictures(browser: Any, base: str, names: dict[str, Any]) -> None:
    for shot in PAGES:
        for kind, viewport, scheme in (("light", WIDE, "light"), ("dark", WIDE, "dark"), ("narrow", NARROW, "light")):
            context = browser.new_context(viewport=viewport, color_scheme=scheme, device_scale_factor=1.5)
            page = context.new_page()
            page.goto(f"{base}{shot.place.format(**names)}")
            if settled(page, shot.wanted):
                shot.action(page)
                page.wait_for_timeout(200)
                save(page.screenshot(), OUT / f"{shot.name}-{kind}.png")
            else:
                print(f"{shot.name}-{kind}: left out, {base.rpartition('#')[2]}{shot.place} shows no {shot.wanted}")
            context.close()


def walk(browser: Any, base: str, names: dict[str, Any]) -> None:
    """The animation; fewer colours until it is small enough."""
    context = browser.new_context(viewport=WIDE, color_scheme="light")
    page = context.new_page()
    frames, shown = [], []
    for milliseconds, place, action in WALK:
        if place is not None:
            page.goto("about:blank")
            page.goto(f"{base}{place.format(**names)}")
            page.locator("#main > *").first.wait_for()
            page.wait_for_timeout(600)
        action(page)
        page.wait_for_timeout(400)
        frames.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
        shown.append(milliseconds)
    context.close()
    height = round(WIDE["height"] * WALK_WIDTH / WIDE["width"])
    small = [frame.resize((WALK_WIDTH, height), Image.Resampling.LANCZOS) for frame in frames]
    path = OUT / "walk.webp"
    for quality in (80, 60, 40):
        small[0].save(path, save_all=True, append_images=small[1:], duration=shown, loop=0, quality=quality, method=6)
        if path.stat().st_size < WALK_BYTES:
            break
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB, {len(frames)} frames")


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", default="notebooks/mini_run", type=pathlib.Path)
    directory = parser.parse_args().directory
    name, run = next(iter(runs_in(directory).items()))
    names = dict(zip(("step", "group"), worth_a_look(run), strict=True))
    OUT.mkdir(parents=True, exist_ok=True)
    with serving(directory) as url, sync_playwright() as playwright:
        executable = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        base = f"{url}#/{urllib.parse.quote(name)}"
        pictures(browser, base, names)
        walk(browser, base, names)
        browser.close()


if __name__ == "__main__":
    main()
