"""The door in front of Gradio, over real HTTP: what is not named does not exist."""

import itertools
import json
import re
import socket
import time

import httpx
import pytest

from playground.people import visitor
from playground.web.limits import Limits
from tests.test_server import Page, folder, site  # noqa: F401  fixtures

OPEN = {
    ("GET", "/"),
    ("HEAD", "/"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/changes"),
    ("HEAD", "/healthz"),
    ("HEAD", "/readyz"),
    ("HEAD", "/changes"),
    ("GET", "/admin/{token}"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/feedback"),
    ("POST", "/forget"),
    ("GET", "/adapters/v{version}.zip"),
    ("GET", "/export/{name}.jsonl"),
    ("GET", "/theme.css"),
    ("GET", "/favicon.ico"),
    ("GET", "/robots.txt"),
    ("GET", "/manifest.json"),
    ("GET", "/assets/{path:path}"),
    ("GET", "/static/{path:path}"),
    ("POST", "/gradio_api/run/{api_name}"),
    ("POST", "/gradio_api/queue/join"),
    ("GET", "/gradio_api/queue/data"),
    ("GET", "/gradio_api/heartbeat/{session_hash}"),
}
CLOSED = """
GET /config
GET /config/
POST /gradio_api/api/{api_name}
POST /gradio_api/api/{api_name}/
GET /gradio_api/app_id
GET /gradio_api/app_id/
POST /gradio_api/call/v2/{api_name}
POST /gradio_api/call/v2/{api_name}/
GET /gradio_api/call/v2/{api_name}/{event_id}
POST /gradio_api/call/{api_name}
POST /gradio_api/call/{api_name}/
GET /gradio_api/call/{api_name}/{event_id}
POST /gradio_api/cancel
POST /gradio_api/component_server
POST /gradio_api/component_server/
GET /gradio_api/custom_component/{id}/{environment}/{type}/{file_name}
GET /gradio_api/deep_link
GET /gradio_api/dev/reload
GET /gradio_api/file/{path:path}
GET /gradio_api/file={path_or_url:path}
HEAD /gradio_api/file={path_or_url:path}
GET /gradio_api/info
GET /gradio_api/info/
GET /gradio_api/login_check
GET /gradio_api/login_check/
GET /gradio_api/openapi.json
POST /gradio_api/process_recording
GET /gradio_api/proxy={url_path:path}
HEAD /gradio_api/proxy={url_path:path}
GET /gradio_api/queue/status
POST /gradio_api/reset
POST /gradio_api/reset/
POST /gradio_api/run/{api_name}/
GET /gradio_api/runs
GET /gradio_api/runs/
GET /gradio_api/startup-events
POST /gradio_api/stream/{event_id}
POST /gradio_api/stream/{event_id}/close
GET /gradio_api/stream/{session_hash}/{run}/{component_id}/playlist-file
GET /gradio_api/stream/{session_hash}/{run}/{component_id}/playlist.m3u8
GET /gradio_api/stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext}
GET /gradio_api/theme.css
GET /gradio_api/token
GET /gradio_api/token/
POST /gradio_api/undo-vibe-edit
POST /gradio_api/undo-vibe-edit/
POST /gradio_api/upload
GET /gradio_api/upload_progress
GET /gradio_api/user
GET /gradio_api/user/
GET /gradio_api/vibe-code
POST /gradio_api/vibe-code
GET /gradio_api/vibe-code/
POST /gradio_api/vibe-code/
POST /gradio_api/vibe-edit
POST /gradio_api/vibe-edit/
POST /gradio_api/vibe-starter-queries
POST /gradio_api/vibe-starter-queries/
POST /login
POST /login/
GET /logout
GET /monitoring
GET /monitoring/summary
GET /monitoring/{key}
GET /openapi.json
HEAD /openapi.json
GET /pwa_icon
GET /pwa_icon/{size}
GET /svelte/{path:path}
"""
CLOSED = {tuple(line.split(" ")) for line in CLOSED.split("\n") if line}


def registered(routes, prefix=""):
    """(method, path) of every route of an app, those of what is mounted and included in it too."""
    for found in routes:
        if hasattr(found, "original_router"):
            yield from registered(found.original_router.routes, prefix)
        elif hasattr(getattr(found, "app", None), "routes") and not getattr(found, "methods", None):
            yield from registered(found.app.routes, prefix + found.path)
        else:
            yield from ((method, prefix + found.path) for method in found.methods or ["WEBSOCKET"])


@pytest.fixture
def page(site, request):  # noqa: F811
    return Page(site.url, f"door-{request.node.name}")


def gesture(page, **change):
    """The page's own first gesture that answers at once, with something changed in it."""
    called = next(d for d in page.config["dependencies"] if d["backend_fn"] and not d["queue"])
    body = {
        "data": [None] * len(called["inputs"]),
        "fn_index": called["id"],
        "session_hash": page.session,
        "trigger_id": called["targets"][0][0],
    }
    return {**body, **change}


# -- routes


def test_every_route_of_the_app_is_known_to_be_open_or_closed(site):  # noqa: F811
    """A route that a new version of Gradio brings is closed, and somebody has looked at it."""
    assert set(registered(site.app.routes)) == OPEN | CLOSED


def test_a_closed_route_is_not_there(site):  # noqa: F811
    """Any file of the server could be read, anything uploaded, and the source of the app be rewritten."""
    with httpx.Client(base_url=site.url) as client:
        for method, template in sorted(CLOSED):
            path = re.sub(r"\{[^}]*\}", "predict", template)
            for shape in (path, f"{path}?x=1", f"{path}%2f", path.replace("gradio_api", "%67radio_api")):
                assert client.request(method, shape).status_code == 404, (method, shape)


def test_another_method_is_not_there(site):  # noqa: F811
    with httpx.Client(base_url=site.url) as client:
        for path in ("/", "/healthz", "/gradio_api/run/predict", "/gradio_api/queue/join"):
            for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"):
                assert client.request(method, path).status_code == 404, (method, path)


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../config",
        "/assets/%2e%2e/%2e%2e/etc/passwd",
        "/static/..%2f..%2fapp.py",
        "/assets//etc/passwd",
        "/static/.env",
        "/gradio_api/run/other",
        "/gradio_api/heartbeat/a%2fb",
        "/gradio_api/heartbeat/" + "a" * 65,
        "/gradio_api/queue/data",
        "/gradio_api/queue/data?session_hash=nobodys",
        "/assets/" + "a" * 5000,
        "/%00",
        "/gradio_api/run/predict%00",
    ],
)
def test_another_path_is_not_there(site, path):  # noqa: F811
    assert httpx.get(site.url + path).status_code in (400, 404, 422)


