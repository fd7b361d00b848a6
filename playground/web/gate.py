"""The gate of an app with users: nobody passes who has not signed in, and a stream ends when its sign-in does.

The allowlist asks it after it has found the route. Open to everybody are only the probes, the forms themselves
(`sign_in_forms.py`), and what checks a key or token of its own.
"""

import re
import time
from collections.abc import Callable, Iterator
from urllib.parse import parse_qsl, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import Message, Scope, Send

from playground.people import visitor
from playground.people.refusals import UsersUnreadable
from playground.people.sign_ins import Account, SignIns
from playground.store import StoreError
from playground.system.messages import Message as Sentence
from playground.web.bodies import Refusal

OPEN = re.compile(r"/(healthz|readyz|favicon\.ico|robots\.txt)")
KEPT_QUERY = {"shared": 64, "__theme": 10}  # parameters of the page's address, and their longest values
SIGNED_OUT = Sentence("You are signed out. Reload the page to sign in.")
CHECKED_EVERY = 1.0  # seconds after which a stream that sends something is checked again


class SignInFirst(Exception):
    """Whoever asks for the page must sign in; `place` is where."""

    def __init__(self, place: str) -> None:
        self.place = place


class StreamEnded(Exception):
    """Who reads a stream may not any more: the event stream is complete as it is, a download is cut off."""


class Gate:
    """Lets those pass who have signed in."""

    def __init__(self, sign_ins: SignIns) -> None:
        self.sign_ins = sign_ins

    async def check(self, scope: Scope, path: str, is_page: bool) -> None:
        """SignInFirst, or for what is not the page a Refusal, where nobody has signed in. Into `scope` it puts the
        Account of whoever has.
        """
        if OPEN.fullmatch(path):
            return
        account = await self.account(scope)
        if account is None:
            if is_page:
                raise SignInFirst(with_query(f"{scope.get('root_path', '')}/sign-in", scope))
            raise Refusal(401, SIGNED_OUT)
        scope["account"] = account

    async def account(self, scope: Scope) -> Account | None:
        """Who has signed in with the cookie of a request; Refusal where that cannot be told."""
        token = visitor.find_token(HTTPConnection(scope).cookies)
        if token is None:
            return None
        try:
            return await run_in_threadpool(self.sign_ins.find, token, scope.get("proxy_user"))
        except (StoreError, UsersUnreadable) as error:
            raise Refusal(503, error.message) from None

    def watched(self, scope: Scope, send: Send) -> Send:
        """`send` for a stream or a download, which ends it with StreamEnded once its sign-in has ended; Refusal where
        nothing has been sent.
        """
        checked = time.monotonic()
        is_stream = False

        async def watched_send(message: Message) -> None:
            nonlocal checked, is_stream
            starts = message["type"] == "http.response.start"
            if time.monotonic() - checked > CHECKED_EVERY:
                if await self._has_ended(scope):
                    if starts:
                        raise Refusal(401, SIGNED_OUT)
                    if is_stream:  # a download must not look complete
                        await send({"type": "http.response.body", "body": b""})
                    raise StreamEnded
                checked = time.monotonic()
            if starts:
                is_stream = Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream")
            await send(message)

        return watched_send

    async def _has_ended(self, scope: Scope) -> bool:
        try:
            return await self.account(scope) is None
        except Refusal:  # it cannot be told now
            return True


def while_allowed(pieces: Iterator[bytes], is_allowed: Callable[[], bool]) -> Iterator[bytes]:
    """The pieces of a download for as long as its reader may have them, which is asked again now and then; StreamEnded
    once that is over.
    """
    checked = time.monotonic()
    for piece in pieces:
        if time.monotonic() - checked > CHECKED_EVERY:
            if not is_allowed():
                raise StreamEnded
            checked = time.monotonic()
        yield piece


def kept_query(scope: Scope) -> str:
    """The query parameters that the page reads, as they are in its address."""
    pairs = parse_qsl(scope["query_string"].decode("latin-1"))
    return urlencode([(key, value) for key, value in pairs if key in KEPT_QUERY and len(value) <= KEPT_QUERY[key]])


def with_query(path: str, scope: Scope) -> str:
    """A path of the app with those parameters."""
    query = kept_query(scope)
    return f"{path}?{query}" if query else path
