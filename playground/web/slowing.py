"""Who goes on sending after many refusals waits for each further one.

A request that is one too many (status 429) still costs the server about a millisecond, so that a program which asks
again at once takes half a core from everybody else. How many wait at once is bounded by the connections that an address
may have (`protocol.py`).
"""

import asyncio

from starlette.types import Message, Send

from playground.people.rates import RateLimit

FREE, WINDOW = 20, 10  # refusals that an address gets at once within so many seconds
HELD = 1.0  # seconds that each further one is held back
TOO_MANY = 429


class Slowing:
    """Holds the refusals of addresses that have had many; `held` in seconds."""

    def __init__(self, free: int = FREE, window: int = WINDOW, held: float = HELD) -> None:
        self.held = held
        self._refusals = RateLimit(free, window)

    def of(self, address: str, send: Send) -> Send:
        """`send` for the answer to a request from `address`."""

        async def send_in_time(message: Message) -> None:
            is_refusal = message["type"] == "http.response.start" and message["status"] == TOO_MANY
            if is_refusal and not self._refusals.count(address):
                await asyncio.sleep(self.held)
            await send(message)

        return send_in_time
