"""Gestures that follow each other faster than the server answers, in headless Chromium: none is lost, and they are done
in the order in which the person did them.
"""

import pytest

from tests.browsing import LEAVING, MARKS, messages, reload, send, turn, wait_for_vote

pytestmark = MARKS

# delays the message by which Gradio's server closes the stream of results
CLOSE_LATER = """
const request = window.fetch.bind(window);
window.fetch = async (input, init) => {
  const answer = await request(input, init);
  if (!String(input.url ?? input).includes("/queue/data")) return answer;
  const decoder = new TextDecoder();
  const later = new TransformStream({
    async transform(chunk, controller) {
      if (decoder.decode(chunk).includes("close_stream")) await new Promise((done) => setTimeout(done, 2000));
      controller.enqueue(chunk);
    },
  });
  return new Response(answer.body.pipeThrough(later), { status: answer.status, headers: answer.headers });
};
"""

# delays what the server is told of gestures, from the first message on
GESTURES_LATER = """
const request = window.fetch.bind(window);
window.fetch = async (input, init) => {
  const gesture = String(input.url ?? input).includes("/run/predict");
  if (gesture && window.slow) await new Promise((done) => setTimeout(done, 600));
  return request(input, init);
};
"""


@pytest.fixture(scope="module")
def app(paced):
    return paced


def visit_with(visit, script):
    """A new visitor's page, where `script` runs before the page's own."""
    page = visit()
    page.add_init_script(script)
    reload(page)
    return page


def test_a_message_that_is_sent_as_a_stream_closes_is_answered(app, visit):
    """Its result was never read, and the page stayed as it was."""
    page = visit_with(visit, CLOSE_LATER)
    send(page, "Hello")
    wait_for_vote(page)
    page.wait_for_timeout(300)
    send(page, "And then?")
    page.wait_for_selector("#notice :text('Pick a reply first')")
    assert page.input_value("#message textarea") == "And then?"
    page.wait_for_timeout(500)  # for which it is seen
    # it stayed for ten seconds, although the reply was picked: here it does not go by itself
    page.evaluate("document.querySelector('#notice .notice').getAnimations().forEach(animation => animation.pause())")
    page.click("#vote-a")
    page.wait_for_function("getComputedStyle(document.querySelector('#notice .notice')).visibility === 'hidden'")


def test_a_message_waits_for_the_new_chat_that_was_asked_for_before_it(app, visit):
    """It was refused, as if the chat had changed in another window."""
    page = visit_with(visit, GESTURES_LATER)
    turn(page, "An old chat")
    page.evaluate("window.slow = true")
    page.click("#new-chat")
    send(page, "A new chat")
    wait_for_vote(page)
    assert messages(page, "a") == 2
    sent = app.rows(
        "select conversation from message where text in ('An old chat', 'A new chat') group by conversation"
    )
    assert len(sent) == 2


def test_the_key_after_a_message_is_a_vote_although_the_new_chat_came_late(app, visit):
    """The empty chat took the focus into the box, where the key was typed."""
    page = visit_with(visit, GESTURES_LATER)
    turn(page, "An old chat")
    page.evaluate("window.slow = true")
    page.click("#new-chat")
    send(page, "A new chat")
    wait_for_vote(page)
    page.keyboard.press("4")
    page.wait_for_selector("#vote-both-bad.picked")
    page.click("#new-chat")
    page.wait_for_selector("#chat-a .placeholder")
    page.wait_for_function("document.activeElement === document.querySelector('#message textarea')")


def test_a_message_that_is_sent_twice_is_answered_once_and_without_a_complaint(app, visit):
    page = visit()
    page.fill("#message textarea", "Something long, only once")
    page.evaluate("for (let n = 0; n < 3; n++) document.getElementById('send').click()")
    page.wait_for_selector("#stop", state="visible")
    page.press("#message textarea", "Enter")  # the box is empty by now
    wait_for_vote(page)
    assert messages(page, "a") == 2
    assert page.input_value("#message textarea") == ""
    assert page.locator("#notice .notice").count() == 0
    assert app.rows("select count(*) from message where text = 'Something long, only once'") == [(1,)]


def test_a_system_prompt_that_is_written_before_the_page_has_loaded_stays(app, visit):
    """What the page asks for at its start came later than the first words, and replaced them."""
    page = visit()
    page.add_init_script(GESTURES_LATER + "window.slow = true;")
    LEAVING.add(page)
    page.reload()
    LEAVING.discard(page)
    page.click("#sidebar .toggle-button")
    page.click("#chat-settings button")
    page.fill("#system-prompt textarea", "Answer like a")
    page.wait_for_selector("#no-chats :text('Your chats are kept here')")
    page.wait_for_selector("#hint span")
    page.wait_for_timeout(500)
    assert page.input_value("#system-prompt textarea") == "Answer like a"


def test_a_double_click_on_undo_takes_one_turn_back(visit):
    page = visit()
    turn(page, "The first message")
    turn(page, "The second message")
    page.dblclick("#undo")
    page.wait_for_function("document.querySelector('#message textarea').value != ''")
    page.wait_for_timeout(500)
    assert page.input_value("#message textarea") == "The second message"
    assert messages(page, "a") == 2


def test_what_is_typed_in_the_moment_after_new_chat_is_whole(visit):
    page = visit_with(visit, GESTURES_LATER)
    turn(page, "An old chat")
    page.evaluate("window.slow = true")
    page.click("#new-chat")
    page.keyboard.type("Typed at once")
    page.wait_for_selector("#chat-a .placeholder")
    page.wait_for_timeout(300)
    assert page.input_value("#message textarea") == "Typed at once"
