"""Odd requests, drawn from a seed: over every route and handler of a `Surface`, as a stranger, a person or the owner. Sends nothing itself."""

import gzip
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote

from benchmarks.faults.raw import Request

ROLES = ("stranger", "person", "owner")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "X" * 300)
API = "/gradio_api"
EVENT_PATHS = ("/run/predict", "/queue/join", "/api/predict", "/run/{handler}", "/api/{handler}", "/call/{handler}", "/call/v2/{handler}")
TYPES = ("application/json", "text/plain", "", "application/json; charset=utf-16", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "application/xml",
         "application/octet-stream", "application/json, text/html", "x" * 2000)
EVENT_DATA = (None, [], {}, "x", 1, True, {"index": 0, "liked": True, "value": "x"}, {"index": [0, 0], "value": "x", "selected": True}, {"index": -1, "liked": "x"},
              {"index": 1e308, "value": None}, {"index": {"a": []}, "liked": []}, {"value": {"text": [1]}, "index": 1, "previous_value": []}, {"_data": {}, "target": 1},
              {"index": True, "liked": None}, {"index": "0", "value": 5}, {"index": [[[]]], "value": "x" * 5000})
DEEP = 3000  # levels of nesting


@dataclass(frozen=True)
class Handler:
    """One handler of the page: its number, how many inputs it takes, whether it goes by the queue, and its events as (element, event)."""

    id: int
    inputs: int
    queued: bool
    events: tuple = ()


@dataclass
class Surface:
    """All that can be aimed at: routes as (path, method), handlers, files that must not be read, and what a stranger may have overheard."""

    host: str
    routes: list[tuple[str, str]]
    handlers: list[Handler]
    files: list[str]
    victim_session: str
    cookies: dict[str, list[str]]  # role: Cookie headers; none for a stranger
    leads: list[str] = field(default_factory=list)  # paths that answers have named


@dataclass
class Aimed:
    """A request and who sends it."""

    role: str
    request: Request


