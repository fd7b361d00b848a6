"""Users who sign in before they see anything: by name and password, by a cookie afterwards, first by an invitation.

The users file says who there is and what each may do (`users_file.py`), the store which cookies stand for whom. A
cookie holds while its user is there and has the password that it was given for, and while it is used.
"""

import hashlib
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from playground.people import visitor
from playground.people.addresses import limit_key
from playground.people.delays import Delays
from playground.people.passwords import (
    NAME_CHARS,
    Hasher,
    check_lengths,
    checked_name,
    checked_password,
    is_name_by_proxy,
    same_name,
)
from playground.people.refusals import WrongSignIn, too_many_links, too_many_passwords
from playground.people.users_file import DAY, Content, Invitation, User, UsersFile
from playground.settings import Settings
from playground.store import Store, StoreError

log = logging.getLogger(__name__)

NOTED_EVERY = 3600.0  # seconds after which it is written again that a sign-in is in use
LONGEST_WAIT = 900.0  # seconds between wrong passwords of an address
LONGEST_WAIT_OF_NAME = 60.0  # and of a name from everywhere together: so nobody keeps its owner out
ADDRESS_FACTOR = 4  # an address may fail this many times `sign_in_tries` without a wait, all names together
NAME_FACTOR = 20  # and a name this many times, from all addresses together
BUCKETS = 4096  # names are counted by their hash, so that invented ones take no memory and look like real ones
MOST_KNOWN = 1000  # pairs of address and name that are remembered for having signed in


@dataclass(frozen=True)
class Account:
    """Whoever has signed in."""

    user: User
    annotator: int


