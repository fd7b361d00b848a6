"""The command that keeps the users file: who may sign in, as what, and invitations for those who are to come.

python -m playground.people.users add ann --role admin
"""

import argparse
import getpass
import sys
import time
from collections.abc import Sequence

from playground import settings as settings_module
from playground.people.passwords import NO_PASSWORD, Hasher, checked_name, checked_password, same_name
from playground.people.refusals import UsersUnreadable, WrongSignIn
from playground.people.users_file import ROLES, Content, UsersFile, new_invitation
from playground.settings import Settings
from playground.system.messages import UserFacingError

COMMANDS = {
    "add": "a new user, whose password is asked for",
    "passwd": "another password; ends the person's sign-ins",
    "role": "another role, at once",
    "list": "who may sign in, and which invitations are open",
    "remove": "end a user's sign-ins, at once; chats and votes stay",
    "invite": "a link that works once, by which somebody becomes a user",
    "take-back": "an open invitation, by its name in the list: its link works no more",
}
LONGEST_DAYS = 90


class CannotDo(UserFacingError):
    """The command is not possible; the message says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 not possible, and why is said; 2 the command line is wrong."""
    arguments = parser().parse_args(argv)
    try:
        settings = settings_module.read([])
        path = arguments.file or settings.people.users
        if not path:
            raise CannotDo("Pass --file FILE, the one that the app has as --people.users.")
        print(run(UsersFile(path), arguments, settings))
    except (settings_module.SettingsError, CannotDo, WrongSignIn, UsersUnreadable) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m playground.people.users", description="Who may sign in to the app.")
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        if name not in ("list", "invite"):
            command.add_argument("name", help="the invitation" if name == "take-back" else "the user")
        if name in ("add", "invite"):
            command.add_argument("--role", choices=ROLES, default="annotator", help="default: annotator")
        if name == "add":
            command.add_argument("--no-password", action="store_true", help="a reverse proxy signs the user in")
        if name == "role":
            command.add_argument("role", choices=ROLES)
        if name == "invite":
            command.add_argument("--days", type=float, default=3, help="for which the link works (default: 3)")
            command.add_argument("--address", default="", help="of the page, such as https://nudge.example")
        command.add_argument("--file", default="", help="the users file (default: NUDGE_PEOPLE_USERS or .env)")
    return top


def run(users: UsersFile, arguments: argparse.Namespace, settings: Settings, hasher: Hasher | None = None) -> str:
    """Do one of COMMANDS; returns what is to be printed. WrongSignIn or CannotDo where that is not possible."""
    command, name = arguments.command, getattr(arguments, "name", "")
    if command == "list":
        return listed(users.content())
    if command == "invite":
        return invited(users, arguments, settings)
    if command == "add":
        name = checked_name(name)
        if same_name(name) in users.content().by_name:
            raise WrongSignIn("The name {name} is taken.", name=repr(name))
        hashed = NO_PASSWORD if arguments.no_password else (hasher or Hasher()).hash(asked_password(name))
        users.change(lambda content: content.with_user(name, arguments.role, hashed))
        return f"{name} can sign in, as {arguments.role}."
    if command == "take-back":
        users.change(lambda content: content.without_invitation(name))
        return f"The invitation {name} is taken back."
    user = users.content().named(name)
    if command == "passwd":
        hashed = (hasher or Hasher()).hash(asked_password(user.name))
        users.change(lambda content: content.changed(user.name, hashed=hashed))
        return f"{user.name} has another password, and signs in again on every device."
    if command == "role":
        users.change(lambda content: content.changed(user.name, role=arguments.role))
        return f"{user.name} is {arguments.role} now."
    users.change(lambda content: content.without_user(user.name))
    return f"{user.name} is removed and signed out. Chats and votes stay; keys for programs are revoked on their own."


def listed(content: Content) -> str:
    rows = [f"{user.name}: {user.role}" for user in content.users]
    for i in content.open_invitations:
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(i.until))
        maker = f", made by {i.by}" if i.by else ""
        rows.append(f"invitation {i.short} as {i.role}, until {until}{maker}")
    return "\n".join(rows) or "No users."


def invited(users: UsersFile, arguments: argparse.Namespace, settings: Settings) -> str:
    if not 0 < arguments.days <= LONGEST_DAYS:
        raise CannotDo("An invitation works for up to {n} days.", n=LONGEST_DAYS)
    token, invitation = new_invitation(arguments.role, arguments.days, user_of_this_machine())
    users.change(lambda content: content.with_invitation(invitation))
    # as in the address that the app prints
    host = "localhost" if settings.host in ("0.0.0.0", "::") else settings.host
    here = arguments.address.rstrip("/") or f"http://{host}:{settings.port}{settings.root_path}"
    return f"For one person, who becomes {arguments.role}: {here}/invitation/{token}"


def user_of_this_machine() -> str:
    """Who runs the command; "" where the machine has no name for that, as in a container."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # Python before 3.13 raised the last two
        return ""


def asked_password(name: str) -> str:
    """A password, asked for twice at a terminal; else the first line of the input. WrongSignIn where it is none."""
    if not sys.stdin.isatty():
        return checked_password(sys.stdin.readline().rstrip("\n"), name)
    password = checked_password(getpass.getpass(f"Password of {name}: "), name)
    if getpass.getpass("Once more: ") != password:
        raise WrongSignIn("The two passwords differ.")
    return password


if __name__ == "__main__":
    sys.exit(main())