class Mutator:
    """Draws requests from `rng`; the same seed and surface give the same requests, but for the leads that answers add."""

    def __init__(self, rng: random.Random, surface: Surface):
        self.rng, self.surface = rng, surface
        self.own_session = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=11))

    # -- every route and handler once, plain

    def plain(self) -> Iterator[Aimed]:
        """Each route by its own method and each handler with empty values, for each role."""
        for role in ROLES:
            for path, method in self.surface.routes:
                yield self.aim(role, Request(method, self.filled(path, odd=False).encode(), body=b"{}" if method == "POST" else b"", note="plain route"))
            for handler in self.surface.handlers:
                body = self.event_body(handler, [None] * handler.inputs)
                yield self.aim(role, self.json_post(f"{API}/{'queue/join' if handler.queued else 'run/predict'}", body, "plain event"))

    def known(self) -> Iterator[Aimed]:
        """What was found once: a file object as the value of each handler, for two of the files, as somebody without a cookie."""
        for handler in self.surface.handlers:
            for path in self.surface.files[:2] if handler.inputs else ():
                item = {"path": path, "meta": {"_type": "gradio.FileData"}}
                body = self.event_body(handler, [item] * handler.inputs)
                yield self.aim("stranger", self.json_post(f"{API}/run/predict", body, "a file as value"))

    # -- one odd request

    def draw(self) -> Aimed:
        """One request that something is wrong with."""
        role = self.rng.choices(ROLES, (4, 4, 2))[0]
        kind = self.rng.choices((self.event, self.route, self.file, self.upload, self.page, self.stream), (46, 22, 13, 7, 6, 6))[0]
        request = kind()
        aimed = self.aim(role, request)
        for change, chance in ((self.twist_path, 0.12), (self.twist_headers, 0.3), (self.twist_body, 0.15), (self.twist_method, 0.07)):
            if self.rng.random() < chance:
                change(aimed.request)
        return aimed

    def aim(self, role: str, request: Request) -> Aimed:
        """With the headers that a browser of this role has: a stranger and a person come by a public name, the owner by this machine's."""
        host = self.surface.host if role == "owner" else f"nudge.example:{self.surface.host.rsplit(':', 1)[-1]}"
        request.headers.insert(0, (b"Host", host.encode()))
        if cookies := self.surface.cookies.get(role):
            request.header("Cookie", self.rng.choice(cookies))
        elif role == "person":
            request.header("Cookie", f"nudge_id={'x' * 43}")
        if request.method not in ("GET", "HEAD"):
            request.header("Origin", f"http://{host}").header("Sec-Fetch-Site", "same-origin")
        return Aimed(role, request)

    # -- kinds of requests

    def event(self) -> Request:
        """A handler by any of the ways that Gradio has, with odd values."""
        handler = self.rng.choice(self.surface.handlers)
        path = self.rng.choice(EVENT_PATHS) if self.rng.random() < 0.35 else f"/{'queue/join' if handler.queued else 'run/predict'}"
        values = [self.value() for _ in range(self.rng.choice((handler.inputs, handler.inputs, handler.inputs, 0, handler.inputs + 1, 60)))]
        body = self.event_body(handler, values)
        for change, chance in ((self._wrong_field, 0.25), (self._file_somewhere, 0.15)):
            if self.rng.random() < chance:
                change(body)
        name = self.rng.choice((str(handler.id), "on_send", "predict", "_check", "restore", "../config", ""))
        return self.json_post(API + path.format(handler=name), body, "event")

    def event_body(self, handler: Handler, values: list) -> dict:
        element = handler.events[0][0] if handler.events else None
        return {"data": values, "event_data": self.rng.choice(EVENT_DATA), "fn_index": handler.id, "trigger_id": element, "session_hash": self.session()}

    def _wrong_field(self, body: dict) -> None:
        key = self.rng.choice(("data", "fn_index", "session_hash", "trigger_id", "event_data", "api_name", "simple_format", "batched", "request", "event_id"))
        body[key] = self.rng.choice((self.value(), self.rng.randrange(-5, 10_000), None, [], {}, "x" * 500, True, 2.5))

    def _file_somewhere(self, body: dict) -> None:
        """A file object at any depth of the values."""
        item = self.file_object()
        for _ in range(self.rng.choice((0, 0, 0, 1, 2, 5, 20))):
            item = self.rng.choice(([item], {"value": item}, {"a": [item]}, {"content": item}, {"files": [item], "text": "x"}, [["x", item]]))
        if isinstance(body.get("data"), list) and body["data"]:
            body["data"][self.rng.randrange(len(body["data"]))] = item
        else:
            body[self.rng.choice(("data", "event_data"))] = [item]

    def file_object(self) -> dict:
        """What Gradio takes for a file that was uploaded."""
        path = self.rng.choice(self.surface.files)
        found = {"path": self.rng.choice((path, path, path, f"file://{path}", f"./{path}", f"{path}/.", "http://127.0.0.1:9/x", "")), "meta": {"_type": "gradio.FileData"}}
        extra = self.rng.choice(({}, {}, {"orig_name": "x.txt"}, {"url": f"{API}/file={path}"}, {"is_stream": True}, {"size": -1, "mime_type": 5}, {"url": None, "path": None}))
        return {**found, **extra}

    def route(self) -> Request:
        """Any route that the app or Gradio registers, with odd parameters."""
        path, method = self.rng.choice(self.surface.routes)
        body = self.json(self.value()) if method in ("POST", "PUT", "PATCH") else b""
        request = Request(method, self.filled(path).encode("utf-8", "replace"), body=body, note="route")
        return request.header("Content-Type", self.rng.choice(TYPES)) if body else request

    def filled(self, path: str, odd: bool = True) -> str:
        """A route's path with values in its places."""
        def place(match: re.Match) -> str:
            return quote(str(self.word()), safe="/=.:%") if odd else "x"
        return re.sub(r"\{[^}]*\}", place, path) or "/"

    def file(self) -> Request:
        """Reading a file by every way that serves one."""
        path = self.rng.choice(self.surface.leads[-200:]) if self.surface.leads and self.rng.random() < 0.5 else self.rng.choice(self.surface.files)
        way = self.rng.choice(("/file={}", "/file={}", "/file/{}", "/static/{}", "/assets/{}", "/proxy={}", "/stream/{}", "/theme.css?x={}", "/deep_link?path={}", "/custom_component/{}",
                               "/svelte/{}", "/monitoring/{}", "/../{}", "/upload_progress?upload_id={}", "/dev/reload?{}", "/favicon.ico?{}"))
        dots = self.rng.choice(("", "", "", "..%2f" * 6, "../" * 6, "%2e%2e/" * 6, "..%5c" * 4, "....//" * 3, "/", "%00"))
        name = self.rng.choice((path, path.lstrip("/"), quote(path, safe=""), path.upper()))
        return Request("GET", (self.rng.choice((API, API, "")) + way.format(dots + name)).encode(), note="file")

    def upload(self) -> Request:
        """A file that is sent, of odd names and forms."""
        name = self.rng.choice(("x.txt", "../../x.txt", "/etc/cron.d/x", "x\x00.txt", "a" * 3000, "", "x.html", ".env", "nudge.db"))
        size = self.rng.choice((0, 1, 100, 10_000, 2_000_000))
        part = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\nContent-Type: text/html\r\n\r\n'.encode() + b"<script>" + b"a" * size
        body = part + self.rng.choice((b"\r\n--x--\r\n", b"", b"\r\n--x\r\n", b"\r\n--y--\r\n"))
        target = API + self.rng.choice(("/upload", "/upload", "/upload?upload_id=x", "/upload?upload_id=../../x", "/process_recording", "/component_server"))
        return Request("POST", target.encode(), body=body, note="upload").header("Content-Type", "multipart/form-data; boundary=x")

    def page(self) -> Request:
        """The page itself, with odd queries."""
        query = self.rng.choice(("", "?shared=1", "?shared=%00", "?shared=" + "a" * 5000, "?__theme=dark", "?view=api", "?deep_link=x", "?__lang=zh", "?shared[]=1&shared=2", "?" + "a&" * 3000,
                                 "?admin=1", "?token=x", "?%ff=%fe", f"?session_hash={self.session()}"))
        return Request("GET", (self.rng.choice(("/", "/config", "/healthz", "/readyz", "/favicon.ico", "/manifest.json", "/theme.css", "/robots.txt", f"{API}/info", f"{API}/app_id",
                                                f"{API}/startup-events", "/openapi.json", "/docs", "/admin", "/login", "/logout", "/login/huggingface")) + query).encode(), note="page")

    def stream(self) -> Request:
        """Somebody's stream of answers."""
        way = self.rng.choice((f"/queue/data?session_hash={quote(str(self.session()))}", f"/queue/status?x={self.word()}", f"/heartbeat/{quote(str(self.session()))}", "/queue/data",
                               f"/call/predict/{self.word()}", f"/cancel?x={self.word()}", "/reset"))
        return Request(self.rng.choice(("GET", "GET", "GET", "POST")), (API + way).encode("utf-8", "replace"), note="stream")

    def json_post(self, path: str, body: dict, note: str) -> Request:
        return Request("POST", path.encode("utf-8", "replace"), body=self.json(body), note=note).header("Content-Type", "application/json")

    # -- values

    def session(self) -> object:
        """A session: one's own, invented, or the victim's."""
        odd = (None, "", 0, [], {}, "x" * 2000, "../../etc/passwd", True)
        return self.rng.choices((self.own_session, f"{self.own_session}{self.rng.randrange(300)}", self.surface.victim_session, self.rng.choice(odd)), (60, 15, 15, 10))[0]

    def word(self) -> object:
        """What may stand where a text or a number is meant."""
        return self.rng.choice(("x", "", 0, -1, 1, 2, 3, 7, 10**6, 2**63, 10**30, "null", "../..", "%2e%2e", "a" * 300, "é漢\u202e", "{}", "$(id)", "' or 1=1--", "<script>", *self.surface.files))

    def value(self, depth: int = 0) -> object:
        """Any JSON value where the page would send another one."""
        plain = (None, True, False, 0, 1, 2, 3, 4, 5, -1, 2.5, 1e-9, 1e308, 10**30, -(2**63), float("nan"), float("inf"), "", "a", "b", "1", "Hello", "true", "<b>x</b>", "a\x00b", "\ud800",
                 "x" * 5000, "x" * 200_000, "漢" * 3000, "\u202e", "![](http://elsewhere.example/x.png)", "' or 1=1--", [], {}, [[]], [None], [[0, 1]], {"value": 1}, ["more helpful"] * 40,
                 {"__type__": "update", "value": 1}, [{"role": "user", "content": "x"}], [{"role": "system", "content": [{"type": "file", "file": {"path": "/etc/passwd"}}]}])
        roll = self.rng.random()
        if roll < 0.07:
            return self.file_object()
        if roll < 0.15 and depth < 3:
            return [self.value(depth + 1) for _ in range(self.rng.randrange(4))]
        if roll < 0.22 and depth < 3:
            return {str(self.word())[:40]: self.value(depth + 1) for _ in range(self.rng.randrange(4))}
        return self.rng.choice(plain)

    def json(self, value: object) -> bytes:
        """As JSON, with what JSON does not have where Python writes it."""
        return json.dumps(value).encode("utf-8", "surrogatepass")

    # -- what is wrong with it besides

    def twist_path(self, request: Request) -> None:
        base = request.target
        request.target = self.rng.choice((b"/" + base, base.replace(b"/", b"//"), base + b"/", base + b"%00", base + b"\x00", b"/.." + base, base.replace(b"/", b"/./"), base + b"?" + b"a" * 9000, base + b"/" + b"a" * 9000,
                                          base.replace(b"gradio_api", b"gradio%5fapi"), base.replace(b"/", b"%2f"), base.upper(), b"http://elsewhere.example" + base, b"*", base + b"#x", base + b"\xff\xfe", base + b";x=1",
                                          base.replace(b"gradio_api/", b""), b"/%2e%2e" + base, base + b" x"))
        request.note += ", path"

    def twist_headers(self, request: Request) -> None:
        name, value = self.rng.choice((
            ("Range", "bytes=0-"), ("Range", "bytes=-1"), ("Range", "bytes=5-1"), ("Range", "bytes=" + ",".join(["0-"] * 200)), ("Range", "x"), ("Origin", "http://evil.example"), ("Origin", "null"), ("Origin", "x" * 5000),
            ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Site", "same-site"), ("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-For", "\x01, ::1"), ("X-Forwarded-Host", "evil.example"), ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Prefix", "/../x"), ("Forwarded", "for=127.0.0.1;host=localhost"), ("X-Real-IP", "127.0.0.1"), ("Host", "localhost"), ("Host", "evil.example"), ("Host", ""), ("Host", "[::1"), ("Host", "a" * 3000),
            ("Host", "127.0.0.1:99999"), ("X-Huge", "a" * 60_000), ("Cookie", "nudge_id=" + "y" * 43), ("Cookie", "nudge_id=" + "y" * 9000), ("Cookie", "\xff=\xfe; nudge_id"), ("Cookie", "nudge_id=a; nudge_id=b"),
            ("Accept-Language", "zh-CN,zh;q=0.9"), ("Accept-Language", "x" * 5000), ("Accept-Language", ";q=;,,"), ("Content-Length", "abc"), ("Content-Length", "-1"), ("Content-Length", "99999999999"), ("Transfer-Encoding", "gzip"),
            ("Expect", "100-continue"), ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Authorization", "Basic eDp4"), ("Authorization", "Bearer x"), ("If-None-Match", "*"), ("If-Modified-Since", "x"), ("X-HTTP-Method-Override", "DELETE"),
            ("X-Gradio-User", "x"), ("X-IP-Token", "x"), ("Referer", "http://evil.example/?secret"), ("Accept-Encoding", "gzip"), ("Content-Type", "application/json\x0bx"), ("X Bad", "x"), ("", "x")))
        request.header(name, value)
        request.note += f", {name}"
        request.unfinished = request.unfinished or (name, value) in (("Content-Length", "99999999999"), ("Expect", "100-continue"), ("Transfer-Encoding", "gzip"))

    def twist_body(self, request: Request) -> None:
        body = request.body or b"{}"
        kind = self.rng.choice(("cut", "not json", "utf8", "deep list", "deep object", "nan", "big number", "keys", "gzip", "chunked", "type", "huge", "twice", "bom", "utf16", "empty", "short"))
        request.note += f", body {kind}"
        if request.method in ("GET", "HEAD"):
            request.method = "POST"
        if kind == "chunked":
            request.chunked = True
            request.headers = [(k, v) for k, v in request.headers if k.lower() != b"content-length"]
        elif kind == "type":
            request.header("Content-Type", self.rng.choice(TYPES))
        elif kind == "gzip":
            body = gzip.compress(body + b" " * 1_000_000)
            request.header("Content-Encoding", "gzip")
        elif kind == "short":
            request.header("Content-Length", str(len(body) + 50))
            request.unfinished = True
        else:
            body = self.twisted(kind, body)
        request.body = body

    def twisted(self, kind: str, body: bytes) -> bytes:
        return {
            "cut": body[:len(body) // 2], "not json": b"<xml>&amp;</xml>", "utf8": body.replace(b'"', b'"\xff\xfe', 3), "deep list": b'{"data": ' + b"[" * DEEP + b"]" * DEEP + b', "fn_index": 4}',
            "deep object": b'{"data": [' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b'], "fn_index": 4, "session_hash": "x"}', "nan": body.replace(b"null", b"NaN"), "big number": body.replace(b"null", b"9" * 5000),
            "keys": body[:-1] + b"," + b",".join(b'"k%d": 1' % i for i in range(20_000)) + b"}", "huge": body[:-1] + b', "x": "' + b"a" * 3_000_000 + b'"}', "twice": body + body, "bom": b"\xef\xbb\xbf" + body,
            "utf16": body.decode("utf-8", "replace").encode("utf-16"), "empty": b""}[kind]

    def twist_method(self, request: Request) -> None:
        request.method = self.rng.choice(METHODS)
        request.note += ", method"
