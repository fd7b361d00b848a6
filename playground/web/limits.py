"""How much one browser, one address and all of them together may ask of the server at once.

Owns the page sessions (Gradio keeps half a megabyte for each session name that a browser invents) and who each belongs
to, the requests and event streams that are open, and the rate of requests. It does not know what is asked. Everything
runs on the server's event loop, so there are no locks.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from playground.people.addresses import limit_key
from playground.settings import Settings
from playground.system.messages import UserFacingError

IDLE = 3600.0  # seconds after which an unused session is dropped
ASSETS = 3  # an address may ask for this many files of the page per request that it may make; they are cheaper
ADDRESS_FACTOR = 4  # several people may share an address, so it may have this many times what one person may have


class TooMuch(UserFacingError):
    """A request over a limit; the message says so to the person."""


class ForeignSession(UserFacingError):
    """A session that belongs to another visitor; the message says so to the person."""


@dataclass(frozen=True)
class Visitor:
    """Who sends a request."""

    person: str  # digest of the cookie; those without a cookie count as one person for each address
    address: str  # key of the network address (see `limit_key`)

    @classmethod
    def of(cls, token: str, host: str) -> "Visitor":
        address = limit_key(host)
        if not token:
            return cls(f"nobody at {address}", address)
        return cls(hashlib.sha256(token.encode()).hexdigest()[:32], address)


@dataclass
class Session:
    """One page in one browser. Only the visitor who used its name first may use it."""

    owner: Visitor
    used: float  # time of the last request, on `Limits.clock`
    heartbeats: int = 0  # open streams that show that the page is open
    readers: int = 0  # open streams that read replies
    opened: int = 0  # how often a stream that reads replies was opened

    @property
    def open(self) -> bool:
        return self.heartbeats + self.readers > 0


@dataclass
class Limits:
    """The limits of one server. `forget` is called with the name of each session that is dropped."""

    settings: Settings
    forget: Callable[[str], None] = lambda name: None
    clock: Callable[[], float] = time.monotonic
    sessions: dict[str, Session] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # those that are open now, by person and by address
        self._requests: Counter[str] = Counter()
        self._streams: Counter[str] = Counter()
        self._rate = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._per_minute = RateLimitItemPerMinute(self.settings.limits.requests_per_minute)
        self._assets_per_minute = RateLimitItemPerMinute(ASSETS * self.settings.limits.requests_per_minute)

    # -- requests

    @contextmanager
    def request(self, visitor: Visitor, cost: int = 1) -> Iterator[None]:
        """Count a request while it is answered; it takes `cost` of the requests of a minute.

        TooMuch where its address sends too many, or where too many are open.
        """
        self.count(visitor, cost)
        with self._counted(self._requests, visitor, self.settings.limits.requests_at_once):
            yield

    def count(self, visitor: Visitor, cost: int = 1) -> None:
        """Take `cost` of the requests of a minute; TooMuch where its address sends too many."""
        if not self._rate.hit(self._per_minute, visitor.address, cost=cost):
            raise TooMuch("Too many requests came from your network. Wait a minute and try again.")

    def asset(self, visitor: Visitor) -> None:
        """Count a file of the page; over HTTP/2 a browser asks for eighty at once.

        TooMuch where its address asks too often.
        """
        if not self._rate.hit(self._assets_per_minute, "assets", visitor.address):
            raise TooMuch("Too many requests came from your network. Wait a minute and try again.")

    @contextmanager
    def stream(self, visitor: Visitor, name: str, reads: bool) -> Iterator[None]:
        """Count an event stream of the session `name` while it is open; `reads`: whether it reads replies.

        TooMuch where too many are open, and the errors of `session`.
        """
        session = self.session(visitor, name)
        with self._counted(self._streams, visitor, 2 * self.settings.limits.sessions_per_person):
            session.heartbeats += not reads
            session.readers += reads
            session.opened += reads
            try:
                yield
            finally:
                session.heartbeats -= not reads
                session.readers -= reads
                session.used = self.clock()

    @contextmanager
    def _counted(self, counts: Counter[str], visitor: Visitor, most_of_person: int) -> Iterator[None]:
        """One more in `counts` for the visitor; TooMuch where that would be too many."""
        most_by_key = {
            f"person {visitor.person}": most_of_person,
            f"address {visitor.address}": ADDRESS_FACTOR * most_of_person,
        }
        if any(counts[key] >= most for key, most in most_by_key.items()):
            raise TooMuch("Too many pages or requests are open in your browser or network. Close some and try again.")
        counts.update(most_by_key.keys())
        try:
            yield
        finally:
            counts.subtract(most_by_key.keys())
            for key in most_by_key:
                if not counts[key]:
                    del counts[key]

    # -- sessions

    def session(self, visitor: Visitor, name: str) -> Session:
        """The visitor's session of this name, made where there is none.

        ForeignSession where it is somebody else's, TooMuch where there is no room for a new one.
        """
        session = self.sessions.get(name)
        if session is None:
            self._make_room(visitor)
            session = self.sessions[name] = Session(visitor, self.clock())
        elif session.owner.person != visitor.person:
            raise ForeignSession("This page belongs to another browser. Reload it.")
        session.used = self.clock()
        return session

    def _make_room(self, visitor: Visitor) -> None:
        """Drop idle sessions, and then as many others as it takes for one more of this visitor."""
        oldest = self.clock() - IDLE
        self._drop([name for name, session in self.sessions.items() if not session.open and session.used < oldest])
        self._make_room_among(self.settings.limits.sessions_per_person, lambda owner: owner.person == visitor.person)
        self._make_room_among(self.settings.limits.sessions_per_address, lambda owner: owner.address == visitor.address)
        while len(self.sessions) >= self.settings.limits.sessions:
            self._drop([self._least_missed(visitor)])

    def _make_room_among(self, most: int, counts: Callable[[Visitor], bool]) -> None:
        """Drop sessions of the owners that `counts` accepts, until there is room for one more within `most`.

        The one that was used longest ago goes first. TooMuch where too many of them are open.
        """
        counted = [name for name, session in self.sessions.items() if counts(session.owner)]
        closed = [name for name in counted if not self.sessions[name].open]
        closed.sort(key=lambda name: self.sessions[name].used)
        surplus = len(counted) - most + 1
        if surplus > len(closed):
            raise TooMuch("Too many pages or requests are open in your browser or network. Close some and try again.")
        self._drop(closed[: max(surplus, 0)])

    def _least_missed(self, visitor: Visitor) -> str:
        """The session to drop when there are too many in all, so that nobody can keep everybody else out.

        It is one of the address that has most. A visitor whose address has as many as any gives up one of its own.
        TooMuch where those that could be dropped are open.
        """
        by_address = Counter(session.owner.address for session in self.sessions.values())
        heaviest, most = by_address.most_common(1)[0]
        own = by_address[visitor.address]

        def may_go(session: Session) -> bool:
            if own >= most:
                return session.owner.address == visitor.address and not session.open
            if own + 1 == most:
                return not session.open
            return session.owner.address == heaviest

        names = [name for name, session in self.sessions.items() if may_go(session)]
        if not names:
            raise TooMuch("Too many people have this page open. Wait a minute and try again.")

        def worth(name: str) -> tuple[bool, int, float]:
            session = self.sessions[name]
            return session.open, session.readers, session.used

        return min(names, key=worth)

    def _drop(self, names: list[str]) -> None:
        for name in names:
            del self.sessions[name]
            self.forget(name)
