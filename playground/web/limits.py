"""How much one browser, one address and all of them together may ask of the server at once. Nothing here knows what is
asked.

Owns the page sessions (Gradio keeps half a megabyte for each name that a browser thinks of) and who each belongs to,
the requests and event streams that are open, and the rate of requests. Everything runs on the server's event loop, so
nothing is locked.
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

from playground.people.addresses import one_place
from playground.settings import Settings
from playground.system.messages import UserFacingError

IDLE = 3600.0  # seconds after which a session that nobody uses is forgotten
ASSETS = 3  # files of the page that an address may ask for, per request that it may make; they are that much cheaper


class TooMuch(UserFacingError):
    """A request over a limit; the message says so to the person."""


class NotTheirs(UserFacingError):
    """A session that another visitor has used before; the message says so to the person."""


@dataclass(frozen=True)
class Visitor:
    """Who sends a request: the cookie's digest, for all without a cookie their address, and the network address."""

    person: str
    address: str

    @classmethod
    def of(cls, token: str, host: str) -> "Visitor":
        address = one_place(host)
        return cls(hashlib.sha256(token.encode()).hexdigest()[:32] if token else f"nobody at {address}", address)


@dataclass
class Session:
    """One page in one browser. Only the visitor who first used its name may use it."""

    owner: Visitor
    used: float  # moment of the last request, monotonic
    heartbeats: int = 0  # streams that say that the page is still open
    readers: int = 0  # streams that read replies
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
        self._requests, self._streams = Counter(), Counter()  # open ones, by person and by address
        self._rate = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._per_minute = RateLimitItemPerMinute(self.settings.requests_per_minute)
        self._assets_per_minute = RateLimitItemPerMinute(ASSETS * self.settings.requests_per_minute)

    # -- requests

    @contextmanager
    def request(self, visitor: Visitor, cost: int = 1) -> Iterator[None]:
        """Count a request while it is answered, as `cost` of those of a minute. TooMuch where its address asks too
        often or for too much at once."""
        if not self._rate.hit(self._per_minute, visitor.address, cost=cost):
            raise TooMuch("Too many requests came from your network. Wait a minute and try again.")
        with self._counted(self._requests, visitor, self.settings.requests_at_once):
            yield

    def asset(self, visitor: Visitor) -> None:
        """Count a file of the page, of which a browser asks for eighty at once over HTTP/2. TooMuch where its address
        asks too often.
        """
        if not self._rate.hit(self._assets_per_minute, "assets", visitor.address):
            raise TooMuch("Too many requests came from your network. Wait a minute and try again.")

    @contextmanager
    def stream(self, visitor: Visitor, name: str, reads: bool) -> Iterator[None]:
        """Count an event stream of the session `name` while it is open; `reads` where it reads replies. TooMuch as
        `session`.
        """
        session = self.session(visitor, name)
        with self._counted(self._streams, visitor, 2 * self.settings.sessions_per_person):
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
    def _counted(self, counts: Counter, visitor: Visitor, most_of_person: int) -> Iterator[None]:
        """One more for the visitor. An address, which several people may share, may have four times what a
        person may.
        """
        keys = {f"person {visitor.person}": most_of_person, f"address {visitor.address}": 4 * most_of_person}
        if any(counts[key] >= most for key, most in keys.items()):
            raise TooMuch("Too many pages or requests are open in your browser or network. Close some and try again.")
        counts.update(keys.keys())
        try:
            yield
        finally:
            counts.subtract(keys.keys())
            for key in keys:
                if not counts[key]:
                    del counts[key]

    # -- sessions

    def session(self, visitor: Visitor, name: str) -> Session:
        """The visitor's session of this name, made where there is none. NotTheirs where it is another's, TooMuch where
        every other one is open."""
        session = self.sessions.get(name)
        if session is None:
            self._make_room(visitor)
            session = self.sessions[name] = Session(visitor, self.clock())
        elif session.owner.person != visitor.person:
            raise NotTheirs("This page belongs to another browser. Reload it.")
        session.used = self.clock()
        return session

    def _make_room(self, visitor: Visitor) -> None:
        """Drop what nobody uses, then as many sessions as it takes for one more of this visitor."""
        self._drop([name for name, s in self.sessions.items() if not s.open and s.used < self.clock() - IDLE])
        self._make_room_among(self.settings.sessions_per_person, lambda s: s.owner.person == visitor.person)
        self._make_room_among(self.settings.sessions_per_address, lambda s: s.owner.address == visitor.address)
        while len(self.sessions) >= self.settings.sessions:
            self._drop([self._least_missed(visitor)])

    def _make_room_among(self, most: int, counts: Callable[[Session], bool]) -> None:
        """Drop as many of these sessions, none of them open, as it takes for one more. TooMuch where they are open."""
        mine = [name for name, session in self.sessions.items() if counts(session)]
        idle = sorted((name for name in mine if not self.sessions[name].open), key=lambda n: self.sessions[n].used)
        surplus = len(mine) - most + 1
        if surplus > len(idle):
            raise TooMuch("Too many pages or requests are open in your browser or network. Close some and try again.")
        self._drop(idle[: max(surplus, 0)])

    def _least_missed(self, visitor: Visitor) -> str:
        """The session that goes when there are too many in all: one of the address that has most, so that nobody keeps
        everybody else out. Who has as many as anybody gives up an own one. TooMuch where those are open.
        """
        addresses = Counter(session.owner.address for session in self.sessions.values())
        heaviest, most = addresses.most_common(1)[0]
        own = addresses[visitor.address]
        if own >= most:
            names = [name for name, s in self.sessions.items() if s.owner.address == visitor.address and not s.open]
        elif own + 1 == most:
            names = [name for name, s in self.sessions.items() if not s.open]
        else:
            names = [name for name, s in self.sessions.items() if s.owner.address == heaviest]
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
