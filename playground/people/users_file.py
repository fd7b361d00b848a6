"""The file of users: a line for each with name, role, id and hashed password, and one for each open invitation.

The command line and the server write it, under a lock and as a whole; it is read again when it has changed, so that a
role or a removal counts at once. The id stays when the password changes, and is new where a name is given away again:
who has a name later gets nothing of who had it before.
"""

import hashlib
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from filelock import FileLock, Timeout

from playground.people.passwords import FORM, NAME_CHARS, NO_PASSWORD, same_name
from playground.people.refusals import UsersUnreadable, WrongSignIn

log = logging.getLogger(__name__)

Role = Literal["viewer", "annotator", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
PRIVATE = 0o600
LOCKED = 10.0  # seconds that a change waits for another one
DAY = 24 * 3600  # seconds
TOKEN_BYTES = 32  # of an invitation
SHORT = 8  # digits of the hash by which an invitation is taken back
HEADER = "# Users of Nudge; python -m playground.people.users changes this file.\n"
USER = re.compile(rf"user:([^:]+):({'|'.join(ROLES)}):([0-9a-f]{{16}}):(\S+)")
INVITATION = re.compile(rf"invitation:({'|'.join(ROLES)}):(\d{{1,12}}):([0-9a-f]{{64}})(?::([^:]+))?")


@dataclass(frozen=True)
class User:
    """One user; `hashed` is the password's hash, or NO_PASSWORD. `id`: of the file, or of whom a provider signs in."""

    name: str
    role: Role
    id: str
    hashed: str

    @property
    def stamp(self) -> str:
        """Changes with the password: a sign-in holds while it is the same."""
        return hashlib.sha256(self.hashed.encode()).hexdigest()


@dataclass(frozen=True)
class Invitation:
    """An invitation that nobody has taken yet; `digest` is the hash of its token, `until` a time in unix seconds, `by`
    who made it, "" where that is not known.
    """

    role: Role
    until: int
    digest: str
    by: str = ""

    @property
    def short(self) -> str:
        """What it is called in a list: nobody learns its token from it."""
        return self.digest[:SHORT]


@dataclass(frozen=True)
class Content:
    """What the file says."""

    users: tuple[User, ...] = ()
    invitations: tuple[Invitation, ...] = ()

    @cached_property
    def by_name(self) -> dict[str, User]:
        return {same_name(user.name): user for user in self.users}

    @cached_property
    def by_id(self) -> dict[str, User]:
        return {user.id: user for user in self.users}

    def named(self, name: str) -> User:
        """WrongSignIn where there is nobody of this name."""
        user = self.by_name.get(same_name(name))
        if user is None:
            raise WrongSignIn("There is no user {name}.", name=repr(name))
        return user

    def invitation(self, token: str) -> Invitation | None:
        """The open invitation of a token. Its 256 bits are compared by their hash, so time tells nothing of them."""
        digest = digest_of(token)
        return next((i for i in self.open_invitations if i.digest == digest), None)

    @property
    def open_invitations(self) -> tuple[Invitation, ...]:
        """Those whose time is not over."""
        return tuple(i for i in self.invitations if i.until > time.time())

    # -- changes, each a new Content

    def with_user(self, name: str, role: Role, hashed: str) -> "Content":
        """WrongSignIn where the name is somebody's already."""
        if same_name(name) in self.by_name:
            raise WrongSignIn("The name {name} is taken.", name=repr(name))
        return replace(self, users=(*self.users, User(name, role, secrets.token_hex(8), hashed)))

    def without_user(self, name: str) -> "Content":
        gone = self.named(name)
        return replace(self, users=tuple(user for user in self.users if user != gone))

    def changed(self, name: str, *, role: Role | None = None, hashed: str | None = None) -> "Content":
        old = self.named(name)
        new = replace(old, role=role or old.role, hashed=hashed or old.hashed)
        return replace(self, users=tuple(new if user == old else user for user in self.users))

    def with_invitation(self, invitation: Invitation) -> "Content":
        return replace(self, invitations=(*self.open_invitations, invitation))

    def without_invitation(self, short: str) -> "Content":
        """WrongSignIn where no invitation that is open is called so."""
        gone = next((i for i in self.open_invitations if i.short == short), None)
        if gone is None:
            raise WrongSignIn("There is no such invitation any more: it was taken, or its time is over.")
        return replace(self, invitations=tuple(i for i in self.invitations if i != gone))

    def accepted(self, token: str, name: str, hashed: str) -> "Content":
        """With the user whom an invitation makes, and without the invitation. WrongSignIn where it is not open."""
        invitation = self.invitation(token)
        if invitation is None:
            raise WrongSignIn("This invitation was used, or its time is over. Ask for another one.")
        left = tuple(i for i in self.invitations if i != invitation)
        return replace(self.with_user(name, invitation.role, hashed), invitations=left)


def new_invitation(role: Role, days: float, by: str = "") -> tuple[str, Invitation]:
    """A token that makes one user, and what the file keeps of it; `by`: who makes it, as far as a line can say it."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    maker = "".join(char for char in by if char.isprintable() and char != ":").strip()[:NAME_CHARS]
    return token, Invitation(role, int(time.time() + days * DAY), digest_of(token), maker)


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


class UsersFile:
    """The users at `path`; none where there is no file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().resolve()
        self._lock = threading.Lock()
        self._seen: object = ()  # what the file looked like when it was read
        self._content = Content()
        self._broken = False

    def content(self) -> Content:
        """What the file says now. UsersUnreadable where it cannot be read."""
        with self._lock:
            try:
                looks = look(self.path)
                if looks != self._seen or self._broken:
                    self._content = parsed(self.path.read_text(encoding="utf-8-sig")) if looks else Content()
                    self._seen, self._broken = looks, False
            except (OSError, ValueError) as error:
                if not self._broken:
                    log.error("the users file %s cannot be read: %s", self.path, error)
                self._broken = True
                raise unreadable() from None
            return self._content

    def change(self, change: Callable[[Content], Content]) -> None:
        """Write what `change` makes of the content; what it raises leaves the file as it is. UsersUnreadable where the
        file cannot be read or written.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self.path.with_name(f"{self.path.name}.lock")
            with FileLock(lock, timeout=LOCKED, mode=PRIVATE):
                hand_over(lock, self.path)
                write(self.path, text_of(change(self.content())))
        except (OSError, Timeout) as error:
            log.error("the users file %s cannot be written: %s", self.path, error)
            raise unreadable() from None


def unreadable() -> UsersUnreadable:
    return UsersUnreadable(
        "The users file cannot be read or written. The owner of this app finds the reason in the log."
    )


def look(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file is written; None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def parsed(text: str) -> Content:
    """ValueError names the line that is neither a user nor an invitation, or that says something twice."""
    users: list[User] = []
    invitations: list[Invitation] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if (match := USER.fullmatch(line)) and (match[4] == NO_PASSWORD or FORM.fullmatch(match[4])):
            users.append(User(match[1], as_role(match[2]), match[3], match[4]))
        elif match := INVITATION.fullmatch(line):
            invitations.append(Invitation(as_role(match[1]), int(match[2]), match[3], match[4] or ""))
        else:
            raise ValueError(f"line {number} is neither a user nor an invitation")
    content = Content(tuple(users), tuple(invitations))
    if len(content.by_name) < len(users) or len(content.by_id) < len(users):
        raise ValueError("a name or an id is there twice")
    return content


def as_role(text: str) -> Role:
    return next(role for role in ROLES if role == text)


def text_of(content: Content) -> str:
    users = [f"user:{user.name}:{user.role}:{user.id}:{user.hashed}\n" for user in content.users]
    invitations = [
        f"invitation:{i.role}:{i.until}:{i.digest}{f':{i.by}' if i.by else ''}\n" for i in content.invitations
    ]
    return HEADER + "".join(users + invitations)


def write(path: Path, text: str) -> None:
    """Put `text` in the place of the file, for its owner alone to read. All of it is there, or nothing has changed."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        hand_over(partial, path)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def hand_over(made: Path, path: Path) -> None:
    """Where root has made a file beside `path`, give it to whom that belongs to, or its folder: the app's own user."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        owner = (path if path.exists() else path.parent).stat()
        os.chown(made, owner.st_uid, owner.st_gid, follow_symlinks=False)  # whoever owns the folder may put links there
