"""How a gesture is refused: with a sentence that tells the person why, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from playground.store import StoreError
from playground.system.messages import UserFacingError


class Refused(UserFacingError):
    """The gesture is not possible now; the message tells the person why and what to do."""


@contextmanager
def refusing() -> Iterator[None]:
    """Turns what the store refuses into a Refused with the same message."""
    try:
        yield
    except StoreError as error:
        raise Refused(error.message) from None
