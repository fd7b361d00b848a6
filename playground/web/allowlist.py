"""The allowlist in front of Gradio: a request passes only if it is named here.

A mounted Gradio app has none of the checks that Gradio ties to `launch()`, and serves uploads, files, proxies and
editors that this page does not use. So a request passes only if its route and method are in ROUTES, it comes from the
page's own origin (`headers.py`), in an app with users its sender has signed in (`gate.py`), its body is one that the
page could send (`payload.py`), and it is within the visitor's limits (`limits.py`). Every other route is a 404. Only
the middleware that reads proxies' headers may be outside of this one.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from playground.people import visitor
from playground.settings import SPACE_SIGN_IN, Settings
from playground.system.messages import Message as Sentence
from playground.web import bodies, payload
from playground.web import headers as answer_headers
from playground.web.answer import Answer, within
from playground.web.bodies import Refusal
from playground.web.gate import Gate, SignInFirst, StreamEnded, kept_query
from playground.web.limits import ForeignSession, Limits, Session, TooMuch, Visitor
from playground.web.metrics import may_read
from playground.web.payload import BadPayload, Handler
from playground.web.slowing import Slowing

log = logging.getLogger(__name__)

SESSION = r"[A-Za-z0-9_-]{1,64}"  # a page's name, which its browser invents
FILE = r"[\w@-][\w.@-]{0,150}"
# requests that a page, a download or a stream's start counts as, since it takes the server that much longer
COSTLY = 10
LONGEST_KEY = 200  # characters of an Authorization header that tell who asks
RETRY_AFTER = "10"  # seconds; the header for a browser that sends too much


class Kind(Enum):
    """What kind of request a route serves."""

    OWN = "a route of this app"
    API = "a request of another program, with a key"
    METRICS = "the figures for Prometheus"
    DOWNLOAD = "a version's adapter, or an export of what people judged"
    PAGE = "the page"
    ASSET = "a file of Gradio's frontend"
    CALL = "a gesture that answers at once"
    JOIN = "a gesture that streams"
    READ = "the stream of what a session's gestures answer"
    HEARTBEAT = "the stream that shows that a page is open"
    SIGN_IN = "Hugging Face's sign-in"
    FORM = "a form by which somebody signs in or out"

    @property
    def is_stream(self) -> bool:
        return self in (Kind.READ, Kind.HEARTBEAT)

    @property
    def is_gesture(self) -> bool:
        return self in (Kind.CALL, Kind.JOIN)

    @property
    def is_costly(self) -> bool:
        return self in (Kind.PAGE, Kind.JOIN, Kind.DOWNLOAD, Kind.API, Kind.FORM)

    @property
    def is_open(self) -> bool:
        """Whether the route itself checks who asks."""
        return self in (Kind.API, Kind.METRICS, Kind.FORM)


@dataclass(frozen=True)
class Route:
    """Requests that pass: their methods, their path and their kind."""

    methods: frozenset[str]
    path: re.Pattern[str]
    kind: Kind


def route(methods: str, path: str, kind: Kind) -> Route:
    """A Route; `methods` with blanks between, `path` as a regular expression for the whole path."""
    return Route(frozenset(methods.split()), re.compile(path, re.ASCII), kind)


ROUTES = [
    route("GET HEAD", r"/(healthz|readyz|changes)", Kind.OWN),
    route("GET HEAD", r"/admin/[A-Za-z0-9_-]{1,100}", Kind.OWN),
    route("GET", r"/metrics", Kind.METRICS),
    route("GET", r"/v1/models", Kind.API),
    route("POST", r"/v1/(chat/completions|feedback)", Kind.API),
    route("POST", r"/forget", Kind.OWN),
    route("GET", r"/adapters/v[0-9]{1,6}\.zip", Kind.DOWNLOAD),
    route("GET", r"/export/[a-z]{1,20}\.jsonl", Kind.DOWNLOAD),
    route("GET HEAD", r"/", Kind.PAGE),
    route("GET HEAD", rf"/(assets|static)(/{FILE}){{1,8}}", Kind.ASSET),
    route("GET HEAD", r"/(theme\.css|favicon\.ico|robots\.txt|manifest\.json)", Kind.ASSET),
    route("POST", r"/gradio_api/run/predict", Kind.CALL),
    route("POST", r"/gradio_api/queue/join", Kind.JOIN),
    route("GET", r"/gradio_api/queue/data", Kind.READ),
    route("GET", rf"/gradio_api/heartbeat/{SESSION}", Kind.HEARTBEAT),
]
SIGN_IN = route("GET", r"/(login/huggingface|login/callback|logout)", Kind.SIGN_IN)
FORMS = route("GET HEAD POST", r"/(sign-in|sign-out|invitation/[A-Za-z0-9_-]{1,100})", Kind.FORM)
PROVIDER = route("GET", r"/sign-in/(provider|callback)", Kind.FORM)
LARGEST_FORM = 8 << 10  # bytes


class Allowlist:
    """ASGI middleware.

    `handlers`: Gradio's, by their number. `stop`: ends what a session has asked for. `pending`: whether a session has
    asked for anything. `translate`: puts a sentence into the language of an Accept-Language header. `head`: the HTML
    that Gradio puts into the page's head. `gate`: of an app with users.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        handlers: dict[int, Handler],
        limits: Limits,
        stop: Callable[[str], Awaitable[None]],
        pending: Callable[[str], bool],
        translate: Callable[[str, Sentence], str] = lambda _, message: str(message),
        head: str = "",
        gate: Gate | None = None,
    ) -> None:
        self.app = app
        self.settings = settings
        self.handlers = handlers
        self.limits = limits
        self.stop = stop
        self.pending = pending
        self.translate = translate
        self.scripts = answer_headers.sources(head.encode())
        self.gate = gate
        self.routes = [*ROUTES]
        if gate:
            self.routes.append(FORMS)
        elif SPACE_SIGN_IN:
            self.routes.append(SIGN_IN)
        if settings.oidc.issuer:
            self.routes.append(PROVIDER)
        self.max_bytes = settings.limits.request_kb << 10
        self.slowing = Slowing()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:  # no part of the page opens a WebSocket
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = visitor_of(scope)
        seconds = self.settings.limits.request_seconds
        # what a refusal is held is no time that the browser takes
        answer = Answer(self.slowing.of(sender.address, within(seconds, send)), self.scripts)
        try:
            await self._answered(scope, receive, sender, answer)
        except TimeoutError:
            log.info("a browser took no part of its answer for %g s; the connection is closed", seconds)

    async def _answered(self, scope: Scope, receive: Receive, sender: Visitor, answer: Answer) -> None:
        """Answer a request, with what it asks for or with why not."""
        try:
            with ExitStack() as held:
                with refusing():
                    scope, receive, kind = await self._checked(scope, receive, sender, answer, held)
                send_on: Send = answer.send
                if self.gate and (kind.is_stream or kind is Kind.DOWNLOAD):
                    send_on = self.gate.watched(scope, send_on)
                await self.app(scope, receive, send_on)
                await answer.end()
        except SignInFirst as first:
            await RedirectResponse(first.place, 303, {"cache-control": "no-store"})(scope, receive, answer.send)
        except StreamEnded:
            log.info("a stream or download has ended with the right to it")
        except Refusal as refusal:
            sentence = self.translate(Headers(scope=scope).get("accept-language", ""), refusal.message)
            # Gradio's page reads one here and the other there; other programs read OpenAI's shape
            body: dict[str, Any] = {"error": sentence, "detail": sentence}
            if is_api(scope):
                body = {"error": {"message": sentence, "type": "invalid_request_error", "param": None, "code": None}}
            retry = {"retry-after": RETRY_AFTER} if refusal.status == 429 else {}
            await JSONResponse(body, refusal.status, retry)(scope, receive, answer.send)
            await answer.end()

    async def _checked(
        self, scope: Scope, receive: Receive, sender: Visitor, answer: Answer, held: ExitStack
    ) -> tuple[Scope, Receive, Kind]:
        """The request as Gradio gets it, and its kind; Refusal or SignInFirst where it does not pass.

        Its share of the limits is put into `held`, which is closed when the request has been answered.
        """
        headers = Headers(scope=scope)
        path, kind = self._route(scope, headers, sender)
        scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if name != b"range"]}
        if kind is Kind.ASSET:
            self.limits.asset(sender)
        elif not kind.is_stream:
            cost = COSTLY if kind.is_costly else 1
            held.enter_context(self.limits.request(sender, cost))
        with self._counting_refusals(sender) if kind.is_stream else nullcontext():  # a stream itself costs nothing
            if self.gate and not kind.is_open:
                await self.gate.check(scope, path, is_page=kind is Kind.PAGE)
            name = self._session_name(scope, path) if kind.is_stream else ""
        if kind.is_stream:
            if kind is Kind.READ:
                scope["query_string"] = f"session_hash={name}".encode()
            held.enter_context(self.limits.stream(sender, name, reads=kind is Kind.READ))
        if kind is Kind.API and scope["method"] == "POST":
            receive = bodies.replay(
                await bodies.read_json(headers, receive, self.max_bytes, self.settings.limits.request_seconds),
                receive,
            )
        if kind is Kind.FORM and scope["method"] == "POST":
            receive = bodies.replay(
                await bodies.read_form(headers, receive, LARGEST_FORM, self.settings.limits.request_seconds),
                receive,
            )
        if kind.is_gesture:
            call, receive = await self._gesture(kind, headers, receive)
            if self.gate:  # the body may have taken its time, and the sign-in has ended meanwhile
                await self.gate.check(scope, path, is_page=False)
            session = self.limits.session(sender, call.session_hash)
            if kind is Kind.JOIN:
                asyncio.get_running_loop().call_later(
                    self.settings.limits.unread_seconds,
                    self._stop_unread,
                    call.session_hash,
                    session,
                    session.opened,
                )
        answer.expect(headers, may_gather=kind in (Kind.PAGE, Kind.CALL))
        if kind is Kind.PAGE:
            scope = page_scope(scope)
        return scope, receive, kind

    def _route(self, scope: Scope, headers: Headers, sender: Visitor) -> tuple[str, Kind]:
        """`_found`, for a request of the page itself; else Refusal 403."""
        with self._counting_refusals(sender):
            path, kind = self._found(scope)
            # a stream changes something too: when it ends, what it shows is ended
            if (scope["method"] == "POST" or kind.is_stream) and answer_headers.is_foreign(headers):
                raise Refusal(403, Sentence("This request came from another site. Open the page itself."))
        return path, kind

    @contextmanager
    def _counting_refusals(self, sender: Visitor) -> Iterator[None]:
        """What is refused inside takes its part of the requests of a minute too."""
        try:
            yield
        except Refusal:
            self.limits.count(sender)
            raise

    def _found(self, scope: Scope) -> tuple[str, Kind]:
        """The path without the app's own prefix, and the kind of its route; Refusal 404 where no route matches."""
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        for allowed in self.routes:
            if scope["method"] in allowed.methods and allowed.path.fullmatch(path):
                if allowed.kind is Kind.METRICS and not may_read(scope, self.settings.metrics.token):
                    break
                return path, allowed.kind
        raise Refusal(404, "Not found")

    def _session_name(self, scope: Scope, path: str) -> str:
        """The name of the session whose stream a request asks for."""
        if path.startswith("/gradio_api/heartbeat/"):
            return path.rsplit("/", 1)[-1]
        name = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("session_hash", "")
        if not re.fullmatch(SESSION, name) or name not in self.limits.sessions or not self.pending(name):
            raise Refusal(404, "Not found")
        return name

    async def _gesture(self, kind: Kind, headers: Headers, receive: Receive) -> tuple[payload.Call, Receive]:
        """The checked gesture of a request, and a `receive` that gives a body made of it."""
        body = await bodies.read_json(headers, receive, self.max_bytes, self.settings.limits.request_seconds)
        try:
            call = payload.read(body, self.handlers, queued=kind is Kind.JOIN)
        except BadPayload as error:
            raise Refusal(422, str(error)) from None
        return call, bodies.replay(call.model_dump_json().encode(), receive)

    def _stop_unread(self, name: str, session: Session, opened: int) -> None:
        """End the replies of a session that has asked for some and has not opened a stream to read them."""
        if not session.readers and session.opened == opened:
            asyncio.ensure_future(self.stop(name))


