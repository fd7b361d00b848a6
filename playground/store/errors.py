"""What the store says when it cannot: to the person in words, and what SQLite's own errors mean in such words.

`StoreError` itself is a refusal: the database is well, and what was asked cannot be. `StoreUnavailable` means that the
database could not do it.
"""

import sqlite3

from playground.system.messages import UserFacingError

# primary result codes of SQLite (https://sqlite.org/rescode.html), which Python gives as `sqlite_errorcode`
BUSY, LOCKED, READONLY, FULL, CANNOT_OPEN, PROTOCOL = 5, 6, 8, 13, 14, 15
# mistakes of the code that asks
NOT_OURS = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError, sqlite3.NotSupportedError)


class StoreError(UserFacingError):
    """The store refuses what was asked; the message says why."""


class StoreUnavailable(StoreError):
    """The database could not do what was asked, and nothing was recorded; the message tells the person what to do."""


class StoreBusy(StoreUnavailable):
    """Another process holds the database."""


class StoreFull(StoreUnavailable):
    """The disk has no room."""


class StoreLost(StoreUnavailable):
    """The files on disk are not the ones that were opened; only a restart helps."""


def is_failure(error: BaseException) -> bool:
    """Whether an exception tells that the database failed, rather than that the code which asked is wrong."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, NOT_OURS)


def in_words(error: sqlite3.Error) -> StoreUnavailable:
    """SQLite's error as one for the person."""
    # the higher bits tell which of several system calls failed
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code in (BUSY, LOCKED, PROTOCOL):
        return StoreBusy(
            "The database is busy, so nothing was recorded. What you see here is kept: try again in a moment."
        )
    if code == FULL:
        return StoreFull(
            "The disk is full, so nothing could be recorded. Please tell the owner of this app; then try again."
        )
    if code in (READONLY, CANNOT_OPEN):
        return StoreUnavailable(
            "The database cannot be written, so nothing was recorded. "
            "Please tell the owner of this app; then try again."
        )
    return StoreUnavailable(
        "The database is damaged or its disk fails, so nothing could be recorded. Please tell the owner of this app."
    )


def lost() -> StoreLost:
    """What a person reads once the files are gone."""
    return StoreLost(
        "The database was moved, deleted or replaced while the app was running, so nothing can be recorded. "
        "Please tell the owner to restart the app."
    )
