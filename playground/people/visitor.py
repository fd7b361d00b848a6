"""Who sends a request: the cookie that makes a browser an annotator.

An identity is a random token in an HttpOnly cookie: scripts on the page cannot read it, and nothing that a page sends
can replace it. What an annotator may do is decided elsewhere, where it is done. Whether a request came over https is
what `playground/web/proxies.py` has put into its scope.
"""

import re
import secrets
from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from playground import settings
from playground.system.messages import UserFacingError

COOKIE = "nudge_id"
YEAR = 365 * 24 * 3600  # seconds
TOKEN_BYTES = 32
TOKEN_FORM = re.compile(r"[\w-]{43}", re.ASCII)  # of secrets.token_urlsafe(TOKEN_BYTES)


class NoCookie(UserFacingError):
    """The browser has sent no identity; the message says what to do."""


def token(cookies: Mapping[str, str]) -> str:
    """The visitor's token from a request's cookies.

    NoCookie when there is none: mostly in a frame on another site, where the browser blocks cookies.
    """
    value = find_token(cookies)
    if not value:
        raise NoCookie(
            "Your browser keeps no cookie for this page, so nobody could tell your votes from another's. "
            "Open the page in a tab of its own, or reload it."
        )
    return value


def find_token(cookies: Mapping[str, str]) -> str | None:
    """The visitor's token from a request's cookies, or None where there is none of the right form."""
    value = cookies.get(COOKIE, "")
    return value if TOKEN_FORM.fullmatch(value) else None


def new_token() -> str:
    """The token of a new identity."""
    return secrets.token_urlsafe(TOKEN_BYTES)


class CookieMiddleware:
    """ASGI middleware: sets a cookie with a page (an HTML answer) for a browser that has none.

    Bodies pass through untouched, so streams remain streams.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or find_token(HTTPConnection(scope).cookies):
            await self.app(scope, receive, send)
            return

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.append("set-cookie", set_cookie_header(scope, new_token()))
            await send(message)

        await self.app(scope, receive, send_with_cookie)


def set_cookie_header(scope: Scope, value: str) -> str:
    """The Set-Cookie header that gives the browser of an ASGI `scope` the token `value`; "" takes it away."""
    if scope.get("scheme") != "https":
        attributes = "SameSite=Lax"
    elif settings.ON_SPACE:
        # A Space is shown in a frame on another site. There a cookie must be SameSite=None and Secure; Partitioned
        # keeps it apart for each site.
        attributes = "SameSite=None; Secure; Partitioned"
    else:
        attributes = "SameSite=Lax; Secure"
    path = scope.get("app_root_path", scope.get("root_path")) or "/"
    return f"{COOKIE}={value}; Path={path}; Max-Age={YEAR if value else 0}; HttpOnly; {attributes}"
