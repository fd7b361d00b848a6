"""How often something may happen within a moving window of time, counted by key. In memory: a restart forgets.

The counting is `limits`' own; here is what it lacks, a bound on the keys that it keeps, and how long to wait.
"""

import time

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

MOST_KEYS = 20_000


class Rate:
    """At most `amount` events of each key within `seconds`."""

    def __init__(self, amount, seconds, most_keys=MOST_KEYS):
        self.item, self.most_keys = RateLimitItemPerSecond(amount, seconds), most_keys
        self.storage = MemoryStorage()
        self.limiter = MovingWindowRateLimiter(self.storage)

    def wait(self, *key):
        """Seconds until the next event of this key fits, 0.0 where it does now. Counts nothing."""
        if self.limiter.test(self.item, *key):
            return 0.0
        return max(self.limiter.get_window_stats(self.item, *key).reset_time - time.time(), 0.1)

    def count(self, *key):
        """Count an event; False, and nothing counted, where it is one too many."""
        if len(self.storage.events) >= self.most_keys:
            self._forget()
        return self.limiter.hit(self.item, *key)

    def _forget(self):
        """`limits` keeps the keys of events long past: only the newest half of the keys is kept."""
        newest = {key: events[0].atime if events else 0.0 for key, events in list(self.storage.events.items())}
        for key in sorted(newest, key=newest.get)[: len(newest) - self.most_keys // 2]:
            self.storage.clear(key)
