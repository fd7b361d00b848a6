"""Who may start, pause and stop rounds: the owner, who opened the admin link, and names in NUDGE_ADMINS that signed in.

The app prints the admin link at each start; it works once, for one browser. The others sign in with a password, which
is checked against a file of `name:argon2 hash` lines; `python -m playground.people.admins --name NAME` writes it. On a
Space they sign in with Hugging Face. No address makes anybody an admin, since there may be a proxy in front of any. A
sign-in belongs to the visitor's cookie and is kept in the store. This module knows nothing about pages.

With `people.users` or `oidc.issuer` all this counts for nothing: the users file or the provider says who is an admin,
and everybody signs in before the page (`sign_ins.py`).
"""

import getpass
import hashlib
import hmac
import logging
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Protocol, cast

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from starlette.requests import HTTPConnection, Request

from playground import settings as settings_module
from playground.people.addresses import limit_key
from playground.people.directory import Directory
from playground.people.passwords import NAME_CHARS, check_lengths, checked_password
from playground.people.rates import RateLimit
from playground.people.refusals import TooMany, UsersUnreadable, WrongSignIn, too_many_links, too_many_passwords
from playground.people.users_file import User
from playground.settings import Settings
from playground.store import Store

log = logging.getLogger("nudge.admins")

OWNER = "owner"  # the name under which whoever opened the admin link is signed in; no name in a users file
DAY = 24 * 3600  # seconds
SIGNED_IN = 7 * DAY  # how long a sign-in with a password lasts
OWNER_SIGNED_IN = 30 * DAY  # how long that by the admin link lasts
HASHER = PasswordHasher()

# limits on guessing
WRONG_LINKS = 10  # wrong admin links of one address in a minute before it must wait
WINDOW = 15 * 60  # seconds within which wrong passwords are counted
PLACE_FACTOR = 4  # an address may try this many times `sign_in_tries`, all names together
NAME_FACTOR = 20  # and a name may be tried this many times `sign_in_tries`, from all addresses together
BUCKETS = 4096  # names are counted by their hash, so that invented names take no memory and look like real ones
MOST_KNOWN = 1000  # pairs of name and address that are remembered for having signed in before
MOST_WAITING = 4  # sign-ins that may wait while another one is hashed
LONGEST_WAIT = 5.0  # seconds that they wait


class GradioRequest(Protocol):
    """`gr.Request`, which wraps the request of Starlette."""

    @property
    def request(self) -> Request | None: ...


AnyRequest = HTTPConnection | GradioRequest


