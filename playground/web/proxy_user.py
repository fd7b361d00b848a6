"""Who somebody is by the word of a reverse proxy that has signed them in: a header, from named proxies alone.

An ASGI middleware outside of the one that reads the other headers of proxies, since it goes by the address that the
connection itself comes from.
"""

from collections.abc import Iterable
from ipaddress import ip_network

from starlette.types import ASGIApp, Receive, Scope, Send

from playground.people.addresses import parse_ip


class ProxyUser:
    """Takes the header `name` from every request. From an address in `trusted` (addresses and networks, with commas
    between) its value goes into `scope["proxy_user"]`. That it was there goes into `scope["through_proxy"]`.
    """

    def __init__(self, app: ASGIApp, name: str, trusted: str) -> None:
        self.app = app
        self.name = name.lower().encode("ascii")
        self.trusted = [ip_network(part.strip(), strict=False) for part in trusted.split(",") if part.strip()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            values = [value for name, value in scope["headers"] if name.lower() == self.name]
            others = [pair for pair in scope["headers"] if pair[0].lower() != self.name]
            scope = {**scope, "headers": others, "through_proxy": bool(values)}
            user = user_of(values)
            if user and self._trusts(scope["client"][0] if scope.get("client") else ""):
                scope["proxy_user"] = user
        await self.app(scope, receive, send)

    def _trusts(self, address: str) -> bool:
        ip = parse_ip(address)
        return ip is not None and any(ip in network for network in self.trusted)


def user_of(values: Iterable[bytes]) -> str:
    """The name in the header; "" where it is missing, is there twice, or is no text: then it says nothing."""
    values = list(values)
    if len(values) != 1:
        return ""
    try:
        return values[0].decode().strip()
    except UnicodeDecodeError:
        return ""
