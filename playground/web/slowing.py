"""Who goes on sending after many refusals waits for each further one.

A request that is one too many (status 429) still costs the server about a millisecond, so that a program which asks
again at once takes half a core from everybody else. Each that waits keeps a connection, so only so many wait; those
beyond are answered at once.
"""

import asyncio
from collections import Counter

from starlette.types import Message, Send

from playground.people.rates import RateLimit

FREE, WINDOW = 20, 10  # refusals that an address gets at once within so many seconds
HELD = 1.0  # seconds that each further one is held back
MOST_OF_ONE, MOST = 200, 500  # that are held at once: of an address, and in all
TOO_MANY = 429


class Slowing:
    """Holds the refusals of addresses that have had many; `held` in seconds."""

    def __init__(self, free: int = FREE, window: int = WINDOW, held: float = HELD) -> None:
        self.held = held
        self._refusals = RateLimit(free, window)
        self._waiting: Counter[str] = Counter()  # that are held now, by address

    def of(self, address: str, send: Send) -> Send:
        """`send` for the answer to a request from `address`."""

        async def send_in_time(message: Message) -> None:
            is_refusal = message["type"] == "http.response.start" and message["status"] == TOO_MANY
            if is_refusal and not self._refusals.count(address) and self._has_room(address):
                await self._wait(address)
            await send(message)

        return send_in_time

    def _has_room(self, address: str) -> bool:
        return self._waiting[address] < MOST_OF_ONE and self._waiting.total() < MOST

    async def _wait(self, address: str) -> None:
        self._waiting[address] += 1
        try:
            await asyncio.sleep(self.held)
        finally:
            self._waiting[address] -= 1
            self._waiting += Counter()  # drops addresses of which none waits