def test_a_file_of_the_server_cannot_be_read(site, page, tmp_path):  # noqa: F811
    """`{"path": FILE, "meta": …}` for any value copied FILE where anybody could fetch it: `.env`, the database."""
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    for called in page.config["dependencies"]:
        way = "queue/join" if called["queue"] else "run/predict"
        for place in range(max(1, len(called["inputs"]))):
            data = [None] * len(called["inputs"])
            data[place : place + 1] = [file]
            body = {"data": data, "fn_index": called["id"], "session_hash": page.session, "trigger_id": None}
            for sent in (body, {**body, "data": [None] * len(called["inputs"]), "event_data": {"value": file}}):
                answer = page.client.post(f"/gradio_api/{way}", json=sent)
                assert answer.status_code == 422 and "secret" not in answer.text
    assert page.client.get(f"/gradio_api/file={secret}").status_code == 404


def test_a_range_of_an_asset_is_not_answered_with_the_request(page):
    """Answers in ranges echoed the request's Cookie header."""
    asset = re.search(r"\./(assets/[\w-]+\.css)", page.client.get("/").text)[1]
    answer = page.client.get(f"/{asset}", headers={"range": "bytes=0-10,20-30"})
    assert answer.status_code == 200 and page.client.cookies[visitor.COOKIE] not in answer.text + str(answer.headers)