class AdminLink:
    """The path that makes one browser the owner's: it works once, until the app ends. Only its hash is kept."""

    def __init__(self) -> None:
        self._hash: bytes | None = None
        self._lock = threading.Lock()
        self._wrong = RateLimit(WRONG_LINKS, 60)

    def issue(self) -> str:
        """A new token; the one before becomes invalid."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._hash = hashlib.sha256(token.encode()).digest()
        return token

    def open(self, token: str, address: str, sign_in: Callable[[], object]) -> None:
        """Call `sign_in()` if this is the right token, which then becomes invalid.

        WrongSignIn for a wrong token, TooMany where `address` has tried too many. The right one never has to wait, so
        nobody can keep the owner out; its 256 bits cannot be guessed.
        """
        given = hashlib.sha256(token.encode(errors="replace")).digest()
        with self._lock:
            if self._hash is not None and hmac.compare_digest(given, self._hash):
                sign_in()
                self._hash = None  # only now: where the store failed, the link can be tried again
                return
        place = limit_key(address)
        if not self._wrong.count(place):
            raise too_many_links(self._wrong.seconds_to_wait(place))
        raise WrongSignIn(
            "This admin link is wrong or was used before. Restart the app for a new one, "
            "or let an admin sign in with a password that python -m playground.people.admins keeps."
        )


class Admins:
    """The admins of one app; `store` keeps who is signed in.

    `window`: seconds within which wrong passwords are counted. `hasher`: hashes passwords.
    """

    def __init__(self, settings: Settings, store: Store, window: int = WINDOW, hasher: PasswordHasher = HASHER) -> None:
        self.settings = settings
        self.store = store
        self.names = frozenset(name.strip() for name in settings.admins.split(",") if name.strip())
        self.directory = Directory(settings, store) if settings.everybody_signs_in else None
        self.users = self.directory.file if self.directory else None
        self._hasher = hasher
        tries = settings.limits.sign_in_tries
        self._by_both = RateLimit(tries, window)  # of a name from an address
        self._by_place = RateLimit(tries * PLACE_FACTOR, window)
        self._by_name = RateLimit(tries * NAME_FACTOR, window)
        # (address, name) pairs that have signed in before, as a dict's keys: the one that signed in last comes last
        self._known: dict[tuple[str, str], None] = {}
        self._salt = secrets.token_bytes(16)
        self._waiting = threading.BoundedSemaphore(MOST_WAITING)
        self._hashing = threading.Lock()

    # -- who is an admin

    def allowed(self, request: AnyRequest, annotator: int) -> bool:
        """Whether this person may do what admins do."""
        if self.directory:
            return self.directory.role(self.store.account(annotator)) == "admin"
        return self.store.signed_in(annotator) == OWNER or self.name(request, annotator) in self.names

    def user(self, annotator: int) -> User | None:
        """The user whom an annotator is; None where there are none, or where the users file cannot be read."""
        with suppress(UsersUnreadable):
            return self.directory.user(self.store.account(annotator)) if self.directory else None
        return None

    def name(self, request: AnyRequest, annotator: int) -> str | None:
        """The name under which this person has signed in, or None; always None where everybody signs in elsewhere."""
        if self.directory:
            return None
        return self.store.signed_in(annotator) or space_user(request)

    # -- signing in and out

    def takes_passwords(self) -> bool:
        """Whether anybody could sign in with a password."""
        return bool(self.names and self.settings.users_file) and not self.directory

    def sign_in(self, request: AnyRequest, annotator: int, name: str | None, password: str | None) -> None:
        """Sign this person in as `name`, for 7 days.

        WrongSignIn unless the password is this name's; TooMany after too many wrong ones, or while many people sign in.
        """
        if not self.takes_passwords():
            raise WrongSignIn("Nobody can sign in with a password here.")
        name = str(name or "").strip()
        password = str(password or "")
        check_lengths(name, password)
        client = _unwrapped(request).client
        place = limit_key(client.host if client else "")
        bucket = self._bucket(name)
        self._check_limits(place, bucket)
        with self._one_at_a_time():
            self._check_limits(place, bucket)  # those that were hashed before this one may have used up its tries
            users = self._users()
            # an unknown name is hashed too, so that it takes as long as a known one
            matches = self._matches(users.get(name) or self._hash_of_nobody, password)
            if not matches or name not in users or name == OWNER:
                self._by_both.count(place, bucket)
                self._by_place.count(place)
                self._by_name.count(bucket)
                raise WrongSignIn("The name or the password is wrong.")
            self._remember(place, bucket)
        self.store.sign_in(annotator, name, time.time() + SIGNED_IN)

    def sign_in_owner(self, annotator: int, token: str) -> None:
        """Make this person the owner, for 30 days.

        Their cookie becomes `token`, so that somebody who had planted the earlier cookie gains nothing.
        """
        self.store.renew(annotator, token)
        self.store.sign_in(annotator, OWNER, time.time() + OWNER_SIGNED_IN)

    def sign_out(self, annotator: int) -> None:
        self.store.sign_out(annotator)

    # -- limits

    def _check_limits(self, place: str, bucket: str) -> None:
        """TooMany where this address, or this name from an address that has never signed in under it, must wait."""
        waits = [self._by_both.seconds_to_wait(place, bucket), self._by_place.seconds_to_wait(place)]
        if (place, bucket) not in self._known:  # guesses from all over the world lock out nobody who was here before
            waits.append(self._by_name.seconds_to_wait(bucket))
        if wait := max(waits):
            raise too_many_passwords(wait)

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Only one password is hashed at a time, since each takes 64 MB.

        MOST_WAITING others wait for LONGEST_WAIT; TooMany for those beyond.
        """
        if not self._waiting.acquire(blocking=False):
            raise TooMany("Other people are signing in. Try again in a few seconds.")
        try:
            if not self._hashing.acquire(timeout=LONGEST_WAIT):
                raise TooMany("Other people are signing in. Try again in a few seconds.")
            try:
                yield
            finally:
                self._hashing.release()
        finally:
            self._waiting.release()

    def _bucket(self, name: str) -> str:
        """What wrong passwords of a name are counted as."""
        digest = hashlib.sha256(self._salt + name.encode(errors="replace")).digest()
        return str(int.from_bytes(digest[:4], "big") % BUCKETS)

    def _remember(self, place: str, bucket: str) -> None:
        self._known.pop((place, bucket), None)
        self._known[place, bucket] = None
        while len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]  # the one that signed in longest ago

    # -- passwords

    @cached_property
    def _hash_of_nobody(self) -> str:
        return self._hasher.hash(secrets.token_urlsafe())

    def _matches(self, hashed: str, password: str) -> bool:
        try:
            return self._hasher.verify(hashed, password.encode(errors="replace"))
        except (VerificationError, InvalidHashError):
            return False

    def _users(self) -> dict[str, str]:
        try:
            return read_users(self.settings.users_file)
        except (OSError, UnicodeError):
            log.exception("the users file %s cannot be read", Path(self.settings.users_file))
            raise WrongSignIn(
                "The passwords of this app cannot be read. Its owner finds the reason in the log."
            ) from None


