"""What a person reads when the database is locked, full or gone: a sentence, while the page stays as it is and the
gesture can be made again."""

import socket
import sqlite3
import threading
import time
from pathlib import Path

import httpx
import pytest

from playground import server
from playground.chat.session import Chat
from playground.models import loading
from playground.people import visitor
from playground.serving.engine import Engine
from playground.settings import Settings
from playground.store import Store, StoreLost, StoreUnavailable
from playground.ui import notice as notice_module
from playground.ui import page as page_module
from playground.web import http_server
from tests.chats import chat, folder, person, turn  # noqa: F401 (fixtures)
from tests.test_server import CONTROLS, Page, notices


@pytest.fixture(scope="module")
def site(folder, tmp_path_factory):  # noqa: F811
    """A running server on a file; its store waits a fifth of a second."""
    data = tmp_path_factory.mktemp("data")
    settings = Settings(
        model=str(folder),
        threads=1,
        chat={"reply_tokens": 8},
        dtype="float32",
        port=0,
        round={"auto": False, "poll_seconds": 0.2},
        data_dir=data,
        _env_file=None,
    )
    store = Store(settings.database, patience=0.2)
    engine = Engine(store, settings, loading.load_trunk(settings), loading.load_tokenizer(settings)).start()
    sock = socket.create_server(("127.0.0.1", 0))
    web = http_server.Web(
        server.create(settings, store, engine, Chat(store, engine, settings)), before_shutdown=engine.close
    )
    thread = threading.Thread(target=web.run, args=([sock],))
    thread.start()
    yield type(
        "Site", (), {"url": f"http://127.0.0.1:{sock.getsockname()[1]}", "store": store, "path": Path(store.path)}
    )
    web.should_exit = True
    thread.join(20)


class Lock:
    """Somebody else's transaction on the database, for as long as the block lasts."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.other = sqlite3.connect(self.path, isolation_level=None)
        self.other.execute("begin immediate")

    def __exit__(self, *_):
        self.other.execute("rollback")
        self.other.close()


def ready(site):
    site.store._probed = float("-inf")
    return httpx.get(f"{site.url}/readyz", timeout=30)


def test_while_the_database_is_locked_every_gesture_gets_a_sentence_and_works_afterwards(site):
    """It was a blank status 500 after 17 s, and a page took a minute to load."""
    page = Page(site.url, "locked")
    assert page.send("Hello")[-1]["success"]
    site.store.sign_in(site.store.annotator(page.client.cookies[visitor.COOKIE]), "owner", time.time() + 1000)
    page.event("round-settings", None, "expand")  # which fills the form in
    events = [
        (button, "click")
        for button in ("vote-a", "regenerate", "undo", "new-chat", "share", "unshare", "chat-defaults")
    ]
    events += [(button, event) for button, event, _ in CONTROLS]
    with Lock(site.path):
        for elem_id, event in events:
            answer = page.event(elem_id, [True] if elem_id == "stop-round" else None, event)  # who stops was asked
            assert answer[-1]["success"], elem_id
            assert "The database is busy, so nothing was recorded" in notices(answer), elem_id
        assert ready(site).status_code == 503 and "busy" in ready(site).json()["database"]
    assert page.vote("a")[-1]["success"]
    annotator = site.store.annotator(page.client.cookies[visitor.COOKIE])
    assert [v["choice"] for v in site.store.rows("select choice from vote where annotator = ?", annotator)] == ["a"]
    assert ready(site).status_code == 200 and ready(site).json()["database"] == "ok"


def test_a_first_visit_to_a_locked_database_shows_the_page_and_says_so(site):
    with Lock(site.path):
        page = Page(site.url, "first visit")
        loaded = [
            d
            for d in page.config["dependencies"]
            if d["backend_fn"] and any(event == "load" for _, event in d["targets"])
        ]
        said = []
        for handler in loaded:
            body = {"data": [None] * len(handler["inputs"]), "fn_index": handler["id"], "session_hash": page.session}
            answer = page.client.post("/gradio_api/run/predict", json=body)
            assert answer.status_code == 200, answer.text
            said.append(notices([answer.json()]))
        assert any("The database is busy" in text for text in said)
        assert "The database is busy" in notices(page.send("Hello"))
    assert page.send("Hello")[-1]["success"]


def test_every_handler_of_the_page_is_guarded(site, chat):  # noqa: F811
    """A new one is too: whatever is attached before the page is complete."""
    blocks, _ = page_module.build(chat.settings, chat.store, chat.engine, chat)
    notice = next(block for block in blocks.blocks.values() if getattr(block, "elem_id", "") == "notice")
    for handler in blocks.fns.values():
        if handler.fn is not None:
            by_itself = any(notice_module.by_itself(blocks, *target) for target in handler.targets)
            assert handler.fn.__code__.co_filename.endswith("notice.py"), handler.name
            assert by_itself or notice in handler.outputs, handler.name


def test_no_component_shows_the_progress_of_a_handler(site, chat):  # noqa: F811
    """Each update of a reply took longer with each tab that had been opened: the page copied the state of all."""
    blocks, _ = page_module.build(chat.settings, chat.store, chat.engine, chat)
    handlers = [handler for handler in blocks.fns.values() if handler.fn is not None]
    assert handlers and all(handler.show_progress_on == [] for handler in handlers)


# -- replies that are complete while the store cannot take them


class Failing:
    """A store that cannot record how a pair ended until it is told to."""

    def __init__(self, store):
        self.store, self.fails = store, True

    def __getattr__(self, name):
        return getattr(self.store, name)

    def finish_duel(self, *arguments, **named):
        if self.fails:
            raise StoreUnavailable(
                "The disk is full, so nothing could be recorded. Please tell the owner of this app; then try again."
            )
        self.store.finish_duel(*arguments, **named)


def test_replies_that_could_not_be_recorded_are_kept_until_they_can_be(chat):  # noqa: F811
    """They would have been an empty pair to vote on, for ever."""
    chat.store, ann = Failing(chat.store), person(chat)
    with pytest.raises(StoreUnavailable):
        turn(chat, ann)
    with pytest.raises(StoreUnavailable):
        chat.view(ann)
    chat.store.fails = False
    view = chat.view(ann)
    assert view.phase == "voting" and view.left.text and view.right.text
    assert chat.vote(ann, view.duel, "a").phase == "voted"


# -- last, since nothing works after it


def test_when_the_database_is_gone_everything_says_so_and_nothing_pretends(site):
    page = Page(site.url, "lost")
    assert page.send("Hello")[-1]["success"]
    site.path.rename(site.path.with_name("elsewhere.db"))
    for answer in (page.vote("a"), page.send("Hello"), page.event("undo", None)):
        assert answer[-1]["success"] and "Please tell the owner to restart the app" in notices(answer), answer
    assert ready(site).status_code == 503 and "restart the app" in ready(site).json()["database"]
    assert httpx.get(f"{site.url}/healthz").status_code == 200
    with pytest.raises(StoreLost):
        site.store.new_votes()
