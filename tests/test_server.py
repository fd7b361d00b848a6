"""The web server over real HTTP: health, the cookie, and that a handler finds out for itself who asks."""

import json
import re
import socket
import threading

import httpx
import pytest

from playground import models, server, visitor
from playground.engine import Engine
from playground.session import Chat
from playground.settings import Settings
from playground.store import Store
from playground.ui.text import literal, typed
from tests.tiny import tiny_folder


class Page:
    """What a browser does, without one: a session of the page with its cookie, posting events."""

    def __init__(self, url, session, cookies=None):
        self.client = httpx.Client(base_url=url, timeout=30, cookies=cookies)
        self.client.get("/")
        self.session, self.config = session, self.client.get("/config").json()

    def event(self, elem_id, data=(), event="click", queue=None):
        """Fire one event of the component `elem_id`, without values where `data` is None, by the way that the page takes or as `queue` says;
        every message of the server until it is done."""
        target = next(c["id"] for c in self.config["components"] if c["props"].get("elem_id") == elem_id)
        called = next(d for d in self.config["dependencies"] if [target, event] in [list(t) for t in d["targets"]])
        body = {"data": [None] * len(called["inputs"]) if data is None else list(data), "fn_index": called["id"], "session_hash": self.session, "trigger_id": target}
        if not (called["queue"] if queue is None else queue):
            answer = self.client.post("/gradio_api/run/predict", json=body)
            return [{"success": answer.status_code == 200, "output": answer.json(), "title": answer.json().get("title")}]
        self.client.post("/gradio_api/queue/join", json=body).raise_for_status()
        messages = []
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    messages.append(json.loads(line[6:]))
                    if messages[-1]["msg"] == "process_completed":
                        return messages

    def send(self, text):
        return self.event("send", [text])

    def vote(self, choice):
        return self.event(f"vote-{choice}", [None])


