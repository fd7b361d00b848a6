"""What admins call people: the name of a user, of a sign-in or of a key. People without one are numbers."""

from playground.people.refusals import UsersUnreadable
from playground.people.users_file import UsersFile
from playground.settings import Settings
from playground.store import Store


class Names:
    """The names of one app's people."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.store = store
        self.users = UsersFile(settings.people.users) if settings.people.users else None

    def known(self) -> dict[int, str]:
        """The name of each person who has one, by number. A user who was removed from the file is a number again."""
        try:
            users = self.users.content().by_id if self.users else {}
        except UsersUnreadable:
            users = {}
        names = {}
        for row in self.store.names_of_people():
            user = users.get(row["account"] or "")
            if name := user.name if user else row["name"]:
                names[row["person"]] = name
        return names
