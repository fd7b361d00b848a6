"""Every gesture of the chat in headless Chromium: keys, early votes, regenerate, undo, edit, thumbs, reasons, chats,
share, settings.

A screen's size changes the page's style alone (`@media` in `assets/`), so each gesture is made on one: keys on a
desktop, and what must be found and hit on a phone. What is about places is tried on both.
"""

import re

import pytest

from playground.store import Store
from playground.ui.sidebar import PAGE_SIZE
from tests.browsing import (
    LEAVING,
    MARKS,
    becomes,
    growing,
    lengths,
    messages,
    reload,
    reply,
    send,
    shot,
    tab,
    turn,
    wait_for_vote,
)

pytestmark = MARKS


@pytest.fixture(scope="module")
def app(paced):
    return paced


DESKTOP, PHONE = (1280, 800), (390, 844)
on_a_phone = pytest.mark.parametrize("size", [PHONE], ids=["phone"])
on_both = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])


def test_each_key_is_a_vote(app, visit):
    page = visit()
    for key, button, choice in (
        ("1", "a", "a"),
        ("2", "b", "b"),
        ("3", "tie", "tie"),
        ("4", "both-bad", "both_bad"),
        ("0", "skip", "skip"),
    ):
        send(page, "Hello")
        wait_for_vote(page)
        page.keyboard.press(key)
        page.wait_for_selector(f"#vote-{button}.picked")
        assert app.rows("select choice from vote order by id desc limit 1") == [(choice,)]
        page.click("#new-chat")
        page.wait_for_selector("#chat-a .placeholder")


def test_keys_do_nothing_while_typing_and_slash_goes_to_the_box(app, visit):
    page = visit()
    send(page, "Hello")
    wait_for_vote(page)
    before = app.rows("select count(*) from vote")
    page.keyboard.press("/")
    page.keyboard.type("12340")
    assert page.input_value("#message textarea") == "12340"
    page.wait_for_timeout(500)
    assert app.rows("select count(*) from vote") == before


def test_shift_enter_is_a_new_line_and_escape_stops(app, visit):
    page = visit()
    page.fill("#message textarea", "Write a story.")
    page.press("#message textarea", "Shift+Enter")
    page.keyboard.type("Please.")
    assert page.input_value("#message textarea") == "Write a story.\nPlease."
    with app.held():
        page.keyboard.press("Enter")
        growing(page)
        page.keyboard.press("Escape")
        wait_for_vote(page)
    assert app.rows("select distinct status from (select status from message order by id desc limit 2)") == [
        ("stopped",)
    ]


@on_a_phone
def test_a_vote_while_replies_stream_stops_the_other_one_and_the_pick_goes_on(app, visit):
    """It cut the winner for good, put the fragment into the history and trained on it."""
    page = visit()
    with app.held():
        send(page, "Write a story.")
        growing(page)
        # while both say the same there is nothing to compare
        page.wait_for_function(
            "[...document.querySelectorAll('#chat-a .bot')].at(-1).innerText.trim() != "
            "[...document.querySelectorAll('#chat-b .bot')].at(-1).innerText.trim()"
        )
        page.click("#vote-b")
        page.wait_for_selector("#badge-b .chosen")
    assert app.rows("select choice from vote order by id desc limit 1") == [("b",)]
    page.wait_for_selector("#stop", state="hidden")
    assert page.locator("#badge-b .chosen").count() == 1, "the stream's end must not hide the vote"
    page.wait_for_selector("#send", state="visible")
    [(left_cut, right_cut)] = app.rows("select left_cut, right_cut from duel order by id desc limit 1")
    [(left,), (right,)] = app.rows("select json_array_length(token_ids) from generation order by id desc limit 2")[::-1]
    assert left - left_cut < 5 and right >= right_cut


@on_a_phone
def test_regenerate_keeps_the_old_pair_to_go_back_to(app, visit):
    page = visit()
    turn(page, "Hello", "a")
    old = reply(page, "a")
    page.click("#regenerate")
    page.wait_for_selector("#pair-place:has-text('pair 2 of 2')")
    wait_for_vote(page)
    assert messages(page, "a") == 2
    page.click("#pair-before")
    page.wait_for_selector("#badge-a .chosen")
    assert reply(page, "a") == old and page.inner_text("#pair-place") == "pair 1 of 2"
    page.click("#pair-after")
    wait_for_vote(page)


