"""Who may start, pause and stop rounds: the owner, who opened the admin link, and names in NUDGE_ADMINS that have
signed in.

The app prints the link at each start; it serves one browser once. The others sign in against a file of `name:argon2
hash` lines, which `python -m playground.people.admins --name NAME` writes, or on a Space with Hugging Face. No address
makes anybody an admin, since a proxy may stand before any. A sign-in belongs to the visitor's cookie and is kept in the
store. Knows nothing of pages.
"""

import getpass
import hashlib
import hmac
import logging
import secrets
import sys
import threading
import time
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from playground import settings as settings_module
from playground.people.addresses import one_place
from playground.people.rates import Rate
from playground.system.messages import UserFacingError

log = logging.getLogger("nudge.admins")

OWNER = "owner"  # what who opened the admin link is signed in as; nobody's name in a users file
SIGNED_IN, OWNER_SIGNED_IN = 7 * 24 * 3600, 30 * 24 * 3600  # seconds
WINDOW = 15 * 60  # seconds within which wrong passwords are counted
PLACE_FACTOR = 4  # this many times `sign_in_tries` for all names from one address
NAME_FACTOR = 20  # and for one name from all addresses
MOST_WAITING, LONGEST_WAIT = 4, 5.0  # sign-ins that wait for another one's hash, and for how many seconds
NAME_CHARS, PASSWORD_CHARS, SHORTEST = 64, 256, 10  # longest name, longest and shortest password
BUCKETS = 4096  # names are counted by hash, so that invented ones take no memory and look like real ones
MOST_KNOWN = 1000  # (name, address) pairs that have signed in before and are remembered
HASHER = PasswordHasher()
WRONG_LINKS = 10  # wrong admin links of one address in a minute before it is told to wait


class WrongSignIn(UserFacingError):
    """No sign-in; the message says what to do."""


class TooMany(WrongSignIn):
    """No sign-in now, whatever was given; the message says when to try again."""