def _unwrapped(request: AnyRequest) -> HTTPConnection:
    """Starlette's request, out of Gradio's where it is one."""
    wrapped: HTTPConnection | None = getattr(request, "request", None)
    return wrapped or cast(HTTPConnection, request)


def space_user(request: AnyRequest) -> str | None:
    """The Hugging Face user of a request, or None.

    Always None outside of a Space: there Gradio's sign-in is a mock that makes everybody the owner.
    """
    if not settings_module.ON_SPACE:
        return None
    session = _unwrapped(request).scope.get("session") or {}
    return (session.get("oauth_info") or {}).get("userinfo", {}).get("preferred_username")


# -- the users file


def read_users(path: str | Path) -> dict[str, str]:
    """The hashes of a users file by name; none where there is no file yet."""
    path = Path(path).expanduser()
    if not path.exists():
        return {}
    users = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if ":" in line and not line.startswith("#"):
            name, hashed = line.strip().split(":", 1)
            users[name] = hashed
    return users


def write_user(path: str | Path, name: str, password: str, hasher: PasswordHasher = HASHER) -> None:
    """Add a name to a users file, or change its password; WrongSignIn where one of them cannot be used."""
    if not name or ":" in name or name != name.strip() or name.startswith("#") or len(name.splitlines()) > 1:
        raise WrongSignIn(
            "{name} cannot be a name: it is empty, has a colon, outer blanks or several lines, or starts with #.",
            name=repr(name),
        )
    if name.casefold() == OWNER:
        raise WrongSignIn("{name} cannot be a name: it stands for whoever opened the admin link.", name=repr(name))
    if len(name) > NAME_CHARS:
        raise WrongSignIn("The name has {n} characters; at most {limit} fit.", n=len(name), limit=NAME_CHARS)
    users = {**read_users(path), name: hasher.hash(checked_password(password, name))}
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.touch(mode=0o600)
    partial.write_text("".join(f"{user}:{hashed}\n" for user, hashed in users.items()), encoding="utf-8")
    partial.replace(path)


class AdminSettings(settings_module.Settings):
    """Writes one admin's password to the users file; give the name with --name."""

    name: str = ""
    """Whose password it is; add the name to NUDGE_ADMINS as well."""


def main(argv: Sequence[str] | None = None) -> None:
    try:
        settings = settings_module.read(argv, AdminSettings, "python -m playground.people.admins")
        if not settings.users_file or not settings.name:
            raise WrongSignIn("Pass --users-file FILE and --name NAME.")
        if sys.stdin.isatty():
            password = getpass.getpass(f"Password of {settings.name}: ")
        else:
            password = sys.stdin.readline().rstrip("\n")
        write_user(settings.users_file, settings.name, password)
    except (settings_module.SettingsError, WrongSignIn) as error:
        sys.exit(str(error))
    print(f"{settings.name} can sign in once it is one of NUDGE_ADMINS.")


if __name__ == "__main__":
    main()
