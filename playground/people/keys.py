"""Keys by which other programs chat and vote for a person: what they look like, and the command that gives them out.

Whoever owns the data folder gives keys out, so that nobody gets one by looking at the page.
"""

import re
import secrets
import sys
from collections.abc import Sequence

from playground import settings as settings_module
from playground.store import Store, StoreError
from playground.system.messages import UserFacingError

PREFIX = "nudge-"
KEY_BYTES = 32
KEY_FORM = re.compile(r"nudge-[\w-]{43}", re.ASCII)  # of `new_key`
NAME_CHARS = 64


class NoSuchPerson(UserFacingError):
    """The command cannot be done for this name; the message says why."""


def new_key() -> str:
    """A key that nobody has."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def person_of(store: Store, authorization: str) -> int | None:
    """The annotator of an Authorization header; None where it has no key that works."""
    scheme, _, key = authorization.partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not KEY_FORM.fullmatch(key):
        return None
    return store.person_of_key(key)


class KeySettings(settings_module.Settings):
    """Gives a person a key for other programs; without --name it lists who has one."""

    name: str = ""
    """Whose key it is. A name that is not there yet is a new person."""
    revoke: bool = False
    """End all keys of this person instead; chats and votes stay."""
    forget: bool = False
    """End all keys of this person and delete all chats."""


def main(argv: Sequence[str] | None = None) -> None:
    try:
        settings = settings_module.read(argv, KeySettings, "python -m playground.people.keys")
        print(run(Store(settings.database, create=False), settings))
    except (settings_module.SettingsError, NoSuchPerson, StoreError) as error:
        sys.exit(str(error))


def run(store: Store, settings: KeySettings) -> str:
    """Do what the settings ask for; returns what is to be printed. NoSuchPerson where that is not possible."""
    name = settings.name
    if not name:
        rows = store.keys()
        return "\n".join(f"{row['name']}: {row['n']} keys, the last of {row['created']}" for row in rows) or "No keys."
    if name != name.strip() or not name.isprintable() or len(name) > NAME_CHARS:
        raise NoSuchPerson("A name has up to {limit} characters on one line, without outer blanks.", limit=NAME_CHARS)
    if not settings.revoke and not settings.forget:
        key = new_key()
        store.add_key(name, key)
        return f"The key of {name}, which is shown once: {key}"
    person = store.person_named(name)
    if person is None:
        raise NoSuchPerson("Nobody has a key under the name {name}.", name=name)
    if settings.forget:
        store.forget(person)
        return f"All keys and chats of {name} are deleted; the worker clears its files."
    return f"{store.revoke_keys(person)} keys of {name} are revoked."


if __name__ == "__main__":
    main()
