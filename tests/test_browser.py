"""The page in headless Chromium: one message and its vote, reload, phone, dark."""

import re

from tests.browsing import (
    MARKS,
    become_admin,
    growing,
    lengths,
    messages,
    reload,
    reply,
    send,
    shot,
    tab,
    wait_for_vote,
)

pytestmark = MARKS


def test_a_person_chats_votes_reloads_and_goes_on(app, visit):
    page = visit()
    shot(page, "empty")
    send(page, "Give me three tips for a good night's sleep.")
    page.wait_for_selector("#chat-b .bot")
    seen = [lengths(page)]
    while page.locator("#stop").is_visible():
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


def test_a_second_visitor_has_an_empty_conversation_of_their_own(visit):
    first, second = visit(), visit()
    send(first, "This is mine.")
    wait_for_vote(first)
    reload(second)
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
    growing(page)
    page.click("#stop")
    wait_for_vote(page)
    assert app.rows("select status from message order by id desc limit 2") == [("stopped",), ("stopped",)]


def test_a_closed_browser_stops_the_replies(app, visit):
    """Decoding for nobody went on to the last token and kept the person's conversation busy."""
    page = visit()
    send(page, "Write a long story.")
    page.wait_for_selector("#chat-b .bot")
    context = page.context
    page.close()
    page = context.new_page()
    page.goto(app.url)
    wait_for_vote(page)
    assert app.rows("select count(*) from message where status = 'streaming'") == [(0,)]


def test_markup_is_shown_and_not_run(visit):
    page = visit()
    send(page, "<b>bold</b> <img src=x onerror=\"document.title='run'\"> <custom> & &lt;")
    wait_for_vote(page)
    assert (
        page.locator("#chat-a .user").last.inner_text().strip()
        == "<b>bold</b> <img src=x onerror=\"document.title='run'\"> <custom> & &lt;"
    )
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
    become_admin(page, app)
    tab(page, "training")
    page.click("#train-now")
    page.wait_for_selector("#strip .requested")
    reload(page)
    page.wait_for_selector("#strip .requested")
    tab(page, "training")
    shot(page, "training")
