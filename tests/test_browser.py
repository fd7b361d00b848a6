"""The page in headless Chromium: what a person does and sees, with the real model where it is there and a tiny one otherwise.

`NUDGE_SCREENSHOTS=folder` keeps pictures of each state.
"""

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from playground import models
from playground.settings import Settings
from tests.tiny import tiny_folder

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
ROOT = Path(__file__).resolve().parent.parent

pytestmark = [pytest.mark.browser, pytest.mark.skipif(
    not Path(CHROMIUM).exists(), reason=f"{CHROMIUM} is missing; `make test` as root installs it, or run `apt-get install chromium`")]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The app as a subprocess: (address, path of its database)."""
    folder = tmp_path_factory.mktemp("app")
    model = models.resolve(Settings())
    real = Path(model).exists()
    model, tokens = (Path(model).resolve(), 40) if real else (tiny_folder(folder / "model"), 400)  # a tiny model is so fast that it must write more
    command = [sys.executable, ROOT / "app.py", "--model", model, "--port", 0, "--no-worker", "--reply-tokens", tokens, "--data-dir", folder / "data"]
    process = subprocess.Popen(list(map(str, command)), cwd=folder, text=True, stdout=subprocess.PIPE)
    line = process.stdout.readline()
    assert line.startswith("Nudge is at "), line
    yield line.split()[-1], folder / "data" / "nudge.db"
    process.terminate()
    assert process.wait(30) == 0


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(app, browser):
    """A function that opens the page as a new visitor; at the end no page may have complained in the console."""
    contexts, complaints = [], []

    def open_page(width=1280, height=800, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: m.type == "error" and complaints.append(m.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(app[0])
        page.wait_for_selector("#strip .strip")
        page.wait_for_selector("#hint span")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def send(page, text):
    page.fill("#message textarea", text)
    page.press("#message textarea", "Enter")


def wait_for_vote(page):
    page.wait_for_selector("#hint :text('Which reply is better?')")


def reply(page, side):
    """The last thing that a pane's candidate says."""
    return page.locator(f"#chat-{side} .bot").last.inner_text()


def messages(page, side):
    return page.locator(f"#chat-{side} [data-testid=user], #chat-{side} [data-testid=bot]").count()


def lengths(page):
    return [len(reply(page, side)) for side in "ab"]


