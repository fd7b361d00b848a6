"""What people are called, for admins alone: everybody else is told of nobody.

A user has the name of the users file, whoever has signed in as an admin or by a provider the name of the sign-in, and
whoever has keys for programs the name that those were given for. Visitors have none. A page asks here and nowhere else.
"""

from collections.abc import Collection

from playground.people.passwords import same_name
from playground.people.refusals import UsersUnreadable
from playground.people.users_file import Content, UsersFile
from playground.store import Store


def names_of(store: Store, users: UsersFile | None, people: Collection[int]) -> dict[int, str]:
    """The names of these people (ids of annotators) by id, without those who have none or are in the file no more."""
    by_id = _content(users).by_id
    names = {}
    for row in store.known_as(people):
        user = by_id.get(row["account"] or "")
        name = user.name if user else row["name"]
        if name:
            names[row["id"]] = name
    return names


def person_called(store: Store, users: UsersFile | None, name: str) -> int | None:
    """The id of the person whom `names_of` calls so; of several the one who came last; None where it is nobody."""
    user = _content(users).by_name.get(same_name(name))
    return store.person_known_as(user.id if user else None, name.strip())


def _content(users: UsersFile | None) -> Content:
    """What the users file says; nothing where there is none, or where it cannot be read: the log has the reason."""
    try:
        return users.content() if users else Content()
    except UsersUnreadable:
        return Content()
