"""One's own data in headless Chromium: a chat deleted, everything deleted, no training; and what another visitor sees
meanwhile.
"""

from functools import partial

import pytest

from playground.settings import Settings
from playground.store import Store
from playground.store.reasons import broken
from tests import rounds
from tests.browsing import LEAVING, MARKS, App, become_admin, reload, send, shot, tab, turn
from tests.test_data_export import say
from tests.tiny import tiny_folder
from training.erase import Eraser

pytestmark = MARKS
MARK = "Ottokar's secret"


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """Admins are those who sign in: whoever comes by this address is a visitor."""
    folder = tmp_path_factory.mktemp("app")
    app = App(
        folder,
        "--no-worker",
        "--host",
        "0.0.0.0",
        "--threads",
        1,
        "--decode-format",
        "float32",
        model=tiny_folder(folder / "model"),
        tokens=20,
    )
    yield app
    app.stop()


DESKTOP, PHONE = (1280, 800), (390, 844)
on_a_phone = pytest.mark.parametrize("size", [PHONE], ids=["phone"])
on_both = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])


def open_fold(page):
    page.click("#sidebar .toggle-button")
    page.click("#your-data > button")
    page.wait_for_selector("#forget", state="visible")


def traces(app):
    files = [file for file in (app.folder / "data").rglob("*") if file.is_file()]
    return [file.name for file in files if MARK.encode() in file.read_bytes()]


def erased(app):
    """The worker does its part."""
    settings = Settings(data_dir=app.folder / "data", _env_file=None)
    return Eraser(Store(settings.database), settings).step()


@on_a_phone
def test_a_chat_and_then_everything_is_deleted_and_nobody_else_reads_of_it(app, visit, size):
    page = visit()
    turn(page, f"About rivers: {MARK}", "a")
    page.click("#new-chat")
    page.wait_for_selector("#chat-a .placeholder")
    turn(page, f"About hills: {MARK}", "b")
    store, settings = Store(app.database), Settings(data_dir=app.folder / "data", _env_file=None)
    store.request_round()
    row = rounds.take(store, config=rounds.CONFIG)
    store.record_read_conversations(row["id"])
    rounds.files(settings, row)
    store.end_round(row["id"], "w1", "failed", broken("KeyError", "reward", MARK))
    other = visit()
    tab(other, "training")
    other.wait_for_selector("#samples table")
    assert MARK not in other.inner_text("body") and other.locator("#log").is_hidden(), (
        "a stranger reads figures and shipped prompts"
    )

    open_fold(page)
    shot(page, f"your-data-{size[0]}")
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#delete-chat")
    page.wait_for_selector("#notice :text('Deleted')")
    page.wait_for_function("document.querySelectorAll('#chats label').length == 1")
    page.click("#no-training input")
    page.wait_for_selector("#notice :text('no round that begins from now on')")
    page.click("#sidebar .toggle-button")
    tab(page, "votes")
    page.wait_for_selector("#my-votes :text('a deleted chat')")
    assert "About hills" not in page.inner_text("#my-votes") and page.locator("#my-votes tbody tr").count() == 2
    shot(page, f"deleted-votes-{size[0]}")

    page.click("#sidebar .toggle-button")
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.click("#forget")
    page.wait_for_timeout(500)
    assert app.rows("select count(*) from message where text like ?", f"%{MARK}%") != [(0,)], (
        "who says no keeps everything"
    )
    cookie = page.context.cookies()[0]["value"]
    page.once("dialog", lambda dialog: dialog.accept())
    # the browser is somebody else before it has left the page, whose looks are then refused
    LEAVING.add(page)
    with page.expect_navigation():
        page.click("#forget")
    page.wait_for_selector("#chat-a .placeholder")
    assert page.context.cookies()[0]["value"] != cookie
    tab(page, "votes")
    page.wait_for_selector("#my-votes .empty")
    assert erased(app) and traces(app) == []


@on_both
def test_the_fold_is_in_chinese_too(visit, size):
    page = visit(locale="zh-CN")
    open_fold(page)
    page.wait_for_selector("#your-data-text :text('你的对话')")
    assert page.inner_text("#forget") == "删除我的全部数据" and "不要用我的对话训练" in page.inner_text("#your-data")
    shot(page, f"your-data-zh-{size[0]}")


