"""HTTP over one connection, for uvicorn, which by itself waits for ever for the head of a request.

It also sends each part of an answer at once. asyncio does so only on sockets that name their protocol, which those that
a listening socket accepts do not: the kernel then kept the end of every short answer back for 40 ms (Nagle's
algorithm).
"""

import asyncio
import socket
from collections import Counter

from uvicorn.protocols.http.h11_impl import H11Protocol


class PatientProtocol(H11Protocol):
    """Closes a connection where the head of a request takes longer than `seconds` to arrive."""

    seconds = 20.0
    most, most_of_one = (
        1500,
        200,
    )  # connections in all, and of one address that is not on this machine, where a proxy may be
    open: Counter = Counter()  # connections by address

    @classmethod
    def waiting(cls, seconds: float) -> type["PatientProtocol"]:
        """The protocol with another patience, and with a count of connections of its own."""
        return type("Protocol", (cls,), {"seconds": seconds, "open": Counter()})

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer = self.client[0] if self.client else ""
        self.open[self._peer] += 1
        near = self._peer in ("127.0.0.1", "::1", "")
        if self.open.total() > self.most or (self.open[self._peer] > self.most_of_one and not near):
            transport.abort()
        self._deadline = self.loop.call_later(self.seconds, self._close_late)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.seconds, self._close_late)
        super().data_received(data)
        if (
            self.cycle is not None and not self.cycle.response_complete
        ):  # the head has come, and its request is being answered
            self._deadline.cancel()
            self._deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self.open[self._peer] -= 1
        if not self.open[self._peer]:
            del self.open[self._peer]
        super().connection_lost(exc)

    def _close_late(self) -> None:
        self._deadline = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()
