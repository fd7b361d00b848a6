"""Many people at once, over real HTTP: who waits sees the place in line, nobody holds more than their share, and votes
have a lane of their own.
"""

import secrets
import socket
import threading
import time

import httpx
import pytest

from playground import server
from playground.chat import writing
from playground.chat.refusals import Refused
from playground.chat.session import Chat
from playground.chat.writing import place_in_line
from playground.models import loading
from playground.models.prompts import BadMessage
from playground.people import visitor
from playground.serving.engine import Engine
from playground.settings import Settings
from playground.store import Store
from playground.web import http_server
from tests.chats import chat, folder, person, slow  # noqa: F401 (fixtures)
from tests.test_server import Page, notices
from tests.waits import until

WAITING = 64


@pytest.fixture(scope="module")
def site(folder):
    """A running server where one message runs at a time, for as long as the test does."""
    settings = Settings(
        model=str(folder),
        threads=1,
        chat={"reply_tokens": 400},
        dtype="float32",
        port=0,
        round={"auto": False},
        limits={
            "waiting_messages": WAITING,
            "messages_per_address": 1000,
            "sessions_per_address": 1000,
            "requests_per_minute": 100_000,
            "unread_seconds": 120,
        },
        _env_file=None,
    )
    store = Store()
    engine = Engine(store, settings, loading.load_trunk(settings), loading.load_tokenizer(settings)).start()
    chat = Chat(store, engine, settings)
    sock = socket.create_server(("127.0.0.1", 0))
    web = http_server.Web(server.create(settings, store, engine, chat), before_shutdown=engine.close)
    thread = threading.Thread(target=web.run, args=([sock],))
    thread.start()
    yield type(
        "Site", (), {"url": f"http://127.0.0.1:{sock.getsockname()[1]}", "store": store, "engine": engine, "chat": chat}
    )
    web.should_exit = True
    thread.join(20)


class Crowd:
    """People who send a message each, and read no answer."""

    def __init__(self, site, page):
        self.site, self.client = site, httpx.Client(base_url=site.url, timeout=30)
        send = next(c["id"] for c in page.config["components"] if c["props"].get("elem_id") == "send")
        self.body = {
            "fn_index": next(
                d["id"] for d in page.config["dependencies"] if [send, "click"] in [list(t) for t in d["targets"]]
            ),
            "trigger_id": send,
        }

    def join(self, cookie=None, session=None):
        cookie = cookie or secrets.token_urlsafe(32)
        body = {**self.body, "data": ["Hello", None], "session_hash": session or cookie[:10]}
        self.client.post("/gradio_api/queue/join", json=body, cookies={visitor.COOKIE: cookie}).raise_for_status()
        return cookie


def ends(site):
    """Everybody's message ends."""

    def over():
        for turn in list(site.chat._turns.values()):
            turn.stop()
        return not site.chat._turns

    until(over)


def seconds(gesture):
    """How long a gesture takes; the best of three, since the machine may be busy with other things."""
    found = []
    for _ in range(3):
        began = time.monotonic()
        gesture()
        found.append(time.monotonic() - began)
    return min(found)


