"""HTTP over one connection, for uvicorn, which by itself waits for ever for the head of a request."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


class PatientProtocol(H11Protocol):
    """Closes a connection where the head of a request takes longer than `seconds` to arrive."""

    seconds = 20.0

    @classmethod
    def waiting(cls, seconds: float) -> type["PatientProtocol"]:
        """The protocol with another patience."""
        return type("Protocol", (cls,), {"seconds": seconds})

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.call_later(self.seconds, self._close_late)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.seconds, self._close_late)
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:  # the head has come, and its request is being answered
            self._deadline.cancel()
            self._deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _close_late(self) -> None:
        self._deadline = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()
