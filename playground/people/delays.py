"""How long somebody must wait after wrong passwords: longer after each. In memory: a restart forgets."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MOST_KEYS = 20_000
QUIET = 3600.0  # seconds without a failure after which a key's failures are forgotten


@dataclass
class Failures:
    count: int
    last: float  # when the last one was
    until: float  # when the next try may be


class Delays:
    """The first `free` failures of a key cost nothing. Then the wait is 1 s, and doubles with each, up to `longest`
    seconds. Of more than `most_keys` keys those that failed longest ago are forgotten.
    """

    def __init__(
        self,
        free: int,
        longest: float,
        most_keys: int = MOST_KEYS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.free = free
        self.longest = longest
        self.most_keys = most_keys
        self._clock = clock
        self._failures: OrderedDict[tuple[str, ...], Failures] = OrderedDict()
        self._lock = threading.Lock()

    def seconds_to_wait(self, *key: str) -> float:
        """Seconds until the next try of this key; 0.0 where it may be now."""
        with self._lock:
            known = self._failures.get(key)
            return max(known.until - self._clock(), 0.0) if known else 0.0

    def failed(self, *key: str) -> None:
        now = self._clock()
        with self._lock:
            known = self._failures.pop(key, None)
            count = known.count + 1 if known and now - known.last < QUIET else 1
            over = count - self.free
            wait = min(2.0 ** min(over, 30), self.longest) if over >= 0 else 0.0
            self._failures[key] = Failures(count, now, now + wait)
            while len(self._failures) > self.most_keys:
                self._failures.popitem(last=False)

    def forget(self, *key: str) -> None:
        """The key's failures count no more: the right password came."""
        with self._lock:
            self._failures.pop(key, None)
