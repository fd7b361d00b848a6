"""Keys by which other programs chat and vote for a person: what they look like, and the command that gives them out.

Whoever owns the data folder gives keys out, so that nobody gets one by looking at the page.
"""

import argparse
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

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


COMMANDS = {
    "list": "who has keys",
    "add": "a new key for a person; one more where there is one",
    "revoke": "end all keys of a person; chats and votes stay",
    "forget": "end all keys of a person and delete all chats",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 not possible, and why is said; 2 the command line is wrong."""
    arguments = parser().parse_args(argv)
    try:
        settings = settings_module.read([])
        if arguments.data_dir is not None:
            settings = settings.with_values(data_dir=arguments.data_dir)
        print(run(Store(settings.database, create=False), arguments.command, getattr(arguments, "name", "")))
    except (settings_module.SettingsError, NoSuchPerson, StoreError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m playground.people.keys", description="Keys by which other programs chat and vote for a person."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        if name != "list":
            command.add_argument("name", help="the person, by a name of your choice")
        command.add_argument("--data-dir", type=Path, help="the app's folder (default: NUDGE_DATA_DIR, .env, or data)")
    return top


def run(store: Store, command: str, name: str = "") -> str:
    """Do one of COMMANDS; returns what is to be printed. NoSuchPerson where that is not possible."""
    if command == "list":
        rows = store.keys()
        return (
            "\n".join(f"{row['name']}: {counted(row['n'])}, the last of {row['created']}" for row in rows) or "No keys."
        )
    if not name or name != name.strip() or not name.isprintable() or len(name) > NAME_CHARS:
        raise NoSuchPerson("A name has up to {limit} characters on one line, without outer blanks.", limit=NAME_CHARS)
    if command == "add":
        key = new_key()
        store.add_key(name, key)
        return f"A key of {name}, which is shown once: {key}"
    person = store.person_named(name)
    if person is None:
        raise NoSuchPerson("Nobody has a key under the name {name}.", name=name)
    if command == "forget":
        store.forget(person)
        return f"All keys and chats of {name} are deleted; the worker clears its files."
    return f"Revoked: {counted(store.revoke_keys(person))} of {name}."


def counted(keys: int) -> str:
    return f"{keys} key{'s' * (keys != 1)}"


if __name__ == "__main__":
    sys.exit(main())
