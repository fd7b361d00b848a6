"""Passwords and names of users: which can be used, and how a password is hashed and compared.

A hash is `scrypt$N$r$p$salt$hash`, so that each carries the cost it was made with.
"""

import base64
import hashlib
import hmac
import re
import secrets
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from playground.people.refusals import TooMany, WrongSignIn

NAME_CHARS = 64  # longest name
PASSWORD_CHARS = 256  # longest password
SHORTEST = 10  # characters of the shortest password
SALT_BYTES = 16
HASH_BYTES = 32
NO_PASSWORD = "-"  # in the place of a hash, of a user whom a proxy signs in
FORM = re.compile(r"scrypt\$(\d{1,7})\$(\d{1,2})\$(\d{1,2})\$([\w-]{8,100})\$([\w-]{43})", re.ASCII)
MOST_MEMORY = 1 << 28  # bytes that one hash may take, whatever its line says
MOST_WORK = 1 << 23  # n·r·p of one hash, ten times the usual cost
MOST_WAITING = 4  # people who may wait while another one's password is hashed
LONGEST_WAIT = 5.0  # seconds that they wait


@dataclass(frozen=True)
class Cost:
    """What a hash takes: 128·n·r bytes of memory, and time that grows with n·r·p."""

    n: int = 1 << 15
    r: int = 8
    p: int = 3

    @property
    def memory(self) -> int:
        """Bytes that OpenSSL asks for."""
        return 128 * self.r * (self.n + self.p + 2) + 1024


class Hasher:
    """Hashes passwords, one at a time: each takes 32 MB and a quarter of a second at the usual cost."""

    def __init__(self, cost: Cost | None = None) -> None:
        self.cost = cost or Cost()
        self._nobody = self.hash(secrets.token_urlsafe())
        self._waiting = threading.BoundedSemaphore(MOST_WAITING + 1)
        self._hashing = threading.Lock()

    def hash(self, password: str) -> str:
        salt = secrets.token_bytes(SALT_BYTES)
        cost = self.cost
        return f"scrypt${cost.n}${cost.r}${cost.p}${encoded(salt)}${encoded(derived(password, salt, cost))}"

    def matches(self, hashed: str | None, password: str) -> bool:
        """Whether this is the password of a hash. None is nobody's, as is what is no hash; both take as long."""
        own = FORM.fullmatch(hashed or "")
        match = own or FORM.fullmatch(self._nobody)
        assert match is not None
        cost = Cost(int(match[1]), int(match[2]), int(match[3]))
        if cost.memory > MOST_MEMORY or cost.n * cost.r * cost.p > MOST_WORK:
            return False
        try:
            found = encoded(derived(password, decoded(match[4]), cost))
        except ValueError:  # no cost that scrypt knows, or no base64
            return False
        return hmac.compare_digest(found, match[5]) and own is not None

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Held while a password is hashed. TooMany where others wait already, or where it takes too long."""
        busy = TooMany("Other people are signing in. Try again in a few seconds.")
        if not self._waiting.acquire(blocking=False):
            raise busy
        try:
            if not self._hashing.acquire(timeout=LONGEST_WAIT):
                raise busy
            try:
                yield
            finally:
                self._hashing.release()
        finally:
            self._waiting.release()


def derived(password: str, salt: bytes, cost: Cost) -> bytes:
    """The key that scrypt makes of a password. Keyboards write accented letters in two ways, which count as one."""
    text = unicodedata.normalize("NFC", password).encode(errors="replace")
    return hashlib.scrypt(text, salt=salt, n=cost.n, r=cost.r, p=cost.p, maxmem=cost.memory, dklen=HASH_BYTES)


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def same_name(name: str) -> str:
    """What names are compared by: a phone begins with a capital letter, and Ann and ann are one."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


def is_name_by_proxy(said: str, name: str) -> bool:
    """Whether a proxy means the user `name`. More strictly than `same_name`: to those that sign people in, names that
    only look alike may be two people. Only A and a are one.
    """
    return said == name or (said.isascii() and name.isascii() and said.lower() == name.lower())


def check_lengths(name: str, password: str) -> None:
    """WrongSignIn where one of them is longer than any can be."""
    if len(name) > NAME_CHARS or len(password) > PASSWORD_CHARS:
        raise WrongSignIn(
            "A name has at most {n} characters and a password at most {limit}.", n=NAME_CHARS, limit=PASSWORD_CHARS
        )


def checked_name(name: str) -> str:
    """A name without outer blanks; WrongSignIn where it cannot be used."""
    name = unicodedata.normalize("NFC", name).strip()
    if not name or not name.isprintable() or ":" in name or len(name) > NAME_CHARS:
        raise WrongSignIn("A name has from 1 to {limit} characters on one line, and no colon.", limit=NAME_CHARS)
    return name


def checked_password(password: str, name: str) -> str:
    """The password; WrongSignIn where it cannot be used."""
    if len(password) < SHORTEST:
        raise WrongSignIn(
            "The password has {n} characters; at least {limit} are needed.", n=len(password), limit=SHORTEST
        )
    if len(password) > PASSWORD_CHARS:
        raise WrongSignIn(
            "The password has {n} characters; at most {limit} fit.", n=len(password), limit=PASSWORD_CHARS
        )
    if same_name(password) == same_name(name) or len(set(password)) < 3:
        raise WrongSignIn("This password is too easy to guess. Take another one.")
    return password