def notices(messages):
    """What the page shows as notices."""
    return " ".join(re.findall(r'class=\\"notice[^>]*>(.*?)</div>', json.dumps(messages)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def site(folder):
    """A running server with a tiny model: its address, store and engine."""
    settings = Settings(model=str(folder), threads=1, reply_tokens=8, dtype="float32", port=0, auto_train=False, _env_file=None)
    store = Store()
    engine = Engine(store, settings, models.load_trunk(settings), models.load_tokenizer(settings)).start()
    sock = socket.create_server(("127.0.0.1", 0))
    web = server.Web(server.create(settings, store, engine, Chat(store, engine, settings)), before_shutdown=engine.close)
    thread = threading.Thread(target=web.run, args=([sock],))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    thread.start()
    yield type("Site", (), {"url": url, "store": store, "engine": engine, "settings": settings})
    web.should_exit = True
    thread.join(20)


@pytest.fixture
def page(site, request):
    return Page(site.url, f"ann-{request.node.name}")


def votes(site, page):
    annotator = site.store.annotator(page.client.cookies[visitor.COOKIE])
    return [v["choice"] for v in site.store.rows("select choice from vote where annotator = ? and superseded_by is null", annotator)]


# -- health

def test_health_is_public_and_small(site):
    answer = httpx.get(f"{site.url}/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_readiness_says_what_answers(site):
    answer = httpx.get(f"{site.url}/readyz")
    assert answer.status_code == 200
    found = answer.json()
    choice = site.engine.choice  # measured, so that it is another one from machine to machine
    assert found.pop("decoding") == {"format": choice.number_format, "threads": choice.threads, "step_ms": choice.milliseconds}
    assert found == {"ready": True, "version": 0, "model": site.engine.identity["model"], "dtype": "float32", "threads": 1,
                             "sqlite": site.store.sqlite_version()}


def test_an_engine_that_does_not_run_is_not_ready(site, folder):
    engine = Engine(Store(), site.settings, site.engine.base, site.engine.tokenizer)
    assert server.readiness(site.settings, engine.store, engine)["ready"] is False


# -- the cookie

def test_the_page_brings_a_cookie_that_scripts_cannot_read(site):
    cookie = httpx.get(site.url).headers["set-cookie"]
    assert re.match(r"nudge_id=[\w-]{43}; ", cookie)
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Secure" not in cookie


def test_behind_https_the_cookie_works_in_a_frame_of_another_site(site):
    cookie = httpx.get(site.url, headers={"x-forwarded-proto": "https"}).headers["set-cookie"]
    assert "SameSite=None" in cookie and "Secure" in cookie


def test_a_known_visitor_keeps_the_cookie_and_health_sets_none(site, page):
    assert "set-cookie" not in page.client.get("/").headers
    assert "set-cookie" not in httpx.get(f"{site.url}/healthz").headers


def test_a_cookie_of_another_form_is_replaced(site):
    assert "set-cookie" in httpx.get(site.url, cookies={"nudge_id": "admin"}).headers


def test_without_a_cookie_a_gesture_is_refused_with_advice(site):
    page = Page(site.url, "no-cookie")
    page.client.cookies.clear()
    last = page.send("Hello")[-1]
    assert last["success"] is False and "cookie" in last["output"]["error"]


# -- gestures

def test_a_person_sends_and_votes(site, page):
    assert page.send("Hello")[-1]["success"]
    assert page.vote("a")[-1]["success"]
    assert votes(site, page) == ["a"]


def test_a_second_vote_supersedes_the_first(site, page):
    page.send("Hello")
    page.vote("a")
    page.vote("tie")
    assert votes(site, page) == ["tie"]


def test_a_vote_before_any_pair_is_refused(site, page):
    assert "no pair" in notices(page.vote("a"))
    assert votes(site, page) == []


def test_another_persons_pair_cannot_be_voted_on(site, page):
    """Gradio's session is named by the browser: whoever names another's reached that page's state."""
    page.send("Hello")
    thief = Page(site.url, page.session)
    assert thief.client.cookies[visitor.COOKIE] != page.client.cookies[visitor.COOKIE]
    assert "not yours" in notices(thief.vote("a"))
    assert votes(site, thief) == votes(site, page) == []


def test_two_people_have_two_conversations(site, page):
    other = Page(site.url, f"{page.session}-other")
    page.send("I am Ann")
    other.send("I am Bob")
    texts = [site.store.rows("select m.text from message m join conversation c on c.id = m.conversation where c.annotator = ? and m.role = 'user'",
                             site.store.annotator(p.client.cookies[visitor.COOKIE])) for p in (page, other)]
    assert texts == [[{"text": "I am Ann"}], [{"text": "I am Bob"}]]


def test_a_bad_message_gets_a_notice_and_is_not_recorded(site, page):
    messages = page.send("a\x00b")
    assert "control character" in notices(messages)
    assert messages[-1]["success"]
    assert page.send("Hello")[-1]["success"]


# -- one's data

def test_everything_of_a_person_is_deleted_at_their_word_and_the_browser_is_somebody_new(site, page):
    page.send("Ottokar's secret")
    page.vote("a")
    before = page.client.cookies[visitor.COOKIE]
    answer = page.client.post("/forget", headers={"x-nudge": "page"})
    assert answer.status_code == 204 and re.match(r"nudge_id=[\w-]{43}; .*HttpOnly", answer.headers["set-cookie"])
    assert page.client.cookies[visitor.COOKIE] != before
    assert "Ottokar" not in str(site.store.rows("select * from message"))
    assert site.store.conversations(site.store.annotator(before)) == []


@pytest.mark.parametrize("headers", [{}, {"x-nudge": "yes"}, {"x-nudge": "page", "sec-fetch-site": "cross-site"}, {"x-nudge": "page", "sec-fetch-site": "same-site"}])
def test_another_site_cannot_have_a_visitors_data_deleted(site, page, headers):
    page.send("Hello")
    answer = page.client.post("/forget", headers=headers)
    assert answer.status_code == 403 and "set-cookie" not in answer.headers
    assert len(site.store.conversations(site.store.annotator(page.client.cookies[visitor.COOKIE]))) == 1


def test_who_has_no_cookie_has_nothing_to_delete(site):
    answer = httpx.post(f"{site.url}/forget", headers={"x-nudge": "page"})
    assert answer.status_code == 204 and "nudge_id" in answer.headers["set-cookie"]


def test_no_to_training_is_kept_and_can_be_taken_back(site, page):
    who = site.store.annotator(page.client.cookies[visitor.COOKIE])
    for refused in (True, False):
        assert page.event("no-training", [refused], "input")[-1]["success"]
        assert site.store.person(who)["allow_training"] == (not refused)


CONTROLS = [("train-now", "click", []), ("pause", "click", []), ("resume", "click", []), ("stop-round", "click", []), ("auto-train", "input", [True]),
            ("save-settings", "click", None), ("reset-settings", "click", [])]


@pytest.mark.parametrize("queue", [True, False])
@pytest.mark.parametrize(("button", "event", "data"), CONTROLS)
def test_a_control_that_is_not_shown_can_be_pressed_by_hand_and_answers_not_allowed(site, page, button, event, data, queue):
    page.client.headers["host"] = "evil.example"
    last = page.event(button, data, event, queue)[-1]
    assert last["success"] is False and "Only admins can do this." in last["output"]["error"] and last["title"] == "Not allowed"
    assert site.store.last_round() is None and site.store.overrides() == {}


def test_the_owner_starts_pauses_resumes_and_stops_a_round(site, page):
    assert page.event("train-now")[-1]["success"]
    row = site.store.take_round("w", lease_seconds=30)
    for button, wish in (("pause", "pause"), ("resume", None), ("stop-round", "stop")):
        assert page.event(button)[-1]["success"]
        assert site.store.wish_of(row["id"]) == wish
    site.store.end_round(row["id"], "w", "failed", "stopped")
    assert "no round to pause" in notices(page.event("pause"))


@pytest.mark.parametrize("bound, client, name, allowed", [
    ("127.0.0.1", "127.0.0.1", "127.0.0.1:7860", True), ("localhost", "::1", "localhost", True), ("::1", "::1", "[::1]:7860", True),
    ("0.0.0.0", "127.0.0.1", "localhost", False), ("127.0.0.1", "10.0.0.7", "localhost", False), ("127.0.0.1", "127.0.0.1", "rebound.example:7860", False)])
def test_the_owner_is_at_this_machine(bound, client, name, allowed):
    request = type("Request", (), {"headers": {"host": name}, "client": type("Client", (), {"host": client})})
    assert visitor.is_owner(Settings(host=bound, _env_file=None), request) is allowed


def test_only_what_streams_goes_by_the_queue(site, page):
    """In the browser the result of a queued event is lost that begins just as another one ends: a vote in eight, cast the moment both replies were complete."""
    queued = {tuple(d["targets"][0])[1]: d["types"]["generator"] for d in page.config["dependencies"] if d["backend_fn"] and d["queue"]}
    assert queued and all(queued.values()), queued


# -- untrusted text

@pytest.mark.parametrize("text, shown", [
    ("a <b>bold</b> & x", "a &lt;b>bold&lt;/b> &amp; x"), ("use `<i>` here <i>", "use `<i>` here &lt;i>"),
    ("```html\n<p>\n```\n<p>", "```html\n<p>\n```\n&lt;p>"), ("```\n<still open", "```\n<still open"), ("1 < 2 ` <x>", "1 &lt; 2 ` &lt;x>"), ("", "")])
def test_markup_in_a_message_is_shown_as_typed(text, shown):
    assert literal(text) == shown


@pytest.mark.parametrize("text", ["a <b>bold</b> & x", "use `<i>` here <i>", "```html\n<p>\n```\n<p>", "1 < 2 &lt; 3", "&amp;", "`a` & `b`", ""])
def test_what_a_person_edits_is_read_back_as_meant(text):
    assert typed(literal(text)) == text