@on_a_phone
def test_undo_gives_the_message_back(visit):
    page = visit()
    turn(page, "First message", "a")
    turn(page, "Second message", "b")
    page.click("#undo")
    page.wait_for_function("document.querySelector('#message textarea').value == 'Second message'")
    page.wait_for_selector("#notice :text('your vote on its replies still counts')")
    page.wait_for_selector("#badge-a .chosen")
    assert messages(page, "a") == 2
    page.fill("#message textarea", "And a draft")
    page.click("#undo")
    page.wait_for_selector("#chat-a .placeholder")
    assert page.input_value("#message textarea") == "First message\n\nAnd a draft"
    assert page.locator("#undo").is_hidden()


@on_a_phone
def test_an_edited_reply_becomes_a_demonstration_and_stays_after_a_reload(app, visit):
    page = visit()
    turn(page, "Hello", "a")
    before = app.rows(
        "select g.message, m.text from generation g join message m on m.id = g.message order by g.id desc limit 2"
    )[-1]
    page.locator("#chat-a .message-buttons-left button[title='Edit']").last.click()
    area = page.locator("#chat-a textarea").last
    area.fill("What I would <b>rather</b> read & keep.")
    page.locator("#chat-a button[title='Submit']").last.click()
    page.wait_for_selector("#badge-a :text('edited by you')")
    assert app.rows("select message, before, after from demonstration order by id desc limit 1") == [
        (*before, "What I would <b>rather</b> read & keep.")
    ]
    reload(page)
    page.wait_for_selector("#badge-a :text('edited by you')")
    assert reply(page, "a").strip() == "What I would <b>rather</b> read & keep."
    shot(page, "edited")


@on_a_phone
def test_a_thumb_on_any_reply_is_kept_and_withdrawn(app, visit):
    page = visit()
    turn(page, "Hello", "a")
    thumb = lambda: app.rows(
        "select thumb, superseded_by is null from rating where message = (select max(message) from generation) order "
        "by id desc limit 1"
    )
    page.locator("#chat-b button[title='Like']").last.click()
    becomes(page, thumb, [(1, 1)])
    reload(page)
    page.wait_for_selector("#badge-a .chosen")
    given = page.locator("#chat-b button[title='Liked']")
    given.last.wait_for()
    given.last.click()
    becomes(page, thumb, [(1, 0)])


@on_a_phone
def test_reasons_and_a_comment_after_the_vote_survive_a_reload(app, visit):
    page = visit()
    turn(page, "Hello", "a")
    page.locator("#tags label", has_text="clearer").click()
    page.fill("#comment input, #comment textarea", "short is good")
    page.press("#comment input, #comment textarea", "Enter")
    kept = lambda: app.rows("select tags, comment from vote order by id desc limit 1")
    becomes(page, kept, [('["clearer"]', "short is good")])
    reload(page)
    page.wait_for_selector("#tags input:checked", state="attached")
    assert page.input_value("#comment input, #comment textarea") == "short is good"
    page.locator("#tags label", has_text="better tone").click()
    becomes(page, kept, [('["clearer", "better tone"]', "short is good")])
    page.click("#vote-b")  # another vote: the person's own words stay, the reasons for A go
    page.wait_for_selector("#vote-b.picked")
    page.wait_for_function("!document.querySelector('#tags input:checked')")
    assert page.input_value("#comment input, #comment textarea") == "short is good"
    assert app.rows("select tags, comment from vote order by id desc limit 2") == [
        (None, "short is good"),
        ('["clearer", "better tone"]', "short is good"),
    ]


@on_a_phone
def test_what_a_vote_does_is_seen_beside_it_and_in_my_votes(visit):
    page = visit()
    tab(page, "votes")
    page.wait_for_selector("#my-votes .empty")
    tab(page, "chat")
    turn(page, "What is a tide?", "b")
    page.wait_for_selector("#fate :text('waits for the next round')")
    tab(page, "votes")
    row = page.wait_for_selector("#my-votes tbody tr")
    assert re.search(r"What is a tide\?.*B better.*waits for the next round", row.inner_text(), re.S)
    shot(page, "my-votes")


