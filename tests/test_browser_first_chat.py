"""The page in headless Chromium: a second visitor, a refusal, stop, a closed browser, markup, a phone."""

import pytest

from tests.browsing import MARKS, growing, messages, reload, send, shot, wait_for_vote

pytestmark = MARKS


@pytest.fixture(scope="module")
def app(paced):
    return paced


def test_a_second_visitor_has_an_empty_conversation_of_their_own(visit):
    first, second = visit(), visit()
    send(first, "This is mine.")
    wait_for_vote(first)
    reload(second)
    second.wait_for_selector("#chat-a .placeholder")
    assert messages(second, "a") == 0
    second.locator("button.starter").first.click()
    second.wait_for_function("document.querySelector('#message textarea').value != ''")
    second.keyboard.press("Enter")  # the keyboard was left on the example
    wait_for_vote(second)


def test_tab_does_not_go_through_a_sidebar_that_is_closed(visit):
    page = visit()
    assert page.get_attribute("#sidebar .toggle-button", "aria-label") == "Chats and settings"
    page.focus("#sidebar .toggle-button")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#sidebar')") is None
    page.click("#sidebar .toggle-button")
    page.wait_for_selector("#sidebar-new")  # the sidebar opens in an event of its own
    page.focus("#sidebar .toggle-button")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "sidebar-new"


def test_a_message_before_the_vote_is_kept_in_the_box(visit):
    page = visit()
    send(page, "Hello")
    wait_for_vote(page)
    send(page, "And then?")
    page.wait_for_selector("text=Pick a reply first")
    assert page.input_value("#message textarea") == "And then?"


def test_stop_leaves_a_pair_to_vote_on(app, visit):
    page = visit()
    with app.held():
        send(page, "Write a story.")
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
    assert ("streaming",) not in app.rows("select status from message order by id desc limit 2")


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
