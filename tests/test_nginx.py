"""Behind the real nginx: the page works, under a path too, and nobody becomes an admin or escapes a limit by what they
claim.
"""

import json

import httpx
import pytest
from argon2 import PasswordHasher

from playground.people import visitor
from playground.people.admins import write_user
from tests.browsing import MARKS as BROWSER
from tests.nginx import MISSING, Nginx, bare, documented
from tests.sites import Site
from tests.test_server import Page, notices, votes
from tests.tiny import tiny_folder
from tests.waits import stand_still

pytestmark = MISSING
CLAIMS = {
    "x-forwarded-for": "127.0.0.1",
    "x-forwarded-host": "localhost",
    "x-forwarded-proto": "https",
    "x-real-ip": "127.0.0.1",
    "forwarded": "for=127.0.0.1;host=localhost",
    "host": "127.0.0.1:7860",
    "origin": "http://127.0.0.1:7860",
}
NOT_ALLOWED = "Only admins can do this."
HEADERS = "proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """{"path": below /nudge with its proxy named and an admin who may sign in, "plain": as it comes}."""
    folder = tmp_path_factory.mktemp("model")
    tiny_folder(folder / "model")
    write_user(
        folder / "users", "ann", "the password of ann", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    )
    admins = {
        "admins": "ann",
        "users_file": str(folder / "users"),
        "limits": {"sign_in_tries": 2},
        "trusted_proxies": "127.0.0.1",
    }
    sites = {
        "path": Site(folder / "model", root_path="/nudge", chat={"reply_tokens": 60}, **admins),
        "plain": Site(folder / "model", chat={"reply_tokens": 60}),
    }
    yield sites
    for site in sites.values():
        site.stop()


@pytest.fixture(scope="module")
def proxy(sites, tmp_path_factory):
    """nginx as documented, cutting the prefix off, with nothing but a `proxy_pass`, and appending to what visitors
    claim.
    """
    path, plain = sites["path"].port, sites["plain"].port
    nginx = Nginx(
        tmp_path_factory.mktemp("nginx"),
        {
            "documented": (documented(), path),
            "cut off": (documented().replace("127.0.0.1:7860;", "127.0.0.1:7860/;"), path),
            "bare": (bare(), plain),
            "bare path": (bare("/nudge/"), path),
            "appending": (
                f"server {{ listen 80; {HEADERS} location / {{ proxy_pass http://127.0.0.1:7860; }} }}",
                path,
            ),
        },
    )
    yield nginx
    nginx.stop()


WAYS = {
    "documented": ("path", "/nudge"),
    "cut off": ("path", "/nudge"),
    "bare": ("plain", ""),
    "bare path": ("path", "/nudge"),
}


@pytest.fixture(params=WAYS)
def way(request, sites, proxy):
    """(site, address of its page through nginx under a name that is not the app's)."""
    site, path = WAYS[request.param]
    return sites[site], f"http://localhost:{proxy.ports[request.param]}{path}"


def token(page):
    return page.client.cookies[visitor.COOKIE]


# -- the page


@pytest.mark.browser
@BROWSER[1]
def test_the_page_loads_sends_and_votes(way, browser):  # noqa: F811
    """Without forwarding headers the page called the app's inner address; under a path it called the site's root."""
    site, url = way
    own_icon = str(httpx.URL(url).copy_with(path="/favicon.ico"))
    context = browser.new_context(locale="en-US")
    context.set_default_timeout(90_000)
    page, called, complaints = context.new_page(), [], []
    page.on("request", lambda request: called.append(request.url))
    page.on("console", lambda m: m.type == "error" and complaints.append((m.text, m.location["url"])))
    page.goto(url + "/")
    page.wait_for_selector("#hint span")
    page.fill("#message textarea", "Hello there")
    page.press("#message textarea", "Enter")
    page.wait_for_selector("#hint :text('Which reply is better?')")
    page.click("#vote-a")
    page.wait_for_selector("#vote-a.picked")
    cookie = {c["name"]: c for c in context.cookies()}[visitor.COOKIE]
    context.close()
    assert site.store.rows("select choice from vote where annotator = ?", site.store.annotator(cookie["value"])) == [
        {"choice": "a"}
    ]
    assert [address for address in called if not address.startswith((f"{url}/", "data:", "blob:"))] == []
    # a browser looks for the site's icon by itself, which is not the page's business
    assert [complaint for complaint in complaints if complaint[1] != own_icon] == []
    assert cookie["path"] == site.settings.root_path or "/"


def test_a_message_and_a_vote_work(way, request):
    site, url = way
    page = Page(url, request.node.name)
    assert page.send("Hello")[-1]["success"] and page.vote("a")[-1]["success"]
    assert votes(site, page) == ["a"]


def test_words_stream_through_nginx_one_by_one(sites, proxy, monkeypatch):
    """A proxy that buffers shows both replies only once they are complete."""
    engine = sites["path"].engine
    monkeypatch.setattr(engine, "step", engine.step)
    monkeypatch.setattr(engine, "end_tokens", frozenset())
    page = Page(f"http://localhost:{proxy.ports['documented']}/nudge", "streaming")
    # the last words are written once the first ones have come
    go_on = stand_still(engine, lambda: any(max(stream.tokens()) >= 10 for stream in engine._running))
    came = []
    target = next(c["id"] for c in page.config["components"] if c["props"].get("elem_id") == "send")
    called = next(d for d in page.config["dependencies"] if [target, "click"] in [list(t) for t in d["targets"]])
    page.client.post(
        "/gradio_api/queue/join",
        json={
            "data": ["Tell me a long story", None],
            "fn_index": called["id"],
            "session_hash": page.session,
            "trigger_id": target,
        },
    )
    try:
        with page.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": page.session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    came.append(json.loads(line[6:])["msg"])
                    if came.count("process_generating") == 2:
                        go_on.set()
                    if came[-1] == "process_completed":
                        break
    finally:
        go_on.set()
    assert came.count("process_generating") >= 3


def test_the_prefix_alone_leads_to_the_page(proxy):
    answer = httpx.get(f"http://localhost:{proxy.ports['documented']}/nudge", follow_redirects=True)
    assert answer.status_code == 200 and "gradio_config" in answer.text


# -- attacks


def test_nobody_is_an_admin_by_what_they_claim(way):
    """Behind nginx with its default Host every visitor was the owner, with or without X-Forwarded-Host."""
    site, url = way
    page = Page(url, f"claims {url}")
    for claims in (
        {},
        {"host": "127.0.0.1:7860"},
        {"x-forwarded-for": "127.0.0.1"},
        {"x-forwarded-host": "localhost"},
        CLAIMS,
    ):
        page.client.headers.update(claims)
        answer = page.event("train-now", [])[-1]
        refused = NOT_ALLOWED in json.dumps(answer) or "came from another site" in json.dumps(answer)
        assert not answer["success"] and refused, claims
    assert not page.event("save-settings", None)[-1]["success"]
    assert site.store.last_round() is None and site.store.overrides() == {}


def test_the_admin_link_works_through_nginx_and_the_cookie_is_for_the_path(sites, proxy):
    page = Page(f"http://localhost:{proxy.ports['documented']}/nudge", "owner")
    answer = page.client.get(sites["path"].admin_path())
    assert (
        answer.status_code == 303
        and answer.headers["location"] == "/nudge/"
        and "Path=/nudge;" in answer.headers["set-cookie"]
    )
    assert sites["path"].store.signed_in(sites["path"].store.annotator(token(page))) == "owner"


@pytest.mark.parametrize("server", ["documented", "appending"])
def test_a_limit_is_not_escaped_by_claiming_to_be_elsewhere(sites, proxy, server):
    """Who could choose the address that tries are counted by could try for ever."""
    elsewhere = httpx.HTTPTransport(local_address="127.0.0.2")  # from the proxy's own address anything could be claimed
    said, page = [], Page(f"http://127.0.0.1:{proxy.ports[server]}/nudge", f"guessing {server}", transport=elsewhere)
    for number in range(12):
        page.client.headers.update(
            {
                "x-forwarded-for": f"203.0.113.{number}",
                "x-real-ip": f"203.0.113.{number}",
                "forwarded": f"for=203.0.113.{number}",
            }
        )
        said.append(notices(page.event("admin-enter", [f"name {number} {server}", "a wrong password"])))
    assert any("Too many wrong passwords" in text for text in said)
    assert sum("is wrong" in text for text in said) <= 8, "four times two tries for all names from one address"


def test_without_a_named_proxy_what_it_says_is_not_believed(sites, proxy):
    claims = {"x-forwarded-proto": "https", "x-forwarded-prefix": "/evil", "x-forwarded-host": "evil.example"}
    answer = httpx.get(f"http://localhost:{proxy.ports['bare']}/", headers=claims)
    assert (
        "Secure" not in answer.headers["set-cookie"]
        and "Path=/;" in answer.headers["set-cookie"]
        and "evil" not in answer.text
    )


def test_what_a_visitor_claims_does_not_pass_the_documented_proxy(proxy):
    claims = {
        "x-forwarded-proto": "https",
        "x-forwarded-prefix": "/evil",
        "x-forwarded-host": "evil.example",
        "forwarded": "host=evil.example",
    }
    answer = httpx.get(f"http://localhost:{proxy.ports['documented']}/nudge/", headers=claims)
    assert answer.status_code == 200 and "Secure" not in answer.headers["set-cookie"] and "evil" not in answer.text
