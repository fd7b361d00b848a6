"""How often something may happen within a moving window of time, counted by key. In memory: a restart forgets.

The counting is done by the package `limits`. This module adds how long to wait, and a bound on the number of keys.
"""

import time

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

MOST_KEYS = 20_000


class RateLimit:
    """At most `amount` events of each key within `seconds`. A key is one or several strings."""

    def __init__(self, amount: int, seconds: int, most_keys: int = MOST_KEYS) -> None:
        self.item = RateLimitItemPerSecond(amount, seconds)
        self.most_keys = most_keys
        self.storage = MemoryStorage()
        self.limiter = MovingWindowRateLimiter(self.storage)

    def seconds_to_wait(self, *key: str) -> float:
        """Seconds until the next event of this key is allowed, 0.0 where it is now. Counts nothing."""
        if self.limiter.test(self.item, *key):
            return 0.0
        return max(self.limiter.get_window_stats(self.item, *key).reset_time - time.time(), 0.1)

    def count(self, *key: str) -> bool:
        """Count an event. Returns False, and counts nothing, where it is one too many."""
        if len(self.storage.events) >= self.most_keys:
            self._drop_oldest_keys()
        return self.limiter.hit(self.item, *key)

    def _drop_oldest_keys(self) -> None:
        """Keep only the newest half of the keys. `limits` itself never drops a key."""
        events_by_key = list(self.storage.events.items())
        last_event = {key: events[0].atime if events else 0.0 for key, events in events_by_key}
        surplus = len(last_event) - self.most_keys // 2
        oldest_first = sorted(last_event, key=lambda key: last_event[key])
        for key in oldest_first[:surplus]:
            self.storage.clear(key)