@on_a_phone
def test_earlier_chats_are_listed_opened_and_deleted(app, visit):
    page = visit()
    turn(page, "About rivers", "a")
    page.click("#new-chat")
    page.wait_for_selector("#chat-a .placeholder")
    turn(page, "About hills", "b")
    page.click("#sidebar .toggle-button")
    page.wait_for_selector("#chats label:has-text('About hills')")
    assert [t.strip() for t in page.locator("#chats label").all_inner_texts()] == ["About hills", "About rivers"]
    shot(page, "chats")
    page.fill("#message textarea", "Which hill")
    page.click("#chats label:has-text('About rivers')")
    page.wait_for_selector("#chat-a .user:has-text('About rivers')")
    page.wait_for_selector("#badge-a .chosen")
    assert page.input_value("#message textarea") == "", "what is written for one chat does not follow into another"
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.click("#delete-chat")
    page.wait_for_timeout(1000)
    assert page.locator("#chats label").count() == 2 and "About rivers" in page.inner_text("#chat-a"), (
        "who says no keeps the chat"
    )
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#delete-chat")
    page.wait_for_function("document.querySelectorAll('#chats label').length == 1")
    page.wait_for_selector("#chat-a .user:has-text('About hills')")
    assert page.input_value("#message textarea") == "Which hill"


@on_a_phone
def test_what_is_written_right_after_new_chat_stays(visit):
    """The answer to the click came late and emptied the box."""
    page = visit()
    turn(page, "About rivers", "a")
    for _ in range(3):
        page.route("**/gradio_api/**", lambda route: (page.wait_for_timeout(400), route.continue_()), times=1)
        page.evaluate("document.querySelector('#new-chat').click()")
        page.fill("#message textarea", "Quick words")
        page.wait_for_timeout(1500)
        assert page.input_value("#message textarea") == "Quick words"
        page.fill("#message textarea", "")
        turn(page, "About hills", "b")


def test_a_long_list_of_chats_is_shown_stretch_by_stretch(app, visit):
    page = visit()
    turn(page, "The first of many", "a")
    annotator = app.rows("select max(id) from annotator")[0][0]
    store = Store(app.database)
    for i in range(PAGE_SIZE + 5):
        conversation = store.new_conversation(annotator)
        side = {"policy": 0, "base_model": "x", "base_hash": "x", "template_hash": "x", "sampling": {}, "seed": 0}
        duel = store.start_duel(conversation, f"Chat {i}", [1], [side, side])
        store.finish_duel(
            duel,
            [
                {
                    "text": "Yes",
                    "seed": 0,
                    "token_ids": [1],
                    "logprobs": [0.0],
                    "finish_reason": "end",
                    "first_token_ms": 1,
                    "total_ms": 2,
                }
            ]
            * 2,
        )
    page.click("#sidebar .toggle-button")
    reload(page)
    page.click("#sidebar .toggle-button")
    page.wait_for_function(f"document.querySelectorAll('#chats label').length == {PAGE_SIZE}")
    page.click("#earlier-chats")
    page.wait_for_function(f"document.querySelectorAll('#chats label').length == {PAGE_SIZE + 6}")
    assert not page.is_visible("#earlier-chats")
    page.click("#chats label:has-text('The first of many')")
    page.wait_for_selector("#chat-a .user:has-text('The first of many')")


@on_a_phone
def test_a_shared_chat_is_read_by_another_person_and_changed_by_nobody(app, visit):
    page = visit()
    for text in ("About the moon", "And the tide?", "And the sun?"):
        turn(page, text, "a")
    page.click("#sidebar .toggle-button")
    page.click("#share")
    page.wait_for_function(
        "document.querySelector('#share-link input, #share-link textarea')?.value.startsWith('http')"
    )
    link = page.input_value("#share-link input, #share-link textarea")
    other = visit(path=link.removeprefix(app.url))
    other.wait_for_selector("#chat-a .user:has-text('About the moon')")
    assert (
        other.locator("#message").is_hidden()
        and other.locator("#vote-a").is_hidden()
        and other.locator("#undo").is_hidden()
    )
    other.wait_for_timeout(1500)
    place = other.evaluate(
        "(({scrollTop, scrollHeight}) => [scrollTop, scrollHeight])(document.querySelector('#chat-a .bubble-wrap'))"
    )
    assert place[0] < 40 < place[1] - 300, "it is read from its beginning; it opened at its end"
    assert other.locator("button[title='Edit']:visible, button[title='Like']:visible").count() == 0
    shot(other, "shared")
    page.click("#unshare")
    page.wait_for_selector("#share", state="visible")
    reload(other)
    other.wait_for_selector("text=leads to no chat")
    LEAVING.add(other)
    other.goto(app.url)
    other.wait_for_selector("#chat-a .placeholder")


