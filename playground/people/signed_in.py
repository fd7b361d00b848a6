"""The command that says who is signed in, by a password or a provider, and ends it.

python -m playground.people.signed_in list
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from playground import settings as settings_module
from playground.people.refusals import UsersUnreadable
from playground.people.sign_ins import SignIns
from playground.store import Store, StoreError
from playground.system.messages import UserFacingError

COMMANDS = {
    "list": "who is signed in, as what, and on how many devices",
    "end": "end all sign-ins of a person, at once; who is allowed still may sign in again",
}


class CannotEnd(UserFacingError):
    """The name is nobody's who is signed in, or that of several people."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 not possible, and why is said; 2 the command line is wrong."""
    arguments = parser().parse_args(argv)
    try:
        settings = settings_module.read([])
        if arguments.data_dir is not None:
            settings = settings.with_values(data_dir=arguments.data_dir)
        sign_ins = SignIns(Store(settings.database, create=False), settings)
        print(ended(sign_ins, arguments.name) if arguments.command == "end" else listed(sign_ins))
    except (settings_module.SettingsError, CannotEnd, UsersUnreadable, StoreError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m playground.people.signed_in",
        description="Who is signed in. It reads the app's settings from NUDGE_ variables and .env.",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        if name == "end":
            command.add_argument("name", help="the person, by the name or the id in the list")
        command.add_argument("--data-dir", type=Path, help="the app's folder (default: NUDGE_DATA_DIR, .env, or data)")
    return top


def listed(sign_ins: SignIns) -> str:
    rows = []
    for user, devices, used in sign_ins.signed_in():
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(used))
        on = f"{devices} device{'s' * (devices != 1)}"
        rows.append(f"{user.name} ({user.id}): {user.role}, on {on}, used {when}")
    return "\n".join(rows) or "Nobody is signed in."


def ended(sign_ins: SignIns, name: str) -> str:
    """End the sign-ins of whoever has this name or id; CannotEnd where that is nobody, or more than one."""
    found = [user for user, _, _ in sign_ins.signed_in() if name in (user.name, user.id)]
    if not found:
        raise CannotEnd("Nobody of the name {name} is signed in.", name=repr(name))
    if len(found) > 1:
        ids = ", ".join(user.id for user in found)
        raise CannotEnd("{n} people are called {name}. Give the id: {ids}.", n=len(found), name=repr(name), ids=ids)
    sign_ins.store.end_sign_ins_of(found[0].id)
    return f"{found[0].name} is signed out on all devices."


if __name__ == "__main__":
    sys.exit(main())
