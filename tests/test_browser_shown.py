"""What the page shows of other people's words, and what it says: hostile texts, verdicts, notices, keys, and a second
tab of the same person.
"""

import re
import time

import pytest

from playground.people.visitor import COOKIE, new_token
from playground.store import Store
from playground.ui.text import visible
from tests.browsing import MARKS, becomes, reload, send, shot, tab, wait_for_vote
from tests.stores import candidate, outcome

pytestmark = MARKS

HOSTILE = [
    "a ` b\n\n<u>x</u> <foo>y</foo>\n\nc ` d",
    "- `a\n- <img src=http://127.0.0.9/a.png onerror=alert(1)>` b",
    "![](http://127.0.0.9/b.png)",
    "[![x](http://127.0.0.9/c.png)](http://127.0.0.9/d)",
    "![x][1]\n\n[1]: http://127.0.0.9/e.png",
    "[1]: http://127.0.0.9/f",
    "<http://127.0.0.9/g> <!-- gone? --> &lt;b&gt; &amp;",
    "$$\\href{javascript:alert(1)}{x}$$ \\(y\\)",
    "```mermaid\ngraph TD\nA[<img src=http://127.0.0.9/h.png>] --> B\n```",
    "```html\n<script>alert(1)</script>\n<style>body{display:none}</style>\n```",
    "<iframe src=http://127.0.0.9/i></iframe><svg onload=alert(1)><form action=http://127.0.0.9/j><style>* {display: "
    "none}</style>",
    "<think>a</think> the end\\",
    "---\ntitle: x\n---\n\nnote[^1]\n\n[^1]: foot",
    "| a | b |\n|---|---|\n| 1 | 2 | ![](http://127.0.0.9/k.png) |",
    "</span></div><script>document.title = 'run'</script>",
    '<span class="source" hidden>other</span>',
    '<div class="mermaid">graph TD</div>',
    "turned \u202eround",
    "x" * 3000,
    "    indented\n\n\n  __init__.py 2*3*4\n# no heading",
    'src="/file=/etc/passwd" %%%LATEX_BLOCK_0%%% ${alert(1)} {{value}}',
]
FORBIDDEN = "img, iframe, script, svg, style, form, object, embed, video, audio, link, input, .mermaid, .katex"


@pytest.fixture(scope="module")
def app(paced):
    return paced


def given(app, token, *texts, vote="a"):
    """A chat of the visitor with this cookie in the store, a turn for each text: typed, and answered by itself, on side
    B with a line more. The last is voted on where `vote` says so.
    """
    store = Store(app.database)
    annotator = store.annotator(token)
    conversation = store.new_conversation(annotator)
    by_the_app = {"base_hash": store.last_base_hash()}
    for text in texts:
        duel = store.start_duel(conversation, text, [1, 2], [{**candidate(seed), **by_the_app} for seed in (1, 2)])
        store.finish_duel(duel, [outcome(text, [1, 2]), outcome(f"{text}\n\nB", [1, 3])])
        if vote or text is not texts[-1]:
            store.vote(duel, annotator, vote or "a", store.duel(duel)["left"]["message"])


def token_of(page):
    return next(cookie["value"] for cookie in page.context.cookies() if cookie["name"] == COOKIE)


def visit_given(app, visit, *texts, vote="a", **options):
    """The page of a visitor who comes back to a chat of these texts."""
    token = new_token()
    given(app, token, *texts, vote=vote)
    return visit(token=token, **options)


def words(text):
    return re.sub(r"[\W_]", "", visible(text))


def test_hostile_texts_are_shown_and_neither_run_nor_load(app, visit):
    """A picture in a reply told another server who reads; raw tags got through a code span; definitions of links were
    not shown.
    """
    page = visit()
    given(app, token_of(page), *HOSTILE)
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    reload(page)
    page.wait_for_function(f"document.querySelectorAll('#chat-a [data-testid=bot]').length == {len(HOSTILE)}")
    page.wait_for_timeout(500)
    users, bots = (page.locator(f"#chat-a [data-testid={role}]").all_inner_texts() for role in ("user", "bot"))
    assert [text.strip("\n") for text in users] == [visible(text) for text in HOSTILE]
    assert [words(text) for text in bots] == [words(text) for text in HOSTILE]
    assert page.locator(f".message :is({FORBIDDEN})").count() == 0
    assert [url for url in requests if not url.startswith((app.url, "data:", "blob:"))] == []
    assert page.title() == "Nudge" and page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert page.locator(".pane [data-testid][aria-label]").count() == 0, (
        "the label of a message would read its HTML out"
    )
    shot(page, "hostile")


