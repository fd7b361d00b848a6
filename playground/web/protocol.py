"""HTTP/1.1 for uvicorn, with a time limit on the head of each request and a limit on connections; uvicorn has neither.

It also sends each part of an answer at once. asyncio turns Nagle's algorithm off only for sockets that name their
protocol, and those that a listening socket accepts do not. The kernel then held back the end of every short answer for
40 ms.
"""

import asyncio
import socket
from ipaddress import IPv4Network, IPv6Network, ip_network

from uvicorn.protocols.http.h11_impl import H11Protocol

from playground.people.addresses import parse_ip

LOCAL = ("127.0.0.1", "::1", "")  # this machine, where a proxy may connect on behalf of everybody


class LimitedProtocol(H11Protocol):
    """Closes a connection where the head of a request takes too long, or where there are too many connections.

    `seconds`: for a request's head. `most`: connections in all. `most_of_one`: connections from one address that is not
    this machine's nor a trusted proxy's: `proxies` connect on behalf of everybody.
    """

    seconds = 20.0
    most = 1500
    most_of_one = 200
    proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    open: dict[str, dict["LimitedProtocol", None]] = {}  # connections by address, the oldest first

    _peer = ""  # the address at the other end
    _deadline: asyncio.TimerHandle | None = None  # set while the head of a request is awaited

    @classmethod
    def with_timeout(cls, seconds: float, proxies: str = "") -> type["LimitedProtocol"]:
        """This protocol with another time limit, and with connections of its own. `proxies`: addresses and networks of
        trusted proxies, with commas between.
        """
        networks = tuple(ip_network(part.strip(), strict=False) for part in proxies.split(",") if part.strip())
        return type("Protocol", (cls,), {"seconds": seconds, "proxies": networks, "open": {}})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer = self.client[0] if self.client else ""
        self.open.setdefault(self._peer, {})[self] = None
        surplus = self._surplus()
        if surplus is not None:
            surplus.transport.abort()
        self._await_head()

    def _surplus(self) -> "LimitedProtocol | None":
        """The connection that must be closed because of this new one, or None.

        That is this one, or where there are too many in all, the oldest one of the address that has most, so that
        nobody can keep everybody else out.
        """
        own = self.open[self._peer]
        if len(own) > self.most_of_one and not self._is_of_many():
            return self
        if sum(map(len, self.open.values())) <= self.most:
            return None
        heaviest = max(self.open.values(), key=len)
        return self if len(heaviest) <= len(own) else next(iter(heaviest))

    def _is_of_many(self) -> bool:
        """Whether the address at the other end may be a proxy's, which has everybody's connections."""
        ip = parse_ip(self._peer)
        return self._peer in LOCAL or (ip is not None and any(ip in network for network in self.proxies))

    def data_received(self, data: bytes) -> None:
        if self._deadline is None:
            self._await_head()
        super().data_received(data)
        # uvicorn's `cycle` is None before the first request, which its annotation does not say
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering:  # so the head has arrived
            self._cancel_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        self.open[self._peer].pop(self)
        if not self.open[self._peer]:
            del self.open[self._peer]
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._deadline = self.loop.call_later(self.seconds, self._close_late)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close_late(self) -> None:
        self._deadline = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()
