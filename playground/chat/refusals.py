"""How a gesture is refused: with a sentence that tells the person why, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from playground.store import StoreError, StoreUnavailable
from playground.system.messages import UserFacingError


class Refused(UserFacingError):
    """The gesture is not possible now; the message tells the person why and what to do."""


class Busy(Refused):
    """The gesture is possible once others have ended."""


class Unavailable(Refused):
    """The model or the store could not do it; the message tells what."""


@contextmanager
def refusing() -> Iterator[None]:
    """Turns what the store refuses into a Refused with the same message."""
    try:
        yield
    except StoreError as error:
        kind = Unavailable if isinstance(error, StoreUnavailable) else Refused
        raise kind(error.message) from None