@on_both
def test_an_admin_leaves_votes_out_with_the_keyboard_and_all_of_a_search_after_a_question(app, visit, size):
    store = Store(app.database)
    text = f"River {size[0]}"
    for number in range(3):
        say(store, store.annotator("ann"), f"{text} {number}")
    page = visit()
    become_admin(page, app)
    tab(page, "data")
    page.wait_for_selector(".pair")
    fold = page.locator("#data-asked .fold")
    assert fold.is_visible() == (size[0] == 390) and page.is_visible("#data-search") == (size[0] == 1280)
    if fold.is_visible():
        fold.click()
    page.fill("#data-text textarea, #data-text input", text)
    page.click("#data-search")
    page.wait_for_selector("[data-decision^='out all ']")
    if fold.is_visible():
        assert fold.inner_text() == f"Search: Text: {text}" and not page.is_visible("#data-search")
    shot(page, f"data-{size[0]}")
    page.locator(".pair summary").first.press("Enter")
    page.locator(".pair[open] [data-decision^='out ']").press("Enter")
    page.wait_for_selector(".pair[open] [data-decision^='in ']:focus")
    shot(page, f"data-open-{size[0]}")
    out = "select count(*) from vote v join duel d on d.id = v.duel join message m on m.id = d.user_message"
    out += " where v.excluded is not null and m.text like ?"
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.click("[data-decision^='out all ']")
    page.wait_for_timeout(300)
    assert app.rows(out, f"{text}%") == [(1,)], "who says no changes nothing"
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("[data-decision^='out all ']")
    page.wait_for_selector("#notice :text('left out of training: 2.')")
    assert app.rows(out, f"{text}%") == [(3,)]


def fulfil(answer, route):
    route.fulfill(**answer)


@on_a_phone
def test_a_message_that_meets_a_restart_is_answered_with_a_sentence(visit, size):
    """A bare "Error" stood over the page, and "This application is currently busy" beside it."""
    page = visit()
    LEAVING.add(page)  # the browser complains of the requests
    starting = {"status": 503, "json": {"detail": "Nudge is starting. Try again in a moment."}}
    gateway = {"status": 502, "body": "<html>Bad Gateway</html>"}
    for answer, said in ((starting, "Nudge is starting."), (gateway, "Nudge cannot be reached")):
        page.route("**/queue/join*", partial(fulfil, answer))
        send(page, "Are you there?")
        page.wait_for_selector(f".toast-body :text('{said}')")
        assert page.input_value("#message textarea") == "Are you there?"
        assert "Error" not in page.inner_text("#notice") + page.inner_text("#panes")
        page.unroute("**/queue/join*")


@on_a_phone
def test_a_page_whose_app_was_away_loads_anew_and_keeps_what_stands_in_the_box(visit, size):
    """It said "Attempting reconnection..." until somebody loaded it anew: the address that Gradio asks is closed."""
    page = visit()
    LEAVING.add(page)  # the browser complains of the requests
    page.evaluate("window.isOld = true")
    for path in ("**/queue/join*", "**/changes"):
        page.route(path, lambda route: route.abort())
    send(page, "Are you back?")
    page.wait_for_selector(".toast-body :text('Connection')")
    page.unroute("**/queue/join*")
    page.unroute("**/changes")
    page.wait_for_function("!window.isOld && document.querySelector('#message textarea')?.value === 'Are you back?'")
    assert not page.query_selector(".toast-body")


def test_words_that_a_page_kept_are_not_for_whoever_comes_later(visit):
    page = visit()
    words = "{ words: 'mine', at: Date.now() - %d }"
    page.evaluate(f"sessionStorage.setItem('nudge-draft', JSON.stringify({words % 1000}))")
    reload(page)
    page.wait_for_function("document.querySelector('#message textarea').value === 'mine'")
    page.evaluate(f"sessionStorage.setItem('nudge-draft', JSON.stringify({words % 70_000}))")
    reload(page)
    page.wait_for_timeout(1000)  # more than what is kept takes to come back
    assert page.input_value("#message textarea") == ""
    assert page.evaluate("sessionStorage.getItem('nudge-draft')") is None
