"""An app with users, over real HTTP: nobody gets past the forms without a sign-in, and each role may do what it may."""

import asyncio
import json
import re
import threading
import time
from functools import partial

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from playground.chat.refusals import Refused
from playground.chat.session import Chat
from playground.people import keys
from playground.people.delays import Delays
from playground.people.passwords import Cost, Hasher
from playground.people.sign_ins import SignIns
from playground.people.users_file import UsersFile, new_invitation
from playground.people.visitor import COOKIE, new_token
from playground.web.allowlist import ROUTES, Allowlist
from playground.web.bodies import Refusal
from playground.web.gate import Gate, StreamEnded
from playground.web.limits import Limits
from playground.web.proxies import Proxies
from playground.web.proxy_user import ProxyUser, user_of
from playground.web.sign_in_forms import SignInForms
from tests.sites import Site
from tests.test_server import Page, notices
from tests.tiny import tiny_folder

CHEAP = Hasher(Cost(2, 1, 1))
TRIES = 8
PEOPLE = {"ann": "annotator", "vic": "viewer", "ada": "admin", "gone": "annotator", "two": "annotator"}


def password(name):
    return f"the password of {name}"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    path = tmp_path_factory.mktemp("people") / "users"
    for name, role in PEOPLE.items():
        UsersFile(path).change(lambda content, n=name, r=role: content.with_user(n, r, CHEAP.hash(password(n))))
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr("playground.people.sign_ins.Hasher", lambda: CHEAP)
    stopped = []  # the moment at which the clock of wrong passwords stands still, once there is one
    clock = lambda: stopped[0] if stopped else time.monotonic()
    monkeypatch.setattr("playground.people.sign_ins.Delays", partial(Delays, clock=clock))
    site = Site(
        tiny_folder(tmp_path_factory.mktemp("model")),
        people={"users": str(path)},
        admins="ann",
        limits={"sign_in_tries": TRIES},
    )
    monkeypatch.undo()
    site.users, site.stopped = UsersFile(path), stopped
    yield site
    site.stop()


def client(site, token=None):
    return httpx.Client(base_url=site.url, timeout=30, cookies={COOKIE: token} if token else None)


def sign_in(site, name, word=None, **headers):
    """The answer to the form, in a browser of its own."""
    with client(site) as browser:
        fields = {"name": name, "password": password(name) if word is None else word}
        return browser.post("/sign-in", data=fields, headers=headers)


def signed_in(site, name):
    """A browser in which this user has signed in."""
    answer = sign_in(site, name)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    return client(site, answer.cookies[COOKIE])


def page_of(site, browser, session):
    return Page(site.url, session, cookies={COOKIE: browser.cookies[COOKIE]})


def annotator_of(site, browser):
    return site.store.annotator(browser.cookies[COOKIE])


# -- who has not signed in


def examples():
    """A request of every route that an app without users has, and of some that no app has."""
    session = "a" * 32
    paths = {
        "/": "GET",
        "/changes": "GET",
        "/forget": "POST",
        "/adapters/v0.zip": "GET",
        "/export/pairs.jsonl": "GET",
        "/theme.css": "GET",
        "/manifest.json": "GET",
        "/assets/index.js": "GET",
        "/static/img/logo.svg": "GET",
        "/gradio_api/run/predict": "POST",
        "/gradio_api/queue/join": "POST",
        f"/gradio_api/queue/data?session_hash={session}": "GET",
        f"/gradio_api/heartbeat/{session}": "GET",
        f"/admin/{session}": "GET",
        "/metrics": "GET",
        "/v1/models": "GET",
        "/v1/feedback": "POST",
        "/healthz": "GET",
        "/favicon.ico": "GET",
    }
    return [(method, path) for path, method in paths.items()]


def test_the_examples_are_of_every_route():
    found = {
        route.path.pattern for route in ROUTES for _, path in examples() if route.path.fullmatch(path.split("?")[0])
    }
    assert found == {route.path.pattern for route in ROUTES}


