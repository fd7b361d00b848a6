"""The door in front of Gradio: what is not named here does not exist.

A mounted Gradio app has none of the checks that Gradio ties to `launch()`, and serves uploads, files, proxies and
editors that this page has no use for. So a request passes only if its route and method are in ROUTES, its body is one
that the page could send (`payload.py`), it comes from the page's own origin (`headers.py`) and within the visitor's
limits (`limits.py`). Everything else is 404. It must be the outermost middleware but for the one that believes a
trusted proxy.
"""

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse

from playground.people import visitor
from playground.settings import ON_SPACE, SPACE_SIGN_IN, Settings
from playground.system.messages import Message as Sentence
from playground.system.messages import UserFacingError, plain
from playground.web import headers as answer_headers
from playground.web import payload
from playground.web.limits import Limits, NotTheirs, TooMuch, Visitor
from playground.web.payload import BadPayload, Handler

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

SESSION = r"[A-Za-z0-9_-]{1,64}"  # a page's name, which its browser thinks of
FILE = r"[\w@-][\w.@-]{0,150}"
COSTLY = 10  # requests that a page, or the start of a stream, counts as; they take the server that much longer
KEPT_QUERY = {"shared": 64, "__theme": 10}  # parameters of the page's address, and how long they may be


class Way(Enum):
    """What is done with a request that passes."""

    OWN = "a route of this app"
    PAGE = "the page"
    ASSET = "a file of Gradio's frontend"
    CALL = "a gesture that answers at once"
    JOIN = "a gesture that streams"
    READ = "the stream of what a session's gestures answer"
    BEAT = "the stream that says that a page is open"
    SIGN_IN = "Hugging Face's sign-in"


@dataclass(frozen=True)
class Route:
    """Requests that pass: their method and their path."""

    methods: frozenset[str]
    path: re.Pattern
    way: Way


def route(methods: str, path: str, way: Way) -> Route:
    return Route(frozenset(methods.split()), re.compile(path, re.ASCII), way)


ROUTES = [
    route("GET HEAD", r"/(healthz|readyz)", Way.OWN),
    route("GET HEAD", r"/admin/[A-Za-z0-9_-]{1,100}", Way.OWN),
    route("POST", r"/forget", Way.OWN),
    route("GET HEAD", r"/", Way.PAGE),
    route("GET HEAD", rf"/(assets|static)(/{FILE}){{1,8}}", Way.ASSET),
    route("GET HEAD", r"/(theme\.css|favicon\.ico|robots\.txt|manifest\.json)", Way.ASSET),
    route("POST", r"/gradio_api/run/predict", Way.CALL),
    route("POST", r"/gradio_api/queue/join", Way.JOIN),
    route("GET", r"/gradio_api/queue/data", Way.READ),
    route("GET", rf"/gradio_api/heartbeat/{SESSION}", Way.BEAT),
]
SIGN_IN = route("GET", r"/(login/huggingface|login/callback|logout)", Way.SIGN_IN)


class Refusal(UserFacingError):
    """A request that does not pass, with the status that says why. A plain text is for whoever sends requests that the
    page does not; what a person may read is a Message.
    """

    def __init__(self, status: int, message: str | Sentence) -> None:
        super().__init__(message if isinstance(message, Sentence) else plain(message))
        self.status = status