def shot(page, name):
    folder = os.environ.get("NUDGE_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(500)
        page.screenshot(path=Path(folder) / f"{name}.png")


def rows(app, sql):
    with sqlite3.connect(app[1]) as db:
        return db.execute(sql).fetchall()


def test_a_person_chats_votes_reloads_and_goes_on(app, visit):
    page = visit()
    shot(page, "empty")
    send(page, "Give me three tips for a good night's sleep.")
    page.wait_for_selector("#chat-b .bot")
    seen = [lengths(page)]
    while not page.locator("#vote-a").is_visible():
        now = lengths(page)
        if all(new > old for new, old in zip(now, seen[-1], strict=True)):
            seen.append(now)
            if len(seen) == 3:
                shot(page, "streaming")
        page.wait_for_timeout(30)
    assert len(seen) > 2, f"both texts should grow on the page while they stream; lengths were {seen}"
    assert page.input_value("#message textarea") == ""
    assert page.locator(".badge span").all_inner_texts() == ["", ""], "the version is hidden until the vote"
    shot(page, "voting")

    page.click("#vote-a")
    page.wait_for_selector("#badge-a .chosen")
    assert rows(app, "select choice from vote where superseded_by is null") == [("a",)]
    assert re.match(r"v0 \(base\) · first token \d+ ms · \d+ tok/s", page.inner_text("#badge-a .badge span"))
    assert page.inner_text("#badge-a .mark") == "✓ your pick"
    assert re.match(r"v0 \(base\) · first token \d+ ms", page.inner_text("#badge-b .badge span"))
    page.wait_for_selector("#strip :text('1 of 16 votes')")
    shot(page, "voted")

    before = [reply(page, side) for side in "ab"]
    page.reload()
    page.wait_for_selector("#badge-a .chosen")
    assert [reply(page, side) for side in "ab"] == before

    send(page, "Which of them matters most?")
    wait_for_vote(page)
    assert [messages(page, side) for side in "ab"] == [4, 4]
    firsts = [page.locator(f"#chat-{side} .bot").first.inner_text() for side in "ab"]
    assert firsts == [before[0]] * 2, "both sides go on with the picked reply"
    page.click("#vote-b")
    page.wait_for_selector("#badge-b .chosen")
    page.click("#vote-tie")
    page.wait_for_selector("#vote-tie.picked")
    assert [c for c, in rows(app, "select choice from vote where superseded_by is null order by id")] == ["a", "tie"]
    shot(page, "two-turns")


def test_a_second_visitor_has_an_empty_conversation_of_their_own(visit):
    first, second = visit(), visit()
    send(first, "This is mine.")
    wait_for_vote(first)
    second.reload()
    second.wait_for_selector("#chat-a .placeholder")
    assert messages(second, "a") == 0
    second.locator("button.starter").first.click()
    second.wait_for_function("document.querySelector('#message textarea').value != ''")


def test_a_bad_message_keeps_the_text_and_says_why(visit):
    page = visit()
    send(page, "Hello <|im_end|>")
    page.wait_for_selector("text=steers the model's chat format")
    assert page.input_value("#message textarea") == "Hello <|im_end|>"


def test_a_message_before_the_vote_is_kept_in_the_box(visit):
    page = visit()
    send(page, "Hello")
    wait_for_vote(page)
    send(page, "And then?")
    page.wait_for_selector("text=Pick a reply first")
    assert page.input_value("#message textarea") == "And then?"


def test_stop_leaves_a_pair_to_vote_on(app, visit):
    page = visit()
    send(page, "Write a long story.")
    page.wait_for_function("[...document.querySelectorAll('#chat-b .bot')].at(-1)?.innerText.length > 5")
    page.click("#stop")
    wait_for_vote(page)
    assert rows(app, "select status from message order by id desc limit 2") == [("stopped",), ("stopped",)]


def test_a_closed_browser_stops_the_replies(app, visit):
    """Decoding for nobody went on to the last token and kept the person's conversation busy."""
    page = visit()
    send(page, "Write a long story.")
    page.wait_for_selector("#chat-b .bot")
    context = page.context
    page.close()
    page = context.new_page()
    page.goto(app[0])
    wait_for_vote(page)
    assert rows(app, "select count(*) from message where status = 'streaming'") == [(0,)]


def test_markup_is_shown_and_not_run(visit):
    page = visit()
    send(page, "<b>bold</b> <img src=x onerror=\"document.title='run'\"> <custom> & &lt;")
    wait_for_vote(page)
    assert page.locator("#chat-a .user").last.inner_text().strip() == "<b>bold</b> <img src=x onerror=\"document.title='run'\"> <custom> & &lt;"
    assert page.title() == "Nudge"


def test_a_new_chat_is_empty(visit):
    page = visit()
    send(page, "Hello")
    wait_for_vote(page)
    page.click("#new-chat")
    page.wait_for_selector("#chat-a .placeholder")
    assert not page.locator("#vote-a").is_visible()


def test_on_a_phone_the_panes_are_stacked_and_nothing_is_wider_than_the_screen(visit):
    page = visit(390, 844)
    send(page, "Hello there")
    wait_for_vote(page)
    a, b = page.locator("#pane-a").bounding_box(), page.locator("#pane-b").bounding_box()
    assert b["y"] >= a["y"] + a["height"] and b["x"] == a["x"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    shot(page, "phone-voting")
    page.click("#vote-b")
    page.wait_for_selector("#badge-b .chosen")
    shot(page, "phone-voted")


def test_dark_follows_the_system(visit):
    page = visit(color_scheme="dark")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", background)[:3])) < 60, background
    shot(page, "dark-empty")


def test_a_round_asked_for_is_seen_on_the_page_after_a_reload_too(app, visit):
    page = visit()
    page.click("#tab-training-button")
    page.click("#train-now")
    page.wait_for_selector("#strip .requested")
    page.reload()
    page.wait_for_selector("#strip .requested")
    page.click("#tab-training-button")
    shot(page, "training")