@pytest.mark.filterwarnings("ignore")
def test_while_sixty_four_messages_wait_everything_else_answers_and_one_more_gets_an_error(site):
    """Sixteen streams ran at once and the others saw nothing; 80 invented cookies filled the one queue, and everybody
    else got a 503.
    """
    page = Page(site.url, "voter")
    page.send("Hello")
    late = Page(site.url, "late")
    first = Page(site.url, "first")
    site.engine.kv_pool.budget, site.engine.end_tokens = 1, frozenset()
    step = site.engine.step
    site.engine.step = lambda: (site.engine._running and time.sleep(0.2), step())[1]
    crowd, events = Crowd(site, page), []
    try:
        crowd.join()
        until(lambda: site.engine._running)
        reader = threading.Thread(target=lambda: events.extend(first.send("Hello")))
        reader.start()
        until(lambda: site.engine.waiting == 1)
        for _ in range(WAITING - 1):
            crowd.join()
        until(lambda: site.engine.waiting == WAITING)
        assert len(site.chat._turns) == WAITING + 1

        refused = late.send("Hello")
        assert f"{WAITING} messages wait already" in notices(refused) and refused[-1]["success"]

        strip = next(c["id"] for c in page.config["components"] if c["props"].get("elem_id") == "refresh-strip")
        tick = next(d for d in page.config["dependencies"] if [strip, "click"] in d["targets"])
        body = {
            "data": [None] * len(tick["inputs"]),
            "fn_index": tick["id"],
            "session_hash": page.session,
            "trigger_id": strip,
        }
        assert seconds(lambda: page.client.post("/gradio_api/run/predict", json=body).raise_for_status()) < 1
        assert seconds(lambda: page.vote("a")) < 1
        assert site.store.rows("select choice from vote where superseded_by is null") == [{"choice": "a"}]
        undone = []
        assert seconds(lambda: undone.append(page.event("undo", None))) < 1
        assert undone[0][-1]["success"], "the box has null where nothing was written"
    finally:
        ends(site)
        site.engine.step = step
    reader.join(20)
    shown = str(events)
    assert "Your message waits its turn: you are next" in shown


@pytest.mark.filterwarnings("ignore")
def test_a_place_in_the_line_counts_down(site, monkeypatch):
    told = []  # places, as pages are told of them
    monkeypatch.setattr(writing, "place_in_line", lambda place: told.append(place) or place_in_line(place))
    site.engine.kv_pool.budget, site.engine.end_tokens = 1, frozenset()
    step = site.engine.step
    site.engine.step = lambda: (site.engine._running and time.sleep(0.2), step())[1]
    page, events = Page(site.url, "third"), []
    crowd = Crowd(site, page)
    try:
        for before in range(2):
            crowd.join()
            until(
                lambda before=before: (
                    len(site.chat._turns) == before + 1 and all(t.stream for t in site.chat._turns.values())
                )
            )
        reader = threading.Thread(target=lambda: events.extend(page.send("Hello")))
        reader.start()
        until(lambda: site.engine.waiting == 2 and 2 in told)
        site.engine._running[0].stop()
        until(lambda: site.engine.waiting == 1)
        told.clear()  # the other one, whose place this was, has room now
        until(lambda: 1 in told)
    finally:
        ends(site)
        site.engine.step = step
    reader.join(20)
    shown = str(events)
    assert 0 < shown.index("1 before you") < shown.index("you are next")


@pytest.mark.filterwarnings("ignore")
def test_one_cookie_that_sends_three_hundred_times_holds_one_place(site):
    site.engine.kv_pool.budget, site.engine.end_tokens = 1, frozenset()
    step = site.engine.step
    site.engine.step = lambda: (site.engine._running and time.sleep(0.2), step())[1]
    page = Page(site.url, "greedy")
    crowd = Crowd(site, page)
    cookie = crowd.join()
    try:
        until(lambda: site.engine._running)
        most = 0
        for _ in range(300):
            crowd.join(cookie, "greedy-session")
            most = max(most, len(site.chat._turns))
        until(lambda: len([t for t in threading.enumerate() if t.name == "finish in background"]) == 0)
        assert most == 1 and site.engine.waiting == 0 and len(site.chat._turns) == 1
        assert len(site.store.rows("select * from duel where conversation = (select max(id) from conversation)")) == 1
    finally:
        ends(site)
        site.engine.step = step


