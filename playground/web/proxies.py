"""Reverse proxies: which of them are trusted to say a request's client address, scheme, host and path prefix.

An ASGI middleware, the outermost one. It also says, in `scope["direct"]`, whether a request came from this machine
through no proxy at all, in `scope["host_by_proxy"]`, that its host is a trusted proxy's word, and gives each request
its name (`request_ids.py`).

A proxy named in `trusted_proxies` is trusted with the last value of each header,
which is the one that it wrote itself. Forwarding headers from anybody else are removed, so that nothing inside can use
them. Who is an admin never depends on an address.

It also refuses host names that are not the app's: a page elsewhere can let its own name point to this machine (DNS
rebinding), and a browser then takes that page and the app for one origin.
"""

import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_network

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from playground.people.addresses import parse_ip
from playground.settings import Settings
from playground.system import log_ids
from playground.web import request_ids

FORWARDING = re.compile(
    r"forwarded|x-forwarded|x-forwarded-.*|x-original-.*|x-rewrite-.*|x-real-ip|x-client-ip|x-cluster-client-ip|"
    r"true-client-ip|cf-connecting-ip|fastly-client-ip|x-scheme|x-url-scheme|x-gradio-server"
)
HOST = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:\d{1,5})?")
PREFIX = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
# the cookies that the app sets, with their form: the identity, and the session of Hugging Face's sign-in
COOKIES = {b"nudge_id": re.compile(rb"[\w-]{43}"), b"session": re.compile(rb"[\w.=+/-]{1,3500}")}
ANY = None  # the app answers to any host name
LONGEST_COOKIES = 16 << 10  # bytes
NOT_OURS = (
    "This app answers to the names of its own machine, such as localhost, and not to {0}. Behind a proxy, start it "
    "with --trusted-proxies; for this name alone, with --allowed-hosts {0}\n"
)
LONGEST_PREFIX = 200  # characters
SCHEMES = {"http": "ws", "https": "wss"}  # the schemes that may be forwarded, with their names on a WebSocket

RawHeaders = list[tuple[bytes, bytes]]