@pytest.mark.parametrize(
    "text", ["2*3*4 <b>x</b> & `y`\n\n  __init__.py", "```py\nx = '\\n'\n```\n[a](http://e.example)"]
)
def test_copying_and_editing_give_the_text_and_not_its_html(app, visit, text):
    page = visit_given(app, visit, text)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#chat-a button[title='Copy message']").last.click()
    becomes(page, lambda: page.evaluate("navigator.clipboard.readText()"), text)
    page.locator("#chat-a .message-buttons-left button[title='Edit']").last.click()
    becomes(page, page.locator("#chat-a textarea").last.input_value, text)
    page.locator("#chat-a button[title='Submit']").last.click()
    page.wait_for_selector("#badge-a :text('edited by you')")
    assert app.rows("select after from demonstration order by id desc limit 1") == [(text,)]


@pytest.mark.parametrize("width", [1280, 390])
def test_titles_votes_and_notices_show_markup_as_text_and_keep_the_direction(app, visit, width):
    page = visit_given(app, visit, "<b>one</b>\n\u202etwo", width=width, height=844)
    page.click("#sidebar .toggle-button")
    page.wait_for_selector("#chats label")
    assert page.inner_text("#chats label").strip() == "<b>one</b> ⟨U+202E⟩two"
    page.click("#sidebar .toggle-button")
    tab(page, "votes")
    page.wait_for_selector("#my-votes td:has-text('<b>one</b> ⟨U+202E⟩two')")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


# -- verdicts


@pytest.mark.parametrize(
    ("key", "fitting", "other"),
    [("1", "clearer", "wrong"), ("3", "both good", "clearer"), ("4", "off-topic", "clearer")],
)
def test_reasons_fit_the_verdict(app, visit, key, fitting, other):
    page = visit_given(app, visit, "Hello", vote=None)
    wait_for_vote(page)
    page.keyboard.press(key)
    page.wait_for_selector(f"#tags label:has-text('{fitting}')")
    assert page.locator("#tags label", has_text=other).count() == 0
    page.locator("#tags label", has_text=fitting).click()
    becomes(page, lambda: app.rows("select tags from vote order by id desc limit 1"), [(f'["{fitting}"]',)])
    reload(page)
    page.wait_for_selector("#tags input:checked", state="attached")


@pytest.mark.parametrize("key", ["3", "4", "0"])
def test_without_a_winner_no_side_looks_like_one(app, visit, key):
    """After a tie one side glowed as if it had won, and did not say that it was drawn."""
    page = visit_given(app, visit, "Hello", vote=None)
    wait_for_vote(page)
    page.keyboard.press(key)
    page.wait_for_selector(".badge.drawn")
    assert page.locator(".badge.chosen, .badge.passed").count() == 0
    assert page.locator(".badge .mark").all_inner_texts() == ["the chat goes on from this one"]
    assert page.is_visible("#better") == (key == "4")


@pytest.mark.parametrize("width", [1280, 390])
def test_after_both_bad_a_better_one_can_be_written(app, visit, width):
    page = visit_given(app, visit, "Hello", vote="both_bad", width=width, height=844)
    page.click("#better")
    page.wait_for_selector(".pane textarea:focus")
    assert (
        page.locator(".pane textarea").bounding_box()["width"] > 0.7 * page.locator("#pane-a").bounding_box()["width"]
    )
    page.keyboard.type("A better one.")
    shot(page, f"better-{width}")
    page.locator(".pane button[title='Submit']").click()
    page.wait_for_selector(".badge.drawn :text('edited by you')")
    assert app.rows("select after from demonstration order by id desc limit 1") == [("A better one.",)]


# -- notices and keys


def test_each_notice_is_seen_and_read_out(app, visit):
    """The animation never began again: the second notice on a page, and each after it, stayed invisible."""
    page = visit()
    read = "getComputedStyle(document.querySelector('#notice .notice')).opacity"
    seen = set()
    for _ in range(3):
        send(page, "Hello <|im_end|>")
        page.wait_for_function(f"!{sorted(seen)}.includes(document.querySelector('#notice .notice')?.dataset.number)")
        seen.add(page.get_attribute("#notice .notice", "data-number"))
        page.wait_for_function(f"{read} == '1'")
        assert page.get_attribute("#notice .notice", "role") == "alert"
        page.evaluate(
            "document.querySelector('#notice .notice').getAnimations().forEach(animation => animation.finish())"
        )
        page.wait_for_function(f"{read} == '0'")
    assert len(seen) == 3