class AdminLink:
    """The path that makes one browser the owner's: good for one use, until the app ends. Only its hash is kept."""

    def __init__(self):
        self._hash, self._lock = None, threading.Lock()
        self._wrong = Rate(WRONG_LINKS, 60)

    def issue(self):
        """A new token; the one before is void."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._hash = hashlib.sha256(token.encode()).digest()
        return token

    def open(self, token, address, sign_in):
        """Calls `sign_in()`, once, for the right token; WrongSignIn otherwise, TooMany where `address` tries too often.

        The right one is never told to wait, so that nobody can keep the owner out; 256 bits are not guessed.
        """
        given = hashlib.sha256(token.encode(errors="replace")).digest()
        with self._lock:
            if self._hash is not None and hmac.compare_digest(given, self._hash):
                sign_in()
                self._hash = None  # only now: what the store could not keep can be tried again
                return
        if not self._wrong.count(one_place(address)):
            raise TooMany("Too many wrong links. Try again in {n} s.", n=f"{self._wrong.wait(one_place(address)):.0f}")
        raise WrongSignIn(
            "This admin link is wrong or was used before. Restart the app for a new one, "
            "or let an admin sign in with a password that python -m playground.people.admins keeps."
        )


class Admins:
    """The admins of one app; `store` keeps who is signed in.

    `window`: seconds within which wrong passwords are counted; `hasher`: argon2's.
    """

    def __init__(self, settings, store, window=WINDOW, hasher=HASHER):
        self.settings, self.store, self._hasher = settings, store, hasher
        self.names = frozenset(filter(None, (name.strip() for name in settings.admins.split(","))))
        tries = settings.sign_in_tries
        self._by_both = Rate(tries, window)
        self._by_place = Rate(tries * PLACE_FACTOR, window)
        self._by_name = Rate(tries * NAME_FACTOR, window)
        self._known, self._salt = {}, secrets.token_bytes(16)
        self._waiting, self._hashing = threading.BoundedSemaphore(MOST_WAITING), threading.Lock()

    def allowed(self, request, annotator):
        """Whether this person may do what admins do."""
        return self.store.signed_in(annotator) == OWNER or self.name(request, annotator) in self.names

    def name(self, request, annotator):
        """Under which name this person has signed in, or None."""
        return self.store.signed_in(annotator) or space_user(request)

    def takes_passwords(self):
        """Whether there is somebody who could sign in with one."""
        return bool(self.names and self.settings.users_file)

    def sign_in(self, request, annotator, name, password):
        """WrongSignIn unless it is this name's password; TooMany after too many wrong ones, or while many people sign
        in.
        """
        if not self.takes_passwords():
            raise WrongSignIn("Nobody can sign in with a password here.")
        name, password = str(name or "").strip(), str(password or "")
        if len(name) > NAME_CHARS or len(password) > PASSWORD_CHARS:
            raise WrongSignIn(
                "A name has at most {n} characters and a password at most {limit}.", n=NAME_CHARS, limit=PASSWORD_CHARS
            )
        place, bucket = one_place(request.client.host if request.client else ""), self._bucket(name)
        self._check(place, bucket)
        with self._alone():
            self._check(place, bucket)  # those who hashed before this one may have used up its tries
            users = self._users()
            if not self._right(users.get(name) or self._nobody, password) or name not in users or name == OWNER:
                self._by_both.count(place, bucket)
                self._by_place.count(place)
                self._by_name.count(bucket)
                raise WrongSignIn("The name or the password is wrong.")
            self._remember(place, bucket)
        self.store.sign_in(annotator, name, time.time() + SIGNED_IN)

    def sign_in_owner(self, annotator, token):
        """Make this person the owner, for 30 days. Their cookie becomes `token`: who had planted the old one has
        nothing.
        """
        self.store.renew(annotator, token)
        self.store.sign_in(annotator, OWNER, time.time() + OWNER_SIGNED_IN)

    def sign_out(self, annotator):
        self.store.sign_out(annotator)

    def _check(self, place, bucket):
        """TooMany where this address, or this name from an address that has never signed in under it, must wait."""
        waits = [self._by_both.wait(place, bucket), self._by_place.wait(place)]
        if (place, bucket) not in self._known:  # guesses from all over the world lock out nobody who was here before
            waits.append(self._by_name.wait(bucket))
        if wait := max(waits):
            raise TooMany("Too many wrong passwords. Try again in {n} s.", n=f"{wait:.0f}")

    @contextmanager
    def _alone(self):
        """One hash at a time: each takes 64 MB. A few wait for a few seconds; more are told to try again."""
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

    def _bucket(self, name):
        digest = hashlib.sha256(self._salt + name.encode(errors="replace")).digest()
        return str(int.from_bytes(digest[:4], "big") % BUCKETS)

    def _remember(self, place, bucket):
        self._known.pop((place, bucket), None)
        self._known[place, bucket] = True
        while len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]  # the one that was here longest ago

    @cached_property
    def _nobody(self):
        """A hash that is checked for an unknown name, so that it takes as long as a known one."""
        return self._hasher.hash(secrets.token_urlsafe())

    def _right(self, hashed, password):
        try:
            return self._hasher.verify(hashed, password.encode(errors="replace"))
        except (VerificationError, InvalidHashError):
            return False

    def _users(self):
        try:
            return read_users(self.settings.users_file)
        except (OSError, UnicodeError):
            log.exception("the users file %s cannot be read", self.settings.users_file)
            raise WrongSignIn(
                "The passwords of this app cannot be read. Its owner finds the reason in the log."
            ) from None


def space_user(request):
    """The Hugging Face user of a request, or None. Only on a Space: elsewhere Gradio's sign-in is a mock that makes
    anybody the owner.
    """
    if not settings_module.ON_SPACE:
        return None
    session = getattr(request, "request", request).scope.get("session") or {}
    return (session.get("oauth_info") or {}).get("userinfo", {}).get("preferred_username")


def read_users(path):
    """{name: hash} of a users file; {} where there is none yet."""
    path = Path(path).expanduser()
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return dict(line.strip().split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


def write_user(path, name, password, hasher=HASHER):
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
    if len(password) < SHORTEST:
        raise WrongSignIn(
            "The password has {n} characters; at least {limit} are needed.", n=len(password), limit=SHORTEST
        )
    if len(password) > PASSWORD_CHARS:
        raise WrongSignIn(
            "The password has {n} characters; at most {limit} fit.", n=len(password), limit=PASSWORD_CHARS
        )
    users, path = {**read_users(path), name: hasher.hash(password)}, Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.touch(mode=0o600)
    partial.write_text("".join(f"{n}:{h}\n" for n, h in users.items()), encoding="utf-8")
    partial.replace(path)


class AdminSettings(settings_module.Settings):
    """Writes one admin's password to the users file; give the name with --name."""

    name: str = ""
    """Whose password it is; add the name to NUDGE_ADMINS as well."""


def main(argv=None):
    try:
        settings = settings_module.read(argv, AdminSettings, "python -m playground.people.admins")
        if not settings.users_file or not settings.name:
            raise WrongSignIn("Pass --users-file FILE and --name NAME.")
        write_user(
            settings.users_file,
            settings.name,
            getpass.getpass(f"Password of {settings.name}: ")
            if sys.stdin.isatty()
            else sys.stdin.readline().rstrip("\n"),
        )
    except (settings_module.SettingsError, WrongSignIn) as error:
        sys.exit(str(error))
    print(f"{settings.name} can sign in once it is one of NUDGE_ADMINS.")


if __name__ == "__main__":
    main()
