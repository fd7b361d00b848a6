"""What reverse proxies say of a request, and whom to believe: the client's address, scheme, host, and the path prefix.

An ASGI middleware, the outermost. A proxy named in `trusted_proxies` is believed, by the last value of each header,
which is the one it wrote itself. From anybody else every forwarding header is taken away, so that nothing downstream
can believe it. Who is an admin never depends on an address.

It also refuses a host name that is not the app's: a page elsewhere may have its own name point at this machine (DNS
rebinding), and then a browser takes it and the app for one origin.
"""

import re
from ipaddress import ip_network

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse

from playground.people.addresses import parsed
from playground.settings import Settings

FORWARDING = re.compile(
    r"forwarded|x-forwarded|x-forwarded-.*|x-original-.*|x-rewrite-.*|x-real-ip|x-client-ip|x-cluster-client-ip|"
    r"true-client-ip|cf-connecting-ip|fastly-client-ip|x-scheme|x-url-scheme|x-gradio-server"
)
HOST = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:\d{1,5})?")
PREFIX = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
# the identity, and the session of Hugging Face's sign-in
COOKIES = {b"nudge_id": re.compile(rb"[\w-]{43}"), b"session": re.compile(rb"[\w.=+/-]{1,3500}")}
ANY = None  # any host name is the app's
LONGEST_COOKIES = 16 << 10  # bytes
NOT_OURS = (
    "This app answers to the names of its own machine, such as localhost, and not to {0}. Behind a proxy, start it "
    "with "
    "--trusted-proxies; for this name alone, with --allowed-hosts {0}\n"
)
LONGEST_PREFIX = 200  # characters
SCHEMES = {"http": "ws", "https": "wss"}  # what a forwarded scheme is called on a WebSocket


class Proxies:
    """`trusted`: addresses and networks with commas between; `root_path`: the prefix of every path, or "";
    `hosts`: the host names that the app answers to besides this machine's, or ANY.

    A proxy may pass the prefix on or cut it off; the app gets a path that begins with it, as ASGI has it.
    """

    def __init__(self, app, trusted="", root_path="", hosts=ANY):
        self.app, self.root_path, self.hosts = app, root_path, hosts
        self.trusted = [ip_network(part.strip(), strict=False) for part in trusted.split(",") if part.strip()]

    async def __call__(self, scope, receive, send):
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        kept = [pair for pair in scope["headers"] if not forwarding(pair[0]) and pair[0] != b"cookie"]
        scope = {**scope, "headers": [*kept, *known_cookies(scope["headers"])]}
        prefix = self.root_path
        if self.trusts(_peer(scope)):
            self.believe(scope, headers)
            prefix = prefix or forwarded_prefix(headers)
        host = Headers(scope=scope).get("host")
        if host and not HOST.fullmatch(host) and scope["type"] == "http":
            return await PlainTextResponse("The Host header is not the name of a host.\n", 400)(scope, receive, send)
        if host and not self.answers_to(host_name(host)) and scope["type"] == "http":
            return await PlainTextResponse(NOT_OURS.format(host_name(host)), 421)(scope, receive, send)
        if prefix and scope["path"] == prefix and scope["type"] == "http":
            # the page's own addresses are relative to the folder it is in
            query = scope.get("query_string", b"").decode("latin-1")
            return await RedirectResponse(f"{prefix}/?{query}" if query else f"{prefix}/", 307)(scope, receive, send)
        if prefix:
            _below(scope, prefix)
        await self.app(scope, receive, send)

    def answers_to(self, name: str) -> bool:
        """Whether a host name is one of the app's."""
        return self.hosts is ANY or name in self.hosts or is_this_machine(name)

    def trusts(self, address):
        """Whether an address, as text, is one of the trusted proxies'."""
        ip = parsed(address)
        return ip is not None and any(ip in network for network in self.trusted)

    def believe(self, scope, headers):
        """Put client, scheme and host into `scope` as a trusted proxy gives them; what makes no sense is left out."""
        scope["client"] = (self.client(_peer(scope), headers.getlist("x-forwarded-for")), 0)
        scheme = _last(headers.getlist("x-forwarded-proto")).lower()
        if scheme in SCHEMES:
            scope["scheme"] = scheme if scope["type"] == "http" else SCHEMES[scheme]
        host = _last(headers.getlist("x-forwarded-host"))
        if HOST.fullmatch(host):
            others = [pair for pair in scope["headers"] if pair[0].lower() != b"host"]
            scope["headers"] = [*others, (b"host", host.encode("latin-1"))]

    def client(self, peer, values):
        """The address nearest to us that is not a trusted proxy's; `values` are the X-Forwarded-For headers.

        What stands further left anybody may have written.
        """
        found = peer
        for entry in reversed(",".join(values).split(",")):
            ip = parsed(entry)
            if ip is None:
                return found
            found = str(ip)
            if not self.trusts(found):
                return found
        return found


def allowed_hosts(settings: Settings) -> frozenset[str] | None:
    """The host names that the app answers to besides this machine's, or ANY."""
    if settings.allowed_hosts:
        return frozenset(name.strip().lower() for name in settings.allowed_hosts.split(",") if name.strip())
    alone = is_this_machine(settings.host) and not settings.trusted_proxies
    return frozenset() if alone else ANY


def host_name(host: str) -> str:
    """The name in a Host header, without its port, in small letters."""
    return re.sub(r":\d+$", "", host).lower().rstrip(".")


def is_this_machine(name: str) -> bool:
    """Whether a host name or address means the machine itself, whoever asks."""
    ip = parsed(name)
    return ip.is_loopback if ip else name == "localhost" or name.endswith(".localhost")


def forwarding(name):
    """Whether a header, its name as bytes, says where a request comes from on somebody else's behalf."""
    return FORWARDING.fullmatch(name.decode("latin-1").lower()) is not None


def known_cookies(headers):
    """The Cookie header with the cookies that this app sets and no other, the last of each name; [] where there is none
    of them.

    Cookies are parsed several times a request, and Python's parser takes time that grows with the square of what it
    gets (CVE-2024-7592).
    """
    found = {}
    for name, value in headers:
        if name == b"cookie":
            for pair in value[:LONGEST_COOKIES].split(b";"):
                key, _, given = pair.strip().partition(b"=")
                if key in COOKIES and COOKIES[key].fullmatch(given):
                    found[key] = given
    return [(b"cookie", b"; ".join(key + b"=" + given for key, given in found.items()))] if found else []


def forwarded_prefix(headers):
    """The path prefix that a proxy says it cut off, or ""."""
    prefix = _last(headers.getlist("x-forwarded-prefix")).rstrip("/")
    return prefix if len(prefix) <= LONGEST_PREFIX and PREFIX.fullmatch(prefix) else ""


def _peer(scope):
    return scope["client"][0] if scope.get("client") else ""


def _last(values):
    return values[-1].rsplit(",", 1)[-1].strip() if values else ""


def _below(scope, prefix):
    """Say in `scope` that the app is below `prefix`; as ASGI has it, the path then begins with it."""
    scope["root_path"] = prefix
    if not scope["path"].startswith(f"{prefix}/"):
        scope["path"] = prefix + scope["path"]
        if scope.get("raw_path") is not None:
            scope["raw_path"] = prefix.encode("ascii") + scope["raw_path"]