@pytest.mark.parametrize("token", [None, new_token(), "x" * 43, "short"], ids=["none", "unknown", "alike", "short"])
def test_without_a_sign_in_every_route_is_closed_but_probes_and_those_with_keys(site, token):
    before = site.store.rows("select count(*) as n from annotator")
    seen = {}
    with client(site, token) as browser:
        for method, path in examples():
            body = {"json": {"data": [], "fn_index": 0, "session_hash": "a" * 32}} if method == "POST" else {}
            seen[path.split("?")[0]] = browser.request(method, path, **body)
    opened = {path for path, answer in seen.items() if answer.status_code not in (401, 303, 404)}
    assert opened == {"/healthz", "/favicon.ico", "/metrics"}, "the figures are for this machine"
    assert (seen["/"].status_code, seen["/"].headers["location"]) == (303, "/sign-in")
    assert seen["/v1/models"].json()["error"]["code"] == "invalid_api_key"
    assert "signed out" in seen["/gradio_api/run/predict"].json()["detail"]
    assert "gradio" not in seen["/"].text.lower() and "set-cookie" not in seen["/"].headers
    assert site.store.rows("select count(*) as n from annotator") == before, "a stranger makes no rows"


@pytest.mark.parametrize(
    "path",
    [
        "//",
        "/healthz/",
        "/healthz/../changes",
        "/healthz/..%2fchanges",
        "/sign-in/../changes",
        "/sign-in/",
        "/sign-in%2f..%2fchanges",
        "/SIGN-IN",
        "/invitation/",
        "/invitation/a/b",
        "/changes;healthz",
        "/changes?/healthz",
        "/v1/../changes",
        "/gradio_api/file=/etc/passwd",
        "/config",
        "/gradio_api/info",
        "/gradio_api/upload",
    ],
)
def test_no_way_of_writing_a_path_leads_past_the_gate(site, path):
    import http.client

    for method in ("GET", "POST"):
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)
        connection.request(method, path, headers={"X-Original-URL": "/healthz", "X-HTTP-Method-Override": "GET"})
        assert connection.getresponse().status in (401, 404, 405, 415), (method, path)
        connection.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-User": "ada"},
        {"Remote-User": "ada"},
        {"Authorization": "Basic YWRhOnRoZSBwYXNzd29yZCBvZiBhZGE="},
        {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Prefix": "/healthz"},
        {"Cookie": f"{COOKIE}=; session=eyJvYXV0aF9pbmZvIjp7fX0="},
    ],
)
def test_no_header_stands_for_a_sign_in(site, headers):
    assert httpx.get(f"{site.url}/changes", headers=headers).status_code == 401


def test_a_cookie_of_before_there_were_users_opens_nothing(site):
    visitor, owner = new_token(), new_token()
    site.store.annotator(visitor)
    site.store.sign_in(site.store.annotator(owner), "owner", time.time() + 1000)
    assert [client(site, token).get("/changes").status_code for token in (visitor, owner)] == [401, 401]


def test_a_cookie_that_was_planted_is_worth_nothing_after_the_sign_in(site):
    planted = new_token()
    with client(site, planted) as browser:
        answer = browser.post("/sign-in", data={"name": "ann", "password": password("ann")})
    assert answer.cookies[COOKIE] != planted
    assert client(site, planted).get("/changes").status_code == 401


