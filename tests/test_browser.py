"""The page in headless Chromium with the real model, where it is there: one message and its vote, reload, dark."""

import os
import re

from tests.browsing import MARKS, become_admin, growing, messages, reload, reply, send, shot, tab, wait_for_vote

pytestmark = MARKS

# notes how long both replies are, whenever the page shows more of both
NOTE_LENGTHS = """
const length = (side) => [...document.querySelectorAll(`#chat-${side} .bot`)].at(-1)?.innerText.length ?? 0;
window.lengths = [[0, 0]];
new MutationObserver(() => {
  const now = [length("a"), length("b")], before = window.lengths.at(-1);
  if (now[0] > before[0] && now[1] > before[1]) window.lengths.push(now);
}).observe(document.getElementById("panes"), { subtree: true, childList: true, characterData: true });
"""


def test_a_person_chats_votes_reloads_and_goes_on(app, visit):
    page = visit()
    shot(page, "empty")
    page.evaluate(NOTE_LENGTHS)
    send(page, "Give me three tips for a good night's sleep.")
    if os.environ.get("NUDGE_SCREENSHOTS"):
        growing(page)
        shot(page, "streaming")
    wait_for_vote(page)
    seen = page.evaluate("lengths")
    assert len(seen) > 3, f"both texts should grow on the page while they stream; lengths were {seen}"
    assert page.input_value("#message textarea") == ""
    assert page.locator(".badge span").all_inner_texts() == ["", ""], "the version is hidden until the vote"
    shot(page, "voting")

    page.click("#vote-a")
    page.wait_for_selector("#badge-a .chosen")
    assert app.rows("select choice from vote where superseded_by is null") == [("a",)]
    assert re.match(r"v0 \(base\) · first token \d+ ms · \d+ tok/s", page.inner_text("#badge-a .badge span"))
    assert page.inner_text("#badge-a .mark") == "✓ your pick"
    assert re.match(r"v0 \(base\) · first token \d+ ms", page.inner_text("#badge-b .badge span"))
    page.wait_for_selector("#strip :text('1 of 16 new votes')")
    shot(page, "voted")

    before = [reply(page, side) for side in "ab"]
    reload(page)
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
    assert [c for (c,) in app.rows("select choice from vote where superseded_by is null order by id")] == ["a", "tie"]
    shot(page, "two-turns")


def test_a_bad_message_keeps_the_text_and_says_why(visit):
    page = visit()
    send(page, "Hello <|im_end|>")
    page.wait_for_selector("text=steers the model's chat format")
    assert page.input_value("#message textarea") == "Hello <|im_end|>"


def test_dark_follows_the_system(visit):
    page = visit(color_scheme="dark")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", background)[:3])) < 60, background
    shot(page, "dark-empty")


def test_a_round_asked_for_is_seen_on_the_page_after_a_reload_too(app, visit):
    page = visit()
    become_admin(page, app)
    tab(page, "training")
    page.click("#train-now")
    page.wait_for_selector("#strip .requested")
    reload(page)
    page.wait_for_selector("#strip .requested")
    tab(page, "training")
    shot(page, "training")
