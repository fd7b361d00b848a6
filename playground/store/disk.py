"""The database's files on disk: makes them readable for their owner only, and notices when they are moved or replaced.

SQLite keeps its files open and locks them for the whole process. Code of the same process that opens and closes one of
them drops those locks (https://sqlite.org/howtocorrupt.html, 2.2). The next process that closes the database then
deletes the write-ahead log, and commits go on into a file that has no name any more. The same happens when somebody
moves, deletes or replaces the database. So the store asks `Files.changed` before and after each transaction.
"""

import logging
import os
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

PRIVATE = 0o600  # the owner reads and writes, nobody else may do anything

DATABASE = "database"
LOG = "write-ahead log"
INDEX = "index of the write-ahead log"


class Identity(NamedTuple):
    """What tells a file from another one that has the same path."""

    device: int
    inode: int


class Files:
    """The database at `path`, its write-ahead log and that log's index."""

    def __init__(self, path: str) -> None:
        real = os.path.realpath(path)  # SQLite puts the two others there, also when the path is a symbolic link
        self.paths = {DATABASE: path, LOG: f"{real}-wal", INDEX: f"{real}-shm"}
        self._opened: dict[str, Identity | None] = {}

    def make(self) -> None:
        """Create the database file, private from the start; one that exists is made private. Opens no existing file."""
        database = Path(self.paths[DATABASE])
        database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.close(os.open(database, os.O_CREAT | os.O_EXCL | os.O_RDWR, PRIVATE))
        except FileExistsError:
            self.make_private()

    def make_private(self) -> None:
        """Let nobody but the owner read what people wrote.

        SQLite gives the two other files the database's mode when it makes them.
        """
        for path in self.paths.values():
            try:
                os.chmod(path, PRIVATE)
            except FileNotFoundError:
                pass
            except OSError as error:
                log.warning("%s cannot be made private: %s", path, error.strerror)

    def remember(self) -> None:
        """Note that the files which are there now are the ones that were opened."""
        self._opened = {what: _identity(path) for what, path in self.paths.items()}

    def only_the_log_is_gone(self) -> bool:
        """Whether the database is the one that was opened, and no write-ahead log is there, not even a new one."""
        is_same_database = _identity(self.paths[DATABASE]) == self._opened[DATABASE]
        return is_same_database and _identity(self.paths[LOG]) is None

    def state(self) -> str:
        """A text that changes with each transaction, of whatever process."""
        statuses = []
        for what in (DATABASE, LOG):
            try:
                status = os.stat(self.paths[what])
            except OSError:
                continue
            statuses.append(f"{status.st_mtime_ns:x}-{status.st_size:x}")
        return " ".join(statuses)

    def changed(self) -> str:
        """Which file is no longer the one that was opened, as a sentence; "" where all are."""
        for what, opened in self._opened.items():
            current = _identity(self.paths[what])
            if current != opened:
                return f"the {what} was {'deleted or moved' if current is None else 'replaced'}"
        return ""


def _identity(path: str) -> Identity | None:
    """The identity of the file at a path, None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return Identity(status.st_dev, status.st_ino)