@contextmanager
def refusing() -> Iterator[None]:
    """What the limits refuse inside, as a Refusal."""
    try:
        yield
    except TooMuch as error:
        raise Refusal(429, error.message) from None
    except ForeignSession as error:
        raise Refusal(403, error.message) from None


def visitor_of(scope: Scope) -> Visitor:
    """The visitor who sends a request."""
    connection = HTTPConnection(scope)
    token = visitor.find_token(connection.cookies) or ""
    if is_api(scope):  # such a request is of whoever has the key, not of a browser
        token = connection.headers.get("authorization", "")[:LONGEST_KEY]
    return Visitor.of(token, connection.client.host if connection.client else "")


def is_api(scope: Scope) -> bool:
    """Whether a request is one of other programs."""
    return str(scope["path"]).removeprefix(scope.get("root_path", "")).startswith("/v1/")


def page_scope(scope: Scope) -> Scope:
    """The request for the page, with only the query parameters that the page reads, and for an unpacked answer."""
    # The page calls the address that it was loaded from, whatever the Host header says. So one page serves all hosts.
    left_out = (b"accept-encoding", b"if-none-match", b"host")
    headers = [(name, value) for name, value in scope["headers"] if name not in left_out]
    headers.append((b"host", b"localhost"))
    return {**scope, "query_string": kept_query(scope).encode(), "headers": headers}
