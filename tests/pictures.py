"""Makes the pictures in `assets/`: somebody who likes short replies chats and votes in headless Chromium until a
version that learned from it answers.

`python -m tests.pictures FOLDER` keeps the app's data in FOLDER; where a version is live there already it only
photographs the pages.
`--film` plays the session again. Real default model and settings, but for `--chat.top-p 0.9`; a quarter of an hour on
two cores, mostly the round.
"""

import argparse
import io
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.browsing import CHROMIUM, FLAGS, ROOT, App, growing, reply, send, tab, wait_for_vote

ASSETS = ROOT / "assets"
SIZE = {"width": 1280, "height": 800}
MOST_VOTES = 80
FILM_WIDTH, QUALITY = 880, 50


class Film:
    """Frames of a page, each shown for as long as it was given, whatever it took."""

    def __init__(self):
        self.frames, self.milliseconds = [], []

    def shoot(self, page, seconds):
        image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        self.frames.append(image.resize((FILM_WIDTH, round(image.height * FILM_WIDTH / image.width)), Image.LANCZOS))
        self.milliseconds.append(round(1000 * seconds))

    def save(self, path):
        self.frames[0].save(
            path,
            save_all=True,
            append_images=self.frames[1:],
            duration=self.milliseconds,
            loop=0,
            quality=QUALITY,
            method=4,
        )
        print(
            f"{path.name}: {sum(self.milliseconds) / 1000:.1f} s, {len(self.frames)} frames, "
            f"{path.stat().st_size / 1e6:.2f} MB"
        )


def question(number):
    lines = (ASSETS / "prompts" / "train.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")][number]


def vote_for_the_shorter(page):
    """One vote as somebody casts it who likes replies short."""
    lengths = {side: len(reply(page, side)) for side in "ab"}
    choice = "tie" if lengths["a"] == lengths["b"] else min(lengths, key=lengths.get)
    page.click(f"#vote-{choice}")
    page.wait_for_selector(f"#vote-{choice}.picked")


def version(page):
    return page.inner_text("#strip .version")


def said(page):
    return page.inner_text("#strip .what")


def stream(page, film):
    """Both replies as they grow. Not more frames: a screenshot takes its time from the model."""
    growing(page)
    while page.locator("#stop").is_visible():
        film.shoot(page, 0.3)
        page.wait_for_timeout(300)
    wait_for_vote(page)


def play(page, film):
    """From the first message to a reply of the new version."""
    film.shoot(page, 1.2)
    text = question(0)
    for end in range(6, len(text) + 6, 6):
        page.fill("#message textarea", text[:end])
        film.shoot(page, 0.09)
    page.press("#message textarea", "Enter")
    stream(page, film)
    film.shoot(page, 0.9)
    vote_for_the_shorter(page)
    page.wait_for_timeout(400)
    film.shoot(page, 1.4)
    phases, votes = set(), 1
    while version(page).startswith("v0"):
        if votes < MOST_VOTES:
            page.click("#new-chat")
            page.wait_for_selector("#chat-a .placeholder")
            send(page, question(votes))
            wait_for_vote(page)
            vote_for_the_shorter(page)
            votes += 1
        else:
            page.wait_for_timeout(2000)
        seen = page.inner_text("#strip .detail")
        step = (said(page), seen.split(" · ")[0])
        if votes <= 16 or step not in phases and "%" not in seen:
            film.shoot(page, 0.12 if votes <= 16 else 0.35)
        phases.add(step)
        print(f"{votes} votes: {version(page)} | {said(page)} | {seen}", flush=True)
    page.wait_for_timeout(1800)
    film.shoot(page, 1.8)
    page.click("#new-chat")
    page.wait_for_selector("#chat-a .placeholder")
    send(page, text)
    stream(page, film)
    vote_for_the_shorter(page)
    page.wait_for_timeout(400)
    film.shoot(page, 2.4)


def portraits(app, browser, state):
    """Every page in both themes, and the chat on a phone."""
    for theme in ("light", "dark"):
        context = browser.new_context(viewport=SIZE, color_scheme=theme, locale="en-US", storage_state=state)
        page = context.new_page()
        page.goto(app.url)
        page.wait_for_selector("#badge-a .chosen, #badge-b .chosen")
        for name in ("chat", "votes", "training", "watch"):
            tab(page, name)
            if name == "training":
                page.set_viewport_size({"width": SIZE["width"], "height": 1180})
                page.click("#timeline label:has-text('published')")
            page.wait_for_timeout(2500)
            page.screenshot(path=ASSETS / f"{name}-{theme}.png")
            page.set_viewport_size(SIZE)
        context.close()
        context = browser.new_context(
            viewport={"width": 390, "height": 844},
            color_scheme=theme,
            locale="zh-CN" if theme == "dark" else "en-US",
            storage_state=state,
            has_touch=True,
            is_mobile=True,
            device_scale_factor=2,
        )
        page = context.new_page()
        page.goto(app.url)
        page.wait_for_selector("#badge-a .chosen, #badge-b .chosen")
        page.wait_for_timeout(1500)
        page.screenshot(path=ASSETS / f"phone-{theme}.png")
        context.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--film", action="store_true", help="play the session again, in a folder without data")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    state = options.folder / "visitor.json"
    app = App(options.folder.resolve(), "--chat.top-p", 0.9, tokens=192)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            if options.film or not state.exists():
                time.sleep(20)  # the worker's start would slow the first replies
                context, film = browser.new_context(viewport=SIZE, locale="en-US"), Film()
                page = context.new_page()
                page.set_default_timeout(120_000)
                page.goto(app.url)
                page.wait_for_selector("#strip .strip")
                play(page, film)
                film.save(ASSETS / "nudge.webp")
                context.storage_state(path=state)
            portraits(app, browser, state)
    finally:
        app.stop()


if __name__ == "__main__":
    main()
