"""The web server over real HTTP: health, the cookie, and that a handler checks who calls it."""

import hashlib
import json
import re
import time

import httpx
import pytest

from playground import server
from playground import settings as settings_module
from playground.backup import Status, status
from playground.decoding import tuning
from playground.decoding.choice import Choice
from playground.people import visitor
from playground.serving.engine import Engine
from playground.store import Store
from playground.system.messages import plain
from playground.ui import states, status_bar
from playground.ui.words import Words
from tests.sites import Site
from tests.tiny import tiny_folder
from tests.waits import until


class Page:
    """What a browser does, without one: a session of the page with its cookie, posting events."""

    def __init__(self, url, session, cookies=None, transport=None):
        self.client = httpx.Client(base_url=url, timeout=30, cookies=cookies, transport=transport)
        html = self.client.get("/").text
        self.session = hashlib.md5(session.encode()).hexdigest()
        self.config = json.loads(re.search(r"window\.gradio_config = (.*?);</script>", html, re.S)[1])

    def event(self, elem_id, data=(), event="click", queue=None):
        """Fire one event of the component `elem_id`, without values where `data` is None, by the way that the page
        takes or as `queue` says; every message of the server until it is done."""
        target = next(c["id"] for c in self.config["components"] if c["props"].get("elem_id") == elem_id)
        called = next(d for d in self.config["dependencies"] if [target, event] in [list(t) for t in d["targets"]])
        body = {
            "data": [None] * len(called["inputs"]) if data is None else list(data),
            "fn_index": called["id"],
            "session_hash": self.session,
            "trigger_id": target,
        }
        if not (called["queue"] if queue is None else queue):
            answer = self.client.post("/gradio_api/run/predict", json=body)
            return [
                {"success": answer.status_code == 200, "output": answer.json(), "title": answer.json().get("title")}
            ]
        self.client.post("/gradio_api/queue/join", json=body).raise_for_status()
        messages = []
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    messages.append(json.loads(line[6:]))
                    if messages[-1]["msg"] == "process_completed":
                        return messages

    def own(self, site):
        """Open a new admin link in this browser."""
        assert self.client.get(site.admin_path()).status_code == 303
        return self

    def send(self, text):
        return self.event("send", [text, None])

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
    site = Site(folder, decode_format="auto", allowed_hosts="nudge.example")
    yield site
    site.stop()


@pytest.fixture
def page(site, request):
    return Page(site.url, f"ann-{request.node.name}")


def votes(site, page):
    annotator = site.store.annotator(page.client.cookies[visitor.COOKIE])
    return [
        v["choice"]
        for v in site.store.rows("select choice from vote where annotator = ? and superseded_by is null", annotator)
    ]


# -- health


