"""How fast replies have been written since the start, counted in buckets for who watches the server.

The engine adds a turn when it has ended, so that no step of the decoder waits for it.
"""

import threading
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from playground.serving.stream import Stream

FIRST_TOKEN_SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 60.0)
TOKENS_PER_SECOND = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0, 120.0, 200.0, 500.0, 1000.0)


class Histogram:
    """Counts of values up to each of `bounds`, and their sum. Any thread may add and read."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)  # of each bucket alone; the last is above all bounds
        self._sum = 0.0
        self._lock = threading.Lock()

    def add(self, value: float) -> None:
        with self._lock:
            self._counts[bisect_left(self.bounds, value)] += 1
            self._sum += value

    def read(self) -> tuple[list[int], float]:
        """How many values are at most each bound, then how many there are in all; and the sum of all."""
        with self._lock:
            return list(accumulate(self._counts)), self._sum


class ReplyTimes:
    """`first_token`: seconds from a turn's start to a reply's first token, the wait in line included.
    `tokens_per_second`: of each reply after its first token.
    """

    def __init__(self) -> None:
        self.first_token = Histogram(FIRST_TOKEN_SECONDS)
        self.tokens_per_second = Histogram(TOKENS_PER_SECOND)

    def add(self, stream: Stream) -> None:
        """Count the replies of a turn that has ended; those that have no token are left out."""
        for first, total, tokens in zip(stream.first_token_ms, stream.total_ms, stream.tokens(), strict=True):
            if first is None or total is None:
                continue
            self.first_token.add(first / 1e3)
            if tokens > 1 and total > first:
                self.tokens_per_second.add(1e3 * (tokens - 1) / (total - first))
