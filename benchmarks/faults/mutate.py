"""Odd requests, drawn from a seed: over every route and handler of a `Surface`, as a stranger, a person or the owner.
Sends nothing itself.
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote

from benchmarks.faults import twists
from benchmarks.faults.oddities import (
    API,
    DOTS,
    EVENT_DATA,
    EVENT_PATHS,
    FILE_EXTRAS,
    PAGES,
    QUERIES,
    TYPES,
    UPLOAD_NAMES,
    VALUES,
    WAYS,
    WORDS,
)
from benchmarks.faults.raw import Request

TWISTS = (
    (twists.twist_path, 0.12),
    (twists.twist_headers, 0.3),
    (twists.twist_body, 0.15),
    (twists.twist_method, 0.07),
)
ROLES = ("stranger", "person", "owner")


@dataclass(frozen=True)
class Handler:
    """One handler of the page: its number, how many inputs it takes, whether it goes by the queue, and its events as
    (element, event).
    """

    id: int
    inputs: int
    queued: bool
    events: tuple = ()


@dataclass
class Surface:
    """All that can be aimed at: routes as (path, method), handlers, files that must not be read, and what a stranger
    may have overheard.
    """

    host: str
    routes: list[tuple[str, str]]
    handlers: list[Handler]
    files: list[str]
    victim_session: str
    cookies: dict[str, list[str]]  # role: Cookie headers; none for a stranger
    leads: list[str] = field(default_factory=list)  # paths that answers have named


@dataclass
class AimedRequest:
    """A request and who sends it."""

    role: str
    request: Request


class Mutator:
    """Draws requests from `rng`; the same seed and surface give the same requests, but for the leads that answers
    add.
    """

    def __init__(self, rng: random.Random, surface: Surface):
        self.rng, self.surface = rng, surface
        self.own_session = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=11))

    # -- every route and handler once, plain

    def plain(self) -> Iterator[AimedRequest]:
        """Each route by its own method and each handler with empty values, for each role."""
        for role in ROLES:
            for path, method in self.surface.routes:
                yield self.aim(
                    role,
                    Request(
                        method,
                        self.filled(path, odd=False).encode(),
                        body=b"{}" if method == "POST" else b"",
                        note="plain route",
                    ),
                )
            for handler in self.surface.handlers:
                body = self.event_body(handler, [None] * handler.inputs)
                yield self.aim(
                    role,
                    self.json_post(f"{API}/{'queue/join' if handler.queued else 'run/predict'}", body, "plain event"),
                )

    def known(self) -> Iterator[AimedRequest]:
        """What was found once: a file object as the value of each handler, for two of the files, as somebody without
        a cookie.
        """
        for handler in self.surface.handlers:
            for path in self.surface.files[:2] if handler.inputs else ():
                item = {"path": path, "meta": {"_type": "gradio.FileData"}}
                body = self.event_body(handler, [item] * handler.inputs)
                body |= {"event_data": None, "session_hash": self.own_session}  # as the page itself would
                yield self.aim("stranger", self.json_post(f"{API}/run/predict", body, "a file as value"))

    # -- one odd request

    def draw(self) -> AimedRequest:
        """One request that something is wrong with."""
        role = self.rng.choices(ROLES, (4, 4, 2))[0]
        kind = self.rng.choices(
            (self.event, self.route, self.file, self.upload, self.page, self.stream), (46, 22, 13, 7, 6, 6)
        )[0]
        request = kind()
        aimed = self.aim(role, request)
        for change, chance in TWISTS:
            if self.rng.random() < chance:
                change(self.rng, aimed.request)
        return aimed

    def aim(self, role: str, request: Request) -> AimedRequest:
        """With the headers that a browser of this role has: a stranger and a person come by a public name, the owner
        by this machine's.
        """
        host = self.surface.host if role == "owner" else f"nudge.example:{self.surface.host.rsplit(':', 1)[-1]}"
        request.headers.insert(0, (b"Host", host.encode()))
        if cookies := self.surface.cookies.get(role):
            request.header("Cookie", self.rng.choice(cookies))
        elif role == "person":
            request.header("Cookie", f"nudge_id={'x' * 43}")
        if request.method not in ("GET", "HEAD"):
            request.header("Origin", f"http://{host}").header("Sec-Fetch-Site", "same-origin")
        return AimedRequest(role, request)

    # -- kinds of requests

    def event(self) -> Request:
        """A handler by any of the ways that Gradio has, with odd values."""
        handler = self.rng.choice(self.surface.handlers)
        path = (
            self.rng.choice(EVENT_PATHS)
            if self.rng.random() < 0.35
            else f"/{'queue/join' if handler.queued else 'run/predict'}"
        )
        values = [
            self.value()
            for _ in range(self.rng.choice((handler.inputs, handler.inputs, handler.inputs, 0, handler.inputs + 1, 60)))
        ]
        body = self.event_body(handler, values)
        for change, chance in ((self._wrong_field, 0.25), (self._file_somewhere, 0.15)):
            if self.rng.random() < chance:
                change(body)
        name = self.rng.choice((str(handler.id), "on_send", "predict", "_check", "restore", "../config", ""))
        return self.json_post(API + path.format(handler=name), body, "event")

    def event_body(self, handler: Handler, values: list) -> dict:
        element = handler.events[0][0] if handler.events else None
        return {
            "data": values,
            "event_data": self.rng.choice(EVENT_DATA),
            "fn_index": handler.id,
            "trigger_id": element,
            "session_hash": self.session(),
        }

    def _wrong_field(self, body: dict) -> None:
        key = self.rng.choice(
            (
                "data",
                "fn_index",
                "session_hash",
                "trigger_id",
                "event_data",
                "api_name",
                "simple_format",
                "batched",
                "request",
                "event_id",
            )
        )
        body[key] = self.rng.choice((self.value(), self.rng.randrange(-5, 10_000), None, [], {}, "x" * 500, True, 2.5))

    def _file_somewhere(self, body: dict) -> None:
        """A file object at any depth of the values."""
        item = self.file_object()
        for _ in range(self.rng.choice((0, 0, 0, 1, 2, 5, 20))):
            item = self.rng.choice(
                (
                    [item],
                    {"value": item},
                    {"a": [item]},
                    {"content": item},
                    {"files": [item], "text": "x"},
                    [["x", item]],
                )
            )
        if isinstance(body.get("data"), list) and body["data"]:
            body["data"] = [*body["data"]]
            body["data"][self.rng.randrange(len(body["data"]))] = item
        else:
            body[self.rng.choice(("data", "event_data"))] = [item]

    def file_object(self) -> dict:
        """What Gradio takes for a file that was uploaded."""
        path = self.rng.choice(self.surface.files)
        file = {
            "path": self.rng.choice(
                (path, path, path, f"file://{path}", f"./{path}", f"{path}/.", "http://127.0.0.1:9/x", "")
            ),
            "meta": {"_type": "gradio.FileData"},
        }
        extra = self.rng.choice((*FILE_EXTRAS, {"url": f"{API}/file={path}"}))
        return {**file, **extra}

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
        path = (
            self.rng.choice(self.surface.leads[-200:])
            if self.surface.leads and self.rng.random() < 0.5
            else self.rng.choice(self.surface.files)
        )
        way = self.rng.choice(WAYS)
        dots = self.rng.choice(DOTS)
        name = self.rng.choice((path, path.lstrip("/"), quote(path, safe=""), path.upper()))
        return Request("GET", (self.rng.choice((API, API, "")) + way.format(dots + name)).encode(), note="file")

    def upload(self) -> Request:
        """A file that is sent, of odd names and forms."""
        name = self.rng.choice(UPLOAD_NAMES)
        size = self.rng.choice((0, 1, 100, 10_000, 2_000_000))
        part = (
            f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'.encode()
            + b"Content-Type: text/html\r\n\r\n"
            + b"<script>"
            + b"a" * size
        )
        body = part + self.rng.choice((b"\r\n--x--\r\n", b"", b"\r\n--x\r\n", b"\r\n--y--\r\n"))
        target = API + self.rng.choice(
            (
                "/upload",
                "/upload",
                "/upload?upload_id=x",
                "/upload?upload_id=../../x",
                "/process_recording",
                "/component_server",
            )
        )
        return Request("POST", target.encode(), body=body, note="upload").header(
            "Content-Type", "multipart/form-data; boundary=x"
        )

    def page(self) -> Request:
        """The page itself, with odd queries."""
        query = self.rng.choice((*QUERIES, f"?session_hash={self.session()}"))
        return Request("GET", (self.rng.choice(PAGES) + query).encode(), note="page")

    def stream(self) -> Request:
        """Somebody's stream of answers."""
        way = self.rng.choice(
            (
                f"/queue/data?session_hash={quote(str(self.session()))}",
                f"/queue/status?x={self.word()}",
                f"/heartbeat/{quote(str(self.session()))}",
                "/queue/data",
                f"/call/predict/{self.word()}",
                f"/cancel?x={self.word()}",
                "/reset",
            )
        )
        return Request(
            self.rng.choice(("GET", "GET", "GET", "POST")), (API + way).encode("utf-8", "replace"), note="stream"
        )

    def json_post(self, path: str, body: dict, note: str) -> Request:
        return Request("POST", path.encode("utf-8", "replace"), body=self.json(body), note=note).header(
            "Content-Type", "application/json"
        )

    # -- values

    def session(self) -> object:
        """A session: one's own, invented, or the victim's."""
        odd = (None, "", 0, [], {}, "x" * 2000, "../../etc/passwd", True)
        return self.rng.choices(
            (
                self.own_session,
                f"{self.own_session}{self.rng.randrange(300)}",
                self.surface.victim_session,
                self.rng.choice(odd),
            ),
            (60, 15, 15, 10),
        )[0]

    def word(self) -> object:
        """What may stand where a text or a number is meant."""
        return self.rng.choice((*WORDS, *self.surface.files))

    def value(self, depth: int = 0) -> object:
        """Any JSON value where the page would send another one."""
        roll = self.rng.random()
        if roll < 0.07:
            return self.file_object()
        if roll < 0.15 and depth < 3:
            return [self.value(depth + 1) for _ in range(self.rng.randrange(4))]
        if roll < 0.22 and depth < 3:
            return {str(self.word())[:40]: self.value(depth + 1) for _ in range(self.rng.randrange(4))}
        return self.rng.choice(VALUES)

    def json(self, value: object) -> bytes:
        """As JSON, with what JSON does not have where Python writes it."""
        return json.dumps(value).encode("utf-8", "surrogatepass")