class Allowlist:
    """ASGI middleware. `handlers` are Gradio's, by their number; `stop` ends what a session has asked for, and
    `pending` says whether it has asked for anything; `translate` puts a sentence into the language of an
    Accept-Language header; `head` is the HTML that Gradio puts into the page's head once it runs.
    """

    def __init__(
        self,
        app: Callable,
        settings: Settings,
        handlers: dict[int, Handler],
        limits: Limits,
        stop: Callable[[str], Awaitable[None]],
        pending: Callable[[str], bool],
        translate: Callable[[str, Sentence], str] = lambda _, message: str(message),
        head: str = "",
    ) -> None:
        self.app, self.settings, self.handlers, self.limits = app, settings, handlers, limits
        self.stop, self.pending, self.translate = stop, pending, translate
        self.scripts = answer_headers.sources(head.encode())
        self.routes = [*ROUTES, *([SIGN_IN] if SPACE_SIGN_IN else [])]
        self.max_bytes = settings.request_kb << 10

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:  # no part of the page opens a WebSocket
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = Answer(send, self.settings.request_seconds, self.scripts)
        try:
            with ExitStack() as held:
                scope, receive = await self._checked(scope, receive, answer, held)
                await self.app(scope, receive, answer.send)
                await answer.end()
        except Refusal as refusal:
            said = self.translate(Headers(scope=scope).get("accept-language", ""), refusal.message)
            body = {"error": said, "detail": said}  # Gradio's page reads one here and the other there
            retry = {"retry-after": "10"} if refusal.status == 429 else {}
            await JSONResponse(body, refusal.status, retry)(scope, receive, answer.send)
            await answer.end()
        except TimeoutError:
            log.info(
                "a browser took no part of its answer for %.0f s; the connection is closed",
                self.settings.request_seconds,
            )

    async def _checked(
        self, scope: Scope, receive: Receive, answer: "Answer", held: ExitStack
    ) -> tuple[Scope, Receive]:
        """The request as Gradio gets it, its share of the limits held until it is answered; Refusal where it does not
        pass.
        """
        path, way = self._way(scope)
        headers, visitor_ = Headers(scope=scope), who(scope)
        changes = scope["method"] == "POST" or way in (Way.READ, Way.BEAT)  # a stream that ends, ends what it shows
        if changes and answer_headers.is_foreign(headers):
            raise Refusal(403, Sentence("This request came from another site. Open the page itself."))
        scope = {**scope, "headers": [(k, v) for k, v in scope["headers"] if k != b"range"]}
        try:
            if way in (Way.READ, Way.BEAT):
                name = self._session(scope, path)
                if way is Way.READ:
                    scope["query_string"] = f"session_hash={name}".encode()
                held.enter_context(self.limits.stream(visitor_, name, reads=way is Way.READ))
            elif way is Way.ASSET:
                self.limits.asset(visitor_)
            else:
                held.enter_context(self.limits.request(visitor_, COSTLY if way in (Way.PAGE, Way.JOIN) else 1))
            if way in (Way.CALL, Way.JOIN):
                call, receive = await self._gesture(way, headers, receive)
                session = self.limits.session(visitor_, call.session_hash)
                if way is Way.JOIN:
                    asyncio.get_running_loop().call_later(
                        self.settings.unread_seconds, self._stop_unread, call.session_hash, session, session.opened
                    )
        except TooMuch as error:
            raise Refusal(429, error.message) from None
        except NotTheirs as error:
            raise Refusal(403, error.message) from None
        answer.expects(way, headers)
        if way is Way.PAGE:
            scope = page_scope(scope)
        return scope, receive

    def _way(self, scope: Scope) -> tuple[str, Way]:
        """The path below the app's own, and its way; Refusal 404 for everything that is not named."""
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        for allowed in self.routes:
            if scope["method"] in allowed.methods and allowed.path.fullmatch(path):
                return path, allowed.way
        raise Refusal(404, "Not found")

    def _session(self, scope: Scope, path: str) -> str:
        """The name of the session whose stream a request asks for."""
        if path.startswith("/gradio_api/heartbeat/"):
            return path.rsplit("/", 1)[-1]
        name = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("session_hash", "")
        if not re.fullmatch(SESSION, name) or name not in self.limits.sessions or not self.pending(name):
            raise Refusal(404, "Not found")
        return name

    async def _gesture(self, way: Way, headers: Headers, receive: Receive) -> tuple[payload.Call, Receive]:
        """The checked gesture of a request, and a `receive` that gives it written anew."""
        if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "A gesture is sent as JSON.")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "A gesture is sent as it is, not packed.")
        body = await read_body(headers, receive, self.max_bytes, self.settings.request_seconds)
        try:
            call = payload.read(body, self.handlers, queued=way is Way.JOIN)
        except BadPayload as error:
            raise Refusal(422, str(error)) from None
        return call, replay(call.model_dump_json().encode(), receive)

    def _stop_unread(self, name: str, session, opened: int) -> None:
        """End the replies of a session that has asked for some and reads none."""
        if not session.readers and session.opened == opened:
            asyncio.ensure_future(self.stop(name))


