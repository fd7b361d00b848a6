"""The database's files on disk: made for their owner's eyes alone, and whether they are still the ones that were
opened.

SQLite holds its files open and locks them for the process. Any code of the process that opens and closes one of them
drops those locks (https://sqlite.org/howtocorrupt.html, 2.2); the next process to close the database then deletes the
write-ahead log, and commits go on into a file that has no name any more. A database that somebody moves, deletes or
replaces is the same. So the store asks here before each transaction and after it.
"""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

PRIVATE = 0o600  # the owner reads and writes, nobody else does anything


class Files:
    """The database at `path`, its write-ahead log and that log's index."""

    def __init__(self, path: str):
        real = os.path.realpath(path)  # where SQLite puts the two others when the path is a symbolic link
        self.names = {"database": path, "write-ahead log": f"{real}-wal", "index of the write-ahead log": f"{real}-shm"}
        self._opened = {}  # what -> (device, inode)

    def make(self):
        """Create the database file where there is none, private from its birth; one that is there is made private.
        Never opens a file that exists."""
        database = Path(self.names["database"])
        database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.close(os.open(database, os.O_CREAT | os.O_EXCL | os.O_RDWR, PRIVATE))
        except FileExistsError:
            self.make_private()

    def make_private(self):
        """Nobody but the owner may read what people wrote. SQLite gives the two other files the database's mode when it
        makes them."""
        for name in self.names.values():
            try:
                os.chmod(name, PRIVATE)
            except FileNotFoundError:
                pass
            except OSError as error:
                log.warning("%s cannot be made private: %s", name, error.strerror)

    def remember(self):
        """These are the files that were opened."""
        self._opened = {what: _identity(name) for what, name in self.names.items()}

    def only_the_log_is_gone(self) -> bool:
        """Whether the database is the one that was opened, and there is no write-ahead log, nor a new one of others."""
        database, log_ = (_identity(self.names[what]) for what in ("database", "write-ahead log"))
        return database == self._opened["database"] and log_ is None

    def changed(self) -> str:
        """What of the files is not what was opened any more, in words; "" where all is well."""
        for what, opened in self._opened.items():
            found = _identity(self.names[what])
            if found != opened:
                return f"the {what} was {'deleted or moved' if found is None else 'replaced'}"
        return ""


def _identity(name: str) -> tuple[int, int] | None:
    """(device, inode) of the file at a path, None where there is none."""
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_dev, found.st_ino