def test_health_is_public_and_small(site):
    answer = httpx.get(f"{site.url}/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert httpx.head(f"{site.url}/healthz").status_code == 200, "as while it starts"


def test_changes_are_of_what_a_page_shows(site, page):
    """Open pages ask for them all the time, and refresh only what differs."""

    def changes():
        site.store.state()
        time.sleep(1.1)  # the status is at most a second old
        return httpx.get(f"{site.url}/changes").json()

    first, second = changes(), changes()
    assert first == second and set(first) == {"server", "strip", "loop", "data"}
    page.send("Hello")
    talked = changes()
    assert talked["strip"] == first["strip"] and talked["data"] != first["data"]
    page.vote("a")
    voted = changes()
    assert all(voted[part] != talked[part] for part in ("strip", "loop", "data")), "the bar counts votes"
    assert f'data-state=\\"{voted["strip"]}\\"' in json.dumps(page.event("refresh-strip", None))


def test_a_page_has_the_script_that_slows_gradios_clock_before_gradios_own(site):
    html = httpx.get(f"{site.url}/").text
    assert 0 < html.find("window.requestAnimationFrame = (draw)") < html.find('<script type="module"')


def test_readiness_says_what_answers(site):
    answer = httpx.get(f"{site.url}/readyz")
    assert answer.status_code == 200
    found = answer.json()
    choice = site.engine.choice  # measured, so that it is another one from machine to machine
    assert found.pop("decoding") == {
        "format": choice.number_format,
        "threads": choice.threads,
        "step_ms": choice.milliseconds,
    }
    assert found == {
        "ready": True,
        "database": "ok",
        "version": 0,
        "model": site.engine.identity["model"],
        "dtype": "float32",
        "threads": 1,
        "sqlite": site.store.sqlite_version(),
        "backup": "off",
    }


def test_an_engine_that_does_not_run_is_not_ready(site, folder):
    engine = Engine(Store(), site.settings, site.engine.base, site.engine.tokenizer)
    assert server.readiness(site.settings, engine.store, engine)["ready"] is False


def test_everybody_reads_that_replies_grow_slowly_here_and_what_helps(site, page, monkeypatch):
    def line(**headers):
        page.client.headers.update(headers)
        timer = next(d for d in page.config["dependencies"] if d["outputs"][0] == strip and d["backend_fn"])
        body = {"data": [None], "fn_index": timer["id"], "session_hash": page.session}
        return page.client.post("/gradio_api/run/predict", json=body).json()["data"][0]

    strip = next(c["id"] for c in page.config["components"] if c["props"].get("elem_id") == "strip")
    assert 'class="slow"' not in line()
    slow = tuning.slowness(Choice("plain", 1, 1000.0), site.settings.with_values(decode_format="auto"))
    monkeypatch.setattr(site.engine, "slowness", slow)
    assert '<p class="slow" role="note">With this model, a reply grows by about 1.0 tokens' in line()
    assert "每秒大约增加 1.0 个词元" in line(**{"accept-language": "zh-CN"})


def test_everybody_reads_what_is_wrong_with_the_backup():
    """And how old it is, on the Training tab."""
    late = Status(7, "2026-11-27 19:08 UTC", status.UNREACHABLE, (status.HELD,))
    assert status_bar.backup_trouble_html(None, Words()) == status_bar.backup_html(None, Words()) == ""
    assert status_bar.backup_trouble_html(Status(0), Words()) == ""
    line = status_bar.backup_trouble_html(late, Words("zh-CN"))
    assert 'class="slow"' in line and "无法连接或写入备份" in line and "另一个数据文件夹" in line
    assert "7 min ago" in status_bar.backup_html(late, Words())
    assert "of 2026-11-27 19:08 UTC" in status_bar.backup_html(Status(0, "2026-11-27 19:08 UTC"), Words())
    assert "nothing is saved yet" in status_bar.backup_html(Status(None), Words())
    assert "less than a minute ago" in status_bar.backup_html(Status(0, "2026-11-27 19:08 UTC", changed=True), Words())


def test_while_nothing_is_saved_from_here_both_lines_say_what_is_not():
    """The Training tab said that everything was saved."""
    held = Status(0, "2026-11-27 19:08 UTC", status.SHARED, held=True)
    for html in (status_bar.backup_trouble_html(held, Words()), status_bar.backup_html(held, Words())):
        assert "since the snapshot of 2026-11-27 19:08 UTC is in this data folder alone" in html
        assert "othing is saved from here" in html and "everything is saved" not in html
    assert "这里的内容没有保存。这里的操作只保存在此数据文件夹中" in status_bar.backup_html(
        Status(None, "", status.HELD, held=True), Words("zh-CN")
    )


# -- the cookie


def test_the_page_brings_a_cookie_that_scripts_cannot_read(site):
    cookie = httpx.get(site.url).headers["set-cookie"]
    assert re.match(r"nudge_id=[\w-]{43}; ", cookie)
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Secure" not in cookie


def test_a_visitor_who_claims_https_is_not_believed(site):
    """The cookie became SameSite=None for whoever sent X-Forwarded-Proto."""
    cookie = httpx.get(site.url, headers={"x-forwarded-proto": "https"}).headers["set-cookie"]
    assert "SameSite=Lax" in cookie and "Secure" not in cookie


@pytest.mark.parametrize(
    ("scheme", "on_space", "kind"),
    [
        ("http", False, "SameSite=Lax"),
        ("http", True, "SameSite=Lax"),
        ("https", False, "SameSite=Lax; Secure"),
        ("https", True, "SameSite=None; Secure; Partitioned"),
    ],
)
def test_over_https_the_cookie_is_for_https_and_works_in_the_frame_of_a_space(monkeypatch, scheme, on_space, kind):
    monkeypatch.setattr(settings_module, "ON_SPACE", on_space)
    assert visitor.set_cookie_header({"scheme": scheme}, "x").endswith(
        f"; Path=/; Max-Age={visitor.YEAR}; HttpOnly; {kind}"
    )
    assert "; Path=/nudge; " in visitor.set_cookie_header({"scheme": scheme, "root_path": "/nudge"}, "x")


def test_a_known_visitor_keeps_the_cookie_and_health_sets_none(site, page):
    assert "set-cookie" not in page.client.get("/").headers
    assert "set-cookie" not in httpx.get(f"{site.url}/healthz").headers


def test_one_page_serves_all_and_each_gets_a_cookie_of_their_own(site):
    """Gradio wrote the same half a megabyte again for every visitor."""
    answers = [httpx.get(site.url + path) for path in ("/", "/?shared=abc", "/?__theme=dark")]
    assert len({answer.text for answer in answers}) == 1
    assert len({answer.headers["set-cookie"] for answer in answers}) == 3
    assert httpx.head(site.url).content == b""


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
    thief = Page(site.url, "thief")
    thief.session = page.session
    assert thief.client.cookies[visitor.COOKIE] != page.client.cookies[visitor.COOKIE]
    answer = thief.vote("a")[-1]
    assert not answer["success"] and "another browser" in answer["output"]["error"]
    assert votes(site, thief) == votes(site, page) == []


def test_two_people_have_two_conversations(site, page):
    other = Page(site.url, f"{page.session}-other")
    page.send("I am Ann")
    other.send("I am Bob")
    texts = [
        site.store.rows(
            "select m.text from message m join conversation c on c.id = m.conversation where c.annotator = ? and "
            "m.role = 'user'",
            site.store.annotator(p.client.cookies[visitor.COOKIE]),
        )
        for p in (page, other)
    ]
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
    answer = page.client.post("/forget")
    assert answer.status_code == 204 and re.match(r"nudge_id=[\w-]{43}; .*HttpOnly", answer.headers["set-cookie"])
    assert page.client.cookies[visitor.COOKIE] != before
    assert "Ottokar" not in str(site.store.rows("select * from message"))
    assert site.store.conversations(site.store.annotator(before)) == []


@pytest.mark.parametrize(
    "headers", [{"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}]
)
def test_another_site_cannot_have_a_visitors_data_deleted(site, page, headers):
    page.send("Hello")
    answer = page.client.post("/forget", headers=headers)
    assert answer.status_code == 403 and "set-cookie" not in answer.headers
    assert len(site.store.conversations(site.store.annotator(page.client.cookies[visitor.COOKIE]))) == 1


def test_who_has_no_cookie_has_nothing_to_delete(site):
    answer = httpx.post(f"{site.url}/forget")
    assert answer.status_code == 204 and "nudge_id" in answer.headers["set-cookie"]


def test_no_to_training_is_kept_and_can_be_taken_back(site, page):
    who = site.store.annotator(page.client.cookies[visitor.COOKIE])
    for refused in (True, False):
        assert page.event("no-training", [refused], "input")[-1]["success"]
        assert site.store.person(who)["allow_training"] == (not refused)


CONTROLS = [
    ("train-now", "click", []),
    ("pause", "click", []),
    ("resume", "click", []),
    ("stop-round", "click", [True]),
    ("auto-train", "input", [True]),
    ("save-settings", "click", None),
    ("reset-settings", "click", []),
]


@pytest.mark.parametrize(("button", "event", "data"), CONTROLS)
def test_a_control_that_is_not_shown_can_be_pressed_by_hand_and_answers_not_allowed(site, page, button, event, data):
    last = page.event(button, data, event)[-1]
    assert (
        last["success"] is False
        and "Only admins can do this." in last["output"]["error"]
        and last["title"] == "Not allowed"
    )
    assert site.store.last_round() is None and site.store.overrides() == {}


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "nudge.example"])
def test_nobody_is_an_admin_by_an_address(site, page, host):
    """Behind nginx with its default Host every visitor was the owner."""
    page.client.headers["host"] = host
    assert "Only admins can do this." in page.event("train-now", [])[-1]["output"]["error"]
    assert site.store.last_round() is None


def test_the_owner_starts_pauses_resumes_and_stops_a_round(site, page):
    page.own(site)
    assert page.event("train-now")[-1]["success"]
    row = site.store.take_round("w", lease_seconds=30)
    for button, command in (("pause", "pause"), ("resume", None), ("stop-round", "stop")):
        assert page.event(button, [True] if button == "stop-round" else [])[-1]["success"]
        assert site.store.round_command(row["id"]) == command
    site.store.end_round(row["id"], "w", "failed", plain("stopped"))
    assert "no round to pause" in notices(page.event("pause"))


@pytest.mark.parametrize("field", ["data-version", "data-person", "data-since", "data-until", "data-text"])
def test_enter_in_a_field_of_the_data_tab_searches(page, field):
    """In the fields for version and person it did nothing, and the list stayed that of the search before."""
    said = page.event(field, ["999", *[None] * 7], "submit")[-1]
    assert said["success"] and "No judged pairs fit here." in json.dumps(said["output"])


# -- drafts


def updated(page, source, data, target, event="click"):
    """What an event of `source` makes of the component `target`: its new value, None where it stays as it is."""
    ids = {component["props"].get("elem_id"): component["id"] for component in page.config["components"]}
    called = next(d for d in page.config["dependencies"] if [ids[source], event] in [list(t) for t in d["targets"]])
    update = page.event(source, data, event)[-1]["output"]["data"][called["outputs"].index(ids[target])]
    return update.get("value") if isinstance(update, dict) else update


def test_a_refused_message_goes_along_to_a_new_chat_and_a_draft_stays_with_its_own(site, page):
    """Whoever was refused and took a new chat for it found the box empty: the message was a draft of the old chat."""
    page.send("Hello")
    page.vote("a")
    first = site.store.conversation(site.store.annotator(page.client.cookies[visitor.COOKIE]))["id"]
    long = "x" * (site.settings.limits.message_chars + 1)
    assert "Not sent" in notices(page.send(long))
    assert updated(page, "sidebar-new", [None, None, long, None], "message") is None, "the box keeps it"
    page.send("Another chat")
    page.vote("a")
    assert updated(page, "chats", [first, None, None, "a draft", None], "message", "input") == ""
    assert updated(page, "sidebar-new", [None, None, "of the first", None], "message") == ""
    assert updated(page, "chats", [first, None, None, "", None], "message", "input") == "of the first"


# -- the admin link


def is_admin(site, page):
    return site.store.signed_in(site.store.annotator(page.client.cookies[visitor.COOKIE])) == "owner"


def test_the_admin_link_makes_one_browser_the_owners_and_keeps_its_chats(site, page):
    page.send("Hello")
    before = site.store.annotator(page.client.cookies[visitor.COOKIE])
    answer = page.client.get(site.admin_path())
    assert (
        answer.status_code == 303
        and answer.headers["location"] == "/"
        and answer.headers["cache-control"] == "no-store"
    )
    assert is_admin(site, page) and site.store.annotator(page.client.cookies[visitor.COOKIE]) == before


def test_a_browser_without_a_cookie_gets_one_by_the_admin_link(site):
    answer = httpx.get(f"{site.url}{site.admin_path()}")
    token = re.match(r"nudge_id=([\w-]{43}); Path=/; .*HttpOnly", answer.headers["set-cookie"])[1]
    assert site.store.signed_in(site.store.annotator(token)) == "owner"


def test_who_put_a_cookie_into_the_owners_browser_is_no_admin_by_it(site, page):
    """A page on another port of this machine can set our cookie before the owner opens the link."""
    planted = page.client.cookies[visitor.COOKIE]
    page.own(site)
    attacker = Page(site.url, f"{page.session}-attacker", {visitor.COOKIE: planted})
    assert page.client.cookies[visitor.COOKIE] != planted
    assert not is_admin(site, attacker) and is_admin(site, page)


@pytest.mark.parametrize("wrong", ["x", "x" * 43])
def test_a_wrong_admin_link_says_what_to_do_and_changes_nothing(site, page, wrong):
    site.admin_path()
    answer = page.client.get(f"/admin/{wrong}")
    assert (
        answer.status_code == 403
        and answer.headers["content-type"] == "text/html; charset=utf-8"
        and "set-cookie" not in answer.headers
        and answer.headers["referrer-policy"] == "no-referrer"
        and answer.headers["cache-control"] == "no-store"
    )
    assert "Restart the app" in answer.text and "python -m playground.people.admins" in answer.text
    assert '<a class="button" href="/">Back to the chat</a>' in answer.text, "it was a sentence on a white page"
    assert "重新启动" in page.client.get(f"/admin/{wrong}", headers={"accept-language": "zh-CN"}).text
    assert not is_admin(site, page)


@pytest.mark.parametrize("odd", ["%00", "é", "a" * 5000, "a/b", "..%2f"])
def test_what_cannot_be_an_admin_link_is_not_there(site, page, odd):
    assert page.client.get(f"/admin/{odd}").status_code == 404


def test_an_admin_link_works_once_and_head_does_not_use_it_up(site, page):
    path = site.admin_path()
    page.client.head(path)
    other = Page(site.url, f"{page.session}-other")
    assert [p.client.get(path).status_code for p in (page, other)] == [303, 403]
    assert page.client.get(path).status_code == 303, "who is admin by it already comes to the chat"
    assert is_admin(site, page) and not is_admin(site, other)


def test_guessing_admin_links_is_told_to_wait_and_the_right_one_never(site, page):
    path = site.admin_path()
    codes = [page.client.get("/admin/guess").status_code for _ in range(12)]
    assert codes == [403] * 10 + [429] * 2
    assert re.search(r"Try again in \d+ s", page.client.get("/admin/guess").text)
    assert page.client.get(path).status_code == 303


def test_signing_out_ends_what_the_link_began(site, page):
    page.own(site)
    page.event("sign-out", [])
    assert not is_admin(site, page) and "Only admins" in page.event("train-now", [])[-1]["output"]["error"]


# -- how it is wired


@pytest.mark.parametrize("host", ["ex ample", "[::1", "a/b", "a@b", "x:99999999"])
def test_a_host_that_is_none_is_refused(site, host):
    """Gradio builds addresses from it, and answered 500 to some."""
    answer = httpx.get(site.url, headers={"host": host})
    assert answer.status_code == 400 and answer.headers["content-type"].startswith("text/plain")


def test_only_what_streams_goes_by_the_queue(site, page):
    """In the browser the result of a queued event is lost that begins just as another one ends: a vote in eight, cast
    the moment both replies were complete.
    """
    queued = {
        tuple(d["targets"][0])[1]: d["types"]["generator"]
        for d in page.config["dependencies"]
        if d["backend_fn"] and d["queue"]
    }
    assert queued and all(queued.values()), queued


def test_gradio_keeps_no_second_copy_of_the_page_for_each_session(site, page):
    """It took half a megabyte a session, and worked out a component's JSON schema at each change, on everybody's event
    loop.
    """
    page.send("Hello")
    page.vote("a")
    state = site.blocks.state_holder.session_data[page.session]
    assert isinstance(state, states.PageState) and state.config_values == {} and len(state.state_data) > 0


def test_the_queue_is_looked_into_a_hundred_times_a_second_and_not_a_thousand(site, monkeypatch):
    """Gradio looked every millisecond: 6 % of a core for a server without visitors."""
    queue = type(site.blocks._queue)
    looks, look = [], queue.__len__
    monkeypatch.setattr(queue, "__len__", lambda self: looks.append(time.monotonic()) or look(self))
    until(lambda: len(looks) > 20)
    assert looks[20] - looks[0] > 0.1