def who(scope: Scope) -> Visitor:
    """The Visitor who sends a request."""
    connection = HTTPConnection(scope)
    try:
        token = visitor.token(connection.cookies)
    except visitor.NoCookie:
        token = ""
    return Visitor.of(token, connection.client.host if connection.client else "")


def page_scope(scope: Scope) -> Scope:
    """The request for the page with nothing of its address but what the page reads, and for an answer that is not
    packed yet.
    """
    pairs = parse_qsl(scope["query_string"].decode("latin-1"))
    kept = [(key, value) for key, value in pairs if key in KEPT_QUERY and len(value) <= KEPT_QUERY[key]]
    # the page calls the address that it was loaded from, whatever the Host header says; so one page serves all
    headers = [(k, v) for k, v in scope["headers"] if k not in (b"accept-encoding", b"if-none-match", b"host")]
    headers.append((b"host", b"localhost"))
    return {**scope, "query_string": urlencode(kept).encode(), "headers": headers}


async def read_body(headers: Headers, receive: Receive, most: int, seconds: float) -> bytes:
    """A request's body, whole; Refusal where it is longer than `most` bytes or takes longer than `seconds`."""
    too_long = Refusal(413, f"The request is larger than {most >> 10} KB.")
    if headers.get("content-length", "0").isdigit() and int(headers.get("content-length", "0")[:20]) > most:
        raise too_long
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(400, "The request ended early.")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    raise too_long
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        raise Refusal(408, "The request took too long to arrive.") from None


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` once and then what the connection says."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


class Answer:
    """What goes back to the browser: our headers on it, a page with the hashes of its scripts, no part of it waiting
    for ever to be read.
    """

    def __init__(self, send: Send, seconds: float, scripts: tuple[str, ...]) -> None:
        self._send, self._seconds, self._scripts = send, seconds, scripts
        self._whole = self._packed = False
        self._start, self._parts = None, []

    def expects(self, way: Way, request: Headers) -> None:
        """The answer to this kind of request: a page, and a gesture's answer, are gathered whole before they
        are sent.
        """
        self._whole = way in (Way.PAGE, Way.CALL)
        self._packed = "gzip" in request.get("accept-encoding", "")

    async def send(self, message: Message) -> None:
        """The next part, from the app."""
        if message["type"] == "http.response.start":
            self._start = {**message, "headers": list(message.get("headers", []))}
            if not self._gathers:
                answer_headers.harden(MutableHeaders(raw=self._start["headers"]), (), ON_SPACE)
                await self._pass_on(self._start)
        elif self._gathers:
            self._parts.append(message.get("body", b""))
        else:
            await self._pass_on(message)

    @property
    def _gathers(self) -> bool:
        """A page for its scripts, and a failed gesture for what it says."""
        if not self._whole or self._start is None:
            return False
        kind = Headers(raw=self._start["headers"]).get("content-type", "")
        return kind.startswith("text/html") or self._start["status"] == 500

    async def end(self) -> None:
        """Send what was gathered."""
        if not self._gathers:
            return
        headers, body, scripts = MutableHeaders(raw=self._start["headers"]), b"".join(self._parts), ()
        if self._start["status"] == 500:
            self._start["status"] = 403 if is_sentence(headers, body) else 500
        elif body:
            page = answer_headers.page(body)
            body, scripts = (page.packed if self._packed else page.plain), page.scripts + self._scripts
            headers["vary"] = "accept-encoding"
            headers["cache-control"] = "no-cache"
            if self._packed:
                headers["content-encoding"] = "gzip"
            headers["content-length"] = str(len(body))
        answer_headers.harden(headers, scripts, ON_SPACE)
        await self._pass_on(self._start)
        await self._pass_on({"type": "http.response.body", "body": body})

    async def _pass_on(self, message: Message) -> None:
        async with asyncio.timeout(self._seconds):
            await self._send(message)


def is_sentence(headers: Headers, body: bytes) -> bool:
    """Whether a failed gesture was refused by its handler in words (`gr.Error`), for which Gradio knows no status but
    500.
    """
    if headers.get("content-encoding"):
        return False
    try:
        return bool(json.loads(body).get("error"))
    except (ValueError, AttributeError):
        return False