class SignIns:
    """The sign-ins of one app. `clock`: unix seconds; `hasher`: hashes passwords."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        hasher: Hasher | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.users = UsersFile(settings.people.users)
        self.seconds = settings.people.session_days * DAY  # how long a sign-in lasts that is not used
        self.hasher = hasher or Hasher()
        self._clock = clock
        tries = settings.limits.sign_in_tries
        self._by_both = Delays(tries, LONGEST_WAIT)  # of a name from an address
        self._by_place = Delays(tries * ADDRESS_FACTOR, LONGEST_WAIT)
        self._by_name = Delays(tries * NAME_FACTOR, LONGEST_WAIT_OF_NAME)
        self._wrong_links = Delays(tries * ADDRESS_FACTOR, LONGEST_WAIT)  # apart: a page elsewhere can open links here
        self._known: dict[tuple[str, str], None] = {}  # (address, name) that have signed in, the last one last
        self._salt = secrets.token_bytes(16)

    # -- who asks

    def find(self, token: str | None, proxy_user: str | None = None) -> Account | None:
        """Who a cookie stands for now; None for nobody, and where a proxy says that it is somebody else.
        UsersUnreadable or StoreError where that cannot be told.
        """
        row = self.store.sign_in_of(token) if token else None
        if token is None or row is None:
            return None
        now = self._clock()
        user = self.users.content().by_id.get(row["account"] or "")
        if user is None or user.stamp != row["stamp"] or row["used"] + self.seconds < now:
            return None
        if proxy_user is not None and not is_name_by_proxy(proxy_user, user.name):
            return None
        if now - row["used"] > min(NOTED_EVERY, self.seconds / 10):
            with suppress(StoreError):  # the next request notes it
                self.store.use_sign_in(token, now)
        return Account(user, row["annotator"])

    def may_write(self, annotator: int) -> bool:
        """Whether a person may send, vote and edit: users who are no viewers, and whoever has a key for programs.
        Nobody else: a cookie whose sign-in ends while a request is answered stands for a new person without an account.
        """
        account = self.store.account(annotator)
        if account is None:
            return self.store.has_key(annotator)
        return self.users.role(account) in ("annotator", "admin")

    # -- signing in and out

    def sign_in(self, name: str, password: str, address: str) -> str:
        """The cookie of whoever has this name and password.

        WrongSignIn where nobody has, TooMany after too many wrong ones, UsersUnreadable or StoreError where it cannot
        be told.
        """
        check_lengths(name, password)
        place, bucket = limit_key(address), self._bucket(name)
        self._check_delays(place, bucket)
        with self.hasher.one_at_a_time():
            self._check_delays(place, bucket)  # those that were hashed before this one may have been wrong
            user = self.users.content().by_name.get(same_name(name))
            if not self.hasher.matches(user.hashed if user else None, password) or user is None:
                self._by_both.failed(place, bucket)
                self._by_place.failed(place)
                self._by_name.failed(bucket)
                log.warning("a sign-in failed: wrong name or password")
                raise WrongSignIn("The name or the password is wrong.")
            self._by_both.forget(place, bucket)
            self._remember(place, bucket)
        return self._begin(user)

    def sign_in_by_proxy(self, name: str) -> str:
        """The cookie of whom a trusted proxy has signed in; WrongSignIn where the users file does not have the name."""
        user = self.users.content().by_name.get(same_name(name))
        if user is None or not is_name_by_proxy(name, user.name):
            raise WrongSignIn("{name} is no user of this app. Ask an admin to be added.", name=repr(name[:NAME_CHARS]))
        return self._begin(user)

    def invitation(self, token: str, address: str) -> Invitation:
        """The open invitation of a link. WrongSignIn where there is none, TooMany after too many wrong ones; the right
        one never waits.
        """
        if found := self.users.content().invitation(token):
            return found
        place = limit_key(address)
        if wait := self._wrong_links.seconds_to_wait(place):
            raise too_many_links(wait)
        self._wrong_links.failed(place)
        raise WrongSignIn("This invitation was used, or its time is over. Ask for another one.")

    def accept(self, token: str, name: str, password: str, again: str, address: str) -> str:
        """Make the user whom an invitation asks for, who chose name and password; returns the cookie. WrongSignIn
        where they cannot be used, and then the invitation stays open.
        """
        self.invitation(token, address)
        name = checked_name(name)
        if checked_password(password, name) != again:
            raise WrongSignIn("The two passwords differ.")
        if same_name(name) in self.users.content().by_name:
            raise WrongSignIn("The name {name} is taken.", name=repr(name))
        with self.hasher.one_at_a_time():
            hashed = self.hasher.hash(password)

        def accepted(content: Content) -> Content:
            return content.accepted(token, name, hashed)

        self.users.change(accepted)
        return self._begin(self.users.content().named(name))

    def sign_out(self, token: str | None, everywhere: bool = False) -> None:
        """End the sign-in of a cookie, or all of its person's."""
        account = self.find(token) if everywhere else None
        if account:
            self.store.end_sign_ins(account.annotator)
        elif token:
            self.store.end_sign_in(token)

    def _begin(self, user: User) -> str:
        """A new cookie, so that somebody who had planted the earlier one gains nothing."""
        token = visitor.new_token()
        now = self._clock()
        self.store.end_old_sign_ins(now - self.seconds)
        self.store.begin_sign_in(user.id, token, user.stamp, now)
        return token

    # -- limits

    def _check_delays(self, place: str, bucket: str) -> None:
        waits = [self._by_both.seconds_to_wait(place, bucket)]
        if (place, bucket) not in self._known:  # others' guesses, from here or elsewhere, keep nobody out who was here
            waits += [self._by_place.seconds_to_wait(place), self._by_name.seconds_to_wait(bucket)]
        if wait := max(waits):
            raise too_many_passwords(wait)

    def _bucket(self, name: str) -> str:
        digest = hashlib.sha256(self._salt + same_name(name).encode(errors="replace")).digest()
        return str(int.from_bytes(digest[:4], "big") % BUCKETS)

    def _remember(self, place: str, bucket: str) -> None:
        self._known.pop((place, bucket), None)
        self._known[place, bucket] = None
        while len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]
