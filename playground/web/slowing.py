"""Who goes on sending after many refusals waits for each further one.

A request that is one too many (status 429) still costs the server about a millisecond, so that a program which asks
again at once takes half a core from everybody else. How many wait at once has a bound: each keeps its connection, and
behind a proxy all people's come from one address, of which the server closes the oldest where there are too many
(`protocol.py`).
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import Message, Send

from playground.people.rates import RateLimit

FREE, WINDOW = 20, 10  # refusals that an address gets at once within so many seconds
HELD = 1.0  # seconds that each further one is held back
MOST_HELD = 500  # at once, a third of the connections that the server has; further ones are not held
MOST_HELD_OF_ONE = 200  # and of one address: as many connections as it may have itself
TOO_MANY = 429


class Slowing:
    """Holds the refusals of addresses that have had many; `held` in seconds."""

    def __init__(self, free: int = FREE, window: int = WINDOW, held: float = HELD) -> None:
        self.held = held
        self._refusals = RateLimit(free, window)
        self._holding: Counter[str] = Counter()  # refusals that are held now, by address

    def of(self, address: str, send: Send) -> Send:
        """`send` for the answer to a request from `address`."""

        async def send_in_time(message: Message) -> None:
            is_refusal = message["type"] == "http.response.start" and message["status"] == TOO_MANY
            if is_refusal and not self._refusals.count(address) and self._has_room(address):
                with self._counted(address):
                    await asyncio.sleep(self.held)
            await send(message)

        return send_in_time

    def _has_room(self, address: str) -> bool:
        return self._holding[address] < MOST_HELD_OF_ONE and self._holding.total() < MOST_HELD

    @contextmanager
    def _counted(self, address: str) -> Iterator[None]:
        """Counts a refusal while it is held."""
        self._holding[address] += 1
        try:
            yield
        finally:
            self._holding[address] -= 1
            if not self._holding[address]:
                del self._holding[address]
