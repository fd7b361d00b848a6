"""Who is asking: the cookie that makes a browser an annotator.

An identity is a random token in an HttpOnly cookie; scripts on the page cannot read it and nothing that a page sends
can replace it. What an annotator may do is decided where it is done, not here. Whether a request came over https is
what `proxies.py` put into its scope.
"""

import re
import secrets

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection

from playground import settings
from playground.system.messages import UserFacingError

COOKIE = "nudge_id"
YEAR = 365 * 24 * 3600
_FORM = re.compile(r"[\w-]{43}", re.ASCII)  # what secrets.token_urlsafe(32) gives


class NoCookie(UserFacingError):
    """The browser sent no identity back; the message says what to do."""


def token(cookies):
    """The visitor's token from a request's cookies; NoCookie when the browser keeps none (a blocked third-party frame,
    mostly).
    """
    value = given(cookies)
    if not value:
        raise NoCookie(
            "Your browser keeps no cookie for this page, so nobody could tell your votes from another's. "
            "Open the page in a tab of its own, or reload it."
        )
    return value


def given(cookies):
    """The visitor's token from a request's cookies, or None where there is none of the right form."""
    value = cookies.get(COOKIE, "")
    return value if _FORM.fullmatch(value) else None


class Cookies:
    """ASGI middleware: a page (an HTML answer) to a browser without a cookie brings one. It passes bodies on untouched,
    so streams stay streams.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or given(HTTPConnection(scope).cookies):
            return await self.app(scope, receive, send)

        async def with_cookie(message):
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.append("set-cookie", cookie(scope, new_token()))
            await send(message)

        await self.app(scope, receive, with_cookie)


def new_token():
    """A new identity's token."""
    return secrets.token_urlsafe(32)


def cookie(scope, value):
    """The Set-Cookie header that gives the browser of an ASGI `scope` the token `value`."""
    if scope.get("scheme") != "https":
        kind = "SameSite=Lax"
    elif settings.ON_SPACE:
        # shown in a frame on another site: there a cookie must be SameSite=None, Secure, and is best kept apart for
        # each site
        kind = "SameSite=None; Secure; Partitioned"
    else:
        kind = "SameSite=Lax; Secure"
    path = scope.get("app_root_path", scope.get("root_path")) or "/"
    return f"{COOKIE}={value}; Path={path}; Max-Age={YEAR}; HttpOnly; {kind}"
