"""Users who sign in before they see anything: by name and password or at a provider, by a cookie afterwards; first by
an invitation.

The users file or the provider says who there is and what each may do (`directory.py`), the store which cookies stand
for whom. A cookie holds while its user is there and has the password that it was given for, or the provider and who it
lets in are the same, and while it is used; by a provider for some days at most.
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
from playground.people.directory import Directory
from playground.people.passwords import (
    NAME_CHARS,
    Hasher,
    check_lengths,
    checked_name,
    checked_password,
    is_name_by_proxy,
    same_name,
)
from playground.people.provider_people import ProviderPerson, unnamed
from playground.people.refusals import (
    NotAllowed,
    UsersUnreadable,
    WrongSignIn,
    too_many_links,
    too_many_passwords,
    too_many_sign_ins,
)
from playground.people.users_file import DAY, Content, Invitation, User
from playground.settings import Settings
from playground.store import ProviderSays, Row, Store, StoreError

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
        self.directory = Directory(settings, store)
        self.users = self.directory.file
        self.provider_seconds = settings.oidc.session_days * DAY
        self.seconds = settings.people.session_days * DAY  # how long a sign-in lasts that is not used
        self.hasher = hasher or Hasher()
        self._clock = clock
        tries = settings.limits.sign_in_tries
        self._by_both = Delays(tries, LONGEST_WAIT)  # of a name from an address
        self._by_place = Delays(tries * ADDRESS_FACTOR, LONGEST_WAIT)
        self._by_name = Delays(tries * NAME_FACTOR, LONGEST_WAIT_OF_NAME)
        self._wrong_links = Delays(tries * ADDRESS_FACTOR, LONGEST_WAIT)  # apart: a page elsewhere can open links here
        self._wrong_codes = Delays(tries * ADDRESS_FACTOR, LONGEST_WAIT)  # of a provider
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
        user = self._holder(row, now)
        if user is None:
            return None
        if proxy_user is not None and not is_name_by_proxy(proxy_user, user.name):
            return None
        if now - row["used"] > min(NOTED_EVERY, self.seconds / 10):
            with suppress(StoreError):  # the next request notes it
                self.store.use_sign_in(token, now)
        return Account(user, row["annotator"])

    def _holder(self, row: Row, now: float) -> User | None:
        """The user whose sign-in a row is, as far as it holds still."""
        user = self.directory.user(row["account"])
        if user is None or self.directory.stamp(user) != row["stamp"] or row["used"] + self.seconds < now:
            return None
        if row["until"] is not None and row["until"] < now:
            return None
        return user

    def signed_in(self) -> list[tuple[User, int, float]]:
        """Who is signed in: the user, on how many devices, and when one was last used (to the hour), in unix seconds.
        UsersUnreadable or StoreError where that cannot be told.
        """
        now = self._clock()
        found: dict[str, tuple[User, int, float]] = {}
        for row in self.store.sign_ins():
            user = self._holder(row, now)
            if user:
                _, devices, used = found.get(user.id, (user, 0, 0.0))
                found[user.id] = (user, devices + 1, max(used, row["used"]))
        return sorted(found.values(), key=lambda entry: (entry[0].name.casefold(), entry[0].id))

    def may_write(self, annotator: int) -> bool:
        """Whether a person may send, vote and edit: users who are no viewers, and whoever has a key for programs.
        Nobody else: a cookie whose sign-in ends while a request is answered stands for a new person without an account.
        """
        account = self.store.account(annotator)
        if account is None:
            return self.store.has_key(annotator)
        return self.directory.role(account) in ("annotator", "admin")

    # -- signing in and out

    def sign_in(self, name: str, password: str, address: str) -> str:
        """The cookie of whoever has this name and password.

        WrongSignIn where nobody has, TooMany after too many wrong ones, UsersUnreadable or StoreError where it cannot
        be told.
        """
        if self.users is None:
            raise WrongSignIn("Nobody can sign in with a password here.")
        check_lengths(name, password)
        place, bucket = limit_key(address), self._bucket(name)
        self._check_delays(place, bucket)
        with self.hasher.one_at_a_time():
            self._check_delays(place, bucket)  # those that were hashed before this one may have been wrong
            user = self.directory.content().by_name.get(same_name(name))
            if not self.hasher.matches(user.hashed if user else None, password) or user is None:
                self._by_both.failed(place, bucket)
                self._by_place.failed(place)
                self._by_name.failed(bucket)
                log.warning("a sign-in failed: wrong name or password")
                raise WrongSignIn("The name or the password is wrong.")
            self._by_both.forget(place, bucket)
            self._remember(place, bucket)
        return self._begin(user.id, user.stamp)

    def sign_in_by_proxy(self, name: str) -> str:
        """The cookie of whom a trusted proxy has signed in; WrongSignIn where the users file does not have the name."""
        user = self.directory.content().by_name.get(same_name(name))
        if user is None or not is_name_by_proxy(name, user.name):
            raise WrongSignIn("{name} is no user of this app. Ask an admin to be added.", name=repr(name[:NAME_CHARS]))
        return self._begin(user.id, user.stamp)

    def sign_in_by_provider(self, person: ProviderPerson) -> str:
        """The cookie of whom the provider has signed in. NotAllowed where the settings do not let them in; sign-ins of
        before, when they did, end then.
        """
        if person.role is None:
            self.store.end_sign_ins_of(person.account)
            log.info("the provider has signed somebody in who may not come in: %s", unnamed(person.why_not))
            raise NotAllowed(person.why_not)
        until = self._clock() + self.provider_seconds
        says = ProviderSays(person.name, person.role, until)
        return self._begin(person.account, self.directory.provider_stamp, says)

    def check_codes(self, address: str) -> None:
        """TooMany where this address has brought too many codes that its provider did not confirm."""
        if wait := self._wrong_codes.seconds_to_wait(limit_key(address)):
            raise too_many_sign_ins(wait)

    def count_wrong_code(self, address: str) -> None:
        self._wrong_codes.failed(limit_key(address))

    def invitation(self, token: str, address: str) -> Invitation:
        """The open invitation of a link. WrongSignIn where there is none, TooMany after too many wrong ones; the right
        one never waits.
        """
        if found := self.directory.content().invitation(token):
            return found
        place = limit_key(address)
        if wait := self._wrong_links.seconds_to_wait(place):
            raise too_many_links(wait)
        self._wrong_links.failed(place)
        raise WrongSignIn("This invitation was used, or its time is over. Ask for another one.")

    def open_invitation(self, token: str) -> Invitation | None:
        """The same for a link that was checked just now; None where it is gone, or the file cannot be read."""
        try:
            return self.directory.content().invitation(token)
        except UsersUnreadable:
            return None

    def accept(self, token: str, name: str, password: str, again: str, address: str) -> str:
        """Make the user whom an invitation asks for, who chose name and password; returns the cookie. WrongSignIn
        where they cannot be used, and then the invitation stays open.
        """
        self.invitation(token, address)
        name = checked_name(name)
        if checked_password(password, name) != again:
            raise WrongSignIn("The two passwords differ.")
        if same_name(name) in self.directory.content().by_name:
            raise WrongSignIn("The name {name} is taken.", name=repr(name))
        with self.hasher.one_at_a_time():
            hashed = self.hasher.hash(password)

        def accepted(content: Content) -> Content:
            return content.accepted(token, name, hashed)

        assert self.users is not None, "it has the invitation"
        self.users.change(accepted)
        user = self.directory.content().named(name)
        return self._begin(user.id, user.stamp)

    def sign_out(self, token: str | None, everywhere: bool = False) -> None:
        """End the sign-in of a cookie, or all of its person's."""
        account = self.find(token) if everywhere else None
        if account:
            self.store.end_sign_ins(account.annotator)
        elif token:
            self.store.end_sign_in(token)

    def _begin(self, account: str, stamp: str, provider: ProviderSays | None = None) -> str:
        """A new cookie, so that somebody who had planted the earlier one gains nothing."""
        token = visitor.new_token()
        now = self._clock()
        self.store.end_old_sign_ins(now - self.seconds, now)
        self.store.begin_sign_in(account, token, stamp, now, provider)
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