@pytest.mark.filterwarnings("ignore")
def test_on_the_page_an_early_vote_is_shown_at_once_and_the_pick_goes_on(site):
    site.engine.kv_pool.budget, site.engine.end_tokens = 1 << 30, frozenset()
    step, page = site.engine.step, Page(site.url, "early")
    site.engine.step = lambda: (site.engine._running and time.sleep(0.2), step())[1]
    events = []
    reader = threading.Thread(target=lambda: events.extend(page.send("Hello")))
    try:
        reader.start()
        until(
            lambda: any(
                t.stream and all(t.stream.texts()) and t.stream.texts()[0] != t.stream.texts()[1]
                for t in site.chat._turns.values()
            )
        )
        [turn] = site.chat._turns.values()
        [answer] = Page(site.url, "early", page.client.cookies).vote("b")
        assert "goes on to its end" in str(answer["output"])
        before = turn.stream.tokens()
        until(lambda: turn.stream.tokens()[1] >= before[1] + 2)
        assert turn.stream.tokens()[0] <= before[0] + 1 and not turn.ended.is_set()
    finally:
        ends(site)
        site.engine.step = step
    reader.join(20)
    assert "goes on to its end" in str(events) and events[-1]["success"]
    assert site.store.current_vote(turn.duel, turn.annotator)["choice"] == "b"


# -- without HTTP


def test_an_address_has_so_many_messages_and_another_has_its_own(chat):
    slow(chat)
    chat.settings = chat.settings.with_values(limits={"messages_per_address": 2})
    streams = [chat.send(person(chat, name), "Hello", "10.0.0.7") for name in ("ann", "bob")]
    [next(stream) for stream in streams]
    with pytest.raises(Refused, match="From your network address 2 messages"):
        next(chat.send(person(chat, "eve"), "Hello", "10.0.0.7"))
    other = chat.send(person(chat, "joe"), "Hello", "10.0.0.8")
    assert next(other).phase == "streaming"
    streams[0].close()
    again = chat.send(person(chat, "eve"), "Hello", "10.0.0.7")
    assert next(again).phase == "streaming"
    [stream.close() for stream in (*streams, other, again)]
    assert chat._turns == {}


def test_what_is_refused_leaves_no_trace(chat):
    chat.settings = chat.settings.with_values(limits={"waiting_messages": 1})
    step, go = chat.engine.step, threading.Event()
    chat.engine.step = lambda: (go.wait(), step())[1]
    first = chat.send(person(chat, "ann"), "Hello")
    next(first)
    with pytest.raises(Refused, match="1 message waits already"):
        next(chat.send(person(chat, "bob"), "Hello"))
    with pytest.raises(BadMessage):
        next(chat.send(person(chat, "eve"), ""))
    assert len(chat._turns) == 1 and len(chat.store.rows("select * from message")) == 3
    go.set()
    assert list(first)[-1].phase in ("voting", "same")


def test_who_waits_and_stops_leaves_the_line_from_the_middle_of_it(chat):
    """Whoever stood behind the first could not leave before the first had room."""
    slow(chat)
    chat.engine.kv_pool.budget = 1
    streams = {name: chat.send(person(chat, name), "Hello") for name in ("ann", "bob", "eve")}
    for stream in streams.values():
        next(stream)
    waits = chat._turns[person(chat, "eve")].stream
    until(lambda: waits.place == 2)
    chat.stop(person(chat, "eve"))
    assert waits.wait(20) and waits.place == 0
    with pytest.raises(Refused, match="before the first word"):
        list(streams["eve"])
    [stream.close() for stream in streams.values()]


def test_a_waiting_message_is_painted_where_its_place_changes_until_it_has_room(chat):
    slow(chat, 0.2)  # the first is still writing when it is stopped
    chat.engine.kv_pool.budget = 1
    first = chat.send(person(chat, "ann"), "Hello")
    next(first)
    until(lambda: chat.engine._running)
    seen, begun = [], time.monotonic()
    for view in chat.send(person(chat, "bob"), "Hello"):
        seen.append((time.monotonic() - begun, view))
        if len(seen) == 1:
            threading.Timer(2, lambda: chat.stop(person(chat, "ann"))).start()
    waits = [at for at, view in seen if view.progress and "waits its turn" in str(view.progress)]
    assert waits[0] > 0.4 and 1 <= len(waits) <= 3, waits  # at the usual pace it were a hundred
    words = next(at for at, view in seen if view.phase == "streaming" and view.left.text)
    assert words > waits[-1]
    first.close()