def test_a_web_socket_is_refused(site):
    answer = httpx.get(
        f"{site.url}/",
        headers={
            "connection": "upgrade",
            "upgrade": "websocket",
            "sec-websocket-version": "13",
            "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        },
    )
    assert answer.status_code in (303, 403)


# -- signing in and out


def test_who_signs_in_is_the_same_person_on_each_device_and_after_a_restart(site):
    phone, laptop = signed_in(site, "ann"), signed_in(site, "ann")
    assert phone.cookies[COOKIE] != laptop.cookies[COOKIE]
    assert annotator_of(site, phone) == annotator_of(site, laptop)
    assert phone.get("/").status_code == 200 and "gradio_config" in phone.get("/").text
    assert phone.get("/sign-in").headers["location"] == "/", "who has signed in sees no form"
    assert annotator_of(site, signed_in(site, "two")) != annotator_of(site, phone)


def test_a_sign_in_takes_no_notice_of_how_a_name_is_written(site):
    assert sign_in(site, " ANN ", password("ann")).status_code == 303


@pytest.mark.parametrize(("name", "word"), [("two", "wrong"), ("nobody here", "wrong"), ("two", ""), ("", "")])
def test_a_wrong_password_and_an_unknown_name_get_the_same_answer(site, name, word):
    answer = sign_in(site, name, word)
    assert answer.status_code == 403
    assert "The name or the password is wrong." in answer.text and answer.headers["cache-control"] == "no-store"
    shown = re.sub(r'value="[^"]*"', "", answer.text)
    assert shown == re.sub(r'value="[^"]*"', "", sign_in(site, "somebody else", "wrong too").text)


def test_what_is_typed_comes_back_as_text(site):
    answer = sign_in(site, '"><script>alert(1)</script>', "wrong")
    assert "<script" not in answer.text and "&lt;script&gt;" in answer.text
    assert "script-src 'self' 'unsafe-eval';" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 303),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/json"}, 415),
    ],
)
def test_a_form_is_taken_from_its_own_page_alone(site, headers, status):
    assert sign_in(site, "ann", **headers).status_code == status
    with signed_in(site, "ann") as browser:
        browser.post("/sign-out", headers=headers, data={"go": "on"})
        assert browser.get("/changes").status_code == (401 if status == 303 else 200)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"name=" + b"a" * 9000, 413),
        (b"name=" + b"a" * 70 + b"&password=x", 403),
        (b"name=ann&password=" + b"a" * 300, 403),
        (b"&".join(b"name=a" for _ in range(100)), 403),
        (b"\xff\xfe\x00=%ff%00", 403),
        (b"", 403),
    ],
)
def test_what_a_form_may_hold_has_a_bound(site, body, status):
    answer = httpx.post(
        f"{site.url}/sign-in", content=body, headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert answer.status_code == status


def test_a_share_link_leads_on_after_the_sign_in_and_no_other_place_does(site):
    with client(site) as browser:
        answer = browser.get("/", params={"shared": "abc", "next": "https://evil.example"})
        assert answer.headers["location"] == "/sign-in?shared=abc"
        fields = {"name": "ann", "password": password("ann")}
        answer = browser.post("/sign-in?shared=abc&next=//evil.example", data=fields)
        assert answer.headers["location"] == "/?shared=abc"


def test_a_sign_out_ends_one_sign_in_or_all(site):
    first, second, third = (signed_in(site, "two") for _ in range(3))
    assert "signed in as two" in first.get("/sign-out").text
    answer = first.post("/sign-out", data={"go": "on"})
    assert answer.headers["location"] == "/sign-in" and "Max-Age=0" in answer.headers["set-cookie"]
    assert client(site, third.cookies[COOKIE]).get("/changes").status_code == 200
    second.post("/sign-out", data={"everywhere": "yes"})
    for browser in (first, second, third):
        assert client(site, browser.cookies.get(COOKIE)).get("/changes").status_code == 401
    assert third.get("/changes").status_code == 401


def test_the_forms_are_in_the_readers_language_and_need_no_script(site):
    english = client(site).get("/sign-in", headers={"accept-language": "en"})
    chinese = client(site).get("/sign-in", headers={"accept-language": "zh-CN"})
    assert english.status_code == chinese.status_code == 200
    assert "Sign in" in english.text and "登录" in chinese.text and 'lang="zh-CN"' in chinese.text
    assert "<script" not in english.text and 'name="viewport"' in english.text and "src=" not in english.text


# -- invitations


def test_an_invitation_makes_one_user_once(site):
    token, invitation = new_invitation("viewer", 1)
    site.users.change(lambda content: content.with_invitation(invitation))
    fields = {"name": "Nova", "password": "a password of hers", "again": "a password of hers"}
    with client(site) as browser:
        assert browser.head(f"/invitation/{token}").status_code == 200
        assert "viewer" in browser.get(f"/invitation/{token}").text, "looking does not use it up"
        for wrong in ({"name": "ANN"}, {"again": "another one"}, {"password": "short", "again": "short"}, {"name": ""}):
            answer = browser.post(f"/invitation/{token}", data={**fields, **wrong})
            assert answer.status_code == 403 and "viewer" in answer.text, "it still says as what one is invited"
        assert browser.post(f"/invitation/{token}", data=fields, headers={"Origin": "http://evil"}).status_code == 403
        answer = browser.post(f"/invitation/{token}", data=fields)
        assert answer.status_code == 303
    assert client(site, answer.cookies[COOKIE]).get("/changes").json()["role"] == "viewer"
    assert sign_in(site, "nova", "a password of hers").status_code == 303
    again = client(site).post(f"/invitation/{token}", data={**fields, "name": "other"})
    assert again.status_code == 403 and "was used" in again.text and "<form" not in again.text
    assert 'href="/sign-in"' in client(site).get(f"/invitation/{token}").text, "who has taken it finds the way in"
    assert token not in site.users.path.read_text()


def test_an_invitation_that_is_over_or_was_never_made_is_refused(site):
    token, invitation = new_invitation("admin", -1)
    site.users.change(lambda content: content.with_invitation(invitation))
    assert client(site).get(f"/invitation/{token}").status_code == 403
    assert client(site).get("/invitation/x").status_code in (403, 429)


def test_two_who_take_one_invitation_at_once_are_one(site):
    token, invitation = new_invitation("annotator", 1)
    site.users.change(lambda content: content.with_invitation(invitation))
    answers = []

    def take(name):
        fields = {"name": name, "password": "the same moment", "again": "the same moment"}
        answers.append(httpx.post(f"{site.url}/invitation/{token}", data=fields, timeout=30).status_code)

    threads = [threading.Thread(target=take, args=(f"racer {i}",)) for i in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(answers) == [303, 403, 403]


# -- roles


def test_a_viewer_looks_and_changes_nothing(site):
    browser = signed_in(site, "vic")
    assert browser.get("/changes").json()["role"] == "viewer"
    page = page_of(site, browser, "vic")
    told = notices(page.send("Hello"))
    assert "You may look at everything here, but not send, vote or edit" in told
    for elem_id, data in (("regenerate", [None]), ("undo", ["", None]), ("share", [None, None])):
        assert "You may look at everything here" in notices(page.event(elem_id, data))
    annotator = annotator_of(site, browser)
    assert site.store.rows("select id from conversation where annotator = ?", annotator) == []
    assert page.event("train-now")[0]["output"]["error"] == "Only admins can do this."
    assert browser.get("/export/pairs.jsonl").status_code == 403


def test_a_role_that_changes_counts_at_once(site):
    browser = signed_in(site, "two")
    page = page_of(site, browser, "two changes")
    page.send("Hello")
    annotator = annotator_of(site, browser)
    duel = site.store.conversation(annotator)["shown_duel"]
    site.users.change(lambda content: content.changed("two", role="viewer"))
    assert "You may look" in notices(page.vote("a"))
    assert site.store.current_vote(duel, annotator) is None
    assert browser.get("/export/pairs.jsonl").status_code == 403
    site.users.change(lambda content: content.changed("two", role="admin"))
    assert browser.get("/export/pairs.jsonl").status_code == 200
    site.users.change(lambda content: content.changed("two", role="annotator"))
    assert browser.get("/export/pairs.jsonl").status_code == 403


def test_an_admin_does_what_the_admin_link_gives_and_there_is_no_link(site):
    with signed_in(site, "ada") as browser:
        assert page_of(site, browser, "ada").event("train-now")[0]["success"]
        assert browser.get("/admin/" + "a" * 43).status_code == 404
    with signed_in(site, "ann") as browser:  # whom `admins` names
        assert not page_of(site, browser, "ann").event("train-now")[0]["success"]


@pytest.mark.parametrize(
    "write",
    [
        lambda chat, who: next(chat.send(who, "Hello")),
        lambda chat, who: next(chat.regenerate(who)),
        lambda chat, who: next(chat.compare(who, "Hello", 0, 1)),
        lambda chat, who: chat.vote(who, 1, "a"),
        lambda chat, who: chat.explain(who, 1, comment="why"),
        lambda chat, who: chat.rate(who, 1, 1),
        lambda chat, who: chat.edit(who, 1, "better"),
        lambda chat, who: chat.undo(who),
        lambda chat, who: chat.share(who),
        lambda chat, who: chat.configure(who, "Be brief.", {}),
        lambda chat, who: chat.new_chat(who),
        lambda chat, who: chat.show_pair(who, 1),
    ],
)
def test_each_gesture_that_writes_is_refused_to_a_viewer(site, write):
    chat = Chat(site.store, site.engine, site.settings)
    chat.may_write = lambda annotator: False
    with pytest.raises(Refused, match="You may look at everything here"):
        write(chat, site.store.annotator("whoever"))


def test_a_viewer_may_still_read_and_delete_chats_of_before(site):
    chat, who = Chat(site.store, site.engine, site.settings), site.store.annotator("was an annotator")
    first, second = site.store.new_conversation(who), site.store.new_conversation(who)
    chat.may_write = lambda annotator: False
    assert chat.open(who, first).conversation == first
    chat.delete(who, second)
    kept = site.store.rows("select id from conversation where annotator = ? and deleted is null", who)
    assert [row["id"] for row in kept] == [first]


def test_a_stream_ends_with_what_it_would_have_sent_next(site, monkeypatch):
    monkeypatch.setattr("playground.web.gate.CHECKED_EVERY", 0)
    token = sign_in(site, "ann").cookies[COOKIE]
    sign_ins = SignIns(site.store, site.settings, CHEAP)
    stub = FastAPI()

    @stub.get("/gradio_api/heartbeat/{name}")
    def heartbeat(name: str):
        def ticks():
            for i in range(1000):
                if i == 2:
                    sign_ins.sign_out(token)
                yield f"tick {i};"

        return StreamingResponse(ticks(), media_type="text/event-stream")

    async def stop(name):
        raise AssertionError("nothing was asked for")

    door = Allowlist(stub, site.settings, {}, Limits(site.settings), stop, lambda name: False, gate=Gate(sign_ins))
    with TestClient(door, cookies={COOKIE: token}) as browser:
        answer = browser.get("/gradio_api/heartbeat/abc")
    assert (answer.status_code, answer.text) == (200, "tick 0;tick 1;")


def test_a_download_is_cut_off_and_does_not_look_complete(site, monkeypatch):
    monkeypatch.setattr("playground.web.gate.CHECKED_EVERY", 0)
    token = sign_in(site, "ada").cookies[COOKIE]
    gate = Gate(SignIns(site.store, site.settings, CHEAP))
    sent = []

    async def send(message):
        sent.append(message)

    async def download(send_on):
        await send_on(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/jsonl")]}
        )
        await send_on({"type": "http.response.body", "body": b"one", "more_body": True})
        gate.sign_ins.sign_out(token)
        await send_on({"type": "http.response.body", "body": b"two", "more_body": True})

    scope = {"type": "http", "headers": [(b"cookie", f"{COOKIE}={token}".encode())]}
    with pytest.raises(StreamEnded):
        asyncio.run(download(gate.watched(scope, send)))
    assert [message.get("body") for message in sent] == [None, b"one"]
    with pytest.raises(Refusal):
        asyncio.run(download(gate.watched(scope, send)))
    assert len(sent) == 2, "who is out already gets nothing of it"


def test_a_proxy_that_names_the_user_is_not_taken_for_this_machine():
    """`/metrics` is open to this machine alone; taking the header away hid that there was a proxy."""
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await PlainTextResponse("")(scope, receive, send)

    door = ProxyUser(Proxies(app), "X-Forwarded-User", "127.0.0.1")
    browser = TestClient(door, base_url="http://127.0.0.1:7860", client=("127.0.0.1", 5))
    browser.get("/metrics", headers={"X-Forwarded-User": "ann"})
    browser.get("/metrics")
    assert [scope["direct"] for scope in scopes] == [False, True]


def test_below_a_path_the_forms_lead_there(site):
    sign_ins = SignIns(site.store, site.settings, CHEAP)
    stub = FastAPI()
    SignInForms(sign_ins).add_routes(stub)

    async def stop(name):
        raise AssertionError("nothing was asked for")

    door = Allowlist(stub, site.settings, {}, Limits(site.settings), stop, lambda name: False, gate=Gate(sign_ins))
    with TestClient(Proxies(door, root_path="/nudge"), follow_redirects=False) as browser:
        assert browser.get("/nudge/?shared=abc").headers["location"] == "/nudge/sign-in?shared=abc"
        answer = browser.post("/nudge/sign-in", data={"name": "ann", "password": password("ann")})
        assert answer.headers["location"] == "/nudge/" and "Path=/nudge;" in answer.headers["set-cookie"]
        assert 'href="/nudge/"' in browser.get("/nudge/sign-out").text
        assert browser.post("/nudge/sign-out", data={"go": "on"}).headers["location"] == "/nudge/sign-in"


@pytest.fixture
def behind_proxy(site):
    """A function that opens a browser behind a proxy that connects from an address and names users in a header."""
    sign_ins = SignIns(site.store, site.settings, CHEAP)
    stub = FastAPI()
    SignInForms(sign_ins).add_routes(stub)

    @stub.get("/changes")
    def changes(request: Request):
        assert "x-proxy-user" not in request.headers
        return {"name": request.scope["account"].user.name}

    async def stop(name):
        raise AssertionError("nothing was asked for")

    door = Allowlist(stub, site.settings, {}, Limits(site.settings), stop, lambda name: False, gate=Gate(sign_ins))
    app = ProxyUser(Proxies(door, trusted="10.0.0.0/8"), "X-Proxy-User", "10.0.0.1, 192.168.0.0/24")

    def opened(address):
        return TestClient(app, client=(address, 5), follow_redirects=False)

    return opened


def test_a_trusted_proxy_says_who_it_is(site, behind_proxy):
    browser = behind_proxy("10.0.0.1")
    ann = {"X-Proxy-User": "Ann"}
    assert browser.get("/changes", headers=ann).status_code == 401
    assert browser.get("/", headers=ann).headers["location"] == "/sign-in"
    assert browser.get("/sign-in", headers=ann).headers["location"] == "/"
    assert browser.get("/changes", headers=ann).json() == {"name": "ann"}
    assert site.store.annotator(browser.cookies[COOKIE]) == annotator_of(site, signed_in(site, "ann"))
    assert browser.get("/changes", headers={"X-Proxy-User": "vic"}).status_code == 401, "another one at this browser"
    assert browser.get("/sign-in", headers={"X-Proxy-User": "vic"}).status_code == 303
    assert browser.get("/changes", headers={"X-Proxy-User": "vic"}).json() == {"name": "vic"}
    answer = browser.get("/sign-in", headers={"X-Proxy-User": "<b>mallory"})
    assert answer.status_code == 403 and "is no user" in answer.text and "<b>" not in answer.text


@pytest.mark.parametrize("dest", ["image", "iframe", "script", "empty"])
def test_pictures_and_frames_elsewhere_begin_no_sign_in_by_a_proxy(site, behind_proxy, dest):
    """Fifty of them ended all sign-ins that the person had."""
    before = site.store.rows("select count(*) as n from sign_in")
    headers = {"X-Proxy-User": "ann", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": dest}
    assert "set-cookie" not in behind_proxy("10.0.0.1").get("/sign-in", headers=headers).headers
    behind_proxy("10.0.0.1").head("/sign-in", headers={"X-Proxy-User": "ann"})
    assert site.store.rows("select count(*) as n from sign_in") == before
    followed = {**headers, "Sec-Fetch-Dest": "document"}
    assert behind_proxy("10.0.0.1").get("/sign-in", headers=followed).status_code == 303, "a link elsewhere is followed"


@pytest.mark.parametrize(
    ("address", "headers"),
    [
        ("10.0.0.2", [("X-Proxy-User", "ann")]),
        ("127.0.0.1", [("X-Proxy-User", "ann"), ("X-Forwarded-For", "10.0.0.1")]),
        ("10.0.0.3", [("X-Proxy-User", "ann"), ("X-Forwarded-For", "10.0.0.1")]),
        ("10.0.0.1", [("X-Proxy-User", "vic"), ("X-Proxy-User", "ann")]),
        ("10.0.0.1", [("X_Proxy_User", "ann")]),
        ("10.0.0.1", [("X-Proxy-User", "")]),
        ("", [("X-Proxy-User", "ann")]),
    ],
)
def test_nobody_else_says_so(behind_proxy, address, headers):
    browser = behind_proxy(address)
    assert 'name="password"' in browser.get("/sign-in", headers=headers).text
    assert browser.get("/changes", headers=headers).status_code == 401


def test_a_name_that_is_no_text_says_nothing():
    assert user_of([b"\xff\xfe"]) == "" and user_of([]) == "" and user_of([b" Zo\xc3\xab "]) == "Zoë"


def test_who_is_removed_is_out_at_once(site):
    browser = signed_in(site, "gone")
    page = page_of(site, browser, "gone")
    page.send("Hello")
    annotator = annotator_of(site, browser)
    site.users.change(lambda content: content.without_user("gone"))
    assert browser.get("/").headers["location"] == "/sign-in"
    assert page.client.get(f"/gradio_api/heartbeat/{page.session}").status_code == 401
    assert sign_in(site, "gone").status_code == 403
    # who has the name later is somebody else, and the sign-in of before stays ended
    hashed = CHEAP.hash(password("gone"))
    site.users.change(lambda content: content.with_user("gone", "annotator", hashed))
    assert browser.get("/changes").status_code == 401
    assert annotator_of(site, signed_in(site, "gone")) != annotator


def test_a_new_password_ends_the_sign_ins_before_it(site):
    browser = signed_in(site, "two")
    annotator = annotator_of(site, browser)
    site.users.change(lambda content: content.changed("two", hashed=CHEAP.hash(password("two"))))
    assert browser.get("/changes").status_code == 401
    assert annotator_of(site, signed_in(site, "two")) == annotator


def test_who_deletes_everything_is_signed_out_everywhere_and_comes_back_as_somebody_new(site):
    first, second = signed_in(site, "two"), signed_in(site, "two")
    annotator = annotator_of(site, first)
    assert first.post("/forget").status_code == 204
    assert first.get("/changes").status_code == second.get("/changes").status_code == 401
    assert annotator_of(site, signed_in(site, "two")) != annotator


def test_keys_of_programs_work_as_before_and_open_no_page(site):
    key = keys.new_key()
    site.store.add_key("robot", key)
    headers = {"Authorization": f"Bearer {key}"}
    body = {"model": "live", "messages": [{"role": "user", "content": "Hello"}]}
    assert httpx.get(f"{site.url}/v1/models", headers=headers).status_code == 200
    answer = httpx.post(f"{site.url}/v1/chat/completions", json=body, headers=headers, timeout=30)
    assert answer.status_code == 200 and answer.json()["choices"]
    assert httpx.get(f"{site.url}/changes", headers=headers).status_code == 401
    with signed_in(site, "ada") as browser:
        assert browser.get("/v1/models").status_code == 401, "a cookie is no key"


def test_a_page_of_another_sign_in_in_the_same_browser_is_told_to_reload(site):
    old = page_of(site, signed_in(site, "ann"), "two tabs")
    assert old.event("new-chat", [None, None, "", None])[0]["success"]
    old.client = client(site, sign_in(site, "two").cookies[COOKIE])
    answer = old.event("new-chat", [None, None, "", None])
    assert not answer[0]["success"] and "Reload" in json.dumps(answer)


def test_another_nudge_above_this_one_on_the_same_host_keeps_nobody_out(site):
    """Its cookie has the same name, and is sent after this one's, whose path is longer."""
    own, other = signed_in(site, "ann").cookies[COOKIE], new_token()
    answer = httpx.get(f"{site.url}/changes", headers={"cookie": f"{COOKIE}={own}; {COOKIE}={other}"})
    assert answer.status_code == 200


def join_later(page, elem_id, data, between):
    """Post a gesture whose body arrives only after `between()` has run; the status."""
    target = next(c["id"] for c in page.config["components"] if c["props"].get("elem_id") == elem_id)
    called = next(d for d in page.config["dependencies"] if [target, "click"] in [list(t) for t in d["targets"]])
    body = {"data": data, "fn_index": called["id"], "session_hash": page.session, "trigger_id": target}

    def late():
        yield b" "
        time.sleep(0.3)  # the head has been read and the gate has looked
        between()
        yield json.dumps(body).encode()

    path = "/gradio_api/queue/join" if called["queue"] else "/gradio_api/run/predict"
    return page.client.post(path, content=late(), headers={"content-type": "application/json"}).status_code


def test_who_signs_out_while_a_gesture_arrives_writes_nothing(site):
    browser = signed_in(site, "vic")
    page = page_of(site, browser, "late")
    before = site.store.rows("select count(*) as n from annotator")
    assert join_later(page, "send", ["Hello", None], lambda: browser.post("/sign-out", data={"go": "on"})) == 401
    assert site.store.rows("select count(*) as n from annotator") == before


def test_who_has_neither_an_account_nor_a_key_may_not_write(site):
    sign_ins = SignIns(site.store, site.settings, CHEAP)
    nobody, robot = site.store.annotator(new_token()), site.store.add_key("robot two", keys.new_key())
    assert (sign_ins.may_write(nobody), sign_ins.may_write(robot)) == (False, True)
    site.store.revoke_keys(robot)
    assert not sign_ins.may_write(robot)


# -- the last ones: they break something


def test_a_users_file_that_is_broken_lets_nobody_in_and_loses_no_sign_in(site):
    browser = signed_in(site, "ann")
    text = site.users.path.read_text()
    site.users.path.write_text(text + "what is this\n")
    assert browser.get("/changes").status_code == 503 and sign_in(site, "ann").status_code == 503
    assert browser.get("/healthz").status_code == 200
    site.users.path.write_text(text)
    assert browser.get("/changes").status_code == 200


def test_wrong_passwords_wait_longer_each_time(site):
    site.stopped.append(time.monotonic())  # the first wait is a second
    statuses = [sign_in(site, "the victim", "guess").status_code for _ in range(TRIES + 1)]
    assert statuses == [403] * TRIES + [429]
    assert "Try again in" in sign_in(site, "the victim", "guess").text
