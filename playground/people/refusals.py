"""How a sign-in is refused: with a sentence that tells the person why."""

from playground.system.messages import UserFacingError


class WrongSignIn(UserFacingError):
    """The sign-in failed; the message says what to do."""


class NotAllowed(WrongSignIn):
    """A provider has signed somebody in who may not come in here."""


class TooMany(WrongSignIn):
    """No sign-in is possible now, whatever was entered; the message says when to try again."""


def too_many_links(seconds: float) -> TooMany:
    """After wrong admin links or invitations; `seconds`: how long to wait."""
    return TooMany("Too many wrong links. Try again in {n} {n:second|seconds}.", n=f"{max(seconds, 1):.0f}")


def too_many_passwords(seconds: float) -> TooMany:
    """After wrong passwords; `seconds`: how long to wait."""
    return TooMany("Too many wrong passwords. Try again in {n} {n:second|seconds}.", n=f"{max(seconds, 1):.0f}")


def too_many_sign_ins(seconds: float) -> TooMany:
    """After sign-ins that a provider has not confirmed; `seconds`: how long to wait."""
    return TooMany("Too many sign-ins failed. Try again in {n} {n:second|seconds}.", n=f"{max(seconds, 1):.0f}")


class UsersUnreadable(UserFacingError):
    """The users file cannot be read or written; its owner finds the reason in the log."""
