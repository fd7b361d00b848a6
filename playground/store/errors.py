"""The store's exceptions, and what SQLite's own errors mean in a sentence for the person.

A plain `StoreError` is a refusal: the database is well, but what was asked is not possible. `StoreUnavailable` means
that the database could not do it.
"""

import sqlite3
import threading

from playground.system.messages import UserFacingError

# Primary result codes of SQLite (https://sqlite.org/rescode.html). Python gives an error's code as `sqlite_errorcode`;
# its higher bits tell which of several system calls failed.
BUSY = 5
LOCKED = 6
READONLY = 8
FULL = 13
CANNOT_OPEN = 14
PROTOCOL = 15
PRIMARY_BITS = 0xFF

# raised where the code that uses the database is wrong
MISTAKES = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError, sqlite3.NotSupportedError)


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


class StoreReadOnly(StoreUnavailable):
    """This process only reads: another one records."""


class Failures:
    """How often the database could not do what was asked, by kind. Any thread may add and read."""

    KINDS = {"busy": StoreBusy, "full": StoreFull, "lost": StoreLost, "other": StoreUnavailable}

    def __init__(self) -> None:
        self._counts = dict.fromkeys(self.KINDS, 0)
        self._lock = threading.Lock()

    def add(self, error: StoreUnavailable) -> None:
        kind = next(name for name, failure in self.KINDS.items() if isinstance(error, failure))
        with self._lock:
            self._counts[kind] += 1

    def read(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)


def is_failure(error: BaseException) -> bool:
    """Whether the database failed, rather than the code that uses it."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, MISTAKES)


def translate(error: sqlite3.Error) -> StoreUnavailable:
    """SQLite's error as one whose message is a sentence for the person."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & PRIMARY_BITS
    if code in (BUSY, LOCKED, PROTOCOL):
        return busy()
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


def busy() -> StoreBusy:
    """The error for a database that others write to for too long."""
    return StoreBusy("The database is busy, so nothing was recorded. What you see here is kept: try again in a moment.")


def files_lost() -> StoreLost:
    """The error for a database whose files are no longer the ones that were opened."""
    return StoreLost(
        "The database was moved, deleted or replaced while the app was running, so nothing can be recorded. "
        "Please tell the owner to restart the app."
    )
