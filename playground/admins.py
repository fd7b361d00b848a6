"""Who may start, pause and stop rounds: the owner of the machine, and names in NUDGE_ADMINS once they have signed in.

They sign in against a file of `name:argon2 hash` lines, which `python -m playground.admins --name NAME` writes, or on a Space with Hugging Face. A sign-in
belongs to the visitor's cookie and is kept in the store. Knows nothing of pages.
"""

import getpass
import sys
import threading
import time
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from playground import settings as settings_module
from playground import visitor

SIGNED_IN = 7 * 24 * 3600  # seconds
TRIES, FIRST_WAIT, LONGEST_WAIT = 5, 30.0, 3600.0  # wrong passwords of one name from one address, then seconds until the next try
SHORTEST = 10  # characters of a password
NOBODY = PasswordHasher().hash("nobody has this name")  # checked for an unknown name, so that it takes as long as a known one


class WrongSignIn(Exception):
    """No sign-in; the message says what to do."""


class Admins:
    """The admins of one app; `store` keeps who is signed in."""

    def __init__(self, settings, store, clock=time.monotonic):
        self.settings, self.store, self._clock = settings, store, clock
        self.names = frozenset(filter(None, (name.strip() for name in settings.admins.split(","))))
        self._failed, self._lock = {}, threading.Lock()  # (name, address) -> (wrong tries, moment of the next)

    def allowed(self, request, annotator):
        """Whether this person may do what admins do."""
        return visitor.is_owner(self.settings, request) or self.name(request, annotator) in self.names

    def name(self, request, annotator):
        """Under which name this person has signed in, or None."""
        return self.store.signed_in(annotator) or space_user(request)

    def takes_passwords(self):
        """Whether there is somebody who could sign in with one."""
        return bool(self.names and self.settings.users_file)

    def sign_in(self, request, annotator, name, password):
        """WrongSignIn unless it is the password of this name; too many wrong ones make the next try wait."""
        name, key = (name or "").strip(), ((name or "").strip(), request.client.host if request.client else "")
        with self._lock:
            tries, wait_until = self._failed.get(key, (0, 0.0))
            if self._clock() < wait_until:
                raise WrongSignIn(f"Too many wrong passwords. Try again in {wait_until - self._clock():.0f} s.")
            if len(self._failed) > 10_000:  # names are free to invent
                self._failed = {k: v for k, v in self._failed.items() if v[1] > self._clock()}
        if not _right(self._users().get(name, NOBODY), password or "") or name not in self._users():
            tries += 1
            wait = min(FIRST_WAIT * 2 ** (tries - TRIES), LONGEST_WAIT) if tries >= TRIES else 0.0
            with self._lock:
                self._failed[key] = (tries, self._clock() + wait)
            raise WrongSignIn("The name or the password is wrong.")
        with self._lock:
            self._failed.pop(key, None)
        self.store.sign_in(annotator, name, time.time() + SIGNED_IN)

    def sign_out(self, annotator):
        self.store.sign_out(annotator)

    def _users(self):
        return read_users(self.settings.users_file) if self.settings.users_file else {}


def space_user(request):
    """The Hugging Face user of a request, or None. Only on a Space: elsewhere Gradio's sign-in is a mock that makes anybody the owner."""
    if not settings_module.ON_SPACE:
        return None
    session = getattr(request, "request", request).scope.get("session") or {}
    return (session.get("oauth_info") or {}).get("userinfo", {}).get("preferred_username")


def read_users(path):
    """{name: hash} of a users file; {} where there is none yet."""
    path = Path(path).expanduser()
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return dict(line.strip().split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


def write_user(path, name, password):
    """Add a name to a users file, or change its password."""
    if not name or ":" in name or name != name.strip() or name.startswith("#"):
        raise WrongSignIn(f"{name!r} cannot be a name: it is empty, has a colon or outer blanks, or starts with #.")
    if len(password) < SHORTEST:
        raise WrongSignIn(f"The password has {len(password)} characters; at least {SHORTEST} are needed.")
    users, path = {**read_users(path), name: PasswordHasher().hash(password)}, Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.touch(mode=0o600)
    partial.write_text("".join(f"{n}:{h}\n" for n, h in users.items()), encoding="utf-8")
    partial.replace(path)


def _right(hashed, password):
    try:
        return PasswordHasher().verify(hashed, password)
    except (VerificationError, InvalidHashError):
        return False


class AdminSettings(settings_module.Settings):
    """Writes one admin's password to the users file; give the name with --name."""

    name: str = ""
    """Whose password it is; add the name to NUDGE_ADMINS as well."""


def main(argv=None):
    try:
        settings = settings_module.read(argv, AdminSettings, "python -m playground.admins")
        if not settings.users_file or not settings.name:
            raise WrongSignIn("Pass --users-file FILE and --name NAME.")
        write_user(settings.users_file, settings.name, getpass.getpass(f"Password of {settings.name}: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n"))
    except (settings_module.SettingsError, WrongSignIn) as error:
        sys.exit(str(error))
    print(f"{settings.name} can sign in once it is one of NUDGE_ADMINS.")


if __name__ == "__main__":
    main()
