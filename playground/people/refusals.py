"""How a sign-in is refused: with a sentence that tells the person why."""

from playground.system.messages import UserFacingError


class WrongSignIn(UserFacingError):
    """The sign-in failed; the message says what to do."""


class TooMany(WrongSignIn):
    """No sign-in is possible now, whatever was entered; the message says when to try again."""


class UsersUnreadable(UserFacingError):
    """The users file cannot be read or written; its owner finds the reason in the log."""