class Proxies:
    """`trusted`: addresses and networks of trusted proxies, with commas between.

    `root_path`: the prefix of every path, or "". A proxy may pass it on or cut it off; the app gets a path that begins
    with it, as ASGI demands. `hosts`: the host names that the app answers to besides this machine's, or ANY.
    """

    def __init__(
        self, app: ASGIApp, trusted: str = "", root_path: str = "", hosts: frozenset[str] | None = ANY
    ) -> None:
        self.app = app
        self.root_path = root_path
        self.hosts = hosts
        self.trusted = [ip_network(part.strip(), strict=False) for part in trusted.split(",") if part.strip()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        sent_headers = Headers(scope=scope)
        kept = [pair for pair in scope["headers"] if not is_forwarding(pair[0]) and pair[0] != b"cookie"]
        direct = is_direct(scope, sent_headers)
        scope = {**scope, "headers": [*kept, *known_cookies(scope["headers"])], "direct": direct}
        prefix = self.root_path
        trusted = self.trusts(_peer(scope))
        if scope["type"] == "http":
            scope["request_id"] = request_ids.name_of(sent_headers, trusted)
            log_ids.begin(scope["request_id"])
            send = request_ids.adding(send, scope["request_id"])
        if trusted:
            self._apply_forwarded(scope, sent_headers)
            prefix = prefix or forwarded_prefix(sent_headers)
        if scope["type"] == "http" and (answer := self._own_answer(scope, prefix)):
            await answer(scope, receive, send)
            return
        if prefix:
            _add_prefix(scope, prefix)
        await self.app(scope, receive, send)

    def _own_answer(self, scope: Scope, prefix: str) -> Response | None:
        """The answer to a request for another host, or for the prefix without a slash; None for all others."""
        host = Headers(scope=scope).get("host")
        if host and not HOST.fullmatch(host):
            return PlainTextResponse("The Host header is not the name of a host.\n", 400)
        if host and not self.answers_to(host_name(host)):
            return PlainTextResponse(NOT_OURS.format(host_name(host)), 421)
        if prefix and scope["path"] == prefix:
            # the links of the page are relative to the folder that it is in
            query = scope.get("query_string", b"").decode("latin-1")
            return RedirectResponse(f"{prefix}/?{query}" if query else f"{prefix}/", 307)
        return None

    def answers_to(self, name: str) -> bool:
        """Whether a host name is one of the app's."""
        return self.hosts is ANY or name in self.hosts or is_this_machine(name)

    def trusts(self, address: str) -> bool:
        """Whether an address is one of the trusted proxies'."""
        ip = parse_ip(address)
        return ip is not None and any(ip in network for network in self.trusted)

    def _apply_forwarded(self, scope: Scope, headers: Headers) -> None:
        """Put client, scheme and host into `scope` as a trusted proxy gives them; invalid values are ignored."""
        scope["client"] = (self._client(_peer(scope), headers.getlist("x-forwarded-for")), 0)
        scheme = _last(headers.getlist("x-forwarded-proto")).lower()
        if scheme in SCHEMES:
            scope["scheme"] = scheme if scope["type"] == "http" else SCHEMES[scheme]
        host = _last(headers.getlist("x-forwarded-host"))
        if HOST.fullmatch(host):
            others = [pair for pair in scope["headers"] if pair[0].lower() != b"host"]
            scope["headers"] = [*others, (b"host", host.encode("latin-1"))]
            scope["host_by_proxy"] = True

    def _client(self, peer: str, forwarded_for: Sequence[str]) -> str:
        """The nearest address that is not a trusted proxy's, from the X-Forwarded-For headers read from the right.

        Entries further left may have been written by anybody.
        """
        client = peer
        for entry in reversed(",".join(forwarded_for).split(",")):
            ip = parse_ip(entry)
            if ip is None:
                return client
            client = str(ip)
            if not self.trusts(client):
                return client
        return client


def is_direct(scope: Scope, headers: Headers) -> bool:
    """Whether a request came from this machine, under one of its own names, and shows no sign of a proxy: neither a
    forwarding header, nor one that names the user (`proxy_user.py`), nor HTTP/1.0, which nginx speaks to an app unless
    it is told otherwise.
    """
    if not is_this_machine(_peer(scope)) or not is_this_machine(host_name(headers.get("host", ""))):
        return False
    if scope.get("http_version", "1.1") == "1.0" or "via" in headers or scope.get("through_proxy"):
        return False
    return not any(is_forwarding(name) for name, _ in scope["headers"])


def allowed_hosts(settings: Settings) -> frozenset[str] | None:
    """The host names that the app answers to besides this machine's, or ANY."""
    if settings.allowed_hosts:
        return frozenset(name.strip().lower() for name in settings.allowed_hosts.split(",") if name.strip())
    alone = is_this_machine(settings.host) and not settings.trusted_proxies
    return frozenset() if alone else ANY


def host_name(host: str) -> str:
    """The name in a Host header, without its port, in lower case."""
    return re.sub(r":\d+$", "", host).lower().rstrip(".")


def is_this_machine(name: str) -> bool:
    """Whether a host name or address always means the machine itself."""
    ip = parse_ip(name)
    if ip is not None:
        return ip.is_loopback
    return name == "localhost" or name.endswith(".localhost")


def is_forwarding(name: bytes) -> bool:
    """Whether a header with this name says where a forwarded request came from."""
    return FORWARDING.fullmatch(name.decode("latin-1").lower()) is not None


def known_cookies(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """One Cookie header with only the cookies that this app sets, the first of each name; [] where there is none.

    Browsers send the cookie of the longest path first: that is this app's own, where another one is at `/`.

    Cookies are parsed several times in a request, and the time of Python's parser grows with the square of their length
    (CVE-2024-7592).
    """
    cookies: dict[bytes, bytes] = {}
    for header, content in headers:
        if header == b"cookie":
            for pair in content[:LONGEST_COOKIES].split(b";"):
                name, _, value = pair.strip().partition(b"=")
                if name in COOKIES and COOKIES[name].fullmatch(value):
                    cookies.setdefault(name, value)
    if not cookies:
        return []
    return [(b"cookie", b"; ".join(name + b"=" + value for name, value in cookies.items()))]


def forwarded_prefix(headers: Headers) -> str:
    """The path prefix that a proxy says it cut off, or ""."""
    prefix = _last(headers.getlist("x-forwarded-prefix")).rstrip("/")
    return prefix if len(prefix) <= LONGEST_PREFIX and PREFIX.fullmatch(prefix) else ""


def _peer(scope: Scope) -> str:
    """The address that the connection comes from, or ""."""
    return scope["client"][0] if scope.get("client") else ""


def _last(values: Sequence[str]) -> str:
    """The last of the values of a header that may be repeated or hold several, or ""."""
    return values[-1].rsplit(",", 1)[-1].strip() if values else ""


def _add_prefix(scope: Scope, prefix: str) -> None:
    """Set the app's root path in `scope`; ASGI demands that the path begins with it."""
    scope["root_path"] = prefix
    if not scope["path"].startswith(f"{prefix}/"):
        scope["path"] = prefix + scope["path"]
        if scope.get("raw_path") is not None:
            scope["raw_path"] = prefix.encode("ascii") + scope["raw_path"]
