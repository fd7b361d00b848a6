"""What is typed and chosen in the fields of the tab "Data", as values of `Filters`."""

import re
from collections.abc import Collection

from playground.chat.gestures import brief
from playground.data import times
from playground.store.checks import MOST
from playground.system.messages import UserFacingError

# as the page writes it too: "v0 (base)", in each language with its own word and brackets
VERSION = re.compile(r"v?\s*([0-9]{1,12})(?:\s*[(（][^()（）]{1,40}[)）])?", re.IGNORECASE)
UNKNOWN = "?"  # fits nothing, and is kept in place of whatever came


class NoTime(UserFacingError):
    """What somebody typed is no time."""


def time_in(text: str | None, end: bool = False) -> str | None:
    """The time in a field as the store has it (`times.stored`); None where it is empty. NoTime says how to write it."""
    text = (text or "").strip()
    if not text:
        return None
    try:
        return times.stored(text, end)
    except ValueError:
        raise NoTime("{what} is no date. Write it like 2026-11-27 or 2026-11-27 08:00.", what=brief(text)) from None


class NoVersion(UserFacingError):
    """What somebody typed is no version."""


def version_in(text: str | None) -> int | None:
    """The version in a field, such as "3", "v 3", "base" or "v0 (base)"; None where it is empty. NoVersion says how to
    write it.
    """
    text = (text or "").strip()
    if not text:
        return None
    if text.lower() == "base":
        return 0
    found = VERSION.fullmatch(text)
    if found is None:
        raise NoVersion("{what} is no version. Write it like 3, v3 or base.", what=brief(text))
    return int(found[1])


def one_of(value: str | None, known: Collection[str]) -> str | None:
    """The value of a field; None where it is empty, UNKNOWN where it is none that the page offers."""
    if not value:
        return None
    return value if value in known else UNKNOWN


def number_in(text: str | None) -> int | None:
    """The number in a field, such as "3" or "v3"; None where it is empty. What is no number fits nothing, as no row has
    the largest number.
    """
    text = (text or "").strip().lower().removeprefix("v")
    if not text:
        return None
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else MOST
