"""Who is asking: the cookie that makes a browser an annotator, and who counts as the owner of the machine.

An identity is a random token in an HttpOnly cookie; scripts on the page cannot read it and nothing that a page sends can replace it.
What an annotator may do is decided where it is done, not here.
"""

import re
import secrets
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection

COOKIE = "nudge_id"
YEAR = 365 * 24 * 3600
_FORM = re.compile(r"[\w-]{43}", re.ASCII)  # what secrets.token_urlsafe(32) gives


class NoCookie(Exception):
    """The browser sent no identity back; the message says what to do."""


def token(cookies):
    """The visitor's token from a request's cookies; NoCookie when the browser keeps none (a blocked third-party frame, mostly)."""
    value = cookies.get(COOKIE, "")
    if not _FORM.fullmatch(value):
        raise NoCookie("Your browser keeps no cookie for this page, so nobody could tell your votes from another's. "
                       "Open the page in a tab of its own, or reload it.")
    return value


def is_owner(settings, request):
    """Whether the person sits at this machine: the server listens on loopback only, and the request came over it under a loopback name.

    The name is checked because a web page elsewhere can point a name of its own at 127.0.0.1.
    """
    name = request.headers.get("host", "").rsplit(":", 1)[0]
    return all(map(_loopback, (settings.host, request.client.host if request.client else "", name)))


def _loopback(host):
    host = host.strip("[]")
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class Cookies:
    """ASGI middleware: a page (an HTML answer) to a browser without a cookie brings one. It passes bodies on untouched, so streams stay streams."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or _FORM.fullmatch(HTTPConnection(scope).cookies.get(COOKIE, "")):
            return await self.app(scope, receive, send)

        async def with_cookie(message):
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.append("set-cookie", new_cookie(Headers(scope=scope)))
            await send(message)

        await self.app(scope, receive, with_cookie)


def from_own_page(request):
    """Whether a script of our own page sent this: another site's cannot add the header without our leave, and we give none (CORS)."""
    return request.headers.get("x-nudge") == "page" and request.headers.get("sec-fetch-site", "same-origin") == "same-origin"


def new_cookie(headers):
    """The Set-Cookie value of a new identity, for a browser that sent these `headers`."""
    # a Space is shown in a frame on another site: there a cookie must be SameSite=None, Secure, and is best kept apart for each site
    framed = "SameSite=None; Secure; Partitioned" if headers.get("x-forwarded-proto", "") == "https" else "SameSite=Lax"
    return f"{COOKIE}={secrets.token_urlsafe(32)}; Path=/; Max-Age={YEAR}; HttpOnly; {framed}"
