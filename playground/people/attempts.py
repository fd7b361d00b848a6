"""Sign-ins at a provider that have begun and not ended. In memory: after a restart they begin again.

Each is known by its state, works once, for some minutes, and only in the browser in which it was begun: a link to its
end, sent to somebody else, would sign them in as its sender.
"""

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

MOST = 20_000  # of all browsers together; the oldest is forgotten first
MOST_OF_BROWSER = 10
SECONDS = 600.0  # that somebody may take at the provider
STATE_CHARS = 200  # longest state that is looked up


@dataclass(frozen=True)
class Attempt:
    """What the end of a sign-in is compared with, and where its browser goes then.

    `verifier`: of PKCE; `back`: the address to which the provider sends the browser; `query`: of the page that was
    asked for.
    """

    state: str
    nonce: str
    verifier: str
    back: str
    query: str = ""

    @classmethod
    def new(cls, back: str, query: str) -> Self:
        """One that nobody can guess."""
        return cls(secrets.token_urlsafe(), secrets.token_urlsafe(), secrets.token_urlsafe(), back, query)


class Attempts:
    """`clock`: seconds, of any beginning."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: OrderedDict[str, tuple[Attempt, bytes, float]] = OrderedDict()  # by state, the oldest first
        self._lock = threading.Lock()

    def add(self, attempt: Attempt, browser: str) -> None:
        """Keep an attempt of the browser with this cookie."""
        owner, now = digest_of(browser), self._clock()
        with self._lock:
            self._forget_old(now)
            own = [state for state, (_, other, _) in self._begun.items() if other == owner]
            for state in own[: max(len(own) - MOST_OF_BROWSER + 1, 0)]:
                del self._begun[state]
            self._begun[attempt.state] = (attempt, owner, now + SECONDS)
            while len(self._begun) > MOST:
                self._begun.popitem(last=False)

    def take(self, state: str, browser: str | None) -> Attempt | None:
        """The attempt with this state, which is over then; None where it was begun in another browser, is over, or
        never was.
        """
        with self._lock:
            self._forget_old(self._clock())
            attempt, owner, _ = self._begun.get(state[:STATE_CHARS], (None, b"", 0.0))
            if attempt is None or browser is None or not hmac.compare_digest(owner, digest_of(browser)):
                return None
            del self._begun[state]
            return attempt

    def _forget_old(self, now: float) -> None:
        while self._begun:
            state, (_, _, until) = next(iter(self._begun.items()))
            if until > now:
                return
            del self._begun[state]


def digest_of(browser: str) -> bytes:
    return hashlib.sha256(browser.encode(errors="replace")).digest()