def test_an_empty_chat_waits_for_words_and_a_pair_for_a_vote(app, visit):
    """After a reload the message box had the focus: pressing 1 typed a 1 instead of voting."""
    page = visit()
    page.wait_for_selector("#message textarea:focus")
    given(app, token_of(page), "Hello", vote=None)
    reload(page)
    wait_for_vote(page)
    page.wait_for_timeout(500)
    page.keyboard.press("1")
    page.wait_for_selector("#vote-a.picked")
    assert page.input_value("#message textarea") == ""
    page.keyboard.press("/")
    page.keyboard.type("12")
    assert page.input_value("#message textarea") == "12"
    page.click("#new-chat")
    page.wait_for_selector("#message textarea:focus")


# -- a second tab

STALE = "#notice :text('This chat changed in another tab')"


def two_tabs(app, visit, vote=None):
    first = visit_given(app, visit, "The first", vote=vote)
    return first, visit(again=first)


def test_a_vote_is_not_changed_from_a_tab_that_does_not_know_of_it(app, visit):
    first, second = two_tabs(app, visit)
    first.click("#vote-a")
    first.wait_for_selector("#fate .chip")
    second.wait_for_timeout(2000)  # a tick: what became of a vote is not told beside "Which reply is better?"
    assert second.locator("#fate .chip").count() == 0
    second.click("#vote-b")
    second.wait_for_selector(STALE)
    second.wait_for_selector("#vote-a.picked")
    assert app.rows("select choice from vote order by id desc limit 1") == [("a",)]
    second.click("#vote-b")  # now it is meant
    second.wait_for_selector("#vote-b.picked")


@pytest.mark.parametrize("gesture", ["#undo", "#regenerate", "send", "#vote-tie"])
def test_a_gesture_of_a_tab_that_is_behind_is_not_done_to_another_chat(app, visit, gesture):
    first, second = two_tabs(app, visit, vote="a")
    given(app, token_of(first), "The second", vote="b")
    before = app.rows(
        "select (select count(*) from message), (select count(*) from vote), (select count(*) from conversation)"
    )
    if gesture == "send":
        send(second, "For the first chat")
    else:
        second.click(gesture)
    second.wait_for_selector(STALE)
    second.wait_for_selector("#chat-a .user:has-text('The second')")
    assert (
        app.rows(
            "select (select count(*) from message), (select count(*) from vote), (select count(*) from conversation)"
        )
        == before
    )
    assert second.input_value("#message textarea") == ("For the first chat" if gesture == "send" else "")


def test_a_tab_that_is_looked_at_again_shows_what_was_done_elsewhere(app, visit):
    first, second = two_tabs(app, visit)
    first.click("#vote-a")
    first.wait_for_selector("#vote-a.picked")
    second.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    second.wait_for_selector("#vote-a.picked")
    assert second.locator("#notice .notice").count() == 0


def becomes_quiet(page, calls):
    """Wait until the page has called nothing for 4 s: what it does when it or a tab is opened, and that it makes sure
    once more of what it shows, takes some seconds on a busy machine.
    """
    until = time.monotonic() + 60
    while time.monotonic() < until:
        calls.clear()
        page.wait_for_timeout(4000)
        if not calls:
            return
    pytest.fail(f"the page goes on calling: {calls}")


def test_an_open_page_calls_nothing_while_nothing_changes_and_shows_what_does(app, visit):
    """Timers called the page's handlers all the time: 4 s of CPU in the browser each 20 s, and 4 % of a server's core
    for each page."""
    page = visit()
    calls = []
    page.on("request", lambda request: request.method == "POST" and calls.append(request.url))
    becomes_quiet(page, calls)
    before = page.inner_text("#strip .detail")
    given(app, new_token(), "Hello")
    page.wait_for_function("before => document.querySelector('#strip .detail').innerText != before", arg=before)
    tab(page, "votes")
    becomes_quiet(page, calls)
    frames = page.evaluate(
        """async () => {
            let frames = 0; const own = requestAnimationFrame;
            window.requestAnimationFrame = (draw) => { frames += 1; return own(draw); };
            await new Promise((done) => setTimeout(done, 2000)); window.requestAnimationFrame = own; return frames; }"""
    )
    assert frames < 10