@on_a_phone
def test_a_system_prompt_that_is_being_written_stays_when_the_replies_end(app, visit):
    """The end of a turn put the stored settings into the fields."""
    page = visit()
    with app.held():
        send(page, "Tell me something")
        growing(page)
        page.click("#sidebar .toggle-button")
        page.click("#chat-settings button")
        page.fill("#system-prompt textarea", "Answer like a")
    wait_for_vote(page)
    page.wait_for_selector("#chats label:has-text('Tell me something')")
    page.wait_for_timeout(500)
    assert page.input_value("#system-prompt textarea") == "Answer like a"


def test_a_chat_has_settings_of_its_own(app, visit):
    page = visit()
    page.click("#sidebar .toggle-button")
    page.click("#chat-settings button")
    page.fill("#system-prompt textarea", "Answer like a sailor.")
    page.press("#system-prompt textarea", "Tab")
    page.fill("#knob-temperature input[type=number]", "1.1")
    page.press("#knob-temperature input[type=number]", "Tab")
    kept = lambda: app.rows("select system_prompt, sampling from conversation order by id desc limit 1")
    becomes(page, kept, [("Answer like a sailor.", '{"temperature": 1.1}')])
    page.click("#sidebar .toggle-button")
    turn(page, "Hello", "a")
    assert kept() == [("Answer like a sailor.", '{"temperature": 1.1}')]
    reload(page)
    page.wait_for_selector("#badge-a .chosen")
    page.click("#sidebar .toggle-button")
    page.click("#chat-settings button")
    page.wait_for_function("document.querySelector('#system-prompt textarea')?.value == 'Answer like a sailor.'")
    assert page.input_value("#knob-temperature input[type=number]") == "1.1"
    shot(page, "settings")


@on_a_phone
def test_after_a_reload_in_the_middle_of_a_stream_the_replies_go_on(app, visit):
    page = visit()
    with app.held():
        send(page, "Write a story.")
        growing(page)
        before = lengths(page)
        reload(page)
        growing(page)
    wait_for_vote(page)
    after = lengths(page)
    assert all(now >= then for now, then in zip(after, before, strict=True)), (before, after)  # one may have ended
    assert sum(after) > sum(before)
    assert app.rows("select distinct finish_reason from generation order by id desc limit 2") != [("stopped",)]
    page.click("#vote-a")
    page.wait_for_selector("#badge-a .chosen")


def test_the_same_person_in_a_second_window_sees_the_replies_grow_and_the_vote(app, visit):
    page = visit()
    send(page, "Write a long story.")
    growing(page)
    second = visit(again=page)
    second.wait_for_selector("#chat-a .bot")
    wait_for_vote(page)
    wait_for_vote(second)
    assert reply(second, "a") == reply(page, "a")


def test_two_people_chat_at_once_and_each_sees_their_own(app, visit):
    first, second = visit(), visit()
    send(first, "I am the first")
    send(second, "I am the second")
    for page, mine, theirs in (
        (first, "I am the first", "I am the second"),
        (second, "I am the second", "I am the first"),
    ):
        wait_for_vote(page)
        text = page.inner_text("#chat-a")
        assert mine in text and theirs not in text
    second.keyboard.press("2")
    second.wait_for_selector("#badge-b .chosen")
    assert first.locator("#badge-b .chosen").count() == 0


@on_both
def test_nothing_jumps_while_text_streams(app, visit):
    page = visit()
    boxes = lambda: page.evaluate(
        "['pane-a','pane-b','actions','composer','tools'].map(id => "
        "document.getElementById(id).getBoundingClientRect()).map(r => [r.x, r.y, r.width, r.height].map(Math.round))"
    )
    before = boxes()
    with app.held():
        send(page, "Write a long story.")
        growing(page)
        during = boxes()
    wait_for_vote(page)
    voting = boxes()
    page.click("#vote-a")
    page.wait_for_selector("#badge-a .chosen")
    page.wait_for_timeout(300)
    assert before == during == voting == boxes()
