"""The SQLite file: connections, transactions, and the moment. What the rows mean is the other modules' of this package.

One connection a thread; WAL with `synchronous=FULL`, so that a vote that was shown as accepted is on disk; every write takes the write
lock first (`begin immediate`), because a deferred transaction that reads and then writes fails at once when another process wrote in between.
"""

import sqlite3
import threading
from contextlib import contextmanager
from datetime import datetime, timezone

import sqlite_utils
from filelock import FileLock

from playground.store.migrations import migrations


class StoreError(Exception):
    """The store refuses what was asked; the message says why."""


def now():
    """This moment in UTC, ISO 8601 with milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class File:
    """The database at `path` (`:memory:` for tests), migrated to the newest schema when it is opened."""

    def __init__(self, path=":memory:"):
        self.path = str(path)
        self._local = threading.local()
        self._shared = None
        if self.path == ":memory:":
            self._shared, self._lock = self._connect(), threading.RLock()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = None
            # SQLite's busy timeout does not cover the switch to WAL, and server and worker may open a new file at the same moment
            with FileLock(f"{self.path}.lock", timeout=60):
                self.db.execute("pragma journal_mode=wal")
        with self.writing() as db:
            migrations.apply(db)

    @property
    def db(self):
        if self._shared is not None:
            return self._shared
        if not hasattr(self._local, "db"):
            self._local.db = self._connect()
        return self._local.db

    def _connect(self):
        memory = self.path == ":memory:"
        connection = sqlite3.connect(self.path, timeout=15, isolation_level=None, check_same_thread=not memory)
        for pragma in ("foreign_keys=on", "busy_timeout=15000", "synchronous=full", "secure_delete=on"):
            connection.execute(f"pragma {pragma}")
        return sqlite_utils.Database(connection)

    @contextmanager
    def writing(self):
        """One transaction that holds the write lock from its start; an exception rolls it back."""
        if self._lock:
            self._lock.acquire()
        try:
            self.db.execute("begin immediate")
            try:
                yield self.db
            except BaseException:
                self.db.execute("rollback")
                raise
            self.db.execute("commit")
        finally:
            if self._lock:
                self._lock.release()

    def rows(self, sql, *values):
        """Rows of a query as a list of dicts."""
        if self._lock:
            with self._lock:
                return list(self.db.query(sql, list(values)))
        return list(self.db.query(sql, list(values)))

    def row(self, sql, *values):
        """The first row of a query, or None."""
        return next(iter(self.rows(sql, *values)), None)

    def scrub(self, patience: float, rewrite: bool = False) -> bool:
        """Bring what is deleted out of the write-ahead log, and with `rewrite` out of every corner of the file; False where others were at it for
        longer than `patience` seconds, and it is to be tried again.

        `secure_delete` overwrites a row where it is deleted, but not the copies that SQLite left where it had moved a row from (seen): only
        `vacuum` is rid of them. It holds the write lock for about as long as it takes to copy the file.
        """
        if self.path == ":memory:":
            return True
        try:
            self.db.execute(f"pragma busy_timeout={1000 * patience:.0f}")
            if rewrite:
                self.db.execute("vacuum")
            busy, *_ = self.db.execute("pragma wal_checkpoint(truncate)").fetchone()
            return not busy
        except sqlite3.OperationalError:  # locked, or no room for the copy
            return False
        finally:
            self.db.execute("pragma busy_timeout=15000")

    def sqlite_version(self):
        return self.row("select sqlite_version() as version")["version"]
