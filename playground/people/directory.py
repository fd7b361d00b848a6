"""Who the users of an app are, where everybody signs in: those of the users file, and people whom a provider signs in.

Of the second the store keeps what the provider said last. What it says is `provider_people.py`'s to read.
"""

from contextlib import suppress

from playground.people.passwords import NO_PASSWORD
from playground.people.provider_people import is_by_provider, stamp_of
from playground.people.refusals import UsersUnreadable
from playground.people.users_file import Content, Role, User, UsersFile, as_role
from playground.settings import Settings
from playground.store import Store


class Directory:
    """The users of one app. `file`: the users file, None where there is none."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.store = store
        self.file = UsersFile(settings.people.users) if settings.people.users else None
        self.provider_stamp = stamp_of(settings.oidc)

    def content(self) -> Content:
        """What the users file says; nobody where there is none. UsersUnreadable where it cannot be read."""
        return self.file.content() if self.file else Content()

    def user(self, account: str | None) -> User | None:
        """The user with an id; None for nobody. UsersUnreadable or StoreError where that cannot be told."""
        if account is None:
            return None
        if not is_by_provider(account):
            return self.content().by_id.get(account)
        says = self.store.provider_says(account) if self.provider_stamp else None
        return User(says["name"], as_role(says["role"]), account, NO_PASSWORD) if says else None

    def stamp(self, user: User) -> str:
        """What a sign-in of this user must carry to hold: it changes with the password, or with what the settings say
        of the provider and of whom it may let in.
        """
        return self.provider_stamp if is_by_provider(user.id) else user.stamp

    def role(self, account: str | None) -> Role | None:
        """The role of the user with an id; None for nobody, and where the file cannot be read."""
        with suppress(UsersUnreadable):
            user = self.user(account)
            return user.role if user else None
        return None