def test_a_websocket_is_closed(site):  # noqa: F811
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(
            b"GET /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert b" 404 " in sock.recv(100)


# -- who sends it


@pytest.mark.parametrize(
    "sent",
    [
        {"origin": "http://127.0.0.1:1"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_a_page_of_another_port_or_site_changes_and_reads_nothing(page, sent):
    """A page on another port of this machine could press "Train now" and read a chat."""
    for path in ("run/predict", "queue/join"):
        answer = page.client.post(f"/gradio_api/{path}", json=gesture(page), headers=sent)
        assert answer.status_code == 403 and "another site" in answer.text
        assert not any(name.startswith("access-control") for name in answer.headers)
    assert page.client.get(f"/gradio_api/heartbeat/{page.session}", headers=sent).status_code == 403


def test_no_origin_may_read_the_page(page):
    answer = page.client.get("/", headers={"origin": "http://evil.example"})
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_anothers_session_cannot_be_used(site, page):  # noqa: F811
    """Whoever named another's session read the replies that streamed there, and ended them by hanging up."""
    assert page.client.post("/gradio_api/run/predict", json=gesture(page)).status_code == 200
    thief = Page(site.url, "thief")
    assert thief.client.get("/gradio_api/queue/data", params={"session_hash": page.session}).status_code == 404
    for answer in (
        thief.client.post("/gradio_api/run/predict", json=gesture(thief, session_hash=page.session)),
        thief.client.get(f"/gradio_api/heartbeat/{page.session}"),
    ):
        assert answer.status_code == 403 and "another browser" in answer.text


# -- how much


def test_a_body_has_a_bound(site, page):  # noqa: F811
    """114 MB of JSON and 300 MB of files were taken."""
    big = json.dumps(gesture(page, data=["a" * 1_000_000])).encode()
    assert (
        page.client.post(
            "/gradio_api/run/predict", content=big, headers={"content-type": "application/json"}
        ).status_code
        == 413
    )

    def parts():
        for _ in range(100):
            yield b" " * 10_000

    answer = page.client.post("/gradio_api/run/predict", content=parts(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "sent",
    [
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "text/plain"},
        {},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_only_plain_json_is_a_gesture(page, sent):
    assert (
        page.client.post("/gradio_api/run/predict", content=json.dumps(gesture(page)), headers=sent).status_code == 415
    )


def test_a_body_that_never_ends_is_not_waited_for(site):  # noqa: F811
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(
            b"POST /gradio_api/run/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
            b"application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        assert b" 408 " in sock.recv(100)


def test_a_head_that_never_ends_is_not_waited_for(site):  # noqa: F811
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        assert sock.recv(100) == b""


def test_replies_that_nobody_reads_are_stopped(site, page):  # noqa: F811
    called = next(d for d in page.config["dependencies"] if d["queue"] and len(d["inputs"]) == 2)
    body = {"data": ["Hello", None], "fn_index": called["id"], "session_hash": page.session, "trigger_id": None}
    assert page.client.post("/gradio_api/queue/join", json=body).status_code == 200
    until = time.monotonic() + 30
    while page.session in site.blocks._queue.pending_messages_per_session and time.monotonic() < until:
        time.sleep(0.1)
    assert page.session not in site.blocks._queue.pending_messages_per_session


def test_invented_sessions_are_bounded_in_gradio_too(site, page):  # noqa: F811
    before = len(site.blocks.state_holder.session_data)
    for n in range(40):
        assert (
            page.client.post("/gradio_api/run/predict", json=gesture(page, session_hash=f"invented{n}")).status_code
            == 200
        )
    kept = len(site.blocks.state_holder.session_data)
    assert kept - before <= site.settings.limits.sessions_per_person


# -- what is sent back


def test_every_answer_has_the_headers(site, page):  # noqa: F811
    answers = [page.client.get(path) for path in ("/", "/healthz", "/theme.css", "/nothing")]
    answers.append(page.client.post("/gradio_api/run/predict", json=gesture(page)))
    for answer in answers:
        assert (
            answer.headers["x-content-type-options"] == "nosniff"
            and "img-src 'self'" in answer.headers["content-security-policy"]
        )
        assert answer.headers["referrer-policy"] == "same-origin" and "server" not in answer.headers


@pytest.mark.parametrize(
    "query", ["deep_link=x", "deep_link=../../etc/passwd", "x=" + "a" * 5000, "shared=" + "a" * 500, "%ff=%fe"]
)
def test_of_the_pages_address_only_what_it_reads_comes_through(page, query):
    assert page.client.get(f"/?{query}").status_code == 200


def test_a_refusal_is_in_the_readers_language(page):
    answer = page.client.post(
        "/gradio_api/run/predict",
        json=gesture(page),
        headers={"origin": "http://evil.example", "accept-language": "zh-CN"},
    )
    assert "网站" in answer.json()["error"]


def test_the_limits_of_one_server_do_not_count_for_another(site):  # noqa: F811
    assert Limits(site.settings).sessions == {}


# -- what keeps the one event loop from everybody else


@pytest.mark.parametrize(
    "sent",
    [
        {"cookies": 'a="' + "\\" * 12_000 + '"'},
        {"key": "--a (NUDGE_a): got " + "…" * 1300 + "; accepted: " + "…" * 1300},
        {"key": "x; " * 60_000},
    ],
    ids=["cookie of backslashes", "invented key", "many parts"],
)
def test_one_request_does_not_stop_the_server(site, page, sent):  # noqa: F811
    """A cookie of 15 KB held everybody for four seconds, and 4 KB of a sentence in Chinese for half a minute."""
    headers = {"accept-language": "zh-CN", **({"cookie": sent["cookies"]} if "cookies" in sent else {})}
    body = gesture(page, **({sent["key"]: 1} if "key" in sent else {}))
    began = time.process_time()  # the server's too: it runs in this process
    httpx.post(f"{site.url}/gradio_api/run/predict", json=body, headers=headers, timeout=60)
    assert time.process_time() - began < 2


def test_a_stream_of_a_session_that_asked_for_nothing_is_not_there(page):
    page.client.post("/gradio_api/run/predict", json=gesture(page))
    for query in (f"session_hash={page.session}", f"session_hash={page.session}&session_hash="):
        assert page.client.get(f"/gradio_api/queue/data?{query}").status_code == 404


WRONG_EVENTS = (
    None,
    {},
    {"index": [1, 0]},
    {"index": [], "value": "x", "liked": True, "previous_value": "y"},
    {"index": "x", "value": [], "liked": "maybe", "previous_value": {}},
)
WRONG_VALUES = (None, "nothing", 10**12, -1, ["nothing"], True)


def test_of_what_is_wrong_with_a_gesture_no_traceback_is_printed(page, capfd):
    """Likes and edits with half an event, and values that are no choice, were status 500 or a traceback."""
    reading_events = 0
    for called in page.config["dependencies"]:
        if called["backend_fn"] and not called["queue"]:
            if {"like", "edit"} & {event for _, event in called["targets"]}:
                reading_events += 1
                wrong = itertools.product(WRONG_EVENTS, WRONG_VALUES)
            else:  # its handler reads no event
                wrong = zip(itertools.cycle(WRONG_EVENTS), WRONG_VALUES, strict=False)
            for event, value in wrong:
                body = {
                    "data": [value] * len(called["inputs"]),
                    "fn_index": called["id"],
                    "session_hash": page.session,
                    "event_data": event,
                }
                assert page.client.post("/gradio_api/run/predict", json=body).status_code != 500, (
                    called["id"],
                    value,
                    event,
                )
    assert reading_events >= 2
    assert "Traceback" not in capfd.readouterr().err


def test_the_page_is_the_same_whatever_host_it_was_asked_by(page):
    """Each invented name was packed again."""
    assert (
        page.client.get("/", headers={"host": "nudge.example"}).text
        == page.client.get("/", headers={"host": "localhost"}).text
    )
