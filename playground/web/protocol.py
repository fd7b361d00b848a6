"""HTTP over one connection, for uvicorn, which by itself waits for ever for the head of a request.

It also sends each part of an answer at once. asyncio does so only on sockets that name their protocol, which those that
a listening socket accepts do not: the kernel then kept the end of every short answer back for 40 ms (Nagle's
algorithm).
"""

import asyncio
import socket

from uvicorn.protocols.http.h11_impl import H11Protocol

NEAR = ("127.0.0.1", "::1", "")  # this machine, where a proxy may be that brings everybody's connections


class PatientProtocol(H11Protocol):
    """Closes a connection where the head of a request takes longer than `seconds` to arrive, and those that are too
    many: `most` in all, `most_of_one` of one address that is not this machine's.
    """

    seconds = 20.0
    most, most_of_one = 1500, 200
    open: dict[str, dict["PatientProtocol", None]] = {}  # connections by address, the oldest first

    @classmethod
    def waiting(cls, seconds: float) -> type["PatientProtocol"]:
        """The protocol with another patience, and with connections of its own."""
        return type("Protocol", (cls,), {"seconds": seconds, "open": {}})

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer = self.client[0] if self.client else ""
        self.open.setdefault(self._peer, {})[self] = None
        if (surplus := self._surplus()) is not None:
            surplus.transport.abort()
        self._deadline = self.loop.call_later(self.seconds, self._close_late)

    def _surplus(self) -> "PatientProtocol | None":
        """The connection that has to go because of this new one: this one, or where there are too many in all, the
        oldest of the address that has most, so that nobody keeps everybody else out.
        """
        own = self.open[self._peer]
        if self._peer not in NEAR and len(own) > self.most_of_one:
            return self
        if sum(map(len, self.open.values())) <= self.most:
            return None
        heaviest = max(self.open.values(), key=len)
        return self if len(heaviest) <= len(own) else next(iter(heaviest))

    def data_received(self, data: bytes) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.seconds, self._close_late)
        super().data_received(data)
        # the head has come, and its request is being answered
        if self.cycle is not None and not self.cycle.response_complete:
            self._deadline.cancel()
            self._deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self.open[self._peer].pop(self)
        if not self.open[self._peer]:
            del self.open[self._peer]
        super().connection_lost(exc)

    def _close_late(self) -> None:
        self._deadline = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()
